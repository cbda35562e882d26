//! The seam below a LUN: real file, fault injection, recorder.

pub use super::file::FileBacking;
pub use super::memory::MemoryBacking;
use std::io;

/// Random-access storage of an image's file system part. Offsets are bytes from the image's start.
pub trait Backing: Send + Sync + 'static {
    /// Bytes of the file system part.
    fn size_bytes(&self) -> u64;
    /// Fills `into` from `offset`; a hole reads as zeros.
    ///
    /// # Errors
    /// The system's error; a read beyond the end is `UnexpectedEof`.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The system's error, also when only a part was written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes the range read as zeros and gives its host space back (zeroes by writing where holes can't be punched).
    ///
    /// # Errors
    /// The system's error.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Reserves host space so that a later write in the range cannot fail for lack of it; contents unchanged.
    ///
    /// # Errors
    /// `ENOSPC` and the system's other errors; not an error where the host can't reserve.
    fn reserve(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Makes all completed writes durable (fdatasync).
    ///
    /// # Errors
    /// The system's error; the caller latches and never retries.
    fn sync(&self) -> io::Result<()>;
    /// The next range at or after `offset` that holds data (`start..end`), `None` if only holes follow.
    ///
    /// # Errors
    /// The system's error.
    fn next_data(&self, offset: u64) -> io::Result<Option<std::ops::Range<u64>>>;
}
