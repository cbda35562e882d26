//! Tests of the LUN.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::super::backing::MemoryBacking;
use super::*;

#[test]
fn parts_never_cross_a_region_border() {
    let all: Vec<_> = parts(REGION_BYTES - 512, 2 * REGION_BYTES).collect();
    assert_eq!(
        all,
        [(REGION_BYTES - 512, 512), (REGION_BYTES, REGION_BYTES), (2 * REGION_BYTES, REGION_BYTES - 512)]
    );
    assert_eq!(parts(4096, 4096).collect::<Vec<_>>(), [(4096, 4096)]);
}

#[test]
fn an_unmirrored_lun_reads_what_it_wrote_and_logs_nothing() {
    let lun = Lun::new(Arc::new(MemoryBacking::new(4 << 20)), None);
    let payload = Bytes::from(vec![5; 2 << 20]);
    assert_eq!(lun.write(512 << 10, payload, Origin::File(12)).unwrap(), None);
    let mut read = vec![0; 2 << 20];
    lun.read(512 << 10, &mut read).unwrap();
    assert!(read.iter().all(|byte| *byte == 5));
    assert_eq!(lun.discard(1 << 20, 4096, Origin::Metadata).unwrap(), None);
    lun.read(1 << 20, &mut read[..4096]).unwrap();
    assert!(read[..4096].iter().all(|byte| *byte == 0));
    assert!(lun.is_warm(0, 4 << 20));
    lun.warm(0, 4 << 20).unwrap();
    assert_eq!(lun.flush().unwrap(), None);
    let (sender, receiver) = std::sync::mpsc::channel();
    lun.when_durable(None, Box::new(move |waited| sender.send(waited).unwrap()));
    assert_eq!(receiver.recv().unwrap(), Waited::Mirrored);
}

#[test]
fn a_request_that_is_not_made_of_whole_sectors_inside_the_file_system_changes_nothing() {
    let lun = Lun::new(Arc::new(MemoryBacking::new(1 << 20)), None);
    for (offset, length) in [(1, 512), (0, 511), (0, 0), (1 << 20, 512), ((1 << 20) - 512, 1024)] {
        assert!(
            lun.write(offset, Bytes::from(vec![1; length]), Origin::Metadata).is_err(),
            "{offset} {length}"
        );
        assert!(lun.discard(offset, length as u64, Origin::Metadata).is_err(), "{offset} {length}");
    }
    assert_eq!(lun.latched(), None);
    assert!(lun.discard(u64::MAX - 511, 512, Origin::Metadata).is_err());
}

use super::super::backing::FileBacking;
use super::super::fault::{FaultBacking, Faults, Operation};
use mirrorfs_journal::log::{LogConfig, LogLun, Next, PeerLun};
use mirrorfs_journal::{Generation, Incarnation, LunUuid, MirrorRequest};
use tempfile::TempDir;

struct Mirrored {
    dir: TempDir,
    log: Arc<MirrorLog>,
    lun: Arc<Lun>,
    faults: Faults,
}

const ID: LunId = LunId(0);
const SIZE: u64 = 4 * REGION_BYTES + 8192;

fn open_log(dir: &TempDir, size_bytes: u64, incarnation: u32, clean: bool) -> Arc<MirrorLog> {
    MirrorLog::open(LogConfig {
        dir: dir.path().join("queue"),
        memory_bytes_max: 64 << 20,
        queue_bytes_max: None,
        incarnation: Incarnation(incarnation),
        luns: vec![LogLun {
            id: ID,
            uuid: LunUuid([1; 16]),
            generation: Generation(1),
            name: "data".into(),
            size_bytes,
            durable_epoch: Epoch(0),
            clean,
            all_regions: false,
        }],
    })
    .unwrap()
}

fn mirrored_over(backing: Arc<dyn Backing>) -> Mirrored {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(&dir, backing.size_bytes(), 1, true);
    let faults = Faults::new(1);
    let lun = Lun::new(Arc::new(FaultBacking::new(backing, faults.clone())), Some((ID, Arc::clone(&log))));
    Mirrored { dir, log, lun, faults }
}

fn mirrored() -> Mirrored {
    mirrored_over(Arc::new(MemoryBacking::new(SIZE)))
}

