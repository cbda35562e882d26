//! Damage that fuzzing has found to be met badly; each test tells what happened.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::attr::{NewNode, RenameMode};
use super::error::FsError;
use super::test_images::{Image, ROOT};
use super::types::InodeNo;
use super::{Ext4, WriteAt};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

/// A file of one block, and its number.
fn with_file(fs: &Ext4) -> InodeNo {
    let ino = fs.make(ROOT, InodeNo::ROOT, b"file", NewNode::Regular, 0o644, 0).unwrap().ino;
    fs.write(ROOT, ino, WriteAt::Offset(0), Bytes::from_static(&[7; 4096]), false).unwrap();
    ino
}

/// Where a file or directory begins.
fn first_block(image: &Image, path: &str) -> usize {
    let blocks = image.debugfs(&format!("blocks {path}"));
    blocks.split_whitespace().next().unwrap().parse().unwrap()
}

/// `SEEK_DATA` in a file whose damaged size lies beyond the 2^32 blocks that a file can have went round for ever, behind the
/// file's data lock: nothing reached that file any more, and a thread was busy until the mount ended.
#[test]
fn a_seek_in_a_file_of_impossible_size_ends() {
    let image = Image::make("16M", &["-O", "metadata_csum"]);
    let fs = image.open();
    let ino = with_file(&fs);
    fs.close().unwrap();
    drop(fs);
    image.tool("debugfs", &["-w", "-R", "set_inode_field file size 0x200000000000"]);
    let fs = Image::open_bytes(&image.bytes()).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().size, 0x2000_0000_0000);
    let (sender, receiver) = mpsc::channel();
    let sought = Arc::clone(&fs);
    std::thread::spawn(move || sender.send(sought.seek(ino, 4096, true)));
    let found = receiver.recv_timeout(Duration::from_secs(30)).expect("the seek ends");
    assert!(matches!(found, Err(FsError::Corrupt { inode: Some(inode), .. }) if inode == ino), "{found:?}");
    assert_eq!(fs.seek(ino, 0, false).unwrap(), 4096, "what is there is still found");
}

/// A journal inode whose extent tree has no entries counted below zero in the search for the journal's first block.
#[test]
fn a_journal_without_blocks_is_damage() {
    for block_size in ["1024", "4096"] {
        let image = Image::make("16M", &["-b", block_size]);
        image.tool("debugfs", &["-w", "-R", "set_inode_field <8> block[0] 0x0000f30a"]);
        let opened = Image::open_bytes(&image.bytes());
        assert!(matches!(opened, Err(FsError::Corrupt { inode: Some(InodeNo::JOURNAL), .. })));
    }
}

/// Extent nodes of the journal's inode that name the next level again and again were all walked at open: with five levels that
/// is two hundred million nodes.
#[test]
fn a_journal_whose_nodes_name_one_another_is_refused_at_once() {
    const FIRST: u32 = 16_000;
    let image = Image::make("16M", &["-b", "1024", "-O", "^metadata_csum"]);
    let entries = |count: u32, child: u32| (0..count).flat_map(move |at| [at, child, 0]);
    let header = |count: u32, depth: u32| [0xF30A | count << 16, count | depth << 16, 0];
    let root: Vec<u32> = header(4, 5).into_iter().chain(entries(4, FIRST)).collect();
    for (at, word) in root.iter().enumerate() {
        image.tool("debugfs", &["-w", "-R", &format!("set_inode_field <8> block[{at}] {word:#x}")]);
    }
    let mut bytes = image.bytes();
    for level in 0..5 {
        let words = match level {
            4 => header(0, 0).to_vec(),
            _ => header(84, 4 - level).into_iter().chain(entries(84, FIRST + level + 1)).collect(),
        };
        let raw: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes[(FIRST + level) as usize * 1024..][..raw.len()].copy_from_slice(&raw);
    }
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(Image::open_bytes(&bytes).map(drop)));
    let opened = receiver.recv_timeout(Duration::from_secs(30)).expect("the open ends");
    assert!(matches!(opened, Err(FsError::Corrupt { inode: Some(InodeNo::JOURNAL), .. })), "{opened:?}");
}

/// Reading passes over a damaged root of a directory's index, as its names are in the leaves. A change of ".." in such a root (a move
/// to another parent) then took the root's limit for the place of its checksum: a panic, far outside of the block. With limits that
/// happened to be right it would have given the damage a right checksum.
#[test]
fn a_damaged_index_root_is_not_changed() {
    const LIMIT_AT: usize = 32;
    const SECOND_HASH_AT: usize = 40;
    for (features, field) in
        [("metadata_csum", LIMIT_AT), ("metadata_csum", SECOND_HASH_AT), ("^metadata_csum", LIMIT_AT)]
    {
        let image = Image::make("16M", &["-b", "1024", "-O", features]);
        let fs = image.open();
        let make = |parent, name: &[u8], node| fs.make(ROOT, parent, name, node, 0o755, 0).unwrap().ino;
        let dir = make(InodeNo::ROOT, b"dir", NewNode::Directory);
        make(InodeNo::ROOT, b"other", NewNode::Directory);
        for number in 0..40 {
            make(dir, format!("{number:0>60}").as_bytes(), NewNode::Regular);
        }
        fs.close().unwrap();
        drop(fs);
        let root = first_block(&image, "dir");
        let mut bytes = image.bytes();
        bytes[root * 1024 + field + 1] ^= 0x55;
        let fs = Image::open_bytes(&bytes).unwrap();
        assert_eq!(fs.lookup(dir, b"..").unwrap().ino, InodeNo::ROOT, "what is there is still found");
        let other = fs.lookup(InodeNo::ROOT, b"other").unwrap().ino;
        let moved = fs.rename(ROOT, (InodeNo::ROOT, b"dir"), (other, b"dir"), RenameMode::Replace);
        assert!(
            matches!(moved, Err(FsError::Corrupt { inode: Some(inode), .. }) if inode == dir),
            "{moved:?}"
        );
        assert_eq!(fs.lookup(InodeNo::ROOT, b"dir").unwrap().ino, dir, "nothing has moved");
    }
}

/// A block that two structures claim was checked for the one that read it first, and believed for the other.
#[test]
fn a_block_is_checked_for_each_structure_that_claims_it() {
    let image = Image::make("16M", &["-O", "metadata_csum"]);
    let fs = image.open();
    let make = |name: &[u8]| fs.make(ROOT, InodeNo::ROOT, name, NewNode::Directory, 0o755, 0).unwrap().ino;
    let (one, two) = (make(b"one"), make(b"two"));
    fs.make(ROOT, one, b"file", NewNode::Regular, 0o644, 0).unwrap();
    fs.close().unwrap();
    drop(fs);
    let block = first_block(&image, "one");
    image.tool("debugfs", &["-w", "-R", &format!("set_inode_field two block[5] {block}")]);
    let fs = Image::open_bytes(&image.bytes()).unwrap();
    assert!(fs.lookup(one, b"file").is_ok());
    let found = fs.lookup(two, b"file").map(|entry| entry.ino);
    assert!(matches!(found, Err(FsError::Corrupt { inode: Some(inode), .. }) if inode == two), "{found:?}");
    assert!(fs.lookup(one, b"file").is_ok());
}
