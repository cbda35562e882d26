//! Images made elsewhere, and images that are damaged.

use crate::Case;
use crate::outage::SmallDisk;
use crate::support::machine::tool;
use crate::support::{Pair, Setup, assert_identical, e2fsck_clean, loop_mounted, tree};
use std::fs;
use std::path::Path;

pub(crate) const CASES: &[Case] = &[
    ("stock_images_are_served_and_go_back_to_the_kernel", stock_images),
    ("images_that_cannot_be_written_are_refused_by_the_features_name", refused_features),
    ("a_truncated_image_and_a_damaged_label_are_refused", damaged_images),
    ("a_full_image_is_enospc_and_nothing_worse", a_full_image),
    ("a_full_disk_under_the_image_is_enospc_and_nothing_worse", a_full_disk),
];

fn mkfs(path: &Path, arguments: &[&str]) {
    let file = fs::File::create(path).expect("an image file");
    file.set_len(96 << 20).expect("its size");
    let output =
        tool("mkfs.ext4").args(["-q", "-F"]).args(arguments).arg(path).output().expect("mkfs.ext4 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn stock_images() {
    let kinds: [&[&str]; 5] = [
        &[],
        &["-b", "1024"],
        &["-b", "2048"],
        &["-O", "^metadata_csum"],
        &["-O", "^64bit,^metadata_csum,uninit_bg", "-I", "128"],
    ];
    for kind in kinds {
        let mut pair = Pair::prepare(Setup::default());
        let image = pair.dir.path().join("stock.img");
        mkfs(&image, kind);
        loop_mounted(&image, "loop", |mnt| tree::make(&mnt.join("by-the-kernel"), 150, 91));
        pair.setup.mount = vec![format!("--image={}", image.display())];
        pair.start_peer();
        pair.mount();
        tree::make(&pair.mnt().join("by-us"), 150, 92);
        fs::remove_dir_all(pair.mnt().join("by-the-kernel/d0")).expect("deleting what the kernel made");
        let wanted = tree::fingerprint(&pair.mnt().join("by-us"));
        pair.sync();
        pair.umount();
        e2fsck_clean(&image);
        assert_identical(&image, &pair.mirror());
        loop_mounted(&image, "loop", |mnt| {
            tree::assert_same(&wanted, &tree::fingerprint(&mnt.join("by-us")));
            tree::make(&mnt.join("again-by-the-kernel"), 100, 93);
            fs::remove_dir_all(mnt.join("by-us/d1")).expect("the kernel deletes what we made");
        });
        // Somebody else changed the image: all of it is compared or sent again.
        pair.mount();
        assert_eq!(fs::read_dir(pair.mnt().join("again-by-the-kernel")).expect("reading").count(), 1);
        pair.wait_for_verdict("in-sync");
        pair.sync();
        pair.umount();
        e2fsck_clean(&image);
        assert_identical(&image, &pair.mirror());
    }
}

/// The error of a mount that must fail.
#[track_caller]
fn refused(pair: &Pair) -> String {
    let arguments = pair.mount_arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = pair.command(&arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "the mount should have failed: {text}");
    assert!(!crate::support::node::is_mounted(&pair.mnt()));
    text
}

fn refused_features() {
    let kinds: [(&[&str], &str); 5] = [
        (&["-O", "^has_journal"], "has_journal"),
        (&["-O", "inline_data"], "inline_data"),
        (&["-O", "bigalloc"], "bigalloc"),
        (&["-O", "encrypt"], "encrypt"),
        (&["-O", "^extent,^64bit"], "extent"),
    ];
    for (kind, name) in kinds {
        let mut pair = Pair::prepare(Setup { peer: false, ..Setup::default() });
        let image = pair.dir.path().join("stock.img");
        mkfs(&image, kind);
        pair.setup.mount = vec![format!("--image={}", image.display()), "--local".into()];
        let before = fs::read(&image).expect("reading");
        let text = refused(&pair);
        assert!(text.contains(name), "{name}: {text}");
        assert!(fs::read(&image).expect("reading") == before, "{name}: not a byte is written");
    }
    // A feature that has no name yet.
    let mut pair = Pair::prepare(Setup { peer: false, ..Setup::default() });
    let image = pair.dir.path().join("stock.img");
    mkfs(&image, &["-O", "^metadata_csum"]);
    let file = fs::File::options().read(true).write(true).open(&image).expect("opening");
    let mut incompatible = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut incompatible, 1024 + 0x60).expect("reading");
    let incompatible = u32::from_le_bytes(incompatible) | 1 << 30;
    std::os::unix::fs::FileExt::write_all_at(&file, &incompatible.to_le_bytes(), 1024 + 0x60)
        .expect("writing");
    pair.setup.mount = vec![format!("--image={}", image.display()), "--local".into()];
    let before = fs::read(&image).expect("reading");
    let text = refused(&pair);
    assert!(text.contains("0x40000000"), "{text}");
    assert!(fs::read(&image).expect("reading") == before, "not a byte is written");
    let mut pair = Pair::prepare(Setup { peer: false, ..Setup::default() });
    let image = pair.dir.path().join("text.img");
    fs::write(&image, "this is no file system\n".repeat(100_000)).expect("writing");
    pair.setup.mount = vec![format!("--image={}", image.display()), "--local".into()];
    assert!(refused(&pair).contains("ext4"));
}

