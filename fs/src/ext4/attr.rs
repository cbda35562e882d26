//! What the frontend sees of an inode, and what it asks to change.

use super::types::InodeNo;

/// A time with nanoseconds; seconds since 1970, negative before. ext4 with 256-byte inodes holds -2^31 .. 2^34 - 2^31.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds, below 10^9.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The system's clock at its last tick: what the kernel itself stamps files with.
    ///
    /// A finer clock would be ahead of the times that the kernel keeps for cached files, so that a file written just
    /// after it was made would seem to go back in time; and each such file would cost a SETATTR.
    #[must_use]
    pub fn now() -> Self {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the system call writes one `timespec`, to a place that is ours.
        if unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut now) } != 0 {
            return Self::default();
        }
        Self { seconds: now.tv_sec, nanoseconds: now.tv_nsec as u32 }
    }
}

/// Kind of file, as in `i_mode` and in directory entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// An inode's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub ino: InodeNo,
    /// Its generation, for file handles that outlive the inode.
    pub generation: u32,
    /// Kind.
    pub kind: FileKind,
    /// The low 12 bits of the mode.
    pub permissions: u16,
    /// Hard links (1 for a directory whose count overflowed, `dir_nlink`).
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes in use, metadata included.
    pub blocks_512: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// When it was made.
    pub crtime: Timestamp,
    /// Device number (kernel's encoding of 32 bits) of a device node.
    pub rdev: u32,
}

/// Who asks, and whether the operation may wait.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The caller's file system uid.
    pub uid: u32,
    /// The caller's file system gid.
    pub gid: u32,
    /// Where the operation would have to wait for a commit, a checkpoint or a cold region: wait (`true`: the blocking
    /// pool), or give [`super::error::FsError::WouldBlock`] with nothing changed (`false`: a FUSE thread).
    pub may_block: bool,
}

/// Changes of attributes; `None` leaves as is. A size change is [`super::Ext4::truncate`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// New permission bits (12).
    pub permissions: Option<u16>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New access time.
    pub atime: Option<Timestamp>,
    /// New modification time.
    pub mtime: Option<Timestamp>,
    /// New change time; now if any other field is set and this is not.
    pub ctime: Option<Timestamp>,
    /// Clear setuid, and setgid on group-executable files (chown, truncate, write by a non-owner).
    pub kill_privileges: bool,
}

/// What is made by [`super::Ext4::make`].
#[derive(Clone, Copy, Debug)]
pub enum NewNode<'a> {
    /// An empty regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link to these bytes.
    Symlink(&'a [u8]),
    /// A device node, FIFO or socket, with the device number (0 where it has none).
    Special(FileKind, u32),
}

/// One directory entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode it names.
    pub ino: InodeNo,
    /// Its kind.
    pub kind: FileKind,
    /// Its place: the listing after it goes on behind this number. Ascending within a listing, never 0.
    pub cookie: u64,
    /// The name, 1 to 255 bytes without `/` and NUL.
    pub name: Vec<u8>,
}

/// Numbers for `statfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes per block.
    pub block_size: u32,
    /// Blocks for files (journal and metadata overhead subtracted, as the kernel's `minixdf` off).
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for callers other than root's reserve.
    pub blocks_available: u64,
    /// Inodes.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// File system id.
    pub fsid: u64,
}

/// How `rename` treats an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// EEXIST.
    NoReplace,
    /// Swap the two.
    Exchange,
    /// Leave a whiteout (a character device 0:0, by which overlayfs hides what lies below) under the old name.
    Whiteout {
        /// Replace an existing target; otherwise EEXIST.
        replace: bool,
    },
}

/// How `setxattr` treats an existing value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Set in any case.
    Set,
    /// EEXIST if it is there.
    Create,
    /// ENODATA if it is not.
    Replace,
}

/// `fallocate`'s operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Reserve blocks; the size grows unless `keep_size`.
    Reserve {
        /// Leave the size.
        keep_size: bool,
    },
    /// Punch a hole (the size stays).
    PunchHole,
    /// The range reads as zeros, blocks stay or are reserved.
    ZeroRange {
        /// Leave the size.
        keep_size: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    /// A file made by us and at once written through the kernel's cache had a change time before its birth.
    #[test]
    fn the_clock_is_not_ahead_of_the_kernels() {
        let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        for _ in 0..1000 {
            let now = Timestamp::now();
            let fine = since(SystemTime::now());
            let now = Duration::new(now.seconds.try_into().unwrap_or(0), now.nanoseconds);
            assert!(now <= fine, "{now:?} is ahead of {fine:?}");
            assert!(fine - now < Duration::from_secs(5), "{now:?} is not the time, {fine:?}");
        }
    }
}
