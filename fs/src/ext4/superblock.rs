//! The superblock: what an image is, checked once ([`Geometry`]).
//!
//! Source: the kernel's `fs/ext4/ext4.h`, `struct ext4_super_block`; 1,024 bytes at byte 1,024 of the image.

use super::bytes::{le16, le32, put16, put32};
use super::checksum::crc32c;
use super::error::{FsError, Result};
use super::types::{BlockNo, GroupNo, InodeNo};

/// Bytes of the superblock, and its offset in the image.
pub(crate) const SUPERBLOCK_BYTES: usize = 1024;
/// `s_magic`.
pub(crate) const MAGIC: u16 = 0xEF53;

/// Feature bits that we know, by set.
pub(crate) mod feature {
    pub(crate) const COMPAT_HAS_JOURNAL: u32 = 0x4;
    pub(crate) const COMPAT_DIR_INDEX: u32 = 0x20;
    pub(crate) const INCOMPAT_RECOVER: u32 = 0x4;
    pub(crate) const INCOMPAT_EXTENTS: u32 = 0x40;
    pub(crate) const INCOMPAT_64BIT: u32 = 0x80;
    pub(crate) const INCOMPAT_CSUM_SEED: u32 = 0x2000;
    pub(crate) const RO_COMPAT_HUGE_FILE: u32 = 0x8;
    pub(crate) const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
    pub(crate) const RO_COMPAT_GDT_CSUM: u32 = 0x10;
    pub(crate) const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

    /// Incompatible features with their names, and whether we serve them.
    pub(super) const INCOMPAT: [(u32, &str, bool); 17] = [
        (0x1, "compression", false),
        (0x2, "filetype", true),
        (INCOMPAT_RECOVER, "needs_recovery", true),
        (0x8, "journal_dev", false),
        (0x10, "meta_bg", false),
        (INCOMPAT_EXTENTS, "extent", true),
        (INCOMPAT_64BIT, "64bit", true),
        (0x100, "mmp", false),
        (0x200, "flex_bg", true),
        (0x400, "ea_inode", false),
        (0x1000, "dirdata", false),
        (INCOMPAT_CSUM_SEED, "metadata_csum_seed", true),
        (0x4000, "large_dir", false),
        (0x8000, "inline_data", false),
        (0x1_0000, "encrypt", false),
        (0x2_0000, "casefold", false),
        (0x4_0000, "unknown incompatible feature", false),
    ];
    /// Read-only compatible features with their names, and whether we write them.
    pub(super) const RO_COMPAT: [(u32, &str, bool); 15] = [
        (RO_COMPAT_SPARSE_SUPER, "sparse_super", true),
        (0x2, "large_file", true),
        (0x4, "btree_dir", false),
        (RO_COMPAT_HUGE_FILE, "huge_file", true),
        (RO_COMPAT_GDT_CSUM, "uninit_bg", true),
        (0x20, "dir_nlink", true),
        (0x40, "extra_isize", true),
        (0x100, "quota", false),
        (0x200, "bigalloc", false),
        (RO_COMPAT_METADATA_CSUM, "metadata_csum", true),
        (0x800, "replica", false),
        (0x1000, "read-only", false),
        (0x2000, "project", false),
        (0x8000, "verity", false),
        (0x1_0000, "orphan_present", false),
    ];
}

/// Checksums of group descriptors and other metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChecksumKind {
    /// None at all.
    None,
    /// CRC16 of group descriptors only (`uninit_bg`).
    Crc16,
    /// CRC32C of everything (`metadata_csum`).
    Crc32c,
}

/// The checked, unchanging facts of an image.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    /// Bytes per block: 1024, 2048 or 4096.
    pub(crate) block_size: u32,
    /// Blocks in the file system.
    pub(crate) block_count: u64,
    /// 1 for 1 KiB blocks, otherwise 0.
    pub(crate) first_data_block: u32,
    /// Blocks in each group but the last.
    pub(crate) blocks_per_group: u32,
    /// Inodes in each group.
    pub(crate) inodes_per_group: u32,
    /// Inodes.
    pub(crate) inode_count: u32,
    /// Bytes per on-disk inode, 128 or a larger power of two.
    pub(crate) inode_size: u16,
    /// Bytes per group descriptor: 32 or 64.
    pub(crate) desc_size: u16,
    /// Groups.
    pub(crate) group_count: u32,
    /// First inode number for files (11).
    pub(crate) first_inode: u32,
    /// `s_feature_compat`.
    pub(crate) compat: u32,
    /// `s_feature_incompat`, as found at open.
    pub(crate) incompat: u32,
    /// `s_feature_ro_compat`.
    pub(crate) ro_compat: u32,
    /// How metadata is checksummed.
    pub(crate) checksums: ChecksumKind,
    /// Register that all CRC32C of this image start from.
    pub(crate) checksum_seed: u32,
    /// The file system's UUID.
    pub(crate) uuid: [u8; 16],
    /// Seed of directory hashes.
    pub(crate) hash_seed: [u32; 4],
    /// Hash of new directories: 0 legacy, 1 half MD4, 2 TEA (plus 3 for the unsigned variants).
    pub(crate) hash_version: u8,
    /// Groups per flex group, as a power of two.
    pub(crate) log_groups_per_flex: u8,
    /// Blocks kept for root.
    pub(crate) reserved_blocks: u64,
    /// Blocks reserved behind the descriptors for growing (`resize_inode`).
    pub(crate) reserved_gdt_blocks: u16,
    /// Extra bytes that new inodes use beyond 128.
    pub(crate) want_extra_isize: u16,
    /// Inode of the journal.
    pub(crate) journal_inode: InodeNo,
}

