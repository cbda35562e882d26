//! Heartbeats that stop and come back, in either direction.

use super::{Shared, ages, elements, link, log, number, states, write_synced};
use crate::support::judge::difference;
use crate::support::processes::{connections, threads_named, voluntary_switches};
use crate::support::{FaultyLink, Pair, Setup, Way, wait_until};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

type Sockets = BTreeSet<(SocketAddr, SocketAddr)>;

/// A pair with a link that can be hurt.
fn start(mount: &[&str], peer: &[&str]) -> (Pair, FaultyLink) {
    let mut pair = Pair::prepare(Setup::default());
    let faulty = FaultyLink::start(pair.port);
    pair.setup.mount = vec![format!("--peer=127.0.0.1:{}", faulty.port)];
    pair.setup.mount.extend(mount.iter().map(ToString::to_string));
    let mut arguments = vec!["--insecure"];
    arguments.extend(peer);
    pair.start_peer_with(&arguments);
    pair.mount();
    pair.wait_for_verdict("in-sync");
    write_synced(&pair.mnt().join("before"), &[1; 100_000]);
    pair.sync();
    (pair, faulty)
}

/// Connections of the mount to the link.
fn sockets(pair: &Pair, faulty: &FaultyLink) -> Sockets {
    connections(pair.mount_pid()).into_iter().filter(|(_, remote)| remote.port() == faulty.port).collect()
}

fn session(pair: &Pair) -> Value {
    pair.peer_status()["peer"]["sessions"][0].clone()
}

fn applied(pair: &Pair) -> u64 {
    number(&session(pair)["applied_requests"])
}

