//! The log's state under its one lock: numbers, epochs, the memory part, what has been sent.
//!
//! Invariants: a record is in `memory` or in one segment, never in both; no record in memory lies within the sequence
//! range of a segment; all records of epochs up to `durable` are gone.

use super::types::{LogConfig, OnOutage, RegionSource};
use super::waiters::{Due, Waiters};
use crate::ids::{Epoch, LunId, RegionNo, Sequence};
use crate::regions::RegionMap;
use crate::request::{Body, MirrorRequest, Origin};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Bytes in an epoch at most: what the peer gathers in memory, and reads ahead.
pub(crate) const EPOCH_BYTES_MAX: u64 = 64 << 20;
/// What a record costs besides its payload, in memory and for the epoch's bound.
pub(crate) const RECORD_OVERHEAD: u64 = 256;

pub(crate) enum Resync {
    Off,
    /// `ResyncBegin` is in the log; regions are read from `cursor` on.
    Running {
        cursor: RegionNo,
        skip_holes: bool,
        in_flight: VecDeque<(Epoch, RegionNo)>,
    },
    /// `ResyncEnd` is in the log, in this epoch.
    Ending(Epoch),
}

pub(crate) struct LunState {
    pub(crate) id: LunId,
    pub(crate) durable: Epoch,
    pub(crate) durable_previous: Epoch,
    /// Closed epochs after `durable`.
    pub(crate) retained: VecDeque<Epoch>,
    pub(crate) in_open: bool,
    /// Last epoch with a request in the region.
    pub(crate) region_epoch: Vec<u64>,
    pub(crate) locally_synced: Epoch,
    pub(crate) uncertain: bool,
    /// Records of the LUN before this number are not sent: a resync covers them.
    pub(crate) dropped_before: u64,
    /// What the peer's label said; the first epoch after it names it as its previous one.
    pub(crate) base: Option<Epoch>,
    pub(crate) resync: Resync,
    /// Epoch of a `ResyncBegin` that the log still has.
    pub(crate) begin_epoch: Option<Epoch>,
    pub(crate) source: Option<Arc<dyn RegionSource>>,
    pub(crate) map: Arc<RegionMap>,
}

impl LunState {
    pub(crate) fn last_epoch(&self) -> Epoch {
        self.retained.back().copied().unwrap_or(self.durable)
    }

    pub(crate) fn resync_known(&self) -> bool {
        !matches!(self.resync, Resync::Off) || self.map.needs_resync()
    }
}

pub(crate) struct Held {
    pub(crate) request: Arc<MirrorRequest>,
    pub(crate) applied: bool,
}

#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) appended_requests: u64,
    pub(crate) appended_bytes: u64,
    pub(crate) retired_requests: u64,
}

pub(crate) struct Core {
    pub(crate) next_sequence: Sequence,
    pub(crate) first_epoch: Epoch,
    pub(crate) open_epoch: Epoch,
    pub(crate) last_closed: Epoch,
    pub(crate) open_requests: u64,
    open_bytes: u64,
    pub(crate) open_since: Option<Instant>,
    pub(crate) durable: Epoch,
    pub(crate) luns: Vec<LunState>,
    pub(crate) memory: BTreeMap<u64, Held>,
    /// Payload bytes in memory, and with what each record costs besides.
    pub(crate) memory_payload: u64,
    pub(crate) memory_requests: u64,
    pub(crate) memory_bytes_max: u64,
    /// Next number to hand to the dispatcher.
    pub(crate) cursor: u64,
    pub(crate) live: bool,
    /// Counts sessions, so that a resync knows that its own is over.
    pub(crate) session: u64,
    pub(crate) closing: bool,
    /// The log's threads end.
    pub(crate) stopping: bool,
    pub(crate) dispatcher_sleeps: bool,
    sent: VecDeque<(Epoch, u64)>,
    sent_requests: u64,
    pub(crate) given_up: Option<String>,
    pub(crate) waiters: Waiters,
    applied_elsewhere: HashSet<u64>,
    checks: HashMap<u64, (LunId, RegionNo)>,
    pub(crate) totals: Totals,
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Entries that only live while their session does.
pub(crate) fn is_volatile(request: &MirrorRequest) -> bool {
    match request.body {
        Body::Check { .. } => true,
        Body::Write { .. } | Body::Discard { .. } => request.origin == Origin::Resync,
        _ => false,
    }
}

impl Core {
    pub(crate) fn new(config: &LogConfig, luns: Vec<LunState>) -> Self {
        let first_epoch = Epoch::first(config.incarnation);
        Self {
            next_sequence: Sequence::first(config.incarnation),
            first_epoch,
            open_epoch: first_epoch,
            last_closed: Epoch(0),
            open_requests: 0,
            open_bytes: 0,
            open_since: None,
            durable: Epoch(0),
            luns,
            memory: BTreeMap::new(),
            memory_payload: 0,
            memory_requests: 0,
            memory_bytes_max: config.memory_bytes_max,
            cursor: 0,
            live: false,
            session: 0,
            closing: false,
            stopping: false,
            dispatcher_sleeps: false,
            sent: VecDeque::new(),
            sent_requests: 0,
            given_up: None,
            waiters: Waiters::default(),
            applied_elsewhere: HashSet::new(),
            checks: HashMap::new(),
            totals: Totals::default(),
        }
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_payload + self.memory.len() as u64 * RECORD_OVERHEAD
    }

