//! The log's part on disk: segment files, found again through an index that can be rebuilt from them.
#![doc = include_str!("../../FORMAT.md")]

pub(crate) mod disk;
pub(crate) mod index;
pub(crate) mod recovery;
pub(crate) mod segment;
#[cfg(test)]
mod tests;
