#![allow(clippy::unwrap_used, reason = "tests")]

use super::codec::*;
use super::*;
use bytes::Bytes;
use mirrorfs_journal::{Body, Generation, LunId, LunUuid, Origin};
use std::io::Cursor;
use std::sync::Arc;

fn greeting() -> Greeting {
    Greeting {
        version: PROTOCOL_VERSION,
        session: SessionId(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100),
        index: 0,
        count: 4,
        node: "a-b".into(),
        boot_id: 0x1122_3344_5566_7788,
        luns: vec![LunHello {
            name: "data".into(),
            uuid: LunUuid([0xaa; 16]),
            size_bytes: 1 << 30,
            generations: vec![Generation(5)],
            durable_epoch: Epoch(9),
        }],
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write(payload: &'static [u8]) -> MirrorRequest {
    MirrorRequest {
        sequence: Sequence(0x0100_0000_0002),
        epoch: Epoch(3),
        lun: LunId(1),
        origin: Origin::File(12),
        accepted_ms: 1000,
        body: Body::Write {
            offset: 4096,
            payload: Bytes::from_static(payload),
            crc: crc32c::crc32c(payload),
        },
    }
}

fn records() -> Vec<MirrorRequest> {
    let with = |origin, body| MirrorRequest { origin, body, ..write(&[7; 512]) };
    vec![
        write(&[7; 512]),
        with(Origin::Metadata, Body::Discard { offset: 1 << 20, length: 1 << 20 }),
        with(Origin::Resync, Body::Check { offset: 512, length: 1024, hash: [9; 16] }),
        with(Origin::Journal, Body::Barrier { previous: vec![(LunId(0), Epoch(1)), (LunId(2), Epoch(77))] }),
        with(Origin::Journal, Body::Barrier { previous: vec![] }),
        with(Origin::Resync, Body::ResyncBegin { whole: true }),
        with(Origin::Resync, Body::ResyncBegin { whole: false }),
        with(Origin::Resync, Body::ResyncEnd),
    ]
}

/// As it travels: a barrier behind the frame that names who is told.
fn message_of(record: &MirrorRequest) -> (Vec<u8>, Message) {
    let told = Lanes(0x8000_0000_0000_0005);
    if let Body::Barrier { .. } = record.body {
        let mut bytes = Vec::new();
        encode_barrier(record, told, &mut bytes);
        return (bytes, Message::Barrier(Arc::new(record.clone()), told));
    }
    (bytes_of(record), Message::Request(Arc::new(record.clone())))
}

fn bytes_of(record: &MirrorRequest) -> Vec<u8> {
    let mut out = Vec::new();
    encode_record_header(record, &mut out);
    out.extend_from_slice(payload(record));
    out
}

#[test]
fn greeting_has_these_bytes() {
    let bytes = encode_control(&greeting()).unwrap();
    let body = concat!(
        "02000000",                         // version
        "000102030405060708090a0b0c0d0e0f", // session
        "0000",                             // index
        "0400",                             // count
        "0300000000000000612d62",           // node
        "8877665544332211",                 // boot id
        "0100000000000000",                 // one LUN
        "040000000000000064617461",         // name
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", // uuid
        "0000004000000000",                 // size
        "01000000000000000500000000000000", // generations
        "0900000000000000"                  // durable epoch
    );
    assert_eq!(hex(&bytes[24..]), body);
    assert_eq!(hex(&bytes[..20]), "6d6972726f7266730200000001000000".to_owned() + "6f000000");
    assert_eq!(
        u32::from_le_bytes(bytes[20..24].try_into().unwrap()),
        crc32c::crc32c_append(crc32c::crc32c(&bytes[..20]), &bytes[24..])
    );
    assert_eq!(read_control::<Greeting>(&mut Cursor::new(bytes)).unwrap(), greeting());
}

#[test]
fn other_frames_have_these_bytes() {
    let welcome = encode_control(&Welcome::Version { version: 2 }).unwrap();
    assert_eq!(hex(&welcome[..20]), "6d6972726f7266730200000002000000".to_owned() + "08000000");
    assert_eq!(hex(&welcome[24..]), "0100000002000000");
    let begin = encode_control(&Begin { gather: vec![1, 258] }).unwrap();
    assert_eq!(hex(&begin[24..]), "020000000000000001000201");
    let mut goodbye = Vec::new();
    encode_goodbye(&mut goodbye);
    assert_eq!(hex(&goodbye[..20]), "6d6972726f7266730200000004000000".to_owned() + "00000000");
    assert_eq!(read_message(&mut Cursor::new(goodbye)).unwrap(), Message::Goodbye);
    let mut after = Vec::new();
    encode_after(Epoch(0x0102), &mut after);
    assert_eq!(hex(&after[..20]), "6d6972726f7266730200000006000000".to_owned() + "08000000");
    assert_eq!(hex(&after[24..]), "0201000000000000");
    let (barrier, _) = message_of(&records()[3]);
    assert_eq!(hex(&barrier[..20]), "6d6972726f7266730200000005000000".to_owned() + "08000000");
    assert_eq!(hex(&barrier[24..32]), "0500000000000080");
    assert_eq!(barrier[32..], bytes_of(&records()[3]));

    let mut out = Vec::new();
    encode_response(&Response::Request(Sequence(0x0102), Outcome::Stored), &mut out);
    assert_eq!(hex(&out[..16]), "01000000000000000201000000000000");
    out.clear();
    let failed = Outcome::Failed { errno: -5, message: "no".into() };
    encode_response(&Response::Request(Sequence(1), failed), &mut out);
    assert_eq!(hex(&out[..16]), "04000200fbffffff0100000000000000");
    assert_eq!(&out[20..], b"no");
}

#[test]
fn every_welcome_comes_back() {
    let lun = PeerLun { id: LunId(1), durable_epoch: Epoch(7), resyncing: true, created: false };
    for welcome in [
        Welcome::Accepted { version: 1, luns: vec![lun] },
        Welcome::Version { version: 9 },
        Welcome::Invalid("a second 1".into()),
        Welcome::Refused(StoreRefusal::Io { path: "/x".into(), message: "full".into(), errno: 28 }),
    ] {
        let bytes = encode_control(&welcome).unwrap();
        assert_eq!(read_control::<Welcome>(&mut Cursor::new(bytes)).unwrap(), welcome);
    }
}

#[test]
fn records_come_back_one_behind_the_other() {
    let mut stream: Vec<u8> = records().iter().flat_map(|record| message_of(record).0).collect();
    encode_after(Epoch(4), &mut stream);
    encode_goodbye(&mut stream);
    let mut stream = Cursor::new(stream);
    for record in records() {
        assert_eq!(read_message(&mut stream).unwrap(), message_of(&record).1);
    }
    assert_eq!(read_message(&mut stream).unwrap(), Message::After(Epoch(4)));
    assert_eq!(read_message(&mut stream).unwrap(), Message::Goodbye);
    let end = read_message(&mut stream).unwrap_err();
    assert!(matches!(end, WireError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof));
}

#[test]
fn responses_come_back_from_one_buffer() {
    let long = "ü".repeat(FAILURE_BYTES_MAX);
    let responses = [
        Response::Request(Sequence(1), Outcome::Stored),
        Response::Request(Sequence(u64::MAX), Outcome::Equal),
        Response::Request(Sequence(3), Outcome::Different),
        Response::Durable(Epoch(4)),
        Response::Request(Sequence(5), Outcome::Failed { errno: 28, message: "disk full".into() }),
        Response::Request(Sequence(6), Outcome::Failed { errno: 0, message: "a".to_owned() + &long }),
    ];
    let mut bytes = Vec::new();
    responses.iter().for_each(|response| encode_response(response, &mut bytes));
    let mut stream = Cursor::new(bytes);
    for response in &responses[..5] {
        assert_eq!(read_response(&mut stream).unwrap(), *response);
    }
    let Response::Request(_, Outcome::Failed { message, .. }) = read_response(&mut stream).unwrap() else {
        panic!("not a failure")
    };
    assert_eq!(message.len(), FAILURE_BYTES_MAX - 1, "cut between characters");
}

#[test]
fn another_version_is_named_before_anything_else_is_read() {
    let mut bytes = encode_control(&greeting()).unwrap();
    bytes[8] = 1;
    bytes.truncate(12);
    let error = read_control::<Greeting>(&mut Cursor::new(bytes)).unwrap_err();
    assert!(matches!(error, WireError::Version { theirs: 1, ours: 2 }), "{error}");
}

/// Every single flipped bit, and every cut, of every kind of frame is an error, never a panic and never another message.
#[test]
fn damage_is_an_error() {
    fn hurt<T: PartialEq + std::fmt::Debug>(
        bytes: &[u8],
        read: impl Fn(&mut Cursor<Vec<u8>>) -> Result<T, WireError>,
    ) {
        assert!(read(&mut Cursor::new(bytes.to_vec())).is_ok());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&mut Cursor::new(damaged)).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(read(&mut Cursor::new(bytes[..length].to_vec())).is_err(), "cut at {length}");
        }
    }
    hurt(&encode_control(&greeting()).unwrap(), read_control::<Greeting>);
    hurt(&encode_control(&Begin { gather: vec![3] }).unwrap(), read_control::<Begin>);
    for record in records() {
        hurt(&message_of(&record).0, read_message);
    }
    let mut out = Vec::new();
    encode_after(Epoch(5), &mut out);
    hurt(&out, read_message);
    let mut out = Vec::new();
    encode_response(
        &Response::Request(Sequence(5), Outcome::Failed { errno: 28, message: "full".into() }),
        &mut out,
    );
    hurt(&out, read_response);
    let mut out = Vec::new();
    encode_response(&Response::Durable(Epoch(5)), &mut out);
    hurt(&out, read_response);
}

