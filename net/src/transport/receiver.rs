//! The receiving half.

use super::{Cipher, Closer, NOISE_MESSAGE_MAX, NOISE_TAG};
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Raw bytes read from the socket at once where the target is small.
const RAW_BYTES: usize = 128 * 1024;
/// Reads of at least this much skip the buffer (plain).
const DIRECT_BYTES: usize = 16 * 1024;

/// Called after each successful read of the socket with the bytes read; from the receiving thread.
pub type OnReceived = Box<dyn Fn(usize) + Send>;

/// The receiving half; implements [`io::Read`] with an efficient `read_exact`. A stream that was tampered with fails with
/// `InvalidData`, and stays failed.
pub struct Receiver {
    stream: Arc<TcpStream>,
    raw: Window,
    noise: Option<Opener>,
    on_received: Option<OnReceived>,
    bytes_received: u64,
}

/// Noise of the incoming direction.
struct Opener {
    cipher: Arc<snow::StatelessTransportState>,
    nonce: u64,
    plain: Window,
    failed: bool,
}

/// A buffer with unread bytes in the middle.
struct Window {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Window {
    fn new(size: usize) -> Self {
        Self { bytes: vec![0; size].into_boxed_slice(), start: 0, end: 0 }
    }
    fn len(&self) -> usize {
        self.end - self.start
    }
    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
    fn take(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.len());
        into[..count].copy_from_slice(&self.bytes[self.start..self.start + count]);
        self.start += count;
        count
    }
}

impl Opener {
    /// Decrypts the whole message of `length` bytes at the front, when nothing else is decrypted: straight into `into`, if that has
    /// room for the tag as well, else into its own buffer. Returns the bytes in `into`.
    fn open(&mut self, raw: &mut Window, length: usize, into: &mut [u8]) -> io::Result<usize> {
        let at = raw.start + 2;
        let message = &raw.bytes[at..at + length];
        let direct = into.len() >= length;
        let target = if direct { into } else { &mut self.plain.bytes[..] };
        let opened =
            if self.failed { None } else { self.cipher.read_message(self.nonce, message, target).ok() };
        let Some(count) = opened else {
            self.failed = true;
            return Err(tampered());
        };
        self.nonce += 1;
        raw.start = at + length;
        (self.plain.start, self.plain.end) = (0, if direct { 0 } else { count });
        Ok(if direct { count } else { 0 })
    }
}

/// Waits for bytes on a connection whose receiver may be in use elsewhere.
pub struct Arrival {
    stream: Arc<TcpStream>,
}

impl Arrival {
    /// True if a read of the socket will find bytes (or the end, or an error); false when there were none for `timeout`.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        wait_readable(&self.stream, timeout)
    }
}

impl Receiver {
    pub(super) fn new(stream: Arc<TcpStream>, cipher: Cipher) -> Self {
        let noise = cipher.map(|cipher| Opener {
            cipher,
            nonce: 0,
            plain: Window::new(NOISE_MESSAGE_MAX),
            failed: false,
        });
        Self { stream, raw: Window::new(RAW_BYTES), noise, on_received: None, bytes_received: 0 }
    }

    /// True if a read will find bytes (or the end, or an error); false when there were none for `timeout`. This is how
    /// a connection thread waits for a request with a bound; reads have none, [`Closer::shutdown`] ends them.
    ///
    /// # Errors
    /// The system's.
    pub fn wait_readable(&mut self, timeout: Duration) -> io::Result<bool> {
        if self.has_buffered() || self.raw.len() > 0 {
            return Ok(true);
        }
        wait_readable(&self.stream, timeout)
    }

    /// A way to wait for bytes that leaves the receiver to others.
    #[must_use]
    pub fn arrival(&self) -> Arrival {
        Arrival { stream: Arc::clone(&self.stream) }
    }

