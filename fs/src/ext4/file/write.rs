//! Writing.
//!
//! A write is planned in a handle (blocks allocated, extents inserted or converted, size and times set), which ends before the
//! data move: the transaction's [`DataGuard`] keeps the commit back until they have. Where nothing but data changes, there is
//! no handle at all.

use super::super::Ext4;
use super::super::attr::{Context, Timestamp};
use super::super::error::{FsError, Result, errno};
use super::super::inode::{Inode, flag};
use super::super::tx::{CREDITS, Core, DataGuard, Tx};
use super::super::types::{BlockNo, FileBlock, InodeNo};
use super::lookup::{FILE_BLOCKS, Mapping};
use super::node::{Extent, WRITTEN_MAX};
use super::read::check_regular;
use super::tree::STEP_CREDITS;
use super::zero::Zeroes;
use bytes::Bytes;
use mirrorfs_journal::Origin;
use mirrorfs_journal::log::Appended;

/// Times are exact to this many nanoseconds: within it a further write of the same file leaves the inode alone.
const TICK_NANOSECONDS: u32 = 4_000_000;
/// Reservation window of a growing file at most, and what is kept warm ahead of it.
const WINDOW_BYTES: u64 = 8 << 20;
/// A smaller window is not worth having.
const WINDOW_BLOCKS_MIN: u32 = 8;
/// Requests up to this size that are not made of whole blocks are copied together rather than cut in three.
const COPY_BYTES_MAX: u64 = 64 << 10;
/// Sectors: what the LUN writes at least.
pub(super) const SECTOR: u64 = 512;

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAt {
    /// This byte of the file.
    Offset(u64),
    /// This byte of the file, from the kernel's writeback cache: the times are the kernel's to set, and stay.
    Cached(u64),
    /// The end of the file, as it is when the write is carried out.
    Append,
}

impl WriteAt {
    fn keeps_times(self) -> bool {
        matches!(self, Self::Cached(_))
    }
}

/// What a write has done.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Bytes written; less than given only where space ran out.
    pub bytes: usize,
    /// Where the first of them went.
    pub offset: u64,
    /// Where the last request landed in the mirror log (`None`: not mirrored).
    pub appended: Option<Appended>,
}

/// A run of file blocks that the data go to.
struct Run {
    first: u64,
    count: u64,
    start: u64,
    /// Holds nothing yet: what the data leave over in its blocks becomes zero.
    fresh: bool,
}

/// What one handle has prepared.
#[derive(Default)]
struct Plan {
    block_size: u64,
    offset: u64,
    bytes: usize,
    runs: Vec<Run>,
    /// What lies behind the old end of the file in its last block.
    gap: Zeroes,
    guard: Option<DataGuard>,
    /// Space ran out.
    short: bool,
}

impl Plan {
    /// Where the data go, with nothing mapped yet; cut at the largest size that a file can have.
    fn new(core: &Core, inode: &Inode, at: WriteAt, length: usize) -> Result<Self> {
        check_regular(inode)?;
        if inode.has(flag::IMMUTABLE) {
            return errno(libc::EPERM);
        }
        let offset = match at {
            WriteAt::Offset(offset) | WriteAt::Cached(offset) => offset,
            WriteAt::Append => inode.size,
        };
        let room = size_max(core).saturating_sub(offset);
        if room == 0 && length > 0 {
            return errno(libc::EFBIG);
        }
        let block_size = u64::from(core.geometry.block_size);
        let bytes = room.min(length as u64) as usize;
        Ok(Self { block_size, offset, bytes, short: bytes < length, ..Self::default() })
    }

    fn add(&mut self, run: Run) {
        match self.runs.last_mut() {
            Some(last)
                if last.fresh == run.fresh
                    && last.first + last.count == run.first
                    && last.start + last.count == run.start =>
            {
                last.count += run.count;
            }
            _ => self.runs.push(run),
        }
    }
}

/// Largest size of a file: 2^32 - 1 blocks.
pub(super) fn size_max(core: &Core) -> u64 {
    (FILE_BLOCKS - 1) * u64::from(core.geometry.block_size)
}