fn changes(log: &MirrorLog) -> Vec<Arc<MirrorRequest>> {
    log.list(usize::MAX).into_iter().filter(|request| request.range().is_some()).collect()
}

/// What a mirror that applied it all would hold.
fn replay(log: &MirrorLog) -> Vec<u8> {
    let mut image = vec![0; SIZE as usize];
    for request in changes(log) {
        let (offset, length) = request.range().unwrap();
        assert_eq!(RegionNo::of(offset), RegionNo::of(offset + length - 1), "a request stays in its region");
        let target = &mut image[offset as usize..(offset + length) as usize];
        match &request.body {
            Body::Write { payload, crc, .. } => {
                assert_eq!(crc32c::crc32c(payload), *crc);
                target.copy_from_slice(payload);
            }
            Body::Discard { .. } => target.fill(0),
            other => panic!("{other:?}"),
        }
    }
    image
}

/// A session with a new mirror up to the end of its resync; returns what the mirror then holds.
fn first_sync(log: &MirrorLog, lun: &Arc<Lun>, meanwhile: impl FnOnce()) -> Vec<u8> {
    log.set_region_source(ID, lun.region_source());
    let peer = PeerLun { id: ID, durable_epoch: Epoch(0), resyncing: true, created: true };
    log.begin_session(&[peer]).unwrap();
    meanwhile();
    let mut mirror = vec![0; lun.size_bytes() as usize];
    let mut end = None;
    loop {
        let Next::Request(request) = log.next(std::time::Duration::from_secs(20)) else { panic!() };
        match &request.body {
            Body::Write { offset, payload, .. } => {
                mirror[*offset as usize..*offset as usize + payload.len()].copy_from_slice(payload);
            }
            Body::Discard { offset, length } => mirror[*offset as usize..(offset + length) as usize].fill(0),
            Body::Barrier { .. } => {
                log.durable(request.epoch);
                if end.is_some_and(|end| end <= request.epoch) {
                    return mirror;
                }
            }
            Body::ResyncEnd => end = Some(request.epoch),
            Body::ResyncBegin { .. } => {}
            Body::Check { .. } => panic!("{request:?}"),
        }
    }
}

#[test]
fn a_write_is_split_at_region_borders_and_its_buffer_is_shared() {
    let Mirrored { dir: _dir, log, lun, .. } = mirrored();
    // Without a session, requests go to disk at once.
    let peer = PeerLun { id: ID, durable_epoch: Epoch(0), resyncing: false, created: false };
    log.begin_session(&[peer]).unwrap();
    let payload = Bytes::from(vec![7; 8192]);
    let start = payload.as_ptr() as usize;
    assert!(!lun.is_warm(REGION_BYTES - 4096, 8192));
    let last = lun.write(REGION_BYTES - 4096, payload, Origin::File(12)).unwrap().unwrap();
    assert!(lun.is_warm(REGION_BYTES - 4096, 8192), "a cold region was marked on the way");
    let requests = changes(&log);
    assert_eq!(requests.len(), 2);
    for (index, request) in requests.iter().enumerate() {
        let Body::Write { offset, payload, .. } = &request.body else { panic!() };
        assert_eq!(*offset, REGION_BYTES - 4096 + 4096 * index as u64);
        assert_eq!(payload.as_ptr() as usize, start + 4096 * index, "not copied");
        assert_eq!(request.origin, Origin::File(12));
    }
    assert_eq!(requests[1].sequence, last.sequence);
    lun.discard(REGION_BYTES, 4096, Origin::Metadata).unwrap();
    let mut image = vec![0; SIZE as usize];
    lun.read(0, &mut image).unwrap();
    assert_eq!(replay(&log), image);
}

#[test]
fn the_log_has_overlapping_requests_in_the_order_the_image_has_them() {
    let Mirrored { dir: _dir, log, lun, .. } = mirrored();
    lun.warm(0, SIZE).unwrap();
    thread::scope(|scope| {
        for writer in 0..4u64 {
            let lun = &lun;
            scope.spawn(move || {
                let mut seed = writer;
                for step in 0..300 {
                    let random = super::super::recorder::splitmix(&mut seed);
                    let length = 512 * (1 + random % 40);
                    // Around one border, so that nearly all of them overlap.
                    let offset = REGION_BYTES - 10_240 + 512 * ((random >> 32) % 20);
                    if step % 5 == 0 {
                        lun.discard(offset, length, Origin::Metadata).unwrap();
                    } else {
                        let bytes = vec![random as u8; length as usize];
                        lun.write(offset, Bytes::from(bytes), Origin::File(12)).unwrap();
                    }
                }
            });
        }
    });
    let mut image = vec![0; SIZE as usize];
    lun.read(0, &mut image).unwrap();
    assert_eq!(replay(&log), image);
}

