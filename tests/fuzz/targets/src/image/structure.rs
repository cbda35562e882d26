//! What lies where in an undamaged image: a second, small reader of ext4, which believes everything.

use super::raw::{be32, le16, le32};

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Superblock,
    Descriptors,
    BlockBitmap(u32),
    InodeBitmap(u32),
    /// First inode of the block.
    Inodes(u32),
    /// Node of an inode's extent tree.
    Extents(u32),
    /// Linear directory block.
    Directory(u32),
    /// Root or node of an index.
    IndexRoot(u32),
    IndexNode(u32),
    Attributes(u32),
    /// Target of a symbolic link, or data.
    Data(u32),
    JournalSuperblock,
    Journal,
}

/// A block and what it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) block: u64,
    pub(super) kind: Kind,
}

/// An inode in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) number: u32,
    /// Its byte in the image.
    pub(super) at: usize,
}

/// An image's structures.
pub(super) struct Structure {
    pub(super) block_size: usize,
    pub(super) inode_size: usize,
    pub(super) descriptor_size: usize,
    pub(super) groups: u32,
    pub(super) inodes_per_group: u32,
    pub(super) blocks_per_group: u32,
    pub(super) inode_count: u32,
    pub(super) metadata_csum: bool,
    pub(super) group_csum: bool,
    pub(super) seed: u32,
    pub(super) uuid: [u8; 16],
    pub(super) places: Vec<Place>,
    pub(super) used: Vec<Used>,
    /// The journal's blocks, in its order.
    pub(super) journal: Vec<u64>,
}

const EXTENTS: u32 = 0x8_0000;
const INDEX: u32 = 0x1000;

impl Structure {
    pub(super) fn read(image: &[u8]) -> Self {
        let raw = &image[1024..2048];
        let block_size = 1024 << le32(raw, 0x18);
        let (incompat, ro_compat) = (le32(raw, 0x60), le32(raw, 0x64));
        let wide = incompat & 0x80 != 0;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&raw[0x68..0x78]);
        let (blocks_per_group, inode_count) = (le32(raw, 0x20), le32(raw, 0));
        let first = le32(raw, 0x14);
        let mut this = Self {
            block_size,
            inode_size: usize::from(le16(raw, 0x58)),
            descriptor_size: if wide { usize::from(le16(raw, 0xFE)) } else { 32 },
            groups: (le32(raw, 4) - first).div_ceil(blocks_per_group),
            inodes_per_group: le32(raw, 0x28),
            blocks_per_group,
            inode_count,
            metadata_csum: ro_compat & 0x400 != 0,
            group_csum: ro_compat & 0x10 != 0,
            seed: if incompat & 0x2000 != 0 { le32(raw, 0x270) } else { super::raw::crc32c(!0, &uuid) },
            uuid,
            places: Vec::new(),
            used: Vec::new(),
            journal: Vec::new(),
        };
        this.add(u64::from(first), Kind::Superblock);
        let table = this.descriptors_at();
        let descriptor_bytes = this.groups as usize * this.descriptor_size;
        for block in table / block_size..(table + descriptor_bytes).div_ceil(block_size) {
            this.add(block as u64, Kind::Descriptors);
        }
        for group in 0..this.groups {
            let descriptor = &image[table + group as usize * this.descriptor_size..];
            this.add(u64::from(le32(descriptor, 0)), Kind::BlockBitmap(group));
            this.add(u64::from(le32(descriptor, 4)), Kind::InodeBitmap(group));
            let inode_table = u64::from(le32(descriptor, 8));
            let per_block = (block_size / this.inode_size) as u32;
            for index in 0..this.inodes_per_group / per_block {
                let number = group * this.inodes_per_group + index * per_block + 1;
                this.add(inode_table + u64::from(index), Kind::Inodes(number));
            }
            let bitmap = &image[le32(descriptor, 4) as usize * block_size..];
            for bit in 0..this.inodes_per_group {
                let at = inode_table as usize * block_size + bit as usize * this.inode_size;
                let is_used = bitmap[bit as usize / 8] >> (bit % 8) & 1 == 1 && le16(image, at) != 0;
                if is_used {
                    this.used.push(Used { number: group * this.inodes_per_group + bit + 1, at });
                }
            }
        }
        for used in this.used.clone() {
            this.inode(image, used);
        }
        this.places.sort_by_key(|place| (place.kind, place.block));
        this
    }

    fn add(&mut self, block: u64, kind: Kind) {
        self.places.push(Place { block, kind });
    }

    /// Byte at which the group descriptors begin.
    pub(super) fn descriptors_at(&self) -> usize {
        if self.block_size == 1024 { 2048 } else { self.block_size }
    }

    fn inode(&mut self, image: &[u8], used: Used) {
        let raw = &image[used.at..used.at + self.inode_size];
        let number = used.number;
        let attributes = u64::from(le32(raw, 0x68));
        if attributes != 0 {
            self.add(attributes, Kind::Attributes(number));
        }
        let flags = le32(raw, 0x20);
        let is_dir = le16(raw, 0) & 0xF000 == 0x4000;
        if flags & EXTENTS == 0 {
            return;
        }
        let mut blocks = Vec::new();
        self.extents(image, number, &raw[0x28..0x64], &mut blocks);
        if number == 8 {
            self.journal = blocks.iter().map(|(_, block)| *block).collect();
            self.add(self.journal[0], Kind::JournalSuperblock);
            for index in 1..self.journal.len() {
                self.add(self.journal[index], Kind::Journal);
            }
            return;
        }
        for (index, block) in blocks {
            let content = &image[block as usize * self.block_size..][..self.block_size];
            let kind = match (is_dir, flags & INDEX != 0) {
                (false, _) => Kind::Data(number),
                (true, true) if index == 0 => Kind::IndexRoot(number),
                // A node is an unused record as long as the block.
                (true, true) if le32(content, 0) == 0 && usize::from(le16(content, 4)) == self.block_size => {
                    Kind::IndexNode(number)
                }
                (true, _) => Kind::Directory(number),
            };
            self.add(block, kind);
        }
    }

    fn extents(&mut self, image: &[u8], number: u32, node: &[u8], blocks: &mut Vec<(u32, u64)>) {
        for entry in node[12..].chunks_exact(12).take(usize::from(le16(node, 2))) {
            if le16(node, 6) == 0 {
                let (first, count) = (le32(entry, 0), u32::from(le16(entry, 4)));
                let start = u64::from(le32(entry, 8));
                if count <= 32768 {
                    blocks.extend((0..count).map(|at| (first + at, start + u64::from(at))));
                }
                continue;
            }
            let child = u64::from(le32(entry, 4));
            self.add(child, Kind::Extents(number));
            let content = &image[child as usize * self.block_size..][..self.block_size];
            self.extents(image, number, content, blocks);
        }
    }

    /// Where the log starts, as the journal's superblock in `image` says, and the blocks of its journal that count.
    pub(super) fn log(&self, image: &[u8]) -> (usize, std::ops::Range<usize>) {
        let raw = &image[self.journal[0] as usize * self.block_size..];
        let end = (be32(raw, 0x10) as usize).min(self.journal.len());
        (be32(raw, 0x1C) as usize, be32(raw, 0x14) as usize..end)
    }
}
