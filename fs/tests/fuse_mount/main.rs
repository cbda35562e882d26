//! Real mounts of real images, used as programs use them; each image is judged by e2fsck at the end.
//!
//! Needs root and /dev/fuse; elsewhere each test says so and passes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod contents;
mod foreign;
mod large;
mod model;
mod names;
mod rules;
mod support;

use mirrorfs_fs::fuse::Mode;
use mirrorfs_journal::log::{MirrorLog, Next, PeerLun};
use mirrorfs_journal::{Body, Epoch, LunId};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use support::{Mount, can_mount, seek, statvfs, until};

fn files_behave(root: &Path) {
    let path = |name: &str| root.join(name);
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    fs::write(path("a"), &content).unwrap();
    fs::hard_link(path("a"), path("b")).unwrap();
    assert_eq!(fs::metadata(path("a")).unwrap().nlink(), 2);
    fs::remove_file(path("a")).unwrap();
    assert_eq!(fs::metadata(path("b")).unwrap().nlink(), 1);
    assert_eq!(fs::metadata(path("a")).unwrap_err().kind(), ErrorKind::NotFound);
    fs::create_dir(path("d")).unwrap();
    fs::rename(path("b"), path("d/c")).unwrap();
    symlink("d/c", path("link")).unwrap();
    assert_eq!(fs::read(path("link")).unwrap(), content);
    assert_eq!(fs::remove_dir(path("d")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    fs::set_permissions(path("d/c"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(path("d/c")).unwrap().mode() & 0o7777, 0o640);
    File::open(path("d")).unwrap().sync_all().unwrap();

    let append = |byte: u8| {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path("log")).unwrap();
        file.write_all(&[byte; 10]).unwrap();
        file.sync_data().unwrap();
    };
    (b'a'..b'e').for_each(append);
    assert_eq!(fs::read(path("log")).unwrap(), b"aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd");

    let names: Vec<String> = (0..500).map(|i| format!("file-{i:04}")).collect();
    fs::create_dir(path("many")).unwrap();
    for name in &names {
        fs::write(path("many").join(name), name).unwrap();
    }
    let mut listed: Vec<String> = fs::read_dir(path("many"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().len(), 9);
            entry.file_name().into_string().unwrap()
        })
        .collect();
    listed.sort();
    assert_eq!(listed, names);
    fs::remove_dir_all(path("many")).unwrap();
}

#[test]
fn programs_find_an_ordinary_file_system() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|line| line.contains(mount.root().to_str().unwrap())).unwrap();
    assert!(line.starts_with("a\\040source,\\040to\\040the\\040letter "), "{line}");
    assert!(line.contains(" fuse.mirrorfs "), "{line}");
    files_behave(&mount.root());
    mount.finish();
}

#[test]
fn programs_find_it_in_sync_mode_too() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Sync);
    files_behave(&mount.root());
    mount.finish();
}

/// A copying program that asks for holes while the source is still open for writing must not leave out what the kernel
/// has not written out yet.
#[test]
fn dirty_pages_are_not_taken_for_a_hole() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    let path = mount.root().join("sparse");
    let mut file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    assert_eq!(seek(&file, 0, libc::SEEK_DATA), 1 << 20);
    assert_eq!(seek(&file, 0, libc::SEEK_HOLE), 0);
    assert_eq!(seek(&file, 1 << 20, libc::SEEK_HOLE), (1 << 20) + 4096);
    assert_eq!(seek(&file, 2 << 20, libc::SEEK_DATA), -1);
    let mut byte = [0];
    file.seek(SeekFrom::Start(1 << 20)).unwrap();
    file.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [1]);
    drop(file);
    mount.finish();
}

#[test]
fn an_unlinked_file_lives_until_its_last_close() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    let root = mount.root();
    let free = statvfs(&root).f_ffree;
    let mut file =
        fs::OpenOptions::new().read(true).write(true).create_new(true).open(root.join("gone")).unwrap();
    fs::remove_file(root.join("gone")).unwrap();
    file.write_all(b"still here").unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(statvfs(&root).f_ffree, free - 1);
    drop(file);
    until("the inode was not freed", || statvfs(&root).f_ffree == free);

    // The same for what a rename replaces.
    fs::write(root.join("old"), b"old").unwrap();
    fs::write(root.join("new"), b"new").unwrap();
    let old = File::open(root.join("old")).unwrap();
    fs::rename(root.join("new"), root.join("old")).unwrap();
    let mut text = String::new();
    (&old).read_to_string(&mut text).unwrap();
    assert_eq!(text, "old");
    drop(old);
    until("the replaced inode was not freed", || statvfs(&root).f_ffree == free - 1);
    mount.finish();
}

