//! The queue's index: sled, from sequence to place. All of it can be rebuilt from the segments, nothing depends on its
//! durability; it is opened with the first record on disk and removed with the last.

use super::disk::Disk;
use super::segment::read_chunk;
use crate::ids::{Epoch, LunId};
use crate::medium::Folder;
use crate::request::{MirrorRequest, Origin};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Bytes of an encoded record at most; sled's answer is not believed beyond.
const RECORD_BYTES_MAX: usize = 128;
/// Entries of retired records removed at once.
const REMOVE_MAX: usize = 50_000;

/// Where a record is, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IndexRecord {
    pub(crate) sequence: u64,
    /// First sequence of its segment.
    pub(crate) segment: u64,
    /// Where it begins there.
    pub(crate) at: u64,
    /// Its whole bytes.
    pub(crate) bytes: u32,
    pub(crate) epoch: Epoch,
    pub(crate) lun: LunId,
    pub(crate) origin: Origin,
    /// Range in the image; 0 where there is none.
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// CRC32C of its body.
    pub(crate) crc: u32,
}

impl IndexRecord {
    pub(crate) fn new(segment: u64, at: u64, end: u64, request: &MirrorRequest, crc: u32) -> Self {
        let (offset, length) = request.range().unwrap_or((0, 0));
        Self {
            sequence: request.sequence.0,
            segment,
            at,
            bytes: (end - at) as u32,
            epoch: request.epoch,
            lun: request.lun,
            origin: request.origin,
            offset,
            length,
            crc,
        }
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        bincode::serde::encode_to_vec(self, configuration()).map_err(|error| error.to_string())
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (record, used) =
            bincode::serde::decode_from_slice(bytes, configuration()).map_err(|error| error.to_string())?;
        if used != bytes.len() {
            return Err(format!("{} bytes too many", bytes.len() - used));
        }
        Ok(record)
    }
}

fn configuration() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<RECORD_BYTES_MAX>()
}

pub(crate) fn path_of(dir: &Path) -> PathBuf {
    dir.join("index")
}

fn open_at(path: &Path) -> Result<sled::Db, String> {
    // No flusher thread: nothing depends on when the index reaches the disk.
    let open = || sled::Config::new().path(path).cache_capacity(8 << 20).flush_every_ms(None).open();
    guarded(open)?.map_err(|error| error.to_string())
}

thread_local! {
    static IN_SLED: Cell<bool> = const { Cell::new(false) };
}

/// sled has been seen to panic on damaged files; the index is then done without.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    IN_SLED.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    IN_SLED.set(false);
    outcome.map_err(|_| "sled panicked on it".into())
}

/// Whether a panic of this thread is sled's, which costs the queue no more than its index. For the process's panic hook.
#[must_use]
pub fn panics_in_sled() -> bool {
    IN_SLED.get() || std::thread::current().name().is_some_and(|name| name.starts_with("sled"))
}

/// Owned by the spiller thread.
pub(crate) struct Index {
    path: PathBuf,
    db: Option<sled::Db>,
    failed: bool,
    removed_before: u64,
    /// There may be files.
    present: bool,
    /// The disk has no place for one; nothing but the listing needs it.
    without: bool,
}

impl Index {
    pub(crate) fn new(folder: &Folder) -> Self {
        Self {
            path: path_of(folder.dir()),
            db: None,
            failed: false,
            removed_before: 0,
            present: !folder.is_simulated(),
            without: folder.is_simulated(),
        }
    }

    /// Opens the index, or moves a damaged one aside and makes a new one, which then has to be rebuilt.
    pub(crate) fn open(&mut self) -> bool {
        if self.db.is_some() || self.without {
            return self.db.is_some();
        }
        self.present = true;
        match open_at(&self.path) {
            Ok(db) => {
                self.db = Some(db);
                true
            }
            Err(error) => {
                let aside = self.path.with_extension("damaged");
                log::warn!("index {}: {error}; moved aside and rebuilt", self.path.display());
                let moved = remove(&aside).and_then(|()| std::fs::rename(&self.path, &aside));
                match moved.map_err(|error| error.to_string()).and_then(|()| open_at(&self.path)) {
                    Ok(db) => self.db = Some(db),
                    Err(error) => self.fail(&error),
                }
                false
            }
        }
    }

    fn fail(&mut self, error: &str) {
        if !std::mem::replace(&mut self.failed, true) {
            log::error!("index {}: {error}; going on without it", self.path.display());
        }
        self.let_go();
    }

    /// sled does a last piece of work when it is dropped.
    fn let_go(&mut self) {
        let db = self.db.take();
        if let Err(error) = guarded(|| drop(db)) {
            log::warn!("index {}: {error}", self.path.display());
        }
    }

    fn with(&mut self, action: impl FnOnce(&sled::Db) -> Result<(), String>) {
        let Some(db) = self.db.clone() else { return };
        match guarded(|| action(&db)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => self.fail(&error),
        }
    }

