//! Noise over TCP, or plain TCP where that is allowed.

use crate::config::Security;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// How connections are set up.
#[derive(Clone, Copy, Debug)]
pub struct TransportOptions {
    /// Bound on connect, and on the handshake as a whole.
    pub handshake_timeout: Duration,
    /// SO_SNDBUF and SO_RCVBUF in bytes; `None`: the system tunes them.
    pub socket_buffer_bytes: Option<usize>,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self { handshake_timeout: Duration::from_secs(5), socket_buffer_bytes: None }
    }
}

/// Why a connection could not be set up, or broke in its protection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Connect or handshake I/O.
    #[error("{action} {peer}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With whom.
        peer: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The handshake took too long.
    #[error("{peer} did not complete the handshake in time")]
    Timeout {
        /// With whom.
        peer: SocketAddr,
    },
    /// The pre-shared keys differ.
    #[error("the key of {peer} is another one; give both sides the same key file")]
    WrongKey {
        /// With whom.
        peer: SocketAddr,
    },
    /// They have a key, we have none.
    #[error("{peer} asks for a key and none was given here; use --key with its key file")]
    KeyNeeded {
        /// With whom.
        peer: SocketAddr,
    },
    /// We have a key, they have none.
    #[error("{peer} has no key; give it --key with our key file")]
    KeyMissing {
        /// With whom.
        peer: SocketAddr,
    },
    /// Not mirrorfs at the other end.
    #[error("{peer} does not speak the mirrorfs protocol")]
    NotMirrorfs {
        /// With whom.
        peer: SocketAddr,
    },
    /// Not one of ours: the library's words.
    #[error("noise: {0}")]
    Noise(#[from] snow::Error),
}

/// An authenticated connection, to be split.
pub struct Transport {
    sender: Sender,
    receiver: Receiver,
}

/// Connects and initiates (the primary's side). Nothing is sent on it yet but the handshake.
///
/// # Errors
/// See [`TransportError`].
pub fn connect(
    _addr: SocketAddr,
    _security: &Security,
    _options: &TransportOptions,
) -> Result<Transport, TransportError> {
    unimplemented!()
}

/// Runs the initiator's handshake on a connected stream.
///
/// # Errors
/// See [`TransportError`].
pub fn initiate(
    _stream: TcpStream,
    _security: &Security,
    _options: &TransportOptions,
) -> Result<Transport, TransportError> {
    unimplemented!()
}

/// Runs the responder's handshake on an accepted stream. Blocks up to the handshake timeout: never call it on the accepting thread.
///
/// # Errors
/// See [`TransportError`].
pub fn accept(
    _stream: TcpStream,
    _security: &Security,
    _options: &TransportOptions,
) -> Result<Transport, TransportError> {
    unimplemented!()
}

impl Transport {
    /// The two halves, for two threads.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
    /// Both halves, before the split (greeting).
    pub fn halves(&mut self) -> (&mut Sender, &mut Receiver) {
        (&mut self.sender, &mut self.receiver)
    }
    /// A handle that shuts the socket down from any thread.
    #[must_use]
    pub fn closer(&self) -> Closer {
        self.sender.closer()
    }
}

/// Shuts a connection down from any thread; whoever sends or receives on it gets an error or end of file at once.
#[derive(Clone, Debug)]
pub struct Closer {
    stream: Arc<TcpStream>,
}

impl Closer {
    /// Both directions; harmless when repeated.
    pub fn shutdown(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
    /// Our end.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.local_addr().ok()
    }
    /// The other end.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }
}

/// The sending half. Buffers small sends until `flush`. After an error it stays failed.
pub struct Sender {
    stream: Arc<TcpStream>,
}

impl Sender {
    /// Sends the parts one behind the other; may buffer. Large parts are not copied (plain) or encrypted from where they are.
    ///
    /// # Errors
    /// The connection broke or was shut down.
    pub fn send(&mut self, _parts: &[&[u8]]) -> io::Result<()> {
        unimplemented!()
    }
    /// Hands everything buffered to the system.
    ///
    /// # Errors
    /// As for `send`.
    pub fn flush(&mut self) -> io::Result<()> {
        unimplemented!()
    }
    /// Bytes given to `send`, before encryption.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        unimplemented!()
    }
    /// A handle that shuts the socket down.
    #[must_use]
    pub fn closer(&self) -> Closer {
        Closer { stream: Arc::clone(&self.stream) }
    }
}

/// Called after each successful read of the socket with the bytes read; from the receiving thread.
pub type OnReceived = Box<dyn Fn(usize) + Send>;

/// The receiving half; implements [`io::Read`] with an efficient `read_exact`.
pub struct Receiver {
    stream: Arc<TcpStream>,
}

impl Receiver {
    /// True if a read will find bytes (or the end, or an error); false when there were none for `timeout`. This is how a
    /// connection thread waits for a request with a bound; reads themselves have none, [`Closer::shutdown`] ends them.
    ///
    /// # Errors
    /// The system's.
    pub fn wait_readable(&mut self, _timeout: Duration) -> io::Result<bool> {
        let _ = &self.stream;
        unimplemented!()
    }
    /// Sets what is called whenever bytes came in, so that they can refresh the element's timestamp.
    pub fn set_on_received(&mut self, _hook: OnReceived) {
        unimplemented!()
    }
    /// Whether a read would be served from the buffer, without a system call.
    #[must_use]
    pub fn has_buffered(&self) -> bool {
        unimplemented!()
    }
}

impl io::Read for Receiver {
    fn read(&mut self, _into: &mut [u8]) -> io::Result<usize> {
        unimplemented!()
    }
}

impl std::os::fd::AsFd for Receiver {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
