//! Names made, moved and removed, with a crash at every barrier: what is found afterwards is the tree as it was after some
//! operation, not before the last one that a sync covered, and e2fsck finds nothing to mend.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::attr::{Context, FileKind, NewNode, RenameMode, SetAttr};
use super::test_support::{self as support, Form, Image, Op, Random, Recorder, check_clean, lun_over};
use super::types::InodeNo;
use super::{Ext4, Options, WriteAt};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

const WAIT: Context = Context { uid: 0, gid: 0, may_block: true };

/// Paths and what is there.
type Tree = BTreeMap<Vec<u8>, (FileKind, Vec<u8>, u32)>;

fn read_tree(ext4: &Ext4) -> Tree {
    let mut tree = Tree::new();
    let mut directories = vec![(InodeNo::ROOT, Vec::new())];
    while let Some((ino, path)) = directories.pop() {
        for entry in ext4.read_dir(ino, 0).unwrap() {
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            let mut full = path.clone();
            full.push(b'/');
            full.extend_from_slice(&entry.name);
            let attr = ext4.getattr(entry.ino).unwrap();
            let target =
                if entry.kind == FileKind::Symlink { ext4.readlink(entry.ino).unwrap() } else { Vec::new() };
            tree.insert(full.clone(), (entry.kind, target, attr.links));
            if entry.kind == FileKind::Directory {
                directories.push((entry.ino, full));
            }
        }
    }
    tree
}

fn sync(ext4: &Ext4) {
    let (sender, receiver) = mpsc::channel();
    ext4.sync(None, false, Box::new(move |outcome| sender.send(outcome).unwrap()));
    receiver.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
}

struct Worked {
    /// The tree after each operation.
    trees: Vec<Tree>,
    /// Recorded requests when a sync was answered, and the operations that it covered.
    acknowledged: Vec<(usize, usize)>,
}

/// Random operations; the file system is then dropped as by a crash.
fn work(recorder: &Recorder, seed: u64, operations: usize) -> Worked {
    let ext4 = Ext4::open(lun_over(recorder.clone()), Options::default()).unwrap();
    let mut random = Random(seed);
    let mut worked = Worked { trees: vec![read_tree(&ext4)], acknowledged: Vec::new() };
    let mut directories = vec![InodeNo::ROOT];
    let mut unlinked: Vec<InodeNo> = Vec::new();
    for number in 0..operations {
        let dir = directories[random.below(directories.len())];
        let entries: Vec<_> =
            ext4.read_dir(dir, 0).unwrap().into_iter().filter(|entry| entry.name[0] == b'n').collect();
        let name = format!("n{number}{}", "x".repeat(random.below(200))).into_bytes();
        let pick = if entries.is_empty() { None } else { Some(&entries[random.below(entries.len())]) };
        match (random.below(10), pick) {
            (0, _) if directories.len() < 12 => {
                directories.push(ext4.make(WAIT, dir, &name, NewNode::Directory, 0o755, 0).unwrap().ino);
            }
            (1, _) => {
                let target = vec![b't'; 1 + random.below(300)];
                ext4.make(WAIT, dir, &name, NewNode::Symlink(&target), 0o777, 0).unwrap();
            }
            (2, Some(entry)) if entry.kind != FileKind::Directory => {
                ext4.link(WAIT, entry.ino, dir, &name).unwrap();
            }
            (3 | 4, Some(entry)) if entry.kind != FileKind::Directory => {
                let attr = ext4.unlink(WAIT, dir, &entry.name).unwrap();
                if attr.links == 0 {
                    unlinked.push(attr.ino);
                }
            }
            (5, Some(entry)) if entry.kind != FileKind::Directory => {
                let to = directories[random.below(directories.len())];
                ext4.rename(WAIT, (dir, &entry.name), (to, &name), RenameMode::Replace).unwrap();
            }
            (6, Some(entry)) if entry.kind == FileKind::Directory => {
                // Emptied first, so that its blocks are freed, revoked and used again.
                for inner in ext4.read_dir(entry.ino, 0).unwrap() {
                    if inner.kind != FileKind::Directory {
                        let attr = ext4.unlink(WAIT, entry.ino, &inner.name).unwrap();
                        if attr.links == 0 {
                            unlinked.push(attr.ino);
                        }
                        worked.trees.push(read_tree(&ext4));
                    }
                }
                if let Ok(attr) = ext4.rmdir(WAIT, dir, &entry.name) {
                    directories.retain(|ino| *ino != attr.ino);
                    unlinked.push(attr.ino);
                }
            }
            _ => {
                ext4.make(WAIT, dir, &name, NewNode::Regular, 0o644, 0).unwrap();
            }
        }
        worked.trees.push(read_tree(&ext4));
        if random.below(3) == 0 && !unlinked.is_empty() {
            let ino = unlinked.swap_remove(random.below(unlinked.len()));
            ext4.evict(WAIT, ino).unwrap();
        }
        if random.below(6) == 0 {
            sync(&ext4);
            worked.acknowledged.push((recorder.len(), worked.trees.len() - 1));
        }
    }
    drop(ext4);
    worked
}

