//! The work: names made, moved, replaced and removed, links, attributes, contents written, cut, punched and reserved, and syncs
//! of all kinds, some of which nobody waits for.

use super::super::Ext4;
use super::super::attr::{Fallocate, FileKind, NewNode};
use super::super::test_support::Random;
use super::content::UNIT_BYTES;
use super::worker::{ROOT, Shared, Worker, await_sync};
use std::sync::mpsc;

/// Begins some symbolic links' targets: the journal's magic number, as it stands in the journal.
const MAGIC: [u8; 4] = [0xC0, 0x3B, 0x39, 0x98];

impl Worker {
    /// Works through about this many operations.
    pub(super) fn run(&mut self, ext4: &Ext4, shared: &Shared, operations: usize) {
        let end = self.history.begins.len() + operations;
        while self.history.begins.len() < end {
            match self.random.below(60) {
                0 => self.storm(ext4, shared),
                1 => self.comb(ext4, shared),
                _ => self.step(ext4, shared),
            }
            if self.random.below(5) == 0 {
                self.sync(ext4, shared);
            }
            if self.random.below(3) == 0 && !self.unlinked.is_empty() {
                let ino = self.unlinked.swap_remove(self.random.below(self.unlinked.len()));
                ext4.evict(ROOT, ino).expect("evict");
            }
        }
    }

    /// Attributes in a block of their own for many files, over and over, without a sync: the log fills up faster than it is
    /// brought home.
    pub(super) fn storm(&mut self, ext4: &Ext4, shared: &Shared) {
        let dir = self.pick_dir();
        let count = 20 + self.random.below(20);
        let mut names = Vec::new();
        for _ in 0..count {
            let name = self.new_name();
            self.make(ext4, shared, dir, &name, NewNode::Regular);
            names.push(name);
        }
        for _ in 0..2 + self.random.below(3) {
            for name in &names {
                if let Some(object) = self.objects[dir].entries.get(name).copied() {
                    self.set_xattr(ext4, shared, object, "user.a", true);
                }
            }
        }
        for name in names {
            if self.objects[dir].entries.contains_key(&name) {
                self.unlink(ext4, shared, dir, &name, true);
            }
        }
    }

    /// The same `count` attribute blocks over and over, each time with a sync, and the next time begun before that is answered. So
    /// a slice of the checkpoint and a commit take turns; with 67 files in blocks of 1 KiB the round has six slices, and the log is
    /// full when it ends.
    pub(super) fn sweep(&mut self, ext4: &Ext4, shared: &Shared, rounds: usize, count: usize) {
        let dir = self.pick_dir();
        let mut objects = Vec::new();
        for _ in 0..count {
            let name = self.new_name();
            objects.extend(self.make(ext4, shared, dir, &name, NewNode::Regular));
        }
        let mut before: Option<mpsc::Receiver<()>> = None;
        for _ in 0..rounds {
            for object in &objects {
                self.set_xattr(ext4, shared, *object, "user.a", true);
            }
            let answer = self.sync_all(ext4, shared);
            if let Some(before) = before.replace(answer) {
                await_sync(&before);
            }
        }
    }

    /// A file with so many holes that its extents take a block, which is freed afterwards.
    fn comb(&mut self, ext4: &Ext4, shared: &Shared) {
        let (dir, name) = (self.pick_dir(), self.new_name());
        let Some(object) = self.make(ext4, shared, dir, &name, NewNode::Regular) else { return };
        let blocks = 12 + self.random.below(8) as u64;
        self.write(ext4, shared, object, 0, blocks * self.block_size);
        for block in (1..blocks).step_by(2) {
            let operation = Fallocate::PunchHole;
            self.fallocate(ext4, shared, object, operation, block * self.block_size, self.block_size);
        }
        self.sync(ext4, shared);
        match self.random.below(3) {
            0 => self.truncate(ext4, shared, object, 0),
            1 => self.unlink(ext4, shared, dir, &name, true),
            _ => {}
        }
    }

    fn step(&mut self, ext4: &Ext4, shared: &Shared) {
        let choice = self.random.below(100);
        let crowded = self.objects.iter().filter(|object| object.links > 0).count() > 45;
        match choice {
            0..=11 if !crowded => {
                let (dir, name) = (self.pick_dir(), self.new_name());
                self.make(ext4, shared, dir, &name, NewNode::Regular);
            }
            12..=15 if !crowded => {
                let (dir, name) = (self.pick_dir(), self.new_name());
                self.make(ext4, shared, dir, &name, NewNode::Directory);
            }
            16..=18 if !crowded => {
                let (dir, name) = (self.pick_dir(), self.new_name());
                let mut target = vec![b'a' + self.random.below(26) as u8; 1 + self.random.below(300)];
                if self.random.below(2) == 0 && target.len() > 4 {
                    target[..4].copy_from_slice(&MAGIC);
                }
                self.make(ext4, shared, dir, &name, NewNode::Symlink(&target));
            }
            19..=22 => self.link(ext4, shared),
            0..=29 => {
                if let Some((dir, name)) = self.pick_name(|object| object.kind != FileKind::Directory) {
                    let now = self.random.below(3) > 0;
                    self.unlink(ext4, shared, dir, &name, now);
                }
            }
            30..=39 => self.rename(ext4, shared),
            40..=41 => self.remove_dir(ext4, shared),
            42..=46 => {
                if let Some((dir, name)) = self.pick_name(|object| object.kind != FileKind::Symlink) {
                    let object = self.objects[dir].entries[&name];
                    match self.random.below(3) {
                        0 => self.remove_xattr(ext4, shared, object),
                        kind => {
                            let name = ["user.a", "user.b", "user.c"][self.random.below(3)];
                            self.set_xattr(ext4, shared, object, name, kind == 1);
                        }
                    }
                }
            }
            _ => {
                if let Some((dir, name)) = self.pick_name(|object| object.kind == FileKind::Regular) {
                    let object = self.objects[dir].entries[&name];
                    self.change_content(ext4, shared, object, choice);
                }
            }
        }
    }

    fn change_content(&mut self, ext4: &Ext4, shared: &Shared, object: usize, choice: usize) {
        let size = self.objects[object].size;
        let units = |random: &mut Random, bound: u64| {
            random.below(bound as usize + 1) as u64 / UNIT_BYTES * UNIT_BYTES
        };
        let random = &mut self.random;
        let length = UNIT_BYTES * (1 + random.below((5 * self.block_size / UNIT_BYTES) as usize) as u64);
        let inside = units(random, size);
        match choice {
            // No more than this, so that there is room for others.
            _ if size > 40 * self.block_size => self.truncate(ext4, shared, object, inside),
            ..=72 => self.write(ext4, shared, object, size, length),
            73..=82 => self.write(ext4, shared, object, inside, length),
            83..=84 => self.write(ext4, shared, object, size + length, length),
            85..=88 => self.truncate(ext4, shared, object, inside),
            89 => self.truncate(ext4, shared, object, size + length),
            90..=92 => {
                let operation = Fallocate::Reserve { keep_size: length.is_multiple_of(128) };
                self.fallocate(ext4, shared, object, operation, size, length);
            }
            93..=96 => self.fallocate(ext4, shared, object, Fallocate::PunchHole, inside, length),
            _ => {
                let operation = Fallocate::ZeroRange { keep_size: length.is_multiple_of(128) };
                self.fallocate(ext4, shared, object, operation, inside, length);
            }
        }
    }
}
