//! What a mount is to do: the command line, checked and resolved.

use crate::cli::{DEFAULT_PORT, LinkArgs, Mode, MountArgs};
use crate::exit_code::{CliError, Context};
use crate::{key, registry, state_dir};
use mirrorfs_fs::fuse::MountOptions;
use mirrorfs_journal::log::OnOutage;
use mirrorfs_net::config::{Security, Times};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Settings of a mount.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) mountpoint: PathBuf,
    pub(crate) state_dir: PathBuf,
    /// An image elsewhere than in the state directory.
    pub(crate) image: Option<PathBuf>,
    pub(crate) size: u64,
    pub(crate) mode: Mode,
    pub(crate) on_outage: OnOutage,
    /// Name and "mirrored" of each LUN, in the order given.
    pub(crate) luns: Vec<(String, bool)>,
    /// `None`: nothing is mirrored.
    pub(crate) link: Option<LinkSettings>,
    pub(crate) listen: Option<Listen>,
    pub(crate) mirror_dir: Option<PathBuf>,
    pub(crate) times: Times,
    pub(crate) memory: u64,
    pub(crate) queue_max: Option<u64>,
    pub(crate) threads: Option<u16>,
    /// Where metrics are served.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) source: String,
    pub(crate) read_only: bool,
    pub(crate) no_atime: bool,
    pub(crate) mount_options: MountOptions,
}

/// The link to the peer.
#[derive(Clone, Debug)]
pub(crate) struct LinkSettings {
    pub(crate) peer: String,
    pub(crate) workers: u16,
    pub(crate) node: String,
    pub(crate) security: Security,
}

/// The other direction: being the peer of the other host.
#[derive(Clone, Debug)]
pub(crate) struct Listen {
    pub(crate) addr: SocketAddr,
    pub(crate) security: Security,
}

impl Settings {
    /// From the command line.
    pub(crate) fn new(arguments: &MountArgs) -> Result<Self, CliError> {
        arguments.link.check()?;
        let mountpoint = registry::absolute(&arguments.mountpoint);
        let name = state_dir::name_of(&mountpoint);
        let state_dir = match &arguments.state_dir {
            Some(dir) => std::path::absolute(dir).context(|| format!("state directory {}", dir.display()))?,
            None => state_dir::root()?.join(&name),
        };
        if state_dir.starts_with(&mountpoint) {
            return Err(CliError::usage(format!(
                "the state directory {} is inside the mount point",
                state_dir.display()
            )));
        }
        let link = arguments.peer.as_deref().map(|peer| link(arguments, peer, &state_dir)).transpose()?;
        let listen = arguments.listen.map(|addr| listen(&arguments.link, addr)).transpose()?;
        let options = Options::read(&arguments.options)?;
        let source = arguments.source.clone().or_else(|| link.as_ref().map(|link| link.peer.clone()));
        let image = arguments.image.as_ref().map(std::path::absolute).transpose();
        let image = image.context(|| "image".into())?;
        let source = source.unwrap_or_else(|| image.as_ref().unwrap_or(&state_dir).display().to_string());
        let mirror_dir = arguments.mirror_dir.as_ref().map(std::path::absolute).transpose();
        Ok(Self {
            luns: luns(&arguments.luns, link.is_some())?,
            image,
            size: arguments.size,
            mode: arguments.mode,
            on_outage: arguments.on_outage.into(),
            link,
            listen,
            mirror_dir: mirror_dir.context(|| "mirror directory".into())?,
            times: (&arguments.link).into(),
            memory: arguments.memory,
            queue_max: arguments.queue_max,
            threads: arguments.threads,
            metrics: arguments.metrics,
            source,
            read_only: options.mount.read_only,
            no_atime: options.mount.no_atime,
            mount_options: options.mount,
            mountpoint,
            state_dir,
        })
    }
}

fn link(arguments: &MountArgs, peer: &str, state_dir: &Path) -> Result<LinkSettings, CliError> {
    let peer = with_port(peer)?;
    let node = match &arguments.node {
        Some(node) => node.clone(),
        None => {
            let name = state_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let both = format!("{}-{name}", state_dir::host_name());
            both.chars().take(64).collect()
        }
    };
    state_dir::check_name("--node", &node)?;
    let security = key::security(arguments.link.key.as_deref(), arguments.link.insecure, &peer)?;
    Ok(LinkSettings { peer, workers: arguments.workers, node, security })
}

