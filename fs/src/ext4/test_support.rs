//! Images made by mke2fs, a backing that records and fails, and the foreign judges.
#![allow(clippy::unwrap_used, reason = "tests")]

use crate::image::backing::MemoryBacking;
use crate::image::{Backing, Lun};
use parking_lot::Mutex;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A small generator of random numbers (SplitMix64), so that a seed says it all.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// What mke2fs is to make.
pub(crate) struct Form {
    pub(crate) block_size: usize,
    pub(crate) features: &'static str,
    pub(crate) journal_csum_v2: bool,
    pub(crate) errors: &'static str,
}

impl Default for Form {
    fn default() -> Self {
        let features = "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
        Self { block_size: 4096, features, journal_csum_v2: false, errors: "continue" }
    }
}

/// A formatted image with one big file.
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    pub(crate) block_size: usize,
    /// Blocks of the file.
    pub(crate) data_blocks: Vec<u64>,
    /// First block of the journal.
    pub(crate) journal_block: u64,
    journal_blocks: Vec<u64>,
}

fn temp_dir() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn run(program: &str, arguments: &[&str]) -> (i32, String) {
    let path = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";
    let output = Command::new(program).args(arguments).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error} (e2fsprogs is needed)"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text)
}

impl Image {
    pub(crate) fn make(form: &Form) -> Self {
        let dir = temp_dir();
        let content = dir.path().join("content");
        std::fs::create_dir(&content).unwrap();
        let file: Vec<u8> =
            (0..900 * form.block_size).map(|at| (at / form.block_size) as u8 | 0x80).collect();
        std::fs::write(content.join("file"), file).unwrap();
        let path = dir.path().join("image");
        let path = path.to_str().unwrap();
        std::fs::File::create(path).unwrap().set_len(2800 * form.block_size as u64).unwrap();
        let features = format!("none,{}", form.features);
        let block_size = form.block_size.to_string();
        let journal = format!("size={}", form.block_size / 1024);
        let (code, text) = run(
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
                "256",
                "-e",
                form.errors,
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
                "-d",
                content.to_str().unwrap(),
                path,
            ],
        );
        assert_eq!(code, 0, "{text}");
        let mut data_blocks = numbers(&run("debugfs", &["-R", "blocks /file", path]).1);
        data_blocks.dedup();
        // Often in several pieces.
        let journal_blocks = numbers(&run("debugfs", &["-R", "blocks <8>", path]).1);
        let journal_block = journal_blocks[0];
        let mut bytes = std::fs::read(path).unwrap();
        if form.journal_csum_v2 {
            let raw = &mut bytes[journal_block as usize * form.block_size..][..1024];
            super::bytes::put_be32(raw, 0x28, 0x8);
            raw[0x50] = 4;
            super::jbd2::seal_superblock(raw);
        }
        // Only blocks that hold the file's content, not its extent blocks.
        let holds = |block: &u64| {
            let raw = &bytes[*block as usize * form.block_size..][..form.block_size];
            raw[0] & 0x80 != 0 && raw.iter().all(|byte| *byte == raw[0])
        };
        data_blocks.retain(holds);
        assert!(data_blocks.len() >= 890, "{} blocks", data_blocks.len());
        Self { bytes, block_size: form.block_size, data_blocks, journal_block, journal_blocks }
    }

    pub(crate) fn is_journal(&self, offset: u64) -> bool {
        self.journal_blocks.contains(&(offset / self.block_size as u64))
    }
    pub(crate) fn block(&self, number: u64) -> &[u8] {
        &self.bytes[number as usize * self.block_size..][..self.block_size]
    }
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// A recorded change.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Write(u64, Vec<u8>),
    Discard(u64, u64),
    Sync,
}

