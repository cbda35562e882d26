//! POSIX ACLs: the xattr format that programs use (version 2), ext4's encoding (version 1), and what they have to do with mode bits.

use super::super::bytes::{le16, le32};
use super::super::error::{FsError, Result, errno};
use super::super::types::InodeNo;

const XATTR_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// One entry: whom it is about, and what they may do (rwx).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AclEntry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// A valid ACL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<AclEntry>);

impl Acl {
    /// From the xattr format. `None`: an ACL without entries, which means to remove it.
    ///
    /// # Errors
    /// `EINVAL`, `EOPNOTSUPP` for another version.
    pub(crate) fn from_xattr(bytes: &[u8]) -> Result<Option<Self>> {
        if bytes.len() < 4 {
            return errno(libc::EINVAL);
        }
        if le32(bytes, 0) != XATTR_VERSION {
            return errno(libc::EOPNOTSUPP);
        }
        if !(bytes.len() - 4).is_multiple_of(8) {
            return errno(libc::EINVAL);
        }
        let entries: Vec<AclEntry> = bytes[4..]
            .chunks_exact(8)
            .map(|raw| {
                let tag = le16(raw, 0);
                let id = if matches!(tag, USER | GROUP) { le32(raw, 4) } else { NO_ID };
                AclEntry { tag, permissions: le16(raw, 2), id }
            })
            .collect();
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Self(entries);
        if acl.is_valid() { Ok(Some(acl)) } else { errno(libc::EINVAL) }
    }

