//! Walking the extent tree.

use super::super::cache::{BlockData, Role};
use super::super::error::{FsError, Result};
use super::super::inode::{Inode, flag};
use super::super::superblock::ChecksumKind;
use super::super::tx::Core;
use super::super::types::{BlockNo, FileBlock, GroupNo};
use super::node::{self, DEPTH_MAX, Extent};

/// File blocks end here.
pub(crate) const FILE_BLOCKS: u64 = 1 << 32;

/// What lies at a file block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// In this extent (written or not).
    Extent(Extent),
    /// In a hole that reaches at least up to this file block.
    Hole(u64),
}

/// One node on the way to a leaf.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step {
    /// Its block; `None`: the root, in the inode.
    pub(super) block: Option<BlockNo>,
    /// The entry that was followed, or in the leaf the last at or before the block looked for.
    pub(super) at: Option<usize>,
    pub(super) entries: usize,
}

/// The way from the root to a leaf.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Path {
    pub(super) steps: [Step; DEPTH_MAX + 1],
    /// Index of the leaf's step.
    pub(super) depth: usize,
    /// File blocks that the leaf may hold: from this one.
    pub(super) start: u64,
    /// File blocks that the leaf may hold: below this one.
    pub(super) end: u64,
    /// The leaf's extent before `found`.
    pub(super) before: Option<Extent>,
    /// The leaf's last extent at or before the block looked for.
    pub(super) found: Option<Extent>,
    /// The leaf's extent behind that.
    pub(super) next: Option<Extent>,
}

impl Path {
    pub(super) fn leaf(&self) -> &Step {
        &self.steps[self.depth]
    }
    /// What the path says of the block that it was made for.
    pub(super) fn mapping(&self, block: u32) -> Mapping {
        match self.found {
            Some(extent) if extent.end() > u64::from(block) => Mapping::Extent(extent),
            _ => Mapping::Hole(self.next.map_or(self.end, |next| u64::from(next.first))),
        }
    }
}

impl Core {
    /// The walk to the leaf that `block` belongs to.
    pub(super) fn extent_path(&mut self, inode: &Inode, block: u32) -> Result<Path> {
        let bad = |why: &str, place| FsError::corrupt(format!("extent tree: {why}"), Some(inode.ino), place);
        if !inode.has(flag::EXTENTS) {
            return Err(FsError::Unsupported(format!(
                "inode {} is mapped by indirect blocks, not extents; copy the file to convert it",
                inode.ino
            )));
        }
        let root = &inode.block[..];
        node::check_header(root, None).map_err(|why| bad(why, None))?;
        let zone = self.system_zone()?;
        node::check_entries(root, 0..FILE_BLOCKS, self.geometry.block_count, &zone)
            .map_err(|why| bad(why, None))?;
        let mut path = Path { depth: node::depth(root), end: FILE_BLOCKS, ..Path::default() };
        let mut data: Option<BlockData> = None;
        for level in 0..=path.depth {
            let node = data.as_deref().map_or(root, Vec::as_slice);
            let at = node::search(node, block);
            let entries = node::entries(node);
            let step = &mut path.steps[level];
            step.entries = entries;
            if level == path.depth {
                step.at = at;
                path.found = at.map(|at| node::extent(node, at));
                path.before = at.and_then(|at| at.checked_sub(1)).map(|at| node::extent(node, at));
                let next = at.map_or(0, |at| at + 1);
                path.next = (next < entries).then(|| node::extent(node, next));
                break;
            }
            // A block before the first entry belongs to the first child.
            let at = at.unwrap_or(0);
            step.at = Some(at);
            path.start = u64::from(node::key(node, at));
            if at + 1 < entries {
                path.end = path.end.min(u64::from(node::key(node, at + 1)));
            }
            let place = BlockNo(node::child(node, at));
            path.steps[level + 1].block = Some(place);
            let expected = path.depth - level - 1;
            data = Some(self.extent_block(inode, place, expected, path.start..path.end)?);
        }
        Ok(path)
    }

    /// A node of the tree, checked: fully when it comes from the image, its header always.
    pub(super) fn extent_block(
        &mut self,
        inode: &Inode,
        place: BlockNo,
        depth: usize,
        range: std::ops::Range<u64>,
    ) -> Result<BlockData> {
        let bad = |why: &str| FsError::corrupt(format!("extent tree: {why}"), Some(inode.ino), Some(place));
        let geometry = self.geometry.clone();
        let zone = self.system_zone()?;
        let data = self.block_checked(place, Role::Extents(inode.ino), |bytes| {
            if geometry.checksums == ChecksumKind::Crc32c {
                node::check_checksum(bytes, inode.checksum_seed(&geometry)).map_err(bad)?;
            }
            node::check_header(bytes, Some(depth)).map_err(bad)?;
            if node::entries(bytes) == 0 {
                return Err(bad("empty leaf"));
            }
            node::check_entries(bytes, range, geometry.block_count, &zone).map_err(bad)
        })?;
        node::check_header(&data, Some(depth)).map_err(bad)?;
        Ok(data)
    }

    /// What lies at a block of the file.
    ///
    /// # Errors
    /// `Corrupt` for a damaged extent tree; `Unsupported` for a file without one.
    pub(crate) fn mapping(&mut self, inode: &Inode, block: FileBlock) -> Result<Mapping> {
        Ok(self.extent_path(inode, block.0)?.mapping(block.0))
    }

    /// Where a block of the file lies; `None` for a hole or an unwritten (reserved) block.
    ///
    /// # Errors
    /// `Corrupt` for a damaged extent tree.
    pub(crate) fn map_block(&mut self, inode: &Inode, block: FileBlock) -> Result<Option<BlockNo>> {
        Ok(match self.mapping(inode, block)? {
            Mapping::Extent(extent) if !extent.unwritten => {
                Some(BlockNo(extent.start + u64::from(block.0 - extent.first)))
            }
            _ => None,
        })
    }
}

impl Core {
    /// Where a block of the file would best lie: as far from its neighbour in place as in the file; the first one at the
    /// start of the inode's group.
    pub(super) fn goal(&self, inode: &Inode, path: &Path, block: u32) -> BlockNo {
        let near = match (path.found, path.next) {
            (Some(found), _) => {
                let apart = found.start + u64::from(block - found.first);
                Some(if apart < self.geometry.block_count {
                    apart
                } else {
                    found.start + u64::from(found.count)
                })
            }
            (None, Some(next)) => next.start.checked_sub(u64::from(next.first - block)),
            (None, None) => None,
        };
        near.map_or_else(|| self.inode_goal(inode), BlockNo)
    }

    /// Where the blocks of an inode's group start.
    pub(super) fn inode_goal(&self, inode: &Inode) -> BlockNo {
        let group = self.geometry.inode_group(inode.ino).map_or(GroupNo(0), |place| place.0);
        self.geometry.group_start(group)
    }
}
