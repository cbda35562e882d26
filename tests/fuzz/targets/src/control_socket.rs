//! The control socket: requests as a running server takes them, replies as a command reads them.

use crate::control::{
    Handler, JournalRow, LunStatus, MountStatus, Reply, Request, SOCKET, Server, StatusReply,
};
use crate::exit_code::{CliError, ExitCode};
use crate::{Input, files, mutate};
use mirrorfs_journal::log::OnOutage;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// An answer that takes longer than this hangs.
const ANSWER_TIME: Duration = Duration::from_secs(60);

struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request) -> Result<Reply, CliError> {
        match request {
            Request::Journal { limit: 0 } => Err(CliError::new(ExitCode::NotFound, "none")),
            Request::Status => Ok(Reply::Status(Box::new(status()))),
            other => Ok(Reply::Error { code: 1, message: serde_json::to_string(&other).unwrap_or_default() }),
        }
    }
}

fn status() -> StatusReply {
    StatusReply {
        verdict: "in-sync".into(),
        summary: "in sync".into(),
        pid: Some(1),
        mount: Some(MountStatus {
            mountpoint: "/mnt".into(),
            state_dir: "/var/lib".into(),
            mode: "async".into(),
            luns: vec![LunStatus {
                name: "data".into(),
                image: "/data.img".into(),
                mirrored: true,
                read_only: None,
                size_bytes: 1 << 30,
                free_bytes: Some(1),
                commits: None,
                label: "primary".into(),
                problem: None,
            }],
            link: None,
            log: Some(Default::default()),
        }),
        peer: None,
    }
}

/// One server for all cases.
fn socket() -> PathBuf {
    static SERVER: OnceLock<(Server, tempfile::TempDir)> = OnceLock::new();
    let (_, dir) = SERVER.get_or_init(|| {
        let dir = files::temporary();
        let server = Server::start(dir.path(), Arc::new(Echo)).unwrap_or_else(|error| panic!("{error}"));
        (server, dir)
    });
    dir.path().join(SOCKET)
}

pub(crate) fn run(input: &mut Input<'_>) {
    if input.once_in(2) { request(input) } else { reply(input) }
}

/// Any request is answered with one reply, a wrong one with an error.
fn request(input: &mut Input<'_>) {
    let request = match input.below(6) {
        0 => Request::Status,
        1 => Request::Sync { timeout_ms: input.once_in(2).then(|| input.number()) },
        2 => Request::Journal { limit: input.short(1 << 40) as usize },
        3 => Request::Unmount { force: input.once_in(2) },
        4 => {
            Request::OnOutage { policy: *input.pick(&[OnOutage::Queue, OnOutage::Block, OnOutage::Readonly]) }
        }
        _ => Request::Remount { read_only: true },
    };
    let mut line = serde_json::to_vec(&request).expect("a request can be written");
    match input.below(6) {
        0 => {}
        // Deeply nested, and long beyond the limit.
        1 => {
            line = vec![*input.pick(b"[{\"0"); input.pick(&[100, 10_000, 65_535, 65_536, 200_000]).to_owned()]
        }
        _ => mutate::stream(input, &mut line),
    }
    let whole = !line.contains(&b'\n') && serde_json::from_slice::<Request>(&line).is_ok();
    line.push(b'\n');
    let mut stream = UnixStream::connect(socket()).expect("the server listens");
    stream.set_read_timeout(Some(ANSWER_TIME)).expect("a socket has timeouts");
    stream.set_write_timeout(Some(ANSWER_TIME)).expect("a socket has timeouts");
    // The server stops reading at its limit, and may close before all is written.
    let sent = stream.write_all(&line).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut text = Vec::new();
    match stream.read_to_end(&mut text) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset && line.len() > 65_536 => return,
        Err(error) => panic!("no answer: {error} (sent: {sent:?})"),
    }
    let reply: Reply = serde_json::from_slice(&text)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&text)));
    let is_refusal =
        matches!(&reply, Reply::Error { code: 2, message } if message.starts_with("unknown request"));
    assert!(!(whole && is_refusal), "a whole request was refused: {reply:?}");
    input.count(if is_refusal { "refused" } else { "answered" });
}

/// A reply from a process that may be anything.
fn reply(input: &mut Input<'_>) {
    let row = JournalRow {
        sequence: "1.2".into(),
        epoch: "1.3".into(),
        lun: "data".into(),
        op: "write".into(),
        offset: Some(input.number()),
        length: None,
        age_ms: input.number(),
        name: "/a\u{e9}".into(),
    };
    let reply = match input.below(4) {
        0 => Reply::Status(Box::new(status())),
        1 => Reply::Journal { rows: vec![row; input.index(20)] },
        2 => Reply::Done,
        _ => Reply::Error { code: input.number() as i32, message: "no".into() },
    };
    let mut text = serde_json::to_vec(&reply).expect("a reply can be written");
    mutate::stream(input, &mut text);
    if let Ok(reply) = serde_json::from_slice::<Reply>(&text) {
        input.count("reply read");
        if let Reply::Error { code, .. } = reply {
            assert_ne!(
                ExitCode::from_number(code),
                ExitCode::Success,
                "an error that succeeds (code {code})"
            );
        }
    }
}
