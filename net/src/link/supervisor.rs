//! The supervisor thread: drives the link's state machine and carries out what it says.

use super::session::Session;
use super::{Shared, address, probe, rules};
use crate::status::LinkState;
use crate::supervise::Now;
use crate::supervise::link_state::{Action, EndReason, Event, StallDetector};
use crate::wire::SessionId;
use crossbeam::channel::Receiver;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the log is asked whether the link has caught up.
const CATCH_UP_POLL: Duration = Duration::from_millis(10);
/// How often a failed session is looked at until its reason is out.
const FAILED_POLL: Duration = Duration::from_millis(5);
/// Time between two probes of a silent peer.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

struct Supervisor<'a> {
    shared: &'a Arc<Shared>,
    session: Option<Arc<Session>>,
    /// `Connected` has been told for this session.
    connected: bool,
    stall: StallDetector,
    resolved_at: Option<Now>,
    turn: usize,
    probed_at: Option<Now>,
    probe: Option<JoinHandle<()>>,
}

/// Takes events; gives actions to sessions; may block on the name service (only without a session) and on joining a
/// session that is shut down; ends when the link stops.
pub(super) fn run(shared: &Arc<Shared>, inbox: &Receiver<(Now, Event)>) {
    let mut supervisor = Supervisor {
        shared,
        session: None,
        connected: false,
        stall: StallDetector::new(shared.config.times.stall_timeout),
        resolved_at: None,
        turn: 0,
        probed_at: None,
        probe: None,
    };
    while !shared.is_stopping() {
        supervisor.seek();
        let wait = supervisor.wait();
        match inbox.recv_timeout(wait) {
            Ok((at, event)) => supervisor.handle(event, at),
            Err(_) => supervisor.handle(Event::Tick, shared.clock.now()),
        }
        supervisor.look();
    }
    supervisor.stop(inbox);
}

