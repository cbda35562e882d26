//! The primary's session: dispatcher, workers and readers, each step of a thread a step of the scheduler.

use super::network::{Down, Network, PRIMARY, Read, Up};
use super::{Defect, times};
use crate::connection::{ConnectionArray, SocketParameter};
use crate::link::route::{Routed, Router};
use crate::link::rules;
use crate::store::{LunHello, StoreRefusal};
use crate::supervise::Now;
use crate::supervise::link_state::EndReason;
use crate::wire::{Begin, Greeting, Message, Outcome, PROTOCOL_VERSION, Response, SessionId, Welcome};
use mirrorfs_journal::log::{Next, PeerLun};
use mirrorfs_journal::{Body, Epoch, MirrorLog, MirrorRequest};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const LANE_MAX: usize = 16;
/// Records dispatched, and answers taken, by one call of a pump at most.
const PUMPED_MAX: usize = 8;

enum At {
    Connecting,
    Greeted(Now),
    /// Welcomed; worker 0 begins the session when all are.
    Welcomed,
    Sending,
    Goodbye,
    /// Done; its reader has seen the end.
    Out,
}

struct Worker {
    at: At,
    wire: Option<usize>,
    lane: VecDeque<Message>,
}

/// What a step of the primary's session needs beside it.
pub(super) struct Outside<'a> {
    pub(super) log: &'a Arc<MirrorLog>,
    pub(super) network: &'a mut Network,
    pub(super) array: &'a ConnectionArray,
    pub(super) now: Now,
    pub(super) defect: Option<Defect>,
    pub(super) peer_listens: bool,
    pub(super) boot_id: u64,
    pub(super) hello: &'a [LunHello],
}

pub(super) struct Sender {
    pub(super) id: SessionId,
    workers: Vec<Worker>,
    router: Router,
    outstanding: u64,
    progress: u64,
    peer: Option<Vec<PeerLun>>,
    log_began: bool,
    /// Durable up to here means caught up.
    pub(super) begun: Option<Epoch>,
    pub(super) failure: Option<EndReason>,
    /// What was said when it began, for the trace.
    pub(super) said: Option<String>,
    goodbye: Option<EndReason>,
    goodbye_pushed: bool,
    /// For the planted defects: a barrier held back; requests not yet applied, by epoch.
    held_back: Option<Arc<MirrorRequest>>,
    unapplied: BTreeMap<u64, (u64, bool)>,
    epoch_of: BTreeMap<u64, u64>,
}

impl Sender {
    pub(super) fn new(
        id: SessionId,
        count: u16,
        array: &ConnectionArray,
        addr: SocketAddr,
        now: Now,
    ) -> Self {
        array.begin(id);
        for index in 0..count {
            array.prepare(index, SocketParameter::Connect { addr, index }, now).expect("just begun");
        }
        let worker = || Worker { at: At::Connecting, wire: None, lane: VecDeque::new() };
        Self {
            id,
            workers: (0..count).map(|_| worker()).collect(),
            router: Router::new(usize::from(count)),
            outstanding: 0,
            progress: 0,
            peer: None,
            log_began: false,
            begun: None,
            failure: None,
            said: None,
            goodbye: None,
            goodbye_pushed: false,
            held_back: None,
            unapplied: BTreeMap::new(),
            epoch_of: BTreeMap::new(),
        }
    }

    fn is_over(&self) -> bool {
        self.failure.is_some()
    }

    fn fail(&mut self, reason: EndReason) {
        self.failure.get_or_insert(reason);
    }

    fn broken(&mut self, why: &str) {
        self.fail(EndReason::Connection(why.to_owned()));
    }

    pub(super) fn want_goodbye(&mut self, reason: EndReason) {
        self.goodbye.get_or_insert(reason);
    }

    /// The reason given with the goodbye, once everything is out.
    pub(super) fn said_goodbye(&self) -> Option<EndReason> {
        let out = self.workers.iter().all(|worker| matches!(worker.at, At::Out));
        self.goodbye.clone().filter(|_| out)
    }

    pub(super) fn awaited(&self) -> Option<u64> {
        (self.outstanding > 0).then_some(self.progress)
    }

    /// Shuts all down; the log's session ends after its threads.
    pub(super) fn end(&mut self, log: &MirrorLog, array: &ConnectionArray, network: &mut Network) {
        array.close_all();
        for wire in self.workers.iter().filter_map(|worker| worker.wire) {
            network.close(wire, PRIMARY);
        }
        if std::mem::take(&mut self.log_began) {
            log.end_session();
        }
    }

    /// Shuts down the sockets of marked elements.
    pub(super) fn shut(&self, bits: u64, network: &mut Network) {
        for (index, worker) in self.workers.iter().enumerate() {
            if let Some(wire) = worker.wire.filter(|_| bits & (1 << index) != 0) {
                network.close(wire, PRIMARY);
            }
        }
    }

