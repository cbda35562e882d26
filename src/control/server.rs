//! The serving end of the control socket.

use super::{Reply, Request, SOCKET, short_path};
use crate::exit_code::{CliError, Context, ExitCode};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest request.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Requests served at once: a `sync` may wait long, and must not keep `status` from being answered.
const REQUESTS_MAX: usize = 64;
/// How long the process's end waits for answers under way.
const ANSWERS_TIMEOUT: Duration = Duration::from_secs(5);

/// What answers the requests. Called from threads of the server.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers one request; may take its time.
    fn handle(&self, request: Request) -> Result<Reply, CliError>;
}

/// A listening control socket; removed when dropped.
pub(crate) struct Server {
    path: PathBuf,
    listener: Arc<UnixListener>,
    stop: Arc<AtomicBool>,
    running: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens in `dir`, replacing the socket of a dead process. The caller holds the directory's lock.
    pub(crate) fn start(dir: &Path, handler: Arc<dyn Handler>) -> Result<Self, CliError> {
        let path = dir.join(SOCKET);
        let context = || format!("cannot listen on {}", path.display());
        let handle = std::fs::File::open(dir).context(context)?;
        let _ = std::fs::remove_file(&path);
        let listener = Arc::new(UnixListener::bind(short_path(&handle)).context(context)?);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).context(context)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stop_seen = stop.clone();
        let accepting = listener.clone();
        let running = Arc::new(AtomicUsize::new(0));
        let counted = running.clone();
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || serve(&accepting, &handler, &stop_seen, &counted))
            .context(context)?;
        Ok(Self { path, listener, stop, running, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the accept, also where somebody has removed the socket's file.
        // SAFETY: the descriptor is open as long as `listener` lives.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Answers under way (to the `umount` that ends us, above all) are still given.
        let begun = Instant::now();
        while self.running.load(Ordering::Acquire) > 0 && begun.elapsed() < ANSWERS_TIMEOUT {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Takes connections until told to stop; each request has a thread of its own.
fn serve(listener: &UnixListener, handler: &Arc<dyn Handler>, stop: &AtomicBool, running: &Arc<AtomicUsize>) {
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let Ok(stream) = stream else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        if running.fetch_add(1, Ordering::AcqRel) >= REQUESTS_MAX {
            running.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (handler, counted) = (handler.clone(), running.clone());
        let spawned = std::thread::Builder::new().name("control-request".into()).spawn(move || {
            answer(stream, handler.as_ref());
            counted.fetch_sub(1, Ordering::AcqRel);
        });
        if let Err(error) = spawned {
            running.fetch_sub(1, Ordering::AcqRel);
            log::warn!("control socket: cannot start a thread: {error}");
        }
    }
}

fn answer(mut stream: UnixStream, handler: &dyn Handler) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let _ = stream.set_write_timeout(Some(Duration::from_secs(30)));
    let mut line = Vec::new();
    let read = BufReader::new((&stream).take(REQUEST_BYTES_MAX)).read_until(b'\n', &mut line);
    if read.is_err() || line.is_empty() {
        return;
    }
    let reply = match serde_json::from_slice::<Request>(&line) {
        Ok(request) => handler.handle(request),
        Err(error) => Err(CliError::new(ExitCode::Usage, format!("unknown request: {error}"))),
    };
    let reply =
        reply.unwrap_or_else(|error| Reply::Error { code: error.code as i32, message: error.to_string() });
    if let Ok(bytes) = serde_json::to_vec(&reply) {
        let _ = stream.write_all(&bytes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]
    use super::*;
    use crate::control::ask;

    struct Silent;
    impl Handler for Silent {
        fn handle(&self, _request: Request) -> Result<Reply, CliError> {
            Ok(Reply::Done)
        }
    }

    /// A mount whose state directory was deleted beneath it never ended: its control thread waited for a connection that
    /// nobody could make any more.
    #[test]
    fn it_ends_when_its_socket_has_been_removed() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path(), Arc::new(Silent)).unwrap();
        assert!(ask(dir.path(), &Request::Status, None).unwrap().is_some());
        std::fs::remove_file(dir.path().join(SOCKET)).unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(server);
            let _ = done.send(());
        });
        ended.recv_timeout(Duration::from_secs(30)).unwrap();
    }
}
