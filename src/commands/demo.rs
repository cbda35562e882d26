//! `mirrorfs demo`: the main job on one machine, in a temporary directory.

use crate::control;
use crate::exit_code::{CliError, Context, ExitCode};
use crate::units::show_size;
use std::io::Read as _;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes of the label behind the file system, which differ between the two images.
const LABEL_BYTES: u64 = 8 << 10;
/// How long any step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// What must not be left behind, whatever happens.
struct Scene {
    dir: Option<tempfile::TempDir>,
    mountpoint: PathBuf,
    state: PathBuf,
    mirror: PathBuf,
    mount: Option<Child>,
    peer: Option<Child>,
    listen: String,
    interrupted: Arc<AtomicBool>,
}

/// Plays the demonstration.
pub(super) fn demo(keep: bool) -> Result<ExitCode, CliError> {
    let mut scene = Scene::new()?;
    let played = scene.play();
    scene.clean_up();
    match played {
        Ok(()) if keep => {
            if let Some(dir) = scene.dir.take() {
                println!("Kept: {}", dir.keep().display());
            }
            Ok(ExitCode::Success)
        }
        Ok(()) => Ok(ExitCode::Success),
        Err(_) if scene.interrupted.load(Ordering::Acquire) => {
            println!("\nInterrupted; everything was taken down.");
            Ok(ExitCode::Failure)
        }
        Err(error) => Err(error),
    }
}

