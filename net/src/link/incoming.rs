//! The way in of one connection: the peer's answers.
//!
//! The connection's reader thread takes them or, on connection 0, a thread that stays awake for a moment anyway
//! (`Pump::receive`): where each request follows the answer to the one before, nobody need be woken between them. While somebody
//! looks again and again the reader rests. It goes on when that one leaves, or has not looked for a while.

use super::rules;
use super::session::Session;
use super::worker::broken;
use crate::transport::{Arrival, Receiver, Spin};
use crate::wire::codec::{self, WireError};
use parking_lot::Mutex;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// After this long without a look the reader goes on: above the time in which whoever looks serves a request between two looks.
const REST: Duration = Duration::from_micros(500);
/// Longest wait for bytes; only bounds how late the end of the session is noticed where the socket does not tell.
const ARRIVAL_WAIT: Duration = Duration::from_secs(1);
/// Answers outstanding up to which others take them: beyond it the reader has enough to do to stay awake itself.
const FEW: u64 = 16;

/// See the module's text.
pub(super) struct Incoming {
    /// Locked while answers are taken from it and given to the log; `None` before and after the connection's life.
    receiver: Mutex<Option<Receiver>>,
    started: Instant,
    /// When somebody beside the reader last looked, in nanoseconds since `started`; 0: nobody does.
    looked_ns: AtomicU64,
    reader: OnceLock<Thread>,
    /// The reader is about to rest or rests.
    rests: AtomicBool,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self {
            receiver: Mutex::default(),
            started: Instant::now(),
            looked_ns: AtomicU64::new(0),
            reader: OnceLock::new(),
            rests: AtomicBool::new(false),
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// From now on no answer is taken; waits for one that is.
    pub(super) fn close(&self) {
        *self.receiver.lock() = None;
    }

    /// Takes what is there in the reader's stead, if that blocks on nothing. True if it was something.
    pub(super) fn look(&self, session: &Session) -> bool {
        match session.outstanding() {
            0 => return false,
            1..=FEW => {}
            _ => {
                self.leave();
                return false;
            }
        }
        self.looked_ns.store(self.now_ns().max(1), Ordering::Relaxed);
        let Some(mut guard) = self.receiver.try_lock() else { return false };
        let Some(receiver) = guard.as_mut() else { return false };
        let mut any = false;
        // The end, and what does not decrypt, are left to the reader.
        while !session.is_over() && receiver.peek().is_ok_and(codec::holds_response) {
            any = true;
            if !take(session, 0, receiver) {
                break;
            }
        }
        any
    }

    /// Whoever looked does not go on.
    pub(super) fn leave(&self) {
        // Both sides first say what they do, and then look what the other does: one of them sees it.
        if self.looked_ns.swap(0, Ordering::SeqCst) > 0
            && self.rests.load(Ordering::SeqCst)
            && let Some(reader) = self.reader.get()
        {
            reader.unpark();
        }
    }

    /// Waits while somebody else looks.
    fn rest(&self) {
        loop {
            self.rests.store(true, Ordering::SeqCst);
            let looked_ns = self.looked_ns.load(Ordering::SeqCst);
            let since = Duration::from_nanos(self.now_ns().saturating_sub(looked_ns));
            if looked_ns == 0 || since >= REST {
                self.rests.store(false, Ordering::SeqCst);
                return;
            }
            std::thread::park_timeout(REST - since);
        }
    }

    /// The reader thread. Takes answers from the socket; gives them to the log, whose replies leave from here; ends when the socket
    /// does.
    pub(super) fn run(&self, session: &Session, index: u16, receiver: Receiver) {
        let arrival = receiver.arrival();
        let _ = self.reader.set(std::thread::current());
        *self.receiver.lock() = Some(receiver);
        let mut spin = Spin::default();
        while self.turn(session, index, &arrival, &mut spin) {}
        self.close();
    }

    /// Waits for an answer and takes it. False at the end.
    fn turn(&self, session: &Session, index: u16, arrival: &Arrival, spin: &mut Spin) -> bool {
        self.rest();
        let mut buffered = false;
        if let Some(receiver) = self.receiver.lock().as_mut() {
            // Somebody waits for what is under way. What went wrong is found by the read.
            if session.shared.log.is_eager()
                && session.outstanding() > 0
                && !session.asking.swap(true, Ordering::Acquire)
            {
                let _ = spin.ask(receiver);
                session.asking.store(false, Ordering::Release);
            }
            buffered = receiver.has_buffered();
        }
        if !buffered {
            let _ = arrival.wait(ARRIVAL_WAIT);
        }
        let mut guard = self.receiver.lock();
        let Some(receiver) = guard.as_mut() else { return false };
        // Somebody else may have been quicker.
        !receiver.poll_readable().unwrap_or(true) || take(session, index, receiver)
    }
}

/// Takes one answer. False if it was the last: the connection has ended, or the session fails.
fn take(session: &Session, index: u16, receiver: &mut Receiver) -> bool {
    let shared = &session.shared;
    match codec::read_response(receiver) {
        Ok(response) => {
            session.answered();
            match rules::take(&shared.log, response) {
                Ok(stored) => {
                    if stored {
                        shared.responses_stored.fetch_add(1, Ordering::Relaxed);
                    }
                    return true;
                }
                Err(reason) => {
                    shared.responses_failed.fetch_add(1, Ordering::Relaxed);
                    session.fail(reason);
                }
            }
        }
        Err(WireError::Io(error)) => {
            let ended = error.kind() == io::ErrorKind::UnexpectedEof;
            let expected = session.is_over() || (ended && session.goodbye_wanted());
            if !expected {
                let why = if ended { "closed by the peer".to_owned() } else { error.to_string() };
                session.fail(broken(index, &why));
            }
        }
        Err(error) => {
            shared.refused.frames_bad.fetch_add(1, Ordering::Relaxed);
            session.fail(broken(index, &error));
        }
    }
    false
}
