//! Time as the logic sees it: a value that is passed in, so that it can be simulated.

use std::ops::Add;
use std::time::{Duration, Instant};

/// A point in time: monotonic, since an arbitrary start of this process (or of a simulation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Now(pub Duration);

impl Now {
    /// Time from `earlier` to this; zero if that is later.
    #[must_use]
    pub fn since(self, earlier: Now) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
    /// Whole microseconds since the start.
    #[must_use]
    pub fn micros(self) -> u64 {
        u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX)
    }
    /// The inverse of [`Self::micros`].
    #[must_use]
    pub fn from_micros(micros: u64) -> Self {
        Self(Duration::from_micros(micros))
    }
}

impl Add<Duration> for Now {
    type Output = Now;
    fn add(self, rhs: Duration) -> Now {
        Now(self.0.saturating_add(rhs))
    }
}

/// Source of [`Now`] for the threads; one for the whole process side, cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts at (nearly) zero.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }
    /// Time since the start.
    #[must_use]
    pub fn now(&self) -> Now {
        Now(self.0.elapsed())
    }
}
