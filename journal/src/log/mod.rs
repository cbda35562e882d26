//! The mirror log's face to the other crates.
//!
//! Three sides use it, each from its own threads:
//! - the **primary** (`fs::image::Lun`): [`MirrorLog::ensure_marked`], [`MirrorLog::append`],
//!   [`MirrorLog::barrier`], [`MirrorLog::sync_queue`], [`MirrorLog::locally_synced`], `when_*`;
//! - the **link** (`net`): [`MirrorLog::begin_session`], [`MirrorLog::next`], [`MirrorLog::applied`],
//!   [`MirrorLog::durable`], [`MirrorLog::end_session`];
//! - the **commands** (`src`): [`MirrorLog::status`], [`QueueView`] (offline and online listing), close.

mod core;
mod judge;
mod lock;
mod open;
mod session;
#[cfg(feature = "simulation")]
mod simulated;
mod spill;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_drain;
#[cfg(test)]
mod tests_model;
#[cfg(test)]
mod tests_queue;
mod threads;
mod types;
mod view;
mod waiters;

pub use crate::regions::RegionHold;
#[cfg(feature = "simulation")]
pub use simulated::{Observed, SimulatedLog};
pub use types::*;
pub use view::QueueView;

use self::core::{Core, Resync, Taken};
use crate::ids::{Epoch, LunId, RegionNo, Sequence};
use crate::medium::Folder;
use crate::queue::index::Index;
use crate::queue::{recovery, segment};
use crate::regions::RegionMap;
use crate::request::{Body, MirrorRequest, Origin};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// An append waits for the spiller when memory exceeds its bound by this.
const MEMORY_SLACK: u64 = 32 << 20;
const SPILL_WAIT: Duration = Duration::from_millis(50);
/// Payload that an eager log leaves to the pump of whoever waits for it; beyond it the dispatcher is woken.
const LEFT_TO_PUMP_BYTES: u64 = 64 << 10;

/// What the log's threads share.
pub(crate) struct Shared {
    config: LogConfig,
    core: Mutex<Core>,
    maps: Vec<Arc<RegionMap>>,
    /// A record came for the dispatcher.
    arrived: Condvar,
    timer_wake: Condvar,
    resync_wake: Condvar,
    spill_wake: Condvar,
    /// Records left memory for the disk, or won't.
    spilled: Condvar,
    /// See [`MirrorLog::set_eager`].
    eager: AtomicBool,
    pump: RwLock<Option<Arc<dyn Pump>>>,
    /// One fdatasync of the queue at a time; who waited finds it done.
    sync_turn: Mutex<()>,
    queue_bytes_max: u64,
    folder: Folder,
    /// The log's threads don't run: whoever waits for the spiller does its work.
    #[cfg(feature = "simulation")]
    by_hand: Option<Mutex<spill::Spiller>>,
}

/// The mirror log of one link. Shared by `Arc`; all methods take `&self`; none blocks on the network.
///
/// Dropped without [`MirrorLog::close`] it leaves its files as a crash would.
pub struct MirrorLog {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _lock: Option<std::fs::File>,
}

impl MirrorLog {
    /// Opens or makes the queue and the region maps of `config`, and carries out the recovery of design section 6:
    /// cut after the last barrier, regions of what was cut marked, numbers of this incarnation begun.
    ///
    /// # Errors
    /// When the directory can't be used or another process holds it. Damage is survived: regions are marked.
    pub fn open(config: LogConfig) -> Result<Arc<Self>, LogError> {
        let io = |action, path: &std::path::Path| {
            let path = path.to_path_buf();
            move |source| LogError::Io { action, path, source }
        };
        std::fs::create_dir_all(&config.dir).map_err(io("create", &config.dir))?;
        let lock = lock::acquire(&config.dir)?;
        let folder = Folder::from(config.dir.as_path());
        let (shared, index) = Self::recover(config, folder)?;
        let log = Self { shared: Arc::new(shared), threads: Mutex::new(Vec::new()), _lock: Some(lock) };
        log.start("log-timer", threads::timer)?;
        log.start("log-resync", threads::resync)?;
        log.start("log-spill", move |shared| spill::run(shared, spill::Spiller::new(index)))?;
        Ok(Arc::new(log))
    }

