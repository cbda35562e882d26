//! Every operation of the core, on whatever the image has become.

use super::ROOT;
use super::base::{Opened, sync};
use crate::Input;
use bytes::Bytes;
use mirrorfs_fs::ext4::WriteAt;
use mirrorfs_fs::ext4::attr::{
    Context, Fallocate, FileKind, NewNode, RenameMode, SetAttr, Timestamp, XattrMode,
};
use mirrorfs_fs::ext4::error::{FsError, Result};
use mirrorfs_fs::ext4::types::InodeNo;

/// Entries of one directory, and inodes in all, that a case looks at.
const ENTRIES_MAX: usize = 40;
const INODES_MAX: usize = 120;

/// A case's view of a mounted image.
pub(super) struct Session<'a> {
    pub(super) opened: &'a Opened,
    pub(super) inode_count: u32,
    /// Damage must have ended changes as soon as it was met.
    pub(super) stops: bool,
    /// Names met: directory and name.
    names: Vec<(InodeNo, Vec<u8>)>,
    inodes: Vec<InodeNo>,
    /// Removed, and to be evicted.
    removed: Vec<InodeNo>,
}

impl<'a> Session<'a> {
    pub(super) fn new(opened: &'a Opened, inode_count: u32, stops: bool) -> Self {
        Self {
            opened,
            inode_count,
            stops,
            names: Vec::new(),
            inodes: vec![InodeNo::ROOT],
            removed: Vec::new(),
        }
    }

