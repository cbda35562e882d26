//! Finds out why no heartbeat comes: a handshake tells a wrong key from a peer that is not there.

use super::Shared;
use crate::transport::{self, TransportOptions};
use std::net::SocketAddr;

/// Connects, shakes hands and hangs up; what it finds is shown with the link's reason. Blocks up to the handshake's
/// bound, so it has a thread of its own.
pub(super) fn run(shared: &Shared, addr: SocketAddr) {
    let options = TransportOptions {
        handshake_timeout: shared.config.times.heartbeat_timeout,
        ..TransportOptions::default()
    };
    let found = match transport::connect(addr, &shared.config.security, &options) {
        Ok(_) => format!("{addr} answers on TCP; is UDP let through?"),
        Err(error) => error.to_string(),
    };
    let alive = shared.heartbeat.lock().alive(shared.clock.now());
    let mut probed = shared.probed.lock();
    if !alive && probed.as_ref() != Some(&found) {
        log::warn!("no heartbeat from {}: {found}", shared.config.peer);
        *probed = Some(found);
    }
}
