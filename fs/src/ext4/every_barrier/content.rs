//! Bytes that say whose they are: a file's content is made of units, each of which names its file, its place and the write
//! that put it there. So a block that shows in another file, or an old one, is told at a glance.

use super::super::types::InodeNo;

/// Bytes of a unit. Sizes and offsets of the workload are multiples of it.
pub(super) const UNIT_BYTES: u64 = 64;

/// What tells one life of an inode from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Identity {
    pub(super) ino: InodeNo,
    pub(super) generation: u32,
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

fn words(of: Identity, unit: u32, version: u32) -> [u64; 8] {
    let first = u64::from(of.ino.0) << 32 | u64::from(of.generation);
    let second = u64::from(unit) << 32 | u64::from(version);
    let mut seal = mix(first ^ second.rotate_left(17) ^ 0x6D69_7272_6F72_6673);
    let mut words = [first, second, 0, 0, 0, 0, 0, 0];
    for word in &mut words[2..] {
        *word = seal;
        seal = mix(seal.wrapping_add(0x9E37_79B9_7F4A_7C15));
    }
    words
}

/// Bytes of the units `units` of a file, as the write number `version` (not 0) puts them.
pub(super) fn fill(of: Identity, units: std::ops::Range<u32>, version: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(units.len() * UNIT_BYTES as usize);
    for unit in units {
        words(of, unit, version).iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    }
    bytes
}

/// What a unit holds: the version, or 0 for zeros.
///
/// # Errors
/// Whose it is, if it does not belong there.
pub(super) fn version_at(of: Identity, unit: u32, bytes: &[u8]) -> Result<u32, String> {
    let word =
        |index: usize| u64::from_le_bytes(bytes[index * 8..index * 8 + 8].try_into().expect("8 bytes"));
    let version = word(1) as u32;
    let is_whole = |words: [u64; 8]| words.iter().enumerate().all(|(index, wanted)| word(index) == *wanted);
    if version != 0 && is_whole(words(of, unit, version)) {
        return Ok(version);
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let other = Identity { ino: InodeNo((word(0) >> 32) as u32), generation: word(0) as u32 };
    let at = (word(1) >> 32) as u32;
    if is_whole(words(other, at, version)) {
        let whose = if other == of { "its own" } else { "another file's" };
        return Err(format!("{whose} data (inode {} generation {}, unit {at})", other.ino, other.generation));
    }
    Err(format!("garbage ({:02x?}…)", &bytes[..16]))
}

#[test]
fn units_tell_whose_they_are() {
    let (one, another) =
        (Identity { ino: InodeNo(12), generation: 7 }, Identity { ino: InodeNo(12), generation: 8 });
    let bytes = fill(one, 5..7, 3);
    assert_eq!(version_at(one, 5, &bytes[..64]), Ok(3));
    assert_eq!(version_at(one, 6, &bytes[64..]), Ok(3));
    assert_eq!(version_at(one, 6, &[0; 64]), Ok(0));
    assert!(version_at(one, 5, &bytes[64..]).is_err_and(|why| why.contains("its own")));
    assert!(version_at(another, 5, &bytes[..64]).is_err_and(|why| why.contains("another file's")));
    let mut torn = bytes[..64].to_vec();
    torn[40] ^= 1;
    assert!(version_at(one, 5, &torn).is_err_and(|why| why.contains("garbage")));
}
