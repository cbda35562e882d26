//! A LUN: one image as the target of primary storage requests.
//!
//! Locks: one mutex for each region (striped), held over image write and append, never over a sync, a wait for the
//! mirror or a network send. A hold on the region's mark is taken before it is looked at and dropped after the append, so
//! that the mark can't be cleared beneath a request on its way.

use super::backing::Backing;
use super::file::check_range;
use super::reserve::Reserved;
use bytes::Bytes;
use crossbeam::channel::{Sender, TrySendError, bounded};
use mirrorfs_journal::log::{Appended, MirrorLog, RegionSource, Waited, Waiter};
use mirrorfs_journal::request::{Body, Origin};
use mirrorfs_journal::{Epoch, LunId, REGION_BYTES, RegionNo};
use parking_lot::Mutex;
use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;

/// Region locks of a mirrored LUN: enough that two requests in flight seldom share one by chance.
const STRIPES: usize = 256;
/// Payload of one resync write at most: small enough that a program's write waits little behind its region's lock.
const RESYNC_WRITE_BYTES: u64 = 256 << 10;
/// Windows waiting to be marked in the background; when full a new one is forgotten, as it is a hint only.
const WARM_SOON_MAX: usize = 64;

/// One image as the target of primary storage requests; the tee to the mirror log. Shared by `Arc`.
pub struct Lun {
    backing: Arc<dyn Backing>,
    size_bytes: u64,
    reserved: Reserved,
    mirror: Option<Mirror>,
    latch: Latch,
}

/// What only a mirrored LUN has.
struct Mirror {
    id: LunId,
    log: Arc<MirrorLog>,
    region_locks: Box<[Mutex<()>]>,
    /// To the thread that marks regions in the background; it starts with the first hint and ends with the LUN.
    warmer: OnceLock<Option<Sender<RangeInclusive<u64>>>>,
}

/// Set once, by the first failure; never cleared before the image is opened again.
#[derive(Default)]
struct Latch {
    set: AtomicBool,
    why: Mutex<Option<String>>,
}

impl Latch {
    fn check(&self) -> io::Result<()> {
        if self.set.load(Ordering::Acquire) { Err(self.error()) } else { Ok(()) }
    }

    #[cold]
    fn error(&self) -> io::Error {
        let why = self.why.lock().clone().unwrap_or_default();
        io::Error::other(format!("the image takes no more changes until it is mounted again, because {why}"))
    }

    #[cold]
    fn close(&self, action: &str, offset: u64, length: u64, error: io::Error) -> io::Error {
        let mut why = self.why.lock();
        if why.is_none() {
            let text = match length {
                0 => format!("{action} failed: {error}"),
                _ => format!("{action} of {length} bytes at {offset} failed: {error}"),
            };
            log::error!("image latched: {text}");
            *why = Some(text);
        }
        self.set.store(true, Ordering::Release);
        error
    }
}

/// The parts of a range by region: offset and length, none across a region border.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let start = at;
            at = (RegionNo::of(start).start() + REGION_BYTES).min(end);
            (start, at - start)
        })
    })
}

fn regions(offset: u64, length: u64) -> RangeInclusive<u64> {
    let last = offset.saturating_add(length.max(1) - 1);
    RegionNo::of(offset).0..=RegionNo::of(last).0
}

impl Mirror {
    fn region_lock(&self, region: RegionNo) -> &Mutex<()> {
        // Fibonacci hashing: neighbours and power-of-two strides spread alike.
        let hash = region.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        &self.region_locks[hash as usize % STRIPES]
    }

    fn mark(&self, region: RegionNo) -> io::Result<()> {
        self.log.ensure_marked(self.id, region).map_err(io::Error::other)
    }

