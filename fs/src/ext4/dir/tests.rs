#![allow(clippy::unwrap_used, reason = "tests")]

use super::entry::{self, Sums};
use super::hash::hash_name;
use super::*;
use crate::ext4::attr::{NewNode, RenameMode};
use crate::ext4::test_images::{Image, ROOT, Random, state};
use crate::ext4::tx::CREDITS;
use crate::ext4::{Ext4, error::errno};
use std::collections::BTreeSet;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

const R: InodeNo = InodeNo::ROOT;

fn mkdir(fs: &Ext4, name: &[u8]) -> InodeNo {
    fs.make(ROOT, R, name, NewNode::Directory, 0o755, 0).unwrap().ino
}

fn file(fs: &Ext4, dir: InodeNo, name: &[u8]) -> InodeNo {
    fs.make(ROOT, dir, name, NewNode::Regular, 0o644, 0o022).unwrap().ino
}

fn names(fs: &Ext4, dir: InodeNo) -> BTreeSet<Vec<u8>> {
    let entries = fs.read_dir(dir, 0).unwrap();
    assert!(entries.windows(2).all(|pair| pair[0].cookie < pair[1].cookie) && entries[0].cookie > 0);
    let count = entries.len();
    let set: BTreeSet<_> =
        entries.into_iter().map(|entry| entry.name).filter(|name| name != b"." && name != b"..").collect();
    assert_eq!(set.len() + 2, count, "a name twice");
    set
}

#[test]
fn hashes_as_debugfs_does() {
    let image = Image::make("8M", &[]);
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    let bytes: Vec<u8> = (0..16).map(|i| [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF][i % 8]).collect();
    let seed: Vec<u32> = bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    let long = "x".repeat(255);
    for name in
        ["a", "abcd", "some-name.txt", "0123456789012345", "01234567890123456789012345678901", "größe", &long]
    {
        for (version, code) in [(0, "legacy"), (1, "half_md4"), (2, "tea")] {
            let ours = hash_name(version, &seed.clone().try_into().unwrap(), name.as_bytes());
            let theirs = image.debugfs(&format!("dx_hash -h {code} -s {uuid} {name}"));
            let minor = if version == 0 { 0 } else { ours.minor };
            let expected = format!("0x{:x} (minor 0x{minor:x})", ours.major);
            assert!(theirs.contains(&expected), "{code} {name}: ours {expected}, theirs {theirs}");
        }
    }
    // "größe" hashes as unsigned bytes in the unsigned variants.
    for version in 0..3 {
        let seed = [1, 2, 3, 4];
        assert_ne!(hash_name(version, &seed, "ö".as_bytes()), hash_name(version + 3, &seed, "ö".as_bytes()));
        assert_eq!(hash_name(version, &seed, b"o"), hash_name(version + 3, &seed, b"o"));
    }
}

