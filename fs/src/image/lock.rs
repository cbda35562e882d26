//! One writer: the lock on an image, and writable loop devices.

use super::error::ImageError;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How often a lock held by another is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(20);

/// Locks the image exclusively for as long as `file` and its duplicates stay open. Waits up to `wait` for another
/// holder: umount(8) returns before the daemon has finished.
pub(crate) fn lock(file: &File, path: &Path, wait: Duration) -> Result<(), ImageError> {
    let until = Instant::now() + wait;
    loop {
        // SAFETY: plain system call on a descriptor that `file` keeps open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            ErrorKind::Interrupted => continue,
            ErrorKind::WouldBlock if Instant::now() < until => thread::sleep(RETRY_EVERY),
            ErrorKind::WouldBlock => {
                return Err(ImageError::Locked { path: path.to_owned(), holder: holder(file) });
            }
            _ => return Err(ImageError::io("lock", path)(error)),
        }
    }
}

/// The process that holds the lock, by /proc/locks.
fn holder(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    find_holder(&locks, metadata.dev(), metadata.ino())
}

/// `1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF`. A file system with several devices shows another number there than
/// stat does: a line with the right inode alone counts if it is the only one.
fn find_holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let lines = locks.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1).filter(|word| *word != "->");
        if words.next() != Some("FLOCK") {
            return None;
        }
        let pid: u32 = words.nth(2)?.parse().ok()?;
        let mut place = words.next()?.split(':');
        let major = u32::from_str_radix(place.next()?, 16).ok()?;
        let minor = u32::from_str_radix(place.next()?, 16).ok()?;
        let found: u64 = place.next()?.parse().ok()?;
        (found == inode && pid != 0).then_some((libc::makedev(major, minor) == device, pid))
    });
    let found: Vec<_> = lines.collect();
    match found.iter().find(|(exact, _)| *exact) {
        Some((_, pid)) => Some(*pid),
        None if found.len() == 1 => Some(found[0].1),
        None => None,
    }
}

/// Refuses an image that a writable loop device is attached to: the kernel may have it mounted.
pub(crate) fn check_loop_devices(file: &File, path: &Path) -> Result<(), ImageError> {
    match loop_device(Path::new("/sys/block"), file) {
        Some(device) => Err(ImageError::LoopDevice { path: path.to_owned(), device }),
        None => Ok(()),
    }
}

fn loop_device(sys_block: &Path, file: &File) -> Option<String> {
    let ours = file.metadata().ok()?;
    for entry in fs::read_dir(sys_block).ok()?.flatten() {
        let device = entry.path();
        let Ok(backing) = fs::read(device.join("loop/backing_file")) else { continue };
        let read_only = fs::read(device.join("ro")).is_ok_and(|ro| ro.starts_with(b"1"));
        if read_only {
            continue;
        }
        let backing = PathBuf::from(std::ffi::OsString::from_vec_trimmed(backing));
        // By device and inode, so that other names of the file count too.
        if fs::metadata(&backing).is_ok_and(|theirs| (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
        {
            return Some(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    None
}

trait FromTrimmed {
    fn from_vec_trimmed(bytes: Vec<u8>) -> Self;
}

impl FromTrimmed for std::ffi::OsString {
    /// Without the line feed that sysfs ends a value with.
    fn from_vec_trimmed(mut bytes: Vec<u8>) -> Self {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        std::os::unix::ffi::OsStringExt::from_vec(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_second_lock_is_refused_with_the_holder_and_granted_when_it_has_gone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = File::open(file.path()).unwrap();
        let second = File::open(file.path()).unwrap();
        lock(&first, file.path(), Duration::ZERO).unwrap();
        match lock(&second, file.path(), Duration::ZERO) {
            Err(ImageError::Locked { holder, .. }) => assert_eq!(holder, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        thread::scope(|scope| {
            let waiting = scope.spawn(|| lock(&second, file.path(), Duration::from_secs(20)));
            thread::sleep(Duration::from_millis(50));
            drop(first);
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn the_holder_is_found_by_device_and_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 08:01:131 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 08:02:131 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 13 08:02:131 0 EOF\n3: FLOCK  ADVISORY  WRITE 14 08:01:131 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 15 00:22:77 0 EOF\nrubbish\n";
        assert_eq!(find_holder(locks, libc::makedev(8, 1), 131), Some(14));
        assert_eq!(find_holder(locks, libc::makedev(8, 2), 131), Some(12));
        assert_eq!(find_holder(locks, libc::makedev(0, 0x40), 77), Some(15));
        assert_eq!(find_holder(locks, libc::makedev(8, 1), 1), None);
    }

    #[test]
    fn only_a_writable_loop_device_on_the_same_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("data.img");
        let file = File::create(&image).unwrap();
        fs::hard_link(&image, dir.path().join("other name")).unwrap();
        let sys = dir.path().join("sys");
        let device = |name: &str, ro: &str, backing: &str| {
            fs::create_dir_all(sys.join(name).join("loop")).unwrap();
            fs::write(sys.join(name).join("ro"), ro).unwrap();
            fs::write(sys.join(name).join("loop/backing_file"), backing).unwrap();
        };
        fs::create_dir_all(sys.join("sda")).unwrap();
        device("loop0", "1\n", &format!("{}\n", image.display()));
        device("loop1", "0\n", "/nowhere (deleted)\n");
        assert_eq!(loop_device(&sys, &file), None);
        device("loop2", "0\n", &format!("{}/other name\n", dir.path().display()));
        assert_eq!(loop_device(&sys, &file), Some("/dev/loop2".into()));
    }
}
