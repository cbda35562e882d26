//! Who may do what, and what the kernel's ext4 then makes of it.

use crate::support::{
    self, Mount, can, can_mount, mode_of, open_to_all, refusal, run, set_mode, statvfs, until,
};
use mirrorfs_fs::fuse::Mode;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

#[test]
fn supplementary_groups_count() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    open_to_all(&mount);
    let path = mount.root().join("file");
    fs::write(&path, b"for the group").unwrap();
    chown(&path, Some(0), Some(4242)).unwrap();
    set_mode(&path, 0o640);
    let read = format!("cat {path:?}");
    assert!(can(7, 7, "99,4242", &read));
    assert!(can(7, 4242, "", &read));
    assert!(!can(7, 7, "", &read) && !can(7, 7, "99", &read));
    assert!(!can(7, 7, "4242", &format!("echo x >> {path:?}")));
    set_mode(&path, 0o660);
    assert!(can(7, 7, "4242", &format!("echo x >> {path:?}")));
    mount.finish();
}

#[test]
fn sticky_and_setgid_directories() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    open_to_all(&mount);
    let sticky = mount.root().join("sticky");
    fs::create_dir(&sticky).unwrap();
    set_mode(&sticky, 0o1777);
    for name in ["mine", "theirs"] {
        fs::write(sticky.join(name), b"x").unwrap();
    }
    chown(sticky.join("mine"), Some(7), None).unwrap();
    chown(sticky.join("theirs"), Some(8), None).unwrap();
    assert!(!can(7, 7, "", &format!("rm -f {:?}", sticky.join("theirs"))));
    assert!(!can(7, 7, "", &format!("mv {:?} {:?}", sticky.join("theirs"), sticky.join("taken"))));
    assert!(can(7, 7, "", &format!("rm {:?}", sticky.join("mine"))));
    set_mode(&sticky, 0o777);
    assert!(can(7, 7, "", &format!("rm -f {:?}", sticky.join("theirs"))));

    let shared = mount.root().join("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, None, Some(4242)).unwrap();
    set_mode(&shared, 0o2777);
    assert!(can(
        7,
        7,
        "",
        &format!("umask 022; cd {shared:?}; mkdir dir; echo > file; mkdir dir/dir; mkfifo pipe")
    ));
    for (name, mode) in [("dir", 0o2755), ("dir/dir", 0o2755), ("file", 0o644), ("pipe", 0o644)] {
        let found = fs::symlink_metadata(shared.join(name)).unwrap();
        assert_eq!((found.uid(), found.gid(), mode_of(&shared.join(name))), (7, 4242, mode), "{name}");
    }
    // Who is not of the group can't have a setgid file there.
    assert!(can(7, 7, "", &format!("chmod 2755 {:?}", shared.join("file"))));
    assert_eq!(mode_of(&shared.join("file")), 0o755);
    mount.finish();
}

#[test]
fn setuid_goes_with_a_write_a_truncate_and_a_new_owner() {
    if !can_mount() {
        return;
    }
    for mode in [Mode::Async, Mode::Sync] {
        let mount = Mount::new(&["data"], mode);
        open_to_all(&mount);
        let path = mount.root().join("program");
        fs::write(&path, b"program").unwrap();
        let name = path.to_str().unwrap();
        for (script, kept) in [
            (format!("echo x >> {name}"), 0o777),
            (format!("truncate -s 3 {name}"), 0o777),
            (format!("truncate -s 3 {name}; fallocate -l 10 {name}"), 0o777),
            (format!("cat {name}"), 0o6777),
        ] {
            set_mode(&path, 0o6777);
            assert!(can(7, 7, "", &script), "{script}");
            assert_eq!(mode_of(&path), kept, "{mode:?}: {script}");
        }
        set_mode(&path, 0o6755);
        chown(&path, Some(9), Some(9)).unwrap();
        assert_eq!(mode_of(&path), 0o755, "{mode:?}: chown by root");
        // Without group execution the bit meant mandatory locks, and stays.
        set_mode(&path, 0o2644);
        chown(&path, Some(10), None).unwrap();
        assert_eq!(mode_of(&path), 0o2644, "{mode:?}");
        // File capabilities go with a write.
        support::set_xattr(&path, "security.capability", &capability()).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
        assert_eq!(refusal(support::get_xattr(&path, "security.capability")), libc::ENODATA, "{mode:?}");
        mount.finish();
    }
}

