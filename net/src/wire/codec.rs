//! Bytes of the control messages, of the responses and of the stream of records.

use super::{Begin, Greeting, Lanes, Message, Outcome, PROTOCOL_VERSION, Response, Welcome};
use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};
use mirrorfs_journal::codec::{self as record, CodecError};
use mirrorfs_journal::{Body, Epoch, MirrorRequest, Sequence};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read};
use std::sync::Arc;

/// Largest body of a control frame.
pub const CONTROL_BYTES_MAX: usize = 64 * 1024;
/// First bytes of each control frame; a record starts otherwise.
pub const CONTROL_MAGIC: &[u8; 8] = b"mirrorfs";
/// Bytes of a control frame before its body.
pub const CONTROL_HEADER_BYTES: usize = 24;
/// Bytes of a response, the message of a failed one excluded.
pub const RESPONSE_BYTES: usize = 20;
/// Largest message in a failed response; longer ones are cut when encoded.
pub const FAILURE_BYTES_MAX: usize = 1024;

/// What can be wrong with what the other side sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The connection broke, ended (`UnexpectedEof`) or was shut down.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// Not a frame of ours.
    #[error("bad frame: expected {expected}, found {found}")]
    Frame {
        /// What should have been there.
        expected: &'static str,
        /// What was.
        found: String,
    },
    /// The other side's protocol version.
    #[error(
        "the peer speaks protocol version {theirs}, this mirrorfs {ours}; run the same release on both sides"
    )]
    Version {
        /// Theirs.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// A length out of bounds.
    #[error("{what} of {length} bytes, at most {max} allowed")]
    Length {
        /// Of what.
        what: &'static str,
        /// Found.
        length: u64,
        /// Bound.
        max: u64,
    },
    /// A checksum that does not match: damaged on the way, or in a memory.
    #[error("{what}: checksum {found:08x} instead of {expected:08x}")]
    Checksum {
        /// Of what.
        what: &'static str,
        /// As sent.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A record that is damaged or out of bounds.
    #[error("record: {0}")]
    Record(#[from] CodecError),
    /// Contents that make no sense.
    #[error("{what}: {why}")]
    Content {
        /// Of what.
        what: &'static str,
        /// Why.
        why: String,
    },
}

/// A message that travels in a control frame.
pub trait Control: Serialize + DeserializeOwned {
    /// Number in the frame header; never reused.
    const KIND: u16;
    /// Name for messages.
    const NAME: &'static str;
}

impl Control for Greeting {
    const KIND: u16 = 1;
    const NAME: &'static str = "greeting";
}
impl Control for Welcome {
    const KIND: u16 = 2;
    const NAME: &'static str = "welcome";
}
impl Control for Begin {
    const KIND: u16 = 3;
    const NAME: &'static str = "begin";
}

const GOODBYE: u16 = 4;
const BARRIER: u16 = 5;
const AFTER: u16 = 6;

fn config() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<CONTROL_BYTES_MAX>()
}

fn frame(kind: u16, body: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(CONTROL_MAGIC);
    out.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    // The callers keep bodies below CONTROL_BYTES_MAX.
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let crc = crc32c_append(crc32c(&out[start..]), body);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(body);
}

/// The whole frame of a control message.
///
/// # Errors
/// It is larger than [`CONTROL_BYTES_MAX`].
pub fn encode_control<T: Control>(message: &T) -> Result<Vec<u8>, WireError> {
    let body = bincode::serde::encode_to_vec(message, config())
        .map_err(|error| WireError::Content { what: T::NAME, why: error.to_string() })?;
    bounded(T::NAME, body.len() as u64, CONTROL_BYTES_MAX as u64)?;
    let mut out = Vec::with_capacity(CONTROL_HEADER_BYTES + body.len());
    frame(T::KIND, &body, &mut out);
    Ok(out)
}

fn bounded(what: &'static str, length: u64, max: u64) -> Result<(), WireError> {
    if length > max { Err(WireError::Length { what, length, max }) } else { Ok(()) }
}

/// Little-endian integers at fixed places of a header whose length the caller has.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Checks the header (magic already read) and reads the body of a control frame: its kind and body.
fn read_frame(from: &mut impl Read, expected: &'static str) -> Result<(u16, Vec<u8>), WireError> {
    let mut header = [0; CONTROL_HEADER_BYTES];
    header[..8].copy_from_slice(CONTROL_MAGIC);
    // Version first: of another one nothing more is believed or waited for.
    from.read_exact(&mut header[8..12])?;
    let theirs = u32_at(&header, 8);
    if theirs != PROTOCOL_VERSION {
        return Err(WireError::Version { theirs, ours: PROTOCOL_VERSION });
    }
    from.read_exact(&mut header[12..])?;
    let length = u32_at(&header, 16);
    bounded(expected, u64::from(length), CONTROL_BYTES_MAX as u64)?;
    if u16_at(&header, 14) != 0 {
        return Err(WireError::Content {
            what: expected,
            why: "reserved bytes of its header are not zero".into(),
        });
    }
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body)?;
    let (sent, found) = (u32_at(&header, 20), crc32c_append(crc32c(&header[..20]), &body));
    if sent != found {
        return Err(WireError::Checksum { what: expected, expected: sent, found });
    }
    Ok((u16_at(&header, 12), body))
}

