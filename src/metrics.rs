//! `--metrics ADDR`: what `status --json` tells in numbers, as Prometheus text over HTTP.
//!
//! One thread takes one connection after the other, each for a bounded time and a bounded request; only GET and HEAD of
//! /metrics are answered. Names are stable. An epoch is its 64-bit number (incarnation above 40 bits of counter), which
//! fits a float exactly for the first 8191 incarnations.

use crate::control::{Handler, LunStatus, MountStatus, Reply, Request, StatusReply};
use crate::exit_code::{CliError, Context, ExitCode};
use mirrorfs_journal::log::LogStatus;
use mirrorfs_net::status::{
    ElementState, ElementStatus, LinkState, LinkStatus, PeerSessionStatus, RefusedCounters,
};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest request head.
const REQUEST_BYTES_MAX: usize = 4 << 10;
/// Time that one client may take for its request, and again for the answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);
/// All that the verdict can be.
const VERDICTS: [&str; 7] =
    ["in-sync", "catching-up", "resyncing", "disconnected", "read-only", "local", "serving"];

/// A bound address, not yet served: a wrong one is told before anything else is begun.
pub(crate) struct Endpoint {
    listener: TcpListener,
}

impl Endpoint {
    /// Binds the address.
    ///
    /// # Errors
    /// When it can't be bound; the message names it.
    pub(crate) fn bind(addr: SocketAddr) -> Result<Self, CliError> {
        let listener = TcpListener::bind(addr).map_err(|error| {
            let busy = error.kind() == std::io::ErrorKind::AddrInUse;
            let code = if busy { ExitCode::Busy } else { ExitCode::Failure };
            CliError::new(code, format!("--metrics {addr}: cannot listen: {error}"))
        })?;
        Ok(Self { listener })
    }

    /// Answers from now on, until the result is dropped.
    ///
    /// # Errors
    /// When no thread can be made.
    pub(crate) fn serve(self, handler: Arc<dyn Handler>) -> Result<Server, CliError> {
        let addr = self.listener.local_addr().context(|| "metrics".into())?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || serve(&self.listener, handler.as_ref(), &seen))
            .context(|| "cannot start a thread for the metrics".into())?;
        log::info!("metrics at http://{addr}/metrics");
        Ok(Server { addr, stop, thread: Some(thread) })
    }
}

/// A serving metrics endpoint; ends when dropped.
pub(crate) struct Server {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let mut addr = self.addr;
        if addr.ip().is_unspecified() {
            addr.set_ip(match addr {
                SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
            });
        }
        // Wakes the accept. If it can't be reached the thread is left to the end of the process.
        let woken = TcpStream::connect_timeout(&addr, CLIENT_TIMEOUT).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

/// The thread. Takes connections; asks `handler` for the status; blocks on a client for twice [`CLIENT_TIMEOUT`] at most;
/// ends when told to.
fn serve(listener: &TcpListener, handler: &dyn Handler, stop: &AtomicBool) {
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        match stream {
            Ok(stream) => {
                if let Err(error) = answer(stream, handler) {
                    log::debug!("metrics: {error}");
                }
            }
            // Out of descriptors or memory: don't spin on it.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn answer(mut stream: TcpStream, handler: &dyn Handler) -> std::io::Result<()> {
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let head = read_head(&mut stream)?;
    let mut words = head.split(|byte| byte.is_ascii_whitespace());
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
    let (status, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => match handler.handle(Request::Status) {
            Ok(Reply::Status(status)) => ("200 OK", render(&status)),
            _ => ("503 Service Unavailable", "no status\n".into()),
        },
        (b"GET" | b"HEAD", _) => ("404 Not Found", "only /metrics is here\n".into()),
        _ => ("405 Method Not Allowed", "GET /metrics\n".into()),
    };
    let mut text = format!(
        "HTTP/1.0 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if method != b"HEAD" {
        text.push_str(&body);
    }
    stream.write_all(text.as_bytes())
}

/// The request up to its empty line, within the bounds; what does not come in time counts as an error.
fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") && !head.windows(2).any(|bytes| bytes == b"\n\n")
    {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let length = stream.read(&mut buffer)?;
        if length == 0 || head.len() + length > REQUEST_BYTES_MAX {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        head.extend_from_slice(&buffer[..length]);
    }
    Ok(head)
}

/// The text being made. All samples of one name must be together, under its HELP and TYPE.
#[derive(Default)]
struct Text(String);

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP mirrorfs_{name} {help}\n# TYPE mirrorfs_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        let _ = write!(self.0, "mirrorfs_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.sample(name, &[], value as f64);
    }

