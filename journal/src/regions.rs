//! Region map: which regions of a LUN may differ on the mirror; a file of its own per LUN.
//!
//! Three marks for each region:
//! - *in use*: written lately; durable in the file **before** the first image write in the region;
//! - *queued*: its requests are synced locally and lie in the fdatasynced queue, so that only the loss of the queue
//!   makes it differ;
//! - *resync*: differs (or may differ) and the log no longer holds why: it must be read and sent again.
//!
//! Each 512-byte sector of the file holds all marks of 1024 regions with a checksum of its own, and is written in one
//! piece. A damaged sector costs a resync of its 1024 regions, a damaged or foreign header one of all regions.

use crate::ids::{Epoch, Generation, LunUuid, RegionNo};
use crate::medium::{Folder, Handle, Mode};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

pub(crate) const SECTOR_BYTES: usize = 512;
const REGIONS_PER_SECTOR: u64 = 1024;
const WORDS_PER_SECTOR: usize = 16;
const RUN: u64 = 16;
const SECTOR_MAGIC: &[u8; 4] = b"MFRS";
const HEADER_MAGIC: &[u8; 8] = b"MFREGION";
const HEADERS: u64 = 2;
pub(crate) const MAP_VERSION: u32 = 1;
const FLAG_RESYNCING: u32 = 1;
/// Regions of the largest LUN that we track: 16 TiB of image; bounds what is allocated.
const REGIONS_MAX: u64 = 1 << 24;

/// What the header of a map remembers besides its identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MapState {
    /// A `ResyncBegin` was appended and its `ResyncEnd` is not durable yet.
    pub(crate) resyncing: bool,
    /// Last epoch of the LUN that the peer had reported durable.
    pub(crate) durable: Epoch,
    /// The LUN's epoch before that one; 0 if not known.
    pub(crate) durable_previous: Epoch,
}

/// What is to become of a region's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Keep,
    Queued,
    Clear,
}

/// One LUN's marks. Locks: `inner` is a leaf, but for its own file's writes it is released.
pub(crate) struct RegionMap {
    path: PathBuf,
    file: Handle,
    uuid: LunUuid,
    generation: Generation,
    regions: u64,
    /// In use, and durably so.
    live: Box<[AtomicU64]>,
    /// Asked for since the last tidying.
    used: Box<[AtomicU64]>,
    /// Writers between their look at the mark and their append.
    held: Box<[AtomicU16]>,
    inner: Mutex<Inner>,
    synced: Condvar,
}

#[derive(Default)]
struct Inner {
    in_use: Vec<u64>,
    queued: Vec<u64>,
    resync: Vec<u64>,
    idle: Vec<u64>,
    changed: BTreeSet<usize>,
    header_changed: bool,
    header_counter: u64,
    state: MapState,
    floor: Epoch,
    asked: u64,
    done: u64,
    running: bool,
    failed: Option<String>,
}

/// Keeps a region's mark from being cleared while it lives.
pub struct RegionHold<'a> {
    count: Option<&'a AtomicU16>,
}

