//! A backing that fails on demand.

use super::backing::Backing;
use super::recorder::splitmix;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

const BLOCK: u64 = 4096;

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Discards.
    Discard,
    /// Reservations.
    Reserve,
    /// Syncs.
    Sync,
}

#[derive(Clone, Copy, Debug)]
struct Failure {
    operation: Operation,
    /// Calls that still succeed before it.
    after: u64,
    /// Whether it stays.
    lasting: bool,
    errno: i32,
}

#[derive(Default)]
struct State {
    seed: u64,
    failures: Vec<Failure>,
    counts: [u64; 5],
    torn: bool,
    corrupt: Vec<Range<u64>>,
    /// Free bytes on the host and blocks that have space on it.
    host: Option<(u64, HashSet<u64>)>,
}

/// The handle that changes what fails while the backing is in use. Clones share it.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

impl Faults {
    /// Nothing fails yet; `seed` decides what corrupted and torn content looks like.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State { seed, ..State::default() })))
    }

    /// The `nth` such call from now (0: the next) fails with `errno`, once.
    pub fn fail_nth(&self, operation: Operation, nth: u64, errno: i32) {
        self.0.lock().failures.push(Failure { operation, after: nth, lasting: false, errno });
    }

    /// All such calls fail with `errno` from the `nth` from now on.
    pub fn fail_from(&self, operation: Operation, nth: u64, errno: i32) {
        self.0.lock().failures.push(Failure { operation, after: nth, lasting: true, errno });
    }

    /// Whether a write that fails has written a part (its length by the seed) first.
    pub fn tear_writes(&self, torn: bool) {
        self.0.lock().torn = torn;
    }

    /// Blocks in the range read as something else than what was written, until [`Self::heal`].
    pub fn corrupt(&self, range: Range<u64>) {
        self.0.lock().corrupt.push(range);
    }

    /// The host has this many bytes left: blocks of 4 KiB that have no space yet take from it when they are reserved or
    /// written, and a discard gives back. `ENOSPC` when it is used up.
    ///
    /// # Errors
    /// When the backing can't be asked what has space now.
    pub fn set_free_bytes(&self, backing: &FaultBacking, free: u64) -> io::Result<()> {
        let mut blocks = HashSet::new();
        let mut at = 0;
        while let Some(data) = backing.inner.next_data(at)? {
            blocks.extend(data.start / BLOCK..data.end.div_ceil(BLOCK));
            at = data.end;
        }
        self.0.lock().host = Some((free, blocks));
        Ok(())
    }

    /// Nothing fails any more, and the host is not full; content that was torn stays so.
    pub fn heal(&self) {
        let mut state = self.0.lock();
        state.failures.clear();
        state.corrupt.clear();
        state.host = None;
    }

    /// Such calls so far, failed ones included.
    #[must_use]
    pub fn count(&self, operation: Operation) -> u64 {
        self.0.lock().counts[operation as usize]
    }

    fn check(&self, operation: Operation) -> io::Result<()> {
        let mut state = self.0.lock();
        state.counts[operation as usize] += 1;
        let mut failed = None;
        state.failures.retain_mut(|failure| {
            if failure.operation != operation {
                return true;
            }
            if failure.after > 0 {
                failure.after -= 1;
                return true;
            }
            failed = Some(failure.errno);
            failure.lasting
        });
        failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    /// Gives host space to the blocks of the range, all or none.
    fn take_space(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        let Some((free, blocks)) = &mut state.host else { return Ok(()) };
        let new: Vec<_> = (offset / BLOCK..(offset + length).div_ceil(BLOCK))
            .filter(|block| !blocks.contains(block))
            .collect();
        let needed = new.len() as u64 * BLOCK;
        if needed > *free {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        *free -= needed;
        blocks.extend(new);
        Ok(())
    }

    fn give_space(&self, offset: u64, length: u64) {
        let mut state = self.0.lock();
        let Some((free, blocks)) = &mut state.host else { return };
        for block in offset.div_ceil(BLOCK)..(offset + length) / BLOCK {
            if blocks.remove(&block) {
                *free += BLOCK;
            }
        }
    }
}

/// A backing that fails as its [`Faults`] say.
pub struct FaultBacking {
    inner: Arc<dyn Backing>,
    faults: Faults,
}

impl FaultBacking {
    /// `inner`, failing as `faults` says.
    #[must_use]
    pub fn new(inner: Arc<dyn Backing>, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

impl Backing for FaultBacking {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.faults.check(Operation::Read)?;
        self.inner.read_at(offset, into)?;
        let state = self.faults.0.lock();
        for range in &state.corrupt {
            let end = range.end.min(offset + into.len() as u64);
            for at in range.start.max(offset)..end {
                // Never zero, so that the byte differs, and the same at each reading.
                let flip = splitmix(&mut (state.seed ^ at)) as u8 | 1;
                into[(at - offset) as usize] ^= flip;
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let result = self
            .faults
            .check(Operation::Write)
            .and_then(|()| self.faults.take_space(offset, bytes.len() as u64));
        if let Err(error) = result {
            let part = {
                let mut state = self.faults.0.lock();
                let choice = splitmix(&mut state.seed);
                if state.torn { choice % bytes.len().max(1) as u64 / 512 * 512 } else { 0 }
            };
            self.inner.write_at(offset, &bytes[..part as usize])?;
            return Err(error);
        }
        self.inner.write_at(offset, bytes)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.faults.check(Operation::Discard)?;
        self.inner.discard(offset, length)?;
        self.faults.give_space(offset, length);
        Ok(())
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        self.faults.check(Operation::Reserve)?;
        self.faults.take_space(offset, length)?;
        self.inner.reserve(offset, length)
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.check(Operation::Sync)?;
        self.inner.sync()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::backing::MemoryBacking;
    use super::*;

    fn faulty() -> (FaultBacking, Faults) {
        let faults = Faults::new(3);
        (FaultBacking::new(Arc::new(MemoryBacking::new(1 << 20)), faults.clone()), faults)
    }

    #[test]
    fn the_nth_call_fails_once_or_for_good() {
        let (backing, faults) = faulty();
        faults.fail_nth(Operation::Write, 1, libc::EIO);
        faults.fail_from(Operation::Sync, 1, libc::EIO);
        let write = || backing.write_at(0, &[1; 512]).map_err(|error| error.raw_os_error());
        assert_eq!([write(), write(), write()], [Ok(()), Err(Some(libc::EIO)), Ok(())]);
        let syncs = [backing.sync().is_ok(), backing.sync().is_ok(), backing.sync().is_ok()];
        assert_eq!(syncs, [true, false, false]);
        assert_eq!((faults.count(Operation::Write), faults.count(Operation::Sync)), (3, 3));
        faults.heal();
        backing.sync().unwrap();
    }

    #[test]
    fn a_full_host_refuses_new_blocks_and_takes_old_ones() {
        let (backing, faults) = faulty();
        backing.write_at(0, &[1; 4096]).unwrap();
        faults.set_free_bytes(&backing, 8192).unwrap();
        backing.reserve(4096, 4096).unwrap();
        backing.write_at(0, &[2; 8192]).unwrap();
        assert_eq!(backing.reserve(8192, 8192).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        backing.write_at(8192, &[2; 4096]).unwrap();
        assert_eq!(backing.write_at(12_288, &[2; 512]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        backing.discard(0, 4096).unwrap();
        backing.write_at(12_288, &[2; 512]).unwrap();
    }

    #[test]
    fn corrupted_bytes_differ_and_torn_writes_leave_a_part() {
        let (backing, faults) = faulty();
        backing.write_at(0, &[7; 8192]).unwrap();
        faults.corrupt(4096..4100);
        let mut read = vec![0; 8192];
        backing.read_at(0, &mut read).unwrap();
        for (at, byte) in read.iter().enumerate() {
            assert_eq!(*byte == 7, !(4096..4100).contains(&at), "byte {at}");
        }
        faults.heal();
        faults.tear_writes(true);
        let mut parts = HashSet::new();
        for _ in 0..20 {
            backing.write_at(0, &[7; 8192]).unwrap();
            faults.fail_nth(Operation::Write, 0, libc::EIO);
            backing.write_at(0, &[8; 8192]).unwrap_err();
            backing.read_at(0, &mut read).unwrap();
            let written = read.iter().take_while(|byte| **byte == 8).count();
            assert!(written < 8192 && read[written..].iter().all(|byte| *byte == 7));
            parts.insert(written);
        }
        assert!(parts.len() > 1);
    }
}