/// Reads one control frame, of this kind.
///
/// # Errors
/// `Version` before the rest is even read; see [`WireError`].
pub fn read_control<T: Control>(from: &mut impl Read) -> Result<T, WireError> {
    let mut magic = [0; 8];
    from.read_exact(&mut magic)?;
    if magic != *CONTROL_MAGIC {
        return Err(WireError::Frame { expected: T::NAME, found: format!("bytes {magic:02x?}") });
    }
    let (kind, body) = read_frame(from, T::NAME)?;
    if kind != T::KIND {
        return Err(WireError::Frame { expected: T::NAME, found: format!("control frame of kind {kind}") });
    }
    let (message, used) = bincode::serde::decode_from_slice(&body, config())
        .map_err(|error| WireError::Content { what: T::NAME, why: error.to_string() })?;
    if used != body.len() {
        let why = format!("{} bytes behind its end", body.len() - used);
        return Err(WireError::Content { what: T::NAME, why });
    }
    Ok(message)
}

/// Appends the frame of a goodbye.
pub fn encode_goodbye(out: &mut Vec<u8>) {
    frame(GOODBYE, &[], out);
}

/// Appends a barrier: the frame that names the connections that are told, and its record.
pub fn encode_barrier(barrier: &MirrorRequest, told: Lanes, out: &mut Vec<u8>) {
    frame(BARRIER, &told.0.to_le_bytes(), out);
    encode_record_header(barrier, out);
}

/// Appends the frame that makes a connection wait for a barrier that it was not told.
pub fn encode_after(epoch: Epoch, out: &mut Vec<u8>) {
    frame(AFTER, &epoch.0.to_le_bytes(), out);
}

/// Appends all of a record but a write's payload; send it followed by [`payload`] as the second part.
pub fn encode_record_header(record: &MirrorRequest, out: &mut Vec<u8>) {
    let encoded = record::encode_header(record);
    out.extend_from_slice(&encoded.header);
    out.extend_from_slice(&encoded.body);
}

/// The payload part of a record: empty for all but writes.
#[must_use]
pub fn payload(record: &MirrorRequest) -> &[u8] {
    match &record.body {
        Body::Write { payload, .. } => payload,
        _ => &[],
    }
}

/// Reads the next message. The header's checksum and all bounds are checked before anything is allocated, the
/// payload's checksum after it has come.
///
/// # Errors
/// See [`WireError`]; at the end of the stream `Io` with `UnexpectedEof`.
pub fn read_message(from: &mut impl Read) -> Result<Message, WireError> {
    let mut start = [0; 8];
    from.read_exact(&mut start)?;
    if start != *CONTROL_MAGIC {
        let record = read_record(start, from)?;
        return match record.body {
            Body::Barrier { .. } => Err(WireError::Frame {
                expected: "a barrier's frame",
                found: format!("the record of barrier {} without it", record.epoch),
            }),
            _ => Ok(Message::Request(Arc::new(record))),
        };
    }
    let (kind, body) = read_frame(from, "message")?;
    match (kind, <[u8; 8]>::try_from(&body[..])) {
        (GOODBYE, _) if body.is_empty() => Ok(Message::Goodbye),
        (AFTER, Ok(epoch)) => Ok(Message::After(Epoch(u64::from_le_bytes(epoch)))),
        (BARRIER, Ok(told)) => {
            from.read_exact(&mut start)?;
            let record = read_record(start, from)?;
            match record.body {
                Body::Barrier { .. } => {
                    Ok(Message::Barrier(Arc::new(record), Lanes(u64::from_le_bytes(told))))
                }
                _ => Err(WireError::Frame {
                    expected: "the record of a barrier",
                    found: format!("record {}, which is none", record.sequence),
                }),
            }
        }
        _ => Err(WireError::Frame {
            expected: "record, barrier or goodbye",
            found: format!("control frame of kind {kind}, {} bytes", body.len()),
        }),
    }
}

