//! Makes an image: a sparse file, mke2fs, the label; under a temporary name until it is whole.

use super::backing::Backing;
use super::error::ImageError;
use super::file::FileBacking;
use super::generation::random_bytes;
use super::label::{LABEL_BYTES, Label, State, check_name};
use super::publish::Draft;
use super::slot::{LabelSlot, offset_for};
use super::superblock::Superblock;
use mirrorfs_journal::LunUuid;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Block size of the images that we make.
const BLOCK_BYTES: u64 = 4096;
/// Smallest image: room for the smallest journal, inodes, and some files.
pub const SIZE_BYTES_MIN: u64 = 16 << 20;
/// Largest image: more than a host's ext4 or xfs file of ordinary make can be, and its group descriptors fit in 32 MiB.
pub const SIZE_BYTES_MAX: u64 = 1 << 46;
/// Inode tables are reserved on the host at once up to this many bytes (an image of about 32 GiB); those of larger images,
/// of which hardly all will be used, when their inodes are first used.
const INODE_TABLES_RESERVED_MAX: u64 = 512 << 20;
/// The features that we write, without those that mke2fs.conf might add.
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,\
                        dir_nlink,extra_isize,metadata_csum";
/// Where mke2fs is when PATH does not say, as under mount(8), which clears it.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// What image to make.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Name of the LUN.
    pub name: String,
    /// Bytes of the file system; rounded down to whole 4 KiB blocks.
    pub size_bytes: u64,
}

/// Bytes of the journal for a file system of this size.
fn journal_mib(size_bytes: u64) -> u64 {
    match size_bytes >> 20 {
        0..64 => 4,
        64..256 => 8,
        256..512 => 16,
        512..1024 => 32,
        _ => 64,
    }
}

/// Makes the image at `path`, which must not exist; the mode is 0600. A crash or interruption at any point leaves no file
/// of that name. Journal, bitmaps and (up to `INODE_TABLES_RESERVED_MAX` bytes) inode tables have their space on the host.
///
/// # Errors
/// A bad name or size, no mke2fs, a full host, a file in the way.
pub fn format(path: &Path, options: &FormatOptions) -> Result<Label, ImageError> {
    check_name(&options.name).map_err(ImageError::Name)?;
    let size_bytes = options.size_bytes / BLOCK_BYTES * BLOCK_BYTES;
    if !(SIZE_BYTES_MIN..=SIZE_BYTES_MAX).contains(&size_bytes) {
        let why = format!("it must have {} MiB to {} TiB", SIZE_BYTES_MIN >> 20, SIZE_BYTES_MAX >> 40);
        return Err(ImageError::Size { size_bytes: options.size_bytes, why });
    }
    let draft = Draft::create(path)?;
    let io = |action| ImageError::io(action, path);
    draft.file.set_len(size_bytes).map_err(io("make"))?;
    let mut uuid: [u8; 16] = random_bytes().map_err(io("name"))?;
    // RFC 4122, version 4, as other tools expect of ext4's.
    (uuid[6], uuid[8]) = (uuid[6] & 0x0F | 0x40, uuid[8] & 0x3F | 0x80);
    let uuid = LunUuid(uuid);
    mke2fs(&draft.path, size_bytes, uuid, &search_path())?;
    let file = Arc::new(draft.file.try_clone().map_err(io("open"))?);
    reserve_metadata(&file, &draft.path)?;
    let mut label = Label::new_primary(uuid, options.name.clone(), size_bytes).map_err(io("name"))?;
    label.state = State::Clean;
    LabelSlot::append(&file, offset_for(size_bytes), 0, label.clone()).map_err(io("write the label of"))?;
    debug_assert_eq!(file.metadata().map(|m| m.len()).ok(), Some(offset_for(size_bytes) + LABEL_BYTES));
    draft.publish()?;
    Ok(label)
}

/// PATH, then where mke2fs usually is.
fn search_path() -> String {
    match std::env::var("PATH") {
        Ok(path) if !path.is_empty() => format!("{path}:{SYSTEM_PATH}"),
        _ => SYSTEM_PATH.to_owned(),
    }
}

fn mke2fs(path: &Path, size_bytes: u64, uuid: LunUuid, search: &str) -> Result<(), ImageError> {
    // SAFETY: these calls take nothing and always succeed.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let extended = format!("lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner={user}:{group}");
    // A name that starts with a dash is no option.
    let path_argument = if path.is_absolute() { path.to_owned() } else { Path::new(".").join(path) };
    let mut command = Command::new("mke2fs");
    command
        .env("PATH", search)
        // Nothing but these arguments decides: a directory index hash of half_md4 is mke2fs's own default.
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("LC_ALL", "C")
        .args(["-F", "-q", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-G", "16", "-O", FEATURES])
        .args(["-J", &format!("size={}", journal_mib(size_bytes)), "-E", &extended, "-U", &uuid.to_string()])
        .arg(path_argument)
        .arg((size_bytes / BLOCK_BYTES).to_string())
        .stdin(Stdio::null());
    let output = command.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => ImageError::NoMke2fs,
        _ => ImageError::io("run mke2fs on", path)(error),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stdout));
    let output_text = said.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(ImageError::Mke2fs { path: path.to_owned(), status: output.status.to_string(), output: output_text })
}

fn reserve_metadata(file: &Arc<std::fs::File>, path: &Path) -> Result<(), ImageError> {
    let superblock = Superblock::read(file, path)?;
    let ranges = superblock.metadata_ranges(file).map_err(ImageError::io("read the metadata of", path))?;
    let tables: u64 =
        ranges.iter().filter(|(_, table)| *table).map(|(range, _)| range.end - range.start).sum();
    let backing =
        FileBacking::new(Arc::clone(file), superblock.size_bytes()).map_err(ImageError::io("open", path))?;
    for (range, table) in ranges {
        if !table || tables <= INODE_TABLES_RESERVED_MAX {
            backing
                .reserve(range.start, range.end - range.start)
                .map_err(ImageError::io("reserve space for the metadata of", path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_missing_mke2fs_names_its_package() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.img");
        let error = mke2fs(&path, 64 << 20, LunUuid([1; 16]), dir.path().to_str().unwrap()).unwrap_err();
        assert!(error.to_string().contains("apt install e2fsprogs"), "{error}");
    }

    #[test]
    fn what_a_failing_mke2fs_says_is_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let tool = dir.path().join("mke2fs");
        fs::write(&tool, "#!/bin/sh\necho no such luck >&2\nexit 3\n").unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        let search = format!("{}:/bin", dir.path().display());
        let path = dir.path().join("data.img");
        let error = mke2fs(&path, 64 << 20, LunUuid([1; 16]), &search).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such luck"), "{error}");
    }
}
