//! `mirrorfs umount`, and the remount of mount(8).

use super::{expect_done, not_running, running_mount};
use crate::control::{self, Request};
use crate::exit_code::{CliError, ExitCode};
use crate::registry;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time for a process to end after it has taken down the mount: committing, sending, closing the queue.
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// Ends a mount and waits until its process has let go of the images.
pub(super) fn umount(mountpoint: &Path, force: bool) -> Result<ExitCode, CliError> {
    let path = registry::absolute(mountpoint);
    let dir = running_mount(&path)?;
    let Some(_) = control::ask(&dir, &Request::Unmount { force }, None)? else {
        // Its process is gone: only the dead mount point may be left.
        if mirrorfs_fs::fuse::clear_stale_mount(&path).unwrap_or(false) {
            eprintln!(
                "mirrorfs: the process of {} was gone; cleared its mount point. The next mount recovers the image.",
                path.display()
            );
            return Ok(ExitCode::Success);
        }
        return Err(not_running(mountpoint));
    };
    let begun = Instant::now();
    while control::connect(&dir)?.is_some() {
        if begun.elapsed() > END_TIMEOUT {
            return Err(CliError::new(
                ExitCode::Timeout,
                format!(
                    "{} is unmounted, but its process is still busy closing {}",
                    path.display(),
                    dir.display()
                ),
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(ExitCode::Success)
}

/// Turns a mount read-only, or writable again.
pub(crate) fn remount(mountpoint: &Path, read_only: bool) -> Result<ExitCode, CliError> {
    let dir = running_mount(mountpoint)?;
    expect_done(control::ask(&dir, &Request::Remount { read_only }, None)?, mountpoint)
}
