//! Renaming.

use super::super::Ext4;
use super::super::attr::{Attr, Context, FileKind, NewNode, RenameMode, Timestamp};
use super::super::dir::Found;
use super::super::error::{FsError, Result, errno};
use super::super::inode::{Inode, flag};
use super::super::tx::{CREDITS, Core, Tx};
use super::super::types::InodeNo;
use super::{add_subdirectory, check_mutable, check_name, drop_link, drop_subdirectory, is_dots};

/// The directories of a rename, held once if they are the same.
struct Parents {
    from: Inode,
    to: Option<Inode>,
}

impl Parents {
    fn to(&self) -> &Inode {
        self.to.as_ref().unwrap_or(&self.from)
    }
    fn to_mut(&mut self) -> &mut Inode {
        self.to.as_mut().unwrap_or(&mut self.from)
    }
    fn differ(&self) -> bool {
        self.to.is_some()
    }
    fn put(&mut self, tx: &mut Tx<'_>, now: Timestamp) -> Result<()> {
        for dir in std::iter::once(&mut self.from).chain(self.to.as_mut()) {
            dir.mtime = now;
            dir.ctime = now;
            tx.put_touched(dir, true)?;
        }
        Ok(())
    }
}

impl Core {
    /// `EINVAL` if `dir` is `ancestor` or lies below it.
    fn check_not_below(&mut self, dir: InodeNo, ancestor: InodeNo) -> Result<()> {
        let mut at = dir;
        let mut steps = 0;
        while at != InodeNo::ROOT {
            if at == ancestor {
                return errno(libc::EINVAL);
            }
            let inode = self.inode(at)?;
            let Some(up) = self.dir_find(&inode, b"..")? else {
                return Err(FsError::corrupt("directory: no \"..\"", Some(at), None));
            };
            at = up.ino;
            steps += 1;
            if steps > self.geometry.inode_count {
                return Err(FsError::corrupt("directory: lies below itself", Some(dir), None));
            }
        }
        if ancestor == InodeNo::ROOT { errno(libc::EINVAL) } else { Ok(()) }
    }
}

