//! Where the journal's blocks lie in the image: its inode's extent tree, walked once at open.

use super::super::bytes::{le16, le32};
use super::super::checksum::crc32c;
use super::super::error::{FsError, Result};
use super::super::inode::{Inode, flag};
use super::super::superblock::ChecksumKind;
use super::super::tx::Core;
use super::super::types::BlockNo;

const EXTENT_MAGIC: u16 = 0xF30A;
/// Bytes of an extent header, and of each entry behind it.
const ENTRY_BYTES: usize = 12;
const DEPTH_MAX: u16 = 5;

/// A run of the journal's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    logical: u32,
    physical: u64,
    count: u32,
}

/// The journal's blocks, without gaps from its block 0.
#[derive(Clone, Debug)]
pub(super) struct LogMap {
    runs: Vec<Run>,
}

impl LogMap {
    /// Walks the journal inode's tree.
    ///
    /// # Errors
    /// `Unsupported` for a journal with indirect blocks; `Corrupt` for an impossible tree; I/O errors.
    pub(super) fn load(core: &mut Core) -> Result<Self> {
        let ino = core.geometry.journal_inode;
        let inode = core.inode_raw(ino)?;
        if !inode.has(flag::EXTENTS) {
            let hint = "make a new one with tune2fs -O ^has_journal, then -j";
            return Err(FsError::Unsupported(format!("the journal has no extents ({hint})")));
        }
        let mut runs = Vec::new();
        walk(core, &inode, &inode.block, None, &mut runs)?;
        if runs.is_empty() {
            return Err(FsError::corrupt("journal: no blocks", Some(ino), None));
        }
        Ok(Self { runs })
    }

    /// Blocks of the journal.
    pub(super) fn blocks(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// Where a block of the journal lies, and how many lie together from there (at least 1).
    pub(super) fn place(&self, logical: u32) -> (BlockNo, u32) {
        let index = self.runs.partition_point(|run| run.logical <= logical) - 1;
        let run = &self.runs[index];
        let inside = logical - run.logical;
        debug_assert!(inside < run.count);
        (BlockNo(run.physical + u64::from(inside)), run.count - inside)
    }

    /// Each run's first block in the image and its length.
    pub(super) fn runs(&self) -> impl Iterator<Item = (BlockNo, u32)> {
        self.runs.iter().map(|run| (BlockNo(run.physical), run.count))
    }
}

fn walk(core: &mut Core, inode: &Inode, node: &[u8], above: Option<u16>, runs: &mut Vec<Run>) -> Result<()> {
    let corrupt =
        |what: &str| Err(FsError::corrupt(format!("journal: extent tree: {what}"), Some(inode.ino), None));
    let (entries, depth) = (usize::from(le16(node, 2)), le16(node, 6));
    if le16(node, 0) != EXTENT_MAGIC || ENTRY_BYTES * (entries + 1) > node.len() {
        return corrupt("bad node");
    }
    if above.map_or(depth > DEPTH_MAX, |above| depth.checked_add(1) != Some(above)) {
        return corrupt("wrong depth");
    }
    // Each node brings the walk on, so that nodes which are named again and again do not keep it busy for ever.
    if above.is_some() && entries == 0 {
        return corrupt("empty node");
    }
    for entry in node[ENTRY_BYTES..].chunks_exact(ENTRY_BYTES).take(entries) {
        if depth == 0 {
            let count = le16(entry, 4);
            let physical = u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8));
            if count == 0 || count > 32768 || physical + u64::from(count) > core.geometry.block_count {
                return corrupt("impossible extent");
            }
            let logical = le32(entry, 0);
            let next = runs.last().map_or(0, |run| u64::from(run.logical) + u64::from(run.count));
            if u64::from(logical) != next {
                return Err(FsError::corrupt("journal: hole in it", Some(inode.ino), None));
            }
            if next + u64::from(count) > core.geometry.block_count {
                return corrupt("more blocks than the file system has");
            }
            runs.push(Run { logical, physical, count: u32::from(count) });
        } else {
            let child = BlockNo(u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4)));
            let data = core.block(child)?;
            let tail = ENTRY_BYTES * (usize::from(le16(&data, 4)) + 1);
            if core.geometry.checksums == ChecksumKind::Crc32c {
                let seed = inode.checksum_seed(&core.geometry);
                if tail + 4 > data.len() || crc32c(seed, &data[..tail]) != le32(&data, tail) {
                    return corrupt("wrong checksum");
                }
            }
            walk(core, inode, &data, Some(depth), runs)?;
        }
    }
    Ok(())
}
