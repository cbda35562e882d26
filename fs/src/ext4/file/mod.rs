//! File contents: extent tree, reading, writing, truncation, fallocate, seek.

use super::error::Result;
use super::inode::Inode;
use super::tx::{Core, Tx};
use super::types::{BlockNo, FileBlock, InodeNo};
use parking_lot::RwLock;
use std::sync::Arc;

/// Locks of file data, by inode number. Held while data move, outside the core lock.
#[derive(Default)]
pub(crate) struct DataLocks {}

#[allow(clippy::unimplemented, unused_variables, dead_code)]
impl DataLocks {
    /// The lock of one inode.
    pub(crate) fn of(&self, ino: InodeNo) -> Arc<RwLock<()>> {
        unimplemented!()
    }
}

#[allow(clippy::unimplemented, unused_variables, dead_code)]
impl Core {
    /// Where a block of the file lies; `None` for a hole or an unwritten (reserved) block.
    ///
    /// # Errors
    /// `Corrupt` for a damaged extent tree.
    pub(crate) fn map_block(&mut self, inode: &Inode, block: FileBlock) -> Result<Option<BlockNo>> {
        unimplemented!()
    }
}

#[allow(clippy::unimplemented, unused_variables, dead_code)]
impl Tx<'_> {
    /// Appends one zeroed metadata block to a directory or long symlink: allocated near the last one, created in the
    /// cache, size and `blocks_512` grown (`inode` is changed, and not yet put).
    ///
    /// # Errors
    /// `ENOSPC`.
    pub(crate) fn append_metadata_block(&mut self, inode: &mut Inode) -> Result<(FileBlock, BlockNo)> {
        unimplemented!()
    }
    /// Frees blocks of the file from its end down to `keep` blocks, as many as this handle's credits allow (blocks of
    /// directories and symlinks are forgotten too). True when all are gone; `inode` is changed, and not yet put.
    ///
    /// # Errors
    /// `Corrupt` for a damaged extent tree.
    pub(crate) fn free_file_blocks(&mut self, inode: &mut Inode, keep: u64) -> Result<bool> {
        unimplemented!()
    }
    /// Makes an inode's extent tree empty (a new file or directory).
    pub(crate) fn init_extents(&mut self, inode: &mut Inode) {
        unimplemented!()
    }
}
