//! One thread's operations: each is carried out and noted in the thread's history, with what it leaves.

use super::super::Ext4;
use super::super::attr::{Attr, Context, Fallocate, FileKind, NewNode, RenameMode, SetAttr, XattrMode};
use super::super::error::{FsError, Result};
use super::super::file::WriteAt;
use super::super::test_support::Random;
use super::super::types::InodeNo;
use super::content::{Identity, UNIT_BYTES, fill};
use super::history::{Ack, Change, Covers, Facts, FileLife, ThreadHistory, Tree, What};
use crate::image::recorder::Recorder;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

pub(super) const ROOT: Context = Context { uid: 0, gid: 0, may_block: true };
/// Longest wait for a sync.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the threads share.
pub(super) struct Shared {
    pub(super) recorder: Arc<Recorder>,
    pub(super) acks: Arc<Mutex<Vec<Ack>>>,
    /// Operations that each thread has ended.
    pub(super) done: Vec<AtomicUsize>,
}

pub(super) struct Object {
    pub(super) identity: Identity,
    pub(super) kind: FileKind,
    pub(super) links: u32,
    pub(super) target: Arc<Vec<u8>>,
    pub(super) xattrs: Arc<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Names in a directory.
    pub(super) entries: BTreeMap<Vec<u8>, usize>,
    /// Number in the history, of a regular file.
    pub(super) file: Option<usize>,
    pub(super) size: u64,
    /// The last operation that changed its names or attributes.
    pub(super) named: usize,
}

/// One thread's work, kept from phase to phase.
pub(super) struct Worker {
    pub(super) thread: usize,
    pub(super) random: Random,
    pub(super) block_size: u64,
    pub(super) objects: Vec<Object>,
    /// Numbers of objects without a name that are still in use.
    pub(super) unlinked: Vec<InodeNo>,
    pub(super) version: u32,
    pub(super) names: usize,
    pub(super) history: ThreadHistory,
}

fn identity(attr: &Attr) -> Identity {
    Identity { ino: attr.ino, generation: attr.generation }
}

/// No space is an answer too; nothing else is expected.
fn fits<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(FsError::Errno(libc::ENOSPC)) => None,
        Err(error) => panic!("an operation of the workload failed: {error}"),
    }
}

impl Worker {
    /// `directory`: the thread's own, empty.
    pub(super) fn new(thread: usize, seed: u64, block_size: u64, directory: &Attr) -> Self {
        let object = Object {
            identity: identity(directory),
            kind: FileKind::Directory,
            links: 2,
            target: Arc::default(),
            xattrs: Arc::default(),
            entries: BTreeMap::new(),
            file: None,
            size: 0,
            named: 0,
        };
        let history = ThreadHistory { begins: vec![0], trees: vec![Arc::default()], files: Vec::new() };
        Self {
            thread,
            random: Random(seed.wrapping_mul(31).wrapping_add(thread as u64)),
            block_size,
            objects: vec![object],
            unlinked: Vec::new(),
            version: 0,
            names: 0,
            history,
        }
    }

    pub(super) fn pick_dir(&mut self) -> usize {
        let dirs: Vec<usize> = (0..self.objects.len())
            .filter(|at| self.objects[*at].kind == FileKind::Directory && self.objects[*at].links > 0)
            .collect();
        dirs[self.random.below(dirs.len())]
    }

    pub(super) fn pick_name(&mut self, fits: impl Fn(&Object) -> bool) -> Option<(usize, Vec<u8>)> {
        let all: Vec<(usize, &Vec<u8>)> = self
            .objects
            .iter()
            .enumerate()
            .filter(|(_, dir)| dir.links > 0)
            .flat_map(|(at, dir)| dir.entries.iter().map(move |(name, object)| (at, name, *object)))
            .filter(|(_, _, object)| fits(&self.objects[*object]))
            .map(|(at, name, _)| (at, name))
            .collect();
        if all.is_empty() {
            return None;
        }
        let (dir, name) = all[self.random.below(all.len())];
        Some((dir, name.clone()))
    }

    pub(super) fn new_name(&mut self) -> Vec<u8> {
        self.names += 1;
        let long = if self.random.below(3) == 0 { self.random.below(200) } else { 0 };
        format!("n{}{}", self.names, "x".repeat(long)).into_bytes()
    }

    fn ino(&self, object: usize) -> InodeNo {
        self.objects[object].identity.ino
    }

    fn begin(&mut self, shared: &Shared) -> usize {
        self.history.begins.push(shared.recorder.position());
        self.history.begins.len() - 1
    }

