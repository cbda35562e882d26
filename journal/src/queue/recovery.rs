//! What is found on disk at the mount: read, checked, cut after its last barrier.

use super::disk::{Disk, Segment};
use super::segment::{self, Damage, Ended, LunTable, read_chunk, read_header};
use crate::ids::{Epoch, Incarnation, LunId, RegionNo, Sequence};
use crate::log::LogError;
use crate::medium::{Folder, Mode};
use crate::request::Body;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CLEAN_MAGIC: &[u8; 8] = b"MFRCLEAN";
const CLEAN_BYTES: u64 = 20;

/// What recovery makes of the queue.
#[derive(Default)]
pub(crate) struct Recovered {
    pub(crate) disk: Disk,
    /// Why the queue is not what it was: its regions must be resynced.
    pub(crate) doubt: Option<String>,
    /// Records read.
    pub(crate) records: usize,
    /// Per LUN: (previous epoch, epoch) of each closed epoch, in order.
    pub(crate) chains: Vec<Vec<(Epoch, Epoch)>>,
    /// Per LUN and region: last epoch with a request that is kept.
    pub(crate) region_epochs: Vec<Vec<(RegionNo, Epoch)>>,
    /// Per LUN: records before this number are covered by a resync that begins there; 0 if none.
    pub(crate) dropped_before: Vec<u64>,
    /// Regions of records that were cut off.
    pub(crate) cut_regions: Vec<(LunId, RegionNo)>,
    /// Epochs of kept `ResyncBegin` and `ResyncEnd` records.
    pub(crate) begins: Vec<(LunId, Epoch)>,
    pub(crate) ends: Vec<(LunId, Epoch)>,
    pub(crate) last_closed: Epoch,
    /// First record read.
    pub(crate) first: Option<u64>,
    /// Last record kept; 0 if none.
    pub(crate) last: u64,
    /// Files to be unlinked once the marks are durable.
    pub(crate) garbage: Vec<PathBuf>,
}