/// `cap_net_raw+ep`, revision 2.
fn capability() -> Vec<u8> {
    let words: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn attributes_lie_in_inode_and_block_as_the_kernel_has_them() {
    if !can_mount() {
        return;
    }
    let mut mount = Mount::new(&["data"], Mode::Async);
    let path = mount.root().join("file");
    fs::write(&path, b"x").unwrap();
    let values: Vec<(String, Vec<u8>)> =
        ["user.small", "trusted.small", "security.small", "user.big", "trusted.big"]
            .into_iter()
            .map(|name| (name.into(), vec![name.len() as u8; if name.ends_with("big") { 900 } else { 7 }]))
            .collect();
    for (name, value) in &values {
        support::set_xattr(&path, name, value).unwrap();
    }
    assert_eq!(fs::metadata(&path).unwrap().blocks(), 16, "one block of contents, one of attributes");
    let too_big = support::set_xattr(&path, "user.huge", &[1; 5000]);
    assert!(matches!(refusal(too_big), libc::ENOSPC | libc::E2BIG));
    mount.remount();
    let check = |root: &Path| {
        let path = root.join("file");
        let mut names: Vec<&str> = values.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(support::list_xattrs(&path).unwrap(), names);
        for (name, value) in &values {
            assert_eq!(&support::get_xattr(&path, name).unwrap(), value, "{name}");
        }
    };
    check(&mount.root());
    open_to_all(&mount);
    set_mode(&mount.root().join("file"), 0o666);
    let listed = format!("getfattr -m - {:?} | grep -q trusted", mount.root().join("file"));
    assert!(can(0, 0, "", &listed) && !can(7, 7, "", &listed), "trusted ones are root's");
    let set = format!("setfattr -n security.mine -v 1 {:?}", mount.root().join("file"));
    assert!(!can(7, 7, "", &set));
    mount.finish_by_kernel(check);
}

#[test]
fn acls_are_inherited_masked_and_read_by_the_kernel() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new(&["data"], Mode::Async);
    open_to_all(&mount);
    let dir = mount.root().join("dir");
    fs::create_dir(&dir).unwrap();
    set_mode(&dir, 0o777);
    let name = dir.to_str().unwrap().to_owned();
    run("setfacl", &["-m", "d:u:7:rwx,d:g:4242:r-x,d:m::rwx,d:o::-", &name]);
    assert!(can(0, 0, "", &format!("umask 077; cd {name}; mkdir sub; echo secret > file")));
    let file = dir.join("file");
    // The umask has no say where there is a default ACL; the mode asked for has.
    assert!(can(7, 7, "", &format!("cat {file:?} && echo more >> {file:?}")));
    assert!(can(8, 8, "4242", &format!("cat {file:?}")) && !can(8, 8, "4242", &format!("echo >> {file:?}")));
    assert!(!can(8, 8, "", &format!("cat {file:?}")));
    // The mode's group bits are the mask.
    assert_eq!(mode_of(&file), 0o660);
    set_mode(&file, 0o640);
    assert!(can(7, 7, "", &format!("cat {file:?}")) && !can(7, 7, "", &format!("echo >> {file:?}")));
    let texts: Vec<String> =
        ["dir", "dir/sub", "dir/file"].map(|name| acl_of(&mount.root(), name)).into_iter().collect();
    assert!(
        texts[1].contains("default:user:7:rwx") && texts[2].contains("user:7:rwx\t#effective:r--"),
        "{texts:?}"
    );
    mount.finish_by_kernel(|root| {
        let found: Vec<String> =
            ["dir", "dir/sub", "dir/file"].map(|name| acl_of(root, name)).into_iter().collect();
        assert_eq!(found, texts);
        run("setfacl", &["-m", "u:77:r", root.join("dir/sub").to_str().unwrap()]);
    });
}

fn acl_of(root: &Path, name: &str) -> String {
    run("getfacl", &["-n", "--omit-header", root.join(name).to_str().unwrap()])
}

#[test]
fn statfs_and_the_reserve_are_the_kernels() {
    if !can_mount() {
        return;
    }
    // Debian's default: a twentieth is root's.
    let mount = Mount::stock("64M", &[], Mode::Sync, |_| {});
    open_to_all(&mount);
    let root = mount.root();
    set_mode(&root, 0o777);
    let fill = root.join("fill");
    let script = format!("dd if=/dev/zero of={fill:?} bs=16k count=1G 2>/dev/null");
    assert!(!can(7, 7, "", &script), "it must run full");
    let numbers = statvfs(&root);
    assert!(
        numbers.f_bfree > 2000 / 4 && numbers.f_bfree < 5000,
        "{} blocks of root's are left",
        numbers.f_bfree
    );
    assert_eq!(numbers.f_bavail, 0);
    fs::write(root.join("roots"), vec![1; 1 << 20]).unwrap();
    assert!(fs::metadata(&fill).unwrap().len() > 30 << 20);
    fs::remove_file(&fill).unwrap();
    until("its space is free", || statvfs(&root).f_bavail > 40_000);
    let ours = statvfs(&root);
    let numbers = |of: &libc::statvfs| {
        (of.f_bsize, of.f_frsize, of.f_blocks, of.f_bfree, of.f_bavail, of.f_files, of.f_ffree, of.f_namemax)
    };
    mount.finish_by_kernel(|root| {
        let theirs = statvfs(root);
        assert_eq!(numbers(&ours), numbers(&theirs));
        assert_eq!(fs::metadata(root.join("roots")).unwrap().len(), 1 << 20);
    });
}
