//! A damaged queue: whatever a mount finds, it opens, hands out nothing but what was written, and loses nothing in silence: the
//! mirror is the primary's image again once queue and resync have been carried out.

use crate::{Input, files, mutate};
use bytes::Bytes;
use mirrorfs_journal::log::{LogConfig, LogError, LogLun, Next, PeerLun, RegionSource};
use mirrorfs_journal::{
    Body, Epoch, Generation, Incarnation, LunId, LunUuid, MirrorLog, MirrorRequest, Origin, QueueView,
    REGION_BYTES, RegionNo, Sequence,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

const LUNS: u16 = 2;
const REGIONS: u64 = 40;
/// Where each region has its data.
const SLOT: u64 = 8192;
const WRITE_BYTES: usize = 4096;
/// A record that does not come within this time does not come.
const WAIT: Duration = Duration::from_secs(60);

/// An image as far as it is written: LUN and region to content.
type Content = BTreeMap<(u16, u64), u8>;

/// A queue left by a mount, as files.
struct Base {
    files: Vec<(PathBuf, Vec<u8>)>,
    clean: bool,
    /// Last epoch that the peer has of each LUN.
    durable: Vec<Epoch>,
    mirror: Content,
    primary: Content,
    written: BTreeMap<u64, Arc<MirrorRequest>>,
}

fn config(dir: &Path, incarnation: u32, memory: u64, clean: bool, durable: &[Epoch]) -> LogConfig {
    let lun = |id: u16| LogLun {
        id: LunId(id),
        uuid: LunUuid([id as u8 + 1; 16]),
        generation: Generation(7),
        name: format!("lun{id}"),
        size_bytes: REGIONS * REGION_BYTES,
        durable_epoch: durable.get(usize::from(id)).copied().unwrap_or_default(),
        clean,
        all_regions: false,
    };
    LogConfig {
        dir: dir.to_path_buf(),
        memory_bytes_max: memory,
        queue_bytes_max: Some(1 << 30),
        incarnation: Incarnation(incarnation),
        luns: (0..LUNS).map(lun).collect(),
    }
}

/// Hands out regions of the primary.
struct Source {
    log: Weak<MirrorLog>,
    lun: u16,
    primary: Content,
}

impl RegionSource for Source {
    fn resync_region(&self, region: RegionNo, skip_holes: bool) -> std::io::Result<RegionNo> {
        let next = RegionNo(region.0 + 1);
        let Some(log) = self.log.upgrade() else { return Ok(next) };
        match self.primary.get(&(self.lun, region.0)) {
            Some(byte) => {
                log.append(LunId(self.lun), Origin::Resync, write_body(region.0, *byte));
            }
            None if skip_holes => {}
            None => {
                let body = Body::Discard { offset: region.start(), length: REGION_BYTES };
                log.append(LunId(self.lun), Origin::Resync, body);
            }
        }
        Ok(next)
    }
}

fn write_body(region: u64, byte: u8) -> Body {
    let payload = Bytes::from(vec![byte; WRITE_BYTES]);
    let crc = crc32c::crc32c(&payload);
    Body::Write { offset: region * REGION_BYTES + SLOT, payload, crc }
}

fn write(log: &MirrorLog, primary: &mut Content, lun: u16, region: u64, byte: u8) {
    log.ensure_marked(LunId(lun), RegionNo(region)).expect("the map can be written");
    primary.insert((lun, region), byte);
    log.append(LunId(lun), Origin::File(12), write_body(region, byte));
}

fn sources(log: &Arc<MirrorLog>, primary: &Content) {
    for lun in 0..LUNS {
        let source = Source { log: Arc::downgrade(log), lun, primary: primary.clone() };
        log.set_region_source(LunId(lun), Arc::new(source));
    }
}

/// Plays the peer until `barrier` has come and no resync runs.
fn play(log: &MirrorLog, mirror: &mut Content, barrier: Epoch, mut look: impl FnMut(&MirrorRequest)) -> bool {
    let deadline = Instant::now() + WAIT;
    let mut reached = false;
    loop {
        if reached && !log.status().resync_running {
            return true;
        }
        assert!(Instant::now() < deadline, "the peer waits: {:?}", log.status());
        match log.next(Duration::from_millis(2)) {
            Next::Request(request) => {
                look(&request);
                apply(&request, mirror);
                match request.body {
                    Body::Barrier { .. } => {
                        reached |= request.epoch >= barrier;
                        log.durable(request.epoch);
                    }
                    Body::Check { .. } => log.checked(request.sequence, false),
                    _ => log.applied(request.sequence),
                }
            }
            // Epochs close by age; nobody waits for that here.
            Next::Idle => drop(log.barrier(LunId(0))),
            Next::Ended => return false,
        }
    }
}

fn apply(request: &MirrorRequest, mirror: &mut Content) {
    match &request.body {
        Body::Write { offset, payload, crc } => {
            assert_eq!(crc32c::crc32c(payload), *crc, "record {}: damaged payload", request.sequence);
            mirror.insert((request.lun.0, offset / REGION_BYTES), payload[0]);
        }
        Body::Discard { offset, .. } => {
            mirror.remove(&(request.lun.0, offset / REGION_BYTES));
        }
        _ => {}
    }
}

/// Queues of an outage: left cleanly or by a crash, in one segment or several.
fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| vec![make(true, false), make(true, true), make(false, false), make(false, true)])
}

