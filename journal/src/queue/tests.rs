//! A queue that lost or damaged any byte: what is kept is a prefix that ends with a barrier.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::recovery::{Recovered, recover};
use super::segment::{self, LunTable, RECORDS_START};
use crate::ids::{Epoch, Generation, Incarnation, LunId, LunUuid, Sequence};
use crate::request::{Body, MirrorRequest, Origin};
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn luns() -> LunTable {
    vec![(LunUuid([1; 16]), Generation(7))]
}

/// Two segments, of `epochs` epochs each with two small writes and their barrier.
struct Queue {
    dir: tempfile::TempDir,
    paths: [PathBuf; 2],
    bytes: [Vec<u8>; 2],
    records: Vec<Arc<MirrorRequest>>,
    /// By segment: where each record ends, and how many records the queue has up to there.
    ends: [Vec<(u64, usize)>; 2],
}

fn queue(epochs: u64) -> Queue {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let mut sequence = Sequence::first(Incarnation(1));
    let mut epoch = Epoch::first(Incarnation(1));
    let mut previous = Epoch(0);
    let mut records = Vec::new();
    for number in 0..epochs * 2 {
        for body in 0..3 {
            let payload = Bytes::from(vec![number as u8 * 16 + body; 512]);
            let crc = crc32c::crc32c(&payload);
            let body = match body {
                2 => Body::Barrier { previous: vec![(LunId(0), previous)] },
                _ => Body::Write { offset: (number * 2 + u64::from(body)) << 20, payload, crc },
            };
            let (lun, origin) = (LunId(0), Origin::File(12));
            records.push(Arc::new(MirrorRequest { sequence, epoch, lun, origin, accepted_ms: 1, body }));
            sequence = Sequence(sequence.0 + 1);
        }
        previous = epoch;
        epoch = Epoch(epoch.0 + 1);
    }
    let half = records.len() / 2;
    let mut ends = [Vec::new(), Vec::new()];
    let paths = [0, half].map(|first| segment::path_of(dir.path(), records[first].sequence.0));
    for (index, part) in [&records[..half], &records[half..]].into_iter().enumerate() {
        let file = segment::create(&dir.path().into(), part[0].sequence.0, &luns()).unwrap();
        let (places, end) = segment::write(&file, RECORDS_START, part).unwrap();
        let behind = places.iter().skip(1).copied().chain([end]);
        ends[index] = behind.zip(index * half + 1..).collect();
        if index == 0 {
            segment::finish(&file, end, part[half - 1].sequence.0, records[half].sequence.0).unwrap();
        }
    }
    let bytes = [0, 1].map(|index: usize| std::fs::read(&paths[index]).unwrap());
    Queue { dir, paths, bytes, records, ends }
}

impl Queue {
    /// Recovers with this content of one segment; the number of records kept. They are the first ones, and end with a
    /// barrier, also for who recovers again.
    fn kept_with(&self, which: usize, bytes: &[u8]) -> usize {
        for (index, path) in self.paths.iter().enumerate() {
            std::fs::write(path, if index == which { bytes } else { &self.bytes[index] }).unwrap();
        }
        let kept = self.judge(&self.recover());
        assert_eq!(self.judge(&self.recover()), kept, "recovered once more");
        kept
    }

    fn recover(&self) -> Recovered {
        let out = recover(&self.dir.path().into(), &luns(), Incarnation(2), |_| Ok(())).unwrap();
        for path in &out.garbage {
            let _ = std::fs::remove_file(path);
        }
        out
    }

    fn judge(&self, out: &Recovered) -> usize {
        let found = all(self.dir.path());
        assert_eq!(found.len() as u64, out.last.saturating_sub(self.records[0].sequence.0 - 1).min(1000));
        assert!(found.iter().zip(&self.records).all(|(found, wanted)| *found == **wanted), "another record");
        assert!(found.last().is_none_or(|last| matches!(last.body, Body::Barrier { .. })));
        assert_eq!(out.last, found.last().map_or(0, |last| last.sequence.0));
        found.len()
    }

