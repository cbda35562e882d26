//! FUSE inode numbers and what they stand for.

use crate::ext4::error::{FsError, Result};
use crate::ext4::types::InodeNo;

/// The number that FUSE gives to a mount's root.
pub(crate) const FUSE_ROOT: u64 = 1;

/// What a FUSE inode number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// The read-only directory of the LUNs, if there are several.
    LunDirectory,
    /// An inode of the LUN with this index.
    Inode(usize, InodeNo),
}

/// How the inode numbers of the LUNs appear in the mount.
///
/// One LUN: its root is the mount's root, so 1 and 2 change places (ext4's 1 is never shown). Several: the LUN's index
/// in the upper 32 bits, the ext4 number below; 1 is the directory of the LUNs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeNumbers {
    luns: usize,
}

impl NodeNumbers {
    pub(crate) fn new(luns: usize) -> Self {
        Self { luns }
    }

    pub(crate) fn is_single(self) -> bool {
        self.luns == 1
    }

    /// What `ino` stands for.
    ///
    /// # Errors
    /// ESTALE for a number that we have never given out.
    pub(crate) fn node(self, ino: u64) -> Result<Node> {
        let lun = (ino >> 32) as usize;
        let low = ino as u32;
        if lun >= self.luns || low == 0 {
            return Err(FsError::Errno(libc::ESTALE));
        }
        Ok(match (self.is_single(), low) {
            (true, 1) => Node::Inode(0, InodeNo(2)),
            (true, 2) => Node::Inode(0, InodeNo(1)),
            (false, 1) if lun == 0 => Node::LunDirectory,
            _ => Node::Inode(lun, InodeNo(low)),
        })
    }

    /// The FUSE number of an inode.
    pub(crate) fn fuse(self, lun: usize, ino: InodeNo) -> u64 {
        match (self.is_single(), ino.0) {
            (true, 2) => 1,
            (true, 1) => 2,
            (_, low) => (lun as u64) << 32 | u64::from(low),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn one_lun_is_the_root_itself() {
        let numbers = NodeNumbers::new(1);
        assert_eq!(numbers.node(FUSE_ROOT).unwrap(), Node::Inode(0, InodeNo::ROOT));
        assert_eq!(numbers.fuse(0, InodeNo::ROOT), FUSE_ROOT);
        for ino in [1, 2, 3, 11, u32::MAX] {
            let fuse = numbers.fuse(0, InodeNo(ino));
            assert_eq!(numbers.node(fuse).unwrap(), Node::Inode(0, InodeNo(ino)));
        }
        assert!(matches!(numbers.node(1 << 32 | 2), Err(FsError::Errno(libc::ESTALE))));
        assert!(numbers.node(0).is_err());
    }

    #[test]
    fn several_luns_lie_below_a_directory() {
        let numbers = NodeNumbers::new(3);
        assert_eq!(numbers.node(FUSE_ROOT).unwrap(), Node::LunDirectory);
        for lun in 0..3 {
            for ino in [2, 11, u32::MAX] {
                let fuse = numbers.fuse(lun, InodeNo(ino));
                assert_ne!(fuse, FUSE_ROOT);
                assert_eq!(numbers.node(fuse).unwrap(), Node::Inode(lun, InodeNo(ino)));
            }
        }
        assert!(numbers.node(3 << 32 | 2).is_err());
    }
}
