//! What was done, and what therefore may and must be found after a crash.
//!
//! Each thread works in a directory of its own, so its operations are a sequence, and each of them that concerns names is one
//! handle: recovery must show the thread's tree **as it was after one of its operations**, not before the last one that a sync
//! covered. A file's units may hold what they held at any moment since the last sync that covered the file, nothing else.

use super::super::attr::FileKind;
use super::content::{Identity, UNIT_BYTES};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// One name, and what it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) identity: Identity,
    pub(super) kind: FileKind,
    pub(super) links: u32,
    pub(super) target: Arc<Vec<u8>>,
    pub(super) xattrs: Arc<BTreeMap<Vec<u8>, Vec<u8>>>,
}

/// All names below a thread's directory.
pub(super) type Tree = BTreeMap<Vec<u8>, Facts>;

/// What happened to a file's content.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// These units were written, with this version.
    Written(Range<u32>, u32),
    /// These units became zero; with `u32::MAX` at the end: all behind the new end of the file.
    Zeroed(Range<u32>),
}

/// One change of a file's content or size.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// Number of the operation.
    pub(super) operation: usize,
    pub(super) what: What,
    /// Bytes of the file before, and after.
    pub(super) sizes: (u64, u64),
}

/// One file's life.
pub(super) struct FileLife {
    pub(super) identity: Identity,
    pub(super) changes: Vec<Change>,
}

/// What one thread did. Operation 0 is the state before the first.
pub(super) struct ThreadHistory {
    /// For each operation: requests recorded when it began.
    pub(super) begins: Vec<usize>,
    /// For each operation: the tree behind it.
    pub(super) trees: Vec<Arc<Tree>>,
    pub(super) files: Vec<FileLife>,
}

/// What a sync promised.
#[derive(Debug)]
pub(super) enum Covers {
    /// For each thread: all up to this operation.
    Everything(Vec<usize>),
    /// One inode of one thread: its content (`file`: which, if it is a regular file) up to this operation, and its names and
    /// attributes, or the names in it, as operation `names` left them (`None`: an fdatasync, which does not promise them).
    One { thread: usize, file: Option<usize>, operation: usize, names: Option<usize> },
}

/// A sync that was answered.
#[derive(Debug)]
pub(super) struct Ack {
    /// Requests recorded when it was.
    pub(super) position: usize,
    pub(super) covers: Covers,
}

/// What a file may hold.
pub(super) struct FileExpectation {
    certain: Arc<Vec<u32>>,
    size: u64,
    maybe: Vec<Change>,
}

impl FileExpectation {
    pub(super) fn check_size(&self, size: u64) -> Result<(), String> {
        let may_be = self.maybe.iter().any(|change| {
            let (before, after) = change.sizes;
            // What grows may do so in steps.
            size == after || (before..after).contains(&size)
        });
        match size == self.size || may_be {
            true => Ok(()),
            false => Err(format!(
                "{size} bytes; {} were synced, then came {:?}",
                self.size,
                self.maybe.iter().map(|change| change.sizes.1).collect::<Vec<_>>()
            )),
        }
    }

    pub(super) fn check_unit(&self, unit: u32, version: u32) -> Result<(), String> {
        let certain = self.certain.get(unit as usize).copied().unwrap_or(0);
        let may_be = |change: &Change| match &change.what {
            What::Written(units, written) => units.contains(&unit) && *written == version,
            What::Zeroed(units) => units.contains(&unit) && version == 0,
        };
        if version == certain || self.maybe.iter().any(may_be) {
            return Ok(());
        }
        let what = if version == 0 { "zeros".to_owned() } else { format!("version {version}") };
        Err(format!("{what} where version {certain} was synced (0: zeros)"))
    }
}

/// What one thread's part of the file system may be.
pub(super) struct ThreadExpectation {
    /// Numbers of the first and the last operation that may be the last one found.
    pub(super) operations: (usize, usize),
    /// The trees behind these, in order, equal neighbours once.
    pub(super) trees: Vec<Arc<Tree>>,
    pub(super) files: HashMap<Identity, FileExpectation>,
}

