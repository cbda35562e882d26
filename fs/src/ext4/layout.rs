//! Which of the file system's own structures lies where, in words: for listings of the queue.

use super::Ext4;
use super::error::Result;
use super::types::{BlockNo, GroupNo};
use std::collections::BTreeMap;

/// What a run of blocks holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    BlockBitmap(u32),
    InodeBitmap(u32),
    InodeTable(u32),
}

/// Places of bitmaps and inode tables.
#[derive(Clone, Debug)]
pub struct Layout {
    block_size: u64,
    first_data_block: u64,
    descriptor_blocks: u64,
    inodes_per_group: u64,
    inode_size: u64,
    /// By first block: length and kind.
    runs: BTreeMap<u64, (u64, Kind)>,
}

impl Ext4 {
    /// The image's layout.
    ///
    /// # Errors
    /// `Corrupt` for a damaged group descriptor.
    pub fn layout(&self) -> Result<Layout> {
        self.with_core(|core| {
            let geometry = core.geometry.clone();
            let mut runs = BTreeMap::new();
            let table_blocks = (u64::from(geometry.inodes_per_group) * u64::from(geometry.inode_size))
                .div_ceil(u64::from(geometry.block_size));
            for group in 0..geometry.group_count {
                let desc = core.group(GroupNo(group))?;
                runs.insert(desc.block_bitmap.0, (1, Kind::BlockBitmap(group)));
                runs.insert(desc.inode_bitmap.0, (1, Kind::InodeBitmap(group)));
                runs.insert(desc.inode_table.0, (table_blocks, Kind::InodeTable(group)));
            }
            let per_block = u64::from(geometry.block_size / u32::from(geometry.desc_size));
            Ok(Layout {
                block_size: u64::from(geometry.block_size),
                first_data_block: u64::from(geometry.first_data_block),
                descriptor_blocks: u64::from(geometry.group_count).div_ceil(per_block),
                inodes_per_group: u64::from(geometry.inodes_per_group),
                inode_size: u64::from(geometry.inode_size),
                runs,
            })
        })
    }
}

impl Layout {
    /// What the byte range holds, by its first block, and how many more kinds follow.
    #[must_use]
    pub fn describe(&self, offset: u64, length: u64) -> String {
        let first = offset / self.block_size;
        let last = (offset + length.max(1) - 1) / self.block_size;
        let mut parts: Vec<String> = Vec::new();
        for block in first..=last {
            let part = self.describe_block(BlockNo(block));
            if parts.last() != Some(&part) && !parts.contains(&part) {
                parts.push(part);
            }
        }
        match &parts[..] {
            [] => "metadata".into(),
            [one] => one.clone(),
            [one, more @ ..] => format!("{one} and {} more", more.len()),
        }
    }

    fn describe_block(&self, block: BlockNo) -> String {
        if block.0 == self.first_data_block {
            return "superblock".into();
        }
        if block.0 > self.first_data_block && block.0 <= self.first_data_block + self.descriptor_blocks {
            return "group descriptors".into();
        }
        match self.runs.range(..=block.0).next_back() {
            Some((start, (length, kind))) if block.0 < start + length => match kind {
                Kind::BlockBitmap(group) => format!("block bitmap of group {group}"),
                Kind::InodeBitmap(group) => format!("inode bitmap of group {group}"),
                Kind::InodeTable(group) => {
                    let per_block = self.block_size / self.inode_size;
                    let first = u64::from(*group) * self.inodes_per_group + (block.0 - start) * per_block + 1;
                    format!("inodes {first} to {}", first + per_block - 1)
                }
            },
            _ => format!("directory, extent or xattr block {block}"),
        }
    }
}
