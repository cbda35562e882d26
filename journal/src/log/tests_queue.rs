//! The queue on disk: outages, restarts, damage, budget.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::tests::*;
use super::*;
use crate::ids::Incarnation;
use std::path::Path;
use std::sync::mpsc;

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A log whose peer is in sync and gone again, and the epoch that the peer has.
fn after_outage(dir: &Path) -> (Arc<MirrorLog>, Epoch) {
    let log = MirrorLog::open(config(dir, 1)).unwrap();
    source(&log, LUN);
    log.begin_session(&[created(0)]).unwrap();
    let (epoch, _) = sync_fully(&log);
    log.end_session();
    (log, epoch)
}

/// Writes `count` requests, a barrier after each `each`; all of them are closed.
fn fill(log: &MirrorLog, count: u64, each: u64, bytes: usize) -> Epoch {
    for index in 0..count {
        write(log, LUN, (index % 64) * crate::REGION_BYTES + (index / 64 % 2) * 65536, index as u8, bytes);
        if index % each == each - 1 {
            log.barrier(LUN);
        }
    }
    log.barrier(LUN)
}

fn spilled(log: &MirrorLog) {
    until("all in the queue", || log.status().memory_bytes == 0);
}

fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let firsts = segment::list(&dir.into()).unwrap();
    firsts.into_iter().map(|first| segment::path_of(dir, first)).collect()
}

/// The directory as a crash of the process would leave it.
fn crash_copy(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    fn copy_all(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir(&to).unwrap();
                copy_all(&entry.path(), &to);
            } else {
                std::fs::copy(entry.path(), &to).unwrap();
            }
        }
    }
    copy_all(dir, copy.path());
    copy
}

fn reopened(dir: &Path, clean: bool) -> Arc<MirrorLog> {
    let mut config = config(dir, 2);
    config.luns[0].clean = clean;
    let log = MirrorLog::open(config).unwrap();
    source(&log, LUN);
    log
}

fn writes(taken: &[Arc<MirrorRequest>]) -> Vec<u8> {
    taken
        .iter()
        .filter(|request| request.origin != Origin::Resync)
        .filter_map(|request| match &request.body {
            Body::Write { payload, crc, .. } => {
                assert_eq!(crc32c::crc32c(payload), *crc);
                Some(payload[0])
            }
            _ => None,
        })
        .collect()
}

fn in_order(taken: &[Arc<MirrorRequest>]) -> bool {
    taken.windows(2).all(|pair| pair[0].sequence < pair[1].sequence)
}

#[test]
fn outage_spills_and_replay_is_in_order_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (log, epoch) = after_outage(dir.path());
    let last = fill(&log, 3000, 10, 65536);
    spilled(&log);
    let status = log.status();
    assert_eq!(status.queued_requests, 3000);
    assert!(status.queue_disk_bytes > 3000 * 65536);
    assert!(segments(dir.path()).len() >= 3);
    assert_eq!(QueueView::open(dir.path()).unwrap().records(false).unwrap().len(), 3300);

    let start = log.begin_session(&[at(0, epoch)]).unwrap();
    assert!(start.resync.is_empty());
    assert_eq!(start.gather, [LUN]);
    let newest = write(&log, LUN, 0, 99, 4096).epoch;
    log.barrier(LUN);
    let taken = take_until(&log, barrier_of(newest));
    assert!(in_order(&taken));
    let expected: Vec<u8> = (0..3000u64).map(|index| index as u8).chain([99]).collect();
    assert_eq!(writes(&taken), expected);
    log.durable(last);
    log.durable(newest);
    until("segments unlinked", || segments(dir.path()).is_empty());
    until("index removed", || !crate::queue::index::path_of(dir.path()).exists());
    assert_eq!(log.status().queue_disk_bytes, 0);
    assert_eq!(log.status().waiting_requests, 0);
}

