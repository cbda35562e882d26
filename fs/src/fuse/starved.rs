//! Files whose pages found no room.
//!
//! With its writeback cache the kernel takes a program's data without asking for room, and tells of an ENOSPC at fsync
//! or close only: a program that writes without end would never hear of it. But before each write(2) the kernel looks at
//! the attributes, by the file's handle, if it has none that are valid; an error there becomes that write's error.

use super::inode_table::NumberHasher;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long the news is worth telling: whoever has stopped writing hears of it at fsync or close.
const NEWS_FOR: Duration = Duration::from_secs(3);

/// Inodes of which a cached write has failed with ENOSPC and no write(2) has been told.
#[derive(Default)]
pub(crate) struct Starved {
    /// Some are; spares all others the lock.
    any: AtomicBool,
    since: Mutex<HashMap<u64, Instant, BuildHasherDefault<NumberHasher>>>,
}

impl Starved {
    pub(crate) fn insert(&self, ino: u64, now: Instant) {
        let mut since = self.since.lock();
        since.retain(|_, at| now.duration_since(*at) < NEWS_FOR);
        since.insert(ino, now);
        self.any.store(true, Ordering::Release);
    }

    /// Whether this one is to be told now; only once for each failure.
    pub(crate) fn take(&self, ino: u64, now: Instant) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let mut since = self.since.lock();
        let news = since.remove(&ino).is_some_and(|at| now.duration_since(at) < NEWS_FOR);
        self.any.store(!since.is_empty(), Ordering::Release);
        news
    }

    /// The file's contents have gone, or the file itself: whoever writes next under this number writes something else.
    pub(crate) fn forget(&self, ino: u64) {
        if self.any.load(Ordering::Acquire) {
            self.since.lock().remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_is_told_once_and_soon() {
        let starved = Starved::default();
        let start = Instant::now();
        assert!(!starved.take(12, start));
        starved.insert(12, start);
        assert!(!starved.take(13, start));
        assert!(starved.take(12, start));
        assert!(!starved.take(12, start));
        starved.insert(12, start);
        assert!(!starved.take(12, start + NEWS_FOR));
    }

    /// A disk was filled, the file deleted, and the next one got its number: its writer was told of the other's failure.
    #[test]
    fn a_failure_dies_with_its_file() {
        let starved = Starved::default();
        let start = Instant::now();
        starved.insert(12, start);
        starved.forget(12);
        assert!(!starved.take(12, start));
    }
}
