//! When the host is answered, what the peer answers, and what is not mirrored at all.

use super::{link, log, number, write_synced};
use crate::support::{FaultyLink, Pair, Setup, Way, assert_identical, wait_until};
use std::time::{Duration, Instant};

fn start(arguments: &[&str]) -> (Pair, FaultyLink) {
    let mut pair = Pair::prepare(Setup::with(arguments));
    let faulty = FaultyLink::start(pair.port);
    pair.setup.mount.push(format!("--peer=127.0.0.1:{}", faulty.port));
    pair.start_peer();
    pair.mount();
    pair.wait_for_verdict("in-sync");
    pair.sync();
    (pair, faulty)
}

fn applied(pair: &Pair) -> u64 {
    number(&pair.peer_status()["peer"]["sessions"][0]["applied_requests"])
}

/// Each request is answered; exactly one store fails, and is answered so.
fn answers() {
    let (mut pair, faulty) = start(&["--workers=2"]);
    write_synced(&pair.mnt().join("good"), &[1; 500_000]);
    pair.sync();
    let status = pair.status();
    assert_eq!(number(&link(&status)["responses_failed"]), 0);
    assert_eq!(
        number(&link(&status)["responses_stored"]),
        number(&log(&status)["retired_requests"]),
        "one answer for each: {status:#}"
    );
    faulty.corrupt_once(Way::ToMirror);
    write_synced(&pair.mnt().join("damaged on its way"), &[2; 3_000_000]);
    wait_until("the answer", || number(&link(&pair.status())["responses_failed"]) > 0);
    assert!(faulty.has_corrupted(Way::ToMirror));
    pair.wait_for_verdict("in-sync");
    pair.sync();
    let status = pair.status();
    assert_eq!(number(&link(&status)["responses_failed"]), 1, "exactly one: {status:#}");
    assert!(
        number(&link(&status)["responses_stored"]) >= number(&log(&status)["retired_requests"]),
        "{status:#}"
    );
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}

pub(super) fn claim_08() {
    answers();
}

pub(super) fn claim_43() {
    answers();
}

pub(super) fn claim_19() {
    let (mut pair, faulty) = start(&["--mode=async"]);
    let before = applied(&pair);
    faulty.set(|faults| faults.tcp[Way::ToMirror as usize].stall = true);
    let begun = Instant::now();
    write_synced(&pair.mnt().join("file"), &[1; 300_000]);
    assert!(begun.elapsed() < Duration::from_secs(5), "answered without the mirror: {:?}", begun.elapsed());
    let status = pair.status();
    assert_eq!(applied(&pair), before, "none of it is there");
    assert!(number(&log(&status)["waiting_requests"]) > 0, "{status:#}");
    faulty.heal();
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}

pub(super) fn claim_20() {
    let (mut pair, faulty) = start(&["--mode=sync"]);
    let before = applied(&pair);
    // The mirror stores it, and its response is held back.
    faulty.set(|faults| faults.tcp[Way::ToPrimary as usize].stall = true);
    let path = pair.mnt().join("file");
    let writer = std::thread::spawn(move || std::fs::write(path, vec![1; 100_000]));
    wait_until("the mirror to have some of it", || applied(&pair) > before);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!writer.is_finished(), "the host is not answered before the response has come");
    faulty.heal();
    writer.join().expect("the writer").expect("its write");
    // A write that has been answered is there: nothing has been flushed or synced in between.
    let mut file = std::fs::OpenOptions::new().write(true).open(pair.mnt().join("file")).expect("opening");
    for round in 0..5u8 {
        let before = number(&link(&pair.status())["responses_stored"]);
        std::io::Write::write_all(&mut file, &vec![round; 65_536]).expect("writing");
        assert!(number(&link(&pair.status())["responses_stored"]) > before);
    }
    drop(file);
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}

pub(super) fn claim_21() {
    let (mut pair, faulty) = start(&["--lun=mail", "--lun=scratch:local", "--size=64M"]);
    let settled = || {
        let status = pair.status();
        (number(&log(&status)["appended_requests"]), faulty.passed(Way::ToMirror).1)
    };
    wait_until("all to be quiet", || {
        let before = settled();
        std::thread::sleep(Duration::from_millis(300));
        settled() == before
    });
    let before = settled();
    for index in 0..20 {
        write_synced(&pair.mnt().join(format!("scratch/{index}")), &[3; 50_000]);
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(settled(), before, "no entry in the log, no byte on the wire");
    write_synced(&pair.mnt().join("mail/message"), &[3; 50_000]);
    pair.sync();
    let after = settled();
    assert!(after.0 > before.0 && after.1 > before.1 + 50_000, "{before:?} {after:?}");
    pair.umount();
    assert!(!pair.peer_dir().join("node-a/scratch.img").exists());
    let mail = pair.peer_dir().join("node-a/mail.img");
    assert_identical(&pair.state().join("mail.img"), &mail);
}
