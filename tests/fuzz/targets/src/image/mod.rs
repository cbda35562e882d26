//! Damaged ext4 images through every operation of the core.

mod backing;
mod base;
mod damage;
mod operations;
mod raw;
mod seal;
mod structure;

use crate::Input;
use backing::Bounded;
use base::{Base, Opened, bases};
use mirrorfs_fs::ext4::attr::Context;
use mirrorfs_fs::ext4::error::FsError;
use mirrorfs_fs::ext4::{Ext4, Options};
use mirrorfs_fs::image::Lun;
use operations::Session;
use std::sync::Arc;
use structure::Structure;

/// Names a file that the damaged image is written to before it is opened.
const KEEP_VARIABLE: &str = "MIRRORFS_FUZZ_KEEP";

const ROOT: Context = Context { uid: 0, gid: 0, may_block: true };

/// Damages an image, opens it (journal replay, orphans), reads and changes all that it can, ends cleanly or as a crash does,
/// and opens what is there then.
pub(crate) fn run(input: &mut Input<'_>) {
    let base = input.pick(bases());
    let mut image = base.bytes.to_vec();
    let damage = damage::damage(input, base, &mut image);
    if let Some(path) = std::env::var_os(KEEP_VARIABLE) {
        std::fs::write(path, &image).expect("the image can be kept");
    }
    let stops = base.stops && !damage.superblock && image.len() > 2048 && Structure::stops(&image);
    if let Some(image) = mounted(input, base, image, damage.size, stops) {
        let size = image.len() as u64;
        mounted(input, base, image, size, false);
    }
}

/// One mount of the image; the image as it is left.
fn mounted(input: &mut Input<'_>, base: &Base, image: Vec<u8>, size: u64, stops: bool) -> Option<Vec<u8>> {
    let backing = Arc::new(Bounded::new(Arc::new(image), size));
    let lun = Lun::new(backing.clone(), None);
    let options = Options { read_only: input.once_in(10), no_atime: input.once_in(2) };
    let read_only = options.read_only;
    let opened = match Ext4::open(lun.clone(), options) {
        Ok(fs) => Opened { fs, backing: backing.clone() },
        Err(error) => {
            input.count("not mounted");
            // An image cut short in its superblock is an honest read error.
            let cut = size < 2048 && matches!(error, FsError::Io(_));
            assert!(cut || backing.outside().is_none(), "{error}: {:?}", backing.outside());
            assert!(cut || !matches!(error, FsError::Io(_)), "open: {error}");
            return None;
        }
    };
    input.count("mounted");
    let mut session = Session::new(&opened, base.structure.inode_count, stops && !read_only);
    session.read_all(input);
    for _ in 0..input.below(40) {
        session.change(input);
    }
    let closes = !input.once_in(3);
    if closes {
        match opened.fs.close() {
            Err(FsError::Io(error)) => panic!("close: {error}"),
            Err(_) => input.count("not closed"),
            Ok(_) => input.count("closed"),
        }
    }
    let read_only = opened.fs.status().read_only.unwrap_or_default();
    drop(opened);
    assert!(!read_only.contains("panicked"), "{read_only}");
    assert_eq!(backing.outside(), None, "an access outside the image");
    assert_eq!(lun.latched(), None, "the image latched");
    Some(backing.bytes())
}

/// Seals every structure of the undamaged images, and gives the number of structures and of bytes that this changed: none,
/// if the places and checksums are the ones of mke2fs and the core.
#[must_use]
pub fn sealed_anew() -> (usize, usize) {
    let (mut places, mut changed) = (0, 0);
    for base in bases() {
        let mut image = base.bytes.to_vec();
        for place in &base.structure.places {
            base.structure.seal(&mut image, *place);
        }
        places += base.structure.places.len();
        changed += image.iter().zip(&**base.bytes).filter(|(new, old)| new != old).count();
    }
    (places, changed)
}

/// A broken target (see [`crate::broken`]): reads behind the end of an image through a LUN, as the core does.
pub(crate) fn reads_outside(input: &mut Input<'_>) {
    let backing = Arc::new(Bounded::new(Arc::new(vec![0; 4096]), 4096));
    let lun = Lun::new(backing.clone(), None);
    let offset = 512 * input.below(12);
    // The core would make an error of it; the backing has seen it even so.
    let _ = lun.read(offset, &mut [0; 512]);
    assert_eq!(backing.outside(), None, "an access outside the image");
}
