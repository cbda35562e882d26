//! Memory to disk, and disk to nothing: the spiller thread, and the queue's fdatasync.

use super::Shared;
use super::core::{Core, is_volatile};
use super::waiters::{self, Due};
use crate::ids::{Epoch, Sequence};
use crate::medium::Handle;
use crate::queue::disk::Segment;
use crate::queue::index::{Index, IndexRecord};
use crate::queue::segment::{self, LunTable, RECORDS_START, SEGMENT_BYTES};
use crate::request::{Body, MirrorRequest};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Written with one call, at most.
const BATCH_BYTES: u64 = 8 << 20;
const BATCH_RECORDS: usize = 8192;
const TICK: Duration = Duration::from_millis(200);
/// Retired bytes at the head of the first segment that are worth a hole, which costs a sync: a share of what waits, so that
/// the queue's files never take much more than that.
const PUNCH_SHARE: u64 = 128;
const PUNCH_BYTES_MIN: u64 = 256 << 10;
const PUNCH_BYTES_MAX: u64 = 8 << 20;

/// What the spiller does next.
pub(crate) struct Plan {
    records: Vec<Arc<MirrorRequest>>,
    /// An open segment to go on with.
    append_to: Option<(u64, Arc<Handle>, u64)>,
    /// A segment to finish before another is begun: its file, end, last record, and the one that follows.
    finish: Option<(u64, Arc<Handle>, u64, u64, u64)>,
    cuts: u64,
}

impl Core {
    /// First record in memory that belongs on disk.
    pub(crate) fn first_to_spill(&self) -> Option<u64> {
        if self.given_up.is_some() {
            return None;
        }
        let from = if self.live { self.overflow_from? } else { 0 };
        self.memory.range(from..).find(|(_, held)| !is_volatile(&held.request)).map(|(key, _)| *key)
    }

    /// First record after `key` that is or will be on disk.
    fn successor(&self, key: u64) -> Option<u64> {
        let memory = self.memory.range(key + 1..).find(|(_, held)| !is_volatile(&held.request));
        let disk = self.disk.segments.range(key + 1..).next();
        match (memory.map(|(key, _)| *key), disk.map(|(key, _)| *key)) {
            (Some(memory), Some(disk)) => Some(memory.min(disk)),
            (memory, disk) => memory.or(disk),
        }
    }

    fn plan(&self) -> Option<Plan> {
        let first = self.first_to_spill()?;
        let limit = self.disk.segments.range(first..).next().map_or(u64::MAX, |(next, _)| *next);
        let current = self.current.and_then(|current| self.disk.segments.get(&current));
        let first_bytes = self.memory.get(&first).map_or(0, |held| record_bytes(&held.request));
        let open = current.filter(|segment| !segment.finished);
        let append_to = open.filter(|segment| {
            segment.last < first
                && segment.end + first_bytes <= SEGMENT_BYTES
                && self.memory.range(segment.last + 1..first).next().is_none()
                && self.disk.segments.range(segment.last + 1..first).next().is_none()
        });
        let mut room = SEGMENT_BYTES - append_to.map_or(RECORDS_START, |segment| segment.end);
        room = room.min(BATCH_BYTES.max(first_bytes));
        let mut records = Vec::new();
        for (_, held) in self.memory.range(first..limit) {
            let request = &held.request;
            if is_volatile(request) || records.len() == BATCH_RECORDS {
                break;
            }
            let bytes = record_bytes(request);
            if bytes > room {
                break;
            }
            room -= bytes;
            records.push(Arc::clone(request));
        }
        let finish = match (append_to, open) {
            (None, Some(open)) => self
                .successor(open.last)
                .map(|next| (open.first, Arc::clone(&open.file), open.end, open.last, next)),
            _ => None,
        };
        let append_to = append_to.map(|segment| (segment.first, Arc::clone(&segment.file), segment.end));
        Some(Plan { records, append_to, finish, cuts: self.cuts })
    }

