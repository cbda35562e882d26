//! `mirrorfs status`.

use crate::control::{self, LunStatus, MountStatus, Reply, Request, StatusReply};
use crate::exit_code::{CliError, Context, ExitCode};
use crate::registry;
use crate::units::{show_ms, show_size};
use mirrorfs_journal::log::LogStatus;
use mirrorfs_net::status::{ElementStatus, LinkState, LinkStatus, PeerStatus};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time for a running process to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Shows one target or all known mounts.
pub(super) fn status(target: Option<&Path>, json: bool, watch: bool) -> Result<ExitCode, CliError> {
    loop {
        let dirs: Vec<PathBuf> = match target {
            Some(target) => vec![registry::resolve(target)?],
            None => registry::all()?.into_iter().map(|known| known.state_dir).collect(),
        };
        let replies = dirs.iter().map(|dir| status_of(dir)).collect::<Result<Vec<_>, _>>()?;
        let text = if json {
            let text = match (&replies[..], target) {
                ([single], Some(_)) => serde_json::to_string_pretty(single),
                (all, _) => serde_json::to_string_pretty(all),
            };
            text.context(|| "cannot describe the status".into())? + "\n"
        } else if replies.is_empty() {
            "No mounts are known. mirrorfs mount MOUNTPOINT --peer HOST:PORT starts one.\n".into()
        } else {
            replies.iter().map(show).collect::<Vec<_>>().join("\n")
        };
        if watch && std::io::stdout().is_terminal() {
            print!("\x1b[H\x1b[2J");
        }
        print!("{text}");
        if !watch {
            return Ok(ExitCode::Success);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Status from the running process, or from what lies in the directory.
pub(crate) fn status_of(dir: &Path) -> Result<StatusReply, CliError> {
    match control::ask(dir, &Request::Status, Some(ANSWER_TIMEOUT))? {
        Some(Reply::Status(status)) => Ok(*status),
        _ => crate::mount_process::stopped_status(dir),
    }
}

fn show(status: &StatusReply) -> String {
    let mut text = String::new();
    if let Some(mount) = &status.mount {
        show_mount(&mut text, status, mount);
    }
    if let Some(peer) = &status.peer {
        show_peer(&mut text, status, peer);
    }
    text
}

/// Writing to a `String` cannot fail.
macro_rules! line {
    ($text:expr, $label:expr, $($format:tt)*) => {{
        let _ = writeln!($text, "  {:<9} {}", $label, format_args!($($format)*));
    }};
}

fn show_mount(text: &mut String, status: &StatusReply, mount: &MountStatus) {
    let _ = writeln!(text, "{}: {}", mount.mountpoint.display(), status.summary);
    for lun in &mount.luns {
        show_lun(text, lun);
    }
    match status.pid {
        Some(pid) => {
            line!(text, "process", "{pid}, {} mode, state in {}", mount.mode, mount.state_dir.display())
        }
        None => line!(text, "process", "none; state in {}", mount.state_dir.display()),
    }
    if let Some(link) = &mount.link {
        show_link(text, link);
    }
    if let Some(log) = &mount.log {
        show_log(text, log, status.pid.is_some());
    }
    if let Some(link) = &mount.link {
        show_elements(text, &link.elements);
    }
}

fn show_lun(text: &mut String, lun: &LunStatus) {
    if let Some(problem) = &lun.problem {
        line!(text, "LUN", "{}: {}: {problem}", lun.name, lun.image.display());
        return;
    }
    let free = lun.free_bytes.map(|free| format!(", {} free", show_size(free))).unwrap_or_default();
    let local = if lun.mirrored { "" } else { ", not mirrored" };
    line!(
        text,
        "LUN",
        "{}: {}, {}{free}{local}, {}",
        lun.name,
        lun.image.display(),
        show_size(lun.size_bytes),
        lun.label
    );
    if let Some(why) = &lun.read_only {
        line!(text, "", "READ-ONLY: {why}");
    }
}

fn show_link(text: &mut String, link: &LinkStatus) {
    let countdown = link.countdown_ms.map(|ms| format!(", {} left", show_ms(ms))).unwrap_or_default();
    let state = match link.state {
        LinkState::Down => "down",
        LinkState::Probation => "probation",
        LinkState::Connecting => "connecting",
        LinkState::Replaying => "replaying",
        LinkState::Live => "live",
    };
    line!(text, "link", "{state} for {}{countdown}: {}", show_ms(link.since_ms), link.reason);
    let resolved = link.peer_addr.map(|addr| addr.to_string()).filter(|addr| *addr != link.peer);
    let resolved = resolved.map(|addr| format!(" ({addr})")).unwrap_or_default();
    let protection = if link.encrypted { "encrypted" } else { "not encrypted" };
    line!(
        text,
        "peer",
        "{}{resolved}, {protection}, heartbeats {} sent, {} heard{}",
        link.peer,
        link.heartbeats_sent,
        link.heartbeats_received,
        link.heartbeat_rtt_us.map(|us| format!(", round trip {us} µs")).unwrap_or_default()
    );
    line!(
        text,
        "answers",
        "{} stored, {} not stored; {} sessions, {} interruptions",
        link.responses_stored,
        link.responses_failed,
        link.sessions,
        link.interruptions
    );
}

/// `running`: whether this is what a process says, and not only what lies on disk.
fn show_log(text: &mut String, log: &LogStatus, running: bool) {
    line!(
        text,
        "lag",
        "{} requests, {}, oldest {}",
        log.waiting_requests,
        show_size(log.waiting_bytes),
        show_ms(log.oldest_age_ms)
    );
    if !running {
        let (requests, bytes) = (log.queued_requests, show_size(log.queue_disk_bytes));
        line!(text, "queue", "{requests} requests on disk ({bytes})");
        return;
    }
    line!(
        text,
        "queue",
        "{} requests on disk ({} of {}), {} in memory",
        log.queued_requests,
        show_size(log.queue_disk_bytes),
        show_size(log.queue_bytes_max),
        show_size(log.memory_bytes)
    );
    if let Some(why) = &log.queue_given_up {
        line!(text, "", "the queue was given up ({why}): changed regions are resynced when the peer is back");
    }
    if log.resync_regions_left > 0 {
        line!(text, "resync", "{} regions of 1 MiB left", log.resync_regions_left);
    }
    line!(text, "epoch", "{} open, {} durable on the mirror", log.open_epoch, log.durable_epoch);
}

fn show_elements(text: &mut String, elements: &[ElementStatus]) {
    for element in elements {
        let addr =
            |addr: Option<std::net::SocketAddr>| addr.map_or_else(|| "-".into(), |addr| addr.to_string());
        line!(
            text,
            if element.index == 0 { "array" } else { "" },
            "{:>2}  {:<21} → {:<21} {:<6} {}",
            element.index,
            addr(element.local),
            addr(element.remote),
            format!("{:?}", element.state).to_lowercase(),
            element
                .timestamp_age_ms
                .map_or_else(|| "never heard".into(), |age| format!("heard {} ago", show_ms(age)))
        );
    }
}

fn show_peer(text: &mut String, status: &StatusReply, peer: &PeerStatus) {
    let _ = writeln!(text, "peer at {}: {}", peer.listen, status.summary);
    for session in &peer.sessions {
        let state = if session.connected { "connected" } else { "not connected" };
        let reason = if session.reason.is_empty() { String::new() } else { format!(": {}", session.reason) };
        line!(text, "node", "{}: {state}{reason}", session.node);
        for (name, epoch, resyncing) in &session.luns {
            let state = if *resyncing { "resyncing" } else { "consistent" };
            line!(text, "", "LUN {name}: {state}, durable epoch {epoch}");
        }
        line!(
            text,
            "",
            "{} requests applied ({}), {} heartbeats heard",
            session.applied_requests,
            show_size(session.applied_bytes),
            session.heartbeats_received
        );
        show_elements(text, &session.elements);
    }
    let refused = &peer.refused;
    line!(
        text,
        "refused",
        "{} datagrams not authentic, {} old; {} handshakes, {} frames",
        refused.datagrams_not_authentic,
        refused.datagrams_replayed,
        refused.handshakes_failed,
        refused.frames_bad
    );
}

/// The verdict of a running mount, from its link and log: a word for programs, a sentence for people.
pub(crate) fn verdict(
    link: Option<&LinkStatus>,
    log: Option<&LogStatus>,
    read_only: Option<&str>,
) -> (String, String) {
    if let Some(why) = read_only {
        return ("read-only".into(), format!("read-only: {why}"));
    }
    let (Some(link), Some(log)) = (link, log) else {
        return ("local".into(), "local, nothing is mirrored".into());
    };
    let lag = if log.waiting_requests == 0 {
        String::from("nothing waits")
    } else {
        format!(
            "{} requests ({}) wait, the oldest for {}",
            log.waiting_requests,
            show_size(log.waiting_bytes),
            show_ms(log.oldest_age_ms)
        )
    };
    match link.state {
        LinkState::Live if log.waiting_requests == 0 && log.resync_regions_left == 0 => {
            ("in-sync".into(), "in sync".into())
        }
        LinkState::Live | LinkState::Replaying if log.resync_regions_left > 0 => {
            let left = show_size(log.resync_regions_left << 20);
            ("resyncing".into(), format!("resyncing, at most {left} left"))
        }
        LinkState::Live => ("in-sync".into(), format!("in sync; under way: {lag}")),
        LinkState::Replaying => ("catching-up".into(), format!("catching up: {lag}")),
        LinkState::Down | LinkState::Probation | LinkState::Connecting => {
            ("disconnected".into(), format!("NOT MIRRORED NOW: {}; {lag}", link.reason))
        }
    }
}

/// Name of a directory's mount for a status made without a process.
pub(crate) fn mountpoint_of(dir: &Path) -> PathBuf {
    let known = registry::all().unwrap_or_default();
    known
        .into_iter()
        .find(|known| known.state_dir == dir)
        .map_or_else(|| dir.to_path_buf(), |known| known.mountpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_without_link_is_local() {
        assert_eq!(verdict(None, None, None).0, "local");
        assert_eq!(verdict(None, None, Some("a failed write")).0, "read-only");
    }
}
