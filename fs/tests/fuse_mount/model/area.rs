//! A part of the mount with its model: random operations, each carried out on both, and compared.

use super::tree::{Id, Kind, Node, Time, Tree, parent};
use crate::support;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::time::SystemTime;

/// Files grow no further.
const FILE_BYTES_MAX: usize = 192 << 10;
/// Names in an area at most.
const NAMES_MAX: usize = 70;
/// Bytes of extended attributes of one inode, which must all fit into one block besides their names.
const XATTR_BYTES_MAX: usize = 2400;
/// The kernel's clock for file times moves on at least this often (100 Hz).
const TICK_NANOSECONDS: i128 = 10_000_000;
/// Kinds of operations.
pub(super) const KINDS: [&str; 18] = [
    "create", "mkdir", "symlink", "mknod", "unlink", "rmdir", "rename", "exchange", "whiteout", "link",
    "write", "append", "truncate", "punch", "xattr", "chmod", "chown", "times",
];

/// What the shim between test and file system does wrong on purpose, to see the model notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    None,
    /// An attribute is not set.
    LostXattr,
    /// A hard link too many.
    WrongLinks,
    /// The last byte of a write is lost.
    TornWrite,
    /// A write leaves a modification time of before.
    StaleTime,
    /// A mode is not changed.
    LostMode,
    /// A name is left behind.
    LeftName,
}

/// SplitMix64: a seed says it all.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A directory of the mount, and what must be in it.
pub(super) struct Area {
    root: PathBuf,
    name: String,
    tree: Tree,
    random: Random,
    defect: Defect,
    /// Files without a name that are still open.
    unnamed: Vec<(File, Vec<u8>)>,
    steps: usize,
    /// Operations that were carried out and succeeded, by [`KINDS`].
    pub(super) done: BTreeMap<&'static str, usize>,
}

/// The kernel's coarse clock, by which it stamps what it keeps itself; never ahead of the other.
fn coarse_now() -> Time {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut now) };
    (now.tv_sec, now.tv_nsec)
}

fn nanoseconds(time: Time) -> i128 {
    i128::from(time.0) * 1_000_000_000 + i128::from(time.1)
}

fn fine_now() -> Time {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    (now.as_secs() as i64, i64::from(now.subsec_nanos()))
}

/// Which times an operation moves on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moves {
    Neither,
    Change,
    Both,
}

