//! Taking and freeing blocks in a handle.

use super::super::defect::Defect;
use super::super::error::{FsError, Result, errno};
use super::super::group::{BLOCK_UNINIT, GroupDesc};
use super::super::tx::{self, Core, Tx};
use super::super::types::{BlockNo, GroupNo, InodeNo};
use super::layout::{bitmap_checksum, has_group_flags, touches};
use super::view::{View, set_bits};
use super::{UNREAD, Window, parts};

/// Groups searched for a run that is long enough before a shorter one will do.
const GROUPS_SEARCHED_MAX: usize = 16;
/// A free run of this many blocks at the goal is taken even if more is wanted.
const GOAL_RUN_MIN: u32 = 16;

impl Core {
    /// Allocatable blocks of a group (an upper bound until its view is loaded).
    fn group_free(&mut self, group: GroupNo) -> Result<u32> {
        let state = &self.alloc.groups[group.0 as usize];
        if state.free != UNREAD {
            return Ok(state.free);
        }
        let desc = self.group(group)?;
        let state = &mut self.alloc.groups[group.0 as usize];
        state.free = desc.free_blocks;
        state.longest = desc.free_blocks;
        Ok(state.free)
    }

    /// Loads a group's view, if it isn't.
    fn load_view(&mut self, group: GroupNo) -> Result<()> {
        if self.alloc.groups[group.0 as usize].view.is_some() {
            return Ok(());
        }
        let desc = self.group(group)?;
        let bitmap = self.block_bitmap(group, &desc)?;
        let view = View::new(&bitmap, self.geometry.group_blocks(group));
        let free = view.count_free();
        if free != desc.free_blocks {
            let what = format!(
                "block bitmap of group {group}: {free} free, the descriptor says {}",
                desc.free_blocks
            );
            return Err(FsError::corrupt(what, None, Some(desc.block_bitmap)));
        }
        let state = &mut self.alloc.groups[group.0 as usize];
        state.free = free;
        state.longest = free;
        state.view = Some(Box::new(view));
        Ok(())
    }

    /// Takes a run (of one group) in the view alone, if all of it is free there.
    #[cfg(test)]
    pub(crate) fn take_free(&mut self, start: BlockNo, count: u32) -> Result<bool> {
        let (group, bit) = self.geometry.group_of(start).expect("a block of the file system");
        self.load_view(group)?;
        let view = self.alloc.groups[group.0 as usize].view.as_ref().expect("loaded above");
        let free = view.run_at(bit) >= count;
        if free {
            self.alloc.take(group, bit, count);
        }
        Ok(free)
    }

    /// Searches one group: a run of at least `wanted`, or the longest there is.
    fn find_in_group(&mut self, group: GroupNo, from: u32, wanted: u32) -> Result<Option<(u32, u32)>> {
        self.load_view(group)?;
        let state = &mut self.alloc.groups[group.0 as usize];
        let view = state.view.as_mut().expect("loaded above");
        let found = view.find(from, wanted);
        if found.is_none_or(|(_, length)| length < wanted) {
            state.longest = found.map_or(0, |(_, length)| length);
        }
        Ok(found)
    }

