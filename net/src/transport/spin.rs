//! Waiting for bytes a moment longer before sleeping.
//!
//! Where one request follows the answer to the one before, waking a sleeping thread costs more than the wire and the work
//! together: some 20 µs each time where the processor has to be woken too. A thread that has just been served quickly
//! therefore asks its socket for a short while, leaving the processor to whoever wants it, before it sleeps.

use super::Receiver;
use std::io;
use std::time::{Duration, Instant};

/// How long to ask before sleeping: some round trips on a fast network, far below what anybody would notice as load.
const ASK: Duration = Duration::from_micros(150);
/// A turn given away for longer than this was taken by somebody else's work: the processor has no time for asking.
const BUSY: Duration = Duration::from_micros(200);
/// Waits that are slept through after that, before asking is tried again.
const BUSY_REST: u32 = 256;
/// Times in a row that asking may be in vain before it is given up until bytes come quickly again.
const VAIN_MAX: u32 = 4;

/// One for each receiving thread.
#[derive(Default)]
pub(crate) struct Spin {
    /// Times in a row that asking was in vain.
    vain: u32,
    /// Waits still to be slept through on a busy processor.
    rest: u32,
    slept_at: Option<Instant>,
}

impl Spin {
    /// Asks for a short while, if that has been worth it of late. True if there is something to read now.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn ask(&mut self, receiver: &mut Receiver) -> io::Result<bool> {
        if receiver.has_buffered() {
            return Ok(true);
        }
        if self.rest > 0 {
            self.rest -= 1;
            return Ok(false);
        }
        let begun = Instant::now();
        if let Some(slept_at) = self.slept_at.take()
            && begun.duration_since(slept_at) < 2 * ASK
        {
            self.vain = self.vain.min(VAIN_MAX - 1);
        }
        if self.vain < VAIN_MAX {
            let mut now = begun;
            loop {
                if receiver.poll_readable()? {
                    self.vain = 0;
                    return Ok(true);
                }
                if now.duration_since(begun) >= ASK {
                    break;
                }
                std::thread::yield_now();
                let back = Instant::now();
                if back.duration_since(now) >= BUSY {
                    self.rest = BUSY_REST;
                    break;
                }
                now = back;
            }
            self.vain += 1;
        }
        self.slept_at = Some(Instant::now());
        Ok(false)
    }
}