    /// One part of a request: its region marked (waiting for the mark's sync without a lock), `change` made on the image
    /// and `body` appended under the region's lock. A change that fails is not appended, latches, and leaves the region
    /// marked until the next mount.
    fn submit(
        &self,
        latch: &Latch,
        region: RegionNo,
        origin: Origin,
        body: Body,
        change: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Appended> {
        let hold = self.log.hold(self.id, region);
        if !self.log.is_marked(self.id, region) {
            self.mark(region)?;
        }
        let _region = self.region_lock(region).lock();
        // Again under the lock: what failed in this region meanwhile must not be followed by an append.
        latch.check()?;
        if let Err(error) = change() {
            std::mem::forget(hold);
            let (action, offset, length) = match &body {
                Body::Write { offset, payload, .. } => ("write", *offset, payload.len() as u64),
                Body::Discard { offset, length } => ("discard", *offset, *length),
                _ => ("request", 0, 0),
            };
            return Err(latch.close(action, offset, length, error));
        }
        Ok(self.log.append(self.id, origin, body))
    }

    /// The way to the marking thread. `None` if it can't be started.
    fn warmer(&self) -> Option<&Sender<RangeInclusive<u64>>> {
        let start = || {
            let (sender, receiver) = bounded::<RangeInclusive<u64>>(WARM_SOON_MAX);
            let (log, id) = (Arc::clone(&self.log), self.id);
            // Takes windows from `warm_soon`; blocks on the region map's sync; ends when the LUN is dropped.
            let run = move || {
                for regions in receiver {
                    for region in regions.map(RegionNo) {
                        if log.is_marked(id, region) {
                            continue;
                        }
                        if let Err(error) = log.ensure_marked(id, region) {
                            log::warn!("marking region {} ahead: {error}", region.0);
                        }
                    }
                }
            };
            match thread::Builder::new().name(format!("warm-{}", id.0)).spawn(run) {
                Ok(_) => Some(sender),
                Err(error) => {
                    log::warn!("no thread to mark regions ahead: {error}");
                    None
                }
            }
        };
        self.warmer.get_or_init(start).as_ref()
    }
}

impl Lun {
    /// A LUN over `backing`; `mirror` is its number and log when it is designated to be mirrored.
    pub fn new(backing: Arc<dyn Backing>, mirror: Option<(LunId, Arc<MirrorLog>)>) -> Arc<Self> {
        let size_bytes = backing.size_bytes();
        let mirror = mirror.map(|(id, log)| Mirror {
            id,
            log,
            region_locks: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            warmer: OnceLock::new(),
        });
        Arc::new(Self {
            backing,
            size_bytes,
            reserved: Reserved::new(size_bytes),
            mirror,
            latch: Latch::default(),
        })
    }

    /// Bytes of the file system.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads; sees every write that has returned. Works on a latched LUN too.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` beyond the file system's end.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.backing.read_at(offset, into)
    }

    /// Whether all regions of the range are marked in the region map, so that a write to it blocks on no sync.
    /// Always true for a LUN that is not mirrored. Lock-free.
    #[must_use]
    pub fn is_warm(&self, offset: u64, length: u64) -> bool {
        let Some(mirror) = &self.mirror else { return true };
        regions(offset, length).all(|region| mirror.log.is_marked(mirror.id, RegionNo(region)))
    }

    /// Marks the regions of the range; blocks on an fdatasync of the region map. For the blocking pool and commit thread.
    ///
    /// # Errors
    /// When the region map can't be written; `UnexpectedEof` beyond the file system's end.
    pub fn warm(&self, offset: u64, length: u64) -> io::Result<()> {
        check_range(self.size_bytes, offset, length)?;
        let Some(mirror) = &self.mirror else { return Ok(()) };
        for region in regions(offset, length).map(RegionNo) {
            if !mirror.log.is_marked(mirror.id, region) {
                mirror.mark(region)?;
            }
        }
        Ok(())
    }

