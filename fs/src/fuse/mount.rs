//! Mounting, unmounting and remounting.

use super::frontend::Handler;
use super::linger::Linger;
use super::mount_syscalls as sys;
use super::server::{FrontendLun, Mode, Server};
use fuser::{BackgroundSession, Config, Session, SessionACL};
use parking_lot::Mutex;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The type's second half in the mount table.
pub(crate) const SUBTYPE: &str = "mirrorfs";
/// The type in the mount table.
pub(crate) const FS_TYPE: &str = "fuse.mirrorfs";
/// Readahead of a mount where we may set it; the kernel's own is 128.
const READAHEAD_KIB: u32 = 1024;
/// FUSE threads at most, unless configured. One more than processors measures best: with as many, each request finds a
/// thread that has gone to sleep; more only take turns.
const THREADS_MAX: usize = 5;

/// Generic mount options, as `-o` has them. The default: none, accessible to the mounting user only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro`.
    pub read_only: bool,
    /// `noatime`.
    pub no_atime: bool,
    /// `nodiratime`.
    pub no_dir_atime: bool,
    /// `nosuid`; always on for an ordinary user.
    pub no_suid: bool,
    /// `nodev`; always on for an ordinary user.
    pub no_dev: bool,
    /// `noexec`.
    pub no_exec: bool,
    /// `sync`: each write(2) is followed by an fsync.
    pub synchronous: bool,
    /// `dirsync`.
    pub dirsync: bool,
    /// `allow_other`: for all users, by the files' permissions. See [`MountOptions::allow_other_by_default`].
    pub allow_other: bool,
}

impl MountOptions {
    /// Whether `allow_other` can be on without being asked for: for root, and where `/etc/fuse.conf` allows it to all.
    #[must_use]
    pub fn allow_other_by_default() -> bool {
        sys::is_root() || sys::users_may_allow_other()
    }
}

/// What is mounted, where and how.
pub struct FrontendConfig {
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// One LUN: it is the mount itself. Several: top-level directories. At least one.
    pub luns: Vec<FrontendLun>,
    /// When changes are answered.
    pub mode: Mode,
    /// FUSE threads; `None`: one more than processors, 3 to 5.
    pub threads: Option<usize>,
    /// The source shown in `/proc/self/mounts`, to the letter.
    pub source: OsString,
    /// The rest.
    pub options: MountOptions,
}

/// Why nothing was mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The mount point, the device or a program can't be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as "open".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The mount point is not a directory.
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// There is no LUN to serve, or fusermount3 or the configuration forbids it.
    #[error("{0}")]
    Refused(String),
    /// The kernel and we did not come to terms, or a thread can't be started.
    #[error("cannot start the FUSE session: {0}")]
    Session(#[source] io::Error),
}

/// Entry point of the frontend.
pub struct Frontend;

impl Frontend {
    /// Mounts and serves; when it returns the mount answers. A stale mount of ours at the mount point is cleared first.
    ///
    /// # Errors
    /// When the mount point is no usable directory, or the kernel or fusermount3 refuses.
    pub fn mount(config: FrontendConfig) -> Result<Mounted, MountError> {
        let FrontendConfig { mountpoint, luns, mode, threads, source, options } = config;
        if luns.is_empty() {
            return Err(MountError::Refused("there is no LUN to serve".into()));
        }
        let failed = |source| MountError::Io { action: "use", path: mountpoint.clone(), source };
        super::clear_stale_mount(&mountpoint).map_err(failed)?;
        let mount_point = sys::resolve(&mountpoint).map_err(failed)?;
        if !mount_point.is_dir() {
            return Err(MountError::NotADirectory(mountpoint));
        }
        sys::be_io_flusher();
        let server = Arc::new(Server::start(luns, mode, options.clone()).map_err(MountError::Session)?);
        let session = start_session(&server, &mount_point, &source, &options, threads);
        let (session, device) = match session {
            Ok(started) => started,
            Err(error) => {
                server.finish();
                return Err(error);
            }
        };
        if let Some(device) = &device {
            sys::set_readahead_kib(device, READAHEAD_KIB);
        }
        let state =
            State { mount_point, device, ended: AtomicBool::new(false), options: Mutex::new(options) };
        Ok(Mounted {
            session,
            server: server.clone(),
            unmounter: Unmounter { state: Arc::new(state), server },
        })
    }
}

/// Mounts, shakes hands and starts the FUSE threads. Gives the mount's device number as well.
fn start_session(
    server: &Arc<Server>,
    mount_point: &Path,
    source: &OsString,
    options: &MountOptions,
    threads: Option<usize>,
) -> Result<(BackgroundSession, Option<String>), MountError> {
    let device = sys::mount(mount_point, source, options)?;
    let number = sys::mount_table().ok().and_then(|table| {
        table.into_iter().rfind(|entry| entry.mount_point == mount_point && entry.fs_type == FS_TYPE)
    });
    let number = number.map(|entry| entry.device);
    let mut config = Config::default();
    let threads = threads.unwrap_or_else(default_threads).max(1);
    config.n_threads = Some(threads);
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.acl = acl;
    // The session is made from the device, not by fuser's own mounting: at its end that unmounts whatever lies at the
    // mount point by then.
    let session = Linger::new(device.as_fd(), threads, server.clone())
        .and_then(|linger| Session::from_fd(Handler::new(server.clone(), linger), device, acl, config))
        .and_then(|session| {
            server.notify.set_notifier(session.notifier());
            session.spawn()
        });
    session.map(|session| (session, number)).map_err(|error| {
        if let Err(error) = sys::detach(mount_point) {
            log::error!("{} stays mounted: {error}", mount_point.display());
        }
        MountError::Session(error)
    })
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(3, |count| (count.get() + 1).clamp(3, THREADS_MAX))
}

