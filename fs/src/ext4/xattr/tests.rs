#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::ext4::attr::{FileKind, NewNode, SetAttr};
use crate::ext4::test_images::{Image, ROOT, Random};
use std::process::Command;

const R: InodeNo = InodeNo::ROOT;

fn file(fs: &Ext4, name: &[u8]) -> InodeNo {
    fs.make(ROOT, R, name, NewNode::Regular, 0o644, 0).unwrap().ino
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, number: i32) {
    match result {
        Err(FsError::Errno(found)) => assert_eq!(found, number),
        other => panic!("{other:?}, expected errno {number}"),
    }
}

fn xattr_acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const NONE: u32 = u32::MAX;

#[test]
fn values_move_between_inode_and_block() {
    for kind in [&[][..], &["-b", "1024"], &["-O", "^metadata_csum"], &["-I", "128", "-O", "^metadata_csum"]]
    {
        let image = Image::make("32M", kind);
        let fs = image.open();
        let ino = file(&fs, b"file");
        let blocks = fs.statfs().unwrap().blocks_free;
        fs.setxattr(ROOT, ino, b"user.small", b"value", XattrMode::Create).unwrap();
        fs.setxattr(ROOT, ino, b"user.empty", b"", XattrMode::Set).unwrap();
        fs.setxattr(ROOT, ino, b"trusted.big", &[9; 600], XattrMode::Set).unwrap();
        fs.setxattr(ROOT, ino, b"security.label", b"system_u", XattrMode::Set).unwrap();
        fs.setxattr(ROOT, ino, "user.ü".as_bytes(), b"name with high bytes", XattrMode::Set).unwrap();
        assert_eq!(fs.statfs().unwrap().blocks_free, blocks - 1);
        refused(fs.setxattr(ROOT, ino, b"user.small", b"x", XattrMode::Create), libc::EEXIST);
        refused(fs.setxattr(ROOT, ino, b"user.none", b"x", XattrMode::Replace), libc::ENODATA);
        refused(fs.setxattr(ROOT, ino, b"user.huge", &[0; 5000], XattrMode::Set), libc::ENOSPC);
        refused(fs.setxattr(ROOT, ino, b"user.huge", &[0; 70_000], XattrMode::Set), libc::E2BIG);
        refused(fs.setxattr(ROOT, ino, b"user.", b"", XattrMode::Set), libc::EINVAL);
        refused(fs.setxattr(ROOT, ino, b"other.x", b"", XattrMode::Set), libc::EOPNOTSUPP);
        refused(fs.getxattr(ino, b"user.none"), libc::ENODATA);
        fs.setxattr(ROOT, ino, b"user.small", &[3; 90], XattrMode::Replace).unwrap();
        fs.setxattr(ROOT, ino, b"trusted.big", &[8; 500], XattrMode::Set).unwrap();
        let mut list = fs.listxattr(ino).unwrap();
        list.sort();
        let expected = ["security.label", "trusted.big", "user.empty", "user.small", "user.ü"];
        assert_eq!(list, expected.map(|name| name.as_bytes().to_vec()));
        assert_eq!(fs.getxattr(ino, b"user.small").unwrap(), [3; 90]);
        assert_eq!(fs.getxattr(ino, b"user.empty").unwrap(), b"");
        image.judge(fs);
        let listed = image.debugfs("ea_list file");
        assert!(listed.contains("trusted.big (500)") && listed.contains("system_u"), "{listed}");
        image.with_kernel(|root| {
            let output =
                Command::new("getfattr").args(["-d", "-m", "-"]).arg(root.join("file")).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                text.contains("trusted.big=") && text.contains("user.small=") && text.contains("name with"),
                "{text}"
            );
        });
        let fs = image.open();
        for name in expected {
            fs.removexattr(ROOT, ino, name.as_bytes()).unwrap();
        }
        refused(fs.removexattr(ROOT, ino, b"user.small"), libc::ENODATA);
        assert_eq!(fs.listxattr(ino).unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(fs.statfs().unwrap().blocks_free, blocks);
        image.judge(fs);
    }
}

#[test]
fn a_block_shared_by_the_kernel_is_copied_before_it_changes() {
    let image = Image::make("32M", &[]);
    let kernel = image.with_kernel(|root| {
        for name in ["one", "two", "three"] {
            std::fs::write(root.join(name), b"").unwrap();
            let value = "v".repeat(400);
            let arguments = ["-n", "user.shared", "-v", &value];
            assert!(
                Command::new("setfattr").args(arguments).arg(root.join(name)).status().unwrap().success()
            );
        }
    });
    if !kernel {
        return;
    }
    let fs = image.open();
    let ino = |name: &[u8]| fs.lookup(R, name).unwrap().ino;
    let block = |ino| fs.with_core(|core| Ok(core.inode(ino)?.xattr_block)).unwrap();
    let (one, two, three) = (ino(b"one"), ino(b"two"), ino(b"three"));
    assert!(block(one) != 0 && block(one) == block(two), "the kernel shares equal blocks");
    fs.setxattr(ROOT, one, b"user.shared", &[b'w'; 300], XattrMode::Set).unwrap();
    assert_ne!(block(one), block(two));
    fs.removexattr(ROOT, two, b"user.shared").unwrap();
    assert_eq!(block(two), 0);
    assert_eq!(fs.getxattr(three, b"user.shared").unwrap(), [b'v'; 400]);
    let fs = image.reopened(fs);
    fs.unlink(ROOT, R, b"three").unwrap();
    fs.evict(ROOT, three).unwrap();
    image.judge(fs);
}

