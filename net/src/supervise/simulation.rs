//! Both sides of a link over a simulated network that drops, duplicates, delays, reorders, forges and replays.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::Now;
use super::heartbeat::*;
use super::link_state::{Action, EndReason, Event, LinkSupervisor};
use crate::config::{Key, Security, Times};
use crate::connection::{ConnectionArray, SocketParameter};
use crate::status::LinkState;
use crate::wire::SessionId;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

const LOCAL: usize = 0;
const MIRROR: usize = 1;
const ELEMENTS: u16 = 4;

type Bytes = [u8; DATAGRAM_BYTES];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) drop_percent: u64,
    pub(super) duplicate_percent: u64,
    pub(super) delay_max_us: u64,
    /// Chance, for each datagram delivered, of one forged, damaged, reflected or replayed.
    pub(super) attack_percent: u64,
    /// By sending side.
    pub(super) cut: [bool; 2],
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Tick(usize),
    Deliver(usize, Bytes),
}

pub(super) struct Link {
    random: Random,
    pub(super) now: Now,
    order: u64,
    events: BinaryHeap<Reverse<(Now, u64, What)>>,
    faults: Faults,
    logic: [HeartbeatLogic; 2],
    arrays: [ConnectionArray; 2],
    supervisor: LinkSupervisor,
    /// Delivered datagrams by receiving side, for the attacker.
    recorded: [VecDeque<Bytes>; 2],
    recorded_max: usize,
    /// When the mirror's array got its first mark in this session.
    mirror_marked: Option<Now>,
    connected_at: Option<Now>,
    steps: u64,
    attacks: u64,
    datagrams: u64,
    /// By side: when the last heartbeat was accepted, and how often which silence came before one, by hundredths of a second.
    accepted_at: [Option<Now>; 2],
    pub(super) silences: [Vec<u64>; 2],
}

fn addr(side: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, side as u8 + 1], 7370))
}

fn attacker() -> SocketAddr {
    SocketAddr::from(([6, 6, 6, 6], 666))
}

fn logic(side: usize, times: Times, boot_id: u64) -> HeartbeatLogic {
    let key = MacKey::derive(&Security::Key(Key([3; 32])));
    let config = HeartbeatConfig {
        side: if side == LOCAL { Side::Local } else { Side::Mirror },
        link: LinkId::of_node("node"),
        key,
        times,
        boot_id,
    };
    let mut logic = HeartbeatLogic::new(config);
    if side == LOCAL {
        logic.set_target(addr(MIRROR));
    }
    logic
}

impl Link {
    pub(super) fn new(times: Times, faults: Faults, seed: u64) -> Self {
        let array = || ConnectionArray::new(ELEMENTS, times.heartbeat_timeout).unwrap();
        let mut link = Self {
            random: Random(seed | 1),
            now: Now::default(),
            order: 0,
            events: BinaryHeap::new(),
            faults,
            logic: [logic(LOCAL, times, 2 * seed + 2), logic(MIRROR, times, 2 * seed + 3)],
            arrays: [array(), array()],
            supervisor: LinkSupervisor::new(times, seed, Now::default()),
            recorded: Default::default(),
            recorded_max: 2000,
            mirror_marked: None,
            connected_at: None,
            steps: 0,
            attacks: 0,
            datagrams: 0,
            accepted_at: [None; 2],
            silences: Default::default(),
        };
        link.at(Now::default(), What::Tick(LOCAL));
        link.at(Now(Duration::from_millis(7)), What::Tick(MIRROR));
        link
    }

    fn at(&mut self, time: Now, what: What) {
        self.order += 1;
        self.events.push(Reverse((time, self.order, what)));
    }

    fn step(&mut self) {
        let Reverse((time, _, what)) = self.events.pop().unwrap();
        self.now = time;
        self.steps += 1;
        match what {
            What::Tick(side) => self.tick(side),
            What::Deliver(to, bytes) => {
                let verdict = self.logic[to].on_datagram(&bytes, addr(1 - to), self.now);
                self.verdict(to, verdict);
                self.recorded[to].push_back(bytes);
                if self.recorded[to].len() > self.recorded_max {
                    self.recorded[to].pop_front();
                }
                if self.random.percent(self.faults.attack_percent) {
                    self.attack(to);
                }
            }
        }
    }

