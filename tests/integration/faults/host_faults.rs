//! What becomes of processes and disks.

use super::stage::{Stage, holds};
use crate::support::judge::{copy_of, difference};
use crate::support::machine::tool;
use crate::support::{e2fsck_clean, loop_mounted, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

pub(super) fn peer_killed(stage: &mut Stage) {
    stage.pair.kill_peer();
    stage.judge();
    stage.wait_down();
    stage.work_during_outage();
    stage.judge();
    stage.pair.start_peer();
}

/// kill -9, a look at both images, a new mount, and the resync of what the stop has left in doubt.
pub(super) fn primary_killed(stage: &mut Stage) {
    kill_primary(stage);
    stage.judge();
    stage.link.unplug();
    remount(stage);
    stage.judge_in_resync();
}

pub(super) fn both_killed(stage: &mut Stage) {
    kill_primary(stage);
    stage.pair.kill_peer();
    stage.judge();
    stage.pair.start_peer();
    remount(stage);
}

fn kill_primary(stage: &mut Stage) {
    stage.pair.kill_mount();
    if let Some(mut workload) = stage.workload.take() {
        workload.end();
    }
    e2fsck_clean(&stage.pair.image());
}

fn remount(stage: &mut Stage) {
    stage.pair.mount();
    holds(&stage.pair.mnt(), stage.confirmed.load(Ordering::Acquire));
    stage.work();
}

pub(super) fn full_mirror(stage: &mut Stage) {
    for index in 0..4 {
        fs::write(stage.pair.mnt().join(format!("large-{index}")), vec![7; 6 << 20])
            .expect("the primary goes on");
    }
    wait_until("the peer's error", || {
        let reason =
            stage.pair.status()["mount"]["link"]["reason"].as_str().unwrap_or_default().to_lowercase();
        reason.contains("space")
    });
    stage.judge();
    stage.work_during_outage();
    stage.judge();
    stage.mirror_disk.as_ref().expect("its disk").resize(200);
}

pub(super) fn full_queue(stage: &mut Stage) {
    stage.link.unplug();
    stage.wait_down();
    for index in 0..3 {
        fs::write(stage.pair.mnt().join(format!("large-{index}")), vec![7; 4 << 20])
            .expect("the primary goes on");
    }
    let given_up = || stage.pair.status()["mount"]["log"]["queue_given_up"].is_string();
    wait_until("the queue to be given up", given_up);
    stage.work_during_outage();
    stage.judge();
    stage.judge_in_resync();
}

fn is_segment(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("segment-"))
}

/// Files of the queue's sled index.
fn is_index(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "index")
        && path.metadata().is_ok_and(|file| file.len() > 0)
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the queue").flatten() {
        if entry.path().is_dir() {
            files(&entry.path(), out);
        } else {
            out.push(entry.path());
        }
    }
}

pub(super) fn damaged_segment(stage: &mut Stage) {
    damaged(stage, is_segment);
    stage.judge_in_resync();
}

pub(super) fn damaged_index(stage: &mut Stage) {
    damaged(stage, is_index);
}

/// A disk that returns other bytes than were written, found at the next mount.
fn damaged(stage: &mut Stage, which: fn(&Path) -> bool) {
    stage.link.unplug();
    stage.wait_down();
    fs::write(stage.pair.mnt().join("large"), vec![5; 2 << 20]).expect("writing");
    stage.work_during_outage();
    if let Some(mut workload) = stage.workload.take() {
        workload.end();
    }
    stage.pair.umount();
    let mut all = Vec::new();
    files(&stage.pair.state().join("queue"), &mut all);
    let chosen: Vec<PathBuf> = all.iter().filter(|path| which(path)).cloned().collect();
    assert!(!chosen.is_empty(), "{all:?}");
    for path in &chosen {
        let mut bytes = fs::read(path).expect("reading");
        let middle = bytes.len() / 2;
        let end = (middle + 64).min(bytes.len());
        bytes[middle..end].iter_mut().for_each(|byte| *byte ^= 0xa5);
        fs::write(path, bytes).expect("damaging");
    }
    stage.judge();
    stage.pair.mount();
    holds(&stage.pair.mnt(), stage.confirmed.load(Ordering::Acquire));
    stage.work();
}

/// A file that never was, and a damaged file system: both are found.
pub(super) fn judges_fail(stage: &mut Stage) {
    use std::os::unix::fs::FileExt as _;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    stage.judge();
    let copy = stage.mirror_now();
    let beyond = stage.durable + 1000;
    let found = catch_unwind(AssertUnwindSafe(|| loop_mounted(&copy.path, "loop", |mnt| holds(mnt, beyond))));
    assert!(found.is_err(), "a missing file was not noticed");
    // The free block count of the first group's descriptor, which its checksum covers.
    let file = fs::OpenOptions::new().read(true).write(true).open(&copy.path).expect("the copy");
    let mut bytes = [0; 2];
    file.read_exact_at(&mut bytes, 4096 + 12).expect("reading");
    file.write_all_at(&bytes.map(|byte| byte ^ 0x55), 4096 + 12).expect("damaging");
    assert!(catch_unwind(|| e2fsck_clean(&copy.path)).is_err(), "a bad group descriptor was not noticed");
    file.write_all_at(&bytes, 4096 + 12).expect("undoing");
    e2fsck_clean(&copy.path);
    let clear = tool("debugfs").args(["-w", "-R", "clri f0"]).arg(&copy.path).output().expect("debugfs");
    assert!(clear.status.success());
    assert!(catch_unwind(|| e2fsck_clean(&copy.path)).is_err(), "a lost inode was not noticed");
    let one = copy_of(&copy.path);
    file.write_all_at(b"x", 40 << 20).expect("changing");
    assert!(difference(&copy.path, &one.path).is_some(), "a difference was not noticed");
}
