//! Changes of attributes as truncation and writing need them.

use super::super::attr::{SetAttr, Timestamp};
use super::super::error::Result;
use super::super::inode::Inode;
use super::super::tx::Tx;

impl Tx<'_> {
    /// Enters changes of attributes in `inode`; the caller puts it.
    ///
    /// # Errors
    /// None here.
    pub(crate) fn apply_setattr(&mut self, inode: &mut Inode, change: &SetAttr) -> Result<()> {
        if change.uid.is_some() || change.gid.is_some() || change.kill_privileges {
            self.kill_privileges(inode)?;
        }
        inode.uid = change.uid.unwrap_or(inode.uid);
        inode.gid = change.gid.unwrap_or(inode.gid);
        if let Some(permissions) = change.permissions {
            inode.mode = (inode.mode & 0xF000) | (permissions & 0o7777);
        }
        inode.atime = change.atime.unwrap_or(inode.atime);
        inode.mtime = change.mtime.unwrap_or(inode.mtime);
        inode.ctime = change.ctime.unwrap_or_else(Timestamp::now);
        Ok(())
    }

    /// Clears setuid, and setgid where the group may execute.
    ///
    /// # Errors
    /// None here.
    pub(crate) fn kill_privileges(&mut self, inode: &mut Inode) -> Result<()> {
        inode.mode &= !0o4000;
        if inode.mode & 0o010 != 0 {
            inode.mode &= !0o2000;
        }
        Ok(())
    }
}
