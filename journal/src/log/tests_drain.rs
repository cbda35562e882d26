//! A queue that drains: what it takes on the disk meanwhile, and new writes beside it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::tests::*;
use super::*;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const REQUEST: usize = 64 << 10;
/// What a queue may take beyond three percent, whatever its length: the drained head of its first segment that is not worth a
/// hole yet, and the least that an index takes.
const SLACK: u64 = 512 << 10;

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that the files below a directory take on the disk.
fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => disk_bytes(&entry.path()),
            Ok(data) => data.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Segments and index together: never more than three percent above what waits, also while it drains.
#[test]
fn the_queue_takes_little_more_than_what_waits_in_it() {
    const REQUESTS: u64 = 4000;
    let dir = tempfile::tempdir().unwrap();
    let log = MirrorLog::open(config(dir.path(), 1)).unwrap();
    source(&log, LUN);
    log.begin_session(&[created(0)]).unwrap();
    let (durable, _) = sync_fully(&log);
    log.end_session();
    let mut epochs = Vec::new();
    for index in 0..REQUESTS {
        write(&log, LUN, (index % 64) << 20, index as u8, REQUEST);
        if index % 8 == 7 {
            epochs.push(log.barrier(LUN));
        }
    }
    until("all in the queue", || log.status().memory_bytes == 0);
    let queued = |log: &MirrorLog| log.status().queued_requests * REQUEST as u64;
    assert_eq!(queued(&log), REQUESTS * REQUEST as u64);
    let beyond = |log: &MirrorLog, slack: u64| {
        let (waiting, on_disk) = (queued(log), disk_bytes(dir.path()));
        let told = log.status().queue_disk_bytes;
        let index = disk_bytes(&dir.path().join("index"));
        let bound = waiting + waiting * 3 / 100 + slack;
        (on_disk.max(told) > bound)
            .then(|| format!("{on_disk} on disk, of it {index} the index's, {told} told, for {waiting}"))
    };
    assert_eq!(beyond(&log, 0), None);
    log.begin_session(&[at(0, durable)]).unwrap();
    for epoch in &epochs {
        take_until(&log, barrier_of(*epoch));
        log.durable(*epoch);
        let deadline = Instant::now() + WAIT;
        while let Some(shown) = beyond(&log, SLACK) {
            assert!(Instant::now() < deadline, "space is not given back: {shown}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    until("nothing left", || disk_bytes(&dir.path().join("index")) == 0);
    assert_eq!(log.status().queue_disk_bytes, 0);
}

/// Ends the threads also when an assertion fails beside them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A writer that never pauses, and a peer that takes what there is: neither stands still, and the queue empties although new
/// requests go through it.
#[test]
fn a_drain_neither_starves_nor_is_starved_by_new_writes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), 1);
    config.memory_bytes_max = 4 << 20;
    let log = MirrorLog::open(config).unwrap();
    source(&log, LUN);
    log.begin_session(&[created(0)]).unwrap();
    let (durable, _) = sync_fully(&log);
    log.end_session();
    for index in 0..1600u64 {
        write(&log, LUN, (index % 64) << 20, 1, REQUEST);
        if index % 8 == 7 {
            log.barrier(LUN);
        }
    }
    until("all in the queue", || log.status().memory_bytes == 0);
    log.begin_session(&[at(0, durable)]).unwrap();

    let stop = AtomicBool::new(false);
    let (written, taken) = (AtomicU64::new(0), AtomicU64::new(0));
    let longest_write = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            let mut index = 0u64;
            while !stop.load(Ordering::Acquire) {
                let begun = Instant::now();
                write(&log, LUN, (index % 64) << 20, 2, REQUEST / 4);
                if index % 8 == 7 {
                    log.barrier(LUN);
                }
                longest = longest.max(begun.elapsed());
                index += 1;
                written.fetch_add(1, Ordering::AcqRel);
                // Somewhat slower than the peer.
                std::thread::sleep(Duration::from_micros(400));
            }
            longest
        });
        let peer = scope.spawn(|| {
            let mut last = Sequence(0);
            let mut longest = Duration::ZERO;
            let mut begun = Instant::now();
            loop {
                match log.next(Duration::from_millis(50)) {
                    Next::Request(request) => {
                        assert!(request.sequence > last, "out of order");
                        last = request.sequence;
                        if matches!(request.body, Body::Barrier { .. }) {
                            log.durable(request.epoch);
                        } else {
                            log.applied(request.sequence);
                        }
                        taken.fetch_add(1, Ordering::AcqRel);
                        std::thread::sleep(Duration::from_micros(150));
                    }
                    Next::Ended => panic!("the session ended"),
                    _ if stop.load(Ordering::Acquire) && log.status().waiting_requests == 0 => {
                        return longest;
                    }
                    _ => {}
                }
                longest = longest.max(begun.elapsed());
                begun = Instant::now();
            }
        });
        let stopping = Stop(&stop);
        // The drain comes through while the writer writes: then nothing goes over the disk any more.
        until("the queue to be empty beside the writer", || log.status().queued_requests == 0);
        assert!(taken.load(Ordering::Acquire) > 1600);
        assert!(written.load(Ordering::Acquire) > 100, "the writer was starved");
        let (taken_then, written_then) = (taken.load(Ordering::Acquire), written.load(Ordering::Acquire));
        until("both to go on", || {
            taken.load(Ordering::Acquire) > taken_then + 100
                && written.load(Ordering::Acquire) > written_then + 100
        });
        log.barrier(LUN);
        drop(stopping);
        let longest = writer.join().unwrap();
        log.barrier(LUN);
        let silence = peer.join().unwrap();
        assert!(silence < Duration::from_secs(2), "the drain stood still for {silence:?}");
        longest
    });
    assert!(longest_write < Duration::from_secs(2), "a write waited for {longest_write:?}");
    assert_eq!(log.status().waiting_requests, 0);
}
