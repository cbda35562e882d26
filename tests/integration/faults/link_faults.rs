//! What a network does.

use super::stage::Stage;
use crate::support::namespace::Side;
use crate::support::{Way, wait_until};
use std::fs;
use std::time::{Duration, Instant};

pub(super) fn connections_broken(stage: &mut Stage) {
    for _ in 0..3 {
        stage.link.set(|faults| faults.reset = true);
        stage.wait_down();
        stage.judge();
        stage.link.set(|faults| faults.reset = false);
        stage.pair.wait_for_verdict("in-sync");
    }
}

/// So many times; twice as often when thorough. Each doubles the probation.
pub(super) fn flapping(stage: &mut Stage, period: Duration, times: usize) {
    for _ in 0..times * if stage.thorough { 2 } else { 1 } {
        stage.link.unplug();
        std::thread::sleep(period / 2);
        stage.judge();
        stage.link.heal();
        std::thread::sleep(period / 2);
    }
}

pub(super) fn a_fifth_lost(stage: &mut Stage) {
    let interruptions = |stage: &Stage| stage.pair.status()["mount"]["link"]["interruptions"].clone();
    let before = interruptions(stage);
    stage.link.set(|faults| faults.udp.iter_mut().for_each(|udp| udp.drop_percent = 20));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        stage.progress(5);
        stage.sync();
        stage.judge();
    }
    assert_eq!(interruptions(stage), before, "no false cut");
}

pub(super) fn slow_link(stage: &mut Stage) {
    stage.link.set(|faults| faults.tcp[Way::ToMirror as usize].bytes_per_second = 1 << 20);
    fs::write(stage.pair.mnt().join("large"), vec![9; 1 << 20]).expect("writing");
    for _ in 0..2 {
        stage.progress(3);
        stage.judge();
    }
    // All of it over that link.
    stage.sync();
    stage.judge();
}

pub(super) fn delayed_link(stage: &mut Stage) {
    let delay = Duration::from_millis(100);
    stage.link.set(|faults| {
        faults.tcp.iter_mut().for_each(|tcp| tcp.delay = delay);
        faults.udp.iter_mut().for_each(|udp| udp.delay = delay);
    });
    stage.progress(3);
    stage.sync();
    stage.judge();
}

pub(super) fn forged(stage: &mut Stage) {
    stage.link.set(|faults| {
        for udp in &mut faults.udp {
            (udp.duplicate, udp.forge, udp.delay) = (true, true, Duration::from_millis(3));
        }
    });
    let before = stage.pair.status()["mount"]["link"].clone();
    std::thread::sleep(Duration::from_millis(1000));
    stage.progress(5);
    stage.sync();
    stage.judge();
    let after = stage.pair.status()["mount"]["link"].clone();
    for name in ["interruptions", "sessions"] {
        assert_eq!(before[name], after[name], "harmless to a running link: {after:#}");
    }
    for refused in [&after["refused"], &stage.pair.peer_status()["peer"]["refused"]] {
        for name in ["datagrams_not_authentic", "datagrams_replayed"] {
            assert!(refused[name].as_u64().is_some_and(|count| count > 5), "counted: {refused:#}");
        }
    }
}

pub(super) fn flipped(stage: &mut Stage) {
    stage.link.corrupt_once(Way::ToMirror);
    let path = stage.pair.mnt().join("large");
    // In synchronous mode the write waits until the next session has carried it.
    fs::write(path, vec![9; 1 << 20]).expect("writing");
    wait_until("the bit to be flipped", || stage.link.has_corrupted(Way::ToMirror));
    wait_until("another session", || {
        stage.pair.status()["mount"]["link"]["sessions"].as_u64().is_some_and(|count| count >= 2)
    });
    stage.judge();
}

pub(super) fn stalled(stage: &mut Stage) {
    stage.link.set(|faults| faults.tcp[Way::ToMirror as usize].stall = true);
    wait_until("the stall to be noticed", || {
        stage.pair.status()["mount"]["link"]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("stalled"))
    });
    stage.judge();
    assert_eq!(stage.pair.status()["mount"]["link"]["interruptions"], 0, "the heartbeats are fine");
}

/// Bytes on a connection keep it in use; whatever becomes of the link, nothing is lost.
pub(super) fn heartbeats_lost(stage: &mut Stage) {
    stage.link.mute(Way::ToMirror);
    stage.link.mute(Way::ToPrimary);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(400));
        stage.judge();
    }
}

/// First the primary's interface, which leaves it without a route, then the peer's, which it can't see.
pub(super) fn interface_down(stage: &mut Stage) {
    for side in [Side::Primary, Side::Peer] {
        stage.outage(|stage| stage.wire.as_ref().expect("namespaces").down(side));
        stage.pair.wait_for_verdict("in-sync");
    }
}