    /// Ends an operation; `concerned`: whose names or attributes it may have changed.
    fn end(&mut self, shared: &Shared, operation: usize, concerned: &[usize]) {
        for object in concerned {
            self.objects[*object].named = operation;
        }
        let tree = match concerned {
            [] => self.history.trees.last().expect("there is one before the first operation").clone(),
            _ => {
                let mut tree = Tree::new();
                self.collect(0, &[], &mut tree);
                Arc::new(tree)
            }
        };
        self.history.trees.push(tree);
        shared.done[self.thread].store(operation, Ordering::Release);
    }

    fn collect(&self, dir: usize, path: &[u8], tree: &mut Tree) {
        for (name, at) in &self.objects[dir].entries {
            let object = &self.objects[*at];
            let full = [path, b"/", name].concat();
            let facts = Facts {
                identity: object.identity,
                kind: object.kind,
                links: object.links,
                target: object.target.clone(),
                xattrs: object.xattrs.clone(),
            };
            if object.kind == FileKind::Directory {
                self.collect(*at, &full, tree);
            }
            tree.insert(full, facts);
        }
    }

    pub(super) fn make(
        &mut self,
        ext4: &Ext4,
        shared: &Shared,
        dir: usize,
        name: &[u8],
        node: NewNode<'_>,
    ) -> Option<usize> {
        let operation = self.begin(shared);
        let made = fits(ext4.make(ROOT, self.ino(dir), name, node, 0o755, 0));
        let Some(attr) = made else {
            self.end(shared, operation, &[]);
            return None;
        };
        let at = self.objects.len();
        let file = (attr.kind == FileKind::Regular).then(|| {
            self.history.files.push(FileLife { identity: identity(&attr), changes: Vec::new() });
            self.history.files.len() - 1
        });
        let target = if let NewNode::Symlink(target) = node { target.to_vec() } else { Vec::new() };
        self.objects.push(Object {
            identity: identity(&attr),
            kind: attr.kind,
            links: attr.links,
            target: Arc::new(target),
            xattrs: Arc::default(),
            entries: BTreeMap::new(),
            file,
            size: 0,
            named: operation,
        });
        self.objects[dir].entries.insert(name.to_vec(), at);
        if attr.kind == FileKind::Directory {
            self.objects[dir].links += 1;
        }
        self.end(shared, operation, &[dir, at]);
        Some(at)
    }

    pub(super) fn link(&mut self, ext4: &Ext4, shared: &Shared) {
        let picked = self.pick_name(|object| object.kind == FileKind::Regular && object.links < 4);
        let Some((from, name)) = picked else { return };
        let (object, dir, name) = (self.objects[from].entries[&name], self.pick_dir(), self.new_name());
        let operation = self.begin(shared);
        if fits(ext4.link(ROOT, self.ino(object), self.ino(dir), &name)).is_some() {
            self.objects[dir].entries.insert(name, object);
            self.objects[object].links += 1;
            self.end(shared, operation, &[dir, object]);
        } else {
            self.end(shared, operation, &[]);
        }
    }

    pub(super) fn unlink(&mut self, ext4: &Ext4, shared: &Shared, dir: usize, name: &[u8], evict: bool) {
        let operation = self.begin(shared);
        let Some(attr) = fits(ext4.unlink(ROOT, self.ino(dir), name)) else {
            return self.end(shared, operation, &[]);
        };
        let object = self.objects[dir].entries.remove(name).expect("it was there");
        self.objects[object].links -= 1;
        assert_eq!(attr.links, self.objects[object].links);
        self.end(shared, operation, &[dir, object]);
        self.gone(ext4, object, evict);
    }

    /// The last name has gone: freed now, or later.
    fn gone(&mut self, ext4: &Ext4, object: usize, evict: bool) {
        if self.objects[object].links > 0 {
            return;
        }
        match evict {
            true => ext4.evict(ROOT, self.ino(object)).expect("evict"),
            false => self.unlinked.push(self.ino(object)),
        }
    }

