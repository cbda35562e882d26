//! Replay of the journal at open.
//!
//! The log is scanned from its tail, transaction by transaction, up to the first that has no commit block of its own or
//! whose commit block's checksum is wrong. Revoke records of what was found decide which logged blocks are still wanted; of
//! those only the last version of each is written home. Result and refusals are the kernel's (`fs/jbd2/recovery.c`).

use super::super::error::{FsError, Result};
use super::super::types::{BlockNo, Tid};
use super::format::{COMMIT, DESCRIPTOR, Format, REVOKE, Tag, header};
use super::map::LogMap;
use crate::image::Lun;
use bytes::Bytes;
use mirrorfs_journal::Origin;
use rustc_hash::FxHashMap;

/// Bytes read at once while scanning, and written at once while replaying.
const RUN_BYTES: usize = 1 << 20;
const READ_BYTES: usize = 128 << 10;

/// A block in the log.
struct Logged {
    tag: Tag,
    tid: Tid,
    at: u32,
}

/// What a scan of the log has found.
pub(super) struct Scan {
    /// The transaction that is not there any more: one behind the last whole one.
    pub(super) end: Tid,
    /// Time of the last commit, in seconds.
    pub(super) last_commit_seconds: u64,
    /// Whole transactions.
    pub(super) transactions: u32,
    logged: Vec<Logged>,
    revoked: FxHashMap<u64, Tid>,
}

/// The log as it is read.
pub(super) struct LogReader<'a> {
    pub(super) lun: &'a Lun,
    pub(super) map: &'a LogMap,
    pub(super) format: &'a Format,
    /// First block of the log, and the one behind it.
    pub(super) ring: (u32, u32),
    /// What was read last: its first block, and the bytes.
    window: (u32, Vec<u8>),
}

impl<'a> LogReader<'a> {
    pub(super) fn new(lun: &'a Lun, map: &'a LogMap, format: &'a Format, ring: (u32, u32)) -> Self {
        Self { lun, map, format, ring, window: (0, Vec::new()) }
    }

    fn read(&mut self, at: u32) -> Result<&[u8]> {
        let size = self.format.block_size;
        let held = self.window.1.len() / size;
        if at < self.window.0 || at as usize >= self.window.0 as usize + held {
            let (place, run) = self.map.place(at);
            let count = (run.min(self.ring.1 - at) as usize).min(READ_BYTES / size).max(1);
            let mut bytes = std::mem::take(&mut self.window.1);
            bytes.resize(count * size, 0);
            self.lun.read(place.0 * size as u64, &mut bytes)?;
            self.window = (at, bytes);
        }
        let start = (at - self.window.0) as usize * size;
        Ok(&self.window.1[start..start + size])
    }

    fn after(&self, at: u32, count: usize) -> u32 {
        let (first, end) = self.ring;
        let length = (end - first) as usize;
        first + (((at - first) as usize + count) % length) as u32
    }

    /// Scans the log from `start`, where transaction `sequence` should be.
    ///
    /// # Errors
    /// `Corrupt` where a transaction that was committed can't be trusted; I/O errors.
    pub(super) fn scan(&mut self, start: u32, sequence: Tid) -> Result<Scan> {
        let mut scan = Scan {
            end: sequence,
            last_commit_seconds: 0,
            transactions: 0,
            logged: Vec::new(),
            revoked: FxHashMap::default(),
        };
        let (mut tid, mut at) = (sequence, start);
        let mut passed = 0;
        let mut damaged = false;
        let mut logged = Vec::new();
        let mut revoked = Vec::new();
        // A log that names itself in a circle ends where it began.
        while passed <= (self.ring.1 - self.ring.0) as usize {
            let format = self.format;
            let here = at;
            let raw = self.read(at)?;
            let Some((kind, found)) = header(raw) else { break };
            if found != tid {
                break;
            }
            let mut blocks = 1;
            match kind {
                DESCRIPTOR => {
                    damaged |= !format.tail_matches(raw);
                    let tags = format.tags(raw);
                    blocks += tags.len();
                    for (index, tag) in tags.into_iter().enumerate() {
                        logged.push(Logged { tag, tid, at: self.after(here, index + 1) });
                    }
                }
                REVOKE => match format.revoked(raw) {
                    Some(found) if format.tail_matches(raw) => revoked.extend(found),
                    _ => damaged = true,
                },
                COMMIT => {
                    let seconds = Format::commit_seconds(raw);
                    // Older than the one before: left over from an earlier life of the log.
                    let stale = seconds < scan.last_commit_seconds;
                    if damaged && !stale {
                        let what = format!("journal: wrong checksum in transaction {tid} (run e2fsck)");
                        return Err(FsError::corrupt(what, None, Some(self.map.place(here).0)));
                    }
                    if damaged || !format.commit_matches(raw) {
                        break;
                    }
                    scan.logged.append(&mut logged);
                    scan.revoked.extend(revoked.drain(..).map(|block| (block, tid)));
                    scan.last_commit_seconds = seconds;
                    scan.transactions += 1;
                    tid = tid.next();
                }
                _ => break,
            }
            passed += blocks;
            at = self.after(at, blocks);
        }
        scan.end = tid;
        Ok(scan)
    }

    /// Writes what the scan has found home. Not flushed.
    ///
    /// # Errors
    /// `Corrupt` for a wrong checksum or a home outside the file system; I/O errors.
    pub(super) fn replay(&mut self, scan: &Scan, block_count: u64) -> Result<usize> {
        let mut last: FxHashMap<u64, &Logged> = FxHashMap::default();
        for logged in &scan.logged {
            let revoked = scan.revoked.get(&logged.tag.block);
            if revoked.is_none_or(|revoked| revoked.is_before(logged.tid)) {
                last.insert(logged.tag.block, logged);
            }
        }
        let mut wanted: Vec<&Logged> = last.into_values().collect();
        wanted.sort_unstable_by_key(|logged| logged.tag.block);
        let size = self.format.block_size;
        let mut from = 0;
        while from < wanted.len() {
            let first = wanted[from].tag.block;
            let together = wanted[from..]
                .iter()
                .enumerate()
                .take(RUN_BYTES / size)
                .take_while(|(index, logged)| logged.tag.block == first + *index as u64)
                .count();
            let mut run = Vec::with_capacity(together * size);
            for logged in &wanted[from..from + together] {
                if logged.tag.block >= block_count {
                    let what = "journal: logged block outside the file system";
                    return Err(FsError::corrupt(what, None, Some(BlockNo(logged.tag.block))));
                }
                let format = self.format;
                let raw = self.read(logged.at)?;
                if !format.block_matches(&logged.tag, logged.tid, raw) {
                    let what = format!(
                        "journal: wrong checksum of a block of transaction {} (run e2fsck)",
                        logged.tid
                    );
                    return Err(FsError::corrupt(what, None, Some(BlockNo(logged.tag.block))));
                }
                let start = run.len();
                run.extend_from_slice(raw);
                if logged.tag.escaped {
                    run[start..start + 4].copy_from_slice(&super::format::MAGIC.to_be_bytes());
                }
            }
            self.lun.write(first * size as u64, Bytes::from(run), Origin::Metadata)?;
            from += together;
        }
        Ok(wanted.len())
    }
}
