//! The primary's machine and process: image, writers, mirror log, heartbeats, the link's supervisor.

use super::blocks::{Blocks, REGIONS, SIZE_BYTES, SLOTS, offset_of, payload_of};
use super::network::Network;
use super::sender::{self, Sender};
use super::{Defect, Settings, times};
use crate::connection::ConnectionArray;
use crate::link::rules;
use crate::store::LunHello;
use crate::supervise::Now;
use crate::supervise::heartbeat::{HeartbeatConfig, HeartbeatLogic, LinkId, MacKey, Side, Verdict};
use crate::supervise::link_state::{Action, EndReason, Event, LinkSupervisor, StallDetector};
use crate::wire::SessionId;
use mirrorfs_journal::log::{LogConfig, LogLun, RegionSource, Waited};
use mirrorfs_journal::simulation::{SimulatedDisk, SimulatedLog};
use mirrorfs_journal::{
    Body, Epoch, Generation, Incarnation, LunId, LunUuid, MirrorLog, Origin, REGION_BYTES, RegionNo,
};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long a failed session reads on for a better reason.
const REASON_WAIT: Duration = Duration::from_millis(15);

/// What outlives the process: the disk, and (but for what was not synced) the machine.
pub(super) struct PrimaryHost {
    pub(super) disk: Arc<SimulatedDisk>,
    pub(super) images: Vec<Arc<Mutex<Blocks>>>,
    incarnation: u32,
    /// The labels: how the images were closed.
    clean: bool,
    durable: Vec<Epoch>,
}

impl PrimaryHost {
    pub(super) fn new(luns: usize) -> Self {
        Self {
            disk: Arc::default(),
            images: (0..luns).map(|_| Arc::default()).collect(),
            incarnation: 0,
            clean: true,
            durable: vec![Epoch(0); luns],
        }
    }
}

/// A Flush on its way.
struct Flush {
    lun: usize,
    epoch: Epoch,
    image_synced: bool,
    queue_synced: bool,
}

pub(super) struct PrimaryProcess {
    pub(super) log: SimulatedLog,
    pub(super) boot_id: u64,
    pub(super) heartbeat: HeartbeatLogic,
    array: ConnectionArray,
    pub(super) machine: LinkSupervisor,
    pub(super) session: Option<Sender>,
    failed_at: Option<Now>,
    connected: bool,
    stall: StallDetector,
    flushes: Vec<Flush>,
    hello: Vec<LunHello>,
    /// LUNs and epochs that a waiter was told to be durable on the mirror.
    pub(super) told_durable: Arc<Mutex<Vec<(usize, u64)>>>,
}

/// Reads regions for a resync as the LUN does.
struct Source {
    log: Weak<MirrorLog>,
    image: Arc<Mutex<Blocks>>,
    lun: LunId,
}

impl RegionSource for Source {
    fn resync_region(&self, region: RegionNo, skip_holes: bool) -> std::io::Result<RegionNo> {
        let mut next = RegionNo(region.0 + 1);
        let Some(log) = self.log.upgrade() else { return Ok(next) };
        let image = self.image.lock();
        let first = (region.0 * SLOTS) as usize;
        let mut slot = 0;
        while slot < SLOTS as usize {
            let run: Vec<u64> = image.now[first + slot..first + SLOTS as usize]
                .iter()
                .copied()
                .take_while(|&c| c != 0)
                .collect();
            let offset = offset_of(first + slot);
            if run.is_empty() {
                let holes =
                    image.now[first + slot..first + SLOTS as usize].iter().take_while(|&&c| c == 0).count();
                let end = if slot + holes == SLOTS as usize {
                    region.start() + REGION_BYTES
                } else {
                    offset_of(first + slot + holes)
                };
                if !skip_holes {
                    log.append(self.lun, Origin::Resync, Body::Discard { offset, length: end - offset });
                }
                slot += holes;
            } else {
                slot += run.len();
                log.append(self.lun, Origin::Resync, write_of(offset, &run));
            }
        }
        let is_hole = |region: RegionNo| {
            image.now[(region.0 * SLOTS) as usize..][..SLOTS as usize].iter().all(|&c| c == 0)
        };
        while skip_holes && next.0 < REGIONS && is_hole(next) {
            next.0 += 1;
        }
        Ok(next)
    }
}

fn write_of(offset: u64, contents: &[u64]) -> Body {
    let payload = payload_of(contents);
    let crc = crc32c::crc32c(&payload);
    Body::Write { offset, payload, crc }
}

fn peer_addr() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], 7370))
}

/// What a step of the process needs beside it.
pub(super) struct Outside<'a> {
    pub(super) network: &'a mut Network,
    pub(super) now: Now,
    pub(super) defect: Option<Defect>,
    pub(super) peer_listens: bool,
    pub(super) session_id: u128,
}

