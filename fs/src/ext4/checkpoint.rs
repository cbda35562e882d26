//! Bringing committed versions home, in slices, so that a sync does not wait long.
//!
//! A round takes what is unwritten when it begins, in the order of the image, then flushes and moves the journal's tail.

use super::cache::{BlockData, shared_bytes};
use super::commit::Committer;
use super::error::Result;
use super::types::Tid;
use bytes::Bytes;
use mirrorfs_journal::Origin;

/// Blocks written home between two commits. Tests take few, so that commits come in between in small journals too.
const SLICE_BLOCKS: usize = if cfg!(test) { 16 } else { 256 };
/// Bytes of one write at most: neighbours are merged, at the price of a copy.
const RUN_BYTES: usize = 1 << 20;

/// A checkpoint under way.
pub(super) struct Round {
    /// The blocks, ascending.
    blocks: Vec<u64>,
    /// How many of them have had their turn.
    at: usize,
    /// What was written, and of which transaction.
    written: Vec<(u64, Tid)>,
}

impl Committer {
    /// Goes on with the checkpoint, or begins one. All closed transactions are committed.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn checkpoint_slice(&mut self) -> Result<()> {
        let round = self.round.get_or_insert_with(|| {
            let mut blocks: Vec<u64> = self.core.lock().cache.unwritten.keys().copied().collect();
            blocks.sort_unstable();
            Round { written: Vec::with_capacity(blocks.len()), blocks, at: 0 }
        });
        let mut slice: Vec<(u64, BlockData)> = Vec::with_capacity(SLICE_BLOCKS);
        {
            let core = self.core.lock();
            while slice.len() < SLICE_BLOCKS && round.at < round.blocks.len() {
                let block = round.blocks[round.at];
                round.at += 1;
                // What was freed since is gone from there, and must not be written.
                if let Some(unwritten) = core.cache.unwritten.get(&block) {
                    slice.push((block, unwritten.data.clone()));
                    round.written.push((block, unwritten.tid));
                }
            }
            if core.commit.abandon {
                return Ok(());
            }
        }
        let last = round.at == round.blocks.len();
        self.write_home(slice)?;
        if last { self.end_round() } else { Ok(()) }
    }

    /// Brings everything home and empties the journal's ring.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn checkpoint_all(&mut self) -> Result<()> {
        loop {
            if self.round.is_none() && (self.log.used() == 0 || self.abandoned()) {
                return Ok(());
            }
            self.checkpoint_slice()?;
            if self.abandoned() {
                return Ok(());
            }
        }
    }

    fn write_home(&self, slice: Vec<(u64, BlockData)>) -> Result<()> {
        let mut rest = slice.as_slice();
        while let Some((first, data)) = rest.first() {
            let size = data.len();
            let neighbours = rest.iter().enumerate().take(RUN_BYTES / size);
            let count = neighbours.take_while(|(index, (block, _))| *block == first + *index as u64).count();
            let bytes = match count {
                1 => shared_bytes(data.clone()),
                _ => {
                    let mut run = Vec::with_capacity(count * size);
                    rest[..count].iter().for_each(|(_, data)| run.extend_from_slice(data));
                    Bytes::from(run)
                }
            };
            self.lun.write(first * size as u64, bytes, Origin::Metadata)?;
            rest = &rest[count..];
        }
        Ok(())
    }

    fn end_round(&mut self) -> Result<()> {
        let Some(round) = self.round.take() else { return Ok(()) };
        self.flush()?;
        let oldest = {
            let mut core = self.core.lock();
            let unwritten = &mut core.cache.unwritten;
            for (block, tid) in round.written {
                let Some(entry) = unwritten.get_mut(&block) else { continue };
                if entry.tid == tid {
                    unwritten.remove(&block);
                } else if entry.oldest.is_before(tid.next()) {
                    // Committed again meanwhile: what is at home is of `tid`.
                    entry.oldest = tid.next();
                }
            }
            let oldest = |a: Tid, b: Tid| if a.is_before(b) { a } else { b };
            unwritten.values().map(|entry| entry.oldest).reduce(oldest)
        };
        self.log.move_tail(oldest)
    }
}
