//! Waiting for a socket, a wake-up from another thread, or a time, whichever comes first.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Wakes a thread that waits in poll(2).
pub(crate) struct Waker(OwnedFd);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; a valid descriptor is owned by us alone from here on.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, see above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn wake(&self) {
        let one = 1_u64;
        // SAFETY: the descriptor is open and `one` has 8 bytes. A full counter means that it is awake already.
        unsafe { libc::write(self.0.as_raw_fd(), std::ptr::from_ref(&one).cast(), size_of::<u64>()) };
    }

    pub(crate) fn clear(&self) {
        let mut count = [0_u8; 8];
        // SAFETY: the descriptor is open, does not block, and the buffer has 8 bytes.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a wait ended with; neither: the time is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    /// The descriptor has something to read (or an error or its end to tell).
    pub(crate) readable: bool,
    /// Somebody called [`Waker::wake`]; it is cleared.
    pub(crate) woken: bool,
}

/// Waits for `fd` (if any), for `waker`, and for `timeout` at most (`None`: without end).
///
/// # Errors
/// The system's; an interrupted wait is taken up again.
pub(crate) fn wait(
    waker: &Waker,
    fd: Option<BorrowedFd<'_>>,
    timeout: Option<Duration>,
) -> io::Result<Ready> {
    let entry = |fd: BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut polled = [entry(waker.as_fd()), entry(fd.unwrap_or(waker.as_fd()))];
    let count = if fd.is_some() { 2 } else { 1 };
    // Rounded up, so that a wait for part of a millisecond does not spin.
    let millis =
        timeout.map_or(-1, |timeout| i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
    loop {
        // SAFETY: the descriptors are borrowed for the call and `count` entries are there.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), count, millis) };
        if ready >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let ready = Ready { readable: count == 2 && polled[1].revents != 0, woken: polled[0].revents != 0 };
    if ready.woken {
        waker.clear();
    }
    Ok(ready)
}
