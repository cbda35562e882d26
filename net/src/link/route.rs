//! Which connections a record of the log travels on, and where barriers are told. Pure: no thread, no socket.
//!
//! - **Within an epoch** all requests of a region go to one connection, so that overlapping requests travel in order. An
//!   epoch either spreads the regions over the n connections by a hash, or is *narrow*: all of it goes to connection 0.
//!   The choice is made at each barrier, where the order of what lies before it is kept by the barrier itself: while few
//!   requests are under way at a time one connection is as fast, and nothing else need be woken.
//! - **A barrier** is told at once to its *participants* only: the connections that carried something of its epoch (connection
//!   0 if none did). Their threads meet at the peer; the last one completes it.
//! - **A connection that was left out** is told to wait ([`Routed::After`]) for the latest barrier, just before the next
//!   thing that it carries. So whatever a connection carries of epoch e+1 waits for barrier e, and each participant of a
//!   barrier has waited for the one before: barriers are completed in order.

use crate::connection::CONNECTIONS_MAX;
use crate::wire::Lanes;
use mirrorfs_journal::{Body, Epoch, LunId, MirrorRequest, RegionNo};
use std::sync::Arc;

/// Answers outstanding at once up to which the next epoch is narrow.
const NARROW_DEPTH: u64 = 16;

/// What goes to one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Routed {
    /// Nothing that follows may be applied before this barrier is complete.
    After(Epoch),
    /// A record, but no barrier.
    Request(Arc<MirrorRequest>),
    /// A barrier and the connections that it is told to.
    Barrier(Arc<MirrorRequest>, Lanes),
}

/// See the module's text. One for each session; records come in the order of the log.
pub(crate) struct Router {
    count: usize,
    /// This epoch's regions are spread over all connections.
    spread: bool,
    /// Most answers outstanding in this epoch.
    depth: u64,
    /// Connections that carried something since the last barrier.
    used: Lanes,
    /// The latest barrier that each connection has not been told.
    behind: Vec<Option<Epoch>>,
    /// A planted defect: requests go round the connections, whatever their region.
    #[cfg(test)]
    pub(crate) overlapping: bool,
}

impl Router {
    /// For a session of `count` connections, 1 to [`CONNECTIONS_MAX`].
    pub(crate) fn new(count: usize) -> Self {
        debug_assert!((1..=usize::from(CONNECTIONS_MAX)).contains(&count));
        Self {
            count,
            spread: false,
            depth: 0,
            used: Lanes::default(),
            behind: vec![None; count],
            #[cfg(test)]
            overlapping: false,
        }
    }

    /// Says what goes where, in order; `outstanding`: requests sent and not answered yet.
    pub(crate) fn route(
        &mut self,
        record: &Arc<MirrorRequest>,
        outstanding: u64,
        mut give: impl FnMut(usize, Routed),
    ) {
        match (&record.body, record.range()) {
            (Body::Barrier { .. }, _) => {
                if self.used == Lanes::default() {
                    self.carry(0, &mut give);
                }
                let told = std::mem::take(&mut self.used);
                for index in 0..self.count {
                    if told.contains(index) {
                        give(index, Routed::Barrier(Arc::clone(record), told));
                    } else {
                        self.behind[index] = Some(record.epoch);
                    }
                }
                self.spread = std::mem::take(&mut self.depth) > NARROW_DEPTH;
            }
            (_, range) => {
                self.depth = self.depth.max(outstanding);
                let index = match range {
                    #[cfg(test)]
                    Some(_) if self.overlapping => record.sequence.0 as usize % self.count,
                    Some((offset, _)) if self.spread => spread(record.lun, RegionNo::of(offset), self.count),
                    // A marker of a resync is alone in its epoch.
                    _ => 0,
                };
                self.carry(index, &mut give);
                give(index, Routed::Request(Arc::clone(record)));
            }
        }
    }

    /// Connection `index` is about to carry something of this epoch.
    fn carry(&mut self, index: usize, give: &mut impl FnMut(usize, Routed)) {
        self.used = self.used.with(index);
        if let Some(barrier) = self.behind[index].take() {
            give(index, Routed::After(barrier));
        }
    }
}

