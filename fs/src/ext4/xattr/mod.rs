//! Extended attributes: inside the inode, behind its extra fields, and in one block beside it.
//!
//! A block may be shared by several inodes (the kernel shares equal ones): it is changed only by its single owner; otherwise the
//! inode gets a copy and the old block loses a reference.

mod acl;
mod codec;

use super::Ext4;
use super::attr::{Context, XattrMode};
use super::cache::Role;
use super::error::{FsError, Result, errno};
use super::inode::{Inode, flag};
use super::superblock::Geometry;
use super::tx::{CREDITS, Core, Tx};
use super::types::{BlockNo, InodeNo};
use crate::ext4::attr::Timestamp;
pub(crate) use acl::Acl;
use codec::Entry;
pub(crate) use codec::NameIndex;

/// Longest value that the system calls allow.
const VALUE_MAX: usize = 64 << 10;

impl Core {
    fn inode_xattrs(&mut self, inode: &Inode) -> Result<Vec<Entry>> {
        let (block, offset) = self.inode_place(inode.ino)?;
        let size = usize::from(self.geometry.inode_size);
        if size == 128 {
            return Ok(Vec::new());
        }
        let data = self.block(block)?;
        codec::decode_inode(inode, &data[offset..offset + size])
    }

    fn block_xattrs(&mut self, inode: &Inode) -> Result<Vec<Entry>> {
        if inode.xattr_block == 0 {
            return Ok(Vec::new());
        }
        let at = BlockNo(inode.xattr_block);
        let geometry = self.geometry.clone();
        let data = self
            .block_checked(at, Role::Attributes, |data| codec::check_block(&geometry, inode.ino, at, data))?;
        codec::decode_block(inode.ino, at, &data)
    }

    /// An attribute's value.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn xattr(&mut self, inode: &Inode, index: NameIndex, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let entries = self.inode_xattrs(inode)?;
        if let Some(entry) = entries.into_iter().find(|entry| entry.is(index, name)) {
            return Ok(Some(entry.value));
        }
        let entries = self.block_xattrs(inode)?;
        Ok(entries.into_iter().find(|entry| entry.is(index, name)).map(|entry| entry.value))
    }

    /// An ACL.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn acl(&mut self, inode: &Inode, index: NameIndex) -> Result<Option<Acl>> {
        self.xattr(inode, index, b"")?.map(|value| Acl::from_disk(&value, inode.ino)).transpose()
    }
}