#[test]
fn several_luns_are_directories_of_a_read_only_root() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["one", "two"], Mode::Async);
    let root = mount.root();
    let mut names: Vec<_> =
        fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["one", "two"]);
    fs::write(root.join("one/a"), b"1").unwrap();
    fs::write(root.join("two/a"), b"2").unwrap();
    assert_eq!(fs::read(root.join("one/a")).unwrap(), b"1");
    assert_ne!(fs::metadata(root.join("one")).unwrap().ino(), fs::metadata(root.join("two")).unwrap().ino());
    let number = |error: std::io::Error| error.raw_os_error();
    let across = fs::rename(root.join("one/a"), root.join("two/b"));
    assert_eq!(across.map_err(number), Err(Some(libc::EXDEV)));
    let across = fs::hard_link(root.join("one/a"), root.join("two/b"));
    assert_eq!(across.map_err(number), Err(Some(libc::EXDEV)));
    assert_eq!(fs::create_dir(root.join("three")).map_err(number), Err(Some(libc::EROFS)));
    assert_eq!(fs::remove_dir(root.join("one")).map_err(number), Err(Some(libc::EROFS)));
    mount.finish();
}

#[test]
fn a_mount_in_use_is_busy_and_a_read_only_one_refuses_writes() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    let root = mount.root();
    fs::write(root.join("file"), b"before").unwrap();
    let open = File::open(root.join("file")).unwrap();
    assert_eq!(mount.unmounter().unmount().unwrap_err().raw_os_error(), Some(libc::EBUSY));
    drop(open);
    // Not before no program that another test just starts holds the file, too.
    until("it is not in use", || mount.unmounter().remount(true).is_ok());
    let refused = fs::write(root.join("other"), b"x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::read(root.join("file")).unwrap(), b"before");
    mount.unmounter().remount(false).unwrap();
    fs::write(root.join("file"), b"after").unwrap();
    mount.finish();
}

/// O_SYNC is the kernel's business: it follows each write with an fsync. A setuid bit goes with another user's write.
#[test]
fn a_write_through_a_setuid_file_clears_the_bit() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    let path = mount.root().join("program");
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_SYNC).open(&path).unwrap();
    file.write_all(b"code").unwrap();
    drop(file);
    fs::set_permissions(mount.root(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    let status = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", "echo other > \"$1\"", "sh"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
    mount.finish();
}

/// How far the mirror of [`sync_mode_answers_when_the_mirror_has_it`] goes.
const SILENT: u8 = 0;
const APPLIES: u8 = 1;
const SYNCS: u8 = 2;

/// A file in many pieces takes several transactions to be freed, in the background; whoever comes next finds its space
/// all the same.
#[test]
fn the_space_of_a_deleted_file_is_free_at_once() {
    if !can_mount() {
        return;
    }
    for mode in [Mode::Async, Mode::Sync] {
        let mount = Mount::new(&["data"], mode);
        let free = || {
            let path = CString::new(mount.root().as_os_str().as_bytes()).unwrap();
            // SAFETY: a C string and room for the answer; all zeros is a valid statvfs.
            unsafe {
                let mut numbers: libc::statvfs = std::mem::zeroed();
                assert_eq!(libc::statvfs(path.as_ptr(), &raw mut numbers), 0);
                numbers.f_bavail
            }
        };
        let before = free();
        let path = mount.root().join("pieces");
        let file = File::create(&path).unwrap();
        for piece in 0..9000 {
            file.write_all_at(&[1; 4096], piece * 8192).unwrap();
        }
        file.sync_all().unwrap();
        drop(file);
        assert!(free() < before - 9000);
        fs::remove_file(&path).unwrap();
        // The kernel's word that it has forgotten the file may still be on its way.
        let wanted = before - before / 20;
        std::thread::sleep(Duration::from_millis(20));
        assert!(free() >= wanted, "{mode:?}: {} of {before}", free());
        let next = File::create(mount.root().join("next")).unwrap();
        let bytes = i64::try_from(wanted * 4096).unwrap();
        // SAFETY: the descriptor is open.
        assert_eq!(unsafe { libc::fallocate(next.as_raw_fd(), 0, 0, bytes) }, 0, "{mode:?}");
        drop(next);
        mount.finish();
    }
}

/// Runs a program as user and group 7, without supplementary groups.
fn as_user_7(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).uid(7).gid(7).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Rules that the kernel leaves to us, found by comparing a mount with the kernel's own ext4.
#[test]
fn owners_bits_and_times_follow_the_kernels_rules() {
    if !can_mount() {
        return;
    }
    for mode in [Mode::Async, Mode::Sync] {
        let mount = Mount::new(&["data"], mode);
        fs::set_permissions(mount.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = mount.root().join("file");
        let name = path.to_str().unwrap();
        let file = File::create(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(7), Some(33)).unwrap();
        let set_mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let get_mode = || fs::symlink_metadata(&path).unwrap().mode() & 0o7777;

        // chown(2) that changes neither owner nor group.
        set_mode(0o6775);
        std::os::unix::fs::chown(&path, None, None).unwrap();
        assert_eq!(get_mode(), 0o775, "{mode:?}");

        // An ACL set by the owner, who is not of the file's group; by root, who may.
        set_mode(0o2754);
        assert!(Command::new("setfacl").args(["-m", "u:1:r", name]).status().unwrap().success());
        assert_eq!(get_mode() & 0o2000, 0o2000, "{mode:?}");
        as_user_7("setfacl", &["-m", "u:2:r", name]);
        assert_eq!(get_mode() & 0o2000, 0, "{mode:?}");

        // Trusted attributes are root's.
        for attribute in ["user.a", "trusted.b"] {
            assert!(Command::new("setfattr").args(["-n", attribute, name]).status().unwrap().success());
        }
        let listed = as_user_7("getfattr", &["-m", "-", name]);
        assert!(listed.contains("user.a") && !listed.contains("trusted.b"), "{mode:?}: {listed}");

        // Blocks are true behind a sync, also while the file is open.
        file.write_all_at(&[7; 100_000], 0).unwrap();
        file.sync_all().unwrap();
        until("the blocks are counted", || fs::metadata(&path).unwrap().blocks() >= 196);

        // Times move on with operations that change nothing else.
        let mtime = || fs::metadata(&path).unwrap().modified().unwrap();
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        for (flags, offset) in [(punch, 200_000), (libc::FALLOC_FL_KEEP_SIZE, 0)] {
            let before = mtime();
            std::thread::sleep(Duration::from_millis(20));
            // SAFETY: the descriptor is open.
            assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), flags, offset, 4096) }, 0);
            assert!(mtime() > before, "{mode:?}: fallocate {flags:#x}");
        }
        let before = mtime();
        std::thread::sleep(Duration::from_millis(20));
        file.set_len(100_000).unwrap();
        assert!(mtime() > before, "{mode:?}: truncate to the same size");
        drop(file);
        mount.finish();
    }
}