#[test]
fn acls_mode_and_inheritance() {
    let image = Image::make("32M", &[]);
    let fs = image.open();
    let ino = file(&fs, b"file");
    let acl = xattr_acl(&[(1, 6, NONE), (2, 7, 1000), (4, 4, NONE), (16, 5, NONE), (32, 0, NONE)]);
    fs.setxattr(ROOT, ino, b"system.posix_acl_access", &acl, XattrMode::Set).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().permissions, 0o650);
    assert_eq!(fs.getxattr(ino, b"system.posix_acl_access").unwrap(), acl);
    fs.setattr(ROOT, ino, &SetAttr { permissions: Some(0o604), ..SetAttr::default() }).unwrap();
    let masked = xattr_acl(&[(1, 6, NONE), (2, 7, 1000), (4, 4, NONE), (16, 0, NONE), (32, 4, NONE)]);
    assert_eq!(fs.getxattr(ino, b"system.posix_acl_access").unwrap(), masked);
    let plain = xattr_acl(&[(1, 7, NONE), (4, 5, NONE), (32, 1, NONE)]);
    fs.setxattr(ROOT, ino, b"system.posix_acl_access", &plain, XattrMode::Set).unwrap();
    refused(fs.getxattr(ino, b"system.posix_acl_access"), libc::ENODATA);
    assert_eq!(fs.getattr(ino).unwrap().permissions, 0o751);
    refused(fs.setxattr(ROOT, ino, b"system.posix_acl_default", &plain, XattrMode::Set), libc::EACCES);
    refused(
        fs.setxattr(ROOT, ino, b"system.posix_acl_access", b"\x02\0\0\0xx", XattrMode::Set),
        libc::EINVAL,
    );

    let dir = fs.make(ROOT, R, b"dir", NewNode::Directory, 0o777, 0).unwrap().ino;
    let default = xattr_acl(&[(1, 7, NONE), (2, 6, 1000), (4, 5, NONE), (16, 7, NONE), (32, 0, NONE)]);
    fs.setxattr(ROOT, dir, b"system.posix_acl_default", &default, XattrMode::Set).unwrap();
    let made = fs.make(ROOT, dir, b"f", NewNode::Regular, 0o666, 0o077).unwrap();
    assert_eq!(made.permissions, 0o660, "the default ACL stands in for the umask");
    let sub = fs.make(ROOT, dir, b"sub", NewNode::Directory, 0o777, 0o077).unwrap();
    assert_eq!(fs.getxattr(sub.ino, b"system.posix_acl_default").unwrap(), default);
    assert_eq!(sub.permissions, 0o770);
    fs.make(ROOT, dir, b"fifo", NewNode::Special(FileKind::Fifo, 0), 0o600, 0).unwrap();
    fs.make(ROOT, dir, b"link", NewNode::Symlink(b"f"), 0o777, 0).unwrap();
    image.judge(fs);
    image.with_kernel(|root| {
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).current_dir(root).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let text = run("getfacl", &["-cn", "dir/f"]);
        assert!(
            text.contains("user:1000:rw-") && text.contains("mask::rw-") && text.contains("group::r-x"),
            "{text}"
        );
        run("setfacl", &["-m", "u:42:rwx,d:g:7:r", "dir/sub"]);
        std::fs::write(root.join("dir/sub/by-kernel"), b"").unwrap();
    });
    let fs = image.open();
    let by_us = fs.make(ROOT, sub.ino, b"by-us", NewNode::Regular, 0o666, 0o022).unwrap();
    let by_kernel = fs.lookup(sub.ino, b"by-kernel");
    if let Ok(by_kernel) = by_kernel {
        let name = b"system.posix_acl_access";
        assert_eq!(fs.getxattr(by_us.ino, name).unwrap(), fs.getxattr(by_kernel.ino, name).unwrap());
    }
    image.judge(fs);
}

#[test]
fn damaged_attributes_are_refused_without_panic() {
    let image = Image::make("8M", &["-O", "^metadata_csum"]);
    let fs = image.open();
    let ino = file(&fs, b"file");
    fs.setxattr(ROOT, ino, b"user.a", b"value", XattrMode::Set).unwrap();
    fs.setxattr(ROOT, ino, b"user.big", &[1; 900], XattrMode::Set).unwrap();
    let (inode, raw, at, block) = fs
        .with_core(|core| {
            let inode = core.inode(ino)?;
            let (table, offset) = core.inode_place(ino)?;
            let raw = core.block(table)?[offset..offset + 256].to_vec();
            let at = BlockNo(inode.xattr_block);
            let block = core.block(at)?.to_vec();
            Ok((inode, raw, at, block))
        })
        .unwrap();
    let mut random = Random(5);
    for _ in 0..20_000 {
        let (mut raw, mut block) = (raw.clone(), block.clone());
        for _ in 0..3 {
            raw[128 + random.below(128) as usize] = random.below(256) as u8;
            block[random.below(64) as usize] = random.below(256) as u8;
        }
        drop(codec::decode_inode(&inode, &raw));
        drop(codec::decode_block(ino, at, &block));
    }
}
