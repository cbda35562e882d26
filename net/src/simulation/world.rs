//! The scheduler: both machines, what lies between, the faults, and the judge after each step.

use super::blocks::{BLOCKS, MirrorDisk, SLOTS, Store};
use super::faults::Faults;
use super::judge::History;
use super::mirror::{self, PeerProcess};
use super::network::{Bytes, Network, PEER, PRIMARY};
use super::primary::{self, PrimaryHost, PrimaryProcess};
use super::random::Random;
use super::sender::Sender;
use super::{Defect, Settings};
use crate::config::{Key, Security};
use crate::status::LinkState;
use crate::supervise::Now;
use crate::supervise::heartbeat::{Datagram, LinkId, MacKey};
use mirrorfs_journal::Epoch;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Delivered datagrams that an attacker has, by receiving side.
const RECORDED_MAX: usize = 400;
/// Picks without effect before time is let pass.
const PICKS: u32 = 12;

/// Link state with its reason; the peer's sessions, and why the last one is over.
type Watched = (Option<(LinkState, String)>, Option<(usize, Option<String>)>);

pub(super) struct World {
    pub(super) random: Random,
    pub(super) settings: Settings,
    pub(super) faults: Faults,
    pub(super) defect: Option<Defect>,
    pub(super) writing: bool,
    pub(super) now: Now,
    pub(super) steps: u64,
    key: MacKey,
    pub(super) network: Network,
    pub(super) host: PrimaryHost,
    pub(super) primary: Option<PrimaryProcess>,
    pub(super) store: Store,
    pub(super) peer: Option<PeerProcess>,
    pub(super) histories: Vec<History>,
    /// The disk of queue and region maps has failed a request since the last peace.
    pub(super) queue_failed: bool,
    /// The log does not say how the primary's images came to be what they are.
    pub(super) broken_line: bool,
    ticks: [Now; 2],
    pub(super) up_at: [Now; 2],
    pub(super) open_at: [Now; 2],
    recorded: [VecDeque<Bytes>; 2],
    next_content: u64,
    trace: VecDeque<String>,
    watched: Watched,
    /// What the judge found.
    pub(super) violation: Option<String>,
    pub(super) counts: Counts,
}

/// That the runs do what they are meant to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) primary_crashes: u64,
    pub(super) peer_crashes: u64,
    pub(super) live: u64,
    pub(super) give_ups: u64,
    pub(super) durable: u64,
    pub(super) replays: u64,
    pub(super) pumped: u64,
}

impl Counts {
    pub(super) fn all_happened(&self) -> bool {
        let Self { primary_crashes, peer_crashes, live, give_ups, durable, replays, pumped } = *self;
        [primary_crashes, peer_crashes, live, give_ups, durable, replays, pumped]
            .iter()
            .all(|count| *count > 0)
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.primary_crashes += other.primary_crashes;
        self.peer_crashes += other.peer_crashes;
        self.live += other.live;
        self.give_ups += other.give_ups;
        self.durable += other.durable;
        self.replays += other.replays;
        self.pumped += other.pumped;
    }
}

fn addr(side: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, side as u8 + 1], 7370))
}

impl World {
    pub(super) fn new(seed: u64, settings: Settings, defect: Option<Defect>) -> Self {
        let disks = (0..settings.luns).map(|_| Arc::new(Mutex::new(MirrorDisk::default()))).collect();
        let mut world = Self {
            random: Random::new(seed),
            faults: Faults::default(),
            defect,
            writing: true,
            now: Now(Duration::from_secs(1)),
            steps: 0,
            key: MacKey::derive(&Security::Key(Key([3; 32]))),
            network: Network::default(),
            host: PrimaryHost::new(settings.luns),
            primary: None,
            store: Store { disks, open_twice: defect == Some(Defect::OldSessionStillApplying) },
            peer: None,
            histories: (0..settings.luns).map(|_| History::default()).collect(),
            queue_failed: false,
            broken_line: false,
            ticks: [Now::default(); 2],
            up_at: [Now::default(); 2],
            open_at: [Now::default(); 2],
            recorded: Default::default(),
            next_content: 0,
            trace: VecDeque::new(),
            watched: (None, None),
            violation: None,
            counts: Counts::default(),
            settings,
        };
        world.start_peer();
        world.start_primary();
        world
    }

