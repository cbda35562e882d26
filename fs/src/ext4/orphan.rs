//! The orphan list: inodes without links still in use, and truncations under way, so that a crash leaves nothing behind.
//!
//! On disk it is a chain through `i_dtime` from `s_last_orphan`; in memory each member knows both neighbours, so that one can
//! leave without a walk.

use super::Ext4;
use super::attr::{Context, FileKind};
use super::error::{FsError, Result};
use super::inode::{Inode, flag};
use super::tx::{CREDITS, Core, Tx};
use super::types::{BlockNo, FileBlock, InodeNo};
use mirrorfs_journal::Origin;
use rustc_hash::FxHashMap;

/// Neighbours of a member; 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Links {
    /// Nearer the head (added later).
    newer: u32,
    /// The next on disk (added earlier).
    older: u32,
}

/// The list as it stands in memory; its head is `Core::last_orphan`.
#[derive(Default)]
pub(crate) struct OrphanList {
    members: FxHashMap<u32, Links>,
    /// The chain of an earlier mount has been read: what is on the list since then is in use.
    loaded: bool,
}

impl OrphanList {
    /// Whether the inode is on the list.
    pub(crate) fn contains(&self, ino: InodeNo) -> bool {
        self.members.contains_key(&ino.0)
    }
    /// The inode behind `ino` on disk; 0: none.
    pub(crate) fn behind(&self, ino: u32) -> u32 {
        self.members.get(&ino).map_or(0, |links| links.older)
    }
    /// Members, in no order.
    pub(crate) fn members(&self) -> impl Iterator<Item = InodeNo> + '_ {
        self.members.keys().map(|ino| InodeNo(*ino))
    }

    fn link(&mut self, ino: u32, links: Links) {
        if let Some(newer) = self.members.get_mut(&links.newer) {
            newer.older = ino;
        }
        if let Some(older) = self.members.get_mut(&links.older) {
            older.newer = ino;
        }
        self.members.insert(ino, links);
    }

    fn unlink(&mut self, ino: u32) -> Option<Links> {
        let links = self.members.remove(&ino)?;
        if let Some(newer) = self.members.get_mut(&links.newer) {
            newer.older = links.older;
        }
        if let Some(older) = self.members.get_mut(&links.older) {
            older.newer = links.newer;
        }
        Some(links)
    }
}

impl Tx<'_> {
    /// Puts the inode at the head of the list (no-op if on it). Changes `inode.dtime`; the caller puts the inode.
    ///
    /// # Errors
    /// None today; reserved for reading the list.
    pub(crate) fn orphan_add(&mut self, inode: &mut Inode) -> Result<()> {
        let ino = inode.ino.0;
        if self.core.orphans.contains(inode.ino) {
            return Ok(());
        }
        let older = self.core.last_orphan;
        self.core.orphans.link(ino, Links { newer: 0, older });
        self.on_rollback(move |core| {
            core.orphans.unlink(ino);
        });
        inode.dtime = older;
        self.core.last_orphan = ino;
        self.core.counts_changed = true;
        Ok(())
    }

    /// Takes the inode off the list (no-op if not on it), mending its predecessor. Sets `inode.dtime` to 0; the caller puts `inode`.
    ///
    /// # Errors
    /// As for [`Tx::modify`].
    pub(crate) fn orphan_remove(&mut self, inode: &mut Inode) -> Result<()> {
        let ino = inode.ino.0;
        let Some(links) = self.core.orphans.unlink(ino) else { return Ok(()) };
        self.on_rollback(move |core| core.orphans.link(ino, links));
        if links.newer == 0 {
            self.core.last_orphan = links.older;
            self.core.counts_changed = true;
        } else {
            let mut newer = self.core.inode_raw(InodeNo(links.newer))?;
            newer.dtime = links.older;
            self.put_inode(&newer)?;
        }
        inode.dtime = 0;
        Ok(())
    }
}

impl Core {
    /// Loads the chain that the superblock begins. A chain that can't be is left alone, with no member known.
    pub(super) fn load_orphans(&mut self) -> Result<()> {
        self.orphans = OrphanList { loaded: true, ..OrphanList::default() };
        self.load_chain().inspect_err(|_| self.orphans.members.clear())
    }

