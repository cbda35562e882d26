//! Mounts in this process, and the system calls that the standard library lacks.
//!
//! No test of this program may map a file of such a mount: the kernel holds the process's map of memory while it waits for
//! the answer, which the threads that would give it need too.

use mirrorfs_fs::ext4::{Ext4, Options};
use mirrorfs_fs::fuse::{Frontend, FrontendConfig, FrontendLun, Mode, MountOptions, Mounted, Unmounter};
use mirrorfs_fs::image::{FormatOptions, Image, Lun, OpenOptions, Role, format};
use mirrorfs_journal::LunId;
use mirrorfs_journal::log::{LogConfig, MirrorLog, OnOutage};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One served LUN.
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) image: Image,
    pub(crate) fs: Arc<Ext4>,
}

/// A mount of one or several images; unmounted when dropped, also by a failing test.
pub(crate) struct Mount {
    pub(crate) dir: tempfile::TempDir,
    /// None while it is taken down: it holds the image.
    unmounter: Option<Unmounter>,
    server: Option<JoinHandle<io::Result<()>>>,
    pub(crate) parts: Vec<Part>,
    mode: Mode,
    /// The mirror log of [`Mount::mirrored`].
    pub(crate) log: Option<Arc<MirrorLog>>,
}

/// Whether tests can run here.
pub(crate) fn can_mount() -> bool {
    // SAFETY: takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    if !(root && device) {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    root && device
}

/// A directory on the RAM disk, where there is one.
pub(crate) fn temp_dir() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap()
}

/// Runs a program that must succeed; its output.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).env("DEBUGFS_PAGER", "cat");
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}{said}", output.status);
    text
}

impl Mount {
    /// Fresh images of 96 MiB with these names.
    pub(crate) fn new(luns: &[&str], mode: Mode) -> Self {
        Self::fresh(luns, mode, 96 << 20)
    }

    /// Fresh images with these names.
    pub(crate) fn fresh(luns: &[&str], mode: Mode, size_bytes: u64) -> Self {
        let dir = temp_dir();
        for name in luns {
            let options = FormatOptions { name: (*name).into(), size_bytes };
            format(&dir.path().join(format!("{name}.img")), &options).unwrap();
        }
        Self::start(dir, luns, mode, false)
    }

    /// An image as `mkfs.ext4` makes it with these arguments, after `prepare` has seen it.
    pub(crate) fn stock(size: &str, arguments: &[&str], mode: Mode, prepare: impl FnOnce(&Path)) -> Self {
        let dir = temp_dir();
        let path = dir.path().join("data.img");
        run("mkfs.ext4", &[&["-q", "-F"], arguments, &[path.to_str().unwrap(), size]].concat());
        prepare(&path);
        Self::start(dir, &["data"], mode, false)
    }

    /// One LUN in sync mode with a mirror log; a reply waits for the peer for as long as it takes.
    pub(crate) fn mirrored() -> Self {
        let dir = temp_dir();
        let options = FormatOptions { name: "data".into(), size_bytes: 96 << 20 };
        format(&dir.path().join("data.img"), &options).unwrap();
        Self::start(dir, &["data"], Mode::Sync, true)
    }

    fn start(dir: tempfile::TempDir, luns: &[&str], mode: Mode, mirrored: bool) -> Self {
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let (parts, served, log) = serve(dir.path(), luns, mirrored);
        let (unmounter, server) = mount(dir.path(), served, mode);
        Self { dir, unmounter: Some(unmounter), server: Some(server), parts, mode, log }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The file of the first LUN's image.
    pub(crate) fn image(&self) -> PathBuf {
        self.parts[0].path.clone()
    }

    pub(crate) fn unmounter(&self) -> &Unmounter {
        self.unmounter.as_ref().unwrap()
    }

    fn unmount(&self) {
        // A program that another test just starts holds this one's files, too, until it is executed.
        let is_busy = |error: &io::Error| error.raw_os_error() == Some(libc::EBUSY);
        let mut unmounted = self.unmounter().unmount();
        let deadline = Instant::now() + Duration::from_secs(5);
        while unmounted.as_ref().is_err_and(is_busy) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            unmounted = self.unmounter().unmount();
        }
        unmounted.unwrap();
    }

