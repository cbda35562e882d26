//! Zeroing parts of blocks that stay.

use super::super::error::Result;
use super::super::inode::Inode;
use super::super::tx::Core;
use super::super::types::FileBlock;
use super::write::SECTOR;
use crate::image::Lun;
use mirrorfs_journal::Origin;
use mirrorfs_journal::log::Appended;

/// Up to two ranges of the image, within a block each, that are to become zero.
#[derive(Clone, Copy, Default)]
pub(super) struct Zeroes([Option<(u64, u64)>; 2]);

impl Zeroes {
    /// The bytes `from..to` of the file, as far as they are in the same block as `from` and that holds data. Nothing if
    /// `from` is where a block starts: whole blocks are not this one's business.
    pub(super) fn in_block(core: &mut Core, inode: &Inode, from: u64, to: u64) -> Result<Self> {
        let block_size = u64::from(core.geometry.block_size);
        if from.is_multiple_of(block_size) {
            return Ok(Self::default());
        }
        Self::part(core, inode, from, to.min(from.next_multiple_of(block_size)))
    }

    /// The parts of blocks at both ends of `from..to`.
    pub(super) fn at_ends(core: &mut Core, inode: &Inode, from: u64, to: u64) -> Result<Self> {
        let block_size = u64::from(core.geometry.block_size);
        let Self([head, _]) = Self::in_block(core, inode, from, to)?;
        let last = to / block_size * block_size;
        let one_block = from > last;
        if to == last || one_block {
            return Ok(Self([head, None]));
        }
        let Self([tail, _]) = Self::part(core, inode, last, to)?;
        Ok(Self([head, tail]))
    }

    fn part(core: &mut Core, inode: &Inode, from: u64, to: u64) -> Result<Self> {
        let block_size = u64::from(core.geometry.block_size);
        let Ok(block) = u32::try_from(from / block_size) else { return Ok(Self::default()) };
        let place = core.map_block(inode, FileBlock(block))?;
        Ok(Self([place.map(|place| (core.geometry.byte_of(place) + from % block_size, to - from)), None]))
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// Whether writing would mark no region.
    pub(super) fn is_warm(&self, lun: &Lun) -> bool {
        self.0.iter().flatten().all(|(at, length)| lun.is_warm(*at, *length))
    }

    /// Writes the zeros, where there are none yet.
    pub(super) fn carry_out(&self, lun: &Lun, origin: Origin) -> Result<Option<Appended>> {
        let mut last = None;
        for (at, length) in self.0.iter().flatten() {
            let (from, to) = (at / SECTOR * SECTOR, (at + length).next_multiple_of(SECTOR));
            let mut buffer = vec![0; (to - from) as usize];
            lun.read(from, &mut buffer)?;
            let part = &mut buffer[(at - from) as usize..(at - from + length) as usize];
            if part.iter().any(|byte| *byte != 0) {
                part.fill(0);
                last = lun.write(from, buffer.into(), origin)?.or(last);
            }
        }
        Ok(last)
    }
}
