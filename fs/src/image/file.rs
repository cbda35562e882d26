//! The real thing below a LUN: a regular file, by pread, pwrite, fallocate, SEEK_DATA and fdatasync.

use super::backing::Backing;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes written at once where a hole can't be punched.
const ZERO_CHUNK_BYTES: usize = 1 << 20;

/// The file system part of a regular file; what lies behind it (the label) is out of its reach.
#[derive(Debug)]
pub struct FileBacking {
    file: Arc<File>,
    size_bytes: u64,
    /// The host has refused to reserve once: not asked again.
    cannot_reserve: AtomicBool,
    /// The host has refused to punch once: zeros are written instead.
    cannot_punch: AtomicBool,
}

impl FileBacking {
    /// The first `size_bytes` of `file`, which must be open for what will be asked of it.
    ///
    /// # Errors
    /// `InvalidInput` if it is not a regular file (an image on a loop or block device has no label and no lock that
    /// others respect) or is shorter than `size_bytes`.
    pub fn new(file: Arc<File>, size_bytes: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.file_type().is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
        }
        if metadata.len() < size_bytes {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the file has {} bytes, fewer than the {size_bytes} of its file system",
                    metadata.len()
                ),
            ));
        }
        Ok(Self {
            file,
            size_bytes,
            cannot_reserve: AtomicBool::new(false),
            cannot_punch: AtomicBool::new(false),
        })
    }

    /// All of the file at `path`, for reading and writing, without looking for a label or taking a lock: for tests
    /// and tools on private copies. A mount opens its image by `Image::open`.
    ///
    /// # Errors
    /// As [`Self::new`], and the system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let size_bytes = file.metadata()?.len();
        Self::new(Arc::new(file), size_bytes)
    }

    /// Starts writing the range's dirty pages out and returns, so that a later sync finds little left. A hint: it
    /// promises nothing and fails silently.
    pub fn start_writeback(&self, offset: u64, length: u64) {
        let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return };
        // SAFETY: plain system call on a descriptor that `self.file` keeps open.
        unsafe {
            libc::sync_file_range(self.file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE);
        }
    }

    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        check_range(self.size_bytes, offset, length)
    }

    fn fallocate(&self, mode: libc::c_int, offset: u64, length: u64) -> io::Result<()> {
        let too_big = |_| io::Error::from_raw_os_error(libc::EFBIG);
        let (offset, length) =
            (i64::try_from(offset).map_err(too_big)?, i64::try_from(length).map_err(too_big)?);
        loop {
            // SAFETY: plain system call on a descriptor that `self.file` keeps open.
            if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn write_zeros(&self, offset: u64, length: u64) -> io::Result<()> {
        let zeros = vec![0; ZERO_CHUNK_BYTES];
        let mut done = 0;
        while done < length {
            let part = (length - done).min(ZERO_CHUNK_BYTES as u64);
            self.file.write_all_at(&zeros[..part as usize], offset + done)?;
            done += part;
        }
        Ok(())
    }

    /// `None`: nothing of the kind up to the file's end.
    fn seek(&self, offset: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
        let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        // SAFETY: plain system call on a descriptor that `self.file` keeps open; its file position is used by nobody.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), offset, whence) };
        if let Ok(found) = u64::try_from(found) {
            return Ok(Some(found));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
    }
}

/// A range inside the file system, or `UnexpectedEof` that names the numbers.
pub(crate) fn check_range(size_bytes: u64, offset: u64, length: u64) -> io::Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(io::Error::new(
            ErrorKind::UnexpectedEof,
            format!("{length} bytes at {offset} reach beyond the file system's {size_bytes}"),
        )),
    }
}

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV))
}

