//! The judge that we did not write, on a file that is rewritten only where it differs.

use super::pages::{PAGE_BYTES, Pages};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// A temporary directory on the RAM disk, where there is one.
pub(super) fn temp_dir() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    dir.expect("a temporary directory")
}

/// Runs a tool of e2fsprogs: exit code and all that it said.
pub(super) fn tool(program: &str, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(program).args(arguments).env("PATH", PATH).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error} (e2fsprogs is needed)"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text)
}

/// A file that takes one state after the other.
pub(super) struct Scratch {
    _dir: tempfile::TempDir,
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
}

impl Scratch {
    pub(super) fn new(size_bytes: u64) -> Self {
        let dir = temp_dir();
        let path = dir.path().join("image");
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
        file.set_len(size_bytes).expect("a sparse file");
        Self { _dir: dir, path, file, buffer: Vec::new() }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("a path in ASCII")
    }

    /// Calls `differs` for each page that is not as in `pages`, with what the file has there.
    fn compare(&mut self, pages: &Pages, mut differs: impl FnMut(&File, usize, &[u8])) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let zeros = [0; PAGE_BYTES as usize];
        let mut next = 0;
        while next < pages.count() {
            let (hole, data) = self.next_data(next, pages.count());
            for index in next..hole {
                if pages.page(index).is_some_and(|page| *page != zeros) {
                    differs(&self.file, index, &zeros);
                }
            }
            buffer.resize((data - hole) * PAGE_BYTES as usize, 0);
            self.file.read_exact_at(&mut buffer, hole as u64 * PAGE_BYTES).expect("reading");
            for (index, found) in (hole..data).zip(buffer.chunks(PAGE_BYTES as usize)) {
                if found != pages.page(index).unwrap_or(&zeros) {
                    differs(&self.file, index, found);
                }
            }
            next = data;
        }
        self.buffer = buffer;
    }

    /// The pages of the next run of data at or behind `from`.
    fn next_data(&self, from: usize, count: usize) -> (usize, usize) {
        use std::os::fd::AsRawFd;
        let seek = |at: usize, whence: libc::c_int| {
            let at = at as libc::off_t * PAGE_BYTES as libc::off_t;
            // SAFETY: plain system call on a descriptor that `self.file` keeps open; its position is used by nobody.
            let found = unsafe { libc::lseek(self.file.as_raw_fd(), at, whence) };
            u64::try_from(found).map_or(count, |found| (found / PAGE_BYTES) as usize)
        };
        let start = seek(from, libc::SEEK_DATA).min(count);
        if start == count {
            (count, count)
        } else {
            (start, seek(start, libc::SEEK_HOLE).clamp(start + 1, count))
        }
    }

    /// Makes the file hold this.
    pub(super) fn put(&mut self, pages: &Pages) {
        let zeros = [0; PAGE_BYTES as usize];
        self.compare(pages, |file, index, _| {
            let wanted = pages.page(index).unwrap_or(&zeros);
            file.write_all_at(wanted, index as u64 * PAGE_BYTES).expect("writing");
        });
    }

    /// The first byte where the file is not as in `pages`, the ranges `apart` left out.
    pub(super) fn difference(&mut self, pages: &Pages, apart: &[std::ops::Range<u64>]) -> Option<u64> {
        let zeros = [0; PAGE_BYTES as usize];
        let mut first = None;
        self.compare(pages, |_, index, found| {
            let wanted = pages.page(index).unwrap_or(&zeros);
            let start = index as u64 * PAGE_BYTES;
            let mut differing = (start..).zip(found.iter().zip(wanted)).filter(|(_, (a, b))| a != b);
            let at = differing.find(|(at, _)| !apart.iter().any(|range| range.contains(at)));
            first = first.or(at.map(|(at, _)| at));
        });
        first
    }

    /// `e2fsck -E journal_only`: replay, and the orphans' end, which belongs to it. It must not find anything to mend.
    pub(super) fn replay(&self) -> Result<(), String> {
        let (code, text) = tool("e2fsck", &["-y", "-E", "journal_only", self.path()]);
        let expected = |line: &str| {
            let line = line.trim();
            line.is_empty()
                || line.starts_with("e2fsck ")
                || line.ends_with(": recovering journal")
                || line.starts_with("Clearing orphaned inode ")
                || line.starts_with("Truncating orphaned inode ")
                || line.starts_with("Setting free ")
                || line.contains(": clean, ")
        };
        match code <= 1 && text.lines().all(expected) {
            true => Ok(()),
            false => Err(format!("e2fsck's replay ({code}): {text}")),
        }
    }

    /// `e2fsck -fn` finds nothing.
    pub(super) fn check(&self) -> Result<(), String> {
        match tool("e2fsck", &["-fn", self.path()]) {
            (0, _) => Ok(()),
            (code, text) => Err(format!("e2fsck -fn ({code}): {text}")),
        }
    }
}
