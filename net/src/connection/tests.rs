#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::config::Security;
use crate::status::ElementState;
use crate::supervise::Now;
use crate::transport::{self, Transport, TransportOptions};
use crate::wire::{Greeting, SessionId};
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(2);
const SESSION: SessionId = SessionId(5);
const LONG: Duration = Duration::from_secs(10);

fn at(millis: u64) -> Now {
    Now(Duration::from_millis(millis))
}

fn array(count: u16) -> ConnectionArray {
    let array = ConnectionArray::new(count, TIMEOUT).unwrap();
    array.begin(SESSION);
    array
}

fn pair() -> (Transport, Transport) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let options = TransportOptions::default();
    let peer =
        thread::spawn(move || transport::accept(listener.accept().unwrap().0, &Security::None, &options));
    (transport::connect(addr, &Security::None, &options).unwrap(), peer.join().unwrap().unwrap())
}

fn accepted(transport: Transport, index: u16) -> SocketParameter {
    let greeting = Greeting {
        version: 1,
        session: SESSION,
        index,
        count: 4,
        node: "n".into(),
        boot_id: 1,
        luns: vec![],
    };
    SocketParameter::Accepted(Box::new(Accepted { transport, greeting }))
}

fn somewhere(index: u16) -> SocketParameter {
    SocketParameter::Connect { addr: SocketAddr::from(([127, 0, 0, 1], 7370)), index }
}

/// Opens element `index` on a real connection; returns our transport and the far end.
fn open(array: &ConnectionArray, index: u16, now: Now) -> (Transport, Transport) {
    let (near, far) = pair();
    array.prepare(index, somewhere(index), now).unwrap();
    assert!(matches!(array.take(index, LONG), Some(SocketParameter::Connect { index: i, .. }) if i == index));
    assert!(array.open(index, near.closer(), now));
    (near, far)
}

fn states(array: &ConnectionArray, now: Now) -> Vec<ElementState> {
    array.status(now).iter().map(|row| row.state).collect()
}

#[test]
fn claim_09_n_is_1_to_64() {
    for bad in [0, 65, u16::MAX] {
        assert_eq!(ConnectionArray::new(bad, TIMEOUT).err(), Some(ArrayError::Count(bad)));
    }
    for good in [1, 4, 64] {
        assert_eq!(array(good).status(at(0)).len(), usize::from(good));
    }
    assert_eq!(array(64).apply_marks(SESSION, u64::MAX), u64::MAX);
    assert_eq!(array(1).apply_marks(SESSION, u64::MAX), 1, "marks beyond n are ignored");
}

#[test]
fn claim_10_an_element_holds_socket_and_timestamp() {
    let array = array(2);
    let (near, _far) = open(&array, 1, at(100));
    let rows = array.status(at(350));
    assert_eq!((rows[0].state, rows[0].timestamp_age_ms), (ElementState::Idle, None));
    assert_eq!((rows[1].state, rows[1].timestamp_age_ms), (ElementState::Open, Some(250)));
    assert_eq!((rows[1].local, rows[1].remote), (near.closer().local_addr(), near.closer().peer_addr()));
    assert_eq!(array.open_count(), 1);
}

#[test]
fn claims_11_and_34_the_thread_takes_the_parameter_stored_in_its_element() {
    let array = Arc::new(array(4));
    let waiting = {
        let array = Arc::clone(&array);
        thread::spawn(move || array.take(2, LONG))
    };
    let (_near, far) = pair();
    array.prepare(2, accepted(far, 2), at(1)).unwrap();
    let Some(SocketParameter::Accepted(accepted_2)) = waiting.join().unwrap() else {
        panic!("nothing to take")
    };
    assert_eq!(accepted_2.greeting.index, 2);
    assert!(array.take(2, Duration::from_millis(1)).is_none(), "taken once");
    assert_eq!(array.prepare(2, somewhere(2), at(1)), Err(ArrayError::Taken(2)), "a second i");
    assert_eq!(array.prepare(4, somewhere(4), at(1)), Err(ArrayError::Index { index: 4, count: 4 }));
    assert!(array.open(2, accepted_2.transport.closer(), at(2)));
    assert_eq!(array.prepare(2, somewhere(2), at(1)), Err(ArrayError::Taken(2)));
}

#[test]
fn claims_14_and_36_a_heartbeat_updates_all_timestamps() {
    let array = array(3);
    let _kept: Vec<_> = (0..3).map(|index| open(&array, index, at(u64::from(index)))).collect();
    array.heard_all(at(1000));
    assert!(array.status(at(1500)).iter().all(|row| row.timestamp_age_ms == Some(500)));
    array.heard_all(at(900));
    assert!(array.status(at(1500)).iter().all(|row| row.timestamp_age_ms == Some(500)), "never back");
}

