//! The jbd2 journal: its form, its replay at open, and the log that transactions are written to.
//!
//! Invariants: a block of the log is written again only after a flush behind the journal superblock that moved the tail past
//! it; a commit block is written only after a flush behind everything it commits.

mod checksum;
mod format;
mod log;
mod map;
mod recovery;

#[cfg(test)]
pub(super) use checksum::seal_superblock;
pub(super) use log::{Log, Recovered};

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
