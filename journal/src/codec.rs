//! A mirror request as bytes: the same on the wire and in the queue.
//!
//! A record is [`HEADER_BYTES`] of header, then a body: for a write its payload as it is (so that header and payload
//! can be sent with one `writev`), for a check its hash, for a barrier its list of previous epochs, for the others
//! nothing. See `FORMAT.md` for the layout; all numbers are little endian.
//!
//! ```
//! # use mirrorfs_journal::{codec, *};
//! # let request = MirrorRequest { sequence: Sequence(1), epoch: Epoch(1), lun: LunId(0), origin: Origin::Journal,
//! #     accepted_ms: 0, body: Body::ResyncEnd };
//! let encoded = codec::encode_header(&request);
//! // send encoded.header, encoded.body, then encoded.payload; and at the other end:
//! let header = codec::decode_header(&encoded.header).unwrap();
//! let body = bytes::Bytes::copy_from_slice(&encoded.body); // header.body_bytes() long
//! assert_eq!(header.finish(body).unwrap(), request);
//! ```

use crate::ids::{Epoch, LunId, REGION_BYTES, Sequence};
use crate::request::{Body, MirrorRequest, Origin};
use bytes::Bytes;

/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 80;
/// First bytes of each record.
pub const MAGIC: [u8; 4] = *b"MFRQ";
/// Version of the record's layout.
pub const VERSION: u8 = 1;
/// Entries in a barrier's list at most: LUNs of one link.
pub const PREVIOUS_MAX: usize = 160;
/// Bytes of one entry of a barrier's list.
pub const PREVIOUS_BYTES: usize = 16;
/// Bytes of a body at most; what a reader may have to allocate.
pub const BODY_BYTES_MAX: usize = REGION_BYTES as usize;

const KIND_WRITE: u8 = 1;
const KIND_DISCARD: u8 = 2;
const KIND_CHECK: u8 = 3;
const KIND_BARRIER: u8 = 4;
const KIND_RESYNC_BEGIN: u8 = 5;
const KIND_RESYNC_END: u8 = 6;

const FLAG_WHOLE: u16 = 1;

const ORIGIN_FILE: u16 = 0;
const ORIGIN_JOURNAL: u16 = 1;
const ORIGIN_METADATA: u16 = 2;
const ORIGIN_RESYNC: u16 = 3;

const _: () = assert!(PREVIOUS_MAX * PREVIOUS_BYTES <= BODY_BYTES_MAX);

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The first bytes are not those of a record.
    #[error("no record begins here")]
    Magic,
    /// Written by a newer mirrorfs.
    #[error("record version {0}, this mirrorfs knows {VERSION}")]
    Version(u8),
    /// The header's checksum does not hold.
    #[error("record header damaged")]
    HeaderChecksum,
    /// A field has a value that it can't have.
    #[error("record field '{0}' out of bounds")]
    Field(&'static str),
    /// The body's checksum does not hold.
    #[error("body of record {sequence} damaged: checksum {found:08x} instead of {expected:08x}")]
    BodyChecksum {
        /// Which record.
        sequence: Sequence,
        /// In the header.
        expected: u32,
        /// Of the bytes.
        found: u32,
    },
}

/// A record ready to be sent or written: three slices in this order.
#[derive(Debug)]
pub struct Encoded<'a> {
    /// The fixed part.
    pub header: [u8; HEADER_BYTES],
    /// Body of a check or a barrier; empty otherwise.
    pub body: Vec<u8>,
    /// Payload of a write; empty otherwise.
    pub payload: &'a [u8],
}

impl Encoded<'_> {
    /// Bytes of the whole record.
    #[must_use]
    pub fn record_bytes(&self) -> usize {
        HEADER_BYTES + self.body.len() + self.payload.len()
    }
}

