//! Contents: holes, direct and synchronous input and output, locks, times, a full disk.

use crate::support::{
    Mount, by_kernel, can_mount, fallocate, outcome, refusal, run, seek, set_times, statvfs,
};
use mirrorfs_fs::fuse::Mode;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

/// The kernel of FUSE passes no fallocate mode but these on; programs that ask must hear so, and find their file as it was.
#[test]
fn ranges_are_neither_collapsed_nor_inserted() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    let path = mount.root().join("file");
    let content: Vec<u8> = (0..40_000u32).map(|at| (at / 4096) as u8 + 1).collect();
    fs::write(&path, &content).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, libc::FALLOC_FL_UNSHARE_RANGE]
    {
        assert_eq!(refusal(fallocate(&file, mode, 4096, 8192)), libc::EOPNOTSUPP);
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, 4096, 8192).unwrap();
    let mut zeroed = content;
    zeroed[4096..12_288].fill(0);
    assert_eq!(fs::read(&path).unwrap(), zeroed);
    drop(file);
    mount.finish();
}

fn since_1970(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Reads past the page cache, so that it is our business.
fn read_directly(path: &Path) -> usize {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let mut buffer = vec![0; 8192];
    file.read_at(&mut buffer, 0).unwrap()
}

#[test]
fn access_times_are_relative_and_nanoseconds_are_kept() {
    if !can_mount() {
        return;
    }
    let mut mount = Mount::new(&["data"], Mode::Async);
    let path = mount.root().join("file");
    fs::write(&path, b"content").unwrap();
    let now = since_1970(SystemTime::now());
    let atime = || {
        let found = fs::metadata(&path).unwrap();
        (found.atime(), found.atime_nsec())
    };
    let after_a_read = |atime_before: i64, mtime: i64| {
        set_times(&path, (atime_before, 1), (mtime, 2)).unwrap();
        assert_eq!(read_directly(&path), 7);
        atime().0
    };
    // Not older than the modification (relatime also compares ctime, which is now) and not a day old: it stays.
    let far = now + 1000;
    assert_eq!(after_a_read(far, now - 5000), far);
    // Older than the modification or the change: it moves.
    assert!(after_a_read(now - 100, now - 50) >= now);
    // A second read does not.
    let before = atime();
    assert_eq!(read_directly(&path), 7);
    assert_eq!(atime(), before);

    let (early, late) = ((-1, 999_999_999), (6_000_000_000, 123_456_789));
    set_times(&path, early, late).unwrap();
    mount.remount();
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.atime(), found.atime_nsec()), early);
    assert_eq!((found.mtime(), found.mtime_nsec()), late);
    mount.finish_by_kernel(|root| {
        let found = fs::metadata(root.join("file")).unwrap();
        assert_eq!((found.atime(), found.atime_nsec()), early);
        assert_eq!((found.mtime(), found.mtime_nsec()), late);
    });
}

/// An access time that is newer than the last change stays for a day.
#[test]
fn an_access_time_moves_once_a_day() {
    if !can_mount() {
        return;
    }
    const HOUR: i64 = 3600;
    let mut mount = Mount::new(&["data"], Mode::Async);
    let path = mount.root().join("file");
    fs::write(&path, b"content").unwrap();
    let now = since_1970(SystemTime::now());
    let mut after_a_read = |atime_before: i64| {
        // No system call sets a change time in the past.
        let image = mount.image();
        mount.remount_after(|_| {
            let times = [("atime", atime_before), ("mtime", now - 72 * HOUR), ("ctime", now - 72 * HOUR)];
            for (field, time) in times {
                let request = format!("set_inode_field file {field} @{time}");
                run("debugfs", &["-w", "-R", &request, image.to_str().unwrap()]);
            }
        });
        let path = mount.root().join("file");
        assert_eq!(fs::metadata(&path).unwrap().ctime(), now - 72 * HOUR);
        assert_eq!(read_directly(&path), 7);
        fs::metadata(&path).unwrap().atime()
    };
    assert_eq!(after_a_read(now - 23 * HOUR), now - 23 * HOUR);
    assert!(after_a_read(now - 25 * HOUR) >= now);
    mount.finish();
}