    /// All of [`Self::open`] but directory, lock and threads.
    fn recover(config: LogConfig, folder: Folder) -> Result<(Shared, Index), LogError> {
        let io = |action, path: &std::path::Path| {
            let path = path.to_path_buf();
            move |source| LogError::Io { action, path, source }
        };
        let error = io("use", &config.dir);
        if config.luns.len() > crate::codec::PREVIOUS_MAX {
            let limit = format!("more than {} LUNs in one link", crate::codec::PREVIOUS_MAX);
            return Err(error(std::io::Error::other(limit)));
        }
        let opened = open::open(&config, &folder)?;
        let (mut core, maps) = (opened.core, opened.maps);
        for index in 0..core.luns.len() {
            open::resume_resync(&mut core, index, &opened.begins, &opened.ends);
        }
        let queue_bytes_max = match config.queue_bytes_max {
            Some(bytes) => bytes,
            None => {
                open::default_budget(&config.dir).map_err(io("ask for the free space of", &config.dir))?
            }
        };
        let shared = Shared {
            config,
            core: Mutex::new(core),
            maps,
            arrived: Condvar::new(),
            timer_wake: Condvar::new(),
            resync_wake: Condvar::new(),
            spill_wake: Condvar::new(),
            spilled: Condvar::new(),
            eager: AtomicBool::new(false),
            pump: RwLock::new(None),
            sync_turn: Mutex::new(()),
            queue_bytes_max,
            folder,
            #[cfg(feature = "simulation")]
            by_hand: None,
        };
        Ok((shared, opened.index))
    }

    // ---- primary side -------------------------------------------------------------------------------------

