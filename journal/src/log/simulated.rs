//! The log on a simulated disk, without threads: the work of each is done by whoever calls for it.

use super::{LogConfig, LogError, MirrorLog, core, spill, threads};
use crate::ids::{Epoch, LunId};
use crate::log::core::Resync;
use crate::medium::Folder;
use crate::simulation::SimulatedDisk;
use parking_lot::Mutex;
use std::sync::Arc;

/// What a judge has to know of the log, beside its [`LogStatus`](super::LogStatus).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Retired up to here.
    pub durable: Epoch,
    /// Last closed epoch.
    pub last_closed: Epoch,
    /// Oldest epoch of which it has a record.
    pub oldest: Option<Epoch>,
    /// Per LUN: a resync is running, or known to be needed.
    pub resyncs: Vec<bool>,
    /// The reason, if the queue was given up.
    pub given_up: Option<String>,
    /// Records on disk, and in memory.
    pub queued_requests: u64,
    /// Records in memory, barriers and markers included.
    pub memory_records: usize,
    /// Records in memory that come after what is on disk.
    pub memory_after_disk: usize,
}

/// See the module's text.
pub struct SimulatedLog {
    log: Arc<MirrorLog>,
}

impl SimulatedLog {
    /// As [`MirrorLog::open`]. `config.dir` only names the disk.
    ///
    /// # Errors
    /// As for [`MirrorLog::open`].
    pub fn open(config: LogConfig, disk: &Arc<SimulatedDisk>) -> Result<Self, LogError> {
        let folder = Folder::simulated(&config.dir, Arc::clone(disk));
        let (mut shared, index) = MirrorLog::recover(config, folder)?;
        shared.by_hand = Some(Mutex::new(spill::Spiller::new(index)));
        let log = MirrorLog { shared: Arc::new(shared), threads: Mutex::default(), _lock: None };
        Ok(Self { log: Arc::new(log) })
    }

    /// The log itself.
    #[must_use]
    pub fn log(&self) -> &Arc<MirrorLog> {
        &self.log
    }

    fn spiller(&self) -> &Mutex<spill::Spiller> {
        self.log.shared.by_hand.as_ref().expect("set by open")
    }

    /// First half of a spiller's turn: it decides what to write.
    pub fn spill_plan(&self) {
        self.spiller().lock().plan(&mut self.log.shared.core.lock());
    }

    /// Second half: it writes, unlinks, syncs.
    pub fn spill_carry_out(&self) {
        self.spiller().lock().carry_out(&self.log.shared);
    }

    /// The resync thread's turn. False: there was nothing to do.
    pub fn resync_turn(&self) -> bool {
        let work = threads::find(&self.log.shared.core.lock());
        match work {
            Some(work) => {
                // What can't be read now is found again by a later turn.
                let _ = threads::carry_out(&self.log.shared, work);
                true
            }
            None => false,
        }
    }

    /// The timer thread finds the open epoch too old, if it has requests.
    pub fn close_epoch_by_age(&self) {
        let mut core = self.log.shared.core.lock();
        if core.open_since.is_some() {
            core.close_open(LunId(0));
            self.log.shared.wake_for_append(&mut core);
        }
    }

    /// The timer thread looks through the region marks.
    pub fn tidy(&self) {
        threads::tidy(&self.log.shared, false);
    }

    /// For the judge.
    #[must_use]
    pub fn observe(&self) -> Observed {
        let core: &core::Core = &self.log.shared.core.lock();
        let resyncing =
            |state: &core::LunState| !matches!(state.resync, Resync::Off) || state.map.needs_resync();
        let last = core.disk.segments.values().next_back().map(|segment| segment.last);
        Observed {
            durable: core.durable,
            last_closed: core.last_closed,
            oldest: core.first_record_epoch(),
            resyncs: core.luns.iter().map(resyncing).collect(),
            given_up: core.given_up.clone(),
            queued_requests: core.disk.requests,
            memory_records: core.memory.len(),
            memory_after_disk: last.map_or(0, |last| core.memory.range(last + 1..).count()),
        }
    }
}
