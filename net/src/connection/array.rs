//! The array of n elements of {socket, timestamp, state}.

use crate::status::ElementStatus;
use crate::supervise::Now;
use crate::transport::{Closer, Transport};
use crate::wire::{Greeting, SessionId};
use std::net::SocketAddr;
use std::time::Duration;

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

/// n elements, shared by all threads of one side of a link. One array serves one session after the other.
pub struct ConnectionArray {
    timeout: Duration,
}

impl ConnectionArray {
    /// n idle elements. `timeout`: the age at which a timestamp is too old.
    ///
    /// # Errors
    /// When n is not in 1..=64.
    pub fn new(_count: u16, timeout: Duration) -> Result<Self, ArrayError> {
        Ok(Self { timeout })
    }
    /// n.
    #[must_use]
    pub fn count(&self) -> u16 {
        let _ = self.timeout;
        unimplemented!()
    }
    /// Makes all elements idle for a new session: sockets shut down and dropped, marks and timestamps gone.
    pub fn begin(&self, _session: SessionId) {
        unimplemented!()
    }
    /// The session that it was last begun for.
    #[must_use]
    pub fn session(&self) -> SessionId {
        unimplemented!()
    }
    /// Stores the socket parameter of element `index`; its timestamp starts now. Wakes its thread.
    ///
    /// # Errors
    /// No such element, or it is not idle.
    pub fn prepare(&self, _index: u16, _parameter: SocketParameter, _now: Now) -> Result<(), ArrayError> {
        unimplemented!()
    }
    /// Takes the parameter out of element `index`; waits up to `wait` for it to come (or for the mark).
    pub fn take(&self, _index: u16, _wait: Duration) -> Option<SocketParameter> {
        unimplemented!()
    }
    /// The connection stands: keeps the handle. False (and the socket is shut down) if the element was closed meanwhile.
    #[must_use]
    pub fn open(&self, _index: u16, _closer: Closer, _now: Now) -> bool {
        unimplemented!()
    }
    /// A heartbeat was accepted: updates all n timestamps.
    pub fn heard_all(&self, _now: Now) {
        unimplemented!()
    }
    /// Bytes came in on this element's own connection. One relaxed store.
    pub fn heard_one(&self, _index: u16, _now: Now) {
        unimplemented!()
    }
    /// Called by the heartbeat sender thread at each tick: marks elements (ready or open) whose timestamp is too old, and
    /// shuts their sockets down. Returns the bits marked now.
    pub fn mark_stale(&self, _now: Now) -> u64 {
        unimplemented!()
    }
    /// Copies the other side's marks, if they are of this session, and shuts those sockets down. Returns the bits marked now.
    pub fn apply_marks(&self, _session: SessionId, _bits: u64) -> u64 {
        unimplemented!()
    }
    /// The marks to send in the next heartbeat.
    #[must_use]
    pub fn marks(&self) -> u64 {
        unimplemented!()
    }
    /// What a thread asks that had no request for the request timeout: marked closed, or timestamp too old?
    #[must_use]
    pub fn must_close(&self, _index: u16, _now: Now) -> bool {
        unimplemented!()
    }
    /// The element's thread has left its connection: socket shut down and dropped; idle, unless it is marked closed.
    pub fn release(&self, _index: u16) {
        unimplemented!()
    }
    /// Ends the session: shuts down and drops all sockets and parameters, and wakes all threads. Marks stay until `begin`.
    pub fn close_all(&self) {
        unimplemented!()
    }
    /// Elements that are open.
    #[must_use]
    pub fn open_count(&self) -> u16 {
        unimplemented!()
    }
    /// For `status`.
    #[must_use]
    pub fn status(&self, _now: Now) -> Vec<ElementStatus> {
        unimplemented!()
    }
}