fn times_are_fresh(inode: &Inode) -> bool {
    let now = Timestamp::now();
    let tick = Timestamp { nanoseconds: now.nanoseconds - now.nanoseconds % TICK_NANOSECONDS, ..now };
    (tick..=now).contains(&inode.mtime) && (tick..=now).contains(&inode.ctime)
}

impl Ext4 {
    /// Writes `data`; `append`ed data are placed under the file's lock. Short only where space runs out.
    ///
    /// # Errors
    /// `ENOSPC` (host's too), `EFBIG`, `EPERM` (immutable), `EISDIR`, `EINVAL`; `WouldBlock`; I/O errors.
    pub fn write(
        &self,
        context: Context,
        ino: InodeNo,
        offset: WriteAt,
        data: Bytes,
        kill_privileges: bool,
    ) -> Result<Written> {
        let _data = self.data_locks.of(ino).write();
        let mut written = Written { bytes: 0, offset: 0, appended: None };
        let mut at = offset;
        while written.bytes < data.len() || data.is_empty() {
            let rest = data.slice(written.bytes..);
            let plan = match self.plan_overwrite(context, ino, at, rest.len(), kill_privileges)? {
                Some(plan) => Ok(plan),
                None => self.plan_write(context, ino, at, rest.len(), kill_privileges),
            };
            let plan = match plan {
                Err(FsError::Errno(libc::ENOSPC)) if written.bytes > 0 => break,
                // An append can't be run again whole: its first part is there.
                Err(FsError::WouldBlock) if written.bytes > 0 && offset == WriteAt::Append => break,
                other => other?,
            };
            let appended = self.carry_out(ino, &plan, &rest)?;
            written.appended = appended.or(written.appended);
            if written.bytes == 0 {
                written.offset = plan.offset;
            }
            written.bytes += plan.bytes;
            let next = plan.offset + plan.bytes as u64;
            at = if offset.keeps_times() { WriteAt::Cached(next) } else { WriteAt::Offset(next) };
            if plan.short || data.is_empty() {
                break;
            }
        }
        Ok(written)
    }

    /// A plan without a handle, where blocks, size and times stay as they are.
    fn plan_overwrite(
        &self,
        context: Context,
        ino: InodeNo,
        at: WriteAt,
        length: usize,
        kill_privileges: bool,
    ) -> Result<Option<Plan>> {
        let (WriteAt::Offset(offset) | WriteAt::Cached(offset)) = at else { return Ok(None) };
        self.with_core(|core| {
            if let Some(why) = &core.read_only {
                return Err(FsError::Latched(why.clone()));
            }
            let inode = core.inode(ino)?;
            check_regular(&inode)?;
            let Some(end) = offset.checked_add(length as u64).filter(|end| *end <= inode.size) else {
                return Ok(None);
            };
            let privileged = kill_privileges && inode.mode & 0o6000 != 0;
            if privileged || inode.has(flag::IMMUTABLE) || !(at.keeps_times() || times_are_fresh(&inode)) {
                return Ok(None);
            }
            let block_size = u64::from(core.geometry.block_size);
            let mut plan = Plan { block_size, offset, bytes: length, ..Plan::default() };
            let (mut block, last) = (offset / block_size, end.div_ceil(block_size));
            while block < last {
                match core.mapping(&inode, FileBlock(block as u32))? {
                    Mapping::Extent(extent) if !extent.unwritten => {
                        let part = extent.part(block, extent.end().min(last));
                        let count = u64::from(part.count);
                        plan.add(Run { first: block, count, start: part.start, fresh: false });
                        block += count;
                    }
                    _ => return Ok(None),
                }
            }
            self.check_warm(context, &plan)?;
            Ok(Some(plan))
        })
    }

    /// A write that would mark a region must not be made on a thread that may not wait.
    fn check_warm(&self, context: Context, plan: &Plan) -> Result<()> {
        let block_size = plan.block_size;
        let is_warm = |run: &Run| self.lun.is_warm(run.start * block_size, run.count * block_size);
        if context.may_block || (plan.runs.iter().all(is_warm) && plan.gap.is_warm(&self.lun)) {
            return Ok(());
        }
        Err(FsError::WouldBlock)
    }

