//! Counting what is refused, and saying so without filling the log.

use crate::status::RefusedCounters;
use parking_lot::Mutex;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One log line about refused junk in this time at most.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Counters of what was refused, shared by the threads of one side.
#[derive(Default)]
pub(crate) struct Refused {
    pub(crate) datagrams_not_authentic: AtomicU64,
    pub(crate) datagrams_replayed: AtomicU64,
    pub(crate) handshakes_failed: AtomicU64,
    pub(crate) frames_bad: AtomicU64,
    last_line: Mutex<(Option<Instant>, u64)>,
}

impl Refused {
    /// Adds one to `counter` and logs `what` unless a line came out lately.
    pub(crate) fn count(&self, counter: &AtomicU64, what: fmt::Arguments<'_>) {
        counter.fetch_add(1, Ordering::Relaxed);
        self.note(what);
    }

    /// Logs `what` unless a line came out lately.
    pub(crate) fn note(&self, what: fmt::Arguments<'_>) {
        let mut last = self.last_line.lock();
        if last.0.is_some_and(|at| at.elapsed() < LINE_INTERVAL) {
            last.1 += 1;
            return;
        }
        let silent = std::mem::take(&mut last.1);
        last.0 = Some(Instant::now());
        drop(last);
        log::warn!("refused: {what} ({silent} more refused without a line)");
    }

    pub(crate) fn snapshot(&self) -> RefusedCounters {
        RefusedCounters {
            datagrams_not_authentic: self.datagrams_not_authentic.load(Ordering::Relaxed),
            datagrams_replayed: self.datagrams_replayed.load(Ordering::Relaxed),
            handshakes_failed: self.handshakes_failed.load(Ordering::Relaxed),
            frames_bad: self.frames_bad.load(Ordering::Relaxed),
        }
    }
}
