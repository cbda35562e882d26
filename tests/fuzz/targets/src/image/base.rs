//! The images that are mutated: made by mke2fs, filled through the core itself, some left as after a crash.

use super::ROOT;
use super::backing::Bounded;
use super::structure::Structure;
use crate::files::{temporary, tool};
use bytes::Bytes;
use mirrorfs_fs::ext4::attr::{Fallocate, FileKind, NewNode, RenameMode, SetAttr, XattrMode};
use mirrorfs_fs::ext4::types::InodeNo;
use mirrorfs_fs::ext4::{Ext4, Options, WriteAt};
use mirrorfs_fs::image::Lun;
use std::sync::{Arc, OnceLock, mpsc};

/// An image and what lies where in it.
pub(super) struct Base {
    pub(super) bytes: Arc<Vec<u8>>,
    pub(super) structure: Structure,
    /// Damage turns it read-only (`s_errors`).
    pub(super) stops: bool,
}

struct Form {
    block_size: usize,
    blocks: usize,
    journal_mib: usize,
    arguments: &'static [&'static str],
    crashed: bool,
}

const OURS: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,\
                    dir_nlink,extra_isize,metadata_csum";

const FORMS: [Form; 5] = [
    // As `mirrorfs mount` makes them.
    Form {
        block_size: 4096,
        blocks: 3000,
        journal_mib: 4,
        arguments: &["-O", OURS, "-e", "remount-ro"],
        crashed: false,
    },
    Form {
        block_size: 4096,
        blocks: 3000,
        journal_mib: 4,
        arguments: &["-O", OURS, "-e", "remount-ro"],
        crashed: true,
    },
    // Small blocks: several groups, two levels of extent blocks; old checksums, small inodes.
    Form {
        block_size: 1024,
        blocks: 9500,
        journal_mib: 1,
        arguments: &[
            "-I",
            "128",
            "-O",
            "none,has_journal,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,uninit_bg,dir_nlink",
        ],
        crashed: true,
    },
    // No checksums at all.
    Form {
        block_size: 1024,
        blocks: 9500,
        journal_mib: 1,
        arguments: &[
            "-O",
            "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,sparse_super,extra_isize,large_file",
            "-e",
            "remount-ro",
        ],
        crashed: false,
    },
    // Between them, with checksums.
    Form {
        block_size: 2048,
        blocks: 6000,
        journal_mib: 2,
        arguments: &[
            "-O",
            "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,metadata_csum,metadata_csum_seed,extra_isize",
        ],
        crashed: true,
    },
];

/// All of them, made once.
pub(super) fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| FORMS.iter().map(make).collect())
}

fn make(form: &Form) -> Base {
    let bytes = Arc::new(formatted(form));
    let size = bytes.len() as u64;
    let fs = open(&bytes, size).1;
    fill(&fs, form.block_size);
    let bytes = closed(&fs, form, bytes.len());
    // Places are read from the clean state; what a dirty journal changes besides is found by name of the journal.
    let structure = Structure::read(&bytes);
    let bytes = if form.crashed { crashed(bytes) } else { bytes };
    Base { bytes: Arc::new(bytes), structure, stops: form.arguments.contains(&"remount-ro") }
}

fn closed(fs: &Opened, form: &Form, length: usize) -> Vec<u8> {
    fs.fs.close().expect("a filled image closes");
    let bytes = fs.backing.bytes();
    assert_eq!(bytes.len(), length);
    let dir = temporary();
    let path = dir.path().join("image");
    std::fs::write(&path, &bytes).expect("the image can be written");
    tool("e2fsck", &["-fn", path.to_str().expect("an ordinary path")]);
    assert_eq!(length, form.blocks * form.block_size);
    bytes
}

fn formatted(form: &Form) -> Vec<u8> {
    let dir = temporary();
    let path = dir.path().join("image");
    let file = std::fs::File::create(&path).expect("the image can be made");
    file.set_len((form.blocks * form.block_size) as u64).expect("the image can be made");
    let (block, journal) = (form.block_size.to_string(), format!("size={}", form.journal_mib));
    let path_text = path.to_str().expect("an ordinary path");
    let mut arguments = vec!["-q", "-F", "-t", "ext4", "-b", &block, "-J", &journal, "-N", "512"];
    arguments.extend(["-U", "00112233-4455-6677-8899-aabbccddeeff", "-E"]);
    arguments.push("lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed=01234567-89ab-cdef-0123-456789abcdef");
    arguments.extend(form.arguments);
    arguments.push(path_text);
    tool("mke2fs", &arguments);
    std::fs::read(&path).expect("the image can be read")
}

/// An open file system with its backing.
pub(super) struct Opened {
    pub(super) fs: Arc<Ext4>,
    pub(super) backing: Arc<Bounded>,
}

fn open(bytes: &Arc<Vec<u8>>, size: u64) -> (u64, Opened) {
    let backing = Arc::new(Bounded::new(bytes.clone(), size));
    let fs =
        Ext4::open(Lun::new(backing.clone(), None), Options::default()).expect("an undamaged image opens");
    (size, Opened { fs, backing })
}

