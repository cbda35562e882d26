//! Taking and freeing inode numbers in a handle.

use super::super::attr::FileKind;
use super::super::cache::Role;
use super::super::error::{FsError, Result, errno};
use super::super::group::{GroupDesc, INODE_UNINIT};
use super::super::tx::{Core, Tx};
use super::super::types::{GroupNo, InodeNo};
use super::UNREAD;
use super::layout::{bitmap_checksum, check_bitmap, has_group_flags};
use super::view::{first_zero, set_bits};

/// Groups looked at for the place of a new top-level directory.
const DIRECTORY_SAMPLES: u32 = 32;

impl Core {
    fn group_free_inodes(&mut self, group: GroupNo) -> Result<u32> {
        if self.alloc.groups[group.0 as usize].free_inodes == UNREAD {
            let free = self.group(group)?.free_inodes;
            self.alloc.groups[group.0 as usize].free_inodes = free;
        }
        Ok(self.alloc.groups[group.0 as usize].free_inodes)
    }

    /// The first group from `from` on, round about, with a free inode.
    fn next_group_with_inodes(&mut self, from: GroupNo) -> Result<GroupNo> {
        let groups = self.geometry.group_count;
        for step in 0..groups {
            let group = GroupNo((from.0 + step) % groups);
            if self.group_free_inodes(group)? > 0 {
                return Ok(group);
            }
        }
        errno(libc::ENOSPC)
    }

    /// Where a new directory goes. Directories under the root are spread over the groups, to give each tree room; those
    /// below stay with their parent while its group is not crowded (after Orlov, as the kernel).
    fn directory_group(&mut self, parent: InodeNo) -> Result<GroupNo> {
        let geometry = self.geometry.clone();
        let groups = geometry.group_count;
        let average_inodes = (self.free_inodes / u64::from(groups)) as u32;
        let average_blocks = (self.free_blocks / u64::from(groups)) as u32;
        let home = geometry.inode_group(parent).map_or(GroupNo(0), |place| place.0);
        let top_level = parent == InodeNo::ROOT;
        let start = if top_level { self.alloc.random() % groups } else { home.0 };
        let mut best: Option<(u32, GroupNo)> = None;
        for step in 0..groups.min(DIRECTORY_SAMPLES) {
            let group = GroupNo((start + step) % groups);
            let desc = self.group(group)?;
            if desc.free_inodes == 0 {
                continue;
            }
            if top_level {
                let roomy = desc.free_inodes >= average_inodes && desc.free_blocks >= average_blocks;
                if roomy && best.is_none_or(|(dirs, _)| desc.used_dirs < dirs) {
                    best = Some((desc.used_dirs, group));
                }
            } else if desc.free_inodes >= average_inodes / 4 && desc.free_blocks >= average_blocks / 4 {
                return Ok(group);
            }
        }
        match best {
            Some((_, group)) => Ok(group),
            None => self.next_group_with_inodes(home),
        }
    }
}