    /// Whether the region is marked already: then a request may be submitted without waiting. Lock-free.
    pub fn is_marked(&self, lun: LunId, region: RegionNo) -> bool {
        self.shared.maps.get(usize::from(lun.0)).is_none_or(|map| map.is_marked(region))
    }
    /// Marks the region (and its run of 16) durably; blocks for one fdatasync if it was not marked. Called before the
    /// image write. Never called on a FUSE thread when [`Self::is_marked`] is false.
    pub fn ensure_marked(&self, lun: LunId, region: RegionNo) -> Result<(), LogError> {
        let Some(map) = self.shared.maps.get(usize::from(lun.0)) else { return Ok(()) };
        let error =
            |source| LogError::Io { action: "mark a region in", path: map.path().to_path_buf(), source };
        map.ensure_marked(region).map_err(error)
    }
    /// Appends a write, discard or check. Called under the region's lock, after the image has it. Inserts a barrier of
    /// its own before an epoch exceeds 64 MiB or a quarter of the memory. Blocks for no disk sync and no network; when memory is full or the peer
    /// is away it may write to the queue's page cache. `body` is `Write`, `Discard` or `Check` only.
    pub fn append(&self, lun: LunId, origin: Origin, body: Body) -> Appended {
        let accepted_ms = core::now_ms();
        let mut core = self.shared.core.lock();
        while core.memory_bytes() > core.memory_bytes_max.saturating_add(MEMORY_SLACK)
            && !core.closing
            && core.first_to_spill().is_some()
        {
            self.shared.await_spiller(&mut core);
        }
        let appended = core.append(lun, origin, body, accepted_ms);
        self.shared.wake_for_append(&mut core);
        appended
    }
    /// Ends the open epoch because of a Flush on `lun`: appends a barrier and returns the epoch that it closes. If the
    /// open epoch holds no request, returns the last closed one without a new barrier.
    pub fn barrier(&self, lun: LunId) -> Epoch {
        let mut core = self.shared.core.lock();
        let epoch = core.close_open(lun);
        self.shared.wake_for_append(&mut core);
        drop(core);
        self.shared.run_pump();
        epoch
    }
    /// Whether any request waits in the queue on disk, so that [`Self::sync_queue`] may have something to do.
    pub fn queue_in_use(&self) -> bool {
        self.shared.core.lock().disk.requests > 0
    }
    /// fdatasyncs what the queue holds up to and including `epoch`'s barrier, if that part is (only) on disk; returns
    /// at once otherwise. Called by the Flush, side by side with the image's own sync. A failing queue disk is not an
    /// error: the log gives the queue up and reports it.
    pub fn sync_queue(&self, epoch: Epoch) {
        {
            let mut core = self.shared.core.lock();
            loop {
                let waits = core.first_to_spill().and_then(|key| core.memory.get(&key));
                if core.stopping || waits.is_none_or(|held| held.request.epoch > epoch) {
                    break;
                }
                self.shared.await_spiller(&mut core);
            }
            if core.stopping || core.disk.first_unsynced().is_none_or(|unsynced| unsynced > epoch) {
                return;
            }
        }
        spill::sync(&self.shared, epoch);
    }
    /// The image of `lun` has been fdatasynced, covering all requests of epochs up to `epoch`. Lets regions be cleared.
    pub fn locally_synced(&self, lun: LunId, epoch: Epoch) {
        let mut core = self.shared.core.lock();
        if let Some(state) = core.luns.get_mut(usize::from(lun.0)) {
            state.locally_synced = state.locally_synced.max(epoch);
        }
    }
    /// Calls `waiter` when the peer has answered that it stored `sequence` and what memory has before it, or as the outage
    /// policy says.
    pub fn when_applied(&self, sequence: Sequence, waiter: Waiter) {
        self.shared.with_due(|core, due| core.wait_applied(sequence, waiter, due));
        self.shared.run_pump();
    }
    /// Calls `waiter` when `epoch` is durable on the mirror, or as the outage policy says.
    pub fn when_durable(&self, epoch: Epoch, waiter: Waiter) {
        self.shared.with_due(|core, due| core.wait_durable(epoch, waiter, due));
        self.shared.run_pump();
    }
    /// Sets the policy for waits while the peer is away; `None`: waits are never ended by an outage (`mirrorfs sync`
    /// with a bound of its own). Takes effect at once, also for those waiting.
    pub fn set_on_outage(&self, policy: OnOutage) {
        self.shared.with_due(|core, due| core.set_policy(policy, due));
    }
    /// Eager (synchronous mode): a small append wakes nobody; the thread that then waits for it, or ends its epoch, has the
    /// link's [`Pump`] send it, which saves the way through two threads. Otherwise each append wakes the dispatcher.
    pub fn set_eager(&self, eager: bool) {
        self.shared.eager.store(eager, Ordering::Relaxed);
    }
    /// See [`Self::set_eager`].
    pub fn is_eager(&self) -> bool {
        self.shared.eager.load(Ordering::Relaxed)
    }
    /// Takes what the peer has answered in place of the link's own thread, as far as that blocks on nothing; true if it was something.
    /// For a thread that stays awake for a moment, if the log is eager; to be followed by [`Self::leave_answers`].
    pub fn receive_answers(&self) -> bool {
        self.is_eager() && self.shared.pump.read().clone().is_some_and(|pump| pump.receive())
    }
    /// See [`Self::receive_answers`].
    pub fn leave_answers(&self) {
        if self.is_eager()
            && let Some(pump) = self.shared.pump.read().clone()
        {
            pump.leave();
        }
    }
    /// Whether the peer is away and the policy is `readonly`: what would change something fails before it does.
    #[must_use]
    pub fn refuses_changes(&self) -> bool {
        let core = self.shared.core.lock();
        !core.live && core.waiters.policy == Some(OnOutage::Readonly)
    }
    /// Gives the log the images to read for a resync. Called once, before the first session.
    pub fn set_region_source(&self, lun: LunId, source: Arc<dyn RegionSource>) {
        let mut core = self.shared.core.lock();
        if let Some(state) = core.luns.get_mut(usize::from(lun.0)) {
            state.source = Some(source);
        }
    }

    // ---- link side ----------------------------------------------------------------------------------------

