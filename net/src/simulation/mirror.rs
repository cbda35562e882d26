//! The peer's process: heartbeats, sessions with their connection threads, each step of a thread a step of the scheduler.

use super::blocks::Store;
use super::network::{Down, Network, PEER};
use super::{Defect, times};
use crate::connection::{ConnectionArray, SocketParameter};
use crate::peer::gate::Gate;
use crate::peer::images::Images;
use crate::peer::life::{self, Admission, Life};
use crate::store::StoreRefusal;
use crate::supervise::Now;
use crate::supervise::heartbeat::{
    Datagram, HeartbeatConfig, HeartbeatLogic, LinkId, MacKey, Marks, Side, Verdict,
};
use crate::wire::{Greeting, Lanes, Message, SessionId, Welcome};
use mirrorfs_journal::{Epoch, MirrorRequest};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const ENDED_MAX: usize = 16;

/// Where a connection thread is.
#[derive(Debug)]
pub(super) enum At {
    /// Waits for its socket.
    Ready,
    /// Thread 0: opens the images.
    Opening(Box<Greeting>),
    WaitImages,
    ReadBegin,
    WaitBegun,
    Reading,
    /// It has seen that the session is not over, and is about to do this.
    Holding(Arc<MirrorRequest>),
    /// It is about to arrive at this barrier.
    Arriving(Arc<MirrorRequest>, Lanes),
    /// The last at the barrier: is about to sync.
    Completing(Arc<MirrorRequest>),
    /// It has synced, and is about to let the others go on.
    Completed(Arc<MirrorRequest>),
    Waiting(Epoch),
    Lingering(Now),
    /// Done; stays until the session's sockets are closed.
    Staying,
    Left,
}

pub(super) struct Thread {
    pub(super) at: At,
    pub(super) wire: Option<usize>,
    /// Stored by the listener.
    pub(super) socket: Option<(usize, Box<Greeting>)>,
    pub(super) ahead: VecDeque<Message>,
    /// Its disk, or its processor, is slow.
    pub(super) frozen_until: Now,
}

pub(super) struct Session {
    pub(super) life: Life,
    pub(super) array: ConnectionArray,
    pub(super) gate: Gate,
    pub(super) images: Option<Result<Arc<Images>, StoreRefusal>>,
    pub(super) predecessor: Option<usize>,
    pub(super) threads: Vec<Thread>,
}

/// What a step of the peer's side needs beside the process.
pub(super) struct Outside<'a> {
    pub(super) network: &'a mut Network,
    pub(super) store: &'a Store,
    pub(super) now: Now,
    pub(super) defect: Option<Defect>,
    /// Epochs answered as durable in this step, with the LUNs that have requests in them.
    pub(super) answered: Vec<(u64, Vec<usize>)>,
    /// For the trace of one life.
    pub(super) notes: Option<Vec<String>>,
}

pub(super) struct PeerProcess {
    pub(super) heartbeat: HeartbeatLogic,
    pub(super) sessions: Vec<Session>,
    current: Option<usize>,
    ended: VecDeque<SessionId>,
}

fn addr() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 7370))
}

impl Session {
    fn new(count: u16, predecessor: Option<usize>, now: Now) -> Self {
        let mut life = Life::new(count, now);
        let threads = (0..count)
            .map(|_| {
                life.entered();
                Thread {
                    at: At::Ready,
                    wire: None,
                    socket: None,
                    ahead: VecDeque::new(),
                    frozen_until: Now::default(),
                }
            })
            .collect();
        Self {
            life,
            array: ConnectionArray::new(count, times().heartbeat_timeout).expect("1 to 64"),
            gate: Gate::new(count).expect("descriptors"),
            images: None,
            predecessor,
            threads,
        }
    }

    pub(super) fn end(&mut self, reason: &str, network: &mut Network) {
        self.life.latch(reason);
        self.array.close_all();
        self.life.close();
        for thread in &self.threads {
            for wire in thread.wire.iter().chain(thread.socket.iter().map(|(wire, _)| wire)) {
                network.close(*wire, PEER);
            }
        }
    }