    /// In the xattr format.
    pub(crate) fn to_xattr(&self) -> Vec<u8> {
        let mut bytes = XATTR_VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend(entry.tag.to_le_bytes());
            bytes.extend(entry.permissions.to_le_bytes());
            bytes.extend(entry.id.to_le_bytes());
        }
        bytes
    }

    /// From ext4's encoding.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn from_disk(bytes: &[u8], ino: InodeNo) -> Result<Self> {
        let bad = || FsError::corrupt("ACL", Some(ino), None);
        if bytes.len() < 4 || le32(bytes, 0) != DISK_VERSION {
            return Err(bad());
        }
        let mut entries = Vec::new();
        let mut rest = &bytes[4..];
        while !rest.is_empty() {
            if rest.len() < 4 {
                return Err(bad());
            }
            let (tag, permissions) = (le16(rest, 0), le16(rest, 2));
            let named = matches!(tag, USER | GROUP);
            if named && rest.len() < 8 {
                return Err(bad());
            }
            entries.push(AclEntry { tag, permissions, id: if named { le32(rest, 4) } else { NO_ID } });
            rest = &rest[if named { 8 } else { 4 }..];
        }
        let acl = Self(entries);
        if acl.is_valid() { Ok(acl) } else { Err(bad()) }
    }

    /// In ext4's encoding.
    pub(crate) fn to_disk(&self) -> Vec<u8> {
        let mut bytes = DISK_VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend(entry.tag.to_le_bytes());
            bytes.extend(entry.permissions.to_le_bytes());
            if matches!(entry.tag, USER | GROUP) {
                bytes.extend(entry.id.to_le_bytes());
            }
        }
        bytes
    }

    /// The kernel's `posix_acl_valid`: entries in order, one of each that must be there, a mask if anybody is named.
    fn is_valid(&self) -> bool {
        let mut expect = USER_OBJ;
        let mut needs_mask = false;
        for entry in &self.0 {
            if entry.permissions & !7 != 0 {
                return false;
            }
            let allowed = match entry.tag {
                USER_OBJ => expect == USER_OBJ,
                USER => expect == USER,
                GROUP_OBJ => expect == USER,
                GROUP => expect == GROUP,
                MASK => expect == GROUP,
                OTHER => expect == OTHER || (expect == GROUP && !needs_mask),
                _ => false,
            };
            if !allowed || (matches!(entry.tag, USER | GROUP) && entry.id == NO_ID) {
                return false;
            }
            needs_mask |= matches!(entry.tag, USER | GROUP);
            expect = match entry.tag {
                USER_OBJ | USER => USER,
                GROUP_OBJ | GROUP => GROUP,
                MASK => OTHER,
                _ => 0,
            };
        }
        expect == 0
    }

    fn find(&mut self, tag: u16) -> Option<&mut AclEntry> {
        self.0.iter_mut().find(|entry| entry.tag == tag)
    }

    /// The permission bits that this access ACL stands for, and whether they say all of it (no named entry, no mask).
    pub(crate) fn mode(&self) -> (u16, bool) {
        let (mut mode, mut mask) = (0, None);
        let mut equivalent = true;
        for entry in &self.0 {
            match entry.tag {
                USER_OBJ => mode |= entry.permissions << 6,
                GROUP_OBJ => mode |= entry.permissions << 3,
                OTHER => mode |= entry.permissions,
                MASK => mask = Some(entry.permissions),
                _ => equivalent = false,
            }
        }
        if let Some(mask) = mask {
            return ((mode & !0o070) | mask << 3, false);
        }
        (mode, equivalent)
    }

    /// After chmod: owner's, mask's (or group's) and others' entries follow the mode.
    pub(crate) fn follow_mode(&mut self, mode: u16) {
        let group = if self.find(MASK).is_some() { MASK } else { GROUP_OBJ };
        for (tag, permissions) in [(USER_OBJ, mode >> 6), (group, mode >> 3), (OTHER, mode)] {
            if let Some(entry) = self.find(tag) {
                entry.permissions = permissions & 7;
            }
        }
    }

    /// Makes a default ACL the access ACL of a new inode with `mode`: each takes away from the other. Returns the new mode,
    /// and whether the ACL says more than that.
    pub(crate) fn inherit(&mut self, mode: u16) -> (u16, bool) {
        let group = if self.find(MASK).is_some() { MASK } else { GROUP_OBJ };
        let mut permissions = mode & 0o777;
        for (tag, shift) in [(USER_OBJ, 6), (group, 3), (OTHER, 0)] {
            if let Some(entry) = self.find(tag) {
                entry.permissions &= (mode >> shift) & 7;
                permissions &= !(7 << shift) | entry.permissions << shift;
            }
        }
        let more = self.0.iter().any(|entry| matches!(entry.tag, USER | GROUP | MASK));
        ((mode & !0o777) | permissions, more)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn xattr(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    const NAMED: [(u16, u16, u32); 5] =
        [(USER_OBJ, 7, NO_ID), (USER, 6, 1000), (GROUP_OBJ, 5, NO_ID), (MASK, 7, NO_ID), (OTHER, 4, NO_ID)];

    #[test]
    fn converts_both_ways() {
        let acl = Acl::from_xattr(&xattr(&NAMED)).unwrap().unwrap();
        let disk = acl.to_disk();
        assert_eq!(disk.len(), 4 + 4 * 4 + 8);
        assert_eq!(Acl::from_disk(&disk, InodeNo(11)).unwrap(), acl);
        assert_eq!(acl.to_xattr(), xattr(&NAMED));
        assert_eq!(acl.mode(), (0o774, false));
        assert_eq!(Acl::from_xattr(&xattr(&[])).unwrap(), None);
    }

    #[test]
    fn refuses_what_the_kernel_refuses() {
        for wrong in [
            &NAMED[1..],
            &NAMED[..4],
            &[NAMED[0], NAMED[1], NAMED[2], NAMED[4]],
            &[NAMED[1], NAMED[0], NAMED[2], NAMED[3], NAMED[4]],
            &[NAMED[0], (USER, 9, 5), NAMED[2], NAMED[3], NAMED[4]],
            &[NAMED[0], NAMED[0], NAMED[2], NAMED[4]],
        ] {
            assert!(Acl::from_xattr(&xattr(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn inherits_and_follows_the_mode() {
        let mut acl = Acl::from_xattr(&xattr(&NAMED)).unwrap().unwrap();
        assert_eq!(acl.inherit(0o100_640), (0o100_640, true));
        assert_eq!(acl.mode().0, 0o640);
        acl.follow_mode(0o751);
        assert_eq!(acl.mode().0, 0o751);
        let mut base = Acl::from_xattr(&xattr(&[NAMED[0], NAMED[2], NAMED[4]])).unwrap().unwrap();
        assert_eq!(base.inherit(0o666), (0o644, false));
    }
}
