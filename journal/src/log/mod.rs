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
mod session;
#[cfg(test)]
mod tests;
mod threads;
mod types;
mod view;
mod waiters;

pub use crate::regions::RegionHold;
pub use types::*;
pub use view::QueueView;

use self::core::{Core, LunState, Resync};
use crate::ids::{Epoch, LunId, RegionNo, Sequence};
use crate::regions::RegionMap;
use crate::request::{Body, MirrorRequest, Origin};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the log's threads share.
pub(crate) struct Shared {
    config: LogConfig,
    core: Mutex<Core>,
    maps: Vec<Arc<RegionMap>>,
    /// A record came for the dispatcher.
    arrived: Condvar,
    timer_wake: Condvar,
    resync_wake: Condvar,
}

/// The mirror log of one link. Shared by `Arc`; all methods take `&self`; none blocks on the network.
///
/// Dropped without [`MirrorLog::close`] it leaves its files as a crash would.
pub struct MirrorLog {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _lock: std::fs::File,
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
        let mut luns = Vec::new();
        let mut maps = Vec::new();
        for lun in &config.luns {
            let (map, known) = RegionMap::open(&config.dir, lun.uuid, lun.generation, lun.size_bytes)
                .map_err(io("open the region map in", &config.dir))?;
            let map = Arc::new(map);
            if lun.all_regions {
                map.set_resync_all();
            } else if !lun.clean {
                map.resync_marked(false);
            }
            map.flush().map_err(io("write", map.path()))?;
            let state = map.state();
            let durable = lun.durable_epoch.max(state.durable).max(map.floor());
            luns.push(LunState {
                id: lun.id,
                durable,
                durable_previous: if durable == state.durable { state.durable_previous } else { Epoch(0) },
                retained: VecDeque::new(),
                in_open: false,
                region_epoch: vec![0; map.regions() as usize],
                locally_synced: Epoch(0),
                uncertain: !lun.clean || !known,
                dropped_before: 0,
                base: None,
                resync: Resync::Off,
                begin_epoch: None,
                source: None,
                map: Arc::clone(&map),
            });
            maps.push(map);
        }
        let mut core = Core::new(&config, luns);
        core.durable = core.luns.iter().map(|state| state.durable).max().unwrap_or_default();
        core.last_closed = core.durable;
        for index in 0..core.luns.len() {
            let map = &core.luns[index].map;
            if map.needs_resync() || map.state().resyncing {
                let (id, whole) = (core.luns[index].id, map.all_resync());
                core.begin_resync(id, whole, false);
            }
        }
        let shared = Arc::new(Shared {
            config,
            core: Mutex::new(core),
            maps,
            arrived: Condvar::new(),
            timer_wake: Condvar::new(),
            resync_wake: Condvar::new(),
        });
        let log = Self { shared, threads: Mutex::new(Vec::new()), _lock: lock };
        log.start("log-timer", threads::timer)?;
        log.start("log-resync", threads::resync)?;
        Ok(Arc::new(log))
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
    /// its own before an epoch exceeds 64 MiB. Blocks for no disk sync and no network; when memory is full or the peer
    /// is away it may write to the queue's page cache. `body` is `Write`, `Discard` or `Check` only.
    pub fn append(&self, lun: LunId, origin: Origin, body: Body) -> Appended {
        let accepted_ms = core::now_ms();
        let mut core = self.shared.core.lock();
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
        epoch
    }
    /// fdatasyncs what the queue holds up to and including `epoch`'s barrier, if that part is (only) on disk; returns
    /// at once otherwise. Called by the Flush, side by side with the image's own sync. A failing queue disk is not an
    /// error: the log gives the queue up and reports it.
    pub fn sync_queue(&self, epoch: Epoch) {
        let _ = epoch;
    }
    /// The image of `lun` has been fdatasynced, covering all requests of epochs up to `epoch`. Lets regions be cleared.
    pub fn locally_synced(&self, lun: LunId, epoch: Epoch) {
        let mut core = self.shared.core.lock();
        if let Some(state) = core.luns.get_mut(usize::from(lun.0)) {
            state.locally_synced = state.locally_synced.max(epoch);
        }
    }
    /// Calls `waiter` when the peer has answered that it stored `sequence`, or as the outage policy says.
    pub fn when_applied(&self, sequence: Sequence, waiter: Waiter) {
        self.shared.with_due(|core, due| core.wait_applied(sequence, waiter, due));
    }
    /// Calls `waiter` when `epoch` is durable on the mirror, or as the outage policy says.
    pub fn when_durable(&self, epoch: Epoch, waiter: Waiter) {
        self.shared.with_due(|core, due| core.wait_durable(epoch, waiter, due));
    }
    /// Sets the policy for waits while the peer is away; `None`: waits are never ended by an outage (`mirrorfs sync`
    /// with a bound of its own). Takes effect at once, also for those waiting.
    pub fn set_on_outage(&self, policy: OnOutage) {
        self.shared.with_due(|core, due| core.set_policy(policy, due));
    }
    /// Gives the log the images to read for a resync. Called once, before the first session.
    pub fn set_region_source(&self, lun: LunId, source: Arc<dyn RegionSource>) {
        let mut core = self.shared.core.lock();
        if let Some(state) = core.luns.get_mut(usize::from(lun.0)) {
            state.source = Some(source);
        }
    }

