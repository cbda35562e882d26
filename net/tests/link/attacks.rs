//! What strangers send to the peer's port while a link runs: counted, and without effect on the link.

use crate::proxy::Proxy;
use crate::security::{greet, key};
use crate::support::*;
use mirrorfs_net::config::Security;
use mirrorfs_net::link::Link;
use mirrorfs_net::peer::PeerServer;
use mirrorfs_net::status::LinkState;
use mirrorfs_net::transport::{self, TransportOptions};
use mirrorfs_net::wire::Begin;
use mirrorfs_net::wire::codec::{CONTROL_HEADER_BYTES, CONTROL_MAGIC, encode_control};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A link at work, and the session that must survive.
struct Running {
    primary: Primary,
    store: Arc<Store>,
    peer: PeerServer,
    proxy: Proxy,
    link: Link,
    session: Option<String>,
}

fn running(security: &Security, workers: u16) -> Running {
    let (primary, store) = (Primary::new(), Arc::new(Store::default()));
    let peer = peer_at("127.0.0.1:0".parse().unwrap(), &store, security);
    let proxy = Proxy::start(peer.listen_addr());
    let mut config = link_config(proxy.addr, workers);
    config.security = security.clone();
    let link = Link::start(config, Arc::clone(&primary.log)).unwrap();
    wait_state(&link, LinkState::Live);
    primary.write_some(50);
    primary.sync();
    let session = link.status().session;
    Running { primary, store, peer, proxy, link, session }
}

impl Running {
    fn addr(&self) -> SocketAddr {
        self.peer.listen_addr()
    }

    fn refused(&self) -> u64 {
        let refused = self.peer.status().refused;
        refused.handshakes_failed + refused.frames_bad
    }

    /// The same session goes on, and mirrors.
    fn goes_on(&self) {
        self.primary.write_some(50);
        self.primary.sync();
        assert_eq!(self.link.status().session, self.session, "{:?}", self.link.status());
        assert_eq!(self.link.status().interruptions, 0);
    }

    fn end(self) {
        self.primary.sync();
        self.primary.assert_equal(&self.store);
        self.primary.judge_order(&self.store);
        self.link.stop();
        self.peer.stop();
    }
}

/// Reads until the other side closes; it must, and soon.
fn closed_by_the_peer(mut stream: TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut all = Vec::new();
    let ended = stream.read_to_end(&mut all);
    let timed_out = ended.is_err_and(|error| {
        matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    });
    assert!(!timed_out, "the peer keeps the connection");
}

/// Everything that the primary ever said, said again by somebody else, while its session runs and after it has ended.
#[test]
fn recorded_session_played_again_displaces_and_applies_nothing() {
    for security in [key(1), Security::None] {
        let mut running = running(&security, 3);
        let play_all = |running: &Running| {
            let recorded: Vec<Vec<u8>> = running
                .proxy
                .state
                .said
                .lock()
                .unwrap()
                .iter()
                .map(|said| said.lock().unwrap().clone())
                .collect();
            let before = (running.refused(), running.store.opens.load(Ordering::SeqCst));
            let streams: Vec<TcpStream> = recorded
                .iter()
                .map(|said| {
                    let mut stream = TcpStream::connect(running.addr()).unwrap();
                    let _ = stream.write_all(said);
                    let _ = stream.shutdown(Shutdown::Write);
                    stream
                })
                .collect();
            streams.into_iter().for_each(closed_by_the_peer);
            let count = recorded.len() as u64;
            wait_for("the counters", || running.refused() >= before.0 + count);
            assert_eq!(running.store.opens.load(Ordering::SeqCst), before.1, "no image is opened for it");
        };
        play_all(&running);
        running.goes_on();
        // Another session: the recording of the first one is of no use either.
        running.proxy.kill_one();
        wait_for("another session", || running.link.status().sessions > 1);
        wait_state(&running.link, LinkState::Live);
        running.session = running.link.status().session;
        play_all(&running);
        running.goes_on();
        running.end();
    }
}