/// Reads the segments in `folder`. Only what ends with a barrier is kept.
/// `mark` makes durable which regions the loss concerns, before anything is cut.
pub(crate) fn recover(
    folder: &Folder,
    luns: &LunTable,
    now: Incarnation,
    mark: impl FnOnce(&mut Recovered) -> Result<(), LogError>,
) -> Result<Recovered, LogError> {
    let dir = folder.dir();
    let io = |source| LogError::Io { action: "read", path: dir.to_path_buf(), source };
    let firsts = segment::list(folder).map_err(io)?;
    let mut out = Recovered {
        chains: vec![Vec::new(); luns.len()],
        region_epochs: vec![Vec::new(); luns.len()],
        dropped_before: vec![0; luns.len()],
        ..Recovered::default()
    };
    let mut keep: Option<u64> = None;
    let mut pending: Vec<(LunId, RegionNo)> = Vec::new();
    let mut pending_marks: Vec<(bool, LunId, Epoch, u64)> = Vec::new();
    let mut expected: Option<u64> = None;
    let mut index = 0;
    'segments: while let Some(first) = firsts.get(index).copied() {
        let path = segment::path_of(dir, first);
        if index > 0 && expected != Some(first) {
            out.doubt = Some(format!("{}: the records before it are missing", path.display()));
            break;
        }
        let file = folder.open(&path, Mode::Existing).map_err(io)?;
        let header = match read_header(&file, first) {
            Ok(header) => header,
            Err(Damage { version: Some(found), .. }) => {
                return Err(LogError::Version { path, found, known: segment::SEGMENT_VERSION });
            }
            Err(damage) => {
                out.doubt = Some(format!("{}: {}", path.display(), damage.what));
                break;
            }
        };
        if header.luns.len() > luns.len() || header.luns[..] != luns[..header.luns.len()] {
            out.doubt = Some(format!("{}: a queue of other LUNs", path.display()));
            break;
        }
        let file = Arc::new(file);
        let length = file.len().map_err(io)?;
        let mut at = header.start;
        out.disk.segments.insert(first, Segment::new(first, Arc::clone(&file), path.clone(), header.start));
        index += 1;
        expected = None;
        while at < length {
            let (found, ended) = read_chunk(&file, at, length);
            for found in found {
                let request = &found.request;
                let lun = usize::from(request.lun.0);
                if request.sequence >= Sequence::first(now) || lun >= luns.len() {
                    out.doubt =
                        Some(format!("{}: record {} can't be ours", path.display(), request.sequence));
                    break 'segments;
                }
                if let Body::Barrier { previous } = &request.body {
                    for (begin, lun, _, sequence) in &pending_marks {
                        let chain = &mut out.chains[usize::from(lun.0)];
                        let before =
                            previous.iter().find(|(named, _)| named == lun).map(|(_, before)| *before);
                        if *begin && chain.last().is_some_and(|(_, last)| Some(*last) != before) {
                            // The LUN begins anew here, from what its mirror said to have.
                            chain.clear();
                            out.dropped_before[usize::from(lun.0)] = *sequence;
                        }
                    }
                    if let Some(what) = gap(&out.chains, previous) {
                        out.doubt =
                            Some(format!("{}: {what} before epoch {}", path.display(), request.epoch));
                        break 'segments;
                    }
                    for (lun, before) in previous {
                        out.chains[usize::from(lun.0)].push((*before, request.epoch));
                    }
                    for (lun, region) in pending.drain(..) {
                        out.region_epochs[usize::from(lun.0)].push((region, request.epoch));
                    }
                    for (begin, lun, epoch, _) in pending_marks.drain(..) {
                        if begin { &mut out.begins } else { &mut out.ends }.push((lun, epoch));
                    }
                    keep = Some(request.sequence.0);
                    out.last_closed = request.epoch;
                } else if let Some((offset, _)) = request.range() {
                    pending.push((request.lun, RegionNo::of(offset)));
                } else {
                    let begin = matches!(request.body, Body::ResyncBegin { .. });
                    pending_marks.push((begin, request.lun, request.epoch, request.sequence.0));
                }
                out.records += 1;
                out.first.get_or_insert(request.sequence.0);
                out.disk.add(first, request, found.end);
            }
            match ended {
                Ended::More(next) => at = next,
                Ended::End => break,
                Ended::Finished { next } => {
                    expected = Some(next);
                    if let Some(segment) = out.disk.segments.get_mut(&first) {
                        segment.finished = true;
                    }
                    break;
                }
                Ended::Damaged(damage) => {
                    out.doubt = Some(format!("{}: byte {}: {}", path.display(), damage.offset, damage.what));
                    break 'segments;
                }
            }
        }
    }
    out.cut_regions = pending;
    out.garbage.extend(firsts[index..].iter().map(|first| segment::path_of(dir, *first)));
    out.last = keep.unwrap_or(0);
    mark(&mut out)?;
    let (gone, result) = match keep {
        Some(keep) => out.disk.cut(keep),
        None => (std::mem::take(&mut out.disk.segments).into_values().collect(), Ok(())),
    };
    result.map_err(io)?;
    if keep.is_none() {
        out.disk = Disk::default();
    }
    out.garbage.extend(gone.into_iter().map(|segment| segment.path));
    // A damaged tail behind the last barrier that is kept.
    if let Some(segment) = out.disk.segments.values_mut().next_back() {
        // A trailer would name a segment that does not exist.
        segment.finished = false;
        segment.file.set_len(segment.end).map_err(io)?;
    }
    Ok(out)
}

fn gap(chains: &[Vec<(Epoch, Epoch)>], previous: &[(LunId, Epoch)]) -> Option<String> {
    previous.iter().find_map(|(lun, before)| {
        let Some(chain) = chains.get(usize::from(lun.0)) else { return Some("an unknown LUN".into()) };
        let (_, last) = chain.last()?;
        (last != before).then(|| format!("LUN {} lacks epoch {before}", lun.0))
    })
}

fn clean_path(dir: &Path) -> PathBuf {
    dir.join("clean")
}

/// Says durably that the queue is complete up to `last`.
pub(crate) fn write_clean(folder: &Folder, last: u64) -> io::Result<()> {
    let mut bytes = CLEAN_MAGIC.to_vec();
    bytes.extend_from_slice(&last.to_le_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    let file = folder.open(&clean_path(folder.dir()), Mode::Fresh)?;
    file.write_all_at(&bytes, 0)?;
    file.sync_data()?;
    folder.sync()
}

/// Reads and removes, durably, what [`write_clean`] wrote; `None` after an unclean stop.
pub(crate) fn take_clean(folder: &Folder) -> io::Result<Option<u64>> {
    let path = clean_path(folder.dir());
    let file = match folder.open(&path, Mode::Existing) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; file.len()?.min(CLEAN_BYTES + 1) as usize];
    file.read_exact_at(&mut bytes, 0)?;
    folder.remove(&path)?;
    folder.sync()?;
    let whole = bytes.len() as u64 == CLEAN_BYTES
        && bytes[..8] == *CLEAN_MAGIC
        && crc32c::crc32c(&bytes[..16]).to_le_bytes() == bytes[16..];
    let mut last = [0; 8];
    last.copy_from_slice(bytes.get(8..16).unwrap_or(&[0; 8]));
    Ok(whole.then(|| u64::from_le_bytes(last)))
}
