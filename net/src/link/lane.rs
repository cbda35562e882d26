//! The bounded channel between the dispatcher and one worker: bounded in bytes, drained in batches.

use mirrorfs_journal::MirrorRequest;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Payload bytes in one lane at most. Enough to cover the peer's sync of an epoch, little beside `--memory` (the
/// buffers are the log's own, only references lie here).
const LANE_BYTES_MAX: usize = 16 << 20;
/// Bytes handed to the worker in one batch, which it sends with one flush.
const BATCH_BYTES: usize = 1 << 20;
/// What a record counts beside its payload.
const RECORD_BYTES: usize = 128;

/// What a worker has to send.
pub(crate) enum Item {
    /// A record of the log.
    Request(Arc<MirrorRequest>),
    /// A clean end; nothing follows.
    Goodbye,
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Request(request) => RECORD_BYTES + request.payload_bytes(),
            Self::Goodbye => RECORD_BYTES,
        }
    }
}

/// One producer, one consumer. Closing it wakes both.
#[derive(Default)]
pub(crate) struct Lane {
    state: Mutex<State>,
    filled: Condvar,
    drained: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Item>,
    bytes: usize,
    closed: bool,
}

impl Lane {
    /// Waits while the lane is full. `false` once it is closed.
    pub(crate) fn push(&self, item: Item) -> bool {
        let mut state = self.state.lock();
        while state.bytes >= LANE_BYTES_MAX && !state.closed {
            self.drained.wait(&mut state);
        }
        if state.closed {
            return false;
        }
        state.bytes += item.bytes();
        state.queue.push_back(item);
        if state.queue.len() == 1 {
            self.filled.notify_one();
        }
        true
    }

    /// Moves the next batch into `batch`, waiting at most `timeout` for one. `false` once it is closed.
    pub(crate) fn take(&self, batch: &mut Vec<Item>, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        if state.queue.is_empty() && !state.closed {
            self.filled.wait_for(&mut state, timeout);
        }
        if state.closed {
            return false;
        }
        let was_full = state.bytes >= LANE_BYTES_MAX;
        let mut taken = 0;
        while taken < BATCH_BYTES
            && let Some(item) = state.queue.pop_front()
        {
            taken += item.bytes();
            batch.push(item);
        }
        state.bytes -= taken;
        if was_full {
            self.drained.notify_one();
        }
        true
    }

    /// Drops what is in it and lets nothing in again.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.queue.clear();
        state.bytes = 0;
        drop(state);
        self.filled.notify_all();
        self.drained.notify_all();
    }
}
