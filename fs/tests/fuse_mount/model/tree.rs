//! The model: what a tree of files must be, by POSIX and Linux rules, without any file system.

use std::collections::BTreeMap;

/// A time in seconds and nanoseconds.
pub(super) type Time = (i64, i64);
/// A node, whatever its names.
pub(super) type Id = usize;

/// Kind and contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File(Vec<u8>),
    Directory,
    Symlink(String),
    /// FIFOs and devices: `S_IFMT` bits and device number.
    Special(u32, u64),
}

/// All that is known of a node but its names.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// 12 bits.
    pub(super) permissions: u32,
    pub(super) owner: (u32, u32),
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    /// As the file system has said when the node was made.
    pub(super) ino: u64,
}

impl Node {
    pub(super) fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// `st_mode`.
    pub(super) fn mode(&self) -> u32 {
        let kind = match self.kind {
            Kind::File(_) => libc::S_IFREG,
            Kind::Directory => libc::S_IFDIR,
            Kind::Symlink(_) => libc::S_IFLNK,
            Kind::Special(kind, _) => kind,
        };
        kind | self.permissions
    }

    /// A new owner: setuid goes, and setgid where the group may execute; not of directories.
    pub(super) fn drop_privileges(&mut self) {
        if !self.is_dir() {
            self.permissions &= !0o4000;
            if self.permissions & 0o0010 != 0 {
                self.permissions &= !0o2000;
            }
        }
    }
}

/// Names and nodes. Names are paths from the tree's root, which is the empty path.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) names: BTreeMap<String, Id>,
    pub(super) nodes: BTreeMap<Id, Node>,
    next: Id,
}

/// The directory of a path.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Whether `path` lies below `directory`.
pub(super) fn is_below(path: &str, directory: &str) -> bool {
    path.len() > directory.len()
        && path.starts_with(directory)
        && (directory.is_empty() || path.as_bytes()[directory.len()] == b'/')
}

impl Tree {
    /// Only the root.
    pub(super) fn new(root: Node) -> Self {
        Self { names: BTreeMap::from([(String::new(), 0)]), nodes: BTreeMap::from([(0, root)]), next: 1 }
    }

    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        self.names.get(path).map(|id| &self.nodes[id])
    }

    pub(super) fn node(&mut self, path: &str) -> &mut Node {
        let id = self.names[path];
        self.nodes.get_mut(&id).expect("a name has a node")
    }

    /// Names in a directory.
    pub(super) fn list(&self, directory: &str) -> Vec<&str> {
        let inside = |path: &&String| !path.is_empty() && parent(path) == directory;
        self.names.keys().filter(inside).map(|path| path.rsplit('/').next().unwrap_or(path)).collect()
    }

    /// What `st_nlink` must be.
    pub(super) fn links(&self, id: Id) -> u64 {
        if self.nodes[&id].is_dir() {
            let path = self.names.iter().find(|(_, other)| **other == id).map(|(path, _)| path.as_str());
            let subdirectory = |(path_of, of): (&String, &Id)| {
                !path_of.is_empty() && Some(parent(path_of)) == path && self.nodes[of].is_dir()
            };
            2 + self.names.iter().filter(|entry| subdirectory(*entry)).count() as u64
        } else {
            self.names.values().filter(|other| **other == id).count() as u64
        }
    }

    pub(super) fn add(&mut self, path: &str, node: Node) -> Id {
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, node);
        self.names.insert(path.into(), id);
        id
    }

    /// A name goes; gives the node if that was its last.
    pub(super) fn remove(&mut self, path: &str) -> Option<Node> {
        let id = self.names.remove(path)?;
        if self.names.values().any(|other| *other == id) { None } else { self.nodes.remove(&id) }
    }

    /// A name, with all below it, goes elsewhere.
    pub(super) fn relocate(&mut self, from: &str, to: &str) {
        let moved: Vec<(String, Id)> = self
            .names
            .iter()
            .filter(|(path, _)| *path == from || is_below(path, from))
            .map(|(path, id)| (path.clone(), *id))
            .collect();
        for (path, _) in &moved {
            self.names.remove(path);
        }
        for (path, id) in moved {
            self.names.insert(format!("{to}{}", &path[from.len()..]), id);
        }
    }

    /// What `renameat2` must answer: an errno, or 0.
    pub(super) fn rename_verdict(&self, from: &str, to: &str, flags: u32) -> i32 {
        let (exchange, no_replace) =
            (flags & libc::RENAME_EXCHANGE != 0, flags & libc::RENAME_NOREPLACE != 0);
        let Some(source) = self.get(from) else { return libc::ENOENT };
        let target = self.get(to);
        match target {
            Some(_) if no_replace => return libc::EEXIST,
            None if exchange => return libc::ENOENT,
            _ => {}
        }
        if is_below(to, from) {
            return libc::EINVAL;
        }
        if is_below(from, to) {
            return if exchange { libc::EINVAL } else { libc::ENOTEMPTY };
        }
        let Some(target) = target else { return 0 };
        if exchange || self.names[from] == self.names[to] {
            return 0;
        }
        match (source.is_dir(), target.is_dir()) {
            (true, false) => libc::ENOTDIR,
            (false, true) => libc::EISDIR,
            (true, true) if !self.list(to).is_empty() => libc::ENOTEMPTY,
            _ => 0,
        }
    }
}
