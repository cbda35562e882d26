//! Listings.

use super::Call;
use crate::ext4::attr::{DirEntry, FileKind};
use crate::ext4::error::Result;
use crate::ext4::types::InodeNo;
use crate::fuse::attr::{bare_attr, file_type};
use crate::fuse::handles::Listing;
use crate::fuse::node::{FUSE_ROOT, Node};
use crate::fuse::server::{CACHED_FOR, Server};
use fuser::{
    FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyOpen,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

impl Server {
    pub(crate) fn opendir(&self, reply: ReplyOpen) {
        let handle = self.directories.open();
        // The kernel sees each change of a directory, and drops what it has kept of the listing.
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
    }

    pub(crate) fn releasedir(&self, handle: FileHandle) {
        self.directories.release(handle.0);
    }

    /// Lists from behind the cookie `after`, each entry handed to `add` until that says that there is no more room.
    /// A listing is read once, at its start, and kept with the handle.
    fn list(
        self: &Arc<Self>,
        ino: u64,
        handle: FileHandle,
        after: u64,
        mut add: impl FnMut(usize, InodeNo, &DirEntry, bool) -> bool,
    ) -> Result<()> {
        let (lun, number) = self.inode(ino, libc::EIO)?;
        let directory = self.directories.get(handle.0);
        let mut kept = directory.lock();
        if after == 0 || kept.is_none() {
            let removals = self.removals.load(Ordering::SeqCst);
            let entries = self.fs(lun).read_dir(number, after)?;
            *kept = Some(Listing { entries, removals });
            self.touch_atime(ino, lun, number, true);
        }
        if let Some(listing) = kept.as_ref() {
            let unchanged = listing.removals == self.removals.load(Ordering::SeqCst);
            for entry in listing.behind(after) {
                if add(lun, number, entry, unchanged) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The FUSE number of an entry.
    fn entry_number(&self, lun: usize, directory: InodeNo, entry: &DirEntry) -> u64 {
        if entry.name == b".." && directory == InodeNo::ROOT && !self.numbers.is_single() {
            return FUSE_ROOT;
        }
        self.numbers.fuse(lun, entry.ino)
    }

    pub(crate) fn readdir(
        self: &Arc<Self>,
        call: Call,
        handle: FileHandle,
        after: u64,
        mut reply: ReplyDirectory,
    ) {
        if matches!(self.numbers.node(call.ino), Ok(Node::LunDirectory)) {
            for (cookie, ino, name) in self.lun_entries(after) {
                if reply.add(INodeNo(ino), cookie, FileType::Directory, OsStr::from_bytes(name)) {
                    break;
                }
            }
            return reply.ok();
        }
        let listed = self.list(call.ino, handle, after, |lun, directory, entry, _| {
            let ino = self.entry_number(lun, directory, entry);
            reply.add(INodeNo(ino), entry.cookie, file_type(entry.kind), OsStr::from_bytes(&entry.name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => self.refuse(&call, reply, &error),
        }
    }

    pub(crate) fn readdirplus(
        self: &Arc<Self>,
        call: Call,
        handle: FileHandle,
        after: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        if matches!(self.numbers.node(call.ino), Ok(Node::LunDirectory)) {
            self.readdirplus_luns(after, &mut reply);
            return reply.ok();
        }
        let listed = self.list(call.ino, handle, after, |lun, directory, entry, unchanged| {
            self.add_plus(&mut reply, lun, directory, entry, unchanged)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => self.refuse(&call, reply, &error),
        }
    }

    /// Adds an entry with its attributes; true if there is no room for it.
    fn add_plus(
        &self,
        reply: &mut ReplyDirectoryPlus,
        lun: usize,
        directory: InodeNo,
        entry: &DirEntry,
        unchanged: bool,
    ) -> bool {
        let name = OsStr::from_bytes(&entry.name);
        let number = self.entry_number(lun, directory, entry);
        let bare = |ino, ttl: &Duration, reply: &mut ReplyDirectoryPlus| {
            let attr = bare_attr(ino, file_type(entry.kind), 0, 1, SystemTime::UNIX_EPOCH);
            reply.add(INodeNo(ino), entry.cookie, name, ttl, &attr, Generation(0))
        };
        if is_dot(&entry.name) {
            // The kernel takes no more than number and kind, and counts no lookup.
            return bare(number, &Duration::ZERO, reply);
        }
        // Since the listing was read the name may have gone, and its inode be in use for something else. The directory
        // itself can't change while the kernel waits for this answer.
        let attr = if unchanged {
            self.fs(lun).getattr(entry.ino)
        } else {
            self.fs(lun).lookup(directory, &entry.name)
        };
        match attr {
            Ok(attr) => {
                let generation = Generation(u64::from(attr.generation));
                let attr = self.file_attr(lun, &attr);
                if reply.add(attr.ino, entry.cookie, name, &CACHED_FOR, &attr, generation) {
                    return true;
                }
                self.table.looked_up(attr.ino.0);
                false
            }
            Err(crate::ext4::error::FsError::Errno(libc::ENOENT)) => false,
            // Named all the same, so that it can be removed; valid for no time, so that using it shows the error.
            Err(error) => {
                self.errors.refuse("readdirplus", number, &error);
                if bare(number, &Duration::ZERO, reply) {
                    return true;
                }
                self.table.looked_up(number);
                false
            }
        }
    }

    /// The directory of the LUNs: cookie, inode and name of each entry behind a cookie.
    fn lun_entries(&self, after: u64) -> impl Iterator<Item = (u64, u64, &[u8])> {
        let dots = [(FUSE_ROOT, &b"."[..]), (FUSE_ROOT, &b".."[..])];
        let roots = self
            .luns
            .iter()
            .enumerate()
            .map(|(index, lun)| (self.numbers.fuse(index, InodeNo::ROOT), lun.name.as_bytes()));
        let skip = usize::try_from(after).unwrap_or(usize::MAX);
        (1..).zip(dots.into_iter().chain(roots)).skip(skip).map(|(cookie, (ino, name))| (cookie, ino, name))
    }

    fn readdirplus_luns(&self, after: u64, reply: &mut ReplyDirectoryPlus) {
        for (cookie, ino, name) in self.lun_entries(after) {
            let file_name = OsStr::from_bytes(name);
            let root = match self.numbers.node(ino) {
                Ok(Node::Inode(lun, root)) => self.fs(lun).getattr(root).ok().map(|attr| (lun, attr)),
                _ => None,
            };
            let full = match root {
                Some((lun, attr)) => {
                    let generation = Generation(u64::from(attr.generation));
                    let attr = self.file_attr(lun, &attr);
                    reply.add(attr.ino, cookie, file_name, &CACHED_FOR, &attr, generation)
                }
                None => {
                    let kind = file_type(FileKind::Directory);
                    let attr = bare_attr(ino, kind, 0, 1, SystemTime::UNIX_EPOCH);
                    reply.add(attr.ino, cookie, file_name, &Duration::ZERO, &attr, Generation(0))
                }
            };
            if full {
                return;
            }
            if !is_dot(name) {
                self.table.looked_up(ino);
            }
        }
    }
}
