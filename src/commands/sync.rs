//! `mirrorfs sync`.

use super::{expect_done, running_mount};
use crate::control::{self, Request};
use crate::exit_code::{CliError, Context, ExitCode};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

/// Has the kernel write out its dirty pages, commits, and waits until that is durable on the mirror.
pub(super) fn sync(mountpoint: &Path, timeout: Option<Duration>) -> Result<ExitCode, CliError> {
    let dir = running_mount(mountpoint)?;
    let open = std::fs::File::open(mountpoint).context(|| format!("cannot open {}", mountpoint.display()))?;
    // SAFETY: syncfs takes an open descriptor.
    let unwritten = match unsafe { libc::syncfs(open.as_raw_fd()) } {
        0 => None,
        _ => Some(std::io::Error::last_os_error()),
    };
    drop(open);
    let timeout_ms = timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let code = expect_done(control::ask(&dir, &Request::Sync { timeout_ms }, None)?, mountpoint)?;
    match unwritten {
        None => Ok(code),
        Some(error) => Err(CliError::failure(format!(
            "some data that programs had written to {} without an fsync could not be stored ({error}); all else is durable on \
             the mirror",
            mountpoint.display()
        ))),
    }
}