impl Area {
    /// Makes the directory.
    pub(super) fn make(root: PathBuf, seed: u64, defect: Defect) -> Self {
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let found = fs::symlink_metadata(&root).unwrap();
        let node = Node {
            kind: Kind::Directory,
            permissions: 0o755,
            owner: (0, 0),
            xattrs: BTreeMap::new(),
            mtime: (found.mtime(), found.mtime_nsec()),
            ctime: (found.ctime(), found.ctime_nsec()),
            ino: found.ino(),
        };
        let name = format!("seed {seed}, {}", root.file_name().unwrap().to_string_lossy());
        let (tree, random) = (Tree::new(node), Random(seed));
        let (unnamed, done) = (Vec::new(), BTreeMap::new());
        Self { root, name, tree, random, defect, unnamed, steps: 0, done }
    }

    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.root.clone() } else { self.root.join(name) }
    }

    fn a_directory(&mut self) -> String {
        let all: Vec<&String> =
            self.tree.names.iter().filter(|(_, id)| self.tree.nodes[id].is_dir()).map(|(p, _)| p).collect();
        all[self.random.below(all.len())].clone()
    }

    fn an_empty_directory(&mut self) -> Option<String> {
        let is_empty = |path: &&String| {
            !path.is_empty()
                && self.tree.get(path).is_some_and(Node::is_dir)
                && self.tree.list(path).is_empty()
        };
        let all: Vec<&String> = self.tree.names.keys().filter(is_empty).collect();
        if all.is_empty() { None } else { Some(all[self.random.below(all.len())].clone()) }
    }

    fn a_name(&mut self) -> Option<String> {
        let all: Vec<&String> = self.tree.names.keys().filter(|path| !path.is_empty()).collect();
        if all.is_empty() { None } else { Some(all[self.random.below(all.len())].clone()) }
    }

    /// Of a regular file.
    fn a_file(&mut self) -> Option<String> {
        let is_file = |id: &Id| matches!(self.tree.nodes[id].kind, Kind::File(_));
        let all: Vec<&String> =
            self.tree.names.iter().filter(|(_, id)| is_file(id)).map(|(p, _)| p).collect();
        if all.is_empty() { None } else { Some(all[self.random.below(all.len())].clone()) }
    }

    /// Often new, sometimes in use.
    fn a_place(&mut self) -> String {
        if self.random.below(5) == 0
            && let Some(name) = self.a_name()
        {
            return name;
        }
        let mut dir = self.a_directory();
        if dir.len() > 1000 {
            dir.clear();
        }
        let number = self.random.below(400);
        let width = self.random.pick(&[1, 3, 8, 60, 250]);
        let name = format!("{number:0>width$}-ü");
        if dir.is_empty() { name } else { format!("{dir}/{name}") }
    }

    /// The outcome must be what the model says; true if it is success.
    #[track_caller]
    fn expect<T: std::fmt::Debug>(&self, what: &str, found: &io::Result<T>, wanted: i32) -> bool {
        let found = found.as_ref().map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0);
        assert_eq!(found, wanted, "{}, step {}: {what}", self.name, self.steps);
        found == 0
    }

    /// Compares attributes of a named node with the model, which takes over times that had to move on since `since`.
    #[track_caller]
    fn settle(&mut self, path: &str, moves: Moves, since: Time) {
        let at = format!("{}, step {}: {path:?}", self.name, self.steps);
        let found = fs::symlink_metadata(self.path(path)).unwrap_or_else(|error| panic!("{at}: {error}"));
        let until = fine_now();
        let id = self.tree.names[path];
        let (mtime, ctime) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
        let moved = |what: &str, time: Time, must: bool, kept: Time| {
            if must {
                let in_time = since <= time && time <= until;
                // Changes within a tick of the clock may share one time.
                let same_tick = time == kept && nanoseconds(since) - nanoseconds(time) < TICK_NANOSECONDS;
                assert!(in_time || same_tick, "{at}: {what} {time:?} is not of {since:?} to {until:?}");
            } else {
                assert_eq!(time, kept, "{at}: {what} must stay");
            }
        };
        let node = &self.tree.nodes[&id];
        moved("mtime", mtime, moves == Moves::Both, node.mtime);
        moved("ctime", ctime, moves != Moves::Neither, node.ctime);
        let node = self.tree.node(path);
        (node.mtime, node.ctime) = (mtime, ctime);
        self.compare_attributes(&at, id, &found);
    }

    fn compare_attributes(&self, at: &str, id: Id, found: &fs::Metadata) {
        let node = &self.tree.nodes[&id];
        assert_eq!(format!("{:o}", found.mode()), format!("{:o}", node.mode()), "{at}: mode");
        assert_eq!((found.uid(), found.gid()), node.owner, "{at}: owner");
        assert_eq!(found.nlink(), self.tree.links(id), "{at}: links");
        assert_eq!(found.ino(), node.ino, "{at}: inode number");
        assert_eq!((found.mtime(), found.mtime_nsec()), node.mtime, "{at}: mtime");
        assert_eq!((found.ctime(), found.ctime_nsec()), node.ctime, "{at}: ctime");
        match &node.kind {
            Kind::File(content) => assert_eq!(found.len(), content.len() as u64, "{at}: size"),
            Kind::Symlink(target) => assert_eq!(found.len(), target.len() as u64, "{at}: size"),
            Kind::Special(_, device) => assert_eq!(found.rdev(), *device, "{at}: device number"),
            Kind::Directory => {}
        }
    }

    /// A new node has its name; its directory moves on.
    fn made(&mut self, path: &str, kind: Kind, permissions: u32, since: Time) {
        let dir = &self.tree.nodes[&self.tree.names[parent(path)]];
        let inherits = dir.permissions & 0o2000 != 0;
        let owner = (0, if inherits { dir.owner.1 } else { 0 });
        let permissions = permissions | if inherits && kind == Kind::Directory { 0o2000 } else { 0 };
        let found = fs::symlink_metadata(self.path(path)).unwrap();
        let (xattrs, ino) = (BTreeMap::new(), found.ino());
        let node = Node { kind, permissions, owner, xattrs, mtime: since, ctime: since, ino };
        self.tree.add(path, node);
        self.settle(path, Moves::Both, since);
        self.settle(parent(path), Moves::Both, since);
    }

    /// One random operation on both.
    pub(super) fn step(&mut self) {
        self.steps += 1;
        let since = coarse_now();
        let kind = self.random.pick(&[
            "create", "create", "create", "mkdir", "symlink", "mknod", "unlink", "unlink", "rmdir", "rmdir",
            "rename", "rename", "exchange", "whiteout", "link", "link", "write", "write", "write", "append",
            "truncate", "punch", "xattr", "xattr", "xattr", "chmod", "chown", "times", "read", "list",
            "sync", "unnamed",
        ]);
        let succeeded = match kind {
            "create" | "mkdir" | "symlink" | "mknod" => self.make_one(kind, since),
            "unlink" | "rmdir" => self.remove_one(kind, since),
            "rename" | "exchange" | "whiteout" => self.rename_one(kind, since),
            "link" => self.link_one(since),
            "write" | "append" | "truncate" | "punch" => self.change_one(kind, since),
            "xattr" => self.xattr_one(since),
            "chmod" | "chown" | "times" => self.attribute_one(kind, since),
            _ => self.look(kind),
        };
        if succeeded {
            *self.done.entry(kind).or_default() += 1;
        }
    }

    fn make_one(&mut self, what: &str, since: Time) -> bool {
        if self.tree.names.len() >= NAMES_MAX {
            return false;
        }
        let place = self.a_place();
        let path = self.path(&place);
        let wanted = if self.tree.get(&place).is_some() { libc::EEXIST } else { 0 };
        let (result, kind, permissions) = match what {
            "create" => {
                let opened =
                    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map(drop);
                (opened, Kind::File(Vec::new()), 0o600)
            }
            "mkdir" => {
                let mut builder = fs::DirBuilder::new();
                std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
                (builder.create(&path), Kind::Directory, 0o700)
            }
            "symlink" => {
                let length = self.random.pick(&[1, 40, 59, 60, 61, 300, 2000]);
                let target = "t".repeat(length);
                (std::os::unix::fs::symlink(&target, &path), Kind::Symlink(target), 0o777)
            }
            _ => {
                let (kind, device) = self.random.pick(&[
                    (libc::S_IFIFO, 0),
                    (libc::S_IFSOCK, 0),
                    (libc::S_IFCHR, libc::makedev(1, 3)),
                    (libc::S_IFBLK, libc::makedev(259, 70_000)),
                ]);
                (support::mknod(&path, kind | 0o600, device), Kind::Special(kind, device), 0o600)
            }
        };
        let succeeded = self.expect(&format!("{what} {place:?}"), &result, wanted);
        if succeeded {
            self.made(&place, kind, permissions, since);
        }
        succeeded
    }

    fn remove_one(&mut self, what: &str, since: Time) -> bool {
        let place = if self.random.below(4) == 0 { Some(self.a_place()) } else { self.a_name() };
        let empty =
            if what == "rmdir" && self.random.below(2) == 0 { self.an_empty_directory() } else { None };
        let Some(place) = empty.or(place) else { return false };
        let path = self.path(&place);
        let node = self.tree.get(&place);
        let (is_there, is_dir) = (node.is_some(), node.is_some_and(Node::is_dir));
        let (result, wanted) = if what == "unlink" {
            let leave = self.defect == Defect::LeftName && is_there && !is_dir;
            let result = if leave { Ok(()) } else { fs::remove_file(&path) };
            (result, if is_dir { libc::EISDIR } else { 0 })
        } else {
            let full = !self.tree.list(&place).is_empty();
            let wanted = match (is_dir, full) {
                (false, _) => libc::ENOTDIR,
                (true, true) => libc::ENOTEMPTY,
                (true, false) => 0,
            };
            (fs::remove_dir(&path), wanted)
        };
        let wanted = if is_there { wanted } else { libc::ENOENT };
        if !self.expect(&format!("{what} {place:?}"), &result, wanted) {
            return false;
        }
        let id = self.tree.names[&place];
        self.tree.remove(&place);
        self.settle(parent(&place), Moves::Both, since);
        self.settle_node(id, Moves::Change, since);
        true
    }

    /// As [`Self::settle`], under any name that a node has.
    fn settle_node(&mut self, id: Id, moves: Moves, since: Time) {
        let name = self.tree.names.iter().find(|(_, other)| **other == id).map(|(name, _)| name.clone());
        if let Some(name) = name {
            self.settle(&name, moves, since);
        }
    }

    fn rename_one(&mut self, what: &str, since: Time) -> bool {
        let (Some(from), to) = (self.a_name(), self.a_place()) else { return false };
        let to = if what == "exchange" { self.a_name().unwrap_or(to) } else { to };
        let mut flags = match what {
            "exchange" => libc::RENAME_EXCHANGE,
            "whiteout" => libc::RENAME_WHITEOUT,
            _ => 0,
        };
        if what != "exchange" && self.random.below(4) == 0 {
            flags |= libc::RENAME_NOREPLACE;
        }
        let wanted = self.tree.rename_verdict(&from, &to, flags);
        let result = support::rename(&self.path(&from), &self.path(&to), flags);
        if !self.expect(&format!("{what} {from:?} to {to:?}, {flags}"), &result, wanted) {
            return false;
        }
        let (source, target) = (self.tree.names[&from], self.tree.names.get(&to).copied());
        if target == Some(source) {
            // Two names of one node: nothing happens.
            self.settle(&from, Moves::Neither, since);
            return false;
        }
        if what == "exchange" {
            self.tree.relocate(&from, "\0");
            self.tree.relocate(&to, &from);
            self.tree.relocate("\0", &to);
        } else {
            self.tree.remove(&to);
            self.tree.relocate(&from, &to);
        }
        if what == "whiteout" {
            self.made(&from, Kind::Special(libc::S_IFCHR, 0), 0, since);
        }
        // Behind the exchange of a directory with something inside the other's parent, paths may have changed.
        self.settle_node(source, Moves::Change, since);
        if let Some(target) = target {
            self.settle_node(target, Moves::Change, since);
        }
        for name in [&from, &to] {
            let dir = parent(name).to_owned();
            self.settle(&dir, Moves::Both, since);
        }
        true
    }

    fn link_one(&mut self, since: Time) -> bool {
        let (Some(from), to) = (self.a_name(), self.a_place()) else { return false };
        if self.tree.names.len() >= NAMES_MAX {
            return false;
        }
        let wanted = if self.tree.get(&to).is_some() {
            libc::EEXIST
        } else if self.tree.get(&from).is_some_and(Node::is_dir) {
            libc::EPERM
        } else {
            0
        };
        let result = fs::hard_link(self.path(&from), self.path(&to));
        if !self.expect(&format!("link {from:?} to {to:?}"), &result, wanted) {
            return false;
        }
        if self.defect == Defect::WrongLinks {
            fs::hard_link(self.path(&from), self.root.with_extension(format!("more-{}", self.steps)))
                .unwrap();
        }
        let id = self.tree.names[&from];
        self.tree.names.insert(to.clone(), id);
        self.settle(&to, Moves::Change, since);
        self.settle(&from, Moves::Neither, since);
        self.settle(parent(&to), Moves::Both, since);
        true
    }

    fn change_one(&mut self, what: &str, since: Time) -> bool {
        let Some(place) = self.a_file() else { return false };
        let path = self.path(&place);
        let (length, offset) = (self.random.below(12_000) + 1, self.random.below(FILE_BYTES_MAX));
        let defect = self.defect;
        let fill = self.random.below(255) as u8 + 1;
        let Kind::File(content) = &mut self.tree.node(&place).kind else { return false };
        let result = match what {
            "write" | "append" => {
                let append = what == "append";
                let offset = if append { content.len() } else { offset };
                if offset + length > FILE_BYTES_MAX {
                    return false;
                }
                let data: Vec<u8> = (0..length).map(|at| fill.wrapping_add((at / 7) as u8)).collect();
                if content.len() < offset + length {
                    content.resize(offset + length, 0);
                }
                content[offset..offset + length].copy_from_slice(&data);
                let sent =
                    if defect == Defect::TornWrite && length > 1 { &data[..length - 1] } else { &data[..] };
                let open = OpenOptions::new().write(true).append(append).open(&path);
                open.and_then(|file| {
                    if append { (&file).write_all(sent) } else { file.write_all_at(sent, offset as u64) }
                })
            }
            "truncate" => {
                content.resize(offset, 0);
                OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(offset as u64))
            }
            _ => {
                let end = (offset + length).min(content.len());
                content[offset.min(end)..end].fill(0);
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let open = OpenOptions::new().write(true).open(&path);
                open.and_then(|file| support::fallocate(&file, mode, offset as u64, length as u64))
            }
        };
        self.expect(&format!("{what} {place:?}"), &result, 0);
        if self.defect == Defect::StaleTime {
            let (seconds, nanoseconds) = self.tree.node(&place).mtime;
            support::set_times(&path, (0, libc::UTIME_OMIT), (seconds - 1, nanoseconds)).unwrap();
        }
        self.settle(&place, Moves::Both, since);
        true
    }

    fn xattr_one(&mut self, since: Time) -> bool {
        let Some(place) = self.a_name() else { return false };
        let path = self.path(&place);
        let number = self.random.below(5);
        let trusted = self.random.below(3) == 0;
        let name = format!("{}.attribute-{number}", if trusted { "trusted" } else { "user" });
        let length = self.random.pick(&[0, 3, 30, 90, 400, 1500]);
        let value: Vec<u8> = (0..length).map(|at| (at * number + length) as u8).collect();
        let remove = self.random.below(3) == 0;
        let node = self.tree.node(&place);
        // User attributes are for files and directories only.
        let allowed = trusted || matches!(node.kind, Kind::File(_) | Kind::Directory);
        let used: usize = node.xattrs.iter().filter(|(other, _)| **other != name).map(|(_, v)| v.len()).sum();
        if !allowed {
            let result = support::set_xattr(&path, &name, &value);
            return self.expect(&format!("{name} on {place:?}"), &result, libc::EPERM);
        }
        let (result, wanted) = if remove {
            let wanted = if node.xattrs.remove(&name).is_some() { 0 } else { libc::ENODATA };
            (support::remove_xattr(&path, &name), wanted)
        } else {
            if used + length > XATTR_BYTES_MAX {
                return false;
            }
            node.xattrs.insert(name.clone(), value.clone());
            let lost = self.defect == Defect::LostXattr;
            (if lost { Ok(()) } else { support::set_xattr(&path, &name, &value) }, 0)
        };
        if !self.expect(&format!("{name} on {place:?}, remove: {remove}"), &result, wanted) {
            return false;
        }
        self.settle(&place, Moves::Change, since);
        true
    }

    fn attribute_one(&mut self, what: &str, since: Time) -> bool {
        let Some(place) = self.a_name() else { return false };
        let path = self.path(&place);
        let node = self.tree.node(&place);
        match what {
            "chmod" => {
                if matches!(node.kind, Kind::Symlink(_)) {
                    return false;
                }
                let modes = [0o600, 0o644, 0o755, 0o4755, 0o2755, 0o2644, 0o1777, 0o6711, 0];
                node.permissions = self.random.pick(&modes);
                let permissions = fs::Permissions::from_mode(node.permissions);
                if self.defect != Defect::LostMode {
                    fs::set_permissions(&path, permissions).unwrap();
                }
                self.settle(&place, Moves::Change, since);
            }
            "chown" => {
                let owner = (self.random.below(3) as u32 * 1000, self.random.pick(&[0, 5, 70_000]));
                node.owner = owner;
                node.drop_privileges();
                std::os::unix::fs::lchown(&path, Some(owner.0), Some(owner.1)).unwrap();
                self.settle(&place, Moves::Change, since);
            }
            _ => {
                let second = self.random.pick(&[-5, 0, 946_684_799, 1_700_000_000, 5_000_000_000]);
                let time = (second, self.random.below(1_000_000_000) as i64);
                node.mtime = time;
                support::set_times(&path, (7, 7), time).unwrap();
                self.settle(&place, Moves::Change, since);
            }
        }
        true
    }

    /// Operations that change nothing that others see.
    fn look(&mut self, what: &str) -> bool {
        match what {
            "list" => {
                let dir = self.a_directory();
                self.compare_list(&dir);
            }
            "sync" => {
                if let Some(place) = self.a_file() {
                    File::open(self.path(&place)).and_then(|file| file.sync_all()).unwrap();
                    self.compare_content(&place);
                }
            }
            "unnamed" => self.unnamed_one(),
            _ => {
                if let Some(place) = self.a_name() {
                    self.compare_content(&place);
                    self.compare_xattrs(&place);
                    self.settle(&place, Moves::Neither, (0, 0));
                }
            }
        }
        true
    }

    /// A file loses its name and lives on for a while.
    fn unnamed_one(&mut self) {
        if self.unnamed.len() >= 3 {
            let index = self.random.below(self.unnamed.len());
            let (file, mut content) = self.unnamed.swap_remove(index);
            let more = vec![self.random.below(256) as u8; 5000];
            file.write_all_at(&more, content.len() as u64).unwrap();
            content.extend(&more);
            let mut found = vec![0; content.len()];
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found == content, "{}, step {}: an unnamed file's content", self.name, self.steps);
            assert_eq!(file.metadata().unwrap().nlink(), 0);
            return;
        }
        let Some(place) = self.a_file() else { return };
        let id = self.tree.names[&place];
        if self.tree.links(id) > 1 {
            return;
        }
        let since = coarse_now();
        let file = OpenOptions::new().read(true).write(true).open(self.path(&place)).unwrap();
        fs::remove_file(self.path(&place)).unwrap();
        if let Some(Node { kind: Kind::File(content), .. }) = self.tree.remove(&place) {
            self.unnamed.push((file, content));
        }
        self.settle(parent(&place), Moves::Both, since);
    }

    fn compare_list(&self, dir: &str) {
        let mut found: Vec<String> = fs::read_dir(self.path(dir))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        let mut wanted = self.tree.list(dir);
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{}, step {}: names in {dir:?}", self.name, self.steps);
    }

    fn compare_content(&self, place: &str) {
        let at = || format!("{}, step {}: content of {place:?}", self.name, self.steps);
        match &self.tree.nodes[&self.tree.names[place]].kind {
            Kind::File(content) => {
                let found = fs::read(self.path(place)).unwrap();
                let differs = found.iter().zip(content).position(|(a, b)| a != b);
                assert_eq!((found.len(), differs), (content.len(), None), "{}", at());
            }
            Kind::Symlink(target) => {
                assert_eq!(
                    fs::read_link(self.path(place)).unwrap().to_str(),
                    Some(target.as_str()),
                    "{}",
                    at()
                );
            }
            _ => {}
        }
    }

    fn compare_xattrs(&self, place: &str) {
        let node = &self.tree.nodes[&self.tree.names[place]];
        let found: BTreeMap<String, Vec<u8>> = support::list_xattrs(&self.path(place))
            .unwrap()
            .into_iter()
            .map(|name| (name.clone(), support::get_xattr(&self.path(place), &name).unwrap()))
            .collect();
        assert!(found == node.xattrs, "{}, step {}: attributes of {place:?}", self.name, self.steps);
    }

    /// Files without a name are closed: a mount in use is not taken down.
    pub(super) fn close(&mut self) {
        self.unnamed.clear();
    }

    /// Everything is as the model has it. Gives the number of names.
    pub(super) fn compare_all(&mut self) -> usize {
        let all: Vec<String> = self.tree.names.keys().cloned().collect();
        for place in &all {
            let at = format!("{}, step {}: {place:?}", self.name, self.steps);
            let found =
                fs::symlink_metadata(self.path(place)).unwrap_or_else(|error| panic!("{at}: {error}"));
            self.compare_attributes(&at, self.tree.names[place], &found);
            self.compare_content(place);
            self.compare_xattrs(place);
            if found.is_dir() {
                self.compare_list(place);
            }
        }
        all.len()
    }
}