    /// Judges a result: the image's storage never fails here, so an I/O error is an access where none may be.
    fn judge<T>(&self, input: &mut Input<'_>, what: &str, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                input.count("operation");
                return Some(value);
            }
            Err(FsError::Io(error)) => panic!("{what}: {error}"),
            Err(error @ FsError::Corrupt { .. }) => {
                input.count("damage met");
                let read_only = self.opened.fs.status().read_only;
                assert!(!self.stops || read_only.is_some(), "{what}: {error}, and changes go on");
            }
            Err(FsError::Latched(why)) => {
                input.count("refused as read-only");
                assert!(!why.contains("panicked"), "{what}: {why}");
            }
            Err(_) => input.count("refused"),
        }
        None
    }

    /// Walks the tree from the root, reading all there is to read.
    pub(super) fn read_all(&mut self, input: &mut Input<'_>) {
        let fs = &self.opened.fs;
        let mut seen = 0;
        let mut directories = vec![InodeNo::ROOT];
        while let Some(dir) = directories.pop() {
            let listed = fs.read_dir(dir, 0);
            let Some(entries) = self.judge(input, "read_dir", listed) else { continue };
            for entry in entries.into_iter().take(ENTRIES_MAX) {
                assert!(entry.cookie != 0 && !entry.name.is_empty() && entry.name.len() <= 255);
                let found = fs.lookup(dir, &entry.name);
                let found = self.judge(input, "lookup", found);
                if entry.name == b"." || entry.name == b".." {
                    continue;
                }
                self.names.push((dir, entry.name));
                let Some(attr) = found else { continue };
                if seen >= INODES_MAX || self.inodes.contains(&attr.ino) {
                    continue;
                }
                seen += 1;
                self.inodes.push(attr.ino);
                self.read_inode(input, attr.ino);
                if attr.kind == FileKind::Directory {
                    directories.push(attr.ino);
                }
            }
        }
        // Numbers that no name leads to.
        for _ in 0..12 {
            let ino = InodeNo(input.below(u64::from(self.inode_count) + 3) as u32);
            self.read_inode(input, ino);
        }
    }

    fn read_inode(&self, input: &mut Input<'_>, ino: InodeNo) {
        let fs = &self.opened.fs;
        let attr = fs.getattr(ino);
        let Some(attr) = self.judge(input, "getattr", attr) else { return };
        let names = fs.listxattr(ino);
        for name in self.judge(input, "listxattr", names).unwrap_or_default().iter().take(8) {
            let value = fs.getxattr(ino, name);
            self.judge(input, "getxattr", value);
        }
        match attr.kind {
            FileKind::Symlink => {
                let target = fs.readlink(ino);
                self.judge(input, "readlink", target);
            }
            FileKind::Regular => {
                let mut into = vec![0; 9000];
                for offset in [
                    0,
                    4097,
                    attr.size.saturating_sub(700),
                    1 << 31,
                    u64::from(u32::MAX) << 10,
                    u64::MAX - 10,
                ] {
                    let read = fs.read(ino, offset, &mut into);
                    if let Some(count) = self.judge(input, "read", read) {
                        assert!(count <= into.len());
                    }
                    let data = fs.seek(ino, offset, offset % 2 == 0);
                    self.judge(input, "seek", data);
                }
            }
            FileKind::Directory => {
                let cookie = input.number();
                let listed = fs.read_dir(ino, cookie);
                self.judge(input, "read_dir", listed);
            }
            _ => {}
        }
    }

    fn any_inode(&self, input: &mut Input<'_>) -> InodeNo {
        if input.once_in(12) {
            return InodeNo(input.below(u64::from(self.inode_count) + 3) as u32);
        }
        *input.pick(&self.inodes)
    }

    /// A name in a directory, there or not.
    fn any_name(&self, input: &mut Input<'_>) -> (InodeNo, Vec<u8>) {
        if self.names.is_empty() || input.once_in(3) {
            let length = *input.pick(&[1, 5, 30, 200, 255, 256]);
            let name = input.bytes(length).iter().map(|byte| byte % 26 + b'a').collect();
            return (self.any_inode(input), name);
        }
        input.pick(&self.names).clone()
    }

    /// One change.
    pub(super) fn change(&mut self, input: &mut Input<'_>) {
        let fs = self.opened.fs.clone();
        let context = Context { may_block: !input.once_in(6), ..ROOT };
        let ino = self.any_inode(input);
        let offset = match input.below(4) {
            0 => 0,
            1 => input.below(20_000),
            2 => input.below(4 << 20),
            _ => {
                *input.pick(&[1 << 30, (1 << 42) - 4096, (1 << 44) - 1, u64::from(u32::MAX), u64::MAX - 100])
            }
        };
        let length = *input.pick(&[1, 100, 1024, 4096, 5000, 70_000, 1 << 20]);
        match input.below(17) {
            0 => {
                let (dir, name) = self.any_name(input);
                let target = vec![b't'; input.pick(&[1_usize, 59, 60, 500, 5000]).to_owned()];
                let node = match input.below(5) {
                    0 | 1 => NewNode::Regular,
                    2 => NewNode::Directory,
                    3 => NewNode::Symlink(&target),
                    _ => NewNode::Special(FileKind::CharDevice, input.number() as u32),
                };
                let made = fs.make(context, dir, &name, node, 0o6755, 0o022);
                if let Some(attr) = self.judge(input, "make", made) {
                    self.inodes.push(attr.ino);
                    self.names.push((dir, name));
                }
            }
            1 | 2 => {
                let at = match input.below(6) {
                    0 => WriteAt::Append,
                    1 => WriteAt::Cached(offset),
                    _ => WriteAt::Offset(offset),
                };
                let data = Bytes::from(vec![0xA5; length.min(200_000)]);
                let kill = input.once_in(2);
                let written = fs.write(context, ino, at, data, kill);
                self.judge(input, "write", written);
            }
            3 => {
                let change = SetAttr { kill_privileges: input.once_in(2), ..SetAttr::default() };
                let cut = fs.truncate(context, ino, offset, &change);
                self.judge(input, "truncate", cut);
            }
            4 | 5 => {
                let operation = match input.below(5) {
                    0 => Fallocate::Reserve { keep_size: false },
                    1 => Fallocate::Reserve { keep_size: true },
                    2 => Fallocate::PunchHole,
                    3 => Fallocate::ZeroRange { keep_size: false },
                    _ => Fallocate::ZeroRange { keep_size: true },
                };
                let length = if input.once_in(6) { input.number() } else { length as u64 };
                let keep_times = input.once_in(2);
                let done = fs.fallocate(context, ino, operation, offset, length, keep_times);
                self.judge(input, "fallocate", done);
            }
            6 => {
                let (dir, name) = self.any_name(input);
                let linked = fs.link(context, ino, dir, &name);
                if self.judge(input, "link", linked).is_some() {
                    self.names.push((dir, name));
                }
            }
            7 | 8 => {
                let (dir, name) = self.any_name(input);
                let (what, removed) = if input.once_in(2) {
                    ("unlink", fs.unlink(context, dir, &name))
                } else {
                    ("rmdir", fs.rmdir(context, dir, &name))
                };
                if let Some(attr) = self.judge(input, what, removed) {
                    self.removed.push(attr.ino);
                }
            }
            9 | 10 => {
                let (from, to) = (self.any_name(input), self.any_name(input));
                let mode = *input.pick(&[RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
                let renamed = fs.rename(context, (from.0, &from.1), (to.0, &to.1), mode);
                if let Some(Some(attr)) = self.judge(input, "rename", renamed) {
                    self.removed.push(attr.ino);
                }
            }
            11 => {
                let name = *input.pick(&["user.small", "user.other", "trusted.x", "security.capability"]);
                let value = vec![3; *input.pick(&[0, 1, 60, 900, 5000])];
                let mode = *input.pick(&[XattrMode::Set, XattrMode::Create, XattrMode::Replace]);
                let set = fs.setxattr(context, ino, name.as_bytes(), &value, mode);
                self.judge(input, "setxattr", set);
            }
            12 => {
                let name = *input.pick(&[
                    "user.small",
                    "user.large",
                    "system.posix_acl_access",
                    "system.posix_acl_default",
                ]);
                let removed = fs.removexattr(context, ino, name.as_bytes());
                self.judge(input, "removexattr", removed);
                let length = input.index(60);
                let acl = input.bytes(length);
                let set = fs.setxattr(context, ino, b"system.posix_acl_access", &acl, XattrMode::Set);
                self.judge(input, "setxattr", set);
            }
            13 => {
                let time = Timestamp {
                    seconds: input.number() as i64,
                    nanoseconds: input.below(1_000_000_000) as u32,
                };
                let change = SetAttr {
                    permissions: Some(input.below(0o10000) as u16),
                    uid: input.once_in(2).then(|| input.number() as u32),
                    mtime: Some(time),
                    kill_privileges: input.once_in(2),
                    ..SetAttr::default()
                };
                let set = fs.setattr(context, ino, &change);
                self.judge(input, "setattr", set);
                let touched = fs.touch_atime(context, ino);
                self.judge(input, "touch_atime", touched);
            }
            14 => {
                let ino = self.removed.pop().unwrap_or(ino);
                let evicted = fs.evict(context, ino);
                self.judge(input, "evict", evicted);
            }
            15 => {
                let ino = input.once_in(2).then_some(ino);
                let synced = sync(&fs, ino);
                self.judge(input, "sync", synced);
            }
            _ => {
                let numbers = fs.statfs();
                self.judge(input, "statfs", numbers);
                let layout = fs.layout();
                if let Some(layout) = self.judge(input, "layout", layout) {
                    let _text = layout.describe(input.below(20 << 20), 1 << 16);
                }
            }
        }
    }
}