#[test]
fn memory_full_goes_over_disk_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), 1);
    config.memory_bytes_max = 4 << 20;
    let log = MirrorLog::open(config).unwrap();
    source(&log, LUN);
    log.begin_session(&[created(0)]).unwrap();
    sync_fully(&log);
    let mut expected = Vec::new();
    let mut got = Vec::new();
    for round in 0..6u8 {
        for index in 0..200u64 {
            write(&log, LUN, (index % 64) << 20, round, 65536);
            expected.push(round);
        }
        let epoch = log.barrier(LUN);
        until("spilled", || log.status().memory_bytes <= 8 << 20);
        assert!(log.status().queued_requests > 0, "nothing went to disk in round {round}");
        if round % 2 == 1 {
            let taken = take_until(&log, barrier_of(epoch));
            assert!(in_order(&taken));
            got.extend(writes(&taken));
            log.durable(epoch);
        }
    }
    assert_eq!(got, expected);
    until("segments unlinked", || segments(dir.path()).is_empty());
    write(&log, LUN, 0, 1, 4096);
    assert_eq!(log.status().queued_requests, 0, "memory is free again");
}

#[test]
fn outage_between_memory_and_disk_keeps_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), 1);
    config.memory_bytes_max = 4 << 20;
    let log = MirrorLog::open(config).unwrap();
    source(&log, LUN);
    log.begin_session(&[created(0)]).unwrap();
    let (epoch, _) = sync_fully(&log);
    let last = fill(&log, 300, 7, 65536);
    until("overflow", || log.status().queued_requests > 0);
    log.end_session();
    spilled(&log);
    // The older part lies in later files now; also for who opens it after a clean stop.
    let durable = log.close();
    assert_eq!(durable, [(LUN, epoch)]);
    drop(log);
    assert_eq!(QueueView::open(dir.path()).unwrap().verify().unwrap(), Vec::<String>::new());
    let log = reopened(dir.path(), true);
    let start = log.begin_session(&[at(0, epoch)]).unwrap();
    assert!(start.resync.is_empty(), "{:?}", start.resync);
    let taken = take_until(&log, barrier_of(last));
    assert!(in_order(&taken));
    assert_eq!(writes(&taken).len(), 300);
}

#[test]
fn clean_stop_keeps_queue_and_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (log, epoch) = after_outage(dir.path());
    fill(&log, 50, 5, 4096);
    log.close();
    drop(log);
    let log = reopened(dir.path(), true);
    assert_eq!(log.status().queued_requests, 50);
    let newest = write(&log, LUN, 0, 77, 4096).epoch;
    log.barrier(LUN);
    let start = log.begin_session(&[at(0, epoch)]).unwrap();
    assert!(start.resync.is_empty(), "{:?}", start.resync);
    let taken = take_until(&log, barrier_of(newest));
    let mut last = epoch;
    for request in &taken {
        if let Body::Barrier { previous } = &request.body {
            assert_eq!(previous[..], [(LUN, last)]);
            last = request.epoch;
        }
    }
    assert_eq!(writes(&taken).len(), 51);
    log.durable(newest);
    assert_eq!(log.close(), [(LUN, newest)]);
}

#[test]
fn crash_keeps_a_prefix_that_ends_with_a_barrier_and_resyncs_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (log, epoch) = after_outage(dir.path());
    let kept = fill(&log, 40, 4, 4096);
    write(&log, LUN, 5 << 20, 1, 4096);
    spilled(&log);
    let copy = crash_copy(dir.path());
    let log = reopened(copy.path(), false);
    assert_eq!(log.status().queued_requests, 40);
    assert!(log.status().resync_regions_left >= 1);
    let start = log.begin_session(&[at(0, epoch)]).unwrap();
    assert_eq!(start.resync.len(), 1);
    let (_, taken) = sync_fully(&log);
    assert_eq!(writes(&taken).len(), 40);
    let begin = taken.iter().position(|request| matches!(request.body, Body::ResyncBegin { .. })).unwrap();
    assert!(barrier_of(kept)(&taken[begin - 1]));
    assert_eq!(log.status().resync_regions_left, 0);
}

#[test]
fn torn_tail_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = after_outage(dir.path());
    fill(&log, 40, 4, 4096);
    spilled(&log);
    let copy = crash_copy(dir.path());
    let path = segments(copy.path()).pop().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 50).unwrap();
    let log = reopened(copy.path(), false);
    assert_eq!(log.status().queued_requests, 36);
}