    pub(super) fn note(&mut self, what: String) {
        if self.trace.len() == 3000 {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>7} {:?} {what}", self.steps, self.now.0));
    }

    pub(super) fn trace(&self) -> String {
        self.trace.iter().map(|line| format!("{line}\n")).collect()
    }

    // ---- machines ------------------------------------------------------------------------------------------

    pub(super) fn start_primary(&mut self) {
        let boot = self.random.next() | 1;
        let started =
            PrimaryProcess::start(&mut self.host, &self.settings, &self.key, boot, self.now, self.defect);
        let (process, unclean, first) = match started {
            Ok(started) => started,
            Err(error) => {
                self.note(format!("primary can't start: {error}"));
                self.up_at[PRIMARY] = self.now + Duration::from_millis(100);
                return;
            }
        };
        self.note(format!(
            "primary starts, first epoch {first}, unclean {unclean}, {:?}",
            process.log.observe()
        ));
        if unclean || self.broken_line {
            for (history, image) in self.histories.iter_mut().zip(&self.host.images) {
                if self.defect.is_none() && !history.is_new(first.0) {
                    self.violation = Some(format!("epoch {first} is given again"));
                }
                history.begin_line(first.0, &image.lock().now);
            }
            self.broken_line = false;
        }
        self.primary = Some(process);
        self.ticks[PRIMARY] = self.now;
    }

    pub(super) fn start_peer(&mut self) {
        let boot = self.random.next() | 1;
        self.note("peer starts".into());
        self.peer = Some(PeerProcess::new(&self.key, LinkId::of_node("node"), boot));
        self.ticks[PEER] = self.now;
    }

    fn outside(&mut self) -> (Option<&mut PrimaryProcess>, primary::Outside<'_>) {
        let session_id = u128::from(self.random.next()) << 64 | 1;
        let out = primary::Outside {
            network: &mut self.network,
            now: self.now,
            defect: self.defect,
            peer_listens: self.peer.is_some(),
            session_id,
        };
        (self.primary.as_mut(), out)
    }

