#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::ext4::WriteAt;
use crate::ext4::attr::{NewNode, RenameMode};
use crate::ext4::test_images::{Image, ROOT, Random, crash, state};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

const R: InodeNo = InodeNo::ROOT;

fn mkdir(fs: &Ext4, dir: InodeNo, name: &[u8]) -> InodeNo {
    fs.make(ROOT, dir, name, NewNode::Directory, 0o755, 0).unwrap().ino
}

fn file(fs: &Ext4, dir: InodeNo, name: &[u8]) -> InodeNo {
    fs.make(ROOT, dir, name, NewNode::Regular, 0o644, 0o022).unwrap().ino
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, number: i32) {
    match result {
        Err(FsError::Errno(found)) => assert_eq!(found, number),
        other => panic!("{other:?}, expected errno {number}"),
    }
}

#[test]
fn makes_every_kind() {
    for kind in [&[][..], &["-O", "^metadata_csum", "-b", "1024"], &["-I", "128", "-O", "^metadata_csum"]] {
        let image = Image::make("32M", kind);
        let fs = image.open();
        let dir = mkdir(&fs, R, b"dir");
        let long = vec![b'x'; 900];
        file(&fs, dir, b"file");
        fs.make(ROOT, dir, b"short", NewNode::Symlink(&long[..59]), 0o777, 0).unwrap();
        let long_link = fs.make(ROOT, dir, b"long", NewNode::Symlink(&long), 0o777, 0).unwrap();
        fs.make(ROOT, dir, b"just", NewNode::Symlink(&long[..60]), 0o777, 0).unwrap();
        fs.make(ROOT, dir, b"fifo", NewNode::Special(FileKind::Fifo, 0), 0o600, 0).unwrap();
        fs.make(ROOT, dir, b"socket", NewNode::Special(FileKind::Socket, 0), 0o600, 0).unwrap();
        fs.make(ROOT, dir, b"null", NewNode::Special(FileKind::CharDevice, 0x103), 0o666, 0).unwrap();
        let wide = NewNode::Special(FileKind::BlockDevice, 0x1234_5678);
        assert_eq!(fs.make(ROOT, dir, b"disk", wide, 0o660, 0).unwrap().rdev, 0x1234_5678);
        assert_eq!(fs.readlink(long_link.ino).unwrap(), long);
        assert_eq!(long_link.size, 900);
        let just = fs.lookup(dir, b"just").unwrap();
        assert_eq!(fs.readlink(just.ino).unwrap(), long[..60]);
        assert_eq!(fs.getattr(dir).unwrap().links, 2);
        let too_long = vec![b'x'; 4096];
        refused(fs.make(ROOT, dir, b"l", NewNode::Symlink(&too_long), 0, 0), libc::ENAMETOOLONG);
        refused(fs.make(ROOT, dir, b"l", NewNode::Symlink(b""), 0, 0), libc::ENOENT);
        let kinds: BTreeMap<_, _> =
            fs.read_dir(dir, 0).unwrap().into_iter().map(|e| (e.name, e.kind)).collect();
        assert_eq!(kinds[&b"fifo"[..]], FileKind::Fifo);
        assert_eq!(kinds[&b"disk"[..]], FileKind::BlockDevice);
        assert_eq!(kinds[&b".."[..]], FileKind::Directory);
        image.judge(fs);
        assert!(image.debugfs("stat dir/null").contains("Device major/minor number: 01:03"));
        image.with_kernel(|root| {
            let link = std::fs::read_link(root.join("dir/short")).unwrap();
            assert_eq!(link.as_os_str().len(), 59);
            assert_eq!(std::fs::read_link(root.join("dir/long")).unwrap().as_os_str().len(), 900);
            assert_eq!(
                std::fs::metadata(root.join("dir/file")).unwrap().permissions().mode() & 0o7777,
                0o644
            );
        });
        let fs = image.open();
        for name in ["file", "short", "long", "just", "fifo", "socket", "null", "disk"] {
            let attr = fs.unlink(ROOT, dir, name.as_bytes()).unwrap();
            assert_eq!(attr.links, 0);
            assert_eq!(fs.getattr(attr.ino).unwrap().ino, attr.ino, "still in use");
            fs.evict(ROOT, attr.ino).unwrap();
            refused(fs.getattr(attr.ino), libc::ESTALE);
        }
        fs.rmdir(ROOT, R, b"dir").unwrap();
        refused(fs.make(ROOT, dir, b"x", NewNode::Regular, 0, 0), libc::ENOENT);
        assert_eq!(fs.read_dir(dir, 0).unwrap(), []);
        fs.evict(ROOT, dir).unwrap();
        assert_eq!(fs.getattr(R).unwrap().links, 3);
        image.judge(fs);
    }
}

