//! One session: the array of n elements and the n connection threads, made together by [`Session::start`].
//!
//! Its course is a [`Life`]; here are the threads that ask it, and their waiting.
//! - *over*: nothing is applied and no barrier passed from here on; every wait looks at it.
//! - *closed*: all sockets are shut down as well (later, if a last answer must get out first).
//! - *finished*: every thread has left and the images are closed. A successor answers no greeting before that.

use super::Shared;
use super::connection::{self, Leave};
use super::gate::Gate;
use super::images::{Failure, Images};
use super::life::{self, Admission, BindError, Life, Opening};
use crate::connection::{Accepted, ConnectionArray, SocketParameter};
use crate::store::StoreRefusal;
use crate::supervise::Now;
use crate::wire::SessionId;
use mirrorfs_journal::{Epoch, Sequence};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Bytes that the connection threads of one session may read ahead together while they wait at a barrier.
pub(super) const READ_AHEAD_BYTES: u64 = 64 << 20;

/// Counters of one primary, over all its sessions.
#[derive(Default)]
pub(super) struct Applied {
    pub(super) requests: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// See the module's text.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) array: Arc<ConnectionArray>,
    pub(super) gate: Gate,
    pub(super) applied: Arc<Applied>,
    /// Bytes read ahead now, by all threads.
    pub(super) read_ahead: AtomicU64,
    /// A connection thread asks its socket before it sleeps.
    pub(super) asking: AtomicBool,
    over: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    life: Life,
    predecessor: Option<Arc<Session>>,
    images: Option<Result<Arc<Images>, StoreRefusal>>,
}

impl Session {
    /// Makes the array and its n connection threads, which wait for their sockets. `predecessor` is over already.
    pub(super) fn start(
        shared: &Arc<Shared>,
        count: u16,
        predecessor: Option<Arc<Session>>,
        applied: &Arc<Applied>,
    ) -> io::Result<Arc<Self>> {
        let array =
            ConnectionArray::new(count, shared.config.times.heartbeat_timeout).map_err(io::Error::other)?;
        let session = Arc::new(Self {
            shared: Arc::clone(shared),
            array: Arc::new(array),
            gate: Gate::new(count)?,
            applied: Arc::clone(applied),
            read_ahead: AtomicU64::new(0),
            asking: AtomicBool::new(false),
            over: AtomicBool::new(false),
            state: Mutex::new(State {
                life: Life::new(count, shared.clock.now()),
                predecessor,
                images: None,
            }),
            changed: Condvar::new(),
        });
        for index in 0..count {
            session.state.lock().life.entered();
            let thread = Arc::clone(&session);
            let spawned = std::thread::Builder::new()
                .name(format!("connection {index}"))
                .spawn(move || thread.run(index));
            match spawned {
                Ok(handle) => shared.keep(handle),
                Err(error) => {
                    session.state.lock().life.left();
                    session.end("no thread for a connection");
                    session.leave_if_last();
                    return Err(error);
                }
            }
        }
        Ok(session)
    }

    /// A connection thread. Takes from its element the accepted socket; gives to the images; may block on the socket,
    /// the barrier and the disk; ends with the session, or when its element is closed or too old (claims 16, 38).
    fn run(self: Arc<Self>, index: u16) {
        let leave = self.serve(index);
        match &leave {
            Ok(Leave::Goodbye) => {
                let last = self.state.lock().life.goodbye();
                self.array.release(index);
                if last {
                    self.end("the primary said goodbye");
                }
            }
            Ok(Leave::Over) => {}
            Err(reason) => self.end(&format!("connection {index}: {reason}")),
        }
        // A last answer may still be on its way out on another connection: no socket is closed before that.
        {
            let mut state = self.state.lock();
            while state.life.must_stay() {
                self.changed.wait(&mut state);
            }
            state.life.left();
        }
        self.leave_if_last();
    }

    fn leave_if_last(&self) {
        let (images, predecessor) = {
            let mut state = self.state.lock();
            if !state.life.is_deserted() {
                return;
            }
            (state.images.take(), state.predecessor.take())
        };
        // Closes the images, before anybody is told.
        drop(images);
        if let Some(predecessor) = predecessor {
            predecessor.wait_finished();
        }
        self.array.close_all();
        self.state.lock().life.finish();
        self.changed.notify_all();
    }

    fn serve(&self, index: u16) -> Result<Leave, String> {
        let Some(Accepted { transport, greeting }) = self.take_socket(index)? else {
            return Ok(Leave::Over);
        };
        connection::serve(self, index, transport, greeting)
    }

    /// Waits, ready, for the accepted socket in element `index`.
    fn take_socket(&self, index: u16) -> Result<Option<Accepted>, String> {
        let times = &self.shared.config.times;
        loop {
            if self.is_over() {
                return Ok(None);
            }
            match self.array.take(index, times.request_timeout) {
                Some(SocketParameter::Accepted(accepted)) => return Ok(Some(*accepted)),
                Some(SocketParameter::Connect { .. }) => {
                    return Err("its element holds no accepted socket".to_owned());
                }
                None => {}
            }
            let now = self.shared.clock.now();
            if self.state.lock().life.forsaken(now, times.heartbeat_timeout) {
                return Err("no connection came and the heartbeats stopped".to_owned());
            }
        }
    }

