//! Connections that have been accepted and have not greeted yet: a bounded number, each for a bounded time.
//!
//! When the table is full the oldest one is shut down. A real primary needs milliseconds, so that it gets through
//! while a thousand silent connections come and go.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Half-open connections at most; each has a thread.
const HALF_OPEN_MAX: usize = 64;

/// By ticket, oldest first, with the time of entry.
type Sockets = BTreeMap<u64, (TcpStream, Instant)>;

/// The table, with the last ticket. Its lock is a leaf.
#[derive(Default)]
pub(crate) struct HalfOpen {
    sockets: Mutex<(u64, Sockets)>,
}

/// One connection's place in the table; given back when dropped.
pub(crate) struct Place {
    table: Arc<HalfOpen>,
    ticket: u64,
}

impl HalfOpen {
    /// Enters a connection, shutting down the oldest if there are too many. The second value tells whether one was.
    ///
    /// # Errors
    /// When the socket can't be duplicated.
    pub(crate) fn enter(self: &Arc<Self>, stream: &TcpStream) -> std::io::Result<(Place, bool)> {
        let stream = stream.try_clone()?;
        let mut table = self.sockets.lock();
        let mut evicted = false;
        if table.1.len() >= HALF_OPEN_MAX
            && let Some((_, (oldest, _))) = table.1.pop_first()
        {
            // Its thread finds the socket at its end and leaves.
            let _ = oldest.shutdown(Shutdown::Both);
            evicted = true;
        }
        table.0 += 1;
        let ticket = table.0;
        table.1.insert(ticket, (stream, Instant::now()));
        Ok((Place { table: Arc::clone(self), ticket }, evicted))
    }

    /// Shuts those down that have been there for longer than `bound`, even if bytes trickle in.
    pub(crate) fn shut_overdue(&self, bound: Duration) {
        for (socket, since) in self.sockets.lock().1.values() {
            if since.elapsed() > bound {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// Shuts all of them down: the server stops.
    pub(crate) fn shut_all(&self) {
        for (socket, _) in self.sockets.lock().1.values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.sockets.lock().1.remove(&self.ticket);
    }
}
