//! The commands, one module each.

mod demo;
pub(crate) mod journal;
mod man;
mod mount;
mod peer;
pub(crate) mod status;
mod sync;
mod takeover;
mod umount;

pub(crate) use mount::mount;
pub(crate) use umount::remount;

use crate::cli::{Cli, Command, OnOutageArg};
use crate::control::{self, Reply, Request};
use crate::exit_code::{CliError, ExitCode};
use crate::registry;
use clap::CommandFactory as _;
use mirrorfs_journal::log::OnOutage;
use std::path::{Path, PathBuf};

/// Carries out one command.
pub(crate) fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Mount(arguments) => mount(*arguments, &std::env::args_os().skip(1).collect::<Vec<_>>()),
        Command::Peer(arguments) => peer::peer(&arguments),
        Command::Umount { mountpoint, force } => umount::umount(&mountpoint, force),
        Command::Sync { mountpoint, timeout } => sync::sync(&mountpoint, timeout),
        Command::Status { target, json, watch } => status::status(target.as_deref(), json, watch),
        Command::Journal(command) => journal::journal(command),
        Command::OnOutage { mountpoint, policy } => {
            let dir = running_mount(&mountpoint)?;
            let reply = control::ask(&dir, &Request::OnOutage { policy: policy.into() }, None)?;
            expect_done(reply, &mountpoint)
        }
        Command::Promote { dir, force } => takeover::promote(&dir, force),
        Command::Demote { dir, discard } => takeover::demote(&dir, discard),
        Command::Keygen { file } => {
            crate::key::generate(&file)?;
            println!("Made {}. Copy it to the other host over a safe channel, mode 0600.", file.display());
            Ok(ExitCode::Success)
        }
        Command::Demo { keep } => demo::demo(keep),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "mirrorfs", &mut std::io::stdout());
            Ok(ExitCode::Success)
        }
        Command::Man { dir } => man::write(&dir),
    }
}

impl From<OnOutageArg> for OnOutage {
    fn from(policy: OnOutageArg) -> Self {
        match policy {
            OnOutageArg::Queue => Self::Queue,
            OnOutageArg::Block => Self::Block,
            OnOutageArg::Readonly => Self::Readonly,
        }
    }
}

/// The state directory of a mount whose process is to be asked.
fn running_mount(mountpoint: &Path) -> Result<PathBuf, CliError> {
    registry::resolve(mountpoint)
}

/// The usual answer of a command that only does something.
fn expect_done(reply: Option<Reply>, target: &Path) -> Result<ExitCode, CliError> {
    match reply {
        Some(_) => Ok(ExitCode::Success),
        None => Err(not_running(target)),
    }
}

/// No process serves the target.
fn not_running(target: &Path) -> CliError {
    CliError::new(
        ExitCode::NotFound,
        format!("no mirrorfs process serves {} (mirrorfs mount starts one)", target.display()),
    )
}
