//! Transactions, crashes at every barrier, and recovery held against e2fsck's and the kernel's.
//!
//! The blocks that the transactions change are those of an ordinary file: whatever they hold, the file system stays
//! consistent, so e2fsck can judge every state. Each transaction also puts its number into one fixed block; what recovery
//! finds there says exactly what all the others must hold.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::super::attr::Context;
use super::super::bytes::{be32, le16, le32, put_be32};
use super::super::error::FsError;
use super::super::mount::recover;
use super::super::test_support::{
    self as support, Form, Image, Op, Random, Recorder, assert_same, check_clean, lun_over, replay_by_e2fsck,
};
use super::super::types::{BlockNo, InodeNo};
use super::super::{Ext4, Options};
use crate::image::Lun;
use bytes::Bytes;
use mirrorfs_journal::Origin;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const WAIT: Context = Context { uid: 0, gid: 0, may_block: true };
const NO_WAIT: Context = Context { uid: 0, gid: 0, may_block: false };

/// Waits for a sync.
fn sync(ext4: &Ext4) -> super::super::error::Result<()> {
    let (sender, receiver) = mpsc::channel();
    ext4.sync(None, false, Box::new(move |outcome| sender.send(outcome).unwrap()));
    receiver.recv_timeout(Duration::from_secs(20)).unwrap().map(|_| ())
}

fn open(lun: &Arc<Lun>) -> Arc<Ext4> {
    Ext4::open(lun.clone(), Options::default()).unwrap()
}

/// Fills a block: a number, and sometimes the journal's magic in front.
fn content(block_size: usize, number: u32, escaped: bool) -> Vec<u8> {
    let mut raw = vec![number as u8; block_size];
    put_be32(&mut raw, 0, if escaped { super::format::MAGIC } else { number });
    put_be32(&mut raw, 4, number);
    raw
}

/// What a block must hold after recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    /// As a transaction left it.
    Logged(Vec<u8>),
    /// Freed, and file data since: certain once that was flushed, behind this many recorded operations.
    Data(Vec<u8>, usize),
}

/// The states that transactions went through, by their number.
struct Model {
    states: Vec<BTreeMap<u64, Expected>>,
    /// Recorded operations when a sync was answered, and the number it covered.
    acknowledged: Vec<(usize, u32)>,
}

impl Model {
    fn acknowledged_at(&self, operations: usize) -> u32 {
        let covered = self.acknowledged.iter().filter(|(at, _)| *at <= operations);
        covered.map(|(_, number)| *number).max().unwrap_or(0)
    }

    fn check(&self, image: &[u8], block_size: usize, counter: u64, operations: usize) {
        let block = |number: u64| &image[number as usize * block_size..(number as usize + 1) * block_size];
        let found = be32(block(counter), 4);
        // Not written yet: the file's first content.
        let found = if found as usize >= self.states.len() { 0 } else { found };
        let least = self.acknowledged_at(operations);
        assert!(
            found >= least,
            "recovered state {found}, but {least} was acknowledged (operation {operations})"
        );
        for (number, expected) in &self.states[found as usize] {
            match expected {
                Expected::Logged(raw) => {
                    assert!(block(*number) == raw, "block {number} in state {found}, operation {operations}");
                }
                Expected::Data(raw, certain) if *certain <= operations => {
                    assert!(
                        block(*number) == raw,
                        "data of block {number} in state {found}, operation {operations}"
                    );
                }
                Expected::Data(..) => {}
            }
        }
    }
}