#[test]
fn refuses_what_posix_refuses() {
    let image = Image::make("32M", &[]);
    let fs = image.open();
    let dir = mkdir(&fs, R, b"dir");
    let plain = file(&fs, R, b"file");
    file(&fs, dir, b"inner");
    refused(fs.make(ROOT, R, b"file", NewNode::Regular, 0, 0), libc::EEXIST);
    refused(fs.make(ROOT, R, b".", NewNode::Directory, 0, 0), libc::EEXIST);
    refused(fs.make(ROOT, plain, b"x", NewNode::Regular, 0, 0), libc::ENOTDIR);
    refused(fs.make(ROOT, R, &[b'x'; 256], NewNode::Regular, 0, 0), libc::ENAMETOOLONG);
    refused(fs.lookup(R, &[b'x'; 256]), libc::ENAMETOOLONG);
    refused(fs.lookup(plain, b"x"), libc::ENOTDIR);
    refused(fs.lookup(R, b"missing"), libc::ENOENT);
    refused(fs.unlink(ROOT, R, b"dir"), libc::EISDIR);
    refused(fs.rmdir(ROOT, R, b"file"), libc::ENOTDIR);
    refused(fs.rmdir(ROOT, R, b"dir"), libc::ENOTEMPTY);
    refused(fs.link(ROOT, dir, R, b"hard"), libc::EPERM);
    refused(fs.link(ROOT, plain, R, b"dir"), libc::EEXIST);
    refused(fs.rename(ROOT, (R, b"file"), (R, b"dir"), RenameMode::Replace), libc::EISDIR);
    refused(fs.rename(ROOT, (R, b"dir"), (R, b"file"), RenameMode::Replace), libc::ENOTDIR);
    refused(fs.rename(ROOT, (R, b"dir"), (dir, b"below"), RenameMode::Replace), libc::EINVAL);
    refused(fs.rename(ROOT, (R, b"file"), (dir, b"inner"), RenameMode::NoReplace), libc::EEXIST);
    refused(fs.rename(ROOT, (R, b"file"), (dir, b"none"), RenameMode::Exchange), libc::ENOENT);
    refused(fs.rename(ROOT, (R, b"dir"), (dir, b"inner"), RenameMode::Exchange), libc::EINVAL);
    refused(fs.rename(ROOT, (dir, b"inner"), (R, b"dir"), RenameMode::Exchange), libc::EINVAL);
    refused(fs.readlink(plain), libc::EINVAL);
    refused(fs.getattr(InodeNo(500)), libc::ESTALE);
    refused(fs.getattr(InodeNo(5_000_000)), libc::ESTALE);
    fs.link(ROOT, plain, R, b"same").unwrap();
    assert_eq!(fs.rename(ROOT, (R, b"file"), (R, b"same"), RenameMode::Replace).unwrap(), None);
    assert_eq!(fs.lookup(R, b"file").unwrap().links, 2, "two names of one inode stay");
    fs.close().unwrap();
    assert!(image.debugfs("stat file").contains("Links: 2"));
    drop(fs);
    std::process::Command::new("debugfs")
        .args(["-w", "-R", "set_inode_field file flags 0x80010"])
        .arg(&image.path)
        .output()
        .unwrap();
    let fs = image.open();
    refused(fs.unlink(ROOT, R, b"file"), libc::EPERM);
    refused(fs.setattr(ROOT, plain, &SetAttr { permissions: Some(0), ..SetAttr::default() }), libc::EPERM);
    refused(fs.rename(ROOT, (R, b"file"), (R, b"y"), RenameMode::Replace), libc::EPERM);
    refused(fs.setxattr(ROOT, plain, b"user.x", b"", XattrMode::Set), libc::EPERM);
    image.judge(fs);
}

