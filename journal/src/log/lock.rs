//! One process per queue.

use super::LogError;
use std::fs::{File, OpenOptions};
use std::path::Path;

/// Locks the queue in `dir` for as long as the file lives.
pub(crate) fn acquire(dir: &Path) -> Result<File, LogError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|source| LogError::Io { action: "open", path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(LogError::InUse { path: dir.to_path_buf() }),
        Err(std::fs::TryLockError::Error(source)) => Err(LogError::Io { action: "lock", path, source }),
    }
}
