//! The sending half.

use super::{Cipher, Closer, NOISE_MESSAGE_MAX, NOISE_PLAIN_MAX, NOISE_TAG};
use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// Plain bytes gathered before they are written without a `flush`.
const GATHER_MAX: usize = 64 * 1024;
/// A part from this size on is not copied into the gather buffer (plain: `writev`, Noise: sealed from where it is).
const LARGE_PART: usize = 8 * 1024;
/// Sealed bytes handed to one write: several Noise messages.
const SEALED_MAX: usize = 4 * (2 + NOISE_MESSAGE_MAX);
/// Slices in one `writev`; the kernel takes 1024.
const SLICES_MAX: usize = 64;

/// The sending half. Buffers small sends until `flush`, and all of them while it holds back. After an error it stays failed.
pub struct Sender {
    stream: Arc<TcpStream>,
    /// Plain bytes not yet written (plain) or sealed (Noise).
    gathered: Vec<u8>,
    noise: Option<Sealer>,
    bytes_sent: u64,
    failed: bool,
    holds_back: bool,
}

/// Noise of the outgoing direction.
struct Sealer {
    cipher: Arc<snow::StatelessTransportState>,
    nonce: u64,
    /// Finished messages, each behind its two-byte length.
    sealed: Vec<u8>,
    /// Bytes in use of `sealed`, which is kept at full length so that nothing is zeroed again.
    used: usize,
}

impl Sealer {
    /// Seals one message of at most [`NOISE_PLAIN_MAX`] bytes behind what is there; the caller saw to the room.
    fn seal(&mut self, plain: &[u8]) -> io::Result<()> {
        let start = self.used;
        let room = &mut self.sealed[start..start + 2 + plain.len() + NOISE_TAG];
        let length =
            self.cipher.write_message(self.nonce, plain, &mut room[2..]).map_err(io::Error::other)?;
        let prefix = u16::try_from(length).map_err(io::Error::other)?;
        room[..2].copy_from_slice(&prefix.to_le_bytes());
        self.nonce += 1;
        self.used += 2 + length;
        Ok(())
    }

    fn room(&self) -> bool {
        self.sealed.len() - self.used >= 2 + NOISE_MESSAGE_MAX
    }

    fn write(&mut self, mut stream: &TcpStream) -> io::Result<()> {
        if self.used > 0 {
            stream.write_all(&self.sealed[..self.used])?;
            self.used = 0;
        }
        Ok(())
    }
}

impl Sender {
    pub(super) fn new(stream: Arc<TcpStream>, cipher: Cipher) -> Self {
        let noise = cipher.map(|cipher| Sealer { cipher, nonce: 0, sealed: vec![0; SEALED_MAX], used: 0 });
        Self {
            stream,
            gathered: Vec::with_capacity(GATHER_MAX),
            noise,
            bytes_sent: 0,
            failed: false,
            holds_back: false,
        }
    }

