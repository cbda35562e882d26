#![allow(clippy::unwrap_used, reason = "tests")]

use super::entry::{self, Sums};
use super::hash::hash_name;
use super::*;
use crate::ext4::attr::{NewNode, RenameMode};
use crate::ext4::test_images::{Image, ROOT, Random};
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
    assert_eq!(fs.lookup(dir, b"..").unwrap().ino, R);
    assert_eq!(names(&fs, dir).len(), 1000);
    assert!(matches!(fs.link(ROOT, target, dir, b"more"), Err(FsError::Corrupt { .. })));
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
    fs.close().unwrap();
    for number in 0..300 {
        let name = format!("{number:0>60}");
        let before = image.bytes();
        // Splits, conversions and new levels included: put in, then the operation fails.
        let failed = fs.with_tx(ROOT, CREDITS, |tx| {
            let mut inode = tx.core.inode(dir)?;
            tx.dir_insert(&mut inode, name.as_bytes(), target, FileKind::Regular)?;
            tx.put_inode(&inode)?;
            errno::<()>(libc::EIO)
        });
        assert!(matches!(failed, Err(FsError::Errno(libc::EIO))));
        if number % 10 == 0 {
            fs.close().unwrap();
            assert!(image.bytes() == before, "round {number}");
        }
        fs.link(ROOT, target, dir, name.as_bytes()).unwrap();
        fs.close().unwrap();
    }
    assert_eq!(names(&fs, dir).len(), 300);
    image.judge(fs);
}