    /// Unmounts, closes, and has e2fsck look at each image. Gives the names.
    fn take_down(&mut self) -> Vec<String> {
        self.unmount();
        self.server.take().unwrap().join().unwrap().unwrap();
        self.unmounter = None;
        let mut names = Vec::new();
        for part in std::mem::take(&mut self.parts) {
            let epoch = part.fs.close().unwrap();
            drop(part.fs);
            part.image.close_clean(epoch).unwrap();
            let output = Command::new("e2fsck").arg("-fn").arg(&part.path).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "e2fsck: {text}");
            names.push(part.name);
        }
        names
    }

    /// Unmounts, has e2fsck look, and mounts again.
    pub(crate) fn remount(&mut self) {
        assert!(self.log.is_none(), "a mirrored mount is not mounted again");
        self.remount_after(|_| {});
    }

    /// As [`Self::remount`], with the directory of the images in between.
    pub(crate) fn remount_after(&mut self, between: impl FnOnce(&Path)) {
        let names = self.take_down();
        between(self.dir.path());
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (parts, served, _) = serve(self.dir.path(), &names, false);
        self.parts = parts;
        let (unmounter, server) = mount(self.dir.path(), served, self.mode);
        (self.unmounter, self.server) = (Some(unmounter), Some(server));
    }

    /// Unmounts, closes, and has e2fsck look at each image.
    pub(crate) fn finish(mut self) {
        self.take_down();
    }

    /// As [`Self::finish`]; then the kernel's ext4 mounts the first image while `look` looks.
    pub(crate) fn finish_by_kernel(mut self, look: impl FnOnce(&Path)) {
        let image = self.image();
        self.take_down();
        by_kernel(&image, look);
    }
}

/// The image mounted by the kernel's ext4, for writing, while `work` works.
pub(crate) fn by_kernel(image: &Path, work: impl FnOnce(&Path)) {
    struct Mounted(tempfile::TempDir);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let path = self.0.path().to_str().unwrap().to_owned();
            // A program that another test is just starting holds our files open until it has become itself.
            for _ in 0..500 {
                let output = Command::new("umount").arg(&path).output();
                if output.is_ok_and(|output| output.status.success()) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = Command::new("umount").args(["-l", &path]).status();
        }
    }
    let mounted = Mounted(tempfile::tempdir().unwrap());
    let at = mounted.0.path().to_str().unwrap();
    run("mount", &["-t", "ext4", "-o", "loop", image.to_str().unwrap(), at]);
    work(mounted.0.path());
}

type Served = (Vec<Part>, Vec<FrontendLun>, Option<Arc<MirrorLog>>);

fn serve(dir: &Path, luns: &[&str], mirrored: bool) -> Served {
    let (mut parts, mut served, mut log) = (Vec::new(), Vec::new(), None);
    for name in luns {
        let path = dir.join(format!("{name}.img"));
        let options =
            OpenOptions { role: Role::Primary, name: (*name).into(), lock_wait: Duration::from_secs(5) };
        let image = Image::open(&path, &options).unwrap();
        if mirrored {
            let config = LogConfig {
                dir: dir.join("queue"),
                memory_bytes_max: 64 << 20,
                queue_bytes_max: None,
                incarnation: image.label().incarnation,
                luns: vec![image.log_lun(LunId(0))],
            };
            let opened = MirrorLog::open(config).unwrap();
            opened.set_on_outage(OnOutage::Block);
            log = Some(opened);
        }
        let lun = Lun::new(image.backing(), log.clone().map(|log| (LunId(0), log)));
        let fs = Ext4::open(lun.clone(), Options::default()).unwrap();
        parts.push(Part { name: (*name).into(), path, image, fs: fs.clone() });
        served.push(FrontendLun { name: (*name).into(), fs, lun });
    }
    (parts, served, log)
}

