//! Bytes of a record of the log. The one place that knows them: on the wire and in the queue they are the same.

use super::codec::{WireError, u16_at, u32_at, u64_at};
use bytes::Bytes;
use crc32c::crc32c;
use mirrorfs_journal::{Body, Epoch, LunId, MirrorRequest, Origin, REGION_BYTES, Sequence};

/// Bytes of a record before its body.
pub(super) const HEADER_BYTES: usize = 80;
const MAGIC: &[u8; 4] = b"MREC";
const WHAT: &str = "record";
/// LUNs that a barrier can name.
const PREVIOUS_MAX: usize = 4096;
const PREVIOUS_BYTES: usize = 10;

mod kind {
    pub(super) const WRITE: u8 = 1;
    pub(super) const DISCARD: u8 = 2;
    pub(super) const CHECK: u8 = 3;
    pub(super) const BARRIER: u8 = 4;
    pub(super) const RESYNC_BEGIN: u8 = 5;
    pub(super) const RESYNC_END: u8 = 6;
}

/// Appends the header, and a barrier's list; not the payload of a write.
pub(super) fn encode_header(record: &MirrorRequest, out: &mut Vec<u8>) {
    let mut header = [0; HEADER_BYTES];
    let mut list = Vec::new();
    let (kind, offset, length, crc, hash, body) = match &record.body {
        Body::Write { offset, payload, crc } => {
            (kind::WRITE, *offset, payload.len() as u64, *crc, [0; 16], payload.len())
        }
        Body::Discard { offset, length } => (kind::DISCARD, *offset, *length, 0, [0; 16], 0),
        Body::Check { offset, length, hash } => (kind::CHECK, *offset, *length, 0, *hash, 0),
        Body::Barrier { previous } => {
            for (lun, epoch) in previous {
                list.extend_from_slice(&lun.0.to_le_bytes());
                list.extend_from_slice(&epoch.0.to_le_bytes());
            }
            (kind::BARRIER, 0, 0, crc32c(&list), [0; 16], list.len())
        }
        Body::ResyncBegin { whole } => (kind::RESYNC_BEGIN, 0, u64::from(*whole), 0, [0; 16], 0),
        Body::ResyncEnd => (kind::RESYNC_END, 0, 0, 0, [0; 16], 0),
    };
    let (origin, inode) = match record.origin {
        Origin::File(inode) => (0, inode),
        Origin::Journal => (1, 0),
        Origin::Metadata => (2, 0),
        Origin::Resync => (3, 0),
    };
    header[..4].copy_from_slice(MAGIC);
    header[4] = kind;
    header[5] = origin;
    header[6..8].copy_from_slice(&record.lun.0.to_le_bytes());
    header[8..16].copy_from_slice(&record.sequence.0.to_le_bytes());
    header[16..24].copy_from_slice(&record.epoch.0.to_le_bytes());
    header[24..32].copy_from_slice(&record.accepted_ms.to_le_bytes());
    header[32..36].copy_from_slice(&inode.to_le_bytes());
    header[36..40].copy_from_slice(&crc.to_le_bytes());
    header[40..48].copy_from_slice(&offset.to_le_bytes());
    header[48..56].copy_from_slice(&length.to_le_bytes());
    header[56..72].copy_from_slice(&hash);
    header[72..76].copy_from_slice(&(body as u32).to_le_bytes());
    let crc = crc32c(&header[..76]);
    header[76..].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(&list);
}

/// Whether a record starts here.
pub(super) fn check_magic(start: &[u8]) -> Result<(), WireError> {
    if start.starts_with(MAGIC) {
        return Ok(());
    }
    Err(WireError::Frame { expected: WHAT, found: format!("bytes {start:02x?}") })
}

/// Checks the header; the bytes of the body that follow it.
pub(super) fn body_bytes(header: &[u8; HEADER_BYTES]) -> Result<usize, WireError> {
    let (sent, found) = (u32_at(header, 76), crc32c(&header[..76]));
    if sent != found {
        return Err(WireError::Checksum { what: "record header", expected: sent, found });
    }
    let length = u32_at(header, 72);
    let max = match header[4] {
        kind::WRITE => REGION_BYTES,
        kind::BARRIER => (PREVIOUS_MAX * PREVIOUS_BYTES) as u64,
        _ => 0,
    };
    if u64::from(length) > max {
        return Err(WireError::Length { what: "body of a record", length: u64::from(length), max });
    }
    Ok(length as usize)
}

/// The record of a header that [`body_bytes`] has checked and of its body.
pub(super) fn decode(header: &[u8; HEADER_BYTES], body: Vec<u8>) -> Result<MirrorRequest, WireError> {
    let content = |why: &str| WireError::Content { what: WHAT, why: why.into() };
    let (offset, length, crc) = (u64_at(header, 40), u64_at(header, 48), u32_at(header, 36));
    if !body.is_empty() {
        let found = crc32c(&body);
        if found != crc {
            return Err(WireError::Checksum { what: "record body", expected: crc, found });
        }
    }
    let in_one_region = || {
        let end = offset.checked_add(length).ok_or_else(|| content("its range overflows"))?;
        if length == 0 || offset / REGION_BYTES != (end - 1) / REGION_BYTES {
            return Err(content("its range is not inside one region"));
        }
        Ok(())
    };
    let body = match header[4] {
        kind::WRITE => {
            in_one_region()?;
            if length != body.len() as u64 {
                return Err(content("its range is not as long as its payload"));
            }
            Body::Write { offset, payload: Bytes::from(body), crc }
        }
        kind::DISCARD => {
            in_one_region()?;
            Body::Discard { offset, length }
        }
        kind::CHECK => {
            in_one_region()?;
            let mut hash = [0; 16];
            hash.copy_from_slice(&header[56..72]);
            Body::Check { offset, length, hash }
        }
        kind::BARRIER if body.len().is_multiple_of(PREVIOUS_BYTES) => Body::Barrier {
            previous: body
                .chunks_exact(PREVIOUS_BYTES)
                .map(|entry| (LunId(u16_at(entry, 0)), Epoch(u64_at(entry, 2))))
                .collect(),
        },
        kind::RESYNC_BEGIN if length < 2 => Body::ResyncBegin { whole: length == 1 },
        kind::RESYNC_END => Body::ResyncEnd,
        other => return Err(content(&format!("kind {other} makes no sense"))),
    };
    let origin = match (header[5], u32_at(header, 32)) {
        (0, inode) => Origin::File(inode),
        (1, 0) => Origin::Journal,
        (2, 0) => Origin::Metadata,
        (3, 0) => Origin::Resync,
        _ => return Err(content("its origin makes no sense")),
    };
    Ok(MirrorRequest {
        sequence: Sequence(u64_at(header, 8)),
        epoch: Epoch(u64_at(header, 16)),
        lun: LunId(u16_at(header, 6)),
        origin,
        accepted_ms: u64_at(header, 24),
        body,
    })
}