#[test]
fn refuses_damaged_blocks() {
    let image = Image::make("8M", &[]);
    let fs = image.open();
    fs.with_core(|core| {
        let geometry = core.geometry.clone();
        let dir = core.inode(R)?;
        let sums = Sums::of(&geometry, &dir);
        let (at, good) = core.dir_block(&dir, FileBlock(0))?;
        sums.check(&geometry, R, at, &good)?;
        let mut random = Random(7);
        for _ in 0..2000 {
            let mut bad = good.to_vec();
            let place = random.below(bad.len() as u64) as usize;
            bad[place] ^= 1 << random.below(8);
            assert!(sums.check(&geometry, R, at, &bad).is_err(), "byte {place}");
        }
        // With a right checksum, the records themselves are still held against every rule.
        let damages: [fn(&mut [u8]); 5] = [
            |block| block[4] = 0,
            |block| block[4] = 13,
            |block| block[5] = 0x80,
            |block| block[6] = 200,
            |block| block[3] = 0xFF,
        ];
        for damage in damages {
            let mut bad = good.to_vec();
            damage(&mut bad);
            sums.seal(&mut bad);
            assert!(sums.check(&geometry, R, at, &bad).is_err());
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn reuses_room_and_merges_with_the_record_before() {
    let mut block = vec![0; 1024];
    entry::clear(&mut block, 1024);
    for (number, name) in [&b"one"[..], b"two", b"three", b"four"].into_iter().enumerate() {
        let room = entry::find_room(&block, 1024, name.len()).unwrap();
        entry::place_record(&mut block, room, 11 + number as u32, 1, name);
    }
    let listed = |block: &[u8]| -> Vec<Vec<u8>> {
        records(block, 0, 1024).filter(|r| r.ino != 0).map(|r| r.name.to_vec()).collect()
    };
    assert_eq!(listed(&block), [&b"one"[..], b"two", b"three", b"four"]);
    let (_, offset, before) = find_in(&block, 1024, b"two").unwrap();
    entry::delete_record(&mut block, offset, before);
    let (_, offset, before) = find_in(&block, 1024, b"one").unwrap();
    entry::delete_record(&mut block, offset, before);
    assert_eq!(listed(&block), [&b"three"[..], b"four"]);
    let room = entry::find_room(&block, 1024, 15).unwrap();
    assert_eq!(room, 0, "the room of the two removed names");
    entry::place_record(&mut block, room, 20, 1, b"fifteen-letters");
    assert_eq!(listed(&block), [&b"fifteen-letters"[..], b"three", b"four"]);
}

/// Grows a directory with names of all lengths and bytes, removes most of them, in images of every kind that is served.
#[test]
fn directories_of_every_image_kind() {
    let kinds: [&[&str]; 7] = [
        &[],
        &["-b", "1024"],
        &["-b", "2048"],
        &["-O", "^metadata_csum"],
        &["-O", "^dir_index"],
        &["-O", "^metadata_csum,^64bit,^filetype", "-b", "1024"],
        &["-O", "^metadata_csum,uninit_bg", "-I", "128"],
    ];
    for kind in kinds {
        let image = Image::make("64M", kind);
        let fs = image.open();
        let dir = mkdir(&fs, b"dir");
        let target = file(&fs, R, b"target");
        let mut random = Random(42);
        let mut expected = BTreeSet::new();
        for round in 0..1500 {
            let name = random.name(1 + (round * 7) % 255);
            if expected.insert(name.clone()) {
                fs.link(ROOT, target, dir, &name).unwrap();
            }
        }
        assert_eq!(names(&fs, dir), expected, "{kind:?}");
        image.judge(fs);
        let fs = image.open();
        for name in expected.clone() {
            assert_eq!(fs.lookup(dir, &name).unwrap().ino, target);
            if random.below(3) > 0 {
                fs.unlink(ROOT, dir, &name).unwrap();
                expected.remove(&name);
                assert!(matches!(fs.lookup(dir, &name), Err(FsError::Errno(libc::ENOENT))));
            }
        }
        for round in 0..200 {
            let name = random.name(1 + (round * 11) % 255);
            if expected.insert(name.clone()) {
                fs.link(ROOT, target, dir, &name).unwrap();
            }
        }
        assert_eq!(names(&fs, dir), expected);
        assert_eq!(fs.getattr(target).unwrap().links as usize, expected.len() + 1);
        let after = fs.read_dir(dir, 0).unwrap()[500].cookie;
        assert_eq!(fs.read_dir(dir, after).unwrap()[..], fs.read_dir(dir, 0).unwrap()[501..]);
        let indexed = fs
            .with_core(|core| {
                let dir = core.inode(dir)?;
                Ok(core.dir_is_indexed(&dir))
            })
            .unwrap();
        assert_eq!(indexed, !kind.contains(&"^dir_index"));
        image.judge(fs);
        if indexed {
            let dump = image.debugfs("htree_dump dir");
            assert!(dump.contains("Indirect levels") && !dump.contains("corrupt"), "{dump}");
        }
    }
}

/// e2fsck holds every name's hash against the range of its leaf: a wrong one would show.
#[test]
fn every_hash_of_names_of_any_bytes() {
    for hash in ["legacy", "half_md4", "tea"] {
        for flags in ["1", "2"] {
            let image = Image::make("32M", &["-b", "1024"]);
            image.tool("tune2fs", &["-E", &format!("hash_alg={hash}")]);
            image.tool("debugfs", &["-w", "-R", &format!("set_super_value flags {flags}")]);
            let fs = image.open();
            let version = fs.with_core(|core| Ok(core.geometry.hash_version)).unwrap();
            let expected = ["legacy", "half_md4", "tea"].iter().position(|name| *name == hash).unwrap();
            assert_eq!(version, expected as u8 + if flags == "2" { 3 } else { 0 });
            let (dir, target) = (mkdir(&fs, b"dir"), file(&fs, R, b"target"));
            let mut random = Random(11);
            let names: BTreeSet<_> = (0..600).map(|round| random.name(1 + round % 255)).collect();
            for name in &names {
                fs.link(ROOT, target, dir, name).unwrap();
            }
            let fs = image.reopened(fs);
            for name in &names {
                assert_eq!(fs.lookup(dir, name).unwrap().ino, target);
            }
        }
    }
}

/// Names of equal hash that a split parts go on in the next leaf, which its index entry says.
#[test]
fn names_of_equal_hash_in_two_leaves() {
    let seed = "lazy_itable_init=0,hash_seed=0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
    let image = Image::make("32M", &["-b", "1024", "-E", seed]);
    let fs = image.open();
    let (dir, target) = (mkdir(&fs, b"dir"), file(&fs, R, b"target"));
    let (version, seed) =
        fs.with_core(|core| Ok((core.geometry.hash_version, core.geometry.hash_seed))).unwrap();
    let name = |number: u32| format!("{number:0>200}").into_bytes();
    let mut hashed: Vec<(u32, u32)> =
        (0..300_000).map(|number| (hash_name(version, &seed, &name(number)).major, number)).collect();
    hashed.sort_unstable();
    let mut numbers = BTreeSet::new();
    for pair in hashed.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        numbers.extend([pair[0].1, pair[1].1]);
    }
    assert!(numbers.len() > 10, "{} names collide", numbers.len());
    // Neighbours by hash fill the leaves around each pair.
    let pairs = numbers.clone();
    for (place, (_, number)) in hashed.iter().enumerate() {
        if pairs.contains(number) {
            numbers.extend(
                hashed[place.saturating_sub(6)..(place + 6).min(hashed.len())].iter().map(|entry| entry.1),
            );
        }
    }
    for number in &numbers {
        fs.link(ROOT, target, dir, &name(*number)).unwrap();
    }
    let fs = image.reopened(fs);
    assert!(image.debugfs("htree_dump dir").lines().any(|line| {
        let hash = line.split("Hash 0x").nth(1).and_then(|rest| rest.get(..8)).unwrap_or("0");
        line.starts_with("Entry #") && u32::from_str_radix(hash, 16).is_ok_and(|hash| hash & 1 == 1)
    }));
    for number in &numbers {
        assert_eq!(fs.lookup(dir, &name(*number)).unwrap().ino, target);
    }
    for number in &numbers {
        fs.unlink(ROOT, dir, &name(*number)).unwrap();
    }
    // What is still open when the file system is closed goes with it.
    fs.rmdir(ROOT, R, b"dir").unwrap();
    image.judge(fs);
}

#[test]
fn two_hundred_thousand_names() {
    let image = Image::make("128M", &["-N", "2000"]);
    let fs = image.open();
    let dir = mkdir(&fs, b"big");
    let targets: Vec<InodeNo> = (0..4).map(|i| file(&fs, R, format!("target{i}").as_bytes())).collect();
    let begin = std::time::Instant::now();
    for number in 0..200_000_usize {
        fs.link(ROOT, targets[number % 4], dir, format!("a-name-of-{number:06}").as_bytes()).unwrap();
    }
    let made = begin.elapsed();
    for number in (0..200_000_usize).step_by(7) {
        let attr = fs.lookup(dir, format!("a-name-of-{number:06}").as_bytes()).unwrap();
        assert_eq!(attr.ino, targets[number % 4]);
    }
    println!("200,000 names in {made:?}, every seventh found in {:?}", begin.elapsed() - made);
    assert_eq!(fs.read_dir(dir, 0).unwrap().len(), 200_002);
    image.judge(fs);
    let fs = image.open();
    for number in 0..200_000_usize {
        fs.unlink(ROOT, dir, format!("a-name-of-{number:06}").as_bytes()).unwrap();
    }
    fs.rmdir(ROOT, R, b"big").unwrap();
    fs.evict(ROOT, dir).unwrap();
    image.judge(fs);
}

/// 1 KiB blocks and long names fill both levels of the index: ENOSPC, as in the kernel without `large_dir`, nothing broken.
#[test]
fn a_full_index_refuses_more() {
    let image = Image::make("96M", &["-b", "1024", "-N", "2000"]);
    let fs = image.open();
    let dir = mkdir(&fs, b"big");
    let target = file(&fs, R, b"target");
    let mut made = 0;
    let error = loop {
        let name = format!("{made:0>250}");
        match fs.link(ROOT, target, dir, name.as_bytes()) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, FsError::Errno(libc::ENOSPC)), "{error}");
    assert!(made > 15_000, "{made}");
    assert!(fs.statfs().unwrap().blocks_free > 10_000, "the index was full, not the file system");
    assert_eq!(names(&fs, dir).len(), made);
    image.judge(fs);
}

#[test]
fn a_damaged_index_is_passed_over_for_reading() {
    let image = Image::make("64M", &[]);
    let fs = image.open();
    let dir = mkdir(&fs, b"dir");
    let target = file(&fs, R, b"target");
    for number in 0..1000 {
        fs.link(ROOT, target, dir, format!("name{number}").as_bytes()).unwrap();
    }
    let root = fs
        .with_core(|core| {
            let dir = core.inode(dir)?;
            Ok(core.map_block(&dir, FileBlock(0))?.unwrap())
        })
        .unwrap();
    fs.close().unwrap();
    drop(fs);
    let mut bytes = image.bytes();
    bytes[root.0 as usize * 4096 + 44] ^= 0x55;
    std::fs::write(&image.path, bytes).unwrap();
    let fs = image.open();
    assert_eq!(fs.lookup(dir, b"name777").unwrap().ino, target);
    fs.close().unwrap();
    drop(fs);
    let state = image.debugfs("stats -h");
    assert!(state.contains("with errors"), "reported in the superblock: {state}");
    let fs = image.open();
    assert_eq!(fs.lookup(dir, b"..").unwrap().ino, R);
    assert_eq!(names(&fs, dir).len(), 1000);
    let refused = fs.link(ROOT, target, dir, b"more");
    assert!(matches!(refused, Err(FsError::Corrupt { .. })), "{refused:?}");
    assert_eq!(fs.getattr(target).unwrap().links, 1001);
}

#[test]
fn the_kernel_and_we_read_each_other() {
    let image = Image::make("64M", &[]);
    let mut expected = BTreeSet::new();
    let kernel = image.with_kernel(|root| {
        std::fs::create_dir(root.join("dir")).unwrap();
        let mut random = Random(3);
        for round in 0..1500 {
            let name = random.name(1 + (round * 5) % 255);
            std::fs::write(root.join("dir").join(std::ffi::OsStr::from_bytes(&name)), b"").unwrap();
            expected.insert(name);
        }
    });
    if !kernel {
        return;
    }
    let fs = image.open();
    let dir = fs.lookup(R, b"dir").unwrap().ino;
    assert_eq!(names(&fs, dir), expected);
    for (number, name) in expected.clone().into_iter().enumerate() {
        let ino = fs.lookup(dir, &name).unwrap().ino;
        match number % 3 {
            0 => {
                fs.unlink(ROOT, dir, &name).unwrap();
                fs.evict(ROOT, ino).unwrap();
                expected.remove(&name);
            }
            1 => {
                let new = format!("renamed by us {number}").into_bytes();
                fs.rename(ROOT, (dir, &name), (dir, &new), RenameMode::Replace).unwrap();
                expected.remove(&name);
                expected.insert(new);
            }
            _ => {}
        }
    }
    image.judge(fs);
    image.with_kernel(|root| {
        let listed: BTreeSet<Vec<u8>> = std::fs::read_dir(root.join("dir"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_vec())
            .collect();
        assert_eq!(listed, expected);
        for name in &expected {
            let path = root.join("dir").join(std::ffi::OsStr::from_bytes(name));
            assert!(path.exists());
            std::fs::remove_file(path).unwrap();
        }
        std::fs::remove_dir(root.join("dir")).unwrap();
    });
    image.fsck();
}

#[test]
fn a_failed_insertion_leaves_the_directory_as_it_was() {
    let image = Image::make("16M", &["-b", "1024"]);
    let fs = image.open();
    let dir = mkdir(&fs, b"dir");
    let target = file(&fs, R, b"target");
    for number in 0..300 {
        let name = format!("{number:0>60}");
        let before = (number % 10 == 0).then(|| state(&fs));
        // Splits, conversions and new levels included: put in, then the operation fails.
        let failed = fs.with_tx(ROOT, CREDITS, |tx| {
            let mut inode = tx.core.inode(dir)?;
            tx.dir_insert(&mut inode, name.as_bytes(), target, FileKind::Regular)?;
            tx.put_inode(&inode)?;
            errno::<()>(libc::EIO)
        });
        assert!(matches!(failed, Err(FsError::Errno(libc::EIO))));
        assert!(before.is_none_or(|before| before == state(&fs)), "round {number}");
        fs.link(ROOT, target, dir, name.as_bytes()).unwrap();
    }
    assert_eq!(names(&fs, dir).len(), 300);
    image.judge(fs);
}

/// Without checksums every rule of the format is on its own: whatever the blocks say, operations end, with or without an error.
#[test]
fn damaged_directories_never_panic_or_hang() {
    let image = Image::make("12M", &["-b", "1024", "-O", "^metadata_csum"]);
    let fs = image.open();
    let (dir, target) = (mkdir(&fs, b"dir"), file(&fs, R, b"target"));
    let name = |number: u64| format!("{number:0>100}").into_bytes();
    for number in 0..1200 {
        fs.link(ROOT, target, dir, &name(number)).unwrap();
    }
    let blocks: Vec<BlockNo> = fs
        .with_core(|core| {
            let dir = core.inode(dir)?;
            let blocks = core.dir_blocks(&dir)?;
            (0..blocks).map(|block| Ok(core.map_block(&dir, FileBlock(block))?.unwrap())).collect()
        })
        .unwrap();
    fs.close().unwrap();
    drop(fs);
    let good = image.bytes();
    let index: Vec<BlockNo> = blocks
        .iter()
        .copied()
        .filter(|block| *block == blocks[0] || index::is_node(&good[block.0 as usize * 1024..][..1024]))
        .collect();
    assert!(index.len() >= 3, "two levels");
    let mut random = Random(99);
    let mut failures = 0;
    for round in 0..120 {
        let mut bytes = good.clone();
        for _ in 0..1 + round % 3 {
            let among = if random.below(3) > 0 { &index } else { &blocks };
            let block = among[random.below(among.len() as u64) as usize];
            let within = if random.below(2) == 0 { 48 } else { 1024 };
            bytes[block.0 as usize * 1024 + random.below(within) as usize] = random.below(256) as u8;
        }
        let fs = Image::open_bytes(&bytes).unwrap();
        let mut note = |failed: bool| failures += usize::from(failed);
        note(fs.read_dir(dir, 0).is_err());
        for _ in 0..60 {
            let (one, two) = (name(random.below(1500)), name(random.below(1500)));
            note(matches!(fs.lookup(dir, &one), Err(FsError::Corrupt { .. })));
            note(matches!(fs.link(ROOT, target, dir, &one), Err(FsError::Corrupt { .. })));
            note(matches!(
                fs.rename(ROOT, (dir, &one), (dir, &two), RenameMode::Replace),
                Err(FsError::Corrupt { .. })
            ));
            note(matches!(fs.unlink(ROOT, dir, &two), Err(FsError::Corrupt { .. })));
        }
        note(fs.rmdir(ROOT, R, b"dir").is_ok());
    }
    assert!(failures > 100, "the damage was met: {failures}");
}
