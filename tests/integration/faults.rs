//! Each fault that two machines and a network can produce, once, under a running workload that fsyncs.
//!
//! While it lasts and when it is over a copy of the mirror, taken at one instant, is clean after journal replay and holds
//! every file whose fsync was confirmed (asynchronous mode: by `mirrorfs sync`). After healing both images are equal and
//! the queue is empty. The mode and the number of connections rotate.

use crate::Case;
use crate::outage::SmallDisk;
use crate::support::judge::{Copy, copy_of, difference};
use crate::support::machine::tool;
use crate::support::{FaultyLink, Pair, Setup, Way, e2fsck_clean, loop_mounted, wait_until};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) const CASES: &[Case] = &[
    ("peer_killed", || run(0, peer_killed)),
    ("primary_killed", || run(1, primary_killed)),
    ("both_killed", || run(2, both_killed)),
    ("link_cut", || run(3, |stage| stage.outage(FaultyLink::unplug))),
    ("connections_broken", || run(4, connections_broken)),
    ("one_way_loss_to_the_mirror", || run(5, |stage| stage.outage(|link| link.unplug_way(Way::ToMirror)))),
    ("one_way_loss_to_the_primary", || run(6, |stage| stage.outage(|link| link.unplug_way(Way::ToPrimary)))),
    ("flapping_every_second", || run(7, |stage| flapping(stage, Duration::from_secs(1), 3))),
    ("flapping_every_five_seconds", || run(8, |stage| flapping(stage, Duration::from_secs(5), 1))),
    ("a_fifth_of_the_datagrams_lost", || run(9, a_fifth_lost)),
    ("a_link_of_one_mib_a_second", || run(10, slow_link)),
    ("a_hundred_milliseconds_of_delay", || run(11, delayed_link)),
    ("datagrams_duplicated_and_forged", || run(12, forged)),
    ("a_bit_flipped_on_the_wire", || run(13, flipped)),
    ("the_peers_disk_is_full", || run(14, full_mirror)),
    ("the_queues_disk_is_full", || run(16, full_queue)),
    ("a_stalled_link_with_heartbeats", || run(15, stalled)),
    ("heartbeats_lost_both_ways_on_a_busy_link", || run(17, heartbeats_lost)),
    ("a_damaged_segment", || run(18, |stage| damaged(stage, is_segment))),
    ("damaged_sled_files", || run(20, |stage| damaged(stage, is_index))),
    ("the_judges_fail_when_they_should", || run(19, judges_fail)),
];

/// Writes numbered files, each fsynced, until it is stopped or fails.
struct Workload {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn content(index: usize) -> Vec<u8> {
    vec![index as u8 | 1; 1000 + index * 3701 % 30_000]
}

impl Workload {
    fn start(dir: PathBuf, confirmed: Arc<AtomicUsize>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (noted, stopping) = (confirmed, stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Acquire) {
                let index = noted.load(Ordering::Acquire);
                let path = dir.join(format!("f{index}"));
                let written =
                    fs::write(&path, content(index)).and_then(|()| fs::File::open(&path)?.sync_all());
                // Beside it what nobody fsyncs: names that come and go.
                let restless = dir.join(format!("restless-{}", index % 7));
                let _ = fs::write(dir.join("restless"), vec![3; index * 97 % 9000])
                    .and_then(|()| fs::rename(dir.join("restless"), &restless));
                if written.is_err() {
                    return;
                }
                noted.store(index + 1, Ordering::Release);
                std::thread::sleep(Duration::from_millis(4));
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops after the write under way, which may wait for the peer.
    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the workload");
        }
    }
}

/// A pair at work, its link, and what must be on the mirror by now.
struct Stage {
    // Unmounted before the pair's directory is removed.
    mirror_disk: Option<SmallDisk>,
    _queue_disk: Option<SmallDisk>,
    pair: Pair,
    link: FaultyLink,
    synchronous: bool,
    workload: Option<Workload>,
    confirmed: Arc<AtomicUsize>,
    /// Files known to be durable on the mirror.
    durable: usize,
    judged: usize,
}

fn run(row: usize, fault: fn(&mut Stage)) {
    let mut stage = Stage::start(row);
    stage.progress(5);
    stage.sync();
    stage.judge();
    fault(&mut stage);
    stage.finish();
}

impl Stage {
    fn start(row: usize) -> Self {
        let synchronous = row % 2 == 1;
        let workers = ["1", "4", "16"][row % 3];
        let mut pair = Pair::prepare(Setup::with(&["--size=64M", "--workers", workers]));
        let link = FaultyLink::start(pair.port);
        pair.setup.mount.push(format!("--peer=127.0.0.1:{}", link.port));
        if synchronous {
            // What is answered is on the mirror, whatever happens.
            pair.setup.mount.extend(["--mode=sync".into(), "--on-outage=block".into()]);
        }
        if row == 15 {
            pair.setup.mount.push("--stall-timeout=1s".into());
        }
        let small = |path: &Path, mib: u32| {
            fs::create_dir_all(path).expect("a directory");
            SmallDisk::mount(path, mib)
        };
        let mirror_disk = (row == 14).then(|| small(&pair.peer_dir(), 24));
        let queue_disk = (row == 16).then(|| small(&pair.state().join("queue"), 6));
        pair.start_peer();
        pair.mount();
        pair.wait_for_verdict("in-sync");
        let mut stage = Self {
            pair,
            link,
            synchronous,
            workload: None,
            confirmed: Arc::default(),
            durable: 0,
            judged: 0,
            mirror_disk,
            _queue_disk: queue_disk,
        };
        stage.work();
        stage
    }

