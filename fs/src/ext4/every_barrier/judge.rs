//! Judges one state that a crash could have left.

use super::super::attr::FileKind;
use super::super::types::InodeNo;
use super::super::{Ext4, Options};
use super::content::{Identity, UNIT_BYTES, version_at};
use super::fsck::Scratch;
use super::history::{Facts, ThreadExpectation, Tree};
use super::pages::{PagedImage, Pages};
use super::record::{Recording, directory_name};
use crate::image::Lun;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Where ext4's superblock lies.
const SUPERBLOCK: Range<u64> = 1024..2048;
const FEATURE_INCOMPAT: u64 = 1024 + 0x60;
const NEEDS_RECOVERY: u32 = 0x4;
const LAST_ORPHAN: u64 = 1024 + 0xE8;
/// Bytes of the journal's superblock.
const JOURNAL_SUPERBLOCK_BYTES: u64 = 1024;

/// What a state had in it, for the figures.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// The journal had to be replayed.
    pub(super) replays: usize,
    /// Replay left orphans to be cleaned up.
    pub(super) orphans: usize,
    /// Our replay and e2fsck's were compared byte for byte.
    pub(super) compared: usize,
    /// Files whose content was read.
    pub(super) files: usize,
}

/// A judge with a file of its own.
pub(super) struct Judge<'a> {
    recording: &'a Recording,
    scratch: Scratch,
}

impl<'a> Judge<'a> {
    pub(super) fn new(recording: &'a Recording) -> Self {
        Self { recording, scratch: Scratch::new(recording.base.size_bytes()) }
    }

    /// Everything that must hold of this state; what does not, in words.
    pub(super) fn judge(&mut self, crashed: &Pages, expected: &[ThreadExpectation]) -> Result<Seen, String> {
        catch_unwind(AssertUnwindSafe(|| self.look(crashed, expected))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(format!("panic: {}", text.unwrap_or_default()))
        })
    }

    fn look(&mut self, crashed: &Pages, expected: &[ThreadExpectation]) -> Result<Seen, String> {
        let mut seen = Seen::default();
        let image = Arc::new(PagedImage::new(crashed.clone(), Duration::ZERO));
        let lun = Lun::new(image.clone(), None);
        let read_only = Options { read_only: true, ..Options::default() };
        let ext4 = Ext4::open(lun, read_only).map_err(|error| format!("our recovery: {error}"))?;
        let recovered = image.snapshot();

        self.scratch.put(crashed);
        let replays = crashed.le32(FEATURE_INCOMPAT) & NEEDS_RECOVERY != 0;
        seen.replays = usize::from(replays);
        // Read-only for a while, an image is clean, and what was in use without a name is on its orphan list all the same.
        if replays || crashed.le32(LAST_ORPHAN) != 0 {
            self.scratch.replay()?;
        }
        // e2fsck goes on from replay to the orphans, we do so only when we are to write.
        if recovered.le32(LAST_ORPHAN) == 0 {
            let journal = self.recording.journal[0] * self.recording.form.block_size;
            // Both hold times, and who was there last.
            let apart = [SUPERBLOCK, journal..journal + JOURNAL_SUPERBLOCK_BYTES];
            if let Some(at) = self.scratch.difference(&recovered, &apart) {
                return Err(format!("our replay and e2fsck's differ at byte {at}"));
            }
            seen.compared = 1;
        } else {
            seen.orphans = 1;
        }
        self.scratch.check().map_err(|why| format!("after e2fsck's replay: {why}"))?;

        ext4.set_read_only(false).map_err(|error| format!("our recovery of orphans: {error}"))?;
        for (thread, expected) in expected.iter().enumerate() {
            seen.files += check_thread(&ext4, thread, expected)?;
        }
        ext4.close().map_err(|error| format!("closing: {error}"))?;
        self.scratch.put(&image.snapshot());
        self.scratch.check().map_err(|why| format!("after our recovery: {why}"))?;
        Ok(seen)
    }
}