    /// Keeps what lies before `from` up to its last barrier; marks the regions of all the rest for a resync.
    pub(crate) fn give_up(&mut self, reason: String, from: u64, due: &mut Due) {
        log::error!("the queue is given up, later requests are left to a resync: {reason}");
        let in_memory = self
            .memory
            .range(..from)
            .rev()
            .find(|(_, held)| matches!(held.request.body, Body::Barrier { .. }))
            .map(|(_, held)| (held.request.sequence, held.request.epoch));
        let on_disk = self.disk.barrier_before(from);
        let (keep, epoch) = in_memory.max(on_disk).unwrap_or((Sequence(0), self.durable));
        if self.live {
            // Part of what goes may have been sent.
            self.forget_session();
        }
        for key in self.memory.range(keep.0 + 1..).map(|(key, _)| *key).collect::<Vec<_>>() {
            self.take(key);
        }
        let (gone, result) = self.disk.cut(keep.0);
        if let Err(error) = result {
            log::error!("queue: {error}");
        }
        self.discard_segments(gone, true);
        self.cut_bookkeeping(epoch);
        self.cuts += 1;
        self.cut_after = Some(keep.0);
        self.ahead.clear();
        self.overflow_from = None;
        self.given_up = Some(reason);
        self.waiters.dropped(keep, epoch, due);
        self.settle(due);
    }

    /// Ends the segments behind which another one follows without a record in between.
    pub(crate) fn finish_runs(&mut self) -> io::Result<()> {
        let unfinished: Vec<u64> = self
            .disk
            .segments
            .values()
            .filter(|segment| !segment.finished)
            .map(|segment| segment.first)
            .collect();
        for first in unfinished {
            let Some(last) = self.disk.segments.get(&first).map(|segment| segment.last) else { continue };
            let Some(next) = self.successor(last).filter(|next| self.disk.segments.contains_key(next)) else {
                continue;
            };
            if self.writing == Some(first) {
                continue;
            }
            if let Some(segment) = self.disk.segments.get_mut(&first) {
                segment::finish(&segment.file, segment.end, last, next)?;
                segment.finished = true;
                segment.synced = segment.synced.min(segment.end - 1);
            }
        }
        Ok(())
    }

    fn is_worth_a_hole(&self) -> bool {
        let worth = (self.disk.bytes / PUNCH_SHARE).clamp(PUNCH_BYTES_MIN, PUNCH_BYTES_MAX);
        let mut segments = self.disk.segments.values();
        segments.next().is_some_and(|segment| segment.start - RECORDS_START >= segment.punched + worth)
    }

    /// The disk has something to give back.
    pub(crate) fn has_to_tidy_up(&self) -> bool {
        !self.garbage.is_empty() || self.is_worth_a_hole()
    }

    /// Hands segments that left the log to the spiller, which unlinks them; `unsent`: only after the marks are durable.
    pub(crate) fn discard_segments(&mut self, gone: Vec<Segment>, unsent: bool) {
        for segment in gone {
            if self.current == Some(segment.first) {
                self.current = None;
            }
            self.garbage.push((segment.path, unsent));
        }
    }
}

/// A record's bytes, without encoding it.
fn record_bytes(request: &MirrorRequest) -> u64 {
    let body = match &request.body {
        Body::Barrier { previous } => previous.len() * crate::codec::PREVIOUS_BYTES,
        Body::Check { .. } => 16,
        _ => request.payload_bytes(),
    };
    (crate::codec::HEADER_BYTES + body) as u64
}

/// The spiller's work in turns, each of two halves between which the log's other users go on.
pub(crate) struct Spiller {
    index: Index,
    plan: Option<Plan>,
}

impl Spiller {
    pub(crate) fn new(index: Index) -> Self {
        Self { index, plan: None }
    }

    /// Decides what to write next.
    pub(crate) fn plan(&mut self, core: &mut Core) {
        let plan = core.plan();
        core.writing = plan.as_ref().and_then(|plan| plan.append_to.as_ref()).map(|(first, _, _)| *first);
        self.plan = plan;
    }

