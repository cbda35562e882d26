#![allow(clippy::unwrap_used, reason = "tests")]

use super::super::attr::{Context, Fallocate, FileKind, SetAttr, Timestamp};
use super::super::error::FsError;
use super::super::superblock::Geometry;
use super::super::tx::{CREDITS, Core};
use super::super::types::{BlockNo, FileBlock, GroupNo, InodeNo};
use super::super::{Ext4, Options, WriteAt};
use super::node;
use crate::image::Lun;
use crate::image::backing::{Backing, FileBacking};
use crate::image::fault::{FaultBacking, Faults, Operation};
use bytes::Bytes;
use mirrorfs_journal::log::{LogConfig, LogLun, MirrorLog};
use mirrorfs_journal::{Epoch, Generation, Incarnation, LunId, LunUuid};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const ROOT: Context = Context { uid: 0, gid: 0, may_block: true };
const USER: Context = Context { uid: 1000, gid: 1000, may_block: true };

/// An image made by mke2fs with empty files "f0", "f1", …, open.
struct Image {
    dir: tempfile::TempDir,
    path: PathBuf,
    fs: Mutex<Arc<Ext4>>,
    files: Vec<InodeNo>,
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}", output.status);
    text
}

fn open_with(path: &Path, options: Options) -> Arc<Ext4> {
    let lun = Lun::new(Arc::new(FileBacking::open(path).unwrap()), None);
    Ext4::open(lun, options).unwrap()
}

fn open(path: &Path) -> Arc<Ext4> {
    open_with(path, Options::default())
}

impl Image {
    fn new(mebibytes: u64, options: &[&str], files: u32) -> Self {
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let path = dir.path().join("image");
        std::fs::File::create(&path).unwrap().set_len(mebibytes << 20).unwrap();
        let name = path.to_str().unwrap();
        run("mke2fs", &[&["-q", "-F", "-t", "ext4"], options, &[name]].concat());
        let script: String = (0..files).map(|file| format!("write /dev/null f{file}\n")).collect();
        std::fs::write(dir.path().join("script"), script).unwrap();
        run("debugfs", &["-w", "-f", dir.path().join("script").to_str().unwrap(), name]);
        let fs = open(&path);
        Self { dir, path, fs: Mutex::new(fs), files: (12..12 + files).map(InodeNo).collect() }
    }

    fn fs(&self) -> Arc<Ext4> {
        self.fs.lock().clone()
    }

    fn reopen(&self) {
        self.fs().close().unwrap();
        *self.fs.lock() = open(&self.path);
    }

    /// Closes it; e2fsck must have nothing to say. Then it is open again.
    fn judge(&self) {
        self.fs().close().unwrap();
        let said = run("e2fsck", &["-fn", self.path.to_str().unwrap()]);
        // A tree that could be denser is no fault.
        let complaints: Vec<&str> =
            said.lines().filter(|line| line.contains('?') && !line.contains("Optimize?")).collect();
        assert!(complaints.is_empty(), "{said}");
        *self.fs.lock() = open(&self.path);
    }

    /// A file's bytes as debugfs reads them.
    fn dump(&self, file: usize) -> Vec<u8> {
        let to = self.dir.path().join("dump");
        run("debugfs", &["-R", &format!("dump f{file} {}", to.display()), self.path.to_str().unwrap()]);
        std::fs::read(to).unwrap()
    }

    fn write(&self, file: usize, offset: u64, data: &[u8]) -> usize {
        let data = Bytes::copy_from_slice(data);
        self.fs().write(ROOT, self.files[file], WriteAt::Offset(offset), data, false).unwrap().bytes
    }

    fn size(&self, file: usize) -> u64 {
        self.fs().with_core(|core| Ok(core.inode(self.files[file])?.size)).unwrap()
    }

    fn read(&self, file: usize) -> Vec<u8> {
        let mut bytes = vec![0xEE; self.size(file) as usize + 10];
        let count = self.fs().read(self.files[file], 0, &mut bytes).unwrap();
        bytes.truncate(count);
        bytes
    }