/// Many transactions with revokes, escapes and syncs. Gives the model; the file system was dropped as by a crash.
fn work(ext4: Arc<Ext4>, recorder: &Recorder, image: &Image, seed: u64, transactions: u32) -> Model {
    let mut random = Random(seed);
    let size = image.block_size;
    let counter = image.data_blocks[0];
    let mut state: BTreeMap<u64, Expected> = image.data_blocks[1..]
        .iter()
        .map(|block| (*block, Expected::Logged(image.block(*block).to_vec())))
        .collect();
    let mut model = Model { states: vec![state.clone()], acknowledged: Vec::new() };
    // Blocks of files now: they hold data until a transaction takes them as metadata again.
    let mut data: Vec<u64> = Vec::new();
    for number in 1..=transactions {
        let many = if random.below(8) == 0 { 150 } else { 12 };
        let changes: Vec<(u64, Vec<u8>)> = (0..1 + random.below(many))
            .map(|_| {
                let block = image.data_blocks[1 + random.below(image.data_blocks.len() - 1)];
                (block, content(size, number, random.below(10) == 0))
            })
            .collect();
        let forget = match random.below(3) {
            0 => (0..1 + random.below(6)).map(|_| image.data_blocks[1 + random.below(100)]).collect(),
            _ => Vec::new(),
        };
        data.retain(|block| changes.iter().all(|(changed, _)| changed != block));
        ext4.with_tx(WAIT, changes.len() + 2, |tx| {
            for (block, raw) in &changes {
                tx.create(BlockNo(*block))?.copy_from_slice(raw);
            }
            for block in &forget {
                tx.forget(BlockNo(*block));
            }
            tx.modify(BlockNo(counter))?.copy_from_slice(&content(size, number, number % 7 == 0));
            tx.touched(InodeNo(number % 5 + 20), true);
            Ok(())
        })
        .unwrap();
        for (block, raw) in changes {
            state.insert(block, Expected::Logged(raw));
        }
        for block in &forget {
            state.insert(*block, Expected::Data(Vec::new(), usize::MAX));
        }
        model.states.push(state.clone());
        // A handle that fails has changed nothing.
        if random.below(4) == 0 {
            let block = image.data_blocks[1 + random.below(100)];
            let failed = ext4.with_tx(WAIT, 8, |tx| {
                tx.forget(BlockNo(counter));
                tx.create(BlockNo(block))?.fill(0xEE);
                tx.forget(BlockNo(block));
                Err::<(), _>(FsError::Errno(libc::EPERM))
            });
            assert!(matches!(failed, Err(FsError::Errno(libc::EPERM))));
        }
        if !forget.is_empty() || random.below(5) == 0 {
            sync(&ext4).unwrap();
            model.acknowledged.push((recorder.len(), number));
            // Only now may what was freed be used for data.
            for block in forget {
                let raw = content(size, number | 0x8000_0000, false);
                let at = block * size as u64;
                ext4.lun().write(at, Bytes::from(raw.clone()), Origin::File(20)).unwrap();
                data.push(block);
                state.insert(block, Expected::Data(raw, usize::MAX));
            }
            if random.below(2) == 0 {
                sync(&ext4).unwrap();
                let now = recorder.len();
                for block in &data {
                    if let Some(Expected::Data(raw, certain @ usize::MAX)) = state.get_mut(block)
                        && !raw.is_empty()
                    {
                        *certain = now;
                    }
                }
            }
            model.states[number as usize] = state.clone();
        }
    }
    drop(ext4);
    model
}

/// Crashes at every barrier, with random parts of what follows it, and compares.
fn crash_everywhere(form: &Form, seed: u64, transactions: u32, judged: usize) {
    let image = Image::make(form);
    let recorder = Recorder::over(&image.bytes);
    let ext4 = open(&lun_over(recorder.clone()));
    recorder.slow_writes(Duration::from_micros(100));
    let model = work(ext4, &recorder, &image, seed, transactions);
    let operations = recorder.operations();
    let barriers: Vec<usize> =
        (0..operations.len()).filter(|at| matches!(operations[*at], Op::Sync)).collect();
    let mut random = Random(seed ^ 0xABCD);
    let mut bytes = image.bytes.clone();
    let mut done = 0;
    let counter = image.data_blocks[0];
    let mut replays = 0;
    for (index, barrier) in barriers.iter().enumerate() {
        operations[done..*barrier].iter().for_each(|op| op.apply(&mut bytes));
        done = *barrier;
        let next = barriers.get(index + 1).copied().unwrap_or(operations.len());
        let mut crashed = bytes.clone();
        if index % 3 != 0 {
            for op in &operations[*barrier..next] {
                op.apply_in_part(&mut crashed, image.block_size, &mut random);
            }
        }
        let lun = lun_over(Recorder::over(&crashed));
        let (_, log, recovered) = recover(&lun).unwrap();
        assert_eq!(log.used(), 0);
        replays += usize::from(recovered.transactions > 0);
        let ours = support::bytes_of(&lun);
        // What recovery has read must be there again for the next one.
        model.check(&ours, image.block_size, counter, *barrier);
        if index % barriers.len().div_ceil(judged) == 0 {
            assert_same(&ours, &replay_by_e2fsck(&crashed), &image, &format!("at {barrier}"));
            check_clean(&ours);
        }
    }
    let mut logged = 0;
    for op in &operations {
        let Op::Write(offset, raw) = op else { continue };
        if image.is_journal(*offset) {
            logged += raw.len() / image.block_size;
            // What is logged never looks like one of the journal's own blocks.
            let own = raw.chunks(image.block_size).filter_map(super::format::header);
            assert!(own.into_iter().all(|(kind, _)| kind <= 5), "a logged block was not escaped");
        }
    }
    assert!(logged > 1024 + 200, "{logged} blocks: the log never wrapped around");
    assert!(replays > 0, "no crash needed recovery");
    assert!(barriers.len() > 20, "{} barriers", barriers.len());
}

