//! Heartbeat sender and heartbeat receiver of the local side.

use super::Shared;
use super::address::HeartbeatSocket;
use crate::supervise::heartbeat::{DATAGRAM_BYTES, Ignored, Marks, Verdict};
use crate::supervise::link_state::Event;
use crate::waker;
use std::io;
use std::os::fd::AsFd;

/// The receiver thread. Takes datagrams; updates every timestamp of the array, copies the peer's marks, tells the
/// supervisor; answers none; ends when the link stops.
pub(super) fn receive(shared: &Shared, socket: &HeartbeatSocket) {
    // One byte more than a heartbeat, so that a longer datagram is told apart.
    let mut buffer = [0; DATAGRAM_BYTES + 1];
    while !shared.is_stopping() {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let now = shared.clock.now();
                let verdict = shared.heartbeat.lock().on_datagram(&buffer[..length], from, now);
                match verdict {
                    Verdict::Accepted { marks, new_boot, .. } => {
                        shared.array.heard_all(now);
                        apply_marks(shared, marks);
                        *shared.probed.lock() = None;
                        shared.tell(Event::Heartbeat { new_boot });
                    }
                    Verdict::MarksOnly(marks) => apply_marks(shared, marks),
                    Verdict::Candidate => {}
                    Verdict::Ignored(why) => refuse(shared, why, from),
                }
            }
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

fn apply_marks(shared: &Shared, marks: Marks) {
    if shared.array.apply_marks(marks.session, marks.bits) != 0 {
        shared.tell(Event::ElementsClosed);
    }
}

/// The logic counts these; here is the line for the log.
fn refuse(shared: &Shared, why: Ignored, from: std::net::SocketAddr) {
    shared.refused.note(format_args!("datagram from {from}: {why:?}"));
}

/// The sender thread, by its own timer. Marks elements whose timestamp is too old (their sockets are shut down), sends a
/// heartbeat with the marks; ends when the link stops.
pub(super) fn send(shared: &Shared, socket: &HeartbeatSocket) {
    let mut out = Vec::new();
    let mut unsent = false;
    while !shared.is_stopping() {
        let now = shared.clock.now();
        if shared.array.mark_stale(now) != 0 {
            shared.tell(Event::ElementsClosed);
        }
        let due = shared.heartbeat.lock().on_tick(now, shared.array.marks(), &mut out);
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