#[test]
fn a_failed_write_is_not_logged_and_latches() {
    let Mirrored { dir: _dir, log, lun, faults, .. } = mirrored();
    lun.write(0, Bytes::from(vec![1; 512]), Origin::Metadata).unwrap();
    faults.tear_writes(true);
    faults.fail_nth(Operation::Write, 1, libc::EIO);
    // The part before the border is written and logged, the one behind it neither.
    let error = lun.write(REGION_BYTES - 4096, Bytes::from(vec![2; 8192]), Origin::Metadata).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(changes(&log).len(), 2);
    let why = lun.latched().unwrap();
    assert!(why.contains(&format!("4096 bytes at {REGION_BYTES}")), "{why}");
    for result in [
        lun.write(0, Bytes::from(vec![1; 512]), Origin::Metadata).map(|_| ()),
        lun.discard(0, 512, Origin::Metadata).map(|_| ()),
        lun.flush().map(|_| ()),
        lun.reserve(0, 4096),
        lun.resync_region(RegionNo(0), false).map(drop),
    ] {
        assert!(result.unwrap_err().to_string().contains(&why));
    }
    assert_eq!(changes(&log).len(), 2);
    assert!(log.is_marked(ID, RegionNo(1)));
    lun.read(0, &mut [0; 512]).unwrap();
}

#[test]
fn the_region_of_a_failed_write_is_still_marked_at_the_next_mount() {
    let size = 40 * REGION_BYTES;
    let Mirrored { dir, log, lun, faults } = mirrored_over(Arc::new(MemoryBacking::new(size)));
    first_sync(&log, &lun, || ());
    log.end_session();
    faults.fail_nth(Operation::Write, 0, libc::EIO);
    lun.write(20 * REGION_BYTES, Bytes::from(vec![1; 512]), Origin::Metadata).unwrap_err();
    // The others of its run of 16 are cleared; this one is held.
    log.close();
    drop((lun, log));
    let log = open_log(&dir, size, 2, false);
    assert_eq!(log.status().marked_regions, 1);
}

#[test]
fn a_failed_sync_latches() {
    for mirrored in [true, false] {
        let faults = Faults::new(1);
        let backing = Arc::new(FaultBacking::new(Arc::new(MemoryBacking::new(SIZE)), faults.clone()));
        let held = mirrored.then(|| mirrored_over(backing.clone()));
        let lun = held.as_ref().map_or_else(|| Lun::new(backing, None), |held| Arc::clone(&held.lun));
        lun.write(0, Bytes::from(vec![1; 512]), Origin::Metadata).unwrap();
        lun.flush().unwrap();
        faults.fail_nth(Operation::Sync, 0, libc::EIO);
        assert!(lun.flush().is_err());
        assert!(lun.flush().is_err(), "a second sync would lie");
        assert!(lun.write(0, Bytes::from(vec![1; 512]), Origin::Metadata).is_err());
        assert!(lun.latched().unwrap().contains("sync failed"));
    }
}

