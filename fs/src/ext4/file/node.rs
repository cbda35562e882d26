//! Nodes of the extent tree. Source: `struct ext4_extent_header`, `ext4_extent`, `ext4_extent_idx`, `ext4_extent_tail`.
//!
//! A node is a header and entries of 12 bytes each, sorted by file block; the root is the inode's `i_block` (4 entries), other
//! nodes fill a block and, under `metadata_csum`, have a checksum behind the last possible entry.

use super::super::alloc::{SystemZone, touches};
use super::super::bytes::{le16, le32, put16, put32};
use super::super::checksum::crc32c;

/// `eh_magic`.
const MAGIC: u16 = 0xF30A;
/// Bytes of the header and of each entry.
const ENTRY_BYTES: usize = 12;
/// Levels of index nodes at most.
pub(super) const DEPTH_MAX: usize = 5;
/// Blocks of a written extent at most; a longer length means unwritten.
pub(super) const WRITTEN_MAX: u32 = 32768;
/// Blocks of an unwritten extent at most.
pub(super) const UNWRITTEN_MAX: u32 = 32767;

/// A run of file blocks in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First file block.
    pub(crate) first: u32,
    /// Blocks.
    pub(crate) count: u32,
    /// First block in the file system.
    pub(crate) start: u64,
    /// Reserved, reads as zeros.
    pub(crate) unwritten: bool,
}

impl Extent {
    /// File block behind it (up to 2^32).
    pub(crate) fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }
    /// The part from file block `from` to `to`, which lie in it or at its ends.
    pub(super) fn part(&self, from: u64, to: u64) -> Self {
        let skipped = from - u64::from(self.first);
        Self {
            first: from as u32,
            count: (to - from) as u32,
            start: self.start + skipped,
            unwritten: self.unwritten,
        }
    }
    /// Blocks that one extent of this kind can have.
    fn count_max(unwritten: bool) -> u32 {
        if unwritten { UNWRITTEN_MAX } else { WRITTEN_MAX }
    }
    /// The two as one, if they follow one another in the file and in place.
    pub(super) fn merged(&self, next: &Self) -> Option<Self> {
        let fits = self.end() == u64::from(next.first)
            && self.start + u64::from(self.count) == next.start
            && self.unwritten == next.unwritten
            && self.count + next.count <= Self::count_max(self.unwritten);
        fits.then(|| Self { count: self.count + next.count, ..*self })
    }
}

/// Entries that fit into a node of so many bytes.
pub(super) fn capacity(bytes: usize) -> usize {
    (bytes - ENTRY_BYTES) / ENTRY_BYTES
}

/// Entries of a node whose header was checked.
pub(super) fn entries(node: &[u8]) -> usize {
    usize::from(le16(node, 2))
}

/// Index levels below a node.
pub(super) fn depth(node: &[u8]) -> usize {
    usize::from(le16(node, 6))
}

/// File block at which an entry of either kind starts.
pub(super) fn key(node: &[u8], at: usize) -> u32 {
    le32(node, ENTRY_BYTES * (at + 1))
}

/// Sets the file block at which an entry starts.
pub(super) fn set_key(node: &mut [u8], at: usize, key: u32) {
    put32(node, ENTRY_BYTES * (at + 1), key);
}

/// Extent number `at` of a leaf.
pub(super) fn extent(node: &[u8], at: usize) -> Extent {
    let raw = &node[ENTRY_BYTES * (at + 1)..ENTRY_BYTES * (at + 2)];
    let length = u32::from(le16(raw, 4));
    let unwritten = length > WRITTEN_MAX;
    Extent {
        first: le32(raw, 0),
        count: if unwritten { length - WRITTEN_MAX } else { length },
        start: u64::from(le16(raw, 6)) << 32 | u64::from(le32(raw, 8)),
        unwritten,
    }
}

/// Child number `at` of an index node.
pub(super) fn child(node: &[u8], at: usize) -> u64 {
    let raw = &node[ENTRY_BYTES * (at + 1)..ENTRY_BYTES * (at + 2)];
    u64::from(le16(raw, 8)) << 32 | u64::from(le32(raw, 4))
}

/// Overwrites extent number `at`.
pub(super) fn set_extent(node: &mut [u8], at: usize, extent: &Extent) {
    let raw = &mut node[ENTRY_BYTES * (at + 1)..ENTRY_BYTES * (at + 2)];
    put32(raw, 0, extent.first);
    put16(raw, 4, (extent.count + if extent.unwritten { WRITTEN_MAX } else { 0 }) as u16);
    put16(raw, 6, (extent.start >> 32) as u16);
    put32(raw, 8, extent.start as u32);
}

fn set_child(node: &mut [u8], at: usize, key: u32, block: u64) {
    let raw = &mut node[ENTRY_BYTES * (at + 1)..ENTRY_BYTES * (at + 2)];
    put32(raw, 0, key);
    put32(raw, 4, block as u32);
    put16(raw, 8, (block >> 32) as u16);
    put16(raw, 10, 0);
}

