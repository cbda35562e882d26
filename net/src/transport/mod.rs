//! Noise over TCP, or plain TCP where that is allowed.
//!
//! A connection is set up by [`connect`] or [`initiate`] at the primary and by [`accept`] at the peer, and then split into
//! a [`Sender`] and a [`Receiver`] for two threads, so that neither side ever blocks in a send without also reading.
//! The bytes are in `PROTOCOL.md`. Before the other side has proved that it has the key, a connection costs some
//! hundred bytes and one bounded wait; the big buffers are made afterwards.

mod handshake;
mod receiver;
mod sender;
mod spin;
#[cfg(test)]
mod tests;

pub use receiver::{Arrival, OnReceived, Receiver};
pub use sender::Sender;
pub(crate) use spin::Spin;

use crate::config::Security;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

/// Largest Noise message, and with its tag taken off the most plain bytes in one.
pub(crate) const NOISE_MESSAGE_MAX: usize = 65_535;
pub(crate) const NOISE_TAG: usize = 16;
pub(crate) const NOISE_PLAIN_MAX: usize = NOISE_MESSAGE_MAX - NOISE_TAG;

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

/// Why a connection could not be set up.
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
    /// The Noise library's words.
    #[error("noise: {0}")]
    Noise(#[from] snow::Error),
}

/// An authenticated connection, to be split.
pub struct Transport {
    sender: Sender,
    receiver: Receiver,
}

/// Connects and initiates (the primary's side).
///
/// # Errors
/// See [`TransportError`].
pub fn connect(
    addr: SocketAddr,
    security: &Security,
    options: &TransportOptions,
) -> Result<Transport, TransportError> {
    let stream = TcpStream::connect_timeout(&addr, options.handshake_timeout).map_err(|source| {
        if source.kind() == io::ErrorKind::TimedOut {
            TransportError::Timeout { peer: addr }
        } else {
            TransportError::Io { action: "connect to", peer: addr, source }
        }
    })?;
    initiate(stream, security, options)
}

/// Runs the initiator's handshake on a connected stream.
///
/// # Errors
/// See [`TransportError`].
pub fn initiate(
    stream: TcpStream,
    security: &Security,
    options: &TransportOptions,
) -> Result<Transport, TransportError> {
    set_up(stream, security, options, handshake::initiate)
}

/// Runs the responder's handshake on an accepted stream. Blocks up to the handshake timeout: never call it on the
/// accepting thread.
///
/// # Errors
/// See [`TransportError`].
pub fn accept(
    stream: TcpStream,
    security: &Security,
    options: &TransportOptions,
) -> Result<Transport, TransportError> {
    set_up(stream, security, options, handshake::respond)
}

/// What both halves share: the two cipher states of a finished handshake, or nothing.
pub(crate) type Cipher = Option<Arc<snow::StatelessTransportState>>;

fn set_up(
    stream: TcpStream,
    security: &Security,
    options: &TransportOptions,
    run: fn(&mut handshake::Bounded<'_>, &Security) -> Result<Cipher, TransportError>,
) -> Result<Transport, TransportError> {
    let peer = stream.peer_addr().map_err(|source| TransportError::Io {
        action: "find the other end, last known as",
        peer: SocketAddr::from(([0, 0, 0, 0], 0)),
        source,
    })?;
    let prepare = |stream: &TcpStream| -> io::Result<()> {
        // An accepted socket may have inherited either setting.
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        if let Some(bytes) = options.socket_buffer_bytes {
            set_buffer(stream, libc::SO_SNDBUF, bytes)?;
            set_buffer(stream, libc::SO_RCVBUF, bytes)?;
        }
        Ok(())
    };
    prepare(&stream).map_err(|source| TransportError::Io { action: "set up the socket to", peer, source })?;
    let cipher = run(&mut handshake::Bounded::new(&stream, peer, options.handshake_timeout), security)?;
    let clear = |stream: &TcpStream| -> io::Result<()> {
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)
    };
    clear(&stream).map_err(|source| TransportError::Io { action: "set up the socket to", peer, source })?;
    let stream = Arc::new(stream);
    Ok(Transport {
        sender: Sender::new(Arc::clone(&stream), cipher.clone()),
        receiver: Receiver::new(stream, cipher),
    })
}

fn set_buffer(stream: &TcpStream, option: libc::c_int, bytes: usize) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the descriptor is open, the pointer and length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(&value).cast(),
            std::mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
    /// Whether it is encrypted.
    #[must_use]
    pub fn encrypted(&self) -> bool {
        self.sender.encrypted()
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
        // Fails only on a socket that is not connected any more, which is what was wanted.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
    /// Our end.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.local_addr().ok()
    }
    /// The other end; `None` once it is gone.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }
}
