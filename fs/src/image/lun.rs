//! A LUN: one image as the target of primary storage requests.

use super::backing::Backing;
use bytes::Bytes;
use mirrorfs_journal::log::{Appended, MirrorLog, Waiter};
use mirrorfs_journal::{Epoch, LunId, Origin};
use std::io;
use std::sync::Arc;

/// One image as the target of primary storage requests; the tee to the mirror log. Shared by `Arc`.
pub struct Lun {
    _private: (),
}

#[allow(unused_variables, clippy::unimplemented, clippy::missing_errors_doc)]
impl Lun {
    /// A LUN over `backing`; `mirror` is its number and log when it is designated to be mirrored.
    pub fn new(backing: Arc<dyn Backing>, mirror: Option<(LunId, Arc<MirrorLog>)>) -> Arc<Self> {
        unimplemented!()
    }
    /// Bytes of the file system.
    pub fn size_bytes(&self) -> u64 {
        unimplemented!()
    }
    /// Reads; sees every write that has returned.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        unimplemented!()
    }
    /// Whether all regions of the range are marked in the region map, so that a write to it blocks on no sync.
    /// Always true for a LUN that is not mirrored. Lock-free.
    pub fn is_warm(&self, offset: u64, length: u64) -> bool {
        unimplemented!()
    }
    /// Marks the regions of the range; blocks on an fdatasync of the region map. For the blocking pool and commit thread.
    pub fn warm(&self, offset: u64, length: u64) -> io::Result<()> {
        unimplemented!()
    }
    /// Asks for the regions to be marked soon, in the background (the next window of a growing file).
    pub fn warm_soon(&self, offset: u64, length: u64) {
        unimplemented!()
    }
    /// Reserves host space for the range, remembered at 1 MiB granularity so that repeated calls are cheap.
    /// `ENOSPC` when the host is full (exact range tried before giving up).
    pub fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        unimplemented!()
    }
    /// Primary storage request `Write`: range and length multiples of 512, inside the file system. Split at region
    /// borders; each part is written and appended under its region's lock. Warms cold regions itself (blocking).
    /// Returns where the last part landed in the log (`None` if not mirrored). An I/O error latches the LUN.
    pub fn write(&self, offset: u64, payload: Bytes, origin: Origin) -> io::Result<Option<Appended>> {
        unimplemented!()
    }
    /// Primary storage request `Discard`: the range reads as zeros afterwards. Same rules as `write`.
    pub fn discard(&self, offset: u64, length: u64, origin: Origin) -> io::Result<Option<Appended>> {
        unimplemented!()
    }
    /// Primary storage request `Flush`: appends a barrier, then makes everything durable locally (image fdatasync side
    /// by side with the queue's, where the queue holds the epoch). Returns the epoch that it closed (`None` if not
    /// mirrored). Blocks; for the commit thread only. A failed sync latches: every later write and flush fails.
    pub fn flush(&self) -> io::Result<Option<Epoch>> {
        unimplemented!()
    }
    /// Why the LUN has latched, if it has.
    pub fn latched(&self) -> Option<String> {
        unimplemented!()
    }
    /// See [`MirrorLog::when_applied`]; called with `Mirrored` at once if the LUN is not mirrored.
    pub fn when_applied(&self, at: Option<Appended>, waiter: Waiter) {
        unimplemented!()
    }
    /// See [`MirrorLog::when_durable`]; called with `Mirrored` at once if the LUN is not mirrored.
    pub fn when_durable(&self, epoch: Option<Epoch>, waiter: Waiter) {
        unimplemented!()
    }
}
