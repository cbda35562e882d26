//! jbd2's checksums (csum_v2, csum_v3): CRC32C seeded with the journal's UUID, stored big-endian.

use super::super::bytes::{be32, put_be32};
use super::super::checksum::crc32c;
use super::super::types::Tid;

/// Place of the superblock's own checksum.
const SUPERBLOCK_CHECKSUM: usize = 0xFC;
/// Place of the commit block's checksum (`h_chksum[0]`).
const COMMIT_CHECKSUM: usize = 0x10;

/// Register that the journal's checksums start from.
pub(super) fn seed(uuid: &[u8]) -> u32 {
    crc32c(!0, uuid)
}

/// CRC32C of `raw` with the 4 bytes at `at` taken as zero.
fn without(seed: u32, raw: &[u8], at: usize) -> u32 {
    crc32c(crc32c(crc32c(seed, &raw[..at]), &[0; 4]), &raw[at + 4..])
}

/// Of the journal superblock's 1,024 bytes (not seeded).
pub(super) fn superblock_matches(raw: &[u8]) -> bool {
    be32(raw, SUPERBLOCK_CHECKSUM) == without(!0, raw, SUPERBLOCK_CHECKSUM)
}

/// Sets the superblock's checksum.
pub(in crate::ext4) fn seal_superblock(raw: &mut [u8]) {
    let sum = without(!0, raw, SUPERBLOCK_CHECKSUM);
    put_be32(raw, SUPERBLOCK_CHECKSUM, sum);
}

/// Of a descriptor or revoke block: in its last 4 bytes.
pub(super) fn tail_matches(seed: u32, raw: &[u8]) -> bool {
    let at = raw.len() - 4;
    be32(raw, at) == without(seed, raw, at)
}

/// Sets the checksum of a descriptor or revoke block.
pub(super) fn seal_tail(seed: u32, raw: &mut [u8]) {
    let at = raw.len() - 4;
    let sum = without(seed, raw, at);
    put_be32(raw, at, sum);
}

/// Of a commit block.
pub(super) fn commit_matches(seed: u32, raw: &[u8]) -> bool {
    be32(raw, COMMIT_CHECKSUM) == without(seed, raw, COMMIT_CHECKSUM)
}

/// Sets a commit block's checksum.
pub(super) fn seal_commit(seed: u32, raw: &mut [u8]) {
    let sum = without(seed, raw, COMMIT_CHECKSUM);
    put_be32(raw, COMMIT_CHECKSUM, sum);
}

/// Of a logged block, as it stands in the journal (escaped). csum_v2 keeps the low 16 bits only.
pub(super) fn block(seed: u32, tid: Tid, raw: &[u8]) -> u32 {
    crc32c(crc32c(seed, &tid.0.to_be_bytes()), raw)
}