    /// Asks for the regions to be marked soon, in the background (the next window of a growing file). A hint: what
    /// lies beyond the end is left out, and it may be forgotten.
    pub fn warm_soon(&self, offset: u64, length: u64) {
        let Some(mirror) = &self.mirror else { return };
        let length = length.min(self.size_bytes.saturating_sub(offset));
        if length == 0 || self.is_warm(offset, length) {
            return;
        }
        if let Some(warmer) = mirror.warmer() {
            match warmer.try_send(regions(offset, length)) {
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
    }

    /// Reserves host space for the range, remembered at 1 MiB granularity so that repeated calls are cheap.
    ///
    /// # Errors
    /// `ENOSPC` when the host is full (exact range tried before giving up). Never latches.
    pub fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        check_range(self.size_bytes, offset, length)?;
        self.latch.check()?;
        self.reserved.reserve(&*self.backing, offset, length)
    }

    /// Primary storage request `Write`: range and length multiples of 512, inside the file system. Split at region
    /// borders; each part is written and appended under its region's lock. Warms cold regions itself (blocking).
    /// Returns where the last part landed in the log (`None` if not mirrored).
    ///
    /// # Errors
    /// An I/O error of the image latches the LUN; the part that failed is not appended. A region map that can't be
    /// written latches nothing, as the part was not begun. A range that is not allowed changes nothing.
    pub fn write(&self, offset: u64, payload: Bytes, origin: Origin) -> io::Result<Option<Appended>> {
        self.check_request(offset, payload.len() as u64)?;
        let Some(mirror) = &self.mirror else {
            let written = self.backing.write_at(offset, &payload);
            return match written {
                Ok(()) => Ok(None),
                Err(error) => Err(self.latch.close("write", offset, payload.len() as u64, error)),
            };
        };
        let mut last = None;
        for (at, length) in parts(offset, payload.len() as u64) {
            let start = (at - offset) as usize;
            let part = payload.slice(start..start + length as usize);
            let body = Body::Write { offset: at, crc: crc32c::crc32c(&part), payload: part.clone() };
            let write = || self.backing.write_at(at, &part);
            last = Some(mirror.submit(&self.latch, RegionNo::of(at), origin, body, write)?);
        }
        Ok(last)
    }

    /// Primary storage request `Discard`: the range reads as zeros afterwards. Same rules as `write`.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub fn discard(&self, offset: u64, length: u64, origin: Origin) -> io::Result<Option<Appended>> {
        self.check_request(offset, length)?;
        let Some(mirror) = &self.mirror else {
            self.backing
                .discard(offset, length)
                .map_err(|error| self.latch.close("discard", offset, length, error))?;
            self.reserved.forget(offset, length);
            return Ok(None);
        };
        let mut last = None;
        for (at, length) in parts(offset, length) {
            let body = Body::Discard { offset: at, length };
            let punch = || self.backing.discard(at, length);
            last = Some(mirror.submit(&self.latch, RegionNo::of(at), origin, body, punch)?);
            self.reserved.forget(at, length);
        }
        Ok(last)
    }

    /// Primary storage request `Flush`: appends a barrier, then makes everything durable locally (image fdatasync side
    /// by side with the queue's, where the queue holds the epoch). Returns the epoch that it closed (`None` if not
    /// mirrored). Blocks; for the commit thread only.
    ///
    /// # Errors
    /// A failed sync latches: every later write and flush fails.
    pub fn flush(&self) -> io::Result<Option<Epoch>> {
        self.latch.check()?;
        let sync = || self.backing.sync().map_err(|error| self.latch.close("sync", 0, 0, error));
        let Some(mirror) = &self.mirror else {
            sync()?;
            // Another thread's sync may have taken the report of an error that concerns this one's writes too.
            self.latch.check()?;
            return Ok(None);
        };
        let epoch = mirror.log.barrier(mirror.id);
        thread::scope(|scope| {
            // A thread only while there is a queue: its start costs little beside the sync that it does.
            let queue = mirror.log.queue_in_use().then(|| {
                let run = || mirror.log.sync_queue(epoch);
                thread::Builder::new().name("queue-sync".into()).spawn_scoped(scope, run)
            });
            let synced = sync();
            match queue {
                Some(Ok(_joined_by_the_scope)) => {}
                // No queue a moment ago, or no thread to be had.
                Some(Err(_)) | None => mirror.log.sync_queue(epoch),
            }
            synced
        })?;
        self.latch.check()?;
        mirror.log.locally_synced(mirror.id, epoch);
        Ok(Some(epoch))
    }

    /// Why the LUN has latched, if it has.
    #[must_use]
    pub fn latched(&self) -> Option<String> {
        if self.latch.set.load(Ordering::Acquire) { self.latch.why.lock().clone() } else { None }
    }

