//! An image in memory that tells of every access outside of it.

use mirrorfs_fs::image::Backing;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

const PAGE: usize = 4096;

/// Pages changed lie above the bytes that it was made with, which cases share.
pub(super) struct Bounded {
    base: Arc<Vec<u8>>,
    size: u64,
    pages: Mutex<BTreeMap<u64, Box<[u8; PAGE]>>>,
    outside: Mutex<Option<String>>,
}

impl Bounded {
    /// Of `size` bytes, which may be less or more than `base` has.
    pub(super) fn new(base: Arc<Vec<u8>>, size: u64) -> Self {
        Self { base, size, pages: Mutex::default(), outside: Mutex::default() }
    }

    /// The first access outside the image, if there was one.
    pub(super) fn outside(&self) -> Option<String> {
        self.outside.lock().clone()
    }

    /// The image as it is now.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        let shared = bytes.len().min(self.base.len());
        bytes[..shared].copy_from_slice(&self.base[..shared]);
        for (number, page) in &*self.pages.lock() {
            let start = *number as usize * PAGE;
            let length = PAGE.min(bytes.len() - start);
            bytes[start..start + length].copy_from_slice(&page[..length]);
        }
        bytes
    }

    fn check(&self, what: &str, offset: u64, length: u64) -> io::Result<()> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let text = format!("{what} of {length} bytes at {offset}, the image has {}", self.size);
        self.outside.lock().get_or_insert_with(|| text.clone());
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
    }

    fn page(&self, number: u64) -> Box<[u8; PAGE]> {
        let mut page = Box::new([0; PAGE]);
        let start = number as usize * PAGE;
        if let Some(shared) = self.base.get(start..) {
            let length = shared.len().min(PAGE);
            page[..length].copy_from_slice(&shared[..length]);
        }
        page
    }

    fn change(&self, offset: u64, length: u64, mut change: impl FnMut(&mut [u8], usize)) {
        let mut pages = self.pages.lock();
        let mut at = offset;
        while at < offset + length {
            let start = (at % PAGE as u64) as usize;
            let part = (PAGE - start).min((offset + length - at) as usize);
            let number = at / PAGE as u64;
            let page = pages.entry(number).or_insert_with(|| self.page(number));
            change(&mut page[start..start + part], (at - offset) as usize);
            at += part as u64;
        }
    }
}

impl Backing for Bounded {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.check("read", offset, into.len() as u64)?;
        let start = (offset as usize).min(self.base.len());
        let shared = into.len().min(self.base.len() - start);
        into[..shared].copy_from_slice(&self.base[start..start + shared]);
        into[shared..].fill(0);
        let (first, end) = (offset / PAGE as u64, (offset + into.len() as u64).div_ceil(PAGE as u64));
        for (number, page) in self.pages.lock().range(first..end) {
            let page_start = number * PAGE as u64;
            let (from, to) =
                (page_start.max(offset), (page_start + PAGE as u64).min(offset + into.len() as u64));
            into[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - page_start) as usize..(to - page_start) as usize]);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check("write", offset, bytes.len() as u64)?;
        self.change(offset, bytes.len() as u64, |part, at| part.copy_from_slice(&bytes[at..at + part.len()]));
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check("discard", offset, length)?;
        self.change(offset, length, |part, _| part.fill(0));
        Ok(())
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check("reservation", offset, length)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok((offset < self.size).then_some(offset..self.size))
    }
}
