//! A read-only view of an image in which writes stay in memory: journal replay for a look at an image that is not ours to change.

use super::backing::Backing;
use super::error::ImageError;
use super::file::FileBacking;
use super::open::read_label;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Granularity of what is kept in memory.
const SECTOR_BYTES: u64 = 512;

/// See the module's text. Takes no lock on the image.
pub struct OverlayBacking {
    below: FileBacking,
    changed: RwLock<HashMap<u64, [u8; SECTOR_BYTES as usize]>>,
}

impl OverlayBacking {
    /// Opens the image at `path` for reading.
    ///
    /// # Errors
    /// The system's; a damaged label.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(ImageError::io("open", path))?;
        let length = file.metadata().map_err(ImageError::io("stat", path))?.len();
        let size_bytes = read_label(path)?.map_or(length, |label| label.size_bytes);
        let below = FileBacking::new(Arc::new(file), size_bytes).map_err(ImageError::io("open", path))?;
        Ok(Self { below, changed: RwLock::new(HashMap::new()) })
    }

    fn change(
        &self,
        offset: u64,
        length: u64,
        sector: impl Fn(usize) -> [u8; SECTOR_BYTES as usize],
    ) -> io::Result<()> {
        if !offset.is_multiple_of(SECTOR_BYTES)
            || !length.is_multiple_of(SECTOR_BYTES)
            || offset.saturating_add(length) > self.size_bytes()
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("range {offset}+{length}")));
        }
        let mut changed = self.changed.write();
        for index in 0..length / SECTOR_BYTES {
            changed.insert(offset / SECTOR_BYTES + index, sector(index as usize));
        }
        Ok(())
    }
}

impl Backing for OverlayBacking {
    fn size_bytes(&self) -> u64 {
        self.below.size_bytes()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.below.read_at(offset, into)?;
        let changed = self.changed.read();
        if changed.is_empty() {
            return Ok(());
        }
        let end = offset + into.len() as u64;
        for number in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            if let Some(sector) = changed.get(&number) {
                let start = number * SECTOR_BYTES;
                let (from, to) = (start.max(offset), (start + SECTOR_BYTES).min(end));
                into[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&sector[(from - start) as usize..(to - start) as usize]);
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(offset, bytes.len() as u64, |index| {
            let start = index * SECTOR_BYTES as usize;
            let mut sector = [0; SECTOR_BYTES as usize];
            sector.copy_from_slice(&bytes[start..start + SECTOR_BYTES as usize]);
            sector
        })
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(offset, length, |_| [0; SECTOR_BYTES as usize])
    }

    fn reserve(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<std::ops::Range<u64>>> {
        // What is changed may lie in a hole below; without a use for holes all of it counts as data.
        Ok((offset < self.size_bytes()).then(|| offset..self.size_bytes()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]
    use super::*;

    #[test]
    fn writes_are_seen_and_stay_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![7; 64 << 10]).unwrap();
        let overlay = OverlayBacking::open(&path).unwrap();
        overlay.write_at(1024, &[9; 1024]).unwrap();
        overlay.discard(4096, 512).unwrap();
        let mut seen = vec![0; 8192];
        overlay.read_at(0, &mut seen).unwrap();
        assert!(seen[..1024].iter().all(|byte| *byte == 7) && seen[1024..2048].iter().all(|byte| *byte == 9));
        assert!(seen[4096..4608].iter().all(|byte| *byte == 0) && seen[4608..].iter().all(|byte| *byte == 7));
        let mut part = [0; 10];
        overlay.read_at(2043, &mut part).unwrap();
        assert_eq!(part, [9, 9, 9, 9, 9, 7, 7, 7, 7, 7]);
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 7));
        assert!(overlay.write_at(100, &[0; 512]).is_err() && overlay.write_at(64 << 10, &[0; 512]).is_err());
    }
}