/// Frames that are too long, cut short or no frames at all, before the greeting and behind it.
#[test]
fn oversized_and_truncated_frames_end_their_own_connection_only() {
    let running = running(&Security::None, 4);
    let connect =
        || transport::connect(running.addr(), &Security::None, &TransportOptions::default()).unwrap();
    let mut long = CONTROL_MAGIC.to_vec();
    long.resize(CONTROL_HEADER_BYTES, 0xff);
    let greeting = encode_control(&mirrorfs_net::wire::Welcome::Version { version: 1 }).unwrap();
    let before = running.refused();
    let frames: [&[u8]; 5] = [&long, &greeting[..greeting.len() - 1], &greeting, &[0; 4096], &[0xff; 4096]];
    for frame in frames {
        let mut connection = connect();
        let (sender, receiver) = connection.halves();
        sender.send(&[frame]).unwrap();
        sender.flush().unwrap();
        if frame.len() == greeting.len() - 1 {
            connection.closer().shutdown();
            continue;
        }
        assert!(receiver.wait_readable(Duration::from_secs(10)).unwrap(), "it is closed");
    }
    wait_for("the counters", || running.refused() >= before + frames.len() as u64);
    running.goes_on();

    // One who has greeted: junk instead of records ends its session, and no other.
    for (number, junk) in [&[0xff; 4096][..], &[0; 4096], b"mirrorfs", &long].into_iter().enumerate() {
        let before = running.refused();
        let (mut connection, welcome) = greet(running.addr(), 100 + number as u128, 0, 1, "stranger");
        assert!(welcome.is_some(), "it is let in");
        let (sender, _) = connection.halves();
        let begin = encode_control(&Begin { gather: Vec::new() }).unwrap();
        sender.send(&[&begin, junk]).unwrap();
        sender.flush().unwrap();
        connection.closer().shutdown();
        let ended = || {
            let status = running.peer.status();
            let strangers = status.sessions.iter().find(|one| one.node == "stranger");
            strangers.is_some_and(|one| !one.connected && !one.reason.is_empty())
        };
        wait_for("the end of its session", ended);
        if junk.len() == 4096 {
            wait_for("the counter", || running.refused() > before);
        }
    }
    running.goes_on();
    running.end();
}

/// Many who connect and are silent, some who send a byte now and then, and more all the time: the link goes on, and even
/// a new session gets through.
#[test]
fn thousand_half_open_and_slow_connections_beside_a_running_link() {
    for security in [key(1), Security::None] {
        let running = running(&security, 8);
        let addr = running.addr();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            struct Stop<'a>(&'a AtomicBool);
            impl Drop for Stop<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
            let stopping = Stop(&stop);
            scope.spawn(|| {
                let mut slow: Vec<TcpStream> =
                    (0..20).filter_map(|_| TcpStream::connect(addr).ok()).collect();
                while !stop.load(Ordering::Relaxed) {
                    for stream in &mut slow {
                        if stream.write_all(b"m").is_err()
                            && let Ok(again) = TcpStream::connect(addr)
                        {
                            *stream = again;
                        }
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            let silent: Vec<TcpStream> = (0..1000).filter_map(|_| TcpStream::connect(addr).ok()).collect();
            assert!(silent.len() > 900, "{}", silent.len());
            running.goes_on();
            running.proxy.kill_one();
            let more: Vec<TcpStream> = (0..100).filter_map(|_| TcpStream::connect(addr).ok()).collect();
            wait_for("another session", || running.link.status().sessions > 1);
            wait_state(&running.link, LinkState::Live);
            running.primary.write_some(50);
            running.primary.sync();
            wait_for("all of them to be thrown out", || running.refused() >= silent.len() as u64);
            drop((silent, more, stopping));
        });
        running.end();
    }
}