    pub(super) fn remove_dir(&mut self, ext4: &Ext4, shared: &Shared) {
        let Some((parent, name)) = self.pick_name(|object| object.kind == FileKind::Directory) else {
            return;
        };
        let dir = self.objects[parent].entries[&name];
        let inside: Vec<(Vec<u8>, usize)> =
            self.objects[dir].entries.iter().map(|(name, object)| (name.clone(), *object)).collect();
        if inside.iter().any(|(_, object)| self.objects[*object].kind == FileKind::Directory) {
            return;
        }
        for (name, _) in inside {
            self.unlink(ext4, shared, dir, &name, true);
        }
        let operation = self.begin(shared);
        if fits(ext4.rmdir(ROOT, self.ino(parent), &name)).is_none() {
            return self.end(shared, operation, &[]);
        }
        self.objects[parent].entries.remove(&name);
        self.objects[parent].links -= 1;
        self.objects[dir].links = 0;
        self.end(shared, operation, &[parent, dir]);
        let now = self.random.below(2) == 0;
        self.gone(ext4, dir, now);
    }

    fn lies_below(&self, dir: usize, ancestor: usize) -> bool {
        dir == ancestor
            || self.objects[ancestor]
                .entries
                .values()
                .any(|at| self.objects[*at].kind == FileKind::Directory && self.lies_below(dir, *at))
    }

    pub(super) fn rename(&mut self, ext4: &Ext4, shared: &Shared) {
        let Some((from, name)) = self.pick_name(|_| true) else { return };
        let object = self.objects[from].entries[&name];
        let is_dir = self.objects[object].kind == FileKind::Directory;
        let mode = if self.random.below(5) == 0 { RenameMode::Exchange } else { RenameMode::Replace };
        // Over something, or to a new name.
        let over = self.random.below(3) > 0 || mode == RenameMode::Exchange;
        let same_kind = |other: &Object| {
            (other.kind == FileKind::Directory) == is_dir
                && (!is_dir || mode == RenameMode::Exchange || other.entries.is_empty())
        };
        let (to, new_name) = match if over { self.pick_name(same_kind) } else { None } {
            Some(place) => place,
            None if mode == RenameMode::Exchange => return,
            None => (self.pick_dir(), self.new_name()),
        };
        let other = self.objects[to].entries.get(&new_name).copied();
        if other == Some(object)
            || (is_dir && self.lies_below(to, object))
            || (is_dir && other.is_some_and(|other| self.lies_below(from, other)))
        {
            return;
        }
        let operation = self.begin(shared);
        let renamed = ext4.rename(ROOT, (self.ino(from), &name), (self.ino(to), &new_name), mode);
        if fits(renamed).is_none() {
            return self.end(shared, operation, &[]);
        }
        self.objects[to].entries.insert(new_name, object);
        match (mode, other) {
            (RenameMode::Exchange, Some(other)) => {
                self.objects[from].entries.insert(name, other);
            }
            (_, other) => {
                self.objects[from].entries.remove(&name);
                if is_dir {
                    self.objects[from].links -= 1;
                    self.objects[to].links += u32::from(other.is_none());
                }
                if let Some(other) = other {
                    self.objects[other].links = if is_dir { 0 } else { self.objects[other].links - 1 };
                }
            }
        }
        let concerned: Vec<usize> = [from, to, object].into_iter().chain(other).collect();
        self.end(shared, operation, &concerned);
        if let (RenameMode::Replace, Some(other)) = (mode, other) {
            let now = self.random.below(2) == 0;
            self.gone(ext4, other, now);
        }
    }

    pub(super) fn set_xattr(&mut self, ext4: &Ext4, shared: &Shared, object: usize, name: &str, large: bool) {
        let operation = self.begin(shared);
        let name = name.as_bytes();
        let length = if large { self.block_size as usize / 3 } else { 5 + self.random.below(40) };
        self.version += 1;
        let value: Vec<u8> = self.version.to_le_bytes().into_iter().cycle().take(length).collect();
        if fits(ext4.setxattr(ROOT, self.ino(object), name, &value, XattrMode::Set)).is_none() {
            return self.end(shared, operation, &[]);
        }
        Arc::make_mut(&mut self.objects[object].xattrs).insert(name.to_vec(), value);
        self.end(shared, operation, &[object]);
    }

    pub(super) fn remove_xattr(&mut self, ext4: &Ext4, shared: &Shared, object: usize) {
        let Some(name) = self.objects[object].xattrs.keys().next().cloned() else { return };
        let operation = self.begin(shared);
        if fits(ext4.removexattr(ROOT, self.ino(object), &name)).is_none() {
            return self.end(shared, operation, &[]);
        }
        Arc::make_mut(&mut self.objects[object].xattrs).remove(&name);
        self.end(shared, operation, &[object]);
    }

