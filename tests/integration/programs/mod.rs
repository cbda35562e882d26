//! Ordinary programs on a mirrored mount: the same bytes come back through the mount, after a remount, and from the mirror
//! mounted by the kernel.

mod c_project;
mod database_kills;
mod posix_corners;
mod postgresql;
mod sqlite;
mod trees;

use crate::Case;
use crate::support::{Pair, assert_identical, e2fsck_clean, loop_mounted, tree};
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) const CASES: &[Case] = &[
    ("cp_tar_rsync_and_a_tree_of_3000_files", trees::cp_tar_rsync),
    ("git_init_add_commit_gc_fsck", trees::git),
    ("a_c_project_of_300_files_is_built_in_the_mount", c_project::c_project),
    ("posix_corners", posix_corners::posix_corners),
    ("sqlite_with_1000_transactions", sqlite::thousand_transactions),
    ("sqlite_recovers_from_kills_of_the_mount", sqlite::recovers_from_kills_of_the_mount),
    (POSTGRESQL, postgresql::recovers_from_kills_of_the_mount),
];

/// The test that needs more than all the others do.
const POSTGRESQL: &str = "postgresql_recovers_from_kills_of_the_mount";

/// Why this test can't run on this machine, where the others can.
pub(crate) fn lacking(name: &str) -> Option<String> {
    if name == POSTGRESQL { postgresql::lacking() } else { None }
}

/// Runs a program that must succeed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

/// Through the mount, after a remount, and from the mirror by the kernel, `dir` (relative) has this fingerprint.
fn assert_everywhere(pair: &mut Pair, dirs: &[(&str, &Path)]) {
    let wanted: Vec<_> = dirs.iter().map(|(_, source)| tree::fingerprint(source)).collect();
    let check = |root: PathBuf| {
        for ((dir, _), wanted) in dirs.iter().zip(&wanted) {
            eprintln!("comparing {}", root.join(dir).display());
            tree::assert_same(wanted, &tree::fingerprint(&root.join(dir)));
        }
    };
    check(pair.mnt());
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
    loop_mounted(&pair.mirror(), "ro,loop", |mnt| check(mnt.to_path_buf()));
    pair.mount();
    check(pair.mnt());
}
