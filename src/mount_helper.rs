//! The program as mount(8)'s helper, under the names `mount.mirrorfs` and `mount.fuse.mirrorfs`, or called by libfuse's
//! `mount.fuse` as `mirrorfs SRC MNT -o …`.
//!
//! SRC is `HOST:PORT`, `HOST:PORT/NAME` (NAME: the state directory's name) or, with `-o local`, an image file. Each long
//! option of `mirrorfs mount` works as an `-o` option (`-o size=2G,mode=sync`).

use crate::cli::{self, Command};
use crate::exit_code::{CliError, ExitCode};
use clap::CommandFactory as _;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Options of mount(8) that change nothing here.
const TOLERATED: [&str; 23] = [
    "rw",
    "relatime",
    "strictatime",
    "diratime",
    "lazytime",
    "nolazytime",
    "async",
    "_netdev",
    "nofail",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "acl",
    "user_xattr",
    "defaults",
    "exec",
    "suid",
    "dev",
    "atime",
];
/// Options of mount(8) that are handed on to `mirrorfs mount -o`.
const HANDED_ON: [&str; 10] = [
    "ro",
    "noatime",
    "nodiratime",
    "sync",
    "dirsync",
    "nosuid",
    "nodev",
    "noexec",
    "allow_other",
    "default_permissions",
];

/// Whether the program's name, or the shape of its arguments, is that of a mount helper.
pub(crate) fn invoked_as_helper(arguments: &[OsString]) -> bool {
    let name = arguments.first().and_then(|first| Path::new(first).file_name()).unwrap_or_default();
    if name == "mount.mirrorfs" || name == "mount.fuse.mirrorfs" {
        return true;
    }
    // libfuse's mount.fuse runs `mirrorfs SRC MNT -o …`; no command contains ':' or '/'.
    arguments.get(1).is_some_and(|first| first.to_string_lossy().contains([':', '/']))
        && arguments.len() >= 3
        && !arguments[2].to_string_lossy().starts_with('-')
}

/// Mounts as mount(8) asks.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    if std::env::var_os("PATH").is_none() {
        // SAFETY: no thread has been started yet.
        unsafe { std::env::set_var("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin") };
    }
    match translate(&arguments[1..]) {
        Ok(Asked::Nothing) => ExitCode::Success,
        Ok(Asked::Remount { mountpoint, read_only }) => {
            finish(crate::commands::remount(&mountpoint, read_only))
        }
        Ok(Asked::Mount(arguments)) => {
            let mut full = vec![OsString::from("mirrorfs")];
            full.extend(arguments.iter().cloned());
            let Ok(cli) = cli::parse(&full) else { return ExitCode::Failure };
            crate::logging::start(cli.verbose);
            let Command::Mount(mount) = cli.command else { return ExitCode::Failure };
            finish(crate::commands::mount(*mount, &arguments))
        }
        Err(error) => {
            crate::report(&error);
            ExitCode::Failure
        }
    }
}

/// mount(8) knows 1 (usage) and 32 (failure).
fn finish(result: Result<ExitCode, CliError>) -> ExitCode {
    match result {
        Ok(ExitCode::Success) => ExitCode::Success,
        Ok(_) => ExitCode::MountFailed,
        Err(error) => {
            crate::report(&error);
            ExitCode::MountFailed
        }
    }
}

/// What mount(8) asked for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// `-f`: only pretend.
    Nothing,
    Remount {
        mountpoint: PathBuf,
        read_only: bool,
    },
    /// The arguments of `mirrorfs`, from `mount` on.
    Mount(Vec<OsString>),
}

fn translate(arguments: &[OsString]) -> Result<Asked, CliError> {
    let mut positional: Vec<&OsStr> = Vec::new();
    let mut options: Vec<String> = Vec::new();
    let mut pretend = false;
    let mut verbose = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("-o") => {
                let text = rest.next().ok_or_else(|| CliError::usage("-o needs options"))?;
                options.extend(
                    text.to_string_lossy().split(',').filter(|part| !part.is_empty()).map(str::to_string),
                );
            }
            Some("-f") => pretend = true,
            Some("-v") => verbose = true,
            Some("-n" | "-s") => {}
            Some("-t") => {
                let _type_of_file_system = rest.next();
            }
            Some(other) if other.starts_with('-') && other.len() > 1 => {
                return Err(CliError::usage(format!("unknown option {other}")));
            }
            _ => positional.push(argument),
        }
    }
    let [source, mountpoint] = positional[..] else {
        return Err(CliError::usage("usage: mount.mirrorfs HOST:PORT[/NAME] MOUNTPOINT [-o OPTIONS]"));
    };
    if options.iter().any(|option| option == "remount") {
        let read_only = options.iter().rev().find_map(|option| match option.as_str() {
            "ro" => Some(true),
            "rw" => Some(false),
            _ => None,
        });
        return Ok(Asked::Remount { mountpoint: mountpoint.into(), read_only: read_only.unwrap_or(false) });
    }
    if pretend {
        return Ok(Asked::Nothing);
    }
    mount_arguments(source, mountpoint, &options, verbose).map(Asked::Mount)
}

