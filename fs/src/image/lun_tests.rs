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
