//! The ext4 file system in an image.

pub mod error;
pub mod types;