    /// See [`MirrorLog::when_applied`]; called with `Mirrored` at once if the LUN is not mirrored.
    pub fn when_applied(&self, at: Option<Appended>, waiter: Waiter) {
        match (&self.mirror, at) {
            (Some(mirror), Some(at)) => mirror.log.when_applied(at.sequence, waiter),
            _ => waiter(Waited::Mirrored),
        }
    }

    /// See [`MirrorLog::when_durable`]; called with `Mirrored` at once if the LUN is not mirrored.
    pub fn when_durable(&self, epoch: Option<Epoch>, waiter: Waiter) {
        match (&self.mirror, epoch) {
            (Some(mirror), Some(epoch)) => mirror.log.when_durable(epoch, waiter),
            _ => waiter(Waited::Mirrored),
        }
    }

    /// See [`MirrorLog::receive_answers`]; `None` for a LUN that is not mirrored. Mirrored LUNs of one mount share their log.
    #[must_use]
    pub fn receive_answers(&self) -> Option<bool> {
        self.mirror.as_ref().map(|mirror| mirror.log.receive_answers())
    }

    /// See [`MirrorLog::leave_answers`].
    pub fn leave_answers(&self) {
        if let Some(mirror) = &self.mirror {
            mirror.log.leave_answers();
        }
    }

    /// See [`MirrorLog::refuses_changes`].
    #[must_use]
    pub fn refuses_changes(&self) -> bool {
        self.mirror.as_ref().is_some_and(|mirror| mirror.log.refuses_changes())
    }

    /// What the mirror log reads regions through. It does not keep the LUN alive: the LUN keeps the log.
    #[must_use]
    pub fn region_source(self: &Arc<Self>) -> Arc<dyn RegionSource> {
        Arc::new(Source(Arc::downgrade(self)))
    }

    fn check_request(&self, offset: u64, length: u64) -> io::Result<()> {
        check_range(self.size_bytes, offset, length)?;
        if length == 0 || !offset.is_multiple_of(512) || !length.is_multiple_of(512) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a request of {length} bytes at {offset} is not made of whole sectors"),
            ));
        }
        self.latch.check()
    }
}

struct Source(Weak<Lun>);

impl RegionSource for Source {
    fn resync_region(&self, region: RegionNo, skip_holes: bool) -> io::Result<RegionNo> {
        match self.0.upgrade() {
            Some(lun) => lun.resync_region(region, skip_holes),
            None => Err(io::Error::other("the image is closed")),
        }
    }
}

impl RegionSource for Lun {
    fn resync_region(&self, region: RegionNo, skip_holes: bool) -> io::Result<RegionNo> {
        let mut next = RegionNo(region.0 + 1);
        let Some(mirror) = &self.mirror else { return Ok(next) };
        let start = region.start();
        let end = (start + REGION_BYTES).min(self.size_bytes);
        let append = |body| mirror.log.append(mirror.id, Origin::Resync, body);
        let hole = |from: u64, to: u64| {
            if from < to && !skip_holes {
                append(Body::Discard { offset: from, length: to - from });
            }
        };
        let _region = mirror.region_lock(region).lock();
        self.latch.check()?;
        let mut at = start;
        while at < end {
            // A search may pass over gigabytes of hole: its result is used for all the regions in it, where that is right.
            let data = match self.backing.next_data(at)? {
                Some(data) if data.start < end => data,
                later => {
                    let from = later.map_or(self.size_bytes, |data| data.start);
                    next = if skip_holes { RegionNo::of(from).max(next) } else { next };
                    break;
                }
            };
            // A request has whole sectors, whatever the host's blocks are.
            let (from, to) = ((data.start & !4095).max(at), data.end.next_multiple_of(4096).min(end));
            hole(at, from);
            at = from;
            while at < to {
                let mut bytes = vec![0; (to - at).min(RESYNC_WRITE_BYTES) as usize];
                self.backing.read_at(at, &mut bytes)?;
                let payload = Bytes::from(bytes);
                let crc = crc32c::crc32c(&payload);
                let length = payload.len() as u64;
                append(Body::Write { offset: at, payload, crc });
                at += length;
            }
        }
        hole(at, end);
        Ok(next)
    }
}

#[cfg(test)]
#[path = "lun_tests.rs"]
mod tests;
