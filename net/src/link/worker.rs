//! A worker thread and the reader of its responses.

use super::lane::Sent;
use super::rules;
use super::session::Session;
use crate::connection::SocketParameter;
use crate::store::StoreRefusal;
use crate::supervise::link_state::EndReason;
use crate::transport::{self, Sender, Transport, TransportError, TransportOptions};
use crate::wire::codec::{self, WireError};
use crate::wire::{Begin, Greeting, PROTOCOL_VERSION, Welcome};
use mirrorfs_journal::log::PeerLun;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Longest wait for a batch; only bounds how late a lost wake-up would be noticed.
const TAKE_WAIT: Duration = Duration::from_secs(1);

/// Worker `index`. Takes from its element where to connect to, and from its lane what to send; may block on both and on
/// the socket; ends with the session, or after a goodbye.
pub(super) fn run(session: &Arc<Session>, index: u16) {
    if let Err(reason) = carry(session, index) {
        session.fail(reason);
    }
    session.lanes[usize::from(index)].release();
    session.shared.array.release(index);
}

pub(super) fn broken(index: impl std::fmt::Display, error: &dyn std::fmt::Display) -> EndReason {
    EndReason::Connection(format!("connection {index}: {error}"))
}

fn carry(session: &Arc<Session>, index: u16) -> Result<(), EndReason> {
    let mut transport = match connect(session, index)? {
        Some(transport) => transport,
        None => return Ok(()),
    };
    let luns = greet(session, index, &mut transport)?;
    let closer = transport.closer();
    let (sender, mut receiver) = transport.split();
    let (array, clock) = (Arc::clone(&session.shared.array), session.shared.clock);
    receiver.set_on_received(Box::new(move |_| array.heard_one(index, clock.now())));
    let lane = &session.lanes[usize::from(index)];
    let sender_of_0 = if index == 0 {
        Some(sender)
    } else {
        // Before connection 0 can begin the session, from when on any thread may send on it.
        lane.open(sender);
        None
    };
    session.welcomed(luns);
    std::thread::scope(|scope| {
        let reading = std::thread::Builder::new()
            .name(format!("reader {index}"))
            .spawn_scoped(scope, || session.incoming[usize::from(index)].run(session, index, receiver))
            .map_err(|error| broken(index, &error));
        let sent = reading.and_then(|_| {
            if let Some(sender) = sender_of_0 {
                begin(session, sender)?;
            }
            send(session, index)
        });
        match &sent {
            // The reader stays until the peer has closed its end, or the session is ended from outside.
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(reason) => session.fail(reason.clone()),
        }
        session.wait_ended();
        closer.shutdown();
        sent.map(|_| ())
    })
}

/// Connects as the element says. `None` if the session is over.
fn connect(session: &Session, index: u16) -> Result<Option<Transport>, EndReason> {
    let shared = &session.shared;
    let times = &shared.config.times;
    // It was stored before this thread was made: if it is gone, the session is over.
    let (addr, index) = match shared.array.take(index, Duration::ZERO) {
        Some(SocketParameter::Connect { addr, index }) => (addr, index),
        Some(SocketParameter::Accepted(_)) => return Err(broken(index, &"its element holds no address")),
        None if session.is_over() => return Ok(None),
        None => return Err(broken(index, &"its element was closed")),
    };
    let options =
        TransportOptions { handshake_timeout: times.heartbeat_timeout, ..TransportOptions::default() };
    let transport =
        transport::connect(addr, &shared.config.security, &options).map_err(|error| match error {
            TransportError::WrongKey { .. }
            | TransportError::KeyNeeded { .. }
            | TransportError::KeyMissing { .. }
            | TransportError::NotMirrorfs { .. } => {
                shared.refused.handshakes_failed.fetch_add(1, Ordering::Relaxed);
                EndReason::Refused(error.to_string())
            }
            other => broken(index, &other),
        })?;
    if !shared.array.open(index, transport.closer(), shared.clock.now()) {
        return if session.is_over() {
            Ok(None)
        } else {
            Err(broken(index, &"its element was marked closed"))
        };
    }
    Ok(Some(transport))
}

