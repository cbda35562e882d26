#![doc = include_str!("../../PROTOCOL.md")]

pub mod codec;
#[cfg(test)]
mod tests;

use crate::store::{LunHello, StoreRefusal};
use mirrorfs_journal::log::PeerLun;
use mirrorfs_journal::{Epoch, MirrorRequest, Sequence};
use serde::{Deserialize, Serialize};

/// Protocol version of this build; the greeting's shape never changes.
pub const PROTOCOL_VERSION: u32 = 2;

/// Id of one session: random, carried by all its connections and heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct SessionId(pub u128);

/// First transport message of each connection, from the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The primary's protocol version.
    pub version: u32,
    /// The session this connection belongs to.
    pub session: SessionId,
    /// Index i of this connection.
    pub index: u16,
    /// Number n of connections.
    pub count: u16,
    /// Name of the primary's node, `[A-Za-z0-9._-]{1,64}`, not starting with a dot.
    pub node: String,
    /// Boot id of the primary's heartbeats, which ties them to this session.
    pub boot_id: u64,
    /// The LUNs; position = `LunId`. Present on connection 0 only.
    pub luns: Vec<LunHello>,
}

/// The peer's answer to a greeting (on connection 0 after the images are open; on the others once connection 0 was accepted).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// Go on. LUN states are given on connection 0 only.
    Accepted {
        /// The peer's protocol version.
        version: u32,
        /// What each LUN's label says.
        luns: Vec<PeerLun>,
    },
    /// The versions can't work together.
    Version {
        /// The peer's version.
        version: u32,
    },
    /// The greeting can't be honoured: i ≥ n, a second i, another n, bad node name.
    Invalid(String),
    /// A LUN was refused.
    Refused(StoreRefusal),
}

/// After the welcomes, on connection 0: how the session starts (from `SessionStart`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// LUNs (by id) whose first epoch is gathered in memory before it is applied.
    pub gather: Vec<u16>,
}

/// Result of one mirror storage request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Stored (applied; not yet durable).
    Stored,
    /// `Check`: the hash is the same.
    Equal,
    /// `Check`: it differs.
    Different,
    /// Not stored: nothing later will be applied, the session ends.
    Failed {
        /// The system's error number, 0 if there is none.
        errno: i32,
        /// In words.
        message: String,
    },
}

/// From the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// Answer to the request with this number.
    Request(Sequence, Outcome),
    /// All epochs up to this one are durable (sent once, on any connection: the one whose thread completed the barrier).
    Durable(Epoch),
}

/// Connections of a session as bits; bit i is connection i.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lanes(pub u64);

impl Lanes {
    /// Whether connection `index`, below 64, is among them.
    #[must_use]
    pub fn contains(self, index: usize) -> bool {
        self.0 & 1 << index != 0
    }

    /// Whether one of them is none of `count` connections.
    #[must_use]
    pub fn exceeds(self, count: usize) -> bool {
        self.0.checked_shr(count as u32).unwrap_or(0) != 0
    }

    /// These and connection `index`, below 64.
    #[must_use]
    pub fn with(self, index: usize) -> Self {
        Self(self.0 | 1 << index)
    }
}

/// From the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A record of the log that is no barrier.
    Request(std::sync::Arc<MirrorRequest>),
    /// A barrier, and the connections that it is told to: those that carried a part of its epoch.
    Barrier(std::sync::Arc<MirrorRequest>, Lanes),
    /// This connection was not told some barriers: nothing that follows may be applied before this one, the latest of them, is
    /// complete.
    After(Epoch),
    /// A clean end: the peer closes its images.
    Goodbye,
}
