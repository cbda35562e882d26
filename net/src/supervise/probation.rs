//! Probation: heartbeats must be steady for a while before a link that was interrupted is used again.

use super::Now;
use std::time::Duration;

/// Longest probation (unless the first one is set longer).
pub const PROBATION_MAX: Duration = Duration::from_secs(60);
/// An interruption sooner than this many probation lengths after the last one passed is a flap.
const FLAP_LENGTHS: u32 = 10;
/// For each time that the link was quiet for this many lengths, the length is halved.
const QUIET_LENGTHS: u32 = 20;

/// How a probation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// None is running.
    Idle,
    /// Still watching; this much is left.
    Running(Duration),
    /// It passed (and is idle again).
    Passed,
    /// A silence longer than the heartbeat timeout happened in it (and it is idle again). Counts as a flap.
    Gap,
}

/// Length and course of the probation of one link.
#[derive(Clone, Debug)]
pub struct Probation {
    first: Duration,
    gap: Duration,
    /// Length of the next one, or of the running one.
    current: Duration,
    running: Option<Running>,
    passed: Option<Passed>,
    /// Whether the one exchange that the first connection needs was had.
    begun: bool,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    started: Now,
    last: Now,
    gap: bool,
}

#[derive(Clone, Copy, Debug)]
struct Passed {
    at: Now,
    /// It was a real one, not the first connection's.
    watched: bool,
}

impl Probation {
    /// `first`: shortest length; `gap`: the heartbeat timeout.
    #[must_use]
    pub fn new(first: Duration, gap: Duration) -> Self {
        Self { first, gap, current: first, running: None, passed: None, begun: false }
    }
    /// Length of the next (or running) one; zero before the first connection since the start.
    #[must_use]
    pub fn length(&self) -> Duration {
        if self.begun { self.current } else { Duration::ZERO }
    }
    /// The first heartbeat after an interruption was accepted: the watch begins (anew).
    pub fn start(&mut self, now: Now) {
        self.running = Some(Running { started: now, last: now, gap: false });
    }
    /// A heartbeat was accepted.
    pub fn heard(&mut self, now: Now) {
        if let Some(running) = &mut self.running {
            running.gap |= now.since(running.last) > self.gap;
            running.last = now;
        }
    }
    /// Looks at the running probation.
    pub fn poll(&mut self, now: Now) -> Progress {
        let Some(running) = self.running else { return Progress::Idle };
        if running.gap || now.since(running.last) > self.gap {
            self.running = None;
            self.lengthen();
            return Progress::Gap;
        }
        let left = self.length().saturating_sub(now.since(running.started));
        if !left.is_zero() {
            return Progress::Running(left);
        }
        self.running = None;
        self.passed = Some(Passed { at: now, watched: self.begun });
        self.begun = true;
        Progress::Passed
    }
    /// When the running one ends, if nothing happens.
    #[must_use]
    pub fn due(&self) -> Option<Now> {
        self.running.map(|running| (running.started + self.length()).min(running.last + self.gap))
    }
    /// The link was interrupted after it had passed: doubles the length after a flap, shrinks it after a long quiet time.
    /// The first connection's interruption is no flap: nothing was watched before it.
    pub fn interrupted(&mut self, now: Now) {
        self.running = None;
        let Some(passed) = self.passed.take() else { return };
        let mut quiet = now.since(passed.at);
        if passed.watched && quiet < self.current * FLAP_LENGTHS {
            self.lengthen();
            return;
        }
        while self.current > self.first && quiet >= self.current * QUIET_LENGTHS {
            quiet -= self.current * QUIET_LENGTHS;
            self.current = (self.current / 2).max(self.first);
        }
    }

    fn lengthen(&mut self) {
        if self.begun {
            self.current = (self.current * 2).min(PROBATION_MAX.max(self.first));
        }
    }
}
