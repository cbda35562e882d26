//! The peer: the mirror image with its label, and the connection threads of one session. Follows `net::peer`
//! (`session`, `connection`, `gate`, `images`, `gather`) and `Image::sync_epoch`.
//!
//! A thread that waits at a barrier or a mark is one that has this frame at the head of its pipe; what it reads ahead
//! stays in the pipe. Both are lost with the session alike.

use super::history::History;
use super::primary::{Pipes, Rules};
use super::types::{
    BLOCKS, Body, CONNECTIONS_MAX, Defect, Epoch, Frame, Image, Order, Possible, START, Value, exactly,
    images,
};

/// What of the label matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Label {
    pub(crate) epoch: Epoch,
    pub(crate) resyncing: bool,
}

/// The mirror image: as programs would read it, and as the disk may have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mirror {
    pub(crate) image: Image,
    disk: Possible,
    pub(crate) label: Label,
    /// The other copy: what the disk may still have as the newest.
    label_synced: Label,
}

/// What a power cut leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CrashOfPeer {
    pub(crate) image: Image,
    pub(crate) label: Label,
}

impl Mirror {
    pub(crate) fn new() -> Self {
        let label = Label { epoch: START, resyncing: false };
        Self { image: [0; BLOCKS], disk: [1; BLOCKS], label, label_synced: label }
    }

    pub(crate) fn write(&mut self, block: u8, value: Value) {
        self.image[usize::from(block)] = value;
        self.disk[usize::from(block)] |= 1 << value;
    }

    fn sync(&mut self) {
        self.disk = exactly(&self.image);
        self.label_synced = self.label;
    }

    fn store(&mut self, label: Label) {
        if self.label != self.label_synced {
            self.sync();
        }
        self.label = label;
    }

    /// Everything that a power cut now may leave.
    pub(crate) fn crashes(&self) -> Vec<CrashOfPeer> {
        let labels = [self.label, self.label_synced];
        let labels = &labels[..if self.label == self.label_synced { 1 } else { 2 }];
        let all = images(&self.disk);
        labels.iter().flat_map(|&label| all.iter().map(move |&image| CrashOfPeer { image, label })).collect()
    }

    pub(crate) fn crash(&mut self, crash: &CrashOfPeer) {
        (self.image, self.disk) = (crash.image, exactly(&crash.image));
        (self.label, self.label_synced) = (crash.label, crash.label);
    }

    /// The lowest label that may be found from now on.
    pub(crate) fn label_at_least(&self) -> Epoch {
        self.label.epoch.min(self.label_synced.epoch)
    }
}

/// An answer on its way to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Answer {
    Durable(Epoch),
    /// Kept only where the log would act on it.
    Applied(Epoch, u8, Value),
}

/// How far the completion of a barrier is, once begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Gathered content is written, nothing is synced.
    Gathered,
    /// A planted defect's half: it has been answered, or the label written, and nothing is synced.
    Early,
}

/// One session. See the module's text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Session {
    /// Nothing more is read.
    pub(crate) over: bool,
    /// Last barrier completed, 0 before the first.
    completed: Epoch,
    /// Its frames stay in the pipes, and hold their threads, until it is complete.
    completing: Option<(Frame, Stage)>,
    /// A thread's write that was under way when the session was over.
    late: Option<(u8, Value)>,
    /// By connection: the last barrier that it was told of, and the epoch of the requests read since, 0 if there is none.
    mark: [Epoch; CONNECTIONS_MAX],
    carried: [Epoch; CONNECTIONS_MAX],
    gathering: bool,
    gathered: [Option<Value>; BLOCKS],
    /// Last epoch of the LUN with a request.
    touched: Epoch,
    resync_ends: bool,
    chain_restarted: bool,
    chain_joined: bool,
    /// What the greeting says the primary has heard to be durable.
    greeted: Epoch,
    pub(crate) answers: Vec<Answer>,
}

impl Session {
    /// No session.
    pub(crate) fn none() -> Self {
        Self {
            over: true,
            completed: 0,
            completing: None,
            late: None,
            mark: [0; CONNECTIONS_MAX],
            carried: [0; CONNECTIONS_MAX],
            gathering: false,
            gathered: [None; BLOCKS],
            touched: 0,
            resync_ends: false,
            chain_restarted: false,
            chain_joined: false,
            greeted: 0,
            answers: Vec::new(),
        }
    }

    /// Opens the image, which syncs it. `gather` follows with the session's first message.
    pub(crate) fn open(greeted: Epoch, mirror: &mut Mirror) -> Self {
        mirror.sync();
        Self { over: false, greeted, ..Self::none() }
    }

