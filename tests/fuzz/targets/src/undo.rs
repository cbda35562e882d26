//! Undo files: a mirror in the middle of a resync is opened with them, goes on and is taken back.

use crate::{Input, files, mutate};
use mirrorfs_fs::image::{Backing, Image, OpenOptions, Role, State};
use mirrorfs_journal::{Epoch, Generation, LunUuid};
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// Bytes of the file system: the last block is not whole.
const SIZE: u64 = (2 << 20) + 4096;
const BLOCK: usize = 64 << 10;
const HEADER: usize = 4096;
const RECORD_HEADER: usize = 32;

struct Base {
    /// The files in the middle of the resync.
    image: Vec<u8>,
    undo: Vec<u8>,
    /// Where the records begin.
    records: Vec<usize>,
    /// The file system when the resync began.
    before: Vec<u8>,
}

fn options() -> OpenOptions {
    OpenOptions { role: Role::Mirror, name: "data".into(), lock_wait: Duration::ZERO }
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let dir = files::temporary();
        let path = dir.path().join("data.img");
        let image =
            Image::create_mirror(&path, "data", LunUuid([3; 16]), SIZE).expect("a mirror can be made");
        let backing = image.backing();
        for block in (0..SIZE / 4096).filter(|block| block / 16 % 3 > 0) {
            backing.write_at(block * 4096, &[block as u8; 4096]).expect("it is written");
        }
        image.sync_epoch(Epoch(7)).expect("it is written");
        image.set_resyncing(false, &[Generation(5)]).expect("it is written");
        let mut before = vec![0; SIZE as usize];
        backing.read_at(0, &mut before).expect("it is read");
        image.set_resyncing(true, &[]).expect("it is written");
        for block in [30, 3, 9, 17, 18, 32, 0, 21] {
            let at = block * BLOCK as u64;
            image.before_overwrite(at, 4096).expect("it is saved");
            backing.write_at(at, &[0xEE; 4096]).expect("it is written");
        }
        drop((image, backing));
        let read = |name: &str| std::fs::read(dir.path().join(name)).expect("it was made");
        let (image, undo) = (read("data.img"), read("data.undo"));
        let mut records = Vec::new();
        let mut at = HEADER;
        while at < undo.len() {
            records.push(at);
            let length = undo[at + 4..].first_chunk().map_or(0, |length| u32::from_le_bytes(*length));
            at += RECORD_HEADER + length as usize;
        }
        Base { image, undo, records, before }
    })
}

pub(crate) fn run(input: &mut Input<'_>) {
    let base = base();
    let mut undo = base.undo.clone();
    let forged = input.once_in(2);
    if forged {
        let at = *input.pick(&base.records);
        mutate::fields(input, &mut undo[at + 4..at + 28], &[0, 4, 12, 20], false);
        let crc = crc32c::crc32c(&undo[at..at + 28]);
        undo[at + 28..at + RECORD_HEADER].copy_from_slice(&crc.to_le_bytes());
    } else if input.once_in(4) {
        undo.truncate(input.index(undo.len()));
    } else {
        mutate::stream(input, &mut undo);
    }
    let dir = files::temporary();
    let path = dir.path().join("data.img");
    let write =
        |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("it is written");
    write("data.img", &base.image);
    write("data.undo", &undo);
    let image = Image::open(&path, &options()).expect("a resync goes on without its undo file");
    match image.label().state {
        State::Resyncing { undo: Some(_) } => input.count("taken up"),
        state => {
            assert_eq!(state, State::Resyncing { undo: None });
            input.count("given up");
        }
    }
    if input.once_in(2) {
        image.before_overwrite(input.below(SIZE / 4096) * 4096, 4096).expect("saved, or given up");
    }
    match image.roll_back() {
        Ok(Some(epoch)) => {
            assert_eq!((epoch, image.label().state), (Epoch(7), State::InSync));
            input.count("taken back");
            let now = content(&image);
            let blocks = (0..now.len().div_ceil(BLOCK))
                .map(|block| block * BLOCK..((block + 1) * BLOCK).min(now.len()));
            let left: Vec<_> =
                blocks.filter(|range| now[range.clone()] != base.before[range.clone()]).collect();
            if !forged {
                let kept = |range: &Range<usize>| now[range.clone()] == base.image[range.clone()];
                assert!(left.iter().all(kept), "content that was never saved");
                // The last write alone may have been torn; what is cut off where a record begins can't be seen.
                assert!(left.len() <= 1 || undo.len() < base.undo.len(), "{left:?} are not taken back");
            }
        }
        Ok(None) => {}
        Err(_) => input.count("refused"),
    }
    let length = std::fs::metadata(&path).expect("it is there").len();
    assert_eq!(length, base.image.len() as u64, "nothing is written behind the file system");
    drop(image);
    assert!(opens_again(&path));
}

fn content(image: &Image) -> Vec<u8> {
    let mut now = vec![0; SIZE as usize];
    image.backing().read_at(0, &mut now).expect("it is read");
    now
}

fn opens_again(path: &Path) -> bool {
    Image::open(path, &options()).is_ok()
}
