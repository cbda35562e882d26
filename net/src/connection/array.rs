//! The array of n elements of {socket, timestamp, state}.
//!
//! Locks: each element has its own mutex, for its socket only; nothing is called out to and no second lock is taken under it.
//! Timestamp and mark are atomics, so that bytes and heartbeats that come in take no lock.

use crate::status::{ElementState, ElementStatus};
use crate::supervise::Now;
use crate::transport::{Closer, Transport};
use crate::wire::{Greeting, SessionId};
use parking_lot::{Condvar, Mutex};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Most elements that an array can have: the marks travel in 64 bits.
pub const CONNECTIONS_MAX: u16 = 64;

/// Why an element can't take what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    /// n is not in 1..=64.
    #[error("{0} connections: must be 1 to 64")]
    Count(u16),
    /// i ≥ n.
    #[error("connection {index} of {count}: there is no such element")]
    Index {
        /// i.
        index: u16,
        /// n.
        count: u16,
    },
    /// A second connection for the same element.
    #[error("connection {0} is there already")]
    Taken(u16),
}

/// An accepted connection with its greeting, as the peer's listener hands it to connection thread i.
pub struct Accepted {
    /// The connection.
    pub transport: Transport,
    /// Its greeting, checked against the session.
    pub greeting: Greeting,
}

/// What a connection is established from; stored in the element first, taken from it by the element's thread.
pub enum SocketParameter {
    /// Local side: where worker `index` connects to.
    Connect {
        /// The peer, resolved.
        addr: SocketAddr,
        /// The worker's index.
        index: u16,
    },
    /// Peer: the accepted socket.
    Accepted(Box<Accepted>),
}

impl SocketParameter {
    fn closer(&self) -> Option<Closer> {
        match self {
            Self::Connect { .. } => None,
            Self::Accepted(accepted) => Some(accepted.transport.closer()),
        }
    }
}

/// n elements, shared by all threads of one side of a link. One array serves one session after the other.
pub struct ConnectionArray {
    elements: Box<[Element]>,
    timeout: Duration,
    session: Mutex<SessionId>,
    /// Bit i: element i was marked closed, here or at the other side, since the last `begin`.
    marks: AtomicU64,
}

struct Element {
    /// Microseconds of [`Now`] plus one; 0: none yet.
    timestamp: AtomicU64,
    socket: Mutex<Socket>,
    changed: Condvar,
}

/// State of an element's socket; the mark lies beside it, in [`ConnectionArray::marks`].
///
/// ```text
/// Idle --prepare--> Ready --take--> Taken --open--> Open
///   ^----------------- release, begin, close_all ----|
/// ```
enum Socket {
    Idle,
    Ready(SocketParameter, Ends),
    /// The thread has the parameter and is connecting or greeting.
    Taken(Ends),
    Open(Ends),
}

/// What can be shown of a connection, and the handle to shut it down. The addresses are kept: a socket that was
/// shut down does not know them any more.
#[derive(Clone, Default)]
struct Ends {
    closer: Option<Closer>,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
}

impl Ends {
    fn of(closer: Closer) -> Self {
        Self { local: closer.local_addr(), remote: closer.peer_addr(), closer: Some(closer) }
    }
}

impl Socket {
    fn ends(&self) -> Option<&Ends> {
        match self {
            Self::Idle => None,
            Self::Ready(_, ends) | Self::Taken(ends) | Self::Open(ends) => Some(ends),
        }
    }
    fn shutdown(&self) {
        if let Some(closer) = self.ends().and_then(|ends| ends.closer.as_ref()) {
            closer.shutdown();
        }
    }
}

impl Element {
    fn stamp(&self, now: Now) {
        // Never back: heartbeat receiver and connection thread may carry times of slightly different age.
        self.timestamp.fetch_max(now.micros().saturating_add(1), Ordering::Relaxed);
    }
    fn age(&self, now: Now) -> Option<Duration> {
        let stamp = self.timestamp.load(Ordering::Relaxed);
        (stamp > 0).then(|| now.since(Now::from_micros(stamp - 1)))
    }
}