    /// Prepares as much of a write as one handle may. Where space runs out on the way, the handle is put back, for the tree
    /// may be half changed, and another goes exactly as far as there was space.
    fn plan_write(
        &self,
        context: Context,
        ino: InodeNo,
        at: WriteAt,
        length: usize,
        kill_privileges: bool,
    ) -> Result<Plan> {
        let mut limit = u64::MAX;
        loop {
            let mut fitted = 0;
            let planned = self.with_tx(context, CREDITS, |tx| {
                let mut inode = tx.core.inode(ino)?;
                let mut plan = Plan::new(tx.core, &inode, at, length)?;
                if length == 0 {
                    return Ok(plan);
                }
                let old_size = inode.size;
                if plan.offset > old_size {
                    plan.gap = Zeroes::in_block(tx.core, &inode, old_size, plan.offset)?;
                }
                let units = inode.blocks_512;
                let end = plan.offset + plan.bytes as u64;
                let mut block = plan.offset / plan.block_size;
                let last = end.div_ceil(plan.block_size).min(limit);
                while block < last && (plan.runs.is_empty() || tx.changed_blocks() < STEP_CREDITS) {
                    fitted = if plan.runs.is_empty() { 0 } else { block };
                    let run = tx.map_for_write(&mut inode, block, last)?;
                    block += run.count;
                    plan.add(run);
                }
                plan.short |= block == limit;
                let reached = end.min(block * plan.block_size);
                plan.bytes = (reached - plan.offset) as usize;
                self.check_warm(context, &plan)?;
                if kill_privileges {
                    tx.kill_privileges(&mut inode)?;
                }
                inode.size = old_size.max(reached);
                if !at.keeps_times() {
                    let now = Timestamp::now();
                    (inode.mtime, inode.ctime) = (now, now);
                }
                tx.put_inode(&inode)?;
                let converted = plan.runs.iter().any(|run| run.fresh);
                tx.touched(ino, converted || inode.size != old_size || inode.blocks_512 != units);
                plan.guard = Some(tx.data_guard());
                Ok(plan)
            });
            match planned {
                Err(FsError::Errno(libc::ENOSPC)) if fitted > 0 => limit = fitted,
                planned => return planned.inspect(|plan| self.warm_ahead(plan)),
            }
        }
    }

    /// Has the regions that a growing file will reach next marked in the background.
    fn warm_ahead(&self, plan: &Plan) {
        if let Some(run) = plan.runs.last().filter(|run| run.fresh) {
            let block_size = plan.block_size;
            let end = (run.start + run.count) * block_size;
            self.lun.warm_soon(end, WINDOW_BYTES.min(self.lun.size_bytes().saturating_sub(end)));
        }
    }

    /// Moves the data. Only the file's data lock is held.
    fn carry_out(&self, ino: InodeNo, plan: &Plan, data: &Bytes) -> Result<Option<Appended>> {
        let origin = Origin::File(ino.0);
        let mut last = plan.gap.carry_out(&self.lun, origin)?;
        let block_size = plan.block_size;
        let end = plan.offset + plan.bytes as u64;
        for run in &plan.runs {
            let unit = if run.fresh { block_size } else { SECTOR };
            let from = plan.offset.max(run.first * block_size);
            let to = end.min((run.first + run.count) * block_size);
            let place = |byte: u64| run.start * block_size + (byte - run.first * block_size);
            let slice =
                |from: u64, to: u64| data.slice((from - plan.offset) as usize..(to - plan.offset) as usize);
            let (whole_from, whole_to) = (from.next_multiple_of(unit), to / unit * unit);
            let (outer_from, outer_to) = (from / unit * unit, to.next_multiple_of(unit));
            let mut put = |from: u64, bytes: Bytes| -> Result<()> {
                last = self.lun.write(place(from), bytes, origin)?.or(last);
                Ok(())
            };
            if (outer_from, outer_to) == (from, to) {
                put(from, slice(from, to))?;
            } else if outer_to - outer_from <= COPY_BYTES_MAX || whole_from >= whole_to {
                put(outer_from, self.padded(run, unit, from, to, place(outer_from), &slice(from, to))?)?;
            } else {
                if outer_from < from {
                    let part = slice(from, whole_from);
                    put(outer_from, self.padded(run, unit, from, whole_from, place(outer_from), &part)?)?;
                }
                put(whole_from, slice(whole_from, whole_to))?;
                if to < outer_to {
                    let part = slice(whole_to, to);
                    put(whole_to, self.padded(run, unit, whole_to, to, place(whole_to), &part)?)?;
                }
            }
        }
        Ok(last)
    }

