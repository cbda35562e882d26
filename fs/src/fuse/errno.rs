//! Which errno an error becomes, and which errors are worth a line in the log.

use crate::ext4::error::FsError;
use parking_lot::Mutex;
use std::io;
use std::time::{Duration, Instant};

/// The errno of an error; the only place where it is chosen.
pub(crate) fn errno(error: &FsError) -> i32 {
    match error {
        FsError::Errno(number) => *number,
        // The blocking pool may wait; what still comes here is a fault of ours, and the caller may try again.
        FsError::WouldBlock => libc::EAGAIN,
        FsError::Corrupt { .. } => libc::EUCLEAN,
        FsError::Unsupported(_) => libc::EOPNOTSUPP,
        FsError::Io(error) => io_errno(error),
        FsError::Latched(_) => libc::EROFS,
    }
}

/// A full host is the caller's ENOSPC, anything else is EIO.
fn io_errno(error: &io::Error) -> i32 {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => libc::ENOSPC,
        _ => libc::EIO,
    }
}

/// Whether an operator should hear of it: ordinary refusals are not worth a line.
fn is_alarming(error: &FsError) -> bool {
    match error {
        FsError::Errno(_) | FsError::Unsupported(_) => false,
        FsError::WouldBlock | FsError::Corrupt { .. } | FsError::Io(_) => true,
        // Said once, by who latched it; each refused write after that is no news.
        FsError::Latched(_) => false,
    }
}

/// Lines let through in one [`WINDOW`].
const LINES_PER_WINDOW: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Logs errors, at most [`LINES_PER_WINDOW`] lines in each [`WINDOW`], and says how many were left out.
#[derive(Default)]
pub(crate) struct ErrorLog {
    state: Mutex<Option<(Instant, u32)>>,
}

impl ErrorLog {
    /// Logs `error` of `operation` on FUSE inode `ino` if it is alarming, and gives its errno.
    pub(crate) fn refuse(&self, operation: &str, ino: u64, error: &FsError) -> i32 {
        let number = errno(error);
        if is_alarming(error) {
            let (log_it, left_out) = self.admit(Instant::now());
            if left_out > 0 {
                log::error!("{left_out} more errors were not logged");
            }
            if log_it {
                log::error!("{operation} on inode {ino} failed: {error}");
            }
        }
        number
    }

    /// Whether a line may be logged now, and how many were left out in the window that has just ended.
    fn admit(&self, now: Instant) -> (bool, u32) {
        let mut state = self.state.lock();
        let (begin, count) = state.unwrap_or((now, 0));
        if now.duration_since(begin) >= WINDOW {
            *state = Some((now, 1));
            return (true, count.saturating_sub(LINES_PER_WINDOW));
        }
        *state = Some((begin, count.saturating_add(1)));
        (count < LINES_PER_WINDOW, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::types::{BlockNo, InodeNo};

    #[test]
    fn each_kind_of_error_has_its_errno() {
        assert_eq!(errno(&FsError::Errno(libc::ENOTEMPTY)), libc::ENOTEMPTY);
        assert_eq!(
            errno(&FsError::corrupt("extent header", Some(InodeNo(12)), Some(BlockNo(99)))),
            libc::EUCLEAN
        );
        assert_eq!(errno(&FsError::Io(io::Error::from_raw_os_error(libc::ENXIO))), libc::EIO);
        assert_eq!(errno(&FsError::Io(io::Error::from_raw_os_error(libc::ENOSPC))), libc::ENOSPC);
        assert_eq!(errno(&FsError::Io(io::Error::other("short read"))), libc::EIO);
        assert_eq!(errno(&FsError::Latched("a sync failed".into())), libc::EROFS);
    }

    #[test]
    fn a_flood_of_errors_is_cut_off_and_counted() {
        let log = ErrorLog::default();
        let start = Instant::now();
        let admitted = (0..100).filter(|_| log.admit(start).0).count();
        assert_eq!(admitted, LINES_PER_WINDOW as usize);
        assert_eq!(log.admit(start + WINDOW), (true, 80));
        assert_eq!(log.admit(start + WINDOW), (true, 0));
    }
}
