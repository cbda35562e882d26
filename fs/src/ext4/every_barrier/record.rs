//! One recording: a small image, the work on it, and every request that reached it.

use super::super::attr::{Fallocate, NewNode};
use super::super::bytes::be32;
use super::super::defect::Planted;
use super::super::types::InodeNo;
use super::super::{Ext4, Options};
use super::fsck::{temp_dir, tool};
use super::history::{Ack, Covers, ThreadHistory};
use super::pages::{PagedImage, Pages};
use super::worker::{ROOT, Shared, Worker};
use crate::image::Lun;
use crate::image::recorder::{Event, Recorder};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const IMAGE_BYTES: u64 = 32 << 20;
/// Blocks of the journal: the fewest that mke2fs makes.
const JOURNAL_BLOCKS: usize = 1024;
/// Files whose attributes change in a sweep, of all threads.
const SWEPT_FILES: usize = 67;
/// Longest wait for a discard.
const PATIENCE: Duration = Duration::from_secs(3);
/// The journal's magic number.
const MAGIC: u32 = 0xC03B_3998;

/// How the image is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) block_size: u64,
    pub(super) features: &'static str,
    /// Bytes left free: little, so that what is freed is soon used again.
    pub(super) free_bytes: u64,
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) threads: usize,
    /// Operations of each thread in each of the two busy phases.
    pub(super) operations: usize,
    /// Storms of each thread after these.
    pub(super) storms: usize,
    /// Rounds of each thread's sweep after these.
    pub(super) sweeps: usize,
    /// What a sync takes. Others write meanwhile.
    pub(super) sync_time: Duration,
}

/// What was done, and what reached the image.
pub(super) struct Recording {
    pub(super) form: Form,
    pub(super) base: Pages,
    pub(super) events: Vec<Event>,
    /// Where syncs began.
    pub(super) syncs: Vec<usize>,
    pub(super) histories: Vec<ThreadHistory>,
    pub(super) acks: Vec<Ack>,
    /// The journal's blocks; the first one holds its superblock.
    pub(super) journal: Vec<u64>,
}

fn format(form: &Form) -> (Pages, Vec<u64>) {
    let dir = temp_dir();
    let path = dir.path().join("image");
    std::fs::File::create(&path).expect("a file").set_len(IMAGE_BYTES).expect("a sparse file");
    let path = path.to_str().expect("a path in ASCII");
    let (block_size, features) = (form.block_size.to_string(), format!("none,{}", form.features));
    let journal = format!("size={}", (JOURNAL_BLOCKS as u64 * form.block_size) >> 20);
    let extended = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0";
    let (code, text) = tool(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            &block_size,
            "-O",
            &features,
            "-J",
            &journal,
            "-N",
            "512",
            "-I",
            "256",
            "-m",
            "0",
            "-E",
            extended,
            path,
        ],
    );
    assert_eq!(code, 0, "mke2fs: {text}");
    let (_, text) = tool("debugfs", &["-R", "blocks <8>", path]);
    let journal: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(journal.len() >= JOURNAL_BLOCKS, "the journal's blocks: {text}");
    (Pages::from_bytes(&std::fs::read(path).expect("the image")), journal)
}

/// The threads' directories, and a file that takes most of the space; gives the workers and the image.
fn prepare(form: &Form, plan: &Plan, seed: u64, pages: Pages) -> (Pages, Vec<Worker>) {
    let image = Arc::new(PagedImage::new(pages, Duration::ZERO));
    let ext4 = Ext4::open(Lun::new(image.clone(), None), Options::default()).expect("a new image");
    let workers = (0..plan.threads)
        .map(|thread| {
            let name = directory_name(thread);
            let made = ext4.make(ROOT, InodeNo::ROOT, &name, NewNode::Directory, 0o755, 0);
            Worker::new(thread, seed, form.block_size, &made.expect("a directory"))
        })
        .collect();
    let ballast = ext4.make(ROOT, InodeNo::ROOT, b"ballast", NewNode::Regular, 0o644, 0).expect("a file").ino;
    let free = ext4.statfs().expect("statfs").blocks_free * form.block_size;
    let length = free.saturating_sub(form.free_bytes) / form.block_size * form.block_size;
    ext4.fallocate(ROOT, ballast, Fallocate::Reserve { keep_size: false }, 0, length, false)
        .expect("the ballast");
    ext4.close().expect("closing");
    (image.snapshot(), workers)
}