    /// Records of the epochs that are whole before this byte of a segment.
    fn whole_before(&self, which: usize, at: usize) -> usize {
        let earlier = which * self.records.len() / 2;
        let records =
            self.ends[which].iter().rfind(|(end, _)| *end <= at as u64).map_or(earlier, |(_, n)| *n);
        records / 3 * 3
    }
}

/// What the segments hold, read anew.
fn all(dir: &Path) -> Vec<MirrorRequest> {
    let mut out = Vec::new();
    for first in segment::list(&dir.into()).unwrap() {
        let file = std::fs::File::open(segment::path_of(dir, first)).unwrap();
        let length = file.metadata().unwrap().len();
        let (found, ended) = segment::read_chunk(&file.into(), RECORDS_START, length);
        assert!(!matches!(ended, segment::Ended::Damaged(_)), "{ended:?}");
        out.extend(found.into_iter().map(|found| found.request));
    }
    out
}

/// A crash may leave any part of what was being written.
#[test]
fn a_segment_cut_at_any_byte_keeps_the_epochs_before_it() {
    let queue = queue(3);
    for which in [0, 1] {
        let whole = &queue.bytes[which];
        for at in (0..RECORDS_START as usize).step_by(97).chain(RECORDS_START as usize..=whole.len()) {
            let kept = queue.kept_with(which, &whole[..at]);
            // The trailer is the last of the first segment: without it nobody knows that the second one follows.
            let wanted = if at == whole.len() { queue.records.len() } else { queue.whole_before(which, at) };
            assert_eq!(kept, wanted, "segment {which} cut at byte {at} of {}", whole.len());
        }
    }
}

/// Nor is the length of a file a promise of its content: what had not been synced may be zeros or anything.
#[test]
fn a_segment_with_junk_behind_any_byte_keeps_the_epochs_before_it() {
    let queue = queue(2);
    for which in [0, 1] {
        let whole = &queue.bytes[which];
        for junk in [0x00, 0xff, 0x5a] {
            for at in RECORDS_START as usize..whole.len() {
                let mut bytes = whole.clone();
                bytes[at..].fill(junk);
                // Where the junk is what was there before, nothing is lost yet.
                let same = whole[at..].iter().take_while(|&&byte| byte == junk).count();
                let from = at + same;
                let wanted =
                    if from == whole.len() { queue.records.len() } else { queue.whole_before(which, from) };
                assert_eq!(
                    queue.kept_with(which, &bytes),
                    wanted,
                    "segment {which}, {junk:#x} from byte {at}"
                );
            }
        }
    }
}

/// A disk that returns another byte than was written.
#[test]
fn a_segment_with_any_byte_flipped_keeps_the_epochs_before_it() {
    let queue = queue(2);
    for which in [0, 1] {
        let whole = &queue.bytes[which];
        for at in RECORDS_START as usize..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            let kept = queue.kept_with(which, &bytes);
            assert_eq!(kept, queue.whole_before(which, at), "byte {at} of segment {which} flipped");
        }
        for at in 0..RECORDS_START as usize {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            // The padding means nothing; the header is all or nothing; a newer version's queue is refused, not cut.
            std::fs::write(&queue.paths[1 - which], &queue.bytes[1 - which]).unwrap();
            std::fs::write(&queue.paths[which], &bytes).unwrap();
            if (8..12).contains(&at) {
                let refused = recover(&queue.dir.path().into(), &luns(), Incarnation(2), |_| Ok(()));
                assert!(matches!(refused, Err(crate::log::LogError::Version { .. })), "byte {at}");
                continue;
            }
            let kept = queue.kept_with(which, &bytes);
            let all_or_nothing = [queue.records.len(), which * queue.records.len() / 2];
            assert!(all_or_nothing.contains(&kept), "byte {at} of segment {which}'s header: {kept} kept");
        }
    }
}
