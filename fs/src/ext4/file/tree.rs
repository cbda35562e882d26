//! Changing the extent tree in a handle. The inode (with the root) is changed; the caller puts it.

use super::super::attr::FileKind;
use super::super::error::{FsError, Result, errno};
use super::super::inode::{Inode, flag};
use super::super::superblock::ChecksumKind;
use super::super::tx::{CREDITS, Tx};
use super::super::types::{BlockNo, FileBlock};
use super::lookup::{FILE_BLOCKS, Mapping, Path};
use super::node::{self, DEPTH_MAX, Extent, UNWRITTEN_MAX};

/// Changed blocks at which a step that can be continued by another handle ends.
pub(super) const STEP_CREDITS: usize = CREDITS * 3 / 4;

impl Tx<'_> {
    /// Makes an inode's extent tree empty (a new file or directory).
    pub(crate) fn init_extents(&mut self, inode: &mut Inode) {
        inode.flags |= flag::EXTENTS;
        inode.block.fill(0);
        node::init(&mut inode.block, 0);
    }

    fn edit_node<R>(
        &mut self,
        inode: &mut Inode,
        place: Option<BlockNo>,
        change: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R> {
        let Some(place) = place else { return Ok(change(&mut inode.block)) };
        let geometry = self.core.geometry.clone();
        let node = self.modify(place)?;
        let result = change(node);
        if geometry.checksums == ChecksumKind::Crc32c {
            node::set_checksum(node, inode.checksum_seed(&geometry));
        }
        Ok(result)
    }

    fn new_node(&mut self, inode: &mut Inode, content: &[u8]) -> Result<BlockNo> {
        let geometry = self.core.geometry.clone();
        let goal = self.core.inode_goal(inode);
        let (place, _) = self.alloc_blocks(goal, 1)?;
        let node = self.create(place)?;
        node.copy_from_slice(content);
        if geometry.checksums == ChecksumKind::Crc32c {
            node::set_checksum(node, inode.checksum_seed(&geometry));
        }
        inode.blocks_512 += u64::from(geometry.block_size / 512);
        Ok(place)
    }

    fn free_node(&mut self, inode: &mut Inode, place: BlockNo) -> Result<()> {
        self.forget(place);
        self.free_blocks(place, 1)?;
        let units = u64::from(self.core.geometry.block_size / 512);
        inode.blocks_512 = inode.blocks_512.saturating_sub(units);
        Ok(())
    }

    /// The first entry of the node at `level` now starts at `key`: so do the entries that lead to it.
    fn fix_keys(&mut self, inode: &mut Inode, path: &Path, level: usize, key: u32) -> Result<()> {
        for step in path.steps[..level].iter().rev() {
            let at = step.at.unwrap_or(0);
            self.edit_node(inode, step.block, |node| node::set_key(node, at, key))?;
            if at > 0 {
                break;
            }
        }
        Ok(())
    }

    /// Overwrites the extent that a path has found.
    fn set_found(&mut self, inode: &mut Inode, path: &Path, extent: &Extent) -> Result<()> {
        let at = path.leaf().at.unwrap_or(0);
        self.edit_node(inode, path.leaf().block, |node| node::set_extent(node, at, extent))?;
        if at == 0 && path.found.is_none_or(|found| found.first != extent.first) {
            self.fix_keys(inode, path, path.depth, extent.first)?;
        }
        Ok(())
    }

    /// Adds an extent where there is a hole, merging it with its neighbours. Not its blocks to `blocks_512`.
    ///
    /// # Errors
    /// `Corrupt` if something is mapped there; `ENOSPC` if the tree can't grow.
    pub(crate) fn insert_extent(&mut self, inode: &mut Inode, extent: &Extent) -> Result<()> {
        loop {
            let path = self.core.extent_path(inode, extent.first)?;
            let overlap = path.found.is_some_and(|found| found.end() > u64::from(extent.first))
                || path.next.is_some_and(|next| u64::from(next.first) < extent.end());
            if overlap {
                return Err(FsError::corrupt(
                    "extent tree: overlapping extents",
                    Some(inode.ino),
                    path.leaf().block,
                ));
            }
            let leaf = *path.leaf();
            let behind = leaf.at.map_or(0, |at| at + 1);
            if let (Some(merged), Some(at)) = (path.found.and_then(|found| found.merged(extent)), leaf.at) {
                let both = path.next.and_then(|next| merged.merged(&next));
                return self.edit_node(inode, leaf.block, |node| {
                    node::set_extent(node, at, &both.unwrap_or(merged));
                    if both.is_some() {
                        node::remove(node, at + 1, 1);
                    }
                });
            }
            let merged = path.next.and_then(|next| extent.merged(&next));
            let room = leaf.entries < self.node_capacity(leaf.block);
            if merged.is_some() || room {
                self.edit_node(inode, leaf.block, |node| match &merged {
                    Some(merged) => node::set_extent(node, behind, merged),
                    None => node::insert_extent(node, behind, extent),
                })?;
                if behind == 0 {
                    self.fix_keys(inode, &path, path.depth, extent.first)?;
                }
                return Ok(());
            }
            self.make_room(inode, &path)?;
        }
    }

    fn node_capacity(&self, place: Option<BlockNo>) -> usize {
        node::capacity(if place.is_none() { 60 } else { self.core.geometry.block_size as usize })
    }

    /// Splits the highest full node on the way to a full leaf whose parent has room, or adds a level above all.
    fn make_room(&mut self, inode: &mut Inode, path: &Path) -> Result<()> {
        let mut fresh = vec![0; self.core.geometry.block_size as usize];
        let parent = (0..path.depth)
            .rev()
            .find(|level| path.steps[*level].entries < self.node_capacity(path.steps[*level].block));
        let Some(parent) = parent else {
            if path.depth == DEPTH_MAX {
                return errno(libc::EFBIG);
            }
            node::copy(&inode.block, &mut fresh);
            let place = self.new_node(inode, &fresh)?;
            inode.block.fill(0);
            node::init(&mut inode.block, path.depth + 1);
            node::insert_child(&mut inode.block, 0, node::key(&fresh, 0), place.0);
            return Ok(());
        };
        let full = path.steps[parent + 1];
        node::init(&mut fresh, path.depth - parent - 1);
        // A file written from its start on leaves full nodes behind; otherwise halves.
        let at_end = full.at.is_some_and(|at| at + 1 == full.entries);
        let at = if at_end { full.entries - 1 } else { full.entries / 2 };
        self.edit_node(inode, full.block, |node| node::split(node, at, &mut fresh))?;
        let place = self.new_node(inode, &fresh)?;
        let step = path.steps[parent];
        let behind = step.at.map_or(0, |at| at + 1);
        self.edit_node(inode, step.block, |node| {
            node::insert_child(node, behind, node::key(&fresh, 0), place.0)
        })
    }

    /// Takes entries out of a node of the path; nodes that become empty are freed.
    fn remove_entries(
        &mut self,
        inode: &mut Inode,
        path: &Path,
        level: usize,
        at: usize,
        count: usize,
    ) -> Result<()> {
        let step = path.steps[level];
        if step.entries > count {
            let first = self.edit_node(inode, step.block, |node| {
                node::remove(node, at, count);
                node::key(node, 0)
            })?;
            return if at == 0 { self.fix_keys(inode, path, level, first) } else { Ok(()) };
        }
        match step.block {
            None => {
                inode.block.fill(0);
                node::init(&mut inode.block, 0);
                Ok(())
            }
            Some(place) => {
                self.free_node(inode, place)?;
                let parent = path.steps[level - 1].at.unwrap_or(0);
                self.remove_entries(inode, path, level - 1, parent, 1)
            }
        }
    }

    /// Takes levels out of the tree while the root has room for the only node below it.
    fn collapse_root(&mut self, inode: &mut Inode) -> Result<()> {
        while node::depth(&inode.block) > 0 && node::entries(&inode.block) == 1 {
            let place = BlockNo(node::child(&inode.block, 0));
            let first = u64::from(node::key(&inode.block, 0));
            let depth = node::depth(&inode.block) - 1;
            let data = self.core.extent_block(inode, place, depth, first..FILE_BLOCKS)?;
            if node::entries(&data) > node::capacity(inode.block.len()) {
                break;
            }
            inode.block.fill(0);
            node::copy(&data, &mut inode.block);
            self.free_node(inode, place)?;
        }
        Ok(())
    }

    /// Removes what is mapped in the file blocks `from..to` and frees it, from the end on, as far as this handle's credits
    /// allow. Returns where it got to: `from` when all is done.
    ///
    /// # Errors
    /// `Corrupt`; `ENOSPC` where an extent is cut in two and the tree can't grow.
    pub(crate) fn remove_range(&mut self, inode: &mut Inode, from: u64, to: u64) -> Result<u64> {
        let mut end = to;
        let mut started = false;
        while end > from {
            if started && self.changed_blocks() >= STEP_CREDITS {
                self.collapse_root(inode)?;
                return Ok(end);
            }
            started = true;
            let path = self.core.extent_path(inode, (end - 1) as u32)?;
            end = match path.found {
                Some(found) if found.end() > from => self.remove_in_leaf(inode, &path, from, end)?,
                None if path.start > from && path.start < end => path.start,
                _ => break,
            };
        }
        self.collapse_root(inode)?;
        Ok(from)
    }

    /// One leaf's part of [`Self::remove_range`], from the found extent downward. Returns the new end.
    fn remove_in_leaf(&mut self, inode: &mut Inode, path: &Path, from: u64, end: u64) -> Result<u64> {
        let (leaf, Some(last)) = (*path.leaf(), path.leaf().at) else { return Ok(from) };
        let root = inode.block;
        let data = match leaf.block {
            Some(place) => Some(self.core.block(place)?),
            None => None,
        };
        let node: &[u8] = data.as_deref().map_or(&root[..], Vec::as_slice);
        let mut end = end;
        let mut gone = 0;
        for at in (0..=last).rev() {
            let extent = node::extent(node, at);
            let to = extent.end().min(end);
            let mut cut = u64::from(extent.first).max(from);
            if cut >= to {
                end = end.min(extent.end()).max(from);
                break;
            }
            if inode.kind() != FileKind::Regular {
                // Each block is forgotten one by one, which costs credits.
                let left = STEP_CREDITS.saturating_sub(self.changed_blocks()).max(1);
                cut = cut.max(to.saturating_sub(left as u64));
            }
            self.free_extent(inode, &extent.part(cut, to))?;
            end = cut;
            let before = (u64::from(extent.first) < cut).then(|| extent.part(u64::from(extent.first), cut));
            let behind = (to < extent.end()).then(|| extent.part(to, extent.end()));
            match (before, behind) {
                (None, None) => gone += 1,
                (Some(before), None) => {
                    self.edit_node(inode, leaf.block, |node| node::set_extent(node, at, &before))?;
                    break;
                }
                // Only the found extent can reach beyond the end.
                (before, Some(behind)) => {
                    self.set_found(inode, path, &before.unwrap_or(behind))?;
                    if before.is_some() {
                        self.insert_extent(inode, &behind)?;
                    }
                    return Ok(end);
                }
            }
            if self.changed_blocks() >= STEP_CREDITS {
                break;
            }
        }
        if gone > 0 {
            self.remove_entries(inode, path, path.depth, last + 1 - gone, gone)?;
        }
        Ok(end)
    }

    fn free_extent(&mut self, inode: &mut Inode, extent: &Extent) -> Result<()> {
        if inode.kind() != FileKind::Regular {
            for block in extent.start..extent.start + u64::from(extent.count) {
                self.forget(BlockNo(block));
            }
        }
        self.free_blocks(BlockNo(extent.start), extent.count)?;
        let units = u64::from(extent.count) * u64::from(self.core.geometry.block_size / 512);
        inode.blocks_512 = inode.blocks_512.saturating_sub(units);
        Ok(())
    }

    /// Makes what is mapped in `from..to` written or unwritten, as far as the credits allow; holes stay. Returns where it got to.
    ///
    /// # Errors
    /// `Corrupt`; `ENOSPC` if the tree can't grow.
    pub(crate) fn set_unwritten(
        &mut self,
        inode: &mut Inode,
        from: u64,
        to: u64,
        unwritten: bool,
    ) -> Result<u64> {
        let mut at = from;
        while at < to && (at == from || self.changed_blocks() < STEP_CREDITS) {
            let path = self.core.extent_path(inode, at as u32)?;
            let extent = match path.mapping(at as u32) {
                Mapping::Hole(end) => {
                    at = end;
                    continue;
                }
                Mapping::Extent(extent) => extent,
            };
            if extent.unwritten == unwritten {
                at = extent.end();
                continue;
            }
            let first = u64::from(extent.first);
            let mut end = extent.end().min(to);
            if unwritten {
                end = end.min(at + u64::from(UNWRITTEN_MAX));
            }
            let part = Extent { unwritten, ..extent.part(at, end) };
            let before = (first < at).then(|| extent.part(first, at));
            let behind = (end < extent.end()).then(|| extent.part(end, extent.end()));
            match (before, behind) {
                (None, None) => self.set_and_merge(inode, &path, &part)?,
                (Some(rest), None) | (None, Some(rest)) => {
                    self.set_found(inode, &path, &rest)?;
                    self.insert_extent(inode, &part)?;
                }
                (Some(before), Some(behind)) => {
                    self.set_found(inode, &path, &before)?;
                    self.insert_extent(inode, &part)?;
                    self.insert_extent(inode, &behind)?;
                }
            }
            at = end;
        }
        Ok(at.min(to))
    }

    /// Overwrites the found extent by one of the same range, merging it with its neighbours in the leaf.
    fn set_and_merge(&mut self, inode: &mut Inode, path: &Path, extent: &Extent) -> Result<()> {
        let (leaf, at) = (*path.leaf(), path.leaf().at.unwrap_or(0));
        self.edit_node(inode, leaf.block, |node| {
            let with_next = path.next.and_then(|next| extent.merged(&next));
            if with_next.is_some() {
                node::remove(node, at + 1, 1);
            }
            let extent = with_next.unwrap_or(*extent);
            match path.before.and_then(|before| before.merged(&extent)) {
                Some(merged) => {
                    node::remove(node, at, 1);
                    node::set_extent(node, at - 1, &merged);
                }
                None => node::set_extent(node, at, &extent),
            }
        })
    }

    /// Appends one zeroed metadata block to a directory or long symlink: allocated near the last one, created in the
    /// cache, size and `blocks_512` grown (`inode` is changed, and not yet put).
    ///
    /// # Errors
    /// `ENOSPC`; `EFBIG` at 2^32 blocks.
    pub(crate) fn append_metadata_block(&mut self, inode: &mut Inode) -> Result<(FileBlock, BlockNo)> {
        let block_size = u64::from(self.core.geometry.block_size);
        let Ok(index) = u32::try_from(inode.size.div_ceil(block_size)) else { return errno(libc::EFBIG) };
        let path = self.core.extent_path(inode, index)?;
        let goal = self.core.goal(inode, &path, index);
        let (place, _) = self.alloc_blocks(goal, 1)?;
        self.insert_extent(inode, &Extent { first: index, count: 1, start: place.0, unwritten: false })?;
        self.create(place)?;
        inode.size = (u64::from(index) + 1) * block_size;
        inode.blocks_512 += block_size / 512;
        Ok((FileBlock(index), place))
    }

    /// Frees blocks of the file from its end down to `keep` blocks, as many as this handle's credits allow (blocks of
    /// directories and symlinks are forgotten too). True when all are gone; `inode` is changed, and not yet put.
    /// An inode without blocks of its own (device, short symlink) has none to free.
    ///
    /// # Errors
    /// `Corrupt` for a damaged extent tree; `Unsupported` for a file without one.
    pub(crate) fn free_file_blocks(&mut self, inode: &mut Inode, keep: u64) -> Result<bool> {
        match inode.kind() {
            FileKind::Regular | FileKind::Directory => {}
            FileKind::Symlink if inode.has(flag::EXTENTS) => {}
            _ => return Ok(true),
        }
        self.core.alloc.drop_window(inode.ino);
        Ok(self.remove_range(inode, keep, FILE_BLOCKS)? == keep)
    }
}