impl Geometry {
    /// Checks the superblock's 1,024 bytes.
    ///
    /// # Errors
    /// `Unsupported` naming the feature, `Corrupt` where fields contradict one another.
    pub(crate) fn parse(raw: &[u8]) -> Result<Self> {
        let corrupt = |what: &str| FsError::corrupt(format!("superblock: {what}"), None, None);
        if raw.len() < SUPERBLOCK_BYTES || le16(raw, 0x38) != MAGIC {
            return Err(FsError::Unsupported("not an ext4 file system (no superblock magic)".into()));
        }
        let (compat, incompat, ro_compat) = (le32(raw, 0x5C), le32(raw, 0x60), le32(raw, 0x64));
        check_supported(raw)?;
        let metadata_csum = ro_compat & feature::RO_COMPAT_METADATA_CSUM != 0;
        if metadata_csum && crc32c(!0, &raw[..0x3FC]) != le32(raw, 0x3FC) {
            return Err(corrupt("wrong checksum"));
        }
        let log_block_size = le32(raw, 0x18);
        if log_block_size > 2 {
            return Err(FsError::Unsupported(format!(
                "block size 2^{} (served: 1, 2 and 4 KiB)",
                log_block_size.saturating_add(10)
            )));
        }
        let block_size = 1024u32 << log_block_size;
        let is_64bit = incompat & feature::INCOMPAT_64BIT != 0;
        let high = |at: usize| if is_64bit { u64::from(le32(raw, at)) << 32 } else { 0 };
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&raw[0x68..0x78]);
        let signed_hash = le32(raw, 0x160) & 0x2 == 0;
        let geometry = Self {
            block_size,
            block_count: u64::from(le32(raw, 0x4)) | high(0x150),
            first_data_block: le32(raw, 0x14),
            blocks_per_group: le32(raw, 0x20),
            inodes_per_group: le32(raw, 0x28),
            inode_count: le32(raw, 0x0),
            inode_size: if le32(raw, 0x4C) == 0 { 128 } else { le16(raw, 0x58) },
            desc_size: if is_64bit { le16(raw, 0xFE) } else { 32 },
            group_count: 0,
            first_inode: if le32(raw, 0x4C) == 0 { 11 } else { le32(raw, 0x54) },
            compat,
            incompat,
            ro_compat,
            checksums: match (metadata_csum, ro_compat & feature::RO_COMPAT_GDT_CSUM != 0) {
                (true, _) => ChecksumKind::Crc32c,
                (false, true) => ChecksumKind::Crc16,
                (false, false) => ChecksumKind::None,
            },
            checksum_seed: if incompat & feature::INCOMPAT_CSUM_SEED != 0 {
                le32(raw, 0x270)
            } else {
                crc32c(!0, &uuid)
            },
            uuid,
            hash_seed: [le32(raw, 0xEC), le32(raw, 0xF0), le32(raw, 0xF4), le32(raw, 0xF8)],
            hash_version: raw[0xFC].min(2) + if signed_hash { 0 } else { 3 },
            log_groups_per_flex: raw[0x174],
            reserved_blocks: u64::from(le32(raw, 0x8)) | high(0x154),
            reserved_gdt_blocks: le16(raw, 0xCE),
            want_extra_isize: le16(raw, 0x15E),
            journal_inode: InodeNo(le32(raw, 0xE0)),
        };
        geometry.checked(raw)
    }

    fn checked(mut self, raw: &[u8]) -> Result<Self> {
        let corrupt = |what: String| Err(FsError::corrupt(format!("superblock: {what}"), None, None));
        let bits = self.block_size * 8;
        if self.first_data_block != u32::from(self.block_size == 1024) {
            return corrupt(format!("first data block {}", self.first_data_block));
        }
        if self.blocks_per_group == 0
            || self.blocks_per_group > bits
            || !self.blocks_per_group.is_multiple_of(8)
        {
            return corrupt(format!("{} blocks per group", self.blocks_per_group));
        }
        if self.inodes_per_group == 0
            || self.inodes_per_group > bits
            || !self.inodes_per_group.is_multiple_of(8)
        {
            return corrupt(format!("{} inodes per group", self.inodes_per_group));
        }
        if !self.inode_size.is_power_of_two()
            || self.inode_size < 128
            || u32::from(self.inode_size) > self.block_size
        {
            return corrupt(format!("inode size {}", self.inode_size));
        }
        if self.desc_size != 32 && self.desc_size != 64 {
            return corrupt(format!("group descriptor size {}", self.desc_size));
        }
        if self.block_count <= u64::from(self.first_data_block) || self.block_count >> 44 != 0 {
            return corrupt(format!("{} blocks", self.block_count));
        }
        let groups =
            (self.block_count - u64::from(self.first_data_block)).div_ceil(u64::from(self.blocks_per_group));
        if groups > u64::from(u32::MAX / self.inodes_per_group) {
            return corrupt(format!("{groups} groups"));
        }
        self.group_count = groups as u32;
        if self.inode_count != self.group_count * self.inodes_per_group {
            return corrupt(format!("{} inodes in {groups} groups", self.inode_count));
        }
        if self.first_inode < 11 || self.first_inode >= self.inode_count {
            return corrupt(format!("first inode {}", self.first_inode));
        }
        if self.journal_inode.0 == 0 || self.journal_inode.0 > self.inode_count {
            return Err(FsError::Unsupported("the journal is on another device (journal inode 0)".into()));
        }
        if self.log_groups_per_flex > 31 {
            return corrupt(format!("2^{} groups per flex group", self.log_groups_per_flex));
        }
        let extra_max = self.inode_size - 128;
        self.want_extra_isize = self.want_extra_isize.min(extra_max) & !3;
        if self.want_extra_isize == 0 && extra_max >= 32 {
            self.want_extra_isize = 32;
        }
        debug_assert!(raw.len() >= SUPERBLOCK_BYTES);
        Ok(self)
    }

    /// Whether a compat feature is there.
    pub(crate) fn has_compat(&self, bit: u32) -> bool {
        self.compat & bit != 0
    }
    /// Whether a read-only compat feature is there.
    pub(crate) fn has_ro_compat(&self, bit: u32) -> bool {
        self.ro_compat & bit != 0
    }
    /// Block that holds the superblock, and its offset there.
    pub(crate) fn superblock_place(&self) -> (BlockNo, usize) {
        if self.block_size == 1024 { (BlockNo(1), 0) } else { (BlockNo(0), 1024) }
    }
    /// First block of a group.
    pub(crate) fn group_start(&self, group: GroupNo) -> BlockNo {
        BlockNo(u64::from(self.first_data_block) + u64::from(group.0) * u64::from(self.blocks_per_group))
    }
    /// Blocks in a group (the last may be short).
    pub(crate) fn group_blocks(&self, group: GroupNo) -> u32 {
        let left = self.block_count - self.group_start(group).0;
        left.min(u64::from(self.blocks_per_group)) as u32
    }
    /// Group and bit of a block; `None` outside the file system.
    pub(crate) fn group_of(&self, block: BlockNo) -> Option<(GroupNo, u32)> {
        let relative = block.0.checked_sub(u64::from(self.first_data_block))?;
        if block.0 >= self.block_count {
            return None;
        }
        let per_group = u64::from(self.blocks_per_group);
        Some((GroupNo((relative / per_group) as u32), (relative % per_group) as u32))
    }
    /// Group and bit of an inode; `None` if there is no such number.
    pub(crate) fn inode_group(&self, ino: InodeNo) -> Option<(GroupNo, u32)> {
        let index = ino.0.checked_sub(1).filter(|_| ino.0 <= self.inode_count)?;
        Some((GroupNo(index / self.inodes_per_group), index % self.inodes_per_group))
    }
    /// Byte offset of a block in the image.
    pub(crate) fn byte_of(&self, block: BlockNo) -> u64 {
        block.0 * u64::from(self.block_size)
    }
}

