//! What this machine can do.

use std::path::Path;
use std::process::Command;

/// Why whole-system tests can't run here; `None`: they can.
pub(crate) fn lacking() -> Option<String> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Some("they need root (mounts, loop devices)".into());
    }
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_err() {
        return Some("/dev/fuse can't be opened".into());
    }
    ["mke2fs", "e2fsck", "debugfs", "fusermount3", "sqlite3", "rsync", "git", "gcc", "make", "losetup"]
        .into_iter()
        .find(|tool| !has_tool(tool))
        .map(|tool| format!("{tool} is not installed"))
}

/// Whether a program is in PATH or where system programs are.
pub(crate) fn has_tool(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| Path::new(dir).join(name).exists())
}

/// A command with a PATH that has the system programs.
pub(crate) fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}
