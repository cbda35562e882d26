#![allow(clippy::unwrap_used, reason = "tests")]

use super::Now;
use super::heartbeat::*;
use super::link_state::*;
use super::probation::*;
use crate::config::{Key, Security, Times};
use crate::status::LinkState;
use crate::wire::SessionId;
use std::net::SocketAddr;
use std::time::Duration;

const NOISY: Event = Event::Heartbeat { new_boot: false };

fn at(millis: u64) -> Now {
    Now(Duration::from_millis(millis))
}

fn host(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 7370))
}

fn key(byte: u8) -> MacKey {
    MacKey::derive(&Security::Key(Key([byte; 32])))
}

fn side(side: Side, boot_id: u64) -> HeartbeatLogic {
    let link = LinkId::of_node("node");
    let mut logic =
        HeartbeatLogic::new(HeartbeatConfig { side, link, key: key(1), times: Times::default(), boot_id });
    if side == Side::Local {
        logic.set_target(host(2));
    }
    logic
}

fn beat(logic: &mut HeartbeatLogic, now: Now) -> Vec<(SocketAddr, [u8; DATAGRAM_BYTES])> {
    let mut out = Vec::new();
    logic.on_tick(now, 0, &mut out);
    out
}

fn sample() -> Datagram {
    Datagram {
        side: Side::Mirror,
        count: 4,
        link: LinkId(0x0807_0605_0403_0201),
        boot_id: 0x11,
        counter: 0x22,
        session: SessionId(0x33),
        marks: 0b101,
        echo_boot: 0x44,
        echo_counter: 0x55,
        sent_us: 0x66,
        echo_us: 0x77,
        held_us: 0x88,
        beat: 0x99,
        loss_percent: 20,
    }
}

#[test]
fn a_datagram_has_these_bytes() {
    let bytes = sample().seal(&key(1));
    let hex: String = bytes[..104].iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = concat!(
        "6d667368",
        "01",
        "01",
        "0400",
        "0102030405060708",
        "1100000000000000",
        "2200000000000000",
        "33000000000000000000000000000000",
        "0500000000000000",
        "4400000000000000",
        "5500000000000000",
        "6600000000000000",
        "7700000000000000",
        "88000000",
        "99000000",
        "14",
        "00000000000000"
    );
    assert_eq!(hex, expected);
    let key_bytes = blake3::derive_key("mirrorfs 2026 heartbeat mac", &[1; 32]);
    assert_eq!(bytes[104..], *blake3::keyed_hash(&key_bytes, &bytes[..104]).as_bytes());
    assert_eq!(Datagram::open(&bytes, &key(1)), Ok(sample()));
}

#[test]
fn every_flipped_bit_cut_and_foreign_key_is_not_authentic() {
    let bytes = sample().seal(&key(1));
    for bit in 0..DATAGRAM_BYTES * 8 {
        let mut damaged = bytes;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Datagram::open(&damaged, &key(1)), Err(NotAuthentic), "bit {bit}");
    }
    for length in 0..DATAGRAM_BYTES {
        assert_eq!(Datagram::open(&bytes[..length], &key(1)), Err(NotAuthentic));
    }
    assert_eq!(Datagram::open(&[&bytes[..], &[0]].concat(), &key(1)), Err(NotAuthentic));
    assert_eq!(Datagram::open(&bytes, &key(2)), Err(NotAuthentic));
    assert_eq!(Datagram::open(&bytes, &MacKey::derive(&Security::None)), Err(NotAuthentic));
    let senseless = Datagram { count: 65, ..sample() };
    assert_eq!(Datagram::open(&senseless.seal(&key(1)), &key(1)), Err(NotAuthentic));
}