impl Drop for RegionHold<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.count {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn atomics(words: usize) -> Box<[AtomicU64]> {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn seal(sector: &mut [u8; SECTOR_BYTES]) {
    let crc = crc32c::crc32c(&sector[..SECTOR_BYTES - 4]);
    sector[SECTOR_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn sealed(sector: &[u8; SECTOR_BYTES]) -> bool {
    crc32c::crc32c(&sector[..SECTOR_BYTES - 4]).to_le_bytes() == sector[SECTOR_BYTES - 4..]
}

pub(crate) fn header_bytes(
    uuid: LunUuid,
    generation: Generation,
    regions: u64,
    counter: u64,
    state: MapState,
) -> [u8; SECTOR_BYTES] {
    let mut sector = [0; SECTOR_BYTES];
    sector[..8].copy_from_slice(HEADER_MAGIC);
    sector[8..12].copy_from_slice(&MAP_VERSION.to_le_bytes());
    let flags = if state.resyncing { FLAG_RESYNCING } else { 0 };
    sector[12..16].copy_from_slice(&flags.to_le_bytes());
    sector[16..32].copy_from_slice(&uuid.0);
    put(&mut sector, 32, generation.0);
    put(&mut sector, 40, regions);
    put(&mut sector, 48, counter);
    put(&mut sector, 56, state.durable.0);
    put(&mut sector, 64, state.durable_previous.0);
    seal(&mut sector);
    sector
}

/// Region count, counter and state of a header that is whole and ours.
fn parse_header(
    sector: &[u8; SECTOR_BYTES],
    uuid: LunUuid,
    generation: Generation,
) -> Option<(u64, u64, MapState)> {
    let version_and_flags = get(sector, 8);
    let (version, flags) = (version_and_flags as u32, (version_and_flags >> 32) as u32);
    if &sector[..8] != HEADER_MAGIC
        || !sealed(sector)
        || version != MAP_VERSION
        || flags & !FLAG_RESYNCING != 0
        || sector[16..32] != uuid.0
        || get(sector, 32) != generation.0
        || sector[72..SECTOR_BYTES - 4].iter().any(|byte| *byte != 0)
    {
        return None;
    }
    let state = MapState {
        resyncing: flags & FLAG_RESYNCING != 0,
        durable: Epoch(get(sector, 56)),
        durable_previous: Epoch(get(sector, 64)),
    };
    Some((get(sector, 40), get(sector, 48), state))
}

impl RegionMap {
    /// Opens or makes the map in `folder`. The flag says whether a map of this LUN was found; if not, or if it can't be
    /// believed, all regions have the resync mark (durably).
    pub(crate) fn open(
        folder: &Folder,
        uuid: LunUuid,
        generation: Generation,
        size_bytes: u64,
    ) -> io::Result<(Self, bool)> {
        let regions = size_bytes.div_ceil(crate::REGION_BYTES);
        if regions > REGIONS_MAX {
            return Err(io::Error::other(format!(
                "a LUN of {size_bytes} bytes is more than the region map can hold"
            )));
        }
        let path = folder.dir().join(format!("regions-{uuid}"));
        let file = folder.open(&path, Mode::Make)?;
        let sectors = regions.div_ceil(REGIONS_PER_SECTOR) as usize;
        let words = sectors * WORDS_PER_SECTOR;
        let mut best: Option<(u64, u64, MapState)> = None;
        for copy in 0..HEADERS {
            let mut sector = [0; SECTOR_BYTES];
            if file.read_exact_at(&mut sector, copy * SECTOR_BYTES as u64).is_ok()
                && let Some(found) = parse_header(&sector, uuid, generation)
                && best.is_none_or(|(_, counter, _)| found.1 > counter)
            {
                best = Some(found);
            }
        }
        let mut map = Self {
            path,
            file,
            uuid,
            generation,
            regions,
            live: atomics(words),
            used: atomics(words),
            held: (0..regions).map(|_| AtomicU16::new(0)).collect(),
            inner: Mutex::new(Inner::default()),
            synced: Condvar::new(),
        };
        let mut inner = Inner {
            in_use: vec![0; words],
            queued: vec![0; words],
            resync: vec![0; words],
            idle: vec![0; words],
            changed: (0..sectors).collect(),
            header_changed: true,
            ..Inner::default()
        };
        let known = best.is_some();
        let mut doubtful: Vec<(u64, u64)> = Vec::new();
        if let Some((old_regions, counter, state)) = best {
            inner.header_counter = counter;
            inner.state = state;
            inner.changed.clear();
            for sector in 0..sectors {
                let first = sector as u64 * REGIONS_PER_SECTOR;
                let mut bytes = [0; SECTOR_BYTES];
                let at = (HEADERS + sector as u64) * SECTOR_BYTES as u64;
                let whole = map.file.read_exact_at(&mut bytes, at).is_ok()
                    && &bytes[..4] == SECTOR_MAGIC
                    && get(&bytes, 0) >> 32 == sector as u64
                    && get(&bytes, 8) == u64::from(map.tag())
                    && bytes[408..SECTOR_BYTES - 4].iter().all(|byte| *byte == 0)
                    && sealed(&bytes);
                if !whole {
                    doubtful.push((first, first + REGIONS_PER_SECTOR));
                    continue;
                }
                inner.floor = inner.floor.max(Epoch(get(&bytes, 16)));
                for word in 0..WORDS_PER_SECTOR {
                    let at = sector * WORDS_PER_SECTOR + word;
                    // The LUN may have been larger.
                    let mask = match regions.saturating_sub(at as u64 * 64) {
                        0 => 0,
                        left @ 1..64 => (1 << left) - 1,
                        _ => u64::MAX,
                    };
                    inner.in_use[at] = get(&bytes, 24 + word * 8) & mask;
                    inner.queued[at] = get(&bytes, 152 + word * 8) & mask;
                    inner.resync[at] = get(&bytes, 280 + word * 8) & mask;
                    map.live[at].store(inner.in_use[at], Ordering::SeqCst);
                }
            }
            doubtful.push((old_regions.min(regions), regions));
        } else {
            doubtful.push((0, regions));
        }
        for (from, to) in doubtful {
            for region in from..to.min(regions) {
                set(&mut inner.resync, region);
                inner.changed.insert((region / REGIONS_PER_SECTOR) as usize);
            }
        }
        map.inner = Mutex::new(inner);
        if !known {
            map.file.set_len(0)?;
        }
        map.flush()?;
        folder.sync()?;
        Ok((map, known))
    }

    fn tag(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.uuid.0), &self.generation.0.to_le_bytes())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn regions(&self) -> u64 {
        self.regions
    }

    /// Lock-free.
    pub(crate) fn is_marked(&self, region: RegionNo) -> bool {
        let Some(word) = self.live.get((region.0 / 64) as usize) else { return true };
        let bit = 1 << (region.0 % 64);
        let used = &self.used[(region.0 / 64) as usize];
        if used.load(Ordering::Relaxed) & bit == 0 {
            used.fetch_or(bit, Ordering::Relaxed);
        }
        word.load(Ordering::SeqCst) & bit != 0
    }

    /// Lock-free.
    pub(crate) fn hold(&self, region: RegionNo) -> RegionHold<'_> {
        let count = self.held.get(region.0 as usize);
        if let Some(count) = count {
            count.fetch_add(1, Ordering::SeqCst);
        }
        RegionHold { count }
    }

