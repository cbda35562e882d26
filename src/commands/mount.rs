//! `mirrorfs mount`.

use crate::cli::MountArgs;
use crate::daemon;
use crate::exit_code::{CliError, ExitCode};
use crate::mount_process::{self, Settings};
use std::ffi::OsString;

/// Mounts; `command_line` is what a background process is started with.
pub(crate) fn mount(arguments: MountArgs, command_line: &[OsString]) -> Result<ExitCode, CliError> {
    // What is wrong with the command line is told before anything is started.
    let settings = Settings::new(&arguments)?;
    if !arguments.foreground && !daemon::is_child() {
        return daemon::start(command_line);
    }
    raise_file_limit();
    let log = settings.state_dir.join("mirrorfs.log");
    if arguments.foreground {
        return mount_process::run(settings, || Ok(()));
    }
    daemon::detach();
    mount_process::run(settings, || daemon::ready(&log))
}

/// As many open files as we may have: thousands of connections and segments must not be the limit.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit to be filled, and read, by the two calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