fn check_thread(ext4: &Ext4, thread: usize, expected: &ThreadExpectation) -> Result<usize, String> {
    let wrong = |what: &str, error: &dyn std::fmt::Display| format!("thread {thread}: {what}: {error}");
    let name = directory_name(thread);
    let dir = ext4.lookup(InodeNo::ROOT, &name).map_err(|error| wrong("its directory", &error))?;
    let mut tree = Tree::new();
    read_tree(ext4, (dir.ino, InodeNo::ROOT), &[], &mut tree).map_err(|why| wrong("its tree", &why))?;
    if !expected.trees.iter().any(|possible| **possible == tree) {
        let (least, most) = expected.operations;
        let first = difference(&expected.trees[0], &tree);
        return Err(wrong(&format!("no tree of operations {least} to {most} is found"), &first));
    }
    let mut read = BTreeSet::new();
    for (path, facts) in &tree {
        if facts.kind == FileKind::Regular && read.insert(facts.identity) {
            check_content(ext4, facts.identity, expected)
                .map_err(|why| wrong(&format!("{}", String::from_utf8_lossy(path)), &why))?;
        }
    }
    Ok(read.len())
}

fn check_content(ext4: &Ext4, of: Identity, expected: &ThreadExpectation) -> Result<(), String> {
    let file = expected.files.get(&of).ok_or("a file that nobody has made")?;
    let size = ext4.getattr(of.ino).map_err(|error| error.to_string())?.size;
    file.check_size(size)?;
    let mut bytes = vec![0; size as usize];
    let count = ext4.read(of.ino, 0, &mut bytes).map_err(|error| error.to_string())?;
    if count != bytes.len() {
        return Err(format!("{count} bytes of {size} can be read"));
    }
    for (unit, bytes) in (0_u32..).zip(bytes.chunks(UNIT_BYTES as usize)) {
        version_at(of, unit, bytes)
            .and_then(|version| file.check_unit(unit, version))
            .map_err(|why| format!("unit {unit} of inode {}: {why}", of.ino))?;
    }
    Ok(())
}

/// Reads all below the directory `at` (its number, and its parent's).
fn read_tree(ext4: &Ext4, at: (InodeNo, InodeNo), path: &[u8], tree: &mut Tree) -> Result<(), String> {
    let text = |error: super::super::error::FsError| error.to_string();
    for entry in ext4.read_dir(at.0, 0).map_err(text)? {
        match entry.name.as_slice() {
            b"." if entry.ino != at.0 => return Err(format!("\".\" of inode {} is {}", at.0, entry.ino)),
            b".." if entry.ino != at.1 => return Err(format!("\"..\" of inode {} is {}", at.0, entry.ino)),
            b"." | b".." => continue,
            _ => {}
        }
        let full = [path, b"/", &entry.name].concat();
        let attr = ext4.lookup(at.0, &entry.name).map_err(text)?;
        if (attr.ino, attr.kind) != (entry.ino, entry.kind) {
            return Err(format!("{entry:?} is {attr:?}"));
        }
        let mut xattrs = BTreeMap::new();
        for name in ext4.listxattr(attr.ino).map_err(text)? {
            let value = ext4.getxattr(attr.ino, &name).map_err(text)?;
            xattrs.insert(name, value);
        }
        let target = match attr.kind {
            FileKind::Symlink => ext4.readlink(attr.ino).map_err(text)?,
            _ => Vec::new(),
        };
        let facts = Facts {
            identity: Identity { ino: attr.ino, generation: attr.generation },
            kind: attr.kind,
            links: attr.links,
            target: Arc::new(target),
            xattrs: Arc::new(xattrs),
        };
        if attr.kind == FileKind::Directory {
            read_tree(ext4, (attr.ino, at.0), &full, tree)?;
        }
        tree.insert(full, facts);
    }
    Ok(())
}

/// The first few names that differ.
fn difference(wanted: &Tree, found: &Tree) -> String {
    let paths: BTreeSet<&Vec<u8>> = wanted.keys().chain(found.keys()).collect();
    let differ = paths.into_iter().filter(|path| wanted.get(*path) != found.get(*path));
    let lines = differ.take(4).map(|path| {
        let short = |facts: Option<&Facts>| {
            facts.map_or("nothing".to_owned(), |it| {
                format!("{:?} {:?}, {} links, {} xattrs", it.identity, it.kind, it.links, it.xattrs.len())
            })
        };
        let (wanted, found) = (short(wanted.get(path)), short(found.get(path)));
        format!("\n  {}: {wanted} at first, found {found}", String::from_utf8_lossy(path))
    });
    lines.collect()
}