struct State {
    mount_point: PathBuf,
    /// As in the mount table, such as `0:52`.
    device: Option<String>,
    /// The session is over.
    ended: AtomicBool,
    options: Mutex<MountOptions>,
}

/// A mount that is being served. To be waited for: what was unlinked and still in use is freed at its end.
#[must_use]
pub struct Mounted {
    session: BackgroundSession,
    server: Arc<Server>,
    unmounter: Unmounter,
}

impl Mounted {
    /// Unmounts and remounts, from any thread and while another waits.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Waits until it is unmounted, by us or from outside, and all operations have ended. The LUNs can be closed then.
    ///
    /// # Errors
    /// When a FUSE thread ended by an error.
    pub fn wait(self) -> io::Result<()> {
        let result = self.session.join();
        if result.is_err() {
            // Other FUSE threads may still serve: the LUNs are not to be closed under them.
            if let Err(error) = self.unmounter.force() {
                log::error!("{} stays mounted: {error}", self.unmounter.mount_point().display());
            }
        }
        self.unmounter.state.ended.store(true, Ordering::SeqCst);
        self.server.finish();
        result
    }
}

/// Ends or changes a mount. Cheap to clone. Its calls make the kernel write out its dirty pages: never to be called
/// from a thread that serves the mount.
#[derive(Clone)]
pub struct Unmounter {
    state: Arc<State>,
    server: Arc<Server>,
}

impl Unmounter {
    /// Where it is mounted; absolute.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        &self.state.mount_point
    }

    /// The device number (`major:minor`) in the mount table, for `st_dev` and sysfs.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        self.state.device.as_deref()
    }

    /// Whether the session is over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.state.ended.load(Ordering::SeqCst)
    }

    /// Writes out the kernel's dirty pages (syncfs(2) on the mount), and frees what has been deleted.
    ///
    /// # Errors
    /// When a page can't be written.
    pub fn write_out(&self) -> io::Result<()> {
        sys::sync_mount(&self.state.mount_point)?;
        self.server.finish_evictions();
        Ok(())
    }

    /// Unmounts, wherever in the tree the mount is by now. Succeeds if it is unmounted already.
    ///
    /// # Errors
    /// `EBUSY` while a file or working directory in it is in use.
    pub fn unmount(&self) -> io::Result<()> {
        for path in self.places()? {
            sys::unmount(&path)?;
        }
        Ok(())
    }

    /// Unmounts in any case: requests under way fail, and what the kernel had not yet written out is lost.
    ///
    /// # Errors
    /// When it can't be taken out of the tree; the connection is cut all the same.
    pub fn force(&self) -> io::Result<()> {
        let places = self.places()?;
        if let Some(device) = &self.state.device {
            sys::abort_connection(device);
        }
        for path in places {
            // Cuts the connection too, where sysfs is not there; it may still be busy.
            let _ = sys::umount2(&path, libc::MNT_FORCE);
            match sys::detach(&path) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Turns the mount read-only or writable again (`mount -o remount,ro`).
    ///
    /// # Errors
    /// `EBUSY` while files are open for writing; what a LUN says that can't be made writable.
    pub fn remount(&self, read_only: bool) -> io::Result<()> {
        let mut options = self.state.options.lock();
        let changed = MountOptions { read_only, ..options.clone() };
        let kernel = || match sys::remount(&self.state.mount_point, &changed) {
            // An ordinary user can't: the LUNs refuse writes themselves.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.write_out(),
            result => result,
        };
        let luns = || {
            self.server
                .luns
                .iter()
                .try_for_each(|lun| lun.fs.set_read_only(read_only))
                .map_err(io::Error::other)
        };
        if read_only {
            kernel()?;
            self.server.finish_evictions();
            luns()?;
        } else {
            luns()?;
            kernel()?;
        }
        *options = changed;
        Ok(())
    }

    /// Where it is mounted now, newest first.
    fn places(&self) -> io::Result<Vec<PathBuf>> {
        if self.has_ended() {
            return Ok(Vec::new());
        }
        let ours = |entry: &sys::MountEntry| {
            entry.fs_type == FS_TYPE
                && match &self.state.device {
                    Some(device) => entry.device == *device,
                    None => entry.mount_point == self.state.mount_point,
                }
        };
        let table = sys::mount_table()?;
        Ok(table.into_iter().rev().filter(ours).map(|entry| entry.mount_point).collect())
    }
}