/// Encodes `request`; its payload is borrowed, not copied, and its checksum taken as it is. Allocates only for checks and
/// barriers.
///
/// # Panics
/// If a barrier names more than [`PREVIOUS_MAX`] LUNs; the log refuses that many LUNs when it is opened.
#[must_use]
pub fn encode_header(request: &MirrorRequest) -> Encoded<'_> {
    let (mut kind_flags, mut offset, mut length, mut crc) = ((KIND_RESYNC_END, 0), 0, 0, 0);
    let mut body = Vec::new();
    let mut payload: &[u8] = &[];
    match &request.body {
        Body::Write { offset: at, payload: bytes, crc: sum } => {
            kind_flags.0 = KIND_WRITE;
            (offset, length, crc, payload) = (*at, bytes.len() as u64, *sum, bytes);
        }
        Body::Discard { offset: at, length: bytes } => {
            kind_flags.0 = KIND_DISCARD;
            (offset, length) = (*at, *bytes);
        }
        Body::Check { offset: at, length: bytes, hash } => {
            kind_flags.0 = KIND_CHECK;
            (offset, length) = (*at, *bytes);
            body.extend_from_slice(hash);
            crc = crc32c::crc32c(&body);
        }
        Body::Barrier { previous } => {
            assert!(previous.len() <= PREVIOUS_MAX, "a barrier names more LUNs than a link can have");
            kind_flags.0 = KIND_BARRIER;
            for (lun, epoch) in previous {
                body.extend_from_slice(&u64::from(lun.0).to_le_bytes());
                body.extend_from_slice(&epoch.0.to_le_bytes());
            }
            crc = crc32c::crc32c(&body);
        }
        Body::ResyncBegin { whole } => kind_flags = (KIND_RESYNC_BEGIN, u16::from(*whole) * FLAG_WHOLE),
        Body::ResyncEnd => {}
    }
    let (origin, inode) = match request.origin {
        Origin::File(inode) => (ORIGIN_FILE, inode),
        Origin::Journal => (ORIGIN_JOURNAL, 0),
        Origin::Metadata => (ORIGIN_METADATA, 0),
        Origin::Resync => (ORIGIN_RESYNC, 0),
    };
    let body_bytes = (body.len() + payload.len()) as u32;
    let mut header = [0; HEADER_BYTES];
    header[0..4].copy_from_slice(&MAGIC);
    header[4] = VERSION;
    header[5] = kind_flags.0;
    header[6..8].copy_from_slice(&kind_flags.1.to_le_bytes());
    header[8..16].copy_from_slice(&request.sequence.0.to_le_bytes());
    header[16..24].copy_from_slice(&request.epoch.0.to_le_bytes());
    header[24..32].copy_from_slice(&request.accepted_ms.to_le_bytes());
    header[32..40].copy_from_slice(&offset.to_le_bytes());
    header[40..48].copy_from_slice(&length.to_le_bytes());
    header[48..50].copy_from_slice(&request.lun.0.to_le_bytes());
    header[50..52].copy_from_slice(&origin.to_le_bytes());
    header[52..56].copy_from_slice(&inode.to_le_bytes());
    header[56..60].copy_from_slice(&body_bytes.to_le_bytes());
    header[60..64].copy_from_slice(&crc.to_le_bytes());
    let header_crc = crc32c::crc32c(&header[..HEADER_BYTES - 4]);
    header[HEADER_BYTES - 4..].copy_from_slice(&header_crc.to_le_bytes());
    Encoded { header, body, payload }
}

/// A header that has been checked; its body is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Place in the log.
    pub sequence: Sequence,
    /// Epoch that the record belongs to.
    pub epoch: Epoch,
    /// The LUN.
    pub lun: LunId,
    /// What caused it.
    pub origin: Origin,
    /// When it was accepted: milliseconds since 1970.
    pub accepted_ms: u64,
    /// First byte of the range in the image, 0 where there is none.
    pub offset: u64,
    /// Bytes of the range, 0 where there is none.
    pub length: u64,
    /// CRC32C of the body.
    pub body_crc: u32,
    kind: u8,
    flags: u16,
    body_bytes: u32,
}

