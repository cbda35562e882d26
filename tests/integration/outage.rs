//! The peer goes away and comes back.

use crate::Case;
use crate::support::{Pair, Setup, assert_identical, e2fsck_clean, loop_mounted, tree, wait_until};
use std::fs;

pub(crate) const CASES: &[Case] = &[
    ("a_peer_killed_three_times_during_a_copy", a_peer_killed_three_times_during_a_copy),
    ("the_queue_names_what_waits_and_empties_when_the_peer_is_back", the_queue_names_what_waits),
    ("the_queue_survives_unmount_and_kill", the_queue_survives_unmount_and_kill),
    ("a_spent_queue_budget_falls_back_to_regions", a_spent_queue_budget_falls_back_to_regions),
    ("a_full_disk_under_the_queue_falls_back_to_regions", a_full_disk_under_the_queue),
    ("a_damaged_queue_is_shown_and_survived", a_damaged_queue),
    ("a_full_disk_at_the_peer_is_shown_and_healed", a_full_disk_at_the_peer_is_shown_and_healed),
    ("sync_writers_go_on_during_an_outage", sync_writers_go_on_during_an_outage),
    ("the_outage_policies_do_what_they_say", the_outage_policies_do_what_they_say),
    ("a_lost_mirror_is_made_anew", a_lost_mirror_is_made_anew),
];

/// Bytes that the queue's segments take on the disk.
fn queue_bytes(pair: &Pair) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = fs::read_dir(pair.state().join("queue")).expect("the queue");
    entries
        .map(|entry| entry.expect("an entry"))
        .filter(|entry| entry.file_name().to_string_lossy().contains("seg"))
        .map(|entry| entry.metadata().expect("metadata").blocks() * 512)
        .sum()
}

fn assert_queue_empty(pair: &Pair) {
    wait_until("an empty queue on disk", || queue_bytes(pair) <= 64 << 10);
    assert!(pair.journal().iter().all(|row| row["op"] == "barrier"), "{:?}", pair.journal());
}

fn a_peer_killed_three_times_during_a_copy() {
    let mut pair = Pair::start(Setup::default());
    let source = tempfile::tempdir_in("/dev/shm").expect("a directory");
    tree::make(source.path(), 3000, 11);
    let target = pair.mnt().join("copy");
    let mut copy =
        std::process::Command::new("cp").arg("-a").arg(source.path()).arg(&target).spawn().expect("cp");
    for _ in 0..3 {
        std::thread::sleep(std::time::Duration::from_millis(150));
        pair.kill_peer();
        std::thread::sleep(std::time::Duration::from_millis(100));
        pair.start_peer();
        wait_until("the link after a restart", || {
            pair.status()["mount"]["link"]["sessions"].as_u64().is_some_and(|sessions| sessions > 0)
                && matches!(pair.verdict().as_str(), "in-sync" | "catching-up" | "resyncing")
        });
    }
    assert!(copy.wait().expect("cp").success(), "the copy must not notice");
    pair.wait_for_verdict("in-sync");
    pair.sync();
    assert_queue_empty(&pair);
    let wanted = tree::fingerprint(source.path());
    tree::assert_same(&wanted, &tree::fingerprint(&target));
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
    loop_mounted(&pair.mirror(), "ro,loop", |mnt| {
        tree::assert_same(&wanted, &tree::fingerprint(&mnt.join("copy")))
    });
}

fn the_queue_names_what_waits() {
    let mut pair = Pair::start(Setup::default());
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.kill_peer();
    pair.wait_for_verdict("disconnected");
    let status = pair.status();
    let reason = status["mount"]["link"]["reason"].as_str().expect("a reason");
    assert!(
        !reason.is_empty() && status["summary"].as_str().is_some_and(|text| text.contains(reason)),
        "{status:#}"
    );
    fs::create_dir(pair.mnt().join("mail")).expect("a directory");
    fs::write(pair.mnt().join("mail/message one"), vec![1; 50_000]).expect("a file");
    fs::write(pair.mnt().join("gone"), vec![2; 50_000]).expect("a file");
    fs::File::open(pair.mnt().join("gone")).and_then(|file| file.sync_all()).expect("fsync");
    fs::remove_file(pair.mnt().join("gone")).expect("deleting");
    fs::File::open(pair.mnt().join("mail/message one")).and_then(|file| file.sync_all()).expect("fsync");
    let names: Vec<String> =
        pair.journal().iter().map(|row| row["name"].as_str().unwrap_or_default().to_string()).collect();
    assert!(names.iter().any(|name| name == "/mail/message one"), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("inode ") && name.ends_with("(deleted)")), "{names:?}");
    assert!(names.iter().any(|name| name == "jbd2 journal"), "{names:?}");
    let text = pair.command_ok(&["journal", "ls", &pair.mnt().display().to_string()]);
    assert!(text.contains("/mail/message one") && text.contains("SEQUENCE"), "{text}");
    wait_until("requests on disk", || pair.status()["mount"]["log"]["queued_requests"].as_u64() > Some(0));
    let state = pair.state().display().to_string();
    pair.command_ok(&["journal", "verify", &state]);
    let row = pair.journal().into_iter().find(|row| row["name"] == "/mail/message one").expect("the row");
    let sequence = row["sequence"].as_str().expect("a sequence").to_string();
    wait_until("the record on disk", || {
        pair.command(&["journal", "show", &sequence, &state]).status.success()
    });
    let shown = pair.command_ok(&["journal", "show", "-x", &sequence, &state]);
    assert!(shown.contains("crc32c") && shown.contains("01 01 01 01"), "{shown}");
    pair.start_peer();
    pair.wait_for_verdict("in-sync");
    pair.sync();
    assert_queue_empty(&pair);
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}

