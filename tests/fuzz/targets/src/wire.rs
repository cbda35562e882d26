//! Control messages, records and responses, in both directions.

use crate::{Input, mutate};
use bytes::Bytes;
use mirrorfs_journal::codec::{HEADER_BYTES, MAGIC, PREVIOUS_MAX};
use mirrorfs_journal::log::PeerLun;
use mirrorfs_journal::{
    Body, Epoch, Generation, LunId, LunUuid, MirrorRequest, Origin, REGION_BYTES, Sequence,
};
use mirrorfs_net::store::{LunHello, StoreRefusal};
use mirrorfs_net::wire::codec::{
    CONTROL_HEADER_BYTES, Control, RESPONSE_BYTES, WireError, encode_after, encode_barrier, encode_control,
    encode_goodbye, encode_record_header, encode_response, payload, read_control, read_message,
    read_response,
};
use mirrorfs_net::wire::{
    Begin, Greeting, Lanes, Message, Outcome, PROTOCOL_VERSION, Response, SessionId, Welcome,
};
use std::io::{self, Read};
use std::sync::Arc;

/// Bytes that come in pieces, as from a socket.
struct Pieces<'a> {
    bytes: &'a [u8],
    at: usize,
    piece: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = into.len().min(self.piece).min(self.bytes.len() - self.at);
        into[..length].copy_from_slice(&self.bytes[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

pub(crate) fn run(input: &mut Input<'_>) {
    match input.below(6) {
        0 => control(input, greeting),
        1 => control(input, welcome),
        2 => control(input, begin),
        3 => responses(input),
        _ => messages(input),
    }
}

fn text(input: &mut Input<'_>) -> String {
    let length = input.short(80) as usize;
    String::from_utf8_lossy(&input.bytes(length)).into_owned()
}

fn hello(input: &mut Input<'_>) -> LunHello {
    LunHello {
        name: text(input),
        uuid: LunUuid([input.below(256) as u8; 16]),
        size_bytes: input.number(),
        generations: (0..input.below(10)).map(|_| Generation(input.number())).collect(),
        durable_epoch: Epoch(input.number()),
    }
}

fn greeting(input: &mut Input<'_>) -> Greeting {
    Greeting {
        version: PROTOCOL_VERSION,
        session: SessionId(u128::from(input.number()) << 64 | u128::from(input.number())),
        index: input.below(5) as u16,
        count: input.below(5) as u16,
        node: text(input),
        boot_id: input.number(),
        luns: (0..input.below(6)).map(|_| hello(input)).collect(),
    }
}

fn welcome(input: &mut Input<'_>) -> Welcome {
    let lun = |input: &mut Input<'_>| PeerLun {
        id: LunId(input.below(4) as u16),
        durable_epoch: Epoch(input.number()),
        resyncing: input.once_in(2),
        created: input.once_in(2),
    };
    match input.below(5) {
        0 => Welcome::Accepted {
            version: PROTOCOL_VERSION,
            luns: (0..input.below(6)).map(|_| lun(input)).collect(),
        },
        1 => Welcome::Version { version: input.number() as u32 },
        2 => Welcome::Invalid(text(input)),
        3 => Welcome::Refused(StoreRefusal::Invalid(text(input))),
        _ => Welcome::Refused(StoreRefusal::InUse { path: text(input), holder: text(input) }),
    }
}

fn begin(input: &mut Input<'_>) -> Begin {
    Begin { gather: (0..input.below(10)).map(|_| input.number() as u16).collect() }
}

/// Makes the checksum of a control frame right again, and mostly its length.
fn seal_control(input: &mut Input<'_>, frame: &mut [u8]) {
    if frame.len() < CONTROL_HEADER_BYTES || input.once_in(6) {
        return;
    }
    if !input.once_in(4) {
        let length = (frame.len() - CONTROL_HEADER_BYTES) as u32;
        frame[16..20].copy_from_slice(&length.to_le_bytes());
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..20]), &frame[CONTROL_HEADER_BYTES..]);
    frame[20..24].copy_from_slice(&crc.to_le_bytes());
}

