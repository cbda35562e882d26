//! Makes the checksum of a changed structure right again, so that the change gets past it.

use super::raw::{be32, crc16, crc32c, le16, le32, put_be32, put16, put32};
use super::structure::{Kind, Place, Structure};

impl Structure {
    /// Recomputes what lies in the block, and what depends on it.
    pub(super) fn seal(&self, image: &mut [u8], place: Place) {
        match place.kind {
            Kind::JournalSuperblock | Kind::Journal => return self.seal_journal(image),
            Kind::Descriptors => return self.seal_descriptors(image),
            _ if !self.metadata_csum => return,
            _ => {}
        }
        let start = place.block as usize * self.block_size;
        let size = self.block_size;
        match place.kind {
            Kind::Superblock => {
                let raw = &mut image[1024..2048];
                let sum = crc32c(!0, &raw[..0x3FC]);
                put32(raw, 0x3FC, sum);
            }
            Kind::BlockBitmap(group) => {
                self.seal_bitmap(image, start, group, self.blocks_per_group / 8, 0x18, 0x38)
            }
            Kind::InodeBitmap(group) => {
                self.seal_bitmap(image, start, group, self.inodes_per_group / 8, 0x1A, 0x3A)
            }
            Kind::Inodes(first) => {
                for index in 0..size / self.inode_size {
                    let raw = &mut image[start + index * self.inode_size..][..self.inode_size];
                    self.seal_inode(raw, first + index as u32);
                }
            }
            Kind::Extents(owner) => {
                let seed = self.owner_seed(image, owner);
                let raw = &mut image[start..start + size];
                // Behind the last entry that fits.
                let tail = 12 * ((size - 12) / 12 + 1);
                let sum = crc32c(seed, &raw[..tail]);
                put32(raw, tail, sum);
            }
            Kind::Directory(owner) => {
                let seed = self.owner_seed(image, owner);
                let raw = &mut image[start..start + size];
                let sum = crc32c(seed, &raw[..size - 12]);
                put32(raw, size - 4, sum);
            }
            Kind::IndexRoot(owner) | Kind::IndexNode(owner) => {
                let seed = self.owner_seed(image, owner);
                let raw = &mut image[start..start + size];
                let base = if matches!(place.kind, Kind::IndexRoot(_)) { 32 } else { 8 };
                let count = usize::from(le16(raw, base + 2));
                let used = (base + 8 * count).min(size - 8);
                let sum = crc32c(crc32c(crc32c(seed, &raw[..used]), &raw[size - 8..size - 4]), &[0; 4]);
                put32(raw, size - 4, sum);
            }
            Kind::Attributes(_) => {
                let raw = &mut image[start..start + size];
                let seed = crc32c(self.seed, &place.block.to_le_bytes());
                let sum = crc32c(crc32c(crc32c(seed, &raw[..16]), &[0; 4]), &raw[20..]);
                put32(raw, 16, sum);
            }
            Kind::Data(_) | Kind::Descriptors | Kind::JournalSuperblock | Kind::Journal => {}
        }
    }

    /// Seed of the blocks of an inode: its number and generation, as the image has it now.
    fn owner_seed(&self, image: &[u8], owner: u32) -> u32 {
        let at = self.used.iter().find(|used| used.number == owner).map_or(0, |used| used.at);
        crc32c(crc32c(self.seed, &owner.to_le_bytes()), &image[at + 0x64..at + 0x68])
    }

    fn seal_inode(&self, raw: &mut [u8], number: u32) {
        // Never used: no checksum.
        if raw.iter().all(|byte| *byte == 0) {
            return;
        }
        let has_high = raw.len() > 128 && le16(raw, 0x80) >= 4;
        put16(raw, 0x7C, 0);
        if has_high {
            put16(raw, 0x82, 0);
        }
        let seed = crc32c(crc32c(self.seed, &number.to_le_bytes()), &raw[0x64..0x68]);
        let sum = crc32c(seed, raw);
        put16(raw, 0x7C, sum as u16);
        if has_high {
            put16(raw, 0x82, (sum >> 16) as u16);
        }
    }

