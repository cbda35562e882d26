//! Hashes of names in indexed directories. Source: the kernel's `fs/ext4/hash.c`.

/// Hash of a name: `major` orders the index (its lowest bit is always 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NameHash {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// What is added to a hash's number (0 legacy, 1 half MD4, 2 TEA) where names are taken as unsigned bytes.
pub(crate) const UNSIGNED: u8 = 3;

/// A hash that marks the end of a directory for the kernel's readdir; names never get it.
const END: u32 = 0xFFFF_FFFE;

/// Hashes `name` with `version` (see [`UNSIGNED`]; at most 5) and the file
/// system's seed (all zero: MD4's own).
pub(crate) fn hash_name(version: u8, seed: &[u32; 4], name: &[u8]) -> NameHash {
    let mut state =
        if *seed == [0; 4] { [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476] } else { *seed };
    let signed = version < UNSIGNED;
    let (major, minor) = match version % UNSIGNED {
        0 => (legacy(name, signed), 0),
        2 => {
            for at in (0..name.len()).step_by(16) {
                tea(&mut state, &words::<4>(&name[at..], signed));
            }
            (state[0], state[1])
        }
        _ => {
            for at in (0..name.len()).step_by(32) {
                half_md4(&mut state, &words::<8>(&name[at..], signed));
            }
            (state[1], state[2])
        }
    };
    let major = major & !1;
    NameHash { major: if major == END { END - 2 } else { major }, minor }
}

fn widen(byte: u8, signed: bool) -> u32 {
    if signed { byte as i8 as u32 } else { u32::from(byte) }
}

/// Packs the next bytes of a name into words, padded with the number of bytes left.
fn words<const N: usize>(rest: &[u8], signed: bool) -> [u32; N] {
    let pad = rest.len() as u32 | (rest.len() as u32) << 8;
    let pad = pad | pad << 16;
    let mut words = [pad; N];
    for (word, chunk) in words.iter_mut().zip(rest.chunks(4)) {
        *word = chunk.iter().fold(pad, |word, byte| widen(*byte, signed).wrapping_add(word << 8));
    }
    words
}

fn legacy(name: &[u8], signed: bool) -> u32 {
    let (mut hash0, mut hash1) = (0x12A3_FE2D_u32, 0x37AB_E8F9_u32);
    for byte in name {
        let mut hash = hash1.wrapping_add(hash0 ^ widen(*byte, signed).wrapping_mul(7_152_373));
        if hash & 0x8000_0000 != 0 {
            hash = hash.wrapping_sub(0x7FFF_FFFF);
        }
        hash1 = hash0;
        hash0 = hash;
    }
    hash0 << 1
}

fn tea(state: &mut [u32; 4], input: &[u32; 4]) {
    let [a, b, c, d] = *input;
    let (mut sum, mut b0, mut b1) = (0_u32, state[0], state[1]);
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9E37_79B9);
        b0 = b0.wrapping_add((b1 << 4).wrapping_add(a) ^ b1.wrapping_add(sum) ^ (b1 >> 5).wrapping_add(b));
        b1 = b1.wrapping_add((b0 << 4).wrapping_add(c) ^ b0.wrapping_add(sum) ^ (b0 >> 5).wrapping_add(d));
    }
    state[0] = state[0].wrapping_add(b0);
    state[1] = state[1].wrapping_add(b1);
}

fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    fn choose(x: u32, y: u32, z: u32) -> u32 {
        z ^ (x & (y ^ z))
    }
    fn majority(x: u32, y: u32, z: u32) -> u32 {
        (x & y).wrapping_add((x ^ y) & z)
    }
    fn parity(x: u32, y: u32, z: u32) -> u32 {
        x ^ y ^ z
    }
    type Round = (fn(u32, u32, u32) -> u32, u32, [u32; 4], [usize; 8]);
    const ROUNDS: [Round; 3] = [
        (choose, 0, [3, 7, 11, 19], [0, 1, 2, 3, 4, 5, 6, 7]),
        (majority, 0x5A82_7999, [3, 5, 9, 13], [1, 3, 5, 7, 0, 2, 4, 6]),
        (parity, 0x6ED9_EBA1, [3, 9, 11, 15], [3, 7, 2, 6, 1, 5, 0, 4]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (function, constant, shifts, order) in ROUNDS {
        for (step, word) in order.into_iter().enumerate() {
            let sum = a.wrapping_add(function(b, c, d)).wrapping_add(input[word]).wrapping_add(constant);
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(add);
    }
}
