//! A session's beginning and end.

use super::core::{Core, Resync};
use super::judge::{Known, Verdict, judge};
use super::types::{PeerLun, SessionStart};
use super::waiters::Due;
use crate::ids::{Epoch, LunId};

/// Judges each LUN, drops what its mirror can't go on from, appends `ResyncBegin` where needed, goes live.
pub(crate) fn begin(core: &mut Core, peer: &[PeerLun], due: &mut Due) -> SessionStart {
    let mut gather = Vec::new();
    let mut resync = Vec::new();
    let mut whole: Vec<(LunId, bool)> = Vec::new();
    core.close_open(LunId(0));
    for index in 0..core.luns.len() {
        let id = core.luns[index].id;
        let missing = PeerLun { id, durable_epoch: Epoch(0), resyncing: false, created: false };
        let said = peer.iter().find(|said| said.id == id).unwrap_or(&missing);
        let first_epoch = core.first_epoch;
        let state = &mut core.luns[index];
        state.retained.make_contiguous();
        let known = Known {
            durable: state.durable,
            durable_previous: state.durable_previous,
            retained: state.retained.as_slices().0,
            uncertain: state.uncertain,
            first_epoch,
            resync_known: state.resync_known(),
        };
        let verdict = judge(&known, said);
        state.uncertain = false;
        state.base = match verdict {
            // Maybe more than the label says, which the peer then makes good.
            Verdict::Continue { durable } => Some(durable),
            Verdict::Whole { .. } => Some(said.durable_epoch),
        };
        match verdict {
            Verdict::Continue { durable } => {
                if !state.retained.is_empty() {
                    gather.push(id);
                }
                while let Some(first) = state.retained.front().copied().filter(|first| *first <= durable) {
                    state.durable_previous = state.durable;
                    state.durable = first;
                    state.retained.pop_front();
                }
                if durable > state.durable {
                    state.durable_previous = Epoch(0);
                    state.durable = durable;
                }
            }
            Verdict::Whole { created, reason } => {
                log::warn!("LUN {}: all regions are sent again: {reason}", id.0);
                state.map.set_resync_all();
                state.durable = said.durable_epoch;
                state.durable_previous = Epoch(0);
                state.retained.clear();
                state.begin_epoch = None;
                state.resync = Resync::Off;
                whole.push((id, created));
                resync.push((id, reason));
            }
        }
    }
    core.given_up = None;
    // What no LUN lacks goes; records of dropped LUNs stay in between and are passed over.
    let lacking = core.luns.iter().filter_map(|state| state.retained.front().copied()).min();
    core.retire(lacking.map_or(core.last_closed, |first| Epoch(first.0 - 1)), due);
    if !whole.is_empty() {
        // Some of it may never have been sent: its files stay until the marks are durable.
        core.garbage.iter_mut().for_each(|(_, unsent)| *unsent = true);
    }
    for (id, created) in whole {
        core.luns[usize::from(id.0)].dropped_before = core.next_sequence.0;
        core.begin_resync(id, true, created);
    }
    for index in 0..core.luns.len() {
        let state = &core.luns[index];
        if resync.iter().any(|(id, _)| *id == state.id) {
            continue;
        }
        let id = state.id;
        match state.resync {
            Resync::Off if state.map.needs_resync() => {}
            Resync::Running { .. } => {}
            _ => continue,
        }
        resync.push((id, format!("{} regions may differ", state.map.resync_count())));
        if state.begin_epoch.is_none() {
            let whole = state.map.all_resync();
            core.begin_resync(id, whole, false);
        }
    }
    core.rewind();
    core.live = true;
    core.session += 1;
    let first_epoch = core.first_record_epoch().unwrap_or(core.open_epoch);
    SessionStart { first_epoch, gather, resync }
}
