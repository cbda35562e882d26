//! Bytes of the control messages, of the responses and of the stream of records.

use super::{Begin, Greeting, Message, Response, Welcome};
use mirrorfs_journal::MirrorRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read};

/// Largest body of a control frame.
pub const CONTROL_BYTES_MAX: usize = 64 * 1024;
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

/// The whole frame of a control message.
///
/// # Errors
/// It is larger than [`CONTROL_BYTES_MAX`].
pub fn encode_control<T: Control>(_message: &T) -> Result<Vec<u8>, WireError> {
    unimplemented!()
}

/// Reads one control frame, of this kind.
///
/// # Errors
/// `Version` before the body is even read; see [`WireError`].
pub fn read_control<T: Control>(_from: &mut impl Read) -> Result<T, WireError> {
    unimplemented!()
}

/// Appends the frame of a goodbye.
pub fn encode_goodbye(_out: &mut Vec<u8>) {
    unimplemented!()
}

/// Appends all of a record but its payload; send it followed by [`payload`] as the second part.
pub fn encode_record_header(_record: &MirrorRequest, _out: &mut Vec<u8>) {
    unimplemented!()
}

/// The payload part of a record: empty for all but writes.
#[must_use]
pub fn payload(_record: &MirrorRequest) -> &[u8] {
    unimplemented!()
}

/// Reads the next record or goodbye. Checks header checksum and all bounds before it allocates; the payload's checksum
/// is checked too.
///
/// # Errors
/// See [`WireError`]; at the end of the stream `Io` with `UnexpectedEof`.
pub fn read_message(_from: &mut impl Read) -> Result<Message, WireError> {
    unimplemented!()
}

/// Appends a response: many can go into one buffer and one send.
pub fn encode_response(_response: &Response, _out: &mut Vec<u8>) {
    unimplemented!()
}

/// Reads one response.
///
/// # Errors
/// See [`WireError`].
pub fn read_response(_from: &mut impl Read) -> Result<Response, WireError> {
    unimplemented!()
}
