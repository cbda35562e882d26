//! One session of the local side: stores the socket parameter in each of the array's n elements, makes the n worker
//! threads and the dispatcher, and ends them together.
//!
//! Life: connecting → welcomed on all n → begun (the log's session too) → failed → ended → joined. A failed session
//! sends nothing more but still reads for a moment: the peer's own reason may be on another connection than the one that
//! broke first.

use super::incoming::Incoming;
use super::lane::Lane;
use super::route::Router;
use super::{Shared, dispatcher, worker};
use crate::connection::SocketParameter;
use crate::supervise::Now;
use crate::supervise::link_state::{EndReason, Event};
use crate::wire::SessionId;
use mirrorfs_journal::Epoch;
use mirrorfs_journal::log::{PeerLun, Pump};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a failed session reads on for a better reason.
const REASON_WAIT: Duration = Duration::from_millis(50);

/// See the module's text.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) id: SessionId,
    pub(super) lanes: Vec<Lane>,
    pub(super) incoming: Vec<Incoming>,
    /// Whoever holds it reads the log and fills the lanes. A leaf but for the log's lock and the lanes'.
    pub(super) router: Mutex<Router>,
    /// A pump has found the router taken.
    pub(super) pump_wanted: AtomicBool,
    /// Dispatched and not answered: requests, and barriers once each.
    outstanding: AtomicI64,
    /// Answers so far.
    progress: AtomicU64,
    /// A reader asks its socket before it sleeps.
    pub(super) asking: AtomicBool,
    over: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    welcomed: u16,
    peer: Option<Vec<PeerLun>>,
    /// `MirrorLog::begin_session` has succeeded, so that `end_session` is due.
    log_began: bool,
    begun: Option<Epoch>,
    failure: Option<(EndReason, Now)>,
    goodbye: Option<EndReason>,
    ended: bool,
    running: u16,
    threads: Vec<JoinHandle<()>>,
}

fn rank(reason: &EndReason) -> u8 {
    match reason {
        EndReason::Connection(_) => 0,
        EndReason::Stalled | EndReason::Stopped => 1,
        EndReason::Interrupted | EndReason::PeerRestarted => 2,
        EndReason::Refused(_) | EndReason::NotStored(_) => 3,
    }
}

