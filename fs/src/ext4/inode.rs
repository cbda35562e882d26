//! Inodes. Source: `struct ext4_inode`; 128 bytes, then the extra fields, then in-inode xattrs.

use super::attr::{Attr, FileKind, Timestamp};
use super::bytes::{le16, le32, put16, put32};
use super::checksum::crc32c;
use super::error::{FsError, Result, errno};
use super::superblock::{ChecksumKind, Geometry, feature};
use super::tx::{Core, Tx};
use super::types::{BlockNo, InodeNo};

/// `i_flags` that we know.
pub(crate) mod flag {
    /// Directory with hashed index.
    pub(crate) const INDEX: u32 = 0x1000;
    /// `i_blocks` counts file system blocks.
    pub(crate) const HUGE_FILE: u32 = 0x4_0000;
    /// `i_block` holds an extent tree.
    pub(crate) const EXTENTS: u32 = 0x8_0000;
    /// Never changed.
    pub(crate) const IMMUTABLE: u32 = 0x10;
    /// Only appended to.
    pub(crate) const APPEND: u32 = 0x20;
}

/// Type bits of `i_mode`.
const MODE_TYPE: u16 = 0xF000;

/// An inode, decoded. `block` is `i_block`: extent tree root, short symlink or device number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) ino: InodeNo,
    /// Type and permissions.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    /// Hard links; a directory with more than 65,000 shows 1.
    pub(crate) links: u16,
    /// Blocks in use, in units of 512 bytes.
    pub(crate) blocks_512: u64,
    pub(crate) flags: u32,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) crtime: Timestamp,
    /// Time of deletion, or the next inode of the orphan list.
    pub(crate) dtime: u32,
    pub(crate) generation: u32,
    /// Block with xattrs; 0: none.
    pub(crate) xattr_block: u64,
    pub(crate) block: [u8; 60],
    /// Bytes of extra fields behind the first 128 (0 with 128-byte inodes).
    pub(crate) extra_isize: u16,
    pub(crate) version: u64,
}

impl FileKind {
    /// From the type bits of a mode.
    pub(crate) fn from_mode(mode: u16) -> Option<Self> {
        Some(match mode & MODE_TYPE {
            0x8000 => Self::Regular,
            0x4000 => Self::Directory,
            0xA000 => Self::Symlink,
            0x2000 => Self::CharDevice,
            0x6000 => Self::BlockDevice,
            0x1000 => Self::Fifo,
            0xC000 => Self::Socket,
            _ => return None,
        })
    }
    /// The type bits of a mode.
    pub(crate) fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => 0x8000,
            Self::Directory => 0x4000,
            Self::Symlink => 0xA000,
            Self::CharDevice => 0x2000,
            Self::BlockDevice => 0x6000,
            Self::Fifo => 0x1000,
            Self::Socket => 0xC000,
        }
    }
}

fn decode_time(raw: &[u8], at: usize, extra: Option<usize>) -> Timestamp {
    let low = i64::from(le32(raw, at) as i32);
    match extra {
        Some(extra_at) => {
            let extra = le32(raw, extra_at);
            Timestamp {
                seconds: low + (i64::from(extra & 3) << 32),
                nanoseconds: (extra >> 2).min(999_999_999),
            }
        }
        None => Timestamp { seconds: low, nanoseconds: 0 },
    }
}

/// First and last second that a time field can hold, with and without its extra field.
const fn time_range(extra: bool) -> (i64, i64) {
    if extra { (-(1 << 31), (1 << 34) - (1 << 31) - 1) } else { (-(1 << 31), (1 << 31) - 1) }
}

fn encode_time(raw: &mut [u8], at: usize, extra: Option<usize>, time: Timestamp) {
    match extra {
        Some(extra_at) => {
            let (first, last) = time_range(true);
            let seconds = time.seconds.clamp(first, last);
            put32(raw, at, seconds as u32);
            let epoch = ((seconds - i64::from(seconds as i32)) >> 32) as u32 & 3;
            put32(raw, extra_at, epoch | time.nanoseconds << 2);
        }
        None => {
            let (first, last) = time_range(false);
            put32(raw, at, time.seconds.clamp(first, last) as u32);
        }
    }
}

/// Places of the extra time fields; each exists only if `extra_isize` reaches behind it.
const CTIME_EXTRA: usize = 0x84;
const MTIME_EXTRA: usize = 0x88;
const ATIME_EXTRA: usize = 0x8C;
const CRTIME: usize = 0x90;
const CRTIME_EXTRA: usize = 0x94;
const VERSION_HIGH: usize = 0x98;
const CHECKSUM_LOW: usize = 0x7C;
const CHECKSUM_HIGH: usize = 0x82;

