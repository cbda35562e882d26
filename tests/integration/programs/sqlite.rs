//! SQLite: many transactions, and its own recovery after kills of the mount.

use super::database_kills::{self, Client, Database, Dialect};
use super::run;
use crate::support::machine::tool;
use crate::support::{Pair, Setup, assert_identical, loop_mounted};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(super) fn thousand_transactions() {
    let mut pair = Pair::start(Setup::default());
    let db = pair.mnt().join("app.db");
    let mut script =
        String::from("pragma synchronous=full; create table t(a integer primary key, b text);\n");
    for index in 0..1000 {
        script.push_str(&format!(
            "begin; insert into t(b) values ('row {index} {}'); commit;\n",
            "x".repeat(index % 300)
        ));
    }
    let file = pair.dir.path().join("script.sql");
    fs::write(&file, script).expect("the script");
    run(tool("sh").args(["-c", &format!("sqlite3 {:?} < {:?}", db, file)]));
    let query = |db: &Path| {
        run(tool("sqlite3").arg(db).arg("pragma integrity_check; select count(*), sum(length(b)) from t;"))
    };
    let wanted = query(&db);
    assert!(wanted.starts_with("ok\n1000|"), "{wanted}");
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    loop_mounted(&pair.mirror(), "ro,loop", |mnt| {
        let copy = pair.dir.path().join("copy.db");
        fs::copy(mnt.join("app.db"), &copy).expect("copying");
        assert_eq!(query(&copy), wanted);
    });
    pair.mount();
    assert_eq!(query(&db), wanted);
    pair.umount();
}

pub(super) fn recovers_from_kills_of_the_mount() {
    database_kills::judge(&mut Sqlite);
}

/// A database file for each of SQLite's ways to commit.
///
/// Each is set so that a commit which was acknowledged is durable. With a rollback journal the commit is the journal's
/// deletion: `synchronous=full` does not sync the directory behind it, so a power cut may undo the last transaction, on any
/// journaling file system; `extra` does sync it. With a write-ahead log `full` is enough.
struct Sqlite;

const WAYS: [(&str, &str); 2] = [
    ("rollback.db", "pragma journal_mode=delete; pragma synchronous=extra;"),
    ("wal.db", "pragma journal_mode=wal; pragma synchronous=full;"),
];

const DIALECT: Dialect = Dialect { padded: "printf('%0*d', LENGTH, VALUE)" };

impl Sqlite {
    fn file(dir: &Path, client: usize) -> PathBuf {
        dir.join(WAYS[client].0)
    }

    /// Runs a script that must succeed.
    #[track_caller]
    fn script(file: &Path, script: &str) -> String {
        let mut child = tool("sqlite3")
            .args(["-batch", "-bail"])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sqlite3 runs");
        std::io::Write::write_all(&mut child.stdin.take().expect("piped"), script.as_bytes())
            .expect("its script");
        let output = child.wait_with_output().expect("sqlite3");
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {text}", file.display());
        text
    }
}

impl Database for Sqlite {
    const NAME: &'static str = "sqlite";
    const CLIENTS: usize = WAYS.len();

    fn create(&mut self, dir: &Path) {
        fs::create_dir(dir).expect("a directory");
        for (client, (_, pragmas)) in WAYS.iter().enumerate() {
            Self::script(&Self::file(dir, client), &format!("{pragmas}\n{}", DIALECT.schema(&[client])));
        }
    }

    fn start(&mut self, dir: &Path, last: &[u64]) -> Vec<Client> {
        let start = |(client, last): (usize, &u64)| {
            // Line by line, or acknowledgements would wait in its buffer.
            let mut command: Command = tool("stdbuf");
            command.args(["-oL", "sqlite3", "-batch", "-bail"]).arg(Self::file(dir, client));
            // A small cache: pages of a large transaction reach the file before its commit.
            let mut before = format!("{} pragma cache_size=20;\n", WAYS[client].1);
            Client::spawn(command, *last, move |n| {
                std::mem::take(&mut before) + &DIALECT.transaction(client, n)
            })
        };
        last.iter().enumerate().map(start).collect()
    }

    fn kill(&mut self) {}

    fn recover(&mut self, dir: &Path) -> String {
        let check = |client: usize| {
            let file = Self::file(dir, client);
            let text = Self::script(&file, &format!("pragma integrity_check;\n{}", DIALECT.report()));
            let report = text.strip_prefix("ok\n").unwrap_or_else(|| panic!("{}: {text}", file.display()));
            report.to_string()
        };
        (0..WAYS.len()).map(check).collect()
    }
}
