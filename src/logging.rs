//! Logs, by env_logger, on standard error. `RUST_LOG` rules; without it warnings (or more with `-v`).

use std::io::Write as _;

/// Starts logging; `verbose`: how often `-v` was given.
pub(crate) fn start(verbose: u8) {
    let default = match verbose {
        0 => "warn,mirrorfs=info,mirrorfs_net=info,mirrorfs_journal=info,mirrorfs_fs=info",
        1 => "info,mirrorfs=debug,mirrorfs_net=debug,mirrorfs_journal=debug,mirrorfs_fs=debug",
        _ => "debug",
    };
    let _already_started =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default))
            .format(|out, record| {
                let time = out.timestamp_millis();
                writeln!(out, "{time} {:5} {}: {}", record.level(), record.target(), record.args())
            })
            .try_init();
}
