//! Ordinary programs on a mirrored mount: the same bytes come back through the mount, after a remount, and from the mirror
//! mounted by the kernel.

use crate::Case;
use crate::support::machine::tool;
use crate::support::{Pair, Setup, assert_identical, e2fsck_clean, loop_mounted, tree};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) const CASES: &[Case] = &[
    ("cp_tar_rsync_and_a_tree_of_3000_files", cp_tar_rsync),
    ("git_init_add_commit_gc_fsck", git),
    ("sqlite_with_1000_transactions", sqlite),
    ("a_c_program_is_built_in_the_mount", c_program),
    ("posix_corners", posix_corners),
];

/// Runs a program that must succeed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

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

/// Through the mount, after a remount, and from the mirror by the kernel, `dir` (relative) has this fingerprint.
fn assert_everywhere(pair: &mut Pair, dirs: &[(&str, &Path)]) {
    let wanted: Vec<_> = dirs.iter().map(|(_, source)| tree::fingerprint(source)).collect();
    let check = |root: PathBuf| {
        for ((dir, _), wanted) in dirs.iter().zip(&wanted) {
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

fn cp_tar_rsync() {
    let mut pair = Pair::start(Setup { size: "1G", ..Setup::default() });
    let source = source_tree(3000);
    let files = tree::fingerprint(source.path()).len();
    assert!(files >= 3000, "{files} files");
    let mnt = pair.mnt();
    run(tool("cp").arg("-a").arg(source.path()).arg(mnt.join("cp")));
    fs::create_dir(mnt.join("tar")).expect("a directory");
    let pipe = format!("tar -C {:?} --format=posix -cf - . | tar -C {:?} -xpf -", source.path(), mnt.join("tar"));
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

fn git() {
    let mut pair = Pair::start(Setup { size: "512M", ..Setup::default() });
    let repo = pair.mnt().join("repo");
    tree::make(&repo, 600, 81);
    let git = |arguments: &[&str]| {
        let mut command = tool("git");
        command.arg("-C").arg(&repo).args([
            "-c",
            "user.name=mirrorfs",
            "-c",
            "user.email=mirrorfs@localhost",
        ]);
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", "/nonexistent").args(arguments);
        run(&mut command)
    };
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "-A"]);
    git(&["commit", "-qm", "first"]);
    tree::make(&repo.join("more"), 200, 82);
    git(&["add", "-A"]);
    git(&["commit", "-qm", "second"]);
    git(&["gc", "-q", "--prune=now"]);
    git(&["fsck", "--full", "--strict"]);
    assert_eq!(git(&["status", "--porcelain"]), "");
    let kept = tempfile::tempdir_in("/dev/shm").expect("a directory");
    run(tool("cp").arg("-a").arg(&repo).arg(kept.path().join("repo")));
    assert_everywhere(&mut pair, &[("repo", &kept.path().join("repo"))]);
    git(&["fsck", "--full", "--strict"]);
    pair.umount();
}

fn sqlite() {
    let mut pair = Pair::start(Setup::default());
    let db = pair.mnt().join("app.db");
    let mut script =
        String::from("pragma synchronous=full; create table t(a integer primary key, b text);\n");
    for index in 0..1000 {
        script.push_str(&format!(
            "begin; insert into t(b) values ('row {index} {}'); commit;\n",
            "x".repeat(index % 300)
        ));
    }
    let file = pair.dir.path().join("script.sql");
    fs::write(&file, script).expect("the script");
    run(tool("sh").args(["-c", &format!("sqlite3 {:?} < {:?}", db, file)]));
    let query = |db: &Path| {
        run(tool("sqlite3").arg(db).arg("pragma integrity_check; select count(*), sum(length(b)) from t;"))
    };
    let wanted = query(&db);
    assert!(wanted.starts_with("ok\n1000|"), "{wanted}");
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    loop_mounted(&pair.mirror(), "ro,loop", |mnt| {
        let copy = pair.dir.path().join("copy.db");
        fs::copy(mnt.join("app.db"), &copy).expect("copying");
        assert_eq!(query(&copy), wanted);
    });
    pair.mount();
    assert_eq!(query(&db), wanted);
    pair.umount();
}

fn c_program() {
    let mut pair = Pair::start(Setup::default());
    let dir = pair.mnt().join("project");
    fs::create_dir(&dir).expect("a directory");
    let mut objects = Vec::new();
    let mut calls = String::new();
    for index in 0..20 {
        let text = format!("int part{index}(void) {{ return {index}; }}\n");
        fs::write(dir.join(format!("part{index}.c")), text).expect("a source");
        calls.push_str(&format!("int part{index}(void);\n"));
        objects.push(format!("part{index}.o"));
    }
    let sum: String = (0..20).map(|index| format!(" + part{index}()")).collect();
    let text =
        format!("#include <stdio.h>\n{calls}int main(void) {{ printf(\"%d\\n\", 0{sum}); return 0; }}\n");
    fs::write(dir.join("main.c"), text).expect("a source");
    for source in (0..20).map(|index| format!("part{index}.c")).chain(["main.c".into()]) {
        run(tool("gcc").current_dir(&dir).args(["-O1", "-c", &source]));
    }
    run(tool("gcc").current_dir(&dir).args(["-o", "sum", "main.o"]).args(&objects));
    assert_eq!(run(&mut Command::new(dir.join("sum"))), "190\n");
    run(tool("ar").current_dir(&dir).args(["rcs", "parts.a"]).args(&objects));
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    pair.mount();
    assert_eq!(run(&mut Command::new(dir.join("sum"))), "190\n");
    pair.umount();
}

fn posix_corners() {
    use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
    use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
    let mut pair = Pair::start(Setup::default());
    let mnt = pair.mnt();
    // An open file lives on without a name.
    let mut open = fs::File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(mnt.join("gone"))
        .expect("open");
    open.write_all(b"still here").expect("write");
    fs::remove_file(mnt.join("gone")).expect("unlink");
    open.seek(SeekFrom::Start(0)).expect("seek");
    let mut text = String::new();
    open.read_to_string(&mut text).expect("read");
    assert_eq!(text, "still here");
    assert_eq!(open.metadata().expect("fstat").nlink(), 0);
    drop(open);
    // Holes read as zeros and take no blocks.
    let sparse = fs::File::create(mnt.join("sparse")).expect("create");
    sparse.write_all_at(b"end", 100 << 20).expect("write");
    sparse.sync_all().expect("fsync");
    assert!(sparse.metadata().expect("fstat").blocks() < 100);
    let mut hole = [1; 4096];
    fs::File::open(mnt.join("sparse")).expect("open").read_exact_at(&mut hole, 50 << 20).expect("read");
    assert_eq!(hole, [0; 4096]);
    drop(sparse);
    // Long names, long symlinks, names that are no text.
    let long = "n".repeat(255);
    fs::write(mnt.join(&long), b"x").expect("255 bytes");
    assert_eq!(
        fs::write(mnt.join("n".repeat(256)), b"x").expect_err("too long").raw_os_error(),
        Some(libc::ENAMETOOLONG)
    );
    symlink("t".repeat(2000), mnt.join("long-link")).expect("symlink");
    assert_eq!(fs::read_link(mnt.join("long-link")).expect("readlink").as_os_str().len(), 2000);
    // Appends from several processes do not overwrite one another.
    let path = mnt.join("log");
    let script = format!("for i in $(seq 200); do echo line-$0-$i >> {path:?}; done");
    let mut writers: Vec<_> = (0..4)
        .map(|writer| Command::new("sh").args(["-c", &script, &writer.to_string()]).spawn().expect("sh"))
        .collect();
    for writer in &mut writers {
        assert!(writer.wait().expect("sh").success());
    }
    assert_eq!(fs::read_to_string(&path).expect("the log").lines().count(), 800);
    // Rename over an open file, hard links agree, xattrs, times.
    fs::write(mnt.join("a"), b"new").expect("write");
    fs::write(mnt.join("b"), b"old").expect("write");
    fs::rename(mnt.join("a"), mnt.join("b")).expect("rename");
    assert_eq!(fs::read(mnt.join("b")).expect("read"), b"new");
    fs::hard_link(mnt.join("b"), mnt.join("c")).expect("link");
    assert_eq!(fs::metadata(mnt.join("b")).expect("stat").nlink(), 2);
    fs::remove_file(mnt.join("b")).expect("unlink");
    assert_eq!(fs::metadata(mnt.join("c")).expect("stat").nlink(), 1);
    run(tool("setfattr").args(["-n", "user.colour", "-v", "blue"]).arg(mnt.join("c")));
    assert!(
        run(tool("getfattr").args(["-n", "user.colour", "--only-values"]).arg(mnt.join("c")))
            .contains("blue")
    );
    run(tool("setfacl").args(["-m", "u:1234:rw"]).arg(mnt.join("c")));
    assert!(run(tool("getfacl").arg("-n").arg(mnt.join("c"))).contains("user:1234:rw-"));
    run(tool("touch").args(["-d", "1999-12-31T23:59:59.123456789Z"]).arg(mnt.join("c")));
    let metadata = fs::metadata(mnt.join("c")).expect("stat");
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (946_684_799, 123_456_789));
    // Special files.
    run(tool("mkfifo").arg(mnt.join("pipe")));
    run(tool("mknod").arg(mnt.join("null")).args(["c", "1", "3"]));
    assert_eq!(fs::metadata(mnt.join("null")).expect("stat").rdev(), libc::makedev(1, 3));
    // A directory of 5,000 names, listed whole, emptied again.
    let many = mnt.join("many");
    fs::create_dir(&many).expect("mkdir");
    for index in 0..5000 {
        fs::File::create(many.join(format!("a-rather-long-name-{index}"))).expect("create");
    }
    assert_eq!(fs::read_dir(&many).expect("readdir").count(), 5000);
    fs::remove_dir_all(&many).expect("rm -r");
    let wanted = tree::fingerprint(&mnt);
    pair.sync();
    pair.umount();
    assert_identical(&pair.image(), &pair.mirror());
    e2fsck_clean(&pair.mirror());
    loop_mounted(&pair.mirror(), "ro,loop", |mnt| {
        let mut found = tree::fingerprint(mnt);
        let mut wanted = wanted.clone();
        wanted.remove(std::ffi::OsStr::new(""));
        found.remove(std::ffi::OsStr::new(""));
        tree::assert_same(&wanted, &found);
    });
}
