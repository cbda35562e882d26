//! The dispatcher thread: from the log to the workers' lanes.

use super::lane::Item;
use super::session::Session;
use crate::supervise::link_state::EndReason;
use mirrorfs_journal::log::Next;
use mirrorfs_journal::{Body, LunId, RegionNo};
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for a record; bounds how late the end of the session or a stop is noticed.
const NEXT_WAIT: Duration = Duration::from_millis(50);

/// The worker that carries all requests of a region: overlapping ones travel on one connection, in order.
pub(super) fn route(lun: LunId, region: RegionNo, count: usize) -> usize {
    let mixed = (region.0 ^ (u64::from(lun.0) << 48)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The upper bits are the well mixed ones; the remainder fits any usize.
    ((mixed >> 32) % count as u64) as usize
}

/// Takes from the log (its only reader); gives to the lanes; may block on a full lane; ends with the session.
pub(super) fn run(session: &Session) {
    if !session.wait_begun() {
        return;
    }
    let log = &session.shared.log;
    let lanes = &session.lanes;
    while !session.is_over() {
        if session.goodbye_wanted() {
            break;
        }
        match log.next(NEXT_WAIT) {
            Next::Request(request) => {
                let pushed = match (&request.body, request.range()) {
                    (Body::Write { .. } | Body::Discard { .. } | Body::Check { .. }, Some((offset, _))) => {
                        let lane = &lanes[route(request.lun, RegionNo::of(offset), lanes.len())];
                        lane.push(Item::Request(request))
                    }
                    _ => lanes.iter().all(|lane| lane.push(Item::Request(Arc::clone(&request)))),
                };
                if !pushed {
                    return;
                }
            }
            Next::Idle => {}
            Next::Ended => {
                session.want_goodbye(EndReason::Connection("the mirror log ended the session".to_owned()));
            }
        }
    }
    for lane in lanes {
        lane.push(Item::Goodbye);
    }
}
