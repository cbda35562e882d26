//! Images as arrays of blocks that know what has been synced: the primary's, and the mirror's with its label.
//!
//! A block's content is one number, never written twice; 0 is a hole.

use super::random::Random;
use crate::store::{LunHello, MirrorImage, MirrorLabel, MirrorStore, StoreRefusal};
use bytes::Bytes;
use mirrorfs_journal::{Epoch, Generation, REGION_BYTES};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// More than two runs of regions that are marked together.
pub(super) const REGIONS: u64 = 36;
/// Blocks that are used in each region, at its head.
pub(super) const SLOTS: u64 = 3;
pub(super) const BLOCK_BYTES: u64 = 512;
pub(super) const BLOCKS: usize = (REGIONS * SLOTS) as usize;
pub(super) const SIZE_BYTES: u64 = REGIONS * REGION_BYTES;

pub(super) fn offset_of(block: usize) -> u64 {
    (block as u64 / SLOTS) * REGION_BYTES + (block as u64 % SLOTS) * BLOCK_BYTES
}

/// The blocks of a range, which lies in one region.
pub(super) fn blocks_of(offset: u64, length: u64) -> std::ops::Range<usize> {
    let (region, at) = (offset / REGION_BYTES, offset % REGION_BYTES);
    let slot = |byte: u64| (byte / BLOCK_BYTES).min(SLOTS);
    (region * SLOTS + slot(at)) as usize..(region * SLOTS + slot(at + length)) as usize
}

pub(super) fn payload_of(contents: &[u64]) -> Bytes {
    let mut bytes = vec![0; contents.len() * BLOCK_BYTES as usize];
    for (content, block) in contents.iter().zip(bytes.chunks_mut(BLOCK_BYTES as usize)) {
        block[..8].copy_from_slice(&content.to_le_bytes());
    }
    Bytes::from(bytes)
}

fn contents_of(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks(BLOCK_BYTES as usize).map(|block| {
        let mut content = [0; 8];
        content.copy_from_slice(&block[..8]);
        u64::from_le_bytes(content)
    })
}

/// One image.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    pub(super) now: Vec<u64>,
    pub(super) durable: Vec<u64>,
    /// Per block what was written since the last sync, in order.
    unsynced: Vec<Vec<u64>>,
    dirty: Vec<usize>,
}

impl Default for Blocks {
    fn default() -> Self {
        Self {
            now: vec![0; BLOCKS],
            durable: vec![0; BLOCKS],
            unsynced: vec![Vec::new(); BLOCKS],
            dirty: Vec::new(),
        }
    }
}

impl Blocks {
    pub(super) fn write(&mut self, block: usize, content: u64) {
        self.now[block] = content;
        if self.unsynced[block].is_empty() {
            self.dirty.push(block);
        }
        self.unsynced[block].push(content);
    }

    pub(super) fn sync(&mut self) {
        for block in self.dirty.drain(..) {
            self.durable[block] = self.now[block];
            self.unsynced[block].clear();
        }
    }

    /// What the block may hold after a power cut now.
    pub(super) fn possible(&self, block: usize) -> impl Iterator<Item = u64> + '_ {
        std::iter::once(self.durable[block]).chain(self.unsynced[block].iter().copied())
    }

    pub(super) fn unsynced_count(&self) -> usize {
        self.dirty.len()
    }

    /// Any part of what was not synced stays.
    pub(super) fn power_cut(&mut self, keep_percent: u64, random: &mut Random) {
        for block in self.dirty.drain(..) {
            for content in self.unsynced[block].drain(..) {
                if random.percent(keep_percent) {
                    self.durable[block] = content;
                }
            }
            self.now[block] = self.durable[block];
        }
    }
}

/// What the mirror's label says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) epoch: u64,
    pub(super) resyncing: bool,
}

/// The mirror image of one LUN, as it lies on the peer's disk.
#[derive(Debug, Default)]
pub(super) struct MirrorDisk {
    pub(super) blocks: Blocks,
    pub(super) label: Label,
    pub(super) label_unsynced: Option<Label>,
    made: bool,
    /// Handles that are open; of the running process.
    open: u32,
    /// Handles of processes that are gone do nothing.
    boot: u64,
    pub(super) fail_next_write: bool,
    pub(super) fail_next_sync: bool,
    latched: bool,
    /// Changes until the power goes.
    pub(super) changes_left: Option<u64>,
    /// Grows with each change, for the judge.
    pub(super) version: u64,
}

impl MirrorDisk {
    pub(super) fn is_cut(&self) -> bool {
        self.changes_left == Some(0)
    }

