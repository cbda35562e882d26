//! Who writes and who follows changes: by the operator's command, and only by it.

use crate::Case;
use crate::support::{
    FaultyLink, Pair, Setup, Way, assert_identical, e2fsck_clean, loop_mounted, tree, wait_until,
};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

pub(crate) const CASES: &[Case] = &[
    ("a_mirror_takes_over_and_the_old_primary_follows", takes_over),
    ("a_switch_in_good_order_leaves_no_copy", switch),
    ("a_promotion_can_be_taken_back", taken_back),
    ("the_middle_of_a_resync_leads_back_to_where_it_began", out_of_a_resync),
    ("what_is_in_use_or_incomplete_is_neither_promoted_nor_demoted", refused),
];

/// A pair in sync, with a tree in it.
fn in_sync() -> Pair {
    let pair = Pair::start(Setup { size: "64M", ..Setup::default() });
    pair.wait_for_verdict("in-sync");
    tree::make(&pair.mnt().join("tree"), 60, 5);
    pair.sync();
    pair
}

fn node_dir(pair: &Pair) -> PathBuf {
    pair.peer_dir().join("node-a")
}

fn on(pair: &Pair, command: &str, dir: &Path, more: &[&str]) -> Output {
    pair.command(&[&[command, &dir.display().to_string()], more].concat())
}

#[track_caller]
fn done(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[track_caller]
fn fails(output: &Output, code: i32, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(words), "{text}");
}

fn write(pair: &Pair, name: &str) {
    let path = pair.mnt().join(name);
    fs::write(&path, name.repeat(5000)).expect("writing");
    fs::File::open(path).and_then(|file| file.sync_all()).expect("fsync");
}

/// The other host as primary, with what was promoted as its state, and what was demoted as its mirror.
fn changed_over(old: &Pair) -> Pair {
    let mut new = Pair::prepare(Setup { size: "64M", peer: false, ..Setup::default() });
    fs::rename(node_dir(old), new.state()).expect("the promoted images");
    new.mount();
    write(&new, "new");
    new
}

/// The old primary's images become those of the new one.
#[track_caller]
fn follows(old: &Pair, mut new: Pair) {
    fs::create_dir(new.peer_dir()).expect("a directory");
    fs::rename(old.state(), node_dir(&new)).expect("the demoted images");
    new.start_peer();
    new.wait_for_verdict("in-sync");
    write(&new, "later");
    new.sync();
    new.umount();
    assert_identical(&new.image(), &new.mirror());
    e2fsck_clean(&new.mirror());
    loop_mounted(&new.mirror(), "ro,loop", |mnt| {
        assert!(mnt.join("new").exists() && mnt.join("later").exists() && mnt.join("tree").exists());
        assert!(!mnt.join("alone").exists(), "given up");
    });
}

/// The copies that a demotion has kept.
fn copies(state: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state).expect("the state directory").flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_string_lossy().contains(".diverged-")).collect()
}

fn takes_over() {
    let mut old = in_sync();
    old.kill_mount();
    let said = done(&on(&old, "promote", &node_dir(&old), &[]));
    assert!(said.contains("mirrorfs mount") && said.contains("--state-dir"), "{said}");
    assert!(done(&on(&old, "promote", &node_dir(&old), &[])).contains("already"));

    // The old primary comes back, and must not write to what was promoted.
    let before = fs::read(node_dir(&old).join("data.img")).expect("the promoted image");
    old.mount();
    write(&old, "alone");
    old.wait_for_verdict("disconnected");
    wait_until("the reason", || {
        let reason = old.status()["mount"]["link"]["reason"].to_string();
        reason.contains("promoted") && reason.contains("demote")
    });
    old.umount();
    assert!(fs::read(node_dir(&old).join("data.img")).expect("the promoted image") == before, "untouched");

    let new = changed_over(&old);
    assert!(new.mnt().join("tree").exists() && !new.mnt().join("alone").exists());
    let said = done(&on(&old, "demote", &old.mnt(), &[]));
    assert!(said.contains("copy is kept") && said.contains("--node state"), "{said}");
    let kept = copies(&old.state());
    assert_eq!(kept.len(), 1, "{kept:?}");
    loop_mounted(&kept[0], "ro,loop", |mnt| {
        assert_eq!(fs::read_to_string(mnt.join("alone")).expect("what was given up"), "alone".repeat(5000));
    });
    follows(&old, new);
}

