//! What the threads of the primary's side decide, without the threads: greeting, begin, answers, catching up.

use crate::status::LinkState;
use crate::store::LunHello;
use crate::supervise::link_state::{EndReason, Event};
use crate::wire::{Outcome, Response};
use mirrorfs_journal::log::{LogStatus, PeerLun};
use mirrorfs_journal::{Epoch, MirrorLog};

/// The LUNs as connection 0 presents them, each with the last epoch that is known to be durable on its mirror.
pub(crate) fn hello(luns: &[LunHello], log: &MirrorLog) -> Vec<LunHello> {
    let mut luns = luns.to_vec();
    let heard = log.status().durable_epoch;
    for (lun, (_, durable)) in luns.iter_mut().zip(log.heard_durable()) {
        lun.durable_epoch = lun.durable_epoch.max(durable).max(heard);
    }
    luns
}

/// The peer must speak of our LUNs, in order, and can't have epochs that this primary has not closed yet.
///
/// # Errors
/// The refusal, in words.
pub(crate) fn check(ours: &[LunHello], open: Epoch, luns: Vec<PeerLun>) -> Result<Vec<PeerLun>, EndReason> {
    if luns.len() != ours.len() || luns.iter().zip(0_u16..).any(|(lun, id)| lun.id.0 != id) {
        return Err(EndReason::Refused("the peer answers for other LUNs than were asked for".to_owned()));
    }
    if let Some((lun, hello)) =
        luns.iter().zip(ours).find(|(lun, _)| lun.durable_epoch >= open && !lun.created)
    {
        return Err(EndReason::Refused(format!(
            "the mirror of LUN {} has epoch {}, this primary is at {open} only: this image is an older copy; \
             use the newer one, or promote the mirror",
            hello.name, lun.durable_epoch
        )));
    }
    Ok(luns)
}

/// Up to which epoch things were waiting when the session began.
pub(crate) fn caught_up_at(status: &LogStatus) -> Epoch {
    if status.waiting_requests == 0 { Epoch(0) } else { status.open_epoch }
}

/// Whether the session has caught up, or fallen behind again. `target`: what [`caught_up_at`] said when it began.
pub(crate) fn progress(state: LinkState, status: &LogStatus, target: Epoch) -> Option<Event> {
    let resync = status.resync_running || status.resync_regions_left > 0;
    let caught_up = status.waiting_requests == 0 || status.durable_epoch >= target;
    match state {
        LinkState::Replaying if caught_up && !resync => Some(Event::CaughtUp),
        LinkState::Live if resync => Some(Event::FellBehind),
        _ => None,
    }
}

/// Gives an answer of the peer to the log. The flag: a request was stored (or compared).
///
/// # Errors
/// The request was not stored, which ends the session.
pub(crate) fn take(log: &MirrorLog, response: Response) -> Result<bool, EndReason> {
    match response {
        Response::Durable(epoch) => {
            log.durable(epoch);
            return Ok(false);
        }
        Response::Request(sequence, Outcome::Stored) => log.applied(sequence),
        Response::Request(sequence, Outcome::Equal) => log.checked(sequence, true),
        Response::Request(sequence, Outcome::Different) => log.checked(sequence, false),
        Response::Request(_, Outcome::Failed { message, .. }) => return Err(EndReason::NotStored(message)),
    }
    Ok(true)
}
