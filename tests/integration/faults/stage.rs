//! A pair at work under a fault, its workload and its judges.

use super::{Cell, Mode};
use crate::outage::SmallDisk;
use crate::support::judge::{Copy, copy_of, difference};
use crate::support::namespace::Wire;
use crate::support::{FaultyLink, Pair, Setup, Way, e2fsck_clean, loop_mounted, wait_until};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Writes numbered files, each fsynced, and after each the next version of one file in place, until it is stopped or fails.
pub(super) struct Workload {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn content(index: usize) -> Vec<u8> {
    vec![index as u8 | 1; 1000 + index * 3701 % 30_000]
}

/// Blocks of the file that is written again and again.
const REWRITTEN_BLOCKS: usize = 16;

/// Writes the version that follows file `index` into each block.
fn rewrite(dir: &Path, index: usize) -> std::io::Result<()> {
    let mut bytes = vec![0; REWRITTEN_BLOCKS * 4096];
    for block in bytes.chunks_mut(4096) {
        block[..8].copy_from_slice(&(index as u64 + 1).to_le_bytes());
    }
    let file = fs::File::options().create(true).write(true).truncate(false).open(dir.join("rewritten"))?;
    file.write_all_at(&bytes, 0)?;
    file.sync_all()
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
                let written = written.and_then(|()| rewrite(&dir, index));
                // Beside it what nobody fsyncs: names that come and go.
                let restless = dir.join(format!("restless-{}", index % 7));
                let _ = fs::write(dir.join("restless"), vec![3; index * 97 % 9000])
                    .and_then(|()| fs::rename(dir.join("restless"), &restless));
                if written.is_err() {
                    return;
                }
                noted.store(index + 1, Ordering::Release);
                // Slower and slower, so that the image holds what a long fault lets it write.
                std::thread::sleep(Duration::from_millis(4 + index as u64 / 20));
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops after the write under way, which may wait for the peer.
    pub(super) fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the workload");
        }
    }
}

/// A pair at work, its link, and what must be on the mirror by now.
pub(super) struct Stage {
    // Unmounted before the pair's directory is removed.
    pub(super) mirror_disk: Option<SmallDisk>,
    _queue_disk: Option<SmallDisk>,
    pub(super) pair: Pair,
    /// Between the two, unless `wire` is.
    pub(super) link: FaultyLink,
    pub(super) wire: Option<Wire>,
    /// Whether an answer means that the mirror has it, whatever happens; otherwise `mirrorfs sync` says so.
    answers_are_on_the_mirror: bool,
    /// See [`Cell::thorough`].
    pub(super) thorough: bool,
    pub(super) workload: Option<Workload>,
    pub(super) confirmed: Arc<AtomicUsize>,
    /// Files known to be durable on the mirror.
    pub(super) durable: usize,
    /// Those that were so when the mirror was last seen outside a resync.
    settled: usize,
    judged: usize,
    /// How often it was judged by what a promotion goes back to.
    taken_back: usize,
}

impl Stage {
    pub(super) fn start(cell: Cell) -> Self {
        let Cell { fault, mode, workers, thorough } = cell;
        let mut pair = Pair::prepare(Setup::with(&["--size=64M", &format!("--workers={workers}")]));
        let link = FaultyLink::start(pair.port);
        let wire = fault.namespaces.then(|| Wire::lay(&mut pair));
        if wire.is_none() {
            pair.setup.mount.push(format!("--peer=127.0.0.1:{}", link.port));
        }
        let blocks = mode == Mode::Sync && !fault.writes_during_outage;
        if mode == Mode::Sync {
            let policy = if blocks { "block" } else { "queue" };
            pair.setup.mount.extend(["--mode=sync".into(), format!("--on-outage={policy}")]);
        }
        pair.setup.mount.extend(fault.arguments.iter().map(ToString::to_string));
        let small = |path: &Path, mib: u32| {
            fs::create_dir_all(path).expect("a directory");
            SmallDisk::mount(path, mib)
        };
        let mirror_disk = fault.mirror_disk.map(|mib| small(&pair.peer_dir(), mib));
        let queue_disk = fault.queue_disk.map(|mib| small(&pair.state().join("queue"), mib));
        pair.start_peer();
        pair.mount();
        pair.wait_for_verdict("in-sync");
        let mut stage = Self {
            pair,
            link,
            wire,
            answers_are_on_the_mirror: blocks,
            thorough,
            workload: None,
            confirmed: Arc::default(),
            durable: 0,
            settled: 0,
            judged: 0,
            taken_back: 0,
            mirror_disk,
            _queue_disk: queue_disk,
        };
        stage.work();
        stage
    }

    /// The fault, between a look before it and the healing after it.
    pub(super) fn run(mut self, fault: fn(&mut Self)) {
        self.progress(5);
        self.sync();
        self.judge();
        fault(&mut self);
        self.finish();
    }

