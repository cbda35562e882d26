//! A pair that works, seen from all sides.

use super::{Shared, ages, elements, link, log, number};
use crate::support::judge::difference;
use crate::support::processes::{connections, threads};
use crate::support::{FaultyLink, Pair, Setup, Way, tree};
use serde_json::Value;
use std::time::{Duration, Instant};

/// The second predetermined time of the mount and of the peer, unlike each other.
const LOCAL_INTERVAL_MS: u64 = 40;
const PEER_INTERVAL_MS: u64 = 100;

struct Steady {
    mount: Value,
    peer: Value,
    mount_threads: Vec<String>,
    peer_threads: Vec<String>,
    /// TCP connections from the mount to the link's port, and bytes that crossed to the mirror while a tree was written.
    tcp: usize,
    crossed_bytes: u64,
    /// Milliseconds watched, and the datagrams of each direction meanwhile.
    watched: (u64, u64, u64),
    /// The same for the second heartbeat alone, while no first heartbeat reached the peer.
    unprompted: (u64, u64),
    /// No byte crossed the data connections while these ages were taken, one sample after the other.
    quiet_local: Vec<Vec<u64>>,
    quiet_peer: Vec<Vec<u64>>,
    /// Ages at the end of a silence of 500 ms, and after it.
    local_silent: Vec<u64>,
    local_again: Vec<u64>,
    difference: Option<String>,
}

static STEADY: Shared<Steady> = Shared::new(watch);

fn watch() -> Steady {
    let mut pair = Pair::prepare(Setup::default());
    let faulty = FaultyLink::start(pair.port);
    pair.setup.mount = vec![
        format!("--peer=127.0.0.1:{}", faulty.port),
        format!("--heartbeat-interval={LOCAL_INTERVAL_MS}ms"),
        "--heartbeat-timeout=1500ms".into(),
    ];
    let interval = format!("--heartbeat-interval={PEER_INTERVAL_MS}ms");
    pair.start_peer_with(&["--insecure", &interval, "--heartbeat-timeout=1500ms"]);
    pair.mount();
    pair.wait_for_verdict("in-sync");
    let bytes_before = faulty.passed(Way::ToMirror).1;
    tree::make(&pair.mnt().join("tree"), 150, 70);
    pair.sync();
    let crossed_bytes = faulty.passed(Way::ToMirror).1 - bytes_before;

    let (begun, before) = (Instant::now(), (faulty.passed(Way::ToMirror).0, faulty.passed(Way::ToPrimary).0));
    std::thread::sleep(Duration::from_millis(1000));
    let after = (faulty.passed(Way::ToMirror).0, faulty.passed(Way::ToPrimary).0);
    let watched = (millis(begun), after.0 - before.0, after.1 - before.1);

    let (mount, peer) = (pair.status(), pair.peer_status());

    let (mut quiet_local, mut quiet_peer) = (Vec::new(), Vec::new());
    let bytes = || (faulty.passed(Way::ToMirror).1, faulty.passed(Way::ToPrimary).1);
    while quiet_local.len() < 5 {
        let before = bytes();
        std::thread::sleep(Duration::from_millis(150));
        let samples = (ages(link(&pair.status())), ages(&pair.peer_status()["peer"]["sessions"][0]));
        if bytes() == before {
            quiet_local.push(samples.0);
            quiet_peer.push(samples.1);
        }
    }
    faulty.mute(Way::ToMirror);
    let (begun, before) = (Instant::now(), faulty.passed(Way::ToPrimary).0);
    std::thread::sleep(Duration::from_millis(700));
    let unprompted = (millis(begun), faulty.passed(Way::ToPrimary).0 - before);
    faulty.heal();
    std::thread::sleep(Duration::from_millis(300));

    // Only now: losses make the peer's interval shorter for a while.
    let mut local_silent = None;
    while local_silent.is_none() {
        let before = bytes();
        faulty.mute(Way::ToPrimary);
        std::thread::sleep(Duration::from_millis(500));
        let silent = ages(link(&pair.status()));
        local_silent = (bytes() == before).then_some(silent);
        faulty.heal();
        std::thread::sleep(Duration::from_millis(200));
    }
    let local_silent = local_silent.unwrap_or_default();
    std::thread::sleep(Duration::from_millis(300));
    let local_again = ages(link(&pair.status()));

    let to_link = connections(pair.mount_pid());
    let tcp = to_link.iter().filter(|(_, remote)| remote.port() == faulty.port).count();
    let names = |pid| threads(pid).into_values().collect();
    let (mount_threads, peer_threads) = (names(pair.mount_pid()), names(pair.peer_pid()));
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    Steady {
        mount,
        peer,
        mount_threads,
        peer_threads,
        tcp,
        crossed_bytes,
        watched,
        unprompted,
        quiet_local,
        quiet_peer,
        local_silent,
        local_again,
        difference: difference(&pair.image(), &pair.mirror()),
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).expect("not that long")
}

fn session(seen: &Steady) -> &Value {
    &seen.peer["peer"]["sessions"][0]
}

