//! Heartbeat receiver and heartbeat sender of the peer: one socket and two threads for all primaries.

use super::Shared;
use crate::supervise::heartbeat::{DATAGRAM_BYTES, Datagram, NotAuthentic, Side};
use crate::waker;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;

/// The receiver thread. Takes datagrams; gives them to the logic of their link; answers none; never blocks but for the
/// socket; ends when the server stops.
pub(super) fn receive(shared: &Arc<Shared>, socket: &UdpSocket) {
    // One byte more than a heartbeat, so that a longer datagram is told apart.
    let mut buffer = [0; DATAGRAM_BYTES + 1];
    while !shared.is_stopping() {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => judge(shared, &buffer[..length], from),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if let Err(error) = waker::wait(&shared.receiver_waker, Some(socket.as_fd()), None) {
                    log::error!("heartbeat receiver: {error}");
                    std::thread::sleep(shared.config.times.heartbeat_interval);
                }
            }
            // An ICMP error of an earlier send; nothing that a receiver could act on.
            Err(error) => log::debug!("heartbeat receiver: {error}"),
        }
    }
}

fn judge(shared: &Arc<Shared>, bytes: &[u8], from: SocketAddr) {
    match Datagram::open(bytes, &shared.key) {
        Err(NotAuthentic) => shared.refused.count(
            &shared.refused.datagrams_not_authentic,
            format_args!("datagram of {} bytes from {from}: not authentic", bytes.len()),
        ),
        Ok(datagram) if datagram.side != Side::Local => {
            shared
                .refused
                .count(&shared.refused.datagrams_replayed, format_args!("reflected heartbeat from {from}"));
        }
        Ok(datagram) => shared.primaries.on_datagram(shared, &datagram, from),
    }
}

/// The sender thread, by its own timer. Marks elements whose timestamp is too old (their sockets are shut down), sends a
/// heartbeat with the marks to each primary; ends when the server stops.
pub(super) fn send(shared: &Arc<Shared>, socket: &UdpSocket) {
    let mut out = Vec::new();
    let mut unsent = false;
    while !shared.is_stopping() {
        let now = shared.clock.now();
        let due = shared.primaries.on_tick(shared, now, &mut out);
        for (to, bytes) in out.drain(..) {
            match socket.send_to(&bytes, to) {
                Ok(_) => unsent = false,
                Err(error) => {
                    if !std::mem::replace(&mut unsent, true) {
                        log::warn!("heartbeat to {to}: {error}");
                    }
                }
            }
        }
        let wait = due.since(shared.clock.now()).min(shared.config.times.heartbeat_interval);
        if let Err(error) = waker::wait(&shared.sender_waker, None, Some(wait)) {
            log::error!("heartbeat sender: {error}");
            std::thread::sleep(shared.config.times.heartbeat_interval);
        }
    }
}
