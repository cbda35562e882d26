//! kill -9 of the mount's process.
//!
//! `MIRRORFS_KILLS=N` sets how often `kills_at_random_moments` kills (20 without it), for long runs. It ends with a line for
//! scripts: `kills: done=N failed=F`.

use crate::Case;
use crate::support::{Pair, Setup, assert_identical, e2fsck_clean, tree, wait_until};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub(crate) const CASES: &[Case] = &[
    ("a_killed_mount_recovers_by_itself", a_killed_mount_recovers_by_itself),
    ("kills_at_random_moments", kills_at_random_moments),
    ("both_hosts_killed", both_hosts_killed),
];

fn a_killed_mount_recovers_by_itself() {
    let mut pair = Pair::start(Setup::default());
    let source = tempfile::tempdir_in("/dev/shm").expect("a directory");
    tree::make(source.path(), 1500, 41);
    fs::write(pair.mnt().join("precious"), b"fsynced before the crash").expect("writing");
    fs::File::open(pair.mnt().join("precious")).and_then(|file| file.sync_all()).expect("fsync");
    let target = pair.mnt().join("copy");
    let mut copy = std::process::Command::new("cp")
        .arg("-a")
        .arg(source.path())
        .arg(&target)
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("cp");
    wait_until("the copy to be under way", || target.join("d3").exists());
    pair.kill_mount();
    assert!(!copy.wait().expect("cp").success(), "the copy was cut off");
    e2fsck_clean(&pair.image());
    // The stale mount point is cleared by the next mount.
    pair.mount();
    assert_eq!(fs::read(pair.mnt().join("precious")).expect("reading"), b"fsynced before the crash");
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    e2fsck_clean(&pair.image());
    assert_identical(&pair.image(), &pair.mirror());
}

/// Kills without a wish.
const KILLS: usize = 20;
/// Rounds whose files are kept, so that a long run does not fill the image.
const ROUNDS_KEPT: usize = 8;

fn kills_wanted() -> usize {
    match std::env::var("MIRRORFS_KILLS") {
        Ok(text) => match text.parse() {
            Ok(kills) if kills > 0 => kills,
            _ => panic!("MIRRORFS_KILLS={text} is not a number of kills"),
        },
        Err(_) => KILLS,
    }
}

/// Content of a file: different in each round and file, and at each place of it.
fn content(round: usize, index: usize) -> Vec<u8> {
    let length = 1000 + index * 37 % 20_000;
    (0..length).map(|at| (at / 512 * 31 + round * 7 + index * 13 + 1) as u8).collect()
}

/// Files numbered in order, each fsynced; `confirmed`: how many have been.
fn fsyncing_writer(mnt: &Path, round: usize, confirmed: &AtomicUsize, stop: &AtomicBool) {
    for index in 0.. {
        let path = mnt.join(format!("r{round}/f{index}"));
        let written = fs::create_dir_all(path.parent().expect("a parent"))
            .and_then(|()| fs::write(&path, content(round, index)))
            .and_then(|()| fs::File::open(&path)?.sync_all())
            .and_then(|()| fs::File::open(path.parent().expect("a parent"))?.sync_all());
        if written.is_err() || stop.load(Ordering::Acquire) {
            return;
        }
        confirmed.store(index + 1, Ordering::Release);
    }
}

/// Names come and go without any fsync.
fn restless_writer(mnt: &Path, stop: &AtomicBool) {
    for index in 0.. {
        let name = |kind: &str, number: usize| mnt.join(format!("restless-{kind}-{}", number % 50));
        let done = fs::write(name("a", index), vec![3; index * 997 % 40_000])
            .and_then(|()| fs::rename(name("a", index), name("b", index + 7)))
            .and_then(|()| if index % 3 == 0 { fs::remove_file(name("b", index + 7)) } else { Ok(()) });
        if done.is_err() || stop.load(Ordering::Acquire) {
            return;
        }
    }
}

/// What was fsynced in a round is there, with its content.
fn assert_round(mnt: &Path, round: usize, confirmed: usize) {
    for index in 0..confirmed {
        let bytes = fs::read(mnt.join(format!("r{round}/f{index}")))
            .unwrap_or_else(|error| panic!("round {round}: file {index} of {confirmed} fsynced: {error}"));
        assert!(bytes == content(round, index), "round {round}: content of file {index} of {confirmed}");
    }
}

/// Some writing, a kill in the middle of it, recovery, and everything looked at. Gives how many files were fsynced.
fn kill_once(pair: &mut Pair, round: usize) -> usize {
    let (confirmed, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mnt = pair.mnt();
    std::thread::scope(|scope| {
        scope.spawn(|| fsyncing_writer(&mnt, round, &confirmed, &stop));
        scope.spawn(|| restless_writer(&mnt, &stop));
        wait_until("some progress", || confirmed.load(Ordering::Acquire) > 3);
        std::thread::sleep(std::time::Duration::from_millis((round as u64 * 37) % 120));
        pair.kill_mount();
        stop.store(true, Ordering::Release);
    });
    // As e2fsck's replay finds it, then as our own does.
    e2fsck_clean(&pair.image());
    pair.mount();
    assert_round(&mnt, round, confirmed.load(Ordering::Acquire));
    pair.with_mount_frozen(|| e2fsck_clean(&pair.image()));
    // The other kills come while the mirror is still being brought up.
    if round.is_multiple_of(2) {
        pair.wait_for_verdict("in-sync");
        pair.sync();
        pair.with_peer_frozen(|| e2fsck_clean(&pair.mirror()));
    }
    confirmed.load(Ordering::Acquire)
}

fn kills_at_random_moments() {
    /// Says how it went, also when an assertion has ended it.
    struct Tally {
        done: usize,
        wanted: usize,
    }
    impl Drop for Tally {
        fn drop(&mut self) {
            println!("kills: done={} failed={}", self.done, usize::from(std::thread::panicking()));
        }
    }
    let mut pair = Pair::start(Setup::default());
    let mut tally = Tally { done: 0, wanted: kills_wanted() };
    let mut kept = std::collections::VecDeque::new();
    let mut fsynced = 0;
    for round in 0..tally.wanted {
        let confirmed = kill_once(&mut pair, round);
        fsynced += confirmed;
        kept.push_back((round, confirmed));
        for (round, confirmed) in &kept {
            assert_round(&pair.mnt(), *round, *confirmed);
        }
        if kept.len() > ROUNDS_KEPT
            && let Some((oldest, _)) = kept.pop_front()
        {
            fs::remove_dir_all(pair.mnt().join(format!("r{oldest}"))).expect("removing");
        }
        tally.done += 1;
    }
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    e2fsck_clean(&pair.image());
    e2fsck_clean(&pair.mirror());
    assert_identical(&pair.image(), &pair.mirror());
    assert_eq!(tally.done, tally.wanted);
    assert!(fsynced >= 4 * tally.wanted, "{fsynced} files fsynced");
}

fn both_hosts_killed() {
    let mut pair = Pair::start(Setup::default());
    pair.wait_for_verdict("in-sync");
    for round in 0..3 {
        tree::make(&pair.mnt().join(format!("tree-{round}")), 120, 50 + round);
        fs::File::open(pair.mnt()).and_then(|dir| dir.sync_all()).expect("fsync");
        tree::make(&pair.mnt().join(format!("more-{round}")), 40, 60 + round);
        pair.kill_mount();
        pair.kill_peer();
        e2fsck_clean(&pair.image());
        e2fsck_clean(&pair.mirror());
        pair.start_peer();
        pair.mount();
        pair.wait_for_verdict("in-sync");
    }
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}