#[test]
fn flipped_byte_is_found_by_verify_and_by_the_next_mount() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let (log, epoch) = after_outage(dir.path());
    fill(&log, 40, 4, 4096);
    log.close();
    drop(log);
    assert_eq!(QueueView::open(dir.path()).unwrap().verify().unwrap(), Vec::<String>::new());
    let path = segments(dir.path()).pop().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"x", 4096 + 10 * 4256).unwrap();
    assert_eq!(QueueView::open(dir.path()).unwrap().verify().unwrap().len(), 1);
    let log = reopened(dir.path(), true);
    let left = log.status().queued_requests;
    assert!(left < 40 && left.is_multiple_of(4), "{left}");
    let start = log.begin_session(&[at(0, epoch)]).unwrap();
    assert_eq!(start.resync.len(), 1);
    let (_, taken) = sync_fully(&log);
    let resynced =
        taken.iter().filter(|request| request.origin == Origin::Resync && request.range().is_some());
    assert!(resynced.count() >= 40, "each region of the queue is sent");
}

#[test]
fn record_damaged_while_it_waits_ends_the_session_and_is_resynced() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let (log, epoch) = after_outage(dir.path());
    fill(&log, 40, 4, 4096);
    spilled(&log);
    let path = segments(dir.path()).pop().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"x", 4096 + 10 * 4256).unwrap();
    log.begin_session(&[at(0, epoch)]).unwrap();
    assert!(matches!(log.next(WAIT), Next::Ended));
    let start = log.begin_session(&[at(0, epoch)]).unwrap();
    assert_eq!(start.resync.len(), 1);
    let (_, taken) = sync_fully(&log);
    assert_eq!(writes(&taken).len(), 8);
    assert_eq!(log.status().queue_given_up, None);
}

#[test]
fn index_missing_or_damaged_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = after_outage(dir.path());
    fill(&log, 40, 4, 4096);
    log.close();
    drop(log);
    let index = crate::queue::index::path_of(dir.path());
    assert!(index.exists());
    std::fs::remove_dir_all(&index).unwrap();
    let log = reopened(dir.path(), true);
    assert_eq!(log.status().queued_requests, 40);
    log.close();
    drop(log);
    assert_eq!(QueueView::open(dir.path()).unwrap().verify().unwrap(), Vec::<String>::new());
    std::fs::remove_dir_all(&index).unwrap();
    std::fs::write(&index, b"not a directory").unwrap();
    let mut config = config(dir.path(), 3);
    config.luns[0].clean = true;
    let log = MirrorLog::open(config).unwrap();
    assert_eq!(log.status().queued_requests, 40);
}

#[test]
fn spent_budget_keeps_a_prefix_and_resyncs_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), 1);
    config.queue_bytes_max = Some(1 << 20);
    let log = MirrorLog::open(config).unwrap();
    source(&log, LUN);
    log.begin_session(&[created(0)]).unwrap();
    let (epoch, _) = sync_fully(&log);
    log.end_session();
    for index in 0..100u64 {
        write(&log, LUN, (index % 64) << 20, 1, 65536);
        log.barrier(LUN);
        if index == 5 {
            spilled(&log);
        }
    }
    until("given up", || log.status().queue_given_up.is_some());
    let kept = log.status().queued_requests;
    assert!((6..17).contains(&kept), "{kept}");
    write(&log, LUN, 63 << 20, 2, 4096);
    assert!(log.status().resync_regions_left > 0);
    let start = log.begin_session(&[at(0, epoch)]).unwrap();
    assert_eq!(start.resync.len(), 1);
    let (_, taken) = sync_fully(&log);
    assert_eq!(writes(&taken).len() as u64, kept);
    assert_eq!(log.status().queue_given_up, None);
    assert_eq!(log.status().resync_regions_left, 0);
}

#[test]
fn second_process_is_refused_but_may_look() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, _) = after_outage(dir.path());
    assert!(matches!(MirrorLog::open(config(dir.path(), 2)), Err(LogError::InUse { .. })));
    assert!(QueueView::open(dir.path()).unwrap().records(true).unwrap().is_empty());
}

