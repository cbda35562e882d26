//! Stores that fail, heartbeats that stop, disks that hang.

use crate::proxy::Proxy;
use crate::support::*;
use mirrorfs_net::link::Link;
use mirrorfs_net::status::{ElementState, LinkState};
use mirrorfs_net::store::StoreRefusal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[test]
fn failed_store_is_answered_shown_and_sent_again() {
    for sync in [false, true] {
        let (primary, store) = (Primary::new(), Arc::new(Store::default()));
        let peer = peer(&store);
        let link = link(&primary, peer.listen_addr(), 4);
        wait_state(&link, LinkState::Live);
        primary.write_some(20);
        primary.sync();
        let disk = store.disk();
        if sync { &disk.fail_syncs } else { &disk.fail_writes }.store(1, Ordering::SeqCst);
        primary.write_some(20);
        primary.barrier();
        primary.write_some(20);
        let word = if sync { "Input/output error" } else { "No space left" };
        wait_for("the peer's error", || link.status().reason.contains(word));
        assert_eq!(link.status().responses_failed, 1);
        wait_state(&link, LinkState::Live);
        primary.sync();
        primary.assert_equal(&store);
        primary.judge_order(&store);
        link.stop();
        peer.stop();
    }
}

#[test]
fn refusal_of_the_store_is_shown_with_a_long_back_off() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    *store.refuse.lock().unwrap() = Some(StoreRefusal::SplitBrain { path: "host/data.img".into() });
    let peer = peer(&store);
    let link = link(&primary, peer.listen_addr(), 4);
    wait_for("the refusal", || link.status().reason.contains("split brain"));
    wait_for("the state", || link.status().state == LinkState::Down);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(store.opens.load(Ordering::SeqCst), 1, "{:?}", link.status());
    assert!(link.status().countdown_ms.is_some_and(|left| left > 1000), "{:?}", link.status());
    link.stop();
    peer.stop();
}

/// Cuts heartbeats while writes go on; `apply` says which way.
fn interruption(apply: impl Fn(&Proxy, bool)) {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer(&store);
    let proxy = Proxy::start(peer.listen_addr());
    let link = link(&primary, proxy.addr, 4);
    wait_state(&link, LinkState::Live);
    primary.write_some(50);
    primary.sync();
    let cut_at = Instant::now();
    apply(&proxy, true);
    // Not just that the peer, which may have noticed first, has closed its connections: until the primary notices as well it
    // connects again.
    wait_for("the interruption", || {
        let status = link.status();
        status.state == LinkState::Down && status.reason.contains("heartbeats were interrupted")
    });
    let noticed = cut_at.elapsed();
    let times = times();
    let bound = times.heartbeat_timeout + 2 * times.heartbeat_interval + Duration::from_millis(300);
    assert!(noticed < bound, "noticed after {noticed:?}");
    primary.write_some(50);
    primary.barrier();
    wait_for("the peer's array to be closed", || {
        let status = peer.status();
        !status.sessions[0].connected
            && status.sessions[0].elements.iter().all(|element| element.state != ElementState::Open)
    });
    let before = store.disk().writes.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(store.disk().writes.load(Ordering::SeqCst), before, "nothing crosses while it is down");
    apply(&proxy, false);
    wait_for("the probation", || link.status().state != LinkState::Down);
    wait_state(&link, LinkState::Live);
    primary.sync();
    primary.assert_equal(&store);
    primary.judge_order(&store);
    link.stop();
    peer.stop();
}

#[test]
fn interruption_in_both_directions_is_noticed_and_mended() {
    interruption(|proxy, cut| proxy.cut(cut));
}

#[test]
fn interruption_towards_the_primary_is_noticed_by_both() {
    interruption(|proxy, cut| proxy.state.cut_to_primary.store(cut, Ordering::Relaxed));
}

#[test]
fn interruption_towards_the_mirror_is_noticed_by_both() {
    interruption(|proxy, cut| proxy.state.cut_to_mirror.store(cut, Ordering::Relaxed));
}