#[test]
fn crashes_leave_what_was_acknowledged_4k_csum_v3() {
    crash_everywhere(&Form::default(), 1, 120, 6);
}

#[test]
fn crashes_leave_what_was_acknowledged_1k_no_checksums() {
    let form = Form {
        block_size: 1024,
        features: "extent,has_journal,ext_attr,dir_index,filetype",
        ..Form::default()
    };
    crash_everywhere(&form, 2, 160, 8);
}

#[test]
fn crashes_leave_what_was_acknowledged_2k_csum_v3_32_bit() {
    let features = "extent,has_journal,ext_attr,dir_index,filetype,metadata_csum,extra_isize";
    crash_everywhere(&Form { block_size: 2048, features, ..Form::default() }, 3, 120, 6);
}

#[test]
fn crashes_leave_what_was_acknowledged_csum_v2() {
    let features = "extent,has_journal,ext_attr,dir_index,filetype,64bit";
    crash_everywhere(&Form { features, journal_csum_v2: true, ..Form::default() }, 4, 140, 6);
}

/// The log is much smaller than what goes through it, from several threads that never sync.
#[test]
fn a_full_journal_makes_room_and_never_hangs() {
    let image = Image::make(&Form { block_size: 1024, ..Form::default() });
    let recorder = Recorder::over(&image.bytes);
    let ext4 = open(&lun_over(recorder.clone()));
    let refused = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4usize)
            .map(|thread| {
                let (ext4, image) = (&ext4, &image);
                scope.spawn(move || {
                    let mut refused = 0;
                    for round in 0..120u32 {
                        let context = if round % 2 == 0 { WAIT } else { NO_WAIT };
                        let operation = |tx: &mut super::super::tx::Tx<'_>| {
                            for index in 0..50 {
                                let block =
                                    image.data_blocks[thread * 200 + (round as usize * 13 + index) % 200];
                                tx.modify(BlockNo(block))?.fill(round as u8);
                            }
                            Ok(())
                        };
                        match ext4.with_tx(context, 60, operation) {
                            Err(FsError::WouldBlock) => {
                                refused += 1;
                                ext4.with_tx(WAIT, 60, operation).unwrap();
                            }
                            outcome => outcome.unwrap(),
                        }
                    }
                    refused
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>()
    });
    assert!(refused > 0, "nobody had to wait: the journal was never full");
    ext4.close().unwrap();
    let bytes = recorder.bytes();
    check_clean(&bytes);
    let status = ext4.status();
    assert_eq!((status.journal_used_blocks, status.running_blocks), (0, 0));
    assert!(status.commits > 10);
    drop(ext4);
    for thread in 0..4 {
        let block = image.data_blocks[thread * 200 + (119 * 13 + 49) % 200];
        assert_eq!(bytes[block as usize * 1024 + 9], 119);
    }
}