impl Tx<'_> {
    /// Allocates an inode number near `parent` (directories are spread over groups, as the kernel's Orlov does).
    ///
    /// # Errors
    /// `ENOSPC`.
    pub(crate) fn alloc_inode(&mut self, parent: InodeNo, kind: FileKind) -> Result<InodeNo> {
        let geometry = self.core.geometry.clone();
        if self.core.free_inodes == 0 {
            return errno(libc::ENOSPC);
        }
        let mut group = if kind == FileKind::Directory {
            self.core.directory_group(parent)?
        } else {
            let home = geometry.inode_group(parent).map_or(GroupNo(0), |place| place.0);
            self.core.next_group_with_inodes(home)?
        };
        // A group's count may include nothing but numbers below the first for files; go on behind it then.
        for _ in 0..geometry.group_count {
            let mut desc = self.core.group(group)?;
            if let Some(index) = self.free_index(group, &desc)? {
                self.take_inode(group, &mut desc, index, kind)?;
                return Ok(InodeNo(group.0 * geometry.inodes_per_group + index + 1));
            }
            group = self.core.next_group_with_inodes(GroupNo((group.0 + 1) % geometry.group_count))?;
        }
        errno(libc::ENOSPC)
    }

    fn free_index(&mut self, group: GroupNo, desc: &GroupDesc) -> Result<Option<u32>> {
        let geometry = self.core.geometry.clone();
        let reserved = (geometry.first_inode - 1).saturating_sub(group.0 * geometry.inodes_per_group);
        let from = self.core.alloc.groups[group.0 as usize].first_free_inode.max(reserved);
        if has_group_flags(&geometry) && desc.flags & INODE_UNINIT != 0 {
            return Ok(Some(from).filter(|from| *from < geometry.inodes_per_group));
        }
        let place = desc.inode_bitmap;
        let sum = desc.inode_bitmap_checksum;
        let bitmap = self.core.block_checked(place, Role::InodeBitmap(group), |bitmap| {
            check_bitmap(&geometry, bitmap, geometry.inodes_per_group, sum, "inode bitmap", place)
        })?;
        Ok(first_zero(&bitmap, from, geometry.inodes_per_group))
    }

    fn take_inode(&mut self, group: GroupNo, desc: &mut GroupDesc, index: u32, kind: FileKind) -> Result<()> {
        let geometry = self.core.geometry.clone();
        let flags = has_group_flags(&geometry);
        let bits = geometry.inodes_per_group;
        if flags {
            // As the kernel: a group with inodes has a block bitmap.
            self.init_block_bitmap(group, desc)?;
        }
        let bitmap = if flags && desc.flags & INODE_UNINIT != 0 {
            let bitmap = self.create(desc.inode_bitmap)?;
            set_bits(bitmap, bits, geometry.block_size * 8 - bits, true);
            desc.flags &= !INODE_UNINIT;
            desc.unused_inodes = bits;
            bitmap
        } else {
            self.modify(desc.inode_bitmap)?
        };
        let right = set_bits(bitmap, index, 1, true);
        desc.inode_bitmap_checksum = bitmap_checksum(&geometry, bitmap, bits);
        if !right || desc.free_inodes == 0 {
            let what =
                format!("inode bitmap of group {group}: inode index {index} does not fit the descriptor");
            return Err(FsError::corrupt(what, None, Some(desc.inode_bitmap)));
        }
        desc.free_inodes -= 1;
        if flags {
            desc.unused_inodes = desc.unused_inodes.min(bits - index - 1);
        }
        if kind == FileKind::Directory {
            desc.used_dirs += 1;
        }
        self.put_group(group, desc)?;
        self.note_inode_counts(group, desc.free_inodes, index + 1);
        self.core.free_inodes -= 1;
        Ok(())
    }

    /// Keeps the in-memory counts in step, also when the handle is put back.
    fn note_inode_counts(&mut self, group: GroupNo, free: u32, first_free: u32) {
        let state = &mut self.core.alloc.groups[group.0 as usize];
        let old = (state.free_inodes, state.first_free_inode);
        state.free_inodes = free;
        state.first_free_inode = first_free;
        self.core.counts_changed = true;
        self.on_rollback(move |core| {
            let state = &mut core.alloc.groups[group.0 as usize];
            (state.free_inodes, state.first_free_inode) = old;
        });
    }

    /// Frees an inode number.
    ///
    /// # Errors
    /// `Corrupt` if it is free already.
    pub(crate) fn free_inode(&mut self, ino: InodeNo, kind: FileKind) -> Result<()> {
        let geometry = self.core.geometry.clone();
        let Some((group, index)) = geometry.inode_group(ino) else { return errno(libc::ESTALE) };
        self.core.alloc.drop_window(ino);
        let mut desc = self.core.group(group)?;
        let wrong = |what: &str| {
            FsError::corrupt(format!("inode bitmap: {what}"), Some(ino), Some(desc.inode_bitmap))
        };
        if ino.0 < geometry.first_inode && ino != InodeNo::ROOT {
            return Err(wrong("freeing of a reserved inode"));
        }
        if has_group_flags(&geometry) && desc.flags & INODE_UNINIT != 0 {
            return Err(wrong("freeing of an inode in an unused group"));
        }
        let (place, sum) = (desc.inode_bitmap, desc.inode_bitmap_checksum);
        self.core.block_checked(place, Role::InodeBitmap(group), |bitmap| {
            check_bitmap(&geometry, bitmap, geometry.inodes_per_group, sum, "inode bitmap", place)
        })?;
        let bitmap = self.modify(place)?;
        let right = set_bits(bitmap, index, 1, false);
        let sum = bitmap_checksum(&geometry, bitmap, geometry.inodes_per_group);
        if !right || desc.free_inodes >= geometry.inodes_per_group {
            return Err(wrong("the inode is free already"));
        }
        desc.inode_bitmap_checksum = sum;
        desc.free_inodes += 1;
        if kind == FileKind::Directory {
            desc.used_dirs =
                desc.used_dirs.checked_sub(1).ok_or_else(|| wrong("no directories are counted"))?;
        }
        self.put_group(group, &desc)?;
        let first_free = self.core.alloc.groups[group.0 as usize].first_free_inode.min(index);
        self.note_inode_counts(group, desc.free_inodes, first_free);
        self.core.free_inodes += 1;
        Ok(())
    }
}
