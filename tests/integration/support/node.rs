//! A mount and its peer as processes, taken down whatever happens.

use super::machine::tool;
use serde_json::Value;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Times that make tests quick.
const QUICK: [&str; 8] = [
    "--heartbeat-interval=50ms",
    "--heartbeat-timeout=500ms",
    "--request-timeout=200ms",
    "--stall-timeout=10s",
    "--probation=200ms",
    "--memory=64M",
    "--queue-max=2G",
    "-v",
];

/// Waits until `done`, or fails with `what`.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The program under test, with a list of known mounts of its own.
pub(crate) fn mirrorfs(root: &Path) -> Command {
    mirrorfs_in(root, &[])
}

/// As [`mirrorfs`], behind these words.
fn mirrorfs_in(root: &Path, enter: &[String]) -> Command {
    let program = env!("CARGO_BIN_EXE_mirrorfs");
    let mut command = match enter {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = tool(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.env("MIRRORFS_STATE_ROOT", root.join("root")).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// How a pair is set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// `--size`.
    pub(crate) size: &'static str,
    /// More arguments of `mount`.
    pub(crate) mount: Vec<String>,
    /// Start the peer at once.
    pub(crate) peer: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { size: "256M", mount: Vec::new(), peer: true }
    }
}

impl Setup {
    /// With more arguments for `mount`.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        Self { mount: arguments.iter().map(ToString::to_string).collect(), ..Self::default() }
    }
}

/// A primary and its peer, in a temporary directory on the RAM disk.
pub(crate) struct Pair {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) setup: Setup,
    pub(crate) port: u16,
    /// Address that the peer listens on.
    pub(crate) listen: String,
    /// Arguments of the peer for its protection.
    pub(crate) peer_protection: Vec<String>,
    /// Words before the command lines of mount and peer: another namespace.
    pub(crate) mount_enter: Vec<String>,
    pub(crate) peer_enter: Vec<String>,
    mount: Option<Child>,
    peer: Option<Child>,
}

impl Pair {
    /// Makes the directories; starts the peer if asked, then the mount.
    pub(crate) fn start(setup: Setup) -> Self {
        let mut pair = Self::prepare(setup);
        if pair.setup.peer {
            pair.start_peer();
        }
        pair.mount();
        pair
    }

