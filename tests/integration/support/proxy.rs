//! A link between mount and peer with faults that can be switched while it runs: forwards TCP and UDP of one port.

use super::node::free_port;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Which way bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToMirror = 0,
    ToPrimary = 1,
}

/// What happens to TCP bytes of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TcpFaults {
    /// Nothing is forwarded, nothing is closed: as if packets vanished.
    pub(crate) stall: bool,
    /// Each byte arrives so much later.
    pub(crate) delay: Duration,
    /// Bytes in a second, all connections together; 0: no limit.
    pub(crate) bytes_per_second: u64,
}

/// What happens to datagrams of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UdpFaults {
    /// How many of a hundred vanish.
    pub(crate) drop_percent: u64,
    /// Each arrives so much later.
    pub(crate) delay: Duration,
    /// Each arrives twice.
    pub(crate) duplicate: bool,
    /// Each is followed by an empty, a cut off, an altered, an old and a reflected one.
    pub(crate) forge: bool,
}

/// All that is wrong with a link; by direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) tcp: [TcpFaults; 2],
    pub(crate) udp: [UdpFaults; 2],
    /// Connections are broken, new ones closed at once.
    pub(crate) reset: bool,
}

/// What has passed, by direction.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// Datagrams that came in, whether or not they were forwarded.
    pub(crate) datagrams: AtomicU64,
    /// TCP bytes forwarded.
    pub(crate) bytes: AtomicU64,
}

/// A datagram under way: when it is due, its number (for the order), direction, bytes.
type Posted = (Instant, u64, usize, Vec<u8>);

#[derive(Default)]
struct State {
    faults: Faults,
    /// The two ends of each connection.
    streams: BTreeMap<u64, [TcpStream; 2]>,
    /// By direction: when the throttled link is free again.
    free_at: [Option<Instant>; 2],
    /// By direction: flip a bit in the next piece of at least 16 KiB.
    corrupt: [bool; 2],
    /// By direction: the first and the last datagram.
    seen: [Option<(Vec<u8>, Vec<u8>)>; 2],
    post: BinaryHeap<Reverse<Posted>>,
    client: Option<SocketAddr>,
    random: u64,
    count: u64,
}

struct Shared {
    target: SocketAddr,
    stop: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    passed: [Passed; 2],
    sockets: [UdpSocket; 2],
}

/// See the module's text. The mount's `--peer` is its `port`.
pub(crate) struct FaultyLink {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

const TICK: Duration = Duration::from_millis(20);
/// Bytes forwarded in one piece.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces of one connection and direction under way at most.
const PIECES_MAX: usize = 256;

impl FaultyLink {
    /// Forwards to the peer's port on loopback.
    pub(crate) fn start(target: u16) -> Self {
        let target = SocketAddr::from(([127, 0, 0, 1], target));
        let (port, listener, down) = loop {
            let port = free_port();
            let listener = TcpListener::bind(("127.0.0.1", port));
            if let (Ok(listener), Ok(down)) = (listener, UdpSocket::bind(("127.0.0.1", port))) {
                break (port, listener, down);
            }
        };
        let up = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
        for socket in [&down, &up] {
            socket.set_read_timeout(Some(TICK)).expect("a timeout");
        }
        listener.set_nonblocking(true).expect("a listener that does not block");
        let shared = Arc::new(Shared {
            target,
            stop: AtomicBool::new(false),
            state: Mutex::new(State { random: u64::from(port) | 1, ..State::default() }),
            changed: Condvar::new(),
            passed: Default::default(),
            sockets: [down, up],
        });
        let mut threads = Vec::new();
        for way in [Way::ToMirror, Way::ToPrimary] {
            let shared = shared.clone();
            threads.push(std::thread::spawn(move || shared.receive(way)));
        }
        let (post, accept) = (shared.clone(), shared.clone());
        threads.push(std::thread::spawn(move || post.deliver()));
        threads.push(std::thread::spawn(move || accept.accept(&listener)));
        Self { port, shared, threads }
    }

