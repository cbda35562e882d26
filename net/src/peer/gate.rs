//! Where the connection threads of a session meet at barriers.
//!
//! A barrier is told to some connections, its participants: those that carried a part of its epoch. A thread that has read
//! barrier e arrives and waits; the last participant completes it (gathered content, sync, label) while the others keep
//! reading ahead, then opens the gate. A thread whose connection was left out is told later, before anything else, to wait
//! until e is complete. So no request of an epoch behind e is applied before that: whoever carries one has waited here.
//! The end of the session opens the gate too.

use crate::waker::Waker;
use crate::wire::Lanes;
use mirrorfs_journal::{Epoch, LunId};
use parking_lot::Mutex;
use std::io;

/// A barrier as a connection tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told<'a> {
    pub(crate) epoch: Epoch,
    /// Its participants.
    pub(crate) lanes: Lanes,
    /// For each LUN with requests in it, the LUN's epoch before.
    pub(crate) previous: &'a [(LunId, Epoch)],
}

/// What a thread that arrived has to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is the last: complete the barrier, then [`Meeting::complete`].
    Complete,
    /// Wait until the barrier is complete.
    Wait,
    /// What the connections tell does not agree, in words.
    Mismatch(String),
}

/// The meeting as such: no lock, no thread.
#[derive(Default)]
pub(crate) struct Meeting {
    /// The last barrier that was completed; barriers are completed in order.
    completed: Epoch,
    open: Option<Open>,
}

/// A barrier that some have reached.
struct Open {
    epoch: Epoch,
    lanes: Lanes,
    previous: Vec<(LunId, Epoch)>,
    arrived: Lanes,
}

impl Meeting {
    /// Connection `index` of `count` has read this barrier; it has applied and answered all that it read before.
    pub(crate) fn arrive(&mut self, index: u16, count: u16, told: &Told<'_>) -> Arrival {
        let Told { epoch, lanes, previous } = *told;
        if !lanes.contains(index.into()) || lanes.exceeds(count.into()) {
            let among = lanes.0;
            return Arrival::Mismatch(format!(
                "connection {index} is told barrier {epoch} of connections {among:#x}"
            ));
        }
        if epoch <= self.completed {
            let completed = self.completed;
            return Arrival::Mismatch(format!(
                "connection {index} is at barrier {epoch}, behind {completed}"
            ));
        }
        let open = self.open.get_or_insert_with(|| Open {
            epoch,
            lanes,
            previous: previous.to_vec(),
            arrived: Lanes::default(),
        });
        if open.epoch != epoch
            || open.lanes != lanes
            || open.previous != previous
            || open.arrived.contains(index.into())
        {
            let first = open.epoch;
            return Arrival::Mismatch(format!(
                "connection {index} is at barrier {epoch}, another at {first}"
            ));
        }
        open.arrived = open.arrived.with(index.into());
        if open.arrived == lanes { Arrival::Complete } else { Arrival::Wait }
    }

    /// The barrier that all participants have reached is complete.
    pub(crate) fn complete(&mut self) {
        if let Some(open) = self.open.take() {
            debug_assert!(open.arrived == open.lanes && open.epoch > self.completed);
            self.completed = open.epoch;
        }
    }

    /// Whether that barrier has been completed.
    pub(crate) fn is_complete(&self, epoch: Epoch) -> bool {
        self.completed >= epoch
    }
}

/// The meeting of a session's threads. A leaf lock: nothing else is taken under it.
pub(crate) struct Gate {
    state: Mutex<State>,
    wakers: Vec<Waker>,
}

#[derive(Default)]
struct State {
    meeting: Meeting,
    /// Who sleeps until a barrier is complete.
    waiting: Lanes,
}

impl Gate {
    pub(crate) fn new(count: u16) -> io::Result<Self> {
        let wakers = (0..count).map(|_| Waker::new()).collect::<io::Result<_>>()?;
        Ok(Self { state: Mutex::default(), wakers })
    }

    /// See [`Meeting::arrive`].
    pub(crate) fn arrive(&self, index: u16, told: &Told<'_>) -> Arrival {
        // As many as the session has connections.
        let count = self.wakers.len() as u16;
        self.state.lock().meeting.arrive(index, count, told)
    }

    /// Lets all pass; called by the thread that completed the barrier.
    pub(crate) fn open(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.meeting.complete();
            std::mem::take(&mut state.waiting)
        };
        self.wakers
            .iter()
            .enumerate()
            .filter(|(index, _)| waiting.contains(*index))
            .for_each(|(_, waker)| waker.wake());
    }

    /// Whether barrier `epoch` has been completed; if not, thread `index` will be woken when it, or another one, is.
    pub(crate) fn passes(&self, index: u16, epoch: Epoch) -> bool {
        let mut state = self.state.lock();
        let complete = state.meeting.is_complete(epoch);
        if !complete {
            state.waiting = state.waiting.with(index.into());
        }
        complete
    }

    /// What thread `index` polls together with its socket.
    pub(crate) fn waker(&self, index: u16) -> &Waker {
        &self.wakers[usize::from(index)]
    }

    /// Wakes every thread, so that it sees that the session is over.
    pub(crate) fn wake_all(&self) {
        self.wakers.iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(meeting: &mut Meeting, index: u16, epoch: u64, lanes: u64) -> Arrival {
        meeting.arrive(index, 4, &Told { epoch: Epoch(epoch), lanes: Lanes(lanes), previous: &[] })
    }

    #[test]
    fn the_last_participant_completes() {
        let mut meeting = Meeting::default();
        assert_eq!(arrive(&mut meeting, 1, 7, 0b1010), Arrival::Wait);
        assert!(!meeting.is_complete(Epoch(7)));
        assert_eq!(arrive(&mut meeting, 3, 7, 0b1010), Arrival::Complete);
        assert!(!meeting.is_complete(Epoch(7)), "not before it has done so");
        meeting.complete();
        assert!(
            meeting.is_complete(Epoch(6)) && meeting.is_complete(Epoch(7)) && !meeting.is_complete(Epoch(8))
        );
        assert_eq!(arrive(&mut meeting, 0, 8, 1), Arrival::Complete);
    }

    #[test]
    fn what_does_not_agree_is_refused() {
        let cases: [(u16, u64, u64); 6] = [
            (0, 7, 0b1010),
            (1, 7, 0b1_0010),
            (3, 8, 0b1010),
            (3, 7, 0b1011),
            (1, 7, 0b1010),
            (3, 5, 0b1010),
        ];
        for (index, epoch, lanes) in cases {
            let mut meeting = Meeting { completed: Epoch(5), open: None };
            assert_eq!(arrive(&mut meeting, 1, 7, 0b1010), Arrival::Wait);
            let arrival = arrive(&mut meeting, index, epoch, lanes);
            assert!(matches!(arrival, Arrival::Mismatch(_)), "{index} {epoch} {lanes:b}: {arrival:?}");
        }
    }

    #[test]
    fn another_chain_is_refused() {
        let mut meeting = Meeting::default();
        let (epoch, lanes) = (Epoch(2), Lanes(0b11));
        assert_eq!(
            meeting.arrive(0, 2, &Told { epoch, lanes, previous: &[(LunId(0), Epoch(1))] }),
            Arrival::Wait
        );
        let other = meeting.arrive(1, 2, &Told { epoch, lanes, previous: &[(LunId(1), Epoch(1))] });
        assert!(matches!(other, Arrival::Mismatch(_)));
    }
}