#[test]
fn renames_move_replace_and_swap() {
    for kind in [&[][..], &["-b", "1024", "-O", "^metadata_csum"]] {
        let image = Image::make("32M", kind);
        let fs = image.open();
        let (a, b) = (mkdir(&fs, R, b"a"), mkdir(&fs, R, b"b"));
        let sub = mkdir(&fs, a, b"sub");
        let leaf = file(&fs, sub, b"leaf");
        assert_eq!(fs.rename(ROOT, (a, b"sub"), (b, b"moved"), RenameMode::Replace).unwrap(), None);
        assert_eq!(fs.lookup(sub, b"..").unwrap().ino, b);
        assert_eq!((fs.getattr(a).unwrap().links, fs.getattr(b).unwrap().links), (2, 3));
        let empty = mkdir(&fs, a, b"empty");
        let gone = fs.rename(ROOT, (b, b"moved"), (a, b"empty"), RenameMode::Replace).unwrap().unwrap();
        assert_eq!((gone.ino, gone.links), (empty, 0));
        fs.evict(ROOT, empty).unwrap();
        assert_eq!((fs.getattr(a).unwrap().links, fs.getattr(b).unwrap().links), (3, 2));
        let other = file(&fs, b, b"other");
        fs.rename(ROOT, (a, b"empty"), (b, b"other"), RenameMode::Exchange).unwrap();
        assert_eq!(fs.lookup(b, b"other").unwrap().ino, sub);
        assert_eq!(fs.lookup(a, b"empty").unwrap().ino, other);
        assert_eq!((fs.getattr(a).unwrap().links, fs.getattr(b).unwrap().links), (2, 3));
        let replaced = fs.rename(ROOT, (a, b"empty"), (sub, b"leaf"), RenameMode::Replace).unwrap().unwrap();
        assert_eq!((replaced.ino, replaced.links), (leaf, 0));
        fs.evict(ROOT, leaf).unwrap();
        let same_dir = mkdir(&fs, b, b"x");
        fs.rename(ROOT, (b, b"x"), (b, &[b'y'; 255]), RenameMode::NoReplace).unwrap();
        assert_eq!(fs.lookup(b, &[b'y'; 255]).unwrap().ino, same_dir);
        let z = mkdir(&fs, b, b"z");
        fs.rename(ROOT, (b, &[b'y'; 255]), (b, b"z"), RenameMode::Replace).unwrap();
        fs.evict(ROOT, z).unwrap();
        assert_eq!(fs.getattr(b).unwrap().links, 4);
        image.judge(fs);
    }
}

#[test]
fn a_whiteout_takes_the_old_names_place() {
    let image = Image::make("32M", &[]);
    let fs = image.open();
    let (a, b) = (mkdir(&fs, R, b"a"), mkdir(&fs, R, b"b"));
    let moved = file(&fs, a, b"file");
    let old = file(&fs, b, b"old");
    let sub = mkdir(&fs, a, b"sub");
    let whiteout = RenameMode::Whiteout { replace: false };
    refused(fs.rename(ROOT, (a, b"file"), (b, b"old"), whiteout), libc::EEXIST);
    let free = fs.statfs().unwrap().inodes_free;
    let replaced =
        fs.rename(ROOT, (a, b"file"), (b, b"old"), RenameMode::Whiteout { replace: true }).unwrap().unwrap();
    assert_eq!((replaced.ino, replaced.links), (old, 0));
    fs.evict(ROOT, old).unwrap();
    fs.rename(ROOT, (a, b"sub"), (b, b"sub"), whiteout).unwrap();
    assert_eq!(fs.statfs().unwrap().inodes_free, free - 1, "two whiteouts for one file");
    for name in [&b"file"[..], b"sub"] {
        let left = fs.lookup(a, name).unwrap();
        assert_eq!((left.kind, left.rdev, left.permissions, left.links), (FileKind::CharDevice, 0, 0, 1));
    }
    assert_eq!(fs.lookup(b, b"old").unwrap().ino, moved);
    assert_eq!(fs.lookup(b, b"sub").unwrap().ino, sub);
    assert_eq!((fs.getattr(a).unwrap().links, fs.getattr(b).unwrap().links), (2, 3));
    let listed = fs.read_dir(a, 0).unwrap();
    assert_eq!(listed.iter().filter(|entry| entry.kind == FileKind::CharDevice).count(), 2);
    image.judge(fs);
}