    /// Writes it, then unlinks and punches; syncs if there was nothing to write and someone waits for that.
    pub(crate) fn carry_out(&mut self, shared: &Shared) {
        let idle = match self.plan.take() {
            Some(plan) => {
                store(shared, &mut self.index, plan);
                false
            }
            None => true,
        };
        tidy_up(shared, &mut self.index);
        if idle && shared.core.lock().wants_sync() {
            sync(shared, Epoch(u64::MAX));
        }
    }

    /// A whole turn, or the rest of the one that was begun.
    #[cfg(feature = "simulation")]
    pub(crate) fn turn(&mut self, shared: &Shared) {
        if self.plan.is_none() {
            self.plan(&mut shared.core.lock());
        }
        self.carry_out(shared);
    }
}

/// Takes records out of memory into segments, keeps the index, unlinks and punches what has drained.
/// Blocks on page-cache writes and on the directory's sync. Ends when `Core::stopping` is set.
pub(crate) fn run(shared: &Shared, mut spiller: Spiller) {
    loop {
        {
            let mut core = shared.core.lock();
            loop {
                if core.stopping {
                    break;
                }
                if core.has_to_tidy_up() || core.cut_after.is_some() || core.first_to_spill().is_some() {
                    break;
                }
                if !core.live && core.waiters.waits_durable() && core.queue_synced() < core.last_closed {
                    break;
                }
                core.spiller_sleeps = true;
                let ticked = shared.spill_wake.wait_for(&mut core, TICK).timed_out();
                core.spiller_sleeps = false;
                if ticked {
                    break;
                }
            }
            if core.stopping {
                spiller.index.flush();
                return;
            }
            spiller.plan(&mut core);
        }
        spiller.carry_out(shared);
    }
}

fn store(shared: &Shared, index: &mut Index, plan: Plan) {
    let Some(first) = plan.records.first().map(|record| record.sequence.0) else { return };
    let result = write(shared, &plan, first);
    let mut due = Vec::new();
    let mut core = shared.core.lock();
    core.writing = None;
    if core.cuts != plan.cuts {
        // What was being written is no part of the log any more.
        if let (Ok((target, file, ..)), None) = (&result, &plan.append_to)
            && !core.disk.segments.contains_key(target)
        {
            drop(Arc::clone(file));
            core.garbage.push((segment::path_of(shared.folder.dir(), *target), true));
        } else if let Some((target, file, _)) = &plan.append_to
            && let Some(segment) = core.disk.segments.get(target)
            && let Err(error) = file.set_len(segment.end)
        {
            log::error!("queue: {error}");
        }
        return;
    }
    match result {
        Ok((target, file, places, end)) => {
            if let Some((finished, ..)) = plan.finish
                && let Some(segment) = core.disk.segments.get_mut(&finished)
            {
                segment.finished = true;
                segment.synced = segment.synced.min(segment.end - 1);
            }
            if plan.append_to.is_none() {
                let path = segment::path_of(shared.folder.dir(), target);
                core.disk.segments.insert(target, Segment::new(target, file, path, RECORDS_START));
                core.current = Some(target);
            }
            let mut entries = Vec::with_capacity(places.len());
            for (at, record) in plan.records.iter().enumerate() {
                let end = places.get(at + 1).copied().unwrap_or(end);
                let crc = match &record.body {
                    Body::Write { crc, .. } => *crc,
                    _ => crc32c::crc32c(&crate::codec::encode_header(record).body),
                };
                entries.push(IndexRecord::new(target, places[at], end, record, crc));
                let key = record.sequence.0;
                if let Some(held) = core.take(key)
                    && held.applied
                {
                    core.note_applied(key);
                }
                core.disk.add(target, record, end);
            }
            core.retire_disk();
            core.settle(&mut due);
            drop(core);
            index.insert(&entries);
        }
        Err(error) => {
            if plan.append_to.is_none() {
                core.garbage.push((segment::path_of(shared.folder.dir(), first), false));
            }
            core.give_up(error.to_string(), first, &mut due);
            drop(core);
            shared.arrived.notify_all();
        }
    }
    shared.spilled.notify_all();
    waiters::call(due);
}