fn the_queue_survives_unmount_and_kill() {
    let mut pair = Pair::start(Setup::default());
    pair.wait_for_verdict("in-sync");
    fs::write(pair.mnt().join("zero"), b"before").expect("writing");
    pair.sync();
    pair.stop_peer();
    pair.wait_for_verdict("disconnected");
    tree::make(&pair.mnt().join("one"), 50, 21);
    pair.umount();
    let first = pair.journal();
    assert!(
        first.iter().any(|row| row["name"].as_str().is_some_and(|name| name.starts_with("/one/"))),
        "{first:?}"
    );
    assert_eq!(pair.status()["verdict"], "stopped");
    pair.mount();
    let again = pair.journal();
    for (before, after) in first.iter().zip(&again) {
        for field in ["sequence", "epoch", "op", "offset", "length", "name"] {
            assert_eq!(before[field], after[field], "earlier entries are unchanged");
        }
    }
    assert!(again.len() >= first.len());
    tree::make(&pair.mnt().join("two"), 50, 22);
    let synced = pair.mnt().join("two/synced");
    fs::write(&synced, b"this was fsynced").expect("writing");
    fs::File::open(&synced).and_then(|file| file.sync_all()).expect("fsync");
    pair.kill_mount();
    pair.mount();
    assert_eq!(fs::read(&synced).expect("what was fsynced"), b"this was fsynced");
    pair.start_peer();
    pair.wait_for_verdict("in-sync");
    pair.sync();
    assert_queue_empty(&pair);
    let wanted = tree::fingerprint(&pair.mnt());
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
    loop_mounted(&pair.mirror(), "ro,loop", |mnt| {
        let mut found = tree::fingerprint(mnt);
        let mut wanted = wanted.clone();
        wanted.remove(std::ffi::OsStr::new(""));
        found.remove(std::ffi::OsStr::new(""));
        tree::assert_same(&wanted, &found);
    });
}

fn a_spent_queue_budget_falls_back_to_regions() {
    let mut pair = Pair::start(Setup::with(&["--queue-max=8M", "--memory=4M"]));
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.kill_peer();
    pair.wait_for_verdict("disconnected");
    for index in 0..10 {
        fs::write(pair.mnt().join(format!("big-{index}")), vec![index; 4 << 20])
            .expect("the primary is never stopped");
    }
    fs::File::open(pair.mnt().join("big-9")).and_then(|file| file.sync_all()).expect("fsync");
    wait_until("the queue to be given up", || pair.status()["mount"]["log"]["queue_given_up"].is_string());
    pair.start_peer();
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
}

fn a_full_disk_under_the_queue() {
    let mut pair = Pair::prepare(Setup::default());
    let queue = pair.state().join("queue");
    fs::create_dir_all(&queue).expect("the queue's directory");
    let disk = SmallDisk::mount(&queue, 12);
    pair.start_peer();
    pair.mount();
    pair.wait_for_verdict("in-sync");
    pair.kill_peer();
    pair.wait_for_verdict("disconnected");
    for index in 0..10 {
        fs::write(pair.mnt().join(format!("big-{index}")), vec![index + 1; 4 << 20])
            .expect("the primary is never stopped");
        fs::File::open(pair.mnt().join(format!("big-{index}")))
            .and_then(|file| file.sync_all())
            .expect("nor is an fsync");
    }
    wait_until("the queue to be given up", || pair.status()["mount"]["log"]["queue_given_up"].is_string());
    pair.start_peer();
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    drop(disk);
}

