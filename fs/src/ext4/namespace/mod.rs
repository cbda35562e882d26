//! Operations on names and inodes. Each runs in one handle: it happens as a whole or not at all.
//!
//! Who may do what is decided by the kernel before it asks (`default_permissions`); here stand only the rules that need the
//! file system: immutable and append-only inodes, link counts, what a directory must be.

mod make;
mod remove;
mod rename;
mod statfs;

use super::Ext4;
use super::attr::{Attr, Context, DirEntry, FileKind, SetAttr, Timestamp};
use super::dir::{Found, NAME_MAX};
use super::error::{FsError, Result, errno};
use super::inode::{Inode, flag};
use super::tx::{CREDITS, Core, Tx};
use super::types::{FileBlock, InodeNo};
use super::xattr::NameIndex;
use crate::ext4::attr::XattrMode;

/// Most links of an inode (`EXT4_LINK_MAX`); a directory beyond shows 1 under `dir_nlink`.
const LINKS_MAX: u16 = 65_000;
/// `s_feature_ro_compat`: directories may have more links than the field holds.
const RO_COMPAT_DIR_NLINK: u32 = 0x20;
/// Bytes of a symbolic link's target that fit into the inode, with a closing zero byte.
const SHORT_SYMLINK_MAX: usize = 59;

/// Checks a name that is to be looked up or changed.
fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() {
        return errno(libc::ENOENT);
    }
    if name.len() > NAME_MAX {
        return errno(libc::ENAMETOOLONG);
    }
    if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return errno(libc::EINVAL);
    }
    Ok(())
}

fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// Refuses changes of what is immutable or append-only.
fn check_mutable(inode: &Inode) -> Result<()> {
    if inode.has(flag::IMMUTABLE) || inode.has(flag::APPEND) { errno(libc::EPERM) } else { Ok(()) }
}

/// Whether a symbolic link's target lies in the inode.
fn is_short_symlink(inode: &Inode) -> bool {
    inode.kind() == FileKind::Symlink && !inode.has(flag::EXTENTS) && inode.size <= SHORT_SYMLINK_MAX as u64
}

/// A directory gains a subdirectory (`ext4_inc_count`).
fn add_subdirectory(core: &Core, dir: &mut Inode) -> Result<()> {
    let overflow = core.geometry.has_ro_compat(RO_COMPAT_DIR_NLINK) && core.dir_is_indexed(dir);
    if dir.links >= LINKS_MAX && !overflow {
        return errno(libc::EMLINK);
    }
    // 1 says "too many to count", once and for all.
    dir.links = if overflow && (dir.links >= LINKS_MAX || dir.links == 1) { 1 } else { dir.links + 1 };
    Ok(())
}

/// A directory loses a subdirectory (`ext4_dec_count`).
fn drop_subdirectory(dir: &mut Inode) {
    if dir.links > 2 {
        dir.links -= 1;
    }
}

/// An inode loses its last name, or a directory is removed: it stays, on the orphan list, until its last use ends.
fn drop_link(tx: &mut Tx<'_>, inode: &mut Inode, now: Timestamp) -> Result<()> {
    if inode.is_dir() {
        inode.links = 0;
    } else if inode.links == 0 {
        return Err(FsError::corrupt("inode: named without a link", Some(inode.ino), None));
    } else {
        inode.links -= 1;
    }
    inode.ctime = now;
    if inode.links == 0 {
        tx.orphan_add(inode)?;
    }
    Ok(())
}

impl Core {
    /// A directory that still has a name.
    fn directory(&mut self, ino: InodeNo) -> Result<Inode> {
        let dir = self.inode(ino)?;
        if !dir.is_dir() {
            return errno(libc::ENOTDIR);
        }
        if dir.links == 0 {
            return errno(libc::ENOENT);
        }
        Ok(dir)
    }

    /// The inode that a directory entry names.
    fn named(&mut self, dir: &Inode, found: &Found) -> Result<Inode> {
        match self.inode(found.ino) {
            Err(FsError::Errno(libc::ESTALE)) => {
                let what = format!("directory entry: names free inode {}", found.ino);
                Err(FsError::corrupt(what, Some(dir.ino), None))
            }
            other => other,
        }
    }

    /// Like [`Core::dir_find`], `ENOENT` if it is not there.
    fn find(&mut self, dir: &Inode, name: &[u8]) -> Result<Found> {
        self.dir_find(dir, name)?.ok_or(FsError::Errno(libc::ENOENT))
    }
}

impl Tx<'_> {
    /// Writes a changed inode; fsync of it must cover this handle.
    fn put_touched(&mut self, inode: &Inode, data: bool) -> Result<()> {
        self.put_inode(inode)?;
        self.touched(inode.ino, data);
        Ok(())
    }
}

