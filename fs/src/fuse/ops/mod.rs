//! The operations, by what they work on. Each takes owned arguments and its reply, so that it can be run again elsewhere.

mod attr;
mod directory;
mod file;
mod names;
mod xattr;

use super::server::Server;
use crate::ext4::attr::Context;
use crate::ext4::error::{FsError, Result};
use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
};
use std::sync::Arc;

pub(crate) use attr::Change;
pub(crate) use file::Write;
pub(crate) use names::New;

/// A reply that can say no.
pub(crate) trait Refuse: Send + 'static {
    /// Answers with an error.
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),+) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })+
    };
}
refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// Who calls what, on which inode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// For the log.
    pub(crate) name: &'static str,
    /// FUSE inode number.
    pub(crate) ino: u64,
    /// The caller; not allowed to block.
    pub(crate) context: Context,
}

impl Call {
    pub(crate) fn new(name: &'static str, ino: fuser::INodeNo, request: &Request) -> Self {
        let context = Context { uid: request.uid(), gid: request.gid(), may_block: false };
        Self { name, ino: ino.0, context }
    }
}

impl Server {
    /// Runs `operation` and answers; if it would have to wait, both happen on the blocking pool.
    pub(crate) fn run<T, R: Refuse>(
        self: &Arc<Self>,
        call: Call,
        reply: R,
        operation: impl Fn(&Arc<Self>, Context) -> Result<T> + Send + 'static,
        answer: impl FnOnce(&Arc<Self>, R, T) + Send + 'static,
    ) {
        match operation(self, call.context) {
            Ok(value) => answer(self, reply, value),
            Err(FsError::WouldBlock) => {
                let server = self.clone();
                self.pool.submit(Box::new(move || {
                    match operation(&server, Context { may_block: true, ..call.context }) {
                        Ok(value) => answer(&server, reply, value),
                        Err(error) => server.refuse(&call, reply, &error),
                    }
                }));
            }
            Err(error) => self.refuse(&call, reply, &error),
        }
    }
}
