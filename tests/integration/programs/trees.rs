//! Copies of a source tree, by cp, tar, rsync and git.

use super::{assert_everywhere, run};
use crate::support::machine::tool;
use crate::support::{Pair, Setup, assert_identical, e2fsck_clean, loop_mounted, tree};
use std::fs;
use std::path::Path;

/// A real source tree: the crates that this program was built from, or what this machine has of headers and scripts.
fn source_tree(at_least: usize) -> tempfile::TempDir {
    let target = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let mut count = 0;
    for root in ["/usr/include", "/usr/share/perl", "/usr/lib/python3", "/usr/share/doc"] {
        if !Path::new(root).exists() || count >= at_least {
            continue;
        }
        let name = root.replace('/', "_");
        // Dangling symlinks and unreadable files are copied as they are.
        run(tool("cp").args(["-a", root]).arg(target.path().join(name)));
        count = tree::fingerprint(target.path()).len();
    }
    if count < at_least {
        tree::make(&target.path().join("made"), at_least - count + 10, 77);
    }
    target
}

pub(super) fn cp_tar_rsync() {
    let mut pair = Pair::start(Setup { size: "1G", ..Setup::default() });
    let source = source_tree(3000);
    let files = tree::fingerprint(source.path()).len();
    assert!(files >= 3000, "{files} files");
    let mnt = pair.mnt();
    run(tool("cp").arg("-a").arg(source.path()).arg(mnt.join("cp")));
    fs::create_dir(mnt.join("tar")).expect("a directory");
    let pipe =
        format!("tar -C {:?} --format=posix -cf - . | tar -C {:?} -xpf -", source.path(), mnt.join("tar"));
    run(tool("sh").args(["-c", &pipe]));
    run(tool("rsync").args(["-aH"]).arg(format!("{}/", source.path().display())).arg(mnt.join("rsync")));
    // Changes, then rsync by checksum, deleting.
    let changed = tempfile::tempdir_in("/dev/shm").expect("a directory");
    run(tool("cp").arg("-a").arg(source.path()).arg(changed.path().join("x")));
    let changed = changed.path().join("x");
    tree::make(&changed.join("new"), 200, 78);
    for entry in fs::read_dir(&changed).expect("the tree").take(1) {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("new") {
            let victim =
                fs::read_dir(&path).expect("a directory").next().expect("an entry").expect("an entry").path();
            run(tool("rm").arg("-rf").arg(victim));
        }
    }
    // rsync leaves a directory's time alone where it is right to the second.
    run(tool("find").arg(&changed).args([
        "-type",
        "d",
        "-exec",
        "touch",
        "-d",
        "2001-02-03T04:05:06.789Z",
        "{}",
        "+",
    ]));
    run(tool("rsync")
        .args(["-aH", "--checksum", "--delete"])
        .arg(format!("{}/", changed.display()))
        .arg(mnt.join("rsync")));
    assert_everywhere(&mut pair, &[("cp", source.path()), ("tar", source.path()), ("rsync", &changed)]);
    fs::remove_dir_all(pair.mnt().join("cp")).expect("rm -r");
    assert!(!pair.mnt().join("cp").exists());
    pair.umount();
    e2fsck_clean(&pair.image());
    assert_identical(&pair.image(), &pair.mirror());
}

pub(super) fn git() {
    let mut pair = Pair::start(Setup { size: "512M", ..Setup::default() });
    let repo = pair.mnt().join("repo");
    tree::make(&repo, 600, 81);
    let git_in = |repo: &Path, arguments: &[&str]| {
        let mut command = tool("git");
        command.arg("-C").arg(repo).args(["-c", "user.name=mirrorfs", "-c", "user.email=mirrorfs@localhost"]);
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", "/nonexistent").args(arguments);
        run(&mut command)
    };
    let git = |arguments: &[&str]| git_in(&repo, arguments);
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "-A"]);
    git(&["commit", "-qm", "first"]);
    tree::make(&repo.join("more"), 200, 82);
    git(&["add", "-A"]);
    git(&["commit", "-qm", "second"]);
    git(&["checkout", "-q", "-b", "side", "HEAD~1"]);
    tree::make(&repo.join("side"), 50, 83);
    git(&["add", "-A"]);
    git(&["commit", "-qm", "third"]);
    git(&["merge", "-q", "-m", "both", "main"]);
    git(&["gc", "-q", "--prune=now"]);
    git(&["fsck", "--full", "--strict"]);
    assert_eq!(git(&["status", "--porcelain"]), "");
    let kept = tempfile::tempdir_in("/dev/shm").expect("a directory");
    run(tool("cp").arg("-a").arg(&repo).arg(kept.path().join("repo")));
    assert_everywhere(&mut pair, &[("repo", &kept.path().join("repo"))]);
    git(&["fsck", "--full", "--strict"]);
    assert_eq!(git(&["status", "--porcelain"]), "");
    pair.umount();
    loop_mounted(&pair.mirror(), "ro,loop", |mnt| {
        git_in(&mnt.join("repo"), &["fsck", "--full", "--strict"]);
    });
}
