//! Images that the kernel and mkfs.ext4 made: served, and handed back.

use crate::support::{Mount, by_kernel, can_mount, run};
use mirrorfs_fs::fuse::Mode;
use std::fs::{self, File};
use std::path::Path;

fn fill(root: &Path, name: &str) {
    let dir = root.join(name);
    fs::create_dir(&dir).unwrap();
    for index in 0..60u32 {
        let content: Vec<u8> = (0..index * 700).map(|at| (at ^ index) as u8).collect();
        fs::write(dir.join(format!("file-{index}")), content).unwrap();
    }
    std::os::unix::fs::symlink("t".repeat(100), dir.join("link")).unwrap();
    fs::hard_link(dir.join("file-7"), dir.join("hard")).unwrap();
}

fn check(root: &Path, name: &str) {
    let dir = root.join(name);
    for index in 0..60u32 {
        let content: Vec<u8> = (0..index * 700).map(|at| (at ^ index) as u8).collect();
        assert!(fs::read(dir.join(format!("file-{index}"))).unwrap() == content, "{name}/file-{index}");
    }
    assert_eq!(fs::read_link(dir.join("link")).unwrap().as_os_str().len(), 100);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 62);
}

/// A machine that ran the image on the kernel's ext4 lost its power: the journal is ours to replay. Then back and forth.
#[test]
fn a_journal_that_the_kernel_left_is_replayed_and_the_image_goes_back() {
    if !can_mount() {
        return;
    }
    let kinds: [&[&str]; 4] = [
        &[],
        &["-b", "1024"],
        &["-b", "2048", "-O", "^metadata_csum"],
        &["-O", "^64bit,^metadata_csum", "-I", "128"],
    ];
    for kind in kinds {
        let mut mount = Mount::stock("96M", kind, Mode::Async, |image| {
            let left = image.with_extension("left");
            by_kernel(image, |root| {
                fill(root, "kernel");
                fill(root, "gone");
                fs::remove_dir_all(root.join("gone")).unwrap();
                for entry in fs::read_dir(root.join("kernel")).unwrap() {
                    let entry = entry.unwrap();
                    if entry.file_type().unwrap().is_file() {
                        File::open(entry.path()).unwrap().sync_all().unwrap();
                    }
                }
                File::open(root.join("kernel")).unwrap().sync_all().unwrap();
                fs::copy(image, &left).unwrap();
            });
            fs::rename(&left, image).unwrap();
            let features = run("dumpe2fs", &["-h", image.to_str().unwrap()]);
            assert!(features.contains("needs_recovery"), "the kernel left work: {features}");
            if kind.is_empty() {
                assert!(
                    features.contains("resize_inode") && features.contains("metadata_csum"),
                    "{features}"
                );
            }
        });
        check(&mount.root(), "kernel");
        assert!(!mount.root().join("gone").exists());
        fill(&mount.root(), "ours");
        mount.remount_after(|dir| {
            by_kernel(&dir.join("data.img"), |root| {
                check(root, "kernel");
                check(root, "ours");
                fill(root, "again");
                fs::remove_dir_all(root.join("kernel")).unwrap();
            });
        });
        check(&mount.root(), "again");
        check(&mount.root(), "ours");
        assert!(!mount.root().join("kernel").exists());
        fs::remove_dir_all(mount.root().join("again")).unwrap();
        mount.finish();
    }
}
