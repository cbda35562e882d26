//! Random lives of a log against a model of both images; a failing seed is printed with the assertion.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::tests::*;
use super::*;
use crate::ids::Incarnation;
use bytes::Bytes;

const REGIONS: usize = 64;

struct Image(Mutex<[u8; REGIONS]>, Mutex<std::sync::Weak<MirrorLog>>);

impl RegionSource for Image {
    fn resync_region(&self, region: RegionNo, _skip_holes: bool) -> std::io::Result<RegionNo> {
        let next = RegionNo(region.0 + 1);
        let Some(log) = self.1.lock().upgrade() else { return Ok(next) };
        let image = self.0.lock();
        append(&log, Origin::Resync, region.0 as usize, image[region.0 as usize]);
        Ok(next)
    }
}

fn append(log: &MirrorLog, origin: Origin, region: usize, byte: u8) {
    let payload = Bytes::from(vec![byte; 32768]);
    let crc = crc32c::crc32c(&payload);
    log.append(LUN, origin, Body::Write { offset: (region as u64) << 20, payload, crc });
}

#[derive(Default)]
struct Mirror {
    image: Vec<u8>,
    label: Epoch,
    resyncing: bool,
    made: bool,
}

impl Mirror {
    fn says(&mut self) -> PeerLun {
        let created = !std::mem::replace(&mut self.made, true);
        PeerLun { id: LUN, durable_epoch: self.label, resyncing: self.resyncing, created }
    }

    /// Applies up to `count` records; now and then an answer is lost. True if there was nothing left.
    fn take(&mut self, log: &MirrorLog, count: u64, random: &mut Random, seed: u64) -> bool {
        for _ in 0..count {
            let request = match log.next(Duration::from_millis(1)) {
                Next::Request(request) => request,
                _ => return true,
            };
            match &request.body {
                Body::Barrier { previous } => {
                    if request.epoch > self.label
                        && let Some((_, before)) = previous.first()
                    {
                        assert_eq!(*before, self.label, "gap before epoch {}, seed {seed}", request.epoch);
                        self.label = request.epoch;
                    }
                    if random.below(8) > 0 {
                        log.durable(request.epoch);
                    }
                }
                _ if request.epoch <= self.label => {}
                Body::Write { offset, payload, .. } => self.image[(offset >> 20) as usize] = payload[0],
                Body::ResyncBegin { .. } => self.resyncing = true,
                Body::ResyncEnd => self.resyncing = false,
                _ => {}
            }
        }
        false
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn life(seed: u64) {
    // No disk: the log is reopened and synced a lot.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let image = Arc::new(Image(Mutex::new([0; REGIONS]), Mutex::default()));
    let mut mirror = Mirror { image: vec![0; REGIONS], ..Mirror::default() };
    let mut incarnation = 1;
    let mut clean = true;
    let mut durable = Epoch(0);
    let open = |incarnation: u32, clean: bool, durable: Epoch| {
        let mut config = config(dir.path(), incarnation);
        config.memory_bytes_max = 1 << 20;
        config.incarnation = Incarnation(incarnation);
        config.queue_bytes_max = Some(8 << 20);
        (config.luns[0].clean, config.luns[0].durable_epoch) = (clean, durable);
        let log = MirrorLog::open(config).unwrap();
        *image.1.lock() = Arc::downgrade(&log);
        log.set_region_source(LUN, Arc::clone(&image) as Arc<dyn RegionSource>);
        log
    };
    let mut log = open(incarnation, clean, durable);
    for step in 0..600 {
        match random.below(100) {
            0..70 => {
                let (region, byte) = (random.below(REGIONS as u64) as usize, random.below(255) as u8 + 1);
                log.ensure_marked(LUN, RegionNo(region as u64)).unwrap();
                let mut image = image.0.lock();
                image[region] = byte;
                append(&log, Origin::File(2), region, byte);
            }
            70..80 => {
                let epoch = log.barrier(LUN);
                if random.below(4) == 0 {
                    log.sync_queue(epoch);
                }
                log.locally_synced(LUN, epoch);
            }
            80..90 => {
                let count = random.below(60);
                mirror.take(&log, count, &mut random, seed);
            }
            90..94 => drop(log.begin_session(&[mirror.says()]).unwrap()),
            94..97 => log.end_session(),
            97 if step % 2 == 0 => {
                clean = random.below(2) == 0;
                if clean {
                    durable = log.close()[0].1;
                }
                drop(log);
                incarnation += 1;
                log = open(incarnation, clean, durable);
            }
            _ => {}
        }
    }
    log.barrier(LUN);
    let mut start = log.begin_session(&[mirror.says()]).unwrap();
    let deadline = Instant::now() + WAIT;
    loop {
        let idle = mirror.take(&log, 1000, &mut random, seed);
        log.durable(mirror.label);
        let status = log.status();
        if idle && !mirror.resyncing && status.resync_regions_left == 0 && status.waiting_requests == 0 {
            break;
        }
        if idle && !log.shared.core.lock().live {
            start = log.begin_session(&[mirror.says()]).unwrap();
        }
        assert!(Instant::now() < deadline, "never in sync, seed {seed}: {status:?} {start:?}");
    }
    assert_eq!(mirror.image[..], image.0.lock()[..], "seed {seed}");
}

#[test]
fn mirror_ends_as_the_primary_whatever_happened() {
    for seed in 1..=5 {
        life(seed);
    }
}