    pub(super) fn work(&mut self) {
        self.workload = Some(Workload::start(self.pair.mnt(), self.confirmed.clone()));
    }

    /// So many more files.
    #[track_caller]
    pub(super) fn progress(&self, files: usize) {
        let wanted = self.confirmed.load(Ordering::Acquire) + files;
        wait_until("the workload", || self.confirmed.load(Ordering::Acquire) >= wanted);
    }

    /// The workload goes on; in synchronous mode its next fsync waits for the peer.
    pub(super) fn work_during_outage(&self) {
        if self.answers_are_on_the_mirror {
            std::thread::sleep(Duration::from_millis(100));
        } else {
            self.progress(8);
        }
    }

    #[track_caller]
    pub(super) fn sync(&mut self) {
        let confirmed = self.confirmed.load(Ordering::Acquire);
        self.pair.sync();
        self.durable = self.durable.max(confirmed);
    }

    /// The mirror as it is at this instant.
    pub(super) fn mirror_now(&mut self) -> Copy {
        if self.answers_are_on_the_mirror {
            self.durable = self.durable.max(self.confirmed.load(Ordering::Acquire));
        }
        let mirror = self.pair.mirror();
        self.pair.with_peer_frozen(|| copy_of(&mirror))
    }

    /// Clean after journal replay, and nothing that was confirmed is missing. In the middle of a resync that is asked of what a
    /// promotion goes back to, for what was confirmed before the resync.
    #[track_caller]
    pub(super) fn judge(&mut self) {
        let copy = self.mirror_now();
        let dir = copy.path.parent().expect("its directory").display().to_string();
        let text = self.pair.command_ok(&["status", "--json", &dir]);
        let status: Value = serde_json::from_str(&text).expect("a status");
        let label = status["mount"]["luns"][0]["label"].as_str().unwrap_or_default();
        assert!(label.starts_with("mirror"), "{status:#}");
        if label.contains("RESYNCING") {
            let said = self.pair.command_ok(&["promote", &dir]);
            assert!(said.contains("taken back"), "{said}");
            self.taken_back += 1;
        } else {
            assert!(label.contains("consistent") && !label.contains("FIRST SYNC"), "{label}");
            self.settled = self.durable;
        }
        self.judged += 1;
        e2fsck_clean(&copy.path);
        let settled = self.settled;
        loop_mounted(&copy.path, "loop", |mnt| holds(mnt, settled));
    }

    /// What the fault has left to a resync begins; over a slow link the mirror is judged in the middle of it.
    #[track_caller]
    pub(super) fn judge_in_resync(&mut self) {
        self.heal();
        self.link.set(|faults| faults.tcp[Way::ToMirror as usize].bytes_per_second = 2 << 20);
        let undo = self.pair.mirror().with_extension("undo");
        // More than its header: something has been overwritten.
        wait_until("a resync that overwrites", || fs::metadata(&undo).is_ok_and(|file| file.len() > 4096));
        self.link.set(|faults| faults.tcp[Way::ToMirror as usize].stall = true);
        self.judge();
        assert!(self.taken_back > 0, "it was over too soon");
    }

    #[track_caller]
    pub(super) fn wait_down(&self) {
        let mut last = Value::Null;
        wait_until("the outage to be noticed", || {
            last = self.pair.status();
            last["verdict"] == "disconnected"
        });
    }

    /// A fault of the link that both sides notice by their heartbeats.
    pub(super) fn outage(&mut self, cut: impl Fn(&Self)) {
        cut(self);
        self.judge();
        self.wait_down();
        self.work_during_outage();
        self.judge();
        self.heal();
    }

    pub(super) fn heal(&self) {
        self.link.heal();
        if let Some(wire) = &self.wire {
            wire.heal();
        }
    }

    /// All is well again: everything arrives, by itself.
    #[track_caller]
    fn finish(mut self) {
        self.heal();
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

/// The files up to `count` are there with their bytes, and no block of the rewritten one is older than that.
#[track_caller]
pub(super) fn holds(mnt: &Path, count: usize) {
    for index in 0..count {
        let found = fs::read(mnt.join(format!("f{index}")));
        let found = found.unwrap_or_else(|error| panic!("file {index} of {count} confirmed ones: {error}"));
        assert!(found == content(index), "file {index} of {count} confirmed ones has other bytes");
    }
    if count > 0 {
        let found = fs::read(mnt.join("rewritten")).expect("the rewritten file");
        assert_eq!(found.len(), REWRITTEN_BLOCKS * 4096);
        for (block, bytes) in found.chunks(4096).enumerate() {
            let version = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
            assert!(version >= count as u64, "block {block}: version {version}, confirmed was {count}");
        }
    }
}