#[test]
fn a_tebibyte_of_hole_takes_no_room() {
    if !can_mount() {
        return;
    }
    let mut mount = Mount::new(&["data"], Mode::Async);
    let path = mount.root().join("sparse");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    for offset in [0, 1 << 39, (1 << 40) - 4096] {
        file.write_all_at(&[7; 4096], offset).unwrap();
    }
    drop(file);
    mount.remount();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let found = file.metadata().unwrap();
    assert_eq!(found.len(), 1 << 40);
    assert!(found.blocks() <= 8 * 4, "{} sectors", found.blocks());
    assert_eq!(seek(&file, 1, libc::SEEK_HOLE), 4096);
    assert_eq!(seek(&file, 4096, libc::SEEK_DATA), 1 << 39);
    assert_eq!(seek(&file, (1 << 39) + 4096, libc::SEEK_DATA), (1 << 40) - 4096);
    assert_eq!(seek(&file, (1 << 40) - 4096, libc::SEEK_HOLE), 1 << 40);
    let mut block = [1; 4096];
    file.read_exact_at(&mut block, 1 << 38).unwrap();
    assert_eq!(block, [0; 4096]);
    let limit = file.set_len((1 << 44) + 1);
    assert_eq!(refusal(limit), libc::EFBIG);
    file.set_len(5000).unwrap();
    assert_eq!(seek(&file, 0, libc::SEEK_HOLE), 4096);
    drop(file);
    mount.finish();
}

#[test]
fn direct_io_takes_any_buffer() {
    if !can_mount() {
        return;
    }
    for mode in [Mode::Async, Mode::Sync] {
        let mount = Mount::new(&["data"], mode);
        let path = mount.root().join("direct");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .unwrap();
        let store: Vec<u8> = (0..200_003u32).map(|at| (at % 249) as u8).collect();
        let mut wanted = Vec::new();
        // Odd addresses, odd lengths, odd offsets; parts of a block, and many blocks.
        for (start, length) in [(1, 3), (3, 511), (7, 4096), (5, 100_001), (13, 1)] {
            let part = &store[start..start + length];
            file.write_all_at(part, wanted.len() as u64).unwrap();
            wanted.extend_from_slice(part);
        }
        let mut found = vec![0; wanted.len() + 1];
        assert_eq!(file.read_at(&mut found[1..], 0).unwrap(), wanted.len());
        assert!(found[1..] == wanted, "{mode:?}");
        // The page cache and direct requests agree.
        assert!(fs::read(&path).unwrap() == wanted, "{mode:?}");
        file.write_all_at(b"direct", 4095).unwrap();
        wanted[4095..4101].copy_from_slice(b"direct");
        assert!(fs::read(&path).unwrap() == wanted, "{mode:?}");
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"cached", 8191).unwrap();
        wanted[8191..8197].copy_from_slice(b"cached");
        file.read_exact_at(&mut found[1..], 0).unwrap();
        assert!(found[1..] == wanted, "{mode:?}");
        drop(file);
        mount.finish();
    }
}

/// What a power cut would leave directly behind the write: a copy of the image, its journal replayed.
#[test]
fn a_synchronous_handle_promises_what_fsync_does() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    for (name, flag) in [("sync", libc::O_SYNC), ("dsync", libc::O_DSYNC)] {
        let path = mount.root().join(name);
        let file = OpenOptions::new().write(true).create_new(true).custom_flags(flag).open(&path).unwrap();
        file.write_all_at(&[b'x'; 10_000], 0).unwrap();
        let copy = mount.dir.path().join(format!("{name}.copy"));
        fs::copy(mount.image(), &copy).unwrap();
        drop(file);
        by_kernel(&copy, |root| {
            assert!(fs::read(root.join(name)).unwrap() == [b'x'; 10_000], "{name}");
        });
        fs::remove_file(copy).unwrap();
    }
    mount.finish();
}

fn record_lock(
    file: &File,
    command: i32,
    kind: i32,
    start: i64,
    length: i64,
) -> std::io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, the lock is one.
    outcome(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) }).map(|_| lock)
}

#[test]
fn locks_keep_programs_apart() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    let path = mount.root().join("locked");
    fs::write(&path, [0; 100]).unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let (one, two) = (open(), open());
    // flock(2), against another process.
    // SAFETY: the descriptor is open.
    outcome(unsafe { libc::flock(one.as_raw_fd(), libc::LOCK_EX) }).unwrap();
    let other = || Command::new("flock").arg("-n").arg(&path).arg("true").status().unwrap().success();
    assert!(!other());
    // SAFETY: the descriptor is open.
    outcome(unsafe { libc::flock(one.as_raw_fd(), libc::LOCK_UN) }).unwrap();
    assert!(other());
    // Record locks: a process's and an open file's conflict where they overlap.
    record_lock(&one, libc::F_OFD_SETLK, libc::F_WRLCK, 10, 20).unwrap();
    assert_eq!(refusal(record_lock(&two, libc::F_SETLK, libc::F_RDLCK, 29, 1).map(drop)), libc::EAGAIN);
    record_lock(&two, libc::F_SETLK, libc::F_WRLCK, 30, 10).unwrap();
    let found = record_lock(&one, libc::F_OFD_GETLK, libc::F_WRLCK, 0, 0).unwrap();
    assert_eq!((i32::from(found.l_type), found.l_start, found.l_len), (libc::F_WRLCK, 30, 10));
    record_lock(&one, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 0).unwrap();
    record_lock(&two, libc::F_SETLK, libc::F_WRLCK, 0, 0).unwrap();
    drop(one);
    drop(two);
    mount.finish();
}

