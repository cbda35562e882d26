//! The primary: its image, its mirror log of one LUN, and the dispatcher. Follows `mirrorfs_journal::log` (`core`,
//! `session`, `judge`, `open`) and `link::dispatcher`.

mod crash;
mod dispatcher;

pub(crate) use crash::CrashOfPrimary;
use dispatcher::Dispatcher;

use super::history::History;
use super::peer::Label;
use super::types::{
    BLOCKS, Body, CONNECTIONS_MAX, Defect, Epoch, Frame, Image, Order, Possible, START, Value, Variant,
    exactly, first_epoch,
};

/// The rules that the dispatcher goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) connections: usize,
    pub(crate) variant: Variant,
    pub(crate) order: Order,
    pub(crate) defect: Option<Defect>,
}

impl Rules {
    pub(crate) fn broken(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    /// The connection of a block in a spread epoch; a narrow one goes to connection 0.
    fn route(&self, spread: bool, block: u8, value: Value) -> usize {
        let overlap = if self.broken(Defect::OverlapOnTwoConnections) { usize::from(value) } else { 0 };
        (if spread { usize::from(block) } else { 0 } + overlap) % self.connections
    }
}

/// A record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    epoch: Epoch,
    body: Logged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Logged {
    /// `volatile`: of a resync; it lives only while its session does.
    Request { body: Body, volatile: bool },
    /// The LUN's epoch before, if it has requests in this one.
    Barrier { chain: Option<Epoch> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Resync {
    Off,
    /// The regions are in the log, in this epoch; 0 if they are not yet.
    Running(Epoch),
    /// `ResyncEnd` is in the log, in this epoch.
    Ending(Epoch),
}

/// Frames on their way to the peer, or read ahead there, by connection.
pub(crate) type Pipes = [Vec<Frame>; CONNECTIONS_MAX];

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Primary {
    pub(crate) image: Image,
    /// What the disk may hold if the last flush's sync has not returned.
    unsynced: Possible,
    /// What it may hold if it has.
    synced: Possible,
    log: Vec<Record>,
    open_epoch: Epoch,
    in_open: bool,
    incarnation: u8,
    /// Last of the LUN's epochs heard to be durable, and what the mirror's label may say after a power cut instead.
    durable: Epoch,
    durable_before: Epoch,
    uncertain: bool,
    base: Option<Epoch>,
    /// Blocks to be resynced.
    marks: u8,
    resync: Resync,
    dispatcher: Dispatcher,
    /// Which epochs are spread over the connections, by turns; the others go to connection 0.
    spread: u8,
    odd_session: bool,
    /// A session is begun.
    pub(crate) live: bool,
}

impl Primary {
    pub(crate) fn new(spread: u8) -> Self {
        Self {
            image: [0; BLOCKS],
            unsynced: [1; BLOCKS],
            synced: [1; BLOCKS],
            log: Vec::new(),
            open_epoch: first_epoch(1),
            in_open: false,
            incarnation: 1,
            durable: START,
            durable_before: 0,
            uncertain: false,
            base: None,
            marks: 0,
            resync: Resync::Off,
            dispatcher: Dispatcher::default(),
            spread,
            odd_session: false,
            live: false,
        }
    }

    /// All is durable on the mirror, and nothing waits.
    pub(crate) fn at_rest(&self) -> bool {
        self.log.is_empty() && self.marks == 0 && self.resync == Resync::Off
    }

    pub(crate) fn durable(&self) -> Epoch {
        self.durable
    }

    fn retained(&self) -> impl DoubleEndedIterator<Item = Epoch> {
        self.log.iter().filter_map(|record| match record.body {
            Logged::Barrier { chain: Some(_) } => Some(record.epoch),
            _ => None,
        })
    }

    // ---- appending ----------------------------------------------------------------------------------------------

    pub(crate) fn write(
        &mut self,
        block: u8,
        value: Value,
        rules: &Rules,
        pipes: &mut Pipes,
        history: &mut History,
    ) {
        let index = usize::from(block);
        self.image[index] = value;
        self.unsynced[index] |= 1 << value;
        self.synced[index] |= 1 << value;
        history.wrote(block, value);
        self.append(Body::Write { block, value }, false, rules, pipes);
    }

    /// A flush. Its barrier is appended; the sync of the local image behind it may not have returned when the primary
    /// crashes, that of the flush before has.
    pub(crate) fn flush(&mut self, rules: &Rules, pipes: &mut Pipes, history: &mut History) {
        self.close_open(rules, pipes, history);
        self.unsynced = self.synced;
        self.synced = exactly(&self.image);
    }

    /// Closes an epoch of which only the barrier is left.
    pub(crate) fn hollow(&mut self, rules: &Rules, pipes: &mut Pipes, history: &mut History) {
        self.close_open(rules, pipes, history);
        self.in_open = true;
        self.close_open(rules, pipes, history);
    }

    fn append(&mut self, body: Body, volatile: bool, rules: &Rules, pipes: &mut Pipes) {
        self.in_open = true;
        self.put(Record { epoch: self.open_epoch, body: Logged::Request { body, volatile } }, rules, pipes);
    }

    fn put(&mut self, record: Record, rules: &Rules, pipes: &mut Pipes) {
        self.log.push(record);
        if self.live {
            self.send(record, rules, pipes);
        }
    }

    fn close_open(&mut self, rules: &Rules, pipes: &mut Pipes, history: &mut History) {
        if !self.in_open {
            return;
        }
        let epoch = self.open_epoch;
        let before = self.retained().next_back().unwrap_or(self.durable);
        self.in_open = false;
        self.open_epoch += 1;
        history.reached(epoch, self.image);
        self.put(Record { epoch, body: Logged::Barrier { chain: Some(before) } }, rules, pipes);
    }

    fn append_alone(&mut self, body: Body, rules: &Rules, pipes: &mut Pipes, history: &mut History) -> Epoch {
        self.close_open(rules, pipes, history);
        let epoch = self.open_epoch;
        self.append(body, false, rules, pipes);
        self.close_open(rules, pipes, history);
        epoch
    }

    // ---- a session's beginning and end, answers --------------------------------------------------------------------

    /// Begins a session with what the mirror's label says: judges, sends all that the mirror lacks. Returns whether the
    /// peer is to gather the LUN's first epoch.
    pub(crate) fn begin(
        &mut self,
        said: Label,
        rules: &Rules,
        pipes: &mut Pipes,
        history: &mut History,
    ) -> bool {
        debug_assert!(!self.live, "one session at a time");
        self.dispatcher = Dispatcher::default();
        // All the same to one that spreads every epoch.
        self.odd_session ^= self.spread != 0b1111;
        self.close_open(rules, pipes, history);
        let mut gather = false;
        match self.judge(said, rules) {
            Some(durable) => {
                gather = self.retained().next().is_some();
                self.base = Some(durable);
                self.retire_to(durable, history);
                if durable > self.durable {
                    (self.durable, self.durable_before) = (durable, 0);
                }
            }
            None => {
                history.whole = true;
                self.marks = (1 << BLOCKS) - 1;
                (self.durable, self.durable_before) = (said.epoch, 0);
                self.base = Some(said.epoch);
                self.log.clear();
                self.resync = Resync::Off;
            }
        }
        self.uncertain = false;
        if self.marks != 0 && self.resync == Resync::Off || matches!(self.resync, Resync::Running(_)) {
            let begun =
                |record: &Record| matches!(record.body, Logged::Request { body: Body::ResyncBegin, .. });
            if !self.log.iter().any(begun) {
                self.append_alone(Body::ResyncBegin, rules, pipes, history);
            }
            self.resync = Resync::Running(0);
        }
        self.live = true;
        for record in self.log.clone() {
            self.send(record, rules, pipes);
        }
        if self.resync == Resync::Running(0) {
            self.read_regions(rules, pipes, history);
        }
        gather && !rules.broken(Defect::GatherLeftOut)
    }

    /// Last epoch that the mirror certainly has; `None`: no telling, all regions follow.
    fn judge(&self, said: Label, rules: &Rules) -> Option<Epoch> {
        if said.resyncing && self.resync == Resync::Off && self.marks == 0 {
            return None;
        }
        if said.epoch == self.durable || self.retained().any(|epoch| epoch == said.epoch) {
            return Some(said.epoch);
        }
        if said.epoch == self.durable_before && !rules.broken(Defect::LabelBehindRefused) {
            return Some(self.durable);
        }
        let first = first_epoch(self.incarnation);
        (self.uncertain && said.epoch > self.durable && said.epoch < first).then_some(said.epoch)
    }

    /// The resync reads its regions; they are in the log, in an epoch that is closed.
    fn read_regions(&mut self, rules: &Rules, pipes: &mut Pipes, history: &mut History) {
        self.close_open(rules, pipes, history);
        let marks = self.marks;
        for block in (0_u8..).take(BLOCKS).filter(|block| marks & (1 << block) != 0) {
            let value = self.image[usize::from(block)];
            self.append(Body::Write { block, value }, true, rules, pipes);
        }
        self.resync = Resync::Running(self.open_epoch);
        self.close_open(rules, pipes, history);
        if self.marks == 0 {
            self.end_resync(rules, pipes, history);
        }
    }

    fn end_resync(&mut self, rules: &Rules, pipes: &mut Pipes, history: &mut History) {
        let epoch = self.append_alone(Body::ResyncEnd, rules, pipes, history);
        self.resync = Resync::Ending(epoch);
    }

    /// The session is over.
    pub(crate) fn end(&mut self) {
        self.live = false;
        self.dispatcher = Dispatcher::default();
        self.forget_volatile();
        if matches!(self.resync, Resync::Running(_)) {
            self.resync = Resync::Running(0);
        }
    }

    fn forget_volatile(&mut self) {
        self.log.retain(|record| !matches!(record.body, Logged::Request { volatile: true, .. }));
    }

    /// The peer has answered that `epoch`, and with it all before it, is durable.
    pub(crate) fn hear_durable(
        &mut self,
        epoch: Epoch,
        rules: &Rules,
        pipes: &mut Pipes,
        history: &mut History,
    ) {
        history.heard = history.heard.max(epoch);
        self.retire_to(epoch, history);
        if matches!(self.resync, Resync::Running(sent) if sent != 0 && sent <= epoch) {
            self.marks = 0;
            self.end_resync(rules, pipes, history);
        }
    }

    /// The peer has answered that it applied this request.
    pub(crate) fn hear_applied(&mut self, epoch: Epoch, applied: Body, rules: &Rules, history: &mut History) {
        if !rules.broken(Defect::RetiredAtApplied) {
            return;
        }
        let same = |record: &Record| {
            record.epoch == epoch && matches!(record.body, Logged::Request { body, .. } if body == applied)
        };
        if let Some(position) = self.log.iter().position(same) {
            self.log.remove(position);
            history.let_go = history.let_go.max(epoch);
        }
    }

    fn retire_to(&mut self, epoch: Epoch, history: &mut History) {
        let gone: Vec<Epoch> = self.retained().take_while(|closed| *closed <= epoch).collect();
        for closed in gone {
            self.durable_before = self.durable;
            self.durable = closed;
        }
        if matches!(self.resync, Resync::Ending(end) if end <= epoch) {
            self.resync = Resync::Off;
        }
        let before = self.log.len();
        self.log.retain(|record| record.epoch > epoch);
        if self.log.len() < before {
            history.let_go = history.let_go.max(epoch);
        }
    }
}
