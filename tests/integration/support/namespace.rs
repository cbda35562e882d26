//! Two network namespaces with a cable between them, whose ends can be taken down.
//!
//! A namespace lives as long as the process that holds it, which ends when this one closes its standard input, however
//! that comes about: nothing is left behind.

use super::Pair;
use super::machine::{has_tool, tool};
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// Why tests with network namespaces can't run here; `None`: they can.
pub(crate) fn lacking_namespaces() -> Option<&'static str> {
    static LACKING: OnceLock<Option<String>> = OnceLock::new();
    LACKING.get_or_init(look_what_lacks).as_deref()
}

fn look_what_lacks() -> Option<String> {
    if let Some(lacking) = ["ip", "nsenter", "unshare"].into_iter().find(|name| !has_tool(name)) {
        return Some(format!("{lacking} is not installed"));
    }
    let made = tool("unshare")
        .args(["--net", "ip", "link", "add", "end0", "type", "veth", "peer", "name", "end1"])
        .stdin(Stdio::null())
        .output();
    match made {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "network namespaces can't be made here: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

/// A network namespace.
pub(crate) struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let mut child = tool("unshare")
            .args(["--net", "sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        // The first byte says that it is in its namespace.
        let mut byte = [0];
        let told = child.stdout.as_mut().map(|out| out.read_exact(&mut byte));
        assert!(matches!(told, Some(Ok(()))), "no network namespace");
        let namespace = Self(child);
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// Words before a command line that have it run in here. Mounts are the same as outside.
    pub(crate) fn enter(&self) -> Vec<String> {
        vec!["nsenter".into(), format!("--net=/proc/{}/ns/net", self.0.id()), "--".into()]
    }

    /// Runs ip(8) in here.
    #[track_caller]
    pub(crate) fn ip(&self, arguments: &[&str]) {
        let enter = self.enter();
        let mut command = tool(&enter[0]);
        run(command.args(&enter[1..]).arg("ip").args(arguments));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("the command runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One end of the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Primary = 0,
    Peer = 1,
}

/// Name of the interface in both namespaces.
const INTERFACE: &str = "cable";
/// Addresses in the first namespace.
const PRIMARY: [&str; 2] = ["10.77.0.1/24", "fd77::1/64"];
/// Addresses in the second one.
const PEER: [&str; 2] = ["10.77.0.2/24", "fd77::2/64"];

/// The peer's IPv4 address.
pub(crate) const PEER_V4: &str = "10.77.0.2";
/// The peer's IPv6 address.
pub(crate) const PEER_V6: &str = "fd77::2";

/// A cable between a primary and its peer, each in its own namespace, with IPv4 and IPv6 addresses.
pub(crate) struct Wire {
    ends: [Namespace; 2],
}

impl Wire {
    /// Has the pair's processes run at the two ends, with a key; the mount's peer is at [`PEER_V4`].
    #[track_caller]
    pub(crate) fn lay(pair: &mut Pair) -> Self {
        let wire = Self::lay_to(pair, "0.0.0.0");
        pair.setup.mount.push(format!("--peer={PEER_V4}:{}", pair.port));
        wire
    }

    /// As [`Self::lay`], with the address that the peer listens on, and no `--peer` yet.
    #[track_caller]
    pub(crate) fn lay_to(pair: &mut Pair, listen: &str) -> Self {
        let ends = [Namespace::new(), Namespace::new()];
        let other = ends[1].0.id().to_string();
        ends[0].ip(&["link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", &other]);
        let wire = Self { ends };
        wire.heal();
        let key = pair.dir.path().join("key").display().to_string();
        pair.command_ok(&["keygen", &key]);
        pair.mount_enter = wire.end(Side::Primary).enter();
        pair.peer_enter = wire.end(Side::Peer).enter();
        pair.peer_protection = vec![format!("--key={key}")];
        pair.setup.mount.push(format!("--key={key}"));
        pair.listen = listen.into();
        wire
    }

    pub(crate) fn end(&self, side: Side) -> &Namespace {
        &self.ends[side as usize]
    }

    /// Takes one end down.
    #[track_caller]
    pub(crate) fn down(&self, side: Side) {
        self.end(side).ip(&["link", "set", INTERFACE, "down"]);
    }

    /// Gives one end an address more, or takes one away.
    #[track_caller]
    pub(crate) fn address(&self, side: Side, change: &str, address: &str) {
        let mut arguments = vec!["addr", change, address, "dev", INTERFACE];
        // Usable at once, without asking whether another host has it.
        if address.contains(':') && change != "del" {
            arguments.push("nodad");
        }
        self.end(side).ip(&arguments);
    }

    /// Both ends are up and have their addresses; an interface that goes down loses those of IPv6.
    #[track_caller]
    pub(crate) fn heal(&self) {
        for (side, addresses) in [(Side::Primary, PRIMARY), (Side::Peer, PEER)] {
            self.end(side).ip(&["link", "set", INTERFACE, "up"]);
            for address in addresses {
                self.address(side, "replace", address);
            }
        }
    }
}
