//! A stream of writes, undisturbed and disturbed: the mirror equals the primary, in order.

use crate::proxy::Proxy;
use crate::support::*;
use mirrorfs_journal::log::Waited;
use mirrorfs_net::config::{Key, Security};
use mirrorfs_net::link::{Link, LinkConfig};
use mirrorfs_net::status::{ElementState, LinkState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

fn stream(workers: u16) {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer(&store);
    let link = link(&primary, peer.listen_addr(), workers);
    wait_state(&link, LinkState::Live);
    for _ in 0..20 {
        primary.write_some(30);
        primary.barrier();
    }
    primary.sync();
    primary.assert_equal(&store);
    primary.judge_order(&store);
    let status = link.status();
    assert_eq!(status.elements.len(), usize::from(workers));
    assert!(status.elements.iter().all(|element| element.state == ElementState::Open));
    assert!(status.responses_stored >= 500 && status.responses_failed == 0, "{status:?}");
    assert!(status.bytes_sent > 1 << 20);
    let served = peer.status();
    assert_eq!(served.sessions.len(), 1);
    assert!(served.sessions[0].connected && served.sessions[0].applied_requests >= 600, "{served:?}");
    assert_eq!(served.sessions[0].elements.len(), usize::from(workers));
    link.stop();
    wait_for("the image to be closed", || !peer.status().sessions[0].connected);
    assert!(peer.status().sessions[0].reason.contains("goodbye"), "{:?}", peer.status());
    peer.stop();
}

#[test]
fn mirror_equals_primary_with_1_connection() {
    stream(1);
}

#[test]
fn mirror_equals_primary_with_4_connections() {
    stream(4);
}

#[test]
fn mirror_equals_primary_with_16_connections() {
    stream(16);
}

#[test]
fn mirror_equals_primary_with_64_connections() {
    stream(64);
}

#[test]
fn peer_that_was_away_gets_what_it_missed() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let first = peer(&store);
    let addr = first.listen_addr();
    let link = link(&primary, addr, 4);
    wait_state(&link, LinkState::Live);
    for round in 0..20 {
        primary.write_some(20);
        if round % 3 == 0 {
            primary.barrier();
        }
    }
    first.stop();
    for _ in 0..10 {
        primary.write_some(20);
        primary.barrier();
    }
    wait_state(&link, LinkState::Down);
    assert!(!link.status().reason.is_empty());
    let second = peer_at(addr, &store, &mirrorfs_net::config::Security::None);
    primary.write_some(20);
    wait_state(&link, LinkState::Live);
    primary.sync();
    primary.assert_equal(&store);
    primary.judge_order(&store);
    assert!(link.status().sessions >= 2);
    link.stop();
    second.stop();
}

#[test]
fn broken_connection_in_the_middle_of_an_epoch_resumes() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer(&store);
    let proxy = Proxy::start(peer.listen_addr());
    let link = link(&primary, proxy.addr, 4);
    wait_state(&link, LinkState::Live);
    for round in 0..6 {
        let sessions = link.status().sessions;
        primary.write_some(40);
        if round % 2 == 0 {
            primary.barrier();
        }
        primary.write_some(40);
        let before = store.disk().writes.load(Ordering::SeqCst);
        primary.write_some(5);
        wait_for("a write of the open epoch", || store.disk().writes.load(Ordering::SeqCst) > before);
        proxy.kill_one();
        primary.write_some(40);
        wait_for("another session", || link.status().sessions > sessions);
        wait_state(&link, LinkState::Live);
    }
    primary.sync();
    primary.assert_equal(&store);
    primary.judge_order(&store);
    link.stop();
    peer.stop();
}

#[test]
fn waiters_are_answered() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer(&store);
    let link = link(&primary, peer.listen_addr(), 4);
    wait_state(&link, LinkState::Live);
    let (send, receive) = mpsc::channel();
    for round in 0..20 {
        let send = send.clone();
        let sequence = primary.write(round * 4096, 4096);
        primary.log.when_applied(sequence, Box::new(move |waited| send.send(waited).unwrap()));
        // No barrier is needed for this answer.
        assert_eq!(receive.recv_timeout(Duration::from_secs(10)), Ok(Waited::Mirrored));
    }
    primary.sync();
    primary.assert_equal(&store);
    link.stop();
    peer.stop();
}

