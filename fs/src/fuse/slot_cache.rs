//! A lossy set of inode numbers without locks, for answers that are asked at every read or write.

use super::inode_table::mix;
use std::sync::atomic::{AtomicU64, Ordering};

/// A power of two; 64 KiB.
const SLOTS: usize = 8192;

/// Remembers inodes for which a check has found nothing to do; forgets some of them when it likes.
///
/// Insert *before* the state is looked at, remove *after* it was changed: then an inode is never remembered wrongly,
/// in whatever order the threads run.
pub(crate) struct SlotCache {
    /// FUSE inode number, or 0.
    slots: Vec<AtomicU64>,
}

impl SlotCache {
    pub(crate) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }

    fn slot(&self, ino: u64) -> &AtomicU64 {
        &self.slots[mix(ino) as usize % SLOTS]
    }

    pub(crate) fn contains(&self, ino: u64) -> bool {
        self.slot(ino).load(Ordering::Acquire) == ino
    }

    pub(crate) fn insert(&self, ino: u64) {
        self.slot(ino).store(ino, Ordering::SeqCst);
    }

    pub(crate) fn remove(&self, ino: u64) {
        let slot = self.slot(ino);
        // Mostly it is not there: a load leaves the cache line shared.
        if slot.load(Ordering::SeqCst) == ino {
            let _ = slot.compare_exchange(ino, 0, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    pub(crate) fn clear(&self) {
        for slot in &self.slots {
            slot.store(0, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_put_in_last() {
        let cache = SlotCache::new();
        assert!(!cache.contains(7));
        cache.insert(7);
        assert!(cache.contains(7));
        cache.remove(8);
        assert!(cache.contains(7));
        cache.remove(7);
        assert!(!cache.contains(7));
        for ino in 1..100_000 {
            cache.insert(ino);
            assert!(cache.contains(ino));
        }
        cache.clear();
        assert!((1..100_000).all(|ino| !cache.contains(ino)));
    }
}