    /// Changes what is wrong with the link, from now on.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Faults)) {
        let mut state = self.shared.lock();
        change(&mut state.faults);
        if state.faults.reset {
            state.break_all();
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// All is well again.
    pub(crate) fn heal(&self) {
        self.set(|faults| *faults = Faults::default());
    }

    /// As if the cable were pulled: nothing passes, nothing is closed.
    pub(crate) fn unplug(&self) {
        self.set(|faults| {
            faults.tcp.iter_mut().for_each(|tcp| tcp.stall = true);
            faults.udp.iter_mut().for_each(|udp| udp.drop_percent = 100);
        });
    }

    /// As if one direction's cable were pulled.
    pub(crate) fn unplug_way(&self, way: Way) {
        self.set(|faults| {
            faults.tcp[way as usize].stall = true;
            faults.udp[way as usize].drop_percent = 100;
        });
    }

    /// Heartbeats of one direction vanish; TCP is as it was.
    pub(crate) fn mute(&self, way: Way) {
        self.set(|faults| faults.udp[way as usize].drop_percent = 100);
    }

    /// Flips one bit of the next large piece.
    pub(crate) fn corrupt_once(&self, way: Way) {
        self.shared.lock().corrupt[way as usize] = true;
    }

    /// Whether the bit has been flipped.
    pub(crate) fn has_corrupted(&self, way: Way) -> bool {
        !self.shared.lock().corrupt[way as usize]
    }

    /// Datagrams that came in, and TCP bytes forwarded, so far.
    pub(crate) fn passed(&self, way: Way) -> (u64, u64) {
        let passed = &self.shared.passed[way as usize];
        (passed.datagrams.load(Ordering::Relaxed), passed.bytes.load(Ordering::Relaxed))
    }
}

impl Drop for FaultyLink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.lock().break_all();
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl State {
    fn break_all(&mut self) {
        for stream in self.streams.values().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.streams.clear();
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// What reaches the other side because this datagram was sent, and how much later.
    fn fate(&mut self, way: Way, bytes: &[u8]) -> Vec<(Duration, Vec<u8>)> {
        let faults = self.faults.udp[way as usize];
        let delay = faults.delay;
        let mut out = Vec::new();
        if self.random() % 100 >= faults.drop_percent {
            out.push((delay, bytes.to_vec()));
            if faults.duplicate {
                out.push((delay + Duration::from_millis(5), bytes.to_vec()));
            }
        }
        if faults.forge {
            let mut altered = bytes.to_vec();
            let bit = self.random() as usize % (bytes.len() * 8).max(1);
            if let Some(byte) = altered.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
            out.push((delay, Vec::new()));
            out.push((delay, bytes[..bytes.len() / 2].to_vec()));
            out.push((delay, altered));
            let old = self.seen[way as usize].as_ref().map(|(first, _)| first.clone());
            let reflected = self.seen[1 - way as usize].as_ref().map(|(_, last)| last.clone());
            out.extend(old.into_iter().chain(reflected).map(|bytes| (delay, bytes)));
        }
        match &mut self.seen[way as usize] {
            Some((_, last)) => *last = bytes.to_vec(),
            none => *none = Some((bytes.to_vec(), bytes.to_vec())),
        }
        out
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the link panics")
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn send(&self, way: usize, bytes: &[u8], client: Option<SocketAddr>) {
        let _ = match (way, client) {
            (0, _) => self.sockets[1].send_to(bytes, self.target),
            (_, Some(client)) => self.sockets[0].send_to(bytes, client),
            (_, None) => Ok(0),
        };
    }

    /// Takes datagrams of one direction; sends them on, or posts them for later.
    fn receive(&self, way: Way) {
        let mut buffer = [0; 2048];
        while !self.is_stopping() {
            let Ok((length, from)) = self.sockets[way as usize].recv_from(&mut buffer) else { continue };
            self.passed[way as usize].datagrams.fetch_add(1, Ordering::Relaxed);
            let mut state = self.lock();
            if way == Way::ToMirror {
                state.client = Some(from);
            }
            for (delay, bytes) in state.fate(way, &buffer[..length]) {
                if delay.is_zero() {
                    self.send(way as usize, &bytes, state.client);
                } else {
                    state.count += 1;
                    let number = state.count;
                    state.post.push(Reverse((Instant::now() + delay, number, way as usize, bytes)));
                    self.changed.notify_all();
                }
            }
        }
    }

    /// Sends posted datagrams when they are due.
    fn deliver(&self) {
        let mut state = self.lock();
        while !self.is_stopping() {
            let now = Instant::now();
            let wait = match state.post.peek() {
                Some(Reverse((due, ..))) if *due <= now => {
                    if let Some(Reverse((_, _, way, bytes))) = state.post.pop() {
                        self.send(way, &bytes, state.client);
                    }
                    continue;
                }
                Some(Reverse((due, ..))) => (*due - now).min(TICK),
                None => TICK,
            };
            state = self.changed.wait_timeout(state, wait).expect("no thread of the link panics").0;
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        while !self.is_stopping() {
            let Ok((down, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            if self.lock().faults.reset {
                continue;
            }
            let Ok(up) = TcpStream::connect(self.target) else { continue };
            let _ = down.set_nonblocking(false);
            let _ = (down.set_nodelay(true), up.set_nodelay(true));
            let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
            let mut state = self.lock();
            state.count += 1;
            let number = state.count;
            state.streams.insert(number, [clone(&down), clone(&up)]);
            drop(state);
            for (way, from, to) in
                [(Way::ToMirror, clone(&down), clone(&up)), (Way::ToPrimary, clone(&up), clone(&down))]
            {
                let (sender, receiver) = sync_channel(PIECES_MAX);
                let (reading, writing) = (self.clone(), self.clone());
                threads.push(std::thread::spawn(move || reading.read(from, &sender)));
                threads.push(std::thread::spawn(move || writing.write(way, to, &receiver, number)));
            }
            threads.retain(|thread| !thread.is_finished());
        }
        self.lock().break_all();
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// Reads pieces of a connection; notes when each came.
    fn read(&self, mut from: TcpStream, to: &SyncSender<(Instant, Vec<u8>)>) {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if to.send((Instant::now(), buffer[..length].to_vec())).is_err() || self.is_stopping() {
                break;
            }
        }
    }

    /// Writes them, as the faults let it. The end of the connection travels like a byte.
    fn write(&self, way: Way, mut to: TcpStream, from: &Receiver<(Instant, Vec<u8>)>, number: u64) {
        for (came, mut bytes) in from.iter() {
            if !self.wait_for_passage(way, came, bytes.len()) {
                break;
            }
            if bytes.len() >= 16 << 10 && std::mem::take(&mut self.lock().corrupt[way as usize]) {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
            self.passed[way as usize].bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        self.wait_for_passage(way, Instant::now(), 0);
        let _ = to.shutdown(Shutdown::Both);
        self.lock().streams.remove(&number);
    }

    /// Waits while the direction stalls, for the delay, and for the throttled link's turn. False when all is over.
    fn wait_for_passage(&self, way: Way, came: Instant, length: usize) -> bool {
        let mut turn = None;
        let mut state = self.lock();
        loop {
            if self.is_stopping() {
                return false;
            }
            let faults = state.faults.tcp[way as usize];
            let now = Instant::now();
            let mut until = came + faults.delay;
            if faults.bytes_per_second > 0 && length > 0 {
                let due = *turn.get_or_insert_with(|| {
                    let begin = state.free_at[way as usize].map_or(now, |at| at.max(now));
                    let takes = Duration::from_secs_f64(length as f64 / faults.bytes_per_second as f64);
                    state.free_at[way as usize] = Some(begin + takes);
                    begin + takes
                });
                until = until.max(due);
            } else {
                state.free_at[way as usize] = None;
            }
            let wait = match until.checked_duration_since(now) {
                _ if faults.stall => TICK * 10,
                Some(left) if !left.is_zero() => left,
                _ => return true,
            };
            state = self.changed.wait_timeout(state, wait).expect("no thread of the link panics").0;
        }
    }
}
