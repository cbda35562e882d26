//! Heartbeats, probation and the state of the link as pure logic: bytes, events and [`Now`] in, datagrams, verdicts and
//! actions out. No socket, no clock, no thread; the threads of [`crate::link`] and [`crate::peer`] own those.
//!
//! An interruption is noticed at the latest one heartbeat timeout plus one heartbeat interval after the last heartbeat
//! that got through, in either direction: by the silence itself, or by the other side's marks.

mod datagram;
#[cfg(test)]
mod false_cuts;
pub mod heartbeat;
pub mod link_state;
mod now;
pub mod probation;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use now::{Clock, Now};
