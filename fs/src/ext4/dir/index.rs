//! The hashed index of a directory (htree). Source: `struct dx_root`, `dx_node`, `dx_entry`, `dx_tail` and the kernel's
//! `fs/ext4/namei.c`.
//!
//! Block 0 is the root: "." and ".." as ordinary records, then hash version and depth, then entries (hash, file block) in
//! ascending order; the first entry's hash place holds limit and count. Depth 1 puts nodes between root and leaves. A leaf is a
//! linear block. The lowest bit of an entry's hash says that names of that hash began in the leaf before it.

use super::super::bytes::{le16, le32, put16, put32};
use super::super::checksum::crc32c;
use super::super::error::{FsError, Result, errno};
use super::super::inode::{Inode, flag};
use super::super::tx::{Core, Tx};
use super::super::types::{BlockNo, FileBlock, InodeNo};
use super::entry::{self, Sums, records};
use super::hash::{UNSIGNED, hash_name};

/// Entries of the root begin here, behind "." and ".." and the root's own fields.
const ROOT_BASE: usize = 32;
/// Entries of a node begin here, behind an unused record as long as the block.
const NODE_BASE: usize = 8;
const ENTRY_BYTES: usize = 8;
const TAIL_BYTES: usize = 8;
const HASH_VERSION_AT: usize = 28;
const LEVELS_AT: usize = 30;
/// Levels of nodes below the root that the format has without `large_dir`.
const LEVELS_MAX: u8 = 1;

/// One index block on the way to a leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    block: BlockNo,
    base: usize,
    /// Entry that was followed.
    at: usize,
    count: usize,
    limit: usize,
}

impl Frame {
    fn is_full(&self) -> bool {
        self.count >= self.limit
    }
}

/// The way from the root to the leaf for a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// The name's hash.
    pub(super) hash: u32,
    /// The leaf.
    pub(super) leaf: FileBlock,
    version: u8,
    frames: [Option<Frame>; 2],
}

impl Probe {
    fn last(&self) -> Frame {
        self.frames[1].or(self.frames[0]).expect("a probe has passed the root")
    }
}

fn limit(sums: Sums, block_size: usize, base: usize) -> usize {
    let tail = if sums.seed().is_some() { TAIL_BYTES } else { 0 };
    (block_size - base - tail) / ENTRY_BYTES
}

fn entry_hash(block: &[u8], base: usize, index: usize) -> u32 {
    if index == 0 { 0 } else { le32(block, base + index * ENTRY_BYTES) }
}

fn entry_block(block: &[u8], base: usize, index: usize) -> u32 {
    le32(block, base + index * ENTRY_BYTES + 4) & 0x0FFF_FFFF
}

fn put_entry(block: &mut [u8], base: usize, index: usize, hash: u32, child: FileBlock) {
    if index > 0 {
        put32(block, base + index * ENTRY_BYTES, hash);
    }
    put32(block, base + index * ENTRY_BYTES + 4, child.0);
}

fn put_limits(block: &mut [u8], base: usize, limit: usize, count: usize) {
    put16(block, base, limit as u16);
    put16(block, base + 2, count as u16);
}

fn insert_entry(block: &mut [u8], base: usize, at: usize, hash: u32, child: FileBlock) {
    let count = usize::from(le16(block, base + 2));
    let from = base + at * ENTRY_BYTES;
    block.copy_within(from..base + count * ENTRY_BYTES, from + ENTRY_BYTES);
    put_entry(block, base, at, hash, child);
    put16(block, base + 2, count as u16 + 1);
}

fn checksum(seed: u32, block: &[u8], base: usize) -> (u32, usize) {
    let (limit, count) = (usize::from(le16(block, base)), usize::from(le16(block, base + 2)));
    let tail = base + limit * ENTRY_BYTES;
    let crc = crc32c(seed, &block[..base + count * ENTRY_BYTES]);
    let crc = crc32c(crc, &block[tail..tail + 4]);
    (crc32c(crc, &[0; 4]), tail + 4)
}

/// Sets the checksum of the root.
pub(super) fn seal_root(sums: Sums, block: &mut [u8]) {
    seal(sums, block, ROOT_BASE);
}

fn seal(sums: Sums, block: &mut [u8], base: usize) {
    if let Some(seed) = sums.seed() {
        let (sum, at) = checksum(seed, block, base);
        put32(block, at, sum);
    }
}

/// Whether a block of an indexed directory, other than the first, is a node of the index (or an empty leaf without checksum, which
/// reads the same).
pub(super) fn is_node(block: &[u8]) -> bool {
    le32(block, 0) == 0 && usize::from(le16(block, 4)) == block.len() && block[6] == 0
}

