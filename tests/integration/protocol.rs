//! What the protocol promises beyond the claims, on real processes: bounds in time, settings, clocks, strangers.

use crate::Case;
use crate::support::machine::tool;
use crate::support::{FaultyLink, Pair, Setup, Way, assert_identical, e2fsck_clean, tree, wait_until};
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

pub(crate) const CASES: &[Case] = &[
    ("times_of_milliseconds_and_64_connections", times_of_milliseconds),
    ("the_policy_changes_while_writers_wait_and_force_ends_them", the_policy_changes),
    ("synchronous_writers_are_answered_within_a_second_of_the_outage", synchronous_writers_are_answered),
    ("each_change_of_the_link_is_shown_and_logged_with_its_reason", each_change_of_the_link),
    ("clocks_that_jump_interrupt_nothing", clocks_that_jump),
    ("strangers_are_counted_and_logged_at_a_limited_rate", strangers),
];

fn write(path: &Path) -> std::io::Result<()> {
    fs::write(path, vec![8; 10_000])?;
    fs::File::open(path)?.sync_all()
}

/// The same in a thread of its own, as it may have to wait.
fn writer(pair: &Pair, name: &str) -> JoinHandle<std::io::Result<()>> {
    let path = pair.mnt().join(name);
    std::thread::spawn(move || write(&path))
}

/// A pair with a link that can be hurt.
fn linked(arguments: &[&str]) -> (Pair, FaultyLink) {
    let mut pair = Pair::prepare(Setup::with(arguments));
    let link = FaultyLink::start(pair.port);
    pair.setup.mount.push(format!("--peer=127.0.0.1:{}", link.port));
    pair.start_peer();
    pair.mount();
    pair.wait_for_verdict("in-sync");
    (pair, link)
}

fn link_of(pair: &Pair) -> Value {
    pair.status()["mount"]["link"].clone()
}

#[track_caller]
fn equal_in_the_end(mut pair: Pair) {
    pair.wait_for_verdict("in-sync");
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
}

fn times_of_milliseconds() {
    let times = [
        "--heartbeat-interval=5ms",
        "--heartbeat-timeout=300ms",
        "--request-timeout=1ms",
        "--probation=1ms",
        "--stall-timeout=900ms",
    ];
    let mut pair = Pair::prepare(Setup::with(&times));
    pair.setup.mount.push("--workers=64".into());
    pair.peer_protection.extend(times.iter().map(ToString::to_string));
    pair.start_peer();
    pair.mount();
    pair.wait_for_verdict("in-sync");
    wait_until("64 open connections", || {
        let link = link_of(&pair);
        let elements = link["elements"].as_array().expect("the array");
        elements.len() == 64 && elements.iter().all(|element| element["state"] == "open")
    });
    tree::make(&pair.mnt().join("tree"), 200, 3);
    pair.kill_peer();
    pair.wait_for_verdict("disconnected");
    tree::make(&pair.mnt().join("more"), 50, 4);
    pair.start_peer();
    equal_in_the_end(pair);
}

