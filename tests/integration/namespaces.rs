//! Mount and peer in two network namespaces with a cable between them: real addresses, a key.

use crate::support::namespace::{PEER_V4, PEER_V6, Side, Wire, lacking_namespaces};
use crate::support::{Pair, Setup, assert_identical, e2fsck_clean, wait_until};
use crate::{Case, guarded};
use libtest_mimic::Trial;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

const CASES: &[Case] = &[
    ("a_link_over_ipv6_comes_back_after_its_interface", a_link_over_ipv6),
    ("a_peer_that_moves_is_found_by_its_name", a_peer_that_moves),
    ("a_primary_that_moves_is_heard_again", a_primary_that_moves),
];

/// Ignored where namespaces can't be made.
pub(crate) fn trials(lacking: bool) -> Vec<Trial> {
    let ignored = lacking || lacking_namespaces().is_some();
    let trial = |(name, run): &Case| {
        let run = *run;
        Trial::test(format!("namespaces::{name}"), move || guarded(run)).with_ignored_flag(ignored)
    };
    CASES.iter().map(trial).collect()
}

/// Writes a file and fsyncs it.
#[track_caller]
fn write(pair: &Pair, name: &str) {
    let path = pair.mnt().join(name);
    fs::write(&path, vec![7; 100_000]).expect("writing");
    fs::File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
}

fn peer_address(pair: &Pair) -> Option<IpAddr> {
    let status = pair.status();
    let addr: Option<SocketAddr> = status["mount"]["link"]["peer_addr"].as_str()?.parse().ok();
    addr.map(|addr| addr.ip())
}

#[track_caller]
fn equal_in_the_end(mut pair: Pair) {
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
    pair.stop_peer();
}

fn a_link_over_ipv6() {
    let mut pair = Pair::prepare(Setup::default());
    let wire = Wire::lay_to(&mut pair, "[::]");
    pair.setup.mount.push(format!("--peer=[{PEER_V6}]:{}", pair.port));
    pair.start_peer();
    pair.mount();
    pair.wait_for_verdict("in-sync");
    write(&pair, "before");
    pair.sync();
    let status = pair.status();
    assert_eq!(status["mount"]["link"]["encrypted"], true, "{status:#}");
    assert_eq!(peer_address(&pair), PEER_V6.parse().ok(), "{status:#}");
    for element in status["mount"]["link"]["elements"].as_array().expect("the array") {
        assert!(element["local"].as_str().is_some_and(|local| local.starts_with('[')), "{element}");
    }
    wire.down(Side::Primary);
    pair.wait_for_verdict("disconnected");
    write(&pair, "during");
    wire.heal();
    pair.wait_for_verdict("in-sync");
    equal_in_the_end(pair);
}

/// Has the mount's process see a hosts file of its own. All else that it mounts is seen outside: the pair's directory is
/// made a mount of its own, shared with the namespace.
struct HostsFile {
    path: std::path::PathBuf,
    dir: std::path::PathBuf,
}

impl HostsFile {
    fn lay(pair: &mut Pair) -> Self {
        let dir = pair.dir.path().to_path_buf();
        let path = dir.join("hosts");
        fs::write(&path, "").expect("a hosts file");
        let mount = |arguments: &[&str]| {
            let done = crate::support::machine::tool("mount").args(arguments).arg(&dir).status();
            assert!(done.is_ok_and(|status| status.success()), "mount {arguments:?}");
        };
        let text = dir.to_str().expect("a name");
        mount(&["--bind", text]);
        let hosts = Self { path, dir: dir.clone() };
        mount(&["--make-private"]);
        mount(&["--make-shared"]);
        let script = "mount --make-private / && { mount --make-private /etc/hosts 2>/dev/null; \
                      mount --bind \"$0\" /etc/hosts; } && exec \"$@\"";
        let words = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script];
        pair.mount_enter.extend(words.iter().map(ToString::to_string));
        pair.mount_enter.push(hosts.path.display().to_string());
        hosts
    }

    fn say(&self, address: &str) {
        fs::write(&self.path, format!("127.0.0.1 localhost\n{address} mirror.test\n"))
            .expect("the hosts file");
    }
}

impl Drop for HostsFile {
    fn drop(&mut self) {
        let _ = crate::support::machine::tool("umount").arg("-l").arg(&self.dir).status();
    }
}

/// Its old address is gone, its name leads to another, then to one of the other family; nobody restarts anything.
fn a_peer_that_moves() {
    let mut pair = Pair::prepare(Setup::default());
    let wire = Wire::lay_to(&mut pair, "[::]");
    let hosts = HostsFile::lay(&mut pair);
    hosts.say(PEER_V4);
    pair.setup.mount.push(format!("--peer=mirror.test:{}", pair.port));
    pair.start_peer();
    pair.mount();
    pair.wait_for_verdict("in-sync");
    assert_eq!(peer_address(&pair), PEER_V4.parse().ok());
    for (index, (old, new)) in
        [("10.77.0.2/24", "10.77.0.3/24"), ("10.77.0.3/24", "fd77::3/64")].into_iter().enumerate()
    {
        write(&pair, &format!("before-{index}"));
        wire.address(Side::Peer, "del", old);
        wire.address(Side::Peer, "add", new);
        pair.wait_for_verdict("disconnected");
        write(&pair, &format!("during-{index}"));
        let address = new.split('/').next().expect("an address");
        hosts.say(address);
        pair.wait_for_verdict("in-sync");
        assert_eq!(peer_address(&pair), address.parse().ok());
    }
    equal_in_the_end(pair);
    assert!(Path::new("/etc/hosts").exists());
}

/// The peer learns the primary's new address by its heartbeats.
fn a_primary_that_moves() {
    let mut pair = Pair::prepare(Setup::default());
    let wire = Wire::lay(&mut pair);
    pair.start_peer();
    pair.mount();
    pair.wait_for_verdict("in-sync");
    write(&pair, "before");
    wire.address(Side::Primary, "add", "10.77.0.9/24");
    wire.address(Side::Primary, "del", "10.77.0.1/24");
    // An address of the same net was promoted, or none is left: both are seen by what the peer hears.
    wire.address(Side::Primary, "replace", "10.77.0.9/24");
    write(&pair, "after");
    let moved = || {
        let status = pair.peer_status();
        let elements = status["peer"]["sessions"][0]["elements"].as_array().cloned().unwrap_or_default();
        !elements.is_empty()
            && elements.iter().all(|element| {
                element["state"] == "open"
                    && element["remote"].as_str().is_some_and(|remote| remote.starts_with("10.77.0.9:"))
            })
    };
    wait_until("connections from the new address", moved);
    pair.wait_for_verdict("in-sync");
    equal_in_the_end(pair);
}
