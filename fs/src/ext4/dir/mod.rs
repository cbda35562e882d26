//! Directories: linear blocks ([`entry`]) and the hashed index over them ([`index`]).
//!
//! Every block is checked once for each time it is read from the image. Blocks are never given back while the directory
//! exists, as in the kernel. A name's place ([`Found`]) holds until the next insertion.

mod entry;
mod hash;
mod index;

pub(crate) use entry::NAME_MAX;

use super::attr::{DirEntry, FileKind};
use super::cache::{BlockData, Role};
use super::error::{FsError, Result};
use super::inode::{Inode, flag};
use super::superblock::{Geometry, feature};
use super::tx::{Core, Tx};
use super::types::{BlockNo, FileBlock, InodeNo};
use entry::{Sums, records};

/// Directory blocks read ahead in one request while walking through a directory.
const READ_AHEAD: u32 = 32;

/// A name in a directory, and its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// The inode it names.
    pub(crate) ino: InodeNo,
    file_block: FileBlock,
    block: BlockNo,
    offset: usize,
    before: Option<usize>,
}

fn is_indexed(geometry: &Geometry, dir: &Inode) -> bool {
    dir.has(flag::INDEX) && geometry.has_compat(feature::COMPAT_DIR_INDEX)
}

fn seal(geometry: &Geometry, dir: &Inode, file_block: FileBlock, data: &mut [u8]) {
    let sums = Sums::of(geometry, dir);
    if file_block.0 == 0 && is_indexed(geometry, dir) {
        index::seal_root(sums, data);
    } else {
        sums.seal(data);
    }
}

fn find_in(data: &[u8], end: usize, name: &[u8]) -> Option<(u32, usize, Option<usize>)> {
    let mut before = None;
    for record in records(data, 0, end) {
        if record.ino != 0 && record.name == name {
            return Some((record.ino, record.offset, before));
        }
        before = Some(record.offset);
    }
    None
}

impl Core {
    /// Whether the directory has an index that we use.
    pub(crate) fn dir_is_indexed(&self, dir: &Inode) -> bool {
        is_indexed(&self.geometry, dir)
    }

    fn dir_blocks(&self, dir: &Inode) -> Result<u32> {
        let block_size = u64::from(self.geometry.block_size);
        let blocks = dir.size / block_size;
        if !dir.size.is_multiple_of(block_size)
            || blocks > u64::from(u32::MAX)
            || blocks > self.geometry.block_count
        {
            return Err(FsError::corrupt(format!("directory of {} bytes", dir.size), Some(dir.ino), None));
        }
        Ok(blocks as u32)
    }

    /// A directory block, checked when it was loaded.
    fn dir_block(&mut self, dir: &Inode, file_block: FileBlock) -> Result<(BlockNo, BlockData)> {
        let Some(block) = self.map_block(dir, file_block)? else {
            return Err(FsError::corrupt(
                format!("directory: hole at block {file_block}"),
                Some(dir.ino),
                None,
            ));
        };
        let geometry = self.geometry.clone();
        let role = if file_block.0 == 0 { Role::DirectoryHead(dir.ino) } else { Role::Directory(dir.ino) };
        let data = self.block_checked(block, role, |data| {
            let sums = Sums::of(&geometry, dir);
            if is_indexed(&geometry, dir) {
                if file_block.0 == 0 {
                    return index::check(sums, dir.ino, block, data, true);
                }
                // Without checksums this may be an empty leaf: a walk down the index looks at the limits itself.
                if index::is_node(data) {
                    let check = sums.seed().is_some();
                    return if check { index::check(sums, dir.ino, block, data, false) } else { Ok(()) };
                }
            }
            sums.check(&geometry, dir.ino, block, data)
        })?;
        Ok((block, data))
    }

    /// A directory block, and where its records end, for reading names: a damaged index block is reported and passed over (the names
    /// are in the leaves).
    fn dir_names(&mut self, dir: &Inode, file_block: FileBlock) -> Result<(BlockNo, BlockData, usize)> {
        let error = match self.dir_block(dir, file_block) {
            Ok((block, data)) => {
                let end = Sums::of(&self.geometry, dir).end(data.len());
                return Ok((block, data, end));
            }
            Err(error @ FsError::Corrupt { .. }) if is_indexed(&self.geometry, dir) => error,
            Err(error) => return Err(error),
        };
        let Some(block) = self.map_block(dir, file_block)? else { return Err(error) };
        let data = self.block(block)?;
        let end = match file_block.0 {
            0 if entry::begins_with_dots(&data) => 24,
            1.. if index::is_node(&data) => 0,
            _ => return Err(error),
        };
        self.damage.passed_over = Some(error);
        Ok((block, data, end))
    }