#[test]
fn appends_of_several_processes_do_not_overlap() {
    if !can_mount() {
        return;
    }
    for mode in [Mode::Async, Mode::Sync] {
        let mount = Mount::new(&["data"], mode);
        let path = mount.root().join("log");
        let script = |writer: u32| {
            format!(
                "i=0; while [ $i -lt 150 ]; do echo writer-{writer}-$i-{} ; i=$((i+1)); done >> {path:?}",
                "x".repeat(70)
            )
        };
        let mut writers: Vec<_> =
            (0..4).map(|writer| Command::new("sh").args(["-c", &script(writer)]).spawn().unwrap()).collect();
        for writer in &mut writers {
            assert!(writer.wait().unwrap().success());
        }
        let text = fs::read_to_string(&path).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.starts_with("writer-") && line.ends_with('x')), "{mode:?}");
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 600, "{mode:?}");
        mount.finish();
    }
}

/// The last block goes to somebody, the next asks in vain, and what was there before is as it was.
#[test]
fn the_last_block_is_used_and_nothing_else_suffers() {
    if !can_mount() {
        return;
    }
    for mode in [Mode::Async, Mode::Sync] {
        let mut mount = Mount::fresh(&["data"], mode, 16 << 20);
        let root = mount.root();
        fs::write(root.join("kept"), [9; 50_000]).unwrap();
        let mut full = 0;
        let files: Vec<_> = (0..).map(|index| root.join(format!("fill-{index}"))).take(3000).collect();
        for (index, path) in files.iter().enumerate() {
            let written = fs::write(path, vec![index as u8; 20_000])
                .and_then(|()| File::open(path).and_then(|file| file.sync_all()));
            match written {
                Ok(()) => full = index,
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                    break;
                }
            }
        }
        assert!(full > 300 && full < 1000, "{full} files");
        // Block by block to the very last.
        let last = OpenOptions::new().write(true).create(true).truncate(true).open(root.join("kept-last"));
        if let Ok(last) = last {
            let mut offset = 0;
            while last.write_all_at(&[3; 4096], offset).and_then(|()| last.sync_all()).is_ok() {
                offset += 4096;
            }
        }
        assert!(statvfs(&root).f_bfree <= 2, "{} blocks are left", statvfs(&root).f_bfree);
        let check = |root: &Path| {
            assert!(fs::read(root.join("kept")).unwrap() == [9; 50_000]);
            for (index, path) in files.iter().enumerate().take(full + 1) {
                let found = fs::read(path).unwrap();
                let wrong = found.iter().position(|byte| *byte != index as u8);
                assert_eq!((found.len(), wrong), (20_000, None), "{mode:?}: {path:?} of {full}");
            }
        };
        check(&root);
        mount.remount();
        check(&root);
        for path in &files {
            let _ = fs::remove_file(path);
        }
        fs::write(root.join("again"), vec![1; 6 << 20]).unwrap();
        mount.finish();
    }
}

/// The kernel wrote out five pages where there was room for four. The answer "four" was success to it: an fsync said that
/// all was well, and the last page was lost.
#[test]
fn an_fsync_tells_of_each_page_that_found_no_room() {
    if !can_mount() {
        return;
    }
    let mut mount = Mount::fresh(&["data"], Mode::Async, 32 << 20);
    let root = mount.root();
    let paths: Vec<_> = (1..=8u64).map(|blocks| root.join(format!("file-{blocks}"))).collect();
    paths.iter().for_each(|path| drop(File::create(path).unwrap()));
    let filler = File::create(root.join("filler")).unwrap();
    let mut fill = statvfs(&root).f_bfree + 8;
    while fallocate(&filler, 0, 0, fill * 4096).is_err() {
        fill -= 1;
    }
    let mut refused = 0;
    let mut kept = Vec::new();
    for (path, blocks) in paths.iter().zip(1..) {
        // Three blocks are free each time, and no others.
        fill -= 3;
        filler.set_len(fill * 4096).unwrap();
        filler.sync_all().unwrap();
        let content = vec![blocks as u8; blocks * 4096 - 100];
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let synced = file.write_all_at(&content, 0).and_then(|()| file.sync_all());
        match synced {
            Ok(()) => kept.push((path, content)),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                refused += 1;
                file.set_len(0).unwrap();
                file.sync_all().unwrap();
                fill += 3;
                fallocate(&filler, 0, 0, fill * 4096).unwrap();
            }
        }
    }
    assert!(refused >= 3 && kept.len() >= 2, "{refused} refused, {} kept", kept.len());
    drop(filler);
    mount.remount();
    for (path, content) in kept {
        assert!(fs::read(path).unwrap() == content, "{path:?}");
    }
    mount.finish();
}
