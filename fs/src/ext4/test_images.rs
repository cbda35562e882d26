//! Images for tests: made by mke2fs, judged by e2fsck, read a second time by debugfs and by the kernel.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::attr::Context;
use super::cache::BlockData;
use super::error::Result;
use super::types::{BlockNo, InodeNo};
use super::{Ext4, Options};
use crate::image::Lun;
use crate::image::{FileBacking, MemoryBacking};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// The super user, who may wait.
pub(super) const ROOT: Context = Context { uid: 0, gid: 0, may_block: true };

/// An image file in a directory of its own, removed at the end.
pub(super) struct Image {
    directory: tempfile::TempDir,
    pub(super) path: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).env("DEBUGFS_PAGER", "cat").output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

impl Image {
    /// Made by `mke2fs -t ext4 -b 4096` with more arguments (which may say another block size).
    pub(super) fn make(size: &str, arguments: &[&str]) -> Self {
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let directory = tempfile::tempdir_in(base).unwrap();
        let path = directory.path().join("image");
        let mut all = vec!["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,root_owner=0:0", "-b", "4096"];
        all.extend(arguments);
        all.extend([path.to_str().unwrap(), size]);
        let (success, text) = run("mke2fs", &all);
        assert!(success, "mke2fs: {text}");
        Self { directory, path }
    }
    pub(super) fn open(&self) -> Arc<Ext4> {
        let backing = FileBacking::open(&self.path).unwrap();
        Ext4::open(Lun::new(Arc::new(backing), None), Options::default()).unwrap()
    }
    /// Opens other bytes in the image's stead.
    pub(super) fn open_bytes(bytes: &[u8]) -> Result<Arc<Ext4>> {
        Ext4::open(Lun::new(Arc::new(MemoryBacking::from_bytes(bytes)), None), Options::default())
    }
    /// Closes the file system and lets e2fsck judge.
    pub(super) fn judge(&self, fs: Arc<Ext4>) {
        fs.close().unwrap();
        drop(fs);
        self.fsck();
    }
    pub(super) fn fsck(&self) {
        let (success, text) = run("e2fsck", &["-fn", self.path.to_str().unwrap()]);
        assert!(success, "e2fsck: {text}");
    }
    /// Changes the image with a tool of e2fsprogs.
    pub(super) fn tool(&self, program: &str, arguments: &[&str]) {
        let (success, text) = run(program, &[arguments, &[self.path.to_str().unwrap()]].concat());
        assert!(success, "{program}: {text}");
    }
    /// What debugfs says to a request.
    pub(super) fn debugfs(&self, request: &str) -> String {
        run("debugfs", &["-R", request, self.path.to_str().unwrap()]).1
    }
    /// Lets the kernel mount the image while `work` runs. False where that is not allowed here.
    pub(super) fn with_kernel(&self, work: impl FnOnce(&Path)) -> bool {
        struct Mounted(PathBuf);
        impl Drop for Mounted {
            fn drop(&mut self) {
                let (success, text) = run("umount", &[self.0.to_str().unwrap()]);
                assert!(success || std::thread::panicking(), "umount: {text}");
            }
        }
        let at = self.directory.path().join("mnt");
        std::fs::create_dir_all(&at).unwrap();
        let arguments = ["-t", "ext4", "-o", "loop", self.path.to_str().unwrap(), at.to_str().unwrap()];
        let (success, text) = run("mount", &arguments);
        if !success {
            // SAFETY: no arguments, no memory.
            let root = unsafe { libc::geteuid() } == 0;
            assert!(!root || text.contains("loop device"), "mount: {text}");
            return false;
        }
        let mounted = Mounted(at);
        work(&mounted.0);
        true
    }
    /// Closes the file system, lets e2fsck judge, and opens it again.
    pub(super) fn reopened(&self, fs: Arc<Ext4>) -> Arc<Ext4> {
        self.judge(fs);
        self.open()
    }
    pub(super) fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

/// Everything is committed, then the file system vanishes without being closed.
pub(super) fn crash(fs: Arc<Ext4>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    fs.sync(None, false, Box::new(move |result| sender.send(result.map(drop)).unwrap()));
    receiver.recv().unwrap().unwrap();
    drop(fs);
}

/// See [`state`].
#[derive(PartialEq)]
pub(super) struct State {
    blocks: Vec<BlockData>,
    numbers: (u64, u64, u32),
    orphans: Vec<InodeNo>,
}

/// All that a handle may change: every block but the superblock's (its numbers are written by commits), the numbers kept in memory,
/// and the orphans.
pub(super) fn state(fs: &Ext4) -> State {
    fs.with_core(|core| {
        let (superblock, _) = core.geometry.superblock_place();
        let places = (0..core.geometry.block_count).map(BlockNo).filter(|block| *block != superblock);
        let blocks = places.map(|block| core.block(block)).collect::<Result<Vec<_>>>()?;
        let mut orphans: Vec<InodeNo> = core.orphans.members().collect();
        orphans.sort();
        let numbers = (core.free_blocks, core.free_inodes, core.last_orphan);
        Ok(State { blocks, numbers, orphans })
    })
    .unwrap()
}

/// Small, repeatable random numbers (xorshift).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
    /// A name of any bytes but `/` and NUL.
    pub(super) fn name(&mut self, length: usize) -> Vec<u8> {
        let byte = |random: &mut Self| match random.below(256) as u8 {
            0 => 1,
            b'/' => b'.',
            other => other,
        };
        let mut name: Vec<u8> = (0..length).map(|_| byte(self)).collect();
        if name[0] == b'.' {
            name[0] = b'_';
        }
        name
    }
}
