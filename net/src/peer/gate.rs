//! The place where the n connection threads of a session meet at each barrier.
//!
//! A thread that has read barrier e arrives and waits; the last one completes the barrier (gathered content, sync,
//! label) while the others keep reading ahead, then opens the gate for all. No request of epoch e+1 is applied before
//! that: every thread is either waiting here or completing. The end of the session opens the gate too.

use crate::waker::Waker;
use mirrorfs_journal::{Epoch, LunId};
use parking_lot::Mutex;
use std::io;

/// What a thread that arrived has to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is the last: complete the barrier, then [`Gate::open`].
    Complete,
    /// Wait until [`Gate::is_open`] for this round.
    Wait(u64),
    /// The barriers of the connections do not agree.
    Mismatch(Epoch),
}

/// See the module's text. A leaf lock: nothing else is taken under it.
pub(crate) struct Gate {
    state: Mutex<State>,
    wakers: Vec<Waker>,
}

#[derive(Default)]
struct State {
    round: u64,
    arrived: usize,
    barrier: Option<(Epoch, Vec<(LunId, Epoch)>)>,
}

impl Gate {
    pub(crate) fn new(count: u16) -> io::Result<Self> {
        let wakers = (0..count).map(|_| Waker::new()).collect::<io::Result<_>>()?;
        Ok(Self { state: Mutex::default(), wakers })
    }

    /// Thread `index` has read this barrier; it has answered all that it read before.
    pub(crate) fn arrive(&self, epoch: Epoch, previous: &[(LunId, Epoch)]) -> Arrival {
        let mut state = self.state.lock();
        match &state.barrier {
            None => state.barrier = Some((epoch, previous.to_vec())),
            Some((first, chain)) if *first != epoch || chain != previous => return Arrival::Mismatch(*first),
            Some(_) => {}
        }
        state.arrived += 1;
        if state.arrived == self.wakers.len() { Arrival::Complete } else { Arrival::Wait(state.round) }
    }

    /// Lets all pass; called by the thread that completed the barrier.
    pub(crate) fn open(&self, index: u16) {
        {
            let mut state = self.state.lock();
            state.round += 1;
            state.arrived = 0;
            state.barrier = None;
        }
        for (other, waker) in self.wakers.iter().enumerate() {
            if other != usize::from(index) {
                waker.wake();
            }
        }
    }

    /// Whether the barrier of that round has been completed.
    pub(crate) fn is_open(&self, round: u64) -> bool {
        self.state.lock().round > round
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