    fn truncate(&self, file: usize, size: u64) {
        self.fs().truncate(ROOT, self.files[file], size, &SetAttr::default()).unwrap();
    }

    fn fallocate(&self, file: usize, operation: Fallocate, offset: u64, length: u64) {
        self.fs().fallocate(ROOT, self.files[file], operation, offset, length, false).unwrap();
    }
}

/// xorshift, so that a failing seed replays.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
    fn bytes(&mut self, count: u64) -> Vec<u8> {
        let fill = self.below(255) as u8 + 1;
        (0..count).map(|at| fill.wrapping_add((at / 7) as u8) | 1).collect()
    }
}

fn grow(model: &mut Vec<u8>, size: u64) {
    if model.len() < size as usize {
        model.resize(size as usize, 0);
    }
}

/// Random operations on several files against vectors, read back by us and by debugfs.
fn model_test(seed: u64, mebibytes: u64, options: &[&str]) {
    const FILES: usize = 4;
    const SIZE_MAX: u64 = 600_000;
    let image = Image::new(mebibytes, options, FILES as u32);
    let mut random = Random(seed);
    let mut models = vec![Vec::<u8>::new(); FILES];
    for step in 0..1500 {
        let file = random.below(FILES as u64) as usize;
        let model = &mut models[file];
        let offset = random.below(SIZE_MAX);
        let length = 1 + match random.below(4) {
            0 => random.below(200),
            1 => random.below(100_000),
            _ => random.below(10_000),
        };
        let end = offset + length;
        let place =
            |model: &Vec<u8>| offset.min(model.len() as u64) as usize..end.min(model.len() as u64) as usize;
        match random.below(12) {
            0 => {
                let data = random.bytes(length);
                let written = image
                    .fs()
                    .write(USER, image.files[file], WriteAt::Append, Bytes::from(data.clone()), true)
                    .unwrap();
                assert_eq!((written.bytes, written.offset), (data.len(), model.len() as u64));
                model.extend(data);
                if model.len() as u64 > 2 * SIZE_MAX {
                    image.truncate(file, 10);
                    model.truncate(10);
                }
            }
            1 => {
                image.truncate(file, offset);
                model.resize(offset as usize, 0);
            }
            2 => {
                image.fallocate(file, Fallocate::PunchHole, offset, length);
                let place = place(model);
                model[place].fill(0);
            }
            3 => {
                let keep_size = random.below(2) == 0;
                image.fallocate(file, Fallocate::ZeroRange { keep_size }, offset, length);
                if !keep_size {
                    grow(model, end);
                }
                let place = place(model);
                model[place].fill(0);
            }
            4 => {
                let keep_size = random.below(2) == 0;
                image.fallocate(file, Fallocate::Reserve { keep_size }, offset, length);
                if !keep_size {
                    grow(model, end);
                }
            }
            5 if step % 50 == 0 => {
                image.reopen();
            }
            6 => {
                let mut found = vec![0xEE; length as usize];
                let count = image.fs().read(image.files[file], offset, &mut found).unwrap();
                assert_eq!(&found[..count], &model[place(model)], "seed {seed}, step {step}");
            }
            _ => {
                let data = random.bytes(length);
                assert_eq!(image.write(file, offset, &data), data.len());
                grow(model, end);
                model[offset as usize..end as usize].copy_from_slice(&data);
            }
        }
        assert_eq!(image.size(file), models[file].len() as u64, "seed {seed}, step {step}");
    }
    for (file, model) in models.iter().enumerate() {
        assert!(image.read(file) == *model, "seed {seed}, file {file}");
    }
    image.judge();
    for (file, model) in models.iter().enumerate() {
        assert!(image.dump(file) == *model, "seed {seed}, file {file} as debugfs reads it");
    }
    for file in 0..FILES {
        image.truncate(file, 0);
    }
    image.judge();
    assert_eq!(image.fs().getattr(image.files[0]).unwrap().blocks_512, 0);
}

#[test]
fn model_on_default_features() {
    model_test(1, 64, &["-b", "4096"]);
}

#[test]
fn model_on_1k_blocks() {
    model_test(2, 32, &["-b", "1024"]);
}

