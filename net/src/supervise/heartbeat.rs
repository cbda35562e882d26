//! Heartbeat datagrams, and which of them count.

use super::Now;
use crate::config::{Security, Times};
use crate::wire::SessionId;
use std::net::SocketAddr;
use std::time::Duration;

/// Bytes of a heartbeat datagram, always.
pub const DATAGRAM_BYTES: usize = 136;

/// Which way a heartbeat goes; a reflected one has the wrong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The primary's side: sends first heartbeats, local to mirror.
    Local,
    /// The peer: sends second heartbeats, mirror to local.
    Mirror,
}

/// Which link a heartbeat belongs to, among those that one peer port serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkId(pub u64);

impl LinkId {
    /// The link of the primary with this node name.
    #[must_use]
    pub fn of_node(_node: &str) -> Self {
        unimplemented!()
    }
}

/// Key of the datagrams' MAC, derived from the pair's key.
#[derive(Clone)]
pub struct MacKey([u8; 32]);

impl MacKey {
    /// The all-zero key stands in where there is none.
    #[must_use]
    pub fn derive(_security: &Security) -> Self {
        let _ = Self([0; 32]).0;
        unimplemented!()
    }
}

/// A decoded, authentic datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub side: Side,
    /// Number of elements of the sender's array (0: no session yet).
    pub count: u16,
    /// Link.
    pub link: LinkId,
    /// Random at each start of the sender.
    pub boot_id: u64,
    /// Rises with each datagram of the boot, starts at 1.
    pub counter: u64,
    /// The sender's session; zero: none.
    pub session: SessionId,
    /// Bit i: element i is closed in the sender's array.
    pub marks: u64,
    /// Boot id that the sender last heard; 0: none.
    pub echo_boot: u64,
    /// Counter that it last heard of that boot.
    pub echo_counter: u64,
    /// Sender's time, microseconds.
    pub sent_us: u64,
    /// `sent_us` of what is echoed.
    pub echo_us: u64,
    /// Time between hearing what is echoed and sending this, microseconds.
    pub held_us: u32,
    /// Rises by one with each tick of the sender, whatever number of datagrams it sends; for the loss count.
    pub beat: u32,
    /// Loss that the sender sees of the other's beats, percent.
    pub loss_percent: u8,
}

/// Why a datagram was not even authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAuthentic;

impl Datagram {
    /// Bytes with MAC.
    #[must_use]
    pub fn seal(&self, _key: &MacKey) -> [u8; DATAGRAM_BYTES] {
        unimplemented!()
    }
    /// Checks length, MAC and fields. The peer uses it to find the link before [`HeartbeatLogic::on_authentic`].
    ///
    /// # Errors
    /// Empty, truncated, too long, forged, of a foreign key or of an unknown format.
    pub fn open(_bytes: &[u8], _key: &MacKey) -> Result<Self, NotAuthentic> {
        unimplemented!()
    }
}

/// Marks of the other side's array, to be copied into ours by [`crate::connection::ConnectionArray::apply_marks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Session they belong to; marks of another one are ignored.
    pub session: SessionId,
    /// Bit i: element i.
    pub bits: u64,
}

/// What a datagram is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Authentic, newer, echo ours and fresh: update all timestamps, apply the marks.
    Accepted {
        /// The other side's marks.
        marks: Marks,
        /// The other side's boot id is not the one accepted before: a running session ends.
        new_boot: bool,
        /// The first one at all, or the first after a silence longer than the timeout.
        after_interruption: bool,
        /// The other side's number of elements.
        count: u16,
        /// The other side's boot id.
        boot_id: u64,
    },
    /// Authentic and newer, of the known boot, but the other side has not heard us lately: apply the marks only.
    MarksOnly(Marks),
    /// Authentic, not verified: will be echoed to its source at the next tick.
    Candidate,
    /// Counted and ignored.
    Ignored(Ignored),
}

/// Why a datagram was ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// Empty, truncated, forged.
    NotAuthentic,
    /// Our own direction.
    Reflected,
    /// Another link.
    OtherLink,
    /// Old or repeated.
    Replayed,
}

/// Settings of one side's heartbeats for one link.
#[derive(Clone)]
pub struct HeartbeatConfig {
    /// Which side we are.
    pub side: Side,
    /// The link.
    pub link: LinkId,
    /// MAC key.
    pub key: MacKey,
    /// Interval and timeout are used.
    pub times: Times,
    /// Our boot id: random, not 0, new at each start.
    pub boot_id: u64,
}

/// Counters for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatStats {
    /// Accepted.
    pub received: u64,
    /// Sent.
    pub sent: u64,
    /// Not authentic.
    pub not_authentic: u64,
    /// Replayed or reflected, or of another link.
    pub replayed: u64,
    /// Round trip of the last echo.
    pub rtt_us: Option<u64>,
    /// Loss of our beats, as the other side reports it.
    pub loss_percent: u8,
}

/// One side's heartbeats for one link. The sender thread calls `on_tick`, the receiver thread `on_datagram`, under one lock.
pub struct HeartbeatLogic {
    config: HeartbeatConfig,
}

impl HeartbeatLogic {
    /// Nothing heard, first tick due at once.
    #[must_use]
    pub fn new(config: HeartbeatConfig) -> Self {
        Self { config }
    }
    /// Local side: where to send to (resolved address of the peer). The mirror side learns it by itself.
    pub fn set_target(&mut self, _target: SocketAddr) {
        let _ = &self.config;
        unimplemented!()
    }
    /// The session that our heartbeats carry from now on, and its number of elements; zero and 0 for none.
    pub fn set_session(&mut self, _session: SessionId, _count: u16) {
        unimplemented!()
    }
    /// If a beat is due, puts its datagrams into `out` (`marks`: ours, [`crate::connection::ConnectionArray::marks`]).
    /// Returns when to call again.
    pub fn on_tick(
        &mut self,
        _now: Now,
        _marks: u64,
        _out: &mut Vec<(SocketAddr, [u8; DATAGRAM_BYTES])>,
    ) -> Now {
        unimplemented!()
    }
    /// Judges what the socket received. Never answers.
    pub fn on_datagram(&mut self, _bytes: &[u8], _from: SocketAddr, _now: Now) -> Verdict {
        unimplemented!()
    }
    /// As `on_datagram`, for one that [`Datagram::open`] has opened with the same key.
    pub fn on_authentic(&mut self, _datagram: &Datagram, _from: SocketAddr, _now: Now) -> Verdict {
        unimplemented!()
    }
    /// Whether one was accepted within the heartbeat timeout.
    #[must_use]
    pub fn alive(&self, _now: Now) -> bool {
        unimplemented!()
    }
    /// Time since the last accepted one.
    #[must_use]
    pub fn silence(&self, _now: Now) -> Option<Duration> {
        unimplemented!()
    }
    /// Verified address of the other side (mirror side), or the target (local side).
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        unimplemented!()
    }
    /// Boot id of the other side, once verified. A greeting must carry this one.
    #[must_use]
    pub fn remote_boot(&self) -> Option<u64> {
        unimplemented!()
    }
    /// Counters.
    #[must_use]
    pub fn stats(&self) -> HeartbeatStats {
        unimplemented!()
    }
}