/// Whether a file system with this superblock can be served.
///
/// # Errors
/// `Unsupported`, which names the feature.
pub(crate) fn check_supported(raw: &[u8]) -> Result<()> {
    check_features(le32(raw, 0x5C), le32(raw, 0x60), le32(raw, 0x64))
}

fn check_features(compat: u32, incompat: u32, ro_compat: u32) -> Result<()> {
    if compat & feature::COMPAT_HAS_JOURNAL == 0 {
        return Err(FsError::Unsupported(
            "no journal (feature has_journal is missing; add one with tune2fs -j)".into(),
        ));
    }
    if incompat & feature::INCOMPAT_EXTENTS == 0 {
        return Err(FsError::Unsupported("no extents (feature extent is missing)".into()));
    }
    for (bits, table) in [(incompat, &feature::INCOMPAT[..]), (ro_compat, &feature::RO_COMPAT[..])] {
        let known: u32 = table.iter().map(|row| row.0).sum();
        if let Some(row) = table.iter().find(|row| !row.2 && bits & row.0 != 0) {
            return Err(FsError::Unsupported(format!("feature {} is not supported", row.1)));
        }
        if bits & !known != 0 {
            return Err(FsError::Unsupported(format!("unknown feature bits {:#x}", bits & !known)));
        }
    }
    Ok(())
}

