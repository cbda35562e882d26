//! Allocation of blocks and inodes.
//!
//! On-disk bitmaps are metadata blocks and change in the handle. Beside them stands, for each group in use, what may be
//! *allocated* ([`view::View`]): a block freed in a transaction stays taken there until that transaction has committed
//! ([`Allocator::committed`]), and a discarded one until the discard has been made ([`Allocator::discarded`]).
//!
//! A file that grows has a *reservation window*: blocks behind its last one, taken in the views only, so that files written
//! side by side do not interleave. Windows are given up when space runs out.

mod blocks;
mod inodes;
mod layout;
mod runs;
mod view;

pub(crate) use layout::{SystemZone, touches};

use super::superblock::Geometry;
use super::types::{BlockNo, GroupNo, InodeNo};
use runs::RunSet;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use view::View;

/// A count that has not been read from the group's descriptor yet.
const UNREAD: u32 = u32::MAX;
/// Reservation windows at most; the oldest is given up for a new one.
const WINDOWS_MAX: usize = 1024;

/// One group, as far as it is known.
struct GroupState {
    view: Option<Box<View>>,
    /// Allocatable blocks (before the view is loaded: free blocks), or [`UNREAD`].
    free: u32,
    /// No allocatable run is longer than this.
    longest: u32,
    /// Free inodes, or [`UNREAD`].
    free_inodes: u32,
    /// No inode index below this one is free.
    first_free_inode: u32,
}

/// Blocks held for a growing file.
#[derive(Clone, Copy)]
struct Window {
    start: u64,
    count: u32,
}

/// In-memory state of allocation.
pub(crate) struct Allocator {
    geometry: Arc<Geometry>,
    groups: Vec<GroupState>,
    windows: FxHashMap<u32, Window>,
    /// Inodes in the order in which they got windows; some have none any more.
    window_order: VecDeque<u32>,
    /// Free, committed, not yet discarded.
    discards: RunSet,
    /// Where [`Self::take_discards`] goes on.
    discard_hand: u64,
    /// Runs handed out for discarding.
    discarding: usize,
    zone: Option<SystemZone>,
    random: u64,
}

impl Allocator {
    /// Nothing loaded yet.
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let state = || GroupState {
            view: None,
            free: UNREAD,
            longest: u32::MAX,
            free_inodes: UNREAD,
            first_free_inode: 0,
        };
        Self {
            groups: (0..geometry.group_count).map(|_| state()).collect(),
            geometry: Arc::new(geometry.clone()),
            windows: FxHashMap::default(),
            window_order: VecDeque::new(),
            discards: RunSet::default(),
            discard_hand: 0,
            discarding: 0,
            zone: None,
            random: getrandom::u64().unwrap_or(0x9E37_79B9_7F4A_7C15) | 1,
        }
    }

    /// A random number: the generation of a new inode, the group of a new top-level directory. Not for secrets.
    pub(crate) fn random(&mut self) -> u32 {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) as u32
    }

    /// The transaction that freed these runs has committed (the Flush behind its commit record has returned): they may be
    /// reused, and are to be discarded.
    pub(crate) fn committed(&mut self, freed: &[(BlockNo, u32)]) {
        for &(start, count) in freed {
            self.give(start, count);
            self.discards.insert(start.0, u64::from(count));
        }
    }

    /// Up to `max` runs of free blocks to be discarded. They can't be allocated until [`Self::discarded`] is told.
    pub(crate) fn take_discards(&mut self, max: usize) -> Vec<(BlockNo, u32)> {
        let mut runs = Vec::new();
        let mut held = Vec::new();
        while runs.len() < max && held.len() < max {
            let Some((start, count)) = self.discards.pop(self.discard_hand) else {
                if self.discard_hand == 0 {
                    break;
                }
                self.discard_hand = 0;
                continue;
            };
            self.discard_hand = start + count;
            for (group, bit, length) in parts(&self.geometry, BlockNo(start), count) {
                let first = self.geometry.group_start(group).0;
                let state = &mut self.groups[group.0 as usize];
                let Some(view) = &mut state.view else { continue };
                let mut at = bit;
                while at < bit + length {
                    let (from, run) = view.next_run(at).unwrap_or((bit + length, 0));
                    let from = from.min(bit + length);
                    if from > at {
                        // In a window: to be looked at again.
                        held.push((first + u64::from(at), u64::from(from - at)));
                    }
                    let run = run.min(bit + length - from);
                    if run > 0 {
                        view.set(from, run, true);
                        state.free -= run;
                        runs.push((BlockNo(first + u64::from(from)), run));
                    }
                    at = from + run;
                }
            }
        }
        for (start, count) in held {
            self.discards.insert(start, count);
        }
        self.discarding += runs.len();
        runs
    }

    /// These runs of [`Self::take_discards`] have been discarded (or the discard has failed): they may be allocated.
    pub(crate) fn discarded(&mut self, runs: &[(BlockNo, u32)]) {
        for &(start, count) in runs {
            self.give(start, count);
        }
        self.discarding -= runs.len();
    }

    /// Whether blocks wait to be discarded.
    pub(crate) fn has_discards(&self) -> bool {
        !self.discards.is_empty()
    }

    /// Whether blocks are being discarded now: free, but not to be had.
    pub(crate) fn is_discarding(&self) -> bool {
        self.discarding > 0
    }

    /// Gives up the reservation window of a file.
    pub(crate) fn drop_window(&mut self, ino: InodeNo) {
        if let Some(window) = self.windows.remove(&ino.0) {
            self.give(BlockNo(window.start), window.count);
        }
    }

    /// Gives up all windows; true if there was one.
    fn drop_windows(&mut self) -> bool {
        self.window_order.clear();
        let windows: Vec<Window> = self.windows.drain().map(|(_, window)| window).collect();
        for window in &windows {
            self.give(BlockNo(window.start), window.count);
        }
        !windows.is_empty()
    }

    fn add_window(&mut self, ino: InodeNo, window: Window) {
        while self.windows.len() >= WINDOWS_MAX || self.window_order.len() > 2 * WINDOWS_MAX {
            let Some(oldest) = self.window_order.pop_front() else { break };
            self.drop_window(InodeNo(oldest));
        }
        self.windows.insert(ino.0, window);
        self.window_order.push_back(ino.0);
    }

    /// Makes blocks allocatable again.
    fn give(&mut self, start: BlockNo, count: u32) {
        for (group, bit, length) in parts(&self.geometry, start, u64::from(count)) {
            let state = &mut self.groups[group.0 as usize];
            // Not loaded: it will be loaded from the bitmap, where they are free.
            let Some(view) = &mut state.view else { continue };
            view.set(bit, length, false);
            state.free += length;
            state.longest = state.longest.max(view.run_around(bit));
        }
    }

    /// Takes allocatable blocks (of one group).
    fn take(&mut self, group: GroupNo, bit: u32, count: u32) {
        let state = &mut self.groups[group.0 as usize];
        if let Some(view) = &mut state.view {
            view.set(bit, count, true);
            state.free -= count;
        }
    }
}

/// Cuts a run at group borders: group, first bit, count. Blocks outside the file system are left out.
fn parts(
    geometry: &Arc<Geometry>,
    start: BlockNo,
    count: u64,
) -> impl Iterator<Item = (GroupNo, u32, u32)> + use<> {
    let geometry = geometry.clone();
    let end = start.0.saturating_add(count);
    let mut at = start.0;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (group, bit) = geometry.group_of(BlockNo(at))?;
        let length = u64::from(geometry.group_blocks(group) - bit).min(end - at);
        at += length;
        Some((group, bit, length as u32))
    })
}
