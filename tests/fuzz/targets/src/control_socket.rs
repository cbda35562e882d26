//! The control socket: requests as a running server takes them, replies as a command reads them.

use crate::control::{
    Handler, JournalRow, LunStatus, MountStatus, Reply, Request, SOCKET, Server, StatusReply, ask, connect,
};
use crate::exit_code::{CliError, ExitCode};
use crate::{Input, files, mutate};
use mirrorfs_journal::log::OnOutage;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

/// An answer that takes longer than this hangs.
const ANSWER_TIME: Duration = Duration::from_secs(60);

struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request) -> Result<Reply, CliError> {
        match request {
            Request::Journal { limit: 0 } => Err(CliError::new(ExitCode::NotFound, "none")),
            Request::Journal { limit: 1 } => Err(CliError::usage("too few")),
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

/// One server for all cases, and where it listens.
fn server() -> &'static Path {
    static SERVER: OnceLock<(Server, tempfile::TempDir)> = OnceLock::new();
    let (_, dir) = SERVER.get_or_init(|| {
        let dir = files::temporary();
        let server = Server::start(dir.path(), Arc::new(Echo)).unwrap_or_else(|error| panic!("{error}"));
        (server, dir)
    });
    dir.path()
}

/// A process that answers whatever it is asked with the bytes that it is given, one request for each.
struct Liar {
    dir: tempfile::TempDir,
    answers: Mutex<mpsc::Sender<Vec<u8>>>,
}

fn liar() -> &'static Liar {
    static LIAR: OnceLock<Liar> = OnceLock::new();
    LIAR.get_or_init(|| {
        let dir = files::temporary();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).expect("a socket can be made");
        let (answers, given) = mpsc::channel::<Vec<u8>>();
        std::thread::spawn(move || {
            for answer in given {
                let (stream, _) = listener.accept().expect("somebody asks");
                let mut line = Vec::new();
                BufReader::new(&stream).read_until(b'\n', &mut line).expect("a request comes");
                // Whoever asked may have gone.
                let _ = (&stream).write_all(&answer);
            }
        });
        Liar { dir, answers: Mutex::new(answers) }
    })
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
    let mut stream = connect(server()).expect("the server can be reached").expect("the server listens");
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
        // Mostly near the codes that there are, 0 among them.
        _ if input.once_in(4) => Reply::Error { code: input.number() as i32, message: "no".into() },
        _ => Reply::Error { code: input.below(40) as i32, message: "no".into() },
    };
    let mut text = serde_json::to_vec(&reply).expect("a reply can be written");
    mutate::stream(input, &mut text);
    let liar = liar();
    // Held until the answer is there: one case at a time.
    let answers = liar.answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    answers.send(text).expect("the liar lives");
    match ask(liar.dir.path(), &Request::Status, Some(ANSWER_TIME)) {
        Ok(Some(Reply::Error { code, .. })) => panic!("an error that reads as success (code {code})"),
        Ok(Some(_)) => input.count("reply read"),
        Ok(None) => panic!("the liar was not reached"),
        Err(error) => {
            input.count("error read");
            assert_ne!(error.code, ExitCode::Success, "an error that succeeds: {error}");
            let shown = format!("{} ", error.code as u8);
            assert!(ExitCode::help().contains(&shown), "an exit code that no help explains: {shown}");
        }
    }
}
