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
/// Entries of drained records that the index may hold: this share of those that wait, and some. sled gives nothing back
/// for what is removed from it, so the index is then written anew.
const DRAINED_SHARE: u64 = 4;
const DRAINED_MIN: u64 = 128;
/// Unit in which sled takes disk space; its default is eight times as much.
const SLED_SEGMENT_BYTES: usize = 64 << 10;
/// Entries copied at once.
const COPY_MAX: usize = 1024;

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
    let open = || {
        let config = sled::Config::new().path(path).segment_size(SLED_SEGMENT_BYTES);
        config.cache_capacity(8 << 20).flush_every_ms(None).open()
    };
    guarded(open)?.map_err(|error| error.to_string())
}

thread_local! {
    static IN_SLED: Cell<bool> = const { Cell::new(false) };
}

/// sled has been seen to panic on damaged files; the index is then done without.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    let before = IN_SLED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    IN_SLED.set(before);
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
    /// Entries in it, those of drained records too; of one that was there at the start once [`Self::holds`] has read it.
    entries: u64,
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
            entries: 0,
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

    fn with(&mut self, action: impl FnOnce(&sled::Db, &mut u64) -> Result<(), String>) {
        let Some(db) = self.db.clone() else { return };
        match guarded(|| action(&db, &mut self.entries)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => self.fail(&error),
        }
    }

    /// Whether the index has exactly these records, from the first to the last, and none behind them. Reads all of it.
    pub(crate) fn holds(&mut self, count: usize, ends: Option<(u64, u64)>) -> bool {
        let first = ends.map_or(0, |(first, _)| first);
        let mut same = false;
        self.with(|db, entries| {
            let mut found = (0, None);
            *entries = 0;
            for key in db.iter().keys() {
                let key = key_of(&key.map_err(|error| error.to_string())?);
                *entries += 1;
                if key >= first {
                    found = (found.0 + 1, Some((found.1.map_or(key, |(first, _)| first), key)));
                }
            }
            same = found == (count, ends);
            Ok(())
        });
        same
    }

    pub(crate) fn insert(&mut self, records: &[IndexRecord]) {
        if self.failed || records.is_empty() {
            return;
        }
        self.open();
        self.with(|db, entries| {
            let mut batch = sled::Batch::default();
            for record in records {
                batch.insert(&record.sequence.to_be_bytes(), record.encode()?);
            }
            *entries += records.len() as u64;
            db.apply_batch(batch).map_err(|error| error.to_string())
        });
    }

    /// Forgets what has drained, once that is worth it: `waiting` records wait, the first of them is `first`.
    pub(crate) fn forget_before(&mut self, first: u64, waiting: u64) {
        if self.entries <= waiting + waiting / DRAINED_SHARE + DRAINED_MIN {
            return;
        }
        let anew = self.path.with_extension("new");
        self.with(|db, entries| {
            remove(&anew).map_err(|error| error.to_string())?;
            let copy = open_at(&anew)?;
            let mut batch = (sled::Batch::default(), 0);
            *entries = 0;
            for entry in db.range(first.to_be_bytes()..) {
                let (key, value) = entry.map_err(|error| error.to_string())?;
                batch.0.insert(key, value);
                batch.1 += 1;
                *entries += 1;
                if batch.1 == COPY_MAX {
                    let (full, _) = std::mem::take(&mut batch);
                    copy.apply_batch(full).map_err(|error| error.to_string())?;
                }
            }
            copy.apply_batch(batch.0).map_err(|error| error.to_string())
        });
        if self.failed {
            return;
        }
        self.let_go();
        match remove(&self.path).and_then(|()| std::fs::rename(&anew, &self.path)) {
            Ok(()) => _ = self.open(),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// Removes the entries after `last`.
    pub(crate) fn remove_after(&mut self, last: u64) {
        self.with(|db, entries| {
            for key in db.range((last + 1).to_be_bytes()..).keys() {
                db.remove(key.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
                *entries -= 1;
            }
            Ok(())
        });
    }

    /// Closes the index and removes its files.
    pub(crate) fn discard(&mut self) {
        self.let_go();
        self.failed = false;
        self.entries = 0;
        if !std::mem::replace(&mut self.present, false) {
            return;
        }
        for path in [&self.path, &self.path.with_extension("new")] {
            if let Err(error) = remove(path) {
                log::warn!("index {}: {error}", path.display());
            }
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
        self.with(|db, _| db.flush().map(drop).map_err(|error| error.to_string()));
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
