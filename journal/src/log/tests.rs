#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use crate::ids::{Generation, Incarnation, LunUuid, REGION_BYTES};
use bytes::Bytes;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

pub(super) const LUN: LunId = LunId(0);
pub(super) const WAIT: Duration = Duration::from_secs(10);

pub(super) fn lun(id: u16) -> LogLun {
    LogLun {
        id: LunId(id),
        uuid: LunUuid([id as u8 + 1; 16]),
        generation: Generation(7),
        name: format!("lun{id}"),
        size_bytes: 64 * REGION_BYTES,
        durable_epoch: Epoch(0),
        clean: true,
        all_regions: false,
    }
}

pub(super) fn config(dir: &Path, incarnation: u32) -> LogConfig {
    LogConfig {
        dir: dir.to_path_buf(),
        memory_bytes_max: 64 << 20,
        queue_bytes_max: None,
        incarnation: Incarnation(incarnation),
        luns: vec![lun(0)],
    }
}

pub(super) fn write(log: &MirrorLog, lun: LunId, offset: u64, byte: u8, length: usize) -> Appended {
    log.ensure_marked(lun, RegionNo::of(offset)).unwrap();
    let payload = Bytes::from(vec![byte; length]);
    let crc = crc32c::crc32c(&payload);
    log.append(lun, Origin::File(12), Body::Write { offset, payload, crc })
}

pub(super) fn created(id: u16) -> PeerLun {
    PeerLun { id: LunId(id), durable_epoch: Epoch(0), resyncing: false, created: true }
}

pub(super) fn at(id: u16, epoch: Epoch) -> PeerLun {
    PeerLun { id: LunId(id), durable_epoch: epoch, resyncing: false, created: false }
}

/// Takes records until the one that `last` picks, which comes last.
pub(super) fn take_until(log: &MirrorLog, last: impl Fn(&MirrorRequest) -> bool) -> Vec<Arc<MirrorRequest>> {
    let mut taken = Vec::new();
    loop {
        match log.next(WAIT) {
            Next::Request(request) => {
                taken.push(Arc::clone(&request));
                if last(&request) {
                    return taken;
                }
            }
            other => panic!("no record came: {other:?} after {} records", taken.len()),
        }
    }
}

pub(super) fn barrier_of(epoch: Epoch) -> impl Fn(&MirrorRequest) -> bool {
    move |request| matches!(request.body, Body::Barrier { .. }) && request.epoch == epoch
}

/// Source of a resync: each region is one write of its own number; or nothing at all where it is a hole.
pub(super) struct Regions {
    log: std::sync::Weak<MirrorLog>,
    lun: LunId,
    pub(super) asked: AtomicU64,
}

impl RegionSource for Regions {
    fn resync_region(&self, region: RegionNo, skip_holes: bool) -> std::io::Result<RegionNo> {
        let next = RegionNo(region.0 + 1);
        self.asked.fetch_add(1, Ordering::SeqCst);
        let Some(log) = self.log.upgrade() else { return Ok(next) };
        if region.0 % 2 == 1 {
            if !skip_holes {
                let body = Body::Discard { offset: region.start(), length: REGION_BYTES };
                log.append(self.lun, Origin::Resync, body);
            }
            return Ok(next);
        }
        let payload = Bytes::from(vec![region.0 as u8; 4096]);
        let crc = crc32c::crc32c(&payload);
        log.append(self.lun, Origin::Resync, Body::Write { offset: region.start(), payload, crc });
        // The next one is a hole.
        Ok(if skip_holes { RegionNo(region.0 + 2) } else { next })
    }
}

pub(super) fn source(log: &Arc<MirrorLog>, lun: LunId) -> Arc<Regions> {
    let source = Arc::new(Regions { log: Arc::downgrade(log), lun, asked: AtomicU64::new(0) });
    log.set_region_source(lun, Arc::clone(&source) as Arc<dyn RegionSource>);
    source
}

/// Plays a peer that stores all it gets, until the LUN's resync has ended.
pub(super) fn sync_fully(log: &MirrorLog) -> (Epoch, Vec<Arc<MirrorRequest>>) {
    let mut taken = Vec::new();
    let mut end = None;
    loop {
        let Next::Request(request) = log.next(WAIT) else { panic!("no record after {}", taken.len()) };
        taken.push(Arc::clone(&request));
        match request.body {
            Body::ResyncEnd => end = Some(request.epoch),
            Body::Barrier { .. } => {
                log.durable(request.epoch);
                if Some(request.epoch) == end {
                    return (request.epoch, taken);
                }
            }
            _ => log.applied(request.sequence),
        }
    }
}

#[test]
fn new_mirror_gets_all_regions_then_new_requests_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = MirrorLog::open(config(dir.path(), 1)).unwrap();
    let source = source(&log, LUN);
    write(&log, LUN, 0, 1, 4096);
    let start = log.begin_session(&[created(0)]).unwrap();
    assert_eq!(start.resync.len(), 1);
    let (_, taken) = sync_fully(&log);
    assert!(taken.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    assert!(matches!(taken[0].body, Body::ResyncBegin { whole: true }));
    assert_eq!(start.first_epoch, taken[0].epoch);
    assert!(!taken.iter().any(|request| matches!(request.body, Body::Discard { .. })), "a hole was sent");
    assert_eq!(source.asked.load(Ordering::SeqCst), 32, "holes are not looked at one by one");
    assert_eq!(log.status().resync_regions_left, 0);

    let appended = write(&log, LUN, 8192, 2, 4096);
    let (sender, waits) = mpsc::channel();
    let (applied, durable) = (sender.clone(), sender);
    log.when_applied(appended.sequence, Box::new(move |outcome| applied.send(("applied", outcome)).unwrap()));
    log.when_durable(appended.epoch, Box::new(move |outcome| durable.send(("durable", outcome)).unwrap()));
    assert_eq!(log.barrier(LUN), appended.epoch);
    assert_eq!(log.barrier(LUN), appended.epoch, "an empty epoch needs no barrier");
    let taken = take_until(&log, barrier_of(appended.epoch));
    assert_eq!(taken.len(), 2);
    log.applied(appended.sequence);
    assert_eq!(waits.recv_timeout(WAIT).unwrap(), ("applied", Waited::Mirrored));
    assert!(waits.try_recv().is_err());
    log.durable(appended.epoch);
    assert_eq!(waits.recv_timeout(WAIT).unwrap(), ("durable", Waited::Mirrored));
    assert_eq!(log.status().waiting_requests, 0);
    assert_eq!(log.close(), vec![(LUN, appended.epoch)]);
}

