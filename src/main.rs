//! mirrorfs: live mirroring of a directory to a second machine, in user space.
//!
//! This crate is the binary: command line, daemonising, control socket and wiring. The mechanisms live in the crates
//! `mirrorfs-fs` (image, ext4, FUSE), `mirrorfs-journal` (mirror log, queue) and `mirrorfs-net` (link, peer server).

mod cli;
mod commands;
mod control;
mod daemon;
mod exit_code;
mod key;
mod logging;
mod metrics;
mod mirror_store;
mod mount_helper;
mod mount_process;
mod names;
mod panics;
mod registry;
mod state_dir;
mod units;

use exit_code::{CliError, ExitCode};

fn main() -> std::process::ExitCode {
    panics::end_the_process();
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let code = match mount_helper::invoked_as_helper(&arguments) {
        true => mount_helper::run(&arguments),
        false => run(&arguments),
    };
    code.into()
}

fn run(arguments: &[std::ffi::OsString]) -> ExitCode {
    let cli = match cli::parse(arguments) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    logging::start(cli.verbose);
    match commands::run(cli.command) {
        Ok(code) => code,
        Err(error) => report(&error),
    }
}

/// Prints an error as every command does, and gives its exit code.
fn report(error: &CliError) -> ExitCode {
    eprintln!("mirrorfs: {error}");
    error.code
}
