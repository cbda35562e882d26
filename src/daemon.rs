//! Going to the background once the work is known to have begun.
//!
//! The program starts itself again as a child with a pipe as standard output. The child tells on it that it is ready, or how
//! it failed; then it lets go of the pipe (a held one hangs `$(mount …)`), and the parent leaves with the right exit code.

use crate::exit_code::{CliError, Context, ExitCode};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Set in the child's environment.
const CHILD: &str = "MIRRORFS_BACKGROUND_CHILD";
/// Log size at which a new one is begun.
const LOG_BYTES_MAX: u64 = 8 << 20;

/// Whether this process is the child.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Starts `mirrorfs ARGUMENTS` in the background; returns once it is ready or has failed.
pub(crate) fn start(arguments: &[OsString]) -> Result<ExitCode, CliError> {
    let program = std::env::current_exe().context(|| "cannot find my own program".into())?;
    let mut child = Command::new(program)
        .args(arguments)
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context(|| "cannot start the background process".into())?;
    let mut told = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut told).context(|| "cannot hear from the background process".into())?;
    }
    if told.trim() == "ready" {
        return Ok(ExitCode::Success);
    }
    // It has printed why on standard error, which we share.
    let status = child.wait().context(|| "cannot wait for the background process".into())?;
    Ok(ExitCode::from_number(status.code().unwrap_or(1)))
}

/// In the child: become a daemon's process (own session), before threads are started.
pub(crate) fn detach() {
    // SAFETY: setsid has no preconditions; it fails only for a group leader, which a child just started is not.
    unsafe { libc::setsid() };
}

/// In the child: tell the parent that all is well, and send what follows on standard error to `log`.
pub(crate) fn ready(log: &Path) -> Result<(), CliError> {
    let begin_new = std::fs::metadata(log).is_ok_and(|file| file.len() > LOG_BYTES_MAX);
    let file = OpenOptions::new()
        .create(true)
        .append(!begin_new)
        .write(true)
        .truncate(begin_new)
        .open(log)
        .context(|| format!("cannot open the log {}", log.display()))?;
    let null = OpenOptions::new().write(true).open("/dev/null").context(|| "cannot open /dev/null".into())?;
    let mut out = std::io::stdout();
    out.write_all(b"ready\n").and_then(|()| out.flush()).context(|| "the starting process is gone".into())?;
    // SAFETY: both descriptors are open; dup2 onto 1 and 2 replaces the pipe and the terminal.
    unsafe {
        libc::dup2(null.as_raw_fd(), 1);
        libc::dup2(file.as_raw_fd(), 2);
    }
    let _ = std::env::set_current_dir("/");
    Ok(())
}
