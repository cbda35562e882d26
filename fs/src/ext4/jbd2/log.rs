//! The log as a ring of blocks: opening and replay, writing transactions, moving the tail. Owned by the commit thread.

use super::super::cache::BlockData;
use super::super::defect::{Defect, Planted};
use super::super::error::Result;
use super::super::superblock::{ChecksumKind, Geometry, feature};
use super::super::tx::{Core, reserve};
use super::super::types::Tid;
use super::checksum;
use super::format::{Checksums, Format, JournalSuperblock, MAGIC, SUPERBLOCK_BYTES, Tag};
use super::map::LogMap;
use super::recovery::LogReader;
use crate::image::Lun;
use bytes::Bytes;
use mirrorfs_journal::Origin;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The log. See the module's text.
pub(in crate::ext4) struct Log {
    lun: Arc<Lun>,
    map: LogMap,
    superblock: JournalSuperblock,
    format: Format,
    /// First block of the ring, and the one behind it.
    ring: (u32, u32),
    /// Where the next transaction is written.
    head: u32,
    /// Blocks from the tail, as the durable superblock has it, to the head.
    used: u32,
    /// Transactions in the log, oldest first, and where each starts.
    transactions: VecDeque<(Tid, u32)>,
    /// Id of the next transaction.
    next: Tid,
    /// Time of the last commit: they must not go back, as recovery takes an older one for a leftover.
    last_commit_seconds: u64,
    /// What a test has planted.
    pub(in crate::ext4) planted: Planted,
}

/// What was done to the log at open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::ext4) struct Recovered {
    /// Transactions replayed.
    pub(in crate::ext4) transactions: u32,
    /// Blocks written home.
    pub(in crate::ext4) blocks: usize,
    /// The last user gave the journal up after an error of this number.
    pub(in crate::ext4) errno: u32,
}

impl Log {
    /// Finds the journal, replays it if it holds transactions, and leaves it empty, all durable. `core` is for finding the
    /// journal's blocks only: what it has cached may be out of date afterwards.
    /// `replay`: `needs_recovery` is set; without it the log is not to be replayed, only emptied.
    ///
    /// # Errors
    /// `Unsupported`, `Corrupt` (nothing more is written then), I/O errors.
    pub(in crate::ext4) fn open(core: &mut Core, replay: bool) -> Result<(Self, Recovered)> {
        let geometry = core.geometry.clone();
        let lun = core.lun.clone();
        let map = LogMap::load(core)?;
        let mut raw = vec![0; SUPERBLOCK_BYTES];
        lun.read(geometry.byte_of(map.place(0).0), &mut raw)?;
        let superblock = JournalSuperblock::parse(raw, geometry.block_size, map.blocks())?;
        let format = superblock.format(geometry.block_size);
        let ring = (superblock.first(), superblock.end());
        let mut recovered = Recovered { errno: superblock.errno(), ..Recovered::default() };
        let mut log = Self {
            next: superblock.sequence().next(),
            head: ring.0,
            used: 0,
            transactions: VecDeque::new(),
            last_commit_seconds: 0,
            planted: Planted::default(),
            lun,
            map,
            superblock,
            format,
            ring,
        };
        if log.superblock.start() != 0 {
            let mut reader = LogReader::new(&log.lun, &log.map, &log.format, ring);
            let scan = reader.scan(log.superblock.start(), log.superblock.sequence())?;
            if replay {
                recovered.blocks = reader.replay(&scan, geometry.block_count)?;
                recovered.transactions = scan.transactions;
                log.lun.flush()?;
            } else {
                log::warn!(
                    "needs_recovery is not set: {} transactions in the journal are dropped",
                    scan.transactions
                );
            }
            // The transaction that did not make it may have left blocks of its own number.
            log.next = scan.end.next();
            log.last_commit_seconds = scan.last_commit_seconds;
            log.empty()?;
        }
        Ok((log, recovered))
    }

    /// Blocks of the ring.
    pub(in crate::ext4) fn blocks(&self) -> u32 {
        self.ring.1 - self.ring.0
    }
    /// Whether it is ready for transactions, so that its emptiness has to be marked at the end.
    pub(in crate::ext4) fn started(&self) -> bool {
        self.superblock.start() != 0
    }
    /// Blocks in use.
    pub(in crate::ext4) fn used(&self) -> u32 {
        self.used
    }
    /// Id of the next transaction.
    pub(in crate::ext4) fn next(&self) -> Tid {
        self.next
    }
    /// Metadata blocks that one transaction may hold: jbd2's quarter of the journal, the log's own blocks subtracted.
    pub(in crate::ext4) fn transaction_blocks_max(&self) -> usize {
        let quarter = (self.blocks() / 4) as usize;
        quarter - quarter.div_ceil(self.format.tags_max() + 1) - 2
    }
    /// Whether a transaction fits into what is free now.
    pub(in crate::ext4) fn has_room(&self, blocks: usize, revoked: usize) -> bool {
        let own = blocks.div_ceil(self.format.tags_max()) + revoked.div_ceil(self.format.revokes_max()) + 1;
        blocks + own <= (self.blocks() - self.used) as usize
    }

    fn after(&self, at: u32, count: u32) -> u32 {
        let to_end = self.ring.1 - at;
        if count < to_end { at + count } else { self.ring.0 + (count - to_end) }
    }

    /// Writes whole blocks at the head, in as few requests as the ring and the journal's extents allow.
    fn append(&mut self, mut bytes: Bytes) -> Result<()> {
        let size = self.format.block_size;
        while !bytes.is_empty() {
            let (place, run) = self.map.place(self.head);
            let count = (bytes.len() / size).min(run.min(self.ring.1 - self.head) as usize);
            let part = bytes.split_to(count * size);
            self.lun.write(place.0 * size as u64, part, Origin::Journal)?;
            self.head = self.after(self.head, count as u32);
            self.used += count as u32;
        }
        Ok(())
    }