impl Ext4 {
    /// The inode that `name` names in the directory; "." and ".." too.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENAMETOOLONG`, `ESTALE`, `Corrupt`.
    pub fn lookup(&self, parent: InodeNo, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        self.with_core(|core| {
            let dir = core.inode(parent)?;
            if !dir.is_dir() {
                return errno(libc::ENOTDIR);
            }
            if name == b"." {
                return Ok(dir.attr());
            }
            if dir.links == 0 {
                return errno(libc::ENOENT);
            }
            let found = core.find(&dir, name)?;
            Ok(core.named(&dir, &found)?.attr())
        })
    }

    /// An inode's attributes.
    ///
    /// # Errors
    /// `ESTALE` if it is free.
    pub fn getattr(&self, ino: InodeNo) -> Result<Attr> {
        self.with_core(|core| Ok(core.inode(ino)?.attr()))
    }

    /// Changes attributes. A new owner or group clears setuid, setgid and file capabilities of what is no directory (a mode
    /// given with it is taken as it is); a new mode is entered in the access ACL.
    ///
    /// # Errors
    /// `EPERM` on immutable and append-only inodes; `ESTALE`.
    pub fn setattr(&self, context: Context, ino: InodeNo, change: &SetAttr) -> Result<Attr> {
        self.with_tx(context, CREDITS, |tx| {
            let mut inode = tx.core.inode(ino)?;
            tx.apply_setattr(&mut inode, change)?;
            tx.put_touched(&inode, false)?;
            Ok(inode.attr())
        })
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` if it is none.
    pub fn readlink(&self, ino: InodeNo) -> Result<Vec<u8>> {
        self.with_core(|core| {
            let inode = core.inode(ino)?;
            if inode.kind() != FileKind::Symlink {
                return errno(libc::EINVAL);
            }
            let length = inode.size as usize;
            if is_short_symlink(&inode) {
                return Ok(inode.block[..length].to_vec());
            }
            let corrupt = |what| FsError::corrupt(format!("symbolic link: {what}"), Some(ino), None);
            if inode.size == 0 || inode.size >= u64::from(core.geometry.block_size) {
                return Err(corrupt("impossible length"));
            }
            let Some(block) = core.map_block(&inode, FileBlock(0))? else { return Err(corrupt("no block")) };
            Ok(core.block(block)?[..length].to_vec())
        })
    }

    /// All entries of a directory behind the cookie `after` (0: from the start), with "." and "..", as they are now. A directory
    /// that has been removed has none.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE`, `Corrupt`.
    pub fn read_dir(&self, ino: InodeNo, after: u64) -> Result<Vec<DirEntry>> {
        self.with_core(|core| {
            let dir = core.inode(ino)?;
            if !dir.is_dir() {
                return errno(libc::ENOTDIR);
            }
            if dir.links == 0 {
                return Ok(Vec::new());
            }
            core.dir_list(&dir, after)
        })
    }
}

impl Tx<'_> {
    /// Enters changes of attributes (see [`Ext4::setattr`]) in `inode`; the caller puts it.
    ///
    /// # Errors
    /// `EPERM` on immutable and append-only inodes.
    pub(crate) fn apply_setattr(&mut self, inode: &mut Inode, change: &SetAttr) -> Result<()> {
        let owner_changes = change.uid.is_some() || change.gid.is_some();
        if inode.has(flag::IMMUTABLE)
            || (inode.has(flag::APPEND) && (owner_changes || change.permissions.is_some()))
        {
            return errno(libc::EPERM);
        }
        if owner_changes || change.kill_privileges {
            self.kill_privileges(inode)?;
        }
        inode.uid = change.uid.unwrap_or(inode.uid);
        inode.gid = change.gid.unwrap_or(inode.gid);
        if let Some(permissions) = change.permissions {
            inode.mode = (inode.mode & 0xF000) | (permissions & 0o7777);
            if inode.kind() != FileKind::Symlink
                && let Some(mut acl) = self.core.acl(inode, NameIndex::ACL_ACCESS)?
            {
                acl.follow_mode(inode.mode);
                let value = acl.to_disk();
                self.set_xattr(inode, NameIndex::ACL_ACCESS, b"", Some(&value), XattrMode::Set)?;
            }
        }
        inode.atime = change.atime.unwrap_or(inode.atime);
        inode.mtime = change.mtime.unwrap_or(inode.mtime);
        let changed = owner_changes
            || change.kill_privileges
            || change.permissions.is_some()
            || change.atime.is_some()
            || change.mtime.is_some();
        match change.ctime {
            Some(ctime) => inode.ctime = ctime,
            None if changed => inode.ctime = Timestamp::now(),
            None => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
