//! POSIX as others judge it: pjdfstest whole and fsx, on a mirrored mount, by `contrib/posix-judges`; and mappings of files, which
//! need a mount in another process.

use crate::Case;
use crate::support::machine::tool;
use crate::support::{Pair, Setup, assert_identical, e2fsck_clean};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

pub(crate) const CASES: &[Case] = &[("a_shared_mapping_is_the_file", a_shared_mapping)];

/// They need more than the other tests: see [`judges_lacking`].
pub(crate) const JUDGES: &[Case] = &[
    ("pjdfstest_finds_what_the_kernels_ext4_does", pjdfstest),
    ("fsx_finds_its_bytes_and_equal_images", fsx),
];

/// As many as the suite had when this was written; fewer can only mean that it did not run.
const PJDFSTEST_PASSED_MIN: usize = 395;
const FSX_SEEDS: usize = 2;
const FSX_OPERATIONS: &str = "20000";

/// Where the script installs the two programs: below cargo's target directory.
fn judges() -> PathBuf {
    let given = std::env::var_os("MIRRORFS_JUDGES").map(PathBuf::from);
    given.unwrap_or_else(|| {
        Path::new(env!("CARGO_BIN_EXE_mirrorfs")).ancestors().nth(2).expect("target").join("judges")
    })
}

/// Why the judges can't be called here.
pub(crate) fn judges_lacking() -> Option<String> {
    ["pjdfstest", "fsx"]
        .into_iter()
        .find(|name| !judges().join("bin").join(name).exists())
        .map(|name| format!("{name} is not installed: run contrib/posix-judges --install"))
}

/// A row of the table at the end of the script's output: passed, failed, excepted.
fn row(output: &str, suite: &str) -> [usize; 3] {
    let line = output.lines().find(|line| line.starts_with("| ") && line.contains(suite));
    let line = line.unwrap_or_else(|| panic!("no row for {suite}:\n{output}"));
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    [2, 3, 4].map(|cell| cells[cell].parse().unwrap_or_else(|_| panic!("{line}")))
}

/// Runs the script, which must find nothing unexpected; what it said.
fn judge(arguments: &[&str]) -> String {
    let state = tempfile::tempdir().expect("a directory");
    let output = tool(concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/posix-judges"))
        .arg("--short")
        .args(arguments)
        .env("MIRRORFS", env!("CARGO_BIN_EXE_mirrorfs"))
        .env("MIRRORFS_JUDGES", judges())
        .env("MIRRORFS_STATE_ROOT", state.path())
        .env_remove("RUST_LOG")
        .output()
        .expect("the script runs");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

/// Each test that passes on the kernel's ext4 passes here, but for those that `contrib/posix-exceptions.txt` gives a reason
/// for; remounts included.
fn pjdfstest() {
    let text = judge(&["--only", "pjdfstest"]);
    let [theirs, _, _] = row(&text, "pjdfstest, the kernel's ext4");
    let [passed, failed, excepted] = row(&text, "pjdfstest, mirrorfs async");
    assert_eq!((failed, passed + excepted), (0, theirs), "{text}");
    assert!(passed >= PJDFSTEST_PASSED_MIN, "{text}");
    // Whoever adds an exception says so here.
    assert_eq!(excepted, 1, "{text}");
}

fn fsx() {
    let text = judge(&["--only", "fsx", "--operations", FSX_OPERATIONS]);
    assert_eq!(row(&text, "fsx, "), [FSX_SEEDS, 0, 0], "{text}");
    assert!(text.contains(&format!("{FSX_SEEDS} seeds × {FSX_OPERATIONS}")), "{text}");
}

/// A shared mapping of a whole file.
struct Mapping(*mut u8, usize);

impl Mapping {
    fn new(file: &File, length: usize) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(at.cast(), length)
    }
    fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.1);
        // SAFETY: within the mapping, which lives as long as self; nobody holds a reference into it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(at), bytes.len()) };
    }
    fn get(&self, at: usize, length: usize) -> Vec<u8> {
        assert!(at + length <= self.1);
        let mut bytes = vec![0; length];
        // SAFETY: as in `put`.
        unsafe { std::ptr::copy_nonoverlapping(self.0.add(at), bytes.as_mut_ptr(), length) };
        bytes
    }
    fn sync(&self) {
        // SAFETY: the mapping is ours.
        let result = unsafe { libc::msync(self.0.cast(), self.1, libc::MS_SYNC) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

fn a_shared_mapping() {
    for mode in ["async", "sync"] {
        let mut pair = Pair::start(Setup::with(&[&format!("--mode={mode}")]));
        let path = pair.mnt().join("mapped");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("open");
        file.set_len(300_000).expect("truncate");
        let (one, two) = (Mapping::new(&file, 300_000), Mapping::new(&file, 300_000));
        one.put(100_000, b"mapped");
        assert_eq!(two.get(100_000, 6), b"mapped");
        let mut found = [0; 6];
        file.read_exact_at(&mut found, 100_000).expect("read");
        assert_eq!(&found, b"mapped");
        file.write_all_at(b"written", 200_000).expect("write");
        assert_eq!(one.get(200_000, 7), b"written");
        one.sync();
        // Nothing but the mapping keeps it, and it has changed since.
        drop((file, two));
        one.put(299_990, b"the end");
        drop(one);
        pair.sync();
        pair.umount();
        assert_identical(&pair.image(), &pair.mirror());
        e2fsck_clean(&pair.mirror());
        pair.mount();
        let content = fs::read(&path).expect("read");
        assert_eq!(content.len(), 300_000);
        assert_eq!(
            (&content[100_000..100_006], &content[200_000..200_007]),
            (&b"mapped"[..], &b"written"[..])
        );
        assert_eq!((&content[299_990..299_997], &content[..5]), (&b"the end"[..], &[0; 5][..]));
        pair.umount();
    }
}