#[test]
fn waits_end_as_the_policy_says() {
    let dir = tempfile::tempdir().unwrap();
    let (log, epoch) = after_outage(dir.path());
    let (sender, outcomes) = mpsc::channel();
    let wait = |appended: Appended| {
        for durable in [false, true] {
            let sender = sender.clone();
            let waiter: Waiter = Box::new(move |outcome| sender.send((durable, outcome)).unwrap());
            if durable {
                log.when_durable(appended.epoch, waiter);
            } else {
                log.when_applied(appended.sequence, waiter);
            }
        }
    };
    wait(write(&log, LUN, 0, 1, 4096));
    let first = log.barrier(LUN);
    spilled(&log);
    log.set_on_outage(OnOutage::Block);
    assert!(outcomes.recv_timeout(Duration::from_millis(300)).is_err(), "block ended a wait");
    log.set_on_outage(OnOutage::Queue);
    let mut ended = [outcomes.recv_timeout(WAIT).unwrap(), outcomes.recv_timeout(WAIT).unwrap()];
    ended.sort_by_key(|(durable, _)| *durable);
    assert_eq!(ended, [(false, Waited::Queued), (true, Waited::Queued)]);
    assert!(log.shared.core.lock().queue_synced() >= first, "said to be durable in the queue before it was");

    log.set_on_outage(OnOutage::Readonly);
    wait(write(&log, LUN, 0, 2, 4096));
    assert_eq!(outcomes.recv_timeout(WAIT).unwrap().1, Waited::Failed);
    assert_eq!(outcomes.recv_timeout(WAIT).unwrap().1, Waited::Failed);

    log.begin_session(&[at(0, epoch)]).unwrap();
    let appended = write(&log, LUN, 0, 3, 4096);
    wait(appended);
    log.barrier(LUN);
    take_until(&log, barrier_of(appended.epoch));
    log.end_session();
    assert_eq!(outcomes.recv_timeout(WAIT).unwrap().1, Waited::Failed);
}

#[test]
fn peer_ahead_of_what_we_heard_is_not_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = after_outage(dir.path());
    write(&log, LUN, 0, 1, 4096);
    let first = log.barrier(LUN);
    write(&log, LUN, 0, 2, 4096);
    let second = log.barrier(LUN);
    let start = log.begin_session(&[at(0, first)]).unwrap();
    assert_eq!(start.first_epoch, second);
    assert_eq!(writes(&take_until(&log, barrier_of(second))), [2]);
}

/// The story: the mirror lost power twice in a row, each time when its last label was not on the disk yet. The second time
/// the label was two epochs behind what we had heard to be durable, and everything was sent again, though nothing was
/// missing. Now the first barrier names what we had heard, and the peer brings its label there before it goes on: however
/// often power fails, the label is one epoch behind at most.
#[test]
fn power_cuts_of_the_mirror_in_a_row_cost_no_resync() {
    let dir = tempfile::tempdir().unwrap();
    let (log, label) = after_outage(dir.path());
    let (mut said, mut heard) = (label, label);
    for cut in 0..4 {
        write(&log, LUN, 0, cut, 4096);
        let epoch = log.barrier(LUN);
        let start = log.begin_session(&[at(0, said)]).unwrap();
        assert_eq!(start.resync, [], "power cut {cut}");
        assert_eq!(start.first_epoch, epoch);
        let taken = take_until(&log, barrier_of(epoch));
        assert_eq!(writes(&taken), [cut]);
        let barrier = &taken.last().unwrap().body;
        assert!(matches!(barrier, Body::Barrier { previous } if *previous == [(LUN, heard)]), "{barrier:?}");
        log.durable(epoch);
        log.end_session();
        (said, heard) = (heard, epoch);
    }
    // An older one is still not taken for it.
    assert_eq!(log.begin_session(&[at(0, Epoch(said.0 - 1))]).unwrap().resync.len(), 1);
}

