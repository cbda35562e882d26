//! What has happened at the primary, as far as it says which contents of the mirror are right. No part of the protocol
//! reads this.

use super::types::{BLOCKS, Epoch, Image, Possible, START, Value};

/// The primary's image at a barrier (or after a crash of it), and what was written to it behind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Point {
    epoch: Epoch,
    image: Image,
    /// Contents written in the epoch that follows.
    after: Possible,
}

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct History {
    points: Vec<Point>,
    /// Last epoch that the primary has heard to be durable.
    pub(crate) heard: Epoch,
    /// Last epoch of which the primary's log has let something go.
    pub(crate) let_go: Epoch,
    /// The peer has refused a frame, and why.
    pub(crate) refused: Option<&'static str>,
    /// The log could not go on from what the peer's label said.
    pub(crate) whole: bool,
}

impl History {
    pub(crate) fn new() -> Self {
        let start = Point { epoch: START, image: [0; BLOCKS], after: [0; BLOCKS] };
        Self { points: vec![start], heard: 0, let_go: 0, refused: None, whole: false }
    }

    /// The primary's image was written to.
    pub(crate) fn wrote(&mut self, block: u8, value: Value) {
        if let Some(last) = self.points.last_mut() {
            last.after[usize::from(block)] |= 1 << value;
        }
    }

    /// The primary's image is this at the barrier of `epoch`, or is this after a crash.
    pub(crate) fn reached(&mut self, epoch: Epoch, image: Image) {
        self.points.push(Point { epoch, image, after: [0; BLOCKS] });
    }

    /// Whether this is a state that the primary was in, at the barrier of `from` or later: its image at a barrier, and
    /// any part of what was written between that and the next.
    pub(crate) fn holds(&self, image: &Image, from: Epoch) -> bool {
        self.points.iter().filter(|point| point.epoch >= from).any(|point| {
            (0..BLOCKS).all(|block| {
                image[block] == point.image[block] || point.after[block] & (1 << image[block]) != 0
            })
        })
    }

    /// Forgets what no later question can be about: `from` only rises.
    pub(crate) fn forget_before(&mut self, from: Epoch) {
        self.points.retain(|point| point.epoch >= from);
    }
}
