//! The listener thread, and what happens to a connection until it has greeted.

use super::Shared;
use super::connection::send_welcome;
use crate::connection::Accepted;
use crate::transport::{self, TransportOptions};
use crate::waker;
use crate::wire::codec::{self, WireError};
use crate::wire::{Greeting, PROTOCOL_VERSION, Welcome};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// Time that a connection has for handshake and greeting.
fn half_open_timeout(shared: &Shared) -> Duration {
    shared.config.times.heartbeat_timeout.clamp(Duration::from_millis(100), Duration::from_secs(5))
}

/// The listener thread. Takes from the TCP socket; gives each connection to a handshake thread; never blocks on one;
/// ends when the server stops.
pub(super) fn run(shared: &Arc<Shared>, listener: &TcpListener) {
    let timeout = half_open_timeout(shared);
    while !shared.is_stopping() {
        match waker::wait(&shared.listener_waker, Some(listener.as_fd()), Some(timeout / 4)) {
            Ok(ready) if ready.readable => accept(shared, listener),
            Ok(_) => {}
            Err(error) => {
                log::error!("listener: {error}");
                std::thread::sleep(timeout / 4);
            }
        }
        shared.half_open.shut_overdue(timeout);
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    let (stream, from) = match listener.accept() {
        Ok(accepted) => accepted,
        Err(error) => {
            // Out of descriptors or memory: the connection stays in the backlog; don't spin on it.
            if error.kind() != io::ErrorKind::WouldBlock && error.kind() != io::ErrorKind::ConnectionAborted {
                shared.refused.count(&shared.refused.handshakes_failed, format_args!("accept: {error}"));
                std::thread::sleep(Duration::from_millis(10));
            }
            return;
        }
    };
    let started = stream.set_nonblocking(false).and_then(|()| shared.half_open.enter(&stream)).and_then(
        |(place, evicted)| {
            if evicted {
                shared
                    .refused
                    .count(&shared.refused.handshakes_failed, format_args!("too many silent connections"));
            }
            let thread = Arc::clone(shared);
            std::thread::Builder::new().name("handshake".to_owned()).spawn(move || {
                let greeted = greet(&thread, stream, from);
                drop(place);
                match greeted {
                    Ok(accepted) => admit(&thread, accepted),
                    Err(error) => {
                        thread.refused.count(
                            &thread.refused.handshakes_failed,
                            format_args!("connection from {from}: {error}"),
                        );
                    }
                }
            })
        },
    );
    match started {
        Ok(handle) => shared.keep(handle),
        Err(error) => {
            shared.refused.count(&shared.refused.handshakes_failed, format_args!("{from}: {error}"))
        }
    }
}

/// Handshake and greeting, within the bound that [`run`] enforces by shutting the socket down.
fn greet(shared: &Shared, stream: TcpStream, from: SocketAddr) -> Result<Accepted, String> {
    let options =
        TransportOptions { handshake_timeout: half_open_timeout(shared), ..TransportOptions::default() };
    let mut transport =
        transport::accept(stream, &shared.config.security, &options).map_err(|error| error.to_string())?;
    match codec::read_control::<Greeting>(transport.halves().1) {
        Ok(greeting) => Ok(Accepted { transport, greeting }),
        Err(error) => {
            if matches!(error, WireError::Version { .. }) {
                // It may not even hear this; the reason is logged here in any case.
                let _ = send_welcome(transport.halves().0, &Welcome::Version { version: PROTOCOL_VERSION });
            }
            log::debug!("greeting from {from}: {error}");
            Err(error.to_string())
        }
    }
}

/// Gives a greeted connection to its primary's session, or answers why not.
fn admit(shared: &Arc<Shared>, accepted: Accepted) {
    let mut offered = Some(accepted);
    let Err(reason) = shared.primaries.greet(shared, &mut offered) else { return };
    if let Some(mut refused) = offered {
        shared.refused.count(
            &shared.refused.handshakes_failed,
            format_args!(
                "greeting of connection {} from {}: {reason}",
                refused.greeting.index, refused.greeting.node
            ),
        );
        // If it is gone already there is nobody left to tell.
        let _ = send_welcome(refused.transport.halves().0, &Welcome::Invalid(reason));
    }
}