    /// Its machine is gone.
    pub(super) fn gone(&self, silent: bool, network: &mut Network) {
        for wire in self.workers.iter().filter_map(|worker| worker.wire) {
            if silent {
                network.vanish(wire, PRIMARY);
            } else {
                network.close(wire, PRIMARY);
            }
        }
    }

    pub(super) fn count(&self) -> usize {
        self.workers.len()
    }

    /// The dispatcher's step.
    pub(super) fn dispatch(&mut self, out: &mut Outside<'_>) -> bool {
        if self.is_over() || self.goodbye_pushed || (self.begun.is_none() && self.goodbye.is_none()) {
            return false;
        }
        if self.goodbye.is_some() {
            self.goodbye_pushed = true;
            self.workers.iter_mut().for_each(|worker| worker.lane.push_back(Message::Goodbye));
            return true;
        }
        if self.workers.iter().any(|worker| worker.lane.len() >= LANE_MAX) {
            return false;
        }
        match out.log.next(Duration::ZERO) {
            Next::Request(request) => {
                self.give(request, out);
                true
            }
            Next::Idle => match self.held_back.take() {
                Some(barrier) => {
                    self.push(&barrier);
                    true
                }
                None => false,
            },
            Next::Ended => {
                self.want_goodbye(EndReason::Connection("the mirror log ended the session".to_owned()));
                true
            }
        }
    }

    /// What a thread does that is going to wait for what it appended: it dispatches what is in memory, sends what it can of it, and takes
    /// the answers that are there on connection 0.
    pub(super) fn pump(&mut self, out: &mut Outside<'_>) -> bool {
        let mut left = PUMPED_MAX;
        while left > 0
            && !self.is_over()
            && self.begun.is_some()
            && self.goodbye.is_none()
            && let Some(Next::Request(request)) = out.log.next_in_memory()
        {
            left -= 1;
            self.give(request, out);
        }
        let mut moved = left < PUMPED_MAX;
        for index in 0..self.workers.len() {
            while matches!(self.workers[index].at, At::Sending) && self.work(index, out) {
                moved = true;
            }
        }
        for _ in 0..PUMPED_MAX {
            if self.is_over() || !self.read(0, out) {
                break;
            }
            moved = true;
        }
        moved
    }

    /// Gives a record that was taken from the log to the lanes.
    fn give(&mut self, request: Arc<MirrorRequest>, out: &Outside<'_>) {
        if out.defect == Some(Defect::RetiredAtApplied) {
            self.note_sent(&request);
        }
        if out.defect == Some(Defect::BarriersSwapped) {
            if matches!(request.body, Body::Barrier { .. }) && self.held_back.is_none() {
                self.held_back = Some(request);
                return;
            }
            self.push(&request);
            if let Some(barrier) = self.held_back.take() {
                self.push(&barrier);
            }
            return;
        }
        self.router.overlapping = out.defect == Some(Defect::OverlappingOnTwo);
        self.push(&request);
    }

    fn push(&mut self, record: &Arc<MirrorRequest>) {
        self.outstanding += 1;
        let workers = &mut self.workers;
        self.router.route(record, self.outstanding, |index, routed| {
            workers[index].lane.push_back(match routed {
                Routed::After(epoch) => Message::After(epoch),
                Routed::Request(request) => Message::Request(request),
                Routed::Barrier(barrier, lanes) => Message::Barrier(barrier, lanes),
            });
        });
    }

    /// A worker's step.
    pub(super) fn work(&mut self, index: usize, out: &mut Outside<'_>) -> bool {
        if self.is_over() {
            return false;
        }
        match self.workers[index].at {
            At::Connecting if out.network.blocked.contains(&true) => false,
            At::Connecting if !out.peer_listens => {
                self.broken("connection refused");
                true
            }
            At::Connecting => {
                let luns = if index > 0 { Vec::new() } else { rules::hello(out.hello, out.log) };
                let greeting = Greeting {
                    version: PROTOCOL_VERSION,
                    session: self.id,
                    index: index as u16,
                    count: self.workers.len() as u16,
                    node: "node".to_owned(),
                    boot_id: out.boot_id,
                    luns,
                };
                self.workers[index].wire = Some(out.network.connect(greeting));
                self.workers[index].at = At::Greeted(out.now);
                true
            }
            At::Greeted(since) => self.welcome(index, since, out),
            At::Welcomed if index == 0 => self.begin(out),
            At::Welcomed => {
                self.workers[index].at = At::Sending;
                true
            }
            At::Sending => {
                let Some(wire) = self.workers[index].wire else { return false };
                if !out.network.has_room(wire, PRIMARY) {
                    return false;
                }
                let Some(message) = self.workers[index].lane.pop_front() else { return false };
                if message == Message::Goodbye {
                    self.workers[index].at = At::Goodbye;
                }
                out.network.send_up(wire, Up::Message(message));
                true
            }
            At::Goodbye | At::Out => false,
        }
    }

