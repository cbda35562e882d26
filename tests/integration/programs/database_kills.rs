//! The judge of a database's own crash recovery on a mirrored mount.
//!
//! Clients run numbered transactions, one after the other, and say which the database has acknowledged; what they said is
//! kept outside of the mount. In the middle of it the mount is killed. Then the database must recover by itself, twice: from
//! a copy of the mirror, mounted by the kernel, and in the mount, mounted again. Everything acknowledged is there, whole, in
//! order; nothing is half there; the database's own checks find nothing. In synchronous mode that holds for the mirror too;
//! in asynchronous mode the mirror has the transactions up to some moment.

use crate::support::{Pair, Setup, assert_identical, e2fsck_clean, judge, loop_mounted, wait_until};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Transactions that a client must have had acknowledged before the mount is killed.
const ACKNOWLEDGED_MIN: u64 = 30;
/// A client deletes what it wrote so many transactions before.
const KEPT: u64 = 400;

/// A database under judgement.
pub(super) trait Database {
    /// Its name in the closing line.
    const NAME: &'static str;
    /// Clients, numbered from 0.
    const CLIENTS: usize;

    /// Makes an empty one, and stops it.
    fn create(&mut self, dir: &Path);
    /// Starts it, and clients that go on after the transactions `last`.
    fn start(&mut self, dir: &Path, last: &[u64]) -> Vec<Client>;
    /// Ends what is left of the server, at once.
    fn kill(&mut self);
    /// Lets it recover, has it checked by its own means, stops it in good order. Gives what [`Dialect::report`] printed.
    fn recover(&mut self, dir: &Path) -> String;
}

/// Kills the mount again and again, and judges what the database makes of what is left.
pub(super) fn judge<D: Database>(database: &mut D) {
    let kills = kills();
    let mut pair = Pair::start(Setup { size: "512M", ..Setup::with(&["--mode=sync"]) });
    // Databases run as users of their own.
    fs::set_permissions(pair.dir.path(), fs::Permissions::from_mode(0o755)).expect("the directory's mode");
    let dir = pair.mnt().join("db");
    pair.wait_for_verdict("in-sync");
    database.create(&dir);
    let mut last = vec![0; D::CLIENTS];
    let mut acknowledged_in_all = 0;
    for round in 0..kills {
        let sync = round % 2 == 0;
        pair.sync();
        let clients = database.start(&dir, &last);
        wait_until("transactions", || {
            clients.iter().zip(&last).all(|(client, last)| client.acknowledged() >= last + ACKNOWLEDGED_MIN)
        });
        std::thread::sleep(std::time::Duration::from_millis(round * 67 % 331));
        pair.kill_mount();
        database.kill();
        let acknowledged: Vec<u64> = clients.into_iter().map(Client::end).collect();
        // The mirror alone: at once, as an operator would who has lost the primary.
        let copy = pair.with_peer_frozen(|| judge::copy_of(&pair.mirror()));
        e2fsck_clean(&copy.path);
        let in_mirror =
            loop_mounted(&copy.path, "loop", |mnt| newest(&database.recover(&mnt.join("db")), D::CLIENTS));
        pair.setup.mount = vec![format!("--mode={}", if sync { "async" } else { "sync" })];
        pair.mount();
        let before = std::mem::replace(&mut last, newest(&database.recover(&dir), D::CLIENTS));
        for (client, &acknowledged) in acknowledged.iter().enumerate() {
            let least = if sync { acknowledged } else { before[client] };
            // A transaction whose acknowledgement was under way may be there too.
            let range = |least: u64| least..=acknowledged + 1;
            let place = format!("{}, kill {round}, client {client}, acknowledged {acknowledged}", D::NAME);
            assert!(
                range(least).contains(&in_mirror[client]),
                "{place}: {} in the mirror",
                in_mirror[client]
            );
            assert!(range(acknowledged).contains(&last[client]), "{place}: {} in the mount", last[client]);
            acknowledged_in_all += acknowledged - before[client];
        }
        pair.wait_for_verdict("in-sync");
    }
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    let copy = judge::copy_of(&pair.mirror());
    e2fsck_clean(&copy.path);
    let in_mirror =
        loop_mounted(&copy.path, "loop", |mnt| newest(&database.recover(&mnt.join("db")), D::CLIENTS));
    assert_eq!(in_mirror, last);
    println!("database-kills: database={} done={kills} acknowledged={acknowledged_in_all} lost=0", D::NAME);
}

/// How often the mount is killed: twice, or as `MIRRORFS_DATABASE_KILLS` says.
fn kills() -> u64 {
    let Ok(text) = std::env::var("MIRRORFS_DATABASE_KILLS") else { return 2 };
    text.parse().unwrap_or_else(|_| panic!("MIRRORFS_DATABASE_KILLS={text} is no number"))
}

/// A program that takes SQL from its standard input and prints what it selects.
pub(super) struct Client {
    child: Child,
    acknowledged: Arc<AtomicU64>,
    threads: [JoinHandle<()>; 2],
}

