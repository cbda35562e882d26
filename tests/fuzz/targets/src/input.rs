//! Where a case's decisions come from: a seed, or the bytes of a coverage-guided fuzzer.

use std::collections::BTreeMap;

/// Decisions of one case. The same seed, or the same bytes, give the same case.
#[derive(Debug)]
pub struct Input<'a> {
    bytes: &'a [u8],
    /// What follows the bytes (a seed alone has none): SplitMix64.
    state: u64,
    counts: BTreeMap<&'static str, u64>,
}

impl Input<'static> {
    /// A case that a seed makes.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self { bytes: &[], state: seed, counts: BTreeMap::new() }
    }
}

impl<'a> Input<'a> {
    /// A case that these bytes make; where they end, numbers drawn from their checksum go on.
    #[must_use]
    pub fn from_bytes(bytes: &'a [u8]) -> Self {
        Self { bytes, state: u64::from(crc32c::crc32c(bytes)), counts: BTreeMap::new() }
    }

    fn draw(&mut self, bytes: usize) -> u64 {
        if let Some((taken, rest)) = self.bytes.split_at_checked(bytes) {
            self.bytes = rest;
            return taken.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
        self.bytes = &[];
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.draw(8)
    }
    /// A number below `bound` (0 for a bound of 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        let bytes = match bound {
            0..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            0x1_0001..=0x1_0000_0000 => 4,
            _ => 8,
        };
        self.draw(bytes).checked_rem(bound).unwrap_or(0)
    }
    /// An index of a slice of this length.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }
    /// True once in `of` times.
    pub fn once_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
    /// One of these.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<'b, T>(&mut self, from: &'b [T]) -> &'b T {
        &from[self.index(from.len())]
    }
    /// A length that is mostly short, below `bound`.
    pub fn short(&mut self, bound: u64) -> u64 {
        let limit = 1 << self.below(64 - u64::from(bound.leading_zeros()) + 1);
        self.below(bound.min(limit))
    }
    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.draw(1) as u8).collect()
    }
    /// All that the fuzzer gave and nobody has drawn; up to `max` drawn bytes where there was a seed only.
    pub fn rest(&mut self, max: u64) -> Vec<u8> {
        if self.bytes.is_empty() {
            let count = self.short(max);
            return self.bytes(count as usize);
        }
        std::mem::take(&mut self.bytes).to_vec()
    }

    /// Counts something that happened, for the report: a target that never gets past the first checksum finds nothing.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
    /// What was counted.
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }
}