    fn welcome(&mut self, index: usize, since: Now, out: &mut Outside<'_>) -> bool {
        let Some(wire) = self.workers[index].wire else { return false };
        let welcome = match out.network.read_down(wire, out.now) {
            Read::Frame(Down::Welcome(welcome)) => welcome,
            Read::Nothing if out.now.since(since) <= times().stall_timeout => return false,
            Read::Nothing => {
                self.broken("the greeting was not answered in time");
                return true;
            }
            Read::Frame(Down::Response(_)) | Read::End | Read::Broken => {
                self.broken("no welcome");
                return true;
            }
        };
        out.array.heard_one(index as u16, out.now);
        match welcome {
            Welcome::Accepted { luns, .. } if index == 0 => {
                match rules::check(out.hello, out.log.status().open_epoch, luns) {
                    Ok(luns) => {
                        self.peer = Some(luns);
                        self.workers[index].at = At::Welcomed;
                    }
                    Err(reason) => self.fail(reason),
                }
            }
            Welcome::Accepted { .. } => self.workers[index].at = At::Welcomed,
            Welcome::Refused(StoreRefusal::InUse { .. }) | Welcome::Invalid(_) => self.broken("refused"),
            Welcome::Refused(refusal) => self.broken(&refusal.to_string()),
            Welcome::Version { .. } => self.fail(EndReason::Refused("version".to_owned())),
        }
        true
    }

    /// Worker 0, when all are welcomed.
    fn begin(&mut self, out: &mut Outside<'_>) -> bool {
        if self.goodbye.is_some() {
            self.workers[0].at = At::Sending;
            return true;
        }
        let connecting = |worker: &Worker| matches!(worker.at, At::Connecting | At::Greeted(_));
        if self.workers.iter().any(connecting) {
            return false;
        }
        let (Some(peer), Some(wire)) = (self.peer.take(), self.workers[0].wire) else { return false };
        match out.log.begin_session(&peer) {
            Ok(start) => {
                self.log_began = true;
                self.said = Some(format!("{peer:?} -> {start:?}"));
                let gather = start.gather.iter().map(|lun| lun.0).collect();
                let gather = if out.defect == Some(Defect::NoGather) { Vec::new() } else { gather };
                out.network.send_up(wire, Up::Begin(Begin { gather }));
                self.begun = Some(rules::caught_up_at(&out.log.status()));
                self.workers[0].at = At::Sending;
            }
            Err(error) => self.broken(&error.to_string()),
        }
        true
    }

    /// A reader's step. It reads on for a while after the session has failed.
    pub(super) fn read(&mut self, index: usize, out: &mut Outside<'_>) -> bool {
        if !matches!(self.workers[index].at, At::Sending | At::Goodbye | At::Welcomed) {
            return false;
        }
        let Some(wire) = self.workers[index].wire else { return false };
        match out.network.read_down(wire, out.now) {
            Read::Nothing => return false,
            Read::Frame(Down::Response(response)) => {
                out.array.heard_one(index as u16, out.now);
                self.outstanding = self.outstanding.saturating_sub(1);
                self.progress += 1;
                if out.defect == Some(Defect::RetiredAtApplied) {
                    self.note_applied(&response, out.log);
                }
                if let Err(reason) = rules::take(out.log, response) {
                    self.fail(reason);
                }
            }
            Read::Frame(Down::Welcome(_)) => self.broken("a second welcome"),
            Read::End if matches!(self.workers[index].at, At::Goodbye) => self.workers[index].at = At::Out,
            Read::End => self.broken("closed by the peer"),
            Read::Broken => self.broken("reset"),
        }
        true
    }

    fn note_sent(&mut self, request: &MirrorRequest) {
        let entry = self.unapplied.entry(request.epoch.0).or_default();
        match request.body {
            Body::Barrier { .. } => entry.1 = true,
            _ => {
                entry.0 += 1;
                self.epoch_of.insert(request.sequence.0, request.epoch.0);
            }
        }
    }

    /// The defect: an epoch counts as durable when all of its requests are applied.
    fn note_applied(&mut self, response: &Response, log: &MirrorLog) {
        let Response::Request(sequence, Outcome::Stored) = response else { return };
        let Some(epoch) = self.epoch_of.remove(&sequence.0) else { return };
        let Some(entry) = self.unapplied.get_mut(&epoch) else { return };
        entry.0 -= 1;
        while let Some(first) = self.unapplied.first_entry().filter(|entry| *entry.get() == (0, true)) {
            let (epoch, _) = first.remove_entry();
            log.durable(Epoch(epoch));
        }
    }
}
