//! Two hosts, each the primary of its own image and the mirror of the other's.

use super::{Shared, elements, link, log, number, states, write_synced};
use crate::support::judge::difference;
use crate::support::node::free_port;
use crate::support::processes::connections;
use crate::support::{FaultyLink, Pair, Setup, Way, e2fsck_clean, wait_until};
use serde_json::Value;
use std::time::{Duration, Instant};

const INTERVAL_MS: u64 = 100;

/// One host with the link of its own direction.
struct Host {
    pair: Pair,
    link: FaultyLink,
    name: &'static str,
}

fn hosts() -> (Host, Host) {
    let (port_a, port_b) = (free_port(), free_port());
    let host = |listen: u16, other: u16, name: &'static str| {
        let link = FaultyLink::start(other);
        let mut pair = Pair::prepare(Setup { peer: false, ..Setup::default() });
        pair.setup.mount = vec![
            format!("--listen=127.0.0.1:{listen}"),
            format!("--mirror-dir={}", pair.peer_dir().display()),
            format!("--peer=127.0.0.1:{}", link.port),
            format!("--node={name}"),
            format!("--heartbeat-interval={INTERVAL_MS}ms"),
            "--heartbeat-timeout=800ms".into(),
        ];
        pair.mount();
        Host { pair, link, name }
    };
    (host(port_a, port_b, "host-a"), host(port_b, port_a, "host-b"))
}

/// What happened to a direction that was cut, and to the other one meanwhile.
struct Cut {
    /// The direction's primary: before, when it was down, after writes then, and in the end.
    before: Value,
    down: Value,
    queued: Value,
    back: Value,
    /// The other direction's primary before the cut, and after its writes during it.
    other_before: Value,
    other_after: Value,
}

struct BothWays {
    steady: [Value; 2],
    /// Milliseconds, and datagrams to mirror and to primary, for the direction of each host.
    heartbeats: [(u64, u64, u64); 2],
    cut_a: Cut,
    cut_b: Cut,
    /// Both cut: status of each when down with a queue, and in the end.
    both_queued: [Value; 2],
    both_back: [Value; 2],
    differences: [Option<String>; 2],
}

static BOTH_WAYS: Shared<BothWays> = Shared::new(watch);

/// A number of writes on a host, each fsynced.
fn write(host: &Host, name: &str) {
    for index in 0..5 {
        write_synced(&host.pair.mnt().join(format!("{name}-{index}")), &vec![index + 1; 60_000]);
    }
}

fn wait_down(host: &Host) -> Value {
    let mut last = Value::Null;
    wait_until("the interruption", || {
        last = host.pair.status();
        link(&last)["state"] == "down"
    });
    last
}

fn wait_back(host: &Host) -> Value {
    host.pair.wait_for_verdict("in-sync");
    host.pair.sync();
    wait_until("an empty queue", || number(&log(&host.pair.status())["queued_requests"]) == 0);
    host.pair.status()
}

/// `cut` misses the heartbeat from its mirror; `other` goes on.
fn cut(cut: &Host, other: &Host, name: &str) -> Cut {
    let (before, other_before) = (cut.pair.status(), other.pair.status());
    cut.link.mute(Way::ToPrimary);
    let down = wait_down(cut);
    wait_until("the direction's connections to be closed", || {
        connections(cut.pair.mount_pid()).iter().all(|(_, remote)| remote.port() != cut.link.port)
    });
    write(cut, &format!("{name}-cut"));
    write(other, &format!("{name}-other"));
    other.pair.sync();
    let (queued, other_after) = (cut.pair.status(), other.pair.status());
    cut.link.heal();
    let back = wait_back(cut);
    Cut { before, down, queued, back, other_before, other_after }
}

/// The images of a direction become equal without anything being unmounted.
fn compared(from: &Host, to: &Host) -> Option<String> {
    let mirror = to.pair.peer_dir().join(from.name).join("data.img");
    let begun = Instant::now();
    loop {
        from.pair.sync();
        let found = difference(&from.pair.image(), &mirror);
        if found.is_none() {
            e2fsck_clean(&mirror);
        }
        if found.is_none() || begun.elapsed() > Duration::from_secs(20) {
            return found;
        }
    }
}

fn watch() -> BothWays {
    let (mut a, mut b) = hosts();
    for host in [&a, &b] {
        write(host, "first");
        wait_back(host);
    }
    let passed = |host: &Host| (host.link.passed(Way::ToMirror).0, host.link.passed(Way::ToPrimary).0);
    let (begun, before) = (Instant::now(), [passed(&a), passed(&b)]);
    std::thread::sleep(Duration::from_millis(1000));
    let (ms, after) = (begun.elapsed().as_millis() as u64, [passed(&a), passed(&b)]);
    let heartbeats = [0, 1].map(|host| (ms, after[host].0 - before[host].0, after[host].1 - before[host].1));
    let steady = [a.pair.status(), b.pair.status()];

    let cut_a = cut(&a, &b, "a");
    let cut_b = cut(&b, &a, "b");
    for host in [&a, &b] {
        host.link.unplug();
    }
    for host in [&a, &b] {
        wait_down(host);
        write(host, "both");
    }
    let both_queued = [a.pair.status(), b.pair.status()];
    for host in [&a, &b] {
        host.link.heal();
    }
    let both_back = [wait_back(&a), wait_back(&b)];
    let differences = [compared(&a, &b), compared(&b, &a)];
    a.pair.umount();
    b.pair.umount();
    BothWays { steady, heartbeats, cut_a, cut_b, both_queued, both_back, differences }
}