/// What a small fsync costs: one journal write, one commit block, two flushes.
#[test]
fn a_sync_costs_two_writes_and_two_flushes() {
    let image = Image::make(&Form::default());
    let recorder = Recorder::over(&image.bytes);
    let ext4 = open(&lun_over(recorder.clone()));
    let before = recorder.len();
    ext4.with_tx(WAIT, 8, |tx| {
        for block in &image.data_blocks[..4] {
            tx.modify(BlockNo(*block))?.fill(1);
        }
        tx.touched(InodeNo(20), true);
        tx.touched(InodeNo(21), false);
        Ok(())
    })
    .unwrap();
    let (sender, receiver) = mpsc::channel();
    ext4.sync(Some(InodeNo(20)), true, Box::new(move |outcome| sender.send(outcome).unwrap()));
    receiver.recv().unwrap().unwrap();
    let operations = recorder.operations().split_off(before);
    let lengths: Vec<usize> =
        operations.iter().map(|op| if let Op::Write(_, raw) = op { raw.len() } else { 0 }).collect();
    assert_eq!(lengths, [5 * 4096, 0, 4096, 0]);
    // Nothing of this inode runs: a flush is enough.
    for (inode, datasync) in [(20, false), (77, true)] {
        let before = recorder.len();
        let (sender, receiver) = mpsc::channel();
        ext4.sync(Some(InodeNo(inode)), datasync, Box::new(move |outcome| sender.send(outcome).unwrap()));
        receiver.recv().unwrap().unwrap();
        assert!(matches!(recorder.operations()[before..], [Op::Sync]));
    }
    // Times alone: fdatasync does not wait for them, fsync does.
    ext4.with_tx(WAIT, 8, |tx| {
        tx.modify(BlockNo(image.data_blocks[0]))?.fill(2);
        tx.touched(InodeNo(21), false);
        Ok(())
    })
    .unwrap();
    for (datasync, commits) in [(true, 1), (false, 2)] {
        let (sender, receiver) = mpsc::channel();
        ext4.sync(Some(InodeNo(21)), datasync, Box::new(move |outcome| sender.send(outcome).unwrap()));
        receiver.recv().unwrap().unwrap();
        assert_eq!(ext4.status().commits, commits);
    }
}

#[test]
fn syncs_that_wait_together_share_commits() {
    let image = Image::make(&Form::default());
    let recorder = Recorder::over(&image.bytes);
    recorder.slow_syncs(Duration::from_millis(3));
    let ext4 = open(&lun_over(recorder.clone()));
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (ext4, image) = (&ext4, &image);
            scope.spawn(move || {
                for _ in 0..5 {
                    let change = |tx: &mut super::super::tx::Tx<'_>| {
                        tx.modify(BlockNo(image.data_blocks[thread]))?[0] += 1;
                        Ok(())
                    };
                    ext4.with_tx(WAIT, 8, change).unwrap();
                    sync(ext4).unwrap();
                }
            });
        }
    });
    let commits = ext4.status().commits;
    assert!(commits <= 40, "{commits} commits for 80 syncs");
    ext4.close().unwrap();
}

/// Each write and each sync of a run fails in turn: what had been acknowledged is there, nothing is acknowledged afterwards.
#[test]
fn a_failed_request_latches() {
    let image = Image::make(&Form::default());
    for fail_at in (0..40).step_by(3) {
        let recorder = Recorder::over(&image.bytes);
        let ext4 = open(&lun_over(recorder.clone()));
        recorder.fail_at(recorder.len() + fail_at);
        let mut acknowledged = 0;
        let mut failed = false;
        for number in 1..=20u32 {
            let changed = ext4.with_tx(WAIT, 8, |tx| {
                tx.modify(BlockNo(image.data_blocks[0]))?.copy_from_slice(&content(4096, number, false));
                Ok(())
            });
            if failed {
                assert!(matches!(changed, Err(FsError::Latched(_))));
                assert!(sync(&ext4).is_err());
                continue;
            }
            changed.unwrap();
            match sync(&ext4) {
                Ok(()) => acknowledged = number,
                Err(_) => failed = true,
            }
        }
        assert!(failed, "request {fail_at} did not fail");
        assert!(ext4.status().read_only.is_some());
        assert!(ext4.close().is_err());
        assert!(ext4.close().is_err());
        drop(ext4);
        let lun = lun_over(Recorder::over(&recorder.bytes()));
        recover(&lun).unwrap();
        let bytes = support::bytes_of(&lun);
        let found = be32(&bytes[image.data_blocks[0] as usize * 4096..], 4);
        // What nothing has written yet is the file's first content.
        let found = if found > 20 { 0 } else { found };
        assert!(found >= acknowledged, "{found} found, {acknowledged} acknowledged");
    }
}

