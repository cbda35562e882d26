//! Image labels: both copies, in files that are opened as a mount and as a peer do.

use crate::{Input, files, mutate};
use mirrorfs_fs::image::label::{COPY_BYTES, LABEL_BYTES, Label, Role};
use mirrorfs_fs::image::{Image, OpenOptions, read_label};
use mirrorfs_journal::{Epoch, Generation, LunId, LunUuid};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// Bytes of the file system part.
const SIZE: u64 = 4 << 20;
/// Label fields of a copy: flags, serial, uuid, size, incarnation, role and state, counts, epoch, generations, …
const FIELDS: [usize; 20] = [0, 8, 12, 16, 20, 24, 40, 44, 46, 48, 52, 53, 54, 55, 56, 64, 72, 152, 184, 248];

struct Base {
    role: Role,
    /// First bytes of the file, superblock included.
    head: Vec<u8>,
    pair: Vec<u8>,
    labels: [Option<Label>; 2],
}

fn options(role: Role) -> OpenOptions {
    OpenOptions { role, name: "data".into(), lock_wait: Duration::ZERO }
}

/// A primary and a mirror, with their labels in use and after a clean close.
fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        let mut bases = Vec::new();
        for (role, closed) in
            [(Role::Primary, false), (Role::Primary, true), (Role::Mirror, false), (Role::Mirror, true)]
        {
            let dir = files::temporary();
            let path = dir.path().join("data.img");
            let image = match role {
                Role::Primary => {
                    let file = File::create(&path).expect("an image can be made");
                    file.set_len(SIZE).expect("an image can be made");
                    files::tool(
                        "mke2fs",
                        &["-q", "-F", "-t", "ext4", path.to_str().expect("an ordinary path")],
                    );
                    Image::open(&path, &options(role)).expect("a new image opens")
                }
                Role::Mirror => {
                    let image = Image::create_mirror(&path, "data", LunUuid([3; 16]), SIZE);
                    let image = image.expect("a mirror can be made");
                    image.set_resyncing(false, &[Generation(5), Generation(4)]).expect("it is written");
                    image
                }
            };
            image.sync_epoch(Epoch(1 << 40 | 7)).expect("it is written");
            if closed {
                image.close_clean(None).expect("it is written");
            }
            drop(image);
            let file = File::open(&path).expect("it was made");
            let (mut head, mut pair) = (vec![0; 4096], vec![0; LABEL_BYTES as usize]);
            file.read_exact_at(&mut head, 0).expect("it was made");
            file.read_exact_at(&mut pair, SIZE).expect("it was made");
            let alone = |index: usize| {
                let mut one = vec![0; LABEL_BYTES as usize];
                let copy = index * COPY_BYTES..(index + 1) * COPY_BYTES;
                one[copy.clone()].copy_from_slice(&pair[copy]);
                let path = write(&dir, "alone", SIZE, &head, &one);
                read_label(&path).expect("a whole copy")
            };
            let labels = [alone(0), alone(1)];
            bases.push(Base { role, head, pair, labels });
        }
        bases
    })
}

fn write(dir: &tempfile::TempDir, name: &str, size: u64, head: &[u8], pair: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    let made = || {
        let file = File::create(&path)?;
        file.set_len(size)?;
        file.write_all_at(head, 0)?;
        file.write_all_at(pair, size)
    };
    made().expect("a file can be written");
    path
}

fn seal(copy: &mut [u8]) {
    let crc = crc32c::crc32c(&copy[..COPY_BYTES - 4]);
    copy[COPY_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

pub(crate) fn run(input: &mut Input<'_>) {
    let base = input.pick(bases());
    let (mut head, mut pair) = (base.head.clone(), base.pair.clone());
    let forged = input.once_in(2);
    for _ in 0..1 + input.below(3) {
        let at = COPY_BYTES * input.index(2);
        let copy = &mut pair[at..at + COPY_BYTES];
        if input.once_in(5) {
            mutate::ranges(input, copy)
        } else {
            mutate::fields(input, copy, &FIELDS, false)
        }
        if forged {
            seal(copy);
        }
    }
    if input.once_in(4) {
        let places = [0x4, 0x18, 0x20, 0x28, 0x38, 0x58, 0x60, 0xFE, 0x150];
        mutate::fields(input, &mut head[1024..2048], &places, false);
    }
    if input.once_in(20) {
        pair.truncate(input.index(pair.len()));
    }
    // Where the label is not at the place that its size gives.
    let size = if input.once_in(6) { input.below(SIZE / 512) * 512 } else { SIZE };
    let head = &head[..head.len().min(size as usize)];
    let dir = files::temporary();
    let path = write(&dir, "data.img", size, head, &pair);
    match read_label(&path) {
        Ok(Some(label)) => {
            input.count("label read");
            // Damage is seen: what is read was written.
            let known = base.labels.iter().flatten().any(|known| *known == label);
            assert!(forged || known, "a damaged label was believed: {label:?}");
        }
        Ok(None) => input.count("no label"),
        Err(_) => input.count("label refused"),
    }
    let role = if input.once_in(8) { Role::Mirror } else { base.role };
    used(input, &path, role);
    // As the first use has left it.
    used(input, &path, role);
}

/// Opens the image and does to its label what mounts and peers do.
fn used(input: &mut Input<'_>, path: &Path, role: Role) {
    let Ok(mut image) = Image::open(path, &options(role)) else { return input.count("not opened") };
    input.count("opened");
    let label = image.label();
    assert_eq!((label.role, label.name.as_str()), (role, "data"));
    let length = std::fs::metadata(path).expect("it is there").len();
    assert!(label.size_bytes <= length, "{} bytes in a file of {length}", label.size_bytes);
    let _lun = image.log_lun(LunId(0));
    if role == Role::Mirror {
        if input.once_in(2) {
            let size =
                *input.pick(&[0, 512, 1 << 20, SIZE, SIZE + 512, SIZE + (1 << 20), 1 << 45, u64::MAX - 511]);
            if image.resize_mirror(size).is_ok() {
                input.count("resized");
                assert_eq!(image.label().size_bytes, size);
            }
        }
        image.set_resyncing(input.once_in(2), &[Generation(input.number() | 1)]).expect("it is written");
    }
    image.sync_epoch(Epoch(input.number())).expect("it is written");
    image.regions_marked().expect("it is written");
    let before = image.label();
    if input.once_in(2) {
        match image.close_clean(input.once_in(2).then_some(Epoch(9))) {
            Ok(()) => input.count("closed"),
            // A superblock that is none can't be noted.
            Err(error) => assert!(role == Role::Primary, "{error}"),
        }
    } else {
        drop(image);
        let read = read_label(path).expect("just written").expect("just written");
        assert_eq!(read, before, "what was written is read");
    }
}