    /// Epoch of the oldest record that the log has.
    pub(crate) fn first_record_epoch(&self) -> Option<Epoch> {
        self.memory.first_key_value().map(|(_, held)| held.request.epoch)
    }

    /// Highest epoch up to which all that waits is in the fdatasynced queue; 0 if there is none.
    pub(crate) fn queue_synced(&self) -> Epoch {
        Epoch(0)
    }

    pub(crate) fn resync_may_append(&self) -> bool {
        self.memory_bytes() < self.memory_bytes_max / 2
    }

    /// The next record to send.
    pub(crate) fn take_next(&mut self) -> Option<Arc<MirrorRequest>> {
        loop {
            let (key, held) = self.memory.range(self.cursor..).next()?;
            self.cursor = key + 1;
            let request = Arc::clone(&held.request);
            if let Some(request) = self.prepare(&request) {
                self.note_sent(&request);
                return Some(request);
            }
        }
    }

    fn put(&mut self, request: MirrorRequest) {
        self.memory_payload += request.payload_bytes() as u64;
        self.memory_requests += u64::from(request.range().is_some());
        let key = request.sequence.0;
        self.memory.insert(key, Held { request: Arc::new(request), applied: false });
    }

    /// Takes a record out of memory, and it out of the figures.
    pub(crate) fn take(&mut self, key: u64) -> Option<Held> {
        let held = self.memory.remove(&key)?;
        self.memory_payload -= held.request.payload_bytes() as u64;
        self.memory_requests -= u64::from(held.request.range().is_some());
        Some(held)
    }

    fn number(&mut self) -> Sequence {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.next();
        sequence
    }

    /// Appends a request; the caller wakes whom it concerns.
    pub(crate) fn append(
        &mut self,
        lun: LunId,
        origin: Origin,
        body: Body,
        accepted_ms: u64,
    ) -> super::Appended {
        let (offset, payload_bytes) = match &body {
            Body::Write { offset, payload, .. } => (*offset, payload.len() as u64),
            Body::Discard { offset, .. } | Body::Check { offset, .. } => (*offset, 0),
            Body::Barrier { .. } | Body::ResyncBegin { .. } | Body::ResyncEnd => (0, 0),
        };
        let region = RegionNo::of(offset);
        let volatile = origin == Origin::Resync || matches!(body, Body::Check { .. });
        let logged = !self.closing && self.given_up.is_none() && (self.live || !volatile);
        if logged
            && self.open_requests > 0
            && self.open_bytes + payload_bytes + RECORD_OVERHEAD > EPOCH_BYTES_MAX
        {
            self.close_epoch(LunId(0));
        }
        let sequence = self.number();
        let epoch = self.open_epoch;
        let Some(state) = self.luns.get_mut(usize::from(lun.0)) else {
            debug_assert!(false, "append to a LUN that the log does not have");
            return super::Appended { sequence, epoch };
        };
        if !volatile && !state.map.is_marked(region) {
            // Cleared between the caller's look and now; the timer writes it out.
            state.map.mark_soon(region);
        }
        if !logged {
            if !volatile {
                state.map.set_resync([region], true);
            }
            return super::Appended { sequence, epoch: self.last_closed };
        }
        if !volatile && let Some(last) = state.region_epoch.get_mut(region.0 as usize) {
            *last = epoch.0;
        }
        state.in_open = true;
        if matches!(body, Body::Check { .. }) {
            self.checks.insert(sequence.0, (lun, region));
        }
        if self.open_requests == 0 {
            self.open_since = Some(Instant::now());
        }
        self.open_requests += 1;
        self.open_bytes += payload_bytes + RECORD_OVERHEAD;
        self.totals.appended_requests += 1;
        self.totals.appended_bytes += payload_bytes;
        self.put(MirrorRequest { sequence, epoch, lun, origin, accepted_ms, body });
        super::Appended { sequence, epoch }
    }