    /// Whether a read finds bytes (or the end, or an error) now; asks the socket without waiting.
    ///
    /// # Errors
    /// The system's.
    pub fn poll_readable(&mut self) -> io::Result<bool> {
        if self.has_buffered() {
            return Ok(true);
        }
        self.make_room();
        let room = &mut self.raw.bytes[self.raw.end..];
        // SAFETY: the descriptor is open, and `room` is as long as is said.
        let count = unsafe {
            libc::recv(self.stream.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), libc::MSG_DONTWAIT)
        };
        match usize::try_from(count) {
            // The end: the next read finds it again.
            Ok(0) => Ok(true),
            Ok(count) => {
                self.raw.end += count;
                self.count(count);
                Ok(true)
            }
            Err(_) => match io::Error::last_os_error().kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
                // The next read finds it again.
                _ => Ok(true),
            },
        }
    }

    /// What can be read without waiting, or a part of it; asks the socket if nothing is buffered. Empty also at the end of the
    /// stream and behind an error, which the next read finds.
    ///
    /// # Errors
    /// What was received does not decrypt.
    pub fn peek(&mut self) -> io::Result<&[u8]> {
        if !self.has_buffered() {
            self.poll_readable()?;
        }
        let Some(noise) = &mut self.noise else {
            return Ok(self.raw.unread());
        };
        while noise.plain.len() == 0
            && let Some(length) = whole_message(&self.raw)
        {
            noise.open(&mut self.raw, length, &mut [])?;
        }
        Ok(noise.plain.unread())
    }

    /// Sets what is called whenever bytes came in, so that they can refresh the element's timestamp.
    pub fn set_on_received(&mut self, hook: OnReceived) {
        self.on_received = Some(hook);
    }

    /// Whether some bytes are served without a system call.
    #[must_use]
    pub fn has_buffered(&self) -> bool {
        match &self.noise {
            None => self.raw.len() > 0,
            Some(noise) => noise.plain.len() > 0 || whole_message(&self.raw).is_some(),
        }
    }

    /// Bytes read from the socket.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    /// A handle that shuts the socket down.
    #[must_use]
    pub fn closer(&self) -> Closer {
        Closer { stream: Arc::clone(&self.stream) }
    }

    fn count(&mut self, bytes: usize) {
        self.bytes_received += bytes as u64;
        if let (Some(hook), true) = (&self.on_received, bytes > 0) {
            hook(bytes);
        }
    }

    fn make_room(&mut self) {
        if self.raw.start > 0 {
            self.raw.bytes.copy_within(self.raw.start..self.raw.end, 0);
            self.raw.end -= self.raw.start;
            self.raw.start = 0;
        }
    }

    /// One read of the socket behind what is in the raw buffer; 0 at the end of the stream.
    fn fill(&mut self) -> io::Result<usize> {
        self.make_room();
        let end = self.raw.end;
        let count = read_retrying(&self.stream, &mut self.raw.bytes[end..])?;
        self.raw.end += count;
        self.count(count);
        Ok(count)
    }

    fn read_plain(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.raw.len() == 0 {
            if into.len() >= DIRECT_BYTES {
                let count = read_retrying(&self.stream, into)?;
                self.count(count);
                return Ok(count);
            }
            if self.fill()? == 0 {
                return Ok(0);
            }
        }
        Ok(self.raw.take(into))
    }

    fn read_sealed(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(noise) = &mut self.noise {
                if noise.failed {
                    return Err(tampered());
                }
                if noise.plain.len() > 0 {
                    return Ok(noise.plain.take(into));
                }
                if let Some(length) = whole_message(&self.raw) {
                    match noise.open(&mut self.raw, length, into)? {
                        0 => continue,
                        count => return Ok(count),
                    }
                }
            }
            let partial = self.raw.len() > 0;
            if self.raw.len() >= 2 && message_length(&self.raw) < NOISE_TAG {
                return Err(tampered());
            }
            if self.fill()? == 0 {
                return if partial { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(0) };
            }
        }
    }
}

fn message_length(raw: &Window) -> usize {
    usize::from(u16::from_le_bytes([raw.bytes[raw.start], raw.bytes[raw.start + 1]]))
}

/// Length of the Noise message at the front, if all of it is there. It fits the buffer, whatever the length says.
fn whole_message(raw: &Window) -> Option<usize> {
    const { assert!(RAW_BYTES >= 2 + NOISE_MESSAGE_MAX) };
    if raw.len() < 2 {
        return None;
    }
    let length = message_length(raw);
    (length >= NOISE_TAG && raw.len() >= 2 + length).then_some(length)
}

fn tampered() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message does not decrypt: damaged or forged on the way")
}

fn wait_readable(stream: &TcpStream, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: a wait that ends early would spin.
        let millis = libc::c_int::try_from(left.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX);
        let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, of an open descriptor.
        match unsafe { libc::poll(&raw mut poll, 1, millis) } {
            0 if left.is_zero() => return Ok(false),
            0 => {}
            1 => return Ok(true),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn read_retrying(mut stream: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl std::os::fd::AsFd for Receiver {
    /// For a poll(2) together with something else; look at [`Receiver::has_buffered`] first.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Read for Receiver {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        if self.noise.is_some() { self.read_sealed(into) } else { self.read_plain(into) }
    }
}