/// The connection of a region in a spread epoch.
fn spread(lun: LunId, region: RegionNo, count: usize) -> usize {
    let mixed = (region.0 ^ (u64::from(lun.0) << 48)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The upper bits are the well mixed ones; the remainder fits any usize.
    ((mixed >> 32) % count as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use mirrorfs_journal::{Origin, REGION_BYTES, Sequence};

    fn record(sequence: u64, epoch: u64, body: Body) -> Arc<MirrorRequest> {
        let (sequence, epoch, lun) = (Sequence(sequence), Epoch(epoch), LunId(0));
        Arc::new(MirrorRequest { sequence, epoch, lun, origin: Origin::Metadata, accepted_ms: 0, body })
    }

    fn write(epoch: u64, region: u64) -> Arc<MirrorRequest> {
        record(
            1,
            epoch,
            Body::Write { offset: region * REGION_BYTES, payload: Bytes::from_static(&[0; 512]), crc: 0 },
        )
    }

    fn barrier(epoch: u64) -> Arc<MirrorRequest> {
        record(2, epoch, Body::Barrier { previous: vec![] })
    }

    fn route(router: &mut Router, record: &Arc<MirrorRequest>, outstanding: u64) -> Vec<(usize, Routed)> {
        let mut given = Vec::new();
        router.route(record, outstanding, |index, routed| given.push((index, routed)));
        given
    }

    /// A router in a spread epoch: the one before had many requests under way.
    fn spreading(count: usize) -> Router {
        let mut router = Router::new(count);
        route(&mut router, &write(1, 0), NARROW_DEPTH + 1);
        route(&mut router, &barrier(1), 0);
        router
    }

    #[test]
    fn a_quiet_epoch_stays_on_one_connection_and_wakes_no_other() {
        let mut router = Router::new(4);
        for region in 0..40 {
            assert_eq!(route(&mut router, &write(1, region), 1), [(0, Routed::Request(write(1, region)))]);
        }
        assert_eq!(route(&mut router, &barrier(1), 0), [(0, Routed::Barrier(barrier(1), Lanes(1)))]);
    }

    #[test]
    fn a_busy_epoch_spreads_the_next_one_and_keeps_each_region_on_one_connection() {
        let mut router = spreading(4);
        let mut lane_of = std::collections::BTreeMap::new();
        for region in (0..64).chain(0..64) {
            let given = route(&mut router, &write(2, region), 0);
            let (lane, last) = given.last().expect("it goes somewhere");
            assert_eq!(*last, Routed::Request(write(2, region)));
            assert_eq!(*lane_of.entry(region).or_insert(*lane), *lane);
        }
        let used: std::collections::BTreeSet<_> = lane_of.values().collect();
        assert_eq!(used.len(), 4, "64 regions use all connections");
        assert_eq!(route(&mut router, &barrier(2), 0).len(), 4);
    }

    #[test]
    fn whoever_was_left_out_waits_for_the_latest_barrier_before_it_carries_anything() {
        let mut router = spreading(2);
        let of = |lane| (0..).find(|region| spread(LunId(0), RegionNo(*region), 2) == lane).expect("one");
        // Barrier 1 went to connection 0 only.
        assert_eq!(
            route(&mut router, &write(2, of(1)), NARROW_DEPTH + 1),
            [(1, Routed::After(Epoch(1))), (1, Routed::Request(write(2, of(1))))]
        );
        assert_eq!(route(&mut router, &write(2, of(1)), 0).len(), 1, "once is enough");
        assert_eq!(route(&mut router, &barrier(2), 0), [(1, Routed::Barrier(barrier(2), Lanes(2)))]);
        // Two barriers later it is the later one.
        route(&mut router, &write(3, of(1)), NARROW_DEPTH + 1);
        route(&mut router, &barrier(3), 0);
        assert_eq!(route(&mut router, &write(4, of(0)), 0)[0], (0, Routed::After(Epoch(3))));
    }

    #[test]
    fn a_barrier_of_nothing_goes_to_connection_0_behind_the_latest_one() {
        let mut router = spreading(2);
        let one = (0..).find(|region| spread(LunId(0), RegionNo(*region), 2) == 1).expect("one");
        route(&mut router, &write(2, one), 0);
        route(&mut router, &barrier(2), 0);
        assert_eq!(
            route(&mut router, &barrier(3), 0),
            [(0, Routed::After(Epoch(2))), (0, Routed::Barrier(barrier(3), Lanes(1)))]
        );
    }
}