fn mount(dir: &Path, luns: Vec<FrontendLun>, mode: Mode) -> (Unmounter, JoinHandle<io::Result<()>>) {
    let mounted: Mounted = Frontend::mount(FrontendConfig {
        mountpoint: dir.join("mnt"),
        luns,
        mode,
        threads: None,
        source: "a source, to the letter".into(),
        options: MountOptions { allow_other: true, ..MountOptions::default() },
    })
    .unwrap();
    let unmounter = mounted.unmounter();
    (unmounter, std::thread::spawn(move || mounted.wait()))
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            // Whoever still waits for the mirror is answered.
            log.set_on_outage(OnOutage::Queue);
            log.end_session();
        }
        if let Some(server) = self.server.take() {
            let _ = self.unmounter().force();
            let _ = server.join();
        }
    }
}

pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A path for a system call.
pub(crate) fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// The outcome of a system call that gives -1 for an error.
pub(crate) fn outcome(result: impl Into<i64>) -> io::Result<i64> {
    let result = result.into();
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The number of an error that must be there.
#[track_caller]
pub(crate) fn refusal<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

pub(crate) fn statvfs(path: &Path) -> libc::statvfs {
    let path = c_path(path);
    // SAFETY: a C string and room for the answer; all zeros is a valid statvfs.
    unsafe {
        let mut numbers: libc::statvfs = std::mem::zeroed();
        assert_eq!(libc::statvfs(path.as_ptr(), &raw mut numbers), 0);
        numbers
    }
}

pub(crate) fn seek(file: &File, offset: i64, whence: i32) -> i64 {
    // SAFETY: the descriptor is open.
    unsafe { libc::lseek(file.as_raw_fd(), offset, whence) }
}

pub(crate) fn fallocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    outcome(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) }).map(drop)
}

pub(crate) fn rename(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: two C strings.
    let result =
        unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    outcome(result).map(drop)
}

pub(crate) fn mknod(path: &Path, mode: u32, device: u64) -> io::Result<()> {
    let path = c_path(path);
    // SAFETY: a C string.
    outcome(unsafe { libc::mknod(path.as_ptr(), mode, device) }).map(drop)
}

/// Sets an extended attribute; of a symbolic link itself.
pub(crate) fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c_path(path), CString::new(name).unwrap());
    // SAFETY: two C strings, and a buffer with its length.
    let result =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    outcome(result).map(drop)
}

pub(crate) fn remove_xattr(path: &Path, name: &str) -> io::Result<()> {
    let (path, name) = (c_path(path), CString::new(name).unwrap());
    // SAFETY: two C strings.
    outcome(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

pub(crate) fn get_xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (path, name) = (c_path(path), CString::new(name).unwrap());
    let mut value = vec![0; 64 << 10];
    // SAFETY: two C strings, and a buffer with its length.
    let length = outcome(unsafe {
        libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) as i64
    })?;
    value.truncate(length as usize);
    Ok(value)
}

pub(crate) fn list_xattrs(path: &Path) -> io::Result<Vec<String>> {
    let path = c_path(path);
    let mut names = vec![0u8; 64 << 10];
    // SAFETY: a C string, and a buffer with its length.
    let length =
        outcome(unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) as i64 })?;
    let names = &names[..length as usize];
    let mut names: Vec<String> = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// Sets access and modification time, each in seconds and nanoseconds; of a symbolic link itself.
pub(crate) fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) -> io::Result<()> {
    let path = c_path(path);
    let times = [atime, mtime].map(|(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec });
    // SAFETY: a C string and two times.
    outcome(unsafe {
        libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
    })
    .map(drop)
}

pub(crate) fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Whether a shell command succeeds as this user, group and list of supplementary groups.
pub(crate) fn can(user: u32, group: u32, groups: &str, script: &str) -> bool {
    let groups = if groups.is_empty() { "--clear-groups".into() } else { format!("--groups={groups}") };
    let status = Command::new("setpriv")
        .args([&format!("--reuid={user}"), &format!("--regid={group}"), &groups, "sh", "-c", script])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status();
    status.unwrap().success()
}

pub(crate) fn open_to_all(mount: &Mount) {
    set_mode(mount.dir.path(), 0o755);
    set_mode(&mount.root(), 0o755);
}