fn crash_everywhere(form: &Form, seed: u64, count: usize, judged: usize) {
    let image = Image::make(form);
    let recorder = Recorder::over(&image.bytes);
    let worked = work(&recorder, seed, count);
    let operations = recorder.operations();
    let barriers: Vec<usize> =
        (0..operations.len()).filter(|at| matches!(operations[*at], Op::Sync)).collect();
    let mut random = Random(seed ^ 0x55);
    let mut bytes = image.bytes.clone();
    let mut done = 0;
    for (index, barrier) in barriers.iter().enumerate() {
        operations[done..*barrier].iter().for_each(|op| op.apply(&mut bytes));
        done = *barrier;
        if index % barriers.len().div_ceil(judged) != 0 {
            continue;
        }
        let next = barriers.get(index + 1).copied().unwrap_or(operations.len());
        let mut crashed = bytes.clone();
        for op in &operations[*barrier..next] {
            op.apply_in_part(&mut crashed, image.block_size, &mut random);
        }
        let lun = lun_over(Recorder::over(&crashed));
        let ext4 = Ext4::open(lun.clone(), Options::default()).unwrap();
        let tree = read_tree(&ext4);
        let covered = worked.acknowledged.iter().filter(|(at, _)| at <= barrier).map(|(_, covered)| *covered);
        let least = covered.max().unwrap_or(0);
        assert!(
            worked.trees[least..].contains(&tree),
            "request {barrier}: no state since operation {least} is found"
        );
        ext4.close().unwrap();
        check_clean(&support::bytes_of(&lun));
    }
}

#[test]
fn names_survive_crashes_whole_4k() {
    crash_everywhere(&Form::default(), 11, 250, 25);
}

#[test]
fn names_survive_crashes_whole_1k() {
    let form = Form {
        block_size: 1024,
        features: "extent,has_journal,ext_attr,dir_index,filetype",
        ..Form::default()
    };
    crash_everywhere(&form, 12, 400, 30);
}

/// Byte `at` of file number `file`: never zero, so that a hole or a block of somebody else is told from content.
fn content_byte(file: u64, at: u64) -> u8 {
    ((file * 31 + at / 512 * 7 + at % 251) % 255 + 1) as u8
}

/// One file's life as it must be found.
struct FileLife {
    ino: InodeNo,
    /// Sizes in order, each with the number of the operation that made it.
    sizes: Vec<(usize, u64)>,
    /// Operation that unlinked it.
    removed: Option<usize>,
}