    fn work(&mut self) {
        self.workload = Some(Workload::start(self.pair.mnt(), self.confirmed.clone()));
    }

    /// So many more files.
    #[track_caller]
    fn progress(&self, files: usize) {
        let wanted = self.confirmed.load(Ordering::Acquire) + files;
        wait_until("the workload", || self.confirmed.load(Ordering::Acquire) >= wanted);
    }

    /// The workload goes on; in synchronous mode its next fsync waits for the peer.
    fn work_during_outage(&self) {
        if self.synchronous {
            std::thread::sleep(Duration::from_millis(100));
        } else {
            self.progress(8);
        }
    }

    #[track_caller]
    fn sync(&mut self) {
        let confirmed = self.confirmed.load(Ordering::Acquire);
        self.pair.sync();
        self.durable = self.durable.max(confirmed);
    }

    /// The mirror as it is at this instant.
    fn mirror_now(&mut self) -> Copy {
        if self.synchronous {
            self.durable = self.durable.max(self.confirmed.load(Ordering::Acquire));
        }
        let mirror = self.pair.mirror();
        self.pair.with_peer_frozen(|| copy_of(&mirror))
    }

    /// Clean after journal replay, and nothing that was confirmed is missing; unless its label says that a resync is under
    /// way, during which it promises nothing.
    #[track_caller]
    fn judge(&mut self) {
        let copy = self.mirror_now();
        let dir = copy.path.parent().expect("its directory");
        let text = self.pair.command_ok(&["status", "--json", &dir.display().to_string()]);
        let status: Value = serde_json::from_str(&text).expect("a status");
        let label = status["mount"]["luns"][0]["label"].as_str().unwrap_or_default();
        assert!(label.starts_with("mirror"), "{status:#}");
        if label.contains("RESYNCING") || label.contains("FIRST SYNC") {
            return;
        }
        self.judged += 1;
        e2fsck_clean(&copy.path);
        let durable = self.durable;
        loop_mounted(&copy.path, "loop", |mnt| holds(mnt, durable));
    }

    #[track_caller]
    fn wait_down(&self) {
        let mut last = Value::Null;
        wait_until("the outage to be noticed", || {
            last = self.pair.status();
            last["verdict"] == "disconnected"
        });
    }

    /// A fault of the link that both sides notice by their heartbeats.
    fn outage(&mut self, cut: impl Fn(&FaultyLink)) {
        cut(&self.link);
        self.judge();
        self.wait_down();
        self.work_during_outage();
        self.judge();
        self.link.heal();
    }

    /// All is well again: everything arrives, by itself.
    #[track_caller]
    fn finish(mut self) {
        self.link.heal();
        self.pair.wait_for_verdict("in-sync");
        self.progress(3);
        if let Some(mut workload) = self.workload.take() {
            workload.end();
        }
        self.sync();
        self.judge();
        assert!(self.judged >= 3, "the mirror was judged {} times", self.judged);
        holds(&self.pair.mnt(), self.confirmed.load(Ordering::Acquire));
        let log = || self.pair.status()["mount"]["log"].clone();
        wait_until("an empty queue", || log()["queued_requests"] == 0 && log()["waiting_requests"] == 0);
        let begun = Instant::now();
        while let Some(found) = difference(&self.pair.image(), &self.pair.mirror()) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{found}");
            self.pair.sync();
        }
        self.pair.umount();
        e2fsck_clean(&self.pair.mirror());
        self.pair.stop_peer();
    }
}