#[test]
fn a_full_host_refuses_the_reservation_and_latches_nothing() {
    let faults = Faults::new(1);
    let backing = Arc::new(FaultBacking::new(Arc::new(MemoryBacking::new(SIZE)), faults.clone()));
    faults.set_free_bytes(&backing, 16_384).unwrap();
    let lun = Lun::new(backing, None);
    assert_eq!(lun.reserve(0, 32_768).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    lun.reserve(0, 16_384).unwrap();
    lun.write(0, Bytes::from(vec![1; 16_384]), Origin::File(12)).unwrap();
    assert_eq!(lun.reserve(16_384, 4096).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    lun.discard(0, 4096, Origin::File(12)).unwrap();
    lun.reserve(16_384, 4096).unwrap();
    lun.write(16_384, Bytes::from(vec![1; 4096]), Origin::File(12)).unwrap();
    assert_eq!(lun.latched(), None);
}

#[test]
fn a_flush_closes_the_epoch_of_all_that_was_written_before_it() {
    let Mirrored { dir: _dir, log, lun, faults, .. } = mirrored();
    let first = lun.write(0, Bytes::from(vec![1; 512]), Origin::Metadata).unwrap().unwrap();
    let epoch = lun.flush().unwrap().unwrap();
    assert_eq!(first.epoch, epoch);
    assert_eq!(faults.count(Operation::Sync), 1);
    let second = lun.write(0, Bytes::from(vec![2; 512]), Origin::Metadata).unwrap().unwrap();
    assert!(second.epoch > epoch && second.sequence > first.sequence);
    drop(log);
}

#[test]
fn the_next_window_is_marked_in_the_background() {
    let Mirrored { dir: _dir, lun, .. } = mirrored_over(Arc::new(MemoryBacking::new(64 * REGION_BYTES)));
    assert!(!lun.is_warm(40 * REGION_BYTES, REGION_BYTES));
    lun.warm_soon(40 * REGION_BYTES, u64::MAX);
    while !lun.is_warm(40 * REGION_BYTES, 24 * REGION_BYTES) {
        thread::yield_now();
    }
    assert!(!lun.is_warm(0, 1));
}

#[test]
fn a_region_is_resynced_as_data_and_holes() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    let backing = Arc::new(FileBacking::open(file.path()).unwrap());
    backing.write_at(REGION_BYTES + 65_536, &vec![3; 300 << 10]).unwrap();
    backing.write_at(4 * REGION_BYTES + 4096, &[4; 4096]).unwrap();
    let Mirrored { dir: _dir, log, lun, .. } = mirrored_over(backing);
    // Resync entries live in a session only.
    let peer = PeerLun { id: ID, durable_epoch: Epoch(0), resyncing: false, created: false };
    log.begin_session(&[peer]).unwrap();
    let ranges = || {
        let ranges = changes(&log).into_iter().map(|request| {
            assert_eq!(request.origin, Origin::Resync);
            let (offset, length) = request.range().unwrap();
            (matches!(request.body, Body::Write { .. }), offset, length)
        });
        ranges.collect::<Vec<_>>()
    };
    assert_eq!(lun.resync_region(RegionNo(1), true).unwrap(), RegionNo(4), "all holes up to there");
    let start = REGION_BYTES + 65_536;
    let data = [(true, start, 256 << 10), (true, start + (256 << 10), 44 << 10)];
    assert_eq!(ranges(), data);
    assert_eq!(lun.resync_region(RegionNo(1), false).unwrap(), RegionNo(2), "holes are sent");
    let end = start + (300 << 10);
    let whole = [(false, REGION_BYTES, 65_536), data[0], data[1], (false, end, 2 * REGION_BYTES - end)];
    assert_eq!(ranges()[2..], whole);
    // The last region is cut by the file system's end.
    lun.resync_region(RegionNo(4), false).unwrap();
    assert_eq!(ranges()[6..], [(false, 4 * REGION_BYTES, 4096), (true, 4 * REGION_BYTES + 4096, 4096)]);
    lun.resync_region(RegionNo(0), false).unwrap();
    assert_eq!(ranges()[8..], [(false, 0, REGION_BYTES)]);
    let mut image = vec![0; SIZE as usize];
    lun.read(0, &mut image).unwrap();
    assert_eq!(replay(&log), image);
}

#[test]
fn a_new_mirror_gets_all_data_through_the_log_and_the_lun_goes_when_it_is_dropped() {
    let memory = Arc::new(MemoryBacking::new(SIZE));
    memory.write_at(REGION_BYTES - 4096, &[3; 8192]).unwrap();
    memory.write_at(SIZE - 4096, &[4; 4096]).unwrap();
    let Mirrored { log, lun, dir: _dir, .. } = mirrored_over(memory.clone());
    let mirror = first_sync(&log, &lun, || {
        lun.write(2 * REGION_BYTES, Bytes::from(vec![5; 4096]), Origin::File(12)).unwrap();
    });
    assert_eq!(mirror, memory.to_bytes());
    let gone = Arc::downgrade(&lun);
    log.close();
    drop(lun);
    assert!(gone.upgrade().is_none(), "the log does not keep the image locked");
}
