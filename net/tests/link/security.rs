//! Wrong keys, junk, and greetings that can't be.

use crate::proxy::Proxy;
use crate::support::*;
use mirrorfs_journal::Epoch;
use mirrorfs_net::config::{Key, Security};
use mirrorfs_net::link::Link;
use mirrorfs_net::status::LinkState;
use mirrorfs_net::transport::{self, TransportOptions};
use mirrorfs_net::wire::codec::{encode_control, read_control};
use mirrorfs_net::wire::{Greeting, PROTOCOL_VERSION, SessionId, Welcome};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(crate) fn key(byte: u8) -> Security {
    Security::Key(Key([byte; 32]))
}

#[test]
fn encrypted_stream() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer_at("127.0.0.1:0".parse().unwrap(), &store, &key(1));
    let mut config = link_config(peer.listen_addr(), 4);
    config.security = key(1);
    let link = Link::start(config, Arc::clone(&primary.log)).unwrap();
    wait_state(&link, LinkState::Live);
    assert!(link.status().encrypted);
    for _ in 0..10 {
        primary.write_some(30);
        primary.barrier();
    }
    primary.sync();
    primary.assert_equal(&store);
    primary.judge_order(&store);
    link.stop();
    peer.stop();
}

#[test]
fn wrong_key_is_named_and_nothing_is_applied() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer_at("127.0.0.1:0".parse().unwrap(), &store, &key(1));
    let mut config = link_config(peer.listen_addr(), 4);
    config.security = key(2);
    let link = Link::start(config, Arc::clone(&primary.log)).unwrap();
    primary.write_some(10);
    primary.barrier();
    wait_for("the reason", || link.status().reason.contains("key"));
    assert_eq!(link.status().state, LinkState::Down);
    assert!(store.is_empty());
    let refused = peer.status().refused;
    assert!(refused.datagrams_not_authentic > 0 && refused.handshakes_failed > 0, "{refused:?}");
    link.stop();
    peer.stop();
}

#[test]
fn key_on_one_side_only_is_named_and_nothing_is_applied() {
    for (ours, theirs) in [(key(1), Security::None), (Security::None, key(1))] {
        let (primary, store) = (Primary::new(), Arc::new(Store::default()));
        let peer = peer_at("127.0.0.1:0".parse().unwrap(), &store, &theirs);
        let mut config = link_config(peer.listen_addr(), 4);
        config.security = ours;
        let link = Link::start(config, Arc::clone(&primary.log)).unwrap();
        primary.write_some(10);
        primary.barrier();
        wait_for("the reason", || link.status().reason.contains("key"));
        assert_eq!(link.status().state, LinkState::Down);
        assert!(store.is_empty());
        assert!(peer.status().refused.handshakes_failed > 0, "{:?}", peer.status());
        link.stop();
        peer.stop();
    }
}

#[test]
fn forged_and_replayed_datagrams_do_nothing() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer(&store);
    let proxy = Proxy::start(peer.listen_addr());
    let link = link(&primary, proxy.addr, 2);
    wait_state(&link, LinkState::Live);
    let session = link.status().session;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let old = proxy.state.seen.lock().unwrap()[0].clone();
    for to in [peer.listen_addr(), proxy.addr] {
        for round in 0..50_u8 {
            socket.send_to(&[], to).unwrap();
            socket.send_to(&[round; 136], to).unwrap();
            socket.send_to(&[round; 1200], to).unwrap();
        }
        if to == peer.listen_addr() {
            socket.send_to(&old, to).unwrap();
        }
    }
    wait_for("the counters", || {
        let refused = peer.status().refused;
        refused.datagrams_not_authentic >= 100 && refused.datagrams_replayed >= 1
    });
    primary.write_some(50);
    primary.sync();
    primary.assert_equal(&store);
    assert_eq!(link.status().session, session, "the same session goes on");
    link.stop();
    peer.stop();
}

pub(crate) fn greet(
    addr: SocketAddr,
    session: u128,
    index: u16,
    count: u16,
    node: &str,
) -> (transport::Transport, Option<Welcome>) {
    let mut transport = transport::connect(addr, &Security::None, &TransportOptions::default()).unwrap();
    let greeting = Greeting {
        version: PROTOCOL_VERSION,
        session: SessionId(session),
        index,
        count,
        node: node.into(),
        boot_id: 9,
        luns: if index == 0 { vec![Primary::hello()] } else { Vec::new() },
    };
    let (sender, receiver) = transport.halves();
    sender.send(&[&encode_control(&greeting).unwrap()]).unwrap();
    sender.flush().unwrap();
    let readable = receiver.wait_readable(Duration::from_millis(300)).unwrap();
    let welcome = readable.then(|| read_control(receiver).unwrap());
    (transport, welcome)
}

#[test]
fn connection_that_cannot_be_is_refused() {
    let store = Arc::new(Store::default());
    let peer = peer(&store);
    let addr = peer.listen_addr();
    let invalid = |welcome: Option<Welcome>| matches!(welcome, Some(Welcome::Invalid(_)));
    assert!(invalid(greet(addr, 1, 2, 2, "host").1), "i >= n");
    assert!(invalid(greet(addr, 1, 0, 0, "host").1), "n = 0");
    assert!(invalid(greet(addr, 1, 0, 65, "host").1), "n > 64");
    assert!(invalid(greet(addr, 1, 0, 2, "../host").1), "a path as node name");
    assert!(invalid(greet(addr, 1, 0, 2, "").1), "an empty node name");
    assert!(store.is_empty());
    // The heartbeats of this primary are not heard, so that its session does not live long; it need not.
    let (_one, first) = greet(addr, 2, 0, 2, "other");
    assert!(
        matches!(first, Some(Welcome::Accepted { ref luns, .. }) if luns[0].durable_epoch == Epoch(0)),
        "{first:?}"
    );
    assert!(invalid(greet(addr, 2, 0, 2, "other").1), "a second i");
    assert!(invalid(greet(addr, 2, 1, 3, "other").1), "another n");
    let refused = peer.status().refused;
    assert!(refused.handshakes_failed >= 7, "{refused:?}");
    peer.stop();
}

#[test]
fn silent_connections_are_harmless() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer(&store);
    let silent: Vec<TcpStream> =
        (0..300).filter_map(|_| TcpStream::connect(peer.listen_addr()).ok()).collect();
    assert!(silent.len() > 200);
    let link = link(&primary, peer.listen_addr(), 16);
    wait_state(&link, LinkState::Live);
    primary.write_some(50);
    primary.sync();
    primary.assert_equal(&store);
    wait_for("the silent ones to be thrown out", || {
        peer.status().refused.handshakes_failed + peer.status().refused.frames_bad >= silent.len() as u64
    });
    let opens = store.opens.load(Ordering::SeqCst);
    assert!(opens >= 1);
    link.stop();
    peer.stop();
}
