//! What /proc says of a process: its threads and its TCP connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Threads of a process: id and name (the kernel keeps 15 bytes of it).
pub(crate) fn threads(pid: u32) -> BTreeMap<u32, String> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|task| {
            let id = task.file_name().to_str()?.parse().ok()?;
            Some((id, std::fs::read_to_string(task.path().join("comm")).ok()?.trim_end().to_string()))
        })
        .collect()
}

/// Ids of the threads whose names begin with this, by name.
pub(crate) fn threads_named(pid: u32, prefix: &str) -> BTreeMap<String, u32> {
    threads(pid)
        .into_iter()
        .filter(|(_, name)| name.starts_with(prefix))
        .map(|(id, name)| (name, id))
        .collect()
}

/// How often a thread has given up the processor by itself, which each wait does.
pub(crate) fn voluntary_switches(pid: u32, thread: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// Established TCP connections of a process: its own end and the other, IPv4.
pub(crate) fn connections(pid: u32) -> BTreeSet<(SocketAddr, SocketAddr)> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let inodes: BTreeSet<String> = links
        .filter_map(|link| std::fs::read_link(link.path()).ok())
        .filter_map(|to: PathBuf| Some(to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_string()))
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let established = fields.get(3) == Some(&"01");
            (established && inodes.contains(*fields.get(9)?))
                .then(|| Some((address(fields[1])?, address(fields[2])?)))?
        })
        .collect()
}

/// `0100007F:1CCA` of /proc/net/tcp, which prints the address as a number of this machine.
#[allow(clippy::host_endian_bytes, reason = "the kernel prints a host-endian number")]
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?;
    Some((IpAddr::from(Ipv4Addr::from(ip.to_ne_bytes())), u16::from_str_radix(port, 16).ok()?).into())
}
