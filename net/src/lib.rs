//! The link between a primary and its mirror: wire protocol, secure transport, heartbeats, connection arrays,
//! worker threads and the peer server. Knows requests and records (crate `journal`) and sockets; no inode, no ext4.
//!
//! - [`wire`]: messages and their bytes (`PROTOCOL.md`).
//! - [`transport`]: Noise over TCP, or plain TCP where that is allowed.
//! - [`supervise`]: heartbeat, probation and link-state logic; takes bytes and `now`, returns actions; no socket, no clock.
//! - [`connection`]: the connection array: n elements of {socket, timestamp, state}.
//! - [`link`]: the primary's side: threads that carry the mirror log to the peer.
//! - [`peer`]: the mirror's side: the server that applies requests through [`store::MirrorStore`].

pub mod config;
pub mod connection;
pub mod link;
pub mod peer;
mod refused;
#[cfg(test)]
mod simulation;
pub mod status;
pub mod store;
pub mod supervise;
pub mod transport;
mod waker;
pub mod wire;

/// Random, never 0; for boot ids and seeds.
fn random_nonzero() -> std::io::Result<u64> {
    loop {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        let value = u64::from_le_bytes(bytes);
        if value != 0 {
            return Ok(value);
        }
    }
}
