//! What is on disk, as the log keeps it in memory: per segment the ends of its epochs, no single records.

use super::segment;
use crate::ids::{Epoch, Sequence};
use crate::medium::Handle;
use crate::request::{Body, MirrorRequest};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

/// The part of an epoch that lies in one segment.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) epoch: Epoch,
    /// Its last record.
    pub(crate) last: u64,
    /// Where that ends.
    pub(crate) end: u64,
    /// With its barrier.
    pub(crate) records: u64,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) first_ms: u64,
    /// Its barrier is the last record.
    pub(crate) closed: bool,
}

pub(crate) struct Segment {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Where the records that still count begin.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Bytes known to be durable.
    pub(crate) synced: u64,
    /// Bytes at the head given back to the file system, header not counted.
    pub(crate) punched: u64,
    /// It has its trailer.
    pub(crate) finished: bool,
    pub(crate) marks: VecDeque<Mark>,
    pub(crate) file: Arc<Handle>,
    pub(crate) path: PathBuf,
}

impl Segment {
    pub(crate) fn new(first: u64, file: Arc<Handle>, path: PathBuf, start: u64) -> Self {
        Self {
            first,
            last: first,
            start,
            end: start,
            synced: 0,
            punched: start - segment::RECORDS_START,
            finished: false,
            marks: VecDeque::new(),
            file,
            path,
        }
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.end - self.punched
    }
}

#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) segments: BTreeMap<u64, Segment>,
    /// Requests, barriers and marks of resyncs.
    pub(crate) records: u64,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
}

impl Disk {
    /// Notes a record that was written at the segment's end.
    pub(crate) fn add(&mut self, first: u64, request: &MirrorRequest, end: u64) {
        let Some(segment) = self.segments.get_mut(&first) else { return };
        let requests = u64::from(request.range().is_some());
        let bytes = request.payload_bytes() as u64;
        let closed = matches!(request.body, Body::Barrier { .. });
        segment.last = request.sequence.0;
        segment.end = end;
        self.records += 1;
        self.requests += requests;
        self.bytes += bytes;
        match segment.marks.back_mut() {
            Some(mark) if mark.epoch == request.epoch => {
                (mark.last, mark.end, mark.closed) = (request.sequence.0, end, closed);
                mark.records += 1;
                mark.requests += requests;
                mark.bytes += bytes;
            }
            _ => segment.marks.push_back(Mark {
                epoch: request.epoch,
                last: request.sequence.0,
                end,
                records: 1,
                requests,
                bytes,
                first_ms: request.accepted_ms,
                closed,
            }),
        }
    }

    /// The segment that holds the first record at or after `cursor`.
    pub(crate) fn at_or_after(&self, cursor: u64) -> Option<&Segment> {
        let before = self.segments.range(..=cursor).next_back().map(|(_, segment)| segment);
        let holds = |segment: &&Segment| segment.last >= cursor && !segment.marks.is_empty();
        before.filter(holds).or_else(|| {
            self.segments
                .range(cursor..)
                .map(|(_, segment)| segment)
                .find(|segment| !segment.marks.is_empty())
        })
    }

    /// Where to begin reading for `cursor`: the last known record end before it.
    pub(crate) fn offset_of(segment: &Segment, cursor: u64) -> u64 {
        let before = segment.marks.partition_point(|mark| mark.last < cursor);
        before.checked_sub(1).and_then(|at| segment.marks.get(at)).map_or(segment.start, |mark| mark.end)
    }

    /// Drops epochs up to `epoch`; returns the number of requests, the last record dropped and the segments that hold
    /// nothing any more. `writing`: that segment stays, a batch is being added to it.
    pub(crate) fn retire(&mut self, epoch: Epoch, writing: Option<u64>) -> (u64, u64, Vec<Segment>) {
        let (mut requests, mut last) = (0, 0);
        let mut empty = Vec::new();
        for segment in self.segments.values_mut() {
            while let Some(mark) = segment.marks.front().filter(|mark| mark.epoch <= epoch) {
                requests += mark.requests;
                self.records -= mark.records;
                self.bytes -= mark.bytes;
                last = mark.last;
                segment.start = mark.end;
                segment.marks.pop_front();
            }
            if !segment.marks.is_empty() {
                break;
            }
            if Some(segment.first) != writing {
                empty.push(segment.first);
            }
        }
        self.requests -= requests;
        let empty = empty.into_iter().filter_map(|first| self.segments.remove(&first)).collect();
        (requests, last, empty)
    }

    /// The last barrier before `sequence`.
    pub(crate) fn barrier_before(&self, sequence: u64) -> Option<(Sequence, Epoch)> {
        self.segments
            .range(..sequence)
            .rev()
            .flat_map(|(_, segment)| segment.marks.iter().rev())
            .find(|mark| mark.closed && mark.last < sequence)
            .map(|mark| (Sequence(mark.last), mark.epoch))
    }

    /// Drops all records after `keep`, which ends an epoch. Returns the segments to be unlinked; the one that holds
    /// `keep` is cut.
    pub(crate) fn cut(&mut self, keep: u64) -> (Vec<Segment>, std::io::Result<()>) {
        let mut gone = Vec::new();
        let mut result = Ok(());
        let later: Vec<u64> = self.segments.range(keep + 1..).map(|(first, _)| *first).collect();
        for first in later {
            gone.extend(self.segments.remove(&first));
        }
        if let Some((_, segment)) = self.segments.range_mut(..=keep).next_back()
            && segment.last > keep
        {
            while segment.marks.back().is_some_and(|mark| mark.last > keep) {
                segment.marks.pop_back();
            }
            match segment.marks.back() {
                Some(mark) => {
                    (segment.last, segment.end, segment.finished) = (mark.last, mark.end, false);
                    segment.synced = segment.synced.min(segment.end);
                    result = segment.file.set_len(segment.end);
                }
                None => {
                    let first = segment.first;
                    gone.extend(self.segments.remove(&first));
                }
            }
        } else if let Some((_, segment)) = self.segments.range_mut(..=keep).next_back()
            && segment.finished
            && !gone.is_empty()
        {
            // Its trailer names a segment that goes.
            segment.finished = false;
            result = segment.file.set_len(segment.end);
        }
        let marks = || self.segments.values().flat_map(|segment| &segment.marks);
        self.records = marks().map(|mark| mark.records).sum();
        self.requests = marks().map(|mark| mark.requests).sum();
        self.bytes = marks().map(|mark| mark.bytes).sum();
        (gone, result)
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.segments.values().map(Segment::disk_bytes).sum()
    }

    /// Payload bytes of what is still to be sent from `cursor` on; epochs count whole.
    pub(crate) fn bytes_from(&self, cursor: u64) -> u64 {
        self.segments
            .values()
            .rev()
            .take_while(|segment| segment.last >= cursor)
            .flat_map(|segment| segment.marks.iter().rev().take_while(|mark| mark.last >= cursor))
            .map(|mark| mark.bytes)
            .sum()
    }

    /// The first epoch that is not wholly durable on disk, among those on disk.
    pub(crate) fn first_unsynced(&self) -> Option<Epoch> {
        self.segments.values().find(|segment| segment.synced < segment.end && !segment.marks.is_empty()).map(
            |segment| {
                let at = segment.marks.partition_point(|mark| mark.end <= segment.synced);
                segment.marks.get(at).map_or(Epoch(0), |mark| mark.epoch)
            },
        )
    }
}