    pub(crate) fn begin(&mut self, gather: bool) {
        self.gathering = gather;
    }

    /// Every thread has left.
    pub(crate) fn finished(&self) -> bool {
        self.over && self.late.is_none() && self.completing.is_none()
    }

    /// The late write of a session that is over, taken out of it.
    pub(crate) fn take_late(&mut self) -> Option<(u8, Value)> {
        self.late.take()
    }

    /// Whether a write is under way in a session that is over.
    pub(crate) fn is_late(&self) -> bool {
        self.late.is_some()
    }

    pub(crate) fn write_late(&mut self, mirror: &mut Mirror) {
        if let Some((block, value)) = self.late.take() {
            mirror.write(block, value);
        }
    }

    /// The peer is gone; what it has answered may still arrive.
    pub(crate) fn crash(&mut self) {
        *self = Self { answers: std::mem::take(&mut self.answers), ..Self::none() };
    }

    /// The session is over; `late`: the thread of this connection has just begun to apply what it read last.
    pub(crate) fn end(&mut self, late: Option<usize>, pipes: &mut Pipes) {
        if let Some(Frame::Request { epoch, body: Body::Write { block, value } }) =
            late.and_then(|connection| pipes[connection].first().copied())
        {
            debug_assert!(epoch > 0, "epochs count from 1");
            self.late = Some((block, value));
        }
        *pipes = Pipes::default();
        // What no thread that is left will look at.
        *self = Self {
            completed: 0,
            mark: [0; CONNECTIONS_MAX],
            carried: [0; CONNECTIONS_MAX],
            over: true,
            ..self.clone()
        };
        if self.completing.is_none() {
            *self = Self { late: self.late, answers: std::mem::take(&mut self.answers), ..Self::none() };
        }
    }

    /// Whether ending now would leave the write of that connection's thread under way.
    pub(crate) fn may_be_late(&self, connection: usize, pipes: &Pipes, mirror: &Mirror) -> bool {
        let head = pipes[connection].first();
        matches!(head, Some(Frame::Request { epoch, body: Body::Write { .. } }) if *epoch > mirror.label.epoch)
            && !self.gathering
    }

    // ---- connection threads -------------------------------------------------------------------------------------

    /// Takes marks that hold nobody any more off the pipes: it makes no difference when.
    pub(crate) fn pass_marks(&mut self, pipes: &mut Pipes, history: &mut History) {
        for (connection, pipe) in pipes.iter_mut().enumerate() {
            while let Some(Frame::After(epoch)) = pipe.first().copied()
                && epoch <= self.completed
            {
                pipe.remove(0);
                if epoch < self.mark[connection] || self.carried[connection] != 0 {
                    history.refused = Some("mark out of place");
                }
                self.mark[connection] = epoch;
            }
        }
    }

    /// Whether the thread has a request to apply.
    pub(crate) fn can_apply(connection: usize, pipes: &Pipes) -> bool {
        matches!(pipes[connection].first(), Some(Frame::Request { .. }))
    }

    pub(crate) fn apply(
        &mut self,
        connection: usize,
        pipes: &mut Pipes,
        mirror: &mut Mirror,
        rules: &Rules,
        history: &mut History,
    ) {
        let Frame::Request { epoch, body } = pipes[connection].remove(0) else { return };
        let carried = &mut self.carried[connection];
        if epoch <= self.mark[connection] || (*carried != 0 && *carried != epoch) {
            history.refused = Some("request of another epoch");
        }
        *carried = epoch;
        if epoch <= mirror.label.epoch {
            return;
        }
        match body {
            Body::Write { block, value } => {
                self.touched = epoch;
                if self.gathering {
                    self.gathered[usize::from(block)] = Some(value);
                } else {
                    mirror.write(block, value);
                }
                if rules.broken(Defect::RetiredAtApplied) {
                    self.answers.push(Answer::Applied(epoch, block, value));
                }
            }
            Body::ResyncBegin => {
                // In the variant with copies on all connections, the first one counts.
                if !mirror.label.resyncing || !self.chain_restarted {
                    mirror.store(Label { resyncing: true, ..mirror.label });
                    mirror.sync();
                    self.chain_restarted = true;
                }
            }
            Body::ResyncEnd => self.resync_ends = true,
        }
    }

