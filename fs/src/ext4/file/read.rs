//! Reading, seeking, access times.

use super::super::Ext4;
use super::super::attr::{Context, FileKind, Timestamp};
use super::super::error::{FsError, Result, errno};
use super::super::inode::Inode;
use super::super::tx::CREDITS;
use super::super::types::{FileBlock, InodeNo};
use super::lookup::Mapping;

/// Pieces that are mapped under the core lock at a time.
const PIECES: usize = 32;
/// Extents that a seek passes before it lets others have the core lock.
const SEEK_STEPS: usize = 1000;
/// An access time older than this is renewed in any case (`relatime`).
const ATIME_SECONDS: i64 = 24 * 3600;

/// A part of a read that is in one piece in the image, or a hole.
#[derive(Clone, Copy, Default)]
struct Piece {
    start: usize,
    length: usize,
    /// Byte of the image; `None`: zeros.
    at: Option<u64>,
}

/// Refuses what has no contents that can be read or written by offset.
pub(super) fn check_regular(inode: &Inode) -> Result<()> {
    match inode.kind() {
        FileKind::Regular => Ok(()),
        FileKind::Directory => errno(libc::EISDIR),
        _ => errno(libc::EINVAL),
    }
}

impl Ext4 {
    /// Reads into `into` from byte `offset`; returns how many bytes there were before the end of the file.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for what is no regular file; `ESTALE`, `Corrupt`, I/O errors.
    pub fn read(&self, ino: InodeNo, offset: u64, into: &mut [u8]) -> Result<usize> {
        let _data = self.data_locks.of(ino).read();
        let mut done = 0;
        loop {
            let mut pieces = [Piece::default(); PIECES];
            let (total, count) = self.map_pieces(ino, offset, done, into.len(), &mut pieces)?;
            for piece in &pieces[..count] {
                let part = &mut into[piece.start..piece.start + piece.length];
                match piece.at {
                    Some(at) => self.lun.read(at, part)?,
                    None => part.fill(0),
                }
                done = piece.start + piece.length;
            }
            if done >= total || count == 0 {
                return Ok(total);
            }
        }
    }

    /// Maps the bytes from `offset + done` on. Returns how much can be read in all, and the number of pieces.
    fn map_pieces(
        &self,
        ino: InodeNo,
        offset: u64,
        done: usize,
        wanted: usize,
        pieces: &mut [Piece; PIECES],
    ) -> Result<(usize, usize)> {
        self.with_core(|core| {
            let inode = core.inode(ino)?;
            check_regular(&inode)?;
            let block_size = u64::from(core.geometry.block_size);
            let total = inode.size.saturating_sub(offset).min(wanted as u64) as usize;
            let mut count: usize = 0;
            let mut start = done;
            while start < total {
                let byte = offset + start as u64;
                let Ok(block) = u32::try_from(byte / block_size) else {
                    return Err(FsError::corrupt("inode: size beyond 2^32 blocks", Some(ino), None));
                };
                let (at, end) = match core.mapping(&inode, FileBlock(block))? {
                    Mapping::Extent(extent) if !extent.unwritten => {
                        let place = extent.start + u64::from(block - extent.first);
                        (Some(place * block_size + byte % block_size), extent.end())
                    }
                    Mapping::Extent(extent) => (None, extent.end()),
                    Mapping::Hole(end) => (None, end),
                };
                let length = (end * block_size - byte).min((total - start) as u64) as usize;
                let last = count.checked_sub(1).map(|last| &mut pieces[last]);
                match (last, at) {
                    (Some(last), None) if last.at.is_none() => last.length += length,
                    (Some(last), Some(at)) if last.at.is_some_and(|to| to + last.length as u64 == at) => {
                        last.length += length;
                    }
                    _ if count == PIECES => break,
                    _ => {
                        pieces[count] = Piece { start, length, at };
                        count += 1;
                    }
                }
                start += length;
            }
            Ok((total, count))
        })
    }

    /// `SEEK_DATA` (the next byte at or behind `offset` that is not in a hole) or `SEEK_HOLE`; reserved blocks count as holes.
    ///
    /// # Errors
    /// `ENXIO` at or behind the end of the file, or if only a hole follows.
    pub fn seek(&self, ino: InodeNo, offset: u64, data: bool) -> Result<u64> {
        let _data = self.data_locks.of(ino).read();
        let mut at = offset;
        loop {
            let found = self.with_core(|core| {
                let inode = core.inode(ino)?;
                check_regular(&inode)?;
                let block_size = u64::from(core.geometry.block_size);
                for _ in 0..SEEK_STEPS {
                    if at >= inode.size {
                        let at_end = !data && offset < inode.size;
                        return if at_end { Ok(Some(inode.size)) } else { errno(libc::ENXIO) };
                    }
                    let Ok(block) = u32::try_from(at / block_size) else {
                        return Err(FsError::corrupt("inode: size beyond 2^32 blocks", Some(ino), None));
                    };
                    let (is_data, end) = match core.mapping(&inode, FileBlock(block))? {
                        Mapping::Extent(extent) => (!extent.unwritten, extent.end()),
                        Mapping::Hole(end) => (false, end),
                    };
                    if is_data == data {
                        return Ok(Some(at));
                    }
                    at = end * block_size;
                }
                Ok(None)
            })?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    /// `relatime`: the inode was read; its access time is renewed if it is not newer than the last change, or a day old.
    /// Left as it is where that would have to wait.
    ///
    /// # Errors
    /// `ESTALE`, `Corrupt`, I/O errors.
    pub fn touch_atime(&self, context: Context, ino: InodeNo) -> Result<()> {
        if self.options.no_atime || self.options.read_only {
            return Ok(());
        }
        let is_due = |inode: &Inode, now: Timestamp| {
            inode.atime <= inode.mtime
                || inode.atime <= inode.ctime
                || now.seconds.saturating_sub(inode.atime.seconds) >= ATIME_SECONDS
        };
        let now = Timestamp::now();
        let due = self.with_core(|core| Ok(core.read_only.is_none() && is_due(&core.inode(ino)?, now)))?;
        if !due {
            return Ok(());
        }
        let context = Context { may_block: false, ..context };
        let result = self.with_tx(context, CREDITS, |tx| {
            let mut inode = tx.core.inode(ino)?;
            if is_due(&inode, now) {
                inode.atime = now;
                tx.put_inode(&inode)?;
                tx.touched(ino, false);
            }
            Ok(())
        });
        match result {
            Err(FsError::WouldBlock | FsError::Latched(_) | FsError::Errno(libc::ENOSPC)) => Ok(()),
            other => other,
        }
    }
}
