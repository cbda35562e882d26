//! Allocation of blocks and inodes.
//!
//! On-disk bitmaps are metadata blocks and change in the handle. Beside them stands, for each group in use, what may be
//! *allocated*: a block freed in a transaction stays taken there until that transaction has committed ([`Allocator::committed`]).

use super::attr::FileKind;
use super::error::Result;
use super::superblock::Geometry;
use super::tx::Tx;
use super::types::{BlockNo, InodeNo};

/// In-memory state of allocation.
pub(crate) struct Allocator {}

impl Allocator {
    /// Nothing loaded yet.
    pub(crate) fn new(_geometry: &Geometry) -> Self {
        Self {}
    }
    /// The transaction that freed these runs has committed (the Flush behind its commit record has returned): they may be reused.
    pub(crate) fn committed(&mut self, _freed: &[(BlockNo, u32)]) {}
}

#[allow(clippy::unimplemented, unused_variables, dead_code)]
impl Tx<'_> {
    /// Allocates 1 to `wanted` contiguous blocks, at `goal` if free there, else near it; host space is reserved.
    /// Counts, bitmap, descriptor and checksums are kept; not the inode's `blocks_512`.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub(crate) fn alloc_blocks(&mut self, goal: BlockNo, wanted: u32) -> Result<(BlockNo, u32)> {
        unimplemented!()
    }
    /// Frees a run of blocks (each group's part in turn); reusable after the commit.
    ///
    /// # Errors
    /// `Corrupt` if one is free already or belongs to the file system's own structures.
    pub(crate) fn free_blocks(&mut self, start: BlockNo, count: u32) -> Result<()> {
        unimplemented!()
    }
    /// Allocates an inode number near `parent` (directories are spread over groups, as the kernel's Orlov does).
    ///
    /// # Errors
    /// `ENOSPC`.
    pub(crate) fn alloc_inode(&mut self, parent: InodeNo, kind: FileKind) -> Result<InodeNo> {
        unimplemented!()
    }
    /// Frees an inode number.
    ///
    /// # Errors
    /// `Corrupt` if it is free already.
    pub(crate) fn free_inode(&mut self, ino: InodeNo, kind: FileKind) -> Result<()> {
        unimplemented!()
    }
}
