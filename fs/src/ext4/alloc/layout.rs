//! Where the file system's own structures lie, and the bitmaps that follow from it.

use super::super::bytes::le32;
use super::super::cache::Role;
use super::super::checksum::crc32c;
use super::super::error::{FsError, Result};
use super::super::group::{BLOCK_UNINIT, GroupDesc};
use super::super::superblock::{ChecksumKind, Geometry, feature};
use super::super::tx::Core;
use super::super::types::{BlockNo, GroupNo};
use super::view::set_bits;
use std::sync::Arc;

/// `s_feature_compat`: backups of the superblock in the two groups of `s_backup_bgs` only.
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
/// Offset of `s_backup_bgs`.
const BACKUP_GROUPS: usize = 0x24C;

/// Blocks of superblocks, descriptors, bitmaps and inode tables: sorted, disjoint `start..end`.
pub(crate) type SystemZone = Arc<[(u64, u64)]>;

/// Whether any block of the run belongs to the zone.
pub(crate) fn touches(zone: &SystemZone, start: u64, count: u64) -> bool {
    let after = zone.partition_point(|range| range.1 <= start);
    zone.get(after).is_some_and(|range| range.0 < start + count)
}

fn is_power_of(mut number: u32, base: u32) -> bool {
    while number > 1 && number.is_multiple_of(base) {
        number /= base;
    }
    number == 1
}

fn has_superblock(geometry: &Geometry, backups: [u32; 2], group: u32) -> bool {
    if group == 0 {
        true
    } else if geometry.has_compat(COMPAT_SPARSE_SUPER2) {
        backups.contains(&group)
    } else if geometry.has_ro_compat(feature::RO_COMPAT_SPARSE_SUPER) {
        [3, 5, 7].iter().any(|base| is_power_of(group, *base))
    } else {
        true
    }
}

/// Blocks of one group's inode table.
pub(super) fn table_blocks(geometry: &Geometry) -> u64 {
    (u64::from(geometry.inodes_per_group) * u64::from(geometry.inode_size))
        .div_ceil(u64::from(geometry.block_size))
}

fn compare(geometry: &Geometry, bitmap: &[u8], bits: u32, expected: u32) -> bool {
    let sum = crc32c(geometry.checksum_seed, &bitmap[..(bits / 8) as usize]);
    // Descriptors of 32 bytes hold the low half only.
    if geometry.desc_size < 64 { sum & 0xFFFF == expected & 0xFFFF } else { sum == expected }
}

/// The checksum of a bitmap for its descriptor; 0 where there is none.
pub(super) fn bitmap_checksum(geometry: &Geometry, bitmap: &[u8], bits: u32) -> u32 {
    match geometry.checksums {
        ChecksumKind::Crc32c => crc32c(geometry.checksum_seed, &bitmap[..(bits / 8) as usize]),
        _ => 0,
    }
}

/// Whether `bg_flags` mean anything.
pub(super) fn has_group_flags(geometry: &Geometry) -> bool {
    geometry.checksums != ChecksumKind::None
}

/// Checks a bitmap as read against its descriptor.
pub(super) fn check_bitmap(
    geometry: &Geometry,
    bitmap: &[u8],
    bits: u32,
    expected: u32,
    what: &str,
    block: BlockNo,
) -> Result<()> {
    if geometry.checksums == ChecksumKind::Crc32c && !compare(geometry, bitmap, bits, expected) {
        return Err(FsError::corrupt(format!("{what}: wrong checksum"), None, Some(block)));
    }
    Ok(())
}

impl Core {
    /// The file system's own blocks; made at the first call.
    ///
    /// # Errors
    /// `Corrupt` descriptors.
    pub(crate) fn system_zone(&mut self) -> Result<SystemZone> {
        if let Some(zone) = &self.alloc.zone {
            return Ok(zone.clone());
        }
        let geometry = self.geometry.clone();
        let (place, offset) = geometry.superblock_place();
        let superblock = self.block(place)?;
        let backups = [0, 4].map(|at| le32(&superblock, offset + BACKUP_GROUPS + at));
        let desc_blocks = (u64::from(geometry.group_count) * u64::from(geometry.desc_size))
            .div_ceil(u64::from(geometry.block_size));
        let mut ranges = vec![(0, u64::from(geometry.first_data_block))];
        for group in 0..geometry.group_count {
            let desc = self.group(GroupNo(group))?;
            if has_superblock(&geometry, backups, group) {
                let start = geometry.group_start(GroupNo(group)).0;
                ranges.push((start, start + 1 + desc_blocks + u64::from(geometry.reserved_gdt_blocks)));
            }
            ranges.push((desc.block_bitmap.0, desc.block_bitmap.0 + 1));
            ranges.push((desc.inode_bitmap.0, desc.inode_bitmap.0 + 1));
            ranges.push((desc.inode_table.0, desc.inode_table.0 + table_blocks(&geometry)));
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in ranges.into_iter().filter(|range| range.0 < range.1) {
            match merged.last_mut() {
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        let zone: SystemZone = merged.into();
        self.alloc.zone = Some(zone.clone());
        Ok(zone)
    }

    /// The bitmap of a group that has only the file system's own blocks in it, padding set.
    fn fresh_block_bitmap(&mut self, group: GroupNo) -> Result<Vec<u8>> {
        let zone = self.system_zone()?;
        let geometry = self.geometry.clone();
        let blocks = geometry.group_blocks(group);
        let start = geometry.group_start(group).0;
        let end = start + u64::from(blocks);
        let mut bitmap = vec![0; geometry.block_size as usize];
        let first = zone.partition_point(|range| range.1 <= start);
        for range in zone[first..].iter().take_while(|range| range.0 < end) {
            let (from, to) = (range.0.max(start), range.1.min(end));
            set_bits(&mut bitmap, (from - start) as u32, (to - from) as u32, true);
        }
        set_bits(&mut bitmap, blocks, geometry.block_size * 8 - blocks, true);
        Ok(bitmap)
    }

    /// A group's block bitmap as it is or, where it was never written, as it would be.
    ///
    /// # Errors
    /// `Corrupt` on a wrong checksum or a free count that does not fit.
    pub(super) fn block_bitmap(&mut self, group: GroupNo, desc: &GroupDesc) -> Result<Arc<Vec<u8>>> {
        let geometry = self.geometry.clone();
        if has_group_flags(&geometry) && desc.flags & BLOCK_UNINIT != 0 {
            return Ok(Arc::new(self.fresh_block_bitmap(group)?));
        }
        let (place, sum) = (desc.block_bitmap, desc.block_bitmap_checksum);
        self.block_checked(place, Role::BlockBitmap(group), |bitmap| {
            check_bitmap(&geometry, bitmap, geometry.blocks_per_group, sum, "block bitmap", place)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_is_searched_by_range() {
        let zone: SystemZone = vec![(0, 2), (10, 20), (30, 31)].into();
        assert!(touches(&zone, 1, 1));
        assert!(!touches(&zone, 2, 8));
        assert!(touches(&zone, 2, 9));
        assert!(touches(&zone, 19, 1));
        assert!(!touches(&zone, 20, 10));
        assert!(touches(&zone, 25, 100));
        assert!(!touches(&zone, 31, 1000));
    }

    #[test]
    fn sparse_groups_are_powers() {
        let backups: Vec<u32> =
            (1..130).filter(|g| [3, 5, 7].iter().any(|base| is_power_of(*g, *base))).collect();
        assert_eq!(backups, [1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }
}