    /// The allocatable run for `least` or more blocks, `wanted` if possible; at the goal or near it.
    fn find_run(&mut self, goal: BlockNo, least: u32, wanted: u32) -> Result<Option<(GroupNo, u32, u32)>> {
        let groups = self.geometry.group_count;
        let (goal_group, goal_bit) = self.geometry.group_of(goal).unwrap_or((GroupNo(0), 0));
        if self.group_free(goal_group)? > 0 {
            self.load_view(goal_group)?;
            let view = self.alloc.groups[goal_group.0 as usize].view.as_ref().expect("loaded above");
            let run = view.run_at(goal_bit);
            if run >= least.min(GOAL_RUN_MIN) && run > 0 {
                return Ok(Some((goal_group, goal_bit, run)));
            }
        }
        let mut best: Option<(GroupNo, u32, u32)> = None;
        let mut searched = 0;
        for step in 0..groups {
            let group = GroupNo(((u64::from(goal_group.0) + u64::from(step)) % u64::from(groups)) as u32);
            let free = self.group_free(group)?;
            if free == 0 || self.alloc.groups[group.0 as usize].longest.min(free) < wanted {
                continue;
            }
            let from = if step == 0 { goal_bit } else { 0 };
            if let Some((bit, length)) = self.find_in_group(group, from, wanted)? {
                if length >= wanted {
                    return Ok(Some((group, bit, length)));
                }
                if best.is_none_or(|(_, _, longest)| length > longest) {
                    best = Some((group, bit, length));
                }
            }
            searched += 1;
            if searched >= GROUPS_SEARCHED_MAX && best.is_some_and(|(_, _, longest)| longest >= least) {
                return Ok(best);
            }
        }
        // No group has a run that long: the one with the longest. A hint may be too high; looking corrects it.
        loop {
            let candidate = (0..groups)
                .map(|step| (goal_group.0 + step) % groups)
                .map(|group| (&self.alloc.groups[group as usize], group))
                .filter(|(state, _)| state.free > 0)
                .map(|(state, group)| (state.longest.min(state.free), std::cmp::Reverse(group)))
                .max();
            let Some((longest, std::cmp::Reverse(group))) = candidate.filter(|found| found.0 > 0) else {
                return Ok(None);
            };
            if let Some((bit, length)) = self.find_in_group(GroupNo(group), 0, longest)?
                && length >= longest
            {
                return Ok(Some((GroupNo(group), bit, length)));
            }
        }
    }
}