/// Checks a header and bounds all that it says; nothing of it need be doubted afterwards but the body itself.
///
/// # Errors
/// `Magic`, `Version`, `HeaderChecksum` and `Field`, looked for in this order.
pub fn decode_header(bytes: &[u8; HEADER_BYTES]) -> Result<Header, CodecError> {
    if bytes[0..4] != MAGIC {
        return Err(CodecError::Magic);
    }
    if bytes[4] != VERSION {
        return Err(CodecError::Version(bytes[4]));
    }
    if crc32c::crc32c(&bytes[..HEADER_BYTES - 4]).to_le_bytes() != bytes[HEADER_BYTES - 4..] {
        return Err(CodecError::HeaderChecksum);
    }
    let long = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let middle = |at: usize| u32::from(short(at)) | u32::from(short(at + 2)) << 16;
    let inode = middle(52);
    let header = Header {
        sequence: Sequence(long(8)),
        epoch: Epoch(long(16)),
        accepted_ms: long(24),
        offset: long(32),
        length: long(40),
        lun: LunId(short(48)),
        origin: match short(50) {
            ORIGIN_FILE => Origin::File(inode),
            ORIGIN_JOURNAL => Origin::Journal,
            ORIGIN_METADATA => Origin::Metadata,
            ORIGIN_RESYNC => Origin::Resync,
            _ => return Err(CodecError::Field("origin")),
        },
        kind: bytes[5],
        flags: short(6),
        body_bytes: middle(56),
        body_crc: middle(60),
    };
    if inode != 0 && !matches!(header.origin, Origin::File(_)) {
        return Err(CodecError::Field("inode"));
    }
    if bytes[64..HEADER_BYTES - 4].iter().any(|byte| *byte != 0) {
        return Err(CodecError::Field("reserved"));
    }
    if header.flags != 0 && (header.kind != KIND_RESYNC_BEGIN || header.flags != FLAG_WHOLE) {
        return Err(CodecError::Field("flags"));
    }
    let body_bytes = u64::from(header.body_bytes);
    let fits = match header.kind {
        KIND_WRITE => body_bytes == header.length,
        KIND_CHECK => body_bytes == 16,
        KIND_BARRIER => {
            body_bytes.is_multiple_of(PREVIOUS_BYTES as u64)
                && body_bytes <= (PREVIOUS_MAX * PREVIOUS_BYTES) as u64
        }
        KIND_DISCARD | KIND_RESYNC_BEGIN | KIND_RESYNC_END => body_bytes == 0 && header.body_crc == 0,
        _ => return Err(CodecError::Field("kind")),
    };
    if !fits {
        return Err(CodecError::Field("body length"));
    }
    let ranged = matches!(header.kind, KIND_WRITE | KIND_DISCARD | KIND_CHECK);
    if ranged {
        let last = header.offset.checked_add(header.length).ok_or(CodecError::Field("offset"))?;
        let aligned = header.offset.is_multiple_of(512) && header.length.is_multiple_of(512);
        if header.length == 0 || !aligned || header.offset / REGION_BYTES != (last - 1) / REGION_BYTES {
            return Err(CodecError::Field("range"));
        }
    } else if header.offset != 0 || header.length != 0 {
        return Err(CodecError::Field("range"));
    }
    Ok(header)
}

/// Bytes of body that follow a header: at most [`BODY_BYTES_MAX`].
#[must_use]
pub fn body_bytes(header: &Header) -> usize {
    header.body_bytes as usize
}

impl Header {
    /// Bytes of body that follow: at most [`BODY_BYTES_MAX`].
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.body_bytes as usize
    }
    /// Whether the record closes an epoch.
    #[must_use]
    pub fn is_barrier(&self) -> bool {
        self.kind == KIND_BARRIER
    }
    /// Whether the record has a range in the image.
    #[must_use]
    pub fn has_range(&self) -> bool {
        self.length != 0
    }
    /// Makes the request of a header and its body, whose checksum is checked. The payload shares `body`.
    ///
    /// # Errors
    /// `BodyChecksum`; `Field` if `body` is not [`Self::body_bytes`] long or a barrier's list is out of bounds.
    pub fn finish(&self, body: Bytes) -> Result<MirrorRequest, CodecError> {
        finish(self, body)
    }
    /// As [`Self::finish`] for a write, with the beginning of `instead` in place of its payload.
    pub(crate) fn with_payload_unchecked(&self, instead: &'static [u8]) -> Option<MirrorRequest> {
        let payload = Bytes::from_static(instead.get(..self.body_bytes())?);
        (self.kind == KIND_WRITE)
            .then(|| self.request(Body::Write { offset: self.offset, payload, crc: self.body_crc }))
    }
    fn request(&self, body: Body) -> MirrorRequest {
        MirrorRequest {
            sequence: self.sequence,
            epoch: self.epoch,
            lun: self.lun,
            origin: self.origin,
            accepted_ms: self.accepted_ms,
            body,
        }
    }
}

