//! However far a resync got, and whatever a crash left of the last save: the image goes back to where it began.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::image::{Image, OpenOptions, Role, State};
use mirrorfs_journal::Generation;
use std::time::Duration;

const SIZE_BYTES: u64 = (3 << 20) + 4096;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

fn options() -> OpenOptions {
    OpenOptions { role: Role::Mirror, name: "data".into(), lock_wait: Duration::ZERO }
}

/// A mirror in sync at epoch 5, a third of it holes.
fn in_sync(dir: &Path, random: &mut Random) -> Image {
    let image = Image::create_mirror(&dir.join("data.img"), "data", LunUuid([7; 16]), SIZE_BYTES).unwrap();
    for sector in 0..SIZE_BYTES / 4096 {
        if random.below(3) > 0 && sector / 24 % 3 > 0 {
            image.backing().write_at(sector * 4096, &[random.below(255) as u8 + 1; 4096]).unwrap();
        }
    }
    image.sync_epoch(Epoch(5)).unwrap();
    image.set_resyncing(false, &[Generation(1)]).unwrap();
    image
}

/// A mirror in the middle of a resync, and what it held before.
fn resyncing(random: &mut Random) -> (tempfile::TempDir, Image, Vec<u8>) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = in_sync(dir.path(), random);
    let before = content(&image);
    image.set_resyncing(true, &[]).unwrap();
    (dir, image, before)
}

fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; SIZE_BYTES as usize];
    image.backing().read_at(0, &mut bytes).unwrap();
    bytes
}

/// One request of a resync, or beside it.
fn change(image: &Image, random: &mut Random, announced: bool) {
    let offset = random.below(SIZE_BYTES / 4096) * 4096;
    let length = (1 + random.below(40)) * 4096;
    let length = length.min(SIZE_BYTES - offset);
    if announced {
        image.before_overwrite(offset, length).unwrap();
    }
    if random.below(4) == 0 {
        image.backing().discard(offset, length).unwrap();
    } else {
        image.backing().write_at(offset, &vec![random.below(256) as u8; length as usize]).unwrap();
    }
}

/// What a crash at this moment leaves, `torn` bytes of the next save with it, taken back.
fn taken_back(from: &Path, torn: &[u8]) -> (Vec<u8>, Image) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    for name in ["data.img", "data.undo"] {
        std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    let undo = dir.path().join("data.undo");
    let mut bytes = std::fs::read(&undo).unwrap();
    bytes.extend_from_slice(torn);
    std::fs::write(&undo, bytes).unwrap();
    let image = Image::open(&dir.path().join("data.img"), &options()).unwrap();
    assert_eq!(image.roll_back().unwrap(), Some(Epoch(5)));
    assert!(!undo.exists());
    (content(&image), image)
}

#[test]
fn every_point_of_a_resync_leads_back() {
    let mut random = Random(1);
    let (dir, mut image, before) = resyncing(&mut random);
    for step in 0..60 {
        change(&image, &mut random, true);
        if random.below(4) == 0 {
            image.sync_epoch(Epoch(6 + step)).unwrap();
        }
        if random.below(6) == 0 {
            // Another session, another begin.
            drop(image);
            image = Image::open(&dir.path().join("data.img"), &options()).unwrap();
            image.set_resyncing(true, &[]).unwrap();
        }
        let (mut next, end) = (Vec::new(), std::fs::metadata(dir.path().join("data.undo")).unwrap().len());
        put_record(&mut next, end, random.below(40), Some(&vec![9; BLOCK_BYTES as usize]));
        next.truncate(random.below(next.len() as u64) as usize);
        let (after, _) = taken_back(dir.path(), &next);
        assert!(after == before, "step {step}");
    }
    image.set_resyncing(false, &[Generation(1)]).unwrap();
    assert!(!dir.path().join("data.undo").exists());
    assert_eq!(image.label().state, State::InSync);
}

/// More than one write can hold is saved in parts.
#[test]
fn a_discard_of_everything_leads_back() {
    let mut random = Random(6);
    let (dir, image, before) = resyncing(&mut random);
    image.before_overwrite(0, SIZE_BYTES).unwrap();
    image.backing().discard(0, SIZE_BYTES).unwrap();
    assert!(taken_back(dir.path(), &[]).0 == before);
}

/// What these tests look at is not so by itself.
#[test]
fn a_change_that_is_not_announced_is_not_taken_back() {
    let mut random = Random(2);
    let (dir, image, before) = resyncing(&mut random);
    change(&image, &mut random, false);
    assert!(taken_back(dir.path(), &[]).0 != before);
}

#[test]
fn the_label_says_where_it_was_taken_back_to() {
    let mut random = Random(3);
    let (dir, image, _) = resyncing(&mut random);
    let seen = Epoch::first(mirrorfs_journal::Incarnation(9));
    change(&image, &mut random, true);
    image.sync_epoch(seen).unwrap();
    image.sync_epoch(seen).unwrap();
    let (_, back) = taken_back(dir.path(), &[]);
    let label = back.label();
    assert_eq!((label.state, label.durable_epoch, label.incarnation.0), (State::InSync, Epoch(5), 9));
    assert_eq!(back.roll_back().unwrap(), None, "once is enough");
}

#[test]
fn without_a_usable_undo_file_the_resync_goes_on_and_the_label_says_so() {
    type Spoil = (&'static str, fn(&Path));
    let spoil: [Spoil; 3] = [
        ("missing", |undo| std::fs::remove_file(undo).unwrap()),
        ("of another resync", |undo| {
            let mut bytes = std::fs::read(undo).unwrap();
            bytes[32] ^= 1;
            std::fs::write(undo, bytes).unwrap();
        }),
        ("damaged", |undo| {
            let mut bytes = std::fs::read(undo).unwrap();
            bytes[HEADER_BYTES + 10] ^= 1;
            std::fs::write(undo, bytes).unwrap();
        }),
    ];
    for (what, spoil) in spoil {
        let mut random = Random(4);
        let (dir, image, _) = resyncing(&mut random);
        for block in [30, 10] {
            image.before_overwrite(block << 16, 4096).unwrap();
        }
        drop(image);
        spoil(&dir.path().join("data.undo"));
        let image = Image::open(&dir.path().join("data.img"), &options()).unwrap();
        assert_eq!(image.label().state, State::Resyncing { undo: None }, "{what}");
        change(&image, &mut random, true);
        assert_eq!(image.roll_back().unwrap(), None, "{what}");
        image.set_resyncing(false, &[Generation(1)]).unwrap();
        assert_eq!(image.label().state, State::InSync, "{what}");
    }
}

#[test]
fn where_no_undo_file_can_be_made_the_resync_goes_on() {
    let mut random = Random(5);
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = in_sync(dir.path(), &mut random);
    std::fs::create_dir(dir.path().join("data.undo")).unwrap();
    image.set_resyncing(true, &[]).unwrap();
    assert_eq!(image.label().state, State::Resyncing { undo: None });
    change(&image, &mut random, true);
}

#[test]
fn a_first_sync_has_nothing_to_go_back_to() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("data.img");
    let image = Image::create_mirror(&path, "data", LunUuid([7; 16]), SIZE_BYTES).unwrap();
    image.set_resyncing(true, &[]).unwrap();
    image.before_overwrite(0, 4096).unwrap();
    assert!(!path_of(&path).exists());
    assert_eq!((image.label().state, image.roll_back().unwrap()), (State::FirstSync, None));
}
