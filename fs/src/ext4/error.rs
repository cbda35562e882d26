//! What can go wrong in the ext4 core, kept apart: corrupt, unsupported, I/O, and what POSIX calls an errno.

use super::types::{BlockNo, InodeNo};
use std::io;

/// Result of the ext4 core.
pub type Result<T> = std::result::Result<T, FsError>;

/// Errors of the ext4 core.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// An ordinary POSIX refusal (`libc::ENOENT`, `libc::ENOSPC`, …).
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// The operation has to wait (full journal, frees pending before ENOSPC, cold region) and the caller said it may not:
    /// nothing was changed; run it again, whole, on the blocking pool.
    #[error("the operation would block")]
    WouldBlock,
    /// An on-disk structure is impossible or its checksum is wrong.
    #[error("damaged {what}{}{}", inode.map(|i| format!(", inode {i}")).unwrap_or_default(), block.map(|b| format!(", block {b}")).unwrap_or_default())]
    Corrupt {
        /// What was being read, and what is wrong with it.
        what: String,
        /// The inode, where known.
        inode: Option<InodeNo>,
        /// The block, where known.
        block: Option<BlockNo>,
    },
    /// The image can't be served; refused by the name of the feature.
    #[error("{0}")]
    Unsupported(String),
    /// The image's storage failed.
    #[error("image I/O failed: {0}")]
    Io(#[from] io::Error),
    /// The mount has latched after a failed write or sync, or turned read-only after damage.
    #[error("the file system is read-only: {0}")]
    Latched(String),
}

impl FsError {
    /// Shorthand for a damaged structure.
    pub fn corrupt(what: impl Into<String>, inode: Option<InodeNo>, block: Option<BlockNo>) -> Self {
        Self::Corrupt { what: what.into(), inode, block }
    }
}

/// Shorthand: an errno as an error.
pub fn errno<T>(number: i32) -> Result<T> {
    Err(FsError::Errno(number))
}
