//! State machine of a link, on the primary's side.

use super::Now;
use crate::config::Times;
use crate::status::LinkState;
use std::time::Duration;

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

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A heartbeat was accepted (`Verdict::Accepted`).
    Heartbeat {
        /// It has another boot id than the one before.
        new_boot: bool,
    },
    /// The heartbeat sender found elements too old, or the other side's marks closed some.
    ElementsClosed,
    /// All n connections stand, the greetings are answered, the log's session has begun.
    Connected,
    /// What was waiting when the session began is durable, and no resync runs.
    CaughtUp,
    /// A resync began in the running session.
    FellBehind,
    /// The session, or the attempt to connect, failed.
    Failed(EndReason),
    /// Time passes; at least once per heartbeat interval.
    Tick,
    /// The link is being stopped.
    Stop,
}

/// What the supervisor thread has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the n connections and exchange the greeting; answer with `Connected` or `Failed`.
    Connect,
    /// Shut all connections down (also those being made), join or recycle the workers, `MirrorLog::end_session`.
    EndSession(EndReason),
}

/// State of the link, with the reason for it.
#[derive(Debug)]
pub struct LinkSupervisor {
    _times: Times,
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
    pub fn new(times: Times, seed: u64, _now: Now) -> Self {
        let _ = seed;
        Self { _times: times }
    }
    /// Takes an event and returns what to do, in order.
    pub fn on_event(&mut self, _event: Event, _now: Now) -> Vec<Action> {
        unimplemented!()
    }
    /// State now.
    #[must_use]
    pub fn state(&self) -> LinkState {
        unimplemented!()
    }
    /// When `Tick` is needed at the latest (end of back-off or probation).
    #[must_use]
    pub fn next_due(&self, _now: Now) -> Option<Now> {
        unimplemented!()
    }
    /// For `status`.
    #[must_use]
    pub fn snapshot(&self, _now: Now) -> LinkSnapshot {
        unimplemented!()
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
