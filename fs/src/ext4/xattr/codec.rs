//! Extended attributes as bytes. Source: `struct ext4_xattr_ibody_header`, `ext4_xattr_header`, `ext4_xattr_entry`.
//!
//! Entries (16 bytes and the name, padded to 4) grow from the front, closed by 4 zero bytes; values, padded to 4, grow from the
//! back. Value offsets count from the first entry inside an inode, from the block's start in a block.

use super::super::bytes::{le16, le32, put16, put32};
use super::super::checksum::crc32c;
use super::super::error::{FsError, Result};
use super::super::inode::Inode;
use super::super::superblock::{ChecksumKind, Geometry};
use super::super::types::{BlockNo, InodeNo};

/// Magic of both headers.
const MAGIC: u32 = 0xEA02_0000;
/// Bytes of a block's header: magic, reference count, blocks, hash, checksum, 12 reserved.
pub(super) const BLOCK_HEAD: usize = 32;
/// Bytes of the header inside an inode: magic.
const INODE_HEAD: usize = 4;
const ENTRY_HEAD: usize = 16;
const CHECKSUM_AT: usize = 16;

/// Namespace of a name, as ext4 numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NameIndex(pub(super) u8);

impl NameIndex {
    pub(crate) const USER: Self = Self(1);
    pub(crate) const ACL_ACCESS: Self = Self(2);
    pub(crate) const ACL_DEFAULT: Self = Self(3);
    pub(crate) const TRUSTED: Self = Self(4);
    pub(crate) const SECURITY: Self = Self(6);
    const SYSTEM: Self = Self(7);

    /// Splits a full name; `None` for a namespace that ext4 does not have.
    pub(super) fn split(name: &[u8]) -> Option<(Self, &[u8])> {
        match name {
            b"system.posix_acl_access" => return Some((Self::ACL_ACCESS, b"")),
            b"system.posix_acl_default" => return Some((Self::ACL_DEFAULT, b"")),
            _ => {}
        }
        [(&b"user."[..], Self::USER), (b"trusted.", Self::TRUSTED), (b"security.", Self::SECURITY)]
            .into_iter()
            .find_map(|(prefix, index)| Some((index, name.strip_prefix(prefix)?)))
    }
    /// What the full name begins with; `None` for namespaces that are kept but not shown.
    pub(super) fn prefix(self) -> Option<&'static [u8]> {
        Some(match self {
            Self::USER => b"user.",
            Self::ACL_ACCESS => b"system.posix_acl_access",
            Self::ACL_DEFAULT => b"system.posix_acl_default",
            Self::TRUSTED => b"trusted.",
            Self::SECURITY => b"security.",
            Self::SYSTEM => b"system.",
            _ => return None,
        })
    }
}

/// One attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) index: NameIndex,
    /// The name behind its namespace's prefix.
    pub(super) name: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl Entry {
    pub(super) fn is(&self, index: NameIndex, name: &[u8]) -> bool {
        self.index == index && self.name == name
    }
    fn order(&self) -> (NameIndex, usize, &[u8]) {
        (self.index, self.name.len(), &self.name)
    }
}

fn padded(bytes: usize) -> usize {
    (bytes + 3) & !3
}

/// Reads the entries in `area` (first entry to end); values are found from `base` bytes before it.
fn decode(area: &[u8], base: usize, bad: &dyn Fn(&str) -> FsError) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut at = 0;
    loop {
        if at + 4 > area.len() {
            return Err(bad("entries without an end"));
        }
        if le32(area, at) == 0 {
            return Ok(entries);
        }
        let name_len = usize::from(area[at]);
        let next = at + padded(ENTRY_HEAD + name_len);
        if next + 4 > area.len() {
            return Err(bad("entry is cut off"));
        }
        let (offset, size) = (usize::from(le16(area, at + 2)), le32(area, at + 8) as usize);
        if le32(area, at + 4) != 0 {
            return Err(bad("value in an inode of its own (ea_inode)"));
        }
        let value = if size == 0 {
            Vec::new()
        } else {
            let start = offset.checked_sub(base).ok_or_else(|| bad("value inside the header"))?;
            let end = start.checked_add(size).filter(|end| *end <= area.len());
            let end = end.ok_or_else(|| bad("value reaches beyond the end"))?;
            if start < next {
                return Err(bad("value inside the entries"));
            }
            area[start..end].to_vec()
        };
        let name = area[at + ENTRY_HEAD..at + ENTRY_HEAD + name_len].to_vec();
        entries.push(Entry { index: NameIndex(area[at + 1]), name, value });
        at = next;
    }
}

/// Whether the entries fit into `room` bytes.
fn fits(entries: &[Entry], room: usize) -> bool {
    let bytes: usize =
        entries.iter().map(|entry| padded(ENTRY_HEAD + entry.name.len()) + padded(entry.value.len())).sum();
    bytes + 4 <= room
}

/// The kernel's `ext4_xattr_hash_entry`: over the name's bytes and the padded value's words.
fn entry_hash(name: &[u8], padded_value: &[u8]) -> u32 {
    let hash = name.iter().fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    padded_value.chunks_exact(4).fold(hash, |hash, word| hash.rotate_left(16) ^ le32(word, 0))
}