    /// Closes the open epoch if it has requests; returns the last closed one.
    pub(crate) fn close_open(&mut self, lun: LunId) -> Epoch {
        if self.open_requests > 0 {
            self.close_epoch(lun);
        }
        self.last_closed
    }

    fn close_epoch(&mut self, lun: LunId) {
        let epoch = self.open_epoch;
        let mut previous = Vec::new();
        for state in self.luns.iter_mut().filter(|state| state.in_open) {
            previous.push((state.id, state.last_epoch()));
            state.retained.push_back(epoch);
            state.in_open = false;
        }
        let sequence = self.number();
        let body = Body::Barrier { previous };
        self.put(MirrorRequest {
            sequence,
            epoch,
            lun,
            origin: Origin::Metadata,
            accepted_ms: now_ms(),
            body,
        });
        self.last_closed = epoch;
        self.open_epoch = epoch.next();
        self.open_requests = 0;
        self.open_bytes = 0;
        self.open_since = None;
    }

    /// Appends a resync marker in an epoch of its own, which is returned.
    pub(crate) fn append_alone(&mut self, lun: LunId, body: Body) -> Epoch {
        self.close_open(LunId(0));
        let sequence = self.number();
        let epoch = self.open_epoch;
        self.luns[usize::from(lun.0)].in_open = true;
        self.put(MirrorRequest { sequence, epoch, lun, origin: Origin::Resync, accepted_ms: now_ms(), body });
        self.close_epoch(lun);
        epoch
    }

    /// Appends `ResyncBegin` for the LUN and lets the resync thread begin.
    pub(crate) fn begin_resync(&mut self, lun: LunId, whole: bool, skip_holes: bool) {
        let epoch = self.append_alone(lun, Body::ResyncBegin { whole });
        let state = &mut self.luns[usize::from(lun.0)];
        state.begin_epoch = Some(epoch);
        state.resync = Resync::Running { cursor: RegionNo(0), skip_holes, in_flight: VecDeque::new() };
        let mut map_state = state.map.state();
        map_state.resyncing = true;
        state.map.set_state(map_state);
    }

    /// Whether a record is to be sent; barriers are made to fit what the peer's labels say.
    pub(crate) fn prepare(&mut self, request: &Arc<MirrorRequest>) -> Option<Arc<MirrorRequest>> {
        let key = request.sequence.0;
        let Body::Barrier { previous } = &request.body else {
            let state = self.luns.get(usize::from(request.lun.0))?;
            return (key >= state.dropped_before).then(|| Arc::clone(request));
        };
        let mut fitted = Vec::with_capacity(previous.len());
        for (lun, epoch) in previous {
            let Some(state) = self.luns.get_mut(usize::from(lun.0)) else { continue };
            if key < state.dropped_before {
                continue;
            }
            match state.base {
                Some(base) if request.epoch > base => {
                    state.base = None;
                    fitted.push((*lun, base));
                }
                _ => fitted.push((*lun, *epoch)),
            }
        }
        if fitted == *previous {
            return Some(Arc::clone(request));
        }
        Some(Arc::new(MirrorRequest {
            body: Body::Barrier { previous: fitted },
            ..MirrorRequest::clone(request)
        }))
    }

    /// Notes that a record goes to the dispatcher.
    pub(crate) fn note_sent(&mut self, request: &MirrorRequest) {
        if request.range().is_none() {
            return;
        }
        self.sent_requests += 1;
        match self.sent.back_mut() {
            Some((epoch, count)) if *epoch == request.epoch => *count += 1,
            _ => self.sent.push_back((request.epoch, 1)),
        }
    }

    pub(crate) fn in_flight_requests(&self) -> u64 {
        self.sent_requests
    }

    pub(crate) fn applied(&mut self, sequence: Sequence, due: &mut Due) {
        match self.memory.get_mut(&sequence.0) {
            Some(held) => held.applied = true,
            None if sequence.0 < self.cursor => {
                self.applied_elsewhere.insert(sequence.0);
            }
            None => {}
        }
        self.waiters.applied(sequence, due);
    }