impl Scene {
    fn new() -> Result<Self, CliError> {
        let dir = tempfile::Builder::new()
            .prefix("mirrorfs-demo-")
            .tempdir()
            .context(|| "cannot make a temporary directory".into())?;
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(signal, interrupted.clone())
                .context(|| "cannot watch for signals".into())?;
        }
        let [mountpoint, state, mirror] = ["data", "host-a", "host-b"].map(|name| dir.path().join(name));
        for made in [&mountpoint, &mirror] {
            std::fs::create_dir(made).context(|| format!("cannot make {}", made.display()))?;
        }
        let listen = free_port()?;
        Ok(Self { dir: Some(dir), mountpoint, state, mirror, mount: None, peer: None, listen, interrupted })
    }

    fn play(&mut self) -> Result<(), CliError> {
        println!("mirrorfs demo: two hosts on this machine, in {}\n", self.base().display());
        println!("1. Host B:  mirrorfs peer --listen {} --dir host-b", self.listen);
        self.start_peer()?;
        println!("   Host A:  mirrorfs mount data --peer {} --size 256M", self.listen);
        self.start_mount()?;
        self.wait_for("the first sync", |verdict| verdict == "in-sync")?;

        println!("\n2. Ordinary programs write files on host A.");
        let (files, bytes) = write_tree(&self.mountpoint.join("project"), 400)?;
        self.run(&["sync", &self.mountpoint.to_string_lossy()])?;
        println!("   {files} files, {}; all durable on host B: {}", show_size(bytes), self.summary()?);

        println!("\n3. Host B dies (kill -9). Host A goes on writing.");
        if let Some(mut peer) = self.peer.take() {
            peer.kill().and_then(|()| peer.wait()).context(|| "cannot stop the peer".into())?;
        }
        self.wait_for("the outage", |verdict| verdict == "disconnected")?;
        let (files, bytes) = write_tree(&self.mountpoint.join("written-while-B-was-away"), 120)?;
        std::fs::remove_dir_all(self.mountpoint.join("project/part-1"))
            .context(|| "cannot delete files".into())?;
        std::fs::File::open(&self.mountpoint)
            .and_then(|dir| dir.sync_all())
            .context(|| "cannot sync".into())?;
        println!("   {files} more files, {}, and some deleted.", show_size(bytes));
        println!("   mirrorfs status: {}", self.summary()?);
        println!("   mirrorfs journal ls (its first and last rows):");
        let listing = self.run(&["journal", "ls", &self.mountpoint.to_string_lossy()])?;
        let rows: Vec<&str> = listing.lines().collect();
        let last = rows.len().saturating_sub(3).max(6);
        for row in rows.iter().take(6).chain(rows.iter().skip(last)) {
            println!("     {}", row.chars().take(112).collect::<String>());
        }

        println!("\n4. Host B is back: probation, reconnect, replay in order.");
        let back = Instant::now();
        self.start_peer()?;
        self.wait_for("the replay", |verdict| verdict == "in-sync")?;
        self.run(&["sync", &self.mountpoint.to_string_lossy()])?;
        println!("   {} after {:.1} s.", self.summary()?, back.elapsed().as_secs_f64());

        println!("\n5. mirrorfs umount data; then the two images are compared.");
        self.run(&["umount", &self.mountpoint.to_string_lossy()])?;
        self.mount = None;
        self.judge()
    }

    fn judge(&self) -> Result<(), CliError> {
        let primary = self.state.join("data.img");
        let mirror = find_image(&self.mirror)?;
        let compared = compare(&primary, &mirror)?;
        println!("   {} compared, byte for byte: identical.", show_size(compared));
        let output = tool("e2fsck", &["-fn", &mirror.to_string_lossy()])?;
        let summary = output.lines().last().unwrap_or_default();
        println!("   e2fsck -fn on the mirror: clean ({})", summary.rsplit(": ").next().unwrap_or_default());
        let text = tool(
            "debugfs",
            &["-R", "cat /written-while-B-was-away/part-0/file-0.txt", &mirror.to_string_lossy()],
        )?;
        println!("   debugfs reads a file from it: {:?}", text.lines().next().unwrap_or_default());
        println!("\nThat is all: one command on each side.");
        Ok(())
    }

    fn base(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new("/"), |dir| dir.path())
    }

    fn spawn(&self, arguments: &[&str], log: &str) -> Result<Child, CliError> {
        let log = std::fs::File::create(self.base().join(log)).context(|| "cannot make a log".into())?;
        let program = std::env::current_exe().context(|| "cannot find my own program".into())?;
        Command::new(program)
            .args(arguments)
            .env("MIRRORFS_STATE_ROOT", self.base().join("known-mounts"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // An interrupt from the terminal is for us: we take them down in order.
            .process_group(0)
            .spawn()
            .context(|| "cannot start mirrorfs".into())
    }

    fn start_peer(&mut self) -> Result<(), CliError> {
        let mirror = self.mirror.to_string_lossy().into_owned();
        let child =
            self.spawn(&["peer", "--listen", &self.listen, "--dir", &mirror, "--insecure"], "host-b.log")?;
        self.peer = Some(child);
        let dir = self.mirror.clone();
        self.wait("the peer", "host-b.log", || Ok(control::connect(&dir)?.is_some()))
    }

    fn start_mount(&mut self) -> Result<(), CliError> {
        let (mountpoint, state) = (self.mountpoint.to_string_lossy(), self.state.to_string_lossy());
        let arguments = [
            "mount",
            &mountpoint,
            "--peer",
            &self.listen,
            "--size",
            "256M",
            "--state-dir",
            &state,
            "--node",
            "host-a",
            "--probation",
            "1s",
            "--heartbeat-timeout",
            "1s",
            "--insecure",
            "--foreground",
        ];
        self.mount = Some(self.spawn(&arguments, "host-a.log")?);
        let dir = self.state.clone();
        self.wait("the mount", "host-a.log", || Ok(control::connect(&dir)?.is_some()))
    }

    /// Waits for a condition, or says what the log of the process says.
    fn wait(
        &mut self,
        what: &str,
        log: &str,
        mut done: impl FnMut() -> Result<bool, CliError>,
    ) -> Result<(), CliError> {
        let begun = Instant::now();
        while !done()? {
            let ended = |child: &mut Option<Child>| {
                child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)))
            };
            let failed = if log == "host-a.log" { ended(&mut self.mount) } else { ended(&mut self.peer) };
            if self.interrupted.load(Ordering::Acquire) || failed || begun.elapsed() > STEP_TIMEOUT {
                let text = std::fs::read_to_string(self.base().join(log)).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(5).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                return Err(CliError::failure(format!(
                    "{what} did not come about. Its log ends:\n{}",
                    tail.join("\n")
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn wait_for(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<(), CliError> {
        let dir = self.state.clone();
        self.wait(what, "host-a.log", || Ok(wanted(&super::status::status_of(&dir)?.verdict)))
    }

    fn summary(&self) -> Result<String, CliError> {
        Ok(super::status::status_of(&self.state)?.summary)
    }

    /// Runs a mirrorfs command to its end.
    fn run(&self, arguments: &[&str]) -> Result<String, CliError> {
        let program = std::env::current_exe().context(|| "cannot find my own program".into())?;
        let output = Command::new(program)
            .args(arguments)
            .env("MIRRORFS_STATE_ROOT", self.base().join("known-mounts"))
            .output()
            .context(|| "cannot start mirrorfs".into())?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(CliError::failure(format!("mirrorfs {} failed: {text}", arguments.join(" "))));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn clean_up(&mut self) {
        if self.mount.is_some() {
            let _ = self.run(&["umount", "--force", &self.mountpoint.to_string_lossy()]);
        }
        for mut child in [self.mount.take(), self.peer.take()].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = mirrorfs_fs::fuse::clear_stale_mount(&self.mountpoint);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.clean_up();
    }
}

/// A loopback port that is free for TCP and UDP.
fn free_port() -> Result<String, CliError> {
    for _ in 0..50 {
        let tcp = TcpListener::bind("127.0.0.1:0").context(|| "cannot listen on loopback".into())?;
        let addr = tcp.local_addr().context(|| "cannot listen on loopback".into())?;
        if UdpSocket::bind(addr).is_ok() {
            return Ok(addr.to_string());
        }
    }
    Err(CliError::failure("no free loopback port"))
}

/// Writes `count` small files below `dir`; returns their number and bytes.
fn write_tree(dir: &Path, count: usize) -> Result<(usize, u64), CliError> {
    let mut bytes = 0;
    for index in 0..count {
        let part = dir.join(format!("part-{}", index / 40));
        std::fs::create_dir_all(&part).context(|| format!("cannot make {}", part.display()))?;
        let path = part.join(format!("file-{index}.txt"));
        let text = format!("file {index} of {}\n", dir.display()).repeat(1 + index * 7 % 300);
        bytes += text.len() as u64;
        std::fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
    }
    Ok((count, bytes))
}

/// The one mirror image below a peer's directory.
fn find_image(dir: &Path) -> Result<PathBuf, CliError> {
    let path = dir.join("host-a/data.img");
    if path.exists() {
        Ok(path)
    } else {
        Err(CliError::failure(format!("there is no mirror image {}", path.display())))
    }
}

/// Compares two images without their labels; returns the bytes compared.
fn compare(one: &Path, other: &Path) -> Result<u64, CliError> {
    let open = |path: &Path| std::fs::File::open(path).context(|| format!("cannot open {}", path.display()));
    let (mut a, mut b) = (open(one)?, open(other)?);
    let bytes =
        a.metadata().context(|| format!("cannot read {}", one.display()))?.len().saturating_sub(LABEL_BYTES);
    let (mut left, mut buffer_a, mut buffer_b) = (bytes, vec![0; 1 << 20], vec![0; 1 << 20]);
    while left > 0 {
        let part = left.min(1 << 20) as usize;
        a.read_exact(&mut buffer_a[..part]).context(|| format!("cannot read {}", one.display()))?;
        b.read_exact(&mut buffer_b[..part]).context(|| format!("cannot read {}", other.display()))?;
        if buffer_a[..part] != buffer_b[..part] {
            return Err(CliError::failure(format!(
                "the images differ within 1 MiB from byte {}",
                bytes - left
            )));
        }
        left -= part as u64;
    }
    Ok(bytes)
}

/// Runs a tool of e2fsprogs.
fn tool(name: &str, arguments: &[&str]) -> Result<String, CliError> {
    let path = format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(name)
        .args(arguments)
        .env("PATH", path)
        .output()
        .context(|| format!("cannot run {name} (Debian package e2fsprogs)"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(CliError::failure(format!("{name} {} found:\n{text}", arguments.join(" "))))
}