/// Whether what looks like an empty leaf has a node's limit and count.
fn has_entries(block: &[u8], sums: Sums) -> bool {
    usize::from(le16(block, NODE_BASE)) == limit(sums, block.len(), NODE_BASE)
        && le16(block, NODE_BASE + 2) > 0
}

/// Holds a root or node against its checksum and limits.
pub(super) fn check(sums: Sums, dir: InodeNo, at: BlockNo, block: &[u8], root: bool) -> Result<()> {
    let bad = |what: String| FsError::corrupt(format!("directory index: {what}"), Some(dir), Some(at));
    let base = if root { ROOT_BASE } else { NODE_BASE };
    if root {
        let records = (le16(block, 4), block[6], le16(block, 16), block[18]);
        if records != (12, 1, block.len() as u16 - 12, 2) {
            return Err(bad("the root's first records".into()));
        }
        if le32(block, 24) != 0 || block[29] != 8 || block[31] & 1 != 0 || block[HASH_VERSION_AT] >= UNSIGNED
        {
            return Err(bad(format!("the root's fields (hash version {})", block[HASH_VERSION_AT])));
        }
        if block[LEVELS_AT] > LEVELS_MAX {
            return Err(bad(format!("{} levels", block[LEVELS_AT])));
        }
    }
    let (found, count) = (usize::from(le16(block, base)), usize::from(le16(block, base + 2)));
    if found != limit(sums, block.len(), base) || count == 0 || count > found {
        return Err(bad(format!("count {count}, limit {found}")));
    }
    if let Some(seed) = sums.seed() {
        let (sum, at) = checksum(seed, block, base);
        if sum != le32(block, at) {
            return Err(bad("wrong checksum".into()));
        }
    }
    Ok(())
}