    /// The region of a check that was answered.
    pub(crate) fn checked(&mut self, sequence: Sequence) -> Option<(LunId, RegionNo)> {
        self.checks.remove(&sequence.0)
    }

    /// Forgets what belongs to a session.
    pub(crate) fn forget_session(&mut self) {
        self.live = false;
        self.session += 1;
        self.sent.clear();
        self.sent_requests = 0;
        self.applied_elsewhere.clear();
        self.checks.clear();
        let volatile: Vec<u64> =
            self.memory.iter().filter(|(_, held)| is_volatile(&held.request)).map(|(key, _)| *key).collect();
        for key in volatile {
            self.take(key);
        }
        for held in self.memory.values_mut() {
            held.applied = false;
        }
        for state in &mut self.luns {
            if let Resync::Running { cursor, in_flight, .. } = &mut state.resync {
                *cursor = RegionNo(0);
                in_flight.clear();
            }
        }
    }

    /// Epochs up to `epoch` are durable on the mirror: what memory has of them goes.
    pub(crate) fn retire(&mut self, epoch: Epoch, due: &mut Due) {
        let epoch = epoch.min(self.last_closed);
        if epoch <= self.durable {
            return;
        }
        self.durable = epoch;
        let mut last = 0;
        while let Some((key, held)) = self.memory.first_key_value() {
            if held.request.epoch > epoch {
                break;
            }
            let key = *key;
            last = key;
            if let Some(held) = self.take(key) {
                self.totals.retired_requests += u64::from(held.request.range().is_some());
            }
        }
        while let Some((sent, count)) = self.sent.front().copied() {
            if sent > epoch {
                break;
            }
            self.sent_requests -= count;
            self.sent.pop_front();
        }
        if !self.applied_elsewhere.is_empty() {
            self.applied_elsewhere.retain(|key| *key > last);
        }
        for state in &mut self.luns {
            while let Some(first) = state.retained.front().copied().filter(|first| *first <= epoch) {
                state.durable_previous = state.durable;
                state.durable = first;
                state.retained.pop_front();
            }
            if state.begin_epoch.is_some_and(|begin| begin <= epoch) {
                state.begin_epoch = None;
            }
            match &mut state.resync {
                Resync::Running { in_flight, .. } => {
                    while let Some((_, region)) =
                        in_flight.front().copied().filter(|(sent, _)| *sent <= epoch)
                    {
                        in_flight.pop_front();
                        state.map.set_resync([region], false);
                    }
                }
                Resync::Ending(end) if *end <= epoch => {
                    state.resync = Resync::Off;
                    let mut map_state = state.map.state();
                    map_state.resyncing = false;
                    state.map.set_state(map_state);
                }
                Resync::Ending(_) | Resync::Off => {}
            }
        }
        self.waiters.durable(Sequence(last), epoch, due);
    }

    pub(crate) fn wait_applied(&mut self, sequence: Sequence, waiter: super::Waiter, due: &mut Due) {
        let known = match self.memory.get(&sequence.0) {
            Some(held) => held.applied,
            None => self.applied_elsewhere.contains(&sequence.0) || self.is_retired(sequence),
        };
        if known {
            due.push((waiter, super::Waited::Mirrored));
            return;
        }
        self.waiters.wait_applied(sequence, waiter);
        self.settle(due);
    }

    fn is_retired(&self, sequence: Sequence) -> bool {
        self.given_up.is_none()
            && self
                .memory
                .first_key_value()
                .map_or(sequence < self.next_sequence, |(first, _)| sequence.0 < *first)
    }

    pub(crate) fn wait_durable(&mut self, epoch: Epoch, waiter: super::Waiter, due: &mut Due) {
        if epoch <= self.durable {
            due.push((waiter, super::Waited::Mirrored));
            return;
        }
        self.waiters.wait_durable(epoch, waiter);
        self.settle(due);
    }

    /// Ends the waits that the outage policy ends.
    pub(crate) fn settle(&mut self, due: &mut Due) {
        if self.live || !self.waiters.waits() {
            return;
        }
        self.waiters.outage(|_| true, |_| true, due);
    }

    pub(crate) fn set_policy(&mut self, policy: OnOutage, due: &mut Due) {
        self.waiters.policy = Some(policy);
        self.settle(due);
    }
}
