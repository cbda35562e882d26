//! What POSIX promises and programs lean on: unlinked open files, holes, long names, appends, links, attributes.

use super::run;
use crate::support::machine::tool;
use crate::support::{Pair, Setup, assert_identical, e2fsck_clean, loop_mounted, tree};
use std::fs;
use std::process::Command;

pub(super) fn posix_corners() {
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
