//! Why an image can't be made, opened or closed.

use super::label::Role;
use std::io;
use std::path::{Path, PathBuf};

/// Errors of making, opening and closing an image. Each names the file and, where there is one, the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as "open".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A device, directory or the like.
    #[error("{} is not a regular file; an image must be one", path.display())]
    NotRegular {
        /// The path given.
        path: PathBuf,
    },
    /// Another process has it open.
    #[error("{} is in use by {}", path.display(), holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")))]
    Locked {
        /// The image.
        path: PathBuf,
        /// Process id of the holder, where the system tells.
        holder: Option<u32>,
    },
    /// A loop device could write to it behind our back.
    #[error("{} is attached, writable, to {device}; detach it first (losetup -d {device})", path.display())]
    LoopDevice {
        /// The image.
        path: PathBuf,
        /// Such as `/dev/loop0`.
        device: String,
    },
    /// Not an ext4 file system.
    #[error("{} holds no ext4 file system: {found}", path.display())]
    NotExt4 {
        /// The image.
        path: PathBuf,
        /// What it is instead, as far as can be told.
        found: String,
    },
    /// An ext4 that can't be served, refused before it is changed.
    #[error("{}: {why}", path.display())]
    Unsupported {
        /// The image.
        path: PathBuf,
        /// The feature.
        why: String,
    },
    /// The file ends before its file system does.
    #[error("{} is cut short: its file system has {expected} bytes, the file {found}", path.display())]
    Truncated {
        /// The image.
        path: PathBuf,
        /// Bytes by the superblock or the label.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// Both copies of the label are damaged.
    #[error(
        "{}: both copies of its label are damaged ({field}); the file system before it may be whole: check it with e2fsck -fn, \
         then cut the last 8192 bytes off (truncate -s -8192) and mount again: it is adopted as a new image and all of it is mirrored anew",
        path.display()
    )]
    LabelDamaged {
        /// The image.
        path: PathBuf,
        /// The field that is wrong.
        field: &'static str,
    },
    /// Written by a newer mirrorfs.
    #[error("{}: label version {found}, this mirrorfs knows up to {known}", path.display())]
    LabelVersion {
        /// The image.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// No label where one is needed (a mirror is never adopted).
    #[error("{} has no label: it is not a mirror image; move it away", path.display())]
    NoLabel {
        /// The image.
        path: PathBuf,
    },
    /// Opened as the other role.
    #[error("{} is a {found} image, not a {expected}; {}", path.display(), match expected {
        Role::Primary => "run mirrorfs promote first if it is to be mounted",
        Role::Mirror => "run mirrorfs demote first if it is to be a mirror",
    })]
    WrongRole {
        /// The image.
        path: PathBuf,
        /// What the label says.
        found: Role,
        /// What was asked for.
        expected: Role,
    },
    /// The label names another LUN.
    #[error("{} is LUN '{found}', not '{expected}'", path.display())]
    OtherName {
        /// The image.
        path: PathBuf,
        /// Name in the label.
        found: String,
        /// Name asked for.
        expected: String,
    },
    /// Not usable as a LUN's name.
    #[error("{0}")]
    Name(String),
    /// Mounted sixteen million times.
    #[error("{} has used up its incarnations; copy its files to a new image", path.display())]
    IncarnationsUsedUp {
        /// The image.
        path: PathBuf,
    },
    /// Something is in the way.
    #[error("{} is there already; it is never overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Too small or too large to be made.
    #[error("an image of {size_bytes} bytes can't be made: {why}")]
    Size {
        /// What was asked for.
        size_bytes: u64,
        /// What is possible.
        why: String,
    },
    /// mke2fs is not installed.
    #[error("mke2fs is not in PATH, /usr/sbin or /sbin; install it (Debian: apt install e2fsprogs)")]
    NoMke2fs,
    /// mke2fs failed.
    #[error("mke2fs failed on {} ({status}): {output}", path.display())]
    Mke2fs {
        /// The image being made.
        path: PathBuf,
        /// How it ended.
        status: String,
        /// What it said.
        output: String,
    },
}

impl ImageError {
    /// For `map_err`: the system's error with what was tried on what.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