#[test]
fn close_leaves_a_clean_image_and_open_counts_the_mount() {
    let image = Image::make(&Form::default());
    let recorder = Recorder::over(&image.bytes);
    let lun = lun_over(recorder.clone());
    for mount in 1..=3u16 {
        let ext4 = open(&lun);
        let raw = recorder.bytes()[1024..2048].to_vec();
        assert_eq!(le32(&raw, 0x60) & 4, 4, "needs_recovery while mounted");
        ext4.with_tx(WAIT, 8, |tx| {
            let mut inode = tx.core.inode(InodeNo::ROOT)?;
            inode.uid = u32::from(mount);
            tx.put_inode(&inode)
        })
        .unwrap();
        ext4.close().unwrap();
        let bytes = recorder.bytes();
        assert_eq!(le32(&bytes[1024..], 0x60) & 4, 0, "needs_recovery after close");
        assert_eq!(le16(&bytes[1024..], 0x34), mount, "mount count");
        check_clean(&bytes);
        let changed = ext4.with_tx(WAIT, 8, |_| Ok(()));
        assert!(matches!(changed, Err(FsError::Latched(_))));
        sync(&ext4).unwrap();
        assert_eq!(ext4.with_core(|core| core.inode(InodeNo::ROOT)).unwrap().uid, u32::from(mount));
    }
    // Read-only: not a byte is written.
    let before = recorder.len();
    let ext4 = Ext4::open(lun.clone(), Options { read_only: true, ..Options::default() }).unwrap();
    assert!(matches!(ext4.with_tx(WAIT, 8, |_| Ok(())), Err(FsError::Latched(_))));
    sync(&ext4).unwrap();
    assert!(recorder.operations()[before..].iter().all(|op| matches!(op, Op::Sync)));
    // Remounted for changes and back.
    ext4.set_read_only(false).unwrap();
    ext4.with_tx(WAIT, 8, |tx| tx.modify(BlockNo(image.data_blocks[0])).map(|raw| raw.fill(9))).unwrap();
    ext4.set_read_only(true).unwrap();
    assert!(ext4.with_tx(WAIT, 8, |_| Ok(())).is_err());
    check_clean(&recorder.bytes());
    assert_eq!(recorder.bytes()[image.data_blocks[0] as usize * 4096], 9);
    ext4.set_read_only(false).unwrap();
    ext4.with_tx(WAIT, 8, |tx| tx.modify(BlockNo(image.data_blocks[0])).map(|raw| raw.fill(10))).unwrap();
    ext4.close().unwrap();
    check_clean(&recorder.bytes());
}

