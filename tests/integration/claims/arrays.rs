//! Arrays of n elements, and the threads that use them.

use super::{Shared, elements, link, states};
use crate::support::processes::{connections, threads_named};
use crate::support::{FaultyLink, Pair, Setup, assert_identical, tree, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// What a pair with n connections showed.
struct Arrays {
    count: usize,
    peer_addr: SocketAddr,
    local: Value,
    peer: Value,
    workers: BTreeSet<String>,
    connection_threads: BTreeSet<String>,
    local_sockets: BTreeSet<(SocketAddr, SocketAddr)>,
    peer_sockets: BTreeSet<(SocketAddr, SocketAddr)>,
}

static ARRAYS: Shared<Vec<Arrays>> = Shared::new(|| [1, 4, 64].into_iter().map(watch).collect());

fn watch(count: usize) -> Arrays {
    // Many threads on few processors: a patient link.
    let patient = "--heartbeat-timeout=2s";
    let mut pair = Pair::prepare(Setup::with(&[&format!("--workers={count}"), patient, "--size=64M"]));
    pair.start_peer_with(&["--insecure", patient]);
    pair.mount();
    pair.wait_for_verdict("in-sync");
    tree::make(&pair.mnt().join("tree"), 40, 71);
    pair.sync();
    let names = |pid, prefix| threads_named(pid, prefix).into_keys().collect();
    let seen = Arrays {
        count,
        peer_addr: SocketAddr::from(([127, 0, 0, 1], pair.port)),
        local: link(&pair.status()).clone(),
        peer: pair.peer_status()["peer"]["sessions"][0].clone(),
        workers: names(pair.mount_pid(), "worker "),
        connection_threads: names(pair.peer_pid(), "connection "),
        local_sockets: connections(pair.mount_pid()),
        peer_sockets: connections(pair.peer_pid()),
    };
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    seen
}

/// Own end and other end of each element.
#[track_caller]
fn ends(side: &Value) -> Vec<(SocketAddr, SocketAddr)> {
    let end = |element: &Value, name: &str| -> SocketAddr {
        let text = element[name].as_str().unwrap_or_else(|| panic!("no {name} end in {element}"));
        text.parse().expect("an address")
    };
    elements(side).iter().map(|element| (end(element, "local"), end(element, "remote"))).collect()
}

/// `PREFIX 0` to `PREFIX n-1`.
fn numbered(prefix: &str, count: usize) -> BTreeSet<String> {
    (0..count).map(|index| format!("{prefix} {index}")).collect()
}

pub(super) fn claim_09() {
    for seen in ARRAYS.get() {
        assert_eq!(elements(&seen.local).len(), seen.count);
        assert_eq!(elements(&seen.peer).len(), seen.count);
        assert_eq!(seen.workers, numbered("worker", seen.count), "a worker thread for each");
        assert_eq!(
            seen.connection_threads,
            numbered("connection", seen.count),
            "a connection thread for each"
        );
        let to_peer = seen.local_sockets.iter().filter(|(_, remote)| *remote == seen.peer_addr).count();
        assert_eq!(to_peer, seen.count, "{:?}", seen.local_sockets);
    }
}

pub(super) fn claim_10() {
    for seen in ARRAYS.get() {
        for (side, sockets) in [(&seen.local, &seen.local_sockets), (&seen.peer, &seen.peer_sockets)] {
            for (element, ends) in elements(side).iter().zip(ends(side)) {
                assert!(sockets.contains(&ends), "{element} is no socket of the process: {sockets:?}");
                assert!(element["timestamp_age_ms"].as_u64().is_some_and(|age| age < 10_000), "{element}");
                assert_eq!(element["state"], "open", "{element}");
            }
        }
    }
}

pub(super) fn claim_11() {
    let mut pair = Pair::prepare(Setup::default());
    let faulty = FaultyLink::start(pair.port);
    faulty.set(|faults| faults.tcp.iter_mut().for_each(|tcp| tcp.stall = true));
    let parameter = format!("127.0.0.1:{}", faulty.port);
    pair.setup.mount = vec![format!("--peer={parameter}"), "--heartbeat-timeout=2s".into()];
    pair.start_peer_with(&["--insecure", "--heartbeat-timeout=2s"]);
    pair.mount();
    // Before there is a connection: the parameter lies in each element.
    wait_until("the elements to hold the parameter", || {
        let status = pair.status();
        states(link(&status)).iter().all(|state| state == "ready")
            && elements(link(&status)).iter().all(|element| element["remote"] == parameter.as_str())
    });
    faulty.heal();
    pair.wait_for_verdict("in-sync");
    let status = pair.status();
    for (own, remote) in ends(link(&status)) {
        assert_eq!(remote.to_string(), parameter, "connected to where the element said");
        assert!(connections(pair.mount_pid()).contains(&(own, remote)));
    }
    pair.umount();
}

pub(super) fn claim_33() {
    // One process with one array and its n threads on each side: no thread of the other side's kind in either.
    claim_09();
    for seen in ARRAYS.get() {
        let indexes = |side: &Value| -> Vec<u64> {
            elements(side).iter().filter_map(|element| element["index"].as_u64()).collect()
        };
        let wanted: Vec<u64> = (0..seen.count as u64).collect();
        assert_eq!(indexes(&seen.local), wanted);
        assert_eq!(indexes(&seen.peer), wanted);
    }
}

pub(super) fn claim_34() {
    for seen in ARRAYS.get() {
        let (local, peer) = (ends(&seen.local), ends(&seen.peer));
        for (index, (own, remote)) in local.into_iter().enumerate() {
            assert_eq!(peer[index], (remote, own), "element {index} of {}", seen.count);
        }
    }
}
