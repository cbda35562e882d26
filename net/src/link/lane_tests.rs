//! The order of a lane is the order on the wire, whoever sends.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::config::Security;
use crate::transport::{self, Receiver, TransportOptions};
use crate::wire::Message;
use bytes::Bytes;
use mirrorfs_journal::{Body, Epoch, LunId, MirrorRequest, Origin, Sequence};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

fn connected(buffer_bytes: Option<usize>) -> (Lane, Receiver) {
    let options = TransportOptions { socket_buffer_bytes: buffer_bytes, ..TransportOptions::default() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let peer = thread::spawn(move || {
        transport::accept(listener.accept().unwrap().0, &Security::None, &options).unwrap().split().1
    });
    let lane = Lane::default();
    lane.open(transport::connect(addr, &Security::None, &options).unwrap().split().0);
    (lane, peer.join().unwrap())
}

fn write(sequence: u64, bytes: usize) -> Item {
    let payload = Bytes::from(vec![sequence as u8; bytes]);
    let crc = crc32c::crc32c(&payload);
    let (sequence, epoch, lun, origin) = (Sequence(sequence), Epoch(1), LunId(0), Origin::Metadata);
    let body = Body::Write { offset: 0, payload, crc };
    Item::Routed(Routed::Request(Arc::new(MirrorRequest {
        sequence,
        epoch,
        lun,
        origin,
        accepted_ms: 0,
        body,
    })))
}

fn next(receiver: &mut Receiver) -> u64 {
    match codec::read_message(receiver).unwrap() {
        Message::Request(request) => request.sequence.0,
        other => panic!("{other:?}"),
    }
}

/// Several threads queue (in turn, as under the router) and send at once, small items and large ones, beside the worker,
/// through a socket that is often full.
#[test]
fn order_survives_many_senders() {
    const ITEMS: u64 = 3000;
    // Not smaller: where a segment does not fit the window, TCP itself waits some 40 ms for each.
    let (lane, mut receiver) = connected(Some(256 << 10));
    let turn = Mutex::new(1_u64);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                lane.send_next(Duration::from_millis(20)).unwrap();
            }
        });
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    {
                        let mut sequence = turn.lock();
                        if *sequence > ITEMS {
                            return;
                        }
                        let bytes = if sequence.is_multiple_of(50) { 128 << 10 } else { 4096 };
                        lane.push_now(write(*sequence, bytes));
                        *sequence += 1;
                    }
                    lane.send_now().unwrap();
                }
            });
        }
        for expected in 1..=ITEMS {
            assert_eq!(next(&mut receiver), expected);
        }
        done.store(true, Ordering::Release);
        worker.join().unwrap();
    });
}

/// Without a worker: what blocks on nothing goes out at once, what is too large stays for it, and all behind it.
#[test]
fn a_large_item_is_left_to_the_worker() {
    let (lane, mut receiver) = connected(None);
    lane.push_now(write(1, 4096));
    lane.push_now(write(2, 512 << 10));
    lane.push_now(write(3, 4096));
    let sent = lane.send_now().unwrap();
    assert!((4096..8192).contains(&sent), "{sent}");
    assert_eq!(next(&mut receiver), 1);
    let reading = thread::spawn(move || [next(&mut receiver), next(&mut receiver)]);
    assert!(matches!(lane.send_next(Duration::ZERO).unwrap(), Sent::Bytes(_)));
    assert_eq!(reading.join().unwrap(), [2, 3]);
}

#[test]
fn a_closed_lane_takes_nothing_and_lets_everybody_go() {
    let (lane, _receiver) = connected(None);
    lane.push_now(write(1, 4096));
    lane.close();
    assert!(!lane.push(write(2, 4096)));
    lane.push_now(write(3, 4096));
    assert_eq!(lane.send_now().unwrap(), 0);
    assert_eq!(lane.send_next(Duration::from_secs(60)).unwrap(), Sent::Closed);
    lane.release();
    assert_eq!(lane.send_now().unwrap(), 0);
}