/// Requests went in here, across, and into the mirror; heartbeats were heard on both sides.
#[track_caller]
fn mirrored_under_heartbeats(seen: &Steady) {
    assert!(number(&log(&seen.mount)["appended_requests"]) > 0, "{}", seen.mount);
    assert!(seen.crossed_bytes > 100_000, "{} bytes crossed", seen.crossed_bytes);
    assert!(number(&session(seen)["applied_requests"]) > 0, "{}", seen.peer);
    assert!(seen.tcp >= 1, "{} connections", seen.tcp);
    assert!(number(&link(&seen.mount)["heartbeats_received"]) > 3, "{}", seen.mount);
    assert!(number(&session(seen)["heartbeats_received"]) > 3, "{}", seen.peer);
}

/// The datagrams that the link carried fit the interval of their sender.
#[track_caller]
fn periodic(interval_ms: u64, (watched_ms, datagrams): (u64, u64)) {
    let expected = watched_ms / interval_ms;
    // A loaded machine may be late, but nothing is sent early.
    let range = expected * 6 / 10..=expected * 12 / 10 + 1;
    assert!(range.contains(&datagrams), "{datagrams} datagrams in {watched_ms} ms, of {interval_ms} ms each");
}

fn both_periodic() {
    let seen = STEADY.get();
    let (ms, first, second) = seen.watched;
    periodic(LOCAL_INTERVAL_MS, (ms, first));
    periodic(PEER_INTERVAL_MS, (ms, second));
}

pub(super) fn claim_01() {
    mirrored_under_heartbeats(STEADY.get());
}

pub(super) fn claim_07() {
    let seen = STEADY.get();
    assert_eq!(seen.difference, None);
    assert_eq!(session(seen)["luns"][0][0], "data", "the mirror of the LUN of that name: {}", seen.peer);
}

/// How often a thread of this name is there.
fn count(threads: &[String], name: &str) -> usize {
    threads.iter().filter(|thread| *thread == name).count()
}

pub(super) fn claim_12() {
    let seen = STEADY.get();
    for (threads, names) in [
        (&seen.mount_threads, ["heartbeat-send", "heartbeat-recv"]),
        (&seen.peer_threads, ["peer-beat-send", "peer-beat-recv"]),
    ] {
        for name in names {
            assert_eq!(count(threads, name), 1, "{name}: {threads:?}");
        }
    }
}

pub(super) fn claim_13() {
    both_periodic();
    // Without a first heartbeat to echo, the second goes on by the peer's own timer.
    periodic(PEER_INTERVAL_MS, STEADY.get().unprompted);
}

/// Each sample has n ages, all of one heartbeat.
#[track_caller]
fn updated_together(samples: &[Vec<u64>]) {
    for sample in samples {
        assert_eq!(sample.len(), 4, "{sample:?}");
        let (least, most) = (sample.iter().min().expect("an age"), sample.iter().max().expect("an age"));
        assert!(*most < 1000, "heard lately: {sample:?}");
        assert!(most - least <= 5, "one heartbeat for all: {sample:?}");
    }
}

pub(super) fn claim_14() {
    let seen = STEADY.get();
    updated_together(&seen.quiet_local);
    updated_together(&seen.quiet_peer);
}

pub(super) fn claim_22() {
    let seen = STEADY.get();
    assert_eq!(seen.tcp, 4, "as /proc/net/tcp has them");
    assert_eq!(elements(link(&seen.mount)).len(), 4);
}

pub(super) fn claim_23() {
    both_periodic();
}

pub(super) fn claim_32() {
    let seen = STEADY.get();
    mirrored_under_heartbeats(seen);
    let stored = number(&link(&seen.mount)["responses_stored"]);
    assert!(stored >= number(&log(&seen.mount)["retired_requests"]) && stored > 0, "{}", seen.mount);
}

pub(super) fn claim_35() {
    claim_12();
    // Whatever n is: one pair of heartbeat threads, n of the others.
    let seen = STEADY.get();
    let of =
        |threads: &[String], prefix: &str| threads.iter().filter(|thread| thread.starts_with(prefix)).count();
    assert_eq!(of(&seen.mount_threads, "worker "), 4, "{:?}", seen.mount_threads);
    assert_eq!(of(&seen.mount_threads, "heartbeat-"), 2, "{:?}", seen.mount_threads);
    assert_eq!(of(&seen.peer_threads, "peer-beat-"), 2, "{:?}", seen.peer_threads);
}

pub(super) fn claim_36() {
    let seen = STEADY.get();
    updated_together(&seen.quiet_local);
    assert!(seen.local_silent.iter().all(|age| *age >= 350), "without it: {:?}", seen.local_silent);
    assert!(seen.local_again.iter().all(|age| *age < 350), "with it: {:?}", seen.local_again);
}

pub(super) fn claim_39() {
    mirrored_under_heartbeats(STEADY.get());
}

pub(super) fn claim_44() {
    both_periodic();
}

pub(super) fn claim_46() {
    both_periodic();
}

pub(super) fn claim_47() {
    both_periodic();
}