    fn seal_bitmap(&self, image: &mut [u8], start: usize, group: u32, bytes: u32, low: usize, high: usize) {
        let sum = crc32c(self.seed, &image[start..start + bytes as usize]);
        let at = self.descriptors_at() + group as usize * self.descriptor_size;
        put16(image, at + low, sum as u16);
        if self.descriptor_size >= 64 {
            put16(image, at + high, (sum >> 16) as u16);
        }
        self.seal_descriptors(image);
    }

    fn seal_descriptors(&self, image: &mut [u8]) {
        let table = self.descriptors_at();
        for group in 0..self.groups {
            let raw = &mut image[table + group as usize * self.descriptor_size..][..self.descriptor_size];
            put16(raw, 0x1E, 0);
            let number = group.to_le_bytes();
            if self.metadata_csum {
                let sum = crc32c(crc32c(self.seed, &number), raw);
                put16(raw, 0x1E, sum as u16);
            } else if self.group_csum {
                let crc = crc16(crc16(crc16(!0, &self.uuid), &number), &raw[..0x1E]);
                put16(raw, 0x1E, crc16(crc, raw.get(0x20..).unwrap_or_default()));
            }
        }
    }

    /// All of the journal, from where its superblock says that the log starts.
    fn seal_journal(&self, image: &mut [u8]) {
        let size = self.block_size;
        let at = |index: usize| self.journal[index] as usize * size;
        let head = &mut image[at(0)..at(0) + 1024];
        if be32(head, 0x28) & 0x10 == 0 {
            return;
        }
        put_be32(head, 0xFC, 0);
        let sum = crc32c(!0, head);
        put_be32(head, 0xFC, sum);
        let seed = crc32c(!0, &head[0x30..0x40]);
        let (mut index, log) = self.log(image);
        if !log.contains(&index) {
            return;
        }
        let wrap = |index: usize| if index >= log.end { log.start } else { index };
        // Once around at most.
        let mut left = log.len();
        while left > 0 {
            // A descriptor is followed by the blocks that it names.
            let own = index;
            let mut new = image[at(own)..at(own) + size].to_vec();
            if be32(&new, 0) != 0xC03B_3998 {
                return;
            }
            let tid = be32(&new, 8).to_be_bytes();
            match be32(&new, 4) {
                1 => {
                    let mut tag = 12;
                    while tag + 16 <= size - 4 {
                        let flags = be32(&new, tag + 4);
                        index = wrap(index + 1);
                        left = left.saturating_sub(1);
                        let block = &image[at(index)..at(index) + size];
                        let sum = crc32c(crc32c(seed, &tid), block);
                        put_be32(&mut new, tag + 12, sum);
                        tag += if flags & 2 == 0 { 32 } else { 16 };
                        if flags & 8 != 0 || left == 0 {
                            break;
                        }
                    }
                    put_be32(&mut new, size - 4, 0);
                    let sum = crc32c(seed, &new);
                    put_be32(&mut new, size - 4, sum);
                }
                5 => {
                    put_be32(&mut new, size - 4, 0);
                    let sum = crc32c(seed, &new);
                    put_be32(&mut new, size - 4, sum);
                }
                2 => {
                    put_be32(&mut new, 0x10, 0);
                    let sum = crc32c(seed, &new);
                    put_be32(&mut new, 0x10, sum);
                }
                _ => {}
            }
            image[at(own)..at(own) + size].copy_from_slice(&new);
            index = wrap(index + 1);
            left = left.saturating_sub(1);
        }
    }

    /// Whether the superblock's block says to end changes on damage, as it stands in the image.
    pub(super) fn stops(image: &[u8]) -> bool {
        le16(image, 1024 + 0x3C) > 1 && le32(image, 1024 + 0x60) != 0
    }
}