/// Claims 12, 13 and 23: each side by its own timer, at the interval; a datagram that comes in is no reason to send.
#[test]
fn claim_13_each_side_sends_by_its_own_timer() {
    let mut local = side(Side::Local, 1);
    let mut sent = Vec::new();
    let mut due = at(0);
    for _ in 0..5 {
        sent.push(due);
        let mut out = Vec::new();
        let next = local.on_tick(due, 0, &mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(local.on_tick(due, 0, &mut out), next, "not due yet");
        assert_eq!(out.len(), 1);
        due = next;
    }
    assert_eq!(sent, [at(0), at(250), at(500), at(750), at(1000)]);
    let mut mirror = side(Side::Mirror, 2);
    assert!(beat(&mut mirror, at(0)).is_empty(), "it has nobody to send to");
    let datagram = beat(&mut local, at(1250))[0].1;
    assert_eq!(mirror.on_datagram(&datagram, host(1), at(1251)), Verdict::Candidate);
    assert_eq!(beat(&mut mirror, at(200)).len(), 0, "not before its own timer");
    assert_eq!(beat(&mut mirror, at(1260))[0].0, host(1));
}

#[test]
fn contact_takes_one_exchange_and_a_fresh_echo() {
    let (mut local, mut mirror) = (side(Side::Local, 1), side(Side::Mirror, 2));
    let first = beat(&mut local, at(0))[0].1;
    assert_eq!(mirror.on_datagram(&first, host(1), at(1)), Verdict::Candidate);
    let second = beat(&mut mirror, at(10))[0].1;
    let verdict = local.on_datagram(&second, host(2), at(11));
    assert!(matches!(
        verdict,
        Verdict::Accepted { new_boot: false, after_interruption: true, boot_id: 2, .. }
    ));
    assert_eq!(local.stats().rtt_us, Some(2000));
    assert!(!mirror.alive(at(11)));
    let third = beat(&mut local, at(250))[0].1;
    assert!(matches!(mirror.on_datagram(&third, host(1), at(251)), Verdict::Accepted { .. }));
    assert_eq!((mirror.address(), mirror.remote_boot()), (Some(host(1)), Some(1)));
    assert_eq!(mirror.on_datagram(&third, host(1), at(252)), Verdict::Ignored(Ignored::Replayed));
    assert_eq!(local.on_datagram(&third, host(2), at(252)), Verdict::Ignored(Ignored::Reflected));
    assert_eq!(mirror.on_datagram(&[], host(1), at(252)), Verdict::Ignored(Ignored::NotAuthentic));
    let stats = mirror.stats();
    assert_eq!((stats.received, stats.sent, stats.not_authentic, stats.replayed), (1, 1, 1, 1));
    assert!(mirror.alive(at(2251)) && !mirror.alive(at(2252)));
}

/// Brings two sides together; returns the time.
fn together(local: &mut HeartbeatLogic, mirror: &mut HeartbeatLogic) -> u64 {
    for now in (0..1000).step_by(250) {
        for (_, bytes) in beat(local, at(now)) {
            mirror.on_datagram(&bytes, host(1), at(now));
        }
        for (_, bytes) in beat(mirror, at(now)) {
            local.on_datagram(&bytes, host(2), at(now));
        }
    }
    assert!(local.alive(at(750)) && mirror.alive(at(750)));
    1000
}

/// A datagram caught on the way and brought from elsewhere counts as the heartbeat that it is, but moves nothing: the
/// new address must echo what was sent to it.
#[test]
fn the_address_moves_only_when_it_echoes() {
    let (mut local, mut mirror) = (side(Side::Local, 1), side(Side::Mirror, 2));
    let now = together(&mut local, &mut mirror);
    let caught = beat(&mut local, at(now))[0].1;
    assert!(matches!(mirror.on_datagram(&caught, host(66), at(now)), Verdict::Accepted { .. }));
    assert_eq!(mirror.address(), Some(host(1)));
    let sent = beat(&mut mirror, at(now));
    assert_eq!(sent.iter().map(|sent| sent.0).collect::<Vec<_>>(), [host(1), host(66)]);
    // The primary gets only what went to its own address, and echoes that: the stranger proves nothing.
    local.on_datagram(&sent[0].1, host(2), at(now));
    let caught = beat(&mut local, at(now + 250))[0].1;
    mirror.on_datagram(&caught, host(66), at(now + 250));
    assert_eq!(mirror.address(), Some(host(1)));
    // The primary really has moved: what is sent to the new address reaches it.
    let sent = beat(&mut mirror, at(now + 250));
    local.on_datagram(&sent[1].1, host(2), at(now + 250));
    let moved = beat(&mut local, at(now + 500))[0].1;
    assert!(matches!(
        mirror.on_datagram(&moved, host(66), at(now + 500)),
        Verdict::Accepted { new_boot: false, .. }
    ));
    assert_eq!(mirror.address(), Some(host(66)));
}

/// One-way loss: whoever still hears takes the marks, but does not take the other side for hearing.
#[test]
fn an_old_echo_brings_marks_only() {
    let (mut local, mut mirror) = (side(Side::Local, 1), side(Side::Mirror, 2));
    let mut now = together(&mut local, &mut mirror);
    mirror.set_session(SessionId(9), 4);
    let mut last = None;
    for _ in 0..12 {
        beat(&mut local, at(now));
        let mut out = Vec::new();
        mirror.on_tick(at(now), 0b10, &mut out);
        last = Some(local.on_datagram(&out[0].1, host(2), at(now)));
        now += 250;
    }
    assert_eq!(last, Some(Verdict::MarksOnly(Marks { session: SessionId(9), bits: 0b10 })));
}

/// A side whose timer stood still (a stopped process) does not take an echo of long ago for a fresh one.
#[test]
fn an_echo_is_judged_by_its_age_even_if_no_beat_came_in_between() {
    let (mut local, mut mirror) = (side(Side::Local, 1), side(Side::Mirror, 2));
    let now = together(&mut local, &mut mirror);
    let late = beat(&mut mirror, at(now))[0].1;
    assert!(matches!(local.on_datagram(&late, host(2), at(now + 4000)), Verdict::MarksOnly(_)));
    assert!(!local.alive(at(now + 4000)));
}

#[test]
fn few_candidates_are_kept_and_a_superseded_boot_is_dead() {
    let (mut local, mut mirror) = (side(Side::Local, 1), side(Side::Mirror, 2));
    let mut now = together(&mut local, &mut mirror);
    for boot in 100..150 {
        let bytes = beat(&mut side(Side::Local, boot), at(now))[0].1;
        assert_eq!(mirror.on_datagram(&bytes, host(9), at(now)), Verdict::Candidate);
    }
    assert_eq!(beat(&mut mirror, at(now)).len(), 1 + 8);
    let old = beat(&mut local, at(now))[0].1;
    // The primary is started anew.
    let mut local = side(Side::Local, 77);
    let mut verdict = Verdict::Candidate;
    for _ in 0..3 {
        now += 250;
        for (_, bytes) in beat(&mut local, at(now)) {
            verdict = mirror.on_datagram(&bytes, host(1), at(now));
            if matches!(verdict, Verdict::Accepted { new_boot: true, .. }) {
                assert_eq!(mirror.remote_boot(), Some(77));
                assert_eq!(mirror.on_datagram(&old, host(1), at(now)), Verdict::Ignored(Ignored::Replayed));
                return;
            }
        }
        for (_, bytes) in beat(&mut mirror, at(now)) {
            local.on_datagram(&bytes, host(2), at(now));
        }
    }
    panic!("the new boot was not accepted: {verdict:?}");
}

fn probation() -> Probation {
    let mut probation = Probation::new(Duration::from_secs(3), Duration::from_secs(2));
    probation.start(at(0));
    assert_eq!(probation.poll(at(0)), Progress::Passed, "one exchange only");
    probation.interrupted(at(1000));
    probation
}

/// Heartbeats every 250 ms from `from` until it passes; when that is.
fn watch(probation: &mut Probation, from: u64) -> u64 {
    probation.start(at(from));
    for now in (from..).step_by(250) {
        probation.heard(at(now));
        match probation.poll(at(now)) {
            Progress::Passed => return now,
            Progress::Running(left) => {
                assert_eq!(left, probation.length() - Duration::from_millis(now - from))
            }
            other => panic!("{other:?}"),
        }
    }
    unreachable!()
}

#[test]
fn claim_06_probation_has_no_gap_and_grows_with_flaps() {
    let mut probation = probation();
    assert_eq!(probation.length(), Duration::from_secs(3));
    let mut now = watch(&mut probation, 5000);
    assert_eq!(now, 8000);
    // Flaps double it, up to a minute.
    for seconds in [6, 12, 24, 48, 60, 60] {
        probation.interrupted(at(now + 5000));
        assert_eq!(probation.length(), Duration::from_secs(seconds));
        now = watch(&mut probation, now + 8000);
    }
    // A long quiet time shrinks it again, for each 20 lengths by half.
    now += 20 * 60_000 + 20 * 30_000;
    probation.interrupted(at(now));
    assert_eq!(probation.length(), Duration::from_secs(15));
    now = watch(&mut probation, now) + 86_400_000;
    probation.interrupted(at(now));
    assert_eq!(probation.length(), Duration::from_secs(3), "never below the first");
    // Exactly the timeout is no gap, more is one; seen by the next heartbeat or by the clock.
    probation.start(at(now));
    probation.heard(at(now + 2000));
    assert!(matches!(probation.poll(at(now + 2000)), Progress::Running(_)));
    probation.heard(at(now + 4001));
    assert_eq!(probation.poll(at(now + 4001)), Progress::Gap);
    assert_eq!(probation.length(), Duration::from_secs(6));
    assert_eq!(probation.poll(at(now + 4001)), Progress::Idle);
    probation.start(at(now));
    assert_eq!(probation.poll(at(now + 2001)), Progress::Gap);
}

fn live() -> LinkSupervisor {
    let mut link = LinkSupervisor::new(Times::default(), 7, at(0));
    assert_eq!(link.state(), LinkState::Down);
    assert_eq!(link.on_event(Event::Tick, at(5)), []);
    assert_eq!(link.on_event(NOISY, at(10)), [Action::Connect]);
    assert_eq!(link.on_event(Event::Connected, at(20)), []);
    assert_eq!(link.state(), LinkState::Replaying);
    link.on_event(Event::CaughtUp, at(30));
    assert_eq!(link.state(), LinkState::Live);
    link
}

#[test]
fn claims_02_and_03_an_interruption_leads_through_probation() {
    let mut link = live();
    link.on_event(Event::FellBehind, at(50));
    assert_eq!(link.state(), LinkState::Replaying);
    link.on_event(Event::CaughtUp, at(60));
    assert_eq!(link.on_event(Event::ElementsClosed, at(5000)), [Action::EndSession(EndReason::Interrupted)]);
    assert_eq!(link.on_event(Event::Failed(EndReason::Stalled), at(5001)), [], "the session is over already");
    let snapshot = link.snapshot(at(5100));
    assert_eq!((snapshot.state, snapshot.since), (LinkState::Down, Duration::from_millis(100)));
    assert_eq!((snapshot.sessions, snapshot.interruptions), (1, 1));
    assert_eq!(snapshot.reason, "the heartbeats were interrupted");
    assert_eq!(link.on_event(Event::Tick, at(9000)), []);
    assert_eq!(link.on_event(NOISY, at(9000)), [], "claim 18: starts the probation");
    assert_eq!(link.state(), LinkState::Probation);
    assert_eq!(link.snapshot(at(9500)).countdown, Some(Duration::from_millis(2500)));
    // A gap in it starts all over.
    assert_eq!(link.on_event(Event::Tick, at(11_001)), []);
    assert_eq!(link.state(), LinkState::Down);
    link.on_event(NOISY, at(12_000));
    for now in (12_000..18_000).step_by(250) {
        assert_eq!(link.on_event(NOISY, at(now)), []);
        assert!(link.next_due(at(now)).is_some());
    }
    assert_eq!(link.on_event(Event::Tick, at(18_000)), [Action::Connect]);
    // Silence while connecting ends the attempt; its late success is undone.
    assert_eq!(link.on_event(Event::Tick, at(19_751)), [Action::EndSession(EndReason::Interrupted)]);
    assert!(matches!(link.on_event(Event::Connected, at(19_752))[..], [Action::EndSession(_)]));
    assert_eq!(link.state(), LinkState::Down);
}

/// A peer that accepts and then fails is not asked thousands of times, and an unbroken heartbeat needs no probation.
#[test]
fn failures_back_off_with_jitter() {
    let mut link = live();
    let mut now = 1000;
    let mut connects = 0;
    let mut longest = Duration::ZERO;
    let failure = EndReason::NotStored("disk full".into());
    assert_eq!(link.on_event(Event::Failed(failure.clone()), at(now)), [Action::EndSession(failure.clone())]);
    assert_eq!(link.snapshot(at(now)).reason, "the peer could not store a request: disk full");
    while now < 1_200_000 {
        now += 50;
        longest = longest.max(link.snapshot(at(now)).countdown.unwrap_or_default());
        link.on_event(NOISY, at(now));
        if link.on_event(Event::Tick, at(now)) == [Action::Connect] {
            connects += 1;
            link.on_event(Event::Connected, at(now));
            link.on_event(Event::Failed(failure.clone()), at(now + 10));
        }
    }
    assert!((40..60).contains(&connects), "{connects} in 20 minutes");
    assert!(longest > Duration::from_secs(29) && longest < Duration::from_secs(38), "{longest:?}");
    assert_eq!(link.snapshot(at(now)).interruptions, 0);
    // A session that lasts makes the next wait short.
    while link.on_event(Event::Tick, at(now)).is_empty() {
        now += 50;
        link.on_event(NOISY, at(now));
    }
    link.on_event(Event::Connected, at(now));
    link.on_event(Event::Failed(failure), at(now + 40_000));
    assert!(link.snapshot(at(now + 40_000)).countdown.unwrap() < Duration::from_millis(400));
}

#[test]
fn silence_during_the_back_off_asks_for_a_probation() {
    let mut link = live();
    link.on_event(NOISY, at(1000));
    link.on_event(Event::Failed(EndReason::Connection("reset".into())), at(1000));
    assert_eq!(link.on_event(Event::Tick, at(3100)), [], "the back-off is over, and so are the heartbeats");
    assert_eq!(link.snapshot(at(3100)).interruptions, 1);
    assert_eq!(link.on_event(NOISY, at(3200)), []);
    assert_eq!(link.state(), LinkState::Probation);
}

#[test]
fn a_stop_ends_everything() {
    let mut link = live();
    assert_eq!(link.on_event(Event::Stop, at(100)), [Action::EndSession(EndReason::Stopped)]);
    assert_eq!(link.on_event(NOISY, at(200)), []);
    assert_eq!(link.on_event(Event::Tick, at(9000)), []);
    assert_eq!(link.on_event(Event::Connected, at(200)), [Action::EndSession(EndReason::Stopped)]);
    assert_eq!(link.state(), LinkState::Down);
}

#[test]
fn a_stall_is_the_same_oldest_request_for_too_long() {
    let mut stall = StallDetector::new(Duration::from_secs(10));
    assert!(!stall.observe(None, at(0)));
    assert!(!stall.observe(Some(1), at(60_000)), "idle time does not count");
    assert!(!stall.observe(Some(1), at(70_000)));
    assert!(stall.observe(Some(1), at(70_001)));
    assert!(!stall.observe(Some(2), at(70_001)));
    assert!(!stall.observe(None, at(90_000)));
    assert!(!stall.observe(Some(2), at(90_000)));
}