/// A control message that is read is what its bytes say: written again it gives the same bytes.
fn control<T: Control>(input: &mut Input<'_>, make: fn(&mut Input<'_>) -> T) {
    let mut frame = encode_control(&make(input)).expect("a small message");
    match input.below(8) {
        0 => {}
        // The body only, so that header and magic stay.
        1..=5 if frame.len() > CONTROL_HEADER_BYTES => {
            let mut body = frame.split_off(CONTROL_HEADER_BYTES);
            mutate::stream(input, &mut body);
            frame.append(&mut body);
        }
        _ => mutate::stream(input, &mut frame),
    }
    seal_control(input, &mut frame);
    let mut from = Pieces { bytes: &frame, at: 0, piece: 1 + input.index(40) };
    match read_control::<T>(&mut from) {
        Ok(message) => {
            input.count("control read");
            let again = encode_control(&message).expect("it was small enough to be read");
            assert!(again == frame[..from.at], "{}: not what its bytes say", T::NAME);
        }
        Err(WireError::Version { .. }) => input.count("version"),
        Err(_) => input.count("control refused"),
    }
    // Whatever it is, it may come where records are expected.
    let _ = read_message(&mut Pieces { bytes: &frame, at: 0, piece: 64 });
}

fn record(input: &mut Input<'_>, sequence: u64) -> MirrorRequest {
    let start = input.below(1000) * REGION_BYTES;
    let (offset, length) = (start + input.below(1000) * 512, 512 * (1 + input.short(64)));
    let body = match input.below(8) {
        0..=2 => {
            let payload = Bytes::from(vec![sequence as u8; length as usize]);
            let crc = crc32c::crc32c(&payload);
            Body::Write { offset, payload, crc }
        }
        3 => Body::Discard { offset, length },
        4 => Body::Check { offset, length, hash: [7; 16] },
        5 => {
            let count = *input.pick(&[0, 1, 3, PREVIOUS_MAX as u64]);
            Body::Barrier {
                previous: (0..count).map(|lun| (LunId(lun as u16), Epoch(input.number()))).collect(),
            }
        }
        6 => Body::ResyncBegin { whole: input.once_in(2) },
        _ => Body::ResyncEnd,
    };
    MirrorRequest {
        sequence: Sequence(sequence),
        epoch: Epoch(input.number()),
        lun: LunId(input.below(3) as u16),
        origin: match input.below(4) {
            0 => Origin::Journal,
            1 => Origin::Metadata,
            2 => Origin::Resync,
            _ => Origin::File(input.number() as u32),
        },
        accepted_ms: input.number(),
        body,
    }
}

/// The bytes of a message.
fn encode(message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Request(record) => {
            encode_record_header(record, out);
            out.extend_from_slice(payload(record));
        }
        Message::Barrier(record, told) => encode_barrier(record, *told, out),
        Message::After(epoch) => encode_after(*epoch, out),
        Message::Goodbye => encode_goodbye(out),
    }
}

/// A stream of messages, damaged; each that is read is what its bytes say.
fn messages(input: &mut Input<'_>) {
    let mut stream = Vec::new();
    let mut starts = Vec::new();
    let mut written: Vec<Message> = Vec::new();
    for sequence in 0..1 + input.below(4) {
        let record = Arc::new(record(input, sequence));
        let message = match record.body {
            Body::Barrier { .. } => Message::Barrier(record, Lanes(input.number())),
            _ if input.once_in(6) => Message::After(Epoch(input.number())),
            _ => Message::Request(record),
        };
        starts.push(stream.len());
        encode(&message, &mut stream);
        written.push(message);
    }
    encode(&Message::Goodbye, &mut stream);
    written.push(Message::Goodbye);
    // Field by field in one header, its checksum made right again; or anywhere, as a bad line would do it.
    let forged = input.once_in(2);
    if forged {
        forge(input, &mut stream, &starts);
    } else {
        mutate::stream(input, &mut stream);
    }
    let mut from = Pieces { bytes: &stream, at: 0, piece: 1 + input.short(1 << 16) as usize };
    loop {
        let start = from.at;
        let Ok(message) = read_message(&mut from) else { break input.count("stream ended") };
        let mut again = Vec::new();
        encode(&message, &mut again);
        assert!(again == stream[start..from.at], "{message:?}: not what its bytes say");
        // Without a forged checksum nothing is read that was not written.
        assert!(forged || written.contains(&message), "{message:?} was never written");
        match message {
            Message::Request(record) => {
                input.count("record read");
                assert!(again.len() <= HEADER_BYTES + (1 << 20));
                if let Some((offset, length)) = record.range() {
                    assert_eq!(offset / REGION_BYTES, (offset + length - 1) / REGION_BYTES, "two regions");
                }
            }
            Message::Barrier(_, told) => {
                input.count("barrier read");
                let exceeds = |count: usize| (count..64).any(|index| told.contains(index));
                assert!([0, 1, 4, 63, 64].iter().all(|count| told.exceeds(*count) == exceeds(*count)));
            }
            Message::After(_) => input.count("after read"),
            Message::Goodbye => input.count("goodbye"),
        }
    }
}

