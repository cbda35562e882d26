//! The core (all metadata state, under one lock) and handles on the running jbd2 transaction.
//!
//! A [`Tx`] is a handle: the changes of one operation. It holds the core lock from begin to end, so handles are serial and
//! a transaction is closed only between them. Until [`Tx::finish`] it keeps what it changed; dropped before that (an error
//! on the way), it puts everything back: **an operation that fails has changed nothing**.
//!
//! Before its first change a handle is promised room in the journal for its credits; where there is none, the operation waits
//! (blocking pool) or is given back as [`FsError::WouldBlock`] (FUSE thread).

use super::Ext4;
use super::alloc::Allocator;
use super::attr::Context;
use super::cache::{BlockData, MetaCache, Role};
use super::commit::CommitState;
use super::defect::{Defect, Planted};
use super::error::{FsError, Result};
use super::mount::Damage;
use super::orphan::OrphanList;
use super::superblock::{Counts, Geometry};
use super::types::{BlockNo, InodeNo, Tid};
use crate::image::Lun;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::Arc;
use std::time::Instant;

/// Blocks that an ordinary operation may put into the transaction: directory split, both bitmaps and descriptors, inodes,
/// extent tree growth, xattr block, superblock.
pub(crate) const CREDITS: usize = 64;

/// All metadata state of a mounted image.
pub(crate) struct Core {
    /// Unchanging facts.
    pub(crate) geometry: Arc<Geometry>,
    /// The image.
    pub(crate) lun: Arc<Lun>,
    /// Metadata blocks.
    pub(crate) cache: MetaCache,
    /// The running transaction.
    pub(crate) running: Running,
    /// Block and inode allocation.
    pub(crate) alloc: Allocator,
    /// Inodes without links that are still in use.
    pub(crate) orphans: OrphanList,
    /// Free blocks in the file system (kept in memory; written to the superblock when a transaction closes).
    pub(crate) free_blocks: u64,
    /// Free inodes, likewise.
    pub(crate) free_inodes: u64,
    /// First orphan (`s_last_orphan`), likewise.
    pub(crate) last_orphan: u32,
    /// The three numbers above differ from the superblock's block.
    pub(crate) counts_changed: bool,
    /// Blocks that the running transaction may hold, given the journal's free space; kept by the commit thread.
    pub(crate) running_blocks_max: usize,
    /// Why nothing may be changed any more, if so.
    pub(crate) read_only: Option<String>,
    /// Serial of the last handle.
    pub(crate) handles: u64,
    /// What the commit thread and everybody else tell one another.
    pub(crate) commit: CommitState,
    /// Damage met so far.
    pub(crate) damage: Damage,
    /// What a test has planted.
    pub(crate) planted: Planted,
}

/// The transaction that takes in handles.
pub(crate) struct Running {
    /// Its id.
    pub(crate) tid: Tid,
    /// Blocks changed in it.
    pub(crate) blocks: FxHashSet<u64>,
    /// Metadata blocks freed in it, to be revoked.
    pub(crate) revoked: FxHashSet<u64>,
    /// Runs of blocks freed in it: reusable and discarded only behind its commit.
    pub(crate) freed: Vec<(BlockNo, u32)>,
    /// Inodes changed in it; true where an fdatasync needs the commit too (size, blocks, not just times).
    pub(crate) inodes: FxHashMap<u32, bool>,
    /// Data writes that must have been submitted before the commit may flush.
    pub(crate) data: Arc<PendingData>,
    /// When the first change came.
    pub(crate) since: Option<Instant>,
}

impl Running {
    /// An empty transaction.
    pub(crate) fn new(tid: Tid) -> Self {
        Self {
            tid,
            blocks: FxHashSet::default(),
            revoked: FxHashSet::default(),
            freed: Vec::new(),
            inodes: FxHashMap::default(),
            data: Arc::default(),
            since: None,
        }
    }
    /// Whether nothing has been changed in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.revoked.is_empty() && self.freed.is_empty()
    }
}

/// Count of data writes under way for a transaction.
#[derive(Default)]
pub(crate) struct PendingData {
    count: Mutex<usize>,
    zero: Condvar,
}

impl PendingData {
    /// Blocks until no write is under way. For the commit thread, after the transaction was closed.
    pub(crate) fn wait(&self) {
        let mut count = self.count.lock();
        while *count > 0 {
            self.zero.wait(&mut count);
        }
    }
}

/// Holds back the commit of a transaction until a data write that it refers to has been submitted to the LUN.
pub(crate) struct DataGuard(Arc<PendingData>);

impl Drop for DataGuard {
    fn drop(&mut self) {
        let mut count = self.0.count.lock();
        *count -= 1;
        if *count == 0 {
            self.0.zero.notify_all();
        }
    }
}

type Undo = Box<dyn FnOnce(&mut Core) + Send>;

struct Saved {
    block: BlockNo,
    /// Content, "running" and "verified" before this handle; `None`: the block was not cached.
    before: Option<(BlockData, bool, Option<Role>)>,
    was_revoked: bool,
}