type Written = (u64, Arc<Handle>, Vec<u64>, u64);

fn write(shared: &Shared, plan: &Plan, first: u64) -> io::Result<Written> {
    let budget = shared.queue_bytes_max;
    let bytes: u64 = plan.records.iter().map(|record| record_bytes(record)).sum();
    let used = shared.core.lock().disk.disk_bytes();
    if used + bytes > budget {
        return Err(io::Error::other(format!("its budget of {budget} bytes is spent")));
    }
    if let Some((_, file, end, last, next)) = &plan.finish {
        segment::finish(file, *end, *last, *next)?;
    }
    let (target, file, offset) = match &plan.append_to {
        Some((target, file, end)) => (*target, Arc::clone(file), *end),
        None => {
            let file = segment::create(&shared.folder, first, &lun_table(shared))?;
            (first, Arc::new(file), RECORDS_START)
        }
    };
    let (places, end) = segment::write(&file, offset, &plan.records)?;
    Ok((target, file, places, end))
}

pub(crate) fn lun_table(shared: &Shared) -> LunTable {
    shared.config.luns.iter().map(|lun| (lun.uuid, lun.generation)).collect()
}

/// Unlinks, punches, and has the index forget.
fn tidy_up(shared: &Shared, index: &mut Index) {
    let (garbage, punch, first, waiting, cut_after) =
        {
            let mut core = shared.core.lock();
            if let Err(error) = core.finish_runs() {
                log::error!("queue: {error}");
            }
            let garbage = std::mem::take(&mut core.garbage);
            let cut_after = core.cut_after.take();
            let punch = core.is_worth_a_hole().then(|| core.disk.segments.values_mut().next()).flatten();
            let punch = punch.map(|segment| {
                segment.punched = segment.start - RECORDS_START;
                (Arc::clone(&segment.file), segment.start)
            });
            let first =
                core.disk.segments.values().next().map(|segment| {
                    segment.first.max(segment.marks.front().map_or(0, |_| core.durable_last + 1))
                });
            (garbage, punch, first, core.disk.records, cut_after)
        };
    let mut marked = true;
    if garbage.iter().any(|(_, unsent)| *unsent) {
        for map in &shared.maps {
            if let Err(error) = map.flush() {
                log::error!("region map {}: {error}", map.path().display());
                marked = false;
            }
        }
    }
    // What can't be marked is found again at the next mount.
    for (path, _) in garbage.into_iter().filter(|(_, unsent)| marked || !unsent) {
        if let Err(error) = shared.folder.remove(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{}: {error}", path.display());
        }
    }
    if let Some((file, start)) = punch
        && let Err(error) = segment::punch(&file, start)
    {
        log::debug!("no hole in the drained part of the queue: {error}");
    }
    if let Some(last) = cut_after {
        index.remove_after(last);
    }
    match first {
        Some(first) => index.forget_before(first, waiting),
        None => index.discard(),
    }
}

/// fdatasyncs the segments that have something of the epochs up to `epoch`. Callers share one sync.
pub(crate) fn sync(shared: &Shared, epoch: Epoch) {
    let _turn = shared.sync_turn.lock();
    let files: Vec<(u64, Arc<Handle>, u64)> = {
        let core = shared.core.lock();
        core.disk
            .segments
            .values()
            .filter(|segment| segment.synced < segment.end)
            .filter(|segment| segment.marks.front().is_some_and(|mark| mark.epoch <= epoch))
            .map(|segment| (segment.first, Arc::clone(&segment.file), segment.end))
            .collect()
    };
    for (first, file, end) in files {
        let result = file.sync_data();
        let mut due = Vec::new();
        let mut core = shared.core.lock();
        match result {
            Ok(()) => {
                if let Some(segment) = core.disk.segments.get_mut(&first) {
                    segment.synced = segment.synced.max(end.min(segment.end));
                }
                core.settle(&mut due);
            }
            Err(error) => {
                core.give_up(format!("sync: {error}"), first, &mut due);
                shared.arrived.notify_all();
            }
        }
        drop(core);
        waiters::call(due);
    }
}
