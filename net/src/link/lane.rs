//! One connection's way out: what is to be sent, in order, and the sending half of its transport.
//!
//! The dispatcher fills it and its worker drains it in batches. A thread that is going to wait for what it appended may
//! do both itself ([`Lane::push_now`], [`Lane::send_now`]) if that blocks on nothing; what it can't send is left to the
//! worker. Whoever holds the sender takes from the queue only while he does: so the order of the queue is the order on the
//! wire.

use super::route::Routed;
use crate::transport::Sender;
use crate::wire::codec;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// Payload bytes in one lane at most. Enough to cover the peer's sync of an epoch, little beside `--memory` (the
/// buffers are the log's own, only references lie here).
const LANE_BYTES_MAX: usize = 16 << 20;
/// Bytes that the worker sends with one flush.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes that a thread on its way to wait sends at once; what is larger is the worker's. Fits an idle socket's buffer.
const NOW_BYTES: usize = 64 << 10;
/// What a record counts beside its payload.
const RECORD_BYTES: usize = 128;

/// What a lane carries.
pub(crate) enum Item {
    /// See [`Routed`].
    Routed(Routed),
    /// A clean end; nothing follows.
    Goodbye,
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Routed(Routed::Request(request)) => RECORD_BYTES + request.payload_bytes(),
            Self::Routed(_) | Self::Goodbye => RECORD_BYTES,
        }
    }

    /// Gives it to the sender, which may keep it until it is flushed; `header` is a buffer to be used.
    fn send(&self, sender: &mut Sender, header: &mut Vec<u8>) -> io::Result<()> {
        header.clear();
        match self {
            Self::Routed(Routed::Request(request)) => {
                codec::encode_record_header(request, header);
                return sender.send(&[header, codec::payload(request)]);
            }
            Self::Routed(Routed::Barrier(barrier, told)) => codec::encode_barrier(barrier, *told, header),
            Self::Routed(Routed::After(epoch)) => codec::encode_after(*epoch, header),
            Self::Goodbye => codec::encode_goodbye(header),
        }
        sender.send(&[header])
    }
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It is on its way, with these plain bytes.
    Bytes(u64),
    /// As `Bytes`, and the last was a goodbye.
    Goodbye(u64),
    /// The lane is closed.
    Closed,
}

/// See the module's text. Closing it wakes whoever waits. The sender's lock is taken before the queue's.
#[derive(Default)]
pub(crate) struct Lane {
    queue: Mutex<Queue>,
    filled: Condvar,
    drained: Condvar,
    sender: Mutex<Option<Sender>>,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    closed: bool,
    /// The worker is to look although nothing was queued: something is left in the sender's buffer.
    look: bool,
}

impl Queue {
    fn put(&mut self, item: Item) {
        self.bytes += item.bytes();
        self.items.push_back(item);
    }

    /// The next items up to the one that reaches `bytes`, as long as `fits` says so.
    fn take(&mut self, bytes: usize, fits: impl Fn(&Item) -> bool) -> Vec<Item> {
        let (mut batch, mut taken) = (Vec::new(), 0);
        while taken < bytes && self.items.front().is_some_and(&fits) {
            let Some(item) = self.items.pop_front() else { break };
            taken += item.bytes();
            batch.push(item);
        }
        self.bytes -= taken;
        batch
    }
}

impl Lane {
    /// The connection is there.
    pub(crate) fn open(&self, sender: Sender) {
        *self.sender.lock() = Some(sender);
    }

    /// For the dispatcher: waits while the lane is full, wakes the worker. `false` once it is closed.
    pub(crate) fn push(&self, item: Item) -> bool {
        let mut queue = self.queue.lock();
        while queue.bytes >= LANE_BYTES_MAX && !queue.closed {
            self.drained.wait(&mut queue);
        }
        if queue.closed {
            return false;
        }
        queue.put(item);
        if queue.items.len() == 1 {
            self.filled.notify_one();
        }
        true
    }

    /// Queues without waiting and without waking: [`Self::send_now`] must follow. A little more than the bound may come in
    /// this way: what its callers wait for.
    pub(crate) fn push_now(&self, item: Item) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.put(item);
        }
    }

    /// Sends what is queued as far as that blocks on nothing; the worker has the rest. Returns the plain bytes sent.
    ///
    /// # Errors
    /// The connection's.
    pub(crate) fn send_now(&self) -> io::Result<u64> {
        let mut bytes = 0;
        loop {
            // Whoever holds it looks at the queue again when he has let it go.
            let Some(mut guard) = self.sender.try_lock() else { return Ok(bytes) };
            let Some(sender) = guard.as_mut() else { return Ok(bytes) };
            let small = |item: &Item| item.bytes() <= NOW_BYTES + RECORD_BYTES;
            let (batch, more) = {
                let mut queue = self.queue.lock();
                let batch = if sender.has_unsent() { Vec::new() } else { queue.take(NOW_BYTES, small) };
                (batch, !queue.items.is_empty())
            };
            if batch.is_empty() {
                drop(guard);
                if more {
                    self.wake_worker();
                    return Ok(bytes);
                }
                if self.queue.lock().items.is_empty() {
                    return Ok(bytes);
                }
                continue;
            }
            let before = sender.bytes_sent();
            let mut header = Vec::with_capacity(2 * RECORD_BYTES);
            sender.hold_back(true);
            let given = batch.iter().try_for_each(|item| item.send(sender, &mut header));
            sender.hold_back(false);
            let all_out = given.and_then(|()| sender.flush_now())?;
            bytes += sender.bytes_sent() - before;
            if !all_out {
                drop(guard);
                self.wake_worker();
                return Ok(bytes);
            }
        }
    }

    fn wake_worker(&self) {
        self.queue.lock().look = true;
        self.filled.notify_one();
    }

    /// For the worker: waits until there is something to send, at most `timeout`, and sends a batch with one flush; may
    /// block in the send.
    ///
    /// # Errors
    /// The connection's.
    pub(crate) fn send_next(&self, timeout: Duration) -> io::Result<Sent> {
        {
            let mut queue = self.queue.lock();
            if queue.items.is_empty() && !queue.look && !queue.closed {
                self.filled.wait_for(&mut queue, timeout);
            }
            queue.look = false;
        }
        let mut guard = self.sender.lock();
        let batch = {
            let mut queue = self.queue.lock();
            if queue.closed {
                return Ok(Sent::Closed);
            }
            let was_full = queue.bytes >= LANE_BYTES_MAX;
            let batch = queue.take(BATCH_BYTES, |_| true);
            if was_full {
                self.drained.notify_one();
            }
            batch
        };
        let Some(sender) = guard.as_mut() else { return Ok(Sent::Closed) };
        let before = sender.bytes_sent();
        let mut header = Vec::with_capacity(2 * RECORD_BYTES);
        for item in &batch {
            item.send(sender, &mut header)?;
        }
        sender.flush()?;
        let bytes = sender.bytes_sent() - before;
        Ok(if matches!(batch.last(), Some(Item::Goodbye)) {
            Sent::Goodbye(bytes)
        } else {
            Sent::Bytes(bytes)
        })
    }

    /// Drops what is in it and lets nothing in again.
    pub(crate) fn close(&self) {
        let mut queue: MutexGuard<'_, Queue> = self.queue.lock();
        queue.closed = true;
        queue.items.clear();
        queue.bytes = 0;
        drop(queue);
        self.filled.notify_all();
        self.drained.notify_all();
    }

    /// The connection is gone; the sender with it.
    pub(crate) fn release(&self) {
        self.close();
        *self.sender.lock() = None;
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
