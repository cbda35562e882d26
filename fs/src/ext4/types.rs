//! Numbers of the ext4 core, each a type of its own.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

number! {
    /// A file system block, counted from the image's start.
    BlockNo(u64)
}
number! {
    /// A block within a file, counted from its start. ext4 allows 2^32.
    FileBlock(u32)
}
number! {
    /// An ext4 inode number; the root is 2.
    InodeNo(u32)
}
number! {
    /// A block group.
    GroupNo(u32)
}
number! {
    /// A jbd2 transaction id. Wraps; compare with [`Tid::is_before`].
    Tid(u32)
}

impl InodeNo {
    /// The root directory.
    pub const ROOT: Self = Self(2);
    /// The jbd2 journal.
    pub const JOURNAL: Self = Self(8);
}

impl Tid {
    /// Whether this transaction came before `other` (jbd2's `tid_gt`, for at most 2^31 apart).
    #[must_use]
    pub fn is_before(self, other: Self) -> bool {
        (other.0.wrapping_sub(self.0) as i32) > 0
    }
    /// The next transaction.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}
