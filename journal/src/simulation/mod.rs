//! For simulations of both ends of a link: the log without its threads, on a disk that can lose what was not synced.

mod disk;

pub use crate::log::{Observed, SimulatedLog};
pub use disk::SimulatedDisk;
