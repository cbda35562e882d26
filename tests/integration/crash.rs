//! kill -9 of the mount's process.

use crate::Case;
use crate::support::{Pair, Setup, assert_identical, e2fsck_clean, tree, wait_until};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub(crate) const CASES: &[Case] = &[
    ("a_killed_mount_recovers_by_itself", a_killed_mount_recovers_by_itself),
    ("twenty_kills_at_random_moments", twenty_kills_at_random_moments),
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

/// Files numbered in order, each fsynced; `confirmed`: how many have been.
fn fsyncing_writer(mnt: &std::path::Path, round: usize, confirmed: &AtomicUsize, stop: &AtomicBool) {
    for index in 0.. {
        let path = mnt.join(format!("r{round}/f{index}"));
        let written = fs::create_dir_all(path.parent().expect("a parent"))
            .and_then(|()| fs::write(&path, vec![index as u8; 1000 + index * 37 % 20_000]))
            .and_then(|()| fs::File::open(&path)?.sync_all())
            .and_then(|()| fs::File::open(path.parent().expect("a parent"))?.sync_all());
        if written.is_err() || stop.load(Ordering::Acquire) {
            return;
        }
        confirmed.store(index + 1, Ordering::Release);
    }
}

/// Names come and go without any fsync.
fn restless_writer(mnt: &std::path::Path, stop: &AtomicBool) {
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

fn twenty_kills_at_random_moments() {
    let mut pair = Pair::start(Setup::default());
    let mut expected: Vec<usize> = Vec::new();
    for round in 0..20 {
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
        expected.push(confirmed.load(Ordering::Acquire));
        e2fsck_clean(&pair.image());
        pair.mount();
        for (round, count) in expected.iter().enumerate() {
            for index in 0..*count {
                let bytes = fs::read(pair.mnt().join(format!("r{round}/f{index}")))
                    .expect("what was fsynced is there");
                assert_eq!(
                    bytes,
                    vec![index as u8; 1000 + index * 37 % 20_000],
                    "round {round}, file {index}"
                );
            }
        }
    }
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    e2fsck_clean(&pair.image());
    assert_identical(&pair.image(), &pair.mirror());
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
