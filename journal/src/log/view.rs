//! The queue as the commands see it: read from its segments, changing nothing.

use super::LogError;
use crate::codec::{self, HEADER_BYTES, Header};
use crate::ids::{Generation, LunUuid, Sequence};
use crate::medium::{Folder, Handle};
use crate::queue::index::{self, IndexRecord};
use crate::queue::segment::{self, Damage, RECORDS_START};
use crate::regions::RegionMap;
use crate::request::MirrorRequest;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

static ZEROS: [u8; codec::BODY_BYTES_MAX] = [0; codec::BODY_BYTES_MAX];

/// A queue opened read-only by the commands, with no mount running (or beside a running one, on its files).
pub struct QueueView {
    dir: PathBuf,
}

/// A record's header, and where it lies.
struct Place {
    segment: u64,
    at: u64,
    header: Header,
}

impl Place {
    fn end(&self) -> u64 {
        self.at + (HEADER_BYTES + self.header.body_bytes()) as u64
    }
}

impl QueueView {
    /// Opens the queue in `dir` for reading, from its segments alone (sled's index is compared by [`Self::verify`]).
    ///
    /// # Errors
    /// `Io` when the directory can't be read.
    pub fn open(dir: &Path) -> Result<Self, LogError> {
        let error = |source| LogError::Io { action: "read", path: dir.to_path_buf(), source };
        std::fs::read_dir(dir).map_err(error)?;
        Ok(Self { dir: dir.to_path_buf() })
    }

    /// The records in order, up to the first damage. Unless `with_payload`, the payload of a write has its length but reads
    /// as zeros, and its checksum is not checked.
    ///
    /// # Errors
    /// `Io` when a file can't be read, `Version` for a newer format, `Corrupt` when nothing at all is readable.
    pub fn records(&self, with_payload: bool) -> Result<Vec<MirrorRequest>, LogError> {
        let mut records = Vec::new();
        let damage = self.walk(|file, place| {
            records.push(read(file, place, with_payload)?);
            Ok(true)
        })?;
        match damage.into_iter().next() {
            Some((path, Damage { version: Some(found), .. })) => {
                Err(LogError::Version { path, found, known: segment::SEGMENT_VERSION })
            }
            Some((path, damage)) if records.is_empty() => {
                Err(LogError::Corrupt { path, offset: damage.offset, what: damage.what })
            }
            _ => Ok(records),
        }
    }

    /// Whether nothing waits, and no region of the LUN may differ from its mirror. Not beside a process that has the log open.
    ///
    /// # Errors
    /// As for [`Self::records`].
    pub fn is_drained(
        &self,
        uuid: LunUuid,
        generation: Generation,
        size_bytes: u64,
    ) -> Result<bool, LogError> {
        let _lock = super::lock::acquire(&self.dir)?;
        let error =
            |source| LogError::Io { action: "open the region map in", path: self.dir.clone(), source };
        let folder = Folder::from(self.dir.as_path());
        let (map, known) = RegionMap::open(&folder, uuid, generation, size_bytes).map_err(error)?;
        let waits = self.records(false)?.iter().any(|record| record.range().is_some());
        Ok(known && map.marked_count() == 0 && !waits)
    }

    /// One record with its payload.
    ///
    /// # Errors
    /// `Io` when a file can't be read, `Corrupt` when the record is damaged.
    pub fn show(&self, sequence: Sequence) -> Result<Option<MirrorRequest>, LogError> {
        let mut shown = None;
        let damage = self.walk(|file, place| {
            if place.header.sequence != sequence {
                return Ok(true);
            }
            shown = Some(read(file, place, true)?);
            Ok(false)
        })?;
        match damage.into_iter().next() {
            Some((path, damage)) if shown.is_none() => {
                Err(LogError::Corrupt { path, offset: damage.offset, what: damage.what })
            }
            _ => Ok(shown),
        }
    }