    /// Shuts down the sockets of marked elements.
    fn shut(&self, bits: u64, network: &mut Network) {
        for (index, thread) in self.threads.iter().enumerate() {
            if let Some(wire) = thread.wire.filter(|_| bits & (1 << index) != 0) {
                network.close(wire, PEER);
            }
        }
    }
}

impl PeerProcess {
    pub(super) fn new(key: &MacKey, link: LinkId, boot_id: u64) -> Self {
        let heartbeat = HeartbeatLogic::new(HeartbeatConfig {
            side: Side::Mirror,
            link,
            key: key.clone(),
            times: times(),
            boot_id,
        });
        Self { heartbeat, sessions: Vec::new(), current: None, ended: VecDeque::new() }
    }

    /// Sessions that have not finished, for the trace.
    pub(super) fn unfinished(&self) -> Vec<String> {
        let unfinished = self.sessions.iter().enumerate().filter(|(_, session)| !session.life.is_finished());
        unfinished
            .map(|(at, session)| {
                let threads: Vec<&At> = session.threads.iter().map(|thread| &thread.at).collect();
                format!("session {at}: {:?}, threads {threads:?}", session.life)
            })
            .collect()
    }

    /// Threads that can be picked.
    pub(super) fn threads(&self) -> Vec<(usize, usize)> {
        let left = |thread: &Thread| matches!(thread.at, At::Left);
        (0..self.sessions.len())
            .filter(|session| !self.sessions[*session].life.is_finished())
            .flat_map(|session| (0..self.sessions[session].threads.len()).map(move |index| (session, index)))
            .filter(|(session, index)| !left(&self.sessions[*session].threads[*index]))
            .collect()
    }

    /// A thread that holds a request it is about to apply gets stuck there.
    pub(super) fn freeze(&mut self, until: Now) -> bool {
        let holding = |thread: &&mut Thread| matches!(thread.at, At::Holding(_) | At::Completing(_));
        match self.sessions.iter_mut().flat_map(|session| &mut session.threads).find(holding) {
            Some(thread) => {
                thread.frozen_until = until;
                true
            }
            None => false,
        }
    }

    /// Whether a thread of a session that is over is still about to write.
    pub(super) fn has_late_thread(&self) -> bool {
        self.sessions.iter().any(|session| {
            session.life.is_over() && session.threads.iter().any(|thread| matches!(thread.at, At::Holding(_)))
        })
    }

    fn replace(&mut self, count: u16, reason: &str, out: &mut Outside<'_>) -> usize {
        if let Some(old) = self.current {
            let session = &mut self.sessions[old];
            session.end(reason, out.network);
            if let Some(id) = session.life.id() {
                self.ended.push_back(id);
                if self.ended.len() > ENDED_MAX {
                    self.ended.pop_front();
                }
            }
        }
        self.sessions.push(Session::new(count, self.current, out.now));
        self.current = Some(self.sessions.len() - 1);
        self.sessions.len() - 1
    }

    /// The listener takes a greeting.
    pub(super) fn listen(&mut self, out: &mut Outside<'_>) -> bool {
        let Some((wire, greeting)) = out.network.greeting(out.now) else { return false };
        let running = self.current.map(|current| &self.sessions[current].life);
        let at = match life::admit(running, &self.ended, greeting.session, greeting.count) {
            Admission::Join => self.current,
            Admission::Replace => Some(self.replace(greeting.count, "a new session displaced it", out)),
            Admission::Ended => None,
        };
        let bound = match at {
            Some(at) => {
                let session = &mut self.sessions[at];
                session.life.bind(&greeting, out.now).map(|first| {
                    if first {
                        session.array.begin(greeting.session);
                    }
                })
            }
            None => Err(life::BindError::Over("this session has ended".to_owned())),
        };
        match (bound, at) {
            (Ok(()), Some(at)) => {
                self.heartbeat.set_session(greeting.session, greeting.count);
                let index = greeting.index;
                let session = &mut self.sessions[at];
                let parameter = SocketParameter::Connect { addr: addr(), index };
                match session.array.prepare(index, parameter, out.now) {
                    Ok(()) => session.threads[usize::from(index)].socket = Some((wire, greeting)),
                    Err(_) => out.network.close(wire, PEER),
                }
            }
            (Err(why), _) => {
                out.network.send_down(wire, Down::Welcome(Welcome::Invalid(why.to_string())));
                out.network.close(wire, PEER);
            }
            (Ok(()), None) => {}
        }
        true
    }

