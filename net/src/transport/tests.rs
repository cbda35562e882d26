#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::config::Key;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

fn key(byte: u8) -> Security {
    Security::Key(Key([byte; 32]))
}

fn options() -> TransportOptions {
    TransportOptions { handshake_timeout: Duration::from_secs(5), socket_buffer_bytes: Some(256 * 1024) }
}

type Made = Result<Transport, TransportError>;

fn pair(primary: Security, peer: Security) -> (Made, Made) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let responder = thread::spawn(move || accept(listener.accept().unwrap().0, &peer, &options()));
    (connect(addr, &primary, &options()), responder.join().unwrap())
}

fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Both directions at once, with parts of all sizes: every byte arrives, in order.
fn carries_everything(security: Security) {
    let (a, b) = pair(security.clone(), security.clone());
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.encrypted(), security != Security::None);
    let sizes = [0, 1, 2, 15, 68, 4096, 8191, 8192, 65_518, 65_519, 65_520, 65_535, 200_000, 1 << 20, 3, 70];
    let side = move |transport: Transport, seed: u64| {
        let (mut sender, mut receiver) = transport.split();
        let sending = thread::spawn(move || {
            for (index, size) in sizes.iter().enumerate() {
                let payload = bytes(*size, seed + index as u64);
                let head = (*size as u64).to_le_bytes();
                sender.send(&[&head, &payload, &[], &head]).unwrap();
                if index % 3 == 0 {
                    sender.flush().unwrap();
                }
            }
            sender.flush().unwrap();
            let expected = sizes.iter().map(|size| *size as u64 + 16).sum::<u64>();
            assert_eq!(sender.bytes_sent(), expected);
            sender
        });
        let other = 300 - seed;
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&seen);
        receiver.set_on_received(Box::new(move |count| {
            counter.fetch_add(count, Ordering::Relaxed);
        }));
        for (index, size) in sizes.iter().enumerate() {
            let mut head = [0; 8];
            receiver.read_exact(&mut head).unwrap();
            assert_eq!(u64::from_le_bytes(head), *size as u64);
            let mut payload = vec![0; *size];
            receiver.read_exact(&mut payload).unwrap();
            assert!(payload == bytes(*size, other + index as u64), "payload {index} differs");
            receiver.read_exact(&mut head).unwrap();
        }
        assert!(!receiver.has_buffered());
        assert_eq!(seen.load(Ordering::Relaxed) as u64, receiver.bytes_received());
        (sending.join().unwrap(), receiver)
    };
    let other = thread::spawn(move || side(a, 100));
    let (mut sender, mut receiver) = side(b, 200);
    let (far_sender, mut far_receiver) = other.join().unwrap();

    assert!(!receiver.wait_readable(Duration::from_millis(20)).unwrap());
    sender.send(&[b"x"]).unwrap();
    assert!(!far_receiver.wait_readable(Duration::from_millis(20)).unwrap(), "buffered until the flush");
    sender.flush().unwrap();
    assert!(far_receiver.wait_readable(Duration::from_secs(5)).unwrap());
    far_receiver.read_exact(&mut [0]).unwrap();

    let closer = far_sender.closer();
    let blocked = thread::spawn(move || far_receiver.read(&mut [0; 8]));
    closer.shutdown();
    assert!(
        matches!(blocked.join().unwrap(), Ok(0) | Err(_)),
        "a reader leaves when the socket is shut down"
    );
    assert!(receiver.wait_readable(Duration::from_secs(5)).unwrap());
    assert!(matches!(receiver.read(&mut [0; 8]), Ok(0) | Err(_)));
}

