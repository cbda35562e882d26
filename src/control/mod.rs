//! The control socket: how commands talk to a running mount or peer. One JSON request and one JSON reply a connection.

mod protocol;
mod server;

pub(crate) use protocol::{JournalRow, LunStatus, MountStatus, Reply, Request, StatusReply};
pub(crate) use server::{Handler, Server};

use crate::exit_code::{CliError, Context, ExitCode};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the socket in a state directory or a peer's directory.
pub(crate) const SOCKET: &str = "control.sock";

/// A path for the socket that is never too long for a socket address: through our own descriptor of the directory.
fn short_path(dir: &std::fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(SOCKET)
}

/// Connects to the process that serves `dir`; `None` when none is running.
pub(crate) fn connect(dir: &Path) -> Result<Option<UnixStream>, CliError> {
    let Ok(handle) = std::fs::File::open(dir) else { return Ok(None) };
    match UnixStream::connect(short_path(&handle)) {
        Ok(stream) => Ok(Some(stream)),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => {
            Err(CliError::failure(format!("cannot reach the process that serves {}: {error}", dir.display())))
        }
    }
}

/// Asks the process that serves `dir`; `None` when none is running. `timeout`: how long to wait for the reply.
pub(crate) fn ask(
    dir: &Path,
    request: &Request,
    timeout: Option<Duration>,
) -> Result<Option<Reply>, CliError> {
    let Some(mut stream) = connect(dir)? else { return Ok(None) };
    let place = || format!("cannot talk to the process that serves {}", dir.display());
    stream.set_read_timeout(timeout).context(place)?;
    let mut line = serde_json::to_vec(request).context(place)?;
    line.push(b'\n');
    stream.write_all(&line).context(place)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => {
            CliError::new(ExitCode::Timeout, format!("{}: no answer in time", place()))
        }
        _ => CliError::failure(format!("{}: {error}", place())),
    })?;
    if text.is_empty() {
        return Err(CliError::failure(format!("{}: it ended before it answered", place())));
    }
    let reply: Reply = serde_json::from_str(&text).context(place)?;
    match reply {
        Reply::Error { code, message } => Err(CliError::new(ExitCode::of_error(code), message)),
        reply => Ok(Some(reply)),
    }
}