impl Ext4 {
    /// Renames, or swaps two names. Gives the attributes of the inode that was replaced, if one was: with no links left, it waits
    /// for [`Ext4::evict`].
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST`, `ENOTEMPTY`, `EISDIR`, `ENOTDIR`, `EBUSY` for "." and "..", `EINVAL` for a directory into its own
    /// subtree, `EMLINK`, `ENOSPC`, `EPERM`.
    pub fn rename(
        &self,
        context: Context,
        from: (InodeNo, &[u8]),
        to: (InodeNo, &[u8]),
        mode: RenameMode,
    ) -> Result<Option<Attr>> {
        check_name(from.1)?;
        check_name(to.1)?;
        if is_dots(from.1) || is_dots(to.1) {
            return errno(libc::EBUSY);
        }
        self.with_tx(context, CREDITS, |tx| tx.rename(from, to, mode))
    }
}

impl Tx<'_> {
    pub(super) fn rename(
        &mut self,
        from: (InodeNo, &[u8]),
        to: (InodeNo, &[u8]),
        mode: RenameMode,
    ) -> Result<Option<Attr>> {
        let core = &mut *self.core;
        let parents = Parents {
            from: core.directory(from.0)?,
            to: if from.0 == to.0 { None } else { Some(core.directory(to.0)?) },
        };
        let source_place = core.find(&parents.from, from.1)?;
        let source = core.named(&parents.from, &source_place)?;
        let target_place = core.dir_find(parents.to(), to.1)?;
        let target = match &target_place {
            Some(found) => Some(core.named(parents.to(), found)?),
            None => None,
        };
        match (mode, &target) {
            (RenameMode::NoReplace | RenameMode::Whiteout { replace: false }, Some(_)) => {
                return errno(libc::EEXIST);
            }
            (RenameMode::Exchange, None) => return errno(libc::ENOENT),
            (_, Some(target)) if target.ino == source.ino => return Ok(None),
            _ => {}
        }
        check_mutable(&parents.from)?;
        check_mutable(&source)?;
        if let Some(target) = &target {
            check_mutable(target)?;
            check_mutable(parents.to())?;
        } else if parents.to().has(flag::IMMUTABLE) {
            return errno(libc::EPERM);
        }
        if source.is_dir() && parents.differ() {
            core.check_not_below(parents.to().ino, source.ino)?;
        }
        match (target, target_place) {
            (Some(target), Some(place)) if mode == RenameMode::Exchange => {
                if target.is_dir() && parents.differ() {
                    core.check_not_below(parents.from.ino, target.ino)?;
                }
                self.exchange(parents, (source, source_place), (target, place))
            }
            (target, place) => {
                let whiteout = matches!(mode, RenameMode::Whiteout { .. });
                let names = (from.1, to.1, whiteout);
                self.replace(parents, (source, source_place), names, target.zip(place))
            }
        }
    }

    fn replace(
        &mut self,
        mut parents: Parents,
        (mut source, source_place): (Inode, Found),
        (from, to, whiteout): (&[u8], &[u8], bool),
        target: Option<(Inode, Found)>,
    ) -> Result<Option<Attr>> {
        let now = Timestamp::now();
        let mut replaced = None;
        if let Some((mut target, place)) = target {
            match (source.is_dir(), target.is_dir()) {
                (true, false) => return errno(libc::ENOTDIR),
                (false, true) => return errno(libc::EISDIR),
                (true, true) if !self.core.dir_is_empty(&target)? => return errno(libc::ENOTEMPTY),
                _ => {}
            }
            self.dir_point(parents.to(), &place, source.ino, source.kind())?;
            self.leave(&mut parents.from, &source_place, whiteout)?;
            if target.is_dir() {
                // Where the parents differ the new directory's link replaces the old one's.
                drop_subdirectory(parents.to_mut());
            }
            drop_link(self, &mut target, now)?;
            self.put_touched(&target, true)?;
            replaced = Some(target.attr());
        } else {
            let ino = source.ino;
            self.dir_insert(parents.to_mut(), to, ino, source.kind())?;
            // The insertion may have moved the old name.
            let place = match self.core.dir_find(&parents.from, from)? {
                Some(place) if place.ino == ino => place,
                _ => return Err(FsError::corrupt("directory: lost a name", Some(parents.from.ino), None)),
            };
            self.leave(&mut parents.from, &place, whiteout)?;
        }
        if source.is_dir() && parents.differ() {
            add_subdirectory(self.core, parents.to_mut())?;
            drop_subdirectory(&mut parents.from);
            self.set_parent(&source, parents.to().ino)?;
        }
        source.ctime = now;
        self.put_touched(&source, true)?;
        parents.put(self, now)?;
        Ok(replaced)
    }

    /// Takes the old name away, or lets it name a new whiteout.
    fn leave(&mut self, dir: &mut Inode, place: &Found, whiteout: bool) -> Result<()> {
        if !whiteout {
            return self.dir_remove(dir, place);
        }
        let node = NewNode::Special(FileKind::CharDevice, 0);
        let inode = self.make_inode(dir, node, 0, 0)?;
        self.dir_point(dir, place, inode.ino, inode.kind())?;
        self.put_touched(&inode, true)
    }

    fn exchange(
        &mut self,
        mut parents: Parents,
        (mut source, source_place): (Inode, Found),
        (mut target, target_place): (Inode, Found),
    ) -> Result<Option<Attr>> {
        let now = Timestamp::now();
        self.dir_point(parents.to(), &target_place, source.ino, source.kind())?;
        self.dir_point(&parents.from, &source_place, target.ino, target.kind())?;
        if parents.differ() {
            if source.is_dir() && !target.is_dir() {
                add_subdirectory(self.core, parents.to_mut())?;
                drop_subdirectory(&mut parents.from);
            }
            if target.is_dir() && !source.is_dir() {
                add_subdirectory(self.core, &mut parents.from)?;
                drop_subdirectory(parents.to_mut());
            }
            if source.is_dir() {
                self.set_parent(&source, parents.to().ino)?;
            }
            if target.is_dir() {
                self.set_parent(&target, parents.from.ino)?;
            }
        }
        for inode in [&mut source, &mut target] {
            inode.ctime = now;
            self.put_touched(inode, true)?;
        }
        parents.put(self, now)?;
        Ok(None)
    }

    /// Lets a directory's ".." name its new parent.
    fn set_parent(&mut self, dir: &Inode, parent: InodeNo) -> Result<()> {
        match self.core.dir_find(dir, b"..")? {
            Some(place) => self.dir_point(dir, &place, parent, FileKind::Directory),
            None => Err(FsError::corrupt("directory: no \"..\"", Some(dir.ino), None)),
        }
    }
}