    /// Marks the region's run as in use; returns once that is durable. Callers share the sync.
    pub(crate) fn ensure_marked(&self, region: RegionNo) -> io::Result<()> {
        if self.is_marked(region) {
            return Ok(());
        }
        let mut inner = self.inner.lock();
        let first = region.0 / RUN * RUN;
        for region in first..(first + RUN).min(self.regions) {
            set(&mut inner.in_use, region);
        }
        inner.changed.insert((region.0 / REGIONS_PER_SECTOR) as usize);
        inner.asked += 1;
        let ticket = inner.asked;
        self.wait_synced(inner, ticket)
    }

    /// Sets the in-use mark without waiting for the disk; the next flush writes it. True if it was not set.
    pub(crate) fn mark_soon(&self, region: RegionNo) -> bool {
        let mut inner = self.inner.lock();
        if region.0 >= self.regions || is_set(&inner.in_use, region.0) {
            return false;
        }
        set(&mut inner.in_use, region.0);
        inner.changed.insert((region.0 / REGIONS_PER_SECTOR) as usize);
        true
    }

    /// Sets or clears resync marks in memory; [`Self::flush`] makes them durable.
    pub(crate) fn set_resync(&self, regions: impl IntoIterator<Item = RegionNo>, on: bool) {
        let mut inner = self.inner.lock();
        for region in regions {
            if region.0 >= self.regions || is_set(&inner.resync, region.0) == on {
                continue;
            }
            if on {
                set(&mut inner.resync, region.0);
            } else {
                clear(&mut inner.resync, region.0);
            }
            inner.changed.insert((region.0 / REGIONS_PER_SECTOR) as usize);
        }
    }

    pub(crate) fn set_resync_all(&self) {
        self.set_resync((0..self.regions).map(RegionNo), true);
    }

    /// In-use regions (and, when `queued_too`, those that only the queue covered) become regions to resync.
    pub(crate) fn resync_marked(&self, queued_too: bool) {
        let marked: Vec<RegionNo> = {
            let inner = self.inner.lock();
            let mut words = inner.in_use.clone();
            if queued_too {
                words.iter_mut().zip(&inner.queued).for_each(|(word, queued)| *word |= queued);
            }
            ones(&words).collect()
        };
        self.set_resync(marked, true);
    }