    fn with_primary(
        &mut self,
        act: impl FnOnce(&mut PrimaryProcess, &mut primary::Outside<'_>) -> bool,
    ) -> bool {
        match self.outside() {
            (Some(primary), mut out) => act(primary, &mut out),
            _ => false,
        }
    }

    /// Only when one life is replayed.
    fn is_watched() -> bool {
        static WATCHED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *WATCHED.get_or_init(|| std::env::var_os("MIRRORFS_SIMULATION_SEED").is_some())
    }

    fn with_peer(&mut self, act: impl FnOnce(&mut PeerProcess, &mut mirror::Outside<'_>) -> bool) -> bool {
        let Some(peer) = &mut self.peer else { return false };
        let mut out = mirror::Outside {
            network: &mut self.network,
            store: &self.store,
            now: self.now,
            defect: self.defect,
            answered: Vec::new(),
            notes: Self::is_watched().then(Vec::new),
        };
        let moved = act(peer, &mut out);
        let answered = out.answered;
        let notes = out.notes.unwrap_or_default();
        notes.into_iter().for_each(|note| self.note(note));
        let cut = self.store.disks.iter().any(|disk| disk.lock().is_cut());
        for (epoch, luns) in answered.into_iter().filter(|_| !cut) {
            self.counts.durable += 1;
            let labels: Vec<String> = self
                .store
                .disks
                .iter()
                .map(|disk| {
                    disk.lock()
                        .labels()
                        .map(|label| {
                            format!("{}{} ", Epoch(label.epoch), if label.resyncing { "r" } else { "" })
                        })
                        .collect()
                })
                .collect();
            self.note(format!("peer answers durable {} of {luns:?}: {labels:?}", Epoch(epoch)));
            luns.into_iter().for_each(|lun| self.histories[lun].durable(epoch));
        }
        moved
    }

    // ---- one step ------------------------------------------------------------------------------------------

    /// One step; whatever it was, the judge looks at its end.
    pub(super) fn step(&mut self) {
        if self.machines() || self.due() {
            self.steps += 1;
            self.after();
            return;
        }
        for _ in 0..PICKS {
            if self.fault() || self.act() {
                self.steps += 1;
                self.after();
                break;
            }
        }
        self.now = self.now + Duration::from_micros(self.random.below(self.pace()));
    }

    /// Microseconds that a step may take: when the link is down there is little to do but to wait.
    fn pace(&self) -> u64 {
        let down = |primary: &PrimaryProcess| {
            matches!(primary.machine.state(), LinkState::Down | LinkState::Probation)
        };
        if self.primary.as_ref().is_none_or(down) { 15_000 } else { 2000 }
    }

    fn machines(&mut self) -> bool {
        if self.primary.is_none() && self.now >= self.up_at[PRIMARY] {
            self.network.back(PRIMARY);
            self.start_primary();
            return true;
        }
        if self.peer.is_none() && self.now >= self.up_at[PEER] {
            self.network.back(PEER);
            self.start_peer();
            return true;
        }
        for side in [PRIMARY, PEER] {
            if self.network.blocked[side] && self.now >= self.open_at[side] {
                self.network.blocked[side] = false;
            }
        }
        false
    }

    /// Ticks and datagrams whose time has come.
    fn due(&mut self) -> bool {
        if let Some((to, bytes)) = self.network.deliver(self.now) {
            self.deliver(to, &bytes, true);
            return true;
        }
        let mut datagrams = Vec::new();
        if self.primary.is_some() && self.now >= self.ticks[PRIMARY] {
            let mut due = self.now;
            self.with_primary(|primary, out| {
                due = primary.on_tick(out, &mut datagrams);
                true
            });
            self.ticks[PRIMARY] = due;
            self.post(PEER, datagrams);
            return true;
        }
        if self.peer.is_some() && self.now >= self.ticks[PEER] {
            let mut due = self.now;
            self.with_peer(|peer, out| {
                due = peer.on_tick(out, &mut datagrams);
                true
            });
            self.ticks[PEER] = due;
            self.post(PRIMARY, datagrams);
            return true;
        }
        false
    }

    fn post(&mut self, to: usize, datagrams: Vec<Bytes>) {
        for bytes in datagrams {
            let copies = if self.random.percent(self.faults.duplicate_percent) { 2 } else { 1 };
            for _ in 0..copies {
                if !self.random.percent(self.faults.drop_percent) {
                    let delay = Duration::from_micros(100 + self.random.below(self.faults.delay_max_us));
                    self.network.post(to, bytes, self.now + delay);
                }
            }
        }
    }

    /// True if it counted.
    fn deliver(&mut self, to: usize, bytes: &Bytes, record: bool) -> bool {
        if record {
            self.recorded[to].push_back(*bytes);
            if self.recorded[to].len() > RECORDED_MAX {
                self.recorded[to].pop_front();
            }
        }
        let from = addr(1 - to);
        if to == PRIMARY {
            return self.with_primary(|primary, out| primary.on_datagram(bytes, from, out));
        }
        match Datagram::open(bytes, &self.key) {
            Ok(datagram) => self.with_peer(|peer, out| peer.on_datagram(&datagram, from, out)),
            Err(_) => false,
        }
    }

    /// What was recorded, of this run or an earlier one, comes again.
    pub(super) fn replay(&mut self) -> bool {
        let to = self.random.below(2) as usize;
        let count = self.recorded[to].len() as u64;
        if count == 0 {
            return false;
        }
        let bytes = self.recorded[to][self.random.below(count) as usize];
        self.counts.replays += 1;
        if self.deliver(to, &bytes, false) {
            self.violation = Some("a recorded heartbeat counted".into());
        }
        true
    }

    /// Somebody does something.
    fn act(&mut self) -> bool {
        let pick = self.random.below(100);
        match pick {
            0..14 => self.writing && self.write_somewhere(),
            14..17 => {
                let lun = self.random.below(self.settings.luns as u64) as usize;
                let waits = self.random.percent(30);
                let flushed =
                    self.writing && self.primary.as_mut().is_some_and(|primary| primary.flush(lun, waits));
                self.wait_awake(waits && flushed);
                flushed
            }
            17..22 => {
                let (which, queue_first) = (self.random.below(3) as usize, self.random.percent(50));
                let host = &self.host;
                self.primary.as_mut().is_some_and(|primary| primary.flush_on(host, which, queue_first))
            }
            22..28 => self.log_thread(),
            28..44 => self
                .with_primary(|primary, out| primary.with_session(out, |session, out| session.dispatch(out))),
            44..60 => {
                let pick = self.random.next() as usize;
                self.with_primary(|primary, out| {
                    primary.with_session(out, |session, out| session.work(pick % session.count(), out))
                })
            }
            60..70 => {
                let pick = self.random.next() as usize;
                self.with_primary(|primary, out| {
                    primary.with_session(out, |session, out| session.read(pick % session.count(), out))
                })
            }
            70..73 => self.with_primary(|primary, out| primary.look(out)),
            73..76 => self.with_peer(|peer, out| peer.listen(out)),
            _ => {
                let pick = self.random.next() as usize;
                self.with_peer(|peer, out| {
                    let threads = peer.threads();
                    match threads.get(pick % threads.len().max(1)).copied() {
                        Some((session, index)) if !(pick >> 32).is_multiple_of(7) => {
                            peer.step(session, index, out)
                        }
                        _ => (0..peer.sessions.len()).any(|session| peer.finish(session)),
                    }
                })
            }
        }
    }

    /// One of the log's own threads.
    fn log_thread(&mut self) -> bool {
        let pick = self.random.below(20);
        let Some(primary) = &self.primary else { return false };
        let log = &primary.log;
        match pick {
            0 => log.close_epoch_by_age(),
            1 => log.tidy(),
            2..7 => log.spill_plan(),
            7..12 => log.spill_carry_out(),
            _ => return log.resync_turn(),
        }
        true
    }

    fn write_somewhere(&mut self) -> bool {
        let lun = self.random.below(self.settings.luns as u64) as usize;
        // Some blocks are written again and again.
        let block =
            if self.random.percent(40) { self.random.below(6) } else { self.random.below(BLOCKS as u64) };
        let most = SLOTS - block % SLOTS;
        let count = 1 + self.random.below(most);
        let discard = self.random.percent(10);
        let waits = self.random.percent(10);
        let written = self.write(lun, block as usize, count as usize, discard, waits);
        self.wait_awake(waits && written);
        written
    }

    /// Who waits sends and receives by itself, unless another thread is quicker.
    fn wait_awake(&mut self, waits: bool) {
        if waits
            && self.random.percent(50)
            && self.with_primary(|primary, out| primary.with_session(out, Sender::pump))
        {
            self.counts.pumped += 1;
        }
    }

    pub(super) fn write(
        &mut self,
        lun: usize,
        block: usize,
        count: usize,
        discard: bool,
        waits: bool,
    ) -> bool {
        let Some(primary) = &self.primary else { return false };
        let contents: Vec<u64> = (0..count)
            .map(|_| {
                self.next_content += 1;
                if discard { 0 } else { self.next_content }
            })
            .collect();
        let written = primary.write(&self.host, lun, block, &contents, waits);
        if Self::is_watched() {
            self.note(format!("write of {contents:?} to LUN {lun}, block {block}: {written:?}"));
        }
        if let Ok(Some(epoch)) = written {
            for (at, content) in contents.iter().enumerate() {
                self.histories[lun].wrote(epoch, block + at, *content);
            }
        }
        true
    }

    // ---- the judge -----------------------------------------------------------------------------------------

    fn after(&mut self) {
        if self.store.disks.iter().any(|disk| disk.lock().is_cut()) {
            self.crash_peer(true);
        }
        if self.host.disk.is_cut() {
            let power = self.random.percent(70);
            if self.primary.is_some() {
                self.crash_primary(power);
            } else {
                self.host.disk.process_killed();
            }
        }
        if let Some(observed) = self.primary.as_ref().map(|primary| primary.log.observe()) {
            if observed.given_up.is_some() {
                if !self.broken_line {
                    self.counts.give_ups += 1;
                    self.note(format!("queue given up: {observed:?}"));
                }
                self.broken_line = true;
            } else if let Some(primary) = self.primary.as_ref().filter(|_| self.broken_line) {
                self.broken_line = false;
                let from = primary.log.log().status().open_epoch;
                for (history, image) in self.histories.iter_mut().zip(&self.host.images) {
                    history.begin_line(from.0, &image.lock().now);
                }
            }
            for (history, resyncs) in self.histories.iter_mut().zip(&observed.resyncs) {
                if !resyncs && observed.given_up.is_none() {
                    history.durable(observed.durable.0);
                }
            }
            let told =
                self.primary.iter().flat_map(|primary| std::mem::take(&mut *primary.told_durable.lock()));
            for (lun, epoch) in told {
                if !observed.resyncs[lun] {
                    self.histories[lun].durable(epoch);
                }
            }
        }
        self.watch();
        self.judge();
    }

    /// Notes how link and peer's session change.
    fn watch(&mut self) {
        let link = self.primary.as_ref().map(|primary| {
            let machine = primary.machine.snapshot(self.now);
            (machine.state, machine.reason)
        });
        if link != self.watched.0 {
            let state = |link: &Option<(LinkState, String)>| link.as_ref().map(|(state, _)| *state);
            if state(&link) != state(&self.watched.0) && state(&link) == Some(LinkState::Live) {
                self.counts.live += 1;
            }
            self.note(format!("link: {link:?}"));
            self.watched.0 = link;
        }
        if let Some(said) = self.primary.as_mut().and_then(|primary| primary.session.as_mut()?.said.take()) {
            self.note(format!("session begins: {said}"));
        }
        let over = self.peer.as_ref().map(|peer| {
            let why = |session: &mirror::Session| session.life.over_reason().map(str::to_owned);
            (peer.sessions.len(), peer.sessions.last().and_then(why))
        });
        if over != self.watched.1 {
            self.note(format!("peer's session: {over:?}"));
            self.watched.1 = over;
        }
    }

    fn judge(&mut self) {
        if self.violation.is_some() {
            return;
        }
        for (lun, (history, disk)) in self.histories.iter_mut().zip(&self.store.disks).enumerate() {
            if let Err(why) = history.judge(&disk.lock()) {
                self.violation = Some(format!("LUN {lun}: {why}"));
                return;
            }
        }
    }

    /// Both images are the same, and both sides know.
    pub(super) fn is_in_sync(&self) -> bool {
        let Some(primary) = &self.primary else { return false };
        let observed = primary.log.observe();
        primary.machine.state() == LinkState::Live
            && observed.memory_records == 0
            && observed.queued_requests == 0
            && !observed.resyncs.contains(&true)
            && self.host.images.iter().zip(&self.store.disks).all(|(image, disk)| {
                let disk = disk.lock();
                disk.labels().all(|label| !label.resyncing) && image.lock().now == disk.blocks.now
            })
    }

    /// Steps until it is so, or the bound (or a violation) is reached.
    pub(super) fn run_until(&mut self, bound: u64, so: impl Fn(&Self) -> bool) -> bool {
        for _ in 0..bound {
            if self.violation.is_some() {
                return false;
            }
            if so(self) {
                return true;
            }
            self.step();
        }
        so(self)
    }

    /// No faults from here on: the link must recover and the images become equal.
    pub(super) fn must_recover(&mut self) {
        self.faults = Faults::default();
        self.host.disk.process_killed();
        for disk in &self.store.disks {
            let mut disk = disk.lock();
            (disk.fail_next_write, disk.fail_next_sync, disk.changes_left) = (false, false, None);
        }
        self.writing = false;
        if std::mem::take(&mut self.queue_failed) {
            // A region map that could not be synced is latched until the next mount.
            self.restart_primary();
        }
        if !self.run_until(60_000, Self::is_in_sync) && self.violation.is_none() {
            let observed = self.primary.as_ref().map(|primary| {
                (primary.log.observe(), primary.machine.snapshot(self.now), primary.log.log().status())
            });
            let unfinished = self.peer.as_ref().map(PeerProcess::unfinished);
            self.violation = Some(format!("the link never recovered: {observed:?}, peer {unfinished:?}"));
        }
        self.writing = true;
    }
}
