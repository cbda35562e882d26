//! The primaries that this peer serves: for each its heartbeats and its session, which change together.

use super::Shared;
use super::life::{self, Admission};
use super::session::{Applied, Session};
use crate::connection::{Accepted, CONNECTIONS_MAX};
use crate::status::PeerSessionStatus;
use crate::supervise::Now;
use crate::supervise::heartbeat::{
    DATAGRAM_BYTES, Datagram, HeartbeatConfig, HeartbeatLogic, Ignored, LinkId, Marks, Side, Verdict,
};
use crate::wire::{PROTOCOL_VERSION, SessionId};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Links that a peer knows at most; beyond that those that never verified themselves make room.
const LINKS_MAX: usize = 256;
/// Ids of ended sessions that are remembered, so that a late connection of one displaces nothing.
const ENDED_MAX: usize = 16;

/// Why a session ends whose elements are too old.
const SILENT: &str = "interrupted: no heartbeat from the primary in time";
/// Why a session ends whose elements the primary found too old.
const MARKED: &str = "interrupted: the primary marked connections closed";

/// Table of primaries by link.
#[derive(Default)]
pub(super) struct Primaries {
    links: Mutex<HashMap<LinkId, Arc<Primary>>>,
}

struct Primary {
    applied: Arc<Applied>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Known from the first greeting on.
    node: Option<String>,
    heartbeat: HeartbeatLogic,
    session: Option<Arc<Session>>,
    ended: VecDeque<SessionId>,
    /// Why the last session that was connected ended, or was refused.
    reason: String,
    /// Of the last session that had its images open.
    luns: Vec<(String, mirrorfs_journal::Epoch, bool)>,
}

impl Primaries {
    fn primary(&self, shared: &Shared, link: LinkId) -> Option<Arc<Primary>> {
        let mut links = self.links.lock();
        if let Some(primary) = links.get(&link) {
            return Some(Arc::clone(primary));
        }
        if links.len() >= LINKS_MAX {
            links.retain(|_, primary| {
                let inner = primary.inner.lock();
                inner.heartbeat.remote_boot().is_some() || inner.session.is_some()
            });
            if links.len() >= LINKS_MAX {
                return None;
            }
        }
        let heartbeat = HeartbeatLogic::new(HeartbeatConfig {
            side: Side::Mirror,
            link,
            key: shared.key.clone(),
            times: shared.config.times,
            boot_id: shared.boot_id,
        });
        let inner = Inner {
            node: None,
            heartbeat,
            session: None,
            ended: VecDeque::new(),
            reason: String::new(),
            luns: Vec::new(),
        };
        let primary = Arc::new(Primary { applied: Arc::default(), inner: Mutex::new(inner) });
        links.insert(link, Arc::clone(&primary));
        Some(primary)
    }

    fn all(&self) -> Vec<Arc<Primary>> {
        self.links.lock().values().cloned().collect()
    }

    /// An authenticated greeting: hands the socket to the session that it belongs to. A running session gives way to a
    /// greeting of a new one, which answers only after the old one's last image write has ended.
    ///
    /// # Errors
    /// Why it is refused, in words; the connection is left in `offered`.
    pub(super) fn greet(&self, shared: &Arc<Shared>, offered: &mut Option<Accepted>) -> Result<(), String> {
        let Some(accepted) = offered.as_ref() else { return Ok(()) };
        let greeting = &accepted.greeting;
        if greeting.version != PROTOCOL_VERSION {
            return Err(format!(
                "protocol version {} is unknown here ({PROTOCOL_VERSION})",
                greeting.version
            ));
        }
        check_node(&greeting.node)?;
        if greeting.count == 0 || greeting.count > CONNECTIONS_MAX || greeting.index >= greeting.count {
            return Err(format!("there is no connection {} of {}", greeting.index, greeting.count));
        }
        let (id, count, node) = (greeting.session, greeting.count, greeting.node.clone());
        let primary =
            self.primary(shared, LinkId::of_node(&node)).ok_or_else(|| "too many primaries".to_owned())?;
        let mut inner = primary.inner.lock();
        if shared.is_stopping() {
            return Err("the peer is being stopped".to_owned());
        }
        if inner.node.as_deref().is_some_and(|known| known != node) {
            return Err(format!(
                "node names {node} and {} can't be told apart; rename one",
                inner.node.as_deref().unwrap_or("")
            ));
        }
        let admission = match &inner.session {
            Some(session) => session.admit(&inner.ended, id, count),
            None => life::admit(None, &inner.ended, id, count),
        };
        let session = match (admission, &inner.session) {
            (Admission::Ended, _) => return Err("this session has ended".to_owned()),
            (Admission::Join, Some(session)) => Arc::clone(session),
            _ => inner.replace(shared, &primary.applied, count, "a new session displaced it")?,
        };
        session.place(offered).map_err(|error| error.to_string())?;
        inner.node = Some(node);
        inner.heartbeat.set_session(id, count);
        Ok(())
    }