    /// Notes a change of content, and the size that it has left.
    fn changed(&mut self, shared: &Shared, operation: usize, object: usize, what: What, size: u64) {
        let file = self.objects[object].file.expect("a regular file");
        let sizes = (self.objects[object].size, size);
        self.history.files[file].changes.push(Change { operation, what, sizes });
        self.objects[object].size = size;
        self.end(shared, operation, &[]);
    }

    pub(super) fn write(&mut self, ext4: &Ext4, shared: &Shared, object: usize, offset: u64, length: u64) {
        let operation = self.begin(shared);
        self.version += 1;
        let Object { identity, size, .. } = self.objects[object];
        let units = units(offset, length);
        let bytes = Bytes::from(fill(identity, units.clone(), self.version));
        let at = match self.random.below(3) {
            0 => WriteAt::Cached(offset),
            1 if offset == size => WriteAt::Append,
            _ => WriteAt::Offset(offset),
        };
        let written =
            fits(ext4.write(ROOT, identity.ino, at, bytes, false)).map_or(0, |written| written.bytes as u64);
        let what = What::Written(units.start..units.start + (written / UNIT_BYTES) as u32, self.version);
        let size = if written == 0 { size } else { size.max(offset + written) };
        self.changed(shared, operation, object, what, size);
    }

    pub(super) fn truncate(&mut self, ext4: &Ext4, shared: &Shared, object: usize, size: u64) {
        let operation = self.begin(shared);
        match fits(ext4.truncate(ROOT, self.ino(object), size, &SetAttr::default())) {
            Some(_) => {
                let what = What::Zeroed((size / UNIT_BYTES) as u32..u32::MAX);
                self.changed(shared, operation, object, what, size);
            }
            None => self.end(shared, operation, &[]),
        }
    }

    pub(super) fn fallocate(
        &mut self,
        ext4: &Ext4,
        shared: &Shared,
        object: usize,
        what: Fallocate,
        offset: u64,
        length: u64,
    ) {
        let operation = self.begin(shared);
        // What did not fit may have been done in part.
        let _part = fits(ext4.fallocate(ROOT, self.ino(object), what, offset, length, false));
        let size = ext4.getattr(self.ino(object)).expect("it is there").size;
        let zeroed = match what {
            Fallocate::Reserve { .. } => 0..0,
            _ => units(offset, length),
        };
        self.changed(shared, operation, object, What::Zeroed(zeroed), size);
    }

    pub(super) fn sync(&mut self, ext4: &Ext4, shared: &Shared) {
        let kind = self.random.below(6);
        let file = match kind {
            0 => None,
            // fsync of a directory, mostly of a file.
            2 => self.pick_name(|object| object.kind == FileKind::Directory),
            _ => self.pick_name(|object| object.kind == FileKind::Regular),
        };
        let Some((dir, name)) = file else { return await_sync(&self.sync_all(ext4, shared)) };
        let object = self.objects[dir].entries[&name];
        let datasync = kind == 1;
        let covers = Covers::One {
            thread: self.thread,
            file: self.objects[object].file,
            operation: self.history.begins.len() - 1,
            names: (!datasync).then_some(self.objects[object].named),
        };
        let answer = promise(ext4, shared, Some(self.ino(object)), datasync, covers);
        if self.random.below(4) > 0 {
            await_sync(&answer);
        }
    }

    pub(super) fn sync_all(&mut self, ext4: &Ext4, shared: &Shared) -> mpsc::Receiver<()> {
        let done = shared.done.iter().map(|done| done.load(Ordering::Acquire)).collect();
        promise(ext4, shared, None, false, Covers::Everything(done))
    }
}

/// A sync, its answer noted, and told to who waits.
fn promise(
    ext4: &Ext4,
    shared: &Shared,
    ino: Option<InodeNo>,
    datasync: bool,
    covers: Covers,
) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel();
    let (acks, recorder) = (shared.acks.clone(), shared.recorder.clone());
    let done = Box::new(move |outcome: Result<_>| {
        outcome.expect("a sync");
        acks.lock().push(Ack { position: recorder.position(), covers });
        // Nobody may be waiting.
        let _ = sender.send(());
    });
    ext4.sync(ino, datasync, done);
    receiver
}

/// Waits for the answer of a sync.
pub(super) fn await_sync(answer: &mpsc::Receiver<()>) {
    answer.recv_timeout(PATIENCE).expect("a sync is answered");
}

fn units(offset: u64, length: u64) -> Range<u32> {
    (offset / UNIT_BYTES) as u32..((offset + length) / UNIT_BYTES) as u32
}