    // ---- link side ----------------------------------------------------------------------------------------

    /// The peer has answered the greeting with these LUN states. Decides for each LUN whether the log reaches back far
    /// enough (or the queue is dropped, its regions marked, and a resync begun, whose thread the log runs), and
    /// positions [`Self::next`] at the lowest epoch that any LUN lacks. From now on the log is "live".
    pub fn begin_session(&self, peer: &[PeerLun]) -> Result<SessionStart, LogError> {
        if self.shared.core.lock().live {
            self.end_session();
        }
        let start = self.shared.with_due(|core, due| session::begin(core, peer, due));
        for map in &self.shared.maps {
            let error = |source| LogError::Io { action: "write", path: map.path().to_path_buf(), source };
            map.flush().map_err(error)?;
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
            if let Some(request) = core.take_next() {
                return Next::Request(request);
            }
            core.dispatcher_sleeps = true;
            let timed_out = self.shared.arrived.wait_until(&mut core, deadline).timed_out();
            core.dispatcher_sleeps = false;
            if timed_out {
                return Next::Idle;
            }
        }
    }
    /// The peer has stored this request (not yet durable).
    pub fn applied(&self, sequence: Sequence) {
        self.shared.with_due(|core, due| core.applied(sequence, due));
    }
    /// The peer answered a `Check`: unless `equal`, its region is sent as data.
    pub fn checked(&self, sequence: Sequence, equal: bool) {
        let mut core = self.shared.core.lock();
        let Some((lun, region)) = core.checked(sequence).filter(|_| !equal && core.live) else { return };
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
        let core = self.shared.core.lock();
        let marked_regions = self.shared.maps.iter().map(|map| map.marked_count()).sum();
        let resync_regions_left = self.shared.maps.iter().map(|map| map.resync_count()).sum();
        let oldest_ms = core.memory.values().next().map(|held| held.request.accepted_ms);
        LogStatus {
            waiting_requests: core.memory_requests,
            waiting_bytes: core.memory_payload,
            oldest_age_ms: oldest_ms.map_or(0, |oldest| core::now_ms().saturating_sub(oldest)),
            in_flight_requests: core.in_flight_requests(),
            memory_bytes: core.memory_payload,
            queue_given_up: core.given_up.clone(),
            open_epoch: core.open_epoch,
            durable_epoch: core.durable,
            marked_regions,
            resync_regions_left,
            appended_requests: core.totals.appended_requests,
            appended_bytes: core.totals.appended_bytes,
            retired_requests: core.totals.retired_requests,
            ..LogStatus::default()
        }
    }
    /// Headers of what waits, in order, at most `limit`; payloads are read only by `show`.
    pub fn list(&self, limit: usize) -> Vec<Arc<MirrorRequest>> {
        self.shared.core.lock().memory.values().take(limit).map(|held| Arc::clone(&held.request)).collect()
    }
    /// Makes what waits durable in the queue and closes it: after this no process is needed to keep it. Returns the last
    /// epoch that the peer reported durable for each LUN, for the labels. `next` answers `Ended` from now on.
    pub fn close(&self) -> Vec<(LunId, Epoch)> {
        let durable = self.shared.with_due(|core, due| {
            core.close_open(LunId(0));
            core.forget_session();
            core.closing = true;
            core.waiters.fail(due);
            core.luns.iter().map(|state| (state.id, state.durable)).collect()
        });
        self.shared.arrived.notify_all();
        threads::tidy(&self.shared, true);
        self.stop();
        durable
    }

    /// Keeps the region's mark from being cleared in the background while the result lives. Take it before
    /// [`Self::is_marked`], drop it after [`Self::append`]; after a failed image write `std::mem::forget` it: the
    /// region then stays marked until the next mount. Lock-free. Without it a mark lives at least two seconds longer
    /// than the last look at it.
    pub fn hold(&self, lun: LunId, region: RegionNo) -> Option<RegionHold<'_>> {
        self.shared.maps.get(usize::from(lun.0)).map(|map| map.hold(region))
    }

    fn start(&self, name: &str, body: fn(&Shared)) -> Result<(), LogError> {
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

    /// Wakes who sleeps until there is a record.
    fn wake_for_append(&self, core: &mut Core) {
        if core.dispatcher_sleeps && core.live {
            core.dispatcher_sleeps = false;
            self.arrived.notify_one();
        }
    }
}