/// Files that grow, shrink, are overwritten and removed, so that their blocks go from one to the other; with discards.
/// After a crash a file's bytes are its own, all of them, and it is as long as it was at some time since the last sync.
fn crash_data_everywhere(form: &Form, seed: u64, count: usize, judged: usize) {
    let image = Image::make(form);
    let recorder = Recorder::over(&image.bytes);
    let ext4 = Ext4::open(lun_over(recorder.clone()), Options::default()).unwrap();
    let mut random = Random(seed);
    let mut files: Vec<FileLife> = Vec::new();
    let mut acknowledged = Vec::new();
    for number in 1..=count {
        let living: Vec<usize> = (0..files.len()).filter(|at| files[*at].removed.is_none()).collect();
        let pick = if living.is_empty() { 0 } else { living[random.below(living.len())] };
        match random.below(12) {
            0 | 1 if living.len() < 12 => {
                let name = format!("f{}", files.len()).into_bytes();
                let attr = ext4.make(WAIT, InodeNo::ROOT, &name, NewNode::Regular, 0o644, 0).unwrap();
                files.push(FileLife { ino: attr.ino, sizes: vec![(number, 0)], removed: None });
            }
            _ if living.is_empty() => continue,
            2 if living.len() > 6 => {
                ext4.unlink(WAIT, InodeNo::ROOT, format!("f{pick}").as_bytes()).unwrap();
                ext4.evict(WAIT, files[pick].ino).unwrap();
                files[pick].removed = Some(number);
            }
            3 => {
                let size = files[pick].sizes.last().unwrap().1;
                let size = size - random.below(size as usize + 1) as u64;
                ext4.truncate(WAIT, files[pick].ino, size, &SetAttr::default()).unwrap();
                files[pick].sizes.push((number, size));
            }
            kind => {
                let size = files[pick].sizes.last().unwrap().1;
                let from = if kind == 4 { size - random.below(size as usize + 1) as u64 } else { size };
                let length = (1 + random.below(6 * image.block_size)) as u64;
                let bytes: Vec<u8> = (from..from + length).map(|at| content_byte(pick as u64, at)).collect();
                let at = if kind == 4 { WriteAt::Offset(from) } else { WriteAt::Append };
                let written = ext4.write(WAIT, files[pick].ino, at, Bytes::from(bytes), false);
                let written = match written {
                    Ok(written) => written.bytes as u64,
                    Err(super::error::FsError::Errno(libc::ENOSPC)) => 0,
                    Err(error) => panic!("{error}"),
                };
                files[pick].sizes.push((number, size.max(from + written)));
            }
        }
        if random.below(5) == 0 {
            let whole = random.below(2) == 0;
            let (sender, receiver) = mpsc::channel();
            let done = Box::new(move |outcome| sender.send(outcome).unwrap());
            ext4.sync((!whole).then(|| files[pick].ino), random.below(2) == 0, done);
            receiver.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
            acknowledged.push((recorder.len(), number, (!whole).then_some(pick)));
        }
    }
    // With what close does, discards among it.
    ext4.close().unwrap();
    drop(ext4);
    let operations = recorder.operations();
    let barriers: Vec<usize> =
        (0..operations.len()).filter(|at| matches!(operations[*at], Op::Sync)).collect();
    let mut bytes = image.bytes.clone();
    let mut done = 0;
    for (index, barrier) in barriers.iter().enumerate() {
        operations[done..*barrier].iter().for_each(|op| op.apply(&mut bytes));
        done = *barrier;
        if index % barriers.len().div_ceil(judged) != 0 && index + 4 < barriers.len() {
            continue;
        }
        let next = barriers.get(index + 1).copied().unwrap_or(operations.len());
        let mut crashed = bytes.clone();
        for op in &operations[*barrier..next] {
            op.apply_in_part(&mut crashed, image.block_size, &mut random);
        }
        let lun = lun_over(Recorder::over(&crashed));
        let ext4 = Ext4::open(lun.clone(), Options::default()).unwrap();
        for (file, life) in files.iter().enumerate() {
            let covers = |which: &Option<usize>| which.is_none_or(|which| which == file);
            let covered = acknowledged.iter().filter(|(at, _, which)| at <= barrier && covers(which));
            let least = covered.map(|(_, number, _)| *number).max().unwrap_or(0);
            let found = ext4.lookup(InodeNo::ROOT, format!("f{file}").as_bytes());
            let Ok(attr) = found else {
                let may_be_gone = life.sizes[0].0 > least || life.removed.is_some();
                assert!(
                    may_be_gone,
                    "file {file} of operation {} is gone, {least} was synced",
                    life.sizes[0].0
                );
                continue;
            };
            assert!(life.removed.is_none_or(|removed| removed > least), "file {file} is back");
            let at_least = life.sizes.iter().rposition(|(number, _)| *number <= least).unwrap_or(0);
            let range = life.sizes[at_least..].iter().map(|(_, size)| *size);
            let (min, max) = (range.clone().min().unwrap(), range.max().unwrap());
            assert!((min..=max).contains(&attr.size), "file {file}: {} bytes, not {min} to {max}", attr.size);
            let mut content = vec![0; attr.size as usize];
            assert_eq!(ext4.read(attr.ino, 0, &mut content).unwrap(), content.len());
            // A truncation zeroes the rest of its last block in place, as the kernel does, before it is durable itself.
            let cut = |at: u64| {
                let block_size = image.block_size as u64;
                let steps = life.sizes[at_least..].windows(2).filter(|step| step[1].1 < step[0].1);
                steps
                    .map(|step| step[1].1)
                    .any(|size| (size..size.next_multiple_of(block_size)).contains(&at))
            };
            let wrong = (0..attr.size).find(|at| match content[*at as usize] {
                0 => !cut(*at),
                byte => byte != content_byte(file as u64, *at),
            });
            assert_eq!(wrong, None, "file {file} of {} bytes, request {barrier}", attr.size);
        }
        ext4.close().unwrap();
        check_clean(&support::bytes_of(&lun));
    }
}