/// Writes entries into `area`, which must have room. `hashes`: entry hashes are kept (blocks); returns the block's hash.
fn encode(entries: &[Entry], area: &mut [u8], base: usize, hashes: bool) -> u32 {
    area.fill(0);
    let (mut at, mut value_at) = (0, area.len());
    let (mut block_hash, mut unshared) = (0_u32, false);
    for entry in entries {
        let size = entry.value.len();
        value_at -= padded(size);
        area[value_at..value_at + size].copy_from_slice(&entry.value);
        let hash = if hashes { entry_hash(&entry.name, &area[value_at..value_at + padded(size)]) } else { 0 };
        block_hash = block_hash.rotate_left(16) ^ hash;
        unshared |= hash == 0;
        area[at] = entry.name.len() as u8;
        area[at + 1] = entry.index.0;
        put16(area, at + 2, if size == 0 { 0 } else { (base + value_at) as u16 });
        put32(area, at + 8, size as u32);
        put32(area, at + 12, hash);
        area[at + ENTRY_HEAD..at + ENTRY_HEAD + entry.name.len()].copy_from_slice(&entry.name);
        at += padded(ENTRY_HEAD + entry.name.len());
    }
    // An entry with hash 0 says that the block is not to be shared.
    if unshared { 0 } else { block_hash }
}

/// Where attributes lie inside an inode of `inode_size` bytes: `None` if it has no room for any.
fn inode_area(inode: &Inode, inode_size: usize) -> Option<std::ops::Range<usize>> {
    let start = 128 + usize::from(inode.extra_isize) + INODE_HEAD;
    (inode.extra_isize > 0 && start + ENTRY_HEAD <= inode_size).then_some(start..inode_size)
}

/// Attributes inside an inode's raw bytes.
pub(super) fn decode_inode(inode: &Inode, raw: &[u8]) -> Result<Vec<Entry>> {
    let Some(area) = inode_area(inode, raw.len()) else { return Ok(Vec::new()) };
    if le32(raw, area.start - INODE_HEAD) != MAGIC {
        return Ok(Vec::new());
    }
    let bad = |what: &str| FsError::corrupt(format!("xattrs in the inode: {what}"), Some(inode.ino), None);
    decode(&raw[area], 0, &bad)
}

/// Whether these attributes fit into the inode.
pub(super) fn fits_inode(inode: &Inode, inode_size: usize, entries: &[Entry]) -> bool {
    inode_area(inode, inode_size).is_some_and(|area| fits(entries, area.len()))
}

/// Writes attributes into an inode's raw bytes (they fit).
pub(super) fn encode_inode(inode: &Inode, raw: &mut [u8], entries: &[Entry]) {
    let Some(area) = inode_area(inode, raw.len()) else { return };
    put32(raw, area.start - INODE_HEAD, if entries.is_empty() { 0 } else { MAGIC });
    encode(entries, &mut raw[area], 0, false);
}

/// References to a shared block.
pub(super) fn block_references(block: &[u8]) -> u32 {
    le32(block, 4)
}

fn block_checksum(geometry: &Geometry, at: BlockNo, block: &[u8]) -> u32 {
    let crc = crc32c(geometry.checksum_seed, &at.0.to_le_bytes());
    let crc = crc32c(crc, &block[..CHECKSUM_AT]);
    crc32c(crc32c(crc, &[0; 4]), &block[CHECKSUM_AT + 4..])
}

fn seal(geometry: &Geometry, at: BlockNo, block: &mut [u8]) {
    if geometry.checksums == ChecksumKind::Crc32c {
        let sum = block_checksum(geometry, at, block);
        put32(block, CHECKSUM_AT, sum);
    }
}

/// Holds an attribute block against its magic and checksum.
pub(super) fn check_block(geometry: &Geometry, ino: InodeNo, at: BlockNo, block: &[u8]) -> Result<()> {
    let bad = |what: &str| Err(FsError::corrupt(format!("xattr block: {what}"), Some(ino), Some(at)));
    if le32(block, 0) != MAGIC || le32(block, 8) != 1 {
        return bad("wrong magic");
    }
    if block_references(block) == 0 || block_references(block) > 1024 {
        return bad("impossible reference count");
    }
    if geometry.checksums == ChecksumKind::Crc32c
        && block_checksum(geometry, at, block) != le32(block, CHECKSUM_AT)
    {
        return bad("wrong checksum");
    }
    Ok(())
}

/// Attributes in a checked block.
pub(super) fn decode_block(ino: InodeNo, at: BlockNo, block: &[u8]) -> Result<Vec<Entry>> {
    let bad = |what: &str| FsError::corrupt(format!("xattr block: {what}"), Some(ino), Some(at));
    decode(&block[BLOCK_HEAD..], BLOCK_HEAD, &bad)
}

/// Whether these attributes fit into a block.
pub(super) fn fits_block(block_size: usize, entries: &[Entry]) -> bool {
    fits(entries, block_size - BLOCK_HEAD)
}

/// Writes attributes into a block with one reference, sorted, with hashes and checksum (they fit).
pub(super) fn encode_block(geometry: &Geometry, at: BlockNo, block: &mut [u8], entries: &mut [Entry]) {
    entries.sort_by(|left, right| left.order().cmp(&right.order()));
    block[..BLOCK_HEAD].fill(0);
    put32(block, 0, MAGIC);
    put32(block, 4, 1);
    put32(block, 8, 1);
    let hash = encode(entries, &mut block[BLOCK_HEAD..], BLOCK_HEAD, true);
    put32(block, 12, hash);
    seal(geometry, at, block);
}

/// Takes one reference off a shared block.
pub(super) fn drop_reference(geometry: &Geometry, at: BlockNo, block: &mut [u8]) {
    let references = block_references(block);
    put32(block, 4, references - 1);
    seal(geometry, at, block);
}