impl Session {
    /// Begins the array anew, stores `addr` and the index in each element, starts the threads.
    ///
    /// # Errors
    /// When an element or a thread can't be had; nothing is left running then.
    pub(super) fn start(shared: &Arc<Shared>, id: SessionId, addr: SocketAddr) -> io::Result<Arc<Self>> {
        let count = shared.array.count();
        let session = Arc::new(Self {
            shared: Arc::clone(shared),
            id,
            lanes: (0..count).map(|_| Lane::default()).collect(),
            incoming: (0..count).map(|_| Incoming::new()).collect(),
            router: Mutex::new(Router::new(count.into())),
            pump_wanted: AtomicBool::new(false),
            outstanding: AtomicI64::new(0),
            asking: AtomicBool::new(false),
            progress: AtomicU64::new(0),
            over: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        shared.array.begin(id);
        let started = (0..count)
            .try_for_each(|index| {
                shared
                    .array
                    .prepare(index, SocketParameter::Connect { addr, index }, shared.clock.now())
                    .map_err(io::Error::other)?;
                session.spawn(format!("worker {index}"), move |session| worker::run(session, index))
            })
            .and_then(|()| session.spawn("dispatcher".to_owned(), dispatcher::run));
        if let Err(error) = started {
            session.end();
            session.join();
            return Err(error);
        }
        Ok(session)
    }

    fn spawn(
        self: &Arc<Self>,
        name: String,
        run: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> io::Result<()> {
        let session = Arc::clone(self);
        self.state.lock().running += 1;
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            run(&session);
            session.state.lock().running -= 1;
            session.shared.tell(Event::Tick);
        });
        let mut state = self.state.lock();
        match spawned {
            Ok(handle) => state.threads.push(handle),
            Err(error) => {
                state.running -= 1;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Nothing more is sent. The supervisor is told, which ends the session.
    pub(super) fn fail(&self, reason: EndReason) {
        let mut state = self.state.lock();
        match &mut state.failure {
            Some((known, _)) if rank(known) >= rank(&reason) => return,
            Some((known, _)) => *known = reason,
            None => state.failure = Some((reason, self.shared.clock.now())),
        }
        self.over.store(true, Ordering::Release);
        drop(state);
        self.changed.notify_all();
        self.shared.tell(Event::Tick);
    }

    /// Why it failed, as soon as no better reason is to be expected.
    pub(super) fn failure(&self, now: Now) -> Option<EndReason> {
        let state = self.state.lock();
        let (reason, since) = state.failure.as_ref()?;
        (rank(reason) > 2 || state.running == 0 || now.since(*since) >= REASON_WAIT).then(|| reason.clone())
    }

    /// Whether it has failed, even if the reason is not out yet.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Shuts all connections down and wakes every thread.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.state.lock().ended = true;
        self.lanes.iter().for_each(Lane::close);
        self.shared.array.close_all();
        self.changed.notify_all();
    }

    /// Waits for the threads of an ended session and then ends the log's. Called once, by the supervisor.
    pub(super) fn join(&self) {
        let threads = std::mem::take(&mut self.state.lock().threads);
        for thread in threads {
            let name = thread.thread().name().unwrap_or("unnamed").to_owned();
            if thread.join().is_err() {
                log::error!("thread {name} panicked");
            }
        }
        // A pump, on whatever thread, has left the log alone before another session begins to read it: what it took then would
        // go nowhere. Later ones find that this session is over.
        drop(self.router.lock());
        // Nor does an answer of this session reach the next one.
        self.incoming.iter().for_each(Incoming::close);
        if std::mem::take(&mut self.state.lock().log_began) {
            self.shared.log.end_session();
        }
    }

    /// Whether all threads are out, after a goodbye.
    pub(super) fn all_out(&self) -> bool {
        self.state.lock().running == 0
    }

    /// Waits until the session is ended: a worker keeps its socket that long.
    pub(super) fn wait_ended(&self) {
        let mut state = self.state.lock();
        while !state.ended {
            self.changed.wait(&mut state);
        }
    }

    /// Asks the dispatcher for a clean end; the reason is what the session ends with.
    pub(super) fn want_goodbye(&self, reason: EndReason) {
        self.state.lock().goodbye.get_or_insert(reason);
        self.changed.notify_all();
    }

    pub(super) fn goodbye_wanted(&self) -> bool {
        self.state.lock().goodbye.is_some()
    }

    /// The reason given with the goodbye, once all threads are out.
    pub(super) fn said_goodbye(&self) -> Option<EndReason> {
        let state = self.state.lock();
        if state.running == 0 { state.goodbye.clone() } else { None }
    }

    /// Connection 0 brings what the peer's labels say.
    pub(super) fn welcomed(&self, luns: Option<Vec<PeerLun>>) {
        let mut state = self.state.lock();
        state.welcomed += 1;
        if luns.is_some() {
            state.peer = luns;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Worker 0: waits until all n are welcomed; `None` if the session is over.
    pub(super) fn wait_welcomed(&self) -> Option<Vec<PeerLun>> {
        let mut state = self.state.lock();
        loop {
            if self.is_over() || state.ended || state.goodbye.is_some() {
                return None;
            }
            if state.welcomed == self.shared.array.count() {
                return state.peer.take();
            }
            self.changed.wait(&mut state);
        }
    }

    /// The log's session has begun.
    pub(super) fn log_began(&self) {
        self.state.lock().log_began = true;
    }

    /// All may send. `target`: durable up to here means caught up.
    pub(super) fn begin(&self, target: Epoch) {
        self.state.lock().begun = Some(target);
        self.changed.notify_all();
        self.shared.tell(Event::Tick);
    }

    /// The epoch that means caught up, once the session has begun.
    pub(super) fn target(&self) -> Option<Epoch> {
        self.state.lock().begun
    }

    pub(super) fn wait_begun(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if self.is_over() || state.ended {
                return false;
            }
            if state.begun.is_some() || state.goodbye.is_some() {
                return true;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Counts a record that is about to be sent and will be answered: before, as the answer can be faster.
    pub(super) fn sending(&self) {
        self.outstanding.fetch_add(1, Ordering::AcqRel);
    }

    /// Records under way.
    pub(super) fn outstanding(&self) -> u64 {
        u64::try_from(self.outstanding.load(Ordering::Acquire)).unwrap_or(0)
    }

    /// What the log sends through.
    pub(super) fn pump(self: &Arc<Self>) -> Arc<dyn Pump> {
        Arc::clone(self) as Arc<dyn Pump>
    }

    /// Counts an answer.
    pub(super) fn answered(&self) {
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
        self.progress.fetch_add(1, Ordering::AcqRel);
    }

    /// A number that changes with each answer, while any is outstanding: what must not stand still.
    pub(super) fn awaited(&self) -> Option<u64> {
        (self.outstanding.load(Ordering::Acquire) > 0).then(|| self.progress.load(Ordering::Acquire))
    }
}
