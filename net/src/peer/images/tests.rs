#![allow(clippy::unwrap_used, reason = "a failed expectation in a test is a failed test")]

use super::Images;
use crate::store::{LunHello, MirrorImage, MirrorLabel, MirrorStore, StoreRefusal};
use crate::wire::Outcome;
use bytes::Bytes;
use mirrorfs_journal::{Body, Epoch, Generation, LunId, LunUuid, MirrorRequest, Origin, Sequence};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

struct Disk {
    bytes: Mutex<Vec<u8>>,
    label: Mutex<MirrorLabel>,
    syncs: Mutex<Vec<u64>>,
    writes: Mutex<usize>,
}

/// Two LUNs of 64 KiB; the second may be at another epoch.
struct Store(Vec<Arc<Disk>>);

struct Image(Arc<Disk>);

impl Store {
    fn at(epochs: &[u64]) -> Self {
        let disk = |&epoch: &u64| {
            Arc::new(Disk {
                bytes: Mutex::new(vec![0; 64 << 10]),
                label: Mutex::new(MirrorLabel {
                    generations: vec![Generation(1)],
                    durable_epoch: Epoch(epoch),
                    resyncing: false,
                    created: false,
                }),
                syncs: Mutex::default(),
                writes: Mutex::default(),
            })
        };
        Self(epochs.iter().map(disk).collect())
    }

    fn open_all(&self, heard_durable: u64) -> Images {
        let hello = |index: usize| LunHello {
            name: index.to_string(),
            uuid: LunUuid([1; 16]),
            size_bytes: 64 << 10,
            generations: vec![Generation(1)],
            durable_epoch: Epoch(heard_durable),
        };
        let hellos: Vec<_> = (0..self.0.len()).map(hello).collect();
        Images::open(self, "host", &hellos).unwrap()
    }
}

impl MirrorStore for Store {
    fn open(&self, _: &str, lun: &LunHello) -> Result<Arc<dyn MirrorImage>, StoreRefusal> {
        Ok(Arc::new(Image(Arc::clone(&self.0[lun.name.parse::<usize>().unwrap()]))))
    }
}

