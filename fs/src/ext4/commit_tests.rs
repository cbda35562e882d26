//! Which flush answers a sync.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::super::attr::{Context, SetAttr};
use super::super::test_support::{Form, Image};
use super::super::types::InodeNo;
use super::super::{Ext4, Options, WriteAt};
use crate::image::{Backing, Lun, MemoryBacking};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::ops::Range;
use std::sync::{Arc, mpsc};
use std::time::Duration;

const ROOT: Context = Context { uid: 0, gid: 0, may_block: true };
const PATIENCE: Duration = Duration::from_secs(20);

/// Syncs that have begun, and how many of them may end.
#[derive(Default)]
struct Counts {
    begun: usize,
    may_end: usize,
}

/// An image whose syncs end when the test lets them.
struct Gate {
    inner: MemoryBacking,
    counts: Mutex<Counts>,
    changed: Condvar,
}

impl Gate {
    fn let_end(&self, syncs: usize) {
        self.counts.lock().may_end = syncs;
        self.changed.notify_all();
    }
    fn await_begun(&self, syncs: usize) {
        let mut counts = self.counts.lock();
        while counts.begun < syncs {
            assert!(!self.changed.wait_for(&mut counts, PATIENCE).timed_out(), "no sync {syncs}");
        }
    }
}

impl Backing for Gate {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, into)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, bytes)
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.discard(offset, length)
    }
    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.reserve(offset, length)
    }
    fn sync(&self) -> io::Result<()> {
        let mut counts = self.counts.lock();
        counts.begun += 1;
        let number = counts.begun;
        self.changed.notify_all();
        while counts.may_end < number {
            self.changed.wait(&mut counts);
        }
        Ok(())
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }
}

/// A file changed, and its commit had come to its last flush. The file was then written in place, which needs no transaction, and
/// fsynced: that fsync was answered by the flush under way, which had begun before the data came. A power cut lost them. Now it is
/// answered by a flush that begins later.
#[test]
fn a_sync_is_not_answered_by_a_flush_that_began_before_its_data() {
    let image = Image::make(&Form::default());
    let gate = Arc::new(Gate {
        inner: MemoryBacking::from_bytes(&image.bytes),
        counts: Mutex::new(Counts { begun: 0, may_end: usize::MAX }),
        changed: Condvar::new(),
    });
    let ext4 = Ext4::open(Lun::new(gate.clone(), None), Options::default()).unwrap();
    let ino = ext4.lookup(InodeNo::ROOT, b"file").unwrap().ino;
    ext4.setattr(ROOT, ino, &SetAttr { permissions: Some(0o600), ..SetAttr::default() }).unwrap();
    let before = gate.counts.lock().begun;
    gate.let_end(before + 1);
    let (sender, first) = mpsc::channel();
    ext4.sync(Some(ino), false, Box::new(move |outcome| sender.send(outcome).unwrap()));
    // The flush behind the commit record.
    gate.await_begun(before + 2);
    ext4.write(ROOT, ino, WriteAt::Cached(0), vec![7; 4096].into(), false).unwrap();
    let (sender, second) = mpsc::channel();
    let at_answer = gate.clone();
    let answer = move |outcome: super::super::error::Result<_>| {
        outcome.unwrap();
        sender.send(at_answer.counts.lock().begun).unwrap();
    };
    ext4.sync(Some(ino), false, Box::new(answer));
    gate.let_end(usize::MAX);
    first.recv_timeout(PATIENCE).unwrap().unwrap();
    let begun = second.recv_timeout(PATIENCE).unwrap();
    assert!(begun > before + 2, "answered by flush {} of the commit", begun - before);
}
