//! What all operations share.

use super::attr::{bare_attr, file_attr};
use super::errno::ErrorLog;
use super::evictions::Evictions;
use super::handles::Directories;
use super::inode_table::InodeTable;
use super::mount::MountOptions;
use super::node::{FUSE_ROOT, Node, NodeNumbers};
use super::notify::Notify;
use super::ops::Call;
use super::pool::Pool;
use super::slot_cache::SlotCache;
use super::starved::Starved;
use crate::ext4::Ext4;
use crate::ext4::attr::{Attr, Context};
use crate::ext4::error::{FsError, Result};
use crate::ext4::types::InodeNo;
use crate::image::Lun;
use fuser::{FileAttr, FileType};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// How long the kernel may keep names and attributes: nobody else changes them.
pub(crate) const CACHED_FOR: Duration = Duration::from_secs(24 * 3600);
/// The extended attribute that a write to the file must remove.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";
/// How long an access time is taken as fresh without a look: relatime's bound is a day.
const ATIME_CHECK_INTERVAL_S: u64 = 3600;

/// Root, allowed to wait: for what the frontend does of its own accord.
pub(crate) const OWN_WORK: Context = Context { uid: 0, gid: 0, may_block: true };

/// One LUN that is served.
pub struct FrontendLun {
    /// Its directory's name where several are served.
    pub name: String,
    /// Its file system.
    pub fs: Arc<Ext4>,
    /// Its image and mirror log, to wait on in sync mode.
    pub lun: Arc<Lun>,
}

/// When a change is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// When the local image has it. The kernel collects writes in its cache.
    Async,
    /// When the mirror has it, as far as the outage policy asks for that. The kernel writes through.
    Sync,
}

/// The state behind all FUSE threads. Nothing in it is locked while an operation of the core runs, except the one
/// open directory that is being listed.
pub(crate) struct Server {
    pub(crate) luns: Vec<FrontendLun>,
    pub(crate) mode: Mode,
    pub(crate) numbers: NodeNumbers,
    pub(crate) table: InodeTable,
    pub(crate) directories: Directories,
    pub(crate) pool: Pool,
    pub(crate) notify: Notify,
    pub(crate) errors: ErrorLog,
    /// Inodes that have no [`CAPABILITY`].
    pub(crate) without_capability: SlotCache,
    /// Names removed or moved since the mount. Raised before the reply, so that a listing that was taken before knows.
    pub(crate) removals: AtomicU64,
    /// Files whose pages found no room.
    pub(crate) starved: Starved,
    /// Deleted files that are being freed.
    pub(crate) evictions: Evictions,
    /// The kernel opens and closes files without asking.
    pub(crate) opens_unasked: AtomicBool,
    /// The kernel keeps the times of a file's contents, for fallocate too.
    pub(crate) fallocate_keeps_times: AtomicBool,
    /// Inodes whose access time needs no update until they change.
    fresh_atime: SlotCache,
    fresh_atime_until_s: AtomicU64,
    options: MountOptions,
    started: Instant,
    mounted_at: SystemTime,
}