/// Name of a thread's directory.
pub(super) fn directory_name(thread: usize) -> Vec<u8> {
    format!("t{thread}").into_bytes()
}

/// Works and records. The seed says which operations; how the threads' ones interleave is the machine's doing.
pub(super) fn record(form: Form, plan: Plan, seed: u64, planted: Planted) -> Recording {
    let (pages, journal) = format(&form);
    let (base, mut workers) = prepare(&form, &plan, seed, pages);
    let recorder = Arc::new(Recorder::new(Arc::new(PagedImage::new(base.clone(), plan.sync_time))));
    let lun = Lun::new(recorder.clone(), None);
    let ext4 = Ext4::open_planted(lun, Options::default(), planted).expect("the image is clean");
    let shared = Shared {
        recorder: recorder.clone(),
        acks: Arc::new(Mutex::default()),
        done: (0..plan.threads).map(|_| AtomicUsize::new(0)).collect(),
    };
    let everything_is_durable = || {
        let done = shared.done.iter().map(|done| done.load(Ordering::Acquire)).collect();
        let ack = Ack { position: recorder.position(), covers: Covers::Everything(done) };
        shared.acks.lock().push(ack);
    };
    let together = |workers: &mut Vec<Worker>, work: &(dyn Fn(&mut Worker) + Sync)| {
        std::thread::scope(|scope| {
            for worker in workers {
                scope.spawn(|| work(worker));
            }
        });
    };
    together(&mut workers, &|worker| worker.run(&ext4, &shared, plan.operations));
    ext4.set_read_only(true).expect("read-only");
    everything_is_durable();
    ext4.set_read_only(false).expect("for changes again");
    // One alone, then the discards that come when nothing is committed for a while.
    workers[0].run(&ext4, &shared, plan.operations / 2);
    await_discards(&ext4, &recorder);
    together(&mut workers, &|worker| worker.run(&ext4, &shared, plan.operations));
    together(&mut workers, &|worker| (0..plan.storms).for_each(|_| worker.storm(&ext4, &shared)));
    together(&mut workers, &|worker| worker.sweep(&ext4, &shared, plan.sweeps, SWEPT_FILES / plan.threads));
    ext4.close().expect("closing");
    everything_is_durable();
    drop(ext4);
    let events = recorder.events();
    assert!(!events.contains(&Event::FailedSync));
    let syncs = (0..events.len()).filter(|at| events[*at] == Event::Sync).collect();
    let histories = workers.into_iter().map(|worker| worker.history).collect();
    let acks = std::mem::take(&mut *shared.acks.lock());
    Recording { form, base, events, syncs, histories, acks, journal }
}

/// Waits for a discard, if there is anything to discard that no file holds for its growth.
fn await_discards(ext4: &Ext4, recorder: &Recorder) {
    let begun = Instant::now();
    let from = recorder.position();
    let seen = || recorder.events()[from..].iter().any(|event| matches!(event, Event::Discard { .. }));
    while !seen()
        && begun.elapsed() < PATIENCE
        && ext4.with_core(|core| Ok(core.alloc.has_discards())).expect("the core")
    {
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Recording {
    /// The requests between the end of `barriers` syncs and the next sync.
    pub(super) fn epoch(&self, barriers: usize) -> Range<usize> {
        let start = if barriers == 0 { 0 } else { self.syncs[barriers - 1] + 1 };
        start..self.syncs.get(barriers).copied().unwrap_or(self.events.len())
    }

    /// What stands in the journal: a logged block never looks like one of the journal's own, whose kinds are 1 to 5. Recovery
    /// finds the journal's blocks by counting, so one that does look so is harmless in most states; but where a log ends, what
    /// an earlier lap has left there would be read as if it went on.
    pub(super) fn check_escapes(&self) -> Result<(), String> {
        let journal: HashSet<u64> = self.journal.iter().copied().collect();
        let size = self.form.block_size;
        for (number, event) in self.events.iter().enumerate() {
            let Event::Write { offset, bytes } = event else { continue };
            let blocks = bytes.chunks(size as usize).filter(|raw| be32(raw, 0) == MAGIC);
            if journal.contains(&(offset / size))
                && let Some(raw) = blocks.into_iter().find(|raw| !(1..=5).contains(&be32(raw, 4)))
            {
                return Err(format!(
                    "request {number}: a block is logged with the magic number ({:02x?}…)",
                    &raw[..12]
                ));
            }
        }
        Ok(())
    }
}
