//! Linear directory blocks. Source: `struct ext4_dir_entry_2`, `struct ext4_dir_entry_tail`.
//!
//! A block is a chain of records that fills it: inode (4 bytes; 0: unused), record length (2, a multiple of 4), name length (1),
//! type (1), name. With checksums the last 12 bytes are a record of type 0xDE that holds the block's CRC32C.

use super::super::attr::FileKind;
use super::super::bytes::{le16, le32, put16, put32};
use super::super::checksum::crc32c;
use super::super::error::{FsError, Result};
use super::super::inode::Inode;
use super::super::superblock::{ChecksumKind, Geometry};
use super::super::types::{BlockNo, InodeNo};

/// Longest name.
pub(crate) const NAME_MAX: usize = 255;
/// Bytes of the checksum record.
const TAIL_BYTES: usize = 12;
/// Bytes of a record before its name.
pub(super) const HEAD_BYTES: usize = 8;
const TAIL_KIND: u8 = 0xDE;

/// Bytes that a record needs for a name.
pub(super) fn record_bytes(name_len: usize) -> usize {
    (HEAD_BYTES + name_len + 3) & !3
}

/// `file_type` of a kind.
pub(super) fn kind_byte(geometry: &Geometry, kind: FileKind) -> u8 {
    if geometry.incompat & 0x2 == 0 {
        return 0;
    }
    match kind {
        FileKind::Regular => 1,
        FileKind::Directory => 2,
        FileKind::CharDevice => 3,
        FileKind::BlockDevice => 4,
        FileKind::Fifo => 5,
        FileKind::Socket => 6,
        FileKind::Symlink => 7,
    }
}

/// Kind of a `file_type`; `None` if the directory does not say.
pub(super) fn kind_of(byte: u8) -> Option<FileKind> {
    Some(match byte & 7 {
        1 => FileKind::Regular,
        2 => FileKind::Directory,
        3 => FileKind::CharDevice,
        4 => FileKind::BlockDevice,
        5 => FileKind::Fifo,
        6 => FileKind::Socket,
        7 => FileKind::Symlink,
        _ => return None,
    })
}

/// Checksums of a directory's blocks: seed of its inode and generation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    seed: Option<u32>,
}

impl Sums {
    /// For a directory.
    pub(super) fn of(geometry: &Geometry, dir: &Inode) -> Self {
        Self { seed: (geometry.checksums == ChecksumKind::Crc32c).then(|| dir.checksum_seed(geometry)) }
    }
    /// The seed, where blocks are checksummed.
    pub(super) fn seed(self) -> Option<u32> {
        self.seed
    }
    /// Where records end in a linear block.
    pub(super) fn end(self, block_size: usize) -> usize {
        if self.seed.is_some() { block_size - TAIL_BYTES } else { block_size }
    }
    /// Writes the checksum record of a linear block.
    pub(super) fn seal(self, block: &mut [u8]) {
        let Some(seed) = self.seed else { return };
        let tail = block.len() - TAIL_BYTES;
        let sum = crc32c(seed, &block[..tail]);
        put32(block, tail, 0);
        put16(block, tail + 4, TAIL_BYTES as u16);
        block[tail + 6] = 0;
        block[tail + 7] = TAIL_KIND;
        put32(block, tail + 8, sum);
    }
    /// Holds a linear block against its checksum and every rule of its records.
    pub(super) fn check(self, geometry: &Geometry, dir: InodeNo, at: BlockNo, block: &[u8]) -> Result<()> {
        let bad = |what: String| FsError::corrupt(format!("directory block: {what}"), Some(dir), Some(at));
        let end = self.end(block.len());
        if let Some(seed) = self.seed {
            if le32(block, end) != 0
                || le16(block, end + 4) != TAIL_BYTES as u16
                || block[end + 6] != 0
                || block[end + 7] != TAIL_KIND
            {
                return Err(bad("no checksum record (e2fsck -D makes room for it)".into()));
            }
            if crc32c(seed, &block[..end]) != le32(block, end + 8) {
                return Err(bad("wrong checksum".into()));
            }
        }
        let mut offset = 0;
        while offset < end {
            if end - offset < HEAD_BYTES {
                return Err(bad(format!("record at {offset} is cut off")));
            }
            let length = usize::from(le16(block, offset + 4));
            let name_len = usize::from(block[offset + 6]);
            if length < record_bytes(1)
                || length % 4 != 0
                || length < record_bytes(name_len)
                || length > end - offset
            {
                return Err(bad(format!("record at {offset}: length {length}, name of {name_len} bytes")));
            }
            let ino = le32(block, offset);
            if ino > geometry.inode_count {
                return Err(bad(format!("record at {offset}: inode {ino}")));
            }
            if ino != 0 {
                let name = &block[offset + HEAD_BYTES..offset + HEAD_BYTES + name_len];
                if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
                    return Err(bad(format!("record at {offset}: impossible name")));
                }
            }
            offset += length;
        }
        Ok(())
    }
}

