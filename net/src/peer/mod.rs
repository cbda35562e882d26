//! The mirror's side of the link.

use crate::config::{Security, Times};
use crate::status::PeerStatus;
use crate::store::MirrorStore;
use std::net::SocketAddr;
use std::sync::Arc;

/// Settings of a peer server.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// TCP and UDP address.
    pub listen: SocketAddr,
    /// Protection.
    pub security: Security,
    /// Times.
    pub times: Times,
}

/// A running peer server: listener, heartbeat sender and receiver, n connection threads for each primary.
pub struct PeerServer {
    _private: (),
}

#[allow(unused_variables, clippy::unimplemented, clippy::missing_errors_doc)]
impl PeerServer {
    /// Binds TCP and UDP and starts the threads.
    pub fn start(config: PeerConfig, store: Arc<dyn MirrorStore>) -> std::io::Result<Self> {
        unimplemented!()
    }
    /// The bound address (of use when port 0 was asked for).
    pub fn listen_addr(&self) -> SocketAddr {
        unimplemented!()
    }
    /// For `status`.
    pub fn status(&self) -> PeerStatus {
        unimplemented!()
    }
    /// Ends all sessions and joins all threads; images are closed.
    pub fn stop(self) {
        unimplemented!()
    }
}
