//! One segment file: its header, its records, its trailer.

use crate::codec::{self, HEADER_BYTES};
use crate::ids::{Generation, LunUuid, Sequence};
use crate::medium::{Folder, Handle, Mode};
use crate::request::MirrorRequest;
use bytes::Bytes;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

/// Bytes of a segment file; the last record may not reach beyond.
pub(crate) const SEGMENT_BYTES: u64 = 64 << 20;
/// Where the first record of a segment begins.
pub(crate) const RECORDS_START: u64 = 4096;
pub(crate) const SEGMENT_VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"MFRSEGMT";
const TRAILER_MAGIC: &[u8; 4] = b"MFRE";
pub(crate) const TRAILER_BYTES: usize = 32;
const LUN_TABLE: usize = 64;
const LUN_BYTES: usize = 24;
const LUN_TABLE_END: usize = LUN_TABLE + codec::PREVIOUS_MAX * LUN_BYTES;
const LIVE_START: u64 = 3968;
/// Read at once; a record always fits.
const CHUNK_BYTES: u64 = 4 << 20;

const _: () = assert!(LUN_TABLE_END as u64 <= LIVE_START);
const _: () = assert!(CHUNK_BYTES as usize > HEADER_BYTES + codec::BODY_BYTES_MAX);

/// Which images the LUN numbers of a segment mean.
pub(crate) type LunTable = Vec<(LunUuid, Generation)>;

pub(crate) fn path_of(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("segment-{first:016x}"))
}

/// The first sequence of the segment of that name.
pub(crate) fn first_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// First sequences of all segments in `folder`, ascending.
pub(crate) fn list(folder: &Folder) -> io::Result<Vec<u64>> {
    let mut found: Vec<u64> = folder.names()?.iter().filter_map(|name| first_of(name)).collect();
    found.sort_unstable();
    Ok(found)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn middle(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(crate) fn header_bytes(first: u64, luns: &LunTable) -> Vec<u8> {
    let mut bytes = vec![0; RECORDS_START as usize];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&(luns.len() as u32).to_le_bytes());
    bytes[16..24].copy_from_slice(&first.to_le_bytes());
    for (index, (uuid, generation)) in luns.iter().enumerate() {
        let at = LUN_TABLE + index * LUN_BYTES;
        bytes[at..at + 16].copy_from_slice(&uuid.0);
        bytes[at + 16..at + 24].copy_from_slice(&generation.0.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[..LUN_TABLE_END]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Makes the file of a segment whose first record will be `first`; its directory entry is durable afterwards.
pub(crate) fn create(folder: &Folder, first: u64, luns: &LunTable) -> io::Result<Handle> {
    let file = folder.open(&path_of(folder.dir(), first), Mode::Fresh)?;
    file.write_all_at(&header_bytes(first, luns), 0)?;
    folder.sync()?;
    Ok(file)
}

/// What a segment's header says.
#[derive(Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) luns: LunTable,
    /// Where its first record that is still there begins.
    pub(crate) start: u64,
}

/// Why a segment can't be read on.
#[derive(Debug)]
pub(crate) struct Damage {
    pub(crate) offset: u64,
    pub(crate) what: String,
    /// Written by a newer mirrorfs.
    pub(crate) version: Option<u32>,
}

impl Damage {
    pub(crate) fn new(offset: u64, what: impl Into<String>) -> Self {
        Self { offset, what: what.into(), version: None }
    }
}

pub(crate) fn read_header(file: &Handle, first: u64) -> Result<SegmentHeader, Damage> {
    let mut bytes = vec![0; RECORDS_START as usize];
    file.read_exact_at(&mut bytes, 0)
        .map_err(|error| Damage::new(0, format!("no segment header: {error}")))?;
    if &bytes[..8] != MAGIC {
        return Err(Damage::new(0, "not a queue segment"));
    }
    let version = middle(&bytes, 8);
    if version != SEGMENT_VERSION {
        return Err(Damage {
            version: Some(version),
            ..Damage::new(8, format!("segment version {version}"))
        });
    }
    let crc = middle(&bytes, 24);
    bytes[24..28].fill(0);
    if crc32c::crc32c(&bytes[..LUN_TABLE_END]) != crc {
        return Err(Damage::new(24, "segment header damaged"));
    }
    let count = middle(&bytes, 12) as usize;
    if count > codec::PREVIOUS_MAX || long(&bytes, 16) != first {
        return Err(Damage::new(12, "segment header does not fit its file"));
    }
    let lun = |index: usize| {
        let at = LUN_TABLE + index * LUN_BYTES;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[at..at + 16]);
        (LunUuid(uuid), Generation(long(&bytes, at + 16)))
    };
    let at = LIVE_START as usize;
    let live = long(&bytes, at);
    let start = if live >= RECORDS_START && crc32c::crc32c(&bytes[at..at + 8]) == middle(&bytes, at + 8) {
        live
    } else {
        RECORDS_START
    };
    Ok(SegmentHeader { luns: (0..count).map(lun).collect(), start })
}

/// Notes durably that the records before `start` are gone, then gives their space back.
pub(crate) fn punch(file: &Handle, start: u64) -> io::Result<()> {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&start.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..8]);
    bytes[8..].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&bytes, LIVE_START)?;
    file.sync_data()?;
    let until = start / RECORDS_START * RECORDS_START;
    if until <= RECORDS_START {
        return Ok(());
    }
    file.punch(RECORDS_START, until - RECORDS_START)
}

