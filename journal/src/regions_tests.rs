#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

const UUID: LunUuid = LunUuid([3; 16]);
const GENERATION: Generation = Generation(9);
const SIZE: u64 = 3000 << 20;

fn open(dir: &Path) -> (RegionMap, bool) {
    RegionMap::open(&dir.into(), UUID, GENERATION, SIZE).unwrap()
}

fn in_sync(dir: &Path) -> RegionMap {
    let (map, _) = open(dir);
    map.set_resync((0..map.regions()).map(RegionNo), false);
    map.flush().unwrap();
    map
}

#[test]
fn new_map_means_all_regions() {
    let dir = tempfile::tempdir().unwrap();
    let (map, known) = open(dir.path());
    assert!(!known && map.all_resync());
    drop(map);
    let (map, known) = open(dir.path());
    assert!(known && map.all_resync());
}

#[test]
fn marks_come_in_runs_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let map = in_sync(dir.path());
    assert!(!map.is_marked(RegionNo(1040)));
    map.ensure_marked(RegionNo(1040)).unwrap();
    assert!(
        map.is_marked(RegionNo(1055)) && !map.is_marked(RegionNo(1056)) && !map.is_marked(RegionNo(1039))
    );
    map.set_state(MapState { resyncing: true, durable: Epoch(7), durable_previous: Epoch(5) });
    map.flush().unwrap();
    drop(map);
    let (map, known) = open(dir.path());
    assert!(known && map.is_marked(RegionNo(1047)));
    assert_eq!(map.marked_count(), 16);
    assert_eq!(map.state(), MapState { resyncing: true, durable: Epoch(7), durable_previous: Epoch(5) });
}

#[test]
fn foreign_map_means_all_regions() {
    let dir = tempfile::tempdir().unwrap();
    drop(in_sync(dir.path()));
    let (map, known) = RegionMap::open(&dir.path().into(), UUID, Generation(10), SIZE).unwrap();
    assert!(!known && map.all_resync());
}

#[test]
fn torn_sector_means_its_own_regions_only() {
    let dir = tempfile::tempdir().unwrap();
    let map = in_sync(dir.path());
    let path = map.path().to_path_buf();
    drop(map);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"x", (HEADERS + 1) * SECTOR_BYTES as u64 + 30).unwrap();
    let (map, known) = open(dir.path());
    assert!(known);
    assert_eq!(map.resync_count(), REGIONS_PER_SECTOR);
    assert_eq!(map.next_resync(RegionNo(0)), Some(RegionNo(1024)));
}

#[test]
fn one_torn_header_is_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let map = in_sync(dir.path());
    let path = map.path().to_path_buf();
    map.set_state(MapState { durable: Epoch(1), ..MapState::default() });
    map.flush().unwrap();
    drop(map);
    for copy in 0..2 {
        let copied = tempfile::tempdir().unwrap();
        let to = copied.path().join(path.file_name().unwrap());
        std::fs::copy(&path, &to).unwrap();
        OpenOptions::new()
            .write(true)
            .open(to)
            .unwrap()
            .write_all_at(b"x", copy * SECTOR_BYTES as u64)
            .unwrap();
        assert_eq!(open(copied.path()).0.resync_count(), 0);
    }
}

#[test]
fn grown_lun_has_its_new_regions_marked() {
    let dir = tempfile::tempdir().unwrap();
    drop(in_sync(dir.path()));
    let (map, known) = RegionMap::open(&dir.path().into(), UUID, GENERATION, SIZE + (100 << 20)).unwrap();
    assert!(known);
    assert_eq!((map.resync_count(), map.next_resync(RegionNo(0))), (100, Some(RegionNo(3000))));
}

#[test]
fn tidying_spares_what_is_used_held_or_kept() {
    let dir = tempfile::tempdir().unwrap();
    let map = in_sync(dir.path());
    map.ensure_marked(RegionNo(0)).unwrap();
    map.ensure_marked(RegionNo(16)).unwrap();
    let hold = map.hold(RegionNo(3));
    let fate = |region: RegionNo| if region.0 == 5 { Fate::Keep } else { Fate::Clear };
    for _ in 0..4 {
        map.is_marked(RegionNo(20));
        map.tidy(Epoch(42), false, fate);
    }
    map.flush().unwrap();
    for region in 0..32 {
        assert_eq!(map.is_marked(RegionNo(region)), [3, 5, 20].contains(&region), "region {region}");
    }
    drop(hold);
    drop(map);
    let (map, _) = open(dir.path());
    assert_eq!((map.marked_count(), map.floor()), (3, Epoch(42)));
}

#[test]
fn queued_mark_turns_to_resync_when_the_queue_is_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let map = in_sync(dir.path());
    map.ensure_marked(RegionNo(0)).unwrap();
    map.tidy(Epoch(1), true, |_| Fate::Queued);
    assert!(!map.is_marked(RegionNo(0)));
    map.settle_queued(|region| region.0 < 4, true);
    assert_eq!(map.resync_count(), 12);
    map.resync_marked(true);
    assert_eq!(map.resync_count(), 16);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_bytes() {
    let state = MapState { resyncing: true, durable: Epoch(0x3132), durable_previous: Epoch(0x4142) };
    let header = header_bytes(LunUuid([0xaa; 16]), Generation(0x1112), 0x2122, 5, state);
    assert_eq!(
        hex(&header[..72]),
        "4d46524547494f4e0100000001000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\
         12110000000000002221000000000000050000000000000032310000000000004241000000000000"
    );
    assert!(header[72..508].iter().all(|byte| *byte == 0));
    let mut maps = [[0; WORDS_PER_SECTOR]; 3];
    (maps[0][0], maps[1][0], maps[2][0]) = (1, 2, 4);
    let sector = sector_bytes(6, 0x0102_0304, Epoch(7), maps);
    assert_eq!(
        hex(&sector[..32]),
        "4d465253060000000403020100000000\
07000000000000000100000000000000"
    );
    assert_eq!((sector[152], sector[280]), (2, 4));
}

#[test]
fn shrunk_lun_forgets_the_marks_behind_its_end() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let (map, known) = RegionMap::open(&dir.path().into(), UUID, GENERATION, 1030 << 20).unwrap();
    assert!(known && map.all_resync());
    assert_eq!(map.marked_count(), 1030);
}
