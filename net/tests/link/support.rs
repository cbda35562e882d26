//! A primary and a mirror store in memory, and a judge of the order in which things were applied.

use bytes::Bytes;
use mirrorfs_journal::log::{LogConfig, LogLun, RegionSource, Waited};
use mirrorfs_journal::{
    Body, Epoch, Generation, Incarnation, LunId, LunUuid, MirrorLog, Origin, REGION_BYTES, RegionNo, Sequence,
};
use mirrorfs_net::config::{Security, Times};
use mirrorfs_net::link::{Link, LinkConfig};
use mirrorfs_net::peer::{PeerConfig, PeerServer};
use mirrorfs_net::status::LinkState;
use mirrorfs_net::store::{LunHello, MirrorImage, MirrorLabel, MirrorStore, StoreRefusal};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

pub(crate) const SIZE: u64 = 32 << 20;
pub(crate) const LUN: LunId = LunId(0);

pub(crate) fn times() -> Times {
    Times {
        heartbeat_interval: Duration::from_millis(20),
        heartbeat_timeout: Duration::from_millis(200),
        request_timeout: Duration::from_millis(60),
        probation: Duration::from_millis(100),
        stall_timeout: Duration::from_secs(2),
    }
}

/// Waits for a condition; says what it was when it does not come.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What reached the mirror image, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// A write that begins with this number.
    Write(u64),
    Discard,
    Sync(Epoch),
    Resyncing(bool),
}

/// A mirror image that outlives its sessions.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) label: Mutex<MirrorLabel>,
    pub(crate) applied: Mutex<Vec<Applied>>,
    in_use: AtomicBool,
    /// Fail this many writes, after as many good ones as `good_writes` says.
    pub(crate) fail_writes: AtomicU64,
    pub(crate) fail_syncs: AtomicU64,
    /// Writes so far.
    pub(crate) writes: AtomicU64,
    /// How long each sync takes.
    pub(crate) sync_ms: AtomicU64,
    /// Nothing is written while this is set: a hung disk.
    pub(crate) hang: AtomicBool,
}

#[derive(Default)]
pub(crate) struct Store {
    disks: Mutex<BTreeMap<String, Arc<Disk>>>,
    pub(crate) refuse: Mutex<Option<StoreRefusal>>,
    pub(crate) opens: AtomicU64,
}

impl Store {
    pub(crate) fn disk(&self) -> Arc<Disk> {
        Arc::clone(self.disks.lock().unwrap().get("host/data").expect("the mirror was never opened"))
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.disks.lock().unwrap().is_empty()
    }
}

struct Image(Arc<Disk>);

impl Drop for Image {
    fn drop(&mut self) {
        self.0.in_use.store(false, Ordering::SeqCst);
    }
}

fn take_one(counter: &AtomicU64) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl MirrorStore for Store {
    fn open(&self, node: &str, lun: &LunHello) -> Result<Arc<dyn MirrorImage>, StoreRefusal> {
        self.opens.fetch_add(1, Ordering::SeqCst);
        if let Some(refusal) = self.refuse.lock().unwrap().clone() {
            return Err(refusal);
        }
        let mut disks = self.disks.lock().unwrap();
        let path = format!("{node}/{}", lun.name);
        let disk = disks.entry(path.clone()).or_insert_with(|| {
            Arc::new(Disk {
                bytes: Mutex::new(vec![0; lun.size_bytes as usize]),
                label: Mutex::new(MirrorLabel {
                    generations: Vec::new(),
                    durable_epoch: Epoch(0),
                    resyncing: false,
                    created: true,
                }),
                applied: Mutex::default(),
                in_use: AtomicBool::new(false),
                fail_writes: AtomicU64::new(0),
                fail_syncs: AtomicU64::new(0),
                writes: AtomicU64::new(0),
                sync_ms: AtomicU64::new(0),
                hang: AtomicBool::new(false),
            })
        });
        if disk.in_use.swap(true, Ordering::SeqCst) {
            return Err(StoreRefusal::InUse { path, holder: "an earlier session".into() });
        }
        Ok(Arc::new(Image(Arc::clone(disk))))
    }
}