    /// Queued regions that `retained` does not cover: forgotten, or to be resynced when `doubt`.
    pub(crate) fn settle_queued(&self, retained: impl Fn(RegionNo) -> bool, doubt: bool) {
        let lost: Vec<RegionNo> =
            ones(&self.inner.lock().queued).filter(|region| !retained(*region)).collect();
        if doubt {
            self.set_resync(lost.iter().copied(), true);
        }
        let mut inner = self.inner.lock();
        for region in lost {
            clear(&mut inner.queued, region.0);
            inner.changed.insert((region.0 / REGIONS_PER_SECTOR) as usize);
        }
    }

    pub(crate) fn needs_resync(&self) -> bool {
        self.inner.lock().resync.iter().any(|word| *word != 0)
    }

    pub(crate) fn all_resync(&self) -> bool {
        self.resync_count() == self.regions
    }

    pub(crate) fn resync_count(&self) -> u64 {
        self.inner.lock().resync.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Regions with any mark.
    pub(crate) fn marked_count(&self) -> u64 {
        let inner = self.inner.lock();
        let words = inner.in_use.iter().zip(&inner.queued).zip(&inner.resync);
        words.map(|((a, b), c)| u64::from((a | b | c).count_ones())).sum()
    }

    /// First region at or after `from` with a resync mark.
    pub(crate) fn next_resync(&self, from: RegionNo) -> Option<RegionNo> {
        let inner = self.inner.lock();
        let mut word = (from.0 / 64) as usize;
        let mut bits = inner.resync.get(word)? & (u64::MAX << (from.0 % 64));
        while bits == 0 {
            word += 1;
            bits = *inner.resync.get(word)?;
        }
        Some(RegionNo(word as u64 * 64 + u64::from(bits.trailing_zeros())))
    }

    pub(crate) fn state(&self) -> MapState {
        self.inner.lock().state
    }

    /// Highest epoch whose durability any cleared mark relied on.
    pub(crate) fn floor(&self) -> Epoch {
        self.inner.lock().floor
    }

    pub(crate) fn set_state(&self, state: MapState) {
        let mut inner = self.inner.lock();
        if inner.state != state {
            inner.state = state;
            inner.header_changed = true;
        }
    }

    /// Takes marks away that are needed no more. Regions asked for during the last two passes and held ones stay, so
    /// that no writer loses its mark between its look and its append; `at_rest` drops that care (nobody writes).
    /// `floor`: the LUN's last durable epoch, which the cleared marks rely on. Returns how many changed.
    pub(crate) fn tidy(&self, floor: Epoch, at_rest: bool, fate: impl Fn(RegionNo) -> Fate) -> usize {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let mut changes = 0;
        for word in 0..inner.in_use.len() {
            let used = self.used[word].swap(0, Ordering::Relaxed);
            let idle = std::mem::replace(&mut inner.idle[word], !used);
            let rest = if at_rest { u64::MAX } else { idle & !used };
            let mut bits = ((inner.in_use[word] & rest) | inner.queued[word]) & !inner.resync[word];
            while bits != 0 {
                let bit = bits & bits.wrapping_neg();
                bits &= bits - 1;
                let region = RegionNo(word as u64 * 64 + u64::from(bit.trailing_zeros()));
                let fate = fate(region);
                let before = (inner.in_use[word], inner.queued[word]);
                if fate != Fate::Keep && inner.in_use[word] & rest & bit != 0 {
                    // The live bit goes first: a writer that takes a hold afterwards finds it gone.
                    let was = self.live[word].fetch_and(!bit, Ordering::SeqCst);
                    if self.held[region.0 as usize].load(Ordering::SeqCst) != 0 {
                        self.live[word].fetch_or(was & bit, Ordering::SeqCst);
                        continue;
                    }
                    inner.in_use[word] &= !bit;
                    if fate == Fate::Queued {
                        inner.queued[word] |= bit;
                    }
                }
                if fate == Fate::Clear {
                    inner.queued[word] &= !bit;
                    inner.floor = inner.floor.max(floor);
                }
                if before != (inner.in_use[word], inner.queued[word]) {
                    changes += 1;
                    inner.changed.insert(word / WORDS_PER_SECTOR);
                }
            }
        }
        changes
    }

    /// Makes all changes durable.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        if inner.changed.is_empty() && !inner.header_changed && !inner.running && inner.failed.is_none() {
            return Ok(());
        }
        inner.asked += 1;
        let ticket = inner.asked;
        self.wait_synced(inner, ticket)
    }