fn sessions(status: &Value) -> u64 {
    number(&link(status)["sessions"])
}

/// The session of the other host's primary, as this host's peer server shows it.
fn served(status: &Value) -> &Value {
    &status["peer"]["sessions"][0]
}

#[track_caller]
fn closes_its_direction_alone(cut: &Cut) {
    assert_eq!(link(&cut.down)["state"], "down", "{}", cut.down);
    assert!(number(&link(&cut.down)["interruptions"]) > number(&link(&cut.before)["interruptions"]));
    assert_eq!(link(&cut.other_after)["state"], "live", "the other goes on: {}", cut.other_after);
    assert_eq!(sessions(&cut.other_before), sessions(&cut.other_after), "in the same session");
    assert!(
        number(&link(&cut.other_after)["responses_stored"])
            > number(&link(&cut.other_before)["responses_stored"]),
        "and mirrors what is written"
    );
}

#[track_caller]
fn queues_and_hears_again(cut: &Cut) {
    assert!(number(&log(&cut.queued)["queued_requests"]) > 0, "{}", cut.queued);
    assert!(
        number(&link(&cut.back)["heartbeats_received"]) > number(&link(&cut.queued)["heartbeats_received"])
    );
    assert!(sessions(&cut.back) > sessions(&cut.before), "{}", cut.back);
    assert!(states(link(&cut.back)).iter().all(|state| state == "open"), "{}", cut.back);
}

#[track_caller]
fn sends_its_queue(cut: &Cut) {
    assert_eq!(number(&log(&cut.back)["queued_requests"]), 0, "{}", cut.back);
    let stored = |status: &Value| number(&link(status)["responses_stored"]);
    let queued = number(&log(&cut.queued)["queued_requests"]);
    assert!(stored(&cut.back) >= stored(&cut.queued) + queued, "{}", cut.back);
}

pub(super) fn claim_24() {
    let seen = BOTH_WAYS.get();
    for status in &seen.steady {
        assert_eq!(link(status)["state"], "live", "{status}");
        assert!(number(&served(status)["applied_requests"]) > 0, "{status}");
        // What it sends over and what it is sent over are different connections.
        let own: Vec<&Value> = elements(link(status)).iter().map(|element| &element["local"]).collect();
        assert!(
            elements(served(status)).iter().all(|element| !own.contains(&&element["remote"])),
            "{status}"
        );
    }
    assert_eq!(seen.differences, [None, None]);
}

pub(super) fn claim_25() {
    let seen = BOTH_WAYS.get();
    for status in &seen.steady {
        assert!(number(&link(status)["heartbeats_received"]) > 3, "{status}");
        assert!(number(&served(status)["heartbeats_received"]) > 3, "{status}");
    }
}

pub(super) fn claim_26() {
    closes_its_direction_alone(&BOTH_WAYS.get().cut_a);
}

pub(super) fn claim_27() {
    queues_and_hears_again(&BOTH_WAYS.get().cut_a);
}

pub(super) fn claim_28() {
    sends_its_queue(&BOTH_WAYS.get().cut_a);
}

pub(super) fn claim_29() {
    closes_its_direction_alone(&BOTH_WAYS.get().cut_b);
}

pub(super) fn claim_30() {
    queues_and_hears_again(&BOTH_WAYS.get().cut_b);
}

pub(super) fn claim_31() {
    let seen = BOTH_WAYS.get();
    sends_its_queue(&seen.cut_b);
    for (queued, back) in seen.both_queued.iter().zip(&seen.both_back) {
        assert!(number(&log(queued)["queued_requests"]) > 0, "{queued}");
        assert_eq!(number(&log(back)["queued_requests"]), 0, "{back}");
        assert_eq!(link(back)["state"], "live", "{back}");
    }
    assert_eq!(seen.differences, [None, None], "both image pairs are equal");
}

pub(super) fn claim_45() {
    for (ms, first, second) in BOTH_WAYS.get().heartbeats {
        let expected = ms / INTERVAL_MS;
        for datagrams in [first, second] {
            assert!(
                (expected * 6 / 10..=expected * 12 / 10 + 1).contains(&datagrams),
                "{datagrams} datagrams in {ms} ms"
            );
        }
    }
}
