//! What `status` shows of a link and of a peer session.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// State of the link (design section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// No heartbeats from the peer, or the last session failed and the back-off runs.
    Down,
    /// Heartbeats are heard again; their steadiness is being watched.
    Probation,
    /// The n connections are being made and the greeting exchanged.
    Connecting,
    /// Connected; what was waiting when the session began is still being sent, or a resync runs.
    Replaying,
    /// Connected and caught up.
    Live,
}

/// State of one element of a connection array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementState {
    /// No connection.
    Idle,
    /// Socket parameter stored; connecting or waiting for the accepted socket.
    Ready,
    /// Connected.
    Open,
    /// Marked closed by a heartbeat sender thread (here or at the other side).
    Closed,
}

/// One element as shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElementStatus {
    /// Its index.
    pub index: u16,
    /// Our end of the connection.
    pub local: Option<SocketAddr>,
    /// The other end.
    pub remote: Option<SocketAddr>,
    /// Age of its timestamp; `None` if it never got one.
    pub timestamp_age_ms: Option<u64>,
    /// Its state.
    pub state: ElementState,
}

/// Counters of what was refused; all since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedCounters {
    /// Datagrams that were not authentic (forged, foreign key, empty, truncated).
    pub datagrams_not_authentic: u64,
    /// Authentic datagrams that were old or repeated, or reflected.
    pub datagrams_replayed: u64,
    /// Connections that failed the handshake or the greeting.
    pub handshakes_failed: u64,
    /// Frames with a bad length, checksum or type.
    pub frames_bad: u64,
}

/// The primary's side of the link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// State.
    pub state: LinkState,
    /// Why it was left for this state, in words for people.
    pub reason: String,
    /// How long it has been in it.
    pub since_ms: u64,
    /// Remaining probation or back-off.
    pub countdown_ms: Option<u64>,
    /// The peer as given, and as resolved.
    pub peer: String,
    /// Resolved address.
    pub peer_addr: Option<SocketAddr>,
    /// Id of the running session.
    pub session: Option<String>,
    /// Encrypted or not.
    pub encrypted: bool,
    /// Heartbeats received, sent.
    pub heartbeats_received: u64,
    /// Heartbeats sent.
    pub heartbeats_sent: u64,
    /// Round trip of the last echoed heartbeat.
    pub heartbeat_rtt_us: Option<u64>,
    /// Loss that the peer sees of our heartbeats, in percent.
    pub heartbeat_loss_percent: u8,
    /// Sessions made since the start, interruptions seen.
    pub sessions: u64,
    /// Interruptions.
    pub interruptions: u64,
    /// Answers "stored" and "not stored" to mirror storage requests.
    pub responses_stored: u64,
    /// Answers "not stored".
    pub responses_failed: u64,
    /// Bytes sent on data connections, before encryption.
    pub bytes_sent: u64,
    /// Each element of the local array.
    pub elements: Vec<ElementStatus>,
    /// What was refused.
    pub refused: RefusedCounters,
}

/// One primary that a peer serves, or has served since its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSessionStatus {
    /// Its node name.
    pub node: String,
    /// LUN names with their durable epoch and whether they are being resynced.
    pub luns: Vec<(String, mirrorfs_journal::Epoch, bool)>,
    /// Whether a session runs.
    pub connected: bool,
    /// Why the last one ended.
    pub reason: String,
    /// Id of the session.
    pub session: Option<String>,
    /// Requests applied since the start.
    pub applied_requests: u64,
    /// Their bytes.
    pub applied_bytes: u64,
    /// Heartbeats received from it.
    pub heartbeats_received: u64,
    /// Each element of the mirror's array.
    pub elements: Vec<ElementStatus>,
}

/// The peer server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its primaries.
    pub sessions: Vec<PeerSessionStatus>,
    /// What was refused.
    pub refused: RefusedCounters,
}
