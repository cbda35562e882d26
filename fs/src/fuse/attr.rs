//! Attributes between ext4 and FUSE.

use crate::ext4::attr::{Attr, FileKind, Timestamp};
use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The kind as FUSE names it.
pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

/// The kind that a `mknod` mode asks for; `None`: a regular file. `Err`: not for `mknod`.
pub(crate) fn special_kind(mode: u32) -> Result<Option<FileKind>, i32> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Ok(None),
        libc::S_IFCHR => Ok(Some(FileKind::CharDevice)),
        libc::S_IFBLK => Ok(Some(FileKind::BlockDevice)),
        libc::S_IFIFO => Ok(Some(FileKind::Fifo)),
        libc::S_IFSOCK => Ok(Some(FileKind::Socket)),
        libc::S_IFDIR => Err(libc::EPERM),
        _ => Err(libc::EINVAL),
    }
}

/// The attributes for the kernel, under the number `ino`.
pub(crate) fn file_attr(attr: &Attr, ino: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: attr.size,
        blocks: attr.blocks_512,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.crtime),
        kind: file_type(attr.kind),
        perm: attr.permissions,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        // Also for 1 KiB blocks: the kernel's page cache works best with its page size.
        blksize: 4096,
        flags: 0,
    }
}

/// Attributes that say no more than number and kind, for answers in which the kernel uses nothing else, and for the
/// directory of the LUNs.
pub(crate) fn bare_attr(ino: u64, kind: FileType, perm: u16, links: u32, time: SystemTime) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink: links,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// A time for a reply.
pub(crate) fn system_time(time: Timestamp) -> SystemTime {
    let fraction = Duration::from_nanos(u64::from(time.nanoseconds.min(999_999_999)));
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let base = if time.seconds >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|base| base.checked_add(fraction)).unwrap_or(UNIX_EPOCH)
}

/// A time from a request.
///
/// fuser hands on a time before 1970 of `s` seconds and `n` nanoseconds as 1970 minus `-s` seconds minus `n`
/// nanoseconds (it should be plus); this takes the two apart again.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Timestamp {
                seconds: i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds),
                nanoseconds: before.subsec_nanos(),
            }
        }
    }
}

/// A time from a `setattr`.
pub(crate) fn time_or_now(time: TimeOrNow) -> Timestamp {
    match time {
        TimeOrNow::SpecificTime(time) => timestamp(time),
        TimeOrNow::Now => Timestamp::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds_on_both_sides_of_1970() {
        let after = Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 };
        assert_eq!(timestamp(system_time(after)), after);
        // A reply: 1.2 s before 1970 is second -2 and 0.8 s.
        let before = Timestamp { seconds: -2, nanoseconds: 800_000_000 };
        assert_eq!(system_time(before), UNIX_EPOCH - Duration::new(1, 200_000_000));
        // A request: what fuser makes of second -2 and 0.8 s.
        assert_eq!(timestamp(UNIX_EPOCH - Duration::new(2, 800_000_000)), before);
        assert_eq!(timestamp(UNIX_EPOCH - Duration::new(2, 0)), Timestamp { seconds: -2, nanoseconds: 0 });
    }

    #[test]
    fn an_impossible_time_does_no_harm() {
        assert!(system_time(Timestamp { seconds: i64::MAX, nanoseconds: u32::MAX }) >= UNIX_EPOCH);
        assert!(system_time(Timestamp { seconds: i64::MIN, nanoseconds: 0 }) <= UNIX_EPOCH);
    }

    #[test]
    fn mknod_makes_what_the_mode_says() {
        assert_eq!(special_kind(libc::S_IFREG | 0o644), Ok(None));
        assert_eq!(special_kind(0o644), Ok(None));
        assert_eq!(special_kind(libc::S_IFIFO), Ok(Some(FileKind::Fifo)));
        assert_eq!(special_kind(libc::S_IFSOCK), Ok(Some(FileKind::Socket)));
        assert_eq!(special_kind(libc::S_IFDIR), Err(libc::EPERM));
        assert_eq!(special_kind(libc::S_IFLNK), Err(libc::EINVAL));
    }
}