/// A handle on the running transaction. See the module's text.
pub(crate) struct Tx<'a> {
    /// The core; reading through it is fine, changes only through the handle's methods.
    pub(crate) core: &'a mut Core,
    /// Who asked.
    pub(crate) context: Context,
    serial: u64,
    saved: Vec<Saved>,
    freed_before: usize,
    inodes: Vec<(u32, Option<bool>)>,
    counts: (u64, u64, u32, bool),
    undo: Vec<Undo>,
    finished: bool,
}

impl Core {
    /// Current content of a metadata block, without holding it against a checksum.
    ///
    /// # Errors
    /// As for [`MetaCache::get`].
    pub(crate) fn block(&mut self, block: BlockNo) -> Result<BlockData> {
        Ok(self.cache.get(block)?.data.clone())
    }

    /// Current content of a metadata block; `check` runs once for each time it was read from the image, and again when it comes to
    /// be used in another role.
    ///
    /// # Errors
    /// What `check` finds, and as for [`MetaCache::get`].
    pub(crate) fn block_checked(
        &mut self,
        block: BlockNo,
        role: Role,
        check: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<BlockData> {
        let buffer = self.cache.get(block)?;
        if buffer.verified != Some(role) {
            check(&buffer.data)?;
            buffer.verified = Some(role);
        }
        Ok(buffer.data.clone())
    }

    /// The numbers for the superblock.
    pub(crate) fn counts(&self) -> Counts {
        let last_orphan = match self.planted.has(Defect::SkippedOrphan) {
            true => self.orphans.behind(self.last_orphan),
            false => self.last_orphan,
        };
        Counts { free_blocks: self.free_blocks, free_inodes: self.free_inodes, last_orphan }
    }

    fn has_room(&self, credits: usize) -> bool {
        let used = self.running.blocks.len() + self.running.revoked.len() / 128 + 1;
        used + credits <= self.running_blocks_max || self.running.is_empty()
    }
}

impl<'a> Tx<'a> {
    fn begin(core: &'a mut Core, context: Context) -> Self {
        core.handles += 1;
        Self {
            serial: core.handles,
            context,
            saved: Vec::new(),
            freed_before: core.running.freed.len(),
            inodes: Vec::new(),
            counts: (core.free_blocks, core.free_inodes, core.last_orphan, core.counts_changed),
            undo: Vec::new(),
            finished: false,
            core,
        }
    }

    /// The block's bytes, for changing; it joins the transaction. Host space below it is reserved first.
    /// The structure's checksum is the caller's to set.
    ///
    /// # Errors
    /// `ENOSPC` where the host is full; read errors.
    pub(crate) fn modify(&mut self, block: BlockNo) -> Result<&mut [u8]> {
        let buffer = self.core.cache.get(block)?;
        if buffer.handle != self.serial {
            if !buffer.running {
                let block_size = u64::from(self.core.geometry.block_size);
                reserve(&self.core.lun, block.0 * block_size, block_size)?;
            }
            let before = Some((buffer.data.clone(), buffer.running, buffer.verified));
            self.saved.push(Saved { block, before, was_revoked: false });
            buffer.handle = self.serial;
            buffer.running = true;
            self.core.running.blocks.insert(block.0);
        }
        Ok(Arc::make_mut(&mut buffer.data).as_mut_slice())
    }

    /// A block new to metadata: zeros, whatever the image holds there; it joins the transaction.
    ///
    /// # Errors
    /// `ENOSPC` where the host is full.
    pub(crate) fn create(&mut self, block: BlockNo) -> Result<&mut [u8]> {
        let block_size = self.core.geometry.block_size as usize;
        reserve(&self.core.lun, block.0 * block_size as u64, block_size as u64)?;
        let before = self.core.cache.peek(block).map(|old| (old.data.clone(), old.running, old.verified));
        let was_revoked = self.core.running.revoked.remove(&block.0);
        self.saved.push(Saved { block, before, was_revoked });
        self.core.running.blocks.insert(block.0);
        let buffer = self.core.cache.insert(block, Arc::new(vec![0; block_size]), None);
        buffer.running = true;
        buffer.handle = self.serial;
        Ok(Arc::make_mut(&mut buffer.data).as_mut_slice())
    }

    /// A metadata block is being freed: it leaves the transaction and is revoked, so that no older journal copy of it is
    /// replayed over what the block holds later. (Freeing it in the bitmap is the allocator's part.)
    pub(crate) fn forget(&mut self, block: BlockNo) {
        let before = self.core.cache.remove(block).map(|old| (old.data, old.running, old.verified));
        let was_revoked = !self.core.running.revoked.insert(block.0);
        self.core.running.blocks.remove(&block.0);
        self.saved.push(Saved { block, before, was_revoked });
    }

    /// Notes that the inode changed, for fsync; `data`: also what an fdatasync must cover.
    pub(crate) fn touched(&mut self, ino: InodeNo, data: bool) {
        let old = self.core.running.inodes.get(&ino.0).copied();
        if old != Some(true) && old != Some(data) {
            self.inodes.push((ino.0, old));
            self.core.running.inodes.insert(ino.0, data || old == Some(true));
        }
    }

