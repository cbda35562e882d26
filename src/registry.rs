//! Which mounts this user has or had: mount point → state directory, so that commands find both when no process runs.
//!
//! One small JSON file for each mount point, in `known/` below the state directories' root.

use crate::exit_code::{CliError, Context, ExitCode};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A known mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// Where it was mounted.
    pub(crate) mountpoint: PathBuf,
    /// Where its state is.
    pub(crate) state_dir: PathBuf,
    /// Its peer, if it has one.
    pub(crate) peer: Option<String>,
}

fn dir() -> Result<PathBuf, CliError> {
    Ok(crate::state_dir::root()?.join("known"))
}

fn file_of(mountpoint: &Path) -> Result<PathBuf, CliError> {
    use std::os::unix::ffi::OsStrExt as _;
    let name: String = mountpoint
        .as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() { char::from(*byte).to_string() } else { format!("%{byte:02x}") }
        })
        .collect();
    // A path longer than a file name may be is told apart by its end.
    let tail = name.len().saturating_sub(200);
    Ok(dir()?.join(format!("{}.json", &name[tail..])))
}

/// Remembers a mount.
pub(crate) fn remember(known: &Known) -> Result<(), CliError> {
    let path = file_of(&known.mountpoint)?;
    crate::state_dir::make_private(&dir()?)?;
    let text = serde_json::to_string_pretty(known).context(|| "cannot describe the mount".into())?;
    std::fs::write(&path, text).context(|| format!("cannot write {}", path.display()))
}

/// All known mounts, by mount point.
pub(crate) fn all() -> Result<Vec<Known>, CliError> {
    let dir = dir()?;
    let Ok(entries) = std::fs::read_dir(&dir) else { return Ok(Vec::new()) };
    let mut all: Vec<Known> = entries
        .flatten()
        .filter_map(|entry| {
            let known: Known = serde_json::from_str(&std::fs::read_to_string(entry.path()).ok()?).ok()?;
            if known.state_dir.exists() {
                return Some(known);
            }
            // Its state was deleted: there is nothing left to know.
            let _ = std::fs::remove_file(entry.path());
            None
        })
        .collect();
    all.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    Ok(all)
}

/// An absolute path of `path` that does not touch it (a dead mount point can't be looked at).
pub(crate) fn absolute(path: &Path) -> PathBuf {
    match path.parent().map(|parent| (parent.canonicalize(), path.file_name())) {
        Some((Ok(parent), Some(name))) => parent.join(name),
        _ => {
            path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_path_buf())
        }
    }
}

/// The state directory that a command's argument means: a known mount point, or a state (or peer) directory itself.
pub(crate) fn resolve(target: &Path) -> Result<PathBuf, CliError> {
    let path = absolute(target);
    let known = all()?;
    if let Some(found) = known.iter().find(|known| known.mountpoint == path) {
        return Ok(found.state_dir.clone());
    }
    if known.iter().any(|known| known.state_dir == path) || looks_like_state(&path) {
        return Ok(path);
    }
    Err(CliError::new(
        ExitCode::NotFound,
        format!(
            "{} is neither the mount point of a known mount nor a state directory (mirrorfs status lists the known ones)",
            target.display()
        ),
    ))
}

fn looks_like_state(dir: &Path) -> bool {
    dir.join("queue").is_dir()
        || dir.join(crate::control::SOCKET).exists()
        || std::fs::read_dir(dir).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                let path = entry.path();
                path.extension().is_some_and(|end| end == "img")
                    || path.is_dir()
                        && std::fs::read_dir(&path).is_ok_and(|inner| {
                            inner
                                .flatten()
                                .any(|entry| entry.path().extension().is_some_and(|end| end == "img"))
                        })
            })
        })
}
