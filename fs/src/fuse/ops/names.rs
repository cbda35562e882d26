//! Names: lookup, everything that makes, removes or moves one, and symbolic links.

use super::Call;
use crate::ext4::attr::{Attr, FileKind, NewNode, RenameMode};
use crate::ext4::error::{FsError, Result};
use crate::ext4::types::InodeNo;
use crate::fuse::attr::{bare_attr, special_kind};
use crate::fuse::node::Node;
use crate::fuse::server::{CACHED_FOR, Server};
use fuser::{
    FileAttr, FileHandle, FileType, FopenFlags, Generation, RenameFlags, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyEntry,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

/// A new node with owned arguments.
pub(crate) enum New {
    /// As the mode of a `mknod` has it, with the device number.
    Node(u32, u32),
    Directory(u32),
    Symlink(Vec<u8>),
}

impl New {
    /// For the core, with the permissions.
    fn as_node(&self) -> Result<(NewNode<'_>, u16)> {
        Ok(match self {
            Self::Node(mode, rdev) => {
                let node = match special_kind(*mode).map_err(FsError::Errno)? {
                    None => NewNode::Regular,
                    Some(kind @ (FileKind::CharDevice | FileKind::BlockDevice)) => {
                        NewNode::Special(kind, *rdev)
                    }
                    Some(kind) => NewNode::Special(kind, 0),
                };
                (node, (mode & 0o7777) as u16)
            }
            Self::Directory(mode) => (NewNode::Directory, (mode & 0o7777) as u16),
            Self::Symlink(target) => (NewNode::Symlink(target), 0o777),
        })
    }
}

fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
    let kind = flags.difference(RenameFlags::RENAME_NOREPLACE);
    if kind.is_empty() {
        Ok(if replace { RenameMode::Replace } else { RenameMode::NoReplace })
    } else if kind == RenameFlags::RENAME_WHITEOUT {
        Ok(RenameMode::Whiteout { replace })
    } else if kind == RenameFlags::RENAME_EXCHANGE && replace {
        Ok(RenameMode::Exchange)
    } else {
        Err(FsError::Errno(libc::EINVAL))
    }
}

fn generation(attr: &Attr) -> Generation {
    Generation(u64::from(attr.generation))
}

impl Server {
    /// Also of "." (on any inode, by its number alone) and "..", which the kernel asks for when a file handle is opened
    /// whose inode it has forgotten.
    fn find(&self, parent: u64, name: &[u8]) -> Result<(FileAttr, Generation)> {
        let found = |lun, attr: Attr| (self.file_attr(lun, &attr), generation(&attr));
        match self.numbers.node(parent)? {
            Node::LunDirectory if name == b"." || name == b".." => Ok((self.lun_directory(), Generation(0))),
            Node::LunDirectory => {
                let lun = self.luns.iter().position(|lun| lun.name.as_bytes() == name);
                let lun = lun.ok_or(FsError::Errno(libc::ENOENT))?;
                Ok(found(lun, self.fs(lun).getattr(InodeNo::ROOT)?))
            }
            Node::Inode(lun, number) if name == b"." => {
                let attr = self.fs(lun).getattr(number)?;
                // Deleted, and forgotten by the kernel: it only waits for its eviction.
                if attr.links == 0 && !self.table.is_known(parent) {
                    return Err(FsError::Errno(libc::ESTALE));
                }
                Ok(found(lun, attr))
            }
            Node::Inode(_, InodeNo::ROOT) if name == b".." && !self.numbers.is_single() => {
                Ok((self.lun_directory(), Generation(0)))
            }
            Node::Inode(lun, number) => Ok(found(lun, self.fs(lun).lookup(number, name)?)),
        }
    }

    pub(crate) fn lookup(&self, call: Call, name: &[u8], reply: ReplyEntry) {
        match self.find(call.ino, name) {
            Ok((attr, generation)) => {
                self.table.looked_up(attr.ino.0);
                reply.entry(&CACHED_FOR, &attr, generation);
            }
            // Inode 0: the kernel remembers that the name is not there.
            Err(FsError::Errno(libc::ENOENT)) => {
                let nothing = bare_attr(0, FileType::RegularFile, 0, 0, SystemTime::UNIX_EPOCH);
                reply.entry(&CACHED_FOR, &nothing, Generation(0));
            }
            Err(error) => self.refuse(&call, reply, &error),
        }
    }

    pub(crate) fn make(self: &Arc<Self>, call: Call, name: Vec<u8>, new: New, umask: u32, reply: ReplyEntry) {
        self.run(
            call,
            reply,
            move |server, context| {
                let (node, permissions) = new.as_node()?;
                let (lun, parent) = server.changeable(call.ino)?;
                let attr =
                    server.fs(lun).make(context, parent, &name, node, permissions, (umask & 0o777) as u16)?;
                Ok((lun, attr))
            },
            |server, reply, (lun, attr)| {
                let shown = server.looked_up(lun, &attr);
                server.changed(shown.ino.0);
                reply.entry(&CACHED_FOR, &shown, generation(&attr));
            },
        );
    }

