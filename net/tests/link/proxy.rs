//! A link between the two that can be cut: forwards TCP and UDP of one port.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

#[derive(Default)]
pub(crate) struct State {
    stop: AtomicBool,
    /// Drop datagrams from the primary, to the primary.
    pub(crate) cut_to_mirror: AtomicBool,
    pub(crate) cut_to_primary: AtomicBool,
    /// Forward no TCP bytes, without closing anything.
    pub(crate) hold_tcp: AtomicBool,
    /// Flip a bit in the next large piece of data, once.
    pub(crate) damage: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
    /// All bytes of the primary on each connection so far, for replaying.
    pub(crate) said: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    /// The last datagram of the primary, for replaying.
    pub(crate) seen: Mutex<Vec<Vec<u8>>>,
}

pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    pub(crate) state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

const TICK: Duration = Duration::from_millis(10);

impl Proxy {
    pub(crate) fn start(target: SocketAddr) -> Self {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
                break (tcp, udp);
            }
        };
        let addr = tcp.local_addr().unwrap();
        let state = Arc::new(State::default());
        let up = UdpSocket::bind("127.0.0.1:0").unwrap();
        for socket in [&udp, &up] {
            socket.set_read_timeout(Some(TICK)).unwrap();
        }
        tcp.set_nonblocking(true).unwrap();
        let client = Arc::new(Mutex::new(None::<SocketAddr>));
        let (udp, up) = (Arc::new(udp), Arc::new(up));
        let mut threads = Vec::new();
        {
            let (state, udp, up, client) = (state.clone(), udp.clone(), up.clone(), client.clone());
            threads.push(std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while !state.stop.load(Ordering::Relaxed) {
                    let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
                    *client.lock().unwrap() = Some(from);
                    let mut seen = state.seen.lock().unwrap();
                    if seen.len() < 1000 {
                        seen.push(buffer[..length].to_vec());
                    }
                    if !state.cut_to_mirror.load(Ordering::Relaxed) {
                        let _ = up.send_to(&buffer[..length], target);
                    }
                }
            }));
        }
        {
            let state = state.clone();
            threads.push(std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while !state.stop.load(Ordering::Relaxed) {
                    let Ok((length, _)) = up.recv_from(&mut buffer) else { continue };
                    let to = *client.lock().unwrap();
                    if let Some(to) = to
                        && !state.cut_to_primary.load(Ordering::Relaxed)
                    {
                        let _ = udp.send_to(&buffer[..length], to);
                    }
                }
            }));
        }
        {
            let state = state.clone();
            threads.push(std::thread::spawn(move || {
                let mut copies = Vec::new();
                while !state.stop.load(Ordering::Relaxed) {
                    let Ok((down, _)) = tcp.accept() else {
                        std::thread::sleep(Duration::from_millis(2));
                        continue;
                    };
                    down.set_nonblocking(false).unwrap();
                    let Ok(up) = TcpStream::connect(target) else { continue };
                    for stream in [&down, &up] {
                        stream.set_nodelay(true).unwrap();
                        state.streams.lock().unwrap().push(stream.try_clone().unwrap());
                    }
                    let said = Arc::<Mutex<Vec<u8>>>::default();
                    state.said.lock().unwrap().push(said.clone());
                    let upwards = (down.try_clone().unwrap(), up.try_clone().unwrap(), Some(said));
                    for (from, to, said) in [upwards, (up, down, None)] {
                        let state = state.clone();
                        copies.push(std::thread::spawn(move || copy(&state, from, to, said.as_deref())));
                    }
                }
                for stream in state.streams.lock().unwrap().iter() {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                for copy in copies {
                    copy.join().unwrap();
                }
            }));
        }
        Self { addr, state, threads }
    }

    /// Breaks the connection made last.
    pub(crate) fn kill_one(&self) {
        let mut streams = self.state.streams.lock().unwrap();
        for _ in 0..2 {
            if let Some(stream) = streams.pop() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Cuts datagrams both ways, or mends them.
    pub(crate) fn cut(&self, cut: bool) {
        self.state.cut_to_mirror.store(cut, Ordering::Relaxed);
        self.state.cut_to_primary.store(cut, Ordering::Relaxed);
    }
}

fn copy(state: &State, mut from: TcpStream, mut to: TcpStream, said: Option<&Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        while state.hold_tcp.load(Ordering::Relaxed) && !state.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(said) = said {
            said.lock().unwrap().extend_from_slice(&buffer[..length]);
        }
        if length > 32 << 10 && state.damage.swap(false, Ordering::Relaxed) {
            buffer[length - 1] ^= 4;
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
