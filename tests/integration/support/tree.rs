//! Trees of files: making them, and taking their fingerprint.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Fingerprint of everything below a directory: kind, mode, owner, times, link count, contents, by relative path.
pub(crate) fn fingerprint(root: &Path) -> BTreeMap<OsString, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(relative) = waiting.pop() {
        let path = root.join(&relative);
        let metadata =
            std::fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kind = metadata.file_type();
        let content = if kind.is_symlink() {
            format!("-> {:?}", std::fs::read_link(&path).expect("a link"))
        } else if kind.is_file() {
            let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            blake3::hash(&bytes).to_string()
        } else {
            String::new()
        };
        if kind.is_dir() {
            for entry in std::fs::read_dir(&path).expect("a directory") {
                let name = entry.expect("an entry").file_name();
                if relative.as_os_str().is_empty() && name.as_bytes() == b"lost+found" {
                    continue;
                }
                waiting.push(relative.join(name));
            }
        }
        // The root's own times change with what lies beside the tree.
        let times = if relative.as_os_str().is_empty() || kind.is_symlink() {
            String::new()
        } else {
            format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec())
        };
        let line = format!(
            "{:o} {}:{} {} {times} {content}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            if kind.is_dir() { 0 } else { metadata.nlink() },
        );
        found.insert(relative.into_os_string(), line);
    }
    found
}

/// The two trees are the same in all that `fingerprint` sees.
#[track_caller]
pub(crate) fn assert_same(one: &BTreeMap<OsString, String>, other: &BTreeMap<OsString, String>) {
    for (path, line) in one {
        match other.get(path) {
            None => panic!("{} is missing", Path::new(path).display()),
            Some(found) => assert_eq!(line, found, "{}", Path::new(path).display()),
        }
    }
    for path in other.keys() {
        assert!(one.contains_key(path), "{} is too much", Path::new(path).display());
    }
}

/// Makes a source-like tree of `files` files: directories, sizes from 0 to 200 KiB, symlinks, hard links, modes.
pub(crate) fn make(root: &Path, files: usize, seed: u64) {
    use std::os::unix::fs::PermissionsExt as _;
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for index in 0..files {
        let dir = root.join(format!("d{}/s{}", index / 100, index / 10 % 10));
        std::fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join(format!("file-{index}.txt"));
        let length = match index % 10 {
            0 => 0,
            9 => random() % 200_000,
            _ => random() % 8_000,
        };
        let bytes: Vec<u8> =
            (0..length).map(|at| (at.wrapping_mul(31) ^ seed ^ index as u64) as u8).collect();
        std::fs::write(&path, bytes).expect("a file");
        if index % 7 == 0 {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).expect("a mode");
        }
        if index % 13 == 0 {
            std::os::unix::fs::symlink(format!("file-{index}.txt"), dir.join(format!("link-{index}")))
                .expect("a link");
        }
        if index % 29 == 0 {
            std::fs::hard_link(&path, dir.join(format!("hard-{index}"))).expect("a hard link");
        }
    }
}