/// Looking ahead waits for nothing, keeps what it has found for the reads that follow, and leaves the end to them.
fn peeks(security: Security) {
    let (a, b) = pair(security.clone(), security);
    let ((mut sender, _far), (_sender, mut receiver)) = (a.unwrap().split(), b.unwrap().split());
    assert!(receiver.peek().unwrap().is_empty());
    let arrival = receiver.arrival();
    assert!(!arrival.wait(Duration::from_millis(1)).unwrap());
    for round in 0..3u8 {
        for part in 0..3 {
            sender.send(&[&[round, part]]).unwrap();
            sender.flush().unwrap();
        }
        assert!(arrival.wait(Duration::from_secs(5)).unwrap());
        let mut seen = Vec::new();
        while seen.len() < 6 {
            let found = receiver.peek().unwrap().len();
            let mut bytes = vec![0; found];
            receiver.read_exact(&mut bytes).unwrap();
            seen.extend(bytes);
        }
        assert_eq!(seen, [round, 0, round, 1, round, 2]);
    }
    sender.closer().shutdown();
    assert!(arrival.wait(Duration::from_secs(5)).unwrap());
    assert!(receiver.peek().unwrap().is_empty());
    assert!(matches!(receiver.read(&mut [0; 8]), Ok(0) | Err(_)));
}

#[test]
fn peeking_waits_for_nothing() {
    peeks(Security::None);
    peeks(key(7));
}

#[test]
fn plain_carries_everything() {
    carries_everything(Security::None);
}

#[test]
fn noise_carries_everything() {
    carries_everything(key(7));
}

#[test]
fn a_blocked_sender_leaves_on_shutdown_and_stays_failed() {
    for security in [Security::None, key(1)] {
        let (a, _b) = pair(security.clone(), security);
        let transport = a.unwrap();
        let closer = transport.closer();
        let (mut sender, _receiver) = transport.split();
        let big = vec![1; 64 << 20];
        let sending = thread::spawn(move || {
            let result = sender.send(&[&big]);
            (result, sender)
        });
        thread::sleep(Duration::from_millis(50));
        assert!(!sending.is_finished());
        closer.shutdown();
        let (result, mut sender) = sending.join().unwrap();
        assert!(result.is_err());
        assert!(sender.send(&[b"later"]).is_err());
        assert!(sender.flush().is_err());
    }
}

#[test]
fn a_wrong_or_missing_key_is_named_on_both_sides() {
    let (a, b) = pair(key(1), key(2));
    assert!(matches!(a, Err(TransportError::WrongKey { .. })));
    assert!(matches!(b, Err(TransportError::WrongKey { .. })));
    let (a, b) = pair(Security::None, key(2));
    assert!(matches!(a, Err(TransportError::KeyNeeded { .. })));
    assert!(matches!(b, Err(TransportError::KeyMissing { .. })));
    let (a, b) = pair(key(1), Security::None);
    assert!(matches!(a, Err(TransportError::KeyMissing { .. })));
    assert!(matches!(b, Err(TransportError::KeyNeeded { .. })));
}

#[test]
fn strangers_and_silence_are_refused_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let quick = TransportOptions { handshake_timeout: Duration::from_millis(100), ..options() };
    let _silent = TcpStream::connect(addr).unwrap();
    let result = accept(listener.accept().unwrap().0, &key(1), &quick);
    assert!(matches!(result, Err(TransportError::Timeout { .. })));
    let mut stranger = TcpStream::connect(addr).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let result = accept(listener.accept().unwrap().0, &key(1), &quick);
    assert!(matches!(result, Err(TransportError::NotMirrorfs { .. })));
    // A drip of bytes does not extend the time.
    let mut drip = TcpStream::connect(addr).unwrap();
    let accepted = listener.accept().unwrap().0;
    let start = std::time::Instant::now();
    let accepting = thread::spawn(move || accept(accepted, &key(1), &quick));
    while !accepting.is_finished() {
        let _ = drip.write(b"m");
        thread::sleep(Duration::from_millis(15));
    }
    assert!(accepting.join().unwrap().is_err());
    assert!(start.elapsed() < Duration::from_secs(2));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(connect(closed, &key(1), &quick), Err(TransportError::Io { .. })));
}