/// Waits for a sync.
pub(super) fn sync(fs: &Ext4, ino: Option<InodeNo>) -> mirrorfs_fs::ext4::error::Result<()> {
    let (sender, receiver) = mpsc::channel();
    fs.sync(
        ino,
        false,
        Box::new(move |outcome| {
            // Nobody waits any more where the case has failed.
            let _gone = sender.send(outcome.map(drop));
        }),
    );
    receiver.recv().expect("a sync is always answered")
}

fn fill(opened: &Opened, block_size: usize) {
    let fs = &*opened.fs;
    let root = InodeNo::ROOT;
    let block = block_size as u64;
    let make = |parent, name: &str, node| {
        fs.make(ROOT, parent, name.as_bytes(), node, 0o755, 0o022).expect("there is room").ino
    };
    let file = make(root, "plain", NewNode::Regular);
    let text: Vec<u8> = (0..3 * block_size + 100).map(|at| at as u8).collect();
    fs.write(ROOT, file, WriteAt::Offset(0), Bytes::from(text), false).expect("there is room");
    // In many pieces, some of them reserved only.
    let pieces = make(root, "pieces", NewNode::Regular);
    for piece in 0..(if block_size == 1024 { 700 } else { 380 }) {
        let at = 2 * piece * block;
        if piece % 8 == 0 {
            let some = Bytes::from(vec![piece as u8 | 1; 100]);
            fs.write(ROOT, pieces, WriteAt::Offset(at), some, false).expect("there is room");
        } else {
            let reserve = Fallocate::Reserve { keep_size: piece % 3 == 0 };
            fs.fallocate(ROOT, pieces, reserve, at, block, false).expect("there is room");
        }
    }
    // Indexed directory: long names of one file.
    let many = make(root, "many", NewNode::Directory);
    let linked = make(many, "linked", NewNode::Regular);
    for number in 0..(if block_size == 1024 { 600 } else { 150 }) {
        let name = format!("{number:0>200}");
        fs.link(ROOT, linked, many, name.as_bytes()).expect("there is room");
    }
    // Deep.
    let mut deep = root;
    for level in 0..24 {
        deep = make(deep, &format!("level-{level}"), NewNode::Directory);
    }
    make(deep, "bottom", NewNode::Regular);
    // Links and special files.
    make(root, "short-link", NewNode::Symlink(b"plain"));
    make(root, "long-link", NewNode::Symlink(&[b'x'; 200]));
    make(root, "pipe", NewNode::Special(FileKind::Fifo, 0));
    make(root, "device", NewNode::Special(FileKind::BlockDevice, 0x0801));
    // Attributes: inside the inode, beside it, ACLs.
    let set = |ino, name: &str, value: &[u8]| {
        fs.setxattr(ROOT, ino, name.as_bytes(), value, XattrMode::Set).expect("there is room");
    };
    set(file, "user.small", b"value");
    set(file, "user.large", &vec![7; block_size / 2]);
    set(file, "security.capability", &[1; 20]);
    set(many, "system.posix_acl_default", &acl());
    set(pieces, "system.posix_acl_access", &acl());
    set(deep, "trusted.t", &[9; 90]);
    for number in 0..40 {
        let ino = make(root, &format!("small-{number}"), NewNode::Regular);
        let some = Bytes::from(vec![number; 40]);
        fs.write(ROOT, ino, WriteAt::Append, some, false).expect("there is room");
    }
}

/// user::rwx, user:1000:rw-, group::r-x, mask::rwx, other::r--, in the form of the system calls.
fn acl() -> Vec<u8> {
    let mut raw = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1_u16, 7_u16, !0_u32), (2, 6, 1000), (4, 5, !0), (0x10, 7, !0), (0x20, 4, !0)]
    {
        raw.extend(tag.to_le_bytes());
        raw.extend(permissions.to_le_bytes());
        raw.extend(id.to_le_bytes());
    }
    raw
}

/// The image as a crash leaves it: transactions in the journal, not at home; orphans, one of them half truncated.
fn crashed(bytes: Vec<u8>) -> Vec<u8> {
    let size = bytes.len() as u64;
    let (_, opened) = open(&Arc::new(bytes), size);
    let fs = &*opened.fs;
    let root = InodeNo::ROOT;
    let find = |name: &str| fs.lookup(root, name.as_bytes()).expect("made before").ino;
    for round in 0..3 {
        for number in 0..6 {
            let name = format!("small-{}", round * 6 + number);
            // Stays open without a name.
            fs.unlink(ROOT, root, name.as_bytes()).expect("made before");
        }
        let dir = fs
            .make(ROOT, root, format!("new-{round}").as_bytes(), NewNode::Directory, 0o700, 0)
            .expect("there is room");
        let to = (dir.ino, &b"moved"[..]);
        let name = format!("small-{}", 30 + round);
        fs.rename(ROOT, (root, name.as_bytes()), to, RenameMode::Replace).expect("made before");
        sync(fs, None).expect("the image has room");
    }
    fs.truncate(ROOT, find("pieces"), 5000, &SetAttr::default()).expect("made before");
    fs.unlink(ROOT, root, b"plain").expect("made before");
    sync(fs, None).expect("the image has room");
    let bytes = opened.backing.bytes();
    drop(opened);
    bytes
}
