//! PostgreSQL: its own recovery after kills of the mount that its data directory is in.

use super::database_kills::{self, Client, Database, Dialect};
use super::run;
use crate::support::machine::tool;
use crate::support::wait_until;
use std::fs;
use std::io::{PipeReader, Read as _};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub(super) fn recovers_from_kills_of_the_mount() {
    database_kills::judge(&mut PostgreSql::new());
}

/// Why it can't be judged on this machine.
pub(super) fn lacking() -> Option<String> {
    if programs().is_none() {
        return Some("PostgreSQL's server is not installed (Debian: postgresql)".into());
    }
    let namespaces = tool("unshare").args(["--pid", "--ipc", "--fork", "true"]).output();
    let works = namespaces.is_ok_and(|output| output.status.success());
    (!works).then(|| "no namespace of processes can be made for PostgreSQL".into())
}

/// Where PostgreSQL's programs are: Debian has a directory for each version, others have them in PATH.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut dirs: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    dirs.sort();
    dirs.extend(std::env::var("PATH").unwrap_or_default().split(':').rev().map(PathBuf::from));
    let needed = ["postgres", "initdb", "psql", "pg_checksums", "pg_amcheck"];
    dirs.into_iter().rev().find(|dir| needed.iter().all(|program| dir.join(program).exists()))
}

/// The user that runs the server, which refuses to run as root: its own, or nobody.
fn user() -> (u32, u32) {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        let fields: Vec<&str> = passwd
            .lines()
            .map(|line| line.split(':'))
            .find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.collect()))?;
        Some((fields.get(1)?.parse().ok()?, fields.get(2)?.parse().ok()?))
    };
    find("postgres").or_else(|| find("nobody")).unwrap_or((65534, 65534))
}

/// Clients that write, besides one that has checkpoints and vacuums done all the time.
const CLIENTS: usize = 3;

const DIALECT: Dialect = Dialect { padded: "lpad((VALUE)::text, LENGTH, '0')" };

struct PostgreSql {
    programs: PathBuf,
    user: (u32, u32),
    /// Its Unix socket is here; no TCP.
    socket: tempfile::TempDir,
    server: Option<Server>,
    checkpoints: Option<Client>,
}

impl PostgreSql {
    fn new() -> Self {
        let socket = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let user = user();
        chown(socket.path(), Some(user.0), Some(user.1)).expect("chown");
        let programs = programs().expect("looked for before");
        Self { programs, user, socket, server: None, checkpoints: None }
    }

    /// A program of PostgreSQL's, as its user.
    fn program(&self, name: &str) -> Command {
        let mut command = tool("setpriv");
        command
            .arg(format!("--reuid={}", self.user.0))
            .arg(format!("--regid={}", self.user.1))
            .args(["--clear-groups", "--pdeathsig=KILL"])
            .arg(self.programs.join(name))
            .env("LC_ALL", "C")
            .current_dir("/");
        command
    }

    /// A program that talks to the server.
    fn to_server(&self, mut command: Command) -> Command {
        command.arg("-h").arg(self.socket.path()).args(["-U", "judge"]);
        command
    }

    fn psql(&self) -> Command {
        let mut command = tool("stdbuf");
        // Line by line, or acknowledgements would wait in its buffer.
        command.arg("-oL").arg(self.programs.join("psql")).args(["-XqAt", "-v", "ON_ERROR_STOP=1"]);
        command.args(["-d", "postgres"]).current_dir("/");
        self.to_server(command)
    }

    /// Starts the server; returns once it has recovered and answers.
    #[track_caller]
    fn start_server(&mut self, dir: &Path) {
        let log = self.socket.path().join("log");
        let mut server = Server::start(self, dir, &log);
        wait_until("PostgreSQL", || {
            let ended = !matches!(server.child.try_wait(), Ok(None));
            assert!(!ended, "PostgreSQL ended:\n{}", fs::read_to_string(&log).unwrap_or_default());
            self.psql().args(["-c", "select 1"]).output().is_ok_and(|output| output.status.success())
        });
        self.server = Some(server);
    }