/// A record in a checked block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    /// Its place in the block.
    pub(super) offset: usize,
    /// Bytes to the next one.
    pub(super) length: usize,
    /// 0: unused.
    pub(super) ino: u32,
    pub(super) kind: u8,
    pub(super) name: &'a [u8],
}

impl Record<'_> {
    /// Bytes in use.
    pub(super) fn used(&self) -> usize {
        if self.ino == 0 { 0 } else { record_bytes(self.name.len()) }
    }
}

/// Records of a linear block from `start` to `end`, unused ones too. The block has been checked.
pub(super) fn records(block: &[u8], start: usize, end: usize) -> impl Iterator<Item = Record<'_>> {
    let mut offset = start;
    std::iter::from_fn(move || {
        if offset + HEAD_BYTES > end {
            return None;
        }
        let name_len = usize::from(block[offset + 6]);
        let record = Record {
            offset,
            length: usize::from(le16(block, offset + 4)),
            ino: le32(block, offset),
            kind: block[offset + 7],
            name: block.get(offset + HEAD_BYTES..offset + HEAD_BYTES + name_len)?,
        };
        if record.length < HEAD_BYTES {
            return None;
        }
        offset += record.length;
        Some(record)
    })
}

/// Writes a record.
pub(super) fn put_record(block: &mut [u8], offset: usize, length: usize, ino: u32, kind: u8, name: &[u8]) {
    put32(block, offset, ino);
    put16(block, offset + 4, length as u16);
    block[offset + 6] = name.len() as u8;
    block[offset + 7] = kind;
    block[offset + HEAD_BYTES..offset + HEAD_BYTES + name.len()].copy_from_slice(name);
}

/// Where a record for a name of `name_len` bytes fits: an unused record, or the room behind a used one.
pub(super) fn find_room(block: &[u8], end: usize, name_len: usize) -> Option<usize> {
    let wanted = record_bytes(name_len);
    records(block, 0, end).find(|record| record.length - record.used() >= wanted).map(|record| record.offset)
}

/// Puts a record at the place that [`find_room`] gave, splitting the one there if it is in use.
pub(super) fn place_record(block: &mut [u8], offset: usize, ino: u32, kind: u8, name: &[u8]) {
    let length = usize::from(le16(block, offset + 4));
    if le32(block, offset) == 0 {
        put_record(block, offset, length, ino, kind, name);
    } else {
        let used = record_bytes(usize::from(block[offset + 6]));
        put16(block, offset + 4, used as u16);
        put_record(block, offset + used, length - used, ino, kind, name);
    }
}

/// Takes a record away: its room goes to the one before it in the block, or it stays as an unused one.
pub(super) fn delete_record(block: &mut [u8], offset: usize, before: Option<usize>) {
    let length = usize::from(le16(block, offset + 4));
    match before {
        Some(before) => {
            let grown = usize::from(le16(block, before + 4)) + length;
            put16(block, before + 4, grown as u16);
            block[offset..offset + length].fill(0);
        }
        None => {
            put32(block, offset, 0);
            block[offset + 6..offset + length].fill(0);
        }
    }
}

/// Makes the block one unused record.
pub(super) fn clear(block: &mut [u8], end: usize) {
    block.fill(0);
    put16(block, 4, end as u16);
}

/// Changes what a record names.
pub(super) fn point_record(block: &mut [u8], offset: usize, ino: u32, kind: u8) {
    put32(block, offset, ino);
    block[offset + 7] = kind;
}

/// Whether the first two records are "." and "..", as in every directory's first block.
pub(super) fn begins_with_dots(block: &[u8]) -> bool {
    le16(block, 4) == 12 && block[6] == 1 && block[8] == b'.' && block[18] == 2 && block[20..22] == *b".."
}