#[test]
fn hung_disk_is_a_stall_and_the_next_session_waits_for_its_write() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer(&store);
    let mut config = link_config(peer.listen_addr(), 4);
    config.times.stall_timeout = Duration::from_millis(300);
    let link = Link::start(config, Arc::clone(&primary.log)).unwrap();
    wait_state(&link, LinkState::Live);
    primary.write_some(10);
    primary.sync();
    let opens = store.opens.load(Ordering::SeqCst);
    store.disk().hang.store(true, Ordering::SeqCst);
    primary.write_some(10);
    primary.barrier();
    wait_for("the stall", || {
        link.status().state == LinkState::Down && link.status().reason.contains("stalled")
    });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(
        store.opens.load(Ordering::SeqCst),
        opens,
        "no new session opens the image beside the hung write"
    );
    store.disk().hang.store(false, Ordering::SeqCst);
    wait_state(&link, LinkState::Live);
    primary.sync();
    primary.assert_equal(&store);
    link.stop();
    peer.stop();
}

#[test]
fn stop_is_quick_in_every_state() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer(&store);
    let addr = peer.listen_addr();
    let down = link(&primary, "127.0.0.1:1".parse().unwrap(), 4);
    let start = Instant::now();
    down.stop();
    assert!(start.elapsed() < Duration::from_secs(2));
    let live = link(&primary, addr, 4);
    wait_state(&live, LinkState::Live);
    primary.write_some(200);
    let start = Instant::now();
    live.stop();
    peer.stop();
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn heartbeats_do_not_excuse_a_stall() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer(&store);
    let proxy = Proxy::start(peer.listen_addr());
    let mut config = link_config(proxy.addr, 4);
    config.times.stall_timeout = Duration::from_millis(300);
    let link = Link::start(config, Arc::clone(&primary.log)).unwrap();
    wait_state(&link, LinkState::Live);
    proxy.state.hold_tcp.store(true, Ordering::Relaxed);
    primary.write_some(10);
    primary.barrier();
    wait_for("the stall", || link.status().reason.contains("stalled"));
    assert_eq!(link.status().interruptions, 0, "heartbeats are fine");
    proxy.state.hold_tcp.store(false, Ordering::Relaxed);
    wait_state(&link, LinkState::Live);
    primary.sync();
    primary.assert_equal(&store);
    link.stop();
    peer.stop();
}

#[test]
fn damaged_payload_is_answered_and_sent_again() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer(&store);
    let proxy = Proxy::start(peer.listen_addr());
    let link = link(&primary, proxy.addr, 2);
    wait_state(&link, LinkState::Live);
    proxy.state.damage.store(true, Ordering::Relaxed);
    primary.write(0, 512 << 10);
    primary.barrier();
    wait_for("the reason", || link.status().reason.contains("checksum"));
    wait_state(&link, LinkState::Live);
    primary.sync();
    primary.assert_equal(&store);
    assert!(peer.status().refused.frames_bad >= 1);
    link.stop();
    peer.stop();
}

#[test]
fn restarted_primary_goes_on() {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer(&store);
    for _ in 0..4 {
        let link = link(&primary, peer.listen_addr(), 3);
        primary.write_some(30);
        wait_state(&link, LinkState::Live);
        primary.sync();
        primary.write_some(30);
        primary.barrier();
        link.stop();
        primary.write_some(10);
    }
    let link = link(&primary, peer.listen_addr(), 5);
    wait_state(&link, LinkState::Live);
    primary.sync();
    primary.assert_equal(&store);
    assert_eq!(peer.status().sessions[0].elements.len(), 5);
    link.stop();
    peer.stop();
}

/// A connection thread whose socket the heartbeat thread had shut down was sometimes first to say why the session ended,
/// and took it for the primary's doing.
#[test]
fn a_silent_primary_is_named_as_the_reason() {
    for _ in 0..8 {
        let (primary, store) = (Primary::new(), Arc::new(Store::default()));
        let peer = peer(&store);
        let proxy = Proxy::start(peer.listen_addr());
        let mut config = link_config(proxy.addr, 16);
        // The primary itself waits for longer.
        config.times.heartbeat_timeout *= 5;
        let link = Link::start(config, Arc::clone(&primary.log)).unwrap();
        wait_state(&link, LinkState::Live);
        primary.write_some(5);
        primary.sync();
        proxy.state.cut_to_mirror.store(true, Ordering::Relaxed);
        wait_for("the end of the session", || !peer.status().sessions[0].connected);
        let reason = peer.status().sessions[0].reason.clone();
        assert!(
            reason.contains("no heartbeat from the primary in time") || reason.contains("too old"),
            "{reason}"
        );
        link.stop();
        peer.stop();
    }
}
