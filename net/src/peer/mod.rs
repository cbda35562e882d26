//! The mirror's side of the link.
//!
//! Threads: one listener; a handshake thread for each half-open connection; one heartbeat sender and one heartbeat
//! receiver for the UDP port, whatever the number of primaries; n connection threads for each primary's session.
//! Locks, outermost first: table of primaries → one primary → one session's state → array and gate (leaves).

mod connection;
pub(crate) mod gate;
mod gather;
mod half_open;
mod heartbeat;
pub(crate) mod images;
pub(crate) mod life;
mod listener;
mod primaries;
mod session;

use crate::config::{Security, Times};
use crate::refused::Refused;
use crate::status::PeerStatus;
use crate::store::MirrorStore;
use crate::supervise::Clock;
use crate::supervise::heartbeat::MacKey;
use crate::waker::Waker;
use half_open::HalfOpen;
use parking_lot::Mutex;
use primaries::Primaries;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Settings of a peer server.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// TCP and UDP address.
    pub listen: SocketAddr,
    /// Protection.
    pub security: Security,
    /// Times.
    pub times: Times,
}

/// What all threads of a peer server share.
struct Shared {
    config: PeerConfig,
    /// The bound address.
    listen: SocketAddr,
    store: Arc<dyn MirrorStore>,
    clock: Clock,
    /// Our boot id in heartbeats.
    boot_id: u64,
    key: MacKey,
    primaries: Primaries,
    refused: Refused,
    half_open: Arc<HalfOpen>,
    stopping: AtomicBool,
    listener_waker: Waker,
    sender_waker: Waker,
    receiver_waker: Waker,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Shared {
    /// Keeps a thread to be joined by [`PeerServer::stop`]; those that have ended are joined here.
    fn keep(&self, handle: JoinHandle<()>) {
        let ended: Vec<_> = {
            let mut threads = self.threads.lock();
            let (ended, running) = threads.drain(..).partition(JoinHandle::is_finished);
            *threads = running;
            threads.push(handle);
            ended
        };
        join(ended);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        let name = thread.thread().name().unwrap_or("unnamed").to_owned();
        if thread.join().is_err() {
            log::error!("thread {name} panicked");
        }
    }
}

/// A running peer server: listener, heartbeat sender and receiver, n connection threads for each primary.
pub struct PeerServer {
    shared: Arc<Shared>,
    stopped: bool,
}

impl PeerServer {
    /// Binds TCP and UDP and starts the threads.
    ///
    /// # Errors
    /// When the address can't be bound, or no thread can be made.
    pub fn start(config: PeerConfig, store: Arc<dyn MirrorStore>) -> io::Result<Self> {
        let (tcp, udp) = bind(config.listen)?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            listen: tcp.local_addr()?,
            key: MacKey::derive(&config.security),
            config,
            store,
            clock: Clock::start(),
            boot_id: crate::random_nonzero()?,
            primaries: Primaries::default(),
            refused: Refused::default(),
            half_open: Arc::default(),
            stopping: AtomicBool::new(false),
            listener_waker: Waker::new()?,
            sender_waker: Waker::new()?,
            receiver_waker: Waker::new()?,
            threads: Mutex::default(),
        });
        let server = Self { shared: Arc::clone(&shared), stopped: false };
        let udp = Arc::new(udp);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| -> io::Result<()> {
            shared.keep(std::thread::Builder::new().name(name.to_owned()).spawn(run)?);
            Ok(())
        };
        let (a, b, c) = (Arc::clone(&shared), Arc::clone(&shared), Arc::clone(&shared));
        let receiving = Arc::clone(&udp);
        spawn("peer-listen", Box::new(move || listener::run(&a, &tcp)))?;
        spawn("peer-beat-recv", Box::new(move || heartbeat::receive(&b, &receiving)))?;
        spawn("peer-beat-send", Box::new(move || heartbeat::send(&c, &udp)))?;
        log::info!("listening on {}", shared.listen);
        Ok(server)
    }

    /// The bound address (of use when port 0 was asked for).
    #[must_use]
    pub fn listen_addr(&self) -> SocketAddr {
        self.shared.listen
    }

    /// For `status`.
    #[must_use]
    pub fn status(&self) -> PeerStatus {
        PeerStatus {
            listen: self.shared.listen,
            sessions: self.shared.primaries.status(self.shared.clock.now()),
            refused: self.shared.refused.snapshot(),
        }
    }

    /// Ends all sessions and joins all threads; images are closed.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::Release);
        for waker in [&shared.listener_waker, &shared.sender_waker, &shared.receiver_waker] {
            waker.wake();
        }
        shared.half_open.shut_all();
        shared.primaries.end_all("the peer is being stopped");
        // Threads that are joined may still add others: until none is left.
        loop {
            let threads = std::mem::take(&mut *shared.threads.lock());
            if threads.is_empty() {
                break;
            }
            join(threads);
            shared.primaries.end_all("the peer is being stopped");
        }
    }
}

impl Drop for PeerServer {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// TCP and UDP on the same port. With port 0 the system chooses one for TCP, which UDP may not get: tried again.
fn bind(listen: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    let mut attempts = if listen.port() == 0 { 20 } else { 1 };
    loop {
        let tcp = TcpListener::bind(listen)
            .map_err(|error| io::Error::new(error.kind(), format!("listen on {listen} (TCP): {error}")))?;
        let addr = tcp.local_addr()?;
        match UdpSocket::bind(addr) {
            Ok(udp) => return Ok((tcp, udp)),
            Err(error) => {
                attempts -= 1;
                if attempts == 0 {
                    return Err(io::Error::new(error.kind(), format!("listen on {addr} (UDP): {error}")));
                }
            }
        }
    }
}
