//! One process per queue.

use super::LogError;
use std::fs::{File, OpenOptions};
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
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            Err(std::fs::TryLockError::Error(source)) => {
                return Err(LogError::Io { action: "lock", path, source });
            }
        }
    }
    Err(LogError::InUse { path: dir.to_path_buf() })
}
