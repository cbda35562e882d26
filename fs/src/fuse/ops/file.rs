//! File contents.

use super::Call;
use crate::ext4::WriteAt;
use crate::ext4::attr::{Fallocate, SetAttr};
use crate::ext4::error::{FsError, Result};
use crate::fuse::server::{Mode, Server};
use bytes::Bytes;
use fuser::{Errno, FopenFlags, ReplyData, ReplyEmpty, ReplyLseek, ReplyOpen, ReplyWrite};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A read asks for no more than this (fuser's own bound on a request).
const READ_BYTES_MAX: usize = 16 << 20;

thread_local! {
    /// Each FUSE thread's read buffer: grows to the largest read, and is zeroed only then.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A WRITE with owned data.
pub(crate) struct Write {
    pub(crate) offset: u64,
    /// Copied out of the FUSE thread's buffer: the one copy.
    pub(crate) data: Bytes,
    /// From the kernel's page cache (`FUSE_WRITE_CACHE`).
    pub(crate) cached: bool,
    /// The handle's open flags.
    pub(crate) open_flags: i32,
    /// The caller may not keep setuid and setgid.
    pub(crate) kill_privileges: bool,
}

impl Write {
    /// Where it goes. A page of the cache has its place already; an append handle's own write goes to wherever the end
    /// is when the core holds the inode. With the writeback cache (asynchronous mode) the kernel keeps the times, and sends
    /// them by SETATTR: a time set by us, later, would be wrong.
    fn place(&self, mode: Mode) -> WriteAt {
        match (self.cached, mode) {
            (true, Mode::Async) => WriteAt::Cached(self.offset),
            (false, _) if self.open_flags & libc::O_APPEND != 0 => WriteAt::Append,
            _ => WriteAt::Offset(self.offset),
        }
    }
}

/// What `fallocate` flags ask for.
fn fallocate_operation(mode: i32) -> Result<Fallocate> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    let keep_size = mode & KEEP != 0;
    match mode & !KEEP {
        0 => Ok(Fallocate::Reserve { keep_size }),
        PUNCH if keep_size => Ok(Fallocate::PunchHole),
        ZERO => Ok(Fallocate::ZeroRange { keep_size }),
        _ => Err(FsError::Errno(libc::EOPNOTSUPP)),
    }
}

impl Server {
    /// Files have no state of ours: with ENOSYS the kernel opens and closes them by itself from now on.
    pub(crate) fn open(&self, reply: ReplyOpen) {
        if self.opens_unasked.load(Ordering::Relaxed) {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(fuser::FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    pub(crate) fn read(self: &Arc<Self>, call: Call, offset: u64, size: u32, reply: ReplyData) {
        let (lun, number) = match self.inode(call.ino, libc::EISDIR) {
            Ok(inode) => inode,
            Err(error) => return self.refuse(&call, reply, &error),
        };
        let size = (size as usize).min(READ_BYTES_MAX);
        READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.fs(lun).read(number, offset, &mut buffer[..size]) {
                Ok(read) => {
                    self.touch_atime(call.ino, lun, number, false);
                    reply.data(&buffer[..read]);
                }
                Err(error) => self.refuse(&call, reply, &error),
            }
        });
    }

    pub(crate) fn write(self: &Arc<Self>, call: Call, write: Write, reply: ReplyWrite) {
        self.run(
            call,
            reply,
            move |server, context| {
                // A page of the cache was changed when that was allowed; where it goes no policy may refuse it.
                let (lun, number) = if write.cached {
                    server.inode(call.ino, libc::EROFS)?
                } else {
                    server.changeable(call.ino)?
                };
                server.drop_capability(context, call.ino, lun, number)?;
                let (place, data) = (write.place(server.mode), write.data.clone());
                let before = server.evictions.finished();
                let length = data.len();
                let written = server.fs(lun).write(context, number, place, data, write.kill_privileges);
                // The kernel takes an answer of fewer bytes than its pages have for success, and the rest would be lost.
                let written = match written {
                    Ok(written) if write.cached && written.bytes < length => {
                        Err(FsError::Errno(libc::ENOSPC))
                    }
                    other => other,
                };
                if let (true, Err(FsError::Errno(libc::ENOSPC))) = (write.cached, &written)
                    && !server.evictions.may_have_freed(before)
                {
                    server.starved.insert(call.ino, Instant::now());
                    server.notify.ask_again(call.ino);
                }
                let written = written?;
                server.changed(call.ino);
                if write.cached && server.mode == Mode::Async {
                    server.notify.blocks_changed(call.ino);
                }
                Ok((lun, written))
            },
            |server, reply, (lun, written)| {
                let bytes = u32::try_from(written.bytes).unwrap_or(u32::MAX);
                server.answer_applied(lun, written.appended, reply, move |reply| reply.written(bytes));
            },
        );
    }

    pub(crate) fn fallocate(
        self: &Arc<Self>,
        call: Call,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.run(
            call,
            reply,
            move |server, context| {
                let operation = fallocate_operation(mode)?;
                let (lun, number) = server.changeable(call.ino)?;
                let fs = server.fs(lun);
                server.drop_capability(context, call.ino, lun, number)?;
                if context.uid != 0 && fs.getattr(number)?.permissions & 0o6000 != 0 {
                    let kill = SetAttr { kill_privileges: true, ..SetAttr::default() };
                    fs.setattr(context, number, &kill)?;
                }
                let keep_times = server.fallocate_keeps_times.load(Ordering::Relaxed);
                let appended = fs.fallocate(context, number, operation, offset, length, keep_times)?;
                server.changed(call.ino);
                Ok((lun, appended))
            },
            |server, reply, (lun, appended)| server.answer_applied(lun, appended, reply, ReplyEmpty::ok),
        );
    }

    /// SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
    ///
    /// It asks without having written out its dirty pages, which would then be taken for holes (and left out by a
    /// copying program): they are written out first.
    pub(crate) fn lseek(self: &Arc<Self>, call: Call, offset: i64, whence: i32, reply: ReplyLseek) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(start) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let (lun, number) = match self.inode(call.ino, libc::EINVAL) {
            Ok(inode) => inode,
            Err(error) => return self.refuse(&call, reply, &error),
        };
        let server = self.clone();
        let seek = move || match server.fs(lun).seek(number, start, data) {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(error) => server.refuse(&call, reply, &error),
        };
        if !self.notify.after_write_out(call.ino, start, Box::new(seek)) {
            log::warn!("too many SEEK_DATA and SEEK_HOLE at once: one was refused");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn only_an_uncached_write_on_an_append_handle_goes_to_the_end() {
        let place = |cached, open_flags| {
            let data = Bytes::new();
            Write { offset: 4096, data, cached, open_flags, kill_privileges: false }.place(Mode::Sync)
        };
        let append = libc::O_WRONLY | libc::O_APPEND;
        assert!(matches!(place(false, append), WriteAt::Append));
        assert!(matches!(place(true, append), WriteAt::Offset(4096)));
        assert!(matches!(place(false, libc::O_RDWR), WriteAt::Offset(4096)));
        assert!(matches!(place(true, libc::O_RDWR), WriteAt::Offset(4096)));
    }

    #[test]
    fn the_writeback_cache_keeps_its_own_times() {
        let write =
            Write { offset: 1, data: Bytes::new(), cached: true, open_flags: 0, kill_privileges: false };
        assert_eq!(write.place(Mode::Async), WriteAt::Cached(1));
        assert_eq!(write.place(Mode::Sync), WriteAt::Offset(1));
    }

    #[test]
    fn fallocate_modes() {
        use libc::*;
        let of = |mode| fallocate_operation(mode).ok();
        assert_eq!(of(0), Some(Fallocate::Reserve { keep_size: false }));
        assert_eq!(of(FALLOC_FL_KEEP_SIZE), Some(Fallocate::Reserve { keep_size: true }));
        assert_eq!(of(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE), Some(Fallocate::PunchHole));
        assert_eq!(of(FALLOC_FL_PUNCH_HOLE), None);
        assert_eq!(of(FALLOC_FL_ZERO_RANGE), Some(Fallocate::ZeroRange { keep_size: false }));
        assert_eq!(of(FALLOC_FL_COLLAPSE_RANGE), None);
        assert_eq!(of(FALLOC_FL_INSERT_RANGE), None);
        assert_eq!(of(FALLOC_FL_UNSHARE_RANGE), None);
        assert_eq!(of(FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_ZERO_RANGE), None);
    }
}