/// The files up to `count` are there with their bytes.
#[track_caller]
fn holds(mnt: &Path, count: usize) {
    for index in 0..count {
        let found = fs::read(mnt.join(format!("f{index}")));
        let found = found.unwrap_or_else(|error| panic!("file {index} of {count} confirmed ones: {error}"));
        assert!(found == content(index), "file {index} of {count} confirmed ones has other bytes");
    }
}

fn peer_killed(stage: &mut Stage) {
    stage.pair.kill_peer();
    stage.judge();
    stage.wait_down();
    stage.work_during_outage();
    stage.judge();
    stage.pair.start_peer();
}

/// kill -9, a look at both images, a new mount.
fn primary_killed(stage: &mut Stage) {
    kill_primary(stage);
    stage.judge();
    remount(stage);
}

fn both_killed(stage: &mut Stage) {
    kill_primary(stage);
    stage.pair.kill_peer();
    stage.judge();
    stage.pair.start_peer();
    remount(stage);
}

fn kill_primary(stage: &mut Stage) {
    stage.pair.kill_mount();
    if let Some(mut workload) = stage.workload.take() {
        workload.end();
    }
    e2fsck_clean(&stage.pair.image());
}

fn remount(stage: &mut Stage) {
    stage.pair.mount();
    holds(&stage.pair.mnt(), stage.confirmed.load(Ordering::Acquire));
    stage.work();
}

fn connections_broken(stage: &mut Stage) {
    for _ in 0..3 {
        stage.link.set(|faults| faults.reset = true);
        stage.wait_down();
        stage.judge();
        stage.link.set(|faults| faults.reset = false);
        stage.pair.wait_for_verdict("in-sync");
    }
}

fn flapping(stage: &mut Stage, period: Duration, times: usize) {
    for _ in 0..times {
        stage.link.unplug();
        std::thread::sleep(period / 2);
        stage.judge();
        stage.link.heal();
        std::thread::sleep(period / 2);
    }
}

fn a_fifth_lost(stage: &mut Stage) {
    let interruptions = |stage: &Stage| stage.pair.status()["mount"]["link"]["interruptions"].clone();
    let before = interruptions(stage);
    stage.link.set(|faults| faults.udp.iter_mut().for_each(|udp| udp.drop_percent = 20));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        stage.progress(5);
        stage.sync();
        stage.judge();
    }
    assert_eq!(interruptions(stage), before, "no false cut");
}

fn slow_link(stage: &mut Stage) {
    stage.link.set(|faults| faults.tcp[Way::ToMirror as usize].bytes_per_second = 1 << 20);
    fs::write(stage.pair.mnt().join("large"), vec![9; 1 << 20]).expect("writing");
    for _ in 0..2 {
        stage.progress(3);
        stage.judge();
    }
}

fn delayed_link(stage: &mut Stage) {
    let delay = Duration::from_millis(50);
    stage.link.set(|faults| {
        faults.tcp.iter_mut().for_each(|tcp| tcp.delay = delay);
        faults.udp.iter_mut().for_each(|udp| udp.delay = delay);
    });
    stage.progress(3);
    stage.sync();
    stage.judge();
}

fn forged(stage: &mut Stage) {
    stage.link.set(|faults| {
        for udp in &mut faults.udp {
            (udp.duplicate, udp.forge, udp.delay) = (true, true, Duration::from_millis(3));
        }
    });
    let before = stage.pair.status()["mount"]["link"].clone();
    std::thread::sleep(Duration::from_millis(1000));
    stage.progress(5);
    stage.sync();
    stage.judge();
    let after = stage.pair.status()["mount"]["link"].clone();
    for name in ["interruptions", "sessions"] {
        assert_eq!(before[name], after[name], "harmless to a running link: {after:#}");
    }
    for refused in [&after["refused"], &stage.pair.peer_status()["peer"]["refused"]] {
        for name in ["datagrams_not_authentic", "datagrams_replayed"] {
            assert!(refused[name].as_u64().is_some_and(|count| count > 5), "counted: {refused:#}");
        }
    }
}

fn flipped(stage: &mut Stage) {
    stage.link.corrupt_once(Way::ToMirror);
    let path = stage.pair.mnt().join("large");
    // In synchronous mode the write waits until the next session has carried it.
    fs::write(path, vec![9; 1 << 20]).expect("writing");
    wait_until("the bit to be flipped", || stage.link.has_corrupted(Way::ToMirror));
    wait_until("another session", || {
        stage.pair.status()["mount"]["link"]["sessions"].as_u64().is_some_and(|count| count >= 2)
    });
    stage.judge();
}

