//! What lies between both ends: wires (TCP connections, as bounded queues of frames) and datagrams.

use crate::supervise::Now;
use crate::supervise::heartbeat::DATAGRAM_BYTES;
use crate::wire::{Begin, Greeting, Message, Response, Welcome};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Sides, also of datagrams: who receives.
pub(super) const PRIMARY: usize = 0;
pub(super) const PEER: usize = 1;

/// Frames in one direction of a wire at most.
const FRAMES_MAX: usize = 24;

/// From the primary.
pub(super) enum Up {
    Greeting(Box<Greeting>),
    Begin(Begin),
    Message(Message),
}

/// From the peer.
pub(super) enum Down {
    Welcome(Welcome),
    Response(Response),
}

/// What a read finds.
pub(super) enum Read<T> {
    Nothing,
    Frame(T),
    /// The other end has closed it.
    End,
    /// Reset.
    Broken,
}

#[derive(Default)]
pub(super) struct Wire {
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    broken: bool,
    /// By side: it has closed its end.
    closed: [bool; 2],
    /// By side: its machine has vanished without a word.
    vanished: [bool; 2],
    stalled_until: Now,
    /// The peer's listener has taken the greeting.
    pub(super) greeted: bool,
}

pub(super) type Bytes = [u8; DATAGRAM_BYTES];

#[derive(Default)]
pub(super) struct Network {
    pub(super) wires: Vec<Wire>,
    /// Delivery time, order, receiving side, bytes.
    datagrams: BinaryHeap<Reverse<(Now, u64, usize, Bytes)>>,
    order: u64,
    /// By receiving side: nothing gets through.
    pub(super) blocked: [bool; 2],
}

impl Network {
    pub(super) fn connect(&mut self, greeting: Greeting) -> usize {
        self.wires.push(Wire { up: VecDeque::from([Up::Greeting(Box::new(greeting))]), ..Wire::default() });
        self.wires.len() - 1
    }

    /// Whether the side may put another frame on the wire.
    pub(super) fn has_room(&self, wire: usize, side: usize) -> bool {
        let wire = &self.wires[wire];
        let frames = if side == PRIMARY { wire.up.len() } else { wire.down.len() };
        frames < FRAMES_MAX && !wire.broken
    }

    pub(super) fn send_up(&mut self, wire: usize, frame: Up) {
        self.wires[wire].up.push_back(frame);
    }

    pub(super) fn send_down(&mut self, wire: usize, frame: Down) {
        self.wires[wire].down.push_back(frame);
    }

    /// What `side` may read now: `Ok` if there may be frames.
    fn gate<T>(&self, wire: usize, side: usize, now: Now, empty: bool) -> Option<Read<T>> {
        let wire = &self.wires[wire];
        if wire.closed[side] {
            return Some(Read::Broken);
        }
        if wire.broken {
            return empty.then_some(Read::Broken);
        }
        if self.blocked[side] || wire.stalled_until > now || wire.vanished[1 - side] {
            return Some(Read::Nothing);
        }
        if empty {
            return Some(if wire.closed[1 - side] { Read::End } else { Read::Nothing });
        }
        None
    }

    pub(super) fn read_up(&mut self, wire: usize, now: Now) -> Read<Up> {
        match self.gate(wire, PEER, now, self.wires[wire].up.is_empty()) {
            Some(read) => read,
            None => self.wires[wire].up.pop_front().map_or(Read::Nothing, Read::Frame),
        }
    }

    pub(super) fn read_down(&mut self, wire: usize, now: Now) -> Read<Down> {
        match self.gate(wire, PRIMARY, now, self.wires[wire].down.is_empty()) {
            Some(read) => read,
            None => self.wires[wire].down.pop_front().map_or(Read::Nothing, Read::Frame),
        }
    }

    /// Greetings that wait for the peer's listener.
    pub(super) fn greeting(&mut self, now: Now) -> Option<(usize, Box<Greeting>)> {
        let waits = |wire: &Wire| !wire.greeted && matches!(wire.up.front(), Some(Up::Greeting(_)));
        let wire = (0..self.wires.len())
            .filter(|wire| waits(&self.wires[*wire]))
            .find(|wire| self.gate::<()>(*wire, PEER, now, false).is_none())?;
        self.wires[wire].greeted = true;
        match self.wires[wire].up.pop_front() {
            Some(Up::Greeting(greeting)) => Some((wire, greeting)),
            _ => None,
        }
    }

    pub(super) fn close(&mut self, wire: usize, side: usize) {
        self.wires[wire].closed[side] = true;
    }

    /// The machine of `side` is gone; the other side hears nothing of it.
    pub(super) fn vanish(&mut self, wire: usize, side: usize) {
        self.wires[wire].vanished[side] = true;
    }

    /// The machine is there again: it answers what belongs to connections that it does not know with a reset.
    pub(super) fn back(&mut self, side: usize) {
        for wire in self.wires.iter_mut().filter(|wire| wire.vanished[side]) {
            wire.vanished[side] = false;
            wire.closed[side] = true;
        }
    }

    /// Reset on its way: some of what was under way arrives.
    pub(super) fn cut(&mut self, wire: usize, keep: usize) {
        let wire = &mut self.wires[wire];
        wire.broken = true;
        wire.up.truncate(keep);
        wire.down.truncate(keep / 2);
    }

    pub(super) fn stall(&mut self, wire: usize, until: Now) {
        self.wires[wire].stalled_until = until;
    }

    /// Wires that both sides still use.
    pub(super) fn standing(&self) -> Vec<usize> {
        let stands = |wire: &Wire| !wire.broken && wire.closed == [false; 2] && wire.vanished == [false; 2];
        (0..self.wires.len()).filter(|wire| stands(&self.wires[*wire])).collect()
    }

    pub(super) fn post(&mut self, to: usize, bytes: Bytes, at: Now) {
        self.order += 1;
        self.datagrams.push(Reverse((at, self.order, to, bytes)));
    }

    /// The next datagram whose time has come.
    pub(super) fn deliver(&mut self, now: Now) -> Option<(usize, Bytes)> {
        self.datagrams.peek().filter(|Reverse((at, ..))| *at <= now)?;
        let Reverse((_, _, to, bytes)) = self.datagrams.pop()?;
        (!self.blocked[to]).then_some((to, bytes))
    }
}
