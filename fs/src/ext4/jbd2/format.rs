//! What stands in the journal, byte by byte. All fields are big-endian.
//!
//! Source: the kernel's `include/linux/jbd2.h` and its documentation of the ext4 journal. A transaction is
//! `[revoke blocks] ([descriptor] [logged blocks])* [commit]`; each block of its own starts with magic, kind and
//! transaction id. Features: `revoke`, `64bit`, `csum_v2` and `csum_v3` are read and written, `checksum` (of the commit
//! block, version 1) is accepted and written as "unused", everything else is refused by name.

use super::super::bytes::{be32, put_be32};
use super::super::error::{FsError, Result};
use super::super::types::Tid;
use super::checksum;

/// `JBD2_MAGIC_NUMBER`.
pub(super) const MAGIC: u32 = 0xC03B_3998;
/// Bytes of the journal superblock.
pub(super) const SUPERBLOCK_BYTES: usize = 1024;
/// Bytes of the header of every block of the journal's own.
const HEADER_BYTES: usize = 12;
/// Header and byte count of a revoke block.
const REVOKE_HEADER_BYTES: usize = 16;
/// Bytes of the UUID behind a descriptor's first tag.
const UUID_BYTES: usize = 16;

/// Kinds of blocks (`h_blocktype`).
pub(super) const DESCRIPTOR: u32 = 1;
pub(super) const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
pub(super) const REVOKE: u32 = 5;

const FLAG_ESCAPE: u16 = 1;
const FLAG_SAME_UUID: u16 = 2;
const FLAG_LAST: u16 = 8;

const COMPAT_CHECKSUM: u32 = 1;
const INCOMPAT_REVOKE: u32 = 0x1;
const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_ASYNC_COMMIT: u32 = 0x4;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// `s_checksum_type` for CRC32C.
const CHECKSUM_CRC32C: u8 = 4;
/// Fast commit blocks where `s_num_fc_blks` is 0.
const FAST_COMMIT_BLOCKS: u32 = 256;

mod at {
    pub(super) const BLOCK_SIZE: usize = 0xC;
    pub(super) const MAXLEN: usize = 0x10;
    pub(super) const FIRST: usize = 0x14;
    pub(super) const SEQUENCE: usize = 0x18;
    pub(super) const START: usize = 0x1C;
    pub(super) const ERRNO: usize = 0x20;
    pub(super) const COMPAT: usize = 0x24;
    pub(super) const INCOMPAT: usize = 0x28;
    pub(super) const RO_COMPAT: usize = 0x2C;
    pub(super) const UUID: usize = 0x30;
    pub(super) const CHECKSUM_TYPE: usize = 0x50;
    pub(super) const FAST_COMMIT_BLOCKS: usize = 0x54;
    pub(super) const HEAD: usize = 0x58;
}

/// How logged blocks are checksummed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksums {
    None,
    /// 16 bits in the tag.
    V2,
    /// 32 bits in a wider tag.
    V3,
}

/// The journal superblock: raw, so that what we do not know stays as it is, its fields checked.
#[derive(Clone, Debug)]
pub(super) struct JournalSuperblock {
    raw: Vec<u8>,
}