    /// The last thread of a session draws the line.
    pub(super) fn finish(&mut self, session: usize) -> bool {
        if !self.sessions[session].life.is_deserted() {
            return false;
        }
        self.sessions[session].images = None;
        let before = self.sessions[session].predecessor;
        if before.is_some_and(|before| !self.sessions[before].life.is_finished()) {
            return false;
        }
        self.sessions[session].array.close_all();
        self.sessions[session].life.finish();
        true
    }

    pub(super) fn on_datagram(
        &mut self,
        datagram: &Datagram,
        from: SocketAddr,
        out: &mut Outside<'_>,
    ) -> bool {
        match self.heartbeat.on_authentic(datagram, from, out.now) {
            Verdict::Accepted { marks, new_boot, after_interruption, count, boot_id } => {
                if let Some(session) = self.current.map(|current| &mut self.sessions[current]) {
                    if new_boot && session.life.id().is_some() && session.life.boot_id() != boot_id {
                        session.end("the primary was started anew", out.network);
                    }
                    session.array.heard_all(out.now);
                    session.life.heard(out.now);
                    apply_marks(session, marks, out.network);
                }
                let in_use = self.current.is_some_and(|current| !self.sessions[current].life.is_over());
                if after_interruption && !in_use && count > 0 {
                    self.replace(count, "interrupted", out);
                }
                true
            }
            Verdict::MarksOnly(marks) => {
                if let Some(session) = self.current.map(|current| &mut self.sessions[current]) {
                    apply_marks(session, marks, out.network);
                }
                true
            }
            Verdict::Candidate | Verdict::Ignored(_) => false,
        }
    }

    /// The heartbeat sender's tick.
    pub(super) fn on_tick(
        &mut self,
        out: &mut Outside<'_>,
        datagrams: &mut Vec<super::network::Bytes>,
    ) -> Now {
        let mut marks = 0;
        if let Some(session) = self.current.map(|current| &mut self.sessions[current]) {
            if session.array.any_stale(out.now) {
                session.life.latch("interrupted: no heartbeat from the primary in time");
                let bits = session.array.mark_stale(out.now);
                session.shut(bits, out.network);
                session.end("interrupted: no heartbeat from the primary in time", out.network);
            }
            marks = session.array.marks();
        }
        let mut sent = Vec::new();
        let due = self.heartbeat.on_tick(out.now, marks, &mut sent);
        datagrams.extend(sent.into_iter().map(|(_, bytes)| bytes));
        due.min(out.now + Duration::from_millis(1).max(times().heartbeat_interval))
    }

    /// Its sockets, as the machine's end leaves them: closed by the kernel, or silent.
    pub(super) fn gone(&self, silent: bool, network: &mut Network) {
        for session in &self.sessions {
            for thread in &session.threads {
                for wire in thread.wire.iter().chain(thread.socket.iter().map(|(wire, _)| wire)) {
                    if silent {
                        network.vanish(*wire, PEER);
                    } else {
                        network.close(*wire, PEER);
                    }
                }
            }
        }
    }
}

fn apply_marks(session: &mut Session, marks: Marks, network: &mut Network) {
    if session.array.any_new(marks.session, marks.bits) {
        session.life.latch("interrupted: the primary marked connections closed");
        let bits = session.array.apply_marks(marks.session, marks.bits);
        session.shut(bits, network);
        session.end("interrupted: the primary marked connections closed", network);
    }
}