impl PrimaryProcess {
    /// Mounts: the incarnation is raised, synced; the log recovers. The flag: the state does not follow from the log.
    /// An error: the log can't be opened, its disk fails.
    pub(super) fn start(
        host: &mut PrimaryHost,
        settings: &Settings,
        key: &MacKey,
        boot_id: u64,
        now: Now,
        defect: Option<Defect>,
    ) -> Result<(Self, bool, Epoch), String> {
        let clean = std::mem::replace(&mut host.clean, false);
        if host.incarnation == 0 || defect != Some(Defect::EpochReused) {
            host.incarnation += 1;
        }
        let uuid = |index: usize| LunUuid([index as u8 + 1; 16]);
        let luns = (0..host.images.len())
            .map(|index| LogLun {
                id: LunId(index as u16),
                uuid: uuid(index),
                generation: Generation(1),
                name: index.to_string(),
                size_bytes: SIZE_BYTES,
                durable_epoch: host.durable[index],
                clean,
                all_regions: false,
            })
            .collect();
        for image in &host.images {
            image.lock().sync();
        }
        let config = LogConfig {
            dir: PathBuf::from("/simulated"),
            memory_bytes_max: settings.memory_bytes,
            queue_bytes_max: Some(settings.queue_bytes),
            incarnation: Incarnation(host.incarnation),
            luns,
        };
        let log = SimulatedLog::open(config, &host.disk).map_err(|error| error.to_string())?;
        for (index, image) in host.images.iter().enumerate() {
            let lun = LunId(index as u16);
            let source = Source { log: Arc::downgrade(log.log()), image: Arc::clone(image), lun };
            log.log().set_region_source(lun, Arc::new(source));
        }
        log.log().set_on_outage(settings.on_outage);
        let mut heartbeat = HeartbeatLogic::new(HeartbeatConfig {
            side: Side::Local,
            link: LinkId::of_node("node"),
            key: key.clone(),
            times: times(),
            boot_id,
        });
        heartbeat.set_session(SessionId::default(), settings.connections);
        heartbeat.set_target(peer_addr());
        let hello = (0..host.images.len())
            .map(|index| LunHello {
                name: index.to_string(),
                uuid: uuid(index),
                size_bytes: SIZE_BYTES,
                generations: vec![Generation(1)],
                durable_epoch: host.durable[index],
            })
            .collect();
        let process = Self {
            log,
            boot_id,
            heartbeat,
            array: ConnectionArray::new(settings.connections, times().heartbeat_timeout).expect("1 to 64"),
            machine: LinkSupervisor::new(times(), boot_id, now),
            session: None,
            failed_at: None,
            connected: false,
            stall: StallDetector::new(times().stall_timeout),
            flushes: Vec::new(),
            hello,
            told_durable: Arc::default(),
        };
        Ok((process, !clean, Epoch::first(Incarnation(host.incarnation))))
    }

    /// A primary storage request, as the LUN carries it out: mark, image, log. `contents` of zeros is a discard. Returns
    /// the epoch that it was logged in; `None`: not logged. An error: the region can't be marked.
    pub(super) fn write(
        &self,
        host: &PrimaryHost,
        lun: usize,
        block: usize,
        contents: &[u64],
        waits: bool,
    ) -> Result<Option<u64>, ()> {
        let log = self.log.log();
        let id = LunId(lun as u16);
        let region = RegionNo(block as u64 / SLOTS);
        let _hold = log.hold(id, region);
        if !log.is_marked(id, region) {
            log.ensure_marked(id, region).map_err(|_| ())?;
        }
        {
            let mut image = host.images[lun].lock();
            for (at, content) in contents.iter().enumerate() {
                image.write(block + at, *content);
            }
        }
        let logged = self.log.observe().given_up.is_none();
        let body = if contents.iter().all(|content| *content == 0) {
            Body::Discard {
                offset: offset_of(block),
                length: contents.len() as u64 * super::blocks::BLOCK_BYTES,
            }
        } else {
            write_of(offset_of(block), contents)
        };
        let appended = log.append(id, Origin::File(12), body);
        if waits && logged {
            log.when_applied(appended.sequence, Box::new(|_| {}));
        }
        Ok(logged.then_some(appended.epoch.0))
    }

    /// A Flush begins: its barrier is appended.
    pub(super) fn flush(&mut self, lun: usize, waits: bool) -> bool {
        if self.flushes.len() >= 3 {
            return false;
        }
        let log = self.log.log();
        let epoch = log.barrier(LunId(lun as u16));
        if waits {
            let told = Arc::clone(&self.told_durable);
            let waiter = move |waited| {
                if waited == Waited::Mirrored {
                    told.lock().push((lun, epoch.0));
                }
            };
            log.when_durable(epoch, Box::new(waiter));
        }
        self.flushes.push(Flush { lun, epoch, image_synced: false, queue_synced: false });
        true
    }

    /// A Flush goes on by one step: image and queue synced in either order, then the log is told.
    pub(super) fn flush_on(&mut self, host: &PrimaryHost, which: usize, queue_first: bool) -> bool {
        if self.flushes.is_empty() {
            return false;
        }
        let at = which % self.flushes.len();
        let flush = &mut self.flushes[at];
        if !flush.queue_synced && (queue_first || flush.image_synced) {
            self.log.log().sync_queue(flush.epoch);
            flush.queue_synced = true;
        } else if !flush.image_synced {
            host.images[flush.lun].lock().sync();
            flush.image_synced = true;
        } else {
            self.log.log().locally_synced(LunId(flush.lun as u16), flush.epoch);
            self.flushes.remove(at);
        }
        true
    }