    /// Holds every record against its checksum and against the index; one line of text per damage found. Beside a running
    /// mount the index is left out: it follows the records with some delay.
    ///
    /// # Errors
    /// `Io` when a file can't be read.
    pub fn verify(&self) -> Result<Vec<String>, LogError> {
        let mut found: BTreeMap<u64, IndexRecord> = BTreeMap::new();
        let mut lines = Vec::new();
        let damage = self.walk(|file, place| {
            if let Err(damage) = read(file, place, true) {
                let path = segment::path_of(&self.dir, place.segment);
                lines.push(format!("{}: byte {}: {}", path.display(), damage.offset, damage.what));
            }
            if let Ok(request) = read(file, place, false) {
                let crc = place.header.body_crc;
                let record = IndexRecord::new(place.segment, place.at, place.end(), &request, crc);
                found.insert(request.sequence.0, record);
            }
            Ok(true)
        })?;
        for (path, damage) in damage {
            lines.push(format!("{}: byte {}: {}", path.display(), damage.offset, damage.what));
        }
        let Ok(_lock) = super::lock::acquire(&self.dir) else { return Ok(lines) };
        let index_path = index::path_of(&self.dir);
        match index::load_copy(&self.dir) {
            Ok(None) => {}
            Ok(Some(index)) => {
                let indexed: BTreeMap<u64, IndexRecord> =
                    index.into_iter().map(|record| (record.sequence, record)).collect();
                for (key, record) in &found {
                    let (key, path) = (Sequence(*key), index_path.display());
                    match indexed.get(&key.0) {
                        Some(entry) if entry == record => {}
                        Some(_) => {
                            lines.push(format!("{path}: record {key} differs from the one in its segment"))
                        }
                        None => {
                            lines.push(format!("{path}: record {key} is missing (rebuilt at the next mount)"))
                        }
                    }
                }
            }
            Err(error) => {
                lines.push(format!("{}: {error} (rebuilt at the next mount)", index_path.display()))
            }
        }
        Ok(lines)
    }

    /// Calls `visit` for each record in order until it says `false`; returns where segments could not be read on. A record
    /// that `visit` finds damaged is passed over.
    fn walk(
        &self,
        mut visit: impl FnMut(&Handle, &Place) -> Result<bool, Damage>,
    ) -> Result<Vec<(PathBuf, Damage)>, LogError> {
        let error = |path: &Path| {
            let path = path.to_path_buf();
            move |source| LogError::Io { action: "read", path, source }
        };
        let mut damages = Vec::new();
        for first in segment::list(&Folder::from(self.dir.as_path())).map_err(error(&self.dir))? {
            let path = segment::path_of(&self.dir, first);
            let file = match File::open(&path) {
                Ok(file) => Handle::from(file),
                // Drained meanwhile.
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
                Err(other) => return Err(error(&path)(other)),
            };
            let mut at = match segment::read_header(&file, first) {
                Ok(header) => header.start.max(RECORDS_START),
                Err(damage) => {
                    damages.push((path, damage));
                    continue;
                }
            };
            let end = file.len().map_err(error(&path))?;
            while at < end {
                let mut bytes = [0; HEADER_BYTES];
                let length = (end - at).min(HEADER_BYTES as u64) as usize;
                file.read_exact_at(&mut bytes[..length], at).map_err(error(&path))?;
                if segment::is_trailer(&bytes) || length < HEADER_BYTES {
                    break;
                }
                let header = match codec::decode_header(&bytes) {
                    Ok(header) => header,
                    Err(what) => {
                        damages.push((path, Damage::new(at, what.to_string())));
                        break;
                    }
                };
                let place = Place { segment: first, at, header };
                at = place.end();
                if at > end {
                    // A torn tail, or being written: cut off or complete at the next look.
                    break;
                }
                match visit(&file, &place) {
                    Ok(true) => {}
                    Ok(false) => return Ok(damages),
                    Err(damage) => damages.push((path.clone(), damage)),
                }
            }
        }
        Ok(damages)
    }
}

fn read(file: &Handle, place: &Place, with_payload: bool) -> Result<MirrorRequest, Damage> {
    let damaged = |what: String| Damage::new(place.at, what);
    if !with_payload && let Some(request) = place.header.with_payload_unchecked(&ZEROS) {
        return Ok(request);
    }
    let mut body = vec![0; place.header.body_bytes()];
    file.read_exact_at(&mut body, place.at + HEADER_BYTES as u64)
        .map_err(|error| damaged(error.to_string()))?;
    place.header.finish(Bytes::from(body)).map_err(|error| damaged(error.to_string()))
}