#[track_caller]
fn wait_for_link(pair: &Pair, what: &str, mut is_so: impl FnMut(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    wait_until(what, || {
        last = pair.status();
        is_so(link(&last))
    });
    last
}

/// The second heartbeat stops: what the primary does.
struct SecondMissed {
    /// After a silence shorter than the first time.
    short: Value,
    sockets_before: Sockets,
    sockets_after_short: Sockets,
    /// Interrupted: time until it was noticed, and what was seen then.
    noticed_ms: u128,
    down: Value,
    sockets_down: Sockets,
    /// Why the peer's session ended, whose connections could not bring the news.
    peer_reason: String,
    /// Writes while it was down.
    applied_before: u64,
    applied_down: u64,
    queued: Value,
    /// The probation, broken by an interruption within it.
    probation: Value,
    sockets_probation: Sockets,
    flapped: Value,
    sockets_flapped: Sockets,
    /// The probation that went well.
    second_probation: Value,
    steady_ms: u128,
    back: Value,
    sockets_back: Sockets,
    synced: Value,
    applied_back: u64,
    difference: Option<String>,
}

static SECOND_MISSED: Shared<SecondMissed> = Shared::new(second_missed);
const FIRST_TIME_MS: u128 = 700;
const PROBATION_MS: u128 = 1200;

fn second_missed() -> SecondMissed {
    let (mut pair, faulty) =
        start(&["--heartbeat-timeout=700ms", "--probation=1200ms"], &["--heartbeat-timeout=3s"]);
    let sockets_before = sockets(&pair, &faulty);
    faulty.mute(Way::ToPrimary);
    std::thread::sleep(Duration::from_millis(300));
    faulty.heal();
    std::thread::sleep(Duration::from_millis(700));
    let short = pair.status();
    let sockets_after_short = sockets(&pair, &faulty);

    // The data connections to the mirror bring no news, neither a request nor their end.
    faulty.set(|faults| faults.tcp[Way::ToMirror as usize].stall = true);
    faulty.mute(Way::ToPrimary);
    let begun = Instant::now();
    let down = wait_for_link(&pair, "the interruption", |link| link["state"] == "down");
    let noticed_ms = begun.elapsed().as_millis();
    // The state is told first; the threads close their connections as they leave.
    let mut sockets_down = sockets(&pair, &faulty);
    wait_until("all connections to be closed", || {
        sockets_down = sockets(&pair, &faulty);
        sockets_down.is_empty()
    });
    wait_until("the peer's session to end", || session(&pair)["connected"] == false);
    let peer_reason = session(&pair)["reason"].as_str().unwrap_or_default().to_string();
    let applied_before = applied(&pair);
    write_synced(&pair.mnt().join("meanwhile"), &[2; 200_000]);
    let queued = pair.status();
    let applied_down = applied(&pair);

    // Heard again; and cut again within the probation.
    faulty.heal();
    let probation = wait_for_link(&pair, "the probation", |link| link["state"] == "probation");
    faulty.mute(Way::ToPrimary);
    let sockets_probation = sockets(&pair, &faulty);
    let flapped = wait_for_link(&pair, "its end", |link| link["state"] != "probation");
    let sockets_flapped = sockets(&pair, &faulty);

    faulty.heal();
    let second_probation = wait_for_link(&pair, "another probation", |link| link["state"] == "probation");
    let begun = Instant::now();
    wait_for_link(&pair, "the connections", |link| link["sessions"] == 2);
    let steady_ms = begun.elapsed().as_millis();
    pair.wait_for_verdict("in-sync");
    pair.sync();
    let back = pair.status();
    let sockets_back = sockets(&pair, &faulty);
    wait_until("an empty queue", || number(&log(&pair.status())["queued_requests"]) == 0);
    let synced = pair.status();
    let applied_back = applied(&pair);
    pair.umount();
    SecondMissed {
        short,
        sockets_before,
        sockets_after_short,
        noticed_ms,
        down,
        sockets_down,
        peer_reason,
        applied_before,
        applied_down,
        queued,
        probation,
        sockets_probation,
        flapped,
        sockets_flapped,
        second_probation,
        steady_ms,
        back,
        sockets_back,
        synced,
        applied_back,
        difference: difference(&pair.image(), &pair.mirror()),
    }
}

/// The first heartbeat stops: what the peer does.
struct FirstMissed {
    /// Threads of the connections, and how often each waited, before and after a time without requests.
    threads: BTreeMap<String, u32>,
    threads_idle: BTreeMap<String, u32>,
    waits: Vec<u64>,
    /// The peer's session when its elements had been found too old.
    closed: Value,
    reason: String,
    threads_closed: BTreeMap<String, u32>,
    /// When the first heartbeat was heard again: threads, and connections of the peer then.
    threads_ready: BTreeMap<String, u32>,
    ready: Value,
    sockets_ready: Sockets,
    /// When the connections were there again.
    threads_back: BTreeMap<String, u32>,
    back: Value,
    difference: Option<String>,
}

/// The peer's heartbeat sender marks the elements: it looks far more often than the connection threads.
static MARKED: Shared<FirstMissed> =
    Shared::new(|| first_missed(&["--heartbeat-timeout=700ms", "--request-timeout=3s"]).0);
/// The connection threads look far more often than the heartbeat sender.
static TIMED_OUT: Shared<(FirstMissed, Vec<String>)> = Shared::new(|| {
    first_missed(&["--heartbeat-timeout=700ms", "--heartbeat-interval=340ms", "--request-timeout=25ms"])
});
const LOOKED: &str = "no request, and its element is closed or too old";

fn connection_threads(pair: &Pair) -> BTreeMap<String, u32> {
    threads_named(pair.peer_pid(), "connection ")
}

/// What was seen, and the reasons of all interruptions: with a quick look a second one follows if the sender was first.
fn first_missed(peer: &[&str]) -> (FirstMissed, Vec<String>) {
    let quick = peer.contains(&"--request-timeout=25ms");
    // The primary is the more patient one: it also misses the echo of its heartbeats.
    let (mut pair, faulty) = start(&["--heartbeat-timeout=2s", "--probation=500ms", "--workers=3"], peer);
    let threads = connection_threads(&pair);
    let switches = || -> Vec<u64> {
        threads.values().map(|thread| voluntary_switches(pair.peer_pid(), *thread)).collect()
    };
    std::thread::sleep(Duration::from_millis(100));
    let before = switches();
    std::thread::sleep(Duration::from_millis(500));
    let waits = switches().iter().zip(before).map(|(after, before)| after - before).collect();
    let threads_idle = connection_threads(&pair);

    let mut reasons = Vec::new();
    let mut seen = None;
    for _ in 0..5 {
        faulty.mute(Way::ToMirror);
        let mut closed = Value::Null;
        wait_until("the peer to notice", || {
            closed = session(&pair);
            closed["connected"] == false
        });
        wait_until("the connection threads to exit", || connection_threads(&pair).is_empty());
        let threads_closed = connection_threads(&pair);
        let reason = session(&pair)["reason"].as_str().unwrap_or_default().to_string();
        wait_for_link(&pair, "the primary to notice", |link| link["state"] == "down");
        faulty.heal();
        wait_until("fresh threads", || connection_threads(&pair).len() == 3);
        let sockets_ready = connections(pair.peer_pid());
        let ready = session(&pair);
        let threads_ready = connection_threads(&pair);
        pair.wait_for_verdict("in-sync");
        let threads_back = connection_threads(&pair);
        let back = session(&pair);
        // On a busy machine the peer may lose patience once more before all is there; then it is tried again.
        let undisturbed = threads_ready == threads_back;
        let done = undisturbed && (!quick || reason.contains(LOOKED));
        reasons.push(reason.clone());
        seen =
            Some((closed, reason, threads_closed, ready, threads_ready, sockets_ready, threads_back, back));
        if done {
            break;
        }
    }
    let (closed, reason, threads_closed, ready, threads_ready, sockets_ready, threads_back, back) =
        seen.expect("at least one round");
    pair.sync();
    pair.umount();
    let difference = difference(&pair.image(), &pair.mirror());
    let seen = FirstMissed {
        threads,
        threads_idle,
        waits,
        closed,
        reason,
        threads_closed,
        threads_ready,
        ready,
        sockets_ready,
        threads_back,
        back,
        difference,
    };
    (seen, reasons)
}

pub(super) fn claim_02() {
    let seen = SECOND_MISSED.get();
    assert!(seen.sockets_before.len() == 4, "{:?}", seen.sockets_before);
    assert_eq!(number(&link(&seen.down)["interruptions"]), 1, "{}", seen.down);
    assert!(seen.sockets_down.is_empty(), "all closed: {:?}", seen.sockets_down);
    assert!(states(link(&seen.down)).iter().all(|state| state != "open"), "{}", seen.down);
    assert!(seen.noticed_ms >= FIRST_TIME_MS - 100, "not before the first time: {}", seen.noticed_ms);
    assert!(seen.noticed_ms < FIRST_TIME_MS + 1000, "within it and an interval, or so: {}", seen.noticed_ms);
    assert!(number(&log(&seen.queued)["queued_requests"]) > 0, "{}", seen.queued);
    assert_eq!(seen.applied_before, seen.applied_down, "nothing reaches the mirror meanwhile");
}

pub(super) fn claim_03() {
    let seen = SECOND_MISSED.get();
    assert_eq!(seen.sockets_back.len(), 4, "{:?}", seen.sockets_back);
    assert!(seen.sockets_back.is_disjoint(&seen.sockets_before), "new ones");
    assert_eq!(states(link(&seen.back)), ["open"; 4]);
    assert_eq!(number(&link(&seen.back)["sessions"]), 2, "{}", seen.back);
}

pub(super) fn claim_04() {
    let seen = SECOND_MISSED.get();
    assert!(number(&log(&seen.queued)["queued_requests"]) > 0, "{}", seen.queued);
    assert_eq!(number(&log(&seen.synced)["queued_requests"]), 0, "{}", seen.synced);
    assert!(
        seen.applied_back - seen.applied_down >= number(&log(&seen.queued)["queued_requests"]),
        "{} {}",
        seen.applied_down,
        seen.applied_back
    );
    assert_eq!(seen.difference, None);
}

pub(super) fn claim_05() {
    let seen = SECOND_MISSED.get();
    assert_eq!(number(&link(&seen.short)["interruptions"]), 0, "{}", seen.short);
    assert_eq!(number(&link(&seen.short)["sessions"]), 1, "{}", seen.short);
    assert_eq!(seen.sockets_before, seen.sockets_after_short, "the same connections");
}

pub(super) fn claim_06() {
    let seen = SECOND_MISSED.get();
    assert!(number(&link(&seen.probation)["countdown_ms"]) > 0, "{}", seen.probation);
    assert!(seen.sockets_probation.is_empty() && seen.sockets_flapped.is_empty());
    assert_eq!(link(&seen.flapped)["state"], "down", "{}", seen.flapped);
    assert_eq!(number(&link(&seen.flapped)["sessions"]), 1, "{}", seen.flapped);
    assert_eq!(number(&link(&seen.flapped)["interruptions"]), 2, "{}", seen.flapped);
    assert!(seen.steady_ms >= PROBATION_MS - 200, "a whole probation: {} ms", seen.steady_ms);
}

pub(super) fn claim_18() {
    let seen = SECOND_MISSED.get();
    for status in [&seen.probation, &seen.second_probation] {
        assert_eq!(link(status)["state"], "probation", "{status}");
        assert!(link(status)["reason"].as_str().is_some_and(|why| why.contains("heard again")), "{status}");
        let known = number(&link(&seen.down)["heartbeats_received"]);
        assert!(number(&link(status)["heartbeats_received"]) > known, "{status}");
    }
}

pub(super) fn claim_37() {
    let seen = SECOND_MISSED.get();
    assert!(
        seen.peer_reason.contains("the primary marked connections closed"),
        "the peer heard all the time, and its connections told it nothing: {}",
        seen.peer_reason
    );
}

pub(super) fn claim_40() {
    claim_02();
}

pub(super) fn claim_41() {
    claim_03();
}

pub(super) fn claim_42() {
    claim_04();
}

pub(super) fn claim_15() {
    let seen = MARKED.get();
    assert!(seen.reason.contains("no heartbeat from the primary in time"), "{}", seen.reason);
    assert_eq!(elements(&seen.closed).len(), 3);
    assert_eq!(states(&seen.closed), ["closed"; 3], "{}", seen.closed);
    assert!(ages(&seen.closed).iter().all(|age| u128::from(*age) > FIRST_TIME_MS), "{}", seen.closed);
}

pub(super) fn claim_16() {
    let (seen, _) = TIMED_OUT.get();
    assert_eq!(seen.threads.len(), 3);
    assert_eq!(seen.threads, seen.threads_idle, "the same threads wait again");
    // 20 times in 500 ms, were the machine idle.
    assert!(seen.waits.iter().all(|waits| *waits >= 8), "each timed out and looked: {:?}", seen.waits);
    let marked = MARKED.get();
    assert_eq!(states(&marked.closed), ["closed"; 3], "{}", marked.closed);
    assert!(marked.threads_closed.is_empty(), "they exit: {:?}", marked.threads_closed);
}

pub(super) fn claim_17() {
    let seen = MARKED.get();
    let ids = |threads: &BTreeMap<String, u32>| -> BTreeSet<u32> { threads.values().copied().collect() };
    assert_eq!(seen.threads_ready.len(), 3);
    assert!(ids(&seen.threads_ready).is_disjoint(&ids(&seen.threads)), "fresh ones");
    assert!(seen.sockets_ready.is_empty(), "before any connection is there: {:?}", seen.sockets_ready);
    assert!(states(&seen.ready).iter().all(|state| state != "open"), "{}", seen.ready);
    assert_eq!(seen.threads_ready, seen.threads_back, "they serve the connections");
    assert_eq!(states(&seen.back), ["open"; 3]);
    assert_eq!(seen.difference, None);
}

pub(super) fn claim_38() {
    let (seen, reasons) = TIMED_OUT.get();
    assert!(reasons.iter().any(|reason| reason.contains(LOOKED)), "{reasons:?}");
    assert!(seen.threads_closed.is_empty());
    assert_eq!(seen.difference, None);
}