impl Client {
    /// Starts it; `script(n)` is what it runs n-th, counting on from `last`, and prints `ack n` at its end.
    pub(super) fn spawn(
        mut command: Command,
        last: u64,
        mut script: impl FnMut(u64) -> String + Send + 'static,
    ) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut input = child.stdin.take().expect("piped");
        let output = child.stdout.take().expect("piped");
        let acknowledged = Arc::new(AtomicU64::new(last));
        let noted = acknowledged.clone();
        let feed = move || {
            for number in last + 1.. {
                if input.write_all(script(number).as_bytes()).is_err() {
                    return;
                }
            }
        };
        let listen = move || {
            // A last line that was cut off acknowledges nothing.
            let mut lines = BufReader::new(output);
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
                if let Some(number) = line.strip_prefix("ack ").and_then(|rest| rest.strip_suffix('\n')) {
                    noted.store(number.parse().expect("a number"), Ordering::Release);
                }
                line.clear();
            }
        };
        Self { child, acknowledged, threads: [std::thread::spawn(feed), std::thread::spawn(listen)] }
    }

    /// The last transaction that was acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Ends it; all that it said has been heard afterwards.
    pub(super) fn end(mut self) -> u64 {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for thread in self.threads {
            thread.join().expect("a client's thread");
        }
        self.acknowledged.load(Ordering::Acquire)
    }
}

/// What differs between the databases' SQL.
#[derive(Clone, Copy)]
pub(super) struct Dialect {
    /// An expression: the number VALUE with zeros before it, LENGTH characters long.
    pub(super) padded: &'static str,
}

/// Rows that transaction `n` writes: few, and often enough so many that pages leave the cache before the commit.
fn rows(n: u64) -> u64 {
    if n.is_multiple_of(50) { 300 } else { n % 7 + 1 }
}

impl Dialect {
    fn body(self, n: &str, p: &str) -> String {
        self.padded
            .replace("VALUE", &format!("{n} * 1000 + {p}"))
            .replace("LENGTH", &format!("(100 + ({n} * 37 + {p} * 11) % 3000)"))
    }

    /// Makes the tables for these clients.
    pub(super) fn schema(self, clients: &[usize]) -> String {
        let mut script = String::from(
            "create table parts(p integer primary key);\n\
             insert into parts with recursive c(p) as (select 0 union all select p + 1 from c where p < 299) select p from c;\n\
             create table t(client integer, txn integer, p integer, body text, primary key(client, txn, p));\n\
             create index t_body on t(body);\n\
             create table totals(client integer primary key, txns integer, row_count integer);\n",
        );
        for client in clients {
            script.push_str(&format!("insert into totals values({client}, 0, 0);\n"));
        }
        script
    }

    /// Transaction `n` of a client, acknowledged once the database has committed it.
    pub(super) fn transaction(self, client: usize, n: u64) -> String {
        let (rows, body) = (rows(n), self.body(&n.to_string(), "p"));
        let old = n.saturating_sub(KEPT);
        format!(
            "begin;\ninsert into t select {client}, {n}, p, {body} from parts where p < {rows};\n\
             delete from t where client = {client} and txn = {old};\n\
             update totals set txns = txns + 1, row_count = row_count + {rows} where client = {client};\n\
             commit;\nselect 'ack {n}';\n"
        )
    }

    /// Reads every row; what it prints is judged by [`newest`].
    pub(super) fn report(self) -> String {
        format!(
            "select 'wrong ' || count(*) from t where body <> {};\n\
             select 'torn ' || count(*) from (select client, txn from t group by client, txn having count(*) <>\n\
             case when txn % 50 = 0 then 300 else txn % 7 + 1 end) as torn;\n\
             select 'client ' || client || ' ' || txns || ' ' || row_count || ' ' ||\n\
             (select count(distinct txn) || ' ' || coalesce(min(txn), 0) || ' ' || coalesce(max(txn), 0)\n\
             from t where t.client = totals.client) from totals order by client;\n",
            self.body("txn", "p")
        )
    }
}

/// The newest transaction of each client, from a report in which everything is as those transactions left it.
#[track_caller]
fn newest(report: &str, clients: usize) -> Vec<u64> {
    let lines: Vec<&str> = report.lines().collect();
    let count = |wanted: &str| lines.iter().filter(|line| **line == wanted).count();
    // SQLite has a database for each client.
    assert!(count("wrong 0") > 0 && count("wrong 0") == count("torn 0"), "{report}");
    assert!(!lines.iter().any(|line| line.starts_with("wrong ") && *line != "wrong 0"), "{report}");
    assert!(!lines.iter().any(|line| line.starts_with("torn ") && *line != "torn 0"), "{report}");
    let found = lines.iter().filter_map(|line| line.strip_prefix("client ")).enumerate();
    let newest: Vec<u64> = found
        .map(|(client, line)| {
            let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
            let [id, txns, row_count, distinct, oldest, newest] = numbers[..] else { panic!("{line}") };
            assert_eq!(id, client as u64, "{report}");
            assert_eq!((txns, row_count), (newest, (1..=newest).map(rows).sum()), "{report}");
            assert_eq!(
                (distinct, oldest),
                (newest.min(KEPT), (newest + 1).saturating_sub(KEPT).max(1).min(newest))
            );
            newest
        })
        .collect();
    assert_eq!(newest.len(), clients, "{report}");
    newest
}