    pub(super) fn run_until(&mut self, end: Now) {
        while self.events.peek().is_some_and(|Reverse((time, ..))| *time <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Runs until it is so; how long that took.
    fn run_while(&mut self, bound: Duration, so: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while so(self) {
            assert!(
                self.now.since(start) < bound,
                "still so after {bound:?}: {:?}",
                self.supervisor.snapshot(self.now)
            );
            self.step();
        }
        self.now.since(start)
    }

    fn tick(&mut self, side: usize) {
        let stale = self.arrays[side].mark_stale(self.now);
        self.marked(side, stale);
        let mut out = Vec::new();
        let due = self.logic[side].on_tick(self.now, self.arrays[side].marks(), &mut out);
        for (to, bytes) in out {
            assert_eq!(to, addr(1 - side), "nothing is ever sent to anybody else in these runs");
            self.send(side, bytes);
        }
        if side == LOCAL {
            self.event(Event::Tick);
        }
        self.at(due, What::Tick(side));
    }

    fn send(&mut self, from: usize, bytes: Bytes) {
        self.datagrams += 1;
        let copies = if self.random.percent(self.faults.duplicate_percent) { 2 } else { 1 };
        for _ in 0..copies {
            if !self.faults.cut[from] && !self.random.percent(self.faults.drop_percent) {
                let delay = Duration::from_micros(100 + self.random.below(self.faults.delay_max_us.max(1)));
                self.at(self.now + delay, What::Deliver(1 - from, bytes));
            }
        }
    }

    fn verdict(&mut self, side: usize, verdict: Verdict) {
        let marks = match verdict {
            Verdict::Accepted { marks, new_boot, .. } => {
                self.arrays[side].heard_all(self.now);
                self.note_silence(side);
                if side == LOCAL {
                    self.event(Event::Heartbeat { new_boot });
                }
                marks
            }
            Verdict::MarksOnly(marks) => marks,
            _ => return,
        };
        let copied = self.arrays[side].apply_marks(marks.session, marks.bits);
        self.marked(side, copied);
    }

    fn note_silence(&mut self, side: usize) {
        if let Some(last) = self.accepted_at[side].replace(self.now) {
            let hundredths = (self.now.since(last).as_millis() / 10) as usize;
            let silences = &mut self.silences[side];
            silences.resize(silences.len().max(hundredths + 1), 0);
            silences[hundredths] += 1;
        }
    }

    fn marked(&mut self, side: usize, bits: u64) {
        if bits != 0 && side == LOCAL {
            self.event(Event::ElementsClosed);
        } else if bits != 0 {
            self.mirror_marked.get_or_insert(self.now);
        }
    }

    fn event(&mut self, event: Event) {
        for action in self.supervisor.on_event(event, self.now) {
            match action {
                Action::Connect if self.faults.cut == [false; 2] => {
                    let session = SessionId(u128::from(self.random.0));
                    for (array, logic) in self.arrays.iter().zip(&mut self.logic) {
                        array.begin(session);
                        for index in 0..ELEMENTS {
                            let parameter = SocketParameter::Connect { addr: addr(MIRROR), index };
                            array.prepare(index, parameter, self.now).unwrap();
                        }
                        logic.set_session(session, ELEMENTS);
                    }
                    self.mirror_marked = None;
                    self.connected_at = Some(self.now);
                    self.event(Event::Connected);
                    self.event(Event::CaughtUp);
                }
                Action::Connect => self.event(Event::Failed(EndReason::Connection("no route".into()))),
                Action::EndSession(_) => {
                    self.arrays[LOCAL].close_all();
                    if self.faults.cut == [false; 2] {
                        self.arrays[MIRROR].close_all();
                    }
                }
            }
        }
    }

    /// Nothing that an attacker sends without the key, or again, is ever accepted.
    fn attack(&mut self, to: usize) {
        let pick = self.random.below(self.recorded[to].len() as u64) as usize;
        let mut bytes = self.recorded[to][pick].to_vec();
        match self.random.below(6) {
            0 => bytes.clear(),
            1 => bytes.truncate(self.random.below(DATAGRAM_BYTES as u64) as usize),
            2 => bytes[self.random.below(DATAGRAM_BYTES as u64) as usize] ^= 1 << self.random.below(8),
            3 => bytes.push(0),
            4 => {
                // Reflected: what was sent to the other side comes back.
                let other = &self.recorded[1 - to];
                if let Some(last) = other.back() {
                    bytes = last.to_vec();
                }
            }
            _ => {}
        }
        self.attacks += 1;
        let from = if self.random.percent(50) { attacker() } else { addr(1 - to) };
        let verdict = self.logic[to].on_datagram(&bytes, from, self.now);
        assert!(matches!(verdict, Verdict::Ignored(_)), "{verdict:?}");
    }

    fn live(&self) -> bool {
        self.supervisor.state() == LinkState::Live
    }
}

/// 20 % of the datagrams of each direction are lost, others come twice or in another order, and an attacker is at
/// work: with the default times, a million steps (hours) see no false interruption.
#[test]
fn a_lossy_network_makes_no_false_interruption() {
    let faults = Faults {
        drop_percent: 20,
        duplicate_percent: 5,
        delay_max_us: 120_000,
        attack_percent: 5,
        ..Faults::default()
    };
    let mut link = Link::new(Times::default(), faults, 11);
    link.run_while(Duration::from_secs(20), |link| !link.live());
    while link.steps < 1_000_000 {
        link.step();
        assert!(link.live(), "cut after {:?}: {:?}", link.now, link.supervisor.snapshot(link.now));
    }
    let snapshot = link.supervisor.snapshot(link.now);
    assert_eq!((snapshot.sessions, snapshot.interruptions), (1, 0));
    assert!(
        link.attacks > 10_000 && link.now.0 > Duration::from_secs(3600),
        "{} {:?}",
        link.attacks,
        link.now
    );
    assert_eq!(link.logic[MIRROR].address(), Some(addr(LOCAL)));
    let stats = link.logic[LOCAL].stats();
    assert!((5..=40).contains(&stats.loss_percent), "{stats:?}");
    assert!(stats.rtt_us.is_some_and(|rtt| (200..300_000).contains(&rtt)), "{stats:?}");
}

/// A quiet network costs one datagram for each interval and side; a lossy one up to one each 50 ms.
#[test]
fn the_interval_follows_the_loss() {
    let mut link = Link::new(Times::default(), Faults::default(), 5);
    link.run_until(Now(Duration::from_secs(100)));
    assert!((780..=810).contains(&link.datagrams), "{}", link.datagrams);
    link.faults.drop_percent = 20;
    link.run_until(Now(Duration::from_secs(110)));
    let before = link.datagrams;
    link.run_until(Now(Duration::from_secs(120)));
    let lossy = link.datagrams - before;
    assert!((360..=410).contains(&lossy), "{lossy}");
    link.faults.drop_percent = 0;
    // It is remembered for half a minute.
    link.run_until(Now(Duration::from_secs(140)));
    let before = link.datagrams;
    link.run_until(Now(Duration::from_secs(145)));
    assert!(link.datagrams - before > 150, "{}", link.datagrams - before);
    link.run_until(Now(Duration::from_secs(155)));
    let before = link.datagrams;
    link.run_until(Now(Duration::from_secs(255)));
    let quiet = link.datagrams - before;
    assert!((780..=810).contains(&quiet), "{quiet}");
}

/// Each direction alone and both: both sides notice within timeout and interval, and the link comes back after a probation.
#[test]
fn an_interruption_is_noticed_by_both_sides_in_time_and_recovered_from() {
    let times = Times::default();
    let delay = 20_000;
    let bound = times.heartbeat_timeout + times.heartbeat_interval + 3 * Duration::from_micros(delay);
    for seed in 1..60 {
        let faults = Faults { delay_max_us: delay, duplicate_percent: 3, ..Faults::default() };
        let mut link = Link::new(times, faults, seed);
        link.run_while(Duration::from_secs(2), |link| !link.live());
        assert!(
            link.connected_at.unwrap().0 < Duration::from_secs(1),
            "the first connection needs one exchange only"
        );
        for round in 1..4 {
            // Long enough for the next interruption not to be a flap.
            let quiet = Duration::from_secs(31) + Duration::from_millis(link.random.below(3000));
            link.run_until(link.now + quiet);
            assert!(link.live());
            link.faults.cut = [[true, true], [true, false], [false, true]][link.random.below(3) as usize];
            let cut_at = link.now;
            link.run_while(bound, Link::live);
            link.run_while(bound, |link| link.mirror_marked.is_none());
            assert!(
                link.now.since(cut_at) <= bound,
                "{:?} after {:?}",
                link.now.since(cut_at),
                link.faults.cut
            );
            let down = Duration::from_millis(link.random.below(20_000));
            link.run_until(link.now + down);
            assert_ne!(link.supervisor.state(), LinkState::Live);
            link.faults.cut = [false; 2];
            let took = link.run_while(Duration::from_secs(10), |link| !link.live());
            assert!(took >= times.probation && took < times.probation + Duration::from_secs(1), "{took:?}");
            assert_eq!(link.supervisor.snapshot(link.now).interruptions, round);
        }
    }
}

/// With a fault of some kind at any time, also during probation and connecting, the link is live again once they end.
#[test]
fn the_link_recovers_whatever_happened() {
    let times = Times {
        heartbeat_interval: Duration::from_millis(20),
        heartbeat_timeout: Duration::from_millis(200),
        probation: Duration::from_millis(300),
        ..Times::default()
    };
    for seed in 1..40 {
        let mut link = Link::new(times, Faults::default(), seed * 77);
        for _ in 0..30 {
            link.faults = Faults {
                drop_percent: link.random.below(100),
                duplicate_percent: link.random.below(30),
                delay_max_us: link.random.below(80_000),
                attack_percent: 20,
                cut: [link.random.percent(20), link.random.percent(20)],
            };
            let span = Duration::from_millis(link.random.below(1500));
            link.run_until(link.now + span);
        }
        link.faults = Faults { delay_max_us: 5000, ..Faults::default() };
        // The longest probation, and what may have been in the way.
        link.run_while(Duration::from_secs(150), |link| !link.live());
        link.run_until(link.now + Duration::from_secs(5));
        assert!(link.live());
    }
}

/// All that was recorded of earlier runs, played to a later one, before its first contact and after: never accepted, its
/// marks never copied, and no address moves.
#[test]
fn datagrams_of_an_earlier_run_are_ignored() {
    let faults = Faults { delay_max_us: 5000, ..Faults::default() };
    let mut earlier = Link::new(Times::default(), faults, 21);
    earlier.recorded_max = usize::MAX;
    earlier.run_until(Now(Duration::from_secs(60)));
    earlier.faults.cut = [true, false];
    earlier.run_until(Now(Duration::from_secs(70)));
    assert!(!earlier.live() && earlier.mirror_marked.is_some());

    let mut later = Link::new(Times::default(), faults, 22);
    let replay = |later: &mut Link| {
        for side in [LOCAL, MIRROR] {
            for bytes in &earlier.recorded[side] {
                let verdict = later.logic[side].on_datagram(bytes, addr(1 - side), later.now);
                assert!(
                    matches!(verdict, Verdict::Candidate | Verdict::Ignored(Ignored::Replayed)),
                    "{verdict:?}"
                );
            }
        }
    };
    replay(&mut later);
    assert_eq!(later.supervisor.state(), LinkState::Down);
    later.run_while(Duration::from_secs(2), |later| !later.live());
    for _ in 0..50 {
        replay(&mut later);
        later.run_until(later.now + Duration::from_millis(400));
        assert!(later.live());
    }
    assert_eq!(later.supervisor.snapshot(later.now).sessions, 1);

    // Only the mirror is started anew: the primary's boot is the recorded one, the recording still proves nothing.
    let mut mirror = logic(MIRROR, Times::default(), 999);
    for bytes in &earlier.recorded[MIRROR] {
        let verdict = mirror.on_datagram(bytes, attacker(), later.now);
        assert!(matches!(verdict, Verdict::Candidate | Verdict::Ignored(Ignored::Replayed)), "{verdict:?}");
    }
    assert_eq!((mirror.address(), mirror.remote_boot()), (None, None));
}

/// A restart of either side, quicker than the timeout, is seen as a new boot and ends the session.
#[test]
fn a_restart_of_the_peer_ends_the_session() {
    let mut link = Link::new(Times::default(), Faults { delay_max_us: 5000, ..Faults::default() }, 31);
    link.run_while(Duration::from_secs(2), |link| !link.live());
    link.run_until(link.now + Duration::from_secs(5));
    link.logic[MIRROR] = logic(MIRROR, Times::default(), 4242);
    link.run_while(Duration::from_secs(2), Link::live);
    let snapshot = link.supervisor.snapshot(link.now);
    assert_eq!(snapshot.reason, EndReason::PeerRestarted.to_string());
    assert_eq!(link.logic[LOCAL].remote_boot(), Some(4242));
    link.run_while(Duration::from_secs(10), |link| !link.live());
    assert_eq!(link.supervisor.snapshot(link.now).sessions, 2);
}
