//! Truncation and fallocate.

use super::super::Ext4;
use super::super::attr::{Attr, Context, Fallocate, FileKind, SetAttr, Timestamp};
use super::super::error::{FsError, Result, errno};
use super::super::inode::{Inode, flag};
use super::super::tx::{CREDITS, DataGuard, Tx};
use super::super::types::InodeNo;
use super::lookup::Mapping;
use super::node::UNWRITTEN_MAX;
use super::read::check_regular;
use super::tree::STEP_CREDITS;
use super::write::size_max;
use super::zero::Zeroes;
use mirrorfs_journal::Origin;
use mirrorfs_journal::log::Appended;

/// What to do with a range of whole blocks, step by step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Fill holes with reserved blocks.
    Reserve,
    /// Make what is mapped reserved.
    Unwrite,
    /// Free what is mapped.
    Punch,
}

/// One fallocate.
#[derive(Clone, Copy)]
struct Job {
    ino: InodeNo,
    keep_times: bool,
}

impl Ext4 {
    /// Sets a file's size, and `change` with it, in one transaction (freeing the blocks of a large file may take more; it is on
    /// the orphan list meanwhile). Blocks reserved behind the end are freed, unless the file grows.
    ///
    /// # Errors
    /// `EFBIG`, `EPERM` (immutable, append-only), `EISDIR`, `EINVAL`, `ENOSPC`; `WouldBlock`: to be run again, whole.
    pub fn truncate(
        &self,
        context: Context,
        ino: InodeNo,
        size: u64,
        change: &SetAttr,
    ) -> Result<(Attr, Option<Appended>)> {
        let _data = self.data_locks.of(ino).write();
        let (mut attr, mut done, zeroes, guard) = self.with_tx(context, CREDITS, |tx| {
            let mut inode = tx.core.inode(ino)?;
            check_regular(&inode)?;
            if inode.has(flag::IMMUTABLE | flag::APPEND) {
                return errno(libc::EPERM);
            }
            if size > size_max(tx.core) {
                return errno(libc::EFBIG);
            }
            let old = inode.size;
            // The end's block is zero behind the end: what grows reads as zeros.
            let zeroes =
                Zeroes::in_block(tx.core, &inode, size.min(old), if size > old { size } else { u64::MAX })?;
            if size != old {
                let now = Timestamp::now();
                (inode.mtime, inode.ctime) = (now, now);
            }
            let change = SetAttr { ctime: change.ctime.or((size != old).then_some(inode.ctime)), ..*change };
            tx.apply_setattr(&mut inode, &change)?;
            inode.size = size;
            let done = size > old || tx.free_file_blocks(&mut inode, keep_blocks(tx, size))?;
            tx.note_truncation(&mut inode, done)?;
            let guard = self.guard_zeroes(tx, &zeroes)?;
            Ok((inode.attr(), done, zeroes, guard))
        })?;
        let appended = zeroes.carry_out(&self.lun, Origin::File(ino.0))?;
        drop(guard);
        while !done {
            if !context.may_block {
                return Err(FsError::WouldBlock);
            }
            (attr, done) = self.with_tx(context, CREDITS, |tx| {
                let mut inode = tx.core.inode(ino)?;
                let done = tx.free_file_blocks(&mut inode, keep_blocks(tx, size))?;
                tx.note_truncation(&mut inode, done)?;
                Ok((inode.attr(), done))
            })?;
        }
        Ok((attr, appended))
    }

    /// Holds back the commit for zeros to be written, if there are any.
    fn guard_zeroes(&self, tx: &mut Tx<'_>, zeroes: &Zeroes) -> Result<Option<DataGuard>> {
        if zeroes.is_empty() {
            return Ok(None);
        }
        if !tx.context.may_block && !zeroes.is_warm(&self.lun) {
            return Err(FsError::WouldBlock);
        }
        Ok(Some(tx.data_guard()))
    }

    /// Reserves, punches or zeroes a range. Large ranges take several transactions, each of which leaves the file whole.
    /// `keep_times`: the kernel has moved the file's times on and will send them.
    ///
    /// # Errors
    /// `EINVAL`, `EFBIG`, `ENODEV`, `EPERM`, `ENOSPC` (what was reserved so far may stay); `WouldBlock`: to be run again,
    /// whole.
    pub fn fallocate(
        &self,
        context: Context,
        ino: InodeNo,
        operation: Fallocate,
        offset: u64,
        length: u64,
        keep_times: bool,
    ) -> Result<Option<Appended>> {
        let job = Job { ino, keep_times };
        let _data = self.data_locks.of(ino).write();
        let (size, limit, block_size) = self.with_core(|core| {
            let inode = core.inode(ino)?;
            match inode.kind() {
                FileKind::Regular => Ok((inode.size, size_max(core), u64::from(core.geometry.block_size))),
                FileKind::Directory => errno(libc::EISDIR),
                _ => errno(libc::ENODEV),
            }
        })?;
        if length == 0 {
            return errno(libc::EINVAL);
        }
        let Some(end) = offset.checked_add(length).filter(|end| *end <= limit) else {
            return errno(libc::EFBIG);
        };
        let outer = (offset / block_size, end.div_ceil(block_size));
        let inner = |end: u64| (offset.div_ceil(block_size), end / block_size);
        match operation {
            Fallocate::Reserve { keep_size } => {
                let new_size = if keep_size { 0 } else { end };
                self.work(context, job, Work::Reserve, outer, (0, 0), new_size)
            }
            Fallocate::PunchHole => {
                if offset >= size {
                    // Nothing to free, but the file counts as modified.
                    return self.work(context, job, Work::Punch, (0, 0), (0, 0), 0);
                }
                // What lies behind the end in its block is a hole too.
                let end = if end >= size { size.next_multiple_of(block_size) } else { end };
                self.work(context, job, Work::Punch, inner(end), (offset, end), 0)
            }
            Fallocate::ZeroRange { keep_size } => {
                let first = self.work(context, job, Work::Unwrite, inner(end), (offset, end), 0)?;
                let new_size = if keep_size { 0 } else { end };
                Ok(self.work(context, job, Work::Reserve, outer, (0, 0), new_size)?.or(first))
            }
        }
    }

