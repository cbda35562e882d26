//! `mirrorfs peer`.

use crate::cli::PeerArgs;
use crate::control::{Handler, Reply, Request, Server, StatusReply};
use crate::exit_code::{CliError, Context, ExitCode};
use crate::key;
use crate::metrics::Endpoint;
use crate::mirror_store::DirectoryStore;
use crate::state_dir::make_private;
use mirrorfs_net::peer::{PeerConfig, PeerServer};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::Arc;

/// Serves until a signal ends it.
pub(super) fn peer(arguments: &PeerArgs) -> Result<ExitCode, CliError> {
    arguments.link.check()?;
    let listen = arguments.listen;
    let security =
        key::security(arguments.link.key.as_deref(), arguments.link.insecure, &listen.to_string())?;
    make_private(&arguments.dir)?;
    let dir = arguments.dir.canonicalize().context(|| format!("cannot use {}", arguments.dir.display()))?;
    if crate::control::connect(&dir)?.is_some() {
        return Err(CliError::new(
            ExitCode::Busy,
            format!("another process serves the mirrors in {}", dir.display()),
        ));
    }
    let metrics = arguments.metrics.map(Endpoint::bind).transpose()?;
    let config = PeerConfig { listen, security, times: (&arguments.link).into() };
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
        .context(|| "cannot watch for signals".into())?;
    let server = PeerServer::start(config, Arc::new(DirectoryStore::new(dir.clone()))).map_err(|error| {
        let code =
            if error.kind() == std::io::ErrorKind::AddrInUse { ExitCode::Busy } else { ExitCode::Failure };
        CliError::new(code, format!("cannot be a peer: {error}"))
    })?;
    let server = Arc::new(server);
    log::info!("serving mirrors in {} on {}", dir.display(), server.listen_addr());
    let handler = Arc::new(PeerHandler { server: server.clone() });
    let control = Server::start(&dir, handler.clone())?;
    let metrics = metrics.map(|endpoint| endpoint.serve(handler)).transpose()?;
    if let Some(signal) = signals.forever().next() {
        log::info!("signal {signal}: closing the mirrors");
    }
    drop(metrics);
    drop(control);
    if let Some(server) = Arc::into_inner(server) {
        server.stop();
    }
    Ok(ExitCode::Success)
}

struct PeerHandler {
    server: Arc<PeerServer>,
}

impl Handler for PeerHandler {
    fn handle(&self, request: Request) -> Result<Reply, CliError> {
        match request {
            Request::Status => {
                let peer = self.server.status();
                let connected = peer.sessions.iter().filter(|session| session.connected).count();
                let summary = format!("serving {connected} of {} known primaries", peer.sessions.len());
                let pid = Some(std::process::id());
                let status =
                    StatusReply { verdict: "serving".into(), summary, pid, mount: None, peer: Some(peer) };
                Ok(Reply::Status(Box::new(status)))
            }
            _ => Err(CliError::new(ExitCode::Usage, "this is a peer's directory, not a mount")),
        }
    }
}
