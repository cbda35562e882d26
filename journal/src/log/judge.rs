//! How a LUN goes on when the peer has said what its mirror image has.

use super::types::PeerLun;
use crate::ids::Epoch;

/// What the log knows of one LUN, as far as a resumption depends on it.
#[derive(Clone, Debug)]
pub(crate) struct Known<'a> {
    /// Last of the LUN's epochs heard to be durable; 0 if none.
    pub(crate) durable: Epoch,
    /// The LUN's epoch before it; 0 if not known.
    pub(crate) durable_previous: Epoch,
    /// The LUN's closed epochs after `durable` that the log still has, without a gap.
    pub(crate) retained: &'a [Epoch],
    /// The primary was not closed cleanly and no session has been since: the peer may have more than we know.
    pub(crate) uncertain: bool,
    /// First epoch of this incarnation.
    pub(crate) first_epoch: Epoch,
    /// The resync marks of a resync that was running are known.
    pub(crate) resync_known: bool,
}

/// How the LUN goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The log goes on after this epoch, which (or more) the mirror has.
    Continue {
        /// Last epoch that the mirror image certainly has.
        durable: Epoch,
    },
    /// All regions follow, for this reason.
    Whole {
        /// The image reads as zeros everywhere.
        created: bool,
        /// In words.
        reason: String,
    },
}

/// Whenever in doubt: all regions.
pub(crate) fn judge(known: &Known<'_>, peer: &PeerLun) -> Verdict {
    let whole = |reason: String| Verdict::Whole { created: false, reason };
    let said = peer.durable_epoch;
    if peer.created {
        return Verdict::Whole { created: true, reason: "the mirror image is new".into() };
    }
    if said == Epoch(0) {
        return whole("the mirror image has no complete epoch".into());
    }
    if peer.resyncing && !known.resync_known {
        return whole("the mirror's resync was broken off and its regions are not known here".into());
    }
    if said == known.durable || known.retained.contains(&said) {
        return Verdict::Continue { durable: said };
    }
    if said == known.durable_previous {
        // A power cut took the label's last write; what we heard to be durable is there all the same.
        return Verdict::Continue { durable: known.durable };
    }
    if known.uncertain && said > known.durable && said < known.first_epoch {
        return Verdict::Continue { durable: said };
    }
    if said < known.durable {
        return whole(format!(
            "the mirror is at epoch {said}, further back than the log reaches ({})",
            known.durable
        ));
    }
    whole(format!("the mirror's epoch {said} is unknown here"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, LunId};

    fn epoch(incarnation: u32, count: u64) -> Epoch {
        Epoch(Epoch::first(Incarnation(incarnation)).0 + count - 1)
    }

    fn known(retained: &[Epoch]) -> Known<'_> {
        Known {
            durable: epoch(3, 10),
            durable_previous: epoch(3, 7),
            retained,
            uncertain: false,
            first_epoch: epoch(4, 1),
            resync_known: false,
        }
    }

    fn peer(durable_epoch: Epoch) -> PeerLun {
        PeerLun { id: LunId(0), durable_epoch, resyncing: false, created: false }
    }

    fn goes_on(known: &Known<'_>, peer: &PeerLun) -> Option<Epoch> {
        match judge(known, peer) {
            Verdict::Continue { durable } => Some(durable),
            Verdict::Whole { .. } => None,
        }
    }

    #[test]
    fn peer_is_where_we_heard_it_to_be() {
        assert_eq!(goes_on(&known(&[]), &peer(epoch(3, 10))), Some(epoch(3, 10)));
    }

    #[test]
    fn peer_has_more_than_we_heard_of() {
        let retained = [epoch(3, 12), epoch(4, 2)];
        assert_eq!(goes_on(&known(&retained), &peer(epoch(3, 12))), Some(epoch(3, 12)));
        assert_eq!(goes_on(&known(&retained), &peer(epoch(4, 2))), Some(epoch(4, 2)));
    }

    #[test]
    fn epoch_between_two_of_the_luns_own_is_unknown() {
        assert_eq!(goes_on(&known(&[epoch(3, 12)]), &peer(epoch(3, 11))), None);
    }

    #[test]
    fn label_one_step_behind_after_a_power_cut() {
        assert_eq!(goes_on(&known(&[]), &peer(epoch(3, 7))), Some(epoch(3, 10)));
    }

    #[test]
    fn label_two_steps_behind_is_resynced() {
        assert_eq!(goes_on(&known(&[]), &peer(epoch(3, 6))), None);
    }

    #[test]
    fn step_before_nothing_is_not_zero() {
        let known = Known { durable: epoch(3, 1), durable_previous: Epoch(0), ..known(&[]) };
        assert_eq!(goes_on(&known, &peer(Epoch(0))), None);
    }

    #[test]
    fn unclean_stop_accepts_what_the_last_incarnation_sent() {
        let known = Known { uncertain: true, ..known(&[]) };
        assert_eq!(goes_on(&known, &peer(epoch(3, 99))), Some(epoch(3, 99)));
        assert_eq!(goes_on(&known, &peer(epoch(4, 1))), None);
        assert_eq!(goes_on(&known, &peer(epoch(3, 5))), None);
    }

    #[test]
    fn clean_stop_does_not() {
        assert_eq!(goes_on(&known(&[]), &peer(epoch(3, 99))), None);
    }

    #[test]
    fn created_image_gets_all_without_holes() {
        let created = PeerLun { created: true, ..peer(Epoch(0)) };
        assert!(matches!(judge(&known(&[]), &created), Verdict::Whole { created: true, .. }));
    }

    #[test]
    fn broken_off_resync_goes_on_only_with_its_marks() {
        let resyncing = PeerLun { resyncing: true, ..peer(epoch(3, 10)) };
        assert_eq!(goes_on(&known(&[]), &resyncing), None);
        let known = Known { resync_known: true, ..known(&[]) };
        assert_eq!(goes_on(&known, &resyncing), Some(epoch(3, 10)));
    }
}