fn mount_arguments(
    source: &OsStr,
    mountpoint: &OsStr,
    options: &[String],
    verbose: bool,
) -> Result<Vec<OsString>, CliError> {
    let mut arguments: Vec<OsString> = vec!["mount".into(), mountpoint.into()];
    if verbose {
        arguments.push("-v".into());
    }
    let text = source.to_string_lossy();
    if options.iter().any(|option| option == "local") {
        arguments.push("--image".into());
        arguments.push(source.into());
    } else {
        let (peer, name) = text.split_once('/').map_or((&*text, None), |(peer, name)| (peer, Some(name)));
        arguments.push(format!("--peer={peer}").into());
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            crate::state_dir::check_name("the name behind HOST:PORT/", name)?;
            let dir = crate::state_dir::root()?.join(name);
            arguments.push("--state-dir".into());
            arguments.push(dir.into());
        }
    }
    arguments.push("--source".into());
    arguments.push(source.into());
    let command = cli::Cli::command();
    let mount = command.find_subcommand("mount").expect("mount is a command");
    for option in options {
        let (name, value) =
            option.split_once('=').map_or((option.as_str(), None), |(name, value)| (name, Some(value)));
        let long = name.replace('_', "-");
        let known = mount.get_arguments().find(|argument| argument.get_long() == Some(long.as_str()));
        if TOLERATED.contains(&name) || name.starts_with("x-") || name.starts_with("comment") {
            continue;
        } else if HANDED_ON.contains(&name) {
            arguments.push("-o".into());
            arguments.push(name.into());
        } else if let Some(known) = known {
            let takes_value = known.get_action().takes_values();
            match value {
                Some(value) if takes_value => arguments.push(format!("--{long}={value}").into()),
                None if !takes_value => arguments.push(format!("--{long}").into()),
                _ => {
                    return Err(CliError::usage(format!(
                        "-o {option}: {}",
                        if takes_value { "a value is missing" } else { "it takes no value" }
                    )));
                }
            }
        } else {
            return Err(CliError::usage(format!(
                "unknown mount option '{option}' (mirrorfs mount --help lists them)"
            )));
        }
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]
    use super::*;

    fn asked(arguments: &[&str]) -> Result<Asked, String> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        translate(&arguments).map_err(|error| error.to_string())
    }

    fn mount(arguments: &[&str]) -> Vec<String> {
        let Asked::Mount(arguments) = asked(arguments).unwrap() else { panic!("not a mount") };
        arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn long_options_work_as_mount_options() {
        let got =
            mount(&["b:7370", "/mnt/x", "-o", "rw,size=2G,mode=sync,noatime,_netdev,x-systemd.automount"]);
        let wanted = [
            "mount",
            "/mnt/x",
            "--peer=b:7370",
            "--source",
            "b:7370",
            "--size=2G",
            "--mode=sync",
            "-o",
            "noatime",
        ];
        assert_eq!(got, wanted);
    }

    #[test]
    fn a_local_image_is_a_source() {
        let got = mount(&["/srv/x.img", "/mnt/x", "-o", "local"]);
        assert_eq!(got, ["mount", "/mnt/x", "--image", "/srv/x.img", "--source", "/srv/x.img", "--local"]);
    }

    #[test]
    fn a_name_chooses_the_state_directory() {
        let got = mount(&["b:7370/mail", "/mnt/x"]);
        assert!(got[4].ends_with("/mail"), "{got:?}");
        assert!(asked(&["b:7370/../x", "/mnt/x"]).unwrap_err().contains("not usable"));
    }

    #[test]
    fn remount_and_unknown_options() {
        let wanted = Asked::Remount { mountpoint: "/mnt/x".into(), read_only: true };
        assert_eq!(asked(&["b:1", "/mnt/x", "-o", "remount,ro"]), Ok(wanted));
        assert!(asked(&["b:1", "/mnt/x", "-o", "colour=red"]).unwrap_err().contains("colour"));
        assert!(asked(&["b:1", "/mnt/x", "-o", "size"]).unwrap_err().contains("value is missing"));
        assert!(asked(&["b:1"]).is_err());
    }

    #[test]
    fn helper_names_are_known() {
        let as_helper =
            |words: &[&str]| invoked_as_helper(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(as_helper(&["/sbin/mount.mirrorfs", "b:1", "/mnt"]));
        assert!(as_helper(&["mirrorfs", "b:1", "/mnt", "-o", "rw"]));
        assert!(!as_helper(&["mirrorfs", "mount", "/mnt", "--peer", "b:1"]));
        assert!(!as_helper(&["mirrorfs", "status", "/mnt"]));
    }
}