    /// Works through a range of blocks, in as many handles as it takes. `zero`: bytes whose blocks' parts at both ends become
    /// zero. `new_size`: the file grows up to it as the work goes on.
    fn work(
        &self,
        context: Context,
        Job { ino, keep_times }: Job,
        work: Work,
        blocks: (u64, u64),
        zero: (u64, u64),
        new_size: u64,
    ) -> Result<Option<Appended>> {
        let (mut from, mut to) = blocks;
        let mut first = true;
        let mut appended = None;
        while first || from < to {
            let (zeroes, guard, reached) = self.with_tx(context, CREDITS, |tx| {
                let mut inode = tx.core.inode(ino)?;
                if inode.has(flag::IMMUTABLE) || (inode.has(flag::APPEND) && work != Work::Reserve) {
                    return errno(libc::EPERM);
                }
                let mut zeroes = Zeroes::default();
                if first && zero.0 < zero.1 {
                    zeroes = Zeroes::at_ends(tx.core, &inode, zero.0, zero.1)?;
                }
                let reached = match work {
                    _ if from >= to => from,
                    Work::Reserve => tx.reserve_range(&mut inode, from, to)?,
                    Work::Unwrite => tx.set_unwritten(&mut inode, from, to, true)?,
                    Work::Punch => tx.remove_range(&mut inode, from, to)?,
                };
                let block_size = u64::from(tx.core.geometry.block_size);
                let size = new_size.min(reached * block_size).max(inode.size);
                if size > inode.size {
                    zeroes = Zeroes::in_block(tx.core, &inode, inode.size, size)?;
                    inode.size = size;
                }
                if !keep_times {
                    let now = Timestamp::now();
                    (inode.mtime, inode.ctime) = (now, now);
                }
                if tx.context.uid != 0 {
                    tx.kill_privileges(&mut inode)?;
                }
                tx.put_inode(&inode)?;
                tx.touched(ino, true);
                let guard = self.guard_zeroes(tx, &zeroes)?;
                Ok((zeroes, guard, reached))
            })?;
            appended = zeroes.carry_out(&self.lun, Origin::File(ino.0))?.or(appended);
            drop(guard);
            first = false;
            if work == Work::Punch {
                to = reached;
            } else {
                from = reached;
            }
        }
        Ok(appended)
    }
}

fn keep_blocks(tx: &Tx<'_>, size: u64) -> u64 {
    size.div_ceil(u64::from(tx.core.geometry.block_size))
}

impl Tx<'_> {
    /// Puts a truncated inode: on the orphan list while blocks are left to be freed, off it afterwards (unless deleted).
    fn note_truncation(&mut self, inode: &mut Inode, done: bool) -> Result<()> {
        if !done {
            self.orphan_add(inode)?;
        } else if inode.links > 0 && self.core.orphans.contains(inode.ino) {
            self.orphan_remove(inode)?;
        }
        self.put_inode(inode)?;
        self.touched(inode.ino, true);
        Ok(())
    }

    /// Fills holes with reserved blocks, as far as the credits allow. Returns where it got to.
    fn reserve_range(&mut self, inode: &mut Inode, from: u64, to: u64) -> Result<u64> {
        let mut at = from;
        while at < to && (at == from || self.changed_blocks() < STEP_CREDITS) {
            let path = self.core.extent_path(inode, at as u32)?;
            match path.mapping(at as u32) {
                Mapping::Extent(extent) => at = extent.end(),
                Mapping::Hole(end) => {
                    let wanted = (end.min(to) - at).min(u64::from(UNWRITTEN_MAX)) as u32;
                    let goal = self.core.goal(inode, &path, at as u32);
                    let (start, count) = self.alloc_data(inode.ino, goal, wanted, 0)?;
                    self.add_blocks(inode, at as u32, start, count, true)?;
                    at += u64::from(count);
                }
            }
        }
        Ok(at.min(to))
    }
}
