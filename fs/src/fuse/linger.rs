//! Staying awake for the next request.
//!
//! A program that makes one request after another has each of them wait until a FUSE thread, gone to sleep a few
//! microseconds before, is awake again, most of all where an idle processor is halted (virtual machines). While
//! requests come that quickly, one thread therefore looks for the next one for a moment before it sleeps. It gives way to
//! whoever wants the processor, and stops as soon as requests come more slowly.
//!
//! The kernel knows nothing of that: for each request it wakes a thread that sleeps in a read of the device, in vain where the one
//! that is awake is quicker. So while one thread is enough, the others stand by: they sleep here, not in a read. Those in a read
//! come here by being let have a request. They go back to reading when requests wait for the one thread, or come no more.

use parking_lot::{Condvar, Mutex};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a thread stays awake at most, and how soon a request must come to count as following on: above the time to the mirror
/// and back on one machine.
const LINGER: Duration = Duration::from_micros(100);
/// Following requests that are remembered. Halved by each one that comes late, so that a few of these end it.
const CREDIT_MAX: u32 = 8;
/// How often one of those that stand by looks whether a request waits, or none has come since: bounds how long a request waits behind
/// one that takes unexpectedly long.
const WATCH: Duration = Duration::from_millis(1);
/// A turn given away for longer than this was taken by somebody else's work: who sleeps is then sooner at its turn than who gives way.
const BUSY: Duration = Duration::from_micros(200);
/// How long nobody stays awake or stands by after that.
const BUSY_LASTS: Duration = Duration::from_millis(200);
/// How long a thread that is awake waits for one that was woken in vain so far: above the time to wake a halted processor.
const GIVE_WAY: Duration = Duration::from_micros(300);
/// How long a request waits until a thread that stands by goes to serve it.
const WAITED: Duration = Duration::from_micros(100);
/// Looks of the one that watches which found a request waiting, less those that did not, from which on one thread is not enough. A
/// single program has a request waiting only until a thread has woken.
const CROWD: u32 = 20;
/// How long nobody stands by after that.
const CROWD_LASTS: Duration = Duration::from_millis(400);

/// What a thread that is awake looks for besides: news that programs wait for, and upon which they may make the next request.
pub(crate) trait News: Send + Sync {
    /// Takes what there is, without waiting, and answers whoever waited for it. True if there was something.
    fn take(&self) -> bool;
    /// Nobody goes on with [`Self::take`].
    fn leave(&self);
}

/// What the FUSE threads share.
pub(crate) struct Linger {
    device: OwnedFd,
    news: Arc<dyn News>,
    threads: usize,
    /// See [`BUSY`].
    busy: Duration,
    /// Threads that are not in a read of the device: they serve, linger or stand by.
    outside: AtomicUsize,
    /// Threads that stand by: not all, so that one reads.
    standing: AtomicUsize,
    /// A thread is awake for the next request.
    taken: AtomicBool,
    /// Requests that came in; tells the thread that is awake that another one has got a request.
    arrived: AtomicU64,
    /// Requests that lately followed on the one before within [`LINGER`]; 0: nobody lingers.
    credit: AtomicU32,
    /// Until when nobody stands by, in nanoseconds since `started`.
    crowded_until_ns: AtomicU64,
    /// Until when nobody stays awake or stands by.
    busy_until_ns: AtomicU64,
    /// When the last request was done with, in nanoseconds since `started`.
    done_ns: AtomicU64,
    started: Instant,
    /// One of those that stand by watches.
    watched: Mutex<bool>,
    called: Condvar,
}

/// A request that is being served; dropped behind its last step.
pub(crate) struct Serving<'a>(&'a Linger);

impl Linger {
    /// For a session of so many threads on this device.
    ///
    /// # Errors
    /// When no descriptor is to be had.
    pub(crate) fn new(device: BorrowedFd<'_>, threads: usize, news: Arc<dyn News>) -> io::Result<Self> {
        Ok(Self {
            device: device.try_clone_to_owned()?,
            news,
            threads,
            busy: BUSY,
            outside: AtomicUsize::new(0),
            standing: AtomicUsize::new(0),
            taken: AtomicBool::new(false),
            arrived: AtomicU64::new(0),
            credit: AtomicU32::new(0),
            crowded_until_ns: AtomicU64::new(0),
            busy_until_ns: AtomicU64::new(0),
            done_ns: AtomicU64::new(0),
            started: Instant::now(),
            watched: Mutex::new(false),
            called: Condvar::new(),
        })
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A request has come in.
    pub(crate) fn serve(&self) -> Serving<'_> {
        self.outside.fetch_add(1, Ordering::Relaxed);
        self.arrived.fetch_add(1, Ordering::Relaxed);
        let waited_ns = self.now_ns().saturating_sub(self.done_ns.load(Ordering::Relaxed));
        self.note(Duration::from_nanos(waited_ns));
        Serving(self)
    }