/// Greatest entry whose hash is not above `hash`.
fn search(block: &[u8], base: usize, count: usize, hash: u32) -> usize {
    let (mut low, mut high) = (1, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if entry_hash(block, base, middle) > hash {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low - 1
}

fn frame(
    dir: &Inode,
    block: BlockNo,
    data: &[u8],
    base: usize,
    sums: Sums,
    hash: u32,
) -> Result<(Frame, FileBlock)> {
    // Without checksums a node can't be told from an empty leaf when it is loaded: the limits are looked at here.
    let (limit, count) = (limit(sums, data.len(), base), usize::from(le16(data, base + 2)));
    if usize::from(le16(data, base)) != limit || count == 0 || count > limit {
        return Err(FsError::corrupt("directory index: count and limit", Some(dir.ino), Some(block)));
    }
    let at = search(data, base, count, hash);
    let child = entry_block(data, base, at);
    if child == 0 || u64::from(child) >= dir.size / data.len() as u64 {
        return Err(FsError::corrupt(
            format!("directory index: leads to block {child}"),
            Some(dir.ino),
            Some(block),
        ));
    }
    Ok((Frame { block, base, at, count, limit }, FileBlock(child)))
}

impl Core {
    /// Walks the index down to the leaf where `name` belongs.
    ///
    /// # Errors
    /// `Corrupt` for a damaged index.
    pub(super) fn index_probe(&mut self, dir: &Inode, name: &[u8]) -> Result<Probe> {
        let geometry = self.geometry.clone();
        let sums = Sums::of(&geometry, dir);
        let (block, data) = self.dir_block(dir, FileBlock(0))?;
        let version = data[HASH_VERSION_AT] + if geometry.hash_version >= UNSIGNED { UNSIGNED } else { 0 };
        let hash = hash_name(version, &geometry.hash_seed, name).major;
        let (root, child) = frame(dir, block, &data, ROOT_BASE, sums, hash)?;
        if data[LEVELS_AT] == 0 {
            return Ok(Probe { hash, leaf: child, version, frames: [Some(root), None] });
        }
        let (node, leaf) = self.index_node(dir, child, sums, hash)?;
        Ok(Probe { hash, leaf, version, frames: [Some(root), Some(node)] })
    }

    fn index_node(
        &mut self,
        dir: &Inode,
        node: FileBlock,
        sums: Sums,
        hash: u32,
    ) -> Result<(Frame, FileBlock)> {
        let (block, data) = self.dir_block(dir, node)?;
        if !is_node(&data) {
            return Err(FsError::corrupt("directory index: not a node", Some(dir.ino), Some(block)));
        }
        frame(dir, block, &data, NODE_BASE, sums, hash)
    }

    /// Moves a probe on to the next leaf if that goes on with names of the same hash.
    ///
    /// # Errors
    /// `Corrupt` for a damaged index.
    pub(super) fn index_next(&mut self, dir: &Inode, probe: &mut Probe) -> Result<bool> {
        let depth = usize::from(probe.frames[1].is_some());
        let mut level = depth;
        loop {
            let frame = probe.frames[level].as_mut().expect("level is in the probe");
            if frame.at + 1 < frame.count {
                frame.at += 1;
                break;
            }
            if level == 0 {
                return Ok(false);
            }
            level -= 1;
        }
        let frame = probe.frames[level].expect("level is in the probe");
        let data = self.block(frame.block)?;
        if entry_hash(&data, frame.base, frame.at) & !1 != probe.hash {
            return Ok(false);
        }
        let child = FileBlock(entry_block(&data, frame.base, frame.at));
        if level == depth {
            probe.leaf = child;
        } else {
            let sums = Sums::of(&self.geometry, dir);
            let (node, leaf) = self.index_node(dir, child, sums, 0)?;
            probe.frames[1] = Some(node);
            probe.leaf = leaf;
        }
        if probe.leaf.0 == 0 {
            return Err(FsError::corrupt(
                "directory index: leads to its root",
                Some(dir.ino),
                Some(frame.block),
            ));
        }
        Ok(true)
    }
}

/// Fills a leaf with these records (place in `from`), the last one taking what is left.
fn fill_leaf(leaf: &mut [u8], end: usize, from: &[u8], offsets: impl Iterator<Item = usize>) {
    entry::clear(leaf, end);
    let (mut offset, mut last) = (0, 0);
    for source in offsets {
        let name_len = usize::from(from[source + 6]);
        let used = entry::record_bytes(name_len);
        let name = &from[source + entry::HEAD_BYTES..source + entry::HEAD_BYTES + name_len];
        entry::put_record(leaf, offset, used, le32(from, source), from[source + 7], name);
        last = offset;
        offset += used;
    }
    if offset > 0 {
        put16(leaf, last + 4, (end - last) as u16);
    }
}

impl Tx<'_> {
    /// Adds a name to an indexed directory. `dir` may grow; the caller puts it.
    ///
    /// # Errors
    /// `ENOSPC`, also when both index levels are full; `Corrupt`.
    pub(super) fn index_insert(
        &mut self,
        dir: &mut Inode,
        name: &[u8],
        ino: InodeNo,
        kind: u8,
    ) -> Result<()> {
        let sums = Sums::of(&self.core.geometry, dir);
        let end = sums.end(self.core.geometry.block_size as usize);
        // Index level added, node split, leaf split, placed: four rounds do.
        for _ in 0..6 {
            let probe = self.core.index_probe(dir, name)?;
            let (block, data) = self.core.dir_block(dir, probe.leaf)?;
            if is_node(&data) && (sums.seed().is_some() || has_entries(&data, sums)) {
                break;
            }
            if let Some(offset) = entry::find_room(&data, end, name.len()) {
                drop(data);
                let leaf = self.modify(block)?;
                entry::place_record(leaf, offset, ino.0, kind, name);
                sums.seal(leaf);
                return Ok(());
            }
            drop(data);
            if probe.last().is_full() {
                self.index_grow(dir, &probe, sums)?;
            } else {
                self.index_split_leaf(dir, &probe, block, sums)?;
            }
        }
        Err(FsError::corrupt("directory index: no leaf takes the name", Some(dir.ino), None))
    }

    /// Makes room for one more entry in the full index block at the probe's end.
    fn index_grow(&mut self, dir: &mut Inode, probe: &Probe, sums: Sums) -> Result<()> {
        let block_size = self.core.geometry.block_size as usize;
        let node_limit = limit(sums, block_size, NODE_BASE);
        let [Some(root), node] = probe.frames else { unreachable!("a probe has passed the root") };
        if node.is_some() && root.is_full() {
            return errno(libc::ENOSPC);
        }
        let full = probe.last();
        let old = self.core.block(full.block)?;
        let entries =
            |from: usize, to: usize| &old[full.base + from * ENTRY_BYTES..full.base + to * ENTRY_BYTES];
        let keep = if node.is_some() { full.count / 2 } else { 0 };
        let (file_block, block) = self.append_metadata_block(dir)?;
        let new = self.modify(block)?;
        put16(new, 4, block_size as u16);
        new[NODE_BASE..NODE_BASE + (full.count - keep) * ENTRY_BYTES]
            .copy_from_slice(entries(keep, full.count));
        put_limits(new, NODE_BASE, node_limit, full.count - keep);
        seal(sums, new, NODE_BASE);
        if node.is_some() {
            let lower = self.modify(full.block)?;
            put_limits(lower, NODE_BASE, node_limit, keep);
            seal(sums, lower, NODE_BASE);
            let hash = le32(entries(keep, keep + 1), 0);
            let upper = self.modify(root.block)?;
            insert_entry(upper, ROOT_BASE, root.at + 1, hash, file_block);
            seal(sums, upper, ROOT_BASE);
        } else {
            let upper = self.modify(root.block)?;
            upper[LEVELS_AT] = 1;
            put_limits(upper, ROOT_BASE, root.limit, 1);
            put_entry(upper, ROOT_BASE, 0, 0, file_block);
            seal(sums, upper, ROOT_BASE);
        }
        Ok(())
    }

    /// Moves the upper half of a full leaf, by hash, to a new one.
    fn index_split_leaf(&mut self, dir: &mut Inode, probe: &Probe, leaf: BlockNo, sums: Sums) -> Result<()> {
        let geometry = self.core.geometry.clone();
        let block_size = geometry.block_size as usize;
        let end = sums.end(block_size);
        let old = self.core.block(leaf)?;
        let mut map: Vec<(u32, usize, usize)> = records(&old, 0, end)
            .filter(|record| record.ino != 0)
            .map(|record| {
                (
                    hash_name(probe.version, &geometry.hash_seed, record.name).major,
                    record.offset,
                    record.used(),
                )
            })
            .collect();
        if map.len() < 2 {
            return Err(FsError::corrupt(
                "directory leaf: full with less than two names",
                Some(dir.ino),
                Some(leaf),
            ));
        }
        map.sort_unstable();
        let mut upper_bytes = 0;
        let mut split = map.len();
        while split > 1 && upper_bytes + map[split - 1].2 / 2 <= block_size / 2 {
            split -= 1;
            upper_bytes += map[split].2;
        }
        if split <= 1 || split == map.len() {
            split = map.len() / 2;
        }
        let hash = map[split].0;
        let continued = u32::from(map[split - 1].0 == hash);
        let (file_block, block) = self.append_metadata_block(dir)?;
        let new = self.modify(block)?;
        fill_leaf(new, end, &old, map[split..].iter().map(|entry| entry.1));
        sums.seal(new);
        let lower = self.modify(leaf)?;
        fill_leaf(lower, end, &old, map[..split].iter().map(|entry| entry.1));
        sums.seal(lower);
        let frame = probe.last();
        let index = self.modify(frame.block)?;
        insert_entry(index, frame.base, frame.at + 1, hash + continued, file_block);
        seal(sums, index, frame.base);
        Ok(())
    }

    /// Turns a linear directory of one block into an indexed one: its names move to a first leaf.
    ///
    /// # Errors
    /// `ENOSPC`, `Corrupt`.
    pub(super) fn index_create(&mut self, dir: &mut Inode) -> Result<()> {
        let geometry = self.core.geometry.clone();
        let block_size = geometry.block_size as usize;
        let sums = Sums::of(&geometry, dir);
        let end = sums.end(block_size);
        let (root, old) = self.core.dir_block(dir, FileBlock(0))?;
        let mut heads = records(&old, 0, end);
        let (dot, dots) = match (heads.next(), heads.next()) {
            (Some(dot), Some(dots)) if dot.name == b"." && dots.name == b".." => (dot, dots),
            _ => return Err(FsError::corrupt("directory: no \".\" and \"..\"", Some(dir.ino), Some(root))),
        };
        let (file_block, block) = self.append_metadata_block(dir)?;
        let leaf = self.modify(block)?;
        fill_leaf(leaf, end, &old, heads.filter(|record| record.ino != 0).map(|record| record.offset));
        sums.seal(leaf);
        let data = self.modify(root)?;
        data.fill(0);
        entry::put_record(data, 0, 12, dot.ino, dot.kind, b".");
        entry::put_record(data, 12, block_size - 12, dots.ino, dots.kind, b"..");
        data[HASH_VERSION_AT] = geometry.hash_version % UNSIGNED;
        data[29] = 8;
        put_limits(data, ROOT_BASE, limit(sums, block_size, ROOT_BASE), 1);
        put_entry(data, ROOT_BASE, 0, 0, file_block);
        seal(sums, data, ROOT_BASE);
        dir.flags |= flag::INDEX;
        Ok(())
    }
}