fn damaged_images() {
    let mut pair = Pair::start(Setup::with(&["--local"]));
    tree::make(&pair.mnt().join("tree"), 50, 95);
    pair.umount();
    let length = fs::metadata(pair.image()).expect("metadata").len();
    let whole = crate::support::judge::copy_of(&pair.image());
    // Both copies of the label.
    let file = fs::File::options().write(true).open(pair.image()).expect("opening");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xAA; 64], length - 8192 + 100).expect("writing");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xAA; 64], length - 4096 + 100).expect("writing");
    let text = refused(&pair);
    assert!(text.contains("label") && text.contains("truncate"), "{text}");
    let status = pair.status();
    assert!(
        status["mount"]["luns"][0]["problem"].as_str().is_some_and(|text| text.contains("label")),
        "{status:#}"
    );
    // One copy: the other serves.
    fs::copy(&whole.path, pair.image()).expect("copying back");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xAA; 64], length - 4096 + 100).expect("writing");
    pair.mount();
    pair.umount();
    // Cut short.
    fs::copy(&whole.path, pair.image()).expect("copying back");
    file.set_len(length / 2).expect("cutting");
    assert!(refused(&pair).contains("cut short"));
}

fn fill(dir: &Path) -> std::io::Error {
    for index in 0.. {
        let path = dir.join(format!("fill-{index}"));
        let written =
            fs::write(&path, vec![index as u8; 1 << 20]).and_then(|()| fs::File::open(&path)?.sync_all());
        if let Err(error) = written {
            return error;
        }
    }
    unreachable!("it must run full");
}

fn a_full_image() {
    let mut pair = Pair::start(Setup { size: "64M", ..Setup::default() });
    fs::write(pair.mnt().join("kept"), b"kept").expect("writing");
    let error = fill(&pair.mnt());
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    for index in 0..5 {
        fs::remove_file(pair.mnt().join(format!("fill-{index}"))).expect("deleting makes room");
    }
    fs::write(pair.mnt().join("again"), vec![5; 2 << 20]).expect("there is room again");
    fs::File::open(pair.mnt().join("again")).and_then(|file| file.sync_all()).expect("fsync");
    assert_eq!(fs::read(pair.mnt().join("kept")).expect("reading"), b"kept");
    // What the kernel could not write out of the filling is reported once, to whoever syncs first.
    let _ = pair.command(&["sync", &pair.mnt().display().to_string()]);
    pair.sync();
    pair.umount();
    e2fsck_clean(&pair.image());
    assert_identical(&pair.image(), &pair.mirror());
}

fn a_full_disk() {
    let mut pair = Pair::prepare(Setup { peer: false, ..Setup::with(&["--local", "--size=1G"]) });
    fs::create_dir(pair.state()).expect("the state directory");
    let disk = SmallDisk::mount(&pair.state(), 160);
    pair.mount();
    fs::write(pair.mnt().join("kept"), b"kept").expect("writing");
    let error = fill(&pair.mnt());
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    assert_eq!(pair.verdict(), "local", "nothing latches: {:#}", pair.status());
    for index in 0..5 {
        fs::remove_file(pair.mnt().join(format!("fill-{index}"))).expect("deleting works on a full disk");
    }
    fs::File::open(pair.mnt()).and_then(|dir| dir.sync_all()).expect("fsync");
    fs::write(pair.mnt().join("again"), vec![5; 1 << 20]).expect("there is room again");
    disk.resize(400);
    fs::write(pair.mnt().join("more"), vec![6; 20 << 20]).expect("and more");
    pair.umount();
    e2fsck_clean(&pair.image());
}