#[test]
fn modes_owners_and_groups_follow_the_rules() {
    let image = Image::make("32M", &[]);
    let fs = image.open();
    let user = Context { uid: 1000, gid: 100, may_block: true };
    let shared = fs.make(ROOT, R, b"shared", NewNode::Directory, 0o2775, 0).unwrap().ino;
    fs.setattr(ROOT, shared, &SetAttr { gid: Some(50), ..SetAttr::default() }).unwrap();
    let made = fs.make(user, shared, b"f", NewNode::Regular, 0o666, 0o027).unwrap();
    assert_eq!((made.uid, made.gid, made.permissions), (1000, 50, 0o640));
    let sub = fs.make(user, shared, b"d", NewNode::Directory, 0o777, 0o022).unwrap();
    assert_eq!((sub.gid, sub.permissions), (50, 0o2755));
    let set = |change| fs.setattr(ROOT, made.ino, &change).unwrap();
    assert_eq!(set(SetAttr { permissions: Some(0o6755), ..SetAttr::default() }).permissions, 0o6755);
    fs.setxattr(ROOT, made.ino, b"security.capability", b"caps", XattrMode::Set).unwrap();
    assert_eq!(set(SetAttr { uid: Some(7), ..SetAttr::default() }).permissions, 0o755);
    refused(fs.getxattr(made.ino, b"security.capability"), libc::ENODATA);
    assert_eq!(set(SetAttr { permissions: Some(0o6745), ..SetAttr::default() }).permissions, 0o6745);
    let kept = set(SetAttr { kill_privileges: true, ..SetAttr::default() });
    assert_eq!(kept.permissions, 0o2745, "setgid without group execution is a lock mode");
    let time = Timestamp { seconds: 5_000_000_000, nanoseconds: 123_456_789 };
    let before = fs.getattr(made.ino).unwrap();
    let after = set(SetAttr { mtime: Some(time), ..SetAttr::default() });
    assert_eq!((after.mtime, after.atime), (time, before.atime));
    assert!(after.ctime >= before.ctime);
    // What the fields can't hold is cut as the kernel does it.
    for (asked, kept) in [(1 << 40, (1 << 34) - (1 << 31) - 1), (-(1 << 40), -(1 << 31))] {
        let far = Timestamp { seconds: asked, nanoseconds: 5 };
        let atime = set(SetAttr { atime: Some(far), ..SetAttr::default() }).atime;
        assert_eq!(atime, Timestamp { seconds: kept, nanoseconds: 0 });
    }
    image.judge(fs);
    image.with_kernel(|root| {
        let metadata = std::fs::metadata(root.join("shared/f")).unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (5_000_000_000, 123_456_789));
        assert_eq!((metadata.uid(), metadata.gid()), (7, 50));
    });
}

#[test]
fn link_counts_end_where_the_kernels_do() {
    let image = Image::make("64M", &["-N", "2000"]);
    let fs = image.open();
    let target = file(&fs, R, b"target");
    let dir = mkdir(&fs, R, b"dir");
    for number in 1..65_000 {
        fs.link(ROOT, target, dir, number.to_string().as_bytes()).unwrap();
    }
    refused(fs.link(ROOT, target, dir, b"one more"), libc::EMLINK);
    // 65,000 real subdirectories take long: the count is set, the overflow is real.
    let parent = mkdir(&fs, R, b"parent");
    for number in 0..200 {
        mkdir(&fs, parent, format!("a long name to have an index soon {number}").as_bytes());
    }
    let links = |count| {
        fs.with_tx(ROOT, CREDITS, |tx| {
            let mut inode = tx.core.inode(parent)?;
            inode.links = count;
            tx.put_inode(&inode)
        })
        .unwrap();
    };
    links(64_999);
    mkdir(&fs, parent, b"last counted");
    assert_eq!(fs.getattr(parent).unwrap().links, 65_000);
    mkdir(&fs, parent, b"first uncounted");
    assert_eq!(fs.getattr(parent).unwrap().links, 1);
    mkdir(&fs, parent, b"second uncounted");
    assert_eq!(fs.getattr(parent).unwrap().links, 1);
    let gone = fs.rmdir(ROOT, parent, b"second uncounted").unwrap().ino;
    fs.evict(ROOT, gone).unwrap();
    assert_eq!(fs.getattr(parent).unwrap().links, 1);
    links(204);
    image.judge(fs);
}

