//! Numbers of the file system, as the kernel's `ext4_statfs` gives them.

use super::super::Ext4;
use super::super::attr::StatFs;
use super::super::bytes::le32;
use super::super::error::Result;
use super::super::superblock::{Geometry, feature};
use super::super::tx::Core;

/// Most clusters that the kernel keeps back so that delayed allocation cannot fail.
const HELD_BACK_MAX: u64 = 4096;
/// `s_overhead_clusters` in the superblock.
const OVERHEAD_AT: usize = 0x248;

/// Whether a group has a copy of the superblock.
fn has_superblock(geometry: &Geometry, group: u32) -> bool {
    if !geometry.has_ro_compat(feature::RO_COMPAT_SPARSE_SUPER) || group <= 1 {
        return true;
    }
    let power_of = |base: u32| {
        let mut power = base;
        while power < group {
            power = power.saturating_mul(base);
        }
        power == group
    };
    group % 2 == 1 && (power_of(3) || power_of(5) || power_of(7))
}

/// Blocks of the file system's own structures, the journal left out.
fn structure_blocks(geometry: &Geometry) -> u64 {
    let block_size = u64::from(geometry.block_size);
    let table = (u64::from(geometry.inodes_per_group) * u64::from(geometry.inode_size)).div_ceil(block_size);
    let descriptors = (u64::from(geometry.group_count) * u64::from(geometry.desc_size)).div_ceil(block_size);
    let copies = (0..geometry.group_count).filter(|group| has_superblock(geometry, *group)).count() as u64;
    u64::from(geometry.first_data_block)
        + u64::from(geometry.group_count) * (table + 2)
        + copies * (1 + descriptors + u64::from(geometry.reserved_gdt_blocks))
}

impl Core {
    pub(super) fn overhead(&mut self) -> Result<u64> {
        let geometry = self.geometry.clone();
        let (place, offset) = geometry.superblock_place();
        let stored = u64::from(le32(&self.block(place)?, offset + OVERHEAD_AT));
        if stored != 0 && stored <= geometry.block_count {
            return Ok(stored);
        }
        let journal = self.inode(geometry.journal_inode)?.size / u64::from(geometry.block_size);
        Ok(structure_blocks(&geometry) + journal)
    }
}

impl Ext4 {
    /// Sizes and free space.
    ///
    /// # Errors
    /// `Corrupt`, I/O errors.
    pub fn statfs(&self) -> Result<StatFs> {
        self.with_core(|core| {
            let overhead = core.overhead()?;
            let geometry = &core.geometry;
            let held_back = (geometry.block_count / 50).min(HELD_BACK_MAX);
            let kept = geometry.reserved_blocks + held_back;
            let half = |at: usize| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&geometry.uuid[at..at + 8]);
                u64::from_le_bytes(bytes)
            };
            Ok(StatFs {
                block_size: geometry.block_size,
                blocks: geometry.block_count.saturating_sub(overhead),
                blocks_free: core.free_blocks,
                blocks_available: core.free_blocks.saturating_sub(kept),
                inodes: u64::from(geometry.inode_count),
                inodes_free: core.free_inodes,
                fsid: half(0) ^ half(8),
            })
        })
    }
}
