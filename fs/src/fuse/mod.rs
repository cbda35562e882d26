//! The FUSE frontend: the kernel's requests on one side, [`crate::ext4::Ext4`] of one or several LUNs on the other.
//!
//! Who answers a request:
//! - A **FUSE thread** (`fuser-N`) runs the operation with `may_block: false` and answers. It never waits for a sync
//!   or for the mirror.
//! - The **blocking pool** (`fuse-block-N`, `pool`) runs it again, whole, when the core said
//!   [`crate::ext4::error::FsError::WouldBlock`].
//! - The **commit thread** or the **link's thread** sends the reply of an fsync, and of a write in sync mode, from a
//!   callback (`waits`); in place of the link's thread, a FUSE thread that is awake for the next request (`linger`).
//! - The **notify thread** (`fuse-notify`, `notify`) is the only one that sends notifications to the kernel: these
//!   may wait for locks that the kernel holds while it waits for one of the threads above.
//!
//! This kernel is the only writer of the image, so names and attributes are cached for as long as it likes, names that
//! are not there included. Files are opened and closed without asking us where the kernel can do that (`ENOSYS` to OPEN):
//! it keeps an inode for as long as a file is open on it, so its FORGET is the end of every use of an inode.

mod attr;
mod errno;
mod evictions;
mod frontend;
mod handles;
mod inode_table;
mod linger;
mod mount;
mod mount_syscalls;
mod node;
mod notify;
mod ops;
mod pool;
mod server;
mod slot_cache;
mod starved;
mod waits;

pub use mount::{Frontend, FrontendConfig, MountError, MountOptions, Mounted, Unmounter};
pub use mount_syscalls::clear_stale_mount;
pub use server::{FrontendLun, Mode};