/// Answers what the log hands out, as far as `willing` says, until the session ends.
fn play_peer(log: &MirrorLog, willing: &AtomicU8) {
    let mut applied = Vec::new();
    let mut durable = Vec::new();
    loop {
        match log.next(Duration::from_millis(5)) {
            Next::Request(request) => match request.body {
                Body::Barrier { .. } => durable.push(request.epoch),
                _ => applied.push(request.sequence),
            },
            Next::Idle => {}
            Next::Ended => return,
        }
        let willing = willing.load(Ordering::SeqCst);
        if willing >= APPLIES {
            applied.drain(..).for_each(|sequence| log.applied(sequence));
        }
        if willing >= SYNCS {
            durable.drain(..).for_each(|epoch| log.durable(epoch));
        }
    }
}

/// A write waits for its own answer, an fsync until it is durable there; and meanwhile no FUSE thread waits: any number of
/// writers may hang, and the mount still answers others.
#[test]
fn sync_mode_answers_when_the_mirror_has_it() {
    if !can_mount() {
        return;
    }
    const WRITERS: u8 = 12;
    let mount = Mount::mirrored();
    let root = mount.root();
    let log = mount.log.clone().unwrap();
    let peer = PeerLun { id: LunId(0), durable_epoch: Epoch(0), resyncing: false, created: true };
    log.set_region_source(LunId(0), mount.parts[0].fs.lun().clone());
    log.begin_session(&[peer]).unwrap();
    let willing = Arc::new(AtomicU8::new(SILENT));
    let peer = std::thread::spawn({
        let (log, willing) = (log.clone(), willing.clone());
        move || play_peer(&log, &willing)
    });
    let written = Arc::new(AtomicU8::new(0));
    let synced = Arc::new(AtomicU8::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|index| {
            let (path, written, synced) = (root.join(format!("w{index}")), written.clone(), synced.clone());
            std::thread::spawn(move || {
                let mut file = File::create(path).unwrap();
                file.write_all(&[index; 5000]).unwrap();
                written.fetch_add(1, Ordering::SeqCst);
                file.sync_all().unwrap();
                synced.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    let is_there = |index: u8| root.join(format!("w{index}")).exists();
    until("the mount did not answer", || (0..WRITERS).all(is_there));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(written.load(Ordering::SeqCst), 0);
    willing.store(APPLIES, Ordering::SeqCst);
    until("the writes were not answered", || written.load(Ordering::SeqCst) == WRITERS);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(synced.load(Ordering::SeqCst), 0);
    willing.store(SYNCS, Ordering::SeqCst);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert_eq!(synced.load(Ordering::SeqCst), WRITERS);
    for index in 0..WRITERS {
        assert_eq!(fs::read(root.join(format!("w{index}"))).unwrap(), [index; 5000]);
    }
    log.end_session();
    peer.join().unwrap();
    mount.finish();
}

/// With the writeback cache the kernel takes data for which there is no room, and would tell at close only: a program that
/// wrote until the disk is full never ended.
#[test]
fn a_writer_hears_that_the_disk_is_full() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    let path = mount.root().join("fill");
    let mut file = File::create(&path).unwrap();
    let chunk = vec![7; 256 << 10];
    let mut written = 0u64;
    let error = loop {
        assert!(written < 2 << 30, "96 MiB took {written} bytes");
        match file.write(&chunk) {
            Ok(bytes) => written += bytes as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    drop(file);
    fs::remove_file(&path).unwrap();
    fs::write(&path, vec![1; 8 << 20]).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 8 << 20);
    mount.finish();
}