impl Tx<'_> {
    /// Sets or (`None`) removes an attribute. May change `inode`; the caller puts it (in any case: its checksum covers
    /// attributes inside it).
    ///
    /// # Errors
    /// `EEXIST`, `ENODATA` as `mode` says; `ENOSPC` where it does not fit.
    pub(crate) fn set_xattr(
        &mut self,
        inode: &mut Inode,
        index: NameIndex,
        name: &[u8],
        value: Option<&[u8]>,
        mode: XattrMode,
    ) -> Result<()> {
        let geometry = self.core.geometry.clone();
        let inode_size = usize::from(geometry.inode_size);
        let block_size = geometry.block_size as usize;
        let mut inside = self.core.inode_xattrs(inode)?;
        let mut beside = self.core.block_xattrs(inode)?;
        let (inside_before, beside_before) = (inside.len(), beside.len());
        inside.retain(|entry| !entry.is(index, name));
        beside.retain(|entry| !entry.is(index, name));
        let (was_inside, was_beside) = (inside.len() != inside_before, beside.len() != beside_before);
        match mode {
            XattrMode::Create if was_inside || was_beside => return errno(libc::EEXIST),
            XattrMode::Replace if !was_inside && !was_beside => return errno(libc::ENODATA),
            _ => {}
        }
        let (mut change_inside, mut change_beside) = (was_inside, was_beside);
        if let Some(value) = value {
            let entry = Entry { index, name: name.to_vec(), value: value.to_vec() };
            inside.push(entry);
            if inode_size > 128 && codec::fits_inode(inode, inode_size, &inside) {
                change_inside = true;
            } else {
                let entry = inside.pop().expect("just pushed");
                beside.push(entry);
                if !codec::fits_block(block_size, &beside) {
                    return errno(libc::ENOSPC);
                }
                change_beside = true;
            }
        }
        if change_inside {
            let (block, offset) = self.core.inode_place(inode.ino)?;
            let data = self.modify(block)?;
            codec::encode_inode(inode, &mut data[offset..offset + inode_size], &inside);
        }
        if change_beside {
            self.set_block_xattrs(inode, &mut beside, &geometry)?;
        }
        Ok(())
    }

    fn set_block_xattrs(
        &mut self,
        inode: &mut Inode,
        entries: &mut [Entry],
        geometry: &Geometry,
    ) -> Result<()> {
        if entries.is_empty() {
            return self.release_xattr_block(inode);
        }
        let old = BlockNo(inode.xattr_block);
        let own = old.0 != 0 && codec::block_references(&self.core.block(old)?) == 1;
        let at = if own {
            old
        } else {
            self.release_xattr_block(inode)?;
            let (group, _) = geometry.inode_group(inode.ino).expect("the inode has been read");
            let (at, _) = self.alloc_blocks(geometry.group_start(group), 1)?;
            self.create(at)?;
            inode.xattr_block = at.0;
            inode.blocks_512 += u64::from(geometry.block_size / 512);
            at
        };
        codec::encode_block(geometry, at, self.modify(at)?, entries);
        Ok(())
    }

    /// Gives up the inode's reference to its attribute block; the last one frees it. The caller puts `inode`.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn release_xattr_block(&mut self, inode: &mut Inode) -> Result<()> {
        if inode.xattr_block == 0 {
            return Ok(());
        }
        let at = BlockNo(inode.xattr_block);
        let geometry = self.core.geometry.clone();
        let data = self
            .core
            .block_checked(at, Role::Attributes, |data| codec::check_block(&geometry, inode.ino, at, data))?;
        let references = codec::block_references(&data);
        drop(data);
        if references > 1 {
            codec::drop_reference(&geometry, at, self.modify(at)?);
        } else {
            self.forget(at);
            self.free_blocks(at, 1)?;
        }
        inode.xattr_block = 0;
        inode.blocks_512 = inode.blocks_512.saturating_sub(u64::from(geometry.block_size / 512));
        Ok(())
    }

    /// Sets or removes an ACL. An access ACL changes the mode, and is not kept where the mode says all of it.
    ///
    /// # Errors
    /// `EACCES` for a default ACL on what is no directory; `ENOSPC`.
    pub(crate) fn set_acl(
        &mut self,
        inode: &mut Inode,
        index: NameIndex,
        acl: Option<&Acl>,
        mode: XattrMode,
    ) -> Result<()> {
        if index == NameIndex::ACL_DEFAULT && !inode.is_dir() {
            return if acl.is_some() { errno(libc::EACCES) } else { Ok(()) };
        }
        let mut value = acl.map(Acl::to_disk);
        if index == NameIndex::ACL_ACCESS
            && let Some(acl) = acl
        {
            let (bits, equivalent) = acl.mode();
            inode.mode = (inode.mode & !0o777) | bits;
            if equivalent {
                value = None;
            }
        }
        self.set_xattr(inode, index, b"", value.as_deref(), mode)
    }

    /// Clears what gives a file's user more than the caller has: setuid, setgid where the group may execute, file
    /// capabilities. Directories keep theirs. The caller puts `inode`.
    ///
    /// # Errors
    /// `Corrupt`; as for [`Tx::modify`].
    pub(crate) fn kill_privileges(&mut self, inode: &mut Inode) -> Result<()> {
        if inode.is_dir() {
            return Ok(());
        }
        inode.mode &= !0o4000;
        if inode.mode & 0o010 != 0 {
            inode.mode &= !0o2000;
        }
        if self.core.xattr(inode, NameIndex::SECURITY, b"capability")?.is_some() {
            self.set_xattr(inode, NameIndex::SECURITY, b"capability", None, XattrMode::Set)?;
        }
        Ok(())
    }
}

