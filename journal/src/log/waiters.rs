//! Replies that wait for the mirror. Collected under the log's lock, called without it.

use super::types::{OnOutage, Waited, Waiter};
use crate::ids::{Epoch, Sequence};
use std::collections::BTreeMap;

/// Waiters whose turn has come.
pub(crate) type Due = Vec<(Waiter, Waited)>;

/// Calls them; no lock of the log may be held.
pub(crate) fn call(due: Due) {
    for (waiter, outcome) in due {
        waiter(outcome);
    }
}

#[derive(Default)]
pub(crate) struct Waiters {
    pub(crate) policy: Option<OnOutage>,
    applied: BTreeMap<u64, Vec<Waiter>>,
    durable: BTreeMap<u64, Vec<Waiter>>,
}

impl Waiters {
    pub(crate) fn wait_applied(&mut self, sequence: Sequence, waiter: Waiter) {
        self.applied.entry(sequence.0).or_default().push(waiter);
    }

    pub(crate) fn wait_durable(&mut self, epoch: Epoch, waiter: Waiter) {
        self.durable.entry(epoch.0).or_default().push(waiter);
    }

    pub(crate) fn waits_durable(&self) -> bool {
        !self.durable.is_empty()
    }

    pub(crate) fn waits(&self) -> bool {
        !self.durable.is_empty() || !self.applied.is_empty()
    }

    pub(crate) fn applied(&mut self, sequence: Sequence, due: &mut Due) {
        if let Some(waiters) = self.applied.remove(&sequence.0) {
            due.extend(waiters.into_iter().map(|waiter| (waiter, Waited::Mirrored)));
        }
    }

    /// All up to this number are applied, as far as `which` says so of each.
    pub(crate) fn applied_upto(&mut self, sequence: u64, which: impl Fn(u64) -> bool, due: &mut Due) {
        let keys: Vec<u64> =
            self.applied.range(..=sequence).map(|(key, _)| *key).filter(|key| which(*key)).collect();
        for key in keys {
            let waiters = self.applied.remove(&key).into_iter().flatten();
            due.extend(waiters.map(|waiter| (waiter, Waited::Mirrored)));
        }
    }

    /// All up to `sequence` are applied, all up to `epoch` durable.
    pub(crate) fn durable(&mut self, sequence: Sequence, epoch: Epoch, due: &mut Due) {
        take_first(&mut self.applied, sequence.0, due);
        take_first(&mut self.durable, epoch.0, due);
    }

    /// The log dropped what lies behind these numbers; it is left to a resync.
    pub(crate) fn dropped(&mut self, after: Sequence, after_epoch: Epoch, due: &mut Due) {
        let outcome = if self.policy == Some(OnOutage::Readonly) { Waited::Failed } else { Waited::Queued };
        take(&mut self.applied, |key| key > after.0, outcome, due);
        take(&mut self.durable, |key| key > after_epoch.0, outcome, due);
    }

    /// The peer is away: what the policy says. `stored`: in the queue; `synced`: in its fdatasynced part.
    pub(crate) fn outage(
        &mut self,
        stored: impl Fn(Sequence) -> bool,
        synced: impl Fn(Epoch) -> bool,
        due: &mut Due,
    ) {
        match self.policy {
            None | Some(OnOutage::Block) => {}
            Some(OnOutage::Readonly) => self.fail(due),
            Some(OnOutage::Queue) => {
                take(&mut self.applied, |key| stored(Sequence(key)), Waited::Queued, due);
                take(&mut self.durable, |key| synced(Epoch(key)), Waited::Queued, due);
            }
        }
    }

    pub(crate) fn fail(&mut self, due: &mut Due) {
        take(&mut self.applied, |_| true, Waited::Failed, due);
        take(&mut self.durable, |_| true, Waited::Failed, due);
    }
}

fn take(
    waiting: &mut BTreeMap<u64, Vec<Waiter>>,
    which: impl Fn(u64) -> bool,
    outcome: Waited,
    due: &mut Due,
) {
    let keys: Vec<u64> = waiting.keys().copied().filter(|key| which(*key)).collect();
    for key in keys {
        for waiter in waiting.remove(&key).into_iter().flatten() {
            due.push((waiter, outcome));
        }
    }
}

/// The waiters up to `last`; costs nothing when there are none.
fn take_first(waiting: &mut BTreeMap<u64, Vec<Waiter>>, last: u64, due: &mut Due) {
    while let Some(entry) = waiting.first_entry().filter(|entry| *entry.key() <= last) {
        due.extend(entry.remove().into_iter().map(|waiter| (waiter, Waited::Mirrored)));
    }
}
