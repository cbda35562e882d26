//! State machine of a link, on the primary's side.
//!
//! ```text
//! Down --first heartbeat--> Probation --no gap--> Connecting --Connected--> Replaying <--CaughtUp, FellBehind--> Live
//!  ^  `--back-off over, heartbeats unbroken--------^               |              |                             |
//!  `--------------- each of them, with the reason kept ------------'--------------'-----------------------------'
//! ```
//!
//! A session that fails while heartbeats are fine is tried again after a back-off with jitter; an interruption of the
//! heartbeats, at any time, asks for a probation.

use super::Now;
use super::probation::{Probation, Progress};
use crate::config::Times;
use crate::status::LinkState;
use std::fmt;
use std::time::Duration;

/// Longest back-off; also how long a session must have lasted for the next back-off to be short again.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// Shortest back-off after a refusal: it takes an operator to change it.
pub const REFUSED_BACK_OFF: Duration = Duration::from_secs(5);

/// Why a session ended or a connect failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Heartbeats stopped for longer than the timeout, here or (by its marks) at the peer.
    Interrupted,
    /// The peer's heartbeats carry a new boot id: it was started anew.
    PeerRestarted,
    /// No progress on the oldest sent request or barrier.
    Stalled,
    /// A connection broke, a connect or handshake failed, a frame was bad; in words.
    Connection(String),
    /// The peer refused the greeting; in words.
    Refused(String),
    /// The peer could not store a request; in words.
    NotStored(String),
    /// We are stopping.
    Stopped,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupted => f.write_str("the heartbeats were interrupted"),
            Self::PeerRestarted => f.write_str("the peer was restarted"),
            Self::Stalled => f.write_str("stalled: no progress on the oldest request or barrier"),
            Self::Connection(words) => f.write_str(words),
            Self::Refused(words) => write!(f, "the peer refused: {words}"),
            Self::NotStored(words) => write!(f, "the peer could not store a request: {words}"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A heartbeat was accepted (`Verdict::Accepted`).
    Heartbeat {
        /// It has another boot id than the one before.
        new_boot: bool,
    },
    /// The heartbeat sender found elements too old, or the other side's marks closed some. This, not the silence itself,
    /// ends a running session: bytes on a connection keep its element fresh.
    ElementsClosed,
    /// All n connections stand, the greetings are answered, the log's session has begun.
    Connected,
    /// What was waiting when the session began is durable, and no resync runs.
    CaughtUp,
    /// A resync began in the running session.
    FellBehind,
    /// The session, or the attempt to connect, failed.
    Failed(EndReason),
    /// Time passes; at least once per heartbeat interval, and when [`LinkSupervisor::next_due`] says.
    Tick,
    /// The link is being stopped. Nothing happens after it.
    Stop,
}

/// What the supervisor thread has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the n connections and exchange the greeting; answer with `Connected` or `Failed`.
    Connect,
    /// Shut all connections down (also those being made), join or recycle the workers, `MirrorLog::end_session`. Nothing to
    /// be answered; a `Connected` or `Failed` that crosses it is taken care of.
    EndSession(EndReason),
}

/// State of the link, with the reason for it.
#[derive(Debug)]
pub struct LinkSupervisor {
    times: Times,
    probation: Probation,
    state: LinkState,
    reason: String,
    since: Now,
    last_heartbeat: Option<Now>,
    /// Heartbeats have been unbroken since the last probation passed.
    steady: bool,
    /// End of the back-off (state `Down`).
    back_off: Option<Now>,
    /// Failures in a row, for the length of the back-off.
    failures: u32,
    connected_at: Option<Now>,
    random: u64,
    sessions: u64,
    interruptions: u64,
    stopped: bool,
}

/// For `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSnapshot {
    /// State.
    pub state: LinkState,
    /// Why it was entered, in words.
    pub reason: String,
    /// Time in it.
    pub since: Duration,
    /// Left of the probation or back-off.
    pub countdown: Option<Duration>,
    /// Sessions made.
    pub sessions: u64,
    /// Interruptions of heartbeats seen.
    pub interruptions: u64,
}