/// A lying length or count, with right checksums, allocates nothing and is refused.
#[test]
fn lying_lengths_are_refused() {
    let reseal = |bytes: &mut Vec<u8>| {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..20]), &bytes[24..]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    };
    let mut huge = encode_control(&greeting()).unwrap();
    huge[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    reseal(&mut huge);
    assert!(matches!(read_control::<Greeting>(&mut Cursor::new(huge)), Err(WireError::Length { .. })));
    // The number of LUNs inside the body.
    let mut many = encode_control(&greeting()).unwrap();
    many[24 + 43..24 + 51].copy_from_slice(&u64::MAX.to_le_bytes());
    reseal(&mut many);
    assert!(matches!(read_control::<Greeting>(&mut Cursor::new(many)), Err(WireError::Content { .. })));
    let mut trailing = encode_control(&Begin { gather: vec![] }).unwrap();
    trailing.push(0);
    trailing[16] += 1;
    reseal(&mut trailing);
    assert!(matches!(read_control::<Begin>(&mut Cursor::new(trailing)), Err(WireError::Content { .. })));
    let wrong_kind = encode_control(&Begin { gather: vec![] }).unwrap();
    assert!(matches!(read_control::<Greeting>(&mut Cursor::new(wrong_kind)), Err(WireError::Frame { .. })));
}