fn open_gap(node: &mut [u8], at: usize) {
    let count = entries(node);
    node.copy_within(ENTRY_BYTES * (at + 1)..ENTRY_BYTES * (count + 1), ENTRY_BYTES * (at + 2));
    put16(node, 2, count as u16 + 1);
}

/// Puts an extent at place `at`; there is room.
pub(super) fn insert_extent(node: &mut [u8], at: usize, extent: &Extent) {
    open_gap(node, at);
    set_extent(node, at, extent);
}

/// Puts a child at place `at`; there is room.
pub(super) fn insert_child(node: &mut [u8], at: usize, key: u32, block: u64) {
    open_gap(node, at);
    set_child(node, at, key, block);
}

/// Takes out `count` entries from place `at`.
pub(super) fn remove(node: &mut [u8], at: usize, count: usize) {
    let old = entries(node);
    node.copy_within(ENTRY_BYTES * (at + count + 1)..ENTRY_BYTES * (old + 1), ENTRY_BYTES * (at + 1));
    node[ENTRY_BYTES * (old - count + 1)..ENTRY_BYTES * (old + 1)].fill(0);
    put16(node, 2, (old - count) as u16);
}

/// Writes an empty node's header.
pub(super) fn init(node: &mut [u8], depth: usize) {
    let max = capacity(node.len());
    put16(node, 0, MAGIC);
    put16(node, 2, 0);
    put16(node, 4, max as u16);
    put16(node, 6, depth as u16);
    put32(node, 8, 0);
}

/// Moves the entries from `at` on to the (empty) node `to`.
pub(super) fn split(node: &mut [u8], at: usize, to: &mut [u8]) {
    let count = entries(node) - at;
    to[ENTRY_BYTES..ENTRY_BYTES * (count + 1)]
        .copy_from_slice(&node[ENTRY_BYTES * (at + 1)..ENTRY_BYTES * (at + count + 1)]);
    put16(to, 2, count as u16);
    remove(node, at, count);
}

/// Copies all entries and the depth of `from` to `to`, which has room for them.
pub(super) fn copy(from: &[u8], to: &mut [u8]) {
    let count = entries(from);
    init(to, depth(from));
    to[ENTRY_BYTES..ENTRY_BYTES * (count + 1)].copy_from_slice(&from[ENTRY_BYTES..ENTRY_BYTES * (count + 1)]);
    put16(to, 2, count as u16);
}

/// Place of the checksum in a node that fills a block.
fn tail(node: &[u8]) -> usize {
    ENTRY_BYTES * (capacity(node.len()) + 1)
}

/// Sets the checksum of a node that fills a block, with the inode's seed.
pub(super) fn set_checksum(node: &mut [u8], seed: u32) {
    let tail = tail(node);
    let sum = crc32c(seed, &node[..tail]);
    put32(node, tail, sum);
}

/// What must hold of a node each time it is used, so that no access leaves it and no walk goes on for ever.
pub(super) fn check_header(node: &[u8], expected_depth: Option<usize>) -> Result<(), &'static str> {
    if le16(node, 0) != MAGIC {
        return Err("no magic number");
    }
    if usize::from(le16(node, 4)) != capacity(node.len()) || entries(node) > capacity(node.len()) {
        return Err("impossible number of entries");
    }
    match expected_depth {
        Some(expected) if depth(node) != expected => Err("wrong depth"),
        None if depth(node) > DEPTH_MAX => Err("impossible depth"),
        _ if depth(node) > 0 && entries(node) == 0 => Err("index without entries"),
        _ => Ok(()),
    }
}

/// What must hold of the entries: order, the range of file blocks that the parent gives, places outside the file
/// system's own structures.
pub(super) fn check_entries(
    node: &[u8],
    range: std::ops::Range<u64>,
    block_count: u64,
    zone: &SystemZone,
) -> Result<(), &'static str> {
    let leaf = depth(node) == 0;
    let mut next = range.start;
    for at in 0..entries(node) {
        let (first, end, start, count) = if leaf {
            let extent = extent(node, at);
            if extent.count == 0 {
                return Err("empty extent");
            }
            (u64::from(extent.first), extent.end(), extent.start, u64::from(extent.count))
        } else {
            let first = u64::from(key(node, at));
            (first, first + 1, child(node, at), 1)
        };
        if first < next || end > range.end {
            return Err("entries out of order or out of range");
        }
        if start.saturating_add(count) > block_count || touches(zone, start, count) {
            return Err("entry points outside the file system or into its own structures");
        }
        next = end;
    }
    Ok(())
}

/// Checks the checksum of a node that fills a block.
pub(super) fn check_checksum(node: &[u8], seed: u32) -> Result<(), &'static str> {
    let tail = tail(node);
    if crc32c(seed, &node[..tail]) == le32(node, tail) { Ok(()) } else { Err("wrong checksum") }
}

/// The last entry that starts at or before `block`, by binary search; `None` if all start behind it.
pub(super) fn search(node: &[u8], block: u32) -> Option<usize> {
    let (mut low, mut high) = (0, entries(node));
    while low < high {
        let middle = (low + high) / 2;
        if key(node, middle) <= block { low = middle + 1 } else { high = middle }
    }
    low.checked_sub(1)
}
