//! What is known to be reserved on the host, one bit for each MiB.

use super::backing::Backing;
use parking_lot::Mutex;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that one bit stands for.
const UNIT: u64 = 1 << 20;

/// Units known to be fully reserved. A bit is read without a lock, set and cleared under it: a unit that a discard
/// punches while it is being reserved must not end up as reserved.
pub(crate) struct Reserved {
    size_bytes: u64,
    bits: Box<[AtomicU64]>,
    changing: Mutex<()>,
}

impl Reserved {
    pub(crate) fn new(size_bytes: u64) -> Self {
        let words = size_bytes.div_ceil(UNIT).div_ceil(64);
        Self { size_bytes, bits: (0..words).map(|_| AtomicU64::new(0)).collect(), changing: Mutex::new(()) }
    }

    fn get(&self, unit: u64) -> bool {
        self.bits[(unit / 64) as usize].load(Ordering::Acquire) & (1 << (unit % 64)) != 0
    }

    /// Reserves the units of the range that aren't yet, whole; the exact range only where the host is too full for that.
    pub(crate) fn reserve(&self, backing: &dyn Backing, offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let (first, last) = (offset / UNIT, (offset + length - 1) / UNIT);
        if (first..=last).all(|unit| self.get(unit)) {
            return Ok(());
        }
        let _changing = self.changing.lock();
        let mut unit = first;
        while unit <= last {
            if self.get(unit) {
                unit += 1;
                continue;
            }
            let mut end = unit + 1;
            while end <= last && !self.get(end) {
                end += 1;
            }
            let (from, to) = (unit * UNIT, (end * UNIT).min(self.size_bytes));
            match backing.reserve(from, to - from) {
                Ok(()) => {
                    for unit in unit..end {
                        self.bits[(unit / 64) as usize].fetch_or(1 << (unit % 64), Ordering::AcqRel);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    let (from, to) = (from.max(offset), to.min(offset + length));
                    backing.reserve(from, to - from)?;
                }
                Err(error) => return Err(error),
            }
            unit = end;
        }
        Ok(())
    }

    /// The range has been discarded: its units are no longer fully reserved. Called after the discard.
    pub(crate) fn forget(&self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        let _changing = self.changing.lock();
        for unit in offset / UNIT..=(offset + length - 1) / UNIT {
            self.bits[(unit / 64) as usize].fetch_and(!(1 << (unit % 64)), Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::ops::Range;

    /// Counts reservations and refuses those above `max` bytes.
    struct Host {
        calls: Mutex<Vec<(u64, u64)>>,
        max: AtomicU64,
    }

    impl Backing for Host {
        fn size_bytes(&self) -> u64 {
            10 * UNIT + 4096
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
            self.calls.lock().push((offset, length));
            if length > self.max.load(Ordering::Relaxed) {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn next_data(&self, _: u64) -> io::Result<Option<Range<u64>>> {
            Ok(None)
        }
    }

    #[test]
    fn a_unit_is_asked_for_once_until_part_of_it_is_discarded() {
        let host = Host { calls: Mutex::default(), max: AtomicU64::new(u64::MAX) };
        let reserved = Reserved::new(host.size_bytes());
        let calls = || std::mem::take(&mut *host.calls.lock());
        reserved.reserve(&host, UNIT + 4096, 4096).unwrap();
        assert_eq!(calls(), [(UNIT, UNIT)]);
        reserved.reserve(&host, 2 * UNIT - 4096, 4096).unwrap();
        assert_eq!(calls(), []);
        reserved.reserve(&host, 0, 4 * UNIT).unwrap();
        assert_eq!(calls(), [(0, UNIT), (2 * UNIT, 2 * UNIT)]);
        reserved.forget(2 * UNIT - 4096, 8192);
        reserved.reserve(&host, 0, 4 * UNIT).unwrap();
        assert_eq!(calls(), [(UNIT, 2 * UNIT)]);
        reserved.reserve(&host, 10 * UNIT, 4096).unwrap();
        assert_eq!(calls(), [(10 * UNIT, 4096)]);
    }

    #[test]
    fn a_nearly_full_host_is_asked_for_the_exact_range() {
        let host = Host { calls: Mutex::default(), max: AtomicU64::new(8192) };
        let reserved = Reserved::new(host.size_bytes());
        reserved.reserve(&host, UNIT - 4096, 8192).unwrap();
        assert_eq!(*host.calls.lock(), [(0, 2 * UNIT), (UNIT - 4096, 8192)]);
        let error = reserved.reserve(&host, UNIT, 12_288).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        host.max.store(u64::MAX, Ordering::Relaxed);
        reserved.reserve(&host, UNIT, 12_288).unwrap();
        assert_eq!(host.calls.lock().last(), Some(&(UNIT, UNIT)));
    }
}