    fn wait_synced(&self, mut inner: MutexGuard<'_, Inner>, ticket: u64) -> io::Result<()> {
        loop {
            if inner.done >= ticket {
                return Ok(());
            }
            if let Some(failed) = &inner.failed {
                return Err(io::Error::other(failed.clone()));
            }
            if inner.running {
                self.synced.wait(&mut inner);
                continue;
            }
            inner.running = true;
            let upto = inner.asked;
            let changed = std::mem::take(&mut inner.changed);
            let mut images: Vec<(u64, [u8; SECTOR_BYTES])> =
                changed.iter().map(|sector| self.sector(&inner, *sector)).collect();
            if std::mem::take(&mut inner.header_changed) {
                inner.header_counter += 1;
                let counter = inner.header_counter;
                let bytes = header_bytes(self.uuid, self.generation, self.regions, counter, inner.state);
                images.push((counter % HEADERS * SECTOR_BYTES as u64, bytes));
            }
            let result = MutexGuard::unlocked(&mut inner, || {
                for (at, bytes) in &images {
                    self.file.write_all_at(bytes, *at)?;
                }
                self.file.sync_data()
            });
            inner.running = false;
            match result {
                Ok(()) => {
                    inner.done = upto;
                    for (sector, (_, bytes)) in changed.into_iter().zip(&images) {
                        for word in 0..WORDS_PER_SECTOR {
                            let at = sector * WORDS_PER_SECTOR + word;
                            // What was cleared meanwhile must not look marked.
                            let bits = get(bytes, 24 + word * 8) & inner.in_use[at];
                            self.live[at].fetch_or(bits, Ordering::SeqCst);
                        }
                    }
                }
                // A failed sync marks pages clean: trying again would lie.
                Err(error) => inner.failed = Some(error.to_string()),
            }
            self.synced.notify_all();
        }
    }

    fn sector(&self, inner: &Inner, sector: usize) -> (u64, [u8; SECTOR_BYTES]) {
        let first = sector * WORDS_PER_SECTOR;
        let words =
            |map: &[u64]| -> [u64; WORDS_PER_SECTOR] { std::array::from_fn(|word| map[first + word]) };
        let bytes = sector_bytes(
            sector as u32,
            self.tag(),
            inner.floor,
            [words(&inner.in_use), words(&inner.queued), words(&inner.resync)],
        );
        ((HEADERS + sector as u64) * SECTOR_BYTES as u64, bytes)
    }
}

pub(crate) fn sector_bytes(
    index: u32,
    tag: u32,
    floor: Epoch,
    maps: [[u64; WORDS_PER_SECTOR]; 3],
) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    bytes[..4].copy_from_slice(SECTOR_MAGIC);
    bytes[4..8].copy_from_slice(&index.to_le_bytes());
    put(&mut bytes, 8, u64::from(tag));
    put(&mut bytes, 16, floor.0);
    for (map, words) in maps.iter().enumerate() {
        for (word, bits) in words.iter().enumerate() {
            put(&mut bytes, 24 + map * 128 + word * 8, *bits);
        }
    }
    seal(&mut bytes);
    bytes
}

fn set(words: &mut [u64], region: u64) {
    words[(region / 64) as usize] |= 1 << (region % 64);
}

fn clear(words: &mut [u64], region: u64) {
    words[(region / 64) as usize] &= !(1 << (region % 64));
}

fn is_set(words: &[u64], region: u64) -> bool {
    words[(region / 64) as usize] & (1 << (region % 64)) != 0
}

fn ones(words: &[u64]) -> impl Iterator<Item = RegionNo> + '_ {
    words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(|(at, word)| {
        (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| RegionNo(at as u64 * 64 + bit))
    })
}

#[cfg(test)]
#[path = "regions_tests.rs"]
mod tests;