fn extra_field(extra_isize: u16, at: usize) -> Option<usize> {
    (at + 4 <= 128 + usize::from(extra_isize)).then_some(at)
}

/// CRC32C of the raw inode, its checksum fields taken as zero.
fn checksum(geometry: &Geometry, ino: InodeNo, raw: &[u8], has_high: bool) -> u32 {
    let crc = crc32c(geometry.checksum_seed, &ino.0.to_le_bytes());
    let crc = crc32c(crc, &raw[0x64..0x68]);
    let crc = crc32c(crc, &raw[..CHECKSUM_LOW]);
    let crc = crc32c(crc, &[0, 0]);
    let crc = crc32c(crc, &raw[CHECKSUM_LOW + 2..128]);
    if raw.len() == 128 {
        return crc;
    }
    let crc = crc32c(crc, &raw[128..CHECKSUM_HIGH]);
    if has_high {
        let crc = crc32c(crc, &[0, 0]);
        crc32c(crc, &raw[CHECKSUM_HIGH + 2..])
    } else {
        crc32c(crc, &raw[CHECKSUM_HIGH..])
    }
}

impl Inode {
    fn decode(ino: InodeNo, raw: &[u8], block_size: u32) -> Self {
        let extra_isize = if raw.len() > 128 { le16(raw, 0x80) } else { 0 };
        let flags = le32(raw, 0x20);
        let blocks = u64::from(le32(raw, 0x1C)) | u64::from(le16(raw, 0x74)) << 32;
        let mut block = [0; 60];
        block.copy_from_slice(&raw[0x28..0x64]);
        let extra = |at| extra_field(extra_isize, at);
        Self {
            ino,
            mode: le16(raw, 0x0),
            uid: u32::from(le16(raw, 0x2)) | u32::from(le16(raw, 0x78)) << 16,
            gid: u32::from(le16(raw, 0x18)) | u32::from(le16(raw, 0x7A)) << 16,
            size: u64::from(le32(raw, 0x4)) | u64::from(le32(raw, 0x6C)) << 32,
            links: le16(raw, 0x1A),
            blocks_512: if flags & flag::HUGE_FILE != 0 {
                blocks * u64::from(block_size / 512)
            } else {
                blocks
            },
            flags,
            atime: decode_time(raw, 0x8, extra(ATIME_EXTRA)),
            mtime: decode_time(raw, 0x10, extra(MTIME_EXTRA)),
            ctime: decode_time(raw, 0xC, extra(CTIME_EXTRA)),
            crtime: match extra(CRTIME) {
                Some(at) => decode_time(raw, at, extra(CRTIME_EXTRA)),
                None => Timestamp::default(),
            },
            dtime: le32(raw, 0x14),
            generation: le32(raw, 0x64),
            xattr_block: u64::from(le32(raw, 0x68)) | u64::from(le16(raw, 0x76)) << 32,
            block,
            extra_isize,
            version: u64::from(le32(raw, 0x24))
                | extra(VERSION_HIGH).map_or(0, |at| u64::from(le32(raw, at)) << 32),
        }
    }

    fn encode(&self, raw: &mut [u8], geometry: &Geometry) {
        put16(raw, 0x0, self.mode);
        put16(raw, 0x2, self.uid as u16);
        put16(raw, 0x78, (self.uid >> 16) as u16);
        put16(raw, 0x18, self.gid as u16);
        put16(raw, 0x7A, (self.gid >> 16) as u16);
        put32(raw, 0x4, self.size as u32);
        put32(raw, 0x6C, (self.size >> 32) as u32);
        put16(raw, 0x1A, self.links);
        let mut flags = self.flags & !flag::HUGE_FILE;
        let mut blocks = self.blocks_512;
        if blocks >> 48 != 0 && geometry.has_ro_compat(feature::RO_COMPAT_HUGE_FILE) {
            flags |= flag::HUGE_FILE;
            blocks /= u64::from(geometry.block_size / 512);
        }
        put32(raw, 0x1C, blocks as u32);
        put16(raw, 0x74, (blocks >> 32) as u16);
        put32(raw, 0x20, flags);
        put32(raw, 0x24, self.version as u32);
        if raw.len() > 128 {
            put16(raw, 0x80, self.extra_isize);
        }
        let extra = |at| extra_field(self.extra_isize, at);
        encode_time(raw, 0x8, extra(ATIME_EXTRA), self.atime);
        encode_time(raw, 0x10, extra(MTIME_EXTRA), self.mtime);
        encode_time(raw, 0xC, extra(CTIME_EXTRA), self.ctime);
        if let Some(at) = extra(CRTIME) {
            encode_time(raw, at, extra(CRTIME_EXTRA), self.crtime);
        }
        if let Some(at) = extra(VERSION_HIGH) {
            put32(raw, at, (self.version >> 32) as u32);
        }
        put32(raw, 0x14, self.dtime);
        put32(raw, 0x64, self.generation);
        put32(raw, 0x68, self.xattr_block as u32);
        put16(raw, 0x76, (self.xattr_block >> 32) as u16);
        raw[0x28..0x64].copy_from_slice(&self.block);
        if geometry.checksums == ChecksumKind::Crc32c {
            let has_high = self.extra_isize >= 4;
            let sum = checksum(geometry, self.ino, raw, has_high);
            put16(raw, CHECKSUM_LOW, sum as u16);
            if has_high {
                put16(raw, CHECKSUM_HIGH, (sum >> 16) as u16);
            }
        }
    }