    /// Makes the directories and starts nothing.
    pub(crate) fn prepare(setup: Setup) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("mirrorfs-test-")
            .tempdir_in("/dev/shm")
            .expect("a directory on the RAM disk");
        std::fs::create_dir(dir.path().join("mnt")).expect("the mount point");
        Self {
            dir,
            setup,
            port: free_port(),
            listen: "127.0.0.1".into(),
            peer_protection: vec!["--insecure".into()],
            mount_enter: Vec::new(),
            peer_enter: Vec::new(),
            mount: None,
            peer: None,
        }
    }

    pub(crate) fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
    pub(crate) fn image(&self) -> PathBuf {
        self.state().join("data.img")
    }
    pub(crate) fn peer_dir(&self) -> PathBuf {
        self.dir.path().join("peer")
    }
    pub(crate) fn mirror(&self) -> PathBuf {
        self.peer_dir().join("node-a/data.img")
    }

    /// Arguments of `mount` for this pair.
    pub(crate) fn mount_arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "mount".into(),
            self.mnt().display().to_string(),
            format!("--state-dir={}", self.state().display()),
        ];
        if !self.setup.mount.iter().any(|argument| argument.starts_with("--node")) {
            arguments.push("--node=node-a".into());
        }
        if !self.setup.mount.iter().any(|argument| argument.starts_with("--key")) {
            arguments.push("--insecure".into());
        }
        if !self.setup.mount.iter().any(|argument| argument == "--local" || argument.starts_with("--peer")) {
            arguments.push(format!("--peer=127.0.0.1:{}", self.port));
        }
        if !self.setup.mount.iter().any(|argument| argument.starts_with("--size")) {
            arguments.push(format!("--size={}", self.setup.size));
        }
        let given =
            |option: &str| self.setup.mount.iter().any(|argument| argument.split('=').next() == Some(option));
        arguments.extend(
            QUICK
                .iter()
                .filter(|quick| !given(quick.split('=').next().unwrap_or_default()))
                .map(ToString::to_string),
        );
        arguments.extend(self.setup.mount.iter().cloned());
        arguments
    }

    fn log(&self, name: &str) -> std::fs::File {
        let path = self.dir.path().join(name);
        std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a log")
    }

    /// Starts the mount, and waits until it answers.
    #[track_caller]
    pub(crate) fn mount(&mut self) {
        let log = self.log("mount.log");
        let child = mirrorfs_in(self.dir.path(), &self.mount_enter)
            .args(self.mount_arguments())
            .arg("--foreground")
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("mirrorfs starts");
        self.mount = Some(child);
        wait_until("the mount", || {
            let ended = self.mount.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
            assert!(!ended, "the mount ended:\n{}", self.mount_log());
            self.try_status().is_some_and(|status| status["pid"] == self.mount_pid())
        });
    }

    pub(crate) fn mount_log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("mount.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Starts the peer, and waits until it answers.
    #[track_caller]
    pub(crate) fn start_peer(&mut self) {
        let protection = self.peer_protection.clone();
        self.start_peer_with(&protection.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// As [`Self::start_peer`], with these arguments for its protection.
    #[track_caller]
    pub(crate) fn start_peer_with(&mut self, arguments: &[&str]) {
        let log = self.log("peer.log");
        let given = |quick: &str| {
            let name = quick.split('=').next();
            matches!(name, Some("--memory" | "--queue-max"))
                || arguments.iter().any(|argument| argument.split('=').next() == name)
        };
        let child = mirrorfs_in(self.dir.path(), &self.peer_enter)
            .args(["peer", &format!("--listen={}:{}", self.listen, self.port)])
            .args(arguments)
            .arg(format!("--dir={}", self.peer_dir().display()))
            .args(QUICK.iter().filter(|quick| !given(quick)))
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("mirrorfs starts");
        self.peer = Some(child);
        let dir = self.peer_dir();
        wait_until("the peer", || {
            let ended = self.peer.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
            let log = std::fs::read_to_string(self.dir.path().join("peer.log")).unwrap_or_default();
            assert!(!ended, "the peer ended:\n{log}");
            let output =
                mirrorfs(self.dir.path()).args(["status", "--json"]).arg(&dir).output().expect("status runs");
            serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|status| status["verdict"] == "serving")
        });
    }

    /// kill -9 of the mount's process; the mount point is dead afterwards.
    pub(crate) fn kill_mount(&mut self) {
        kill(&mut self.mount);
    }
    /// kill -9 of the peer's process.
    pub(crate) fn kill_peer(&mut self) {
        kill(&mut self.peer);
    }
    /// Pid of the peer's process.
    pub(crate) fn peer_pid(&self) -> u32 {
        self.peer.as_ref().expect("started").id()
    }

    /// Runs `look` while the peer's process stands still, so that what it writes to does not change meanwhile.
    pub(crate) fn with_peer_frozen<T>(&self, look: impl FnOnce() -> T) -> T {
        with_frozen(self.peer.as_ref(), look)
    }

    /// Runs `look`, which must not touch the mount, while the mount's process stands still.
    pub(crate) fn with_mount_frozen<T>(&self, look: impl FnOnce() -> T) -> T {
        with_frozen(self.mount.as_ref(), look)
    }

    /// `status --json` of the peer's directory.
    #[track_caller]
    pub(crate) fn peer_status(&self) -> Value {
        let text = self.command_ok(&["status", "--json", &self.peer_dir().display().to_string()]);
        serde_json::from_str(&text).expect("the peer's status")
    }

    /// Ends the peer in good order.
    pub(crate) fn stop_peer(&mut self) {
        if let Some(mut child) = self.peer.take() {
            signal(&child, libc::SIGTERM);
            let _ = child.wait();
        }
    }
    /// Pid of the mount's process.
    pub(crate) fn mount_pid(&self) -> u32 {
        self.mount.as_ref().expect("mounted").id()
    }

    /// `mirrorfs umount`, and the end of the process.
    #[track_caller]
    pub(crate) fn umount(&mut self) {
        self.umount_with(&[]);
    }

    /// As [`Self::umount`], with more arguments.
    #[track_caller]
    pub(crate) fn umount_with(&mut self, arguments: &[&str]) {
        let mnt = self.mnt().display().to_string();
        self.command_ok(&[&["umount", &mnt], arguments].concat());
        if let Some(mut child) = self.mount.take() {
            let status = child.wait().expect("the mount's process");
            assert!(status.success(), "the mount's process ended with {status}:\n{}", self.mount_log());
        }
    }

    /// Runs a mirrorfs command.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        mirrorfs(self.dir.path()).args(arguments).output().expect("mirrorfs runs")
    }

    /// Runs a mirrorfs command that must succeed; its standard output.
    #[track_caller]
    pub(crate) fn command_ok(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success(),
            "mirrorfs {arguments:?}: {}\n{out}{err}\nmount log:\n{}",
            output.status,
            self.mount_log()
        );
        out.into_owned()
    }

    fn try_status(&self) -> Option<Value> {
        let output = self.command(&["status", "--json", &self.mnt().display().to_string()]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// `status --json` of the mount.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.try_status().expect("status answers")
    }

    /// The verdict of `status`.
    #[track_caller]
    pub(crate) fn verdict(&self) -> String {
        self.status()["verdict"].as_str().expect("a verdict").to_string()
    }

    #[track_caller]
    pub(crate) fn wait_for_verdict(&self, wanted: &str) {
        let mut last = Value::Null;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            last = self.status();
            if last["verdict"] == wanted {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("waited in vain for {wanted}: {last:#}\nmount log:\n{}", self.mount_log());
    }

    /// `mirrorfs sync`: all that was written is durable on the mirror.
    #[track_caller]
    pub(crate) fn sync(&self) {
        self.command_ok(&["sync", "--timeout=60s", &self.mnt().display().to_string()]);
    }

    /// Rows of `journal ls --json`.
    #[track_caller]
    pub(crate) fn journal(&self) -> Vec<Value> {
        let text = self.command_ok(&["journal", "ls", "--json", &self.mnt().display().to_string()]);
        serde_json::from_str(&text).expect("rows")
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("mount log:\n{}", self.mount_log());
            eprintln!(
                "peer log:\n{}",
                std::fs::read_to_string(self.dir.path().join("peer.log")).unwrap_or_default()
            );
        }
        kill(&mut self.mount);
        kill(&mut self.peer);
        if is_mounted(&self.mnt()) {
            let _ = tool("umount").arg("-l").arg(self.mnt()).status();
        }
    }
}

