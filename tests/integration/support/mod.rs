//! What the tests share.

pub(crate) mod judge;
pub(crate) mod machine;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod processes;
pub(crate) mod proxy;
pub(crate) mod tree;

pub(crate) use judge::{assert_identical, e2fsck_clean, loop_mounted};
pub(crate) use node::{Pair, Setup, mirrorfs, wait_until};
pub(crate) use proxy::{FaultyLink, Way};