#[test]
fn model_on_2k_blocks_and_128_byte_inodes() {
    model_test(3, 32, &["-b", "2048", "-I", "128"]);
}

#[test]
fn model_with_uninit_groups_and_no_metadata_checksums() {
    model_test(4, 40, &["-b", "1024", "-O", "^metadata_csum,uninit_bg,^64bit", "-g", "1024"]);
}

#[test]
fn model_without_any_checksums() {
    model_test(5, 32, &["-b", "1024", "-O", "^metadata_csum,^uninit_bg,^flex_bg"]);
}

#[test]
fn model_in_many_small_groups() {
    model_test(6, 24, &["-b", "1024", "-g", "512", "-G", "4"]);
}

#[test]
fn a_hundred_thousand_fragments_are_mapped_and_freed() {
    const FRAGMENTS: u32 = 100_000;
    let image = Image::new(256, &["-b", "1024", "-O", "^metadata_csum,uninit_bg"], 1);
    let block: Vec<u8> = (0..1024).map(|at| at as u8 | 1).collect();
    // In an order that splits nodes in the middle too.
    for part in 0..4 {
        for index in (part..FRAGMENTS).step_by(4) {
            assert_eq!(image.write(0, u64::from(index) * 2048, &block), 1024);
        }
    }
    let ino = image.files[0];
    let depth = image.fs().with_core(|core| Ok(node::depth(&core.inode(ino)?.block))).unwrap();
    assert!(depth >= 2, "depth {depth}");
    assert_eq!(image.fs().seek(ino, 50_000 * 2048, true).unwrap(), 50_000 * 2048);
    assert_eq!(image.fs().seek(ino, 50_000 * 2048, false).unwrap(), 50_000 * 2048 + 1024);
    assert_eq!(image.fs().seek(ino, 50_000 * 2048 + 1024, true).unwrap(), 50_001 * 2048);
    let mut bytes = vec![0; 4096];
    image.fs().read(ino, 77_777 * 2048, &mut bytes).unwrap();
    assert!(bytes[..1024] == block && bytes[1024..2048].iter().all(|byte| *byte == 0));
    image.judge();
    image.fallocate(0, Fallocate::PunchHole, 10_000 * 2048, 80_000 * 2048);
    assert_eq!(image.fs().seek(ino, 10_000 * 2048, true).unwrap(), 90_000 * 2048);
    image.judge();
    image.fallocate(0, Fallocate::PunchHole, 0, 1 << 30);
    assert_eq!(image.fs().getattr(ino).unwrap().blocks_512, 0);
    image.judge();
}

/// Free blocks, free inodes; bitmaps and descriptors of all groups.
type Allocation = (u64, u64, Vec<Vec<u8>>);

fn allocation(core: &mut Core) -> Allocation {
    let geometry: Arc<Geometry> = core.geometry.clone();
    let mut blocks = Vec::new();
    for group in 0..geometry.group_count {
        let desc = core.group(GroupNo(group)).unwrap();
        blocks.push(core.block(desc.block_bitmap).unwrap().to_vec());
        blocks.push(core.block(desc.inode_bitmap).unwrap().to_vec());
        blocks.push(format!("{desc:?}").into_bytes());
    }
    (core.free_blocks, core.free_inodes, blocks)
}