    /// A greeting of this session: stores the accepted socket in its element. The first one binds the session. What is
    /// refused stays in `offered`, so that it can be answered.
    pub(super) fn place(&self, offered: &mut Option<Accepted>) -> Result<(), BindError> {
        let Some(accepted) = offered.as_ref() else { return Ok(()) };
        let now = self.shared.clock.now();
        let (index, greeting) = (accepted.greeting.index, &accepted.greeting);
        {
            let mut state = self.state.lock();
            if state.life.bind(greeting, now)? {
                self.array.begin(greeting.session);
            }
        }
        if let Some(accepted) = offered.take() {
            self.array.prepare(index, SocketParameter::Accepted(Box::new(accepted)), now)?;
        }
        Ok(())
    }

    /// A heartbeat of the primary was accepted.
    pub(super) fn heard(&self, now: Now) {
        self.array.heard_all(now);
        self.state.lock().life.heard(now);
    }

    pub(super) fn id(&self) -> Option<SessionId> {
        self.state.lock().life.id()
    }

    pub(super) fn boot_id(&self) -> u64 {
        self.state.lock().life.boot_id()
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// What becomes of a greeting, with this session there.
    pub(super) fn admit(&self, ended: &VecDeque<SessionId>, id: SessionId, count: u16) -> Admission {
        life::admit(Some(&self.state.lock().life), ended, id, count)
    }

    /// Why it is over, if it is.
    pub(super) fn over_reason(&self) -> Option<String> {
        self.state.lock().life.over_reason().map(str::to_owned)
    }

    /// All n connections are welcomed and the session has begun.
    pub(super) fn is_connected(&self) -> bool {
        let state = self.state.lock();
        state.life.begun() && !state.life.is_over()
    }

    /// Nothing is applied from here on; the sockets stay, so that one last answer gets out. [`Self::end`] must follow.
    pub(super) fn latch(&self, reason: &str) {
        let mut state = self.state.lock();
        if !state.life.latch(reason) {
            return;
        }
        self.over.store(true, Ordering::Release);
        let node = state.life.id().map(|_| state.life.node().to_owned());
        drop(state);
        if let Some(node) = node {
            log::info!("session of {node} ends: {reason}");
        }
        self.gate.wake_all();
        self.changed.notify_all();
    }

    /// Ends the session: every thread leaves. Returns at once; see [`Self::wait_finished`].
    pub(super) fn end(&self, reason: &str) {
        self.latch(reason);
        self.array.close_all();
        self.state.lock().life.close();
        self.changed.notify_all();
    }

    /// Returns when the last image write has ended and the images are closed.
    pub(super) fn wait_finished(&self) {
        let mut state = self.state.lock();
        while !state.life.is_finished() {
            self.changed.wait(&mut state);
        }
    }

    /// Thread 0: waits for the session before, then lets `open` open the images; the result is for all threads.
    pub(super) fn open_images(
        &self,
        open: impl FnOnce() -> Result<Images, StoreRefusal>,
    ) -> Option<Result<Arc<Images>, StoreRefusal>> {
        let predecessor = self.state.lock().predecessor.take();
        if let Some(predecessor) = predecessor {
            predecessor.wait_finished();
        }
        if self.state.lock().life.opening(true) != Opening::Open {
            return None;
        }
        let images = open().map(Arc::new);
        self.state.lock().images = Some(images.clone());
        self.changed.notify_all();
        Some(images)
    }

    /// The other threads: waits for thread 0's result; `None` if the session is over.
    pub(super) fn wait_images(&self) -> Option<Result<Arc<Images>, StoreRefusal>> {
        let mut state = self.state.lock();
        loop {
            if let Some(images) = &state.images {
                return Some(images.clone());
            }
            if state.life.is_over() {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Name, durable epoch and resync state of each LUN, while the images are open.
    pub(super) fn luns(&self) -> Option<Vec<(String, Epoch, bool)>> {
        let state = self.state.lock();
        state.images.as_ref().and_then(|images| images.as_ref().ok()).map(|images| images.status())
    }

    /// One more connection is welcomed.
    pub(super) fn welcomed(&self) {
        self.state.lock().life.welcomed();
        self.changed.notify_all();
    }

    /// Thread 0 has read how the session begins: all may go on, as all n are there.
    pub(super) fn begin(&self) -> Result<(), Failure> {
        let mut state = self.state.lock();
        if !state.life.begin() {
            return Err(Failure::rule(format!(
                "the session began with {} of {} connections",
                state.life.welcomed_count(),
                self.array.count()
            )));
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until the session has begun; false if it is over. Nothing is read, let alone applied, before.
    pub(super) fn wait_begun(&self) -> bool {
        let mut state = self.state.lock();
        while !state.life.begun() && !state.life.is_over() {
            self.changed.wait(&mut state);
        }
        !state.life.is_over()
    }

    /// Counts an applied request.
    pub(super) fn count_applied(&self, bytes: u64) {
        self.applied.requests.fetch_add(1, Ordering::Relaxed);
        self.applied.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Half of the heartbeat timeout, at most a second: how long a last answer may take to get out.
    pub(super) fn linger(&self) -> Duration {
        self.shared.config.times.heartbeat_timeout.min(Duration::from_secs(1))
    }

    /// What a failure without a request of its own is answered under.
    pub(super) const NO_SEQUENCE: Sequence = Sequence(0);
}
