//! Records what reaches an image, so that every state that a power cut could have left can be rebuilt and judged.

use super::backing::Backing;
use parking_lot::Mutex;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that a power cut keeps or loses as one.
pub const PIECE_BYTES: u64 = 4096;

/// One thing that reached the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes written.
    Write {
        /// First byte.
        offset: u64,
        /// Content.
        bytes: Arc<[u8]>,
    },
    /// A range discarded.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// A sync that succeeded, at the place where it began: it covers what is before it.
    Sync,
    /// A sync that failed or is still running: it covers nothing.
    FailedSync,
}

impl Event {
    /// The range that it changes, empty for a sync.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        match self {
            Self::Write { offset, bytes } => *offset..offset + bytes.len() as u64,
            Self::Discard { offset, length } => *offset..offset + length,
            Self::Sync | Self::FailedSync => 0..0,
        }
    }

    /// Carries it out on a flat image.
    pub fn apply(&self, image: &mut [u8]) {
        self.apply_part(image, self.range());
    }

    fn apply_part(&self, image: &mut [u8], part: Range<u64>) {
        let target = &mut image[part.start as usize..part.end as usize];
        match self {
            Self::Write { offset, bytes } => {
                target.copy_from_slice(&bytes[(part.start - offset) as usize..(part.end - offset) as usize]);
            }
            Self::Discard { .. } => target.fill(0),
            Self::Sync | Self::FailedSync => {}
        }
    }
}

/// A backing that passes everything on and remembers it in order. Changes are serialised, so that the order recorded is
/// the order that happened.
pub struct Recorder {
    inner: Arc<dyn Backing>,
    events: Mutex<Vec<Event>>,
}

/// An image as it was, and what reached it since.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Content when the recording began.
    pub base: Vec<u8>,
    /// What happened then, in order.
    pub events: Vec<Event>,
}

impl Recorder {
    /// Records what goes to `inner` from now on.
    #[must_use]
    pub fn new(inner: Arc<dyn Backing>) -> Self {
        Self { inner, events: Mutex::default() }
    }

    /// What has happened so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().clone()
    }

    /// How many events there are so far: a place to look from later.
    #[must_use]
    pub fn position(&self) -> usize {
        self.events.lock().len()
    }
}

impl Recording {
    /// All of `backing` as it is now, with nothing recorded yet; fill in [`Recorder::events`] later.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn begin(backing: &dyn Backing) -> io::Result<Self> {
        let mut base = vec![0; backing.size_bytes() as usize];
        let mut at = 0;
        while let Some(data) = backing.next_data(at)? {
            backing.read_at(data.start, &mut base[data.start as usize..data.end as usize])?;
            at = data.end;
        }
        Ok(Self { base, events: Vec::new() })
    }

    /// Number of barriers: syncs that succeeded.
    #[must_use]
    pub fn barriers(&self) -> usize {
        self.events.iter().filter(|event| **event == Event::Sync).count()
    }

    /// The events of the epoch that follows `barriers` barriers.
    #[must_use]
    pub fn epoch(&self, barriers: usize) -> Range<usize> {
        let mut syncs =
            self.events.iter().enumerate().filter(|(_, e)| **e == Event::Sync).map(|(index, _)| index);
        let start = match barriers {
            0 => 0,
            _ => syncs.nth(barriers - 1).map_or(self.events.len(), |index| index + 1),
        };
        let end = syncs.next().unwrap_or(self.events.len());
        start..end
    }

    /// The image as of this many barriers, with nothing after.
    #[must_use]
    pub fn at_barrier(&self, barriers: usize) -> Vec<u8> {
        self.crash(barriers, |_, _| false)
    }

    /// An image that a power cut could have left: all of the first `barriers` epochs, and of the next one those 4 KiB pieces
    /// that `keep` (event index, offset of the piece) says. Pieces keep their order.
    #[must_use]
    pub fn crash(&self, barriers: usize, mut keep: impl FnMut(usize, u64) -> bool) -> Vec<u8> {
        let epoch = self.epoch(barriers);
        let mut image = self.base.clone();
        for event in &self.events[..epoch.start] {
            event.apply(&mut image);
        }
        for index in epoch {
            let event = &self.events[index];
            let range = event.range();
            let mut at = range.start;
            while at < range.end {
                let end = (at / PIECE_BYTES * PIECE_BYTES + PIECE_BYTES).min(range.end);
                if keep(index, at) {
                    event.apply_part(&mut image, at..end);
                }
                at = end;
            }
        }
        image
    }

    /// As [`Self::crash`] with pieces kept by the toss of a coin: the same seed gives the same image.
    #[must_use]
    pub fn crash_seeded(&self, barriers: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        self.crash(barriers, |_, _| splitmix(&mut state) & 1 == 1)
    }
}

/// Splitmix64: small, and good enough to choose faults by.
pub(crate) fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Backing for Recorder {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let event = Event::Write { offset, bytes: bytes.into() };
        let mut events = self.events.lock();
        self.inner.write_at(offset, bytes)?;
        events.push(event);
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut events = self.events.lock();
        self.inner.discard(offset, length)?;
        events.push(Event::Discard { offset, length });
        Ok(())
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.reserve(offset, length)
    }

    fn sync(&self) -> io::Result<()> {
        // Its place is where it begins: what is written while it runs may not be covered.
        let place = {
            let mut events = self.events.lock();
            events.push(Event::FailedSync);
            events.len() - 1
        };
        self.inner.sync()?;
        self.events.lock()[place] = Event::Sync;
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::backing::MemoryBacking;
    use super::*;

    #[test]
    fn every_crash_state_can_be_rebuilt() {
        let memory = Arc::new(MemoryBacking::new(32_768));
        memory.write_at(0, &[1; 4096]).unwrap();
        let mut recording = Recording::begin(&*memory).unwrap();
        let recorder = Recorder::new(memory.clone());
        recorder.write_at(2048, &[2; 8192]).unwrap();
        recorder.sync().unwrap();
        recorder.discard(4096, 4096).unwrap();
        recorder.write_at(8192, &[3; 8192]).unwrap();
        recorder.sync().unwrap();
        recorder.write_at(0, &[4; 512]).unwrap();
        recording.events = recorder.events();

        assert_eq!(recording.barriers(), 2);
        assert_eq!(recording.epoch(1), 2..4);
        let first = recording.at_barrier(1);
        assert_eq!((first[0], first[2048], first[10_239], first[10_240]), (1, 2, 2, 0));
        let torn = recording.crash(1, |event, piece| event == 3 && piece == 12_288);
        assert_eq!((torn[4096], torn[8192], torn[12_288]), (2, 2, 3));
        assert_eq!(recording.crash(2, |_, _| true), memory.to_bytes());
        assert_eq!(recording.at_barrier(2), recording.crash(1, |_, _| true));
        assert_eq!(recording.crash_seeded(1, 7), recording.crash_seeded(1, 7));
        assert!((0..20).any(|seed| recording.crash_seeded(1, seed) != recording.at_barrier(1)));
        assert_eq!(recording.epoch(3), 6..6);
    }
}
