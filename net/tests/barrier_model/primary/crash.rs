//! A crash of the primary, and what its next start makes of what is left. Follows `mirrorfs_journal::log::open`.

use super::super::history::History;
use super::super::types::{Body, Defect, Image, START, exactly, first_epoch, images};
use super::{Dispatcher, Logged, Pipes, Primary, Resync, Rules};

/// What a crash of the primary leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CrashOfPrimary {
    /// The local image.
    pub(crate) image: Image,
    /// The local sync behind the last flush had returned.
    pub(crate) synced: bool,
    /// Records that the queue has: up to one of its barriers.
    pub(crate) kept: u8,
    /// The region map's file says what was heard to be durable; it is written now and then only.
    pub(crate) remembered: bool,
}

impl Primary {
    /// Everything that a crash now may leave: any part of what the local disk had not synced, and a queue that ends at
    /// any of the log's barriers, or none.
    pub(crate) fn crashes(&self) -> Vec<CrashOfPrimary> {
        let barriers = (1_u8..)
            .zip(&self.log)
            .filter(|(_, record)| matches!(record.body, Logged::Barrier { .. }))
            .map(|(count, _)| count);
        let kept: Vec<u8> = std::iter::once(0).chain(barriers).collect();
        let mut all = Vec::new();
        for synced in [false, true] {
            if !synced && self.unsynced == self.synced {
                continue;
            }
            for image in images(if synced { &self.synced } else { &self.unsynced }) {
                let crash = |remembered| move |&kept| CrashOfPrimary { image, synced, kept, remembered };
                all.extend(kept.iter().map(crash(true)));
                if self.durable != START {
                    // A queue says it, too.
                    all.extend(kept.iter().take(1).map(crash(false)));
                }
            }
        }
        all
    }

    /// The primary crashes and starts again: the queue is cut, the regions that may differ are marked, numbers go on in
    /// a new incarnation.
    pub(crate) fn crash(&mut self, crash: &CrashOfPrimary, rules: &Rules, history: &mut History) {
        let possible = if crash.synced { self.synced } else { self.unsynced };
        let cut = self.log.split_off(usize::from(crash.kept));
        self.forget_volatile();
        for record in &cut {
            if let Logged::Request { body: Body::Write { block, .. }, volatile: false } = record.body
                && !rules.broken(Defect::CutNotMarked)
            {
                self.marks |= 1 << block;
            }
        }
        for (block, values) in possible.iter().enumerate() {
            if values.count_ones() > 1 {
                self.marks |= 1 << block;
            }
        }
        self.image = crash.image;
        (self.unsynced, self.synced) = (exactly(&self.image), exactly(&self.image));
        self.live = false;
        self.in_open = false;
        self.dispatcher = Dispatcher::default();
        self.base = None;
        self.uncertain = true;
        // What the queue begins with says what was durable before it; without one, little is known.
        let first = self.log.iter().find_map(|record| match record.body {
            Logged::Barrier { chain } => chain,
            Logged::Request { .. } => None,
        });
        if !crash.remembered {
            (self.durable, self.durable_before) = (START, 0);
        } else if let Some(first) = first
            && first != self.durable
        {
            (self.durable, self.durable_before) = (first, 0);
        }
        if rules.broken(Defect::EpochReused) {
            let last = self.log.iter().map(|record| record.epoch).max();
            self.open_epoch = last.unwrap_or(self.durable).max(first_epoch(1) - 1) + 1;
        } else {
            self.incarnation += 1;
            self.open_epoch = first_epoch(self.incarnation);
        }
        history.reached(self.open_epoch - 1, self.image);
        let ends = self
            .log
            .iter()
            .any(|record| matches!(record.body, Logged::Request { body: Body::ResyncEnd, .. }));
        match self.resync {
            Resync::Ending(_) if ends && self.marks == 0 => {}
            Resync::Off if self.marks == 0 => {}
            _ => {
                // A new one is begun at the end of the log, whatever it has.
                let mut none = Pipes::default();
                self.append_alone(Body::ResyncBegin, rules, &mut none, history);
                self.resync = Resync::Running(0);
            }
        }
    }
}
