//! One process per queue.

use super::LogError;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

/// `verify` holds the lock for a moment; a mount that starts then waits for it.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(25);

/// Locks the queue in `dir` for as long as the file lives.
pub(crate) fn acquire(dir: &Path) -> Result<File, LogError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|source| LogError::Io { action: "open", path: path.clone(), source })?;
    for _ in 0..ATTEMPTS {
        // SAFETY: the descriptor is open, the call takes numbers only.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(file);
        }
        let source = std::io::Error::last_os_error();
        if source.kind() != std::io::ErrorKind::WouldBlock {
            return Err(LogError::Io { action: "lock", path, source });
        }
        std::thread::sleep(PAUSE);
    }
    Err(LogError::InUse { path: dir.to_path_buf() })
}
