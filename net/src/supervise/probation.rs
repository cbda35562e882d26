//! Probation: heartbeats must be steady for a while before a link that was interrupted is used again.

use super::Now;
use std::time::Duration;

/// Longest probation.
pub const PROBATION_MAX: Duration = Duration::from_secs(60);

/// How a probation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// None is running.
    Idle,
    /// Still watching; this much is left.
    Running(Duration),
    /// It passed (and is idle again).
    Passed,
    /// A silence longer than the heartbeat timeout happened in it (and it is idle again): counts as a flap.
    Gap,
}

/// Length and course of the probation of one link.
#[derive(Clone, Debug)]
pub struct Probation {
    first: Duration,
    gap: Duration,
}

impl Probation {
    /// `first`: shortest length; `gap`: the heartbeat timeout.
    #[must_use]
    pub fn new(first: Duration, gap: Duration) -> Self {
        Self { first, gap }
    }
    /// Length of the next (or running) one; zero before the first connection since the start.
    #[must_use]
    pub fn length(&self) -> Duration {
        unimplemented!("{:?}{:?}", self.first, self.gap)
    }
    /// The first heartbeat after an interruption was accepted: the watch begins.
    pub fn start(&mut self, _now: Now) {
        unimplemented!()
    }
    /// A heartbeat was accepted.
    pub fn heard(&mut self, _now: Now) {
        unimplemented!()
    }
    /// Looks at the running probation.
    pub fn poll(&mut self, _now: Now) -> Progress {
        unimplemented!()
    }
    /// The link was interrupted after it had passed: doubles the length after a flap, shrinks it after a long quiet time.
    pub fn interrupted(&mut self, _now: Now) {
        unimplemented!()
    }
}