/// Goes from barrier to barrier and says what must hold there.
pub(super) struct Oracle<'a> {
    histories: &'a [ThreadHistory],
    /// Number of syncs that had begun when each was answered, and the answer; ascending.
    acks: Vec<(usize, &'a Ack)>,
    done: usize,
    least: Vec<usize>,
    files: Vec<Vec<Certain>>,
}

/// What is certain of a file.
#[derive(Clone, Default)]
struct Certain {
    covered: usize,
    applied: usize,
    units: Arc<Vec<u32>>,
    size: u64,
}

impl Certain {
    /// Carries out the changes up to the operation that is covered.
    fn follow(&mut self, life: &FileLife) {
        while let Some(change) = life.changes.get(self.applied).filter(|it| it.operation <= self.covered) {
            let units = Arc::make_mut(&mut self.units);
            units.resize(change.sizes.1.max(change.sizes.0).div_ceil(UNIT_BYTES) as usize, 0);
            let (range, version) = match &change.what {
                What::Written(range, version) => (range, *version),
                What::Zeroed(range) => (range, 0),
            };
            let end = (range.end as usize).min(units.len());
            units[(range.start as usize).min(end)..end].fill(version);
            units.truncate(change.sizes.1.div_ceil(UNIT_BYTES) as usize);
            self.size = change.sizes.1;
            self.applied += 1;
        }
    }
}

impl<'a> Oracle<'a> {
    /// `syncs`: where in the recording syncs began.
    pub(super) fn new(histories: &'a [ThreadHistory], acks: &'a [Ack], syncs: &[usize]) -> Self {
        let begun = |ack: &Ack| syncs.partition_point(|at| *at < ack.position);
        let mut acks: Vec<_> = acks.iter().map(|ack| (begun(ack), ack)).collect();
        acks.sort_by_key(|(begun, _)| *begun);
        Self {
            acks,
            done: 0,
            least: vec![0; histories.len()],
            files: histories.iter().map(|history| vec![Certain::default(); history.files.len()]).collect(),
            histories,
        }
    }

    /// What must hold at a crash behind `barriers` syncs that ended, with requests up to `end` made. Asked in ascending order.
    pub(super) fn at(&mut self, barriers: usize, end: usize) -> Vec<ThreadExpectation> {
        while let Some((_, ack)) = self.acks.get(self.done).filter(|(begun, _)| *begun <= barriers) {
            self.done += 1;
            match &ack.covers {
                Covers::Everything(operations) => {
                    for (thread, operation) in operations.iter().enumerate() {
                        self.least[thread] = self.least[thread].max(*operation);
                        for certain in &mut self.files[thread] {
                            certain.covered = certain.covered.max(*operation);
                        }
                    }
                }
                Covers::One { thread, file, operation, names } => {
                    if let Some(file) = file {
                        let certain = &mut self.files[*thread][*file];
                        certain.covered = certain.covered.max(*operation);
                    }
                    self.least[*thread] = self.least[*thread].max(names.unwrap_or(0));
                }
            }
        }
        (0..self.histories.len()).map(|thread| self.thread_at(thread, end)).collect()
    }

    fn thread_at(&mut self, thread: usize, end: usize) -> ThreadExpectation {
        let history = &self.histories[thread];
        let most = history.begins.partition_point(|begin| *begin <= end) - 1;
        let least = self.least[thread];
        assert!(least <= most, "an operation was covered before it began");
        let mut trees: Vec<Arc<Tree>> = Vec::new();
        for tree in &history.trees[least..=most] {
            if trees.last().is_none_or(|last| !Arc::ptr_eq(last, tree)) {
                trees.push(tree.clone());
            }
        }
        let mut files = HashMap::new();
        for (life, certain) in history.files.iter().zip(&mut self.files[thread]) {
            certain.follow(life);
            let maybe = life.changes[certain.applied..].iter().take_while(|change| change.operation <= most);
            let expectation = FileExpectation {
                certain: certain.units.clone(),
                size: certain.size,
                maybe: maybe.cloned().collect(),
            };
            files.insert(life.identity, expectation);
        }
        ThreadExpectation { operations: (least, most), trees, files }
    }
}
