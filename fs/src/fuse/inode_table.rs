//! How often the kernel has looked up each inode, and which inodes wait for their last use to end.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

/// Spreads the FUSE threads over locks.
const SHARDS: usize = 64;

/// What the kernel knows of one inode.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Lookups not yet forgotten. While it is not 0 the kernel may send requests for the inode; it stays so for as long
    /// as a file, a mapping or a working directory uses the inode.
    lookups: u64,
    /// The last link is gone: to be evicted when `lookups` reaches 0.
    unlinked: bool,
}

/// Lookup counts by FUSE inode number; sharded. Each method takes one shard's lock for a moment.
pub(crate) struct InodeTable {
    shards: Vec<Mutex<HashMap<u64, Known, BuildHasherDefault<NumberHasher>>>>,
}

impl InodeTable {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, ino: u64) -> &Mutex<HashMap<u64, Known, BuildHasherDefault<NumberHasher>>> {
        &self.shards[mix(ino) as usize % SHARDS]
    }

    /// Counts a lookup. To be called before the reply leaves: the kernel's FORGET can be faster than we are.
    pub(crate) fn looked_up(&self, ino: u64) {
        self.shard(ino).lock().entry(ino).or_default().lookups += 1;
    }

    /// The kernel forgets `count` lookups. True if it was the last use of an inode without links: evict it.
    #[must_use]
    pub(crate) fn forget(&self, ino: u64, count: u64) -> bool {
        let mut shard = self.shard(ino).lock();
        let Entry::Occupied(mut entry) = shard.entry(ino) else { return false };
        let known = entry.get_mut();
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups > 0 {
            return false;
        }
        entry.remove().unlinked
    }

    /// The last link of the inode has been removed. True if the kernel does not know it: evict it now.
    #[must_use]
    pub(crate) fn unlinked(&self, ino: u64) -> bool {
        match self.shard(ino).lock().get_mut(&ino) {
            Some(known) => {
                known.unlinked = true;
                false
            }
            None => true,
        }
    }

    /// Whether the kernel knows the inode.
    pub(crate) fn is_known(&self, ino: u64) -> bool {
        self.shard(ino).lock().contains_key(&ino)
    }

    /// Whether the inode has lost its last link and is still in use.
    pub(crate) fn is_unlinked(&self, ino: u64) -> bool {
        self.shard(ino).lock().get(&ino).is_some_and(|known| known.unlinked)
    }

    /// Empties the table, at the session's end (the kernel then forgets without saying so). Gives the inodes to evict.
    #[must_use]
    pub(crate) fn take_unlinked(&self) -> Vec<u64> {
        let take = |shard: &Mutex<HashMap<u64, Known, _>>| std::mem::take(&mut *shard.lock());
        self.shards.iter().flat_map(take).filter_map(|(ino, known)| known.unlinked.then_some(ino)).collect()
    }
}

/// Spreads the bits of an inode number (Fibonacci hashing): numbers come from us, not from an attacker.
pub(crate) fn mix(ino: u64) -> u64 {
    ino.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
}

/// [`mix`] as a hasher.
#[derive(Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = mix(self.0 ^ u64::from(*byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = mix(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unlinked_inode_is_evicted_at_its_last_forget() {
        let table = InodeTable::new();
        table.looked_up(12);
        table.looked_up(12);
        table.looked_up(13);
        assert!(!table.unlinked(12));
        assert!(table.is_unlinked(12) && !table.is_unlinked(13) && !table.is_unlinked(14));
        assert!(!table.forget(12, 1));
        assert!(table.is_known(12));
        assert!(table.forget(12, 1));
        assert!(!table.is_known(12) && !table.is_unlinked(12));
        assert!(!table.forget(12, 1), "only once");
        assert!(!table.forget(13, 1), "it has links");
    }

    #[test]
    fn an_inode_that_the_kernel_does_not_know_is_evicted_at_once() {
        assert!(InodeTable::new().unlinked(12));
    }

    #[test]
    fn a_reused_number_starts_afresh() {
        let table = InodeTable::new();
        table.looked_up(12);
        assert!(!table.unlinked(12));
        assert!(table.forget(12, 5));
        table.looked_up(12);
        assert!(!table.forget(12, 1));
    }

    #[test]
    fn what_is_left_at_the_end_is_given_out() {
        let table = InodeTable::new();
        for ino in 10..200 {
            table.looked_up(ino);
            if ino % 3 == 0 {
                assert!(!table.unlinked(ino));
            }
        }
        let mut left = table.take_unlinked();
        left.sort_unstable();
        assert_eq!(left, (10..200).filter(|ino| ino % 3 == 0).collect::<Vec<_>>());
        assert!(table.take_unlinked().is_empty());
    }
}
