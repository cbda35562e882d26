//! File contents: extent tree, reading, writing, truncation, fallocate, seek.

mod lookup;
mod node;
mod read;
mod space;
mod tree;
mod write;
mod zero;

#[cfg(test)]
mod tests;

pub use write::{WriteAt, Written};

use super::types::InodeNo;
use parking_lot::RwLock;

/// Data locks; files share one if their numbers fall together, which costs waiting but nothing else.
const DATA_LOCKS: usize = 1024;

/// Locks of file data, by inode number. Held while data move, outside the core lock. A thread holds one at a time.
pub(crate) struct DataLocks(Box<[RwLock<()>]>);

impl Default for DataLocks {
    fn default() -> Self {
        Self((0..DATA_LOCKS).map(|_| RwLock::new(())).collect())
    }
}

impl DataLocks {
    /// The lock of one inode.
    pub(crate) fn of(&self, ino: InodeNo) -> &RwLock<()> {
        &self.0[ino.0 as usize % DATA_LOCKS]
    }
}
