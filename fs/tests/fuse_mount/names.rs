//! Names and kinds of files, renames, links, file handles.

use crate::support::{self, Mount, c_path, can_mount, mode_of, outcome, refusal, set_mode, statvfs, until};
use mirrorfs_fs::fuse::Mode;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

#[test]
fn renames_exchange_do_not_replace_and_leave_whiteouts() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    let at = |name: &str| mount.root().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/inner"), b"inner").unwrap();
    fs::write(at("a"), b"a").unwrap();
    fs::write(at("b"), b"b").unwrap();
    assert_eq!(refusal(support::rename(&at("a"), &at("b"), libc::RENAME_NOREPLACE)), libc::EEXIST);
    support::rename(&at("a"), &at("dir"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(
        (fs::read(at("dir")).unwrap(), fs::read(at("a/inner")).unwrap()),
        (b"a".to_vec(), b"inner".to_vec())
    );
    support::rename(&at("dir"), &at("c"), libc::RENAME_NOREPLACE).unwrap();
    // An open file outlives what replaces it.
    let mut open = File::open(at("b")).unwrap();
    support::rename(&at("c"), &at("b"), libc::RENAME_WHITEOUT).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), fs::read(at("b")).unwrap()), ("b", b"a".to_vec()));
    let whiteout = fs::symlink_metadata(at("c")).unwrap();
    assert!(whiteout.file_type().is_char_device());
    assert_eq!((whiteout.rdev(), whiteout.mode() & 0o7777), (0, 0));
    let both = libc::RENAME_WHITEOUT | libc::RENAME_EXCHANGE;
    assert_eq!(refusal(support::rename(&at("a"), &at("b"), both)), libc::EINVAL);
    drop(open);
    mount.finish_by_kernel(|root| {
        let whiteout = fs::symlink_metadata(root.join("c")).unwrap();
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
        // overlayfs, which makes and reads whiteouts, takes ours for its own.
        assert!(fs::read(root.join("b")).unwrap() == b"a");
    });
}

#[test]
fn names_are_bytes_up_to_255() {
    if !can_mount() {
        return;
    }
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let mut mount = Mount::new(&["data"], Mode::Async);
    let odd: Vec<u8> = (1..=255u8).filter(|byte| *byte != b'/').collect();
    let long = "é".repeat(127) + "x";
    let names = [&odd[..], long.as_bytes(), b"\xff\xfe", b" ", b"\n", b"..."];
    for name in names {
        fs::write(mount.root().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let too_long = mount.root().join("x".repeat(256));
    assert_eq!(refusal(fs::write(&too_long, b"")), libc::ENAMETOOLONG);
    assert_eq!(refusal(fs::create_dir(&too_long)), libc::ENAMETOOLONG);
    assert_eq!(refusal(fs::symlink_metadata(&too_long)), libc::ENAMETOOLONG);
    assert_eq!(refusal(fs::rename(mount.root().join(" "), &too_long)), libc::ENAMETOOLONG);
    for length in [1, 59, 60, 61, 4095] {
        std::os::unix::fs::symlink("t".repeat(length), mount.root().join(format!("link-{length}"))).unwrap();
    }
    assert_eq!(
        refusal(std::os::unix::fs::symlink("t".repeat(4096), mount.root().join("link"))),
        libc::ENAMETOOLONG
    );
    mount.remount();
    let check = |root: &Path| {
        for name in names {
            assert_eq!(fs::read(root.join(OsStr::from_bytes(name))).unwrap(), name);
        }
        for length in [1, 59, 60, 61, 4095] {
            let target = fs::read_link(root.join(format!("link-{length}"))).unwrap();
            assert_eq!(target.to_str().unwrap(), "t".repeat(length));
        }
        assert_eq!(fs::read_dir(root).unwrap().count(), names.len() + 5 + 1);
    };
    check(&mount.root());
    mount.finish_by_kernel(check);
}

#[test]
fn pipes_sockets_and_devices_work() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    let at = |name: &str| mount.root().join(name);
    support::mknod(&at("pipe"), libc::S_IFIFO | 0o600, 0).unwrap();
    let reader = std::thread::spawn({
        let path = at("pipe");
        move || fs::read_to_string(path).unwrap()
    });
    fs::write(at("pipe"), b"through the pipe").unwrap();
    assert_eq!(reader.join().unwrap(), "through the pipe");
    let listener = UnixListener::bind(at("socket")).unwrap();
    let mut near = UnixStream::connect(at("socket")).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    near.write_all(b"hello").unwrap();
    let mut said = [0; 5];
    far.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
    for (name, kind, device) in [
        ("old", libc::S_IFCHR, libc::makedev(1, 3)),
        ("new", libc::S_IFCHR, libc::makedev(300, 100_000)),
        ("block", libc::S_IFBLK, libc::makedev(259, 0xF_FFFF)),
    ] {
        support::mknod(&at(name), kind | 0o600, device).unwrap();
        assert_eq!(fs::symlink_metadata(at(name)).unwrap().rdev(), device, "{name}");
    }
    drop((listener, near, far));
    mount.finish_by_kernel(|root| {
        let of = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
        assert!(of("pipe").file_type().is_fifo() && of("socket").file_type().is_socket());
        assert_eq!(of("new").rdev(), libc::makedev(300, 100_000));
        assert_eq!(of("block").rdev(), libc::makedev(259, 0xF_FFFF));
        assert!(of("block").file_type().is_block_device());
    });
}

#[test]
fn hard_links_agree_at_once() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    let at = |name: &str| mount.root().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("one"), b"first").unwrap();
    fs::hard_link(at("one"), at("dir/two")).unwrap();
    // Not synced, not closed: the other name has it.
    let file = OpenOptions::new().append(true).open(at("one")).unwrap();
    (&file).write_all(b" second").unwrap();
    assert_eq!(fs::read(at("dir/two")).unwrap(), b"first second");
    assert_eq!(fs::metadata(at("dir/two")).unwrap().len(), 12);
    set_mode(&at("dir/two"), 0o604);
    assert_eq!(mode_of(&at("one")), 0o604);
    let (one, two) = (fs::metadata(at("one")).unwrap(), fs::metadata(at("dir/two")).unwrap());
    assert_eq!((one.ino(), one.nlink(), one.ctime_nsec()), (two.ino(), 2, two.ctime_nsec()));
    fs::remove_file(at("one")).unwrap();
    assert_eq!(fs::metadata(at("dir/two")).unwrap().nlink(), 1);
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    drop(file);
    mount.finish();
}

