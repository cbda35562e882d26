//! Images in memory, page by page: a copy costs little, and two that are much alike share what is the same.

use crate::image::Backing;
use crate::image::recorder::Event;
use parking_lot::RwLock;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub(super) const PAGE_BYTES: u64 = 4096;
type Page = [u8; PAGE_BYTES as usize];

/// An image; `None` is a page of zeros.
#[derive(Clone)]
pub(super) struct Pages(Vec<Option<Arc<Page>>>);

impl Pages {
    /// From a file's content.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        assert!(bytes.len().is_multiple_of(PAGE_BYTES as usize));
        let mut pages = Self(vec![None; bytes.len() / PAGE_BYTES as usize]);
        for (index, chunk) in bytes.chunks(PAGE_BYTES as usize).enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                pages.write(index as u64 * PAGE_BYTES, chunk);
            }
        }
        pages
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.0.len() as u64 * PAGE_BYTES
    }

    /// A page's content, `None` where it was never written or discarded.
    pub(super) fn page(&self, index: usize) -> Option<&Page> {
        self.0[index].as_deref()
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        for (index, in_page, in_buffer) in parts(offset, into.len() as u64) {
            match &self.0[index] {
                Some(page) => into[in_buffer].copy_from_slice(&page[in_page]),
                None => into[in_buffer].fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (index, in_page, in_buffer) in parts(offset, bytes.len() as u64) {
            let page = self.0[index].get_or_insert_with(|| Arc::new([0; PAGE_BYTES as usize]));
            Arc::make_mut(page)[in_page].copy_from_slice(&bytes[in_buffer]);
        }
    }

    pub(super) fn discard(&mut self, offset: u64, length: u64) {
        for (index, in_page, _) in parts(offset, length) {
            if in_page.len() == PAGE_BYTES as usize {
                self.0[index] = None;
            } else if let Some(page) = &mut self.0[index] {
                Arc::make_mut(page)[in_page].fill(0);
            }
        }
    }

    /// Carries out the part of a recorded event that lies in `range`.
    pub(super) fn apply(&mut self, event: &Event, range: Range<u64>) {
        match event {
            Event::Write { offset, bytes } => {
                let part = (range.start - offset) as usize..(range.end - offset) as usize;
                self.write(range.start, &bytes[part]);
            }
            Event::Discard { .. } => self.discard(range.start, range.end - range.start),
            Event::Sync | Event::FailedSync => {}
        }
    }

    /// 32 bits of the image, little-endian as ext4 keeps them.
    pub(super) fn le32(&self, offset: u64) -> u32 {
        let mut raw = [0; 4];
        self.read(offset, &mut raw);
        u32::from_le_bytes(raw)
    }
}

/// The pages of a range: number, part of the page, part of the range.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < length).then(|| {
            let at = offset + done;
            let part = (PAGE_BYTES - at % PAGE_BYTES).min(length - done);
            let in_page = (at % PAGE_BYTES) as usize..(at % PAGE_BYTES + part) as usize;
            let in_buffer = done as usize..(done + part) as usize;
            done += part;
            ((at / PAGE_BYTES) as usize, in_page, in_buffer)
        })
    })
}

/// An image to work on. Syncs take their time, so that others write meanwhile.
pub(super) struct PagedImage {
    pages: RwLock<Pages>,
    size_bytes: u64,
    sync_time: Duration,
}

impl PagedImage {
    pub(super) fn new(pages: Pages, sync_time: Duration) -> Self {
        Self { size_bytes: pages.size_bytes(), pages: RwLock::new(pages), sync_time }
    }

    /// The image as it is now.
    pub(super) fn snapshot(&self) -> Pages {
        self.pages.read().clone()
    }

    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("range {offset}+{length}"))),
        }
    }
}

impl Backing for PagedImage {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.check(offset, into.len() as u64)?;
        self.pages.read().read(offset, into);
        Ok(())
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.pages.write().write(offset, bytes);
        Ok(())
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(offset, length)?;
        self.pages.write().discard(offset, length);
        Ok(())
    }
    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(offset, length)
    }
    fn sync(&self) -> io::Result<()> {
        if !self.sync_time.is_zero() {
            std::thread::sleep(self.sync_time);
        }
        Ok(())
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok((offset < self.size_bytes).then_some(offset..self.size_bytes))
    }
}