impl MirrorImage for Image {
    fn label(&self) -> MirrorLabel {
        self.0.label.lock().clone()
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        *self.0.writes.lock() += 1;
        self.0.bytes.lock()[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.bytes.lock()[offset as usize..(offset + length) as usize].fill(0);
        Ok(())
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        into.copy_from_slice(&self.0.bytes.lock()[offset as usize..offset as usize + into.len()]);
        Ok(())
    }
    fn sync_epoch(&self, epoch: Epoch) -> io::Result<()> {
        self.0.syncs.lock().push(epoch.0);
        self.0.label.lock().durable_epoch = epoch;
        Ok(())
    }
    fn set_resyncing(&self, resyncing: bool, _: &[Generation]) -> io::Result<()> {
        self.0.label.lock().resyncing = resyncing;
        Ok(())
    }
}

fn request(lun: u16, epoch: u64, body: Body) -> MirrorRequest {
    MirrorRequest {
        sequence: Sequence(epoch * 100),
        epoch: Epoch(epoch),
        lun: LunId(lun),
        origin: Origin::Metadata,
        accepted_ms: 0,
        body,
    }
}

fn write(lun: u16, epoch: u64, offset: u64, byte: u8) -> MirrorRequest {
    let payload = Bytes::from(vec![byte; 1024]);
    let crc = crc32c::crc32c(&payload);
    request(lun, epoch, Body::Write { offset, payload, crc })
}

#[test]
fn what_a_label_has_is_skipped_and_each_lun_is_judged_along_its_own_chain() {
    let store = Store::at(&[5, 8]);
    let images = store.open_all(0);
    assert_eq!(images.apply(&write(0, 6, 0, 1)).unwrap(), Outcome::Stored);
    assert_eq!(images.apply(&write(1, 6, 0, 1)).unwrap(), Outcome::Stored);
    assert_eq!((*store.0[0].writes.lock(), *store.0[1].writes.lock()), (1, 0));
    images.complete(Epoch(6), &[(LunId(0), Epoch(5)), (LunId(1), Epoch(4))]).unwrap();
    images.apply(&write(1, 9, 0, 2)).unwrap();
    // LUN 0 has nothing in epoch 9, and is not synced.
    images.complete(Epoch(9), &[(LunId(1), Epoch(8))]).unwrap();
    assert_eq!((store.0[0].syncs.lock().clone(), store.0[1].syncs.lock().clone()), (vec![6], vec![9]));
}

#[test]
fn gap_is_found() {
    let store = Store::at(&[5]);
    let images = store.open_all(0);
    images.apply(&write(0, 8, 0, 1)).unwrap();
    let failure = images.complete(Epoch(8), &[(LunId(0), Epoch(7))]).unwrap_err();
    assert!(failure.message.contains("gap"), "{failure:?}");
    assert!(store.0[0].syncs.lock().is_empty());
}

#[test]
fn label_behind_what_the_primary_heard_is_accepted_once() {
    let store = Store::at(&[5]);
    let images = store.open_all(7);
    images.apply(&write(0, 8, 0, 1)).unwrap();
    images.complete(Epoch(8), &[(LunId(0), Epoch(7))]).unwrap();
    assert_eq!(*store.0[0].syncs.lock(), [7, 8], "the label says first what it should have said");
    images.apply(&write(0, 10, 0, 1)).unwrap();
    assert!(images.complete(Epoch(10), &[(LunId(0), Epoch(9))]).is_err());
}

#[test]
fn barrier_that_does_not_name_a_lun_is_refused() {
    let store = Store::at(&[5, 5]);
    let images = store.open_all(0);
    images.apply(&write(1, 6, 0, 1)).unwrap();
    assert!(images.complete(Epoch(6), &[(LunId(0), Epoch(5))]).is_err());
}

#[test]
fn gathered_epoch_reaches_the_image_at_its_barrier_only() {
    let store = Store::at(&[5]);
    let images = store.open_all(0);
    images.begin(&[0]).unwrap();
    images.apply(&write(0, 6, 0, 1)).unwrap();
    images.apply(&write(0, 6, 512, 2)).unwrap();
    assert_eq!(*store.0[0].writes.lock(), 0);
    let mut expected = vec![1; 512];
    expected.resize(1536, 2);
    let hash = |bytes: &[u8]| {
        let mut hash = [0; 16];
        hash.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
        hash
    };
    let check = Body::Check { offset: 0, length: 1536, hash: hash(&expected) };
    assert_eq!(images.apply(&request(0, 6, check)).unwrap(), Outcome::Equal, "a check sees what is gathered");
    images.complete(Epoch(6), &[(LunId(0), Epoch(5))]).unwrap();
    assert_eq!(store.0[0].bytes.lock()[..1536], expected);
    images.apply(&write(0, 7, 0, 3)).unwrap();
    assert_eq!(store.0[0].bytes.lock()[0], 3, "later epochs are applied at once");
    let check = Body::Check { offset: 0, length: 512, hash: [0; 16] };
    assert_eq!(images.apply(&request(0, 7, check)).unwrap(), Outcome::Different);
}

#[test]
fn resync_markers_frame_a_resync_and_restart_the_chain() {
    let store = Store::at(&[5]);
    let images = store.open_all(0);
    for _ in 0..4 {
        // Every connection reads its copy.
        images.apply(&request(0, 20, Body::ResyncBegin { whole: true })).unwrap();
    }
    assert!(store.0[0].label.lock().resyncing);
    images.complete(Epoch(20), &[(LunId(0), Epoch(19))]).unwrap();
    images.apply(&write(0, 21, 0, 1)).unwrap();
    images.complete(Epoch(21), &[(LunId(0), Epoch(20))]).unwrap();
    images.apply(&request(0, 22, Body::ResyncEnd)).unwrap();
    assert!(store.0[0].label.lock().resyncing, "not before its epoch is durable");
    images.complete(Epoch(22), &[(LunId(0), Epoch(21))]).unwrap();
    assert!(!store.0[0].label.lock().resyncing);
}

#[test]
fn ranges_outside_the_lun_are_refused() {
    let store = Store::at(&[5]);
    let images = store.open_all(0);
    for (offset, length) in
        [(64 << 10, 512), (0, 0), (100, 512), (0, 100), (u64::MAX - 511, 512), ((64 << 10) - 512, 1024)]
    {
        assert!(images.apply(&request(0, 6, Body::Discard { offset, length })).is_err(), "{offset} {length}");
    }
    assert!(images.apply(&write(1, 6, 0, 1)).is_err(), "a LUN that was not in the greeting");
}