fn switch() {
    let mut old = in_sync();
    old.umount();
    done(&on(&old, "promote", &node_dir(&old), &[]));
    let new = changed_over(&old);
    let said = done(&on(&old, "demote", &old.state(), &[]));
    assert!(!said.contains("copy"), "{said}");
    assert!(done(&on(&old, "demote", &old.state(), &[])).contains("already"));
    assert_eq!(copies(&old.state()), Vec::<PathBuf>::new());
    follows(&old, new);
}

fn taken_back() {
    let mut pair = Pair::start(Setup { size: "64M", ..Setup::with(&["--lun=mail", "--lun=web"]) });
    let luns = ["mail", "web"];
    luns.iter().for_each(|lun| write(&pair, &format!("{lun}/first")));
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    let said = done(&on(&pair, "promote", &node_dir(&pair), &[]));
    assert!(said.contains("--lun mail --lun web"), "{said}");
    let said = done(&on(&pair, "demote", &node_dir(&pair), &["--discard"]));
    assert!(!said.contains("copy"), "{said}");
    pair.mount();
    luns.iter().for_each(|lun| write(&pair, &format!("{lun}/second")));
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    for lun in luns {
        let image = format!("{lun}.img");
        assert_identical(&pair.state().join(&image), &node_dir(&pair).join(&image));
        e2fsck_clean(&node_dir(&pair).join(&image));
    }
}

/// The primary is lost while a resync, the queue having been given up, has overwritten a part of the mirror.
fn out_of_a_resync() {
    let mut pair = Pair::prepare(Setup::with(&["--queue-max=8M", "--memory=4M"]));
    let link = FaultyLink::start(pair.port);
    pair.setup.mount.push(format!("--peer=127.0.0.1:{}", link.port));
    pair.start_peer();
    pair.mount();
    tree::make(&pair.mnt().join("tree"), 60, 5);
    let old = pair.mnt().join("old");
    fs::write(&old, vec![1; 8 << 20]).expect("writing");
    pair.wait_for_verdict("in-sync");
    pair.sync();
    let tree_then = tree::fingerprint(&pair.mnt().join("tree"));
    link.unplug();
    pair.wait_for_verdict("disconnected");
    for index in 0..10 {
        fs::write(pair.mnt().join(format!("big-{index}")), vec![index; 4 << 20]).expect("writing");
    }
    fs::File::open(pair.mnt().join("big-9")).and_then(|file| file.sync_all()).expect("fsync");
    wait_until("the queue to be given up", || pair.status()["mount"]["log"]["queue_given_up"].is_string());
    // In place, so that the resync overwrites what the mirror has.
    let in_place = fs::File::options().write(true).open(&old).expect("opening");
    in_place.write_all_at(&vec![2; 8 << 20], 0).and_then(|()| in_place.sync_all()).expect("writing");

    link.heal();
    link.set(|faults| faults.tcp[Way::ToMirror as usize].bytes_per_second = 4 << 20);
    let undo = node_dir(&pair).join("data.undo");
    wait_until("a part of the resync", || fs::metadata(&undo).is_ok_and(|data| data.len() > 2 << 20));
    pair.kill_mount();
    let said = done(&on(&pair, "promote", &node_dir(&pair), &[]));
    assert!(said.contains("taken back to epoch"), "{said}");
    assert!(!undo.exists());

    e2fsck_clean(&node_dir(&pair).join("data.img"));
    let new = changed_over(&pair);
    tree::assert_same(&tree_then, &tree::fingerprint(&new.mnt().join("tree")));
    assert!(!new.mnt().join("big-9").exists(), "it had not arrived");
    assert!(fs::read(new.mnt().join("old")).expect("reading") == vec![1; 8 << 20], "as it was");
}

fn refused() {
    let mut pair = in_sync();
    fails(&on(&pair, "promote", &node_dir(&pair), &[]), 4, "its primary is connected");
    fails(&on(&pair, "demote", &pair.state(), &[]), 4, "unmount it first");
    fails(&on(&pair, "promote", &pair.peer_dir(), &[]), 3, "DIR/NODE");
    fails(&on(&pair, "promote", Path::new("/nonexistent"), &[]), 3, "/nonexistent");
    fails(&on(&pair, "demote", &pair.peer_dir(), &[]), 3, "state directory");
    // It goes on as if nothing had been asked.
    write(&pair, "more");
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());

    // A demoted image is nobody's mirror yet.
    done(&on(&pair, "demote", &pair.state(), &[]));
    fails(&on(&pair, "promote", &pair.state(), &[]), 1, "--force");
    let said = done(&on(&pair, "promote", &pair.state(), &["--force"]));
    assert!(said.contains("is a primary now"), "{said}");
    pair.mount();
    assert!(pair.mnt().join("more").exists() && pair.mnt().join("tree").exists());
    pair.umount();
    e2fsck_clean(&pair.image());
}