/// Writers wait for the peer until the operator says otherwise; what they get is what the new policy says.
fn the_policy_changes() {
    let mut pair = Pair::start(Setup::with(&["--mode=sync", "--on-outage=block"]));
    pair.wait_for_verdict("in-sync");
    write(&pair.mnt().join("before")).expect("writing");
    pair.kill_peer();
    let mnt = pair.mnt().display().to_string();
    let policy = |policy: &str| pair.command_ok(&["on-outage", &mnt, policy]);
    let blocked = |name: &str| {
        let writer = writer(&pair, name);
        wait_until("the outage", || pair.verdict() == "disconnected");
        std::thread::sleep(Duration::from_millis(300));
        assert!(!writer.is_finished(), "{name} waits for the peer");
        writer
    };
    let queued = blocked("queued");
    policy("queue");
    queued.join().expect("the writer").expect("answered from the queue");
    policy("block");
    let failed = blocked("failed");
    policy("readonly");
    let error = failed.join().expect("the writer").expect_err("the policy fails it");
    assert!(matches!(error.raw_os_error(), Some(libc::EIO | libc::EROFS)), "{error}");
    let error = write(&pair.mnt().join("later")).expect_err("read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
    policy("block");
    let forced = blocked("forced");
    let begun = Instant::now();
    pair.umount_with(&["--force"]);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    let _ = forced.join().expect("the writer is let go");
    pair.start_peer();
    pair.mount();
    assert_eq!(fs::read(pair.mnt().join("queued")).expect("what was answered"), vec![8; 10_000]);
    equal_in_the_end(pair);
}

/// Within heartbeat timeout, one interval and one more second, whichever direction is cut.
fn synchronous_writers_are_answered() {
    let times = ["--mode=sync", "--heartbeat-timeout=1s", "--heartbeat-interval=100ms"];
    let bound = Duration::from_millis(1000 + 100 + 1000);
    let (pair, link) = linked(&times);
    for way in [None, Some(Way::ToMirror), Some(Way::ToPrimary)] {
        // A busy machine may make one of them late, not all.
        let took = (0..3).map(|round| {
            match way {
                None => link.unplug(),
                Some(way) => link.unplug_way(way),
            }
            let begun = Instant::now();
            write(&pair.mnt().join(format!("file-{way:?}-{round}"))).expect("answered from the queue");
            let took = begun.elapsed();
            link.heal();
            pair.wait_for_verdict("in-sync");
            took
        });
        let took: Vec<Duration> = took.take_while(|took| *took > bound).collect();
        assert!(took.len() < 3, "{way:?}: answered after {took:?}, the bound is {bound:?}");
    }
    equal_in_the_end(pair);
}

fn each_change_of_the_link() {
    let (pair, link) = linked(&["--probation=2s"]);
    write(&pair.mnt().join("before")).expect("writing");
    link.unplug();
    pair.wait_for_verdict("disconnected");
    let mnt = pair.mnt().display().to_string();
    assert!(pair.command_ok(&["status", &mnt]).contains("NOT MIRRORED NOW: "));
    // Before that the closed connections would tell it.
    wait_until("the peer to notice", || pair.peer_status()["peer"]["sessions"][0]["connected"] == false);
    link.heal();
    let mut shown = String::new();
    wait_until("the probation with its countdown", || {
        shown = pair.command_ok(&["status", &mnt]);
        shown
            .lines()
            .any(|line| line.contains("probation for ") && line.contains(" left: the peer's heartbeats"))
    });
    pair.wait_for_verdict("in-sync");
    let log = fs::read_to_string(pair.dir.path().join("mount.log")).expect("the log");
    for change in [
        "Down, was Live: the heartbeats were interrupted",
        "Probation, was Down: the peer's heartbeats are heard again",
        "Connecting, was Probation: the heartbeats are steady",
        "Replaying, was Connecting: connected",
        "Live, was Replaying: caught up",
    ] {
        assert!(log.lines().any(|line| line.contains(&format!(": {change}"))), "{change}:\n{log}");
    }
    let log = fs::read_to_string(pair.dir.path().join("peer.log")).expect("the log");
    // The heartbeat thread's reason, or that of a connection thread that looked first.
    let told = ["ends: interrupted: ", "its element is closed or too old"];
    let ended = log.lines().find(|line| line.contains("session of node-a ends: "));
    assert!(ended.is_some_and(|line| told.iter().any(|why| line.contains(why))), "{log}");
    equal_in_the_end(pair);
}

const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) {
        char text[32] = {0};
        int file = open(getenv("CLOCK_JUMP"), O_RDONLY);
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0) now->tv_sec += atol(text);
            close(file);
        }
    }
    return result;
}
"#;

