//! A file made under a temporary name and put in its place when it is whole.

use super::error::ImageError;
use super::lock;
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file in the making, locked; removed when dropped before [`Self::publish`]. What an interrupted run left is used again.
pub(crate) struct Draft {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Draft {
    /// An empty file next to `target`, which must not exist.
    pub(crate) fn create(target: &Path) -> Result<Self, ImageError> {
        let name = target.file_name().ok_or_else(|| {
            ImageError::io("make", target)(io::Error::new(ErrorKind::InvalidInput, "it has no file name"))
        })?;
        if fs::symlink_metadata(target).is_ok() {
            return Err(ImageError::Exists { path: target.to_owned() });
        }
        let mut draft_name = OsString::from(".");
        draft_name.push(name);
        draft_name.push(".new");
        let path = target.with_file_name(draft_name);
        loop {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)
                .map_err(ImageError::io("make", &path))?;
            lock::lock(&file, &path, Duration::ZERO)?;
            // Between open and lock another process may have published it.
            let ours = file.metadata().map_err(ImageError::io("stat", &path))?.ino();
            if fs::symlink_metadata(&path).is_ok_and(|named| named.ino() == ours) {
                file.set_len(0).map_err(ImageError::io("empty", &path))?;
                return Ok(Self { file, path, target: target.to_owned(), published: false });
            }
        }
    }

    /// Syncs the file, gives it its name and syncs the directory. The file stays locked while it is open.
    pub(crate) fn publish(mut self) -> Result<File, ImageError> {
        self.file.sync_all().map_err(ImageError::io("sync", &self.path))?;
        rename_new(&self.path, &self.target).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => ImageError::Exists { path: self.target.clone() },
            _ => ImageError::io("make", &self.target)(error),
        })?;
        self.published = true;
        let dir = match self.target.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(ImageError::io("sync", dir))?;
        self.file.try_clone().map_err(ImageError::io("open", &self.target))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("{} is left behind: {error}", self.path.display());
        }
    }
}

/// Renames, never over an existing file.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let (from_c, to_c) =
        (CString::new(from.as_os_str().as_bytes())?, CString::new(to.as_os_str().as_bytes())?);
    // SAFETY: both are C strings that live across the call.
    let result = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            from_c.as_ptr(),
            libc::AT_FDCWD,
            to_c.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) {
        return Err(error);
    }
    // A file system without RENAME_NOREPLACE.
    fs::hard_link(from, to)?;
    fs::remove_file(from)
}
