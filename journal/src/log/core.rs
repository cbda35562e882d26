//! The log's state under its one lock: numbers, epochs, the memory part, what has been sent.
//!
//! Invariants: a record is in `memory` or in one segment, never in both; no record in memory lies within the sequence
//! range of a segment; all records of epochs up to `durable` are gone.

use super::types::{LogConfig, OnOutage, RegionSource};
use super::waiters::{Due, Waiters};
use crate::ids::{Epoch, LunId, RegionNo, Sequence};
use crate::medium::Handle;
use crate::queue::disk::Disk;
use crate::regions::RegionMap;
use crate::request::{Body, MirrorRequest, Origin};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
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
    /// What the mirror's label may say instead after a power cut, which takes its last write.
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
    /// What the peer has, as it said or, behind a power cut, as we had heard; the first epoch after it names it as its previous one.
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

/// Answer of [`Core::take_next`].
pub(crate) enum Taken {
    Record(Arc<MirrorRequest>),
    /// The next record lies in this segment: to be read, with the lock released, from here.
    Read {
        segment: u64,
        file: Arc<Handle>,
        from: u64,
        end: u64,
        cuts: u64,
    },
    Nothing,
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
    /// A pump is there, see `MirrorLog::set_pump`; and the payload appended since it, or the dispatcher, found nothing more.
    pub(crate) has_pump: bool,
    pub(crate) left_to_pump: u64,
    sent: VecDeque<(Epoch, u64)>,
    sent_requests: u64,
    pub(crate) given_up: Option<String>,
    pub(crate) disk: Disk,
    /// Segment that the spiller goes on with.
    pub(crate) current: Option<u64>,
    /// Segment that it is writing to at the moment.
    pub(crate) writing: Option<u64>,
    /// While live: records from this number on go to disk, memory is full.
    pub(crate) overflow_from: Option<u64>,
    /// Counts the times that the log's end was cut off.
    pub(crate) cuts: u64,
    /// The index has to forget what lies behind this record.
    pub(crate) cut_after: Option<u64>,
    /// Files to be unlinked, and whether only after the region marks are durable.
    pub(crate) garbage: Vec<(PathBuf, bool)>,
    /// Records read from disk for the dispatcher.
    pub(crate) ahead: VecDeque<Arc<MirrorRequest>>,
    /// Segment and offset up to which they were read.
    reader: Option<(u64, u64)>,
    pub(crate) spiller_sleeps: bool,
    /// Last record retired.
    pub(crate) durable_last: u64,
    /// All records up to this one that memory has are applied, barriers and markers aside.
    applied_upto: u64,
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
            has_pump: false,
            left_to_pump: 0,
            sent: VecDeque::new(),
            sent_requests: 0,
            given_up: None,
            disk: Disk::default(),
            current: None,
            writing: None,
            overflow_from: None,
            cuts: 0,
            cut_after: None,
            garbage: Vec::new(),
            ahead: VecDeque::new(),
            reader: None,
            spiller_sleeps: false,
            durable_last: 0,
            applied_upto: 0,
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
        let memory = self.memory.first_key_value().map(|(_, held)| held.request.epoch);
        let disk = self.disk.at_or_after(0).and_then(|segment| segment.marks.front()).map(|mark| mark.epoch);
        memory.into_iter().chain(disk).min()
    }

    /// Highest epoch up to which all that waits is in the fdatasynced queue; 0 if there is none.
    pub(crate) fn queue_synced(&self) -> Epoch {
        let memory =
            self.memory.values().find(|held| !is_volatile(&held.request)).map(|held| held.request.epoch);
        let first_lacking = memory.into_iter().chain(self.disk.first_unsynced()).min();
        first_lacking.map_or(self.last_closed, |first| Epoch(first.0.saturating_sub(1)))
    }

    /// Someone waits until the queue is durable.
    pub(crate) fn wants_sync(&self) -> bool {
        !self.live && self.waiters.waits_durable() && self.disk.first_unsynced().is_some()
    }

    pub(crate) fn note_applied(&mut self, key: u64) {
        if self.live {
            self.applied_elsewhere.insert(key);
        }
    }

    /// What the cut after `keep` means for the LUNs: the regions of all that goes are marked for a resync.
    pub(crate) fn cut_bookkeeping(&mut self, keep: Epoch) {
        for state in &mut self.luns {
            let lost = state.region_epoch.iter().enumerate().filter(|(_, last)| **last > keep.0);
            state.map.set_resync(lost.map(|(region, _)| RegionNo(region as u64)), true);
            while state.retained.back().is_some_and(|epoch| *epoch > keep) {
                state.retained.pop_back();
            }
            state.in_open = false;
            if state.begin_epoch.is_some_and(|begin| begin > keep) {
                state.begin_epoch = None;
            }
            if matches!(state.resync, Resync::Ending(end) if end > keep) {
                let (cursor, in_flight) = (RegionNo(0), VecDeque::new());
                state.resync = Resync::Running { cursor, skip_holes: false, in_flight };
            }
        }
        self.last_closed = keep.max(self.durable);
        if self.open_requests > 0 {
            self.open_epoch = self.open_epoch.next();
        }
        self.open_requests = 0;
        self.open_bytes = 0;
        self.open_since = None;
        self.reader = None;
    }

    /// Begins to send from the oldest record on.
    pub(crate) fn rewind(&mut self) {
        self.cursor = 0;
        self.ahead.clear();
        self.reader = None;
        self.overflow_from = None;
        if self.disk.bytes_from(0) > self.memory_bytes_max / 2 {
            self.overflow_from = Some(self.next_sequence.0);
        }
    }

    /// Lets records go to disk when memory is full, and back when what is left there fits into memory.
    fn balance(&mut self) {
        if !self.live || self.given_up.is_some() {
            return;
        }
        if self.overflow_from.is_none() {
            if self.memory_bytes() > self.memory_bytes_max {
                // Not in the middle of an epoch: after a crash the queue would have its end alone, and the mirror
                // take it for the whole.
                self.close_open(LunId(0));
                self.overflow_from = Some(self.next_sequence.0);
            }
        } else if self.memory_bytes() < self.memory_bytes_max / 2
            && self.memory_bytes() + self.disk.bytes_from(self.cursor) < self.memory_bytes_max / 2
        {
            self.overflow_from = None;
        }
    }

    /// Drops from the disk part what is durable on the mirror.
    pub(crate) fn retire_disk(&mut self) {
        let (requests, last, gone) = self.disk.retire(self.durable, self.writing);
        self.totals.retired_requests += requests;
        self.durable_last = self.durable_last.max(last);
        self.discard_segments(gone, false);
    }

    pub(crate) fn resync_may_append(&self) -> bool {
        self.overflow_from.is_none() && self.memory_bytes() < self.memory_bytes_max / 2
    }

    /// Whether [`Self::take_next`] would find something.
    pub(crate) fn has_next(&self) -> bool {
        self.memory.range(self.cursor..).next().is_some() || self.disk.at_or_after(self.cursor).is_some()
    }

    /// The next record to send, or where it has to be read.
    pub(crate) fn take_next(&mut self) -> Taken {
        loop {
            let in_memory = self.memory.range(self.cursor..).next().map(|(key, held)| (*key, &held.request));
            let on_disk = self.disk.at_or_after(self.cursor);
            let request = match (in_memory, on_disk) {
                (None, None) => return Taken::Nothing,
                (Some((key, request)), segment)
                    if segment.is_none_or(|segment| key < segment.first.max(self.cursor)) =>
                {
                    Arc::clone(request)
                }
                (_, Some(segment)) => {
                    while self.ahead.front().is_some_and(|request| request.sequence.0 < self.cursor) {
                        self.ahead.pop_front();
                    }
                    let within = |request: &&Arc<MirrorRequest>| {
                        (segment.first..=segment.last).contains(&request.sequence.0)
                    };
                    if let Some(request) = self.ahead.front().filter(within) {
                        Arc::clone(request)
                    } else {
                        let from = match self.reader {
                            Some((first, at)) if first == segment.first => at.max(segment.start),
                            _ => Disk::offset_of(segment, self.cursor),
                        };
                        let file = Arc::clone(&segment.file);
                        return Taken::Read {
                            segment: segment.first,
                            file,
                            from,
                            end: segment.end,
                            cuts: self.cuts,
                        };
                    }
                }
                (Some(_), None) => return Taken::Nothing,
            };
            self.cursor = request.sequence.0 + 1;
            if let Some(request) = self.prepare(&request) {
                self.note_sent(&request);
                return Taken::Record(request);
            }
        }
    }

    /// Takes in what was read for [`Taken::Read`]; an error says why the queue can't be read on.
    pub(crate) fn took(
        &mut self,
        segment: u64,
        found: Vec<MirrorRequest>,
        next: Result<u64, String>,
    ) -> Result<(), (u64, String)> {
        let last = found.last().map_or(self.cursor, |request| request.sequence.0 + 1);
        let cursor = self.cursor;
        self.ahead.clear();
        self.ahead.extend(found.into_iter().filter(|request| request.sequence.0 >= cursor).map(Arc::new));
        match next {
            Ok(next) => {
                self.reader = Some((segment, next));
                let end = self.disk.segments.get(&segment).map_or(0, |segment| segment.end);
                if self.ahead.is_empty() && next >= end && self.disk.segments.contains_key(&segment) {
                    return Err((cursor, "a record is missing".into()));
                }
                Ok(())
            }
            Err(what) => Err((last, what)),
        }
    }

    fn put(&mut self, request: MirrorRequest) {
        self.left_to_pump += request.payload_bytes() as u64;
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
            && self.open_bytes + payload_bytes + RECORD_OVERHEAD > self.epoch_bytes_max()
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
        if self.overflow_from.is_none() {
            self.balance();
        }
        super::Appended { sequence, epoch }
    }

    /// Requests stay in memory until their epoch is durable: some epochs must fit, or nothing moves until one closes by age.
    fn epoch_bytes_max(&self) -> u64 {
        EPOCH_BYTES_MAX.min(self.memory_bytes_max / 4)
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
        if !self.memory.contains_key(&sequence.0) {
            self.waiters.applied(sequence, due);
        }
        self.pass_applied(due);
    }

    /// Answers who waits for requests up to which all are applied: what a program asked for may lie in several, on several
    /// connections, and its reply waits for the last of them.
    fn pass_applied(&mut self, due: &mut Due) {
        while let Some((key, held)) = self.memory.range(self.applied_upto + 1..).next()
            && (held.applied || held.request.range().is_none())
        {
            self.applied_upto = *key;
        }
        // What lies on the disk is waited for by its own number.
        let (memory, on_disk) = (&self.memory, self.disk.requests > 0);
        self.waiters.applied_upto(self.applied_upto, |key| !on_disk || memory.contains_key(&key), due);
    }

    /// The region of a check that was answered.
    pub(crate) fn checked(&mut self, sequence: Sequence, due: &mut Due) -> Option<(LunId, RegionNo)> {
        if let Some(held) = self.memory.get_mut(&sequence.0) {
            held.applied = true;
        }
        self.pass_applied(due);
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
        self.applied_upto = 0;
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
        self.durable_last = self.durable_last.max(last);
        self.retire_disk();
        let last = self.durable_last;
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
        self.balance();
    }

    pub(crate) fn wait_applied(&mut self, sequence: Sequence, waiter: super::Waiter, due: &mut Due) {
        self.pass_applied(due);
        let known = match self.memory.get(&sequence.0) {
            Some(_) => sequence.0 <= self.applied_upto,
            None => self.applied_elsewhere.contains(&sequence.0) || sequence.0 <= self.durable_last,
        };
        if known {
            due.push((waiter, super::Waited::Mirrored));
            return;
        }
        self.waiters.wait_applied(sequence, waiter);
        self.settle(due);
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
        let synced = self.queue_synced();
        let given_up = self.given_up.is_some();
        let memory = &self.memory;
        self.waiters.outage(
            |sequence| given_up || !memory.contains_key(&sequence.0),
            |epoch| given_up || epoch <= synced,
            due,
        );
    }

    pub(crate) fn set_policy(&mut self, policy: OnOutage, due: &mut Due) {
        self.waiters.policy = Some(policy);
        self.settle(due);
    }
}