    fn stop_server(&mut self, dir: &Path) {
        self.server.take().expect("it runs").stop();
        run(self.program("pg_checksums").args(["--check", "-D"]).arg(dir));
    }
}

impl Database for PostgreSql {
    const NAME: &'static str = "postgresql";
    const CLIENTS: usize = CLIENTS;

    fn create(&mut self, dir: &Path) {
        fs::create_dir(dir).expect("a directory");
        chown(dir, Some(self.user.0), Some(self.user.1)).expect("chown");
        // Small segments of the log: many are made, renamed and removed.
        run(self
            .program("initdb")
            .args(["-U", "judge", "--auth=trust", "--locale=C", "--encoding=UTF8"])
            .args(["--data-checksums", "--wal-segsize=1", "-D"])
            .arg(dir));
        self.start_server(dir);
        run(self.psql().arg("-c").arg(DIALECT.schema(&[0, 1, 2])));
        self.stop_server(dir);
    }

    fn start(&mut self, dir: &Path, last: &[u64]) -> Vec<Client> {
        self.start_server(dir);
        self.checkpoints = Some(Client::spawn(self.psql(), 0, |_| "checkpoint;\nvacuum t;\n".into()));
        let start = |(client, last): (usize, &u64)| {
            Client::spawn(self.psql(), *last, move |n| DIALECT.transaction(client, n))
        };
        last.iter().enumerate().map(start).collect()
    }

    fn kill(&mut self) {
        drop(self.server.take());
        if let Some(client) = self.checkpoints.take() {
            client.end();
        }
    }

    fn recover(&mut self, dir: &Path) -> String {
        self.start_server(dir);
        // Each index against its table, each row's structure.
        run(self.to_server(self.program("pg_amcheck")).args([
            "--all",
            "--install-missing",
            "--heapallindexed",
            "--parent-check",
        ]));
        let mut report = String::new();
        for statement in DIALECT.report().split_inclusive(";\n") {
            report.push_str(&run(self.psql().args(["-c", statement])));
        }
        self.stop_server(dir);
        report
    }
}

/// The server, in namespaces of its own, which end with it: none of its processes outlives it, wherever it is stuck, and its
/// shared memory goes with them.
struct Server {
    child: Child,
    /// Open for writing in each of its processes.
    alive: PipeReader,
}

impl Server {
    fn start(of: &PostgreSql, dir: &Path, log: &Path) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let (alive, in_server) = std::io::pipe().expect("a pipe");
        let server = of.program("postgres");
        let child = tool("unshare")
            .args(["--pid", "--ipc", "--fork", "--kill-child=KILL"])
            .arg(server.get_program())
            .args(server.get_args())
            .arg("-D")
            .arg(dir)
            .arg("-k")
            .arg(of.socket.path())
            .args(["-h", "", "-c", "dynamic_shared_memory_type=sysv"])
            // Little memory and short distances: checkpoints, evicted pages and recycled segments all the time.
            .args(["-c", "shared_buffers=1MB", "-c", "min_wal_size=2MB", "-c", "max_wal_size=8MB"])
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(in_server)
            .stderr(log)
            .spawn()
            .expect("unshare runs");
        Self { child, alive }
    }

    /// A stop in good order, with a last checkpoint.
    fn stop(mut self) {
        // The server's first process is the one that unshare waits for.
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let text = fs::read_to_string(&children).expect("the kernel lists children");
        let pid: i32 = text.trim().parse().unwrap_or_else(|_| panic!("{children}: {text}"));
        // SAFETY: the process is unshare's child, which waits for it; its number can't have passed to another.
        unsafe { libc::kill(pid, libc::SIGINT) };
        let status = self.child.wait().expect("unshare");
        assert!(status.success(), "PostgreSQL ended with {status}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Ends when the last of its processes has.
        let _ = self.alive.read_to_end(&mut Vec::new());
    }
}
