//! Deleted files whose blocks are still to be freed, on the blocking pool: their space is as good as free.
//!
//! They are collected for a moment, as several freed together cost much less than each by itself, and neither the program
//! that deletes them nor a FUSE thread has to do with it.

use crate::ext4::types::InodeNo;
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long anybody waits for evictions that others carry out; each takes a few transactions.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// How long inodes are collected before they are freed.
const COLLECT: Duration = Duration::from_millis(20);
/// As many are worth being freed at once.
const COLLECTED: usize = 256;
/// Taken at once at most, so that whoever needs the space finds some of the work to do.
const TAKEN_MAX: usize = 32;

/// What waits, and how much has been done. Whoever needs the space takes a share of the work.
#[derive(Default)]
pub(crate) struct Evictions {
    waiting: Mutex<Waiting>,
    added: AtomicU64,
    finished: AtomicU64,
    changed: Condvar,
    /// There are [`COLLECTED`], or the mount ends.
    enough: Condvar,
}

#[derive(Default)]
struct Waiting {
    inodes: Vec<(usize, InodeNo)>,
    /// Somebody will take them.
    attended: bool,
    /// The mount ends.
    hurry: bool,
}

impl Evictions {
    /// An inode, of the LUN with this index, waits for its eviction. True if nobody attends to them: have somebody call
    /// [`Evictions::collect`].
    #[must_use]
    pub(crate) fn add(&self, lun: usize, ino: InodeNo) -> bool {
        let mut waiting = self.waiting.lock();
        self.added.fetch_add(1, Ordering::SeqCst);
        waiting.inodes.push((lun, ino));
        if waiting.inodes.len() == COLLECTED {
            self.enough.notify_all();
        }
        !std::mem::replace(&mut waiting.attended, true)
    }

    /// Waits for a moment, for others that are soon to be added. The caller then [`Evictions::take`]s them until there are none.
    pub(crate) fn collect(&self) {
        let mut waiting = self.waiting.lock();
        let wanting = |waiting: &mut Waiting| waiting.inodes.len() < COLLECTED && !waiting.hurry;
        self.enough.wait_while_for(&mut waiting, wanting, COLLECT);
    }

    /// From now on nobody collects any longer: the mount ends.
    pub(crate) fn hurry(&self) {
        self.waiting.lock().hurry = true;
        self.enough.notify_all();
    }

    /// Some of one LUN that the caller evicts, and then says so by [`Evictions::done`]. The last added come first: they are
    /// at the head of the orphan list, where leaving it is cheapest. `None`: all are taken, and nobody attends any more.
    pub(crate) fn take(&self) -> Option<(usize, Vec<InodeNo>)> {
        let mut waiting = self.waiting.lock();
        let Some((lun, _)) = waiting.inodes.last().copied() else {
            waiting.attended = false;
            return None;
        };
        let mut taken = Vec::with_capacity(TAKEN_MAX);
        while taken.len() < TAKEN_MAX
            && let Some((_, ino)) = waiting.inodes.pop_if(|(of, _)| *of == lun)
        {
            taken.push(ino);
        }
        Some((lun, taken))
    }

    /// So many that were taken are done with.
    pub(crate) fn done(&self, count: usize) {
        let _waiting = self.waiting.lock();
        self.finished.fetch_add(count as u64, Ordering::SeqCst);
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
        assert!(evictions.add(0, InodeNo(12)));
        assert!(!evictions.add(0, InodeNo(13)), "attended to");
        assert!(!evictions.add(1, InodeNo(12)));
        let before = evictions.finished();
        assert!(evictions.may_have_freed(before));
        assert_eq!(evictions.take(), Some((1, vec![InodeNo(12)])));
        assert_eq!(evictions.take(), Some((0, vec![InodeNo(13), InodeNo(12)])));
        assert_eq!(evictions.take(), None);
        evictions.done(1);
        evictions.done(2);
        assert!(evictions.may_have_freed(before), "it was freed meanwhile");
        assert!(!evictions.may_have_freed(evictions.finished()));
        evictions.wait();
        assert!(evictions.add(0, InodeNo(14)), "nobody attends any more");
    }

    #[test]
    fn nobody_collects_when_the_mount_ends() {
        let evictions = Evictions::default();
        assert!(evictions.add(0, InodeNo(12)));
        evictions.hurry();
        let begun = std::time::Instant::now();
        while begun.elapsed() < COLLECT {
            evictions.collect();
        }
        let calls = (0..1000).map(|_| evictions.collect()).count();
        assert_eq!(calls, 1000);
        assert!(begun.elapsed() < COLLECT * 500, "a thousand calls would have waited for twenty seconds");
    }
}
