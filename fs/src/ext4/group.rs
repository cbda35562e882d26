//! Group descriptors. Source: `struct ext4_group_desc`; 32 bytes, 64 with the feature `64bit`.

use super::bytes::{le16, le32, put16};
use super::checksum::{crc16, crc32c};
use super::error::{FsError, Result};
use super::superblock::{ChecksumKind, Geometry};
use super::tx::{Core, Tx};
use super::types::{BlockNo, GroupNo};

/// `bg_flags`: the inode table and bitmap are not in use yet.
pub(crate) const INODE_UNINIT: u16 = 1;
/// `bg_flags`: the block bitmap is not initialised on disk.
pub(crate) const BLOCK_UNINIT: u16 = 2;

/// A group descriptor, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupDesc {
    pub(crate) block_bitmap: BlockNo,
    pub(crate) inode_bitmap: BlockNo,
    pub(crate) inode_table: BlockNo,
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) used_dirs: u32,
    pub(crate) flags: u16,
    /// Inodes at the end of the table that were never used.
    pub(crate) unused_inodes: u32,
    pub(crate) block_bitmap_checksum: u32,
    pub(crate) inode_bitmap_checksum: u32,
}

impl GroupDesc {
    fn decode(raw: &[u8]) -> Self {
        let wide = raw.len() >= 64;
        let high32 = |at: usize| if wide { u64::from(le32(raw, at)) << 32 } else { 0 };
        let high16 = |at: usize| if wide { u32::from(le16(raw, at)) << 16 } else { 0 };
        Self {
            block_bitmap: BlockNo(u64::from(le32(raw, 0x0)) | high32(0x20)),
            inode_bitmap: BlockNo(u64::from(le32(raw, 0x4)) | high32(0x24)),
            inode_table: BlockNo(u64::from(le32(raw, 0x8)) | high32(0x28)),
            free_blocks: u32::from(le16(raw, 0xC)) | high16(0x2C),
            free_inodes: u32::from(le16(raw, 0xE)) | high16(0x2E),
            used_dirs: u32::from(le16(raw, 0x10)) | high16(0x30),
            flags: le16(raw, 0x12),
            block_bitmap_checksum: u32::from(le16(raw, 0x18)) | high16(0x38),
            inode_bitmap_checksum: u32::from(le16(raw, 0x1A)) | high16(0x3A),
            unused_inodes: u32::from(le16(raw, 0x1C)) | high16(0x32),
        }
    }

    /// Writes the fields that change back (places of bitmaps and table never do).
    fn encode(&self, raw: &mut [u8]) {
        let wide = raw.len() >= 64;
        let mut put = |low: usize, high: usize, value: u32| {
            put16(raw, low, value as u16);
            if wide {
                put16(raw, high, (value >> 16) as u16);
            }
        };
        put(0xC, 0x2C, self.free_blocks);
        put(0xE, 0x2E, self.free_inodes);
        put(0x10, 0x30, self.used_dirs);
        put(0x18, 0x38, self.block_bitmap_checksum);
        put(0x1A, 0x3A, self.inode_bitmap_checksum);
        put(0x1C, 0x32, self.unused_inodes);
        put16(raw, 0x12, self.flags);
    }
}

/// Checksum of a descriptor's bytes (its own field, at 0x1E, left out).
fn checksum(geometry: &Geometry, group: GroupNo, raw: &[u8]) -> u16 {
    match geometry.checksums {
        ChecksumKind::None => 0,
        ChecksumKind::Crc16 => {
            let crc = crc16(crc16(!0, &geometry.uuid), &group.0.to_le_bytes());
            let crc = crc16(crc, &raw[..0x1E]);
            if raw.len() > 0x20 { crc16(crc, &raw[0x20..]) } else { crc }
        }
        ChecksumKind::Crc32c => {
            let crc = crc32c(geometry.checksum_seed, &group.0.to_le_bytes());
            let crc = crc32c(crc32c(crc, &raw[..0x1E]), &[0, 0]);
            (if raw.len() > 0x20 { crc32c(crc, &raw[0x20..]) } else { crc }) as u16
        }
    }
}

fn place(geometry: &Geometry, group: GroupNo) -> (BlockNo, usize) {
    let byte = u64::from(group.0) * u64::from(geometry.desc_size);
    let block_size = u64::from(geometry.block_size);
    (BlockNo(u64::from(geometry.first_data_block) + 1 + byte / block_size), (byte % block_size) as usize)
}

impl Core {
    /// Reads and checks a group descriptor.
    ///
    /// # Errors
    /// `Corrupt` on a wrong checksum or when it points outside the file system.
    pub(crate) fn group(&mut self, group: GroupNo) -> Result<GroupDesc> {
        let geometry = self.geometry.clone();
        let (block, offset) = place(&geometry, group);
        let data = self.block(block)?;
        let raw = &data[offset..offset + usize::from(geometry.desc_size)];
        let bad =
            |what: &str| FsError::corrupt(format!("group descriptor {group}: {what}"), None, Some(block));
        if geometry.checksums != ChecksumKind::None && checksum(&geometry, group, raw) != le16(raw, 0x1E) {
            return Err(bad("wrong checksum"));
        }
        let desc = GroupDesc::decode(raw);
        let table_blocks = (u64::from(geometry.inodes_per_group) * u64::from(geometry.inode_size))
            .div_ceil(u64::from(geometry.block_size));
        let inside = |first: BlockNo, count: u64| {
            first.0 > u64::from(geometry.first_data_block)
                && first.0.saturating_add(count) <= geometry.block_count
        };
        if !inside(desc.block_bitmap, 1)
            || !inside(desc.inode_bitmap, 1)
            || !inside(desc.inode_table, table_blocks)
        {
            return Err(bad("bitmap or inode table outside the file system"));
        }
        if desc.free_blocks > geometry.group_blocks(group) || desc.free_inodes > geometry.inodes_per_group {
            return Err(bad("impossible free counts"));
        }
        Ok(desc)
    }
}

impl Tx<'_> {
    /// Writes a changed descriptor, with its checksum.
    ///
    /// # Errors
    /// As for [`Tx::modify`].
    pub(crate) fn put_group(&mut self, group: GroupNo, desc: &GroupDesc) -> Result<()> {
        let geometry = self.core.geometry.clone();
        let (block, offset) = place(&geometry, group);
        let data = self.modify(block)?;
        let raw = &mut data[offset..offset + usize::from(geometry.desc_size)];
        desc.encode(raw);
        let sum = checksum(&geometry, group, raw);
        put16(raw, 0x1E, sum);
        debug_assert_eq!(le32(raw, 0x8), desc.inode_table.0 as u32);
        Ok(())
    }
}
