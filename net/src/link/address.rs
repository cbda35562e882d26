//! The peer's addresses, IPv4 and IPv6, and the heartbeat socket that reaches both.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

/// Resolves `HOST:PORT`; may block on the name service.
///
/// # Errors
/// When the name does not resolve, named in the message.
pub(super) fn resolve(peer: &str) -> Result<Vec<SocketAddr>, String> {
    let found: Vec<SocketAddr> =
        peer.to_socket_addrs().map_err(|error| format!("cannot resolve {peer}: {error}"))?.collect();
    if found.is_empty() {
        return Err(format!("cannot resolve {peer}: no address"));
    }
    Ok(found)
}

/// One unconnected UDP socket for both families where the system has IPv6, otherwise for IPv4.
pub(super) struct HeartbeatSocket {
    socket: UdpSocket,
    mapped: bool,
}

impl HeartbeatSocket {
    pub(super) fn bind() -> io::Result<Self> {
        let both = UdpSocket::bind((IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0));
        let (socket, mapped) = match both {
            Ok(socket) => (socket, true),
            Err(_) => (UdpSocket::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))?, false),
        };
        socket.set_nonblocking(true)?;
        Ok(Self { socket, mapped })
    }

    pub(super) fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        let to = match to {
            SocketAddr::V4(v4) if self.mapped => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
            other => other,
        };
        self.socket.send_to(bytes, to)
    }

    pub(super) fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (length, from) = self.socket.recv_from(buffer)?;
        let from = match from.ip().to_canonical() {
            IpAddr::V4(v4) => SocketAddr::from((v4, from.port())),
            IpAddr::V6(_) => from,
        };
        Ok((length, from))
    }
}

impl AsFd for HeartbeatSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