#[test]
fn epoch_closes_by_age_and_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let log = MirrorLog::open(LogConfig { memory_bytes_max: 512 << 20, ..config(dir.path(), 1) }).unwrap();
    source(&log, LUN);
    log.begin_session(&[created(0)]).unwrap();
    sync_fully(&log);
    let first = write(&log, LUN, 0, 1, 1 << 20).epoch;
    let mut last = first;
    for index in 0..64 {
        last = write(&log, LUN, index << 20, 1, 1 << 20).epoch;
    }
    assert!(last > first, "64 MiB and more in one epoch");
    let taken = take_until(&log, barrier_of(first));
    assert!(taken.iter().map(|request| request.payload_bytes()).sum::<usize>() <= 64 << 20);
    take_until(&log, barrier_of(last));
}

/// A pump that notes that it was called and takes what it finds.
struct Taker {
    log: std::sync::Weak<MirrorLog>,
    taken: Mutex<Vec<Sequence>>,
}

impl Pump for Taker {
    fn pump(&self) {
        let log = self.log.upgrade().unwrap();
        while let Some(Next::Request(request)) = log.next_in_memory() {
            self.taken.lock().push(request.sequence);
        }
    }

    fn receive(&self) -> bool {
        self.log.upgrade().unwrap().applied(self.taken.lock().pop().unwrap());
        true
    }

    fn leave(&self) {
        self.taken.lock().clear();
    }
}

/// A log whose session with a mirror that is new has begun.
fn with_new_mirror(dir: &std::path::Path) -> Arc<MirrorLog> {
    let log = MirrorLog::open(config(dir, 1)).unwrap();
    log.begin_session(&[created(0)]).unwrap();
    log
}

/// What waits in an eager log is sent by the thread that waits; a log that is not eager never calls the pump.
#[test]
fn whoever_waits_in_an_eager_log_pumps() {
    let dir = tempfile::tempdir().unwrap();
    let log = with_new_mirror(dir.path());
    while !matches!(log.next(Duration::ZERO), Next::Idle) {}
    let taker = Arc::new(Taker { log: Arc::downgrade(&log), taken: Mutex::default() });
    log.set_pump(Some(taker.clone()));
    let write = || log.append(LunId(0), Origin::Metadata, Body::Discard { offset: 0, length: 4096 });
    let lazy = write();
    log.when_applied(lazy.sequence, Box::new(|_| {}));
    assert!(taker.taken.lock().is_empty() && !log.is_eager() && !log.receive_answers());
    log.set_eager(true);
    let eager = write();
    assert!(taker.taken.lock().is_empty(), "an append alone sends nothing");
    log.when_applied(eager.sequence, Box::new(|_| {}));
    assert_eq!(*taker.taken.lock(), [lazy.sequence, eager.sequence]);
    write();
    log.barrier(LunId(0));
    assert_eq!(taker.taken.lock().len(), 4, "a Flush sends its epoch and the barrier");
    assert!(log.receive_answers() && taker.taken.lock().len() == 3, "an answer was taken");
    log.leave_answers();
    assert!(taker.taken.lock().is_empty(), "and nobody goes on");
    log.set_pump(None);
    write();
    log.barrier(LunId(0));
    assert!(taker.taken.lock().is_empty() && !log.receive_answers());
    assert!(log.wait_next(WAIT), "the dispatcher finds it");
}

/// The story: what a program writes at once may become several requests, on several connections; its reply left when the
/// last of them was answered, though an earlier one was still on its way.
#[test]
fn a_wait_for_a_request_waits_for_those_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = with_new_mirror(dir.path());
    let write = |region| {
        let offset = region * REGION_BYTES;
        log.append(LunId(0), Origin::Metadata, Body::Discard { offset, length: 4096 }).sequence
    };
    let (first, second) = (write(0), write(1));
    log.barrier(LunId(0));
    let third = write(2);
    while !matches!(log.next(Duration::ZERO), Next::Idle) {}
    let answered = Arc::new(AtomicU64::new(0));
    for sequence in [second, third] {
        let answered = Arc::clone(&answered);
        log.when_applied(
            sequence,
            Box::new(move |_| {
                answered.fetch_add(1, Ordering::SeqCst);
            }),
        );
    }
    log.applied(third);
    log.applied(second);
    assert_eq!(answered.load(Ordering::SeqCst), 0, "the first one is not stored yet");
    log.applied(first);
    assert_eq!(answered.load(Ordering::SeqCst), 2);
    // Known at once.
    log.when_applied(
        second,
        Box::new(move |_| {
            answered.fetch_add(1, Ordering::SeqCst);
        }),
    );
}
