//! The thread "jbd2": commits, checkpoints and flushes, in turn.
//!
//! Takes from: handles (through the running transaction), [`Ext4::sync`], mount and unmount (commands). Gives to: waiters of syncs,
//! operations that wait for room. May block on: data writes of a transaction under way, I/O, never on a lock while it
//! does I/O. Ends: at close, or without another write when the file system is dropped.
//!
//! Because one thread does it all, every closed transaction is committed whenever a checkpoint runs: a version that is not
//! in the journal for good is never written home.

use super::Ext4;
use super::cache::{BlockData, Unwritten};
use super::defect::Defect;
use super::error::{FsError, Result};
use super::jbd2::Log;
use super::superblock::SUPERBLOCK_BYTES;
use super::tx::{Core, PendingData, Running};
use super::types::{BlockNo, InodeNo, Tid};
use super::{FsStatus, SyncDone};
use crate::image::Lun;
use mirrorfs_journal::{Epoch, Origin};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustc_hash::FxHashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A transaction is committed at this age at the latest.
const COMMIT_AGE: Duration = Duration::from_secs(5);
/// Versions are brought home when nothing was committed for this long.
const IDLE: Duration = Duration::from_secs(3);

/// Freed blocks are discarded when nothing was committed for this long, so that what is soon used again is not discarded in vain…
const DISCARD_IDLE: Duration = Duration::from_secs(1);
/// … and after this time even so.
const DISCARD_AGE: Duration = Duration::from_secs(10);
/// Runs discarded between two commits. Meanwhile they can't be allocated.
const DISCARD_RUNS: usize = 64;

/// What the commit thread and everybody else tell one another. Part of the core, under its lock.
#[derive(Default)]
pub(crate) struct CommitState {
    /// Wakes the thread.
    pub(crate) wake: Arc<Condvar>,
    /// The running transaction is to be committed now.
    pub(crate) wanted: bool,
    /// The last transaction that has committed.
    pub(crate) committed: Tid,
    /// The transaction that is being committed.
    pub(crate) committing: Option<Committing>,
    /// Syncs, by the transaction that they wait for.
    pub(crate) waiters: Vec<(Tid, SyncDone)>,
    /// Syncs that wait for a flush only.
    pub(crate) flush_waiters: Vec<SyncDone>,
    /// What the thread is to do next.
    pub(crate) command: Option<Command>,
    /// How the command ended.
    pub(crate) answer: Option<Result<Option<Epoch>>>,
    /// End at once, write nothing.
    pub(crate) abandon: bool,
    /// Closed: everything is durable, with this epoch.
    pub(crate) closed: Option<Option<Epoch>>,
    /// Why nothing is made durable any more: a write or a flush has failed.
    pub(crate) failed: Option<String>,
    /// Transactions committed since the mount.
    pub(crate) commits: u64,
    /// Journal blocks in use, and all.
    pub(crate) journal_blocks: (u32, u32),
}

/// The part of a closed transaction that others ask for.
pub(crate) struct Committing {
    tid: Tid,
    inodes: FxHashMap<u32, bool>,
    frees: bool,
    /// Its last Flush has begun: what is written from now on is not covered by it.
    last_flush: bool,
}

/// Orders from mount and unmount. Changes are off while one is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Be ready for transactions: `needs_recovery` set, log started.
    Start,
    /// Bring everything home, leave the log empty, `needs_recovery` cleared.
    Stop,
    /// Stop, and end the thread.
    Close,
}

impl CommitState {
    /// The log is there, nothing has been committed.
    pub(super) fn begin(&mut self, log: &Log) {
        self.committed = Tid(log.next().0.wrapping_sub(1));
        self.journal_blocks = (log.used(), log.blocks());
    }
    fn failure(&self) -> Option<FsError> {
        self.failed.as_ref().map(|why| FsError::Io(io::Error::other(why.clone())))
    }
}

impl Core {
    /// Asks the thread to commit what runs.
    pub(crate) fn request_commit(&mut self) {
        if !self.running.is_empty() && !self.commit.wanted {
            self.commit.wanted = true;
            self.commit.wake.notify_one();
        }
    }

