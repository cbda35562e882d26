//! The commands themselves.

use crate::Case;
use crate::support::machine::tool;
use crate::support::node::is_mounted;
use crate::support::{Pair, Setup, assert_identical, e2fsck_clean, mirrorfs, wait_until};
use std::fs;

pub(crate) const CASES: &[Case] = &[
    ("the_demo_plays_to_its_end_and_cleans_up", the_demo),
    ("an_interrupted_demo_cleans_up", an_interrupted_demo),
    ("mount_goes_to_the_background_and_umount8_ends_it", background),
    ("a_mount_that_fails_leaves_its_image_closed", failed_mount),
    ("mount8_and_remount_work_through_the_helper", mount_helper),
    ("status_speaks_of_mount_peer_and_directories", status),
    ("metrics_are_served_by_mount_and_peer", metrics),
    ("completions_and_help", completions_and_help),
    ("an_ordinary_user_mounts_with_fusermount3", an_ordinary_user),
];

fn demo(dir: &std::path::Path) -> std::process::Command {
    let mut command = mirrorfs(dir);
    command.arg("demo").env("TMPDIR", dir);
    command
}

fn the_demo() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = demo(dir.path()).output().expect("the demo runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for wanted in
        ["identical", "e2fsck -fn on the mirror: clean", "/written-while-B-was-away/", "NOT MIRRORED NOW"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(text.lines().count() < 60, "two screens at most: {text}");
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0, "it cleans up");
}

fn an_interrupted_demo() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = demo(dir.path()).stdout(std::process::Stdio::null()).spawn().expect("the demo runs");
    let mounted = || {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        mounts.contains(&dir.path().display().to_string())
    };
    wait_until("its mount", mounted);
    // SAFETY: the pid is that of our child, which has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    assert!(!child.wait().expect("the demo").success());
    wait_until("the mount to be gone", || !mounted());
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0, "it cleans up");
}

fn background() {
    let mut pair = Pair::prepare(Setup::default());
    pair.start_peer();
    let arguments = pair.mount_arguments();
    // A held pipe would hang this.
    let output = pair.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(is_mounted(&pair.mnt()), "it returns once the mount is there");
    let again = pair.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(4) && text.contains("is already mounted, by process"), "{text}");
    fs::write(pair.mnt().join("file"), b"x").expect("writing");
    pair.sync();
    let pid = pair.status()["pid"].as_u64().expect("a pid");
    assert!(tool("umount").arg(pair.mnt()).status().expect("umount").success());
    wait_until("the process to end", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_identical(&pair.image(), &pair.mirror());
    assert!(fs::read_to_string(pair.state().join("mirrorfs.log")).expect("its log").contains("unmounted"));
}

/// A mount whose last steps failed left its image as after a crash: the next one had it recovered, and sent regions again.
fn failed_mount() {
    let mut pair = Pair::prepare(Setup { peer: false, ..Setup::default() });
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    pair.setup.mount = vec![
        format!("--listen={}", taken.local_addr().expect("an address")),
        format!("--mirror-dir={}", pair.peer_dir().display()),
    ];
    let arguments = pair.mount_arguments();
    let failed = pair.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(
        !failed.status.success() && text.contains("in use") && !text.contains("without being closed"),
        "{text}"
    );
    assert!(!is_mounted(&pair.mnt()));
    let status = pair.command_ok(&["status", &pair.state().display().to_string()]);
    assert!(status.contains("primary, closed cleanly"), "{status}");
}

fn mount_helper() {
    let pair = Pair::prepare(Setup { peer: false, ..Setup::default() });
    let image = pair.dir.path().join("x.img");
    let made = Pair::start(Setup { peer: false, ..Setup::with(&["--local", "--size=64M"]) });
    let mut made = made;
    made.umount();
    fs::copy(made.image(), &image).expect("an image");
    let helper = pair.dir.path().join("mount.mirrorfs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_mirrorfs"), &helper).expect("a link");
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(&helper)
            .env("MIRRORFS_STATE_ROOT", pair.dir.path().join("root"))
            .args(arguments)
            .output()
            .expect("the helper runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (source, mnt) = (image.display().to_string(), pair.mnt().display().to_string());
    let (code, text) = run(&[&source, &mnt, "-o", "rw,local,noatime,_netdev,x-systemd.requires=x"]);
    assert_eq!(code, Some(0), "{text}");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(
        mounts.lines().any(|line| line.starts_with(&format!("{source} {mnt} fuse.mirrorfs "))),
        "{mounts}"
    );
    fs::write(pair.mnt().join("x"), b"x").expect("writing");
    assert_eq!(run(&[&source, &mnt, "-o", "remount,ro"]).0, Some(0));
    assert_eq!(
        fs::write(pair.mnt().join("y"), b"y").expect_err("read-only").raw_os_error(),
        Some(libc::EROFS)
    );
    assert_eq!(run(&[&source, &mnt, "-o", "remount,rw"]).0, Some(0));
    fs::write(pair.mnt().join("y"), b"y").expect("writable again");
    pair.command_ok(&["umount", &mnt]);
    let (code, text) = run(&["/nonexistent/x.img", &mnt, "-o", "local"]);
    assert_eq!(code, Some(32), "{text}");
    assert!(text.contains("/nonexistent/x.img"), "{text}");
}