    /// The units around `from..to` with `data` in them; what is around the data is read, or zero where nothing was yet.
    fn padded(&self, run: &Run, unit: u64, from: u64, to: u64, place: u64, data: &[u8]) -> Result<Bytes> {
        let (head, total) = (from % unit, to.next_multiple_of(unit) - from / unit * unit);
        let mut buffer = vec![0; total as usize];
        if !run.fresh {
            let unit = unit as usize;
            let tail = buffer.len() - unit;
            let (has_head, has_tail) = (head > 0, !(to as usize).is_multiple_of(unit));
            if has_head {
                self.lun.read(place, &mut buffer[..unit])?;
            }
            if has_tail && (tail > 0 || !has_head) {
                self.lun.read(place + tail as u64, &mut buffer[tail..])?;
            }
        }
        buffer[head as usize..head as usize + data.len()].copy_from_slice(data);
        Ok(buffer.into())
    }
}

impl Tx<'_> {
    /// The blocks from `block` on, at most up to `last`, as far as they are in one run: allocated if there are none,
    /// turned into written ones if reserved.
    fn map_for_write(&mut self, inode: &mut Inode, block: u64, last: u64) -> Result<Run> {
        let path = self.core.extent_path(inode, block as u32)?;
        match path.mapping(block as u32) {
            Mapping::Extent(extent) => {
                let part = extent.part(block, extent.end().min(last));
                let end = part.end();
                if extent.unwritten {
                    self.set_unwritten(inode, block, end, false)?;
                }
                Ok(Run { first: block, count: end - block, start: part.start, fresh: extent.unwritten })
            }
            Mapping::Hole(end) => {
                let wanted = (end.min(last) - block).min(u64::from(WRITTEN_MAX)) as u32;
                let goal = self.core.goal(inode, &path, block as u32);
                let ahead = window_ahead(self.core, inode, block, wanted)
                    .min((end - block - u64::from(wanted)).min(u64::from(u32::MAX)) as u32);
                let (start, count) = self.alloc_data(inode.ino, goal, wanted, ahead)?;
                self.add_blocks(inode, block as u32, start, count, false)?;
                Ok(Run { first: block, count: u64::from(count), start: start.0, fresh: true })
            }
        }
    }

    /// Enters newly allocated blocks in the tree and counts them.
    pub(super) fn add_blocks(
        &mut self,
        inode: &mut Inode,
        first: u32,
        start: BlockNo,
        count: u32,
        unwritten: bool,
    ) -> Result<()> {
        self.insert_extent(inode, &Extent { first, count, start: start.0, unwritten })?;
        inode.blocks_512 += u64::from(count) * u64::from(self.core.geometry.block_size / 512);
        Ok(())
    }
}

/// Blocks to hold behind an allocation: as many again as a growing file has.
fn window_ahead(core: &Core, inode: &Inode, block: u64, wanted: u32) -> u32 {
    let block_size = u64::from(core.geometry.block_size);
    let has = inode.size.div_ceil(block_size);
    if block < has {
        return 0;
    }
    let seems_large = if wanted >= 2 * WINDOW_BLOCKS_MIN { u64::from(wanted) } else { 0 };
    let ahead = has.max(seems_large).min(WINDOW_BYTES / block_size) as u32;
    if ahead < WINDOW_BLOCKS_MIN { 0 } else { ahead }
}