impl Op {
    pub(crate) fn apply(&self, image: &mut [u8]) {
        match self {
            Self::Write(offset, raw) => image[*offset as usize..][..raw.len()].copy_from_slice(raw),
            Self::Discard(offset, length) => image[*offset as usize..][..*length as usize].fill(0),
            Self::Sync => {}
        }
    }
    /// Each block of it may or may not have reached the disk.
    pub(crate) fn apply_in_part(&self, image: &mut [u8], block_size: usize, random: &mut Random) {
        if matches!(self, Self::Discard(..)) && random.below(2) == 0 {
            self.apply(image);
        }
        if let Self::Write(offset, raw) = self {
            for (index, part) in raw.chunks(block_size).enumerate() {
                if random.below(2) == 0 {
                    image[*offset as usize + index * block_size..][..part.len()].copy_from_slice(part);
                }
            }
        }
    }
}

#[derive(Default)]
struct Recorded {
    operations: Vec<Op>,
    fail_at: Option<usize>,
    sync_time: Duration,
    write_time: Duration,
}

/// An image in memory that keeps every change in order, and can fail one.
#[derive(Clone)]
pub(crate) struct Recorder(Arc<(MemoryBacking, Mutex<Recorded>)>);

impl Recorder {
    pub(crate) fn over(bytes: &[u8]) -> Self {
        Self(Arc::new((MemoryBacking::from_bytes(bytes), Mutex::default())))
    }
    pub(crate) fn len(&self) -> usize {
        self.0.1.lock().operations.len()
    }
    pub(crate) fn operations(&self) -> Vec<Op> {
        self.0.1.lock().operations.clone()
    }
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.0.to_bytes()
    }
    pub(crate) fn fail_at(&self, at: usize) {
        self.0.1.lock().fail_at = Some(at);
    }
    /// So that commits come between the writes of a checkpoint.
    pub(crate) fn slow_writes(&self, time: Duration) {
        self.0.1.lock().write_time = time;
    }
    pub(crate) fn slow_syncs(&self, time: Duration) {
        self.0.1.lock().sync_time = time;
    }
    fn record(&self, op: Op) -> io::Result<()> {
        let mut recorded = self.0.1.lock();
        if recorded.fail_at.is_some_and(|at| at <= recorded.operations.len()) {
            return Err(io::Error::other("injected failure"));
        }
        recorded.operations.push(op);
        Ok(())
    }
}

impl Backing for Recorder {
    fn size_bytes(&self) -> u64 {
        self.0.0.size_bytes()
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.0.read_at(offset, into)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.record(Op::Write(offset, bytes.to_vec()))?;
        let time = self.0.1.lock().write_time;
        if !time.is_zero() {
            std::thread::sleep(time);
        }
        self.0.0.write_at(offset, bytes)
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.record(Op::Discard(offset, length))?;
        self.0.0.discard(offset, length)
    }
    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.0.reserve(offset, length)
    }
    fn sync(&self) -> io::Result<()> {
        let time = self.0.1.lock().sync_time;
        std::thread::sleep(time);
        self.record(Op::Sync)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<std::ops::Range<u64>>> {
        self.0.0.next_data(offset)
    }
}

pub(crate) fn lun_over(recorder: Recorder) -> Arc<Lun> {
    Lun::new(Arc::new(recorder), None)
}

/// All that the LUN holds.
pub(crate) fn bytes_of(lun: &Lun) -> Vec<u8> {
    let mut bytes = vec![0; lun.size_bytes() as usize];
    lun.read(0, &mut bytes).unwrap();
    bytes
}

/// The image with the superblock and the journal's own taken out: they hold times, and who has replayed.
fn masked(bytes: &[u8], image: &Image) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[1024..2048].fill(0);
    bytes[image.journal_block as usize * image.block_size..][..1024].fill(0);
    bytes
}

/// Two images agree, but for what [`masked`] leaves out; else the blocks that differ are named.
pub(crate) fn assert_same(ours: &[u8], theirs: &[u8], image: &Image, when: &str) {
    let (ours, theirs) = (masked(ours, image), masked(theirs, image));
    assert_eq!(ours.len(), theirs.len());
    let blocks = ours.chunks(image.block_size).zip(theirs.chunks(image.block_size)).enumerate();
    let differ: Vec<String> = blocks
        .filter_map(|(block, (ours, theirs))| {
            let at = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs)?;
            let until = (at + 16).min(ours.len());
            Some(format!(
                "block {block} from byte {at} on: {:x?}, not {:x?}",
                &ours[at..until],
                &theirs[at..until]
            ))
        })
        .collect();
    assert!(differ.is_empty(), "{when}: {} blocks differ:\n{}", differ.len(), differ.join("\n"));
}