    /// Whether the index has exactly these records: their number, first and last.
    pub(crate) fn holds(&mut self, count: usize, ends: Option<(u64, u64)>) -> bool {
        let mut same = false;
        self.with(|db| {
            let key = |entry: Option<(sled::IVec, sled::IVec)>| entry.map(|(key, _)| key_of(&key));
            let first = key(db.first().map_err(|error| error.to_string())?);
            let last = key(db.last().map_err(|error| error.to_string())?);
            same = first == ends.map(|(first, _)| first)
                && last == ends.map(|(_, last)| last)
                && db.len() == count;
            Ok(())
        });
        same
    }

    pub(crate) fn insert(&mut self, records: &[IndexRecord]) {
        if self.failed || records.is_empty() {
            return;
        }
        self.open();
        self.with(|db| {
            let mut batch = sled::Batch::default();
            for record in records {
                batch.insert(&record.sequence.to_be_bytes(), record.encode()?);
            }
            db.apply_batch(batch).map_err(|error| error.to_string())
        });
    }

    /// Removes the entries before `first`, some at a time.
    pub(crate) fn remove_before(&mut self, first: u64) {
        if first <= self.removed_before {
            return;
        }
        let mut done = true;
        self.with(|db| {
            let mut batch = sled::Batch::default();
            let mut count = 0;
            for key in db.range(..first.to_be_bytes()).keys() {
                batch.remove(key.map_err(|error| error.to_string())?);
                count += 1;
                if count == REMOVE_MAX {
                    done = false;
                    break;
                }
            }
            db.apply_batch(batch).map_err(|error| error.to_string())
        });
        if done {
            self.removed_before = first;
        }
    }

    /// Removes the entries after `last`.
    pub(crate) fn remove_after(&mut self, last: u64) {
        self.with(|db| {
            for key in db.range((last + 1).to_be_bytes()..).keys() {
                db.remove(key.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
            }
            Ok(())
        });
    }

    /// Closes the index and removes its files.
    pub(crate) fn discard(&mut self) {
        self.let_go();
        self.failed = false;
        self.removed_before = 0;
        if !std::mem::replace(&mut self.present, false) {
            return;
        }
        if let Err(error) = remove(&self.path) {
            log::warn!("index {}: {error}", self.path.display());
        }
    }

    /// Replaces the index with one made from the segments of `disk`.
    pub(crate) fn rebuild(&mut self, disk: &Disk) {
        self.discard();
        for segment in disk.segments.values() {
            let mut at = segment.start;
            while at < segment.end {
                let (found, ended) = read_chunk(&segment.file, at, segment.end);
                let records: Vec<IndexRecord> = found
                    .iter()
                    .map(|found| {
                        IndexRecord::new(segment.first, found.offset, found.end, &found.request, found.crc)
                    })
                    .collect();
                self.insert(&records);
                match ended {
                    super::segment::Ended::More(next) => at = next,
                    _ => break,
                }
            }
        }
    }

    pub(crate) fn flush(&mut self) {
        self.with(|db| db.flush().map(drop).map_err(|error| error.to_string()));
        self.let_go();
    }
}

fn key_of(key: &[u8]) -> u64 {
    key.try_into().map_or(0, u64::from_be_bytes)
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// All records of the index in `dir`, for a look at it from outside: a copy is opened, since sled locks its files and
/// may change them.
pub(crate) fn load_copy(dir: &Path) -> Result<Option<Vec<IndexRecord>>, String> {
    let from = path_of(dir);
    if !from.exists() {
        return Ok(None);
    }
    let name = format!("mirrorfs-index-{}-{:016x}", std::process::id(), getrandom::u64().unwrap_or(0));
    let copy = std::env::temp_dir().join(name);
    let result = copy_dir(&from, &copy).map_err(|error| error.to_string()).and_then(|()| {
        let db = open_at(&copy)?;
        let read = || {
            db.iter()
                .values()
                .map(|value| IndexRecord::decode(&value.map_err(|error| error.to_string())?))
                .collect::<Result<Vec<_>, String>>()
        };
        guarded(read)?
    });
    if let Err(error) = remove(&copy) {
        log::warn!("{}: {error}", copy.display());
    }
    result.map(Some)
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &to.join(entry.file_name()))?;
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_sled_is_told_from_others_and_survived() {
        assert!(!panics_in_sled());
        let outcome: Result<(), String> = guarded(|| {
            assert!(panics_in_sled());
            panic!("as sled does on a damaged file");
        });
        assert!(outcome.is_err_and(|why| why.contains("sled panicked")));
        assert!(!panics_in_sled());
        let theirs = std::thread::Builder::new().name("sled-io-1".into()).spawn(panics_in_sled);
        assert!(theirs.expect("a thread").join().expect("its answer"));
    }
}
