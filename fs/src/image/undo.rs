//! The undo file: what a mirror image held before a resync overwrote it (format: [`super::label`]).
//!
//! The old content of a block is durable here before the first write to it reaches the image. So the file, however far a
//! resync got and wherever a power cut struck, leads back to the state that the mirror had when the resync began.

use super::backing::{Backing, FileBacking};
use super::generation::random_bytes;
use super::label::Undo;
use mirrorfs_journal::{Epoch, LunUuid};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// What is saved at once.
const BLOCK_BYTES: u64 = 64 << 10;
const HEADER_BYTES: usize = 4096;
const RECORD_HEADER_BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"MFRSUNDO";
const RECORD_MAGIC: &[u8; 4] = b"MFRU";
const VERSION: u32 = 1;
/// Records written with one call at most, those of a request of 1 MiB that begins within a block: more than that cannot be torn.
const BATCH_RECORDS: usize = 17;
const TORN_BYTES_MAX: u64 = BATCH_RECORDS as u64 * (RECORD_HEADER_BYTES as u64 + BLOCK_BYTES);

/// An undo file in use. Saving is for any thread.
pub(crate) struct UndoFile {
    path: PathBuf,
    way: Undo,
    size_bytes: u64,
    file: File,
    /// Where the next record goes.
    end: Mutex<u64>,
    /// By 64 blocks, a bit each: its old content is durable in the file.
    saved: RwLock<HashMap<u64, u64>>,
}

/// The undo file of an image.
pub(crate) fn path_of(image: &Path) -> PathBuf {
    image.with_extension("undo")
}

/// Removes the undo file of an image, if there is one.
pub(crate) fn remove(image: &Path) {
    let path = path_of(image);
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        log::warn!("{}: {error}", path.display());
    }
}