    /// A write or a flush has failed: nothing may be changed or promised any more. Gives who waits.
    pub(super) fn latch(&mut self, why: &str) -> Vec<SyncDone> {
        self.commit.failed.get_or_insert_with(|| why.to_owned());
        self.read_only.get_or_insert_with(|| why.to_owned());
        let commit = &mut self.commit;
        commit.waiters.drain(..).map(|waiter| waiter.1).chain(commit.flush_waiters.drain(..)).collect()
    }
}

impl Ext4 {
    /// Calls `done` once everything that was changed before in `inode` (`None`: in the file system) is durable, from the
    /// commit thread, or at once when that cannot or need not be waited for. `datasync`: without times and other attributes
    /// that are not needed to find the data.
    pub fn sync(&self, inode: Option<InodeNo>, datasync: bool, done: SyncDone) {
        let mut core = self.core.lock();
        if let Some(error) = core.commit.failure() {
            drop(core);
            return done(Err(error));
        }
        if let Some(epoch) = core.commit.closed {
            drop(core);
            return done(Ok(epoch));
        }
        let concerns = |inodes: &FxHashMap<u32, bool>| match inode {
            None => true,
            Some(ino) => inodes.get(&ino.0).is_some_and(|data| *data || !datasync),
        };
        if !core.running.is_empty() && concerns(&core.running.inodes) {
            let tid = core.running.tid;
            core.commit.waiters.push((tid, done));
            core.request_commit();
            return;
        }
        let committing = core.commit.committing.as_ref();
        let covers = |it: &&Committing| concerns(&it.inodes) && !it.last_flush;
        match committing.filter(covers).map(|committing| committing.tid) {
            Some(tid) => core.commit.waiters.push((tid, done)),
            // Behind a commit under way too: one thread does both.
            None => {
                core.commit.flush_waiters.push(done);
                core.commit.wake.notify_one();
            }
        }
    }

    /// Asks the commit thread to close and commit the running transaction.
    pub(crate) fn request_commit(&self, core: &mut MutexGuard<'_, Core>) {
        core.request_commit();
    }

    /// Has the running transaction, or the one under way, committed and waits for it, the core lock released meanwhile.
    /// Returns early when the file system latches.
    pub(crate) fn wait_for_commit(&self, core: &mut MutexGuard<'_, Core>) {
        let tid = match &core.commit.committing {
            Some(committing) if core.running.is_empty() => committing.tid,
            None if core.running.is_empty() => core.commit.committed,
            _ => core.running.tid,
        };
        core.request_commit();
        while core.commit.committed.is_before(tid)
            && core.commit.failed.is_none()
            && core.commit.closed.is_none()
        {
            self.progress.wait(core);
        }
        if core.alloc.is_discarding() && core.commit.failed.is_none() {
            self.progress.wait(core);
        }
    }

    /// Whether blocks freed by transactions that have not committed could relieve an ENOSPC.
    pub(crate) fn frees_pending(&self, core: &Core) -> bool {
        let committing = core.commit.committing.as_ref();
        !core.running.freed.is_empty() || committing.is_some_and(|it| it.frees) || core.alloc.is_discarding()
    }

    /// Figures of the file system.
    pub fn status(&self) -> FsStatus {
        let core = self.core.lock();
        FsStatus {
            read_only: core.read_only.clone(),
            commits: core.commit.commits,
            running_blocks: core.running.blocks.len() as u64,
            journal_used_blocks: u64::from(core.commit.journal_blocks.0),
            journal_blocks: u64::from(core.commit.journal_blocks.1),
            cached_blocks: core.cache.len() as u64,
        }
    }
}

/// A transaction that takes no more handles.
struct Closed {
    tid: Tid,
    blocks: Vec<(u64, BlockData)>,
    revoked: Vec<u64>,
    freed: Vec<(BlockNo, u32)>,
    data: Arc<PendingData>,
    flush_waiters: Vec<SyncDone>,
}

/// What to do next.
enum Step {
    End,
    Obey(Command),
    Commit,
    Flush(Vec<SyncDone>),
    Checkpoint,
    Discard(Vec<(BlockNo, u32)>),
    Wait(Option<Instant>),
}