#[test]
fn unknown_peer_state_sends_all_regions_and_nothing_of_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let (log, epoch) = after_outage(dir.path());
    fill(&log, 40, 4, 4096);
    spilled(&log);
    let start = log.begin_session(&[at(0, Epoch(epoch.0 - 2))]).unwrap();
    assert_eq!(start.resync.len(), 1);
    let (_, taken) = sync_fully(&log);
    assert!(writes(&taken).is_empty());
    assert!(taken.iter().any(|request| matches!(request.body, Body::ResyncBegin { whole: true })));
    assert_eq!(taken.iter().filter(|request| request.range().is_some()).count(), 64);
    until("segments unlinked", || segments(dir.path()).is_empty());
}

#[test]
fn resync_goes_on_after_an_outage_with_what_was_not_durable() {
    let dir = tempfile::tempdir().unwrap();
    let log = MirrorLog::open(config(dir.path(), 1)).unwrap();
    let source = source(&log, LUN);
    log.begin_session(&[created(0)]).unwrap();
    let begin = take_until(&log, |request| matches!(request.body, Body::Barrier { .. }));
    let begun = begin.last().unwrap().epoch;
    log.durable(begun);
    // Every other one: the holes between are passed over.
    until("regions read", || source.asked.load(std::sync::atomic::Ordering::SeqCst) == 32);
    log.end_session();
    assert!(log.list(usize::MAX).iter().all(|request| request.range().is_none()), "resync entries were kept");
    assert_eq!(log.status().resync_regions_left, 64);
    let peer = PeerLun { resyncing: true, ..at(0, begun) };
    let start = log.begin_session(&[peer]).unwrap();
    assert_eq!(start.resync.len(), 1);
    sync_fully(&log);
    assert_eq!(log.status().resync_regions_left, 0);
    until("marks cleared", || log.status().marked_regions == 0);
}

#[test]
fn check_that_differs_sends_its_region() {
    let dir = tempfile::tempdir().unwrap();
    let log = MirrorLog::open(config(dir.path(), 1)).unwrap();
    source(&log, LUN);
    log.begin_session(&[created(0)]).unwrap();
    sync_fully(&log);
    let body = Body::Check { offset: 4 << 20, length: 4096, hash: [0; 16] };
    let appended = log.append(LUN, Origin::Resync, body);
    log.checked(appended.sequence, false);
    let (_, taken) = sync_fully(&log);
    assert!(
        taken
            .iter()
            .any(|request| request.range() == Some((4 << 20, 4096)) && request.payload_bytes() == 4096)
    );
}

#[test]
fn one_luns_resync_leaves_the_others_replay_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), 1);
    config.luns.push(lun(1));
    let log = MirrorLog::open(config).unwrap();
    source(&log, LUN);
    source(&log, LunId(1));
    log.begin_session(&[created(0), created(1)]).unwrap();
    let mut durable = [Epoch(0); 2];
    let mut ends = Vec::new();
    while ends.len() < 2 || durable.iter().any(|epoch| !ends.contains(epoch)) {
        let Next::Request(request) = log.next(WAIT) else { panic!("no record") };
        match &request.body {
            Body::Barrier { previous } => {
                for (lun, before) in previous {
                    assert_eq!(*before, durable[usize::from(lun.0)]);
                    durable[usize::from(lun.0)] = request.epoch;
                }
                log.durable(request.epoch);
            }
            Body::ResyncEnd => ends.push(request.epoch),
            _ => {}
        }
    }
    log.end_session();
    let last = {
        write(&log, LUN, 0, 1, 4096);
        write(&log, LunId(1), 0, 2, 4096);
        log.barrier(LUN)
    };
    let start = log.begin_session(&[created(0), at(1, durable[1])]).unwrap();
    assert_eq!(start.gather, [LunId(1)]);
    assert_eq!(start.resync.len(), 1);
    let taken = take_until(&log, barrier_of(last));
    assert_eq!(writes(&taken), [2]);
    assert_eq!(taken.last().unwrap().body, Body::Barrier { previous: vec![(LunId(1), durable[1])] });
}

