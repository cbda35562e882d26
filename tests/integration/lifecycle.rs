//! Mounting, mirroring, unmounting, mounting again.

use crate::Case;
use crate::support::{Pair, Setup, assert_identical, e2fsck_clean, loop_mounted, tree};
use std::fs;

pub(crate) const CASES: &[Case] = &[
    ("a_tree_is_mirrored_and_both_images_are_equal", a_tree_is_mirrored_and_both_images_are_equal),
    ("synchronous_mode_answers_when_the_mirror_has_it", synchronous_mode_answers_when_the_mirror_has_it),
    ("any_number_of_connections_mirrors", any_number_of_connections_mirrors),
    ("the_link_can_be_encrypted", the_link_can_be_encrypted),
    ("a_missing_peer_at_the_start_only_queues", a_missing_peer_at_the_start_only_queues),
    ("several_luns_and_a_local_one", several_luns_and_a_local_one),
    ("two_hosts_mirror_each_other", two_hosts_mirror_each_other),
];

fn a_tree_is_mirrored_and_both_images_are_equal() {
    let mut pair = Pair::start(Setup::default());
    tree::make(&pair.mnt().join("tree"), 500, 1);
    let before = tree::fingerprint(&pair.mnt().join("tree"));
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
    // After a clean unmount the mirror mounts in place, with nothing to replay.
    loop_mounted(&pair.mirror(), "ro,loop", |mnt| {
        tree::assert_same(&before, &tree::fingerprint(&mnt.join("tree")))
    });
    pair.mount();
    tree::assert_same(&before, &tree::fingerprint(&pair.mnt().join("tree")));
    fs::remove_dir_all(pair.mnt().join("tree/d1")).expect("deleting");
    fs::write(pair.mnt().join("after"), b"second life").expect("writing");
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
}

fn synchronous_mode_answers_when_the_mirror_has_it() {
    let mut pair = Pair::start(Setup::with(&["--mode=sync"]));
    pair.wait_for_verdict("in-sync");
    let path = pair.mnt().join("file");
    fs::write(&path, vec![42; 300_000]).expect("writing");
    fs::File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
    // Nothing more is done: the fsync's promise holds on the mirror by itself.
    let mirror = pair.mirror();
    let copy = crate::support::judge::copy_of(&mirror);
    e2fsck_clean(&copy.path);
    loop_mounted(&copy.path, "loop", |mnt| {
        assert_eq!(fs::read(mnt.join("file")).expect("the file"), vec![42; 300_000])
    });
    tree::make(&pair.mnt().join("tree"), 60, 2);
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}

fn any_number_of_connections_mirrors() {
    for workers in ["1", "4", "64"] {
        let mut pair = Pair::start(Setup::with(&["--workers", workers]));
        pair.wait_for_verdict("in-sync");
        let status = pair.status();
        let elements = status["mount"]["link"]["elements"].as_array().expect("the array").clone();
        assert_eq!(elements.len().to_string(), workers);
        for element in elements {
            assert!(
                element["local"].is_string() && element["remote"].is_string() && element["state"] == "open",
                "{element}"
            );
            assert!(element["timestamp_age_ms"].is_u64(), "{element}");
        }
        tree::make(&pair.mnt().join("tree"), 120, 3);
        pair.umount();
        assert_identical(&pair.image(), &pair.mirror());
    }
}

fn the_link_can_be_encrypted() {
    let mut pair = Pair::prepare(Setup::default());
    let key = pair.dir.path().join("key");
    pair.command_ok(&["keygen", &key.display().to_string()]);
    let key = format!("--key={}", key.display());
    pair.setup.mount.push(key.clone());
    pair.start_peer_with(&[&key]);
    pair.mount();
    pair.wait_for_verdict("in-sync");
    assert_eq!(pair.status()["mount"]["link"]["encrypted"], true);
    tree::make(&pair.mnt().join("tree"), 100, 4);
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}

fn a_missing_peer_at_the_start_only_queues() {
    let mut pair = Pair::start(Setup { peer: false, ..Setup::default() });
    assert_eq!(pair.verdict(), "disconnected");
    tree::make(&pair.mnt().join("tree"), 100, 5);
    pair.command_ok(&["status"]);
    pair.start_peer();
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}

fn several_luns_and_a_local_one() {
    let mut pair = Pair::start(Setup::with(&["--lun=mail", "--lun=db", "--lun=scratch:local", "--size=64M"]));
    for lun in ["mail", "db", "scratch"] {
        tree::make(&pair.mnt().join(lun).join("tree"), 40, 6);
    }
    let crossed =
        fs::rename(pair.mnt().join("mail/tree"), pair.mnt().join("db/x")).expect_err("another file system");
    assert_eq!(crossed.raw_os_error(), Some(libc::EXDEV));
    pair.sync();
    pair.umount();
    for lun in ["mail", "db"] {
        let image = format!("{lun}.img");
        assert_identical(&pair.state().join(&image), &pair.peer_dir().join("node-a").join(&image));
        e2fsck_clean(&pair.peer_dir().join("node-a").join(&image));
    }
    e2fsck_clean(&pair.state().join("scratch.img"));
    assert!(!pair.peer_dir().join("node-a/scratch.img").exists(), "a local LUN is not mirrored");
}

fn two_hosts_mirror_each_other() {
    let (port_a, port_b) = (crate::support::node::free_port(), crate::support::node::free_port());
    let host = |listen: u16, peer: u16, node: &str| {
        let mut pair = Pair::prepare(Setup { peer: false, ..Setup::default() });
        pair.setup.mount = vec![
            format!("--listen=127.0.0.1:{listen}"),
            format!("--mirror-dir={}", pair.peer_dir().display()),
            format!("--peer=127.0.0.1:{peer}"),
            format!("--node={node}"),
        ];
        pair
    };
    let (mut a, mut b) = (host(port_a, port_b, "host-a"), host(port_b, port_a, "host-b"));
    a.mount();
    b.mount();
    tree::make(&a.mnt().join("from-a"), 80, 7);
    tree::make(&b.mnt().join("from-b"), 80, 8);
    a.wait_for_verdict("in-sync");
    b.wait_for_verdict("in-sync");
    a.sync();
    b.sync();
    // One goes first: its last barrier reaches the other, which then has no peer for its own; so both are synced before.
    let (mirror_of_b, mirror_of_a) =
        (a.peer_dir().join("host-b/data.img"), b.peer_dir().join("host-a/data.img"));
    a.umount();
    assert_identical(&a.image(), &mirror_of_a);
    b.umount();
    a.mount();
    b.mount();
    a.wait_for_verdict("in-sync");
    b.wait_for_verdict("in-sync");
    b.umount();
    assert_identical(&b.image(), &mirror_of_b);
    a.umount();
    e2fsck_clean(&mirror_of_a);
    e2fsck_clean(&mirror_of_b);
}
