//! Attributes: getattr, setattr, statfs.

use super::Call;
use crate::ext4::attr::{SetAttr, StatFs, Timestamp};
use crate::ext4::error::Result;
use crate::fuse::node::Node;
use crate::fuse::server::{CACHED_FOR, Mode, Server};
use fuser::{ReplyAttr, ReplyStatfs};
use std::sync::Arc;
use std::time::Instant;

/// A `setattr`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// New size.
    pub(crate) size: Option<u64>,
    /// All else.
    pub(crate) set: SetAttr,
}

impl Change {
    /// Nothing but, at most, a change time: what is left of chown(2) with neither owner nor group, which takes setuid,
    /// setgid and file capabilities all the same.
    fn leaves_all(&self) -> bool {
        let SetAttr { permissions, uid, gid, atime, mtime, ctime: _, kill_privileges: _ } = self.set;
        let times = atime.is_some() || mtime.is_some();
        !times && self.size.is_none() && permissions.is_none() && uid.is_none() && gid.is_none()
    }

    /// Nothing but the times of a change, as the kernel sends them when it writes out those that it keeps.
    fn is_write_out_of_times(&self) -> bool {
        let SetAttr { permissions, uid, gid, atime, mtime, ctime, kill_privileges: _ } = self.set;
        let others = permissions.is_some() || uid.is_some() || gid.is_some() || atime.is_some();
        !others && self.size.is_none() && mtime.is_some() && ctime.is_some()
    }
}

impl Server {
    /// `by_handle`: the kernel asks for a read or write of its own, not for a program's stat(2).
    pub(crate) fn getattr(&self, call: Call, by_handle: bool, reply: ReplyAttr) {
        if by_handle && self.starved.take(call.ino, Instant::now()) {
            return reply.error(fuser::Errno::ENOSPC);
        }
        let attr = match self.numbers.node(call.ino) {
            Ok(Node::LunDirectory) => Ok(self.lun_directory()),
            Ok(Node::Inode(lun, number)) => {
                self.fs(lun).getattr(number).map(|attr| self.file_attr(lun, &attr))
            }
            Err(error) => Err(error),
        };
        match attr {
            Ok(attr) => reply.attr(&CACHED_FOR, &attr),
            Err(error) => self.refuse(&call, reply, &error),
        }
    }

    pub(crate) fn setattr(self: &Arc<Self>, call: Call, change: Change, reply: ReplyAttr) {
        // With its writeback cache the kernel writes out the times of each file that it has just unlinked, and goes on
        // keeping them itself; nobody will read them in the image.
        if self.mode == Mode::Async && change.is_write_out_of_times() && self.table.is_unlinked(call.ino) {
            return self.getattr(call, false, reply);
        }
        self.run(
            call,
            reply,
            move |server, context| {
                let (lun, number) = server.changeable(call.ino)?;
                let fs = server.fs(lun);
                let mut set = change.set;
                if change.leaves_all() {
                    server.drop_capability(context, call.ino, lun, number)?;
                    set.kill_privileges = true;
                }
                if change.size.is_some() {
                    // The kernel sends new times with a new size only, or where the writeback cache has it keep them;
                    // ext4 has them in any case.
                    if server.mode == Mode::Sync && set.mtime.is_none() {
                        let now = Timestamp::now();
                        (set.mtime, set.ctime) = (Some(now), Some(now));
                    }
                    server.drop_capability(context, call.ino, lun, number)?;
                    // The kernel has said whether the caller may keep setuid and setgid bits, but fuser does not pass
                    // it on. (A change of owner takes them in any case: the core does that.)
                    set.kill_privileges = context.uid != 0;
                }
                let changed = match change.size {
                    Some(size) => {
                        let truncated = fs.truncate(context, number, size, &set)?;
                        server.starved.forget(call.ino);
                        truncated
                    }
                    None => (fs.setattr(context, number, &set)?, None),
                };
                server.changed(call.ino);
                Ok((lun, changed))
            },
            |server, reply, (lun, (attr, appended))| {
                let attr = server.file_attr(lun, &attr);
                server.answer_applied(lun, appended, reply, move |reply| reply.attr(&CACHED_FOR, &attr));
            },
        );
    }

    pub(crate) fn statfs(self: &Arc<Self>, call: Call, reply: ReplyStatfs) {
        if !self.evictions.is_busy() {
            return self.answer_statfs(call, reply);
        }
        // What has been deleted is free, whoever asks.
        let server = self.clone();
        self.pool.submit(Box::new(move || {
            server.finish_evictions();
            server.answer_statfs(call, reply);
        }));
    }

    fn answer_statfs(&self, call: Call, reply: ReplyStatfs) {
        let numbers = match self.numbers.node(call.ino) {
            Ok(Node::Inode(lun, _)) => self.fs(lun).statfs(),
            // Of all LUNs together.
            Ok(Node::LunDirectory) => {
                let each: Result<Vec<StatFs>> = self.luns.iter().map(|lun| lun.fs.statfs()).collect();
                each.map(|each| sum(&each))
            }
            Err(error) => Err(error),
        };
        match numbers {
            Ok(s) => reply.statfs(
                s.blocks,
                s.blocks_free,
                s.blocks_available,
                s.inodes,
                s.inodes_free,
                s.block_size,
                255,
                s.block_size,
            ),
            Err(error) => self.refuse(&call, reply, &error),
        }
    }
}

/// The numbers of several file systems together, in blocks of 4 KiB.
fn sum(each: &[StatFs]) -> StatFs {
    const BLOCK: u32 = 4096;
    let mut sum = StatFs {
        block_size: BLOCK,
        blocks: 0,
        blocks_free: 0,
        blocks_available: 0,
        inodes: 0,
        inodes_free: 0,
        fsid: 0,
    };
    for one in each {
        let scale = |blocks: u64| blocks.saturating_mul(u64::from(one.block_size)) / u64::from(BLOCK);
        sum.blocks += scale(one.blocks);
        sum.blocks_free += scale(one.blocks_free);
        sum.blocks_available += scale(one.blocks_available);
        sum.inodes += one.inodes;
        sum.inodes_free += one.inodes_free;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_luns_are_added_up_in_one_unit() {
        let of = |block_size, blocks| StatFs {
            block_size,
            blocks,
            blocks_free: blocks / 2,
            blocks_available: blocks / 4,
            inodes: 10,
            inodes_free: 5,
            fsid: 1,
        };
        let all = sum(&[of(1024, 4000), of(4096, 1000)]);
        assert_eq!(
            (all.block_size, all.blocks, all.blocks_free, all.blocks_available),
            (4096, 2000, 1000, 500)
        );
        assert_eq!((all.inodes, all.inodes_free), (20, 10));
    }
}
