//! What is refused, with a clear message, and loses nothing.

use crate::Case;
use crate::support::{Pair, Setup, assert_identical, wait_until};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    ("bad_arguments_are_named", bad_arguments),
    ("a_second_mount_of_one_image_is_refused_with_the_pid", a_second_mount),
    ("mount_points_must_be_empty_directories", mount_points),
    ("a_wrong_key_is_shown_and_applies_nothing", a_wrong_key),
    ("no_key_beyond_loopback", no_key_beyond_loopback),
    ("a_mirror_of_another_image_is_never_overwritten", a_mirror_of_another_image),
    ("a_peer_of_a_newer_version_is_named", a_newer_peer),
];

/// Arguments, exit code, and what standard error must contain.
fn bad_arguments() {
    let pair = Pair::prepare(Setup { peer: false, ..Setup::default() });
    let mnt = pair.mnt().display().to_string();
    let cases: [(&[&str], i32, &str); 12] = [
        (&["mount", &mnt], 2, "--peer"),
        (&["mount", &mnt, "--peer", "b:99999"], 2, "port"),
        (&["mount", &mnt, "--local", "--size", "10X"], 2, "size"),
        (&["mount", &mnt, "--local", "--lun", "../x"], 2, "--lun"),
        (&["mount", &mnt, "--peer", "127.0.0.1", "--workers", "65"], 2, "65"),
        (&["mount", &mnt, "--peer", "127.0.0.1", "--heartbeat-timeout", "100ms"], 2, "heartbeat"),
        (&["mount", &mnt, "--local", "-o", "colour=red"], 2, "colour"),
        (&["umount", "/nonexistent/mnt"], 3, "/nonexistent/mnt"),
        (&["status", "/nonexistent/mnt"], 3, "/nonexistent/mnt"),
        (&["journal", "show", "x.y"], 2, "INCARNATION"),
        (&["peer", "--listen", "nonsense", "--dir", "/tmp"], 2, "nonsense"),
        (&["frobnicate"], 2, "frobnicate"),
    ];
    for (arguments, code, text) in cases {
        let output = pair.command(arguments);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
        assert!(err.contains(text), "{arguments:?}: {err}");
    }
}

fn a_second_mount() {
    let mut pair = Pair::start(Setup::with(&["--local"]));
    let other = pair.dir.path().join("mnt2");
    fs::create_dir(&other).expect("a directory");
    let output = pair.command(&[
        "mount",
        &other.display().to_string(),
        "--local",
        &format!("--state-dir={}", pair.state().display()),
    ]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains(&pair.mount_pid().to_string()), "{text}");
    fs::write(pair.mnt().join("x"), b"the first goes on").expect("writing");
    pair.umount();
}

fn mount_points() {
    let pair = Pair::prepare(Setup { peer: false, ..Setup::with(&["--local"]) });
    let mount = || {
        let arguments = pair.mount_arguments();
        let output = pair.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    fs::write(pair.mnt().join("hidden"), b"x").expect("writing");
    assert!(mount().contains("not empty"));
    fs::remove_dir_all(pair.mnt()).expect("removing");
    assert!(mount().contains("mkdir"));
    fs::write(pair.mnt(), b"x").expect("writing");
    assert!(mount().contains("not a directory"));
}

fn a_wrong_key() {
    let mut pair = Pair::prepare(Setup::default());
    let keys: Vec<String> =
        ["one", "two"].iter().map(|name| pair.dir.path().join(name).display().to_string()).collect();
    for key in &keys {
        pair.command_ok(&["keygen", key]);
    }
    pair.start_peer_with(&[&format!("--key={}", keys[0])]);
    pair.setup.mount.push(format!("--key={}", keys[1]));
    pair.mount();
    fs::write(pair.mnt().join("file"), b"kept").expect("the primary works");
    fs::File::open(pair.mnt().join("file")).and_then(|file| file.sync_all()).expect("fsync");
    wait_until("the key in the reason", || {
        let status = pair.status();
        status["verdict"] == "disconnected"
            && status["mount"]["link"]["reason"].as_str().is_some_and(|reason| reason.contains("key"))
    });
    assert!(!pair.mirror().exists(), "nothing is applied");
    pair.umount();
    // With the right one all that waited goes over.
    pair.setup.mount = vec![format!("--key={}", keys[0])];
    pair.mount();
    pair.wait_for_verdict("in-sync");
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}

fn no_key_beyond_loopback() {
    let pair = Pair::prepare(Setup { peer: false, ..Setup::default() });
    let mnt = pair.mnt().display().to_string();
    for arguments in [
        vec!["mount", &mnt, "--peer", "192.0.2.1:7370"],
        vec!["peer", "--listen", "0.0.0.0:7370", "--dir", "/nonexistent"],
    ] {
        let mut command = crate::support::mirrorfs(pair.dir.path());
        let output = command.env("HOME", "/nonexistent").args(&arguments).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if std::path::Path::new("/etc/mirrorfs/key").exists() {
            return;
        }
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("keygen"), "{text}");
    }
}