fn split(name: &[u8]) -> Result<(NameIndex, &[u8])> {
    if name.len() > 255 || name.is_empty() {
        return errno(libc::ERANGE);
    }
    let Some((index, rest)) = NameIndex::split(name) else { return errno(libc::EOPNOTSUPP) };
    if rest.is_empty() && !is_acl(index) {
        return errno(libc::EINVAL);
    }
    Ok((index, rest))
}

fn is_acl(index: NameIndex) -> bool {
    matches!(index, NameIndex::ACL_ACCESS | NameIndex::ACL_DEFAULT)
}

impl Ext4 {
    /// The value of an attribute by its full name ("user.x"); ACLs in the xattr format.
    ///
    /// # Errors
    /// `ENODATA`, `EOPNOTSUPP` for a namespace that ext4 does not have.
    pub fn getxattr(&self, ino: InodeNo, name: &[u8]) -> Result<Vec<u8>> {
        let (index, rest) = split(name)?;
        self.with_core(|core| {
            let inode = core.inode(ino)?;
            let value = match core.xattr(&inode, index, rest)? {
                Some(value) if is_acl(index) => Some(Acl::from_disk(&value, ino)?.to_xattr()),
                other => other,
            };
            value.ok_or(FsError::Errno(libc::ENODATA))
        })
    }

    /// Full names of all attributes.
    ///
    /// # Errors
    /// `ESTALE`, `Corrupt`.
    pub fn listxattr(&self, ino: InodeNo) -> Result<Vec<Vec<u8>>> {
        self.with_core(|core| {
            let inode = core.inode(ino)?;
            let mut entries = core.inode_xattrs(&inode)?;
            entries.extend(core.block_xattrs(&inode)?);
            let full = |entry: &Entry| Some([entry.index.prefix()?, &entry.name].concat());
            Ok(entries.iter().filter_map(full).collect())
        })
    }

    /// Sets an attribute. ACLs come in the xattr format; an access ACL changes the mode.
    ///
    /// # Errors
    /// `EEXIST`, `ENODATA` as `mode` says; `ENOSPC` where it does not fit into inode and block; `E2BIG` above 64 KiB;
    /// `EPERM` on immutable files.
    pub fn setxattr(
        &self,
        context: Context,
        ino: InodeNo,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        let (index, rest) = split(name)?;
        if value.len() > VALUE_MAX {
            return errno(libc::E2BIG);
        }
        let acl = if is_acl(index) { Acl::from_xattr(value)? } else { None };
        self.change_xattr(context, ino, |tx, inode| {
            if is_acl(index) {
                tx.set_acl(inode, index, acl.as_ref(), mode)
            } else {
                tx.set_xattr(inode, index, rest, Some(value), mode)
            }
        })
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `ENODATA` if it is not there; `EPERM` on immutable files.
    pub fn removexattr(&self, context: Context, ino: InodeNo, name: &[u8]) -> Result<()> {
        let (index, rest) = split(name)?;
        self.change_xattr(context, ino, |tx, inode| {
            tx.set_xattr(inode, index, rest, None, XattrMode::Replace)
        })
    }

    fn change_xattr(
        &self,
        context: Context,
        ino: InodeNo,
        change: impl Fn(&mut Tx<'_>, &mut Inode) -> Result<()>,
    ) -> Result<()> {
        self.with_tx(context, CREDITS, |tx| {
            let mut inode = tx.core.inode(ino)?;
            if inode.has(flag::IMMUTABLE) || inode.has(flag::APPEND) {
                return errno(libc::EPERM);
            }
            change(tx, &mut inode)?;
            inode.ctime = Timestamp::now();
            tx.put_inode(&inode)?;
            tx.touched(ino, false);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
