//! Removing names, and freeing inodes that have none left.

use super::super::Ext4;
use super::super::attr::{Attr, Context, FileKind, Timestamp};
use super::super::error::{FsError, Result, errno};
use super::super::inode::Inode;
use super::super::tx::{CREDITS, Tx};
use super::super::types::InodeNo;
use super::{check_mutable, check_name, drop_link, drop_subdirectory, is_short_symlink};

/// Inodes freed in one handle at most: the core is locked meanwhile.
const EVICTIONS_MAX: usize = 16;
/// Blocks changed in a handle at which no further inode is begun: one may need as many again.
const EVICTION_CREDITS: usize = CREDITS / 2;

impl Ext4 {
    /// Removes a name of what is no directory. Gives the attributes behind it: with no links left, the inode lives on the orphan
    /// list until [`Ext4::evict`].
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `EPERM` where inode or directory is immutable or append-only.
    pub fn unlink(&self, context: Context, parent: InodeNo, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        self.with_tx(context, CREDITS, |tx| {
            let mut dir = tx.core.directory(parent)?;
            let found = tx.core.find(&dir, name)?;
            let mut inode = tx.core.named(&dir, &found)?;
            if inode.is_dir() {
                return errno(libc::EISDIR);
            }
            check_mutable(&dir)?;
            check_mutable(&inode)?;
            tx.dir_remove(&dir, &found)?;
            tx.finish_removal(&mut dir, &mut inode)
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, `EINVAL` for ".", `EPERM` as for [`Ext4::unlink`].
    pub fn rmdir(&self, context: Context, parent: InodeNo, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        match name {
            b"." => return errno(libc::EINVAL),
            b".." => return errno(libc::ENOTEMPTY),
            _ => {}
        }
        self.with_tx(context, CREDITS, |tx| {
            let mut dir = tx.core.directory(parent)?;
            let found = tx.core.find(&dir, name)?;
            let mut inode = tx.core.named(&dir, &found)?;
            if !inode.is_dir() {
                return errno(libc::ENOTDIR);
            }
            check_mutable(&dir)?;
            check_mutable(&inode)?;
            if !tx.core.dir_is_empty(&inode)? {
                return errno(libc::ENOTEMPTY);
            }
            tx.dir_remove(&dir, &found)?;
            drop_subdirectory(&mut dir);
            tx.finish_removal(&mut dir, &mut inode)
        })
    }

    /// The last use of an inode without links has ended: frees it, a huge one over several transactions. Does nothing if it has
    /// links, or is free already.
    ///
    /// # Errors
    /// `WouldBlock` (go on with the same call), `Corrupt`, I/O errors; the rest is then left to the next mount.
    pub fn evict(&self, context: Context, ino: InodeNo) -> Result<()> {
        loop {
            let waits =
                self.with_core(|core| Ok(core.orphans.contains(ino) && core.inode_raw(ino)?.links == 0))?;
            if !waits || self.with_tx(context, CREDITS, |tx| tx.evict_step(ino))? {
                return Ok(());
            }
        }
    }
}

impl Ext4 {
    /// As [`Ext4::evict`] for each of them, with several in one handle. Gives those that could not be freed, and why.
    pub fn evict_all(&self, context: Context, inodes: &[InodeNo]) -> Vec<(InodeNo, FsError)> {
        let mut failed = Vec::new();
        let mut rest = inodes;
        while let Some(first) = rest.first() {
            match self.with_tx(context, CREDITS, |tx| tx.evict_several(rest)) {
                Ok(freed) => rest = &rest[freed..],
                // It changed nothing, and one of them is why: they are freed one by one from here on.
                Err(_) => {
                    if let Err(error) = self.evict(context, *first) {
                        failed.push((*first, error));
                    }
                    rest = &rest[1..];
                }
            }
        }
        failed
    }
}

impl Tx<'_> {
    /// Frees as many of these as one handle may; none if the first one needs another handle.
    fn evict_several(&mut self, inodes: &[InodeNo]) -> Result<usize> {
        let mut freed = 0;
        for ino in inodes.iter().take(EVICTIONS_MAX) {
            if freed > 0 && self.changed_blocks() >= EVICTION_CREDITS {
                break;
            }
            if self.core.orphans.contains(*ino) && !self.evict_step(*ino)? {
                break;
            }
            freed += 1;
        }
        Ok(freed)
    }

    pub(super) fn finish_removal(&mut self, dir: &mut Inode, inode: &mut Inode) -> Result<Attr> {
        let now = Timestamp::now();
        drop_link(self, inode, now)?;
        dir.mtime = now;
        dir.ctime = now;
        self.put_touched(dir, true)?;
        self.put_touched(inode, true)?;
        Ok(inode.attr())
    }

    /// One handle's part of freeing an inode on the orphan list; true when it is gone.
    pub(super) fn evict_step(&mut self, ino: InodeNo) -> Result<bool> {
        let mut inode = self.core.inode_raw(ino)?;
        if inode.links > 0 || !self.core.orphans.contains(ino) {
            return Ok(true);
        }
        let Some(kind) = FileKind::from_mode(inode.mode) else {
            return Err(FsError::corrupt(format!("inode: mode {:#o}", inode.mode), Some(ino), None));
        };
        let has_blocks = match kind {
            FileKind::Regular | FileKind::Directory => true,
            FileKind::Symlink => !is_short_symlink(&inode),
            _ => false,
        };
        if has_blocks && !self.free_file_blocks(&mut inode, 0)? {
            self.put_inode(&inode)?;
            return Ok(false);
        }
        self.release_xattr_block(&mut inode)?;
        self.orphan_remove(&mut inode)?;
        inode.size = 0;
        inode.dtime = Timestamp::now().seconds.clamp(1, i64::from(u32::MAX)) as u32;
        self.put_inode(&inode)?;
        self.free_inode(ino, kind)?;
        Ok(true)
    }
}