    fn load_chain(&mut self) -> Result<()> {
        let (mut newer, mut next) = (0, self.last_orphan);
        while next != 0 {
            let ino = InodeNo(next);
            let corrupt = |what: &str| Err(FsError::corrupt(format!("orphan list: {what}"), Some(ino), None));
            if next < self.geometry.first_inode || next > self.geometry.inode_count {
                return corrupt("impossible inode number");
            }
            if self.orphans.contains(ino) {
                return corrupt("goes round in a circle");
            }
            let inode = self.inode_raw(ino)?;
            if FileKind::from_mode(inode.mode).is_none() {
                return corrupt("names a free inode");
            }
            self.orphans.link(next, Links { newer, older: inode.dtime });
            (newer, next) = (next, inode.dtime);
        }
        Ok(())
    }
}

impl Ext4 {
    /// Works off the orphan list found at mount: deletes what has no links, finishes truncations of what has. For the mount, behind
    /// journal replay and before the first change; once more (a remount), it does nothing: orphans are then files in use.
    ///
    /// # Errors
    /// `Corrupt` for a list that can't be; I/O errors.
    pub(crate) fn clean_orphans(&self) -> Result<()> {
        let members: Vec<InodeNo> = self.with_core(|core| {
            if core.orphans.loaded {
                return Ok(Vec::new());
            }
            core.load_orphans()?;
            Ok(core.orphans.members().collect())
        })?;
        if members.is_empty() {
            return Ok(());
        }
        log::info!("orphan list: {} inodes to delete or to truncate", members.len());
        let context = Context { uid: 0, gid: 0, may_block: true };
        for ino in members {
            if self.with_core(|core| Ok(core.inode_raw(ino)?.links))? == 0 {
                self.evict(context, ino)?;
            } else {
                self.finish_truncate(context, ino)?;
            }
        }
        Ok(())
    }

    /// Frees all inodes without links, when nobody uses any more: before a clean close. What fails stays for the next mount.
    pub(crate) fn evict_orphans(&self) {
        let context = Context { uid: 0, gid: 0, may_block: true };
        let members: Vec<InodeNo> = {
            let core = self.core.lock();
            if core.read_only.is_some() {
                return;
            }
            core.orphans.members().collect()
        };
        for ino in members {
            if let Err(error) = self.evict(context, ino) {
                log::warn!("inode {ino}: not freed at unmount: {error}; the next mount will do it");
            }
        }
    }

    fn finish_truncate(&self, context: Context, ino: InodeNo) -> Result<()> {
        loop {
            let done = self.with_tx(context, CREDITS, |tx| {
                let mut inode = tx.core.inode_raw(ino)?;
                let mut done = true;
                if inode.kind() == FileKind::Regular && inode.has(flag::EXTENTS) {
                    let block_size = u64::from(tx.core.geometry.block_size);
                    zero_last_block(tx.core, &inode, block_size)?;
                    let keep = inode.size.div_ceil(block_size);
                    done = tx.free_file_blocks(&mut inode, keep)?;
                }
                if done {
                    tx.orphan_remove(&mut inode)?;
                }
                tx.put_inode(&inode)?;
                Ok(done)
            })?;
            if done {
                return Ok(());
            }
        }
    }
}

/// The bytes behind a file's end in its last block must read as zeros when the file grows again.
fn zero_last_block(core: &mut Core, inode: &Inode, block_size: u64) -> Result<()> {
    let used = inode.size % block_size;
    let Ok(last) = u32::try_from(inode.size / block_size) else { return Ok(()) };
    if used == 0 {
        return Ok(());
    }
    let Some(BlockNo(block)) = core.map_block(inode, FileBlock(last))? else { return Ok(()) };
    let mut bytes = vec![0; block_size as usize];
    core.lun.read(block * block_size, &mut bytes)?;
    if bytes[used as usize..].iter().any(|byte| *byte != 0) {
        bytes[used as usize..].fill(0);
        core.lun.write(block * block_size, bytes.into(), Origin::File(inode.ino.0))?;
    }
    Ok(())
}