    /// A request has come in behind which its thread does not stay awake, as what follows on it comes late.
    pub(crate) fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
        self.news.leave();
    }

    /// Races between threads lose a count now and then: it is a hint.
    fn note(&self, waited: Duration) {
        let credit = self.credit.load(Ordering::Relaxed);
        let credit = if waited <= LINGER { (credit + 1).min(CREDIT_MAX) } else { credit / 2 };
        self.credit.store(credit, Ordering::Relaxed);
    }

    /// One thread is enough for what comes.
    fn one_is_enough(&self) -> bool {
        let now_ns = self.now_ns();
        self.credit.load(Ordering::Relaxed) >= CREDIT_MAX / 2
            && now_ns >= self.crowded_until_ns.load(Ordering::Relaxed)
            && now_ns >= self.busy_until_ns.load(Ordering::Relaxed)
    }

    fn one_is_not_enough(&self) {
        let until_ns = self.now_ns() + CROWD_LASTS.as_nanos() as u64;
        self.crowded_until_ns.store(until_ns, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        let mut device = libc::pollfd { fd: self.device.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one `pollfd`, on the stack; the descriptor is open. It returns at once. An error ends the wait too.
        unsafe { libc::poll(&raw mut device, 1, 0) != 0 }
    }

    fn served(&self) {
        let now_ns = self.now_ns();
        self.done_ns.store(now_ns, Ordering::Relaxed);
        let slow = self.credit.load(Ordering::Relaxed) == 0;
        if slow || now_ns < self.busy_until_ns.load(Ordering::Relaxed) {
            return self.news.leave();
        }
        if self.taken.swap(true, Ordering::Acquire) {
            self.stand_by();
        } else {
            self.stay_awake();
            self.taken.store(false, Ordering::Release);
        }
    }

    /// Looks for the next request, until there is one for this thread, or none has come for a while.
    fn stay_awake(&self) {
        let mut arrived = self.arrived.load(Ordering::Relaxed);
        let mut end_ns = self.now_ns() + LINGER.as_nanos() as u64;
        let mut gives_way = false;
        loop {
            let now_arrived = self.arrived.load(Ordering::Relaxed);
            let another_has_it = now_arrived != arrived;
            let news = self.news.take();
            if news {
                // What follows on news follows on them, not on the request before.
                self.done_ns.store(self.now_ns(), Ordering::Relaxed);
            }
            if another_has_it || (news && !gives_way) {
                (arrived, gives_way) = (now_arrived, false);
                end_ns = self.now_ns() + LINGER.as_nanos() as u64;
            }
            if !gives_way && self.is_ready() {
                let others_read = self.outside.load(Ordering::Relaxed) < self.threads;
                if !(others_read && self.one_is_enough()) {
                    return;
                }
                // One of those that read was woken for it: let it have the request, and stand by afterwards.
                gives_way = true;
                end_ns = self.now_ns() + GIVE_WAY.as_nanos() as u64;
            }
            let now_ns = self.now_ns();
            if now_ns >= end_ns {
                if gives_way {
                    // Nobody came for it: not again soon.
                    self.one_is_not_enough();
                }
                return self.news.leave();
            }
            std::thread::yield_now();
            if self.gave_way_to_work(now_ns) {
                return self.news.leave();
            }
        }
    }

    /// Whether the turn that was given away at `since_ns` was taken for long; then those that stand by go back to reading.
    fn gave_way_to_work(&self, since_ns: u64) -> bool {
        let now_ns = self.now_ns();
        let busy = Duration::from_nanos(now_ns.saturating_sub(since_ns)) >= self.busy;
        if busy {
            self.busy_until_ns.store(now_ns + BUSY_LASTS.as_nanos() as u64, Ordering::Relaxed);
            self.called.notify_all();
        }
        busy
    }

    /// Sleeps while one thread is enough, unless it is the last one.
    fn stand_by(&self) {
        if self.standing.fetch_add(1, Ordering::Relaxed) + 1 < self.threads {
            self.sleep();
        }
        self.standing.fetch_sub(1, Ordering::Relaxed);
    }

    fn sleep(&self) {
        let mut watched = self.watched.lock();
        if *watched {
            while *watched {
                self.called.wait(&mut watched);
            }
            return;
        }
        *watched = true;
        let mut crowd = 0;
        while self.one_is_enough() {
            let before = self.arrived.load(Ordering::Relaxed);
            self.called.wait_for(&mut watched, WATCH);
            let arrived = self.arrived.load(Ordering::Relaxed);
            if arrived == before {
                break;
            }
            let waits = self.is_ready();
            crowd = crowd_after(crowd, waits);
            if crowd == CROWD {
                self.one_is_not_enough();
                break;
            }
            if !waits {
                continue;
            }
            self.called.wait_for(&mut watched, WAITED);
            if self.arrived.load(Ordering::Relaxed) == arrived {
                break;
            }
        }
        *watched = false;
        self.called.notify_all();
    }
}

/// See [`CROWD`].
fn crowd_after(crowd: u32, waits: bool) -> u32 {
    if waits { crowd + 1 } else { crowd.saturating_sub(1) }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.served();
        self.0.outside.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::sync::{OnceLock, Weak};

    /// News that come once, and whether they were left.
    #[derive(Default)]
    struct Once {
        there: AtomicBool,
        left: AtomicBool,
    }

    impl News for Once {
        fn take(&self) -> bool {
            self.there.swap(false, Ordering::Relaxed)
        }
        fn leave(&self) {
            self.left.store(true, Ordering::Relaxed);
        }
    }

    /// On a processor that may be as busy as it likes.
    fn unhurried(device: BorrowedFd<'_>, threads: usize, news: Arc<dyn News>) -> Linger {
        Linger { busy: Duration::MAX, ..Linger::new(device, threads, news).unwrap() }
    }

    #[test]
    fn it_lingers_only_while_requests_follow_on() {
        let (reader, _writer) = io::pipe().unwrap();
        let linger = unhurried(reader.as_fd(), 1, Arc::new(Once::default()));
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
    fn it_ends_by_time_and_by_a_request() {
        let (reader, mut writer) = io::pipe().unwrap();
        let linger = unhurried(reader.as_fd(), 1, Arc::new(Once::default()));
        let begun = Instant::now();
        linger.stay_awake();
        assert!(begun.elapsed() >= LINGER);
        writer.write_all(b"x").unwrap();
        linger.stay_awake();
    }

    #[test]
    fn a_request_is_left_to_one_that_reads_but_not_where_nobody_comes() {
        let (reader, mut writer) = io::pipe().unwrap();
        let linger = unhurried(reader.as_fd(), 2, Arc::new(Once::default()));
        linger.credit.store(CREDIT_MAX, Ordering::Relaxed);
        linger.outside.store(1, Ordering::Relaxed);
        writer.write_all(b"x").unwrap();
        let begun = Instant::now();
        linger.stay_awake();
        assert!(begun.elapsed() >= GIVE_WAY, "it gave way");
        assert!(!linger.one_is_enough(), "nobody came: not again soon");
    }

    /// The other threads: each time they are looked for, one of them has got a request, until none reads any more.
    #[derive(Default)]
    struct Others {
        linger: OnceLock<Weak<Linger>>,
        to_come: AtomicU32,
    }

    impl News for Others {
        fn take(&self) -> bool {
            let linger = self.linger.get().unwrap().upgrade().unwrap();
            if self.to_come.load(Ordering::Relaxed) > 0 {
                self.to_come.fetch_sub(1, Ordering::Relaxed);
                linger.arrived.fetch_add(1, Ordering::Relaxed);
            } else {
                linger.outside.store(linger.threads, Ordering::Relaxed);
            }
            false
        }
        fn leave(&self) {}
    }

    #[test]
    fn one_that_gave_way_stays_awake_for_the_next_request() {
        let (reader, mut writer) = io::pipe().unwrap();
        let others = Arc::new(Others { to_come: AtomicU32::new(4), ..Others::default() });
        let linger = Arc::new(unhurried(reader.as_fd(), 2, Arc::clone(&others) as Arc<dyn News>));
        others.linger.set(Arc::downgrade(&linger)).unwrap();
        linger.credit.store(CREDIT_MAX, Ordering::Relaxed);
        linger.outside.store(1, Ordering::Relaxed);
        writer.write_all(b"x").unwrap();
        linger.stay_awake();
        assert_eq!(others.to_come.load(Ordering::Relaxed), 0, "it gave way each time");
        assert!(linger.one_is_enough(), "somebody came each time");
    }

    #[test]
    fn news_are_taken_and_lengthen_the_wait_and_are_left_at_its_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        let once = Arc::new(Once::default());
        let linger = unhurried(reader.as_fd(), 1, Arc::clone(&once) as Arc<dyn News>);
        once.there.store(true, Ordering::Relaxed);
        writer.write_all(b"x").unwrap();
        linger.stay_awake();
        assert!(!once.there.load(Ordering::Relaxed), "taken");
        assert!(linger.done_ns.load(Ordering::Relaxed) > 0, "what follows, follows on the news");
        assert!(!once.left.load(Ordering::Relaxed), "this thread will look again behind the request");
        let serving = linger.serve();
        linger.credit.store(0, Ordering::Relaxed);
        drop(serving);
        assert!(once.left.swap(false, Ordering::Relaxed), "it does not stay awake");
        let (idle, _writer) = io::pipe().unwrap();
        let linger = unhurried(idle.as_fd(), 1, Arc::clone(&once) as Arc<dyn News>);
        linger.stay_awake();
        assert!(once.left.load(Ordering::Relaxed), "nothing came");
    }

    #[test]
    fn on_a_busy_processor_nobody_stays_awake_or_stands_by() {
        let (reader, _writer) = io::pipe().unwrap();
        let linger = Linger::new(reader.as_fd(), 3, Arc::new(Once::default())).unwrap();
        linger.credit.store(CREDIT_MAX, Ordering::Relaxed);
        assert!(linger.one_is_enough());
        assert!(!linger.gave_way_to_work(u64::MAX), "no time at all");
        std::thread::sleep(BUSY);
        assert!(linger.gave_way_to_work(0));
        assert!(!linger.one_is_enough());
        let served_within_busy = linger.busy_until_ns.load(Ordering::Relaxed);
        (0..1000).for_each(|_| drop(linger.serve()));
        assert_eq!(linger.busy_until_ns.load(Ordering::Relaxed), served_within_busy);
        linger.busy_until_ns.store(0, Ordering::Relaxed);
        assert!(linger.one_is_enough(), "it is tried again");
    }

    #[test]
    fn not_all_stand_by() {
        let (reader, _writer) = io::pipe().unwrap();
        let linger = unhurried(reader.as_fd(), 2, Arc::new(Once::default()));
        linger.credit.store(CREDIT_MAX, Ordering::Relaxed);
        linger.standing.store(1, Ordering::Relaxed);
        let begun = Instant::now();
        (0..1000).for_each(|_| linger.stand_by());
        assert!(begun.elapsed() < 1000 * WATCH, "it would have watched at least once each time");
    }

    #[test]
    fn those_that_stand_by_go_back_when_they_are_needed_or_nothing_comes() {
        let (reader, mut writer) = io::pipe().unwrap();
        let linger = unhurried(reader.as_fd(), 3, Arc::new(Once::default()));
        let stand_by_while = |happens: &dyn Fn(&dyn Fn() -> bool)| {
            linger.credit.store(CREDIT_MAX, Ordering::Relaxed);
            linger.crowded_until_ns.store(0, Ordering::Relaxed);
            std::thread::scope(|scope| {
                let standing = [(); 2].map(|()| scope.spawn(|| linger.stand_by()));
                happens(&|| standing.iter().all(|thread| thread.is_finished()));
                standing.into_iter().for_each(|thread| thread.join().unwrap());
            });
            assert!(!*linger.watched.lock());
            assert_eq!(linger.standing.load(Ordering::Relaxed), 0);
        };
        let come = || {
            linger.arrived.fetch_add(1, Ordering::Relaxed);
            std::thread::yield_now();
        };
        // Nothing comes.
        stand_by_while(&|_| {});
        // Requests come, but too slowly.
        stand_by_while(&|ended| {
            linger.credit.store(0, Ordering::Relaxed);
            while !ended() {
                come();
            }
        });
        // There is always one that waits.
        writer.write_all(b"x").unwrap();
        stand_by_while(&|ended| {
            while !ended() {
                come();
            }
        });
    }

    #[test]
    fn a_crowd_is_told_from_a_program_that_waits_for_a_thread_now_and_then() {
        let looks = |waits: fn(u32) -> bool| {
            (0..100_000).scan(0, move |crowd, look| {
                *crowd = crowd_after(*crowd, waits(look));
                Some(*crowd)
            })
        };
        assert_eq!(looks(|_| true).position(|crowd| crowd == CROWD), Some(CROWD as usize - 1));
        assert!(looks(|look| look % 3 == 0).all(|crowd| crowd < CROWD));
    }
}