    /// The last epoch of each LUN that is known to be durable on the mirror, for the greeting.
    #[must_use]
    pub fn heard_durable(&self) -> Vec<(LunId, Epoch)> {
        let core = self.shared.core.lock();
        core.luns.iter().map(|state| (state.id, state.durable)).collect()
    }
    /// The peer has answered the greeting with these LUN states. Decides for each LUN whether the log reaches back far
    /// enough (or the queue is dropped, its regions marked, and a resync begun, whose thread the log runs), and
    /// positions [`Self::next`] at the lowest epoch that any LUN lacks. From now on the log is "live".
    pub fn begin_session(&self, peer: &[PeerLun]) -> Result<SessionStart, LogError> {
        if self.shared.core.lock().live {
            self.end_session();
        }
        let start = self.shared.with_due(|core, due| session::begin(core, peer, due));
        for map in &self.shared.maps {
            if let Err(source) = map.flush() {
                self.end_session();
                // A `ResyncBegin` may be in the log whose marks are not on the disk: it must not outlive this process.
                let why = format!("region map {}: {source}", map.path().display());
                self.shared.with_due(|core, due| core.give_up(why, 0, due));
                return Err(LogError::Io { action: "write", path: map.path().to_path_buf(), source });
            }
        }
        self.shared.resync_wake.notify_all();
        Ok(start)
    }
    /// The next record in order, from memory or disk; waits at most `timeout`. One caller at a time (the dispatcher).
    /// A damaged record makes the log give up the queue from the barrier before it (regions marked, resync begun).
    pub fn next(&self, timeout: Duration) -> Next {
        let deadline = Instant::now() + timeout;
        let mut core = self.shared.core.lock();
        loop {
            if core.closing || !core.live {
                return Next::Ended;
            }
            match core.take_next() {
                Taken::Record(request) => return Next::Request(request),
                Taken::Read { segment, file, from, end, cuts } => {
                    let session = core.session;
                    let (found, ended) =
                        MutexGuard::unlocked(&mut core, || segment::read_chunk(&file, from, end));
                    if core.session != session || core.cuts != cuts {
                        continue;
                    }
                    let next = match ended {
                        segment::Ended::More(next) => Ok(next),
                        segment::Ended::End | segment::Ended::Finished { .. } => Ok(end),
                        segment::Ended::Damaged(damage) => {
                            Err(format!("segment {segment:016x}, byte {}: {}", damage.offset, damage.what))
                        }
                    };
                    let found = found.into_iter().map(|found| found.request).collect();
                    if let Err((from, what)) = core.took(segment, found, next) {
                        let mut due = Vec::new();
                        core.give_up(format!("damaged: {what}"), from, &mut due);
                        drop(core);
                        waiters::call(due);
                        return Next::Ended;
                    }
                }
                Taken::Nothing if self.shared.sleep_until(&mut core, deadline) => return Next::Idle,
                Taken::Nothing => {}
            }
        }
    }
    /// As [`Self::next`] without waiting, for a thread that must not block. `None`: the next record has to be read from
    /// disk, for which the dispatcher was woken.
    pub fn next_in_memory(&self) -> Option<Next> {
        let mut core = self.shared.core.lock();
        if core.closing || !core.live {
            return Some(Next::Ended);
        }
        match core.take_next() {
            Taken::Record(request) => Some(Next::Request(request)),
            Taken::Nothing => {
                core.left_to_pump = 0;
                Some(Next::Idle)
            }
            Taken::Read { .. } => {
                self.shared.arrived.notify_one();
                None
            }
        }
    }
    /// Waits, at most `timeout`, until [`Self::next`] would not; for the dispatcher, which must not hold its own lock
    /// meanwhile. False when the time is up.
    pub fn wait_next(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut core = self.shared.core.lock();
        while !core.closing && core.live && !core.has_next() {
            if self.shared.sleep_until(&mut core, deadline) {
                return false;
            }
        }
        true
    }
    /// Wakes the dispatcher although nothing was appended: what it shares with a pump may be its turn again.
    pub fn wake_dispatcher(&self) {
        // Under the lock: it may be between its look and its sleep.
        let _core = self.shared.core.lock();
        self.shared.arrived.notify_one();
    }
    /// The link's way to send from the thread that waits; `None` when its session is over.
    pub fn set_pump(&self, pump: Option<Arc<dyn Pump>>) {
        self.shared.core.lock().has_pump = pump.is_some();
        *self.shared.pump.write() = pump;
    }
    /// The peer has stored this request (not yet durable).
    pub fn applied(&self, sequence: Sequence) {
        self.shared.with_due(|core, due| core.applied(sequence, due));
    }
    /// The peer answered a `Check`: unless `equal`, its region is sent as data.
    pub fn checked(&self, sequence: Sequence, equal: bool) {
        let found = self.shared.with_due(|core, due| core.checked(sequence, due));
        let mut core = self.shared.core.lock();
        let Some((lun, region)) = found.filter(|_| !equal && core.live) else { return };
        let state = &core.luns[usize::from(lun.0)];
        state.map.set_resync([region], true);
        if !matches!(state.resync, Resync::Running { .. }) {
            core.begin_resync(lun, false, false);
            self.shared.wake_for_append(&mut core);
        }
        self.shared.resync_wake.notify_all();
    }
    /// The peer has made `epoch`, and with it all before it, durable: those records retire.
    pub fn durable(&self, epoch: Epoch) {
        self.shared.with_due(|core, due| core.retire(epoch, due));
    }
    /// The session is over. Memory is spilled to the queue (by the log's spiller thread), a resync in progress stops
    /// and its entries are dropped, waits are ended as the policy says.
    pub fn end_session(&self) {
        self.shared.with_due(|core, due| {
            core.forget_session();
            core.settle(due);
        });
        self.shared.arrived.notify_all();
    }