#[test]
fn statfs_as_the_kernel_says() {
    for kind in [&[][..], &["-b", "1024"], &["-O", "^metadata_csum,^64bit"]] {
        let image = Image::make("300M", kind);
        let stored = image.open().statfs().unwrap();
        image.with_kernel(|root| {
            let path = std::ffi::CString::new(root.to_str().unwrap()).unwrap();
            // SAFETY: a path that ends in zero, and room for one structure.
            let kernel = unsafe {
                let mut numbers = std::mem::zeroed::<libc::statfs>();
                assert_eq!(libc::statfs(path.as_ptr(), &raw mut numbers), 0);
                numbers
            };
            let theirs = (kernel.f_blocks, kernel.f_bfree, kernel.f_bavail, kernel.f_files, kernel.f_ffree);
            let ours = (
                stored.blocks,
                stored.blocks_free,
                stored.blocks_available,
                stored.inodes,
                stored.inodes_free,
            );
            assert_eq!(ours, theirs, "{kind:?}");
        });
        // What mke2fs wrote down is what we compute where it is missing.
        image
            .open()
            .with_core(|core| {
                let counted = core.overhead()?;
                let (place, offset) = core.geometry.superblock_place();
                let buffer = core.cache.get(place)?;
                std::sync::Arc::make_mut(&mut buffer.data)[offset + 0x248..offset + 0x24C].fill(0);
                assert_eq!(core.overhead()?, counted, "{kind:?}");
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn orphans_are_cleaned_at_the_next_open() {
    let image = Image::make("32M", &[]);
    let fs = image.open();
    let free = fs.statfs().unwrap();
    let inodes: Vec<InodeNo> = (0..20).map(|i| file(&fs, R, format!("f{i}").as_bytes())).collect();
    let dir = mkdir(&fs, R, b"dir");
    for number in 0..20 {
        fs.unlink(ROOT, R, format!("f{number}").as_bytes()).unwrap();
    }
    fs.rmdir(ROOT, R, b"dir").unwrap();
    // Out of the middle, the head and the end of the chain.
    for ino in [inodes[10], dir, inodes[0], inodes[11]] {
        fs.evict(ROOT, ino).unwrap();
        fs.evict(ROOT, ino).unwrap();
    }
    crash(fs);
    let fs = image.open();
    assert_eq!(fs.with_core(|core| Ok(core.last_orphan)).unwrap(), 0);
    let now = fs.statfs().unwrap();
    assert_eq!((now.blocks_free, now.inodes_free), (free.blocks_free, free.inodes_free));
    refused(fs.getattr(inodes[5]), libc::ESTALE);
    // A second run (a remount) leaves alone what is in use.
    let open = file(&fs, R, b"open");
    fs.unlink(ROOT, R, b"open").unwrap();
    fs.clean_orphans().unwrap();
    assert_eq!(fs.getattr(open).unwrap().links, 0);
    fs.evict(ROOT, open).unwrap();
    image.judge(fs);
}

/// Deleted files are freed several in a handle, a fragmented one over many: none is left out, and none but them is freed.
#[test]
fn deleted_files_are_freed_together() {
    let image = Image::make("64M", &["-b", "1024"]);
    let fs = image.open();
    let free = fs.statfs().unwrap();
    let write = |ino, block: u64| {
        fs.write(ROOT, ino, WriteAt::Offset(block * 1024), vec![7; 1024].into(), false).unwrap();
    };
    let mut gone: Vec<InodeNo> = (0..60).map(|i| file(&fs, R, format!("f{i}").as_bytes())).collect();
    gone.iter().for_each(|ino| write(*ino, 0));
    // Every second block only: an extent each, in many blocks of its tree.
    (0..4000).for_each(|block| write(gone[20], 2 * block));
    let dir = mkdir(&fs, R, b"dir");
    let kept = file(&fs, R, b"kept");
    for i in 0..60 {
        fs.unlink(ROOT, R, format!("f{i}").as_bytes()).unwrap();
    }
    fs.rmdir(ROOT, R, b"dir").unwrap();
    gone.extend([dir, kept, gone[3], InodeNo(9999)]);
    assert!(fs.evict_all(ROOT, &gone[..30]).is_empty());
    assert_eq!(fs.getattr(gone[30]).unwrap().links, 0, "not yet");
    assert!(fs.evict_all(ROOT, &gone).is_empty());
    assert_eq!(fs.with_core(|core| Ok(core.last_orphan)).unwrap(), 0);
    assert_eq!(fs.getattr(kept).unwrap().links, 1);
    gone.iter().filter(|ino| **ino != kept).for_each(|ino| refused(fs.getattr(*ino), libc::ESTALE));
    let now = fs.statfs().unwrap();
    assert_eq!((now.blocks_free, now.inodes_free), (free.blocks_free, free.inodes_free - 1));
    image.judge(fs);
}

#[test]
fn an_orphan_list_in_a_circle_is_refused() {
    let image = Image::make("32M", &[]);
    let fs = image.open();
    let (one, two) = (file(&fs, R, b"one"), file(&fs, R, b"two"));
    fs.unlink(ROOT, R, b"one").unwrap();
    fs.unlink(ROOT, R, b"two").unwrap();
    fs.with_tx(ROOT, CREDITS, |tx| {
        let mut inode = tx.core.inode_raw(one)?;
        inode.dtime = two.0;
        tx.put_inode(&inode)
    })
    .unwrap();
    crash(fs);
    // The mount goes on without the list; e2fsck will mend it.
    let fs = image.open();
    let error = fs.with_core(Core::load_orphans).unwrap_err();
    assert!(matches!(error, FsError::Corrupt { .. }), "{error}");
    assert!(!fs.with_core(|core| Ok(core.orphans.contains(two))).unwrap());
}

/// Each operation is carried out to its end and then fails: metadata and orphans are as before, to the byte.
#[test]
fn a_failed_operation_changes_nothing() {
    let image = Image::make("16M", &[]);
    let fs = image.open();
    let (a, b) = (mkdir(&fs, R, b"a"), mkdir(&fs, R, b"b"));
    let sub = mkdir(&fs, a, b"sub");
    let target = file(&fs, b, b"target");
    let orphan = file(&fs, b, b"orphan");
    let other = file(&fs, b, b"other");
    fs.unlink(ROOT, b, b"orphan").unwrap();
    fs.unlink(ROOT, b, b"other").unwrap();
    fs.setxattr(ROOT, target, b"user.big", &[7; 700], XattrMode::Set).unwrap();
    let before = state(&fs);
    type Step = Box<dyn Fn(&mut Tx<'_>) -> Result<()>>;
    let steps: Vec<Step> = vec![
        Box::new(move |tx| {
            let mut dir = tx.core.directory(a)?;
            let inode = tx.make_inode(&mut dir, NewNode::Directory, 0o755, 0)?;
            tx.dir_insert(&mut dir, b"new", inode.ino, FileKind::Directory)?;
            tx.put_touched(&dir, true)?;
            tx.put_touched(&inode, true)
        }),
        Box::new(move |tx| tx.rename((a, b"sub"), (b, b"moved"), RenameMode::Replace).map(drop)),
        Box::new(move |tx| {
            tx.rename((a, b"sub"), (b, b"moved"), RenameMode::Whiteout { replace: true }).map(drop)
        }),
        Box::new(move |tx| tx.rename((a, b"sub"), (b, b"target"), RenameMode::Exchange).map(drop)),
        Box::new(move |tx| {
            let mut dir = tx.core.directory(b)?;
            let found = tx.core.find(&dir, b"target")?;
            let mut inode = tx.core.named(&dir, &found)?;
            tx.dir_remove(&dir, &found)?;
            tx.finish_removal(&mut dir, &mut inode).map(drop)
        }),
        Box::new(move |tx| tx.evict_step(orphan).map(drop)),
        Box::new(move |tx| tx.evict_step(other).map(drop)),
        Box::new(move |tx| {
            let mut inode = tx.core.inode(target)?;
            tx.set_xattr(&mut inode, NameIndex::USER, b"big", None, XattrMode::Set)?;
            tx.set_xattr(&mut inode, NameIndex::USER, b"small", Some(b"x"), XattrMode::Set)?;
            tx.put_touched(&inode, true)
        }),
    ];
    for (number, step) in steps.iter().enumerate() {
        let failed = fs.with_tx(ROOT, CREDITS, |tx| {
            step(tx)?;
            errno::<()>(libc::EIO)
        });
        refused(failed, libc::EIO);
        assert!(state(&fs) == before, "step {number}");
    }
    assert_eq!(fs.lookup(a, b"sub").unwrap().ino, sub);
    for step in &steps[..2] {
        fs.with_tx(ROOT, CREDITS, step).unwrap();
    }
    fs.evict(ROOT, orphan).unwrap();
    fs.evict(ROOT, other).unwrap();
    image.judge(fs);
}

/// ENOSPC in the middle of operations leaves a sound image.
#[test]
fn a_full_file_system_stays_sound() {
    let image = Image::make("8M", &["-b", "1024", "-N", "6000"]);
    let fs = image.open();
    let dir = mkdir(&fs, R, b"dir");
    let mut made = 0;
    loop {
        let target = vec![b'x'; 500];
        match fs.make(ROOT, dir, format!("{made:0>200}").as_bytes(), NewNode::Symlink(&target), 0o777, 0) {
            Ok(_) => made += 1,
            Err(FsError::Errno(libc::ENOSPC)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(made > 1000, "{made}");
    // Where the last name asked for a split of its directory block, the few blocks that it lacked are still free.
    let sub = |number| fs.make(ROOT, dir, format!("sub{number}").as_bytes(), NewNode::Directory, 0o755, 0);
    let last = (0..8).map(sub).find(Result::is_err).expect("few blocks were free");
    refused(last, libc::ENOSPC);
    let fs = image.reopened(fs);
    for number in 0..made {
        let gone = fs.unlink(ROOT, dir, format!("{number:0>200}").as_bytes()).unwrap();
        fs.evict(ROOT, gone.ino).unwrap();
    }
    mkdir(&fs, dir, b"sub");
    image.judge(fs);
}

/// The model of the random test: what each directory holds.
#[derive(Default)]
struct Model {
    dirs: BTreeMap<u32, BTreeMap<Vec<u8>, (u32, FileKind)>>,
    links: BTreeMap<u32, u32>,
    xattrs: BTreeMap<(u32, Vec<u8>), Vec<u8>>,
}

impl Model {
    fn check(&self, fs: &Ext4) {
        for (dir, entries) in &self.dirs {
            let listed: BTreeMap<Vec<u8>, (u32, FileKind)> = fs
                .read_dir(InodeNo(*dir), 0)
                .unwrap()
                .into_iter()
                .filter(|entry| entry.name != b"." && entry.name != b".." && entry.name != b"lost+found")
                .map(|entry| (entry.name, (entry.ino.0, entry.kind)))
                .collect();
            assert_eq!(&listed, entries, "directory {dir}");
        }
        for (ino, links) in &self.links {
            assert_eq!(fs.getattr(InodeNo(*ino)).unwrap().links, *links, "inode {ino}");
        }
        for ((ino, name), value) in &self.xattrs {
            assert_eq!(&fs.getxattr(InodeNo(*ino), name).unwrap(), value);
        }
    }
    fn drop_link(&mut self, fs: &Ext4, ino: u32) {
        let links = self.links.get_mut(&ino).unwrap();
        *links -= 1;
        if *links == 0 {
            self.links.remove(&ino);
            self.xattrs.retain(|(of, _), _| *of != ino);
            fs.evict(ROOT, InodeNo(ino)).unwrap();
        }
    }
}

#[test]
fn random_operations_agree_with_a_model() {
    let kinds: [(u64, &[&str]); 3] =
        [(1, &[]), (2, &["-b", "1024"]), (3, &["-O", "^metadata_csum,^dir_index", "-b", "2048"])];
    for (seed, kind) in kinds {
        println!("seed {seed}");
        let image = Image::make("64M", kind);
        let mut fs = image.open();
        let mut random = Random(seed * 7919);
        let mut model = Model::default();
        model.dirs.insert(2, BTreeMap::new());
        for step in 0..6000 {
            let pick = |random: &mut Random, model: &Model| {
                let index = random.below(model.dirs.len() as u64) as usize;
                *model.dirs.keys().nth(index).unwrap()
            };
            let (dir, other) = (pick(&mut random, &model), pick(&mut random, &model));
            let name = format!("{:0>width$}", random.below(120), width = 3 + random.below(3) as usize * 60)
                .into_bytes();
            let to = format!("{:0>3}", random.below(120)).into_bytes();
            let existing = model.dirs[&dir].get(&name).copied();
            match random.below(12) {
                0..4 => {
                    let made = fs.make(ROOT, InodeNo(dir), &name, NewNode::Regular, 0o644, 0);
                    match existing {
                        Some(_) => refused(made, libc::EEXIST),
                        None => {
                            let ino = made.unwrap().ino.0;
                            model.dirs.get_mut(&dir).unwrap().insert(name, (ino, FileKind::Regular));
                            model.links.insert(ino, 1);
                        }
                    }
                }
                4 if existing.is_none() && model.dirs.len() < 20 => {
                    let ino = mkdir(&fs, InodeNo(dir), &name).0;
                    model.dirs.get_mut(&dir).unwrap().insert(name, (ino, FileKind::Directory));
                    model.dirs.insert(ino, BTreeMap::new());
                }
                5..7 => match existing {
                    None => refused(fs.unlink(ROOT, InodeNo(dir), &name), libc::ENOENT),
                    Some((ino, FileKind::Directory)) => {
                        let removed = fs.rmdir(ROOT, InodeNo(dir), &name);
                        if model.dirs[&ino].is_empty() {
                            removed.unwrap();
                            fs.evict(ROOT, InodeNo(ino)).unwrap();
                            model.dirs.remove(&ino);
                            model.dirs.get_mut(&dir).unwrap().remove(&name);
                        } else {
                            refused(removed, libc::ENOTEMPTY);
                        }
                    }
                    Some((ino, _)) => {
                        fs.unlink(ROOT, InodeNo(dir), &name).unwrap();
                        model.dirs.get_mut(&dir).unwrap().remove(&name);
                        model.drop_link(&fs, ino);
                    }
                },
                7 => {
                    if let Some((ino, FileKind::Regular)) = existing {
                        let linked = fs.link(ROOT, InodeNo(ino), InodeNo(other), &to);
                        if model.dirs[&other].contains_key(&to) {
                            refused(linked, libc::EEXIST);
                        } else {
                            linked.unwrap();
                            model.dirs.get_mut(&other).unwrap().insert(to, (ino, FileKind::Regular));
                            *model.links.get_mut(&ino).unwrap() += 1;
                        }
                    }
                }
                8..10 => {
                    let Some(source) = existing else { continue };
                    let target = model.dirs[&other].get(&to).copied();
                    let renamed =
                        fs.rename(ROOT, (InodeNo(dir), &name), (InodeNo(other), &to), RenameMode::Replace);
                    match renamed {
                        Ok(replaced) => {
                            if target.is_some_and(|target| target.0 == source.0) {
                                continue;
                            }
                            assert_eq!(replaced.map(|attr| attr.ino.0), target.map(|target| target.0));
                            model.dirs.get_mut(&dir).unwrap().remove(&name);
                            model.dirs.get_mut(&other).unwrap().insert(to, source);
                            match target {
                                Some((ino, FileKind::Directory)) => {
                                    assert!(model.dirs.remove(&ino).unwrap().is_empty());
                                    fs.evict(ROOT, InodeNo(ino)).unwrap();
                                }
                                Some((ino, _)) => model.drop_link(&fs, ino),
                                None => {}
                            }
                        }
                        Err(FsError::Errno(libc::EINVAL)) => assert_eq!(source.1, FileKind::Directory),
                        Err(FsError::Errno(libc::ENOTEMPTY)) => {
                            assert!(!model.dirs[&target.unwrap().0].is_empty());
                        }
                        Err(FsError::Errno(libc::EISDIR | libc::ENOTDIR)) => {
                            assert_ne!(
                                source.1 == FileKind::Directory,
                                target.unwrap().1 == FileKind::Directory
                            );
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                _ => {
                    let Some((ino, _)) = existing else { continue };
                    let key = format!("user.{}", random.below(6)).into_bytes();
                    if random.below(3) == 0 {
                        let removed = fs.removexattr(ROOT, InodeNo(ino), &key);
                        match model.xattrs.remove(&(ino, key)) {
                            Some(_) => removed.unwrap(),
                            None => refused(removed, libc::ENODATA),
                        }
                    } else {
                        let value = vec![step as u8; random.below(300) as usize];
                        match fs.setxattr(ROOT, InodeNo(ino), &key, &value, XattrMode::Set) {
                            Ok(()) => drop(model.xattrs.insert((ino, key), value)),
                            Err(error) => assert!(matches!(error, FsError::Errno(libc::ENOSPC)), "{error}"),
                        }
                    }
                }
            }
            // A removed directory's attributes went with it.
            model.xattrs.retain(|(ino, _), _| model.links.contains_key(ino) || model.dirs.contains_key(ino));
            if step % 1500 == 1499 {
                model.check(&fs);
                image.judge(fs);
                fs = image.open();
                model.check(&fs);
            }
        }
    }
}
