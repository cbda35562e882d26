//! Making inodes with names, and giving them more names.

use super::super::Ext4;
use super::super::attr::{Attr, Context, FileKind, NewNode, Timestamp, XattrMode};
use super::super::error::{FsError, Result, errno};
use super::super::inode::{Inode, flag};
use super::super::tx::{CREDITS, Tx};
use super::super::types::InodeNo;
use super::super::xattr::NameIndex;
use super::{LINKS_MAX, SHORT_SYMLINK_MAX, add_subdirectory, check_mutable, check_name, is_dots};

const SETGID: u16 = 0o2000;
/// Flags that new inodes take over from their directory: secrm, unrm, sync, nodump, noatime, notail, dirsync.
const INHERITED: u32 = 0x1 | 0x2 | 0x8 | 0x40 | 0x80 | 0x8000 | DIRSYNC;
const DIRSYNC: u32 = 0x1_0000;
/// Those of them for what is neither file nor directory: nodump, noatime.
const INHERITED_OTHER: u32 = 0x40 | 0x80;

impl NewNode<'_> {
    fn kind(&self) -> FileKind {
        match self {
            Self::Regular => FileKind::Regular,
            Self::Directory => FileKind::Directory,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Special(kind, _) => *kind,
        }
    }
}

impl Ext4 {
    /// Makes an inode and names it. `permissions` (12 bits) are cut by the directory's default ACL, or by `umask` if it has none;
    /// a setgid directory hands on its group, and the bit to directories.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT`, `ENOTDIR`, `ENAMETOOLONG`, `EMLINK`, `ENOSPC`, `EPERM` in an immutable directory.
    pub fn make(
        &self,
        context: Context,
        parent: InodeNo,
        name: &[u8],
        node: NewNode<'_>,
        permissions: u16,
        umask: u16,
    ) -> Result<Attr> {
        check_name(name)?;
        if is_dots(name) {
            return errno(libc::EEXIST);
        }
        match node {
            NewNode::Symlink([]) => return errno(libc::ENOENT),
            NewNode::Special(FileKind::Directory | FileKind::Symlink, _) => return errno(libc::EINVAL),
            _ => {}
        }
        self.with_tx(context, CREDITS, |tx| {
            let mut dir = tx.core.directory(parent)?;
            if tx.core.dir_find(&dir, name)?.is_some() {
                return errno(libc::EEXIST);
            }
            if dir.has(flag::IMMUTABLE) {
                return errno(libc::EPERM);
            }
            let inode = tx.make_inode(&mut dir, node, permissions, umask)?;
            tx.dir_insert(&mut dir, name, inode.ino, inode.kind())?;
            dir.mtime = inode.ctime;
            dir.ctime = inode.ctime;
            tx.put_touched(&dir, true)?;
            tx.put_touched(&inode, true)?;
            Ok(inode.attr())
        })
    }

    /// Gives an inode one more name.
    ///
    /// # Errors
    /// `EEXIST`, `EPERM` for directories and immutable inodes, `EMLINK`, `ENOSPC`.
    pub fn link(&self, context: Context, ino: InodeNo, parent: InodeNo, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        if is_dots(name) {
            return errno(libc::EEXIST);
        }
        self.with_tx(context, CREDITS, |tx| {
            let mut dir = tx.core.directory(parent)?;
            let mut inode = tx.core.inode(ino)?;
            if tx.core.dir_find(&dir, name)?.is_some() {
                return errno(libc::EEXIST);
            }
            if inode.is_dir() || dir.has(flag::IMMUTABLE) {
                return errno(libc::EPERM);
            }
            check_mutable(&inode)?;
            if inode.links == 0 {
                return errno(libc::ENOENT);
            }
            if inode.links >= LINKS_MAX {
                return errno(libc::EMLINK);
            }
            tx.dir_insert(&mut dir, name, ino, inode.kind())?;
            let now = Timestamp::now();
            inode.links += 1;
            inode.ctime = now;
            dir.mtime = now;
            dir.ctime = now;
            tx.put_touched(&dir, true)?;
            tx.put_touched(&inode, true)?;
            Ok(inode.attr())
        })
    }
}

impl Tx<'_> {
    /// Makes an inode below `dir`, with contents, ACLs and link count, but no name yet. A directory counts as `dir`'s link.
    /// The caller puts both.
    pub(super) fn make_inode(
        &mut self,
        dir: &mut Inode,
        node: NewNode<'_>,
        permissions: u16,
        umask: u16,
    ) -> Result<Inode> {
        let kind = node.kind();
        let geometry = self.core.geometry.clone();
        let default_acl =
            if kind == FileKind::Symlink { None } else { self.core.acl(dir, NameIndex::ACL_DEFAULT)? };
        let mut mode = kind.mode_bits() | (permissions & 0o7777);
        if kind == FileKind::Symlink {
            mode = kind.mode_bits() | 0o777;
        } else if default_acl.is_none() {
            mode &= !(umask & 0o777);
        }
        let mut gid = self.context.gid;
        if dir.mode & SETGID != 0 {
            gid = dir.gid;
            if kind == FileKind::Directory {
                mode |= SETGID;
            }
        }
        let ino = self.alloc_inode(dir.ino, kind)?;
        self.wipe_inode(ino)?;
        let generation = getrandom::u32().map_err(|error| FsError::Io(std::io::Error::other(error)))?;
        let mut inode = Inode::new(ino, mode, self.context.uid, gid, generation, &geometry);
        inode.links = 1;
        inode.flags = dir.flags
            & match kind {
                FileKind::Directory => INHERITED,
                FileKind::Regular => INHERITED & !DIRSYNC,
                _ => INHERITED_OTHER,
            };
        self.put_inode(&inode)?;
        match node {
            NewNode::Regular => self.init_extents(&mut inode),
            NewNode::Directory => {
                add_subdirectory(self.core, dir)?;
                inode.links = 2;
                self.dir_init(&mut inode, dir.ino)?;
            }
            NewNode::Symlink(target) if target.len() <= SHORT_SYMLINK_MAX => {
                inode.block[..target.len()].copy_from_slice(target);
                inode.size = target.len() as u64;
            }
            NewNode::Symlink(target) if target.len() >= geometry.block_size as usize => {
                return errno(libc::ENAMETOOLONG);
            }
            NewNode::Symlink(target) => {
                self.init_extents(&mut inode);
                let (_, block) = self.append_metadata_block(&mut inode)?;
                self.modify(block)?[..target.len()].copy_from_slice(target);
                inode.size = target.len() as u64;
            }
            NewNode::Special(FileKind::CharDevice | FileKind::BlockDevice, rdev) => inode.set_rdev(rdev),
            NewNode::Special(FileKind::Regular, _) => self.init_extents(&mut inode),
            NewNode::Special(..) => {}
        }
        if let Some(mut acl) = default_acl {
            if kind == FileKind::Directory {
                self.set_acl(&mut inode, NameIndex::ACL_DEFAULT, Some(&acl), XattrMode::Set)?;
            }
            let (mode, more) = acl.inherit(inode.mode);
            inode.mode = mode;
            if more {
                let value = acl.to_disk();
                self.set_xattr(&mut inode, NameIndex::ACL_ACCESS, b"", Some(&value), XattrMode::Set)?;
            }
        }
        Ok(inode)
    }
}
