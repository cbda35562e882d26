//! What may be allocated in one group: a bitmap of taken blocks, searched a word at a time.

/// A group's allocatable blocks. A set bit is a block that is in use, was freed in a transaction that has not committed,
/// is held in a reservation window, or is being discarded.
pub(super) struct View {
    taken: Box<[u64]>,
    blocks: u32,
    /// No block below this one is free.
    first_free: u32,
}

impl View {
    /// From an on-disk bitmap of at least `blocks` bits.
    pub(super) fn new(bitmap: &[u8], blocks: u32) -> Self {
        let mut taken: Box<[u64]> = bitmap
            .chunks(8)
            .take(blocks.div_ceil(64) as usize)
            .map(|chunk| {
                let mut word = [0xFF; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_le_bytes(word)
            })
            .collect();
        if !blocks.is_multiple_of(64)
            && let Some(last) = taken.last_mut()
        {
            *last |= !0 << (blocks % 64);
        }
        Self { taken, blocks, first_free: 0 }
    }

    /// Free blocks, counted.
    pub(super) fn count_free(&self) -> u32 {
        self.taken.iter().map(|word| word.count_zeros()).sum()
    }

    /// First bit at or after `from` whose state is `taken`; the group's size if there is none.
    fn next(&self, from: u32, taken: bool) -> u32 {
        if from >= self.blocks {
            return self.blocks;
        }
        let flip = if taken { 0 } else { !0 };
        let mut index = (from / 64) as usize;
        let mut word = (self.taken[index] ^ flip) & (!0 << (from % 64));
        while word == 0 {
            index += 1;
            if index == self.taken.len() {
                return self.blocks;
            }
            word = self.taken[index] ^ flip;
        }
        (index as u32 * 64 + word.trailing_zeros()).min(self.blocks)
    }

    /// Length of the free run that starts at `from`, 0 if that is taken.
    pub(super) fn run_at(&self, from: u32) -> u32 {
        self.next(from, true) - from.min(self.blocks)
    }

    /// Length of the free run around a free block.
    pub(super) fn run_around(&self, bit: u32) -> u32 {
        let mut index = (bit / 64) as usize;
        let mut word = self.taken[index] & !(!0 << (bit % 64));
        while word == 0 && index > 0 {
            index -= 1;
            word = self.taken[index];
        }
        let start = if word == 0 { 0 } else { index as u32 * 64 + 64 - word.leading_zeros() };
        self.run_at(start)
    }

    /// The first free block and the length of its run, from `from` on.
    pub(super) fn next_run(&self, from: u32) -> Option<(u32, u32)> {
        let start = self.next(from.max(self.first_free), false);
        (start < self.blocks).then(|| (start, self.run_at(start)))
    }

    /// The first run of at least `wanted` at or behind `from`, else the first such run of the group; failing that, the
    /// longest there is.
    pub(super) fn find(&mut self, from: u32, wanted: u32) -> Option<(u32, u32)> {
        let mut at = from;
        while let Some((start, length)) = self.next_run(at) {
            if length >= wanted {
                return Some((start, length));
            }
            at = start + length;
        }
        let mut longest: Option<(u32, u32)> = None;
        let mut at = 0;
        while let Some((start, length)) = self.next_run(at) {
            if at == 0 {
                self.first_free = start;
            }
            if longest.is_none_or(|(_, best)| length > best) {
                longest = Some((start, length));
                if length >= wanted {
                    break;
                }
            }
            at = start + length;
        }
        longest
    }

    /// Marks a run, all of which is in the other state.
    pub(super) fn set(&mut self, start: u32, count: u32, taken: bool) {
        let end = start + count;
        let mut at = start;
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            let mask = (!0 >> (64 - bits)) << (at % 64);
            let word = &mut self.taken[(at / 64) as usize];
            debug_assert_eq!(*word & mask, if taken { 0 } else { mask }, "block state out of step");
            if taken {
                *word |= mask;
            } else {
                *word &= !mask;
            }
            at += bits;
        }
        if !taken {
            self.first_free = self.first_free.min(start);
        } else if start == self.first_free {
            self.first_free = end;
        }
    }
}

/// Sets or clears a run of bits of an on-disk bitmap; false (and nothing said about the content) if one was so already.
pub(super) fn set_bits(bitmap: &mut [u8], start: u32, count: u32, value: bool) -> bool {
    let end = start + count;
    let mut at = start;
    let mut right = true;
    while at < end {
        let bits = (8 - at % 8).min(end - at);
        let mask = (0xFF_u8 >> (8 - bits)) << (at % 8);
        let byte = &mut bitmap[(at / 8) as usize];
        right &= *byte & mask == if value { 0 } else { mask };
        if value {
            *byte |= mask;
        } else {
            *byte &= !mask;
        }
        at += bits;
    }
    right
}

/// First zero bit of an on-disk bitmap in `from..limit`.
pub(super) fn first_zero(bitmap: &[u8], from: u32, limit: u32) -> Option<u32> {
    let mut at = from;
    while at < limit {
        let byte = bitmap[(at / 8) as usize] | !(0xFF << (at % 8));
        if byte != 0xFF {
            let bit = at / 8 * 8 + byte.trailing_ones();
            return (bit < limit).then_some(bit);
        }
        at = at / 8 * 8 + 8;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_runs_at_behind_and_before_the_goal() {
        let mut view = View::new(&[0xFF; 32], 200);
        assert_eq!(view.count_free(), 0);
        assert_eq!(view.find(0, 1), None);
        view.set(10, 5, false);
        view.set(100, 90, false);
        assert_eq!(view.run_at(12), 3);
        assert_eq!((view.run_around(12), view.run_around(150)), (5, 90));
        assert_eq!(view.run_at(9), 0);
        assert_eq!(view.find(0, 5), Some((10, 5)));
        assert_eq!(view.find(11, 5), Some((100, 90)));
        assert_eq!(view.find(150, 60), Some((100, 90)));
        assert_eq!(view.find(195, 500), Some((100, 90)));
        view.set(100, 64, true);
        assert_eq!(view.find(0, 64), Some((164, 26)));
        assert_eq!(view.count_free(), 31);
    }

    #[test]
    fn bits_beyond_the_group_are_taken() {
        let mut view = View::new(&[0; 32], 70);
        assert_eq!(view.count_free(), 70);
        assert_eq!(view.find(0, 100), Some((0, 70)));
    }

    #[test]
    fn bitmap_bits_tell_a_wrong_state() {
        let mut bitmap = [0_u8; 8];
        assert!(set_bits(&mut bitmap, 3, 20, true));
        assert!(!set_bits(&mut bitmap, 22, 2, true));
        assert_eq!(first_zero(&bitmap, 0, 64), Some(0));
        assert_eq!(first_zero(&bitmap, 3, 64), Some(24));
        assert_eq!(first_zero(&bitmap, 3, 24), None);
        assert!(set_bits(&mut bitmap, 3, 21, false));
        assert_eq!(bitmap, [0; 8]);
    }
}