    // ---- commands -----------------------------------------------------------------------------------------

    /// Figures for `status`; cheap.
    pub fn status(&self) -> LogStatus {
        let marked_regions = self.shared.maps.iter().map(|map| map.marked_count()).sum();
        let resync_regions_left = self.shared.maps.iter().map(|map| map.resync_count()).sum();
        let core = self.shared.core.lock();
        let in_memory = core.memory.values().next().map(|held| held.request.accepted_ms);
        let on_disk =
            core.disk.at_or_after(0).and_then(|segment| segment.marks.front()).map(|mark| mark.first_ms);
        let oldest_ms = in_memory.into_iter().chain(on_disk).min();
        LogStatus {
            waiting_requests: core.memory_requests + core.disk.requests,
            waiting_bytes: core.memory_payload + core.disk.bytes,
            oldest_age_ms: oldest_ms.map_or(0, |oldest| core::now_ms().saturating_sub(oldest)),
            in_flight_requests: core.in_flight_requests(),
            memory_bytes: core.memory_payload,
            queued_requests: core.disk.requests,
            queued_bytes: core.disk.bytes,
            queue_disk_bytes: core.disk.disk_bytes(),
            queue_bytes_max: self.shared.queue_bytes_max,
            queue_given_up: core.given_up.clone(),
            open_epoch: core.open_epoch,
            durable_epoch: core.durable,
            marked_regions,
            resync_regions_left,
            resync_running: core.luns.iter().any(|state| !matches!(state.resync, Resync::Off)),
            appended_requests: core.totals.appended_requests,
            appended_bytes: core.totals.appended_bytes,
            retired_requests: core.totals.retired_requests,
        }
    }
    /// Headers of what waits, in order, at most `limit`; payloads are read only by `show`.
    pub fn list(&self, limit: usize) -> Vec<Arc<MirrorRequest>> {
        let (files, memory) = {
            let core = self.shared.core.lock();
            let files: Vec<_> = core
                .disk
                .segments
                .values()
                .map(|segment| (Arc::clone(&segment.file), segment.start, segment.end))
                .collect();
            let memory: Vec<_> =
                core.memory.values().take(limit).map(|held| Arc::clone(&held.request)).collect();
            (files, memory)
        };
        let mut listed = Vec::new();
        for (file, mut at, end) in files {
            while at < end && listed.len() < limit {
                let (found, ended) = segment::read_chunk(&file, at, end);
                listed.extend(found.into_iter().map(|found| Arc::new(found.request)));
                let segment::Ended::More(next) = ended else { break };
                at = next;
            }
        }
        listed.extend(memory);
        listed.sort_by_key(|request| request.sequence);
        listed.dedup_by_key(|request| request.sequence);
        listed.truncate(limit);
        listed
    }
    /// Makes what waits durable in the queue and closes it: after this no process is needed to keep it. Returns the last
    /// epoch that the peer reported durable for each LUN, for the labels. `next` answers `Ended` from now on.
    pub fn close(&self) -> Vec<(LunId, Epoch)> {
        self.shared.with_due(|core, _| {
            core.close_open(LunId(0));
            core.forget_session();
            core.closing = true;
        });
        self.shared.arrived.notify_all();
        {
            let mut core = self.shared.core.lock();
            while core.first_to_spill().is_some() && !core.stopping {
                self.shared.await_spiller(&mut core);
            }
            if core.given_up.is_some()
                && let Some(first) = core.memory.keys().next().copied()
            {
                // What memory kept for the next session has no place in the queue.
                let mut due = Vec::new();
                core.give_up("closed with requests that it had no room for".into(), first, &mut due);
                MutexGuard::unlocked(&mut core, || waiters::call(due));
            }
            if let Err(error) = core.finish_runs() {
                log::error!("queue: {error}");
            }
        }
        spill::sync(&self.shared, Epoch(u64::MAX));
        self.shared.with_due(|core, due| {
            core.settle(due);
            core.waiters.fail(due);
        });
        let marked = threads::tidy(&self.shared, true);
        let stopped_before = self.shared.core.lock().stopping;
        self.stop();
        let core = self.shared.core.lock();
        let durable = core.luns.iter().map(|state| (state.id, state.durable)).collect();
        let last = core.disk.segments.values().next_back().map_or(0, |segment| segment.last);
        // A map that can't be written may lack marks of what the queue gave up: the next mount must not trust it.
        if marked
            && !stopped_before
            && core.disk.first_unsynced().is_none()
            && let Err(error) = recovery::write_clean(&self.shared.folder, last)
        {
            log::error!("queue {}: {error}", self.shared.config.dir.display());
        }
        durable
    }