fn status() {
    let mut pair = Pair::start(Setup::default());
    pair.wait_for_verdict("in-sync");
    fs::write(pair.mnt().join("x"), b"x").expect("writing");
    pair.sync();
    let mnt = pair.mnt().display().to_string();
    let text = pair.command_ok(&["status", &mnt]);
    for wanted in ["in sync", "live", "127.0.0.1", "array", "queue", "durable on the mirror"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(pair.command_ok(&["status"]).contains(&mnt), "all known mounts");
    let peer = pair.peer_dir().display().to_string();
    let text = pair.command_ok(&["status", &peer]);
    assert!(text.contains("node-a") && text.contains("connected"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&pair.command_ok(&["status", "--json", &peer])).expect("JSON");
    let elements = json["peer"]["sessions"][0]["elements"].as_array().expect("its array");
    assert_eq!(elements.len(), 4);
    for element in elements {
        assert!(
            element["local"].is_string()
                && element["remote"].is_string()
                && element["timestamp_age_ms"].is_u64()
        );
    }
    pair.umount();
    pair.stop_peer();
    assert!(pair.command_ok(&["status", &mnt]).contains("not mounted"));
    assert!(pair.command_ok(&["status", &peer]).contains("mirror, consistent"));
}

fn metrics() {
    use std::io::{Read as _, Write as _};
    let (mount_port, peer_port) = (crate::support::node::free_port(), crate::support::node::free_port());
    let mut pair = Pair::prepare(Setup::with(&[&format!("--metrics=127.0.0.1:{mount_port}")]));
    pair.start_peer_with(&["--insecure", &format!("--metrics=127.0.0.1:{peer_port}")]);
    pair.mount();
    fs::write(pair.mnt().join("file"), b"x").expect("writing");
    pair.wait_for_verdict("in-sync");
    pair.sync();
    let scrape = |port: u16| -> String {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("the metrics");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").expect("asking");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the answer");
        answer
    };
    let (mount, peer) = (scrape(mount_port), scrape(peer_port));
    for wanted in [
        "HTTP/1.0 200 OK",
        "mirrorfs_verdict{verdict=\"in-sync\"} 1",
        "mirrorfs_link_state{state=\"live\"} 1",
        "mirrorfs_link_connection_open{connection=\"3\"} 1",
        "mirrorfs_lun_mirrored{lun=\"data\"} 1",
        "mirrorfs_log_waiting_requests 0",
    ] {
        assert!(mount.contains(wanted), "{wanted}: {mount}");
    }
    for wanted in ["mirrorfs_verdict{verdict=\"serving\"} 1", "mirrorfs_peer_connected{node=\"node-a\"} 1"] {
        assert!(peer.contains(wanted), "{wanted}: {peer}");
    }
    let busy = pair.command(&[
        "peer",
        "--listen=127.0.0.1:0",
        &format!("--dir={}", pair.dir.path().join("other").display()),
        &format!("--metrics=127.0.0.1:{peer_port}"),
    ]);
    assert_eq!(busy.status.code(), Some(4), "{}", String::from_utf8_lossy(&busy.stderr));
    pair.umount();
}

fn completions_and_help() {
    let pair = Pair::prepare(Setup { peer: false, ..Setup::default() });
    for shell in ["bash", "zsh", "fish"] {
        assert!(pair.command_ok(&["completions", shell]).contains("mirrorfs"));
    }
    for command in
        ["mount", "peer", "umount", "sync", "status", "journal", "on-outage", "keygen", "demo", "man"]
    {
        let text = pair.command_ok(&[command, "--help"]);
        assert!(text.contains("Usage:"), "{command}: {text}");
    }
    assert!(pair.command_ok(&["--help"]).contains("Exit codes"));
}

fn an_ordinary_user() {
    // A device node that nobody may open, a private one that he may: as on machines where /dev/fuse is open to users.
    let mut pair = Pair::prepare(Setup::default());
    pair.start_peer();
    let base = pair.dir.path();
    std::os::unix::fs::chown(base, Some(65534), Some(65534)).expect("chown");
    std::os::unix::fs::chown(pair.mnt(), Some(65534), Some(65534)).expect("chown");
    let program = base.join("mirrorfs");
    fs::copy(env!("CARGO_BIN_EXE_mirrorfs"), &program).expect("a copy that he may run");
    let script = format!(
        "mkdir {base}/dev && mount -t tmpfs -o dev tmpfs {base}/dev && mknod -m 666 {base}/dev/fuse c 10 229 && \
         mount --bind {base}/dev/fuse /dev/fuse && setpriv --reuid=65534 --regid=65534 --clear-groups env HOME={base} MIRRORFS_STATE_ROOT={base}/root sh -ec '\
         {program} mount {mnt} --peer 127.0.0.1:{port} --node node-a --size 64M --state-dir {base}/state; \
         echo hello > {mnt}/file; cat {mnt}/file; {program} sync --timeout 60s {mnt}; {program} status {mnt}; \
         {program} umount {mnt}'",
        port = pair.port,
        base = base.display(),
        program = program.display(),
        mnt = pair.mnt().display()
    );
    let output = tool("unshare").args(["-m", "sh", "-ec", &script]).output().expect("unshare runs");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("hello"), "{text}");
    assert!(text.contains("durable on the mirror") && text.contains(" 0 requests, 0 B"), "{text}");
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
}
