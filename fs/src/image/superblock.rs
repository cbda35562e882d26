//! The little that the image layer must know of ext4: whether it is one, where it ends, where its metadata lies.

use super::error::ImageError;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Place and size of the primary superblock.
pub(crate) const SUPERBLOCK_RANGE: Range<u64> = 1024..2048;

const EXT4_MAGIC: u16 = 0xEF53;
const INCOMPAT_64BIT: u32 = 0x80;
const EXTENTS_FLAG: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xF30A;

/// `struct ext4_super_block`, as far as the image layer needs it.
#[derive(Debug)]
pub(crate) struct Superblock {
    raw: [u8; 1024],
    pub(crate) block_bytes: u64,
    pub(crate) block_count: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Superblock {
    /// Reads and judges it.
    pub(crate) fn read(file: &File, path: &Path) -> Result<Self, ImageError> {
        let read_error = |error| ImageError::io("read the superblock of", path)(error);
        let not_ext4 = |found: String| ImageError::NotExt4 { path: path.to_owned(), found };
        let length = file.metadata().map_err(read_error)?.len();
        if length < SUPERBLOCK_RANGE.end {
            return Err(not_ext4(format!("it has only {length} bytes")));
        }
        let mut raw = [0; 1024];
        file.read_exact_at(&mut raw, SUPERBLOCK_RANGE.start).map_err(read_error)?;
        if u16_at(&raw, 0x38) != EXT4_MAGIC {
            return Err(not_ext4(guess(file, length).map_err(read_error)?.to_owned()));
        }
        let log_block_bytes = u32_at(&raw, 0x18);
        if log_block_bytes > 6 {
            return Err(not_ext4(format!(
                "its superblock has an impossible block size (2^{} KiB)",
                log_block_bytes
            )));
        }
        let block_bytes = 1024u64 << log_block_bytes;
        let mut block_count = u64::from(u32_at(&raw, 0x4));
        if u32_at(&raw, 0x60) & INCOMPAT_64BIT != 0 {
            block_count |= u64::from(u32_at(&raw, 0x150)) << 32;
        }
        // Bounds that keep all products below in 64 bits; the kernel's own limit is lower.
        if block_count == 0 || block_count > i64::MAX as u64 / block_bytes / 2 {
            return Err(not_ext4(format!("its superblock has an impossible block count ({block_count})")));
        }
        Ok(Self { raw, block_bytes, block_count })
    }

    pub(crate) fn raw(&self) -> &[u8; 1024] {
        &self.raw
    }

    /// Bytes of the file system.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.block_bytes * self.block_count
    }

    /// Byte ranges of the group descriptors, bitmaps, inode tables and the journal of a file system just made without
    /// `meta_bg`, merged where they touch; `true` with those of an inode table.
    pub(crate) fn metadata_ranges(&self, file: &File) -> io::Result<Vec<(Range<u64>, bool)>> {
        let raw = &self.raw;
        let blocks_per_group = u64::from(u32_at(raw, 0x20)).max(1);
        let inode_bytes = u64::from(u16_at(raw, 0x58)).max(128);
        let table_bytes = u64::from(u32_at(raw, 0x28)) * inode_bytes;
        let wide = u32_at(raw, 0x60) & INCOMPAT_64BIT != 0;
        let descriptor_bytes = if wide { u64::from(u16_at(raw, 0xFE)).max(64) } else { 32 };
        let first_data_block = u64::from(u32_at(raw, 0x14));
        let groups = (self.block_count - first_data_block).div_ceil(blocks_per_group);
        let table_start = (first_data_block + 1) * self.block_bytes;
        let mut descriptors = vec![0; (groups * descriptor_bytes) as usize];
        file.read_exact_at(&mut descriptors, table_start)?;
        let mut ranges = vec![(0..table_start + descriptors.len() as u64, false)];
        let mut first_inode_table = 0;
        for (group, descriptor) in descriptors.chunks(descriptor_bytes as usize).enumerate() {
            let place = |low: usize, high: usize| {
                let high = if wide { u64::from(u32_at(descriptor, high)) << 32 } else { 0 };
                (high | u64::from(u32_at(descriptor, low))) * self.block_bytes
            };
            let (bitmap, inode_bitmap, table) = (place(0x0, 0x20), place(0x4, 0x24), place(0x8, 0x28));
            if group == 0 {
                first_inode_table = table;
            }
            ranges.push((bitmap..bitmap + self.block_bytes, false));
            ranges.push((inode_bitmap..inode_bitmap + self.block_bytes, false));
            ranges.push((table..table + table_bytes, true));
        }
        let mut inode = [0; 128];
        let journal_inode = u64::from(u32_at(raw, 0xE0));
        if journal_inode != 0 {
            file.read_exact_at(&mut inode, first_inode_table + (journal_inode - 1) * inode_bytes)?;
            ranges.extend(self.extents(&inode).into_iter().map(|range| (range, false)));
        }
        ranges.sort_by_key(|(range, table)| (range.start, *table));
        let mut merged: Vec<(Range<u64>, bool)> = Vec::new();
        for (range, table) in ranges {
            match merged.last_mut() {
                Some((last, kind)) if *kind == table && range.start <= last.end => {
                    last.end = last.end.max(range.end)
                }
                _ => merged.push((range, table)),
            }
        }
        Ok(merged)
    }

    /// Byte ranges of an inode whose extent tree has no depth, as a new journal's hasn't.
    fn extents(&self, inode: &[u8; 128]) -> Vec<Range<u64>> {
        let root = &inode[0x28..0x28 + 60];
        if u32_at(inode, 0x20) & EXTENTS_FLAG == 0 || u16_at(root, 0) != EXTENT_MAGIC || u16_at(root, 6) != 0
        {
            return Vec::new();
        }
        let entries = root[12..].chunks(12).take(usize::from(u16_at(root, 2)));
        entries
            .map(|entry| {
                let start = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
                let start = start * self.block_bytes;
                start..start + u64::from(u16_at(entry, 4)) * self.block_bytes
            })
            .collect()
    }
}

/// What a file is that has no ext4 superblock, by the marks of the usual suspects.
fn guess(file: &File, length: u64) -> io::Result<&'static str> {
    const MARKS: [(u64, &[u8], &str); 12] = [
        (0, b"XFSB", "it holds xfs"),
        (0x10040, b"_BHRfS_M", "it holds btrfs"),
        (0x10400, b"\x10\x20\xF5\xF2", "it holds f2fs"),
        (0, b"hsqs", "it holds squashfs"),
        (0, b"LUKS\xBA\xBE", "it is encrypted (LUKS)"),
        (0, b"QFI\xFB", "it is a qcow2 image"),
        (0, b"\x1F\x8B", "it is compressed (gzip)"),
        (0, b"\x28\xB5\x2F\xFD", "it is compressed (zstd)"),
        (0xFF6, b"SWAPSPACE2", "it is swap space"),
        (3, b"NTFS    ", "it holds ntfs"),
        (0x8001, b"CD001", "it is a CD image"),
        (0x200, b"EFI PART", "it is a partitioned disk; only a bare file system can be served"),
    ];
    for (at, mark, name) in MARKS {
        if at + mark.len() as u64 <= length {
            let mut found = [0; 16];
            file.read_exact_at(&mut found[..mark.len()], at)?;
            if found.starts_with(mark) {
                return Ok(name);
            }
        }
    }
    let mut end = [0; 2];
    file.read_exact_at(&mut end, 510)?;
    Ok(if end == [0x55, 0xAA] {
        "it is a partitioned disk or holds FAT; only a bare ext4 file system can be served"
    } else {
        "it has no known superblock"
    })
}