    /// An inode as it is made: no blocks, no links, given mode and times now.
    pub(crate) fn new(
        ino: InodeNo,
        mode: u16,
        uid: u32,
        gid: u32,
        generation: u32,
        geometry: &Geometry,
    ) -> Self {
        let now = Timestamp::now();
        Self {
            ino,
            mode,
            uid,
            gid,
            size: 0,
            links: 0,
            blocks_512: 0,
            flags: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            dtime: 0,
            generation,
            xattr_block: 0,
            block: [0; 60],
            extra_isize: geometry.want_extra_isize,
            version: 1,
        }
    }

    /// Kind of file. Checked when the inode was read.
    pub(crate) fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode).unwrap_or(FileKind::Regular)
    }
    /// Is it a directory?
    pub(crate) fn is_dir(&self) -> bool {
        self.kind() == FileKind::Directory
    }
    /// Has `flag`?
    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
    /// Seed of the checksums of blocks that belong to this inode (extent blocks, directory blocks).
    pub(crate) fn checksum_seed(&self, geometry: &Geometry) -> u32 {
        crc32c(crc32c(geometry.checksum_seed, &self.ino.0.to_le_bytes()), &self.generation.to_le_bytes())
    }
    /// Device number in the kernel's 32-bit encoding (`new_encode_dev`); 0 if it is no device.
    pub(crate) fn rdev(&self) -> u32 {
        if !matches!(self.kind(), FileKind::CharDevice | FileKind::BlockDevice) {
            return 0;
        }
        match le32(&self.block, 0) {
            0 => le32(&self.block, 4),
            old => (old & 0xFF) | ((old >> 8) & 0xFF) << 8,
        }
    }
    /// Stores a device number, in the old form where it fits, as the kernel does.
    pub(crate) fn set_rdev(&mut self, rdev: u32) {
        let (major, minor) = ((rdev >> 8) & 0xFFF, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00));
        if major < 256 && minor < 256 {
            put32(&mut self.block, 0, major << 8 | minor);
        } else {
            put32(&mut self.block, 0, 0);
            put32(&mut self.block, 4, rdev);
        }
    }
    /// A time as the image keeps it: whole seconds where the inode has no room for more, and no further away than the
    /// field reaches (the kernel cuts fractions at both ends too).
    fn kept(&self, time: Timestamp, extra_at: usize) -> Timestamp {
        let extra = extra_field(self.extra_isize, extra_at).is_some();
        let (first, last) = time_range(extra);
        let inside = first < time.seconds && time.seconds < last;
        Timestamp {
            seconds: time.seconds.clamp(first, last),
            nanoseconds: if extra && inside { time.nanoseconds } else { 0 },
        }
    }
    /// As the frontend sees it.
    pub(crate) fn attr(&self) -> Attr {
        Attr {
            ino: self.ino,
            generation: self.generation,
            kind: self.kind(),
            permissions: self.mode & 0o7777,
            links: u32::from(self.links),
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            blocks_512: self.blocks_512,
            atime: self.kept(self.atime, ATIME_EXTRA),
            mtime: self.kept(self.mtime, MTIME_EXTRA),
            ctime: self.kept(self.ctime, CTIME_EXTRA),
            crtime: self.kept(self.crtime, CRTIME_EXTRA),
            rdev: self.rdev(),
        }
    }
}