    pub(super) fn with_session(
        &mut self,
        out: &mut Outside<'_>,
        act: impl FnOnce(&mut Sender, &mut sender::Outside<'_>) -> bool,
    ) -> bool {
        let Some(session) = &mut self.session else { return false };
        let mut inner = sender::Outside {
            log: self.log.log(),
            network: out.network,
            array: &self.array,
            now: out.now,
            defect: out.defect,
            peer_listens: out.peer_listens,
            boot_id: self.boot_id,
            hello: &self.hello,
        };
        act(session, &mut inner)
    }

    fn end_session(&mut self, network: &mut Network) {
        if let Some(mut session) = self.session.take() {
            session.end(self.log.log(), &self.array, network);
        }
    }

    /// Gives the event to the state machine and carries out what it says.
    pub(super) fn handle(&mut self, event: Event, out: &mut Outside<'_>) {
        for action in self.machine.on_event(event, out.now) {
            match action {
                Action::Connect => {
                    self.end_session(out.network);
                    let id = SessionId(out.session_id);
                    self.heartbeat.set_session(id, self.array.count());
                    self.connected = false;
                    self.failed_at = None;
                    self.stall = StallDetector::new(times().stall_timeout);
                    let session = Sender::new(id, self.array.count(), &self.array, peer_addr(), out.now);
                    self.session = Some(session);
                }
                Action::EndSession(_) => self.end_session(out.network),
            }
        }
    }

    /// The supervisor looks at the session.
    pub(super) fn look(&mut self, out: &mut Outside<'_>) -> bool {
        let Some(session) = &mut self.session else { return false };
        if session.failure.is_some() {
            let since = *self.failed_at.get_or_insert(out.now);
            if out.now.since(since) < REASON_WAIT {
                return false;
            }
        }
        if let Some(reason) = session.failure.clone().or_else(|| session.said_goodbye()) {
            self.handle(Event::Failed(reason), out);
            self.end_session(out.network);
            return true;
        }
        if self.stall.observe(session.awaited(), out.now) {
            session.failure = Some(EndReason::Stalled);
            return true;
        }
        let Some(target) = session.begun else { return false };
        let mut moved = false;
        if !self.connected {
            self.connected = true;
            moved = true;
            self.handle(Event::Connected, out);
        }
        if let Some(event) = rules::progress(self.machine.state(), &self.log.log().status(), target) {
            self.handle(event, out);
            moved = true;
        }
        moved
    }

    /// The heartbeat sender's tick.
    pub(super) fn on_tick(
        &mut self,
        out: &mut Outside<'_>,
        datagrams: &mut Vec<super::network::Bytes>,
    ) -> Now {
        let stale = self.array.mark_stale(out.now);
        if stale != 0 {
            self.shut(stale, out);
        }
        let mut sent = Vec::new();
        let due = self.heartbeat.on_tick(out.now, self.array.marks(), &mut sent);
        datagrams.extend(sent.into_iter().map(|(_, bytes)| bytes));
        self.handle(Event::Tick, out);
        due
    }

    fn shut(&mut self, bits: u64, out: &mut Outside<'_>) {
        if let Some(session) = &self.session {
            session.shut(bits, out.network);
        }
        self.handle(Event::ElementsClosed, out);
    }

    pub(super) fn on_datagram(&mut self, bytes: &[u8], from: SocketAddr, out: &mut Outside<'_>) -> bool {
        let marks = match self.heartbeat.on_datagram(bytes, from, out.now) {
            Verdict::Accepted { marks, new_boot, .. } => {
                self.array.heard_all(out.now);
                let copied = self.array.apply_marks(marks.session, marks.bits);
                if copied != 0 {
                    self.shut(copied, out);
                }
                self.handle(Event::Heartbeat { new_boot }, out);
                return true;
            }
            Verdict::MarksOnly(marks) => marks,
            Verdict::Candidate | Verdict::Ignored(_) => return false,
        };
        let copied = self.array.apply_marks(marks.session, marks.bits);
        if copied != 0 {
            self.shut(copied, out);
        }
        true
    }

    /// Unmounts. The flag: the queue was given up, so that what follows does not follow from the log.
    pub(super) fn close(mut self, host: &mut PrimaryHost, network: &mut Network) -> bool {
        self.end_session(network);
        let gave_up = self.log.observe().given_up.is_some();
        for image in &host.images {
            image.lock().sync();
        }
        let durable = self.log.log().close();
        if host.disk.is_cut() {
            return true;
        }
        for (lun, epoch) in durable {
            host.durable[usize::from(lun.0)] = epoch;
        }
        host.clean = true;
        gave_up || self.log.observe().given_up.is_some()
    }
}

const _: () = assert!(REGIONS > 32);