fn kill(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn signal(child: &Child, number: i32) {
    // SAFETY: the pid is that of a child that has not been waited for.
    unsafe { libc::kill(child.id() as i32, number) };
}

fn with_frozen<T>(child: Option<&Child>, look: impl FnOnce() -> T) -> T {
    struct Thaw<'a>(&'a Child);
    impl Drop for Thaw<'_> {
        fn drop(&mut self) {
            signal(self.0, libc::SIGCONT);
        }
    }
    let _thaw = child.map(|child| {
        // First, so that it goes on also if waiting for it fails.
        let thaw = Thaw(child);
        signal(child, libc::SIGSTOP);
        let tasks = format!("/proc/{}/task", child.id());
        wait_until("the process to stand still", || all_stopped(Path::new(&tasks)));
        thaw
    });
    look()
}

/// Whether each thread below `/proc/PID/task` is stopped.
fn all_stopped(tasks: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(tasks) else { return false };
    entries.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('T'))
    })
}

/// Whether something is mounted there, also if its process is dead.
pub(crate) fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

/// A loopback port free for TCP and UDP. It lies below those that the system gives to outgoing connections, one of which could
/// otherwise take it before the peer does; and no two callers in this process get the same.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    loop {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(61));
        let port = (FIRST + turn % COUNT) as u16;
        let addr = ("127.0.0.1", port);
        if TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok() {
            return port;
        }
    }
}