/// A recorded session, played again at the peer, gets through the handshake's first message and not one byte further.
#[test]
fn a_replayed_or_damaged_stream_yields_no_byte() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    // A relay that records what the primary sends.
    let relay = TcpListener::bind("127.0.0.1:0").unwrap();
    let relay_addr = relay.local_addr().unwrap();
    let relaying = thread::spawn(move || {
        let mut primary = relay.accept().unwrap().0;
        let mut peer = TcpStream::connect(addr).unwrap();
        let mut recorded = vec![0; 64];
        primary.read_exact(&mut recorded).unwrap();
        peer.write_all(&recorded).unwrap();
        let mut answer = [0; 64];
        peer.read_exact(&mut answer).unwrap();
        primary.write_all(&answer).unwrap();
        let mut rest = Vec::new();
        primary.read_to_end(&mut rest).unwrap();
        peer.write_all(&rest).unwrap();
        recorded.extend_from_slice(&rest);
        recorded
    });
    let peer = thread::spawn(move || {
        let (_, mut receiver) = accept(listener.accept().unwrap().0, &key(3), &options()).unwrap().split();
        let mut said = Vec::new();
        receiver.read_to_end(&mut said).unwrap();
        (said, listener)
    });
    let (mut sender, receiver) = connect(relay_addr, &key(3), &options()).unwrap().split();
    sender.send(&[b"greeting"]).unwrap();
    sender.flush().unwrap();
    drop((sender, receiver));
    let recorded = relaying.join().unwrap();
    let (said, listener) = peer.join().unwrap();
    assert_eq!(said, b"greeting");
    assert!(!recorded.windows(8).any(|window| window == b"greeting"));

    let mut replay = TcpStream::connect(addr).unwrap();
    replay.write_all(&recorded).unwrap();
    let (_, mut receiver) = accept(listener.accept().unwrap().0, &key(3), &options()).unwrap().split();
    let error = receiver.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert_eq!(receiver.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
}

/// What is held back blocks nobody: a socket that takes no more keeps the rest in the sender, and a flush brings it.
fn held_back_bytes_come_whole(security: Security) {
    let (a, b) = pair(security.clone(), security);
    let (mut sender, _receiver) = a.unwrap().split();
    let (_sender, mut receiver) = b.unwrap().split();
    let part = bytes(Sender::HELD_BACK_MAX / 3, 5);
    let mut given = 0;
    loop {
        sender.hold_back(true);
        for _ in 0..3 {
            sender.send(&[&part]).unwrap();
            given += 1;
        }
        sender.hold_back(false);
        if !sender.flush_now().unwrap() {
            break;
        }
        assert!(!sender.has_unsent());
        assert!(given * part.len() < 64 << 20, "a socket that nobody reads takes all of it");
    }
    assert!(sender.has_unsent());
    let reading = thread::spawn(move || {
        for _ in 0..given {
            let mut got = vec![0; part.len()];
            receiver.read_exact(&mut got).unwrap();
            assert!(got == part, "bytes differ");
        }
        assert!(!receiver.poll_readable().unwrap(), "nothing more");
    });
    sender.flush().unwrap();
    assert!(!sender.has_unsent());
    reading.join().unwrap();
}

#[test]
fn held_back_bytes_come_whole_plain() {
    held_back_bytes_come_whole(Security::None);
}

#[test]
fn held_back_bytes_come_whole_encrypted() {
    held_back_bytes_come_whole(key(3));
}

#[test]
fn asking_finds_bytes_and_the_end_without_waiting() {
    let (a, b) = pair(key(1), key(1));
    let (mut sender, _receiver) = a.unwrap().split();
    let (other, mut receiver) = b.unwrap().split();
    assert!(!receiver.poll_readable().unwrap());
    sender.send(&[b"word"]).unwrap();
    sender.flush().unwrap();
    while !receiver.poll_readable().unwrap() {
        thread::yield_now();
    }
    let mut word = [0; 4];
    receiver.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"word");
    assert!(!receiver.poll_readable().unwrap());
    sender.closer().shutdown();
    while !receiver.poll_readable().unwrap() {
        thread::yield_now();
    }
    assert_eq!(receiver.read(&mut word).unwrap(), 0);
    drop(other);
}