impl JournalSuperblock {
    /// Checks the superblock's 1,024 bytes; `blocks`: what the journal's inode has.
    ///
    /// # Errors
    /// `Unsupported` naming the feature, `Corrupt`.
    pub(super) fn parse(raw: Vec<u8>, block_size: u32, blocks: u64) -> Result<Self> {
        let corrupt = |what: String| Err(FsError::corrupt(format!("journal superblock: {what}"), None, None));
        let kind = be32(&raw, 4);
        if be32(&raw, 0) != MAGIC || (kind != SUPERBLOCK_V1 && kind != SUPERBLOCK_V2) {
            return corrupt("no magic (make a new journal with tune2fs -O ^has_journal, then -j)".into());
        }
        if kind == SUPERBLOCK_V1 {
            return Err(FsError::Unsupported(
                "journal superblock of version 1 (run e2fsck, which renews it)".into(),
            ));
        }
        let found = Self { raw };
        let incompat = found.field(at::INCOMPAT);
        let refuse =
            |name: &str| Err(FsError::Unsupported(format!("journal feature {name} is not supported")));
        if incompat & INCOMPAT_ASYNC_COMMIT != 0 {
            return refuse("async_commit");
        }
        if incompat & INCOMPAT_FAST_COMMIT != 0 && found.start() != 0 {
            return refuse("fast_commit, in a journal that has not been replayed (run e2fsck),");
        }
        let known =
            INCOMPAT_REVOKE | INCOMPAT_64BIT | INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3 | INCOMPAT_FAST_COMMIT;
        if incompat & !known != 0 || found.field(at::RO_COMPAT) != 0 {
            return refuse(&format!("bits {:#x}/{:#x}", incompat & !known, found.field(at::RO_COMPAT)));
        }
        if incompat & INCOMPAT_CSUM_V2 != 0 && incompat & INCOMPAT_CSUM_V3 != 0 {
            return corrupt("both csum_v2 and csum_v3".into());
        }
        if found.checksums() != Checksums::None {
            if found.raw[at::CHECKSUM_TYPE] != CHECKSUM_CRC32C {
                return refuse(&format!("checksum type {}", found.raw[at::CHECKSUM_TYPE]));
            }
            if !checksum::superblock_matches(&found.raw) {
                return corrupt("wrong checksum (run e2fsck)".into());
            }
        }
        if found.field(at::BLOCK_SIZE) != block_size {
            return corrupt(format!("{} bytes per block", found.field(at::BLOCK_SIZE)));
        }
        if u64::from(found.field(at::MAXLEN)) > blocks {
            return corrupt(format!("{} blocks in a file of {blocks}", found.field(at::MAXLEN)));
        }
        if found.first() == 0 || u64::from(found.first()) + 64 > u64::from(found.end()) {
            return corrupt(format!("log from block {} to {}", found.first(), found.end()));
        }
        if found.start() != 0 && !(found.first()..found.end()).contains(&found.start()) {
            return corrupt(format!("log starts at block {}", found.start()));
        }
        Ok(found)
    }

    fn field(&self, at: usize) -> u32 {
        be32(&self.raw, at)
    }
    /// The bytes, as they go to the image.
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw
    }
    /// First block of the log.
    pub(super) fn first(&self) -> u32 {
        self.field(at::FIRST)
    }
    /// Block behind the log (fast commit blocks are behind it).
    pub(super) fn end(&self) -> u32 {
        let reserved = match (
            self.field(at::INCOMPAT) & INCOMPAT_FAST_COMMIT != 0,
            self.field(at::FAST_COMMIT_BLOCKS),
        ) {
            (false, _) => 0,
            (true, 0) => FAST_COMMIT_BLOCKS,
            (true, count) => count,
        };
        self.field(at::MAXLEN).saturating_sub(reserved)
    }
    /// Where the oldest transaction starts; 0: the log is empty.
    pub(super) fn start(&self) -> u32 {
        self.field(at::START)
    }
    /// Id of the oldest transaction.
    pub(super) fn sequence(&self) -> Tid {
        Tid(self.field(at::SEQUENCE))
    }
    /// The error that an aborted journal was left with.
    pub(super) fn errno(&self) -> u32 {
        self.field(at::ERRNO)
    }
    /// How logged blocks are checksummed.
    pub(super) fn checksums(&self) -> Checksums {
        match self.field(at::INCOMPAT) & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) {
            0 => Checksums::None,
            INCOMPAT_CSUM_V2 => Checksums::V2,
            _ => Checksums::V3,
        }
    }
    /// The log's form, as the features say.
    pub(super) fn format(&self, block_size: u32) -> Format {
        let mut uuid = [0; UUID_BYTES];
        uuid.copy_from_slice(&self.raw[at::UUID..at::UUID + UUID_BYTES]);
        Format {
            block_size: block_size as usize,
            wide: self.field(at::INCOMPAT) & INCOMPAT_64BIT != 0,
            checksums: self.checksums(),
            seed: checksum::seed(&uuid),
            uuid,
        }
    }
    /// Where the log starts now (0: it is empty), and the id of the transaction there.
    pub(super) fn set_tail(&mut self, start: u32, sequence: Tid) {
        put_be32(&mut self.raw, at::START, start);
        put_be32(&mut self.raw, at::SEQUENCE, sequence.0);
        // Only kernels that go on where the last mount ended read it, and only with a log that is empty.
        put_be32(&mut self.raw, at::HEAD, 0);
        self.seal();
    }
    /// Sets the features that we write with, as the kernel does at mount. The log must be empty.
    pub(super) fn set_features(&mut self, metadata_csum: bool, wide: bool) {
        let mut incompat = self.field(at::INCOMPAT) | INCOMPAT_REVOKE;
        if wide {
            incompat |= INCOMPAT_64BIT;
        }
        if metadata_csum {
            incompat = incompat & !INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3;
            let compat = self.field(at::COMPAT) & !COMPAT_CHECKSUM;
            put_be32(&mut self.raw, at::COMPAT, compat);
            self.raw[at::CHECKSUM_TYPE] = CHECKSUM_CRC32C;
        }
        put_be32(&mut self.raw, at::INCOMPAT, incompat);
        put_be32(&mut self.raw, at::ERRNO, 0);
        self.seal();
    }
    fn seal(&mut self) {
        if self.checksums() != Checksums::None {
            checksum::seal_superblock(&mut self.raw);
        }
    }
}

