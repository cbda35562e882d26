//! Extended attributes, POSIX ACLs among them.

use super::Call;
use crate::ext4::attr::{SetAttr, XattrMode};
use crate::ext4::error::{FsError, Result};
use crate::fuse::server::{CAPABILITY, Server};
use fuser::{Errno, ReplyEmpty, ReplyXattr};
use std::sync::Arc;

const TRUSTED: &[u8] = b"trusted.";
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const SETGID: u16 = 0o2000;

/// What `setxattr` flags ask for.
fn mode(flags: i32) -> Result<XattrMode> {
    match flags {
        0 => Ok(XattrMode::Set),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(FsError::Errno(libc::EINVAL)),
    }
}

/// What to answer to a caller with room for `room` bytes (0: only the size is asked for).
#[derive(Debug, PartialEq, Eq)]
enum Answer<'a> {
    Size(u32),
    Data(&'a [u8]),
    TooSmall,
}

fn fit(value: &[u8], room: u32) -> Answer<'_> {
    match u32::try_from(value.len()) {
        Ok(size) if room == 0 => Answer::Size(size),
        Ok(size) if size <= room => Answer::Data(value),
        _ => Answer::TooSmall,
    }
}

impl Server {
    fn answer_xattr(&self, call: Call, value: Result<Vec<u8>>, room: u32, reply: ReplyXattr) {
        match value {
            Ok(value) => match fit(&value, room) {
                Answer::Size(size) => reply.size(size),
                Answer::Data(data) => reply.data(data),
                Answer::TooSmall => reply.error(Errno::ERANGE),
            },
            Err(error) => self.refuse(&call, reply, &error),
        }
    }

    pub(crate) fn getxattr(&self, call: Call, name: &[u8], room: u32, reply: ReplyXattr) {
        if name == CAPABILITY && self.without_capability.contains(call.ino) {
            return reply.error(Errno::ENODATA);
        }
        let value =
            self.inode(call.ino, libc::ENODATA).and_then(|(lun, number)| self.fs(lun).getxattr(number, name));
        self.answer_xattr(call, value, room, reply);
    }

    pub(crate) fn listxattr(&self, call: Call, room: u32, reply: ReplyXattr) {
        let names = match self.inode(call.ino, libc::ENODATA) {
            Ok((lun, number)) => self.fs(lun).listxattr(number),
            Err(FsError::Errno(libc::ENODATA)) => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let list = names.map(|mut names| {
            // As everywhere, trusted attributes are not shown to whom they are not for.
            names.retain(|name| call.context.uid == 0 || !name.starts_with(TRUSTED));
            let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
            for name in names {
                list.extend_from_slice(&name);
                list.push(0);
            }
            list
        });
        self.answer_xattr(call, list, room, reply);
    }

    pub(crate) fn setxattr(
        self: &Arc<Self>,
        call: Call,
        name: Vec<u8>,
        value: Vec<u8>,
        flags: i32,
        reply: ReplyEmpty,
    ) {
        self.run(
            call,
            reply,
            move |server, context| {
                let mode = mode(flags)?;
                let (lun, number) = server.changeable(call.ino)?;
                let fs = server.fs(lun);
                fs.setxattr(context, number, &name, &value, mode)?;
                if name == ACL_ACCESS && context.uid != 0 {
                    // A new mode, by ACL: like chmod, it takes setgid if the group is not the caller's.
                    let attr = fs.getattr(number)?;
                    if attr.permissions & SETGID != 0 && !call.is_in_group(attr.gid) {
                        let permissions = Some(attr.permissions & !SETGID);
                        fs.setattr(context, number, &SetAttr { permissions, ..SetAttr::default() })?;
                    }
                }
                if name == CAPABILITY {
                    server.without_capability.remove(call.ino);
                }
                server.changed(call.ino);
                Ok(())
            },
            |_, reply, ()| reply.ok(),
        );
    }

    pub(crate) fn removexattr(self: &Arc<Self>, call: Call, name: Vec<u8>, reply: ReplyEmpty) {
        self.run(
            call,
            reply,
            move |server, context| {
                let (lun, number) = server.changeable(call.ino)?;
                server.fs(lun).removexattr(context, number, &name)?;
                server.changed(call.ino);
                Ok(())
            },
            |_, reply, ()| reply.ok(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_gets_the_size_the_value_or_erange() {
        assert_eq!(fit(b"value", 0), Answer::Size(5));
        assert_eq!(fit(b"value", 4), Answer::TooSmall);
        assert_eq!(fit(b"value", 5), Answer::Data(b"value"));
        assert_eq!(fit(b"", 0), Answer::Size(0));
        assert_eq!(fit(b"", 1), Answer::Data(b""));
    }

    #[test]
    fn setxattr_flags() {
        assert!(matches!(mode(0), Ok(XattrMode::Set)));
        assert!(matches!(mode(libc::XATTR_CREATE), Ok(XattrMode::Create)));
        assert!(matches!(mode(libc::XATTR_REPLACE), Ok(XattrMode::Replace)));
        assert!(matches!(mode(3), Err(FsError::Errno(libc::EINVAL))));
    }
}