    /// Blocks were freed: kept from reuse and discard until the transaction has committed.
    pub(crate) fn freed(&mut self, start: BlockNo, count: u32) {
        if self.core.planted.has(Defect::EarlyReuse) {
            return self.core.alloc.committed(&[(start, count)]);
        }
        self.core.running.freed.push((start, count));
    }

    /// What else to put back, newest first, if the handle fails: in-memory state outside the cache.
    pub(crate) fn on_rollback(&mut self, undo: impl FnOnce(&mut Core) + Send + 'static) {
        self.undo.push(Box::new(undo));
    }

    /// Blocks this handle has put into the transaction so far.
    pub(crate) fn changed_blocks(&self) -> usize {
        self.saved.len()
    }

    /// Holds back the commit until the returned guard is dropped: for data writes made after the handle ends. Nothing that may
    /// wait for a commit (another handle, a sync) is begun while the guard is held: that commit could be this one.
    pub(crate) fn data_guard(&mut self) -> DataGuard {
        *self.core.running.data.count.lock() += 1;
        DataGuard(self.core.running.data.clone())
    }

    /// Ends the handle, keeping its changes.
    pub(crate) fn finish(mut self) {
        self.finished = true;
        let core = &mut *self.core;
        if core.running.since.is_none() && !core.running.is_empty() {
            core.running.since = Some(Instant::now());
            // The thread sleeps without a limit while nothing runs.
            core.commit.wake.notify_one();
        }
        if core.running.blocks.len() > core.running_blocks_max / 4 * 3 {
            core.request_commit();
        }
    }
}

impl Drop for Tx<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        while let Some(undo) = self.undo.pop() {
            undo(self.core);
        }
        while let Some(Saved { block, before, was_revoked }) = self.saved.pop() {
            let running = &mut self.core.running;
            running.blocks.remove(&block.0);
            if was_revoked {
                running.revoked.insert(block.0);
            } else {
                running.revoked.remove(&block.0);
            }
            match before {
                None => {
                    self.core.cache.remove(block);
                }
                Some((data, was_running, verified)) => {
                    if was_running {
                        running.blocks.insert(block.0);
                    }
                    let buffer = self.core.cache.insert(block, data, verified);
                    buffer.running = was_running;
                }
            }
        }
        self.core.running.freed.truncate(self.freed_before);
        while let Some((ino, old)) = self.inodes.pop() {
            match old {
                Some(data) => self.core.running.inodes.insert(ino, data),
                None => self.core.running.inodes.remove(&ino),
            };
        }
        (self.core.free_blocks, self.core.free_inodes, self.core.last_orphan, self.core.counts_changed) =
            self.counts;
    }
}

/// Reserves host space; a full host is the caller's ENOSPC.
pub(crate) fn reserve(lun: &Lun, offset: u64, length: u64) -> Result<()> {
    lun.reserve(offset, length).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => FsError::Errno(libc::ENOSPC),
        _ => FsError::Io(error),
    })
}

impl Ext4 {
    /// Runs `operation` in one handle. Ok: kept. Err: put back, whole. It may be run more than once (`FnMut`): after a wait for
    /// journal room, and once more after a commit when it found no space while freed blocks were waiting for that commit.
    ///
    /// # Errors
    /// What `operation` says; `WouldBlock` if it had to wait and may not; `Latched` when nothing may be changed.
    pub(crate) fn with_tx<T>(
        &self,
        context: Context,
        credits: usize,
        mut operation: impl FnMut(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut retried = false;
        let mut core = self.core.lock();
        loop {
            if let Some(why) = &core.read_only {
                return Err(FsError::Latched(why.clone()));
            }
            if !core.has_room(credits) {
                self.request_commit(&mut core);
                if !context.may_block {
                    return Err(FsError::WouldBlock);
                }
                self.progress.wait(&mut core);
                continue;
            }
            let mut tx = Tx::begin(&mut core, context);
            match operation(&mut tx) {
                Ok(value) => {
                    tx.finish();
                    self.note_passed_over(&mut core);
                    return Ok(value);
                }
                Err(FsError::Errno(libc::ENOSPC)) if !retried && self.frees_pending(tx.core) => {
                    drop(tx);
                    if !context.may_block {
                        return Err(FsError::WouldBlock);
                    }
                    retried = true;
                    self.wait_for_commit(&mut core);
                }
                Err(error) => {
                    drop(tx);
                    self.note_damage(&mut core, &error);
                    self.note_passed_over(&mut core);
                    return Err(error);
                }
            }
        }
    }

    /// Runs `operation` under the core lock, for reading.
    ///
    /// # Errors
    /// What `operation` says.
    pub(crate) fn with_core<T>(&self, operation: impl FnOnce(&mut Core) -> Result<T>) -> Result<T> {
        let mut core = self.core.lock();
        let result = operation(&mut core).inspect_err(|error| self.note_damage(&mut core, error));
        self.note_passed_over(&mut core);
        result
    }

    fn note_passed_over(&self, core: &mut MutexGuard<'_, Core>) {
        if let Some(error) = core.damage.passed_over.take() {
            self.note_damage(core, &error);
        }
    }
}
