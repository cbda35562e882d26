//! Judges that we did not write: e2fsck, the kernel's ext4, and a comparison byte for byte.

use super::machine::tool;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Bytes of the label behind the file system.
const LABEL_BYTES: u64 = 8 << 10;

/// The two images are the same, labels aside.
#[track_caller]
pub(crate) fn assert_identical(one: &Path, other: &Path) {
    if let Some(difference) = difference(one, other) {
        panic!("{difference}");
    }
}

/// Where the two images differ, labels aside.
pub(crate) fn difference(one: &Path, other: &Path) -> Option<String> {
    let open =
        |path: &Path| std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut a, mut b) = (open(one), open(other));
    let length = |file: &std::fs::File| file.metadata().expect("metadata").len();
    if length(&a) != length(&b) {
        return Some(format!("lengths of {} and {} differ", one.display(), other.display()));
    }
    let mut left = length(&a) - LABEL_BYTES;
    let (mut buffer_a, mut buffer_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0u64;
    while left > 0 {
        let part = left.min(1 << 20) as usize;
        a.read_exact(&mut buffer_a[..part]).expect("the first image");
        b.read_exact(&mut buffer_b[..part]).expect("the second image");
        if let Some(at) = buffer_a[..part].iter().zip(&buffer_b[..part]).position(|(a, b)| a != b) {
            let at = offset + at as u64;
            return Some(format!("{} and {} differ at byte {at}", one.display(), other.display()));
        }
        left -= part as u64;
        offset += part as u64;
    }
    None
}

/// `e2fsck -fn` finds nothing, after journal replay of a copy where the image needs it.
#[track_caller]
pub(crate) fn e2fsck_clean(image: &Path) {
    let copy = copy_of(image);
    let replay =
        tool("e2fsck").args(["-fy", "-E", "journal_only"]).arg(&copy.path).output().expect("e2fsck runs");
    let text = String::from_utf8_lossy(&replay.stdout).into_owned();
    assert!(
        replay.status.code().is_some_and(|code| code <= 1),
        "journal replay of {}: {text}",
        image.display()
    );
    // Replay alone must do: what e2fsck repairs on its way there it would repair behind the judge's back.
    assert!(
        !text.contains("FIXED") && !text.contains("? yes"),
        "repaired at the replay of {}: {text}",
        image.display()
    );
    let check = tool("e2fsck").arg("-fn").arg(&copy.path).output().expect("e2fsck runs");
    let text =
        format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
    assert!(check.status.success(), "e2fsck -fn {}: {text}", image.display());
}

/// A sparse copy on the RAM disk, removed when dropped.
pub(crate) struct Copy {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

/// Copies an image, as it is at this moment, with its undo file if it has one.
pub(crate) fn copy_of(image: &Path) -> Copy {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory on the RAM disk");
    let path = dir.path().join("copy.img");
    for (from, to) in [(image, &path), (&image.with_extension("undo"), &path.with_extension("undo"))] {
        if from == image || from.exists() {
            let copied = tool("cp").arg("--sparse=always").arg(from).arg(to).status().expect("cp runs");
            assert!(copied.success(), "copying {}", from.display());
        }
    }
    Copy { _dir: dir, path }
}

/// The image mounted by the kernel's ext4, read-only, while `look` looks at it.
pub(crate) fn loop_mounted<T>(image: &Path, options: &str, look: impl FnOnce(&Path) -> T) -> T {
    struct Mounted(tempfile::TempDir);
    impl Drop for Mounted {
        fn drop(&mut self) {
            // A program that another test is just starting holds our files open until it has become itself.
            let begun = std::time::Instant::now();
            while begun.elapsed().as_secs() < 20 {
                let ended = tool("umount").arg(self.0.path()).stderr(std::process::Stdio::null()).status();
                if ended.is_ok_and(|status| status.success()) {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            let _ = tool("umount").arg("-l").arg(self.0.path()).status();
        }
    }
    let dir = Mounted(tempfile::tempdir().expect("a mount point"));
    let output = tool("mount")
        .args(["-t", "ext4", "-o", options])
        .arg(image)
        .arg(dir.0.path())
        .output()
        .expect("mount runs");
    assert!(
        output.status.success(),
        "mount {}: {}",
        image.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    look(dir.0.path())
}
