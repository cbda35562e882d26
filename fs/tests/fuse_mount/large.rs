//! Many of everything on a real mount. What only has to be there is put there through the core, which is quicker; then the
//! mount is used as a program uses it.

use crate::support::{Mount, can_mount, fallocate, refusal, seek, statvfs};
use mirrorfs_fs::ext4::Ext4;
use mirrorfs_fs::ext4::attr::{Context, NewNode};
use mirrorfs_fs::ext4::types::InodeNo;
use mirrorfs_fs::fuse::Mode;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

const ROOT: Context = Context { uid: 0, gid: 0, may_block: true };

fn make(fs: &Ext4, parent: InodeNo, name: &str, node: NewNode<'_>) -> InodeNo {
    fs.make(ROOT, parent, name.as_bytes(), node, 0o755, 0).unwrap().ino
}

/// A directory's link count ends at 65,000 and is 1 from then on, which tells programs not to count.
#[test]
fn a_directory_of_more_than_65000_directories() {
    if !can_mount() {
        return;
    }
    const DIRECTORIES: u32 = 65_010;
    let mount = Mount::fresh(&["data"], Mode::Async, 1200 << 20);
    let fs = &mount.parts[0].fs;
    let parent = make(fs, InodeNo::ROOT, "parent", NewNode::Directory);
    for number in 0..64_990 {
        make(fs, parent, &number.to_string(), NewNode::Directory);
    }
    let path = mount.root().join("parent");
    let links = || fs::metadata(&path).unwrap().nlink();
    assert_eq!(links(), 64_992);
    for number in 64_990..DIRECTORIES {
        fs::create_dir(path.join(number.to_string())).unwrap();
        let wanted = if number + 3 <= 65_000 { u64::from(number) + 3 } else { 1 };
        assert_eq!(links(), wanted, "behind directory {number}");
    }
    fs::remove_dir(path.join("17")).unwrap();
    assert_eq!(links(), 1, "it stays");
    fs::create_dir(path.join("17")).unwrap();
    assert_eq!(fs::read_dir(&path).unwrap().count(), DIRECTORIES as usize);
    assert_eq!(refusal(fs::remove_dir(&path)), libc::ENOTEMPTY);
    mount.finish();
}

/// Names that are there all the time are listed once each, whatever comes and goes meanwhile.
#[test]
fn a_directory_of_200000_names_that_changes_while_it_is_read() {
    if !can_mount() {
        return;
    }
    const FILES: usize = 4;
    const LINKS: usize = 50_000;
    let mut mount = Mount::fresh(&["data"], Mode::Async, 128 << 20);
    let fs = &mount.parts[0].fs;
    let dir = make(fs, InodeNo::ROOT, "dir", NewNode::Directory);
    for file in 0..FILES {
        let ino = make(fs, dir, &format!("stays-{file}-0"), NewNode::Regular);
        for link in 1..LINKS {
            fs.link(ROOT, ino, dir, format!("stays-{file}-{link}").as_bytes()).unwrap();
        }
    }
    let path = mount.root().join("dir");
    let listed = |times: usize| {
        for _ in 0..times {
            let mut found = BTreeMap::new();
            for entry in fs::read_dir(&path).unwrap() {
                *found.entry(entry.unwrap().file_name().into_string().unwrap()).or_insert(0) += 1;
            }
            let stays = found.iter().filter(|(name, _)| name.starts_with("stays-")).count();
            assert_eq!(stays, FILES * LINKS);
            let twice = found.iter().find(|(_, count)| **count > 1);
            assert_eq!(twice, None, "listed twice");
        }
    };
    listed(1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !stop.load(Ordering::Acquire) {
                for number in 0..50 {
                    fs::write(path.join(format!("comes-{number}-{round}")), b"").unwrap();
                }
                for number in 0..50 {
                    let to = path.join(format!("moved-{number}-{round}"));
                    fs::rename(path.join(format!("comes-{number}-{round}")), &to).unwrap();
                    fs::remove_file(to).unwrap();
                }
                round += 1;
            }
            assert!(round > 0);
        });
        listed(2);
        stop.store(true, Ordering::Release);
    });
    for (name, links) in [("stays-0-0", LINKS as u64), ("stays-3-49999", LINKS as u64)] {
        assert_eq!(fs::metadata(path.join(name)).unwrap().nlink(), links);
    }
    fs::remove_file(path.join("stays-2-31000")).unwrap();
    assert_eq!(fs::metadata(path.join("stays-2-1")).unwrap().nlink(), LINKS as u64 - 1);
    mount.remount();
    assert_eq!(fs::read_dir(&path).unwrap().count(), FILES * LINKS - 1);
    mount.finish();
}

#[test]
fn a_file_in_100000_pieces() {
    if !can_mount() {
        return;
    }
    const PIECES: u64 = 100_000;
    let mut mount = Mount::stock("300M", &["-b", "1024"], Mode::Async, |_| {});
    let path = mount.root().join("pieces");
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
    let direct = open().custom_flags(libc::O_DIRECT).open(&path).unwrap();
    for piece in 0..PIECES {
        let block = [piece as u8 | 1; 1024];
        direct.write_all_at(&block, piece * 2048).unwrap();
    }
    direct.sync_all().unwrap();
    drop(direct);
    mount.remount();
    let file = open().open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (PIECES - 1) * 2048 + 1024);
    assert!(file.metadata().unwrap().blocks() >= PIECES * 2);
    for piece in (0..PIECES).step_by(9973) {
        let mut both = [7; 2048];
        file.read_exact_at(&mut both[..1024], piece * 2048).unwrap();
        assert_eq!(both[..1024], [piece as u8 | 1; 1024]);
        assert_eq!(seek(&file, (piece * 2048) as i64, libc::SEEK_HOLE), (piece * 2048 + 1024) as i64);
    }
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, mode, 10_000 * 2048, 80_000 * 2048).unwrap();
    assert_eq!(seek(&file, 10_000 * 2048, libc::SEEK_DATA), 90_000 * 2048);
    let before = statvfs(&mount.root()).f_bfree;
    drop(file);
    fs::remove_file(&path).unwrap();
    crate::support::until("its space comes back", || statvfs(&mount.root()).f_bfree >= before + 20_000);
    mount.finish();
}

/// Half of them have lost their name.
#[test]
fn thousands_of_open_files() {
    if !can_mount() {
        return;
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: room for the answer; raising the soft limit to the hard one is always allowed.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    let files = 5000.min(limit.rlim_cur as usize * 3 / 4);
    assert!(files >= 3000, "only {files} open files are allowed");
    let mount = Mount::fresh(&["data"], Mode::Async, 128 << 20);
    let inodes = statvfs(&mount.root()).f_ffree;
    let path = |index: usize| mount.root().join(format!("file-{index}"));
    let open: Vec<File> = (0..files)
        .map(|index| OpenOptions::new().read(true).write(true).create_new(true).open(path(index)).unwrap())
        .collect();
    for index in (0..files).step_by(2) {
        fs::remove_file(path(index)).unwrap();
    }
    for (index, file) in open.iter().enumerate() {
        file.write_all_at(&(index as u64).to_le_bytes(), 3).unwrap();
    }
    for (index, file) in open.iter().enumerate() {
        let mut found = [0; 8];
        file.read_exact_at(&mut found, 3).unwrap();
        assert_eq!(u64::from_le_bytes(found), index as u64);
    }
    drop(open);
    for index in (1..files).step_by(2) {
        fs::remove_file(path(index)).unwrap();
    }
    crate::support::until("all inodes are free again", || statvfs(&mount.root()).f_ffree == inodes);
    mount.finish();
}
