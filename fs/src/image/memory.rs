//! An image in memory, for tests and dry runs.

use super::backing::Backing;
use super::file::check_range;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

const PAGE: u64 = 4096;

/// An image in memory; holes take no space. Syncs do nothing.
#[derive(Debug, Default)]
pub struct MemoryBacking {
    size_bytes: u64,
    pages: RwLock<BTreeMap<u64, Box<[u8]>>>,
}

impl MemoryBacking {
    /// An image of `size_bytes`, all holes.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self { size_bytes, pages: RwLock::default() }
    }

    /// An image with this content; pages of zeros become holes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let pages = bytes
            .chunks(PAGE as usize)
            .enumerate()
            .filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0))
            .map(|(index, chunk)| {
                let mut page = vec![0; PAGE as usize];
                page[..chunk.len()].copy_from_slice(chunk);
                (index as u64, page.into_boxed_slice())
            })
            .collect();
        Self { size_bytes: bytes.len() as u64, pages: RwLock::new(pages) }
    }

    /// A copy of it all.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size_bytes as usize];
        for (index, page) in &*self.pages.read() {
            let start = (index * PAGE) as usize;
            let length = page.len().min(bytes.len() - start);
            bytes[start..start + length].copy_from_slice(&page[..length]);
        }
        bytes
    }
}

/// The parts of a range by page: page number, range in the page, range in the buffer.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < length).then(|| {
            let at = offset + done;
            let part = (PAGE - at % PAGE).min(length - done);
            let in_page = (at % PAGE) as usize..(at % PAGE + part) as usize;
            let in_buffer = done as usize..(done + part) as usize;
            done += part;
            (at / PAGE, in_page, in_buffer)
        })
    })
}

impl Backing for MemoryBacking {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        check_range(self.size_bytes, offset, into.len() as u64)?;
        let pages = self.pages.read();
        for (page, in_page, in_buffer) in parts(offset, into.len() as u64) {
            match pages.get(&page) {
                Some(page) => into[in_buffer].copy_from_slice(&page[in_page]),
                None => into[in_buffer].fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        check_range(self.size_bytes, offset, bytes.len() as u64)?;
        let mut pages = self.pages.write();
        for (page, in_page, in_buffer) in parts(offset, bytes.len() as u64) {
            let page = pages.entry(page).or_insert_with(|| vec![0; PAGE as usize].into_boxed_slice());
            page[in_page].copy_from_slice(&bytes[in_buffer]);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        check_range(self.size_bytes, offset, length)?;
        let mut pages = self.pages.write();
        for (page, in_page, _) in parts(offset, length) {
            if let Some(content) = pages.get_mut(&page) {
                content[in_page].fill(0);
                if content.iter().all(|byte| *byte == 0) {
                    pages.remove(&page);
                }
            }
        }
        Ok(())
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        check_range(self.size_bytes, offset, length)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let pages = self.pages.read();
        let Some((first, _)) = pages.range(offset / PAGE..).next() else { return Ok(None) };
        let start = (first * PAGE).max(offset);
        let mut end = first + 1;
        while pages.contains_key(&end) {
            end += 1;
        }
        let end = (end * PAGE).min(self.size_bytes);
        Ok((start < end).then_some(start..end))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn behaves_like_a_flat_buffer() {
        let memory = MemoryBacking::new(40_000);
        let mut model = vec![0u8; 40_000];
        let mut seed = 1u64;
        for step in 0..2000u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let offset = (seed >> 33) % 39_000;
            let length = 1 + (seed >> 20) % (40_000 - offset).min(9000);
            let range = offset as usize..(offset + length) as usize;
            if step % 3 == 0 {
                memory.discard(offset, length).unwrap();
                model[range].fill(0);
            } else {
                let bytes = vec![step as u8; length as usize];
                memory.write_at(offset, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
            }
        }
        assert_eq!(memory.to_bytes(), model);
        assert_eq!(MemoryBacking::from_bytes(&model).to_bytes(), model);
        memory.discard(0, 40_000).unwrap();
        assert_eq!(memory.next_data(0).unwrap(), None);
        memory.write_at(39_999, &[1]).unwrap();
        assert_eq!(memory.next_data(5).unwrap(), Some(36_864..40_000));
        assert!(memory.write_at(40_000, &[1]).is_err());
    }
}
