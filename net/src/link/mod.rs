//! The primary's side of the link.
//!
//! Threads for as long as the link runs: heartbeat sender, heartbeat receiver, supervisor. Threads of a session, made by
//! the supervisor through `session`: n workers, each with its connection and a reader for the responses, and the
//! dispatcher, the only caller of [`MirrorLog::next`]. The log's session ends after all of them are out.

mod address;
mod dispatcher;
mod heartbeat;
mod incoming;
mod lane;
mod probe;
pub(crate) mod route;
pub(crate) mod rules;
mod session;
mod supervisor;
mod worker;

use crate::config::{Security, Times};
use crate::connection::ConnectionArray;
use crate::refused::Refused;
use crate::status::LinkStatus;
use crate::store::LunHello;
use crate::supervise::heartbeat::{HeartbeatConfig, HeartbeatLogic, LinkId, MacKey, Side};
use crate::supervise::link_state::{Event, LinkSupervisor};
use crate::supervise::{Clock, Now};
use crate::waker::Waker;
use crate::wire::SessionId;
use crossbeam::channel;
use mirrorfs_journal::MirrorLog;
use parking_lot::Mutex;
use session::Session;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Events that may wait for the supervisor; it looks at the state of things itself at each tick, so that one lost in a
/// full channel does no harm.
const EVENTS_MAX: usize = 1024;

/// Settings of a link.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// `HOST:PORT`, resolved again at each connect.
    pub peer: String,
    /// n, 1 to 64.
    pub workers: u16,
    /// This node's name.
    pub node: String,
    /// Protection.
    pub security: Security,
    /// Times.
    pub times: Times,
    /// The mirrored LUNs; position = `LunId`.
    pub luns: Vec<LunHello>,
}

/// What all threads of a link share.
struct Shared {
    config: LinkConfig,
    log: Arc<MirrorLog>,
    clock: Clock,
    boot_id: u64,
    /// The array of n elements; one session after the other uses it.
    array: Arc<ConnectionArray>,
    heartbeat: Mutex<HeartbeatLogic>,
    machine: Mutex<LinkSupervisor>,
    session: Mutex<Option<Arc<Session>>>,
    target: Mutex<Option<SocketAddr>>,
    /// What a probe of the silent peer found, in words.
    probed: Mutex<Option<String>>,
    /// With the time of each, as the supervisor may be busy joining a session meanwhile.
    events: channel::Sender<(Now, Event)>,
    refused: Refused,
    responses_stored: AtomicU64,
    responses_failed: AtomicU64,
    bytes_sent: AtomicU64,
    stopping: AtomicBool,
    sender_waker: Waker,
    receiver_waker: Waker,
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn count_sent(&self, bytes: u64) {
        self.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Tells the supervisor; see [`EVENTS_MAX`].
    fn tell(&self, event: Event) {
        let _ = self.events.try_send((self.clock.now(), event));
    }
}

/// A running link: one supervisor, n workers, a heartbeat sender and a heartbeat receiver, a dispatcher.
pub struct Link {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Link {
    /// Starts the threads; returns at once, whether or not the peer is there.
    ///
    /// # Errors
    /// When n is out of range, or no socket or thread can be made.
    pub fn start(config: LinkConfig, log: Arc<MirrorLog>) -> io::Result<Self> {
        let times = config.times;
        let array = ConnectionArray::new(config.workers, times.heartbeat_timeout)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let clock = Clock::start();
        let boot_id = crate::random_nonzero()?;
        let mut heartbeat = HeartbeatLogic::new(HeartbeatConfig {
            side: Side::Local,
            link: LinkId::of_node(&config.node),
            key: MacKey::derive(&config.security),
            times,
            boot_id,
        });
        heartbeat.set_session(SessionId::default(), config.workers);
        let socket = Arc::new(address::HeartbeatSocket::bind()?);
        let (events, inbox) = channel::bounded(EVENTS_MAX);
        let shared = Arc::new(Shared {
            array: Arc::new(array),
            heartbeat: Mutex::new(heartbeat),
            machine: Mutex::new(LinkSupervisor::new(times, crate::random_nonzero()?, clock.now())),
            config,
            log,
            clock,
            boot_id,
            session: Mutex::new(None),
            target: Mutex::new(None),
            probed: Mutex::new(None),
            events,
            refused: Refused::default(),
            responses_stored: AtomicU64::new(0),
            responses_failed: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            sender_waker: Waker::new()?,
            receiver_waker: Waker::new()?,
        });
        let mut link = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        let (sending, receiving) = (Arc::clone(&socket), socket);
        let (a, b, c) = (Arc::clone(&shared), Arc::clone(&shared), shared);
        link.spawn("heartbeat-recv", move || heartbeat::receive(&a, &receiving))?;
        link.spawn("heartbeat-send", move || heartbeat::send(&b, &sending))?;
        link.spawn("supervisor", move || supervisor::run(&c, &inbox))?;
        Ok(link)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }

    /// For `status`.
    #[must_use]
    pub fn status(&self) -> LinkStatus {
        let shared = &self.shared;
        let now = shared.clock.now();
        let machine = shared.machine.lock().snapshot(now);
        let heartbeat = shared.heartbeat.lock().stats();
        let session = shared.session.lock().as_ref().map(|session| format!("{:032x}", session.id.0));
        let mut refused = shared.refused.snapshot();
        refused.datagrams_not_authentic += heartbeat.not_authentic;
        refused.datagrams_replayed += heartbeat.replayed;
        let reason = match &*shared.probed.lock() {
            Some(probed) => format!("{} ({probed})", machine.reason),
            None => machine.reason,
        };
        LinkStatus {
            state: machine.state,
            reason,
            since_ms: millis(machine.since),
            countdown_ms: machine.countdown.map(millis),
            peer: shared.config.peer.clone(),
            peer_addr: *shared.target.lock(),
            session,
            encrypted: matches!(shared.config.security, Security::Key(_)),
            heartbeats_received: heartbeat.received,
            heartbeats_sent: heartbeat.sent,
            heartbeat_rtt_us: heartbeat.rtt_us,
            heartbeat_loss_percent: heartbeat.loss_percent,
            sessions: machine.sessions,
            interruptions: machine.interruptions,
            responses_stored: shared.responses_stored.load(Ordering::Relaxed),
            responses_failed: shared.responses_failed.load(Ordering::Relaxed),
            bytes_sent: shared.bytes_sent.load(Ordering::Relaxed),
            elements: shared.array.status(now),
            refused,
        }
    }

    /// Ends the session with a goodbye and joins all threads. The log keeps what was not durable.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.tell(Event::Tick);
        self.shared.sender_waker.wake();
        self.shared.receiver_waker.wake();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a thread of the link panicked");
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