impl LinkSupervisor {
    /// `seed` is for the jitter of the back-off.
    #[must_use]
    pub fn new(times: Times, seed: u64, now: Now) -> Self {
        Self {
            times,
            probation: Probation::new(times.probation, times.heartbeat_timeout),
            state: LinkState::Down,
            reason: "no heartbeat of the peer has been heard yet".into(),
            since: now,
            last_heartbeat: None,
            steady: false,
            back_off: None,
            failures: 0,
            connected_at: None,
            random: seed | 1,
            sessions: 0,
            interruptions: 0,
            stopped: false,
        }
    }

    /// Takes an event and returns what to do, in order.
    pub fn on_event(&mut self, event: Event, now: Now) -> Vec<Action> {
        if self.stopped {
            // An attempt that succeeded while we stopped must not stay behind.
            return if event == Event::Connected {
                vec![Action::EndSession(EndReason::Stopped)]
            } else {
                vec![]
            };
        }
        match event {
            Event::Heartbeat { new_boot } => self.heartbeat(new_boot, now),
            Event::Tick => self.tick(now),
            Event::ElementsClosed => self.fail(EndReason::Interrupted, now),
            Event::Failed(reason) => self.fail(reason, now),
            Event::Connected if self.state == LinkState::Connecting => {
                self.sessions += 1;
                self.connected_at = Some(now);
                self.enter(LinkState::Replaying, "connected".into(), now);
                vec![]
            }
            // The attempt was given up before it succeeded.
            Event::Connected => {
                vec![Action::EndSession(EndReason::Connection("the link went down while connecting".into()))]
            }
            Event::CaughtUp => {
                if self.state == LinkState::Replaying {
                    self.enter(LinkState::Live, "caught up".into(), now);
                }
                vec![]
            }
            Event::FellBehind => {
                if self.state == LinkState::Live {
                    self.enter(LinkState::Replaying, "a resync runs".into(), now);
                }
                vec![]
            }
            Event::Stop => {
                let in_session = self.in_session();
                self.stopped = true;
                self.back_off = None;
                self.enter(LinkState::Down, EndReason::Stopped.to_string(), now);
                if in_session { vec![Action::EndSession(EndReason::Stopped)] } else { vec![] }
            }
        }
    }