/// The thread's own state.
pub(super) struct Committer {
    pub(super) core: Arc<Mutex<Core>>,
    pub(super) progress: Arc<Condvar>,
    pub(super) lun: Arc<Lun>,
    pub(super) log: Log,
    /// The checkpoint under way.
    pub(super) round: Option<super::checkpoint::Round>,
    /// A slice of the checkpoint goes before the next commit or flush: neither keeps the other waiting for long.
    slice_first: bool,
    /// When the last commit ended.
    last_commit: Instant,
    /// Since when freed blocks have been waiting to be discarded.
    discards_since: Option<Instant>,
    /// Epoch of the last flush.
    pub(super) epoch: Option<Epoch>,
}

impl Committer {
    pub(super) fn new(core: Arc<Mutex<Core>>, progress: Arc<Condvar>, lun: Arc<Lun>, log: Log) -> Self {
        let last_commit = Instant::now();
        Self {
            core,
            progress,
            lun,
            log,
            round: None,
            slice_first: false,
            last_commit,
            discards_since: None,
            epoch: None,
        }
    }

    /// The thread's life.
    pub(super) fn run(mut self) {
        let core = self.core.clone();
        let mut guard = core.lock();
        let wake = guard.commit.wake.clone();
        loop {
            let step = self.next_step(&mut guard);
            match step {
                Step::End => break,
                Step::Wait(None) => wake.wait(&mut guard),
                Step::Wait(Some(until)) => {
                    wake.wait_until(&mut guard, until);
                }
                step => MutexGuard::unlocked(&mut guard, || self.carry_out(step)),
            }
        }
    }

    fn next_step(&mut self, core: &mut Core) -> Step {
        let commit = &mut core.commit;
        if commit.abandon || commit.closed.is_some() {
            return Step::End;
        }
        if let Some(command) = commit.command.take() {
            return Step::Obey(command);
        }
        if commit.failed.is_some() {
            return Step::Wait(None);
        }
        let now = Instant::now();
        let due = core.running.since.map(|since| since + COMMIT_AGE);
        let commit_now = !core.running.is_empty() && (commit.wanted || due.is_some_and(|due| due <= now));
        let half_full = self.log.used() > self.log.blocks() / 2;
        let idle = match core.cache.unwritten.is_empty() {
            true => None,
            false => Some(self.last_commit + IDLE),
        };
        let checkpoint = self.round.is_some() || half_full || idle.is_some_and(|idle| idle <= now);
        if checkpoint && (self.slice_first || !commit_now && commit.flush_waiters.is_empty()) {
            return Step::Checkpoint;
        }
        if commit_now {
            return Step::Commit;
        }
        if !commit.flush_waiters.is_empty() {
            return Step::Flush(std::mem::take(&mut commit.flush_waiters));
        }
        let discard = self.discard_due(core, now);
        if discard.is_some_and(|at| at <= now) {
            let runs = core.alloc.take_discards(DISCARD_RUNS);
            if !runs.is_empty() {
                return Step::Discard(runs);
            }
            // All of them are held for files that grow.
            self.discards_since = Some(now);
            return Step::Wait([due, idle, Some(now + DISCARD_AGE)].into_iter().flatten().min());
        }
        Step::Wait([due, idle, discard].into_iter().flatten().min())
    }

    /// When the next discards are to be made.
    fn discard_due(&mut self, core: &Core, now: Instant) -> Option<Instant> {
        if !core.alloc.has_discards() {
            self.discards_since = None;
            return None;
        }
        let since = *self.discards_since.get_or_insert(now);
        Some((self.last_commit.max(since) + DISCARD_IDLE).min(since + DISCARD_AGE))
    }

    fn discard(&mut self, runs: &[(BlockNo, u32)]) -> Result<()> {
        let block_size = u64::from(self.core.lock().geometry.block_size);
        let made = runs.iter().try_for_each(|(start, count)| {
            let length = u64::from(*count) * block_size;
            self.lun.discard(start.0 * block_size, length, Origin::Metadata).map(|_| ())
        });
        self.core.lock().alloc.discarded(runs);
        Ok(made?)
    }

