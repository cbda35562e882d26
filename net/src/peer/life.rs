//! The life of one session at the peer, as a value: what its threads and the listener ask before they act.
//!
//! Ready (threads wait for the sockets of a greeting) → bound to a session id → all n there → begun → over → closed →
//! finished. [`super::session`] keeps it under its lock and waits for its changes; the simulation steps through it.

use crate::connection::ArrayError;
use crate::supervise::Now;
use crate::wire::{Greeting, SessionId};
use std::collections::VecDeque;
use std::time::Duration;

/// Why a session can't take a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error(transparent)]
    Array(#[from] ArrayError),
    #[error("the session is over: {0}")]
    Over(String),
    #[error("this session has {expected} connections, not {found}")]
    Count { expected: u16, found: u16 },
}

/// What becomes of a greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It belongs to the session that there is.
    Join,
    /// That one (if any) is over, or gives way: a new session is made, with the old one as its predecessor.
    Replace,
    /// Its session has ended before: a late connection displaces nothing.
    Ended,
}

/// A greeting of session `id` with `count` connections. `running`: the session that there is.
pub(crate) fn admit(
    running: Option<&Life>,
    ended: &VecDeque<SessionId>,
    id: SessionId,
    count: u16,
) -> Admission {
    if ended.contains(&id) {
        return Admission::Ended;
    }
    let fits = running.is_some_and(|life| match life.id {
        Some(running) => running == id,
        None => life.count == count && !life.is_over(),
    });
    if fits { Admission::Join } else { Admission::Replace }
}

/// What thread 0 does about the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// The session before may still be writing.
    Wait,
    /// It opens them and answers its greeting.
    Open,
    /// It leaves.
    Leave,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Life {
    count: u16,
    id: Option<SessionId>,
    boot_id: u64,
    node: String,
    /// Bit i: element i has had its connection.
    placed: u64,
    welcomed: u16,
    begun: bool,
    goodbyes: u16,
    over: Option<String>,
    closed: bool,
    threads: u16,
    finished: bool,
    last_heard: Now,
}

impl Life {
    /// Ready, with no thread yet.
    pub(crate) fn new(count: u16, now: Now) -> Self {
        Self {
            count,
            id: None,
            boot_id: 0,
            node: String::new(),
            placed: 0,
            welcomed: 0,
            begun: false,
            goodbyes: 0,
            over: None,
            closed: false,
            threads: 0,
            finished: false,
            last_heard: now,
        }
    }

    /// One more connection thread runs.
    pub(crate) fn entered(&mut self) {
        self.threads += 1;
    }

    /// A greeting of this session takes its element. True for the first one, which binds the session.
    pub(crate) fn bind(&mut self, greeting: &Greeting, now: Now) -> Result<bool, BindError> {
        let index = greeting.index;
        if let Some(reason) = &self.over {
            return Err(BindError::Over(reason.clone()));
        }
        if greeting.count != self.count {
            return Err(BindError::Count { expected: self.count, found: greeting.count });
        }
        if index >= greeting.count {
            return Err(ArrayError::Index { index, count: greeting.count }.into());
        }
        let first = self.id.is_none();
        if first {
            self.id = Some(greeting.session);
            self.boot_id = greeting.boot_id;
            self.node.clone_from(&greeting.node);
        }
        if self.placed & (1 << index) != 0 {
            return Err(ArrayError::Taken(index).into());
        }
        self.placed |= 1 << index;
        self.last_heard = now;
        Ok(first)
    }

    /// A heartbeat of the primary was accepted.
    pub(crate) fn heard(&mut self, now: Now) {
        self.last_heard = now;
    }

    /// No connection has come, and the heartbeats have stopped.
    pub(crate) fn forsaken(&self, now: Now, timeout: Duration) -> bool {
        self.over.is_none() && now.since(self.last_heard) > timeout
    }

    /// The images are opened only after the session before has let go of them.
    pub(crate) fn opening(&self, predecessor_finished: bool) -> Opening {
        match (predecessor_finished, self.is_over()) {
            (false, _) => Opening::Wait,
            (true, false) => Opening::Open,
            (true, true) => Opening::Leave,
        }
    }

    /// One more connection is welcomed.
    pub(crate) fn welcomed(&mut self) {
        self.welcomed += 1;
    }

    /// Thread 0 has read how the session begins. False: not all n are there.
    pub(crate) fn begin(&mut self) -> bool {
        let all = self.welcomed == self.count;
        self.begun |= all;
        all
    }

    pub(crate) fn begun(&self) -> bool {
        self.begun
    }

    /// Nothing is applied from here on. False: nor was it before.
    pub(crate) fn latch(&mut self, reason: &str) -> bool {
        let first = self.over.is_none();
        if first {
            self.over = Some(reason.to_owned());
        }
        first
    }

    /// The sockets are shut down.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Why it is over, if it is.
    pub(crate) fn over_reason(&self) -> Option<&str> {
        self.over.as_deref()
    }

    /// One connection was ended by a goodbye. True: that was the last.
    pub(crate) fn goodbye(&mut self) -> bool {
        self.goodbyes += 1;
        self.goodbyes == self.count
    }

    /// A thread that is done may not leave yet: a last answer may still be on its way out on another connection.
    pub(crate) fn must_stay(&self) -> bool {
        self.over.is_some() && !self.closed
    }

    /// A thread has left.
    pub(crate) fn left(&mut self) {
        self.threads -= 1;
    }

    /// No thread is left, and nobody has drawn the line yet.
    pub(crate) fn is_deserted(&self) -> bool {
        self.threads == 0 && !self.finished
    }

    /// The images are closed, here and in all sessions before.
    pub(crate) fn finish(&mut self) {
        self.finished = true;
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    pub(crate) fn id(&self) -> Option<SessionId> {
        self.id
    }

    pub(crate) fn boot_id(&self) -> u64 {
        self.boot_id
    }

    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// How many of its connections have been welcomed.
    pub(crate) fn welcomed_count(&self) -> u16 {
        self.welcomed
    }
}
