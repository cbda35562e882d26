//! The mirror log: the ordered record of every mirror storage request of one link, from the moment the
//! primary image has it until the mirror has made it durable.
//!
//! This is the lowest crate of mirrorfs: it owns the words that `fs` and `net` share ([`request`], [`ids`]).

pub mod codec;
pub mod ids;
pub mod log;
mod medium;
mod queue;
mod regions;
pub mod request;
#[cfg(feature = "simulation")]
pub mod simulation;

pub use ids::{Epoch, Generation, Incarnation, LunId, LunUuid, REGION_BYTES, RegionNo, Sequence};
pub use log::{MirrorLog, QueueView};
pub use queue::index::panics_in_sled;
pub use request::{Body, MirrorRequest, Origin};