#[test]
fn killed_process_leaves_a_prefix_that_ends_with_a_barrier() {
    const DIR: &str = "MIRRORFS_TEST_QUEUE_DIR";
    if let Some(dir) = std::env::var_os(DIR) {
        // The child: writes until it is killed.
        let (log, _) = after_outage(Path::new(&dir));
        loop {
            fill(&log, 64, 4, 16384);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "log::tests_queue::killed_process_leaves_a_prefix_that_ends_with_a_barrier"])
        .env(DIR, dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("something in the queue", || {
        let bytes = |path: &std::path::PathBuf| std::fs::metadata(path).map_or(0, |data| data.len());
        segment::list(&dir.path().into()).is_ok_and(|firsts| {
            firsts.iter().map(|first| bytes(&segment::path_of(dir.path(), *first))).sum::<u64>() > 20 << 20
        })
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let log = reopened(dir.path(), false);
    let kept = log.list(usize::MAX);
    let queue: Vec<_> =
        kept.iter().filter(|request| request.sequence.incarnation() == Incarnation(1)).collect();
    assert!(queue.len() > 100);
    assert!(matches!(queue.last().unwrap().body, Body::Barrier { .. }));
    // All but the marked regions are in the queue: what is kept has no hole.
    let bytes: Vec<u8> = writes(&kept);
    assert!(bytes.iter().enumerate().all(|(index, byte)| *byte == (index % 64) as u8));
}

#[test]
fn view_shows_one_record_and_lengths_without_payloads() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = after_outage(dir.path());
    let appended = write(&log, LUN, 1 << 20, 7, 4096);
    log.barrier(LUN);
    spilled(&log);
    let view = QueueView::open(dir.path()).unwrap();
    let shown = view.show(appended.sequence).unwrap().unwrap();
    assert!(matches!(&shown.body, Body::Write { payload, .. } if payload[..] == [7; 4096]));
    assert_eq!(view.show(Sequence(1)).unwrap(), None);
    let listed = view.records(false).unwrap();
    assert_eq!(listed.iter().filter_map(MirrorRequest::range).collect::<Vec<_>>(), [(1 << 20, 4096)]);
}

#[test]
fn flush_during_an_outage_returns_once_the_queue_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = after_outage(dir.path());
    let threads: Vec<_> = (0..4u64)
        .map(|thread| {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for index in 0..20 {
                    write(&log, LUN, (thread * 16 + index % 16) << 20, index as u8, 8192);
                    let epoch = log.barrier(LUN);
                    log.sync_queue(epoch);
                    assert!(log.shared.core.lock().disk.first_unsynced().is_none_or(|first| first > epoch));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(log.status().queued_requests, 80);
}

#[test]
fn regions_of_a_durable_queue_are_not_in_use_after_a_clean_stop() {
    let dir = tempfile::tempdir().unwrap();
    let (log, epoch) = after_outage(dir.path());
    let last = fill(&log, 20, 5, 4096);
    log.locally_synced(LUN, last);
    log.close();
    drop(log);
    let log = reopened(dir.path(), true);
    assert!(!log.is_marked(LUN, RegionNo(0)), "the queue covers it");
    assert!(log.status().marked_regions >= 20);
    log.begin_session(&[at(0, epoch)]).unwrap();
    take_until(&log, barrier_of(last));
    log.durable(last);
    until("marks cleared", || log.status().marked_regions == 0);
}

#[test]
fn closing_a_given_up_queue_leaves_the_rest_to_a_resync() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), 1);
    config.queue_bytes_max = Some(4 << 20);
    config.memory_bytes_max = 4 << 20;
    let log = MirrorLog::open(config).unwrap();
    source(&log, LUN);
    log.begin_session(&[created(0)]).unwrap();
    let (epoch, _) = sync_fully(&log);
    fill(&log, 400, 4, 65536);
    until("given up", || log.status().queue_given_up.is_some());
    assert!(matches!(log.next(WAIT), Next::Ended), "the session goes with what it may have sent");
    log.close();
    drop(log);
    let log = reopened(dir.path(), true);
    let start = log.begin_session(&[at(0, epoch)]).unwrap();
    assert_eq!(start.resync.len(), 1);
    let (_, taken) = sync_fully(&log);
    assert!(in_order(&taken));
    assert_eq!(log.status().resync_regions_left, 0);
}
