//! The key of a pair of hosts: a file of 32 random bytes in hexadecimal, readable by its owner only.

use crate::exit_code::{CliError, Context, ExitCode};
use mirrorfs_net::config::{Key, Security};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Where the key is looked for when none is named.
pub(crate) fn default_path() -> Option<PathBuf> {
    if crate::state_dir::is_root() {
        return Some("/etc/mirrorfs/key".into());
    }
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    config
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))
        .map(|dir| dir.join("mirrorfs/key"))
}

/// Makes a new key file; an existing one is never overwritten.
pub(crate) fn generate(path: &Path) -> Result<(), CliError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context(|| "cannot get random bytes".into())?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)
            .context(|| format!("cannot make the directory {}", parent.display()))?;
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
            let next = if error.kind() == std::io::ErrorKind::AlreadyExists {
                " (a key is never overwritten: move it away first)"
            } else {
                ""
            };
            CliError::failure(format!("cannot make {}: {error}{next}", path.display()))
        })?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(file, "{text}")
        .and_then(|()| file.sync_all())
        .context(|| format!("cannot write {}", path.display()))
}

/// Reads a key file.
pub(crate) fn read(path: &Path) -> Result<Key, CliError> {
    let text = std::fs::read_to_string(path).context(|| format!("cannot read the key {}", path.display()))?;
    let mode = std::fs::metadata(path).context(|| format!("cannot read the key {}", path.display()))?.mode();
    if mode & 0o077 != 0 {
        return Err(CliError::failure(format!(
            "the key {} can be read by others (mode {:04o}): run chmod 600 {}",
            path.display(),
            mode & 0o7777,
            path.display()
        )));
    }
    let digits = text.trim();
    let bad = || {
        CliError::failure(format!(
            "{} is not a mirrorfs key (64 hexadecimal digits): make one with mirrorfs keygen FILE and copy it to both hosts",
            path.display()
        ))
    };
    if digits.len() != 64 || !digits.is_ascii() {
        return Err(bad());
    }
    let mut key = [0; 32];
    for (index, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).map_err(|_| bad())?;
    }
    Ok(Key(key))
}

/// Chooses the protection of a link: the key named, else the default one if it is there, else none, which is allowed
/// for loopback addresses or with `--insecure` only.
pub(crate) fn security(named: Option<&Path>, insecure: bool, address: &str) -> Result<Security, CliError> {
    if let Some(path) = named {
        return Ok(Security::Key(read(path)?));
    }
    if insecure {
        return Ok(Security::None);
    }
    if let Some(path) = default_path().filter(|path| path.exists()) {
        return Ok(Security::Key(read(&path)?));
    }
    if is_loopback(address) {
        return Ok(Security::None);
    }
    let place = default_path().map_or_else(|| "FILE".into(), |path| path.display().to_string());
    Err(CliError::new(
        ExitCode::Usage,
        format!(
            "{address} is not a loopback address and there is no key: run mirrorfs keygen {place}, copy the file to the \
             other host, or pass --insecure to go without protection"
        ),
    ))
}

/// Whether every address that `HOST:PORT` stands for is a loopback one. A name that can't be resolved is not.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return ip.is_loopback();
    }
    match address.to_socket_addrs() {
        Ok(addresses) => {
            let addresses: Vec<_> = addresses.collect();
            !addresses.is_empty() && addresses.iter().all(|address| address.ip().is_loopback())
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/key");
        generate(&path).unwrap();
        let key = read(&path).unwrap();
        assert_ne!(key.0, [0; 32]);
        assert!(generate(&path).unwrap_err().to_string().contains("never overwritten"));
        assert_eq!(read(&path).unwrap(), key);
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        generate(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "zz".repeat(32)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("keygen"));
    }

    #[test]
    fn only_loopback_goes_without_a_key() {
        assert!(is_loopback("127.0.0.1:7370") && is_loopback("[::1]:7370"));
        assert!(!is_loopback("192.0.2.1:7370") && !is_loopback("[2001:db8::1]:7370"));
        assert!(!is_loopback("0.0.0.0:7370"));
    }
}