    fn carry_out(&mut self, step: Step) {
        let result = match step {
            Step::Obey(command) => {
                let answer = self.obey(command);
                let failed = match &answer {
                    Err(error @ FsError::Io(_)) => Err(FsError::Io(io::Error::other(error.to_string()))),
                    _ => Ok(()),
                };
                let mut core = self.core.lock();
                if let (Command::Close, Ok(epoch)) = (command, &answer) {
                    core.commit.closed = Some(*epoch);
                }
                core.commit.answer = Some(answer);
                failed
            }
            Step::Commit => self.commit(),
            Step::Flush(waiters) => {
                let flushed = self.flush();
                answer_all(waiters, &flushed);
                self.slice_first = true;
                flushed.map(|_| ())
            }
            Step::Checkpoint => {
                self.slice_first = false;
                self.checkpoint_slice()
            }
            Step::Discard(runs) => self.discard(&runs),
            Step::End | Step::Wait(_) => Ok(()),
        };
        let mut core = self.core.lock();
        core.commit.journal_blocks.0 = self.log.used();
        let mut failed = Vec::new();
        if let Err(error) = result {
            log::error!("the file system takes no more changes: {error}");
            failed = core.latch(&error.to_string());
        }
        drop(core);
        self.progress.notify_all();
        let latched = self.lun.latched().unwrap_or_else(|| "a write to the image failed".into());
        answer_all(failed, &Err(FsError::Io(io::Error::other(latched))));
    }

    pub(super) fn flush(&mut self) -> Result<Option<Epoch>> {
        self.epoch = self.lun.flush()?;
        Ok(self.epoch)
    }

    /// Whether the file system has been dropped: then not another byte is written.
    pub(super) fn abandoned(&self) -> bool {
        self.core.lock().commit.abandon
    }

    fn obey(&mut self, command: Command) -> Result<Option<Epoch>> {
        if let Some(error) = self.core.lock().commit.failure() {
            return Err(error);
        }
        match command {
            Command::Start => {
                let mut geometry = None;
                self.put_superblock(|raw, found| {
                    super::superblock::mark_mounted(raw);
                    geometry = Some(found);
                })?;
                self.flush()?;
                let geometry = geometry.expect("set above");
                self.log.start(&geometry)?;
            }
            Command::Stop | Command::Close => {
                while !self.core.lock().running.is_empty() {
                    self.commit()?;
                }
                self.checkpoint_all()?;
                loop {
                    let runs = self.core.lock().alloc.take_discards(DISCARD_RUNS);
                    if runs.is_empty() || self.abandoned() {
                        break;
                    }
                    self.discard(&runs)?;
                }
                if self.log.started() {
                    self.log.empty()?;
                    self.put_superblock(|raw, _| super::superblock::mark_clean(raw))?;
                }
                self.flush()?;
                let waiters = std::mem::take(&mut self.core.lock().commit.flush_waiters);
                answer_all(waiters, &Ok(self.epoch));
            }
        }
        Ok(self.epoch)
    }

    /// Changes the superblock outside of transactions. None runs and all versions are at home.
    fn put_superblock(
        &mut self,
        change: impl FnOnce(&mut [u8], Arc<super::superblock::Geometry>),
    ) -> Result<()> {
        let (at, data) = {
            let mut core = self.core.lock();
            let geometry = core.geometry.clone();
            let (place, offset) = geometry.superblock_place();
            let counts = core.counts();
            let data = &mut core.cache.get(place)?.data;
            let raw = &mut Arc::make_mut(data)[offset..offset + SUPERBLOCK_BYTES];
            super::superblock::put_counts(raw, &counts);
            change(raw, geometry.clone());
            super::superblock::seal(raw, &geometry);
            (geometry.byte_of(place), data.clone())
        };
        self.lun.reserve(at, data.len() as u64)?;
        self.lun.write(at, super::cache::shared_bytes(data), Origin::Metadata)?;
        Ok(())
    }

