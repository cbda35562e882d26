//! The log's own threads. Each ends when `Core::closing` is set.

use super::Shared;
use super::core::Resync;
use crate::ids::{Epoch, LunId, RegionNo};
use crate::regions::Fate;
use crate::request::Body;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Age at which an epoch with requests is closed.
pub(crate) const EPOCH_AGE_MAX: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);
/// Region marks are looked through this often.
const TIDY_INTERVAL: Duration = Duration::from_secs(2);
const RESYNC_RETRY: Duration = Duration::from_secs(1);

/// Closes epochs by age and clears region marks. Blocks on the region map's sync only.
pub(crate) fn timer(shared: &Shared) {
    let mut tidied = Instant::now();
    loop {
        {
            let mut core = shared.core.lock();
            if core.stopping {
                return;
            }
            if core.open_since.is_some_and(|since| since.elapsed() >= EPOCH_AGE_MAX) {
                core.close_open(LunId(0));
                shared.wake_for_append(&mut core);
            }
            shared.timer_wake.wait_for(&mut core, TICK);
        }
        if tidied.elapsed() >= TIDY_INTERVAL {
            tidy(shared, false);
            tidied = Instant::now();
        }
    }
}

/// Clears the marks of regions that are the same on both sides, or safely queued. False: a map can't be written.
pub(crate) fn tidy(shared: &Shared, at_rest: bool) -> bool {
    let mut maps = Vec::new();
    {
        let core = shared.core.lock();
        let durable = core.durable;
        let queued = core.queue_synced();
        for state in &core.luns {
            let (region_epoch, locally_synced) = (&state.region_epoch, state.locally_synced);
            let changes = state.map.tidy(state.durable, at_rest, |region| {
                let last = region_epoch.get(region.0 as usize).copied().unwrap_or(0);
                if last == 0 {
                    // No request in it: marked with its run.
                    return Fate::Clear;
                }
                if Epoch(last) > locally_synced && Epoch(last) >= core.first_epoch {
                    Fate::Keep
                } else if Epoch(last) <= durable {
                    Fate::Clear
                } else if Epoch(last) <= queued {
                    Fate::Queued
                } else {
                    Fate::Keep
                }
            });
            let mut map_state = state.map.state();
            (map_state.durable, map_state.durable_previous) = (state.durable, state.durable_previous);
            state.map.set_state(map_state);
            if changes > 0 || at_rest {
                log::debug!("LUN {}: {changes} region marks cleared", state.id.0);
            }
            maps.push(Arc::clone(&state.map));
        }
    }
    let mut written = true;
    for map in maps {
        if let Err(error) = map.flush() {
            log::error!("region map {}: {error}", map.path().display());
            written = false;
        }
    }
    written
}

pub(crate) enum Work {
    Region {
        lun: LunId,
        region: RegionNo,
        skip_holes: bool,
        source: Arc<dyn super::RegionSource>,
        session: u64,
    },
    End {
        lun: LunId,
        session: u64,
    },
}

/// Reads regions and has them appended. Blocks on image reads, never with a lock of the log held.
pub(crate) fn resync(shared: &Shared) {
    loop {
        let work = {
            let mut core = shared.core.lock();
            loop {
                if core.stopping {
                    return;
                }
                if let Some(work) = find(&core) {
                    break work;
                }
                shared.resync_wake.wait_for(&mut core, TICK);
            }
        };
        if carry_out(shared, work).is_err() {
            let mut core = shared.core.lock();
            if !core.stopping {
                shared.resync_wake.wait_for(&mut core, RESYNC_RETRY);
            }
        }
    }
}

/// Has a region read and appended, or the end marker. An error: the region can't be read now, it is to be tried again.
pub(crate) fn carry_out(shared: &Shared, work: Work) -> Result<(), ()> {
    match work {
        Work::Region { lun, region, skip_holes, source, session } => {
            let result = source.resync_region(region, skip_holes);
            let mut core = shared.core.lock();
            if core.session != session {
                return Ok(());
            }
            let upto = if core.open_requests > 0 { core.open_epoch } else { core.last_closed };
            let durable = core.durable;
            let state = &mut core.luns[usize::from(lun.0)];
            let Resync::Running { cursor, in_flight, .. } = &mut state.resync else { return Ok(()) };
            match result {
                Ok(next) => *cursor = next.max(RegionNo(region.0 + 1)),
                Err(error) => {
                    log::error!("resync: LUN {}, region {}: {error}; trying again", lun.0, region.0);
                    return Err(());
                }
            }
            let behind = |region: &RegionNo| state.map.next_resync(RegionNo(region.0 + 1));
            let carried = std::iter::successors(Some(region), behind).take_while(|region| *region < *cursor);
            if upto <= durable {
                state.map.set_resync(carried.collect::<Vec<_>>(), false);
            } else {
                in_flight.extend(carried.map(|region| (upto, region)));
            }
            if state.map.next_resync(*cursor).is_none() {
                // The last one need not wait for the epoch to close by age.
                core.close_open(LunId(0));
                shared.wake_for_append(&mut core);
            }
        }
        Work::End { lun, session } => {
            let map = Arc::clone(&shared.core.lock().luns[usize::from(lun.0)].map);
            if let Err(error) = map.flush() {
                log::error!("region map {}: {error}", map.path().display());
            }
            let mut core = shared.core.lock();
            if core.session == session && !map.needs_resync() {
                let epoch = core.append_alone(lun, Body::ResyncEnd);
                core.luns[usize::from(lun.0)].resync = Resync::Ending(epoch);
                shared.wake_for_append(&mut core);
            }
        }
    }
    Ok(())
}

pub(crate) fn find(core: &super::core::Core) -> Option<Work> {
    if !core.live || core.closing || !core.resync_may_append() {
        return None;
    }
    let session = core.session;
    core.luns.iter().find_map(|state| {
        let Resync::Running { cursor, skip_holes, in_flight } = &state.resync else { return None };
        let lun = state.id;
        if let Some(region) = state.map.next_resync(*cursor) {
            let source = Arc::clone(state.source.as_ref()?);
            return Some(Work::Region { lun, region, skip_holes: *skip_holes, source, session });
        }
        // Marks set behind the cursor since (a check that found a difference) are still to be read.
        if in_flight.is_empty() {
            return match state.map.next_resync(RegionNo(0)) {
                None => Some(Work::End { lun, session }),
                Some(region) => {
                    let source = Arc::clone(state.source.as_ref()?);
                    Some(Work::Region { lun, region, skip_holes: false, source, session })
                }
            };
        }
        None
    })
}