#[test]
fn a_handle_that_fails_leaves_no_trace() {
    let image = Image::new(24, &["-b", "1024", "-g", "512"], 2);
    image.write(0, 0, &[7; 5000]);
    image.reopen();
    let before = image.fs().with_core(|core| Ok(allocation(core))).unwrap();
    for round in 0..3 {
        let failed = image.fs().with_tx(ROOT, CREDITS, |tx| {
            let mut inode = tx.core.inode(image.files[0])?;
            let ino = tx.alloc_inode(InodeNo::ROOT, FileKind::Directory)?;
            tx.alloc_blocks(BlockNo(1), 700)?;
            let (start, count) = tx.alloc_data(image.files[1], BlockNo(9000), 30, 100)?;
            tx.alloc_data(image.files[1], BlockNo(start.0 + u64::from(count)), 30, 100)?;
            tx.append_metadata_block(&mut inode)?;
            tx.remove_range(&mut inode, 0, 100)?;
            tx.free_inode(ino, FileKind::Directory)?;
            tx.put_inode(&inode)?;
            Err::<(), _>(FsError::Errno(libc::EIO))
        });
        assert!(matches!(failed, Err(FsError::Errno(libc::EIO))));
        let after = image.fs().with_core(|core| Ok(allocation(core))).unwrap();
        assert!(before == after, "round {round}");
    }
    assert_eq!(image.read(0), vec![7; 5000]);
    // Nothing is held back: all of it can be written.
    let free = before.0;
    let data = Bytes::from(vec![1; 1 << 20]);
    let mut written = 0;
    loop {
        match image.fs().write(ROOT, image.files[1], WriteAt::Append, data.clone(), false) {
            Ok(done) => written += done.bytes as u64,
            Err(FsError::Errno(libc::ENOSPC)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let left = image.fs().with_core(|core| Ok(core.free_blocks)).unwrap();
    assert_eq!(left, 0);
    assert!(written / 1024 > free - 20, "{written} bytes in {free} blocks");
    image.judge();
}

#[test]
fn space_runs_out_to_the_last_block_and_comes_back_after_a_commit() {
    let image = Image::new(16, &["-b", "1024", "-m", "5"], 3);
    let data = Bytes::from(vec![3; 100_000]);
    let fill = |context, file: usize| {
        let mut total = 0;
        loop {
            match image.fs().write(context, image.files[file], WriteAt::Append, data.clone(), false) {
                Ok(done) => total += done.bytes,
                Err(FsError::Errno(libc::ENOSPC)) => return total,
                Err(error) => panic!("{error}"),
            }
        }
    };
    // Two files side by side, so that windows are open when space runs out.
    fill(USER, 0);
    let (left, reserved) =
        image.fs().with_core(|core| Ok((core.free_blocks, core.geometry.reserved_blocks))).unwrap();
    assert_eq!(left, reserved);
    assert!(reserved > 0);
    fill(ROOT, 1);
    assert_eq!(image.fs().with_core(|core| Ok(core.free_blocks)).unwrap(), 0);
    assert_eq!(image.size(0) % 1024, 0, "the last write was cut where the blocks ended");
    image.judge();
    // Freed blocks are had again only by way of a commit, which the retry forces; a thread that may not wait is told so.
    let size = image.size(1);
    image.truncate(1, 0);
    let hasty = Context { may_block: false, ..ROOT };
    let refused = image.fs().write(hasty, image.files[2], WriteAt::Append, Bytes::from(vec![9; 2000]), false);
    assert!(matches!(refused, Err(FsError::WouldBlock)), "{refused:?}");
    assert_eq!(image.size(2), 0);
    let again = fill(ROOT, 2);
    assert!(again as u64 + 2048 >= size, "{again} of {size}");
    image.judge();
}

#[test]
fn space_that_ends_within_the_tree_leaves_it_whole() {
    let image = Image::new(16, &["-b", "1024", "-m", "0", "-O", "^resize_inode"], 4);
    let try_write = |file: usize, offset: u64, count: usize| {
        let data = Bytes::from(vec![file as u8 + 1; count]);
        match image.fs().write(ROOT, image.files[file], WriteAt::Offset(offset), data, false) {
            Ok(written) => written.bytes,
            Err(FsError::Errno(libc::ENOSPC)) => 0,
            Err(error) => panic!("{error}"),
        }
    };
    image.fallocate(0, Fallocate::Reserve { keep_size: false }, 0, 4 << 20);
    // Fragments until no more fit.
    let mut fragments = Vec::new();
    for index in 0.. {
        let written = try_write(1, index * 20_480, 10_240);
        fragments.push((index * 20_480, written));
        if written < 10_240 {
            break;
        }
    }
    while try_write(2, image.size(2), 1024) > 0 {}
    image.judge();
    // Reserved blocks turn into written ones, which splits extents: the tree needs blocks that are not there.
    let mut refused = 0;
    let mut taken = Vec::new();
    for index in (0..2048).rev() {
        let offset = index * 2048;
        match try_write(0, offset, 1024) {
            0 => refused += 1,
            _ => taken.push(offset),
        }
    }
    assert!(refused > 0 && !taken.is_empty(), "{refused} refused, {} taken", taken.len());
    let mut expected = vec![0; 4 << 20];
    for offset in taken {
        expected[offset as usize..offset as usize + 1024].fill(1);
    }
    assert!(image.read(0) == expected);
    let bytes = image.read(1);
    for (offset, count) in fragments {
        let part = offset as usize..offset as usize + count;
        assert!(bytes[part].iter().all(|byte| *byte == 2));
    }
    image.judge();
    assert!(image.dump(0) == expected);
}

#[test]
fn files_written_side_by_side_stay_in_long_runs() {
    let image = Image::new(256, &["-b", "4096"], 2);
    let data = vec![1; 64 << 10];
    for step in 0..512 {
        image.write(0, step * (64 << 10), &data);
        image.write(1, step * (64 << 10), &data);
    }
    for file in 0..2 {
        let extents = image
            .fs()
            .with_core(|core| {
                let inode = core.inode(image.files[file])?;
                let mut count = 0;
                let mut at = 0;
                while let super::lookup::Mapping::Extent(extent) = core.mapping(&inode, FileBlock(at))? {
                    count += 1;
                    at = extent.end() as u32;
                }
                Ok(count)
            })
            .unwrap();
        assert!(extents <= 16, "{extents} extents in 32 MiB");
    }
    image.judge();
}

#[test]
fn discards_are_handed_out_once_and_hold_their_blocks() {
    let image = Image::new(32, &["-b", "4096"], 1);
    let checked = image.fs().with_core(|core| {
        let (start, count) = (BlockNo(6000), 100);
        let everything = core.free_blocks as u32;
        // As if freed in a transaction that has now committed.
        assert!(core.take_free(start, count)?);
        assert!(!core.take_free(start, 1)?, "in use");
        assert!(core.alloc.take_discards(10).is_empty());
        core.alloc.committed(&[(start, 40), (BlockNo(6040), 60)]);
        assert!(core.alloc.has_discards());
        let taken = core.alloc.take_discards(10);
        assert_eq!(taken, [(start, count)]);
        assert!(core.alloc.is_discarding() && !core.alloc.has_discards());
        assert!(!core.take_free(BlockNo(6050), 1)?, "must not be had while it is discarded");
        core.alloc.discarded(&taken);
        assert!(!core.alloc.is_discarding());
        assert!(core.take_free(start, count)?);
        core.alloc.committed(&[(start, count)]);
        assert_eq!(core.free_blocks as u32, everything);
        Ok(())
    });
    checked.unwrap();
    image.judge();
}

#[test]
fn an_unclean_end_of_file_never_shows() {
    let image = Image::new(16, &["-b", "4096"], 1);
    image.write(0, 0, &[5; 4096]);
    image.truncate(0, 100);
    image.truncate(0, 3000);
    assert!(image.read(0)[100..].iter().all(|byte| *byte == 0));
    // Rubbish behind the end, as another implementation may have left it.
    let place = image
        .fs()
        .with_core(|core| {
            let inode = core.inode(image.files[0])?;
            Ok(core.map_block(&inode, FileBlock(0))?.unwrap().0 * 4096)
        })
        .unwrap();
    let mut block = vec![0; 4096];
    image.fs().lun().read(place, &mut block).unwrap();
    block[3000..].fill(0x77);
    image.fs().lun().write(place, block.clone().into(), mirrorfs_journal::Origin::Metadata).unwrap();
    image.write(0, 8000, b"x");
    assert!(image.read(0)[100..8000].iter().all(|byte| *byte == 0));
    image.judge();
}

#[test]
fn limits_and_kinds_are_refused() {
    let image = Image::new(16, &["-b", "1024"], 1);
    let ino = image.files[0];
    let write = |ino, offset, count| {
        image.fs().write(ROOT, ino, WriteAt::Offset(offset), Bytes::from(vec![1; count]), false)
    };
    let limit = ((1_u64 << 32) - 1) * 1024;
    assert!(matches!(write(ino, limit, 1), Err(FsError::Errno(libc::EFBIG))));
    assert!(matches!(write(ino, u64::MAX - 3, 10), Err(FsError::Errno(libc::EFBIG))));
    assert_eq!(write(ino, limit - 5, 10).unwrap().bytes, 5);
    assert_eq!(image.size(0), limit);
    assert!(matches!(
        image.fs().truncate(ROOT, ino, limit + 1, &SetAttr::default()),
        Err(FsError::Errno(libc::EFBIG))
    ));
    assert!(matches!(write(InodeNo::ROOT, 0, 1), Err(FsError::Errno(libc::EISDIR))));
    assert!(matches!(image.fs().read(InodeNo::ROOT, 0, &mut [0; 10]), Err(FsError::Errno(libc::EISDIR))));
    assert!(matches!(image.fs().read(InodeNo(500), 0, &mut [0; 10]), Err(FsError::Errno(libc::ESTALE))));
    assert!(matches!(image.fs().seek(ino, limit, true), Err(FsError::Errno(libc::ENXIO))));
    image.judge();
    image.truncate(0, 0);
    assert!(matches!(image.fs().seek(ino, 0, false), Err(FsError::Errno(libc::ENXIO))));
    image.judge();
}

#[test]
fn a_damaged_tree_is_an_error_not_a_loop() {
    let image = Image::new(32, &["-b", "1024", "-O", "^metadata_csum,uninit_bg"], 1);
    for index in 0..2000 {
        image.write(0, index * 2048, &[1; 1024]);
    }
    let ino = image.files[0];
    let (leaf, root) = image
        .fs()
        .with_core(|core| {
            let inode = core.inode(ino)?;
            Ok((node::child(&inode.block, 0), inode.block))
        })
        .unwrap();
    assert!(node::depth(&root) > 0);
    image.fs().close().unwrap();
    let lun = image.fs().lun().clone();
    for (at, value) in [(0, 0_u8), (6, 9), (2, 255), (12, 255), (12 + 4, 0), (12 + 8, 1)] {
        let mut block = vec![0; 1024];
        lun.read(leaf * 1024, &mut block).unwrap();
        let good = block.clone();
        block[at..at + 2].fill(value);
        lun.write(leaf * 1024, block.into(), mirrorfs_journal::Origin::Metadata).unwrap();
        let found = open_with(&image.path, Options { read_only: true, ..Options::default() }).read(
            ino,
            0,
            &mut [0; 10],
        );
        assert!(matches!(found, Err(FsError::Corrupt { .. })), "byte {at}: {found:?}");
        lun.write(leaf * 1024, good.into(), mirrorfs_journal::Origin::Metadata).unwrap();
    }
    *image.fs.lock() = open(&image.path);
    image.judge();
}

#[test]
fn access_times_follow_relatime() {
    let image = Image::new(16, &[], 1);
    let ino = image.files[0];
    let atime = || image.fs().with_core(|core| Ok(core.inode(ino)?.atime)).unwrap();
    image.write(0, 0, b"x");
    // Within one tick of the clock the file is read and changed at the same time, and each reading counts.
    let written = Timestamp::now();
    while Timestamp::now() == written {
        std::thread::yield_now();
    }
    let before = Timestamp::now();
    image.fs().touch_atime(ROOT, ino).unwrap();
    let first = atime();
    assert!(first >= before);
    image.fs().touch_atime(ROOT, ino).unwrap();
    assert_eq!(atime(), first);
    image.judge();
}

/// Everything that a failed operation could have changed.
fn everything(fs: &Ext4, ino: InodeNo) -> (String, Allocation) {
    fs.with_core(|core| {
        let inode = core.inode(ino)?;
        Ok((format!("{inode:?}"), allocation(core)))
    })
    .unwrap()
}

#[test]
fn a_full_host_is_no_space_and_changes_nothing() {
    let image = Image::new(64, &[], 1);
    image.fs().close().unwrap();
    let faults = Faults::new(1);
    let backing = FaultBacking::new(Arc::new(FileBacking::open(&image.path).unwrap()), faults.clone());
    let fs = Ext4::open(Lun::new(Arc::new(backing), None), Options::default()).unwrap();
    let ino = image.files[0];
    let before = everything(&fs, ino);
    faults.fail_from(Operation::Reserve, 0, libc::ENOSPC);
    let write = || fs.write(ROOT, ino, WriteAt::Append, Bytes::from(vec![1; 1 << 20]), false);
    assert!(matches!(write(), Err(FsError::Errno(libc::ENOSPC))));
    assert!(everything(&fs, ino) == before);
    faults.heal();
    assert_eq!(write().unwrap().bytes, 1 << 20);
    fs.close().unwrap();
    *image.fs.lock() = open(&image.path);
    image.judge();
}

#[test]
fn a_thread_that_may_not_wait_leaves_cold_regions_alone() {
    let image = Image::new(64, &[], 1);
    image.fs().close().unwrap();
    let backing = Arc::new(FileBacking::open(&image.path).unwrap());
    let log = MirrorLog::open(LogConfig {
        dir: image.dir.path().join("queue"),
        memory_bytes_max: 64 << 20,
        queue_bytes_max: None,
        incarnation: Incarnation(1),
        luns: vec![LogLun {
            id: LunId(0),
            uuid: LunUuid([1; 16]),
            generation: Generation(1),
            name: "data".into(),
            size_bytes: backing.size_bytes(),
            durable_epoch: Epoch(0),
            clean: true,
            all_regions: false,
        }],
    })
    .unwrap();
    let fs = Ext4::open(Lun::new(backing, Some((LunId(0), log))), Options::default()).unwrap();
    let ino = image.files[0];
    let before = everything(&fs, ino);
    let write = |may_block, offset| {
        let context = Context { may_block, ..ROOT };
        fs.write(context, ino, WriteAt::Offset(offset), Bytes::from(vec![1; 16 << 20]), false)
    };
    assert!(matches!(write(false, 0), Err(FsError::WouldBlock)));
    assert!(everything(&fs, ino) == before);
    let written = write(true, 0).unwrap();
    assert_eq!(written.bytes, 16 << 20);
    assert!(written.appended.is_some());
    assert!(write(false, 0).is_ok(), "warm now");
    fs.close().unwrap();
    *image.fs.lock() = open(&image.path);
    assert!(image.read(0).iter().all(|byte| *byte == 1));
    image.judge();
}

#[test]
fn parallel_writers_and_readers_keep_files_apart() {
    let image = Image::new(128, &["-b", "4096"], 4);
    let fs = image.fs();
    std::thread::scope(|scope| {
        for (index, ino) in image.files.iter().copied().enumerate() {
            let fs = &fs;
            scope.spawn(move || {
                let mut random = Random(index as u64 + 77);
                let mut model = Vec::new();
                for step in 0..300 {
                    let data = vec![(index * 60 + step % 50) as u8 + 1; 1 + random.below(60_000) as usize];
                    match random.below(8) {
                        0 => {
                            let size = random.below(model.len() as u64 + 1);
                            fs.truncate(ROOT, ino, size, &SetAttr::default()).unwrap();
                            model.truncate(size as usize);
                        }
                        1 => {
                            let offset = random.below(model.len() as u64 + 1);
                            fs.fallocate(ROOT, ino, Fallocate::PunchHole, offset, 30_000, false).unwrap();
                            let end = model.len().min(offset as usize + 30_000);
                            model[offset as usize..end].fill(0);
                        }
                        _ => {
                            fs.write(ROOT, ino, WriteAt::Append, Bytes::from(data.clone()), false).unwrap();
                            model.extend(data);
                        }
                    }
                    let offset = random.below(model.len() as u64 + 1) as usize;
                    let mut found = vec![0xEE; 20_000];
                    let count = fs.read(ino, offset as u64, &mut found).unwrap();
                    assert!(
                        found[..count] == model[offset..model.len().min(offset + 20_000)],
                        "file {index}, step {step}"
                    );
                    if model.len() > 4 << 20 {
                        fs.truncate(ROOT, ino, 0, &SetAttr::default()).unwrap();
                        model.clear();
                    }
                }
            });
        }
    });
    image.judge();
}