fn make(clean: bool, several: bool) -> Base {
    let dir = files::temporary();
    let log = MirrorLog::open(config(dir.path(), 1, 64 << 10, true, &[])).expect("a new queue opens");
    let (mut primary, mut mirror) = (Content::new(), Content::new());
    for lun in 0..LUNS {
        for region in 0..8 {
            write(&log, &mut primary, lun, region, 1);
        }
    }
    sources(&log, &primary);
    let created = |lun| PeerLun { id: LunId(lun), durable_epoch: Epoch(0), resyncing: false, created: true };
    log.begin_session(&(0..LUNS).map(created).collect::<Vec<_>>()).expect("a session begins");
    let barrier = log.barrier(LunId(0));
    assert!(play(&log, &mut mirror, barrier, |_| {}));
    assert_eq!(mirror, primary, "the first sync is complete");
    // While the peer is there and slow, memory overflows into a segment; what is left in memory goes into another.
    if !several {
        log.end_session();
    }
    let mut last = barrier;
    for index in 0..60_u64 {
        write(&log, &mut primary, (index % 2) as u16, 4 + index % 20, 100 + index as u8);
        if index % 5 == 4 {
            last = log.barrier(LunId((index % 2) as u16));
        }
    }
    log.end_session();
    let deadline = Instant::now() + WAIT;
    while log.status().memory_bytes > 0 {
        assert!(Instant::now() < deadline, "never spilled: {:?}", log.status());
        std::thread::sleep(Duration::from_millis(2));
    }
    log.sync_queue(last);
    let mut durable = vec![barrier; usize::from(LUNS)];
    if clean {
        for (lun, epoch) in log.close() {
            durable[usize::from(lun.0)] = epoch;
        }
    }
    let mut found = Vec::new();
    collect(dir.path(), dir.path(), &mut found);
    let view = QueueView::open(dir.path()).expect("the queue can be read");
    let records = view.records(true).expect("the queue is whole");
    assert!(records.len() > 60, "{} records", records.len());
    let written = records.into_iter().map(|record| (record.sequence.0, Arc::new(record))).collect();
    drop(log);
    Base { files: found, clean, durable, mirror, primary, written }
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    let entries = std::fs::read_dir(dir).expect("the queue can be read");
    for entry in entries {
        let path = entry.expect("the queue can be read").path();
        if path.is_dir() {
            collect(root, &path, found);
        } else {
            let name = path.strip_prefix(root).expect("it lies below").to_path_buf();
            found.push((name, std::fs::read(&path).expect("the queue can be read")));
        }
    }
    found.sort();
}

/// What was done to the files.
#[derive(Default)]
struct Damage {
    /// A checksum was made right again: what is read may be anything.
    forged: bool,
}

fn damage(input: &mut Input<'_>, files: &mut Vec<(PathBuf, Vec<u8>)>) -> Damage {
    let mut damage = Damage::default();
    for _ in 0..1 + input.below(3) {
        if files.is_empty() {
            break;
        }
        let at = input.index(files.len());
        let name = files[at].0.to_string_lossy().into_owned();
        let bytes = &mut files[at].1;
        match input.below(12) {
            0 => drop(files.remove(at)),
            1 => bytes.truncate(input.index(bytes.len() + 1)),
            2 if name.starts_with("segment-") => {
                // At the border of a record.
                let records = starts(bytes);
                if !records.is_empty() {
                    bytes.truncate(*input.pick(&records));
                }
            }
            3 => {
                let other = input.index(files.len());
                files[at].1 = files[other].1.clone();
                damage.forged = true;
            }
            4..=6 if name.starts_with("segment-") => damage.forged |= forge_record(input, bytes),
            4..=6 if name.starts_with("regions-") => {
                if bytes.len() >= 1024 {
                    let at = input.index(bytes.len() / 512) * 512;
                    let sector = &mut bytes[at..at + 512];
                    let places = [0, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 152, 280, 408];
                    mutate::fields(input, sector, &places, false);
                    let crc = crc32c::crc32c(&sector[..508]);
                    sector[508..].copy_from_slice(&crc.to_le_bytes());
                    damage.forged = true;
                }
            }
            7 => {
                let noise = input.rest(300);
                bytes.extend_from_slice(&noise);
            }
            8 => mutate::ranges(input, bytes),
            _ => {
                // sled's files are mostly zeros: where something is written, and just behind it.
                let used: Vec<usize> =
                    bytes.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect();
                mutate::fields(input, bytes, &used, false);
            }
        }
    }
    damage
}