/// The image after e2fsck has replayed its journal.
pub(crate) fn replay_by_e2fsck(bytes: &[u8]) -> Vec<u8> {
    let dir = temp_dir();
    let path = dir.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    let (code, text) = run("e2fsck", &["-y", "-E", "journal_only", path.to_str().unwrap()]);
    assert!(code <= 1, "e2fsck did not accept the journal ({code}): {text}");
    assert!(!text.contains("orrupt") && !text.contains("nvalid"), "e2fsck does not like the journal: {text}");
    std::fs::read(&path).unwrap()
}

/// e2fsck finds nothing.
pub(crate) fn check_clean(bytes: &[u8]) {
    let dir = temp_dir();
    let path = dir.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    let (code, text) = run("e2fsck", &["-fn", path.to_str().unwrap()]);
    assert_eq!(code, 0, "{text}");
}

/// Unmounts, however the test ends.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[self.0.to_str().unwrap()]);
    }
}

/// The image as it is while the kernel has it mounted, with work in its journal; `None` where we may not mount.
///
/// The kernel may hold on to a file whose name is gone for a while (it is writing it back): an orphan, which e2fsck deletes when it
/// replays. `has_orphans` says whether a reading has any; then another one is taken, behind another commit.
pub(crate) fn left_by_kernel(image: &Image, has_orphans: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let dir = temp_dir();
    let (path, at) = (dir.path().join("image"), dir.path().join("mnt"));
    std::fs::write(&path, &image.bytes).unwrap();
    std::fs::create_dir(&at).unwrap();
    let (code, text) = run("mount", &["-o", "loop", path.to_str().unwrap(), at.to_str().unwrap()]);
    if code != 0 {
        eprintln!("skipped: no loop mount here: {}", text.trim());
        return None;
    }
    let _mounted = Mounted(at.clone());
    for round in 0..6 {
        let dir = at.join(format!("dir{round}"));
        std::fs::create_dir(&dir).unwrap();
        for file in 0..40 {
            std::fs::write(dir.join(format!("file{file}")), vec![round as u8; 700 * (file % 4)]).unwrap();
        }
        // Directory blocks are freed: revoke records.
        if round % 2 == 1 {
            std::fs::remove_dir_all(at.join(format!("dir{}", round - 1))).unwrap();
        }
        std::fs::File::open(&dir).unwrap().sync_all().unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let last = std::fs::File::create(at.join("last")).unwrap();
        last.sync_all().unwrap();
        // The kernel may be writing while we read: what two readings agree on is the image of one moment.
        let bytes = std::fs::read(&path).unwrap();
        if std::fs::read(&path).unwrap() == bytes && !has_orphans(&bytes) {
            return Some(bytes);
        }
        assert!(Instant::now() < deadline, "the kernel does not come to rest");
    }
}

/// The group of the root directory as the kernel finds it, after its own replay.
pub(crate) fn root_group_by_kernel(bytes: &[u8]) -> u32 {
    use std::os::unix::fs::MetadataExt;
    let dir = temp_dir();
    let (path, at) = (dir.path().join("image"), dir.path().join("mnt"));
    std::fs::write(&path, bytes).unwrap();
    std::fs::create_dir(&at).unwrap();
    let (code, text) = run("mount", &["-o", "loop", path.to_str().unwrap(), at.to_str().unwrap()]);
    assert_eq!(code, 0, "{text}");
    let mounted = Mounted(at.clone());
    let group = std::fs::metadata(&at).unwrap().gid();
    drop(mounted);
    check_clean(&std::fs::read(&path).unwrap());
    group
}