impl MirrorImage for Image {
    fn label(&self) -> MirrorLabel {
        self.0.label.lock().unwrap().clone()
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        while self.0.hang.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
        if take_one(&self.0.fail_writes) {
            return Err(io::Error::from_raw_os_error(28));
        }
        let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let mut disk = self.0.bytes.lock().unwrap();
        disk[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        self.0.applied.lock().unwrap().push(Applied::Write(number));
        self.0.writes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut disk = self.0.bytes.lock().unwrap();
        disk[offset as usize..(offset + length) as usize].fill(0);
        self.0.applied.lock().unwrap().push(Applied::Discard);
        Ok(())
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset as usize + into.len();
        into.copy_from_slice(&self.0.bytes.lock().unwrap()[offset as usize..end]);
        Ok(())
    }
    fn sync_epoch(&self, epoch: Epoch) -> io::Result<()> {
        std::thread::sleep(Duration::from_millis(self.0.sync_ms.load(Ordering::SeqCst)));
        if take_one(&self.0.fail_syncs) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let mut label = self.0.label.lock().unwrap();
        assert!(label.durable_epoch < epoch, "epochs are synced in order");
        label.durable_epoch = epoch;
        label.created = false;
        self.0.applied.lock().unwrap().push(Applied::Sync(epoch));
        Ok(())
    }
    fn set_resyncing(&self, resyncing: bool, generations: &[Generation]) -> io::Result<()> {
        let mut label = self.0.label.lock().unwrap();
        label.resyncing = resyncing;
        label.created = false;
        if !resyncing {
            label.generations = generations.to_vec();
        }
        self.0.applied.lock().unwrap().push(Applied::Resyncing(resyncing));
        Ok(())
    }
}

/// A primary image with its log.
pub(crate) struct Primary {
    pub(crate) log: Arc<MirrorLog>,
    source: Arc<Source>,
    /// Epoch of each numbered write.
    epochs: Mutex<BTreeMap<u64, Epoch>>,
    next: AtomicU64,
    random: AtomicU64,
    _dir: tempfile::TempDir,
}

struct Source {
    log: Mutex<Option<std::sync::Weak<MirrorLog>>>,
    bytes: Mutex<Vec<u8>>,
}

pub(crate) fn crc(payload: &[u8]) -> u32 {
    crc32c::crc32c(payload)
}

impl RegionSource for Source {
    fn resync_region(&self, region: RegionNo, skip_holes: bool) -> io::Result<RegionNo> {
        let next = RegionNo(region.0 + 1);
        let log = self.log.lock().unwrap().as_ref().and_then(std::sync::Weak::upgrade);
        let Some(log) = log else { return Ok(next) };
        let bytes = self.bytes.lock().unwrap();
        let start = region.start();
        let end = (start + REGION_BYTES).min(SIZE);
        for offset in (start..end).step_by(256 << 10) {
            let to = (offset + (256 << 10)).min(end);
            let part = &bytes[offset as usize..to as usize];
            let body = if part.iter().all(|&byte| byte == 0) {
                if skip_holes {
                    continue;
                }
                Body::Discard { offset, length: to - offset }
            } else {
                Body::Write { offset, payload: Bytes::copy_from_slice(part), crc: crc(part) }
            };
            log.append(LUN, Origin::Resync, body);
        }
        Ok(next)
    }
}

impl Primary {
    pub(crate) fn new() -> Self {
        let dir =
            tempfile::tempdir_in(if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" })
                .unwrap();
        let log = MirrorLog::open(LogConfig {
            dir: dir.path().join("queue"),
            memory_bytes_max: 256 << 20,
            queue_bytes_max: Some(1 << 30),
            incarnation: Incarnation(1),
            luns: vec![LogLun {
                id: LUN,
                uuid: LunUuid([7; 16]),
                generation: Generation(5),
                name: "data".into(),
                size_bytes: SIZE,
                durable_epoch: Epoch(0),
                clean: true,
                all_regions: false,
            }],
        })
        .unwrap();
        let source = Arc::new(Source {
            log: Mutex::new(Some(Arc::downgrade(&log))),
            bytes: Mutex::new(vec![0; SIZE as usize]),
        });
        log.set_region_source(LUN, Arc::clone(&source) as Arc<dyn RegionSource>);
        Self {
            log,
            source,
            epochs: Mutex::default(),
            next: AtomicU64::new(1),
            random: AtomicU64::new(0x1234_5678_9abc_def1),
            _dir: dir,
        }
    }

    pub(crate) fn hello() -> LunHello {
        LunHello {
            name: "data".into(),
            uuid: LunUuid([7; 16]),
            size_bytes: SIZE,
            generations: vec![Generation(5)],
            durable_epoch: Epoch(0),
        }
    }

    pub(crate) fn random(&self, below: u64) -> u64 {
        let mut x = self.random.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.store(x, Ordering::Relaxed);
        x % below
    }

    /// A numbered write; image and append are one step.
    pub(crate) fn write(&self, offset: u64, length: usize) -> Sequence {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let mut payload = vec![number as u8; length];
        payload[..8].copy_from_slice(&number.to_le_bytes());
        self.log.ensure_marked(LUN, RegionNo::of(offset)).unwrap();
        let mut bytes = self.source.bytes.lock().unwrap();
        bytes[offset as usize..offset as usize + length].copy_from_slice(&payload);
        let sum = crc(&payload);
        let body = Body::Write { offset, payload: Bytes::from(payload), crc: sum };
        let appended = self.log.append(LUN, Origin::File(12), body);
        self.epochs.lock().unwrap().insert(number, appended.epoch);
        appended.sequence
    }

    pub(crate) fn discard(&self, offset: u64, length: u64) {
        self.log.ensure_marked(LUN, RegionNo::of(offset)).unwrap();
        let mut bytes = self.source.bytes.lock().unwrap();
        bytes[offset as usize..(offset + length) as usize].fill(0);
        self.log.append(LUN, Origin::File(12), Body::Discard { offset, length });
    }

    /// Some writes (and discards) anywhere, inside one region each.
    pub(crate) fn write_some(&self, count: u64) {
        for _ in 0..count {
            let length = 512 * (1 + self.random(128));
            let region = self.random(SIZE / REGION_BYTES) * REGION_BYTES;
            let offset = region + 512 * self.random((REGION_BYTES - length) / 512 + 1);
            if self.random(10) == 0 {
                self.discard(offset, length);
            } else {
                self.write(offset, length as usize);
            }
        }
    }

    pub(crate) fn barrier(&self) -> Epoch {
        self.log.barrier(LUN)
    }

    /// Ends the epoch and waits until it is durable on the mirror.
    pub(crate) fn sync(&self) {
        let (send, receive) = mpsc::channel();
        let epoch = self.barrier();
        self.log.when_durable(epoch, Box::new(move |waited| send.send(waited).unwrap()));
        let waited = receive.recv_timeout(Duration::from_secs(20));
        assert_eq!(waited, Ok(Waited::Mirrored), "epoch {epoch}: {:?}", self.log.status());
    }

    pub(crate) fn assert_equal(&self, store: &Store) {
        let disk = store.disk();
        let (ours, theirs) = (self.source.bytes.lock().unwrap(), disk.bytes.lock().unwrap());
        if let Some(at) = (0..SIZE as usize).find(|&at| ours[at] != theirs[at]) {
            panic!("mirror differs at byte {at}: {} here, {} there", ours[at], theirs[at]);
        }
    }

    /// No write of an epoch was applied before the epoch before it was synced, and none after its own sync.
    pub(crate) fn judge_order(&self, store: &Store) {
        let epochs = self.epochs.lock().unwrap();
        let mut all: Vec<Epoch> = epochs.values().copied().collect();
        all.sort();
        all.dedup();
        let disk = store.disk();
        let applied = disk.applied.lock().unwrap();
        let mut synced = Epoch(0);
        let mut judged = 0;
        for what in applied.iter() {
            match what {
                Applied::Sync(epoch) => synced = *epoch,
                Applied::Write(number) => {
                    let Some(&epoch) = epochs.get(number) else { continue };
                    assert!(
                        epoch > synced,
                        "write {number} of epoch {epoch} came after the sync of {synced}"
                    );
                    let before = all.iter().rev().find(|&&other| other < epoch);
                    assert!(
                        before.is_none_or(|&before| before <= synced),
                        "write {number} of epoch {epoch} came after the sync of {synced} only"
                    );
                    judged += 1;
                }
                Applied::Discard | Applied::Resyncing(_) => {}
            }
        }
        assert!(judged > 0, "nothing was judged");
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        self.log.close();
    }
}

pub(crate) fn peer_at(listen: SocketAddr, store: &Arc<Store>, security: &Security) -> PeerServer {
    let config = PeerConfig { listen, security: security.clone(), times: times() };
    let start = Instant::now();
    loop {
        // The port of a stopped peer may be in use for a moment.
        match PeerServer::start(config.clone(), Arc::clone(store) as Arc<dyn MirrorStore>) {
            Ok(peer) => return peer,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(5), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn peer(store: &Arc<Store>) -> PeerServer {
    peer_at("127.0.0.1:0".parse().unwrap(), store, &Security::None)
}

pub(crate) fn link_config(peer: SocketAddr, workers: u16) -> LinkConfig {
    LinkConfig {
        peer: peer.to_string(),
        workers,
        node: "host".into(),
        security: Security::None,
        times: times(),
        luns: vec![Primary::hello()],
    }
}

pub(crate) fn link(primary: &Primary, peer: SocketAddr, workers: u16) -> Link {
    Link::start(link_config(peer, workers), Arc::clone(&primary.log)).unwrap()
}

pub(crate) fn wait_state(link: &Link, state: LinkState) {
    let start = Instant::now();
    while link.status().state != state {
        assert!(start.elapsed() < Duration::from_secs(20), "no {state:?}: {:?}", link.status());
        std::thread::sleep(Duration::from_millis(2));
    }
}
