//! The ext4 file system in an image.
//!
//! [`Ext4`] is the face to the FUSE frontend (and to tests): inode-number based operations, all `&self`, callable from
//! any thread. Metadata lives in `cache`d blocks and changes only inside a `tx` handle of the running jbd2 transaction, under
//! the one core lock; file data goes straight to the LUN, outside that lock, under the inode's data lock.
//!
//! Lock order: inode data lock, then core lock. No lock is held while waiting for a sync or for the mirror.

pub mod attr;
pub mod error;
pub mod types;

mod alloc;
mod bytes;
mod cache;
mod checkpoint;
mod checksum;
mod commit;
mod defect;
mod dir;
mod file;
mod group;
mod inode;
mod jbd2;
mod layout;
mod mount;
mod namespace;
mod orphan;
mod superblock;
mod tx;
mod xattr;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod every_barrier;
#[cfg(test)]
mod test_images;
#[cfg(test)]
mod test_support;

pub use file::{WriteAt, Written};
pub use layout::Layout;
pub(crate) use superblock::check_supported;

use crate::image::Lun;
use error::Result;
use mirrorfs_journal::Epoch;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

/// A mounted ext4 image. Shared by `Arc`.
pub struct Ext4 {
    /// All metadata state.
    core: Arc<Mutex<tx::Core>>,
    /// Signalled under the core lock when a commit or a checkpoint has made room.
    progress: Arc<Condvar>,
    /// Keep reads and writes of one file's data apart from truncation and from one another.
    data_locks: file::DataLocks,
    /// Commits and checkpoints.
    thread: mount::Thread,
    /// The image.
    lun: Arc<Lun>,
    options: Options,
}

/// How an image is served.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Serve without writing to the image (journal replay is still carried out unless the image itself is read-only).
    pub read_only: bool,
    /// Do not keep access times at all.
    pub no_atime: bool,
}

/// Called once when a sync ends, from the commit thread (must not block): locally durable, with the epoch that must
/// become durable on the mirror for the promise to hold there too (`None`: not mirrored).
pub type SyncDone = Box<dyn FnOnce(Result<Option<Epoch>>) + Send>;

/// Figures of the file system for `status`.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct FsStatus {
    /// Why it is read-only, if it is.
    pub read_only: Option<String>,
    /// Transactions committed since the mount.
    pub commits: u64,
    /// Blocks in the running transaction.
    pub running_blocks: u64,
    /// Journal blocks in use, of all.
    pub journal_used_blocks: u64,
    /// Journal blocks.
    pub journal_blocks: u64,
    /// Metadata blocks cached.
    pub cached_blocks: u64,
}
