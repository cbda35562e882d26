//! The kernel's requests, handed to the operations.

use super::attr::{time_or_now, timestamp};
use super::linger::Linger;
use super::ops::{Call, Change, New, Write};
use super::server::{Mode, Server};
use crate::ext4::attr::SetAttr;
use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, RequestId,
    TimeOrNow, Version, WriteFlags,
};
use std::cell::Cell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

/// Bytes of one WRITE at most; the kernel's `fs.fuse.max_pages_limit` allows no more.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// From this protocol version on (Linux 6.1) the kernel with its writeback cache moves a file's times on at fallocate.
const FALLOCATE_KEEPS_TIMES: (u32, u32) = (7, 37);
/// Requests that nobody waits for (readahead, writeback) which the kernel has under way at most.
const BACKGROUND_MAX: u16 = 64;

thread_local! {
    /// The last FORGET that this thread has served.
    static LAST_FORGET: Cell<RequestId> = const { Cell::new(RequestId(0)) };
}

/// What the session drives.
pub(crate) struct Handler {
    server: Arc<Server>,
    linger: Linger,
}

impl Handler {
    pub(crate) fn new(server: Arc<Server>, linger: Linger) -> Self {
        Self { server, linger }
    }
}

fn owned(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

impl Filesystem for Handler {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = vec![
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPORT_SUPPORT,
            // A size that we report is never news: nothing is to be dropped from the page cache for it.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            // A default ACL takes the umask's place, so that we must have both.
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
            // Without it the kernel asks for security.capability before each write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        if self.server.mode == Mode::Async {
            wanted.push(InitFlags::FUSE_WRITEBACK_CACHE);
        }
        // One by one: a single one that is not offered would refuse them all.
        for capability in wanted {
            if config.add_capabilities(capability).is_err() {
                log::info!("this kernel does not offer {capability:?}");
            }
        }
        let granularity =
            self.server.luns.iter().map(|lun| lun.fs.time_granularity()).max().unwrap_or_default();
        if config.set_time_granularity(granularity).is_err() {
            log::warn!("the kernel will show times finer than the image can keep");
        }
        // FUSE_ATOMIC_O_TRUNC is left out: it needs the OPEN that this saves.
        let unasked = config.capabilities().contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.server.opens_unasked.store(unasked, Ordering::Relaxed);
        // Where it does, a time of ours would be a later one than what programs have seen.
        let Version(major, minor) = config.kernel_abi();
        let keeps_times = config.capabilities().contains(InitFlags::FUSE_WRITEBACK_CACHE)
            && self.server.mode == Mode::Async
            && (major, minor) >= FALLOCATE_KEEPS_TIMES;
        self.server.fallocate_keeps_times.store(keeps_times, Ordering::Relaxed);
        for refused in [
            config.set_max_write(WRITE_BYTES_MAX).err().map(|_| "max_write"),
            config.set_max_background(BACKGROUND_MAX).err().map(|_| "max_background"),
        ]
        .into_iter()
        .flatten()
        {
            log::warn!("the session's {refused} was left at its default");
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _serving = self.linger.serve();
        self.server.lookup(Call::new("lookup", parent, request), name.as_bytes(), reply);
    }

    fn forget(&self, request: &Request, ino: INodeNo, count: u64) {
        // A batch comes as many calls of one number.
        let first = LAST_FORGET.replace(request.unique()) != request.unique();
        let _serving = first.then(|| self.linger.serve());
        self.server.forget(ino.0, count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let _serving = self.linger.serve();
        self.server.getattr(Call::new("getattr", ino, request), handle.is_some(), reply);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _serving = self.linger.serve();
        let set = SetAttr {
            permissions: mode.map(|mode| (mode & 0o7777) as u16),
            uid,
            gid,
            atime: atime.map(time_or_now),
            mtime: mtime.map(time_or_now),
            ctime: ctime.map(timestamp),
            kill_privileges: false,
        };
        self.server.setattr(Call::new("setattr", ino, request), Change { size, set }, reply);
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let _serving = self.linger.serve();
        self.server.readlink(Call::new("readlink", ino, request), reply);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _serving = self.linger.serve();
        let call = Call::new("mknod", parent, request);
        self.server.make(call, owned(name), New::Node(mode, rdev), umask, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let _serving = self.linger.serve();
        let call = Call::new("mkdir", parent, request);
        self.server.make(call, owned(name), New::Directory(mode), umask, reply);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let _serving = self.linger.serve();
        let call = Call::new("symlink", parent, request);
        let new = New::Symlink(owned(target.as_os_str()));
        self.server.make(call, owned(link_name), new, 0, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _serving = self.linger.serve();
        self.server.remove(Call::new("unlink", parent, request), owned(name), false, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _serving = self.linger.serve();
        self.server.remove(Call::new("rmdir", parent, request), owned(name), true, reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _serving = self.linger.serve();
        let call = Call::new("rename", parent, request);
        self.server.rename(call, owned(name), new_parent.0, owned(new_name), flags, reply);
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let _serving = self.linger.serve();
        self.server.link(Call::new("link", ino, request), new_parent.0, owned(new_name), reply);
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _serving = self.linger.serve();
        self.server.open(reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let _serving = self.linger.serve();
        self.server.create(Call::new("create", parent, request), owned(name), mode, umask, reply);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _serving = self.linger.serve();
        self.server.read(Call::new("read", ino, request), offset, size, reply);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _serving = self.linger.serve();
        let write = Write {
            offset,
            data: Bytes::copy_from_slice(data),
            cached: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            open_flags: flags.0,
            kill_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        self.server.write(Call::new("write", ino, request), write, reply);
    }

    /// ENOSYS: the kernel asks only once. It has written its pages out before (and has reported their errors), and
    /// a close promises no more than that.
    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let _serving = self.linger.serve();
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _serving = self.linger.serve();
        reply.ok();
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.linger.pass();
        let call = Call::new("fsync", ino, request);
        match self.server.inode(ino.0, libc::EINVAL) {
            Ok((lun, number)) => self.server.sync(call, lun, number, datasync, reply),
            Err(error) => self.server.refuse(&call, reply, &error),
        }
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _serving = self.linger.serve();
        self.server.opendir(reply);
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let _serving = self.linger.serve();
        self.server.readdir(Call::new("readdir", ino, request), handle, offset, reply);
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let _serving = self.linger.serve();
        self.server.readdirplus(Call::new("readdirplus", ino, request), handle, offset, reply);
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let _serving = self.linger.serve();
        self.server.releasedir(handle);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.linger.pass();
        let call = Call::new("fsyncdir", ino, request);
        match self.server.inode(ino.0, 0) {
            Ok((lun, number)) => self.server.sync(call, lun, number, datasync, reply),
            // The directory of the LUNs never changes.
            Err(crate::ext4::error::FsError::Errno(0)) => reply.ok(),
            Err(error) => self.server.refuse(&call, reply, &error),
        }
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let _serving = self.linger.serve();
        self.server.statfs(Call::new("statfs", ino, request), reply);
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _serving = self.linger.serve();
        let call = Call::new("setxattr", ino, request);
        self.server.setxattr(call, owned(name), value.to_vec(), flags, reply);
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _serving = self.linger.serve();
        self.server.getxattr(Call::new("getxattr", ino, request), name.as_bytes(), size, reply);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _serving = self.linger.serve();
        self.server.listxattr(Call::new("listxattr", ino, request), size, reply);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _serving = self.linger.serve();
        self.server.removexattr(Call::new("removexattr", ino, request), owned(name), reply);
    }

    /// The kernel checks permissions itself (`default_permissions`).
    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.linger.pass();
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let _serving = self.linger.serve();
        reply.error(Errno::ENOTTY);
    }

    /// ENOSYS: files are always ready, and the kernel then says so by itself.
    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.linger.pass();
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.linger.pass();
        self.server.fallocate(Call::new("fallocate", ino, request), offset, length, mode, reply);
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _serving = self.linger.serve();
        self.server.lseek(Call::new("lseek", ino, request), offset, whence, reply);
    }

    /// ENOSYS: the kernel then copies through its page cache.
    fn copy_file_range(
        &self,
        _request: &Request,
        _ino_in: INodeNo,
        _handle_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _handle_out: FileHandle,
        _offset_out: u64,
        _length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.linger.pass();
        reply.error(Errno::ENOSYS);
    }
}