impl Core {
    /// Block of the inode table that holds an inode, and the offset there.
    ///
    /// # Errors
    /// `ESTALE` for a number that cannot be.
    pub(crate) fn inode_place(&mut self, ino: InodeNo) -> Result<(BlockNo, usize)> {
        let Some((group, index)) = self.geometry.inode_group(ino) else { return errno(libc::ESTALE) };
        let table = self.group(group)?.inode_table;
        let byte = u64::from(index) * u64::from(self.geometry.inode_size);
        let block_size = u64::from(self.geometry.block_size);
        Ok((BlockNo(table.0 + byte / block_size), (byte % block_size) as usize))
    }

    /// Reads an inode that is in use.
    ///
    /// # Errors
    /// `ESTALE` if it is free; `Corrupt` on a wrong checksum or an impossible field.
    pub(crate) fn inode(&mut self, ino: InodeNo) -> Result<Inode> {
        let inode = self.inode_raw(ino)?;
        if inode.mode == 0 || (inode.links == 0 && inode.dtime != 0 && !self.orphans.contains(ino)) {
            return errno(libc::ESTALE);
        }
        let corrupt = |what: String| FsError::corrupt(format!("inode: {what}"), Some(ino), None);
        if FileKind::from_mode(inode.mode).is_none() {
            return Err(corrupt(format!("mode {:#o}", inode.mode)));
        }
        Ok(inode)
    }

    /// Reads an inode, in use or not.
    ///
    /// # Errors
    /// `ESTALE` for an impossible number; `Corrupt` on a wrong checksum.
    pub(crate) fn inode_raw(&mut self, ino: InodeNo) -> Result<Inode> {
        let (block, offset) = self.inode_place(ino)?;
        if self.cache.peek(block).is_none() {
            // Neighbours in the table are likely to be wanted next: read an aligned run of 32 KiB of it at once.
            let run = u64::from((32 << 10) / self.geometry.block_size);
            let (group, _) = self.geometry.inode_group(ino).expect("place found above");
            let table = self.group(group)?.inode_table.0;
            let table_blocks = (u64::from(self.geometry.inodes_per_group)
                * u64::from(self.geometry.inode_size))
            .div_ceil(u64::from(self.geometry.block_size));
            let first = table + (block.0 - table) / run * run;
            self.cache.load(BlockNo(first), run.min(table + table_blocks - first) as usize)?;
        }
        let geometry = self.geometry.clone();
        let data = self.block(block)?;
        let raw = &data[offset..offset + usize::from(geometry.inode_size)];
        let inode = Inode::decode(ino, raw, geometry.block_size);
        let corrupt = |what: String| FsError::corrupt(format!("inode: {what}"), Some(ino), Some(block));
        if usize::from(inode.extra_isize) + 128 > raw.len() || !inode.extra_isize.is_multiple_of(4) {
            return Err(corrupt(format!("extra size {}", inode.extra_isize)));
        }
        if geometry.checksums == ChecksumKind::Crc32c && raw.iter().any(|byte| *byte != 0) {
            let has_high = inode.extra_isize >= 4;
            let sum = checksum(&geometry, ino, raw, has_high);
            let found = u32::from(le16(raw, CHECKSUM_LOW))
                | if has_high { u32::from(le16(raw, CHECKSUM_HIGH)) << 16 } else { sum & 0xFFFF_0000 };
            if raw.len() == 128 && found & 0xFFFF != sum & 0xFFFF || raw.len() > 128 && found != sum {
                return Err(corrupt("wrong checksum".into()));
            }
        }
        Ok(inode)
    }
}

impl Tx<'_> {
    /// Writes an inode back, with its checksum. In-inode xattrs behind the extra fields stay; [`Tx::wipe_inode`] clears them.
    ///
    /// # Errors
    /// As for [`Tx::modify`].
    pub(crate) fn put_inode(&mut self, inode: &Inode) -> Result<()> {
        let (block, offset) = self.core.inode_place(inode.ino)?;
        let geometry = self.core.geometry.clone();
        let data = self.modify(block)?;
        inode.encode(&mut data[offset..offset + usize::from(geometry.inode_size)], &geometry);
        Ok(())
    }

    /// Zeroes an inode's bytes before it is made anew (checksum by the `put_inode` that must follow).
    ///
    /// # Errors
    /// As for [`Tx::modify`].
    pub(crate) fn wipe_inode(&mut self, ino: InodeNo) -> Result<()> {
        let (block, offset) = self.core.inode_place(ino)?;
        let size = usize::from(self.core.geometry.inode_size);
        self.modify(block)?[offset..offset + size].fill(0);
        Ok(())
    }
}