/// A file handle as name_to_handle_at(2) gives it.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

fn handle_of(path: &Path) -> Handle {
    let mut handle = Handle { bytes: 128, kind: 0, handle: [0; 128] };
    let (mut mount_id, path) = (0i32, c_path(path));
    let at = &raw mut handle;
    // SAFETY: a C string, and a handle with the room that it says it has.
    let result =
        unsafe { libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), at.cast(), &raw mut mount_id, 0) };
    outcome(result).unwrap();
    handle
}

fn open_handle(mount: &File, handle: &mut Handle) -> std::io::Result<File> {
    use std::os::fd::FromRawFd;
    let at: *mut Handle = handle;
    // SAFETY: the descriptor is open, the handle is one that the kernel gave; the new descriptor is ours alone.
    unsafe {
        let fd = outcome(libc::open_by_handle_at(mount.as_raw_fd(), at.cast(), libc::O_RDONLY))?;
        Ok(File::from_raw_fd(fd as i32))
    }
}

/// What NFS servers do: the handle outlives the kernel's memory of the inode, but not the inode.
#[test]
fn file_handles_outlive_caches_and_end_with_their_file() {
    if !can_mount() {
        return;
    }
    let mut mount = Mount::new(&["data"], Mode::Async);
    let path = mount.root().join("dir/deep/file");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, b"by its handle").unwrap();
    let mut handle = handle_of(&path);
    let ino = fs::metadata(&path).unwrap().ino();
    let read = |mount: &Mount, handle: &mut Handle| {
        let root = File::open(mount.root()).unwrap();
        let mut text = String::new();
        open_handle(&root, handle)?.read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!(read(&mount, &mut handle).unwrap(), "by its handle");
    mount.remount();
    assert_eq!(read(&mount, &mut handle).unwrap(), "by its handle");
    let free = statvfs(&mount.root()).f_ffree;
    fs::remove_file(&path).unwrap();
    // Freed once the kernel has forgotten it.
    until("the inode is free", || statvfs(&mount.root()).f_ffree == free + 1);
    assert_eq!(refusal(read(&mount, &mut handle)), libc::ESTALE);
    // The number comes back with another generation.
    let again = (0..50).find(|index| {
        let path = mount.root().join(format!("dir/deep/again-{index}"));
        fs::write(&path, b"another").unwrap();
        fs::metadata(&path).unwrap().ino() == ino
    });
    assert!(again.is_some(), "inode {ino} was not used again");
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!(refusal(read(&mount, &mut handle)), libc::ESTALE);
    mount.finish();
}
