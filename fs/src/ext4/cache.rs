//! Cache of metadata blocks.
//!
//! A block's current content is an `Arc`: a commit, a rollback record or a reader keeps a version by cloning it, and a
//! change copies only if somebody does ([`Arc::make_mut`]). Versions that are in the jbd2 journal but not yet at their home
//! location are kept in `unwritten`, so that a cached block may be dropped as soon as the running transaction does not hold it.

use super::error::Result;
use super::superblock::Geometry;
use super::types::{BlockNo, GroupNo, InodeNo, Tid};
use crate::image::Lun;
use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// Content of a metadata block.
pub(crate) type BlockData = Arc<Vec<u8>>;

/// A version's bytes for a request, without a copy.
pub(crate) fn shared_bytes(data: BlockData) -> Bytes {
    struct Shared(BlockData);
    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Shared(data))
}

/// Bytes of clean metadata kept at most.
const CACHE_BYTES_MAX: usize = 64 << 20;

/// What a block has been held against. A damaged image can lead to one block by several ways; a check for one of them says nothing
/// about the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The block bitmap of this group.
    BlockBitmap(GroupNo),
    /// The inode bitmap of this group.
    InodeBitmap(GroupNo),
    /// A node of this inode's extent tree.
    Extents(InodeNo),
    /// The first block of this directory.
    DirectoryHead(InodeNo),
    /// A further block of this directory.
    Directory(InodeNo),
    /// A block of extended attributes; inodes may share it.
    Attributes,
}

/// A cached block.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// Current content.
    pub(crate) data: BlockData,
    /// In the running transaction.
    pub(crate) running: bool,
    /// What its content was last found to be right for, since it was read.
    pub(crate) verified: Option<Role>,
    /// Serial of the last handle that changed it (that handle has its older content).
    pub(crate) handle: u64,
    /// Used since the eviction hand last passed.
    referenced: bool,
}

/// A version that the journal has (or will have when its transaction has committed), not yet at its home location.
#[derive(Clone, Debug)]
pub(crate) struct Unwritten {
    /// The newest closed version.
    pub(crate) data: BlockData,
    /// Transaction of `data`.
    pub(crate) tid: Tid,
    /// First transaction whose version is not at home: the journal's tail cannot pass it.
    pub(crate) oldest: Tid,
}

/// The cache. Owned by the core, used under its lock.
pub(crate) struct MetaCache {
    lun: Arc<Lun>,
    block_size: usize,
    block_count: u64,
    buffers: FxHashMap<u64, Buffer>,
    hand: VecDeque<u64>,
    buffers_max: usize,
    /// See [`Unwritten`]; kept by commit and checkpoint.
    pub(crate) unwritten: FxHashMap<u64, Unwritten>,
}

impl MetaCache {
    /// An empty cache over `lun`.
    pub(crate) fn new(lun: Arc<Lun>, geometry: &Geometry) -> Self {
        Self {
            lun,
            block_size: geometry.block_size as usize,
            block_count: geometry.block_count,
            buffers: FxHashMap::default(),
            hand: VecDeque::new(),
            buffers_max: CACHE_BYTES_MAX / geometry.block_size as usize,
            unwritten: FxHashMap::default(),
        }
    }
    /// Blocks held.
    pub(crate) fn len(&self) -> usize {
        self.buffers.len()
    }
    /// The block if it is cached.
    pub(crate) fn peek(&mut self, block: BlockNo) -> Option<&mut Buffer> {
        self.buffers.get_mut(&block.0)
    }
    /// The block, read if necessary.
    ///
    /// # Errors
    /// `Corrupt` for a block outside the file system; I/O errors.
    pub(crate) fn get(&mut self, block: BlockNo) -> Result<&mut Buffer> {
        if !self.buffers.contains_key(&block.0) {
            self.load(block, 1)?;
        }
        let buffer = self.buffers.get_mut(&block.0).expect("loaded above");
        buffer.referenced = true;
        Ok(buffer)
    }
    /// Reads `count` blocks from `first` in one request, leaving those that are cached as they are.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub(crate) fn load(&mut self, first: BlockNo, count: usize) -> Result<()> {
        let end = first.0.saturating_add(count as u64);
        if end > self.block_count {
            let what = "reference to a block outside the file system";
            return Err(super::error::FsError::corrupt(what, None, Some(first)));
        }
        let mut bytes = vec![0; count * self.block_size];
        self.lun.read(first.0 * self.block_size as u64, &mut bytes)?;
        let single = count == 1;
        let mut whole = Some(bytes);
        for index in 0..count {
            let number = first.0 + index as u64;
            if self.buffers.contains_key(&number) {
                continue;
            }
            let data = match self.unwritten.get(&number) {
                Some(unwritten) => unwritten.data.clone(),
                None if single => Arc::new(whole.take().expect("one block")),
                None => {
                    let bytes = whole.as_ref().expect("kept for several");
                    Arc::new(bytes[index * self.block_size..(index + 1) * self.block_size].to_vec())
                }
            };
            self.insert(BlockNo(number), data, None);
        }
        Ok(())
    }
    /// Puts a block with this content, replacing what was there.
    pub(crate) fn insert(&mut self, block: BlockNo, data: BlockData, verified: Option<Role>) -> &mut Buffer {
        self.evict();
        let buffer = Buffer { data, running: false, verified, handle: 0, referenced: true };
        if self.buffers.insert(block.0, buffer).is_none() {
            self.hand.push_back(block.0);
        }
        self.buffers.get_mut(&block.0).expect("just inserted")
    }
    /// Drops a block.
    pub(crate) fn remove(&mut self, block: BlockNo) -> Option<Buffer> {
        self.buffers.remove(&block.0)
    }

    fn evict(&mut self) {
        if self.hand.len() > 2 * self.buffers_max {
            // Dropped and read again, a block stands in the ring twice.
            self.hand = self.buffers.keys().copied().collect();
        }
        let mut looked = 0;
        while self.buffers.len() >= self.buffers_max && looked < 64 {
            let Some(number) = self.hand.pop_front() else { return };
            looked += 1;
            match self.buffers.get_mut(&number) {
                None => continue,
                Some(buffer) if buffer.running || buffer.referenced => {
                    buffer.referenced = false;
                    self.hand.push_back(number);
                }
                Some(_) => {
                    self.buffers.remove(&number);
                }
            }
        }
    }
}