    /// Closes the running transaction and commits it.
    fn commit(&mut self) -> Result<()> {
        let closed = loop {
            let core = self.core.clone();
            let mut core = core.lock();
            if self.log.has_room(core.running.blocks.len() + 1, core.running.revoked.len()) {
                break self.close(&mut core)?;
            }
            if core.cache.unwritten.is_empty() && self.log.used() == 0 {
                let blocks = core.running.blocks.len();
                let what = format!("a transaction of {blocks} blocks is larger than the journal");
                return Err(FsError::Io(io::Error::other(what)));
            }
            drop(core);
            self.checkpoint_all()?;
        };
        // Operations that waited for the transaction to close.
        self.progress.notify_all();
        closed.data.wait();
        let mut blocks = closed.blocks;
        blocks.sort_unstable_by_key(|(block, _)| *block);
        if self.abandoned() {
            answer_all(closed.flush_waiters, &Err(FsError::Latched("dropped without being closed".into())));
            return Ok(());
        }
        let planted = self.log.planted;
        let revoked: &[u64] = if planted.has(Defect::DroppedRevoke) { &[] } else { &closed.revoked };
        let written = self.log.write_transaction(&blocks, revoked);
        let flushed = match planted.has(Defect::EarlyCommitRecord) {
            true => written.map(|()| self.epoch),
            false => written.and_then(|()| self.flush()),
        };
        answer_all(closed.flush_waiters, &flushed);
        flushed?;
        if self.abandoned() {
            return Ok(());
        }
        self.log.write_commit()?;
        if let Some(committing) = &mut self.core.lock().commit.committing {
            committing.last_flush = true;
        }
        self.flush()?;
        drop(blocks);
        let waiters = {
            let mut core = self.core.lock();
            for block in &closed.revoked {
                core.cache.unwritten.remove(block);
            }
            core.alloc.committed(&closed.freed);
            let commit = &mut core.commit;
            commit.committed = closed.tid;
            commit.committing = None;
            commit.commits += 1;
            let (ready, rest) = std::mem::take(&mut commit.waiters)
                .into_iter()
                .partition(|(tid, _)| !closed.tid.is_before(*tid));
            commit.waiters = rest;
            let ready: Vec<(Tid, SyncDone)> = ready;
            ready
        };
        self.progress.notify_all();
        answer_all(waiters.into_iter().map(|waiter| waiter.1).collect(), &Ok(self.epoch));
        self.last_commit = Instant::now();
        self.slice_first = true;
        Ok(())
    }

    /// Ends the running transaction and begins the next one.
    fn close(&mut self, core: &mut Core) -> Result<Closed> {
        if core.counts_changed {
            let geometry = core.geometry.clone();
            let (place, offset) = geometry.superblock_place();
            let counts = core.counts();
            let buffer = core.cache.get(place)?;
            let raw = &mut Arc::make_mut(&mut buffer.data)[offset..offset + SUPERBLOCK_BYTES];
            super::superblock::put_counts(raw, &counts);
            super::superblock::seal(raw, &geometry);
            core.running.blocks.insert(place.0);
            core.counts_changed = false;
        }
        let next = Running::new(core.running.tid.next());
        let running = std::mem::replace(&mut core.running, next);
        let tid = running.tid;
        debug_assert_eq!(tid, self.log.next());
        let mut blocks = Vec::with_capacity(running.blocks.len());
        for number in &running.blocks {
            let buffer = core.cache.peek(BlockNo(*number)).expect("a block in the transaction stays cached");
            buffer.running = false;
            let data = buffer.data.clone();
            blocks.push((*number, data.clone()));
            let unwritten = core.cache.unwritten.entry(*number);
            let unwritten = unwritten.or_insert_with(|| Unwritten { data: data.clone(), tid, oldest: tid });
            (unwritten.data, unwritten.tid) = (data, tid);
        }
        let frees = !running.freed.is_empty();
        core.commit.committing = Some(Committing { tid, inodes: running.inodes, frees, last_flush: false });
        core.commit.wanted = false;
        Ok(Closed {
            tid,
            blocks,
            revoked: running.revoked.into_iter().collect(),
            freed: running.freed,
            data: running.data,
            flush_waiters: std::mem::take(&mut core.commit.flush_waiters),
        })
    }
}

/// Calls each with the same outcome. No lock is held.
pub(super) fn answer_all(waiters: Vec<SyncDone>, outcome: &Result<Option<Epoch>>) {
    for done in waiters {
        done(match outcome {
            Ok(epoch) => Ok(*epoch),
            Err(error) => Err(FsError::Io(io::Error::other(error.to_string()))),
        });
    }
}

#[cfg(test)]
#[path = "commit_tests.rs"]
mod tests;