#[test]
fn claim_15_and_37_an_old_timestamp_is_marked_and_the_mark_is_copied() {
    let (mirror, local) = (array(3), array(3));
    let mut kept: Vec<_> = (0..3).map(|index| open(&local, index, at(0))).collect();
    let _far: Vec<_> = (0..3).map(|index| open(&mirror, index, at(0))).collect();
    local.heard_one(1, at(1000));
    assert_eq!(local.mark_stale(at(2000)), 0, "exactly as old as allowed");
    assert_eq!(local.mark_stale(at(2001)), 0b101, "bytes of its own connection kept element 1");
    assert_eq!(local.mark_stale(at(2001)), 0, "marked once");
    assert_eq!(local.marks(), 0b101);
    let closed_open = [ElementState::Closed, ElementState::Open, ElementState::Closed];
    assert_eq!(states(&local, at(2001)), closed_open);
    // The thread that would hang in a read leaves.
    assert!(matches!(kept[0].0.halves().1.read(&mut [0]), Ok(0) | Err(_)));

    assert_eq!(mirror.apply_marks(SessionId(6), local.marks()), 0, "another session's marks");
    assert_eq!(mirror.apply_marks(SessionId::default(), local.marks()), 0);
    assert_eq!(mirror.apply_marks(SESSION, local.marks()), 0b101);
    assert_eq!(states(&mirror, at(0)), closed_open);
    assert_eq!(mirror.open_count(), 1);
    // A heartbeat does not unmark.
    mirror.heard_all(at(3000));
    assert_eq!(mirror.marks(), 0b101);
}

#[test]
fn claims_16_and_38_a_thread_that_timed_out_looks_at_mark_and_timestamp() {
    let array = array(2);
    let _kept = (open(&array, 0, at(0)), open(&array, 1, at(0)));
    assert!(!array.must_close(0, at(1000)), "neither marked nor old: waits again");
    assert!(array.must_close(0, at(2001)), "too old, though nobody has marked it");
    array.heard_all(at(2001));
    assert!(!array.must_close(0, at(2002)));
    array.apply_marks(SESSION, 0b10);
    assert!(array.must_close(1, at(2002)), "marked, though fresh");
    assert!(!array.must_close(0, at(2002)));
    array.release(1);
    assert_eq!(states(&array, at(2002)), [ElementState::Open, ElementState::Closed]);
}

#[test]
fn claim_17_a_new_session_finds_fresh_elements() {
    let array = array(2);
    let kept = (open(&array, 0, at(0)), open(&array, 1, at(0)));
    assert_eq!(array.mark_stale(at(5000)), 0b11);
    assert_eq!(array.prepare(0, somewhere(0), at(5000)), Err(ArrayError::Taken(0)));
    array.begin(SessionId(6));
    assert_eq!((array.marks(), array.session()), (0, SessionId(6)));
    assert_eq!(states(&array, at(5000)), [ElementState::Idle; 2]);
    assert_eq!(array.mark_stale(at(50_000)), 0, "idle elements are not marked");
    drop(kept);
    let _kept = (open(&array, 0, at(50_000)), open(&array, 1, at(50_000)));
    assert_eq!(array.open_count(), 2);
    assert_eq!(array.apply_marks(SESSION, 0b11), 0, "marks of the old session");
}

#[test]
fn a_connection_that_comes_up_after_the_mark_is_shut_down() {
    let array = array(2);
    let (near, mut far) = pair();
    array.prepare(0, somewhere(0), at(0)).unwrap();
    assert!(array.take(0, LONG).is_some());
    assert_eq!(array.mark_stale(at(3000)), 0b1);
    assert!(!array.open(0, near.closer(), at(3001)));
    assert!(matches!(far.halves().1.read(&mut [0]), Ok(0) | Err(_)));
    // One that is still being greeted on is shut down by the mark.
    let (near, mut far) = pair();
    array.prepare(1, somewhere(1), at(0)).unwrap();
    assert!(array.take(1, LONG).is_some());
    array.connecting(1, near.closer());
    assert_eq!(array.mark_stale(at(3000)), 0b10);
    assert!(matches!(far.halves().1.read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn a_waiting_thread_leaves_when_its_element_is_marked() {
    let array = Arc::new(array(1));
    let waiting = {
        let array = Arc::clone(&array);
        thread::spawn(move || array.take(0, LONG).is_none())
    };
    array.apply_marks(SESSION, 1);
    assert!(waiting.join().unwrap());
}

/// Late marks of a session that is over are not taken for an interruption of the attempt that comes next.
#[test]
fn marks_after_the_end_of_the_session_mean_nothing() {
    let array = Arc::new(array(2));
    let waiting = {
        let array = Arc::clone(&array);
        thread::spawn(move || array.take(1, LONG).is_none())
    };
    let _kept = open(&array, 0, at(0));
    array.close_all();
    assert_eq!(array.apply_marks(SESSION, 0b11), 0);
    assert_eq!((array.marks(), array.mark_stale(at(60_000))), (0, 0));
    // The thread may have come to wait only after the first call.
    while !waiting.is_finished() {
        array.close_all();
        thread::yield_now();
    }
    assert!(waiting.join().unwrap(), "a waiting thread leaves at once");
}