    fn change(&mut self) -> io::Result<()> {
        if self.is_cut() {
            return Err(io::Error::other("the power is off"));
        }
        if let Some(left) = &mut self.changes_left {
            *left -= 1;
        }
        self.version += 1;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.latched {
            return Err(io::Error::other("latched"));
        }
        if std::mem::take(&mut self.fail_next_sync) {
            self.latched = true;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.change()?;
        self.blocks.sync();
        if let Some(label) = self.label_unsynced.take() {
            self.label = label;
        }
        Ok(())
    }

    /// One copy of the label is written only when the other is durable.
    fn store(&mut self, label: Label) -> io::Result<()> {
        if self.label_unsynced.is_some() {
            self.sync()?;
        }
        self.change()?;
        self.label_unsynced = Some(label);
        Ok(())
    }

    fn label_now(&self) -> Label {
        self.label_unsynced.unwrap_or(self.label)
    }

    /// The labels that a power cut now may leave.
    pub(super) fn labels(&self) -> impl Iterator<Item = Label> + '_ {
        std::iter::once(self.label).chain(self.label_unsynced)
    }

    /// The process is gone.
    pub(super) fn killed(&mut self) {
        self.boot += 1;
        self.open = 0;
        self.latched = false;
        (self.changes_left, self.fail_next_write, self.fail_next_sync) = (None, false, false);
        self.version += 1;
    }

    /// The machine is gone, and of what was not synced all but a random part.
    pub(super) fn power_cut(&mut self, keep_percent: u64, keep_label: bool, random: &mut Random) {
        self.killed();
        self.blocks.power_cut(keep_percent, random);
        if let Some(label) = self.label_unsynced.take().filter(|_| keep_label) {
            self.label = label;
        }
    }
}

/// The peer's store. `open_twice`: a defect is planted whose judge is the image, not this.
pub(super) struct Store {
    pub(super) disks: Vec<Arc<Mutex<MirrorDisk>>>,
    pub(super) open_twice: bool,
}

impl MirrorStore for Store {
    fn open(&self, _node: &str, lun: &LunHello) -> Result<Arc<dyn MirrorImage>, StoreRefusal> {
        let index: usize = lun.name.parse().map_err(|_| StoreRefusal::Invalid(lun.name.clone()))?;
        let disk = Arc::clone(&self.disks[index]);
        let mut state = disk.lock();
        assert!(self.open_twice || state.open == 0, "two sessions have the image of LUN {index} open");
        let refused = |error: io::Error| StoreRefusal::Invalid(error.to_string());
        let created = !std::mem::replace(&mut state.made, true);
        if created {
            state.store(Label { epoch: 0, resyncing: true }).map_err(refused)?;
        }
        state.latched = false;
        state.sync().map_err(refused)?;
        state.open += 1;
        let boot = state.boot;
        drop(state);
        Ok(Arc::new(Image { disk, boot, created }))
    }
}

struct Image {
    disk: Arc<Mutex<MirrorDisk>>,
    boot: u64,
    created: bool,
}

impl MirrorImage for Image {
    fn label(&self) -> MirrorLabel {
        let label = self.disk.lock().label_now();
        MirrorLabel {
            generations: Vec::new(),
            durable_epoch: Epoch(label.epoch),
            resyncing: label.resyncing,
            created: self.created,
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk.lock();
        if std::mem::take(&mut disk.fail_next_write) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        for (block, content) in blocks_of(offset, bytes.len() as u64).zip(contents_of(bytes)) {
            disk.change()?;
            disk.blocks.write(block, content);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        for block in blocks_of(offset, length) {
            disk.change()?;
            disk.blocks.write(block, 0);
        }
        Ok(())
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let disk = self.disk.lock();
        let blocks = &disk.blocks.now[blocks_of(offset, into.len() as u64)];
        into.fill(0);
        let bytes = payload_of(blocks);
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    fn sync_epoch(&self, epoch: Epoch) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.sync()?;
        let label = Label { epoch: epoch.0, ..disk.label_now() };
        disk.store(label)
    }

    fn set_resyncing(&self, resyncing: bool, _generations: &[Generation]) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let label = Label { resyncing, ..disk.label_now() };
        disk.store(label)?;
        disk.sync()
    }
}

impl Drop for Image {
    /// A clean close syncs.
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if disk.boot == self.boot {
            disk.open -= 1;
            // A failure means that the close was not clean; nothing depends on that here.
            let _ = disk.sync();
        }
    }
}