    /// Keeps the region's mark from being cleared in the background while the result lives. Take it before
    /// [`Self::is_marked`], drop it after [`Self::append`]; after a failed image write `std::mem::forget` it: the
    /// region then stays marked until the next mount. Lock-free. Without it a mark lives at least two seconds longer
    /// than the last look at it.
    pub fn hold(&self, lun: LunId, region: RegionNo) -> Option<RegionHold<'_>> {
        self.shared.maps.get(usize::from(lun.0)).map(|map| map.hold(region))
    }

    fn start(&self, name: &str, body: impl FnOnce(&Shared) + Send + 'static) -> Result<(), LogError> {
        let shared = Arc::clone(&self.shared);
        let path = self.shared.config.dir.clone();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || body(&shared))
            .map_err(|source| LogError::Io { action: "start a thread for", path, source })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    fn stop(&self) {
        {
            let mut core = self.shared.core.lock();
            core.closing = true;
            core.stopping = true;
        }
        self.shared.arrived.notify_all();
        self.shared.timer_wake.notify_all();
        self.shared.spill_wake.notify_all();
        self.shared.spilled.notify_all();
        self.shared.resync_wake.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // The resync thread itself may hold the last reference to the log, through its region source.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                log::error!("a thread of the mirror log has panicked");
            }
        }
    }
}

impl Drop for MirrorLog {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Runs `change` under the lock and calls the waiters that it found due without it.
    fn with_due<T>(&self, change: impl FnOnce(&mut Core, &mut waiters::Due) -> T) -> T {
        let mut due = Vec::new();
        let result = {
            let mut core = self.core.lock();
            let result = change(&mut core, &mut due);
            self.wake_for_append(&mut core);
            result
        };
        waiters::call(due);
        result
    }

    /// The dispatcher's sleep; true when the time is up.
    fn sleep_until(&self, core: &mut MutexGuard<'_, Core>, deadline: Instant) -> bool {
        core.left_to_pump = 0;
        core.dispatcher_sleeps = true;
        let timed_out = self.arrived.wait_until(core, deadline).timed_out();
        core.dispatcher_sleeps = false;
        timed_out
    }

    /// Has what was appended sent by this thread, if the log is eager. No lock of the log is held.
    fn run_pump(&self) {
        if !self.eager.load(Ordering::Relaxed) {
            return;
        }
        let pump = self.pump.read().clone();
        if let Some(pump) = pump {
            pump.pump();
        }
    }

    /// Waits a moment for the spiller to take records out of memory.
    fn await_spiller(&self, core: &mut MutexGuard<'_, Core>) {
        #[cfg(feature = "simulation")]
        if let Some(spiller) = &self.by_hand {
            MutexGuard::unlocked(core, || spiller.lock().turn(self));
            return;
        }
        self.spill_wake.notify_one();
        self.spilled.wait_for(core, SPILL_WAIT);
    }

    /// Wakes who sleeps until there is a record.
    fn wake_for_append(&self, core: &mut Core) {
        if core.spiller_sleeps && (!core.live || core.overflow_from.is_some() || core.has_to_tidy_up()) {
            core.spiller_sleeps = false;
            self.spill_wake.notify_one();
        }
        let left_to_pump =
            self.eager.load(Ordering::Relaxed) && core.left_to_pump <= LEFT_TO_PUMP_BYTES && core.has_pump;
        if core.dispatcher_sleeps && core.live && !left_to_pump {
            core.dispatcher_sleeps = false;
            self.arrived.notify_one();
        }
    }
}
