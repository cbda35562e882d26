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
    /// The caller's thread; 0: of another PID namespace, or the kernel's own work.
    caller: u32,
}

impl Call {
    pub(crate) fn new(name: &'static str, ino: fuser::INodeNo, request: &Request) -> Self {
        let context = Context { uid: request.uid(), gid: request.gid(), may_block: false };
        Self { name, ino: ino.0, context, caller: request.pid() }
    }

    /// Whether the caller, who waits for the answer, belongs to the group. FUSE does not pass on supplementary groups.
    pub(crate) fn is_in_group(&self, gid: u32) -> bool {
        self.context.gid == gid || supplementary_groups(self.caller).contains(&gid)
    }
}

/// The supplementary groups of a thread; none where they can't be found out.
fn supplementary_groups(thread: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|gid| gid.parse().ok()).collect()
}

impl Server {
    /// Runs `operation` and answers; if it would have to wait, be it for the space of a file just deleted, both happen on
    /// the blocking pool.
    pub(crate) fn run<T, R: Refuse>(
        self: &Arc<Self>,
        call: Call,
        reply: R,
        operation: impl Fn(&Arc<Self>, Context) -> Result<T> + Send + 'static,
        answer: impl FnOnce(&Arc<Self>, R, T) + Send + 'static,
    ) {
        let before = self.evictions.finished();
        let result = operation(self, call.context);
        let again = match &result {
            Err(FsError::WouldBlock) => true,
            Err(FsError::Errno(libc::ENOSPC)) => self.evictions.may_have_freed(before),
            _ => false,
        };
        match result {
            Ok(value) => answer(self, reply, value),
            Err(_) if again => {
                let server = self.clone();
                self.pool.submit(Box::new(move || {
                    match server.run_waiting(&operation, Context { may_block: true, ..call.context }) {
                        Ok(value) => answer(&server, reply, value),
                        Err(error) => server.refuse(&call, reply, &error),
                    }
                }));
            }
            Err(error) => self.refuse(&call, reply, &error),
        }
    }

    /// Runs `operation` on a thread that may wait; again if it found no space while a deleted file's was being freed.
    fn run_waiting<T>(
        self: &Arc<Self>,
        operation: &impl Fn(&Arc<Self>, Context) -> Result<T>,
        context: Context,
    ) -> Result<T> {
        let before = self.evictions.finished();
        match operation(self, context) {
            Err(FsError::Errno(libc::ENOSPC)) if self.evictions.may_have_freed(before) => {
                self.finish_evictions();
                operation(self, context)
            }
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::process::Command;

    #[test]
    fn supplementary_groups_are_found() {
        let ours = supplementary_groups(std::process::id());
        let output = Command::new("id").arg("-G").output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        // id(1) names the effective group too.
        assert!(ours.iter().all(|gid| said.split_whitespace().any(|said| said == gid.to_string())), "{said}");
        assert_eq!(supplementary_groups(0), Vec::<u32>::new());
    }
}
