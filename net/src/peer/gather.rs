//! The first epoch of a LUN in a session, held in memory: only the last content of each byte reaches the image, so
//! that no older content shows through beneath what an earlier, interrupted application left there.

use crate::store::MirrorImage;
use bytes::Bytes;
use std::collections::BTreeMap;

/// What a range will hold.
#[derive(Clone, Debug)]
enum Extent {
    /// These bytes.
    Data(Bytes),
    /// This many zeros.
    Zeros(u64),
}

impl Extent {
    fn length(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Zeros(length) => *length,
        }
    }

    fn slice(&self, from: u64, to: u64) -> Self {
        match self {
            // The casts hold: both ends lie inside a buffer that is in memory.
            Self::Data(bytes) => Self::Data(bytes.slice(from as usize..to as usize)),
            Self::Zeros(_) => Self::Zeros(to - from),
        }
    }
}

/// Extents by first byte; they never overlap.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    extents: BTreeMap<u64, Extent>,
    data_bytes: u64,
}

impl Gather {
    /// Puts `payload` at `offset`, over what was there.
    pub(crate) fn write(&mut self, offset: u64, payload: Bytes) {
        self.insert(offset, Extent::Data(payload));
    }

    /// Puts zeros over the range.
    pub(crate) fn discard(&mut self, offset: u64, length: u64) {
        self.insert(offset, Extent::Zeros(length));
    }

    /// Payload bytes held.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    fn insert(&mut self, start: u64, extent: Extent) {
        let end = start + extent.length();
        if start == end {
            return;
        }
        let mut first = start;
        if let Some((&before, old)) = self.extents.range(..start).next_back()
            && before + old.length() > start
        {
            first = before;
        }
        let overlapped: Vec<u64> = self.extents.range(first..end).map(|(&at, _)| at).collect();
        for at in overlapped {
            let Some(old) = self.extents.remove(&at) else { continue };
            self.forget(&old);
            let old_end = at + old.length();
            if at < start {
                self.place(at, old.slice(0, start - at));
            }
            if old_end > end {
                self.place(end, old.slice(end - at, old_end - at));
            }
        }
        self.place(start, extent);
    }

    fn place(&mut self, at: u64, extent: Extent) {
        if let Extent::Data(bytes) = &extent {
            self.data_bytes += bytes.len() as u64;
        }
        self.extents.insert(at, extent);
    }

    fn forget(&mut self, extent: &Extent) {
        if let Extent::Data(bytes) = extent {
            self.data_bytes -= bytes.len() as u64;
        }
    }

    /// Lays what is held over `buffer`, the image's bytes from `offset` on.
    pub(crate) fn overlay(&self, offset: u64, buffer: &mut [u8]) {
        let end = offset + buffer.len() as u64;
        for (&at, extent) in self.extents.range(..end).rev() {
            let extent_end = at + extent.length();
            if extent_end <= offset {
                break;
            }
            let (from, to) = (at.max(offset), extent_end.min(end));
            let into = &mut buffer[(from - offset) as usize..(to - offset) as usize];
            match extent {
                Extent::Data(bytes) => into.copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]),
                Extent::Zeros(_) => into.fill(0),
            }
        }
    }

    /// Applies everything, in the order of the image, and holds nothing afterwards.
    ///
    /// # Errors
    /// The image's error; what is held is lost, the session must end.
    pub(crate) fn apply(&mut self, image: &dyn MirrorImage) -> std::io::Result<()> {
        self.data_bytes = 0;
        for (at, extent) in std::mem::take(&mut self.extents) {
            match extent {
                Extent::Data(bytes) => image.write(at, &bytes)?,
                Extent::Zeros(length) => image.discard(at, length)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Gather;
    use bytes::Bytes;

    #[test]
    fn only_the_last_content_of_each_byte_is_kept() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..50 {
            let mut gather = Gather::default();
            let mut model = vec![0xee_u8; 4096];
            for step in 0..200_u64 {
                let start = random(4000);
                let length = 1 + random((4096 - start).min(300));
                let range = start as usize..(start + length) as usize;
                if random(4) == 0 {
                    gather.discard(start, length);
                    model[range].fill(0);
                } else {
                    gather.write(start, Bytes::from(vec![step as u8; length as usize]));
                    model[range].fill(step as u8);
                }
            }
            let mut seen = vec![0xee_u8; 4096];
            gather.overlay(0, &mut seen);
            assert_eq!(seen, model);
            let mut part = vec![0xee_u8; 100];
            gather.overlay(1000, &mut part);
            assert_eq!(part, model[1000..1100]);
            assert!(gather.data_bytes() <= 4096);
        }
    }
}