/// Mount and peer see a calendar clock that can be set; what they tell time apart by is another one.
fn clocks_that_jump() {
    let mut pair = Pair::prepare(Setup::default());
    let (source, library) = (pair.dir.path().join("clock.c"), pair.dir.path().join("clock.so"));
    fs::write(&source, CLOCK).expect("writing");
    let built = tool("gcc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    assert!(built.expect("gcc runs").success());
    let clocks: [PathBuf; 2] = ["mount", "peer"].map(|name| pair.dir.path().join(format!("{name}.clock")));
    let set = |clock: &Path, seconds: i64| fs::write(clock, seconds.to_string()).expect("setting the clock");
    clocks.iter().for_each(|clock| set(clock, 0));
    let enter = |clock: &Path| {
        let jump = format!("CLOCK_JUMP={}", clock.display());
        vec!["env".into(), format!("LD_PRELOAD={}", library.display()), jump]
    };
    (pair.mount_enter, pair.peer_enter) = (enter(&clocks[0]), enter(&clocks[1]));
    pair.start_peer();
    pair.mount();
    pair.wait_for_verdict("in-sync");
    const DAY: i64 = 86_400;
    for (index, (mount, peer)) in [(DAY, 0), (-DAY, DAY), (400 * DAY, -DAY), (0, 0)].into_iter().enumerate() {
        set(&clocks[0], mount);
        set(&clocks[1], peer);
        let dir = pair.mnt().join(format!("dir-{index}"));
        fs::create_dir(&dir).expect("a directory");
        // The mount's process gives it its time.
        let made = fs::metadata(&dir).and_then(|data| data.modified()).expect("its time");
        let ahead = made.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs() as i64
            - SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs() as i64;
        assert!((ahead - mount).abs() < 3600, "the clock was set: {ahead} s ahead, {mount} wanted");
        write(&dir.join("file")).expect("writing");
        pair.sync();
        // Longer than the heartbeat timeout.
        std::thread::sleep(Duration::from_millis(700));
        let link = link_of(&pair);
        assert_eq!((&link["sessions"], &link["interruptions"]), (&1.into(), &0.into()), "{link:#}");
    }
    // In an outage and its probation too.
    pair.kill_peer();
    pair.wait_for_verdict("disconnected");
    set(&clocks[0], -DAY);
    write(&pair.mnt().join("during")).expect("writing");
    set(&clocks[1], DAY);
    pair.start_peer();
    let begun = Instant::now();
    pair.wait_for_verdict("in-sync");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(pair.status()["mount"]["log"]["oldest_age_ms"].as_u64().is_some_and(|age| age < 60_000));
    equal_in_the_end(pair);
}

fn strangers() {
    let mut pair = Pair::prepare(Setup::default());
    let key = pair.dir.path().join("key").display().to_string();
    pair.command_ok(&["keygen", &key]);
    pair.peer_protection = vec![format!("--key={key}")];
    pair.setup.mount.push(format!("--key={key}"));
    pair.start_peer();
    pair.mount();
    pair.wait_for_verdict("in-sync");
    let before = link_of(&pair);
    let begun = Instant::now();
    let peer = ("127.0.0.1", pair.port);
    let connections: Vec<TcpStream> = (0..600).filter_map(|_| TcpStream::connect(peer).ok()).collect();
    for (index, mut stream) in connections.iter().enumerate() {
        let junk: &[u8] = match index % 3 {
            0 => b"GET / HTTP/1.1\r\n\r\n",
            1 => &[0xff; 4096],
            _ => b"",
        };
        let _ = stream.write_all(junk);
    }
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for index in 0..2000_u32 {
        let junk = vec![index as u8; [0, 1, 136, 137, 1400][index as usize % 5]];
        socket.send_to(&junk, peer).expect("sending");
        if index % 50 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    write(&pair.mnt().join("meanwhile")).expect("writing");
    pair.sync();
    let mut refused = Value::Null;
    wait_until("all to be counted", || {
        refused = pair.peer_status()["peer"]["refused"].clone();
        refused["handshakes_failed"].as_u64().is_some_and(|count| count >= connections.len() as u64)
            // The socket's buffer may have been too short for some.
            && refused["datagrams_not_authentic"].as_u64().is_some_and(|count| count >= 1000)
    });
    let after = link_of(&pair);
    for name in ["session", "sessions", "interruptions"] {
        assert_eq!(before[name], after[name], "harmless to the running link: {after:#}");
    }
    let log = fs::read_to_string(pair.dir.path().join("peer.log")).expect("the log");
    let lines = log.lines().filter(|line| line.contains("refused: ")).count() as u64;
    let most = 2 + begun.elapsed().as_secs() / 10;
    assert!((1..=most).contains(&lines), "{lines} lines in {:?}:\n{log}", begun.elapsed());
    equal_in_the_end(pair);
}