/// A barrier without its frame, and its frame before something else, are refused.
#[test]
fn a_barrier_and_its_frame_go_together() {
    let (write, barrier) = (&records()[0], &records()[3]);
    let naked = read_message(&mut Cursor::new(bytes_of(barrier))).unwrap_err();
    assert!(matches!(naked, WireError::Frame { .. }), "{naked}");
    let mut other = message_of(barrier).0;
    other.truncate(32);
    other.extend(bytes_of(write));
    let other = read_message(&mut Cursor::new(other)).unwrap_err();
    assert!(matches!(other, WireError::Frame { .. }), "{other}");
}

/// A record on the wire is header, body and payload of the journal's codec, and nothing else.
#[test]
fn a_record_goes_in_the_bytes_of_the_queue() {
    for record in records() {
        let encoded = mirrorfs_journal::codec::encode_header(&record);
        assert_eq!(bytes_of(&record), [&encoded.header[..], &encoded.body, encoded.payload].concat());
    }
    let mut stranger = bytes_of(&records()[0]);
    stranger[0] = b'X';
    stranger.truncate(8);
    let error = read_message(&mut Cursor::new(stranger)).unwrap_err();
    assert!(matches!(error, WireError::Record(_)), "refused before the rest is waited for");
}

#[test]
fn a_response_is_whole_with_its_last_byte() {
    for message in ["", "no space left"] {
        let outcome = Outcome::Failed { errno: 28, message: message.to_owned() };
        let mut bytes = Vec::new();
        encode_response(&Response::Request(Sequence(1), outcome), &mut bytes);
        assert!((0..bytes.len()).all(|length| !holds_response(&bytes[..length])));
        assert!(holds_response(&bytes));
    }
}