    /// Writes all of a transaction but its commit block. The caller has checked [`Self::has_room`].
    ///
    /// # Errors
    /// I/O errors.
    pub(in crate::ext4) fn write_transaction(
        &mut self,
        blocks: &[(u64, BlockData)],
        revoked: &[u64],
    ) -> Result<()> {
        assert!(
            self.has_room(blocks.len(), revoked.len()),
            "room in the journal was made before the transaction closed"
        );
        let (size, tid) = (self.format.block_size, self.next);
        self.transactions.push_back((tid, self.head));
        let mut buffer = Vec::new();
        for part in revoked.chunks(self.format.revokes_max()) {
            let start = buffer.len();
            buffer.resize(start + size, 0);
            self.format.put_revokes(&mut buffer[start..], tid, part);
        }
        for part in blocks.chunks(self.format.tags_max()) {
            // One buffer for a descriptor and what it names: the only copy that a commit makes of a block.
            buffer.reserve_exact((part.len() + 1) * size);
            let descriptor = buffer.len();
            buffer.resize(descriptor + size, 0);
            self.format.start_descriptor(&mut buffer[descriptor..], tid);
            for (index, (block, data)) in part.iter().enumerate() {
                let start = buffer.len();
                buffer.extend_from_slice(data);
                let escaped = buffer[start..start + 4] == MAGIC.to_be_bytes()
                    && !self.planted.has(Defect::UnescapedMagic);
                if escaped {
                    buffer[start..start + 4].fill(0);
                }
                let checksum = match self.format.checksums {
                    Checksums::None => 0,
                    Checksums::V2 => checksum::block(self.format.seed, tid, &buffer[start..]) & 0xFFFF,
                    Checksums::V3 => checksum::block(self.format.seed, tid, &buffer[start..]),
                };
                let tag = Tag { block: *block, escaped, checksum };
                let last = index + 1 == part.len();
                self.format.put_tag(&mut buffer[descriptor..descriptor + size], index, &tag, last);
            }
            self.format.seal_descriptor(&mut buffer[descriptor..descriptor + size]);
            self.append(std::mem::take(&mut buffer).into())?;
        }
        self.append(buffer.into())
    }

    /// Writes the commit block. Everything before it has been flushed.
    ///
    /// # Errors
    /// I/O errors.
    pub(in crate::ext4) fn write_commit(&mut self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_commit_seconds = self.last_commit_seconds.max(now.as_secs());
        let raw = self.format.commit(self.next, self.last_commit_seconds, now.subsec_nanos());
        self.append(raw.into())?;
        self.next = self.next.next();
        Ok(())
    }

    /// Moves the tail to `oldest`, the first transaction that has versions not at home (`None`: all are), and makes that
    /// durable. The caller has flushed what was written home.
    ///
    /// # Errors
    /// I/O errors.
    pub(in crate::ext4) fn move_tail(&mut self, oldest: Option<Tid>) -> Result<()> {
        let before = self.transactions.len();
        match oldest {
            Some(oldest) => {
                while self.transactions.front().is_some_and(|(tid, _)| tid.is_before(oldest)) {
                    self.transactions.pop_front();
                }
            }
            None => self.transactions.clear(),
        }
        if self.transactions.len() == before {
            return Ok(());
        }
        let (tid, start) = self.transactions.front().copied().unwrap_or((self.next, self.head));
        self.superblock.set_tail(start, tid);
        self.put_superblock()?;
        // Before anything is written where the log was: recovery would still begin there.
        if !self.planted.has(Defect::UnflushedTail) {
            self.lun.flush()?;
        }
        self.used = match self.transactions.is_empty() {
            true => 0,
            false if self.head > start => self.head - start,
            false => self.blocks() - (start - self.head),
        };
        Ok(())
    }

    /// Makes the empty log ready for transactions, with the features that we write; host space below it is reserved.
    /// `needs_recovery` is durable already.
    ///
    /// # Errors
    /// `ENOSPC` where the host is full; I/O errors.
    pub(in crate::ext4) fn start(&mut self, geometry: &Geometry) -> Result<()> {
        for (place, count) in self.map.runs() {
            reserve(&self.lun, geometry.byte_of(place), u64::from(count) * u64::from(geometry.block_size))?;
        }
        let metadata_csum = geometry.checksums == ChecksumKind::Crc32c;
        self.superblock.set_features(metadata_csum, geometry.incompat & feature::INCOMPAT_64BIT != 0);
        self.format = self.superblock.format(geometry.block_size);
        self.head = self.ring.0;
        self.superblock.set_tail(self.head, self.next);
        self.write_superblock()
    }

    /// Marks the log as empty. All versions are at home, flushed.
    ///
    /// # Errors
    /// I/O errors.
    pub(in crate::ext4) fn empty(&mut self) -> Result<()> {
        self.transactions.clear();
        self.used = 0;
        self.superblock.set_tail(0, self.next);
        self.write_superblock()
    }

    fn put_superblock(&self) -> Result<()> {
        let at = self.map.place(0).0.0 * self.format.block_size as u64;
        self.lun.write(at, Bytes::copy_from_slice(self.superblock.raw()), Origin::Journal)?;
        Ok(())
    }

    fn write_superblock(&self) -> Result<()> {
        self.put_superblock()?;
        self.lun.flush()?;
        Ok(())
    }
}