    /// The barrier that all its participants have read, if it may be completed.
    pub(crate) fn complete_at(&self, pipes: &Pipes, rules: &Rules) -> Option<Frame> {
        if self.completing.is_some() {
            return None;
        }
        (0..rules.connections).find_map(|connection| {
            let frame = *pipes[connection].first()?;
            let Frame::Barrier { participants, predecessor, .. } = frame else { return None };
            // Each barrier is looked at once.
            if participants.trailing_zeros() as usize != connection {
                return None;
            }
            let met = (0..rules.connections)
                .filter(|other| participants & (1 << other) != 0)
                .all(|other| pipes[other].first() == Some(&frame));
            let waits = rules.order == Order::Predecessor && !rules.broken(Defect::PredecessorNotAwaited);
            (met && (!waits || predecessor == self.completed)).then_some(frame)
        })
    }

    /// Completes a barrier, up to where a power cut or the session's end would make a difference.
    pub(crate) fn complete(
        &mut self,
        barrier: Frame,
        pipes: &mut Pipes,
        mirror: &mut Mirror,
        rules: &Rules,
        history: &mut History,
    ) {
        let Frame::Barrier { epoch, chain, participants, predecessor } = barrier else { return };
        for connection in (0..rules.connections).filter(|connection| participants & (1 << connection) != 0) {
            let carried = self.carried[connection];
            let behind = rules.order == Order::Predecessor && self.mark[connection] != predecessor;
            if carried != 0 && (carried != epoch || behind) {
                history.refused = Some("barrier of other requests");
            }
        }
        if let Some(before) = chain
            && mirror.label.epoch < epoch
        {
            let durable = mirror.label.epoch;
            let joined = std::mem::replace(&mut self.chain_joined, true);
            let joins = !joined && durable < before && before <= self.greeted;
            if !std::mem::take(&mut self.chain_restarted) && durable != before && !joins {
                history.refused = Some("gap");
            }
            if joins && !rules.broken(Defect::LabelLeftBehind) {
                mirror.sync();
                mirror.store(Label { epoch: before, ..mirror.label });
            }
            if std::mem::take(&mut self.gathering) {
                let gathered = std::mem::take(&mut self.gathered);
                for (block, value) in (0_u8..).zip(gathered) {
                    if let Some(value) = value {
                        mirror.write(block, value);
                    }
                }
                if gathered.iter().any(Option::is_some) {
                    self.completing = Some((barrier, Stage::Gathered));
                    return;
                }
            }
        } else if self.touched == epoch && mirror.label.epoch < epoch {
            history.refused = Some("barrier without its LUN");
        }
        self.finish(barrier, None, pipes, mirror, rules);
    }

    pub(crate) fn is_completing(&self) -> bool {
        self.completing.is_some()
    }

    pub(crate) fn go_on(&mut self, pipes: &mut Pipes, mirror: &mut Mirror, rules: &Rules) {
        if let Some((barrier, stage)) = self.completing.take() {
            self.finish(barrier, Some(stage), pipes, mirror, rules);
        }
    }

    fn finish(
        &mut self,
        barrier: Frame,
        stage: Option<Stage>,
        pipes: &mut Pipes,
        mirror: &mut Mirror,
        rules: &Rules,
    ) {
        let Frame::Barrier { epoch, chain, participants, .. } = barrier else { return };
        let second = stage == Some(Stage::Early);
        if second || chain.is_some() && mirror.label.epoch < epoch {
            if !second && rules.broken(Defect::DurableBeforeSync) {
                self.answers.push(Answer::Durable(epoch));
                self.completing = Some((barrier, Stage::Early));
                return;
            }
            if !second && rules.broken(Defect::LabelBeforeSync) {
                mirror.label = Label { epoch, ..mirror.label };
                self.completing = Some((barrier, Stage::Early));
                return;
            }
            mirror.sync();
            mirror.store(Label { epoch, ..mirror.label });
        }
        if std::mem::take(&mut self.resync_ends) {
            mirror.store(Label { resyncing: false, ..mirror.label });
            mirror.sync();
        }
        if !(second && rules.broken(Defect::DurableBeforeSync)) {
            self.answers.push(Answer::Durable(epoch));
            self.answers.sort_unstable();
        }
        if self.over {
            // The last thread has left.
            *self = Self { late: self.late, answers: std::mem::take(&mut self.answers), ..Self::none() };
            return;
        }
        self.completed = epoch;
        for connection in (0..CONNECTIONS_MAX).filter(|connection| participants & (1 << connection) != 0) {
            pipes[connection].remove(0);
            self.carried[connection] = 0;
            self.mark[connection] = epoch;
        }
    }
}