impl Backing for FileBacking {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.check(offset, into.len() as u64)?;
        // std's loops go on after short transfers and EINTR.
        self.file.read_exact_at(into, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        if !self.cannot_punch.load(Ordering::Relaxed) {
            match self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, length) {
                Err(error) if unsupported(&error) => self.cannot_punch.store(true, Ordering::Relaxed),
                result => return result,
            }
        }
        self.write_zeros(offset, length)
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(offset, length)?;
        if length == 0 || self.cannot_reserve.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.fallocate(libc::FALLOC_FL_KEEP_SIZE, offset, length) {
            Err(error) if unsupported(&error) => {
                self.cannot_reserve.store(true, Ordering::Relaxed);
                Ok(())
            }
            result => result,
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        if offset >= self.size_bytes {
            return Ok(None);
        }
        let start = match self.seek(offset, libc::SEEK_DATA) {
            Ok(Some(start)) if start < self.size_bytes => start,
            Ok(_) => return Ok(None),
            Err(error) if unsupported(&error) => return Ok(Some(offset..self.size_bytes)),
            Err(error) => return Err(error),
        };
        let end = self.seek(start, libc::SEEK_HOLE)?.unwrap_or(self.size_bytes).min(self.size_bytes);
        Ok(Some(start..end))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn file_of(bytes: u64) -> (tempfile::NamedTempFile, FileBacking) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        let backing = FileBacking::open(file.path()).unwrap();
        (file, backing)
    }

    #[test]
    fn reserve_takes_host_space_and_discard_gives_it_back() {
        let (file, backing) = file_of(4 << 20);
        backing.reserve(1 << 20, 1 << 20).unwrap();
        let blocks = || file.as_file().metadata().unwrap().blocks() * 512;
        assert!(blocks() >= 1 << 20);
        assert_eq!(file.as_file().metadata().unwrap().len(), 4 << 20);
        backing.write_at(1 << 20, &[7; 8192]).unwrap();
        backing.discard(1 << 20, 1 << 20).unwrap();
        assert!(blocks() < 1 << 20);
        let mut read = [1; 8192];
        backing.read_at(1 << 20, &mut read).unwrap();
        assert_eq!(read, [0; 8192]);
        backing.sync().unwrap();
    }

    #[test]
    fn without_hole_punching_zeros_are_written() {
        let (_file, backing) = file_of(4 << 20);
        backing.cannot_punch.store(true, Ordering::Relaxed);
        backing.write_at(0, &vec![9; 4 << 20]).unwrap();
        backing.discard(512, (2 << 20) + 512).unwrap();
        let mut read = vec![0; 4 << 20];
        backing.read_at(0, &mut read).unwrap();
        assert!(read[..512].iter().all(|b| *b == 9));
        assert!(read[512..(2 << 20) + 1024].iter().all(|b| *b == 0));
        assert!(read[(2 << 20) + 1024..].iter().all(|b| *b == 9));
    }

    #[test]
    fn data_runs_are_found_up_to_the_end_of_the_file_system_only() {
        let (file, _) = file_of(4 << 20);
        let opened = File::options().read(true).write(true).open(file.path()).unwrap();
        opened.write_all_at(&[1; 4096], (3 << 20) + 4096).unwrap();
        let backing = FileBacking::new(Arc::new(opened), 3 << 20).unwrap();
        assert_eq!(backing.next_data(0).unwrap(), None);
        backing.write_at(1 << 20, &[1; 4096]).unwrap();
        assert_eq!(backing.next_data(0).unwrap(), Some(1 << 20..(1 << 20) + 4096));
        assert_eq!(backing.next_data((1 << 20) + 4096).unwrap(), None);
    }

    #[test]
    fn nothing_reaches_beyond_the_end() {
        let (_file, backing) = file_of(1 << 20);
        assert_eq!(backing.write_at((1 << 20) - 1, &[0; 2]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(backing.read_at(u64::MAX, &mut [0; 2]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(backing.discard(0, (1 << 20) + 1).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(backing.reserve(u64::MAX, 1).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_device_is_refused() {
        let error = FileBacking::open(Path::new("/dev/null")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