/// In synchronous mode a thread that stays awake takes the answers itself; when it leaves, or only stops to look, the reader does.
#[test]
fn answers_are_taken_by_whoever_looks_and_without_him_too() {
    for security in [Security::None, Security::Key(Key([3; 32]))] {
        let (primary, store) = (Primary::new(), Arc::new(Store::default()));
        let peer = peer_at("127.0.0.1:0".parse().unwrap(), &store, &security);
        let config = LinkConfig { security, ..link_config(peer.listen_addr(), 4) };
        let link = Link::start(config, Arc::clone(&primary.log)).unwrap();
        wait_state(&link, LinkState::Live);
        primary.log.set_eager(true);
        let (send, receive) = mpsc::channel();
        let written = |offset| {
            let send = send.clone();
            let sequence = primary.write(offset, 4096);
            let waiter = move |waited| send.send((waited, thread::current().id())).unwrap();
            primary.log.when_applied(sequence, Box::new(waiter));
        };
        let mut taken_here = 0;
        for round in 0..500 {
            written(round % 64 * 4096);
            let start = Instant::now();
            let (waited, by) = loop {
                primary.log.receive_answers();
                match receive.try_recv() {
                    Ok(answer) => break answer,
                    Err(_) => assert!(start.elapsed() < Duration::from_secs(10), "no answer"),
                }
            };
            assert_eq!(waited, Waited::Mirrored);
            taken_here += u32::from(by == thread::current().id());
            if round % 3 == 0 {
                primary.log.leave_answers();
            }
            if round % 2 == 0 {
                // Nobody looks, whether that was said or not.
                written(round % 64 * 4096);
                let (waited, by) = receive.recv_timeout(Duration::from_secs(10)).unwrap();
                assert!(waited == Waited::Mirrored && by != thread::current().id());
            }
            if round % 50 == 0 {
                primary.sync();
            }
        }
        assert!(taken_here > 0, "the reader took all of them");
        // The end of the session while somebody looks.
        let stopped = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stopped.load(Ordering::Relaxed) {
                    primary.log.receive_answers();
                }
            });
            primary.write_some(200);
            primary.sync();
            link.stop();
            stopped.store(true, Ordering::Relaxed);
        });
        primary.assert_equal(&store);
        primary.judge_order(&store);
        peer.stop();
    }
}

#[test]
fn network_is_busy_during_a_slow_sync_and_nothing_overtakes_it() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer(&store);
    let link = link(&primary, peer.listen_addr(), 4);
    wait_state(&link, LinkState::Live);
    store.disk().sync_ms.store(100, Ordering::SeqCst);
    for _ in 0..5 {
        for _ in 0..12 {
            let region = primary.random(SIZE / (1 << 20)) << 20;
            primary.write(region, 1 << 20);
        }
        primary.barrier();
    }
    primary.sync();
    primary.assert_equal(&store);
    primary.judge_order(&store);
    link.stop();
    peer.stop();
}

#[test]
fn what_was_written_before_the_first_connection_is_resynced() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    primary.write_some(50);
    primary.barrier();
    let peer = peer(&store);
    let link = link(&primary, peer.listen_addr(), 4);
    primary.write_some(50);
    wait_state(&link, LinkState::Live);
    primary.sync();
    primary.assert_equal(&store);
    let disk = store.disk();
    let label = disk.label.lock().unwrap().clone();
    assert!(!label.resyncing && !label.generations.is_empty());
    let applied = disk.applied.lock().unwrap();
    assert_eq!(applied[0], Applied::Resyncing(true), "the label says so before anything is applied");
    assert!(applied.contains(&Applied::Resyncing(false)));
    drop(applied);
    link.stop();
    peer.stop();
}
