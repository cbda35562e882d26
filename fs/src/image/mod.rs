//! The image file, its label, its lock, and the LUN.
//!
//! Invariants: the label (the last 8 KiB of the file) never passes through a [`Lun`]; a request never reaches beyond
//! the file system's end; image write and log append are one step with respect to overlapping requests.

pub mod backing;
pub mod error;
pub mod fault;
mod file;
pub mod format;
pub mod generation;
pub mod label;
mod lock;
pub mod lun;
mod memory;
pub mod open;
mod overlay;
mod publish;
pub mod recorder;
mod reserve;
mod resync;
mod slot;
mod superblock;
mod undo;

pub use backing::{Backing, FileBacking, MemoryBacking};
pub use error::ImageError;
pub use format::{FormatOptions, format};
pub use generation::{Generations, Relation};
pub use label::{Label, Role, State};
pub use lun::Lun;
pub use open::{Found, Image, OpenOptions, read_label};
pub use overlay::OverlayBacking;
