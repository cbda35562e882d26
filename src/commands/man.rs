//! `mirrorfs man`: the manual pages, from the command line's own description and from what only a manual has to say.
//!
//! `contrib/man` holds them as committed; a test below keeps both the same.

use crate::cli::Cli;
use crate::exit_code::{CliError, Context, ExitCode};
use clap::CommandFactory as _;
use clap_mangen::Man;
use std::io::{self, Write as _};
use std::path::Path;

const DURABILITY: &str = include_str!("man/durability.roff");
const OVERVIEW: &str = include_str!("man/mirrorfs.roff");
const MOUNT: &str = include_str!("man/mount.roff");
const PEER: &str = include_str!("man/peer.roff");
const HELPER: &str = include_str!("man/mount.mirrorfs.roff");

/// Writes all pages below `dir`.
pub(super) fn write(dir: &Path) -> Result<ExitCode, CliError> {
    for (path, text) in pages().context(|| "cannot make the manual pages".into())? {
        let path = dir.join(path);
        let parent = path.parent().unwrap_or(dir);
        std::fs::create_dir_all(parent).context(|| format!("cannot make {}", parent.display()))?;
        std::fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::Success)
}

/// Each page: its path below a directory of manuals, and its text.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut pages = Vec::new();
    let mut waiting = vec![root];
    while let Some(command) = waiting.pop() {
        waiting.extend(command.get_subcommands().filter(|command| !command.is_hide_set()).cloned());
        let man = Man::new(command.clone()).source(version()).manual("mirrorfs");
        pages.push((format!("man1/{}", man.get_filename()), page(&man, &command)?));
    }
    let title = format!(".TH mount.mirrorfs 8 \"\" \"{}\" mirrorfs\n", version());
    pages.push(("man8/mount.mirrorfs.8".into(), [title.as_bytes(), HELPER.as_bytes()].concat()));
    pages.sort();
    Ok(pages)
}

fn version() -> String {
    format!("mirrorfs {}", env!("CARGO_PKG_VERSION"))
}

fn page(man: &Man, command: &clap::Command) -> io::Result<Vec<u8>> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut out)?;
    }
    if let Some(units) = command.get_after_help() {
        write!(out, ".SH UNITS\n{units}\n")?;
    }
    out.extend_from_slice(match name {
        "mirrorfs" => OVERVIEW.as_bytes(),
        "mirrorfs-mount" => MOUNT.as_bytes(),
        "mirrorfs-peer" => PEER.as_bytes(),
        _ => b"",
    });
    if matches!(name, "mirrorfs" | "mirrorfs-mount" | "mirrorfs-sync") {
        out.extend_from_slice(DURABILITY.as_bytes());
    }
    exit_status(&mut out, name)?;
    see_also(&mut out, name)?;
    Ok(out)
}

fn exit_status(out: &mut Vec<u8>, name: &str) -> io::Result<()> {
    out.extend_from_slice(b".SH \"EXIT STATUS\"\n");
    // mount(8)'s helper has a page of its own.
    let not_mounted = |code| code == ExitCode::MountFailed && name != "mirrorfs";
    for (code, meaning) in ExitCode::MEANINGS.into_iter().filter(|(code, _)| !not_mounted(*code)) {
        write!(out, ".TP\n.B {}\n{}\n", code as u8, meaning.replace('\'', "\\(aq"))?;
    }
    Ok(())
}

fn see_also(out: &mut Vec<u8>, name: &str) -> io::Result<()> {
    let pages = [
        ("mirrorfs", "1"),
        ("mirrorfs-mount", "1"),
        ("mirrorfs-peer", "1"),
        ("mirrorfs-status", "1"),
        ("mount.mirrorfs", "8"),
        ("e2fsck", "8"),
        ("fsync", "2"),
    ];
    let others = pages.iter().filter(|(page, _)| *page != name);
    let list: Vec<String> = others.map(|(page, section)| format!(".BR {page} ({section})")).collect();
    writeln!(out, ".SH \"SEE ALSO\"\n{}", list.join(" ,\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_committed_pages_are_what_the_command_prints() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/man");
        let mut committed = BTreeMap::new();
        for section in ["man1", "man8"] {
            for entry in std::fs::read_dir(dir.join(section)).expect("contrib/man") {
                let path = entry.expect("an entry").path();
                let name = format!("{section}/{}", path.file_name().expect("a name").to_string_lossy());
                committed.insert(name, std::fs::read_to_string(&path).expect("a page"));
            }
        }
        let pages: BTreeMap<_, _> = pages()
            .expect("pages")
            .into_iter()
            .map(|(path, text)| (path, String::from_utf8(text).expect("UTF-8")))
            .collect();
        let hint = "after a change of the command line: cargo run -- man contrib/man";
        assert_eq!(committed.keys().collect::<Vec<_>>(), pages.keys().collect::<Vec<_>>(), "{hint}");
        for (path, text) in &pages {
            assert_eq!(&committed[path], text, "{path}: {hint}");
        }
    }

    #[test]
    fn each_option_of_mount_is_in_its_page() {
        let pages = pages().expect("pages");
        let (_, text) = pages.iter().find(|(path, _)| path == "man1/mirrorfs-mount.1").expect("its page");
        let text = String::from_utf8_lossy(text).replace('\\', "");
        let command = Cli::command();
        let mount = command.find_subcommand("mount").expect("mount");
        for option in
            mount.get_arguments().filter(|option| !option.is_hide_set()).filter_map(clap::Arg::get_long)
        {
            assert!(text.contains(&format!("--{option}")), "{option}");
        }
    }
}
