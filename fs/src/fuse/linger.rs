//! Staying awake for the next request.
//!
//! A program that makes one request after another has each of them wait until a FUSE thread, gone to sleep a few
//! microseconds before, is awake again, most of all where an idle processor is halted (virtual machines). While
//! requests come that quickly, one thread therefore looks for the next one for a moment before it sleeps. It gives way to
//! whoever wants the processor, and stops as soon as requests come more slowly.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a thread stays awake at most, and how soon a request must come to count as following on.
const LINGER: Duration = Duration::from_micros(50);
/// Following requests that are remembered. Halved by each one that comes late, so that a few of these end it.
const CREDIT_MAX: u32 = 8;

/// What the FUSE threads share.
pub(crate) struct Linger {
    device: OwnedFd,
    /// A thread is awake for the next request.
    taken: AtomicBool,
    /// Requests that came in; tells the thread that is awake that another one has got the request.
    arrived: AtomicU64,
    /// Requests that lately followed on the one before within [`LINGER`]; 0: nobody lingers.
    credit: AtomicU32,
    /// When the last request was done with, in nanoseconds since `started`.
    done_ns: AtomicU64,
    started: Instant,
}

/// A request that is being served; dropped behind its last step.
pub(crate) struct Serving<'a>(&'a Linger);

impl Linger {
    /// For the session on this device.
    ///
    /// # Errors
    /// When no descriptor is to be had.
    pub(crate) fn new(device: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            device: device.try_clone_to_owned()?,
            taken: AtomicBool::new(false),
            arrived: AtomicU64::new(0),
            credit: AtomicU32::new(0),
            done_ns: AtomicU64::new(0),
            started: Instant::now(),
        })
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A request has come in.
    pub(crate) fn serve(&self) -> Serving<'_> {
        self.arrived.fetch_add(1, Ordering::Relaxed);
        let waited_ns = self.now_ns().saturating_sub(self.done_ns.load(Ordering::Relaxed));
        self.note(Duration::from_nanos(waited_ns));
        Serving(self)
    }

    /// Races between threads lose a count now and then: it is a hint.
    fn note(&self, waited: Duration) {
        let credit = self.credit.load(Ordering::Relaxed);
        let credit = if waited <= LINGER { (credit + 1).min(CREDIT_MAX) } else { credit / 2 };
        self.credit.store(credit, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        let mut device = libc::pollfd { fd: self.device.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one `pollfd`, on the stack; the descriptor is open. It returns at once. An error ends the wait too.
        unsafe { libc::poll(&raw mut device, 1, 0) != 0 }
    }

    fn linger(&self) {
        let begun_ns = self.now_ns();
        self.done_ns.store(begun_ns, Ordering::Relaxed);
        if self.credit.load(Ordering::Relaxed) == 0 || self.taken.swap(true, Ordering::Acquire) {
            return;
        }
        let arrived = self.arrived.load(Ordering::Relaxed);
        let end_ns = begun_ns + LINGER.as_nanos() as u64;
        while !self.is_ready() && self.arrived.load(Ordering::Relaxed) == arrived && self.now_ns() < end_ns {
            std::thread::yield_now();
        }
        self.taken.store(false, Ordering::Release);
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.linger();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn it_lingers_only_while_requests_follow_on() {
        let (reader, _writer) = io::pipe().unwrap();
        let linger = Linger::new(reader.as_fd()).unwrap();
        let credit = || linger.credit.load(Ordering::Relaxed);
        linger.note(LINGER * 2);
        assert_eq!(credit(), 0);
        for _ in 0..20 {
            linger.note(LINGER);
        }
        assert_eq!(credit(), CREDIT_MAX);
        let late = (0..20).take_while(|_| {
            linger.note(LINGER * 2);
            credit() > 0
        });
        assert_eq!(late.count(), 3);
    }

    #[test]
    fn it_ends_by_time_by_a_request_and_when_another_has_taken_it() {
        let (reader, mut writer) = io::pipe().unwrap();
        let linger = Linger::new(reader.as_fd()).unwrap();
        linger.credit.store(CREDIT_MAX, Ordering::Relaxed);
        let begun = Instant::now();
        linger.linger();
        assert!(begun.elapsed() >= LINGER);
        writer.write_all(b"x").unwrap();
        assert!(linger.is_ready());
        linger.linger();
        // One that another thread keeps from lingering returns as well, and leaves it to that one.
        linger.taken.store(true, Ordering::Relaxed);
        linger.linger();
        assert!(linger.taken.load(Ordering::Relaxed));
    }
}
