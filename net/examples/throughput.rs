//! What the link carries on loopback, beside bare TCP: `cargo run --release --example throughput [CONNECTIONS] [key] [latency]`.
//! The mirror throws the bytes away, so that only log, wire and threads are measured.

use bytes::Bytes;
use mirrorfs_journal::log::{LogConfig, LogLun, RegionSource};
use mirrorfs_journal::{Body, Epoch, Generation, Incarnation, LunId, LunUuid, MirrorLog, Origin, RegionNo};
use mirrorfs_net::config::{Key, Security, Times};
use mirrorfs_net::link::{Link, LinkConfig};
use mirrorfs_net::peer::{PeerConfig, PeerServer};
use mirrorfs_net::status::LinkState;
use mirrorfs_net::store::{LunHello, MirrorImage, MirrorLabel, MirrorStore, StoreRefusal};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const SIZE: u64 = 1 << 30;
const LUN: LunId = LunId(0);

struct Nowhere;

impl MirrorStore for Nowhere {
    fn open(&self, _: &str, _: &LunHello) -> Result<Arc<dyn MirrorImage>, StoreRefusal> {
        Ok(Arc::new(Self))
    }
}

impl MirrorImage for Nowhere {
    fn label(&self) -> MirrorLabel {
        MirrorLabel { generations: Vec::new(), durable_epoch: Epoch(0), resyncing: false, created: true }
    }
    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }
    fn sync_epoch(&self, _: Epoch) -> io::Result<()> {
        Ok(())
    }
    fn set_resyncing(&self, _: bool, _: &[Generation]) -> io::Result<()> {
        Ok(())
    }
}

impl RegionSource for Nowhere {
    fn resync_region(&self, region: RegionNo, _: bool) -> io::Result<RegionNo> {
        Ok(RegionNo(region.0 + 1))
    }
}

/// User and system time of this process, seconds.
fn cpu() -> io::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .skip(11)
        .take(2)
        .flat_map(str::parse)
        .collect();
    Ok(fields.iter().sum::<u64>() as f64 / 100.0)
}

fn bare_tcp(total: u64) -> io::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut out = TcpStream::connect(listener.local_addr()?)?;
    let (mut inn, _) = listener.accept()?;
    let start = Instant::now();
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while matches!(inn.read(&mut buffer), Ok(1..)) {}
    });
    let buffer = vec![1; 1 << 20];
    for _ in 0..total >> 20 {
        out.write_all(&buffer)?;
    }
    drop(out);
    let _ = reader.join();
    Ok(total as f64 / start.elapsed().as_secs_f64() / 1048576.0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let workers = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(4);
    let security =
        if arguments.iter().any(|text| text == "key") { Security::Key(Key([1; 32])) } else { Security::None };
    let times = Times { probation: Duration::from_millis(100), ..Times::default() };
    println!("bare TCP, 1 MiB: {:.0} MiB/s", bare_tcp(2 << 30)?);
    let peer = PeerServer::start(
        PeerConfig { listen: "127.0.0.1:0".parse()?, security: security.clone(), times },
        Arc::new(Nowhere),
    )?;
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let log = MirrorLog::open(LogConfig {
        dir: dir.path().join("queue"),
        memory_bytes_max: 256 << 20,
        queue_bytes_max: None,
        incarnation: Incarnation(1),
        luns: vec![LogLun {
            id: LUN,
            uuid: LunUuid([1; 16]),
            generation: Generation(1),
            name: "data".into(),
            size_bytes: SIZE,
            durable_epoch: Epoch(0),
            clean: true,
            all_regions: false,
        }],
    })?;
    log.set_region_source(LUN, Arc::new(Nowhere));
    let hello = LunHello {
        name: "data".into(),
        uuid: LunUuid([1; 16]),
        size_bytes: SIZE,
        generations: vec![Generation(1)],
        durable_epoch: Epoch(0),
    };
    let link = Link::start(
        LinkConfig {
            peer: peer.listen_addr().to_string(),
            workers,
            node: "bench".into(),
            security,
            times,
            luns: vec![hello],
        },
        Arc::clone(&log),
    )?;
    while link.status().state != LinkState::Live {
        std::thread::sleep(Duration::from_millis(5));
    }
    for region in 0..SIZE >> 20 {
        log.ensure_marked(LUN, RegionNo(region))?;
    }
    let bulk = !arguments.iter().any(|text| text == "latency");
    for (length, total) in
        [(1_u64 << 20, 4_u64 << 30), (256 << 10, 4 << 30), (64 << 10, 2 << 30), (4 << 10, 1 << 30)]
            .into_iter()
            .filter(|_| bulk)
    {
        let payload = Bytes::from(vec![7; usize::try_from(length)?]);
        let crc = crc32c::crc32c(&payload);
        let (start, used) = (Instant::now(), cpu()?);
        let mut offset = 0;
        for number in 0..total / length {
            log.append(LUN, Origin::File(1), Body::Write { offset, payload: payload.clone(), crc });
            offset = (offset + length) % SIZE;
            // Nearly full memory would go to disk.
            while number % 64 == 0 && log.status().memory_bytes > 96 << 20 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        wait_durable(&log);
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{:5} KiB: {:5.0} MiB/s, {:7.0} requests/s, {:.2} CPU s/GiB",
            length >> 10,
            total as f64 / seconds / 1048576.0,
            (total / length) as f64 / seconds,
            (cpu()? - used) / (total as f64 / (1_u64 << 30) as f64),
        );
    }
    let rounds = 5000;
    let (start, used) = (Instant::now(), cpu()?);
    let payload = Bytes::from(vec![7; 4096]);
    let crc = crc32c::crc32c(&payload);
    for round in 0..rounds {
        log.append(LUN, Origin::File(1), Body::Write { offset: round * 4096, payload: payload.clone(), crc });
        wait_durable(&log);
    }
    println!(
        "4 KiB and barrier: {:.0} us, {:.0} us of CPU",
        start.elapsed().as_secs_f64() * 1e6 / rounds as f64,
        (cpu()? - used) * 1e6 / rounds as f64
    );
    let start = Instant::now();
    for round in 0..rounds {
        let appended = log.append(
            LUN,
            Origin::File(1),
            Body::Write { offset: round * 4096, payload: payload.clone(), crc },
        );
        let (send, receive) = mpsc::channel();
        log.when_applied(appended.sequence, Box::new(move |_| send.send(()).unwrap_or(())));
        receive.recv()?;
    }
    println!("4 KiB answered: {:.0} us", start.elapsed().as_secs_f64() * 1e6 / rounds as f64);
    link.stop();
    peer.stop();
    log.close();
    Ok(())
}

fn wait_durable(log: &MirrorLog) {
    let (send, receive) = mpsc::channel();
    log.when_durable(log.barrier(LUN), Box::new(move |_| send.send(()).unwrap_or(())));
    let _ = receive.recv();
}
