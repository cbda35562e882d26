//! The orphan list: inodes without links still in use, and truncations under way, so that a crash leaves nothing behind.

use super::error::Result;
use super::inode::Inode;
use super::tx::Tx;
use super::types::InodeNo;

/// The list as it stands in memory; on disk it is chained through `i_dtime`, from `s_last_orphan`.
#[derive(Default)]
pub(crate) struct OrphanList {}

#[allow(clippy::unimplemented, unused_variables, dead_code)]
impl OrphanList {
    /// Whether the inode is on the list.
    pub(crate) fn contains(&self, ino: InodeNo) -> bool {
        false
    }
}

#[allow(clippy::unimplemented, unused_variables, dead_code)]
impl Tx<'_> {
    /// Puts the inode at the head of the list (no-op if on it). Changes `inode.dtime`; the caller puts the inode.
    ///
    /// # Errors
    /// As for [`Tx::modify`].
    pub(crate) fn orphan_add(&mut self, inode: &mut Inode) -> Result<()> {
        unimplemented!()
    }
    /// Takes the inode off the list (no-op if not on it), mending its predecessor. The caller puts `inode`.
    ///
    /// # Errors
    /// As for [`Tx::modify`].
    pub(crate) fn orphan_remove(&mut self, inode: &mut Inode) -> Result<()> {
        unimplemented!()
    }
}