/// See [`Header::finish`].
///
/// # Errors
/// As there.
pub fn finish(header: &Header, body: Bytes) -> Result<MirrorRequest, CodecError> {
    if body.len() != header.body_bytes() {
        return Err(CodecError::Field("body length"));
    }
    let found = crc32c::crc32c(&body);
    if found != header.body_crc {
        return Err(CodecError::BodyChecksum { sequence: header.sequence, expected: header.body_crc, found });
    }
    let (offset, length) = (header.offset, header.length);
    Ok(header.request(match header.kind {
        KIND_WRITE => Body::Write { offset, payload: body, crc: header.body_crc },
        KIND_DISCARD => Body::Discard { offset, length },
        KIND_CHECK => {
            let hash = <[u8; 16]>::try_from(&body[..]).map_err(|_| CodecError::Field("body length"))?;
            Body::Check { offset, length, hash }
        }
        KIND_BARRIER => {
            let mut previous = Vec::with_capacity(body.len() / PREVIOUS_BYTES);
            for entry in body.chunks_exact(PREVIOUS_BYTES) {
                if entry[2..8].iter().any(|byte| *byte != 0) {
                    return Err(CodecError::Field("lun"));
                }
                let mut epoch = [0; 8];
                epoch.copy_from_slice(&entry[8..]);
                previous.push((
                    LunId(u16::from_le_bytes([entry[0], entry[1]])),
                    Epoch(u64::from_le_bytes(epoch)),
                ));
            }
            Body::Barrier { previous }
        }
        KIND_RESYNC_BEGIN => Body::ResyncBegin { whole: header.flags & FLAG_WHOLE != 0 },
        _ => Body::ResyncEnd,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn samples() -> Vec<MirrorRequest> {
        let payload = Bytes::from(vec![7; 1024]);
        let crc = crc32c::crc32c(&payload);
        let bodies = vec![
            Body::Write { offset: 4096, payload, crc },
            Body::Discard { offset: REGION_BYTES, length: REGION_BYTES },
            Body::Check { offset: 512, length: 512, hash: [9; 16] },
            Body::Barrier { previous: vec![(LunId(0), Epoch(3)), (LunId(2), Epoch(1 << 41))] },
            Body::Barrier { previous: vec![] },
            Body::ResyncBegin { whole: true },
            Body::ResyncBegin { whole: false },
            Body::ResyncEnd,
        ];
        let origins = [Origin::File(4711), Origin::Journal, Origin::Metadata, Origin::Resync];
        let request = |(at, body): (usize, Body)| MirrorRequest {
            sequence: Sequence(0x0102_0304_0506_0708 + at as u64),
            epoch: Epoch(77),
            lun: LunId(at as u16),
            origin: origins[at % 4],
            accepted_ms: 1_700_000_000_000,
            body,
        };
        bodies.into_iter().enumerate().map(request).collect()
    }

    fn bytes_of(encoded: &Encoded<'_>) -> Bytes {
        Bytes::from([&encoded.body[..], encoded.payload].concat())
    }

    #[test]
    fn round_trip() {
        for request in samples() {
            let encoded = encode_header(&request);
            let header = decode_header(&encoded.header).unwrap();
            assert_eq!(header.body_bytes() + HEADER_BYTES, encoded.record_bytes());
            assert_eq!(finish(&header, bytes_of(&encoded)).unwrap(), request);
        }
    }

    #[test]
    fn each_flipped_bit_is_found() {
        for request in samples() {
            let encoded = encode_header(&request);
            for bit in 0..HEADER_BYTES * 8 {
                let mut header = encoded.header;
                header[bit / 8] ^= 1 << (bit % 8);
                assert!(decode_header(&header).is_err(), "bit {bit}");
            }
            let header = decode_header(&encoded.header).unwrap();
            let mut body = bytes_of(&encoded).to_vec();
            if let Some(byte) = body.last_mut() {
                *byte ^= 1;
                assert!(matches!(finish(&header, body.into()), Err(CodecError::BodyChecksum { .. })));
            }
        }
    }

    #[test]
    fn lengths_and_ranges_are_bounded_although_the_checksum_holds() {
        let good = encode_header(&samples()[0]).header;
        let cases: [(usize, &[u8]); 6] = [
            (56, &[0xff; 4]),
            (40, &[0xff; 8]),
            (32, &[0xff; 8]),
            (40, &(2 * REGION_BYTES).to_le_bytes()),
            (64, &[1]),
            (5, &[9]),
        ];
        for (at, value) in cases {
            let mut header = good;
            header[at..at + value.len()].copy_from_slice(value);
            let crc = crc32c::crc32c(&header[..HEADER_BYTES - 4]);
            header[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
            assert!(matches!(decode_header(&header), Err(CodecError::Field(_))), "at {at}");
        }
    }

    #[test]
    fn golden_bytes() {
        let request = MirrorRequest {
            sequence: Sequence(0x0102_0304_0506_0708),
            epoch: Epoch(0x1112_1314_1516_1718),
            lun: LunId(0x2122),
            origin: Origin::File(0x3132_3334),
            accepted_ms: 0x4142_4344_4546_4748,
            body: Body::Discard { offset: 0x1000, length: 0x200 },
        };
        let text: String = encode_header(&request).header.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            text,
            "4d46525101020000\
             0807060504030201\
             1817161514131211\
             4847464544434241\
             0010000000000000\
             0002000000000000\
             2221000034333231\
             0000000000000000\
             0000000000000000\
             0000000039b956c6"
        );
    }
}