impl Server {
    /// Starts the pool and the notify thread.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub(crate) fn start(luns: Vec<FrontendLun>, mode: Mode, options: MountOptions) -> io::Result<Self> {
        let numbers = NodeNumbers::new(luns.len());
        Ok(Self {
            luns,
            mode,
            numbers,
            table: InodeTable::new(),
            directories: Directories::default(),
            pool: Pool::start()?,
            notify: Notify::start()?,
            errors: ErrorLog::default(),
            without_capability: SlotCache::new(),
            removals: AtomicU64::new(0),
            starved: Starved::default(),
            evictions: Evictions::default(),
            opens_unasked: AtomicBool::new(false),
            fallocate_keeps_times: AtomicBool::new(false),
            fresh_atime: SlotCache::new(),
            fresh_atime_until_s: AtomicU64::new(ATIME_CHECK_INTERVAL_S),
            options,
            started: Instant::now(),
            mounted_at: SystemTime::now(),
        })
    }

    /// The LUN's index and the inode.
    ///
    /// # Errors
    /// `in_lun_directory` for the directory of the LUNs.
    pub(crate) fn inode(&self, ino: u64, in_lun_directory: i32) -> Result<(usize, InodeNo)> {
        match self.numbers.node(ino)? {
            Node::Inode(lun, ino) => Ok((lun, ino)),
            Node::LunDirectory => Err(FsError::Errno(in_lun_directory)),
        }
    }

    /// As [`Self::inode`], for an operation that changes something: the directory of the LUNs is read-only, and in
    /// synchronous mode so is a LUN whose mirror is away where the policy says that.
    pub(crate) fn changeable(&self, ino: u64) -> Result<(usize, InodeNo)> {
        let (lun, number) = self.inode(ino, libc::EROFS)?;
        if self.mode == Mode::Sync && self.luns[lun].lun.refuses_changes() {
            return Err(FsError::Errno(libc::EROFS));
        }
        Ok((lun, number))
    }

    pub(crate) fn fs(&self, lun: usize) -> &Ext4 {
        &self.luns[lun].fs
    }

    /// The attributes of the directory of the LUNs.
    pub(crate) fn lun_directory(&self) -> FileAttr {
        let links = u32::try_from(self.luns.len()).unwrap_or(u32::MAX).saturating_add(2);
        bare_attr(FUSE_ROOT, FileType::Directory, 0o555, links, self.mounted_at)
    }

    pub(crate) fn file_attr(&self, lun: usize, attr: &Attr) -> FileAttr {
        file_attr(attr, self.numbers.fuse(lun, attr.ino))
    }

    /// The attributes for a reply that gives the kernel an inode: counts the lookup.
    pub(crate) fn looked_up(&self, lun: usize, attr: &Attr) -> FileAttr {
        let attr = self.file_attr(lun, attr);
        self.table.looked_up(attr.ino.0);
        attr
    }

    /// An inode has lost a link.
    pub(crate) fn link_removed(self: &Arc<Self>, lun: usize, attr: &Attr) {
        let ino = self.numbers.fuse(lun, attr.ino);
        if attr.links == 0 && self.table.unlinked(ino) {
            self.evict(ino);
        }
    }

    /// The kernel forgets `count` lookups of an inode.
    pub(crate) fn forget(self: &Arc<Self>, ino: u64, count: u64) {
        if self.table.forget(ino, count) {
            self.evict(ino);
        }
    }

    /// Frees an inode whose last use has ended. What fails here is on the orphan list and freed at the next mount.
    fn evict(self: &Arc<Self>, ino: u64) {
        let Ok(Node::Inode(lun, number)) = self.numbers.node(ino) else { return };
        self.starved.forget(ino);
        if self.evictions.add(lun, number) {
            let server = self.clone();
            self.pool.submit(Box::new(move || {
                server.evictions.collect();
                server.evict_waiting();
            }));
        }
    }

    /// Returns when what had been deleted before is free. On a thread that may wait.
    pub(crate) fn finish_evictions(&self) {
        self.evict_waiting();
        self.evictions.wait();
    }

    /// Frees the inodes that wait for that.
    fn evict_waiting(&self) {
        while let Some((lun, inodes)) = self.evictions.take() {
            for (number, error) in self.fs(lun).evict_all(OWN_WORK, &inodes) {
                self.errors.refuse("evict", self.numbers.fuse(lun, number), &error);
            }
            self.evictions.done(inodes.len());
        }
    }

    /// Something was read: the access time, as relatime has it. No look at the inode while it is known to be fresh.
    pub(crate) fn touch_atime(self: &Arc<Self>, ino: u64, lun: usize, number: InodeNo, directory: bool) {
        if self.options.no_atime || self.options.read_only || (directory && self.options.no_dir_atime) {
            return;
        }
        let now_s = self.started.elapsed().as_secs();
        if now_s >= self.fresh_atime_until_s.load(Ordering::Relaxed) {
            self.fresh_atime_until_s.store(now_s + ATIME_CHECK_INTERVAL_S, Ordering::Relaxed);
            self.fresh_atime.clear();
        }
        if self.fresh_atime.contains(ino) {
            return;
        }
        self.fresh_atime.insert(ino);
        match self.fs(lun).touch_atime(Context { may_block: false, ..OWN_WORK }, number) {
            Ok(()) | Err(FsError::Errno(_) | FsError::Latched(_)) => {}
            Err(FsError::WouldBlock) => {
                let server = self.clone();
                self.pool.try_submit(Box::new(move || {
                    let _ = server.fs(lun).touch_atime(OWN_WORK, number);
                }));
            }
            Err(error) => {
                self.errors.refuse("atime", ino, &error);
            }
        }
    }

    /// The inode has changed, or is new: the next read looks at its access time.
    pub(crate) fn changed(&self, ino: u64) {
        self.fresh_atime.remove(ino);
    }

    /// A file's contents or owner are about to change: its file capabilities go, as the kernel leaves that to us
    /// (`FUSE_HANDLE_KILLPRIV_V2`).
    ///
    /// # Errors
    /// When they are there and can't be removed.
    pub(crate) fn drop_capability(
        &self,
        context: Context,
        ino: u64,
        lun: usize,
        number: InodeNo,
    ) -> Result<()> {
        if self.without_capability.contains(ino) {
            return Ok(());
        }
        self.without_capability.insert(ino);
        if self.fs(lun).getxattr(number, CAPABILITY).is_err() {
            return Ok(());
        }
        self.without_capability.remove(ino);
        match self.fs(lun).removexattr(context, number, CAPABILITY) {
            Err(FsError::Errno(libc::ENODATA)) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Logs what is alarming and answers with the errno.
    pub(crate) fn refuse<R: super::ops::Refuse>(&self, call: &Call, reply: R, error: &FsError) {
        let number = self.errors.refuse(call.name, call.ino, error);
        reply.refuse(fuser::Errno::from_i32(number));
    }

    /// After the session's end: ends the threads and frees what was unlinked and still in use.
    pub(crate) fn finish(&self) {
        self.notify.finish();
        self.evictions.hurry();
        self.pool.finish();
        for ino in self.table.take_unlinked() {
            if let Ok(Node::Inode(lun, number)) = self.numbers.node(ino) {
                // Whoever was to attend to them has gone.
                let _ = self.evictions.add(lun, number);
            }
        }
        self.evict_waiting();
    }
}
