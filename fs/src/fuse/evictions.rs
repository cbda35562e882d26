//! Deleted files whose blocks are still to be freed, on the blocking pool: their space is as good as free.

use crate::ext4::types::InodeNo;
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long anybody waits for evictions that others carry out; each takes a few transactions.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// What waits, and how much has been done. Whoever needs the space takes a share of the work.
#[derive(Default)]
pub(crate) struct Evictions {
    waiting: Mutex<Vec<(usize, InodeNo)>>,
    added: AtomicU64,
    finished: AtomicU64,
    changed: Condvar,
}

impl Evictions {
    /// An inode, of the LUN with this index, waits for its eviction.
    pub(crate) fn add(&self, lun: usize, ino: InodeNo) {
        let mut waiting = self.waiting.lock();
        self.added.fetch_add(1, Ordering::SeqCst);
        waiting.push((lun, ino));
    }

    /// One that the caller evicts, and then says so by [`Evictions::done`].
    pub(crate) fn take(&self) -> Option<(usize, InodeNo)> {
        self.waiting.lock().pop()
    }

    /// One that was taken is done with.
    pub(crate) fn done(&self) {
        let _waiting = self.waiting.lock();
        self.finished.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// How many have been finished since the mount: for [`Evictions::may_have_freed`].
    pub(crate) fn finished(&self) -> u64 {
        self.finished.load(Ordering::SeqCst)
    }

    /// Whether any is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.added.load(Ordering::SeqCst) != self.finished()
    }

    /// Whether an operation that began at `before`, and found no space, may find some now or soon.
    pub(crate) fn may_have_freed(&self, before: u64) -> bool {
        self.is_busy() || self.finished() != before
    }

    /// Waits until all that have been added so far are finished; for long at most [`WAIT_MAX`]. Not on a FUSE thread.
    pub(crate) fn wait(&self) {
        let mut waiting = self.waiting.lock();
        let goal = self.added.load(Ordering::SeqCst);
        self.changed.wait_while_for(&mut waiting, |_| self.finished() < goal, WAIT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_without_space_knows_whether_to_try_again() {
        let evictions = Evictions::default();
        assert!(!evictions.may_have_freed(evictions.finished()));
        evictions.add(0, InodeNo(12));
        let before = evictions.finished();
        assert!(evictions.may_have_freed(before));
        assert_eq!(evictions.take(), Some((0, InodeNo(12))));
        assert_eq!(evictions.take(), None);
        evictions.done();
        assert!(evictions.may_have_freed(before), "it was freed meanwhile");
        assert!(!evictions.may_have_freed(evictions.finished()));
        evictions.wait();
    }
}