    /// A datagram that is authentic.
    pub(super) fn on_datagram(&self, shared: &Arc<Shared>, datagram: &Datagram, from: SocketAddr) {
        let Some(primary) = self.primary(shared, datagram.link) else {
            shared.refused.count(&shared.refused.datagrams_replayed, format_args!("{from}: too many links"));
            return;
        };
        let now = shared.clock.now();
        let mut inner = primary.inner.lock();
        match inner.heartbeat.on_authentic(datagram, from, now) {
            Verdict::Accepted { marks, new_boot, after_interruption, count, boot_id } => {
                if let Some(session) = &inner.session {
                    if new_boot && session.id().is_some() && session.boot_id() != boot_id {
                        session.end("the primary was started anew");
                    }
                    session.heard(now);
                    apply_marks(session, marks);
                }
                if after_interruption {
                    inner.make_ready(shared, &primary.applied, count);
                }
            }
            Verdict::MarksOnly(marks) => {
                if let Some(session) = &inner.session {
                    apply_marks(session, marks);
                }
            }
            Verdict::Candidate => {}
            Verdict::Ignored(Ignored::NotAuthentic) => {
                shared
                    .refused
                    .count(&shared.refused.datagrams_not_authentic, format_args!("datagram from {from}"));
            }
            Verdict::Ignored(why) => {
                shared.refused.count(
                    &shared.refused.datagrams_replayed,
                    format_args!("heartbeat from {from}: {why:?}"),
                );
            }
        }
    }

    /// The sender thread's tick for all primaries; returns when the next one is due.
    pub(super) fn on_tick(
        &self,
        shared: &Shared,
        now: Now,
        out: &mut Vec<(SocketAddr, [u8; DATAGRAM_BYTES])>,
    ) -> Now {
        let mut due = now + shared.config.times.heartbeat_interval;
        for primary in self.all() {
            let mut inner = primary.inner.lock();
            let mut marks = 0;
            if let Some(session) = &inner.session {
                if session.array.any_stale(now) {
                    // The reason first: a thread whose socket is shut down would take it for the primary's doing.
                    session.latch(SILENT);
                    session.array.mark_stale(now);
                    session.end(SILENT);
                }
                marks = session.array.marks();
                if let Some(luns) = session.luns() {
                    inner.luns = luns;
                }
            }
            due = due.min(inner.heartbeat.on_tick(now, marks, out));
        }
        due
    }

    /// Ends every session.
    pub(super) fn end_all(&self, reason: &str) {
        for primary in self.all() {
            if let Some(session) = &primary.inner.lock().session {
                session.end(reason);
            }
        }
    }

    /// Of each primary that has greeted.
    pub(super) fn status(&self, now: Now) -> Vec<PeerSessionStatus> {
        let mut all: Vec<_> = self
            .all()
            .iter()
            .filter_map(|primary| primary.inner.lock().status(&primary.applied, now))
            .collect();
        all.sort_by(|one, other| one.node.cmp(&other.node));
        all
    }
}

fn apply_marks(session: &Session, marks: Marks) {
    if session.array.any_new(marks.session, marks.bits) {
        session.latch(MARKED);
        session.array.apply_marks(marks.session, marks.bits);
        session.end(MARKED);
    }
}

/// Node names become directory names.
fn check_node(node: &str) -> Result<(), String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=64).contains(&node.len()) && !node.starts_with('.') && node.bytes().all(good) {
        return Ok(());
    }
    Err(format!("node name {node:?} is not allowed: 1 to 64 of A-Z a-z 0-9 . _ -, not starting with a dot"))
}

impl Inner {
    /// Ends the session there is, and makes a new one with n fresh threads.
    fn replace(
        &mut self,
        shared: &Arc<Shared>,
        applied: &Arc<Applied>,
        count: u16,
        reason: &str,
    ) -> Result<Arc<Session>, String> {
        let predecessor = self.session.take();
        if let Some(old) = &predecessor {
            old.end(reason);
            if let Some(id) = old.id() {
                self.reason = old.over_reason().unwrap_or_default();
                self.ended.push_back(id);
                if self.ended.len() > ENDED_MAX {
                    self.ended.pop_front();
                }
            }
        }
        let session = match Session::start(shared, count, predecessor.clone(), applied) {
            Ok(session) => session,
            Err(error) => {
                // The old one is kept: its successor must still wait for it.
                self.session = predecessor;
                return Err(format!("no threads for a session: {error}"));
            }
        };
        self.session = Some(Arc::clone(&session));
        Ok(session)
    }

    /// The first heartbeat after an interruption: n fresh connection threads wait for their sockets.
    fn make_ready(&mut self, shared: &Arc<Shared>, applied: &Arc<Applied>, count: u16) {
        let in_use = self.session.as_ref().is_some_and(|session| !session.is_over());
        if in_use || count == 0 || count > CONNECTIONS_MAX || shared.is_stopping() {
            return;
        }
        match self.replace(shared, applied, count, "interrupted") {
            Ok(_) => log::info!(
                "heartbeats of {} are heard: {count} connection threads are ready",
                self.node.as_deref().unwrap_or("a primary")
            ),
            Err(error) => log::error!("{error}"),
        }
    }

    fn status(&self, applied: &Applied, now: Now) -> Option<PeerSessionStatus> {
        let session = self.session.as_ref();
        Some(PeerSessionStatus {
            node: self.node.clone()?,
            luns: session.and_then(|session| session.luns()).unwrap_or_else(|| self.luns.clone()),
            connected: session.is_some_and(|session| session.is_connected()),
            reason: session.and_then(|session| session.over_reason()).unwrap_or_else(|| self.reason.clone()),
            session: session.and_then(|session| session.id()).map(|id| format!("{:032x}", id.0)),
            applied_requests: applied.requests.load(Ordering::Relaxed),
            applied_bytes: applied.bytes.load(Ordering::Relaxed),
            heartbeats_received: self.heartbeat.stats().received,
            elements: session.map(|session| session.array.status(now)).unwrap_or_default(),
        })
    }
}
