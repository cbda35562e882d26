//! Tests of making, opening and closing images: real files, with mke2fs and e2fsck as the judges.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::super::Backing;
use super::super::format::{FormatOptions, SIZE_BYTES_MIN, format};
use super::*;
use mirrorfs_journal::Generation;
use std::fs;
use std::process::Command;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn dir() -> TempDir {
    tempfile::Builder::new().tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// With patience: a child that another test has forked and that has not yet reached its exec holds our locks too.
fn options(role: Role) -> OpenOptions {
    OpenOptions { role, name: "data".into(), lock_wait: Duration::from_secs(20) }
}

fn make(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("data.img");
    format(&path, &FormatOptions { name: "data".into(), size_bytes: 64 * MIB }).unwrap();
    path
}

fn tool(name: &str, arguments: &[&str]) -> (bool, String) {
    let output =
        Command::new(name).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check(path: &Path) {
    let (good, said) = tool("e2fsck", &["-fn", path.to_str().unwrap()]);
    assert!(good, "{said}");
}

fn open_primary(path: &Path) -> Image {
    Image::open(path, &options(Role::Primary)).unwrap()
}

fn refused(path: &Path, role: Role) -> ImageError {
    match Image::open(path, &options(role)) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

fn write_somewhere(image: &Image, byte: u8) {
    image.backing().write_at(40 * MIB, &[byte; 4096]).unwrap();
}

#[test]
fn a_made_image_is_a_clean_ext4_with_a_label_behind_it() {
    let dir = dir();
    for (size, name) in [(SIZE_BYTES_MIN, "small"), (64 * MIB + 5, "middle"), (3 << 30, "large")] {
        let path = dir.path().join(format!("{name}.img"));
        let label = format(&path, &FormatOptions { name: name.into(), size_bytes: size }).unwrap();
        assert_eq!(label.size_bytes, size / 4096 * 4096);
        assert_eq!(fs::metadata(&path).unwrap().len(), label.size_bytes + LABEL_BYTES);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_label(&path).unwrap(), Some(label.clone()));
        check(&path);
        let (good, said) = tool("dumpe2fs", &["-h", path.to_str().unwrap()]);
        assert!(good);
        let field = |name: &str| {
            said.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned()).unwrap()
        };
        let mut features: Vec<_> = field("Filesystem features:").split(' ').map(str::to_owned).collect();
        features.sort();
        let expected = "64bit dir_index dir_nlink ext_attr extent extra_isize filetype flex_bg has_journal huge_file \
                        large_file metadata_csum sparse_super";
        assert_eq!(features.join(" "), expected);
        assert_eq!(field("Filesystem UUID:"), label.uuid.to_string());
        assert_eq!(field("Block count:"), (label.size_bytes / 4096).to_string());
        assert_eq!(field("Default directory hash:"), "half_md4");
        assert_eq!(field("Reserved block count:"), "0");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 3, "no draft is left: {left:?}");
}

#[test]
fn the_metadata_of_a_made_image_has_its_space_on_the_host() {
    let dir = dir();
    let path = make(&dir);
    let file = File::open(&path).unwrap();
    let superblock = Superblock::read(&file, &path).unwrap();
    let ranges = superblock.metadata_ranges(&file).unwrap();
    let bytes: u64 = ranges.iter().map(|(range, _)| range.end - range.start).sum();
    // 8 MiB of journal, 4096 inodes.
    assert!(bytes > 9 * MIB && bytes < 12 * MIB, "{bytes}");
    let on_host = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(on_host >= bytes && on_host < bytes + 2 * MIB, "{on_host} for {bytes}");
}

#[test]
fn a_size_or_name_that_cannot_be_is_refused_and_leaves_nothing() {
    let dir = dir();
    let path = dir.path().join("data.img");
    let make = |name: &str, size_bytes| format(&path, &FormatOptions { name: name.into(), size_bytes });
    assert!(matches!(make("data", SIZE_BYTES_MIN - 1), Err(ImageError::Size { .. })));
    assert!(matches!(make("data", u64::MAX), Err(ImageError::Size { .. })));
    assert!(matches!(make("../data", 64 * MIB), Err(ImageError::Name(_))));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    fs::write(&path, b"precious").unwrap();
    assert!(matches!(make("data", 64 * MIB), Err(ImageError::Exists { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn what_an_interrupted_making_left_is_used_again() {
    let dir = dir();
    fs::write(dir.path().join(".data.img.new"), vec![1; 100_000]).unwrap();
    let path = make(&dir);
    check(&path);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn the_incarnation_rises_at_each_open_and_a_clean_close_is_seen() {
    let dir = dir();
    let path = make(&dir);
    let image = open_primary(&path);
    assert_eq!(image.found(), Found { clean: true, ..Found::default() });
    assert_eq!((image.label().incarnation.0, image.label().state), (1, State::InUse));
    assert!(image.label().all_regions);
    image.regions_marked().unwrap();
    write_somewhere(&image, 1);
    let before = image.file.metadata().unwrap();
    image.close_clean(Some(Epoch(77))).unwrap();
    drop(image);
    let after = fs::metadata(&path).unwrap();
    assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));

    let image = open_primary(&path);
    assert_eq!(image.found(), Found { clean: true, ..Found::default() });
    let label = image.label();
    assert_eq!((label.incarnation.0, label.durable_epoch, label.all_regions), (2, Epoch(77), false));
    // As after a kill: closed without a word.
    drop(image);
    let image = open_primary(&path);
    assert_eq!(image.found(), Found::default());
    assert!(!image.label().all_regions, "the region map knows what an unclean stop left");
    drop(image);
    check(&path);
}

#[test]
fn a_change_by_someone_else_marks_all_regions() {
    let dir = dir();
    let path = make(&dir);
    let image = open_primary(&path);
    image.regions_marked().unwrap();
    image.close_clean(None).unwrap();
    drop(image);
    File::options().write(true).open(&path).unwrap().write_all_at(b"x", 50 * MIB).unwrap();
    let image = open_primary(&path);
    assert_eq!(image.found(), Found { changed: true, ..Found::default() });
    assert!(image.label().all_regions);
    // The mark outlives a crash before the map has taken it over.
    drop(image);
    assert!(open_primary(&path).label().all_regions);
}

#[test]
fn an_image_without_a_label_is_adopted() {
    let dir = dir();
    let path = dir.path().join("stock.img");
    File::create(&path).unwrap().set_len(20 * MIB + 1024).unwrap();
    assert!(tool("mke2fs", &["-Fq", "-t", "ext4", "-b", "1024", path.to_str().unwrap(), "20481"]).0);
    let image = open_primary(&path);
    assert_eq!(image.found(), Found { adopted: true, ..Found::default() });
    let label = image.label();
    assert!(label.all_regions && label.size_bytes == 20 * MIB + 1024);
    assert_eq!(fs::metadata(&path).unwrap().len(), 20 * MIB + 4096 + LABEL_BYTES);
    assert_eq!(image.size_bytes(), 20 * MIB + 1024);
    image.close_clean(None).unwrap();
    drop(image);
    check(&path);
    let image = open_primary(&path);
    assert_eq!((image.found().clean, image.label().uuid), (true, label.uuid));
}

#[test]
fn the_label_moves_when_the_file_system_has_grown_over_it() {
    let dir = dir();
    let path = make(&dir);
    let uuid = read_label(&path).unwrap().unwrap().uuid;
    // Without a size resize2fs takes all of the file.
    let (good, said) = tool("resize2fs", &["-f", path.to_str().unwrap()]);
    assert!(good, "{said}");
    let image = open_primary(&path);
    let label = image.label();
    assert_eq!((label.uuid, label.size_bytes, label.all_regions), (uuid, 64 * MIB + LABEL_BYTES, true));
    image.close_clean(None).unwrap();
    drop(image);
    assert_eq!(fs::metadata(&path).unwrap().len(), 64 * MIB + 2 * LABEL_BYTES);
    check(&path);
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let dir = dir();
    let path = dir.path().join("data.img");
    let with = |at: u64, bytes: &[u8]| {
        let file = File::create(&path).unwrap();
        file.set_len(MIB).unwrap();
        file.write_all_at(bytes, at).unwrap();
        refused(&path, Role::Primary).to_string()
    };
    assert!(with(0, b"XFSB").contains("holds no ext4 file system: it holds xfs"));
    assert!(with(0x10040, b"_BHRfS_M").contains("btrfs"));
    assert!(with(510, b"\x55\xAA").contains("partitioned"));
    assert!(with(0, b"").contains("no known superblock"));
    assert!(with(1024 + 0x38, b"\x53\xEF").contains("impossible block count"));
    fs::write(&path, b"").unwrap();
    assert!(matches!(refused(&path, Role::Primary), ImageError::NotExt4 { .. }));
    assert!(matches!(refused(dir.path(), Role::Primary), ImageError::NotRegular { .. }));
    assert!(matches!(refused(Path::new("/dev/null"), Role::Primary), ImageError::NotRegular { .. }));
    assert!(matches!(refused(&dir.path().join("none"), Role::Primary), ImageError::Io { .. }));
}

#[test]
fn a_truncated_image_is_refused_with_both_sizes() {
    let dir = dir();
    let path = make(&dir);
    File::options().write(true).open(&path).unwrap().set_len(50 * MIB).unwrap();
    let text = refused(&path, Role::Primary).to_string();
    assert!(text.contains(&(64 * MIB).to_string()) && text.contains(&(50 * MIB).to_string()), "{text}");
}

#[test]
fn a_second_open_is_refused_with_the_holder_and_the_lock_lives_as_long_as_the_backing() {
    let dir = dir();
    let path = make(&dir);
    let image = open_primary(&path);
    let at_once = OpenOptions { lock_wait: Duration::ZERO, ..options(Role::Primary) };
    let text = Image::open(&path, &at_once).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    let backing = image.backing();
    image.close_clean(None).unwrap();
    drop(image);
    assert!(matches!(Image::open(&path, &at_once), Err(ImageError::Locked { .. })));
    drop(backing);
    open_primary(&path);
}

struct LoopDevice(String);

impl LoopDevice {
    /// `None` where loop devices can't be attached (not root, a container without them).
    fn attach(path: &Path, arguments: &[&str]) -> Option<Self> {
        let all = [&["-f", "--show"], arguments, &[path.to_str()?]].concat();
        let output = Command::new("/usr/sbin/losetup").args(all).output().ok()?;
        output.status.success().then(|| Self(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn an_image_on_a_writable_loop_device_is_refused_by_the_device() {
    let dir = dir();
    let path = make(&dir);
    let Some(device) = LoopDevice::attach(&path, &["-r"]) else {
        eprintln!("no loop devices here: not tested");
        return;
    };
    drop(open_primary(&path));
    drop(device);
    let Some(device) = LoopDevice::attach(&path, &[]) else { return };
    let text = refused(&path, Role::Primary).to_string();
    assert!(text.contains(&format!("losetup -d {}", device.0)), "{text}");
}

#[test]
fn role_and_name_must_fit() {
    let dir = dir();
    let path = make(&dir);
    let text = refused(&path, Role::Mirror).to_string();
    assert!(text.contains("is a primary image, not a mirror") && text.contains("demote"), "{text}");
    let other = OpenOptions { name: "logs".into(), ..options(Role::Primary) };
    assert!(matches!(Image::open(&path, &other), Err(ImageError::OtherName { .. })));
    let mirror = dir.path().join("mirror.img");
    drop(Image::create_mirror(&mirror, "data", LunUuid([1; 16]), 20 * MIB).unwrap());
    assert!(refused(&mirror, Role::Primary).to_string().contains("promote"));
    fs::write(&mirror, vec![0; 100_000]).unwrap();
    assert!(matches!(refused(&mirror, Role::Mirror), ImageError::NoLabel { .. }));
}

#[test]
fn one_damaged_copy_is_survived_and_two_are_refused_with_advice() {
    let dir = dir();
    let path = make(&dir);
    let damage = |copy: u64| {
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"rot", 64 * MIB + 4096 * copy + 300).unwrap();
    };
    damage(1);
    assert_eq!(open_primary(&path).label().incarnation.0, 1);
    assert_eq!(open_primary(&path).label().incarnation.0, 2);
    damage(0);
    damage(1);
    let text = refused(&path, Role::Primary).to_string();
    assert!(text.contains("both copies") && text.contains("truncate -s -8192"), "{text}");
    // The advice works.
    File::options().write(true).open(&path).unwrap().set_len(64 * MIB).unwrap();
    assert!(open_primary(&path).found().adopted);
}

#[test]
fn a_mirror_keeps_its_durable_epoch_by_one_write_and_finds_it_again() {
    let dir = dir();
    let path = dir.path().join("data.img");
    let image = Image::create_mirror(&path, "data", LunUuid([5; 16]), 20 * MIB).unwrap();
    assert_eq!(image.found(), Found { created: true, ..Found::default() });
    assert_eq!(image.label().state, State::FirstSync);
    image.set_resyncing(true, &[]).unwrap();
    assert_eq!(image.label().state, State::FirstSync);
    image.set_resyncing(false, &[Generation(9), Generation(8)]).unwrap();
    for epoch in 1..=5 {
        image.sync_epoch(Epoch(epoch)).unwrap();
        assert_eq!(read_label(&path).unwrap().unwrap().durable_epoch, Epoch(epoch));
    }
    drop(image);
    // The newest copy lost, as when the power is cut before the next sync: the epoch before holds.
    let newest = {
        let file = Arc::new(File::open(&path).unwrap());
        let slot = LabelSlot::find(&file, &path).unwrap().unwrap();
        slot.serial()
    };
    let place = 20 * MIB + 4096 * ((newest + 1) % 2);
    File::options().write(true).open(&path).unwrap().write_all_at(&[0; 4096], place).unwrap();
    let image = Image::open(&path, &options(Role::Mirror)).unwrap();
    let label = image.label();
    assert_eq!((label.durable_epoch, label.state), (Epoch(4), State::InSync));
    assert_eq!(label.generations.chain(), [Generation(9), Generation(8)]);
    image.set_resyncing(true, &[]).unwrap();
    assert!(matches!(image.label().state, State::Resyncing { undo: Some(way) } if way.epoch == Epoch(4)));
    assert!(matches!(
        Image::create_mirror(&path, "data", LunUuid([5; 16]), MIB),
        Err(ImageError::Exists { .. })
    ));
}

#[test]
fn a_mirror_follows_the_size_and_what_it_gains_is_zeros() {
    let dir = dir();
    let path = dir.path().join("data.img");
    let mut image = Image::create_mirror(&path, "data", LunUuid([5; 16]), 20 * MIB).unwrap();
    image.backing().write_at(20 * MIB - 4096, &[1; 4096]).unwrap();
    for size in [30 * MIB, 30 * MIB + 4096, 30 * MIB + 8192 + 512, 10 * MIB + 1024, 10 * MIB + 8192] {
        let before = image.size_bytes();
        image.resize_mirror(size).unwrap();
        assert_eq!((image.size_bytes(), image.label().size_bytes), (size, size));
        assert_eq!(fs::metadata(&path).unwrap().len(), offset_for(size) + LABEL_BYTES);
        assert_eq!(read_label(&path).unwrap(), Some(image.label()));
        let mut gained = vec![1; size.saturating_sub(before) as usize];
        image.backing().read_at(size - gained.len() as u64, &mut gained).unwrap();
        assert!(gained.iter().all(|byte| *byte == 0), "{size}");
    }
    assert!(image.resize_mirror(0).is_err());
    assert!(image.resize_mirror(u64::MAX).is_err());
    image.sync_epoch(Epoch(3)).unwrap();
    drop(image);
    assert_eq!(Image::open(&path, &options(Role::Mirror)).unwrap().label().durable_epoch, Epoch(3));
}

#[test]
fn an_interrupted_change_of_size_is_taken_up_again() {
    let dir = dir();
    let path = dir.path().join("data.img");
    drop(Image::create_mirror(&path, "data", LunUuid([5; 16]), 20 * MIB).unwrap());
    let file = Arc::new(File::options().read(true).write(true).open(&path).unwrap());
    let slot = LabelSlot::find(&file, &path).unwrap().unwrap();
    // Grown: the pair is behind the new end, with the old size; the old pair is still there.
    drop(LabelSlot::append(&file, 30 * MIB, slot.serial(), slot.label().clone()).unwrap());
    let mut image = Image::open(&path, &options(Role::Mirror)).unwrap();
    assert_eq!(image.size_bytes(), 20 * MIB);
    image.resize_mirror(30 * MIB).unwrap();
    let mut gained = vec![1; 10 * MIB as usize];
    image.backing().read_at(20 * MIB, &mut gained).unwrap();
    assert!(gained.iter().all(|byte| *byte == 0));
    assert_eq!(read_label(&path).unwrap().unwrap().size_bytes, 30 * MIB);
    drop(image);
    // Shrunk: the pair is behind the new end, with the new size; the file is not yet cut.
    let slot = LabelSlot::find(&file, &path).unwrap().unwrap();
    let shrunk = Label { size_bytes: 30 * MIB - 4096, ..slot.label().clone() };
    drop(LabelSlot::append(&file, 30 * MIB - 4096, slot.serial(), shrunk).unwrap());
    let mut image = Image::open(&path, &options(Role::Mirror)).unwrap();
    image.resize_mirror(30 * MIB - 4096).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 30 * MIB - 4096 + LABEL_BYTES);
    assert_eq!(read_label(&path).unwrap().unwrap().size_bytes, 30 * MIB - 4096);
}

#[test]
fn a_mirror_that_someone_changed_after_its_clean_close_is_known() {
    let dir = dir();
    let path = make(&dir);
    let image = open_primary(&path);
    image.update_label(|label| *label = label.demoted()).unwrap();
    image.set_resyncing(false, &[Generation(1)]).unwrap();
    image.sync_epoch(Epoch(7)).unwrap();
    image.close_clean(None).unwrap();
    drop(image);
    let image = Image::open(&path, &options(Role::Mirror)).unwrap();
    assert_eq!((image.found().clean, image.label().state), (true, State::InSync));
    image.close_clean(None).unwrap();
    drop(image);
    File::options().write(true).open(&path).unwrap().write_all_at(b"x", 50 * MIB).unwrap();
    let image = Image::open(&path, &options(Role::Mirror)).unwrap();
    assert_eq!((image.found().changed, image.label().state), (true, State::Resyncing { undo: None }));
    assert_eq!(image.label().durable_epoch, Epoch(0), "no epoch describes it");
    drop(image);
    let label = Image::open(&path, &options(Role::Mirror)).unwrap().label();
    assert_eq!(
        (label.state, label.durable_epoch),
        (State::Resyncing { undo: None }, Epoch(0)),
        "not forgotten"
    );
}

#[test]
fn a_promoted_mirror_gives_numbers_above_those_of_the_old_primary() {
    let dir = dir();
    let path = make(&dir);
    let image = open_primary(&path);
    let old = image.label();
    image
        .update_label(|label| {
            label.role = Role::Mirror;
            label.durable_epoch = Epoch::first(mirrorfs_journal::Incarnation(41));
            *label = label.promoted().unwrap();
        })
        .unwrap();
    drop(image);
    let label = open_primary(&path).label();
    assert_eq!(label.incarnation.0, 42);
    assert_eq!(label.generations.relation(&old.generations), super::super::Relation::PeerBehind);
    assert!(label.all_regions);
}

#[test]
fn a_torn_append_of_the_pair_is_still_found() {
    let dir = dir();
    let path = make(&dir);
    let label = read_label(&path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(64 * MIB + 4096).unwrap();
    assert_eq!(read_label(&path).unwrap(), label);
    assert_eq!(open_primary(&path).label().incarnation.0, 1);
    assert_eq!(fs::metadata(&path).unwrap().len(), 64 * MIB + LABEL_BYTES);
    assert_eq!(open_primary(&path).label().incarnation.0, 2);
}