/// Changes the header of a message and makes its checksum right again.
fn forge(input: &mut Input<'_>, stream: &mut [u8], starts: &[usize]) {
    let at = *input.pick(starts);
    if !stream[at..].starts_with(&MAGIC) {
        let end = at + CONTROL_HEADER_BYTES + 8;
        mutate::fields(input, &mut stream[at + 8..end], &[0, 4, 6, 8, 16], false);
        return seal_control(input, &mut stream[at..end]);
    }
    let header = &mut stream[at..at + HEADER_BYTES];
    mutate::fields(input, header, &[4, 5, 6, 8, 16, 32, 40, 48, 50, 52, 56, 60, 64], false);
    let crc = crc32c::crc32c(&header[..HEADER_BYTES - 4]);
    header[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn responses(input: &mut Input<'_>) {
    let mut stream = Vec::new();
    let mut starts = Vec::new();
    let mut written = Vec::new();
    for number in 0..1 + input.below(6) {
        starts.push(stream.len());
        let response = match input.below(5) {
            0 => Response::Request(Sequence(number), Outcome::Stored),
            1 => Response::Request(Sequence(number), Outcome::Equal),
            2 => Response::Request(Sequence(number), Outcome::Different),
            3 => Response::Durable(Epoch(number)),
            _ => {
                let mut message = text(input);
                if input.once_in(4) {
                    message = "\u{fc}".repeat(700);
                }
                Response::Request(Sequence(number), Outcome::Failed { errno: input.number() as i32, message })
            }
        };
        encode_response(&response, &mut stream);
        written.push(response);
    }
    let forged = input.once_in(2);
    if forged {
        let at = *input.pick(&starts);
        let head = &mut stream[at..at + RESPONSE_BYTES];
        mutate::fields(input, head, &[0, 1, 2, 4, 8], false);
        let length = usize::from(u16::from_le_bytes([stream[at + 2], stream[at + 3]]));
        let end = (at + RESPONSE_BYTES + length).min(stream.len());
        let crc =
            crc32c::crc32c_append(crc32c::crc32c(&stream[at..at + 16]), &stream[at + RESPONSE_BYTES..end]);
        stream[at + 16..at + 20].copy_from_slice(&crc.to_le_bytes());
    } else {
        mutate::stream(input, &mut stream);
    }
    let mut from = Pieces { bytes: &stream, at: 0, piece: 1 + input.index(100) };
    loop {
        let start = from.at;
        let Ok(response) = read_response(&mut from) else { break input.count("stream ended") };
        input.count("response read");
        let lossy = matches!(&response, Response::Request(_, Outcome::Failed { message, .. }) if message.contains('\u{FFFD}'));
        if !lossy {
            let mut again = Vec::new();
            encode_response(&response, &mut again);
            assert!(again == stream[start..from.at], "{response:?}: not what its bytes say");
        }
        // A message that was cut when it was written reads shorter.
        let cut = matches!(&response, Response::Request(_, Outcome::Failed { message, .. }) if message.len() > 1000);
        assert!(forged || lossy || cut || written.contains(&response), "{response:?} was never written");
    }
}