impl ConnectionArray {
    /// n idle elements. `timeout`: the age at which a timestamp is too old.
    ///
    /// # Errors
    /// When n is not in 1..=64.
    pub fn new(count: u16, timeout: Duration) -> Result<Self, ArrayError> {
        if !(1..=CONNECTIONS_MAX).contains(&count) {
            return Err(ArrayError::Count(count));
        }
        let element = |_| Element {
            timestamp: AtomicU64::new(0),
            socket: Mutex::new(Socket::Idle),
            changed: Condvar::new(),
        };
        Ok(Self {
            elements: (0..count).map(element).collect(),
            timeout,
            session: Mutex::new(SessionId::default()),
            marks: AtomicU64::new(0),
        })
    }
    /// n.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.elements.len() as u16
    }
    /// Makes all elements idle for a new session: sockets shut down and dropped, marks and timestamps gone. The threads of the
    /// session before must have left. Only afterwards may heartbeats carry the new session: old marks would close it.
    pub fn begin(&self, session: SessionId) {
        // Holding the session keeps marks of the old one from being copied in between.
        let mut current = self.session.lock();
        self.release_all();
        for element in &self.elements {
            element.timestamp.store(0, Ordering::Relaxed);
        }
        self.marks.store(0, Ordering::Release);
        *current = session;
    }
    /// The session that it was begun for; zero before the first and after [`Self::close_all`].
    #[must_use]
    pub fn session(&self) -> SessionId {
        *self.session.lock()
    }
    /// Stores the socket parameter of element `index`; its timestamp starts now. Wakes its thread.
    ///
    /// # Errors
    /// No such element, or it is not idle or was closed in this session: a second i. The parameter is dropped then.
    pub fn prepare(&self, index: u16, parameter: SocketParameter, now: Now) -> Result<(), ArrayError> {
        let element = self.element(index)?;
        let ends = match &parameter {
            SocketParameter::Connect { addr, .. } => Ends { remote: Some(*addr), ..Ends::default() },
            SocketParameter::Accepted(_) => parameter.closer().map(Ends::of).unwrap_or_default(),
        };
        let mut socket = element.socket.lock();
        if !matches!(*socket, Socket::Idle) || self.is_marked(index) {
            return Err(ArrayError::Taken(index));
        }
        element.stamp(now);
        *socket = Socket::Ready(parameter, ends);
        element.changed.notify_all();
        Ok(())
    }
    /// Takes the parameter out of element `index`; waits up to `wait` for it to come. `None` early if the element is marked
    /// closed or [`Self::close_all`] is called.
    pub fn take(&self, index: u16, wait: Duration) -> Option<SocketParameter> {
        let element = self.element(index).ok()?;
        let deadline = Instant::now() + wait;
        let mut socket = element.socket.lock();
        loop {
            match std::mem::replace(&mut *socket, Socket::Idle) {
                Socket::Ready(parameter, ends) => {
                    *socket = Socket::Taken(ends);
                    return Some(parameter);
                }
                other => *socket = other,
            }
            if self.is_marked(index) {
                return None;
            }
            // Woken without a parameter: closed.
            let waited = element.changed.wait_until(&mut socket, deadline);
            if waited.timed_out() || self.is_marked(index) || !matches!(*socket, Socket::Ready(..)) {
                return None;
            }
        }
    }
    /// The connection stands: keeps the handle. False (and the socket is shut down) if the element was closed meanwhile, or the
    /// session ended.
    #[must_use]
    pub fn open(&self, index: u16, closer: Closer, now: Now) -> bool {
        let Ok(element) = self.element(index) else { return false };
        let mut socket = element.socket.lock();
        if !matches!(*socket, Socket::Taken(_)) || self.is_marked(index) {
            closer.shutdown();
            return false;
        }
        element.stamp(now);
        *socket = Socket::Open(Ends::of(closer));
        true
    }
    /// Lets the heartbeat thread shut down a connection that is still being greeted on; call it as soon as there is a socket.
    pub fn connecting(&self, index: u16, closer: Closer) {
        let Ok(element) = self.element(index) else { return };
        let mut socket = element.socket.lock();
        match &mut *socket {
            Socket::Taken(ends) if !self.is_marked(index) => *ends = Ends::of(closer),
            _ => closer.shutdown(),
        }
    }
    /// A heartbeat was accepted: updates all n timestamps.
    pub fn heard_all(&self, now: Now) {
        for element in &self.elements {
            element.stamp(now);
        }
    }
    /// Bytes came in on this element's own connection. One atomic operation.
    pub fn heard_one(&self, index: u16, now: Now) {
        if let Ok(element) = self.element(index) {
            element.stamp(now);
        }
    }
    /// Called by the heartbeat sender thread at each tick: marks elements (not idle ones) whose timestamp is too old, and
    /// shuts their sockets down. Returns the bits marked now.
    pub fn mark_stale(&self, now: Now) -> u64 {
        let stale = || {
            (0..self.count())
                .filter(|&index| self.is_stale(index, now))
                .fold(0, |bits, index| bits | 1 << index)
        };
        if stale() == 0 {
            return 0;
        }
        // Looked at again with `begin` held off, which would make the elements fresh for another session.
        let _session = self.session.lock();
        self.mark(stale())
    }
    /// Whether [`Self::mark_stale`] would mark anything.
    #[must_use]
    pub fn any_stale(&self, now: Now) -> bool {
        (0..self.count()).any(|index| self.is_stale(index, now))
    }
    /// Whether [`Self::apply_marks`] would mark anything.
    #[must_use]
    pub fn any_new(&self, session: SessionId, bits: u64) -> bool {
        bits & !self.marks() != 0 && session != SessionId::default() && self.session() == session
    }
    /// Copies the other side's marks, if they are of this session, and shuts those sockets down. Returns the bits marked now.
    pub fn apply_marks(&self, session: SessionId, bits: u64) -> u64 {
        if bits == 0 {
            return 0;
        }
        let current = self.session.lock();
        if *current != session || session == SessionId::default() { 0 } else { self.mark(bits) }
    }
    /// The marks to send in the next heartbeat.
    #[must_use]
    pub fn marks(&self) -> u64 {
        self.marks.load(Ordering::Acquire)
    }
    /// What a thread asks that had no request for the request timeout: marked closed, or timestamp too old?
    #[must_use]
    pub fn must_close(&self, index: u16, now: Now) -> bool {
        self.is_marked(index) || self.is_stale(index, now)
    }
    /// The element's thread has left its connection: socket shut down and dropped; idle, unless it is marked closed.
    pub fn release(&self, index: u16) {
        if let Ok(element) = self.element(index) {
            let mut socket = element.socket.lock();
            socket.shutdown();
            *socket = Socket::Idle;
            element.changed.notify_all();
        }
    }
    /// Ends the session: shuts down and drops all sockets and parameters, and wakes all threads. Marks stay until `begin`, to be
    /// shown and sent, but no more are taken from the other side.
    pub fn close_all(&self) {
        *self.session.lock() = SessionId::default();
        self.release_all();
    }
    /// Elements that are open and not marked.
    #[must_use]
    pub fn open_count(&self) -> u16 {
        let open = |index: &u16| {
            let element = &self.elements[usize::from(*index)];
            matches!(*element.socket.lock(), Socket::Open(_)) && !self.is_marked(*index)
        };
        (0..self.count()).filter(open).count() as u16
    }
    /// For `status`.
    #[must_use]
    pub fn status(&self, now: Now) -> Vec<ElementStatus> {
        let row = |index: u16| {
            let element = &self.elements[usize::from(index)];
            let socket = element.socket.lock();
            let ends = socket.ends().cloned().unwrap_or_default();
            let age = element.age(now).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
            let state = match &*socket {
                _ if self.is_marked(index) => ElementState::Closed,
                Socket::Idle => ElementState::Idle,
                Socket::Ready(..) | Socket::Taken(_) => ElementState::Ready,
                Socket::Open(_) => ElementState::Open,
            };
            ElementStatus { index, local: ends.local, remote: ends.remote, timestamp_age_ms: age, state }
        };
        (0..self.count()).map(row).collect()
    }

    fn release_all(&self) {
        (0..self.count()).for_each(|index| self.release(index));
    }
    fn element(&self, index: u16) -> Result<&Element, ArrayError> {
        self.elements.get(usize::from(index)).ok_or(ArrayError::Index { index, count: self.count() })
    }
    fn is_marked(&self, index: u16) -> bool {
        self.marks.load(Ordering::Acquire) & (1 << index) != 0
    }
    /// Timestamp too old, of an element that is in use.
    fn is_stale(&self, index: u16, now: Now) -> bool {
        let Ok(element) = self.element(index) else { return true };
        element.age(now).is_some_and(|age| age > self.timeout)
            && !matches!(*element.socket.lock(), Socket::Idle)
    }
    fn mark(&self, bits: u64) -> u64 {
        let bits = bits & (u64::MAX >> (64 - u32::from(self.count())));
        let new = bits & !self.marks.fetch_or(bits, Ordering::AcqRel);
        for (index, element) in self.elements.iter().enumerate() {
            if new & (1 << index) != 0 {
                // Under the lock, after the mark: `open` either sees the mark or has stored the handle by now.
                let socket = element.socket.lock();
                socket.shutdown();
                element.changed.notify_all();
            }
        }
        new
    }
}