/// `s_state`: errors were met.
const STATE_ERROR: u16 = 2;

/// The numbers that the core keeps beside the superblock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Free blocks.
    pub(crate) free_blocks: u64,
    /// Free inodes.
    pub(crate) free_inodes: u64,
    /// Head of the orphan list.
    pub(crate) last_orphan: u32,
}

/// Where damage was met, for the superblock's record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorRecord {
    /// The inode, where known.
    pub(crate) inode: Option<u32>,
    /// The block, where known.
    pub(crate) block: Option<u64>,
}

fn put_now(raw: &mut [u8], low: usize, high: usize) {
    let now = super::attr::Timestamp::now().seconds;
    put32(raw, low, now as u32);
    raw[high] = (now >> 32) as u8;
}

/// Puts the numbers into the superblock's bytes, and the time of writing.
pub(crate) fn put_counts(raw: &mut [u8], counts: &Counts) {
    put32(raw, 0xC, counts.free_blocks as u32);
    if le32(raw, 0x60) & feature::INCOMPAT_64BIT != 0 {
        put32(raw, 0x158, (counts.free_blocks >> 32) as u32);
    }
    put32(raw, 0x10, counts.free_inodes as u32);
    put32(raw, 0xE8, counts.last_orphan);
    put_now(raw, 0x30, 0x274);
}

/// Mounted for changes: `needs_recovery`, mount count and time.
pub(crate) fn mark_mounted(raw: &mut [u8]) {
    let incompat = le32(raw, 0x60) | feature::INCOMPAT_RECOVER;
    put32(raw, 0x60, incompat);
    let mounts = le16(raw, 0x34).wrapping_add(1);
    put16(raw, 0x34, mounts);
    put_now(raw, 0x2C, 0x275);
}

/// The journal is empty: no recovery is needed.
pub(crate) fn mark_clean(raw: &mut [u8]) {
    let incompat = le32(raw, 0x60) & !feature::INCOMPAT_RECOVER;
    put32(raw, 0x60, incompat);
    put_now(raw, 0x30, 0x274);
}

/// Errors were met: the state that has e2fsck look, and the kernel's record of the first and the last one.
pub(crate) fn mark_error(raw: &mut [u8], record: Option<ErrorRecord>) {
    const BY: &[u8] = b"mirrorfs";
    let state = le16(raw, 0x3A) | STATE_ERROR;
    put16(raw, 0x3A, state);
    let Some(record) = record else { return };
    let places = [(0x1CC, 0x279, 0x1D0, 0x1D8, 0x1E0), (0x198, 0x278, 0x19C, 0x1A0, 0x1A8)];
    let is_first = le32(raw, 0x194) == 0;
    for (time, time_high, inode, block, by) in places.into_iter().take(if is_first { 2 } else { 1 }) {
        put_now(raw, time, time_high);
        put32(raw, inode, record.inode.unwrap_or(0));
        put32(raw, block, record.block.unwrap_or(0) as u32);
        put32(raw, block + 4, (record.block.unwrap_or(0) >> 32) as u32);
        raw[by..by + 32].fill(0);
        raw[by..by + BY.len()].copy_from_slice(BY);
    }
    let count = le32(raw, 0x194).saturating_add(1);
    put32(raw, 0x194, count);
}

/// Sets the superblock's checksum.
pub(crate) fn seal(raw: &mut [u8], geometry: &Geometry) {
    if geometry.checksums == ChecksumKind::Crc32c {
        let sum = crc32c(!0, &raw[..0x3FC]);
        put32(raw, 0x3FC, sum);
    }
}
