//! Open directories: each keeps the listing that its reader has begun.

use super::inode_table::NumberHasher;
use crate::ext4::attr::DirEntry;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A listing, as it was when the reader was at its start.
pub(crate) struct Listing {
    /// All entries in cookie order, or those behind the cookie at which a reader went on.
    pub(crate) entries: Vec<DirEntry>,
    /// [`super::server::Server::removals`] when it was read: while that has not changed, each entry's inode still is
    /// what the name stands for.
    pub(crate) removals: u64,
}

impl Listing {
    /// The entries behind the cookie `after`.
    pub(crate) fn behind(&self, after: u64) -> &[DirEntry] {
        let start = self.entries.partition_point(|entry| entry.cookie <= after);
        &self.entries[start..]
    }
}

/// One open directory; its lock is held while an answer is put together, so that readers that share it take turns.
pub(crate) type Directory = Arc<Mutex<Option<Listing>>>;

/// Open directories by handle.
#[derive(Default)]
pub(crate) struct Directories {
    last: AtomicU64,
    open: Mutex<HashMap<u64, Directory, BuildHasherDefault<NumberHasher>>>,
}

impl Directories {
    /// A new handle, never 0.
    pub(crate) fn open(&self) -> u64 {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.lock().insert(handle, Directory::default());
        handle
    }

    /// The directory of a handle; of one that we don't know (a kernel thread may read without opening), a fresh one.
    pub(crate) fn get(&self, handle: u64) -> Directory {
        self.open.lock().get(&handle).cloned().unwrap_or_default()
    }

    /// The handle is not used again.
    pub(crate) fn release(&self, handle: u64) {
        let listing = self.open.lock().remove(&handle);
        // A long listing is freed outside the lock.
        drop(listing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::attr::FileKind;
    use crate::ext4::types::InodeNo;

    #[test]
    fn a_reader_goes_on_behind_its_cookie() {
        let entry = |cookie| DirEntry { ino: InodeNo(12), kind: FileKind::Regular, cookie, name: vec![b'a'] };
        let listing = Listing { entries: [1, 5, 9].map(entry).to_vec(), removals: 0 };
        let cookies = |after| listing.behind(after).iter().map(|entry| entry.cookie).collect::<Vec<_>>();
        assert_eq!(cookies(0), [1, 5, 9]);
        assert_eq!(cookies(1), [5, 9]);
        assert_eq!(cookies(6), [9], "its own entry has gone");
        assert_eq!(cookies(9), []);
    }

    #[test]
    fn handles_keep_their_listing_until_released() {
        let directories = Directories::default();
        let handle = directories.open();
        assert_ne!(handle, 0);
        *directories.get(handle).lock() = Some(Listing { entries: Vec::new(), removals: 3 });
        assert!(directories.get(handle).lock().is_some());
        directories.release(handle);
        assert!(directories.get(handle).lock().is_none());
    }
}
