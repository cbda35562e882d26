//! Changes of bytes that know no format.

use crate::Input;

/// Numbers at the edges of what fields hold.
const EDGES: [u64; 20] = [
    0,
    1,
    2,
    7,
    8,
    12,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0x8001,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFE,
    0xFFFF_FFFF,
    0x7FFF_FFFF_FFFF_FFFF,
    u64::MAX,
];

/// Changes some bytes in place; `likely`: offsets that matter more than others. The length stays.
pub fn fields(input: &mut Input<'_>, bytes: &mut [u8], likely: &[usize], big_endian: bool) {
    for _ in 0..=input.short(8) {
        let at = if !likely.is_empty() && !input.once_in(4) {
            *input.pick(likely)
        } else {
            input.index(bytes.len())
        };
        let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) else { continue };
        field(input, rest, big_endian);
    }
}

/// Changes the first 1, 2, 4 or 8 bytes.
fn field(input: &mut Input<'_>, bytes: &mut [u8], big_endian: bool) {
    let width = (*input.pick(&[1, 2, 2, 4, 4, 8])).min(bytes.len());
    let field = &mut bytes[..width];
    let mut raw = [0; 8];
    raw[..width].copy_from_slice(field);
    if big_endian {
        raw[..width].reverse();
    }
    let old = u64::from_le_bytes(raw);
    let new = match input.below(8) {
        0 | 1 => old ^ 1 << input.below(8 * width as u64),
        2 | 3 => *input.pick(&EDGES),
        4 => input.number(),
        5 => old.wrapping_add(1 + input.below(4)),
        6 => old.wrapping_sub(1 + input.below(4)),
        _ => !old,
    };
    raw = new.to_le_bytes();
    if big_endian {
        raw[..width].reverse();
    }
    field.copy_from_slice(&raw[..width]);
}

/// Moves, repeats, fills or swaps ranges in place. The length stays.
pub fn ranges(input: &mut Input<'_>, bytes: &mut [u8]) {
    if bytes.len() < 2 {
        return;
    }
    let length = 1 + input.short(bytes.len() as u64 / 2) as usize;
    let from = input.index(bytes.len() - length + 1);
    let to = input.index(bytes.len() - length + 1);
    match input.below(4) {
        0 => bytes.copy_within(from..from + length, to),
        1 => bytes[to..to + length].fill(0),
        2 => bytes[to..to + length].fill(0xFF),
        _ => {
            let noise = input.bytes(length.min(64));
            bytes[to..to + noise.len()].copy_from_slice(&noise);
        }
    }
}

/// Any change of a stream or file: of fields, of ranges, cut, grown, something left out or said twice.
pub fn stream(input: &mut Input<'_>, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        *bytes = input.rest(64);
        return;
    }
    match input.below(8) {
        0..=3 => fields(input, bytes, &[], false),
        4 => ranges(input, bytes),
        5 => bytes.truncate(input.index(bytes.len())),
        6 => {
            let from = input.index(bytes.len());
            let length = input.short((bytes.len() - from) as u64 + 1) as usize;
            if input.once_in(2) {
                bytes.drain(from..from + length);
            } else {
                let again = bytes[from..from + length].to_vec();
                let at = input.index(bytes.len());
                bytes.splice(at..at, again);
            }
        }
        _ => {
            let noise = input.rest(256);
            let at = input.index(bytes.len() + 1);
            bytes.splice(at..at, noise);
        }
    }
}