    /// One sample for each item; nothing without items.
    fn each<T>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        items: &[T],
        mut sample: impl FnMut(&mut Self, &str, &T),
    ) {
        if !items.is_empty() {
            self.head(name, kind, help);
            items.iter().for_each(|item| sample(self, name, item));
        }
    }

    /// One sample of 0 or 1 for each thing that can be.
    fn one_of(&mut self, name: &str, label: &str, help: &str, all: &[&str], is: &str) {
        self.each((name, "gauge", help), all, |text, name, one| {
            text.sample(name, &[(label, one)], f64::from(u8::from(*one == is)));
        });
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn yes(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// The whole text.
fn render(status: &StatusReply) -> String {
    let mut text = Text::default();
    text.head("build_info", "gauge", "Version of the program.");
    text.sample("build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    if let Some(pid) = status.pid {
        text.gauge("process_id", "Process that serves.", f64::from(pid));
    }
    text.one_of("verdict", "verdict", "1 for the verdict of mirrorfs status.", &VERDICTS, &status.verdict);
    if let Some(mount) = &status.mount {
        render_mount(&mut text, mount);
    }
    let refused = [
        ("primary", status.mount.as_ref().and_then(|mount| mount.link.as_ref()).map(|link| &link.refused)),
        ("peer", status.peer.as_ref().map(|peer| &peer.refused)),
    ];
    render_refused(&mut text, &refused);
    if let Some(peer) = &status.peer {
        render_sessions(&mut text, &peer.sessions);
    }
    text.0
}

fn render_mount(text: &mut Text, mount: &MountStatus) {
    let luns = &mount.luns;
    type Value = fn(&LunStatus) -> Option<f64>;
    let of_luns: [((&str, &str, &str), Value); 5] = [
        (("lun_mirrored", "gauge", "Whether the LUN is designated to be mirrored."), |lun| {
            Some(yes(lun.mirrored))
        }),
        (("lun_read_only", "gauge", "Whether the LUN has turned read-only."), |lun| {
            Some(yes(lun.read_only.is_some()))
        }),
        (("lun_size_bytes", "gauge", "Size of the LUN's file system."), |lun| Some(lun.size_bytes as f64)),
        (("lun_free_bytes", "gauge", "Bytes free for files."), |lun| lun.free_bytes.map(|free| free as f64)),
        (("lun_commits_total", "counter", "Transactions committed."), |lun| {
            lun.commits.map(|commits| commits as f64)
        }),
    ];
    for (head, value) in of_luns {
        let known: Vec<_> = luns.iter().filter_map(|lun| Some((&lun.name, value(lun)?))).collect();
        text.each(head, &known, |text, name, (lun, value)| text.sample(name, &[("lun", lun)], *value));
    }
    if let Some(link) = &mount.link {
        render_link(text, link);
    }
    if let Some(log) = &mount.log {
        render_log(text, log);
    }
}

fn render_link(text: &mut Text, link: &LinkStatus) {
    let state = match link.state {
        LinkState::Down => "down",
        LinkState::Probation => "probation",
        LinkState::Connecting => "connecting",
        LinkState::Replaying => "replaying",
        LinkState::Live => "live",
    };
    let all = ["down", "probation", "connecting", "replaying", "live"];
    text.one_of("link_state", "state", "1 for the state of the link to the peer.", &all, state);
    text.gauge("link_state_seconds", "Time in that state.", seconds(link.since_ms));
    if let Some(left) = link.countdown_ms {
        text.gauge("link_countdown_seconds", "Left of probation or back-off.", seconds(left));
    }
    text.gauge("link_encrypted", "Whether the link is encrypted.", yes(link.encrypted));
    text.counter(
        "link_heartbeats_received_total",
        "Heartbeats of the peer accepted.",
        link.heartbeats_received,
    );
    text.counter("link_heartbeats_sent_total", "Heartbeats sent to the peer.", link.heartbeats_sent);
    if let Some(us) = link.heartbeat_rtt_us {
        text.gauge("link_heartbeat_round_trip_seconds", "Of the last echoed heartbeat.", us as f64 / 1e6);
    }
    text.gauge(
        "link_heartbeat_loss_ratio",
        "Share of our heartbeats that the peer misses.",
        f64::from(link.heartbeat_loss_percent) / 100.0,
    );
    text.counter("link_sessions_total", "Sessions made.", link.sessions);
    text.counter("link_interruptions_total", "Interruptions of the heartbeats.", link.interruptions);
    let outcomes = [("stored", link.responses_stored), ("not_stored", link.responses_failed)];
    let head = ("link_responses_total", "counter", "Answers of the peer to mirror storage requests.");
    text.each(head, &outcomes, |text, name, (outcome, count)| {
        text.sample(name, &[("outcome", outcome)], *count as f64);
    });
    text.counter(
        "link_sent_bytes_total",
        "Bytes sent on data connections, before encryption.",
        link.bytes_sent,
    );
    let elements: Vec<_> = link.elements.iter().map(|element| (None, element)).collect();
    render_elements(text, "link", &elements);
}

/// Elements of one side's arrays, each with the node that it serves at a peer.
fn render_elements(text: &mut Text, side: &str, elements: &[(Option<&str>, &ElementStatus)]) {
    let sample = |text: &mut Text, name: &str, node: Option<&str>, element: &ElementStatus, value: f64| {
        let index = element.index.to_string();
        match node {
            Some(node) => text.sample(name, &[("node", node), ("connection", &index)], value),
            None => text.sample(name, &[("connection", &index)], value),
        }
    };
    let name = format!("{side}_connection_open");
    text.each(
        (&name, "gauge", "Whether the connection is open."),
        elements,
        |text, name, (node, element)| {
            sample(text, name, *node, element, yes(element.state == ElementState::Open));
        },
    );
    let heard: Vec<_> = elements
        .iter()
        .filter_map(|(node, element)| Some((*node, *element, seconds(element.timestamp_age_ms?))))
        .collect();
    let name = format!("{side}_connection_timestamp_age_seconds");
    let head = (name.as_str(), "gauge", "Time since the other side was heard.");
    text.each(head, &heard, |text, name, (node, element, age)| sample(text, name, *node, element, *age));
}

fn render_log(text: &mut Text, log: &LogStatus) {
    let gauges: [(&str, &str, u64); 14] = [
        ("log_waiting_requests", "Requests that are not durable on the mirror.", log.waiting_requests),
        ("log_waiting_bytes", "Their bytes.", log.waiting_bytes),
        ("log_in_flight_requests", "Of the waiting ones: sent.", log.in_flight_requests),
        ("log_memory_bytes", "Bytes of requests held in memory.", log.memory_bytes),
        ("queue_requests", "Requests in the queue on disk.", log.queued_requests),
        ("queue_bytes", "Their bytes.", log.queued_bytes),
        ("queue_disk_bytes", "Bytes that the queue's files use.", log.queue_disk_bytes),
        ("queue_disk_bytes_max", "Budget of the queue.", log.queue_bytes_max),
        (
            "queue_given_up",
            "Whether changed regions wait for a resync instead.",
            u64::from(log.queue_given_up.is_some()),
        ),
        ("log_open_epoch", "Number of the open epoch.", log.open_epoch.0),
        ("log_durable_epoch", "Last epoch that is durable on the mirror.", log.durable_epoch.0),
        ("regions_marked", "Regions of 1 MiB that may differ on the mirror.", log.marked_regions),
        ("resync_regions_left", "Regions of 1 MiB still to be resynced.", log.resync_regions_left),
        ("resync_running", "Whether a resync runs.", u64::from(log.resync_running)),
    ];
    for (name, help, value) in gauges {
        text.gauge(name, help, value as f64);
    }
    text.gauge("log_oldest_age_seconds", "Age of the oldest waiting request.", seconds(log.oldest_age_ms));
    text.counter("log_appended_requests_total", "Requests for the mirror.", log.appended_requests);
    text.counter("log_appended_bytes_total", "Their bytes.", log.appended_bytes);
    text.counter("log_retired_requests_total", "Requests that became durable there.", log.retired_requests);
}

fn render_refused(text: &mut Text, sides: &[(&str, Option<&RefusedCounters>)]) {
    let all: Vec<(&str, &str, u64)> = sides
        .iter()
        .filter_map(|(side, refused)| Some((*side, (*refused)?)))
        .flat_map(|(side, refused)| {
            [
                (side, "datagram_not_authentic", refused.datagrams_not_authentic),
                (side, "datagram_replayed", refused.datagrams_replayed),
                (side, "handshake", refused.handshakes_failed),
                (side, "frame", refused.frames_bad),
            ]
        })
        .collect();
    let head = ("refused_total", "counter", "What was refused, by the side that refused it.");
    text.each(head, &all, |text, name, (side, what, count)| {
        text.sample(name, &[("side", side), ("what", what)], *count as f64);
    });
}

fn render_sessions(text: &mut Text, sessions: &[PeerSessionStatus]) {
    type Value = fn(&PeerSessionStatus) -> f64;
    let of_nodes: [((&str, &str, &str), Value); 4] = [
        (("peer_connected", "gauge", "Whether a session of the node runs."), |one| yes(one.connected)),
        (("peer_applied_requests_total", "counter", "Requests of the node applied."), |one| {
            one.applied_requests as f64
        }),
        (("peer_applied_bytes_total", "counter", "Their bytes."), |one| one.applied_bytes as f64),
        (("peer_heartbeats_received_total", "counter", "Heartbeats of the node accepted."), |one| {
            one.heartbeats_received as f64
        }),
    ];
    for (head, value) in of_nodes {
        text.each(head, sessions, |text, name, one| text.sample(name, &[("node", &one.node)], value(one)));
    }
    let luns: Vec<_> =
        sessions.iter().flat_map(|one| one.luns.iter().map(|lun| (one.node.as_str(), lun))).collect();
    let head = ("peer_lun_durable_epoch", "gauge", "Last durable epoch of the mirror.");
    text.each(head, &luns, |text, name, (node, (lun, epoch, _))| {
        text.sample(name, &[("node", node), ("lun", lun)], epoch.0 as f64);
    });
    let head = ("peer_lun_resyncing", "gauge", "Whether the mirror is being resynced, and not consistent.");
    text.each(head, &luns, |text, name, (node, (lun, _, resyncing))| {
        text.sample(name, &[("node", node), ("lun", lun)], yes(*resyncing));
    });
    let elements: Vec<_> = sessions
        .iter()
        .flat_map(|one| one.elements.iter().map(|element| (Some(one.node.as_str()), element)))
        .collect();
    render_elements(text, "peer", &elements);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]
    use super::*;
    use mirrorfs_journal::Epoch;
    use serde_json::Value;

    /// A status in which every number is another one.
    fn status() -> StatusReply {
        let text = r#"{"verdict": "in-sync", "summary": "", "pid": 1, "mount": {
            "mountpoint": "/m", "state_dir": "/s", "mode": "async",
            "luns": [{"name": "a\"b\\c", "image": "/i", "mirrored": true, "read_only": null, "size_bytes": 2,
                "free_bytes": 3, "commits": 4, "label": "", "problem": null}],
            "link": {"state": "live", "reason": "", "since_ms": 5, "countdown_ms": 6, "peer": "", "peer_addr": null,
                "session": null, "encrypted": true, "heartbeats_received": 7, "heartbeats_sent": 8,
                "heartbeat_rtt_us": 9, "heartbeat_loss_percent": 10, "sessions": 11, "interruptions": 12,
                "responses_stored": 13, "responses_failed": 14, "bytes_sent": 15,
                "elements": [{"index": 16, "local": null, "remote": null, "timestamp_age_ms": 17, "state": "open"}],
                "refused": {"datagrams_not_authentic": 18, "datagrams_replayed": 19, "handshakes_failed": 20,
                    "frames_bad": 21}},
            "log": {"waiting_requests": 22, "waiting_bytes": 23, "oldest_age_ms": 24, "in_flight_requests": 25,
                "memory_bytes": 26, "queued_requests": 27, "queued_bytes": 28, "queue_disk_bytes": 29,
                "queue_bytes_max": 30, "queue_given_up": null, "open_epoch": 31, "durable_epoch": 32,
                "marked_regions": 33, "resync_regions_left": 34, "resync_running": false, "appended_requests": 35,
                "appended_bytes": 36, "retired_requests": 37}},
            "peer": {"listen": "127.0.0.1:1", "sessions": [{"node": "n", "luns": [["l", 38, true]], "connected": true,
                "reason": "", "session": null, "applied_requests": 39, "applied_bytes": 40, "heartbeats_received": 41,
                "elements": [{"index": 42, "local": null, "remote": null, "timestamp_age_ms": 43, "state": "open"}]}],
                "refused": {"datagrams_not_authentic": 44, "datagrams_replayed": 45, "handshakes_failed": 46,
                    "frames_bad": 47}}}"#;
        serde_json::from_str(text).unwrap()
    }

    /// Each number with the text that a sample of it has.
    fn numbers(key: &str, value: &Value, out: &mut Vec<(String, String)>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| numbers(key, value, out)),
            Value::Array(list) => list.iter().for_each(|value| numbers(key, value, out)),
            Value::Number(number) => {
                let number = number.as_f64().unwrap();
                let text = match key {
                    "index" => format!("connection=\"{number}\""),
                    _ if key.ends_with("_ms") => format!(" {}\n", number / 1e3),
                    _ if key.ends_with("_us") => format!(" {}\n", number / 1e6),
                    _ if key.ends_with("_percent") => format!(" {}\n", number / 100.0),
                    _ => format!(" {number}\n"),
                };
                out.push((key.into(), text));
            }
            _ => {}
        }
    }

    #[test]
    fn every_number_of_the_status_is_a_sample() {
        let status = status();
        let text = render(&status);
        let mut all = Vec::new();
        numbers("", &serde_json::to_value(&status).unwrap(), &mut all);
        assert!(all.len() >= 47, "{}", all.len());
        for (key, sample) in all {
            assert!(text.contains(&sample), "{key}: {sample:?} is not in\n{text}");
        }
    }

    #[test]
    fn each_name_has_its_help_and_type_once_before_its_samples() {
        let text = render(&status());
        let mut known = std::collections::BTreeSet::new();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(known.insert(name.to_string()), "{name} twice");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                current = name.into();
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(name, current);
                assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(text.contains(r#"lun="a\"b\\c""#), "{text}");
    }

    #[test]
    fn only_metrics_is_answered_and_slow_clients_are_let_go() {
        struct Fixed;
        impl Handler for Fixed {
            fn handle(&self, _: Request) -> Result<Reply, CliError> {
                let mut status = status();
                status.mount.as_mut().unwrap().log.as_mut().unwrap().open_epoch = Epoch(99);
                Ok(Reply::Status(Box::new(status)))
            }
        }
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let server = endpoint.serve(Arc::new(Fixed)).unwrap();
        let ask = |request: &str| {
            let mut stream = TcpStream::connect(server.addr).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            answer
        };
        let good = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(
            good.starts_with("HTTP/1.0 200 OK\r\n") && good.contains("mirrorfs_log_open_epoch 99\n"),
            "{good}"
        );
        assert!(ask("HEAD /metrics HTTP/1.0\r\n\r\n").ends_with("\r\n\r\n"));
        assert!(ask("GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 404"));
        assert!(ask("POST /metrics HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 405"));
        assert_eq!(ask(&"x".repeat(5000)), "");
        let silent = TcpStream::connect(server.addr).unwrap();
        assert!(ask("GET /metrics HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200"));
        drop(silent);
        drop(server);
    }
}