    /// Sends the parts one behind the other; may buffer, see [`Self::flush`]. Large parts are not copied (plain) or are
    /// encrypted from where they are. Blocks while the other side does not read.
    ///
    /// # Errors
    /// The connection broke or was shut down; from then on every call fails.
    pub fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.guarded(
            |this| if this.noise.is_some() { this.send_sealed(parts) } else { this.send_plain(parts) },
        )?;
        self.bytes_sent += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        Ok(())
    }

    /// Hands everything buffered to the system.
    ///
    /// # Errors
    /// As for `send`.
    pub fn flush(&mut self) -> io::Result<()> {
        self.guarded(|this| {
            let Some(noise) = &mut this.noise else {
                if !this.gathered.is_empty() {
                    (&*this.stream).write_all(&this.gathered)?;
                    this.gathered.clear();
                }
                return Ok(());
            };
            if !this.gathered.is_empty() {
                if !noise.room() {
                    noise.write(&this.stream)?;
                }
                noise.seal(&this.gathered)?;
                this.gathered.clear();
            }
            noise.write(&this.stream)
        })
    }

    /// While it holds back, `send` only buffers and so never blocks, if nothing was unsent before and the sum of what is
    /// given stays within [`Self::HELD_BACK_MAX`]. To be followed by [`Self::flush_now`].
    pub fn hold_back(&mut self, hold_back: bool) {
        self.holds_back = hold_back;
    }

    /// Bytes that can be held back.
    pub const HELD_BACK_MAX: usize = 3 * NOISE_PLAIN_MAX;

    /// Whether something buffered has still to be handed to the system.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        !self.gathered.is_empty() || self.noise.as_ref().is_some_and(|noise| noise.used > 0)
    }

    /// As [`Self::flush`], but hands over only what the system takes without blocking. True if that was all.
    ///
    /// # Errors
    /// As for `send`.
    pub fn flush_now(&mut self) -> io::Result<bool> {
        self.guarded(|this| {
            let Some(noise) = &mut this.noise else {
                let count = send_now(&this.stream, &this.gathered)?;
                this.gathered.drain(..count);
                return Ok(this.gathered.is_empty());
            };
            if !this.gathered.is_empty() && noise.room() {
                noise.seal(&this.gathered)?;
                this.gathered.clear();
            }
            let count = send_now(&this.stream, &noise.sealed[..noise.used])?;
            noise.sealed.copy_within(count..noise.used, 0);
            noise.used -= count;
            Ok(noise.used == 0 && this.gathered.is_empty())
        })
    }

    /// Bytes given to `send`, before encryption.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    /// Whether it encrypts.
    #[must_use]
    pub fn encrypted(&self) -> bool {
        self.noise.is_some()
    }

    /// A handle that shuts the socket down.
    #[must_use]
    pub fn closer(&self) -> Closer {
        Closer { stream: Arc::clone(&self.stream) }
    }

    /// A write that failed half way leaves the stream torn: nothing may follow it.
    fn guarded<T>(&mut self, run: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if self.failed {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "an earlier send on this connection failed",
            ));
        }
        let result = run(self);
        self.failed = result.is_err();
        result
    }

    fn send_plain(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if total < LARGE_PART || self.holds_back {
            if self.gathered.len() + total > GATHER_MAX && !self.holds_back {
                (&*self.stream).write_all(&self.gathered)?;
                self.gathered.clear();
            }
            parts.iter().for_each(|part| self.gathered.extend_from_slice(part));
            return Ok(());
        }
        let mut rest = parts;
        let mut first = true;
        while first || !rest.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut used = 0;
            if first && !self.gathered.is_empty() {
                slices[0] = IoSlice::new(&self.gathered);
                used = 1;
            }
            first = false;
            let take = rest.len().min(SLICES_MAX - used);
            for part in &rest[..take] {
                slices[used] = IoSlice::new(part);
                used += 1;
            }
            rest = &rest[take..];
            write_all_vectored(&self.stream, &mut slices[..used])?;
        }
        self.gathered.clear();
        Ok(())
    }

    fn send_sealed(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let Some(noise) = &mut self.noise else { return Ok(()) };
        for mut part in parts.iter().copied() {
            while !part.is_empty() {
                if part.len() >= LARGE_PART && !self.holds_back {
                    if !self.gathered.is_empty() {
                        if !noise.room() {
                            noise.write(&self.stream)?;
                        }
                        noise.seal(&self.gathered)?;
                        self.gathered.clear();
                    }
                    if !noise.room() {
                        noise.write(&self.stream)?;
                    }
                    let take = part.len().min(NOISE_PLAIN_MAX);
                    noise.seal(&part[..take])?;
                    part = &part[take..];
                    continue;
                }
                let take = part.len().min(NOISE_PLAIN_MAX - self.gathered.len());
                self.gathered.extend_from_slice(&part[..take]);
                part = &part[take..];
                if self.gathered.len() == NOISE_PLAIN_MAX {
                    if !noise.room() {
                        noise.write(&self.stream)?;
                    }
                    noise.seal(&self.gathered)?;
                    self.gathered.clear();
                }
            }
        }
        Ok(())
    }
}

/// Bytes of `bytes` that the socket takes without blocking.
fn send_now(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        // SAFETY: the descriptor is open, and `rest` is as long as is said.
        let count = unsafe { libc::send(stream.as_raw_fd(), rest.as_ptr().cast(), rest.len(), flags) };
        match usize::try_from(count) {
            Ok(count) => done += count,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => break,
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(done)
}

fn write_all_vectored(mut stream: &TcpStream, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Drops leading empty slices, so that a write of nothing can't be taken for the end.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match stream.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut slices, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