/// Where records begin.
fn starts(bytes: &[u8]) -> Vec<usize> {
    bytes.windows(4).enumerate().filter(|(_, four)| *four == b"MFRQ").map(|(at, _)| at).collect()
}

/// Changes a record, the header of the segment or its trailer, and makes the checksum right again.
fn forge_record(input: &mut Input<'_>, bytes: &mut [u8]) -> bool {
    let records = starts(bytes);
    if records.is_empty() || bytes.len() < 4096 {
        return false;
    }
    match input.below(4) {
        0 => {
            mutate::fields(input, &mut bytes[..4096], &[0, 8, 12, 16, 64, 80, 3968, 3976], false);
            bytes[24..28].fill(0);
            let crc = crc32c::crc32c(&bytes[..3904]);
            bytes[24..28].copy_from_slice(&crc.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[3968..3976]);
            bytes[3976..3980].copy_from_slice(&crc.to_le_bytes());
        }
        1 if bytes.len() >= 4128 && bytes[bytes.len() - 32..].starts_with(b"MFRE") => {
            let at = bytes.len() - 32;
            mutate::fields(input, &mut bytes[at..], &[4, 8, 16, 24], false);
            let crc = crc32c::crc32c(&bytes[at..at + 28]);
            bytes[at + 28..].copy_from_slice(&crc.to_le_bytes());
        }
        _ => {
            let at = *input.pick(&records);
            let Some(header) = bytes.get_mut(at..at + 80) else { return false };
            mutate::fields(input, header, &[4, 5, 6, 8, 12, 16, 20, 32, 40, 48, 50, 56, 60], false);
            let crc = crc32c::crc32c(&header[..76]);
            header[76..].copy_from_slice(&crc.to_le_bytes());
        }
    }
    true
}

pub(crate) fn run(input: &mut Input<'_>) {
    let base = input.pick(bases());
    let mut files = base.files.clone();
    let damage = damage(input, &mut files);
    let dir = files::temporary();
    for (name, bytes) in &files {
        let path = dir.path().join(name);
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        made.and_then(|()| std::fs::write(&path, bytes)).expect("a file can be written");
    }
    look(input, dir.path(), base, &damage);
    let log = match MirrorLog::open(config(dir.path(), 2, 64 << 20, base.clean, &base.durable)) {
        Ok(log) => log,
        // The one thing that a mount refuses: another mirrorfs wrote it.
        Err(LogError::Version { .. }) => return input.count("newer version"),
        Err(error) => panic!("the queue does not open: {error}"),
    };
    input.count("opened");
    let (mut primary, mut mirror) = (base.primary.clone(), base.mirror.clone());
    write(&log, &mut primary, 0, 30, 251);
    write(&log, &mut primary, 1, 5, 252);
    let barrier = log.barrier(LunId(0));
    sources(&log, &primary);
    let states: Vec<PeerLun> = (0..LUNS)
        .map(|lun| PeerLun {
            id: LunId(lun),
            durable_epoch: base.durable[usize::from(lun)],
            resyncing: false,
            created: false,
        })
        .collect();
    // A queue that turns out to be damaged when it is read ends the session; the next one resyncs.
    for _ in 0..3 {
        log.begin_session(&states).expect("a session begins");
        let mut from_queue = 0;
        let done = play(&log, &mut mirror, barrier, |request| {
            let first = Sequence::first(Incarnation(2));
            if request.sequence >= first || damage.forged {
                return;
            }
            from_queue += 1;
            let known = base.written.get(&request.sequence.0);
            assert!(
                known.is_some_and(|known| **known == *request),
                "record {} was never written",
                request.sequence
            );
        });
        if from_queue > 0 {
            input.count("replayed");
        }
        if done {
            break;
        }
        input.count("session ended");
        log.end_session();
    }
    if !damage.forged {
        assert_eq!(mirror, primary, "the mirror is not the primary's image");
        input.count("mirror compared");
    }
    log.close();
}

/// The commands that read a queue without a mount.
fn look(input: &mut Input<'_>, dir: &Path, base: &Base, damage: &Damage) {
    let view = QueueView::open(dir).expect("the directory can be read");
    if let Ok(records) = view.records(true) {
        for record in &records {
            let known = base.written.get(&record.sequence.0);
            let same = known.is_some_and(|known| **known == *record);
            assert!(damage.forged || same, "record {} was never written", record.sequence);
        }
        if let Some(record) = records.first() {
            let _ = view.show(record.sequence);
        }
        input.count("listed");
    }
    let _ = view.records(false);
    let lines = view.verify().expect("the directory can be read");
    if !lines.is_empty() {
        input.count("damage reported");
    }
}
