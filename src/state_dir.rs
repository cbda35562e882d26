//! Where a mount keeps its state, and how names become paths.

use crate::exit_code::{CliError, Context, ExitCode};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Whether we run as root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Directory that holds the state directories of this user's mounts; `MIRRORFS_STATE_ROOT` overrides it.
pub(crate) fn root() -> Result<PathBuf, CliError> {
    if let Some(root) =
        std::env::var_os("MIRRORFS_STATE_ROOT").map(PathBuf::from).filter(|path| path.is_absolute())
    {
        return Ok(root);
    }
    if is_root() {
        return Ok("/var/lib/mirrorfs".into());
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    state
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state")))
        .map(|dir| dir.join("mirrorfs"))
        .ok_or_else(|| {
            CliError::new(
                ExitCode::Usage,
                "neither XDG_STATE_HOME nor HOME is set: name a place with --state-dir",
            )
        })
}

/// A mount's name, made from its mount point: `/mnt/data` → `mnt-data`.
pub(crate) fn name_of(mountpoint: &Path) -> String {
    let text = mountpoint.to_string_lossy();
    let name: String = text
        .trim_matches('/')
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' })
        .collect();
    let name = name.trim_start_matches('.').to_string();
    let short: String = name.chars().take(64).collect();
    if short.is_empty() { "root".into() } else { short }
}

/// Checks a name that becomes a file name or travels to the peer.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), CliError> {
    let good = !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if good {
        return Ok(());
    }
    Err(CliError::usage(format!(
        "{what} '{name}' is not usable: 1 to 64 letters, digits, '.', '_' or '-', not starting with a dot"
    )))
}

/// This host's name, as the default of `--node`.
pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect())
        .unwrap_or_else(|_| String::from("host"))
}

/// Makes a directory that only its owner can enter, with its parents.
pub(crate) fn make_private(dir: &Path) -> Result<(), CliError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .context(|| format!("cannot make the directory {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_mount_points() {
        assert_eq!(name_of(Path::new("/mnt/data")), "mnt-data");
        assert_eq!(name_of(Path::new("/")), "root");
        assert_eq!(name_of(Path::new("/srv/a b/.x")), "srv-a-b-.x");
    }

    #[test]
    fn bad_names_are_refused() {
        assert!(check_name("node", "web-1.example").is_ok());
        for bad in ["", ".x", "a/b", "..", "a b", &"x".repeat(65)] {
            assert!(check_name("node", bad).is_err(), "{bad}");
        }
    }
}