/// Kind and transaction of a block of the journal's own; `None` without the magic.
pub(super) fn header(raw: &[u8]) -> Option<(u32, Tid)> {
    (be32(raw, 0) == MAGIC).then(|| (be32(raw, 4), Tid(be32(raw, 8))))
}

fn put_header(raw: &mut [u8], kind: u32, tid: Tid) {
    put_be32(raw, 0, MAGIC);
    put_be32(raw, 4, kind);
    put_be32(raw, 8, tid.0);
}

/// One tag of a descriptor block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// Home of the logged block.
    pub(super) block: u64,
    /// Its first 4 bytes were the magic and are logged as zeros.
    pub(super) escaped: bool,
    /// As far as the format keeps it.
    pub(super) checksum: u32,
}

/// How descriptor, revoke and commit blocks look in one journal.
#[derive(Clone, Debug)]
pub(super) struct Format {
    pub(super) block_size: usize,
    /// Block numbers have 64 bits.
    wide: bool,
    pub(super) checksums: Checksums,
    pub(super) seed: u32,
    uuid: [u8; UUID_BYTES],
}

impl Format {
    fn tag_bytes(&self) -> usize {
        match (self.checksums, self.wide) {
            (Checksums::V3, _) => 16,
            (Checksums::V2, true) => 14,
            (Checksums::V2, false) => 10,
            (Checksums::None, true) => 12,
            (Checksums::None, false) => 8,
        }
    }
    fn tail_bytes(&self) -> usize {
        if self.checksums == Checksums::None { 0 } else { 4 }
    }
    fn revoke_bytes(&self) -> usize {
        if self.wide { 8 } else { 4 }
    }
    /// Logged blocks that one descriptor can name.
    pub(super) fn tags_max(&self) -> usize {
        (self.block_size - HEADER_BYTES - UUID_BYTES - self.tail_bytes()) / self.tag_bytes()
    }
    /// Blocks that one revoke block can name.
    pub(super) fn revokes_max(&self) -> usize {
        (self.block_size - REVOKE_HEADER_BYTES - self.tail_bytes()) / self.revoke_bytes()
    }
    /// Whether a descriptor's or revoke block's checksum is right (or not kept).
    pub(super) fn tail_matches(&self, raw: &[u8]) -> bool {
        self.checksums == Checksums::None || checksum::tail_matches(self.seed, raw)
    }
    /// Whether a commit block's checksum is right (or not kept).
    pub(super) fn commit_matches(&self, raw: &[u8]) -> bool {
        self.checksums == Checksums::None || checksum::commit_matches(self.seed, raw)
    }
    /// Whether a logged block is what its tag says (or that is not kept).
    pub(super) fn block_matches(&self, tag: &Tag, tid: Tid, raw: &[u8]) -> bool {
        match self.checksums {
            Checksums::None => true,
            Checksums::V2 => checksum::block(self.seed, tid, raw) & 0xFFFF == tag.checksum,
            Checksums::V3 => checksum::block(self.seed, tid, raw) == tag.checksum,
        }
    }
    /// The tags of a descriptor block.
    pub(super) fn tags(&self, raw: &[u8]) -> Vec<Tag> {
        let mut tags = Vec::new();
        let mut at = HEADER_BYTES;
        while at + self.tag_bytes() <= self.block_size - self.tail_bytes() {
            let flags = be32(raw, at + 4) as u16;
            let high = if self.wide { u64::from(be32(raw, at + 8)) << 32 } else { 0 };
            tags.push(Tag {
                block: u64::from(be32(raw, at)) | high,
                escaped: flags & FLAG_ESCAPE != 0,
                checksum: match self.checksums {
                    Checksums::None => 0,
                    Checksums::V2 => be32(raw, at + 4) >> 16,
                    Checksums::V3 => be32(raw, at + 12),
                },
            });
            at += self.tag_bytes() + if flags & FLAG_SAME_UUID == 0 { UUID_BYTES } else { 0 };
            if flags & FLAG_LAST != 0 {
                break;
            }
        }
        tags
    }
    /// The blocks that a revoke block names; `None` if its count is impossible.
    pub(super) fn revoked(&self, raw: &[u8]) -> Option<Vec<u64>> {
        let end = be32(raw, HEADER_BYTES) as usize;
        if end > self.block_size - self.tail_bytes() || end < REVOKE_HEADER_BYTES {
            return None;
        }
        let entry = |raw: &[u8]| match self.wide {
            true => u64::from(be32(raw, 0)) << 32 | u64::from(be32(raw, 4)),
            false => u64::from(be32(raw, 0)),
        };
        Some(raw[REVOKE_HEADER_BYTES..end].chunks_exact(self.revoke_bytes()).map(entry).collect())
    }
    /// Writes a descriptor's header.
    pub(super) fn start_descriptor(&self, raw: &mut [u8], tid: Tid) {
        put_header(raw, DESCRIPTOR, tid);
    }
    /// Writes tag number `index` into a descriptor.
    pub(super) fn put_tag(&self, raw: &mut [u8], index: usize, tag: &Tag, last: bool) {
        let at = HEADER_BYTES + index * self.tag_bytes() + if index > 0 { UUID_BYTES } else { 0 };
        let mut flags = 0;
        for (set, flag) in [(tag.escaped, FLAG_ESCAPE), (index > 0, FLAG_SAME_UUID), (last, FLAG_LAST)] {
            flags |= if set { flag } else { 0 };
        }
        put_be32(raw, at, tag.block as u32);
        let sum = if self.checksums == Checksums::V2 { tag.checksum << 16 } else { 0 };
        put_be32(raw, at + 4, sum | u32::from(flags));
        if self.wide || self.checksums == Checksums::V3 {
            put_be32(raw, at + 8, (tag.block >> 32) as u32);
        }
        if self.checksums == Checksums::V3 {
            put_be32(raw, at + 12, tag.checksum);
        }
        if index == 0 {
            let behind = at + self.tag_bytes();
            raw[behind..behind + UUID_BYTES].copy_from_slice(&self.uuid);
        }
    }
    /// Seals a descriptor whose tags are all there.
    pub(super) fn seal_descriptor(&self, raw: &mut [u8]) {
        if self.checksums != Checksums::None {
            checksum::seal_tail(self.seed, raw);
        }
    }
    /// Makes a revoke block (of zeros) name `blocks`, at most [`Self::revokes_max`].
    pub(super) fn put_revokes(&self, raw: &mut [u8], tid: Tid, blocks: &[u64]) {
        put_header(raw, REVOKE, tid);
        let mut at = REVOKE_HEADER_BYTES;
        for block in blocks {
            if self.wide {
                put_be32(raw, at, (block >> 32) as u32);
                put_be32(raw, at + 4, *block as u32);
            } else {
                put_be32(raw, at, *block as u32);
            }
            at += self.revoke_bytes();
        }
        put_be32(raw, HEADER_BYTES, at as u32);
        self.seal_descriptor(raw);
    }
    /// A commit block.
    pub(super) fn commit(&self, tid: Tid, seconds: u64, nanoseconds: u32) -> Vec<u8> {
        let mut raw = vec![0; self.block_size];
        put_header(&mut raw, COMMIT, tid);
        put_be32(&mut raw, 0x30, (seconds >> 32) as u32);
        put_be32(&mut raw, 0x34, seconds as u32);
        put_be32(&mut raw, 0x38, nanoseconds);
        if self.checksums != Checksums::None {
            checksum::seal_commit(self.seed, &mut raw);
        }
        raw
    }
    /// A commit block's time in seconds.
    pub(super) fn commit_seconds(raw: &[u8]) -> u64 {
        u64::from(be32(raw, 0x30)) << 32 | u64::from(be32(raw, 0x34))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn forms() -> impl Iterator<Item = Format> {
        [1024, 2048, 4096].into_iter().flat_map(|block_size| {
            [Checksums::None, Checksums::V2, Checksums::V3].into_iter().flat_map(move |checksums| {
                [false, true].into_iter().map(move |wide| {
                    let uuid = [7; 16];
                    Format { block_size, wide, checksums, seed: checksum::seed(&uuid), uuid }
                })
            })
        })
    }

    #[test]
    fn a_full_descriptor_reads_back() {
        for format in forms() {
            let tid = Tid(77);
            let mut raw = vec![0; format.block_size];
            format.start_descriptor(&mut raw, tid);
            let tags: Vec<Tag> = (0..format.tags_max())
                .map(|index| Tag {
                    block: index as u64 * 3 + if format.wide { 5 << 32 } else { 0 },
                    escaped: index % 5 == 0,
                    checksum: match format.checksums {
                        Checksums::None => 0,
                        Checksums::V2 => 0xABC0 + index as u32 % 16,
                        Checksums::V3 => 0xDEAD_0000 + index as u32,
                    },
                })
                .collect();
            for (index, tag) in tags.iter().enumerate() {
                format.put_tag(&mut raw, index, tag, index + 1 == tags.len());
            }
            format.seal_descriptor(&mut raw);
            assert_eq!(header(&raw), Some((DESCRIPTOR, tid)));
            assert!(format.tail_matches(&raw));
            assert_eq!(format.tags(&raw), tags, "{format:?}");
            raw[20] ^= 1;
            assert_eq!(format.tail_matches(&raw), format.checksums == Checksums::None);
        }
    }

    #[test]
    fn a_full_revoke_block_reads_back() {
        for format in forms() {
            let mut raw = vec![0; format.block_size];
            let blocks: Vec<u64> =
                (0..format.revokes_max() as u64).map(|n| n << if format.wide { 33 } else { 3 }).collect();
            format.put_revokes(&mut raw, Tid(3), &blocks);
            assert!(format.tail_matches(&raw));
            assert_eq!(format.revoked(&raw), Some(blocks));
            put_be32(&mut raw, HEADER_BYTES, format.block_size as u32 + 1);
            assert_eq!(format.revoked(&raw), None);
        }
    }

    #[test]
    fn a_commit_block_keeps_its_time_and_notices_damage() {
        for format in forms() {
            let mut raw = format.commit(Tid(9), 0x1_2345_6789, 42);
            assert_eq!(Format::commit_seconds(&raw), 0x1_2345_6789);
            assert!(format.commit_matches(&raw));
            raw[0x37] ^= 1;
            assert_eq!(format.commit_matches(&raw), format.checksums == Checksums::None);
        }
    }
}