    /// State now.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.state
    }

    /// When `Tick` is needed at the latest: end of back-off or probation, silence while connecting.
    #[must_use]
    pub fn next_due(&self, now: Now) -> Option<Now> {
        let silent = || self.last_heartbeat.map(|last| last + self.times.heartbeat_timeout);
        let due = match self.state {
            LinkState::Probation => self.probation.due(),
            LinkState::Down => self.back_off.filter(|_| self.steady),
            LinkState::Connecting => silent(),
            LinkState::Replaying | LinkState::Live => None,
        };
        due.map(|due| due.max(now))
    }

    /// For `status`.
    #[must_use]
    pub fn snapshot(&self, now: Now) -> LinkSnapshot {
        let countdown = match self.state {
            LinkState::Probation => match self.probation.clone().poll(now) {
                Progress::Running(left) => Some(left),
                _ => Some(Duration::ZERO),
            },
            LinkState::Down => self.back_off.map(|until| until.since(now)),
            _ => None,
        };
        LinkSnapshot {
            state: self.state,
            reason: self.reason.clone(),
            since: now.since(self.since),
            countdown,
            sessions: self.sessions,
            interruptions: self.interruptions,
        }
    }

    fn in_session(&self) -> bool {
        matches!(self.state, LinkState::Connecting | LinkState::Replaying | LinkState::Live)
    }

    /// The only place where the state changes.
    fn enter(&mut self, state: LinkState, reason: String, now: Now) {
        use LinkState::{Connecting, Down, Live, Probation, Replaying};
        debug_assert!(
            matches!(
                (self.state, state),
                (_, Down)
                    | (Down, Probation)
                    | (Down | Probation, Connecting)
                    | (Connecting | Live, Replaying)
                    | (Replaying, Live)
            ),
            "{:?} to {state:?}",
            self.state
        );
        (self.state, self.reason, self.since) = (state, reason, now);
    }

    fn silent(&self, now: Now) -> bool {
        self.last_heartbeat.is_none_or(|last| now.since(last) > self.times.heartbeat_timeout)
    }

    /// In `Down`: heartbeats stopped as well, so that the back-off gives way to a probation.
    fn notice_silence(&mut self, now: Now) {
        if self.state == LinkState::Down && self.steady && self.silent(now) {
            self.interruption(now);
            self.enter(LinkState::Down, EndReason::Interrupted.to_string(), now);
        }
    }

    fn interruption(&mut self, now: Now) {
        self.interruptions += 1;
        self.steady = false;
        self.back_off = None;
        self.probation.interrupted(now);
    }

    fn heartbeat(&mut self, new_boot: bool, now: Now) -> Vec<Action> {
        self.notice_silence(now);
        if new_boot {
            match self.state {
                LinkState::Down if self.steady => self.interruption(now),
                LinkState::Down => {}
                LinkState::Probation => self.probation.start(now),
                _ => {
                    self.last_heartbeat = Some(now);
                    return self.fail(EndReason::PeerRestarted, now);
                }
            }
        }
        self.last_heartbeat = Some(now);
        match self.state {
            LinkState::Down if !self.steady => {
                self.probation.start(now);
                let reason = if self.probation.length().is_zero() { "first" } else { "again" };
                self.enter(LinkState::Probation, format!("the peer's heartbeats are heard {reason}"), now);
                self.watch(now)
            }
            LinkState::Probation => {
                self.probation.heard(now);
                self.watch(now)
            }
            _ => vec![],
        }
    }

    fn watch(&mut self, now: Now) -> Vec<Action> {
        match self.probation.poll(now) {
            Progress::Idle | Progress::Running(_) => vec![],
            Progress::Passed => {
                self.steady = true;
                self.connect("the heartbeats are steady", now)
            }
            Progress::Gap => {
                self.interruptions += 1;
                self.enter(
                    LinkState::Down,
                    "the heartbeats were interrupted during the probation".into(),
                    now,
                );
                vec![]
            }
        }
    }

    fn connect(&mut self, reason: &str, now: Now) -> Vec<Action> {
        self.back_off = None;
        self.connected_at = None;
        self.enter(LinkState::Connecting, reason.into(), now);
        vec![Action::Connect]
    }

    fn tick(&mut self, now: Now) -> Vec<Action> {
        self.notice_silence(now);
        match self.state {
            LinkState::Probation => self.watch(now),
            LinkState::Down if self.steady && self.back_off.is_some_and(|until| now >= until) => {
                let reason = format!("trying again after: {}", self.reason);
                self.connect(&reason, now)
            }
            LinkState::Connecting if self.silent(now) => self.fail(EndReason::Interrupted, now),
            _ => vec![],
        }
    }

    /// Ends the session or the attempt, if there is one.
    fn fail(&mut self, reason: EndReason, now: Now) -> Vec<Action> {
        if !self.in_session() {
            return vec![];
        }
        match &reason {
            EndReason::Interrupted | EndReason::PeerRestarted => self.interruption(now),
            _ => {
                if self.connected_at.is_some_and(|at| now.since(at) >= BACK_OFF_MAX) {
                    self.failures = 0;
                }
                let mut wait = self.back_off_length();
                if matches!(reason, EndReason::Refused(_)) {
                    wait = wait.max(REFUSED_BACK_OFF);
                }
                self.back_off = Some(now + wait);
                self.failures += 1;
            }
        }
        self.enter(LinkState::Down, reason.to_string(), now);
        vec![Action::EndSession(reason)]
    }

    /// Doubles with each failure in a row, and is spread by a quarter to both sides.
    fn back_off_length(&mut self) -> Duration {
        let base = self.times.heartbeat_interval.clamp(Duration::from_millis(10), Duration::from_millis(250));
        let length = base.saturating_mul(1 << self.failures.min(16)).min(BACK_OFF_MAX);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        length.mul_f64(0.75 + (self.random % 1024) as f64 / 2048.0)
    }
}

/// Watches that the oldest of what was sent and not answered changes. One for requests, one for barriers.
#[derive(Clone, Debug)]
pub struct StallDetector {
    timeout: Duration,
    oldest: Option<(u64, Now)>,
}

impl StallDetector {
    /// `timeout`: `--stall-timeout`.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, oldest: None }
    }
    /// `oldest`: number of the oldest one sent and not answered, `None` if there is none. True when it has been the
    /// same for longer than the timeout.
    pub fn observe(&mut self, oldest: Option<u64>, now: Now) -> bool {
        match (oldest, self.oldest) {
            (Some(number), Some((seen, at))) if number == seen => now.since(at) > self.timeout,
            (number, _) => {
                self.oldest = number.map(|number| (number, now));
                false
            }
        }
    }
}
