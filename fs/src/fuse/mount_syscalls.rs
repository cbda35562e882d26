//! Mounting and unmounting themselves: mount(2) as root, fusermount3 otherwise, and what the kernel's mount table says.

use super::mount::{FS_TYPE, MountError, MountOptions, SUBTYPE};
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const FUSERMOUNT: &str = "fusermount3";
/// Where it is looked for as well: mount(8) starts its helpers without PATH.
const FUSERMOUNT_DIRS: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
/// <linux/prctl.h>; the libc crate lacks it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
const FUSE_DEVICE: &str = "/dev/fuse";

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// Device number as the kernel writes it, such as `0:52`.
    pub(crate) device: String,
    pub(crate) mount_point: PathBuf,
    pub(crate) fs_type: String,
}

/// All mounts of this process' namespace, oldest first.
pub(crate) fn mount_table() -> io::Result<Vec<MountEntry>> {
    Ok(parse_mountinfo(&std::fs::read("/proc/self/mountinfo")?))
}

fn parse_mountinfo(text: &[u8]) -> Vec<MountEntry> {
    let entry = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2)?;
        let mount_point = fields.nth(1)?;
        let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(MountEntry {
            device: String::from_utf8_lossy(device).into_owned(),
            mount_point: PathBuf::from(OsString::from_vec(unescape(mount_point))),
            fs_type: String::from_utf8_lossy(fs_type).into_owned(),
        })
    };
    text.split(|byte| *byte == b'\n').filter_map(entry).collect()
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let number = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match number {
            Some(number) if byte == b'\\' => {
                out.push(number);
                rest = &after[3..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

/// The absolute path of a mount point, also of one whose server is dead (its last component can't be looked at then).
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(path.to_path_buf()),
    };
    match (path.canonicalize(), path.file_name()) {
        (Err(error), Some(name)) if is_dead(&error) => Ok(parent.canonicalize()?.join(name)),
        (resolved, _) => resolved,
    }
}

fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Whether a mount point has lost its server. stat(2) may be answered from the kernel's cache; statfs(2) never is.
fn server_is_dead(path: &Path) -> bool {
    if path.metadata().is_err_and(|error| is_dead(&error)) {
        return true;
    }
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let mut found = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` is a C string and `found` has room for a statfs, both through the call.
    check(unsafe { libc::statfs(path.as_ptr(), found.as_mut_ptr()) }).is_err_and(|error| is_dead(&error))
}

/// Unmounts what a killed server of ours has left at `path`. True if there was something; anything else at that path is
/// left alone.
///
/// # Errors
/// When it is there and can't be unmounted.
pub fn clear_stale_mount(path: &Path) -> io::Result<bool> {
    if !server_is_dead(path) {
        return Ok(false);
    }
    let path = resolve(path)?;
    let top = mount_table()?.into_iter().rfind(|entry| entry.mount_point == path);
    if top.is_none_or(|entry| entry.fs_type != FS_TYPE) {
        return Ok(false);
    }
    log::warn!("unmounting {}, which a server that has died left behind", path.display());
    detach(&path)?;
    Ok(true)
}

/// umount2(2).
pub(crate) fn umount2(path: &Path, flags: libc::c_int) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a C string that lives through the call.
    check(unsafe { libc::umount2(path.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) })
}

/// Unmounts as whoever we are: EBUSY while it is in use.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    match umount2(path, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => fusermount_unmount(path, &["-u"]),
        result => result,
    }
}

/// Takes the mount out of the tree, also while it is in use.
pub(crate) fn detach(path: &Path) -> io::Result<()> {
    match umount2(path, libc::MNT_DETACH) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => fusermount_unmount(path, &["-u", "-z"]),
        result => result,
    }
}

fn fusermount_unmount(path: &Path, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(find_fusermount()).args(arguments).arg("--").arg(path).output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let busy = message.to_ascii_lowercase().contains("busy");
    Err(if busy { io::Error::from_raw_os_error(libc::EBUSY) } else { io::Error::other(message) })
}

fn find_fusermount() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(FUSERMOUNT_DIRS.iter().map(PathBuf::from));
    dirs.map(|dir| dir.join(FUSERMOUNT))
        .find(|file| file.is_file())
        .unwrap_or_else(|| PathBuf::from(FUSERMOUNT))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether our own mount(2) can be expected to work.
pub(crate) fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn flags(options: &MountOptions) -> libc::c_ulong {
    [
        (options.read_only, libc::MS_RDONLY),
        (options.no_suid, libc::MS_NOSUID),
        (options.no_dev, libc::MS_NODEV),
        (options.no_exec, libc::MS_NOEXEC),
        (options.no_atime, libc::MS_NOATIME),
        (options.no_dir_atime, libc::MS_NODIRATIME),
        (options.synchronous, libc::MS_SYNCHRONOUS),
        (options.dirsync, libc::MS_DIRSYNC),
    ]
    .into_iter()
    .filter_map(|(set, flag)| set.then_some(flag))
    .fold(0, |flags, flag| flags | flag)
}

/// Mounts at `mount_point` (resolved) and gives the session's device.
pub(crate) fn mount(
    mount_point: &Path,
    source: &OsStr,
    options: &MountOptions,
) -> Result<OwnedFd, MountError> {
    if is_root() {
        match mount_by_syscall(mount_point, source, options) {
            // Root of a container without the right to mount.
            Err(MountError::Io { source: error, .. }) if error.raw_os_error() == Some(libc::EPERM) => {}
            result => return result,
        }
    }
    mount_by_fusermount(mount_point, source, options)
}

fn mount_by_syscall(
    mount_point: &Path,
    source: &OsStr,
    options: &MountOptions,
) -> Result<OwnedFd, MountError> {
    let failed = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| MountError::Io { action, path, source }
    };
    let mode = mount_point.metadata().map_err(failed("look at", mount_point))?.mode();
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(FUSE_DEVICE)
        .map_err(failed("open", Path::new(FUSE_DEVICE)))?;
    // SAFETY: these take nothing and cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let mut data = format!(
        "fd={},rootmode={:o},user_id={uid},group_id={gid},default_permissions",
        device.as_raw_fd(),
        mode & libc::S_IFMT
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let c_string = |bytes: &[u8]| {
        CString::new(bytes).map_err(|_| MountError::Refused("a name contains a NUL byte".into()))
    };
    let (source, target, fs_type, data) = (
        c_string(source.as_bytes())?,
        c_string(mount_point.as_os_str().as_bytes())?,
        c_string(FS_TYPE.as_bytes())?,
        c_string(data.as_bytes())?,
    );
    // SAFETY: four C strings that live through the call.
    let result = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), fs_type.as_ptr(), flags(options), data.as_ptr().cast())
    };
    check(result).map_err(failed("mount on", mount_point))?;
    Ok(device.into())
}

/// Changes the mount's flags (mount(2) with `MS_REMOUNT`): the kernel writes out its dirty pages first.
pub(crate) fn remount(mount_point: &Path, options: &MountOptions) -> io::Result<()> {
    let target = CString::new(mount_point.as_os_str().as_bytes())?;
    let flags = flags(options) | libc::MS_REMOUNT;
    // SAFETY: a C string that lives through the call; source, type and data may be null for a remount.
    check(unsafe {
        libc::mount(std::ptr::null(), target.as_ptr(), std::ptr::null(), flags, std::ptr::null())
    })
}

/// The option text for fusermount3; a comma or backslash in the source is escaped as it wants it.
fn fusermount_options(source: &OsStr, options: &MountOptions) -> OsString {
    let mut text = b"fsname=".to_vec();
    for byte in source.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text.extend_from_slice(format!(",subtype={SUBTYPE},default_permissions").as_bytes());
    // nosuid and nodev it sets itself.
    for (set, name) in [
        (options.allow_other, "allow_other"),
        (options.read_only, "ro"),
        (options.no_exec, "noexec"),
        (options.no_atime, "noatime"),
        (options.no_dir_atime, "nodiratime"),
        (options.synchronous, "sync"),
        (options.dirsync, "dirsync"),
    ] {
        if set {
            text.push(b',');
            text.extend_from_slice(name.as_bytes());
        }
    }
    OsString::from_vec(text)
}

fn mount_by_fusermount(
    mount_point: &Path,
    source: &OsStr,
    options: &MountOptions,
) -> Result<OwnedFd, MountError> {
    let program = find_fusermount();
    let failed =
        |source: io::Error| MountError::Io { action: "run", path: PathBuf::from(FUSERMOUNT), source };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let theirs_fd = theirs.as_raw_fd();
    let mut command = Command::new(program);
    command
        .arg("-o")
        .arg(fusermount_options(source, options))
        .arg("--")
        .arg(mount_point)
        .env("_FUSE_COMMFD", theirs_fd.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe, on a descriptor that is open.
    unsafe {
        command.pre_exec(move || check(libc::fcntl(theirs_fd, libc::F_SETFD, 0)));
    }
    let child = command.spawn().map_err(failed)?;
    drop(theirs);
    let device = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(failed)?;
    match device {
        Ok(device) if output.status.success() => Ok(device),
        Ok(_) | Err(_) if !output.stderr.is_empty() => {
            Err(MountError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
        Ok(device) => Ok(device),
        Err(error) => Err(failed(error)),
    }
}

/// Takes the one descriptor that fusermount3 sends.
fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    // Room for a control message of one descriptor; u64 for its alignment.
    let mut control = [0u64; 8];
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: all zeros is a valid msghdr: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = std::mem::size_of_val(&control) as _;
    loop {
        // SAFETY: `message` points to one byte and to `control`, both alive and of the lengths given.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        if received > 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if received == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it sent no descriptor"));
        }
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: recvmsg has filled `message`; the header, if there is one, lies in `control`.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    match header {
        Some(header) if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS => {
            // SAFETY: an SCM_RIGHTS message has at least one descriptor as its data; it is ours from now on.
            Ok(unsafe {
                let data = libc::CMSG_DATA(header).cast::<libc::c_int>();
                OwnedFd::from_raw_fd(data.read_unaligned())
            })
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it sent no descriptor")),
    }
}

/// Cuts the connection between kernel and server: all requests under way fail, and dirty pages are lost.
pub(crate) fn abort_connection(device: &str) {
    let Some((_, number)) = device.split_once(':') else { return };
    let path = Path::new("/sys/fs/fuse/connections").join(number).join("abort");
    let aborted =
        OpenOptions::new().write(true).open(path).and_then(|mut file| io::Write::write_all(&mut file, b"1"));
    if let Err(error) = aborted {
        log::debug!("the connection was not aborted: {error}");
    }
}

/// Raises the readahead of the mount, where we may.
pub(crate) fn set_readahead_kib(device: &str, kib: u32) {
    let path = Path::new("/sys/class/bdi").join(device).join("read_ahead_kb");
    if let Err(error) = std::fs::write(path, kib.to_string()) {
        log::debug!("the readahead was left as it is: {error}");
    }
}

/// Tells the kernel that this thread, and those that it starts, write what others wait for to be written: it is then
/// not made to wait for its own file system under memory pressure. Does nothing where that is not allowed.
pub(crate) fn be_io_flusher() {
    // SAFETY: takes numbers only.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if let Err(error) = check(result) {
        log::debug!("PR_SET_IO_FLUSHER: {error}");
    }
}

/// Whether ordinary users may mount with `allow_other`.
pub(crate) fn users_may_allow_other() -> bool {
    let text = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    text.lines().any(|line| line.trim() == "user_allow_other")
}

/// Writes out the kernel's dirty pages of the mount (syncfs(2)).
pub(crate) fn sync_mount(mount_point: &Path) -> io::Result<()> {
    let root = File::open(mount_point)?;
    // SAFETY: the descriptor is open.
    check(unsafe { libc::syncfs(root.as_raw_fd()) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn mountinfo_lines_are_taken_apart() {
        let text = b"29 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            91 29 0:52 / /mnt/a\\040b\\134c rw,nosuid,nodev - fuse.mirrorfs host:data rw,user_id=0\n\
            nonsense\n";
        let entries = parse_mountinfo(text);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].fs_type, "ext4");
        assert_eq!(
            entries[1],
            MountEntry {
                device: "0:52".into(),
                mount_point: PathBuf::from("/mnt/a b\\c"),
                fs_type: "fuse.mirrorfs".into()
            }
        );
    }

    #[test]
    fn this_machine_has_mounts() {
        assert!(mount_table().unwrap().iter().any(|entry| entry.mount_point == Path::new("/")));
    }

    #[test]
    fn a_source_reaches_fusermount_to_the_letter() {
        let options = MountOptions { read_only: true, allow_other: true, ..MountOptions::default() };
        assert_eq!(
            fusermount_options(OsStr::new("a,b\\c"), &options),
            "fsname=a\\,b\\\\c,subtype=mirrorfs,default_permissions,allow_other,ro"
        );
    }

    #[test]
    fn a_directory_that_is_no_mount_of_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!clear_stale_mount(dir.path()).unwrap());
        assert!(!clear_stale_mount(&dir.path().join("missing")).unwrap());
    }
}