fn a_damaged_queue() {
    use std::os::unix::fs::FileExt as _;
    let mut pair = Pair::start(Setup::default());
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.kill_peer();
    pair.wait_for_verdict("disconnected");
    for index in 0..20 {
        fs::write(pair.mnt().join(format!("file-{index}")), vec![index + 1; 100_000]).expect("writing");
        fs::File::open(pair.mnt().join(format!("file-{index}")))
            .and_then(|file| file.sync_all())
            .expect("fsync");
    }
    pair.umount();
    let state = pair.state().display().to_string();
    pair.command_ok(&["journal", "verify", &state]);
    let segment = fs::read_dir(pair.state().join("queue"))
        .expect("the queue")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("seg")))
        .expect("a segment");
    let file = fs::File::options().read(true).write(true).open(&segment).expect("the segment");
    let middle = file.metadata().expect("metadata").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).expect("reading");
    file.write_all_at(&[byte[0] ^ 0x40], middle).expect("damaging");
    let output = pair.command(&["journal", "verify", &state]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("seg"), "{text}");
    pair.mount();
    pair.start_peer();
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
}

fn a_full_disk_at_the_peer_is_shown_and_healed() {
    let mut pair = Pair::prepare(Setup::default());
    fs::create_dir(pair.peer_dir()).expect("the peer's directory");
    let disk = SmallDisk::mount(&pair.peer_dir(), 48);
    pair.start_peer();
    pair.mount();
    pair.wait_for_verdict("in-sync");
    for index in 0..12 {
        fs::write(pair.mnt().join(format!("big-{index}")), vec![index + 1; 8 << 20])
            .expect("the primary goes on");
    }
    fs::File::open(pair.mnt().join("big-1")).and_then(|file| file.sync_all()).expect("fsync");
    wait_until("the peer's error in the reason", || {
        let status = pair.status();
        let reason = status["mount"]["link"]["reason"].as_str().unwrap_or_default().to_lowercase();
        status["verdict"] == "disconnected" && reason.contains("space")
    });
    disk.resize(400);
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    pair.stop_peer();
    drop(disk);
}

/// A tmpfs of a few MiB.
pub(crate) struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    pub(crate) fn mount(at: &std::path::Path, mib: u32) -> Self {
        let size = format!("size={mib}M");
        let done =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status();
        assert!(done.expect("mount").success());
        Self(at.to_path_buf())
    }
    pub(crate) fn resize(&self, mib: u32) {
        let size = format!("remount,size={mib}M");
        let done = std::process::Command::new("mount").args(["-o", &size]).arg(&self.0).status();
        assert!(done.expect("mount").success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn sync_writers_go_on_during_an_outage() {
    let mut pair = Pair::start(Setup::with(&["--mode=sync"]));
    pair.wait_for_verdict("in-sync");
    pair.kill_peer();
    // The first write waits for the outage to be noticed, and is then answered from the queue.
    fs::write(pair.mnt().join("file"), vec![7; 100_000]).expect("policy queue");
    fs::File::open(pair.mnt().join("file")).and_then(|file| file.sync_all()).expect("fsync");
    pair.wait_for_verdict("disconnected");
    pair.start_peer();
    pair.wait_for_verdict("in-sync");
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}

fn the_outage_policies_do_what_they_say() {
    let mut pair = Pair::start(Setup::with(&["--mode=sync", "--on-outage=readonly"]));
    pair.wait_for_verdict("in-sync");
    pair.kill_peer();
    let write = |name: &str| -> std::io::Result<()> {
        fs::write(pair.mnt().join(name), vec![7; 10_000])?;
        fs::File::open(pair.mnt().join(name))?.sync_all()
    };
    wait_until("writes to fail", || write("refused").is_err());
    let mnt = pair.mnt().display().to_string();
    // Blocked: the writer waits, reads and the control socket work, and the peer's return lets it go on.
    pair.command_ok(&["on-outage", &mnt, "block"]);
    let path = pair.mnt().join("blocked");
    let writer = std::thread::spawn(move || {
        fs::write(&path, vec![8; 10_000])?;
        fs::File::open(&path)?.sync_all()
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!writer.is_finished(), "the writer waits for the peer");
    assert!(fs::read_dir(pair.mnt()).expect("reading works").count() > 0);
    assert_eq!(pair.verdict(), "disconnected");
    pair.start_peer();
    writer.join().expect("the writer").expect("its write");
    pair.wait_for_verdict("in-sync");
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}

fn a_lost_mirror_is_made_anew() {
    let mut pair = Pair::start(Setup::default());
    tree::make(&pair.mnt().join("tree"), 100, 31);
    pair.sync();
    pair.stop_peer();
    pair.wait_for_verdict("disconnected");
    fs::remove_file(pair.mirror()).expect("losing the mirror");
    fs::write(pair.mnt().join("later"), b"x").expect("writing");
    pair.start_peer();
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
}