/// Appends records at `offset`; returns where each begins, and the end.
pub(crate) fn write(
    file: &Handle,
    offset: u64,
    records: &[std::sync::Arc<MirrorRequest>],
) -> io::Result<(Vec<u64>, u64)> {
    let encoded: Vec<codec::Encoded<'_>> =
        records.iter().map(|record| codec::encode_header(record)).collect();
    let mut places = Vec::with_capacity(records.len());
    let mut end = offset;
    for record in &encoded {
        places.push(end);
        end += record.record_bytes() as u64;
    }
    let parts = |record: &'_ codec::Encoded<'_>| record.record_bytes() > 0;
    debug_assert!(encoded.iter().all(parts));
    let mut slices: Vec<IoSlice<'_>> = encoded
        .iter()
        .flat_map(|record| [&record.header[..], &record.body[..], record.payload])
        .filter(|part| !part.is_empty())
        .map(IoSlice::new)
        .collect();
    file.write_slices_at(&mut slices, offset)?;
    Ok((places, end))
}

/// Ends a segment at `end`: after its `last` record the log goes on with `next`, in another segment.
pub(crate) fn finish(file: &Handle, end: u64, last: u64, next: u64) -> io::Result<()> {
    let mut bytes = [0; TRAILER_BYTES];
    bytes[..4].copy_from_slice(TRAILER_MAGIC);
    bytes[8..16].copy_from_slice(&last.to_le_bytes());
    bytes[16..24].copy_from_slice(&next.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..TRAILER_BYTES - 4]);
    bytes[TRAILER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&bytes, end)
}

/// Whether a trailer begins here.
pub(crate) fn is_trailer(bytes: &[u8]) -> bool {
    bytes.starts_with(TRAILER_MAGIC)
}

/// A record as it was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) offset: u64,
    pub(crate) end: u64,
    pub(crate) request: MirrorRequest,
    pub(crate) crc: u32,
}

/// How a chunk ends.
#[derive(Debug)]
pub(crate) enum Ended {
    /// More may follow at this offset.
    More(u64),
    /// Nothing follows.
    End,
    /// The segment is finished; the next one begins with this number.
    Finished { next: u64 },
    /// What follows can't be read.
    Damaged(Damage),
}

/// Reads the records from `from` on, some MiB at most; payloads share one buffer and are checked.
pub(crate) fn read_chunk(file: &Handle, from: u64, end: u64) -> (Vec<Found>, Ended) {
    let mut found = Vec::new();
    let mut bytes = vec![0; end.saturating_sub(from).min(CHUNK_BYTES) as usize];
    if let Err(error) = file.read_exact_at(&mut bytes, from) {
        return (found, Ended::Damaged(Damage::new(from, error.to_string())));
    }
    let all = from + bytes.len() as u64 == end;
    let bytes = Bytes::from(bytes);
    let mut at = 0;
    let mut last: Option<Sequence> = None;
    let ended = loop {
        let offset = from + at as u64;
        let rest = bytes.slice(at..);
        if rest.is_empty() {
            break if all { Ended::End } else { Ended::More(offset) };
        }
        if rest.len() >= TRAILER_BYTES && is_trailer(&rest) {
            let whole = crc32c::crc32c(&rest[..TRAILER_BYTES - 4]) == middle(&rest, TRAILER_BYTES - 4);
            break if whole {
                Ended::Finished { next: long(&rest, 16) }
            } else {
                Ended::Damaged(Damage::new(offset, "segment trailer damaged"))
            };
        }
        let short = |what| if all { Ended::Damaged(Damage::new(offset, what)) } else { Ended::More(offset) };
        let Some(header) = rest.first_chunk::<HEADER_BYTES>() else { break short("record cut short") };
        let header = match codec::decode_header(header) {
            Ok(header) => header,
            Err(error) => break Ended::Damaged(Damage::new(offset, error.to_string())),
        };
        let next = HEADER_BYTES + header.body_bytes();
        if rest.len() < next {
            break short("record cut short");
        }
        if last.is_some_and(|last| header.sequence <= last) {
            break Ended::Damaged(Damage::new(offset, "records out of order"));
        }
        last = Some(header.sequence);
        match header.finish(rest.slice(HEADER_BYTES..next)) {
            Ok(request) => {
                let end = offset + next as u64;
                found.push(Found { offset, end, request, crc: header.body_crc });
            }
            Err(error) => break Ended::Damaged(Damage::new(offset, error.to_string())),
        }
        at += next;
    };
    (found, ended)
}