    pub(crate) fn create(
        self: &Arc<Self>,
        call: Call,
        name: Vec<u8>,
        mode: u32,
        umask: u32,
        reply: ReplyCreate,
    ) {
        self.run(
            call,
            reply,
            move |server, context| {
                let (lun, parent) = server.changeable(call.ino)?;
                let (permissions, umask) = ((mode & 0o7777) as u16, (umask & 0o777) as u16);
                let attr =
                    server.fs(lun).make(context, parent, &name, NewNode::Regular, permissions, umask)?;
                Ok((lun, attr))
            },
            |server, reply, (lun, attr)| {
                let shown = server.looked_up(lun, &attr);
                server.changed(shown.ino.0);
                // The kernel asks at the first write: nobody but us knows the inode yet.
                server.without_capability.insert(shown.ino.0);
                let flags = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&CACHED_FOR, &shown, generation(&attr), FileHandle(0), flags);
            },
        );
    }

    /// unlink and, for a `directory`, rmdir.
    pub(crate) fn remove(self: &Arc<Self>, call: Call, name: Vec<u8>, directory: bool, reply: ReplyEmpty) {
        self.run(
            call,
            reply,
            move |server, context| {
                let (lun, parent) = server.changeable(call.ino)?;
                let fs = server.fs(lun);
                let attr = if directory {
                    fs.rmdir(context, parent, &name)?
                } else {
                    fs.unlink(context, parent, &name)?
                };
                Ok((lun, attr))
            },
            |server, reply, (lun, attr)| {
                server.removals.fetch_add(1, Ordering::SeqCst);
                server.link_removed(lun, &attr);
                reply.ok();
            },
        );
    }

    pub(crate) fn link(self: &Arc<Self>, call: Call, new_parent: u64, new_name: Vec<u8>, reply: ReplyEntry) {
        self.run(
            call,
            reply,
            move |server, context| {
                let (lun, number) = server.inode(call.ino, libc::EPERM)?;
                let (new_lun, new_parent) = server.changeable(new_parent)?;
                if lun != new_lun {
                    return Err(FsError::Errno(libc::EXDEV));
                }
                Ok((lun, server.fs(lun).link(context, number, new_parent, &new_name)?))
            },
            |server, reply, (lun, attr)| {
                let shown = server.looked_up(lun, &attr);
                server.changed(shown.ino.0);
                reply.entry(&CACHED_FOR, &shown, generation(&attr));
            },
        );
    }

    pub(crate) fn rename(
        self: &Arc<Self>,
        call: Call,
        name: Vec<u8>,
        new_parent: u64,
        new_name: Vec<u8>,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.run(
            call,
            reply,
            move |server, context| {
                let mode = rename_mode(flags)?;
                let (lun, from) = server.changeable(call.ino)?;
                let (new_lun, to) = server.changeable(new_parent)?;
                if lun != new_lun {
                    return Err(FsError::Errno(libc::EXDEV));
                }
                let replaced = server.fs(lun).rename(context, (from, &name), (to, &new_name), mode)?;
                Ok((lun, replaced))
            },
            |server, reply, (lun, replaced)| {
                server.removals.fetch_add(1, Ordering::SeqCst);
                if let Some(replaced) = replaced {
                    server.link_removed(lun, &replaced);
                }
                reply.ok();
            },
        );
    }

    pub(crate) fn readlink(self: &Arc<Self>, call: Call, reply: ReplyData) {
        let target = self.inode(call.ino, libc::EINVAL).and_then(|(lun, number)| {
            let target = self.fs(lun).readlink(number)?;
            self.touch_atime(call.ino, lun, number, false);
            Ok(target)
        });
        match target {
            Ok(target) => reply.data(&target),
            Err(error) => self.refuse(&call, reply, &error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn rename_flags() {
        assert_eq!(rename_mode(RenameFlags::empty()).unwrap(), RenameMode::Replace);
        assert_eq!(rename_mode(RenameFlags::RENAME_NOREPLACE).unwrap(), RenameMode::NoReplace);
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE).unwrap(), RenameMode::Exchange);
        let whiteout = RenameFlags::RENAME_WHITEOUT;
        assert_eq!(rename_mode(whiteout).unwrap(), RenameMode::Whiteout { replace: true });
        let no_replace = RenameFlags::RENAME_NOREPLACE;
        assert_eq!(rename_mode(whiteout | no_replace).unwrap(), RenameMode::Whiteout { replace: false });
        assert!(rename_mode(whiteout | RenameFlags::RENAME_EXCHANGE).is_err());
        assert!(rename_mode(no_replace | RenameFlags::RENAME_EXCHANGE).is_err());
        assert!(rename_mode(RenameFlags::from_bits_retain(8)).is_err());
    }

    #[test]
    fn only_devices_have_device_numbers() {
        let of = |mode| match New::Node(mode, 0x0801).as_node().unwrap() {
            (NewNode::Special(kind, rdev), 0o640) => Some((kind, rdev)),
            (NewNode::Regular, 0o640) => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(of(libc::S_IFBLK | 0o640), Some((FileKind::BlockDevice, 0x0801)));
        assert_eq!(of(libc::S_IFIFO | 0o640), Some((FileKind::Fifo, 0)));
        assert_eq!(of(libc::S_IFREG | 0o640), None);
    }
}