#[test]
fn file_data_survive_crashes_whole_4k() {
    crash_data_everywhere(&Form::default(), 21, 400, 25);
}

#[test]
fn file_data_survive_crashes_whole_1k() {
    let features = "extent,has_journal,ext_attr,dir_index,filetype";
    crash_data_everywhere(&Form { block_size: 1024, features, ..Form::default() }, 22, 400, 25);
}

/// Threads that write, sync, truncate and remove, in an image that is too small for all of it and with a journal that is full all
/// the time: everybody gets on, nobody gets another's bytes, and what is left is clean.
#[test]
fn a_crowd_in_a_full_image_gets_on() {
    let features = "extent,has_journal,ext_attr,dir_index,filetype,64bit,metadata_csum,extra_isize";
    let image = Image::make(&Form { block_size: 1024, features, ..Form::default() });
    let recorder = Recorder::over(&image.bytes);
    recorder.slow_syncs(Duration::from_micros(300));
    let ext4 = Ext4::open(lun_over(recorder.clone()), Options::default()).unwrap();
    let refused = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let ext4 = &ext4;
                scope.spawn(move || {
                    let mut random = Random(thread);
                    let mut refused = 0;
                    for round in 0..40u64 {
                        let id = thread * 1000 + round;
                        let name = format!("t{id}").into_bytes();
                        let ino =
                            ext4.make(WAIT, InodeNo::ROOT, &name, NewNode::Regular, 0o644, 0).unwrap().ino;
                        let mut size = 0;
                        for _ in 0..20 {
                            let length = 1 + random.below(60_000) as u64;
                            let bytes: Vec<u8> =
                                (size..size + length).map(|at| content_byte(id, at)).collect();
                            match ext4.write(WAIT, ino, WriteAt::Append, Bytes::from(bytes), false) {
                                Ok(written) => {
                                    refused += u32::from(written.bytes as u64 != length);
                                    size += written.bytes as u64;
                                }
                                Err(super::error::FsError::Errno(libc::ENOSPC)) => refused += 1,
                                Err(error) => panic!("{error}"),
                            }
                            if random.below(4) == 0 {
                                sync(ext4);
                            }
                        }
                        size -= random.below(size as usize / 2 + 1) as u64;
                        ext4.truncate(WAIT, ino, size, &SetAttr::default()).unwrap();
                        let mut content = vec![0; size as usize];
                        assert_eq!(ext4.read(ino, 0, &mut content).unwrap(), content.len());
                        let wrong = (0..size).find(|at| content[*at as usize] != content_byte(id, *at));
                        assert_eq!(wrong, None, "file {id} of {size} bytes");
                        ext4.unlink(WAIT, InodeNo::ROOT, &name).unwrap();
                        ext4.evict(WAIT, ino).unwrap();
                    }
                    refused
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>()
    });
    assert!(refused > 0, "the image was never full");
    ext4.close().unwrap();
    check_clean(&recorder.bytes());
}