fn stalled(stage: &mut Stage) {
    stage.link.set(|faults| faults.tcp[Way::ToMirror as usize].stall = true);
    wait_until("the stall to be noticed", || {
        stage.pair.status()["mount"]["link"]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("stalled"))
    });
    stage.judge();
    assert_eq!(stage.pair.status()["mount"]["link"]["interruptions"], 0, "the heartbeats are fine");
}

/// Bytes on a connection keep it in use; whatever becomes of the link, nothing is lost.
fn heartbeats_lost(stage: &mut Stage) {
    stage.link.mute(Way::ToMirror);
    stage.link.mute(Way::ToPrimary);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(400));
        stage.judge();
    }
}

/// A file that never was, and a damaged file system: both are found.
fn judges_fail(stage: &mut Stage) {
    use std::os::unix::fs::FileExt as _;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    stage.judge();
    let copy = stage.mirror_now();
    let beyond = stage.durable + 1000;
    let found = catch_unwind(AssertUnwindSafe(|| loop_mounted(&copy.path, "loop", |mnt| holds(mnt, beyond))));
    assert!(found.is_err(), "a missing file was not noticed");
    // The free block count of the first group's descriptor, which its checksum covers.
    let file = fs::OpenOptions::new().read(true).write(true).open(&copy.path).expect("the copy");
    let mut bytes = [0; 2];
    file.read_exact_at(&mut bytes, 4096 + 12).expect("reading");
    file.write_all_at(&bytes.map(|byte| byte ^ 0x55), 4096 + 12).expect("damaging");
    assert!(catch_unwind(|| e2fsck_clean(&copy.path)).is_err(), "a bad group descriptor was not noticed");
    file.write_all_at(&bytes, 4096 + 12).expect("undoing");
    e2fsck_clean(&copy.path);
    let clear = tool("debugfs").args(["-w", "-R", "clri f0"]).arg(&copy.path).output().expect("debugfs");
    assert!(clear.status.success());
    assert!(catch_unwind(|| e2fsck_clean(&copy.path)).is_err(), "a lost inode was not noticed");
    let one = copy_of(&copy.path);
    file.write_all_at(b"x", 40 << 20).expect("changing");
    assert!(difference(&copy.path, &one.path).is_some(), "a difference was not noticed");
}

fn full_mirror(stage: &mut Stage) {
    for index in 0..4 {
        fs::write(stage.pair.mnt().join(format!("large-{index}")), vec![7; 6 << 20])
            .expect("the primary goes on");
    }
    wait_until("the peer's error", || {
        let reason =
            stage.pair.status()["mount"]["link"]["reason"].as_str().unwrap_or_default().to_lowercase();
        reason.contains("space")
    });
    stage.judge();
    stage.work_during_outage();
    stage.judge();
    stage.mirror_disk.as_ref().expect("its disk").resize(200);
}

fn full_queue(stage: &mut Stage) {
    stage.link.unplug();
    stage.wait_down();
    for index in 0..3 {
        fs::write(stage.pair.mnt().join(format!("large-{index}")), vec![7; 4 << 20])
            .expect("the primary goes on");
    }
    let given_up = || stage.pair.status()["mount"]["log"]["queue_given_up"].is_string();
    wait_until("the queue to be given up", given_up);
    stage.work_during_outage();
    stage.judge();
}

fn is_segment(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("segment-"))
}

/// Files of the queue's sled index.
fn is_index(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "index")
        && path.metadata().is_ok_and(|file| file.len() > 0)
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the queue").flatten() {
        if entry.path().is_dir() {
            files(&entry.path(), out);
        } else {
            out.push(entry.path());
        }
    }
}

/// A disk that returns other bytes than were written, found at the next mount.
fn damaged(stage: &mut Stage, which: fn(&Path) -> bool) {
    stage.link.unplug();
    stage.wait_down();
    fs::write(stage.pair.mnt().join("large"), vec![5; 2 << 20]).expect("writing");
    stage.work_during_outage();
    if let Some(mut workload) = stage.workload.take() {
        workload.end();
    }
    stage.pair.umount();
    let mut all = Vec::new();
    files(&stage.pair.state().join("queue"), &mut all);
    let chosen: Vec<PathBuf> = all.iter().filter(|path| which(path)).cloned().collect();
    assert!(!chosen.is_empty(), "{all:?}");
    for path in &chosen {
        let mut bytes = fs::read(path).expect("reading");
        let middle = bytes.len() / 2;
        let end = (middle + 64).min(bytes.len());
        bytes[middle..end].iter_mut().for_each(|byte| *byte ^= 0xa5);
        fs::write(path, bytes).expect("damaging");
    }
    stage.judge();
    stage.pair.mount();
    holds(&stage.pair.mnt(), stage.confirmed.load(Ordering::Acquire));
    stage.work();
}