    /// Reads the blocks from `first` on that lie in one run and are not cached, in one request.
    fn dir_read_ahead(&mut self, dir: &Inode, first: u32, blocks: u32) -> Result<()> {
        let Some(start) = self.map_block(dir, FileBlock(first))? else { return Ok(()) };
        if self.cache.peek(start).is_some() {
            return Ok(());
        }
        let mut count = 1;
        while count < READ_AHEAD
            && first + count < blocks
            && self.map_block(dir, FileBlock(first + count))? == Some(BlockNo(start.0 + u64::from(count)))
        {
            count += 1;
        }
        self.cache.load(start, count as usize)
    }

    /// Finds a name ("." and ".." too).
    ///
    /// # Errors
    /// `Corrupt` for a damaged directory, or an entry that names an impossible inode.
    pub(crate) fn dir_find(&mut self, dir: &Inode, name: &[u8]) -> Result<Option<Found>> {
        let dots = matches!(name, b"." | b"..");
        let found = if dots {
            self.dir_find_linear(dir, name, 1)?
        } else if is_indexed(&self.geometry, dir) {
            match self.dir_find_indexed(dir, name) {
                Err(error @ FsError::Corrupt { .. }) => {
                    self.damage.passed_over = Some(error);
                    self.dir_find_linear(dir, name, u32::MAX)?
                }
                other => other?,
            }
        } else {
            self.dir_find_linear(dir, name, u32::MAX)?
        };
        if let Some(found) = &found {
            let reserved = found.ino.0 < self.geometry.first_inode && found.ino != InodeNo::ROOT;
            if reserved || (found.ino == dir.ino && !dots) {
                let what = format!("directory entry: names inode {}", found.ino);
                return Err(FsError::corrupt(what, Some(dir.ino), Some(found.block)));
            }
        }
        Ok(found)
    }

    fn dir_find_indexed(&mut self, dir: &Inode, name: &[u8]) -> Result<Option<Found>> {
        let end = Sums::of(&self.geometry, dir).end(self.geometry.block_size as usize);
        let mut probe = self.index_probe(dir, name)?;
        loop {
            let (block, data) = self.dir_block(dir, probe.leaf)?;
            if let Some((ino, offset, before)) = find_in(&data, end, name) {
                let (ino, file_block) = (InodeNo(ino), probe.leaf);
                return Ok(Some(Found { ino, file_block, block, offset, before }));
            }
            if !self.index_next(dir, &mut probe)? {
                return Ok(None);
            }
        }
    }

    fn dir_find_linear(&mut self, dir: &Inode, name: &[u8], blocks_max: u32) -> Result<Option<Found>> {
        let blocks = self.dir_blocks(dir)?.min(blocks_max);
        for number in 0..blocks {
            self.dir_read_ahead(dir, number, blocks)?;
            let file_block = FileBlock(number);
            let (block, data, end) = self.dir_names(dir, file_block)?;
            if let Some((ino, offset, before)) = find_in(&data, end, name) {
                return Ok(Some(Found { ino: InodeNo(ino), file_block, block, offset, before }));
            }
        }
        Ok(None)
    }

    /// Calls `visit` with each name from the entry with this cookie on (0: from the start) until it says false.
    fn dir_walk(
        &mut self,
        dir: &Inode,
        after: u64,
        mut visit: impl FnMut(&mut Self, &[u8], InodeNo, u8, u64) -> Result<bool>,
    ) -> Result<()> {
        let block_size = u64::from(self.geometry.block_size);
        let blocks = self.dir_blocks(dir)?;
        let first = (after / block_size).min(u64::from(blocks)) as u32;
        for number in first..blocks {
            self.dir_read_ahead(dir, number, blocks)?;
            let (_, data, end) = self.dir_names(dir, FileBlock(number))?;
            for record in records(&data, 0, end) {
                let cookie = u64::from(number) * block_size + record.offset as u64 + 1;
                if record.ino != 0
                    && cookie > after
                    && !visit(self, record.name, InodeNo(record.ino), record.kind, cookie)?
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// All entries behind `after`. Cookies are byte places plus one.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn dir_list(&mut self, dir: &Inode, after: u64) -> Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        self.dir_walk(dir, after, |core, name, ino, kind, cookie| {
            let kind = match entry::kind_of(kind) {
                Some(kind) => kind,
                None => core.inode(ino).map_or(FileKind::Regular, |inode| inode.kind()),
            };
            entries.push(DirEntry { ino, kind, cookie, name: name.to_vec() });
            Ok(true)
        })?;
        Ok(entries)
    }