impl Supervisor<'_> {
    fn wait(&self) -> Duration {
        let times = &self.shared.config.times;
        let now = self.shared.clock.now();
        let machine = self.shared.machine.lock();
        let mut wait = times.heartbeat_interval;
        if let Some(due) = machine.next_due(now) {
            wait = wait.min(due.since(now));
        }
        if self.session.as_ref().is_some_and(|session| session.is_over()) {
            wait = wait.min(FAILED_POLL);
        } else if machine.state() == LinkState::Replaying {
            wait = wait.min(CATCH_UP_POLL);
        }
        wait
    }

    /// Gives the event to the state machine and carries out what it says.
    fn handle(&mut self, event: Event, at: Now) {
        let mut events = vec![(event, at)];
        while let Some((event, now)) = events.pop() {
            let (actions, left, entered) = {
                let mut machine = self.shared.machine.lock();
                let left = machine.state();
                (machine.on_event(event, now), left, machine.snapshot(now))
            };
            if entered.state != left {
                let level =
                    if entered.state == LinkState::Down { log::Level::Warn } else { log::Level::Info };
                log::log!(
                    level,
                    "link to {}: {:?}, was {left:?}: {}",
                    self.shared.config.peer,
                    entered.state,
                    entered.reason
                );
            }
            for action in actions {
                match action {
                    Action::Connect => {
                        if let Err(reason) = self.connect() {
                            events.push((Event::Failed(reason), self.shared.clock.now()));
                        }
                    }
                    Action::EndSession(_) => self.end_session(),
                }
            }
        }
    }

    /// Looks at the session: what it has to tell, whether it stalls, whether it has caught up.
    fn look(&mut self) {
        let Some(session) = self.session.clone() else { return };
        let now = self.shared.clock.now();
        if let Some(reason) = session.failure(now).or_else(|| session.said_goodbye()) {
            self.handle(Event::Failed(reason), now);
            // The machine may have left the session behind already.
            self.end_session();
            return;
        }
        if session.is_over() {
            return;
        }
        if self.stall.observe(session.awaited(), now) {
            session.fail(EndReason::Stalled);
            return;
        }
        let Some(target) = session.target() else { return };
        if !self.connected {
            self.connected = true;
            self.handle(Event::Connected, now);
        }
        let state = self.shared.machine.lock().state();
        if let Some(event) = rules::progress(state, &self.shared.log.status(), target) {
            self.handle(event, now);
        }
    }

    /// While nothing is heard: resolves the name again and again, turns through its addresses, probes.
    fn seek(&mut self) {
        let shared = self.shared;
        let now = shared.clock.now();
        let patience = shared.config.times.heartbeat_timeout.max(Duration::from_millis(100));
        if self.session.is_some() || shared.heartbeat.lock().alive(now) {
            return;
        }
        if self.resolved_at.is_some_and(|at| now.since(at) < patience) {
            return;
        }
        let first = self.resolved_at.is_none();
        self.resolved_at = Some(now);
        match address::resolve(&shared.config.peer) {
            Ok(found) => {
                if !first {
                    self.turn = self.turn.wrapping_add(1);
                }
                let target = found[self.turn % found.len()];
                self.aim(target);
                let due = self.probed_at.is_none_or(|at| now.since(at) >= PROBE_INTERVAL);
                let free = self.probe.as_ref().is_none_or(JoinHandle::is_finished);
                if !first && due && free {
                    self.probed_at = Some(now);
                    let thread = Arc::clone(shared);
                    let spawned = std::thread::Builder::new()
                        .name("probe".to_owned())
                        .spawn(move || probe::run(&thread, target));
                    match spawned {
                        Ok(handle) => self.probe = Some(handle),
                        Err(error) => log::warn!("no thread to probe {target}: {error}"),
                    }
                }
            }
            Err(error) => *shared.probed.lock() = Some(error),
        }
    }

    fn aim(&self, target: SocketAddr) {
        let mut known = self.shared.target.lock();
        if *known != Some(target) {
            *known = Some(target);
            self.shared.heartbeat.lock().set_target(target);
            self.shared.sender_waker.wake();
        }
    }

    fn connect(&mut self) -> Result<(), EndReason> {
        self.end_session();
        let shared = self.shared;
        let known = *shared.target.lock();
        let addr = match (address::resolve(&shared.config.peer), known) {
            // Heartbeats are heard from there.
            (Ok(found), Some(known)) if found.contains(&known) => known,
            (Ok(found), _) => found[0],
            (Err(_), Some(known)) => known,
            (Err(error), None) => return Err(EndReason::Connection(error)),
        };
        self.aim(addr);
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| EndReason::Connection(error.to_string()))?;
        let id = SessionId(u128::from_le_bytes(id));
        shared.heartbeat.lock().set_session(id, shared.array.count());
        self.connected = false;
        self.stall = StallDetector::new(shared.config.times.stall_timeout);
        let session = Session::start(shared, id, addr)
            .map_err(|error| EndReason::Connection(format!("no session can be started: {error}")))?;
        *shared.session.lock() = Some(Arc::clone(&session));
        self.session = Some(session);
        Ok(())
    }

    fn end_session(&mut self) {
        let Some(session) = self.session.take() else { return };
        session.end();
        session.join();
        *self.shared.session.lock() = None;
    }

    /// A goodbye to the peer, which then has all that was sent, for a bounded time; then everything ends.
    fn stop(&mut self, inbox: &Receiver<(Now, Event)>) {
        if let Some(session) = self.session.clone() {
            session.want_goodbye(EndReason::Stopped);
            let bound = self.shared.config.times.heartbeat_timeout.min(Duration::from_secs(2));
            let begun = self.shared.clock.now();
            while !session.is_over() && !session.all_out() && self.shared.clock.now().since(begun) < bound {
                // Any event is a reason to look again; what it says does not matter any more.
                let _ = inbox.recv_timeout(Duration::from_millis(10));
            }
        }
        self.handle(Event::Stop, self.shared.clock.now());
        self.end_session();
        if let Some(probe) = self.probe.take() {
            // It is bounded by the handshake's time.
            let _ = probe.join();
        }
    }
}
