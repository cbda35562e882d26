//! Damage to an image that knows where its structures lie.

use super::base::Base;
use super::structure::{Kind, Place, Structure};
use crate::{Input, mutate};
use std::mem::discriminant;

/// What was done to an image.
#[derive(Default)]
pub(super) struct Damage {
    /// The superblock may say something else now.
    pub(super) superblock: bool,
    /// Bytes that the image has now.
    pub(super) size: u64,
}

/// Offsets in the superblock whose fields decide something.
const SUPERBLOCK: [usize; 40] = [
    0x0, 0x4, 0x8, 0xC, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x28, 0x34, 0x36, 0x38, 0x3A, 0x3C, 0x4C, 0x54,
    0x58, 0x5A, 0x5C, 0x60, 0x64, 0xCE, 0xE0, 0xE8, 0xEC, 0xFC, 0xFE, 0x104, 0x10C, 0x150, 0x154, 0x158,
    0x15C, 0x15E, 0x160, 0x174, 0x178, 0x270,
];
const DESCRIPTOR: [usize; 12] = [0x0, 0x4, 0x8, 0xC, 0xE, 0x10, 0x12, 0x1C, 0x20, 0x24, 0x28, 0x2C];
const INODE: [usize; 30] = [
    0x0, 0x2, 0x4, 0x14, 0x1A, 0x1C, 0x20, 0x28, 0x2A, 0x2C, 0x2E, 0x30, 0x34, 0x38, 0x3A, 0x3C, 0x40, 0x44,
    0x46, 0x48, 0x4C, 0x64, 0x68, 0x6C, 0x74, 0x76, 0x80, 0xA0, 0xA4, 0xB0,
];
const EXTENTS: [usize; 16] =
    [0x0, 0x2, 0x4, 0x6, 0xC, 0x10, 0x12, 0x14, 0x18, 0x1C, 0x1E, 0x20, 0x24, 0x28, 0x2A, 0x2C];
const DIRECTORY: [usize; 14] = [0x0, 0x4, 0x6, 0x7, 0x8, 0xC, 0x10, 0x12, 0x14, 0x18, 0x1C, 0x1E, 0x1F, 0x20];
const INDEX: [usize; 14] = [0x0, 0x4, 0x8, 0xC, 0x10, 0x18, 0x1C, 0x1D, 0x1E, 0x20, 0x22, 0x24, 0x28, 0x2C];
const ATTRIBUTES: [usize; 14] =
    [0x0, 0x4, 0x8, 0xC, 0x20, 0x21, 0x22, 0x24, 0x28, 0x2C, 0x30, 0x31, 0x32, 0x34];
const JOURNAL_SUPERBLOCK: [usize; 14] =
    [0x0, 0x4, 0x8, 0xC, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x28, 0x2C, 0x50, 0x54];
const JOURNAL: [usize; 12] = [0x0, 0x4, 0x8, 0xC, 0x10, 0x14, 0x1C, 0x20, 0x2C, 0x30, 0x3C, 0x40];

/// Damages `image`, which is a copy of the base.
pub(super) fn damage(input: &mut Input<'_>, base: &Base, image: &mut Vec<u8>) -> Damage {
    let mut damage = Damage { superblock: false, size: image.len() as u64 };
    for _ in 0..1 + input.short(5) {
        let Some(place) = pick(input, base, image) else { continue };
        damage.superblock |= place.kind == Kind::Superblock;
        let start = place.block as usize * base.structure.block_size;
        // The superblock's block may begin with something else.
        let start = if place.kind == Kind::Superblock { 1024 } else { start };
        let length = if place.kind == Kind::Superblock { 1024 } else { base.structure.block_size };
        change(input, base, image, place, start..start + length);
        // Right checksums most of the time: otherwise they are all that is tested.
        if !input.once_in(8) {
            base.structure.seal(image, place);
        }
    }
    if input.once_in(40) {
        let size = input.below(image.len() as u64 / 512 + 1) * 512;
        image.truncate(size as usize);
        damage.size = size;
    }
    damage
}

/// A structure: each kind as likely as the others, however many blocks it has.
fn pick(input: &mut Input<'_>, base: &Base, image: &[u8]) -> Option<Place> {
    let Structure { places, journal, .. } = &base.structure;
    let mut kinds: Vec<&[Place]> = Vec::new();
    let mut rest = &places[..];
    while let Some(first) = rest.first() {
        let same =
            rest.iter().take_while(|place| discriminant(&place.kind) == discriminant(&first.kind)).count();
        let (kind, others) = rest.split_at(same);
        kinds.push(kind);
        rest = others;
    }
    let kind = *input.pick(&kinds);
    match kind.first()?.kind {
        // Inodes in use, and what the log holds now, rather than empty blocks.
        Kind::Inodes(_) if !input.once_in(8) => {
            let used = input.pick(&base.structure.used).at as u64;
            let block = used / base.structure.block_size as u64;
            kind.iter().find(|place| place.block == block).copied()
        }
        Kind::Journal => {
            let (start, log) = base.structure.log(image);
            let index = if start == 0 || input.once_in(8) {
                log.start + input.index(log.len())
            } else {
                log.start + (start.saturating_sub(log.start) + input.short(128) as usize) % log.len().max(1)
            };
            Some(Place { block: *journal.get(index)?, kind: Kind::Journal })
        }
        _ => Some(*input.pick(kind)),
    }
}

fn change(input: &mut Input<'_>, base: &Base, image: &mut [u8], place: Place, range: std::ops::Range<usize>) {
    let structure = &base.structure;
    if input.once_in(10) {
        // Another structure's block in its place, of the same kind or not.
        let other = input.pick(&structure.places).block as usize * structure.block_size;
        if other + range.len() <= image.len() {
            image.copy_within(other..other + range.len(), range.start);
        }
        return;
    }
    if input.once_in(10) {
        return mutate::ranges(input, &mut image[range]);
    }
    match place.kind {
        Kind::Superblock => mutate::fields(input, &mut image[range], &SUPERBLOCK, false),
        Kind::Descriptors => {
            let at = range.start + input.index(structure.groups as usize) * structure.descriptor_size;
            let end = (at + structure.descriptor_size).min(image.len());
            mutate::fields(input, &mut image[at..end], &DESCRIPTOR, false);
        }
        Kind::Inodes(_) => {
            let here: Vec<usize> =
                structure.used.iter().map(|used| used.at).filter(|at| range.contains(at)).collect();
            let at = if here.is_empty() { range.start } else { *input.pick(&here) };
            mutate::fields(input, &mut image[at..at + structure.inode_size], &INODE, false);
        }
        Kind::Extents(_) => mutate::fields(input, &mut image[range], &EXTENTS, false),
        Kind::Directory(_) => mutate::fields(input, &mut image[range], &DIRECTORY, false),
        Kind::IndexRoot(_) | Kind::IndexNode(_) => mutate::fields(input, &mut image[range], &INDEX, false),
        Kind::Attributes(_) => mutate::fields(input, &mut image[range], &ATTRIBUTES, false),
        Kind::JournalSuperblock => mutate::fields(input, &mut image[range], &JOURNAL_SUPERBLOCK, true),
        Kind::Journal => mutate::fields(input, &mut image[range], &JOURNAL, true),
        Kind::BlockBitmap(_) | Kind::InodeBitmap(_) | Kind::Data(_) => {
            mutate::fields(input, &mut image[range], &[], false);
        }
    }
}
