//! The mirror storage request, as log, queue, wire and mirror share it.

use crate::ids::{Epoch, LunId, Sequence};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Who caused a request, so that the queue can be shown in file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Origin {
    /// Contents of the file with this ext4 inode number.
    File(u32),
    /// The jbd2 journal itself.
    Journal,
    /// File system metadata, at its home location.
    Metadata,
    /// The resync, not a program.
    Resync,
}

/// What a log record asks the mirror to do. Ranges are bytes of the image, multiples of 512, inside the file
/// system (the label behind it never passes through the log), and inside one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Store `payload` at `offset`. `crc` is CRC32C of the payload, made once at the primary and checked at each
    /// later use; the buffer is shared, never copied, by image write, log, socket and checksum.
    Write {
        /// First byte in the image.
        offset: u64,
        /// The bytes, at most [`crate::REGION_BYTES`] long.
        payload: Bytes,
        /// CRC32C of `payload`.
        crc: u32,
    },
    /// The range reads as zeros afterwards; the host space below it is given back.
    Discard {
        /// First byte in the image.
        offset: u64,
        /// Bytes, at least 512.
        length: u64,
    },
    /// Compare the range with this 128-bit hash (BLAKE3, truncated); answered `equal` or `different`.
    Check {
        /// First byte in the image.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Hash of the primary's content, taken under the region lock.
        hash: [u8; 16],
    },
    /// Closes the epoch that the record carries. Sent on every connection.
    Barrier {
        /// For each LUN with requests in this epoch: that LUN's previous epoch with requests.
        previous: Vec<(LunId, Epoch)>,
    },
    /// From here the LUN is being resynced: the mirror writes `resyncing` to its label, synced, before anything
    /// after this record is applied. Its epoch holds nothing else.
    ResyncBegin {
        /// Whether the whole image follows (first sync) or marked regions only.
        whole: bool,
    },
    /// The resync of the LUN is complete once this record's epoch is durable: the mirror writes `in-sync`.
    ResyncEnd,
}

/// One record of the mirror log. Order is `sequence` alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorRequest {
    /// Place in the log.
    pub sequence: Sequence,
    /// Epoch that the record belongs to (for a barrier: the one it closes).
    pub epoch: Epoch,
    /// The LUN; for a barrier, that of the flush that caused it (0 for the log's own barriers).
    pub lun: LunId,
    /// What caused it.
    pub origin: Origin,
    /// When it was accepted: milliseconds since 1970 (for people; nothing is decided by it).
    pub accepted_ms: u64,
    /// What is to be done.
    pub body: Body,
}

impl MirrorRequest {
    /// Byte range in the image, where the record has one.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64)> {
        match &self.body {
            Body::Write { offset, payload, .. } => Some((*offset, payload.len() as u64)),
            Body::Discard { offset, length } | Body::Check { offset, length, .. } => Some((*offset, *length)),
            _ => None,
        }
    }
    /// Payload bytes that the record carries.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        match &self.body {
            Body::Write { payload, .. } => payload.len(),
            _ => 0,
        }
    }
}
