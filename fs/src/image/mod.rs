//! The image file, its label, its lock, and the LUN.
//!
//! Invariants: the label (the last 8 KiB of the file) never passes through a [`Lun`]; a request never reaches beyond
//! the file system's end; image write and log append are one step with respect to overlapping requests.

pub mod backing;
mod file;
pub mod lun;
mod memory;
mod reserve;

pub use backing::Backing;
pub use lun::Lun;