fn invalid(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

fn header(uuid: LunUuid, way: Undo, size_bytes: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, MAGIC);
    put(8, &VERSION.to_le_bytes());
    put(16, &uuid.0);
    put(32, &way.id);
    put(48, &way.epoch.0.to_le_bytes());
    put(56, &size_bytes.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// `batch`: where the write that it is a part of begins. `content`: `None` for a block that is a hole.
fn put_record(into: &mut Vec<u8>, batch: u64, block: u64, content: Option<&[u8]>) {
    let start = into.len();
    let content = content.unwrap_or_default();
    into.extend_from_slice(RECORD_MAGIC);
    into.extend_from_slice(&(content.len() as u32).to_le_bytes());
    into.extend_from_slice(&block.to_le_bytes());
    into.extend_from_slice(&batch.to_le_bytes());
    into.extend_from_slice(&crc32c::crc32c(content).to_le_bytes());
    let crc = crc32c::crc32c(&into[start..]);
    into.extend_from_slice(&crc.to_le_bytes());
    into.extend_from_slice(content);
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |long| u64::from_le_bytes(*long))
}

/// Where the batch of a record begins; `None`: these bytes are no record's header.
fn batch_of(head: &[u8]) -> Option<u64> {
    let whole = head.len() >= RECORD_HEADER_BYTES
        && head.starts_with(RECORD_MAGIC)
        && crc32c::crc32c(&head[..RECORD_HEADER_BYTES - 4]) == word(head, RECORD_HEADER_BYTES - 4);
    whole.then(|| long(head, 16))
}

impl UndoFile {
    fn with(path: PathBuf, way: Undo, file: File, size_bytes: u64, end: u64) -> Self {
        Self { path, way, size_bytes, file, end: Mutex::new(end), saved: RwLock::default() }
    }

    /// Makes the undo file of an image that is now in the state of `epoch`; durable, with its name.
    pub(crate) fn create(image: &Path, uuid: LunUuid, epoch: Epoch, size_bytes: u64) -> io::Result<Self> {
        let way = Undo { id: random_bytes()?, epoch };
        let path = path_of(image);
        // A new file: whatever is left of an earlier one is not read again.
        remove(image);
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path)?;
        file.write_all_at(&header(uuid, way, size_bytes), 0)?;
        file.sync_all()?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(Self::with(path, way, file, size_bytes, HEADER_BYTES as u64))
    }

    /// Takes up the undo file that a label speaks of; what was being written to it in a crash is cut off.
    ///
    /// # Errors
    /// It is missing, another one, damaged, or the system's.
    pub(crate) fn open(image: &Path, uuid: LunUuid, way: Undo, size_bytes: u64) -> io::Result<Self> {
        let path = path_of(image);
        let mut options = File::options();
        let file = options.read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path)?;
        let mut found = [0; HEADER_BYTES];
        file.read_exact_at(&mut found, 0)?;
        if found != header(uuid, way, size_bytes) {
            return Err(invalid(&path, "not the undo file that the label speaks of"));
        }
        let this = Self::with(path, way, file, size_bytes, 0);
        let end = this.scan(|block, _| {
            this.note_saved(block);
            Ok(())
        })?;
        this.file.set_len(end)?;
        this.file.sync_all()?;
        *this.end.lock() = end;
        Ok(this)
    }

    /// As the label has it.
    pub(crate) fn way(&self) -> Undo {
        self.way
    }

    fn is_saved(&self, block: u64) -> bool {
        self.saved.read().get(&(block / 64)).is_some_and(|bits| bits & (1 << (block % 64)) != 0)
    }

    fn note_saved(&self, block: u64) {
        *self.saved.write().entry(block / 64).or_default() |= 1 << (block % 64);
    }

    fn range_of(&self, block: u64) -> std::ops::Range<u64> {
        let start = block * BLOCK_BYTES;
        start..(start + BLOCK_BYTES).min(self.size_bytes)
    }

    /// Saves what the range holds, as far as that is not done yet; durable afterwards. Blocks on an fdatasync then.
    pub(crate) fn save(&self, image: &FileBacking, offset: u64, length: u64) -> io::Result<()> {
        let blocks = offset / BLOCK_BYTES..(offset + length).div_ceil(BLOCK_BYTES);
        if blocks.clone().all(|block| self.is_saved(block)) {
            return Ok(());
        }
        // Nobody writes to a block before it is saved: what is read here is the old content.
        let mut end = self.end.lock();
        let missing: Vec<u64> = blocks.filter(|block| !self.is_saved(*block)).collect();
        for batch in missing.chunks(BATCH_RECORDS) {
            let mut records = Vec::new();
            for &block in batch {
                let range = self.range_of(block);
                let hole = image.next_data(range.start)?.is_none_or(|data| data.start >= range.end);
                if hole {
                    put_record(&mut records, *end, block, None);
                } else {
                    let mut content = vec![0; (range.end - range.start) as usize];
                    image.read_at(range.start, &mut content)?;
                    put_record(&mut records, *end, block, Some(&content));
                }
            }
            self.file.write_all_at(&records, *end)?;
            self.file.sync_data()?;
            *end += records.len() as u64;
            batch.iter().for_each(|block| self.note_saved(*block));
        }
        Ok(())
    }

    /// Puts back what was saved; not synced.
    ///
    /// # Errors
    /// The file is damaged, or the system's. Can be done again.
    pub(crate) fn roll_back(&self, image: &FileBacking) -> io::Result<()> {
        self.scan(|block, content| {
            let range = self.range_of(block);
            match content {
                Some(content) => image.write_at(range.start, content),
                None => image.discard(range.start, range.end - range.start),
            }
        })
        .map(drop)
    }

    /// Visits the records in order; returns where the last whole one ends. What follows may be a torn write, no more.
    fn scan(&self, mut visit: impl FnMut(u64, Option<&[u8]>) -> io::Result<()>) -> io::Result<u64> {
        let length = self.file.metadata()?.len();
        let (mut at, mut batch) = (HEADER_BYTES as u64, 0);
        let mut content = Vec::new();
        while let Some(block) = self.read_record(at, length, &mut batch, &mut content)? {
            at += (RECORD_HEADER_BYTES + content.len()) as u64;
            visit(block, Some(content.as_slice()).filter(|content| !content.is_empty()))?;
        }
        if self.goes_on_after(at, length)? {
            return Err(invalid(&self.path, &format!("damaged at byte {at}")));
        }
        Ok(at)
    }

    /// Whether something was written later than what can't be read at `at`: then that was durable once.
    fn goes_on_after(&self, at: u64, length: u64) -> io::Result<bool> {
        if length - at > TORN_BYTES_MAX {
            return Ok(true);
        }
        let mut rest = vec![0; (length - at) as usize];
        self.file.read_exact_at(&mut rest, at)?;
        let later =
            |head: &[u8]| head.starts_with(RECORD_MAGIC) && batch_of(head).is_some_and(|batch| batch > at);
        Ok((0..rest.len()).any(|start| later(&rest[start..])))
    }

    /// `None`: no whole record begins there. `batch`: that of the record before.
    fn read_record(
        &self,
        at: u64,
        length: u64,
        batch: &mut u64,
        content: &mut Vec<u8>,
    ) -> io::Result<Option<u64>> {
        let mut head = [0; RECORD_HEADER_BYTES];
        if at + head.len() as u64 > length {
            return Ok(None);
        }
        self.file.read_exact_at(&mut head, at)?;
        // No record may be missing in between.
        let Some(found) = batch_of(&head).filter(|found| *found == at || found == batch) else {
            return Ok(None);
        };
        let block = long(&head, 8);
        let range = match block.checked_mul(BLOCK_BYTES) {
            Some(start) if start < self.size_bytes => self.range_of(block),
            _ => return Ok(None),
        };
        let bytes = u64::from(word(&head, 4));
        let from = at + head.len() as u64;
        if (bytes != 0 && bytes != range.end - range.start) || from + bytes > length {
            return Ok(None);
        }
        content.resize(bytes as usize, 0);
        self.file.read_exact_at(content, from)?;
        *batch = found;
        Ok((crc32c::crc32c(content) == word(&head, 24)).then_some(block))
    }
}

#[cfg(test)]
#[path = "undo_tests.rs"]
mod tests;
