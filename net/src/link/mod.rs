//! The primary's side of the link.

use crate::config::{Security, Times};
use crate::status::LinkStatus;
use crate::store::LunHello;
use mirrorfs_journal::MirrorLog;
use std::sync::Arc;

/// Settings of a link.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// `HOST:PORT`, resolved again at each connect.
    pub peer: String,
    /// n, 1 to 64.
    pub workers: u16,
    /// This node's name.
    pub node: String,
    /// Protection.
    pub security: Security,
    /// Times.
    pub times: Times,
    /// The mirrored LUNs; position = `LunId`.
    pub luns: Vec<LunHello>,
}

/// A running link: one supervisor, n workers, a heartbeat sender and a heartbeat receiver, a dispatcher.
pub struct Link {
    _private: (),
}

#[allow(unused_variables, clippy::unimplemented, clippy::missing_errors_doc)]
impl Link {
    /// Starts the threads; returns at once, whether or not the peer is there.
    pub fn start(config: LinkConfig, log: Arc<MirrorLog>) -> std::io::Result<Self> {
        unimplemented!()
    }
    /// For `status`.
    pub fn status(&self) -> LinkStatus {
        unimplemented!()
    }
    /// Ends the session with a goodbye and joins all threads. The log keeps what was not durable.
    pub fn stop(self) {
        unimplemented!()
    }
}