impl Tx<'_> {
    /// Allocates 1 to `wanted` contiguous blocks, at `goal` if free there, else near it; host space is reserved.
    /// Counts, bitmap, descriptor and checksums are kept; not the inode's `blocks_512`.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub(crate) fn alloc_blocks(&mut self, goal: BlockNo, wanted: u32) -> Result<(BlockNo, u32)> {
        self.alloc_run(None, goal, wanted, 0)
    }

    /// As [`Self::alloc_blocks`], for the data of a file: out of its reservation window, which is renewed with up to
    /// `ahead` blocks where a place has to be searched for.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub(crate) fn alloc_data(
        &mut self,
        ino: InodeNo,
        goal: BlockNo,
        wanted: u32,
        ahead: u32,
    ) -> Result<(BlockNo, u32)> {
        self.alloc_run(Some(ino), goal, wanted, ahead)
    }

    fn alloc_run(
        &mut self,
        ino: Option<InodeNo>,
        goal: BlockNo,
        wanted: u32,
        ahead: u32,
    ) -> Result<(BlockNo, u32)> {
        let reserve = if self.context.uid == 0 { 0 } else { self.core.geometry.reserved_blocks };
        let wanted = u64::from(wanted).min(self.core.free_blocks.saturating_sub(reserve)) as u32;
        if wanted == 0 {
            return errno(libc::ENOSPC);
        }
        let mut from_window = None;
        if let Some(ino) = ino {
            match self.core.alloc.windows.get_mut(&ino.0) {
                Some(window) if window.start == goal.0 && window.count > 0 => {
                    let count = window.count.min(wanted);
                    window.start += u64::from(count);
                    window.count -= count;
                    from_window = Some(count);
                }
                Some(_) => self.core.alloc.drop_window(ino),
                None => {}
            }
        }
        let (start, count) = match from_window {
            Some(count) => (goal, count),
            None => self.take_run(ino, goal, wanted, ahead)?,
        };
        let was_to_be_discarded = self.core.alloc.discards.remove(start.0, u64::from(count));
        self.on_rollback(move |core| {
            core.alloc.give(start, count);
            if was_to_be_discarded {
                core.alloc.discards.insert(start.0, u64::from(count));
            }
        });
        let block_size = u64::from(self.core.geometry.block_size);
        tx::reserve(&self.core.lun, start.0 * block_size, u64::from(count) * block_size)?;
        self.mark_blocks(start, count, true)?;
        Ok((start, count))
    }

    /// Searches for a run and takes it in the view, with a window behind it.
    fn take_run(
        &mut self,
        ino: Option<InodeNo>,
        goal: BlockNo,
        wanted: u32,
        ahead: u32,
    ) -> Result<(BlockNo, u32)> {
        let core = &mut *self.core;
        let mut found = core.find_run(goal, wanted, wanted.saturating_add(ahead))?;
        if found.is_none_or(|(_, _, run)| run < wanted.min(GOAL_RUN_MIN)) && core.alloc.drop_windows() {
            found = core.find_run(goal, wanted, wanted)?;
        }
        let Some((group, bit, run)) = found else { return errno(libc::ENOSPC) };
        let count = run.min(wanted);
        let behind = (run - count).min(ahead);
        core.alloc.take(group, bit, count + behind);
        let start = core.geometry.group_start(group).0 + u64::from(bit);
        if let (Some(ino), 1..) = (ino, behind) {
            core.alloc.add_window(ino, Window { start: start + u64::from(count), count: behind });
        } else if behind > 0 {
            core.alloc.give(BlockNo(start + u64::from(count)), behind);
        }
        Ok((BlockNo(start), count))
    }

    /// Frees a run of blocks (each group's part in turn); reusable after the commit.
    ///
    /// # Errors
    /// `Corrupt` if one is free already or belongs to the file system's own structures.
    pub(crate) fn free_blocks(&mut self, start: BlockNo, count: u32) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let inside = self.core.geometry.group_of(start).is_some()
            && start.0.saturating_add(u64::from(count)) <= self.core.geometry.block_count;
        if !inside || touches(&self.core.system_zone()?, start.0, u64::from(count)) {
            let what = "freeing of blocks that belong to the file system itself or lie outside it";
            return Err(FsError::corrupt(what, None, Some(start)));
        }
        // What is freed must be known as taken until the commit: the view is loaded before the bitmap changes.
        for (group, _, _) in parts(&self.core.geometry, start, u64::from(count)) {
            self.core.load_view(group)?;
        }
        self.mark_blocks(start, count, false)?;
        self.freed(start, count);
        Ok(())
    }

    fn mark_blocks(&mut self, start: BlockNo, count: u32, used: bool) -> Result<()> {
        let geometry = self.core.geometry.clone();
        let skipped = self.core.planted.has(Defect::MissingBitmapUpdate);
        for (group, bit, length) in parts(&geometry, start, u64::from(count)) {
            let mut desc = self.core.group(group)?;
            self.init_block_bitmap(group, &mut desc)?;
            let bitmap = self.modify(desc.block_bitmap)?;
            let right = skipped || set_bits(bitmap, bit, length, used);
            let sum = bitmap_checksum(&geometry, bitmap, geometry.blocks_per_group);
            let counted = if used {
                desc.free_blocks.checked_sub(length)
            } else {
                Some(desc.free_blocks + length).filter(|free| *free <= geometry.group_blocks(group))
            };
            let (true, Some(free)) = (right, counted) else {
                let state = if used { "in use" } else { "free" };
                let what =
                    format!("block bitmap of group {group}: blocks from bit {bit} are {state} already");
                return Err(FsError::corrupt(what, None, Some(desc.block_bitmap)));
            };
            desc.free_blocks = free;
            desc.block_bitmap_checksum = sum;
            self.put_group(group, &desc)?;
            let core = &mut *self.core;
            if used {
                core.free_blocks -= u64::from(length);
            } else {
                core.free_blocks += u64::from(length);
            }
            core.counts_changed = true;
        }
        Ok(())
    }

    /// Writes the bitmap of a group that never had one, and clears the flag. The caller puts the descriptor.
    pub(super) fn init_block_bitmap(&mut self, group: GroupNo, desc: &mut GroupDesc) -> Result<()> {
        let geometry = self.core.geometry.clone();
        if !has_group_flags(&geometry) || desc.flags & BLOCK_UNINIT == 0 {
            return Ok(());
        }
        let fresh = self.core.block_bitmap(group, desc)?;
        let bitmap = self.create(desc.block_bitmap)?;
        bitmap.copy_from_slice(&fresh);
        desc.block_bitmap_checksum = bitmap_checksum(&geometry, bitmap, geometry.blocks_per_group);
        desc.flags &= !BLOCK_UNINIT;
        Ok(())
    }
}