/// The greeting; on connection 0 the answer says what the peer's labels hold.
fn greet(
    session: &Session,
    index: u16,
    transport: &mut Transport,
) -> Result<Option<Vec<PeerLun>>, EndReason> {
    let shared = &session.shared;
    let greeting = Greeting {
        version: PROTOCOL_VERSION,
        session: session.id,
        index,
        count: shared.array.count(),
        node: shared.config.node.clone(),
        boot_id: shared.boot_id,
        luns: if index > 0 { Vec::new() } else { rules::hello(&shared.config.luns, &shared.log) },
    };
    let (sender, receiver) = transport.halves();
    let frame = codec::encode_control(&greeting).map_err(|error| EndReason::Refused(error.to_string()))?;
    sender.send(&[&frame]).and_then(|()| sender.flush()).map_err(|error| broken(index, &error))?;
    // The peer answers only when an earlier session's last write has ended, which may take its disk a while.
    match receiver.wait_readable(shared.config.times.stall_timeout) {
        Ok(true) => {}
        Ok(false) => return Err(broken(index, &"the greeting was not answered in time")),
        Err(error) => return Err(broken(index, &error)),
    }
    let welcome: Welcome = codec::read_control(receiver).map_err(|error| match error {
        WireError::Version { .. } => EndReason::Refused(error.to_string()),
        error => broken(index, &format!("no welcome: {error}")),
    })?;
    match welcome {
        Welcome::Accepted { luns, .. } if index == 0 => {
            rules::check(&shared.config.luns, shared.log.status().open_epoch, luns).map(Some)
        }
        Welcome::Accepted { .. } => Ok(None),
        Welcome::Version { version } => Err(EndReason::Refused(format!(
            "the peer speaks protocol version {version}, this mirrorfs {PROTOCOL_VERSION}; run the same release on both sides"
        ))),
        Welcome::Invalid(reason) => Err(broken(index, &format!("the peer refuses: {reason}"))),
        // A lock goes when its holder does; all else takes an operator.
        Welcome::Refused(refusal @ StoreRefusal::InUse { .. }) => Err(broken(index, &refusal)),
        Welcome::Refused(refusal) => Err(EndReason::Refused(refusal.to_string())),
    }
}

/// Worker 0: begins the log's session when all n are welcomed, and says so to the peer.
fn begin(session: &Session, mut sender: Sender) -> Result<(), EndReason> {
    let Some(peer) = session.wait_welcomed() else { return Ok(()) };
    let log = &session.shared.log;
    let start = log
        .begin_session(&peer)
        .map_err(|error| EndReason::Connection(format!("the mirror log can't be sent: {error}")))?;
    session.log_began();
    for (lun, why) in &start.resync {
        log::info!("LUN {} is resynced: {why}", lun.0);
    }
    let gather = start.gather.iter().map(|lun| lun.0).collect();
    let frame =
        codec::encode_control(&Begin { gather }).map_err(|error| EndReason::Connection(error.to_string()))?;
    sender.send(&[&frame]).and_then(|()| sender.flush()).map_err(|error| broken(0, &error))?;
    session.lanes[0].open(sender);
    session.begin(rules::caught_up_at(&log.status()));
    Ok(())
}

/// Sends what the lane brings, one flush for each batch. True after a goodbye, false when the session is over.
fn send(session: &Session, index: u16) -> Result<bool, EndReason> {
    let lane = &session.lanes[usize::from(index)];
    while !session.is_over() {
        match lane.send_next(TAKE_WAIT).map_err(|error| broken(index, &error))? {
            Sent::Bytes(bytes) => session.shared.count_sent(bytes),
            Sent::Goodbye(bytes) => {
                session.shared.count_sent(bytes);
                return Ok(true);
            }
            Sent::Closed => break,
        }
    }
    Ok(false)
}