/// Reads a record whose first bytes were read already.
fn read_record(start: [u8; 8], from: &mut impl Read) -> Result<MirrorRequest, WireError> {
    if !start.starts_with(&record::MAGIC) {
        // Before the rest is waited for.
        return Err(CodecError::Magic.into());
    }
    let mut header = [0; record::HEADER_BYTES];
    header[..8].copy_from_slice(&start);
    from.read_exact(&mut header[8..])?;
    let header = record::decode_header(&header)?;
    const { assert!(record::BODY_BYTES_MAX <= 1 << 20) };
    let mut body = vec![0; header.body_bytes()];
    from.read_exact(&mut body)?;
    Ok(header.finish(Bytes::from(body))?)
}

mod kind {
    pub(super) const STORED: u8 = 1;
    pub(super) const EQUAL: u8 = 2;
    pub(super) const DIFFERENT: u8 = 3;
    pub(super) const FAILED: u8 = 4;
    pub(super) const DURABLE: u8 = 5;
}

/// Appends a response: many can go into one buffer and one send.
pub fn encode_response(response: &Response, out: &mut Vec<u8>) {
    let (kind, number, errno, message) = match response {
        Response::Request(sequence, Outcome::Stored) => (kind::STORED, sequence.0, 0, ""),
        Response::Request(sequence, Outcome::Equal) => (kind::EQUAL, sequence.0, 0, ""),
        Response::Request(sequence, Outcome::Different) => (kind::DIFFERENT, sequence.0, 0, ""),
        Response::Request(sequence, Outcome::Failed { errno, message }) => {
            let end =
                (0..=message.len().min(FAILURE_BYTES_MAX)).rev().find(|&end| message.is_char_boundary(end));
            (kind::FAILED, sequence.0, *errno, &message[..end.unwrap_or(0)])
        }
        Response::Durable(epoch) => (kind::DURABLE, epoch.0, 0, ""),
    };
    let mut bytes = [0; RESPONSE_BYTES];
    bytes[0] = kind;
    bytes[2..4].copy_from_slice(&(message.len() as u16).to_le_bytes());
    bytes[4..8].copy_from_slice(&errno.to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    let crc = crc32c_append(crc32c(&bytes[..16]), message.as_bytes());
    bytes[16..].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&bytes);
    out.extend_from_slice(message.as_bytes());
}

/// Whether a whole response is at the front of `bytes`, so that reading it blocks on nothing.
pub fn holds_response(bytes: &[u8]) -> bool {
    bytes.len() >= RESPONSE_BYTES && bytes.len() - RESPONSE_BYTES >= usize::from(u16_at(bytes, 2))
}

/// Reads one response.
///
/// # Errors
/// See [`WireError`]; at the end of the stream `Io` with `UnexpectedEof`.
pub fn read_response(from: &mut impl Read) -> Result<Response, WireError> {
    const WHAT: &str = "response";
    let mut bytes = [0; RESPONSE_BYTES];
    from.read_exact(&mut bytes)?;
    let length = u16_at(&bytes, 2);
    bounded("message of a response", u64::from(length), FAILURE_BYTES_MAX as u64)?;
    let mut text = vec![0; usize::from(length)];
    from.read_exact(&mut text)?;
    let (sent, found) = (u32_at(&bytes, 16), crc32c_append(crc32c(&bytes[..16]), &text));
    if sent != found {
        return Err(WireError::Checksum { what: WHAT, expected: sent, found });
    }
    let number = u64_at(&bytes, 8);
    // Same bits, read as signed.
    let errno = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let outcome = match (bytes[0], bytes[1], length, errno) {
        (kind::FAILED, 0, ..) => {
            Outcome::Failed { errno, message: String::from_utf8_lossy(&text).into_owned() }
        }
        (kind::STORED, 0, 0, 0) => Outcome::Stored,
        (kind::EQUAL, 0, 0, 0) => Outcome::Equal,
        (kind::DIFFERENT, 0, 0, 0) => Outcome::Different,
        (kind::DURABLE, 0, 0, 0) => return Ok(Response::Durable(Epoch(number))),
        (kind, ..) => {
            return Err(WireError::Content {
                what: WHAT,
                why: format!("fields of kind {kind} make no sense"),
            });
        }
    };
    Ok(Response::Request(Sequence(number), outcome))
}