fn a_mirror_of_another_image() {
    let mut pair = Pair::start(Setup::default());
    fs::write(pair.mnt().join("first"), b"1").expect("writing");
    pair.sync();
    pair.umount();
    let kept = crate::support::judge::copy_of(&pair.mirror());
    // A new image under the same names.
    fs::remove_dir_all(pair.state()).expect("starting over");
    pair.mount();
    fs::write(pair.mnt().join("second"), b"2").expect("writing");
    wait_until("the refusal in the reason", || {
        let status = pair.status();
        status["mount"]["link"]["reason"].as_str().is_some_and(|reason| reason.contains("never overwritten"))
    });
    pair.umount();
    assert_identical(&pair.mirror(), &kept.path);
}

/// Passes heartbeats on as they are, and data connections with the version in the peer's first frame raised.
struct NewerPeer {
    port: u16,
    stop: Arc<AtomicBool>,
}

impl NewerPeer {
    fn in_front_of(peer: u16) -> Self {
        let port = crate::support::node::free_port();
        let stop = Arc::new(AtomicBool::new(false));
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port");
        listener.set_nonblocking(true).expect("non-blocking");
        let front = UdpSocket::bind(("127.0.0.1", port)).expect("the port");
        let back = UdpSocket::bind("127.0.0.1:0").expect("a port");
        back.connect(("127.0.0.1", peer)).expect("the peer's port");
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        }
        let ended = stop.clone();
        std::thread::spawn(move || {
            let (mut primary, mut buffer) = (None, [0; 2048]);
            while !ended.load(Ordering::Acquire) {
                if let Ok((length, from)) = front.recv_from(&mut buffer) {
                    primary = Some(from);
                    let _ = back.send(&buffer[..length]);
                }
                if let (Ok(length), Some(primary)) = (back.recv(&mut buffer), primary) {
                    let _ = front.send_to(&buffer[..length], primary);
                }
            }
        });
        let ended = stop.clone();
        std::thread::spawn(move || {
            while !ended.load(Ordering::Acquire) {
                match listener.accept() {
                    Ok((stream, _)) => Self::carry(stream, peer),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self { port, stop }
    }

    fn carry(mut primary: TcpStream, peer: u16) {
        let mut peer = TcpStream::connect(("127.0.0.1", peer)).expect("the peer");
        primary.set_nonblocking(false).expect("blocking");
        let (mut from, mut to) =
            (primary.try_clone().expect("a handle"), peer.try_clone().expect("a handle"));
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        std::thread::spawn(move || {
            let (mut buffer, mut seen) = (vec![0; 64 << 10], Vec::new());
            while let Ok(length @ 1..) = peer.read(&mut buffer) {
                let start = seen.len();
                seen.extend_from_slice(&buffer[..length]);
                // The frame header: magic, then the version.
                let magic = seen.windows(8).position(|window| window == b"mirrorfs");
                if let Some(version) = magic.and_then(|at| seen.get_mut(at + 8..at + 12)) {
                    version.copy_from_slice(&999u32.to_le_bytes());
                }
                if primary.write_all(&seen[start..]).is_err() {
                    break;
                }
            }
            let _ = primary.shutdown(std::net::Shutdown::Both);
        });
    }
}

impl Drop for NewerPeer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn a_newer_peer() {
    let mut pair = Pair::prepare(Setup::default());
    pair.start_peer();
    let newer = NewerPeer::in_front_of(pair.port);
    pair.setup.mount = vec![format!("--peer=127.0.0.1:{}", newer.port)];
    pair.mount();
    fs::write(pair.mnt().join("file"), b"kept").expect("the primary works");
    wait_until("the version in the reason", || {
        let status = pair.status();
        status["verdict"] == "disconnected"
            && status["mount"]["link"]["reason"].as_str().is_some_and(|reason| reason.contains("version 999"))
    });
    pair.umount();
    drop(newer);
    pair.setup.mount.clear();
    pair.mount();
    pair.wait_for_verdict("in-sync");
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
}