    /// Whether there is nothing but "." and "..".
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn dir_is_empty(&mut self, dir: &Inode) -> Result<bool> {
        let mut empty = true;
        self.dir_walk(dir, 0, |_, name, _, _, _| {
            empty = matches!(name, b"." | b"..");
            Ok(empty)
        })?;
        Ok(empty)
    }
}

impl Tx<'_> {
    /// Gives a new directory its first block with "." and "..". Changes `dir`; the caller puts it.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub(crate) fn dir_init(&mut self, dir: &mut Inode, parent: InodeNo) -> Result<()> {
        self.init_extents(dir);
        let (_, block) = self.append_metadata_block(dir)?;
        let geometry = self.core.geometry.clone();
        let sums = Sums::of(&geometry, dir);
        let kind = entry::kind_byte(&geometry, FileKind::Directory);
        let data = self.modify(block)?;
        let end = sums.end(data.len());
        entry::put_record(data, 0, 12, dir.ino.0, kind, b".");
        entry::put_record(data, 12, end - 12, parent.0, kind, b"..");
        sums.seal(data);
        Ok(())
    }

    /// Adds a name that is not there. `dir` may grow or become indexed; the caller puts it.
    ///
    /// # Errors
    /// `ENOSPC`; `Corrupt` for a damaged directory or index.
    pub(crate) fn dir_insert(
        &mut self,
        dir: &mut Inode,
        name: &[u8],
        ino: InodeNo,
        kind: FileKind,
    ) -> Result<()> {
        debug_assert!(!name.is_empty() && name.len() <= NAME_MAX);
        let geometry = self.core.geometry.clone();
        let kind = entry::kind_byte(&geometry, kind);
        if is_indexed(&geometry, dir) {
            return self.index_insert(dir, name, ino, kind);
        }
        dir.flags &= !flag::INDEX;
        let sums = Sums::of(&geometry, dir);
        let end = sums.end(geometry.block_size as usize);
        let blocks = self.core.dir_blocks(dir)?;
        for number in 0..blocks {
            self.core.dir_read_ahead(dir, number, blocks)?;
            let (block, data) = self.core.dir_block(dir, FileBlock(number))?;
            if let Some(offset) = entry::find_room(&data, end, name.len()) {
                drop(data);
                let data = self.modify(block)?;
                entry::place_record(data, offset, ino.0, kind, name);
                sums.seal(data);
                return Ok(());
            }
        }
        if blocks == 1 && geometry.has_compat(feature::COMPAT_DIR_INDEX) {
            self.index_create(dir)?;
            return self.index_insert(dir, name, ino, kind);
        }
        let (_, block) = self.append_metadata_block(dir)?;
        let data = self.modify(block)?;
        entry::put_record(data, 0, end, ino.0, kind, name);
        sums.seal(data);
        Ok(())
    }

    /// The block of a name, for changing. Reading passes over what is damaged in a block; a change would seal the damage.
    fn modify_found(&mut self, dir: &Inode, found: &Found) -> Result<&mut [u8]> {
        let (block, _) = self.core.dir_block(dir, found.file_block)?;
        debug_assert_eq!(block, found.block, "the name's block has not moved");
        self.modify(block)
    }

    /// Removes the name at this place.
    ///
    /// # Errors
    /// `Corrupt` where the name was found in a damaged block; as for [`Tx::modify`].
    pub(crate) fn dir_remove(&mut self, dir: &Inode, found: &Found) -> Result<()> {
        let geometry = self.core.geometry.clone();
        let data = self.modify_found(dir, found)?;
        entry::delete_record(data, found.offset, found.before);
        seal(&geometry, dir, found.file_block, data);
        Ok(())
    }

    /// Lets the name at this place name another inode.
    ///
    /// # Errors
    /// `Corrupt` where the name was found in a damaged block; as for [`Tx::modify`].
    pub(crate) fn dir_point(
        &mut self,
        dir: &Inode,
        found: &Found,
        ino: InodeNo,
        kind: FileKind,
    ) -> Result<()> {
        let geometry = self.core.geometry.clone();
        let data = self.modify_found(dir, found)?;
        entry::point_record(data, found.offset, ino.0, entry::kind_byte(&geometry, kind));
        seal(&geometry, dir, found.file_block, data);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