fn listen(link: &LinkArgs, addr: SocketAddr) -> Result<Listen, CliError> {
    let security = key::security(link.key.as_deref(), link.insecure, &addr.to_string())?;
    Ok(Listen { addr, security })
}

/// `HOST`, `HOST:PORT`, `[V6]`, `[V6]:PORT` or a bare IPv6 address, with the default port where none is given.
fn with_port(peer: &str) -> Result<String, CliError> {
    if let Ok(ip) = peer.parse::<std::net::Ipv6Addr>() {
        return Ok(format!("[{ip}]:{DEFAULT_PORT}"));
    }
    let has_port = match peer.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => {
            let valid = port.parse::<u16>().is_ok_and(|port| port > 0);
            if !valid {
                return Err(CliError::usage(format!("--peer {peer}: '{port}' is not a port (1 to 65535)")));
            }
            true
        }
        _ => false,
    };
    Ok(if has_port { peer.to_string() } else { format!("{peer}:{DEFAULT_PORT}") })
}

/// Names and designations of the LUNs; `data` when none is named.
fn luns(given: &[String], has_peer: bool) -> Result<Vec<(String, bool)>, CliError> {
    if given.is_empty() {
        return Ok(vec![("data".into(), has_peer)]);
    }
    let mut luns: Vec<(String, bool)> = Vec::new();
    for text in given {
        let (name, mirrored) = match text.split_once(':') {
            None => (text.as_str(), has_peer),
            Some((name, "local")) => (name, false),
            Some((_, other)) => {
                return Err(CliError::usage(format!(
                    "--lun {text}: '{other}' is not a designation (only 'local' is)"
                )));
            }
        };
        state_dir::check_name("--lun", name)?;
        if luns.iter().any(|(known, _)| known == name) {
            return Err(CliError::usage(format!("--lun {name} is given twice")));
        }
        luns.push((name.into(), mirrored));
    }
    Ok(luns)
}

/// `-o` options of `mirrorfs mount` itself.
#[derive(Debug, Default)]
struct Options {
    mount: MountOptions,
}

impl Options {
    fn read(options: &[String]) -> Result<Self, CliError> {
        let mut mount = MountOptions::default();
        for option in options.iter().filter(|option| !option.is_empty()) {
            match option.as_str() {
                "ro" => mount.read_only = true,
                "rw" => mount.read_only = false,
                "noatime" => mount.no_atime = true,
                "nodiratime" => mount.no_dir_atime = true,
                "sync" => mount.synchronous = true,
                "dirsync" => mount.dirsync = true,
                "nosuid" => mount.no_suid = true,
                "nodev" => mount.no_dev = true,
                "noexec" => mount.no_exec = true,
                "allow_other" => mount.allow_other = true,
                "default_permissions" | "relatime" | "defaults" => {}
                other => {
                    return Err(CliError::usage(format!(
                        "unknown option -o {other} (known: ro, rw, noatime, nodiratime, sync, dirsync, nosuid, nodev, noexec, allow_other)"
                    )));
                }
            }
        }
        mount.allow_other |= MountOptions::allow_other_by_default();
        Ok(Self { mount })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]
    use super::*;

    #[test]
    fn peers_get_the_default_port() {
        assert_eq!(with_port("b").unwrap(), "b:7370");
        assert_eq!(with_port("b:1").unwrap(), "b:1");
        assert_eq!(with_port("::1").unwrap(), "[::1]:7370");
        assert_eq!(with_port("[::1]:9").unwrap(), "[::1]:9");
        assert_eq!(with_port("[::1]").unwrap(), "[::1]:7370");
        assert!(with_port("b:x").is_err() && with_port("b:0").is_err());
    }

    #[test]
    fn luns_are_designated_by_name() {
        let given = ["a".to_string(), "b:local".to_string()];
        assert_eq!(luns(&given, true).unwrap(), [("a".to_string(), true), ("b".to_string(), false)]);
        assert_eq!(luns(&[], false).unwrap(), [("data".to_string(), false)]);
        for bad in ["a:remote", "../a", ""] {
            assert!(luns(&[bad.to_string()], true).is_err(), "{bad}");
        }
        assert!(luns(&["a".into(), "a:local".into()], true).is_err());
    }
}