/// Left alone, a transaction commits, versions come home and the journal empties, without a sync or a close.
#[test]
fn an_idle_journal_is_brought_home() {
    let image = Image::make(&Form::default());
    let recorder = Recorder::over(&image.bytes);
    let ext4 = open(&lun_over(recorder.clone()));
    let block = image.data_blocks[3];
    ext4.with_tx(WAIT, 8, |tx| tx.modify(BlockNo(block)).map(|raw| raw.fill(0x5A))).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while ext4.status().commits == 0 {
        assert!(Instant::now() < until, "never committed");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_ne!(recorder.bytes()[block as usize * 4096], 0x5A);
    let until = Instant::now() + Duration::from_secs(20);
    while ext4.status().journal_used_blocks > 0 {
        assert!(Instant::now() < until, "never brought home");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(recorder.bytes()[block as usize * 4096], 0x5A);
    // And the log goes on from there.
    ext4.with_tx(WAIT, 8, |tx| tx.modify(BlockNo(block)).map(|raw| raw.fill(0x5B))).unwrap();
    sync(&ext4).unwrap();
    drop(ext4);
    let lun = lun_over(Recorder::over(&recorder.bytes()));
    assert_eq!(recover(&lun).unwrap().2.transactions, 1);
    assert_eq!(support::bytes_of(&lun)[block as usize * 4096], 0x5B);
}

#[test]
fn damage_is_recorded_and_ends_changes_where_the_superblock_says_so() {
    for (behaviour, stops) in [("continue", false), ("remount-ro", true)] {
        let image = Image::make(&Form { errors: behaviour, ..Form::default() });
        let recorder = Recorder::over(&image.bytes);
        let ext4 = open(&lun_over(recorder.clone()));
        let damaged = FsError::corrupt("test", Some(InodeNo(12)), Some(BlockNo(77)));
        assert!(ext4.with_core(|_| Err::<(), _>(damaged)).is_err());
        assert_eq!(ext4.status().read_only.is_some(), stops);
        assert_eq!(ext4.with_tx(WAIT, 8, |_| Ok(())).is_err(), stops);
        assert_eq!(ext4.set_read_only(false).is_err(), stops);
        ext4.close().unwrap();
        let raw = recorder.bytes()[1024..2048].to_vec();
        assert_eq!(le16(&raw, 0x3A) & 2, 2, "state");
        assert_eq!((le32(&raw, 0x194), le32(&raw, 0x19C), le32(&raw, 0x1A0)), (1, 12, 77));
    }
}

#[test]
fn features_that_are_not_known_are_refused_by_name() {
    let image = Image::make(&Form::default());
    let journal = image.journal_block as usize * 4096;
    for (bits, name) in [(0x4, "async_commit"), (0x40, "0x40")] {
        let mut bytes = image.bytes.clone();
        let incompat = be32(&bytes[journal..], 0x28) | bits;
        put_be32(&mut bytes[journal..], 0x28, incompat);
        let refused = Ext4::open(lun_over(Recorder::over(&bytes)), Options::default());
        let Err(FsError::Unsupported(text)) = refused.map(|_| ()) else { panic!("{name} was not refused") };
        assert!(text.contains(name), "{text}");
    }
}

/// A transaction whose commit block came through and whose descriptor did not survive is no torn end: refused, not dropped.
#[test]
fn damage_in_the_log_is_told_from_its_end() {
    let image = Image::make(&Form::default());
    let recorder = Recorder::over(&image.bytes);
    let ext4 = open(&lun_over(recorder.clone()));
    let journal_writes = |from: usize| -> Vec<usize> {
        let operations = recorder.operations();
        let offset = |op: &Op| if let Op::Write(offset, _) = op { Some(*offset as usize) } else { None };
        operations[from..].iter().filter_map(offset).collect()
    };
    let before = recorder.len();
    for number in 1..=2 {
        let block = BlockNo(image.data_blocks[0]);
        ext4.with_tx(WAIT, 8, |tx| tx.modify(block).map(|raw| raw.fill(number))).unwrap();
        sync(&ext4).unwrap();
    }
    drop(ext4);
    let writes = journal_writes(before);
    let (second_descriptor, second_commit) = (writes[2], writes[3]);
    let recovered = |damage: usize| {
        let mut bytes = recorder.bytes();
        bytes[damage] ^= 1;
        let lun = lun_over(Recorder::over(&bytes));
        recover(&lun).map(|(_, _, recovered)| (recovered.transactions, support::bytes_of(&lun)))
    };
    let (transactions, bytes) = recovered(second_commit + 100).unwrap();
    assert_eq!((transactions, bytes[image.data_blocks[0] as usize * 4096]), (1, 1));
    assert!(matches!(recovered(second_descriptor + 100).map(|_| ()), Err(FsError::Corrupt { .. })));
    // The last version of the block.
    assert!(matches!(recovered(second_descriptor + 4096 + 100).map(|_| ()), Err(FsError::Corrupt { .. })));
}

/// A journal that the kernel has left in the middle of work.
#[test]
fn a_journal_left_by_the_kernel_replays_as_by_e2fsck() {
    for form in [
        Form::default(),
        Form { block_size: 1024, features: "extent,has_journal,filetype", ..Form::default() },
    ] {
        let image = Image::make(&form);
        let has_orphans = |crashed: &[u8]| {
            let lun = lun_over(Recorder::over(crashed));
            recover(&lun).unwrap();
            le32(&support::bytes_of(&lun)[1024..], 0xE8) != 0
        };
        let Some(crashed) = support::left_by_kernel(&image, has_orphans) else { return };
        let lun = lun_over(Recorder::over(&crashed));
        let (_, _, recovered) = recover(&lun).unwrap();
        assert!(recovered.transactions > 0, "the kernel left nothing to replay");
        let ours = support::bytes_of(&lun);
        assert_same(&ours, &replay_by_e2fsck(&crashed), &image, "as the kernel left it");
        // And the kernel takes what we go on with: more transactions, a crash, e2fsck again.
        let recorder = Recorder::over(&ours);
        let ext4 = open(&lun_over(recorder.clone()));
        ext4.with_tx(WAIT, 8, |tx| {
            let mut inode = tx.core.inode(InodeNo::ROOT)?;
            inode.gid = 4242;
            tx.put_inode(&inode)
        })
        .unwrap();
        sync(&ext4).unwrap();
        drop(ext4);
        let bytes = recorder.bytes();
        let lun = lun_over(Recorder::over(&bytes));
        assert_eq!(recover(&lun).unwrap().2.transactions, 1);
        let ours = support::bytes_of(&lun);
        assert_same(&ours, &replay_by_e2fsck(&bytes), &image, "as we left it");
        assert_eq!(support::root_group_by_kernel(&bytes), 4242, "the kernel replays what we left");
    }
}

/// Whatever the journal holds, opening ends with a result.
#[test]
fn damaged_journals_never_panic() {
    let features = "extent,has_journal,ext_attr,dir_index,filetype";
    let (mut replayed, mut refused) = (0, 0);
    for form in [Form { block_size: 1024, features, ..Form::default() }, Form::default()] {
        let image = Image::make(&form);
        let recorder = Recorder::over(&image.bytes);
        work(open(&lun_over(recorder.clone())), &recorder, &image, 5, 25);
        let crashed = recorder.bytes();
        for seed in 0..60 {
            let mut random = Random(seed);
            let mut bytes = crashed.clone();
            // Mostly among the first blocks, where superblock, descriptors and revoke blocks are.
            for _ in 0..1 + random.below(12) {
                let block = random.below(60).min(random.below(60));
                let inside = random.below(1024).min(random.below(1024));
                bytes[(image.journal_block as usize + block) * image.block_size + inside] =
                    random.next() as u8;
            }
            match recover(&lun_over(Recorder::over(&bytes))) {
                Ok(_) => replayed += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(replayed > 5 && refused > 5, "{replayed} replayed, {refused} refused");
}

/// Blocks are discarded once the transaction that freed them is durable, not before, and only they.
#[test]
fn freed_blocks_are_discarded_behind_their_commit() {
    let image = Image::make(&Form::default());
    let recorder = Recorder::over(&image.bytes);
    let ext4 = open(&lun_over(recorder.clone()));
    let file = ext4.lookup(InodeNo::ROOT, b"file").unwrap();
    ext4.unlink(WAIT, InodeNo::ROOT, b"file").unwrap();
    ext4.evict(WAIT, file.ino).unwrap();
    let before = recorder.len();
    ext4.close().unwrap();
    check_clean(&recorder.bytes());
    let operations = recorder.operations().split_off(before);
    let first = operations.iter().position(|op| matches!(op, Op::Discard(..))).unwrap();
    let syncs = operations[..first].iter().filter(|op| matches!(op, Op::Sync)).count();
    assert!(syncs >= 2, "discarded before the commit was durable");
    let discarded: std::collections::BTreeSet<u64> = operations
        .iter()
        .filter_map(|op| if let Op::Discard(offset, length) = op { Some((*offset, *length)) } else { None })
        .flat_map(|(offset, length)| offset / 4096..(offset + length) / 4096)
        .collect();
    assert!(image.data_blocks.iter().all(|block| discarded.contains(block)));
    assert!(discarded.len() <= image.data_blocks.len() + 2, "{} blocks discarded", discarded.len());
}
