//! The primary storage of mirrorfs: block image, ext4 with jbd2, and the FUSE frontend.
//!
//! - [`image`]: the image file, its label and lock, and the LUN: the tee that applies a primary storage request to
//!   the image and hands the mirror storage request to the mirror log.
//! - [`ext4`]: the file system in the image; all metadata changes go through jbd2 transactions.
//! - [`fuse`]: the FUSE frontend over one or several LUNs.

pub mod ext4;
pub mod fuse;
pub mod image;
