//! Both ends of a link in one simulation: link state, probation, sessions, order, log, queue and the peer's application run
//! without sockets, clock, threads and disk, under a seeded scheduler that drops, delays, duplicates and reorders
//! datagrams, cuts and stalls connections, partitions, and crashes either side, which loses what was not synced or keeps a
//! random part of it.
//!
//! What runs is the product's own code: [`mirrorfs_journal::MirrorLog`] with its queue and region maps (on a simulated disk),
//! [`crate::supervise`], [`crate::connection`], [`crate::link::rules`] and routing, [`crate::peer::life`], the gate and the
//! images. What is simulated is what surrounds it: each step that a thread would make is a step of the scheduler.
//!
//! After **each** step the judge asks what a power cut would now leave of the mirror: a state that the primary was in at
//! a barrier, with a part of the next epoch, and no less than what was said to be durable (also by retiring it).
//!
//! Not simulated: handshakes and bytes on the wire, a disk that changes bytes, `Check` records, two directions.
//!
//! `MIRRORFS_SIMULATION_STEPS=50000000 cargo test --release -p mirrorfs-net --lib simulation::tests::lives -- --nocapture` is a long
//! run; `MIRRORFS_SIMULATION_SEED=N` replays one life, step by step; `MIRRORFS_SIMULATION_GO_ON=1` does not stop at the first
//! life that fails.

mod blocks;
mod faults;
mod histories;
mod judge;
mod mirror;
mod network;
mod primary;
mod random;
mod sender;
mod tests;
mod threads;
mod world;

use crate::config::Times;
use mirrorfs_journal::log::OnOutage;
use random::Random;
use std::time::Duration;

/// Defects that can be planted, so that each judge is seen to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    /// A request of the next epoch is sent before the barrier.
    BarriersSwapped,
    /// The peer answers durable, then syncs.
    DurableBeforeSync,
    /// Requests go round the connections, whatever their region.
    OverlappingOnTwo,
    /// The primary takes an epoch for durable when all of its requests are applied.
    RetiredAtApplied,
    /// A new session opens the images while the old one still writes.
    OldSessionStillApplying,
    /// The incarnation is not raised at a mount.
    EpochReused,
    /// The first epoch of a session is applied as it comes.
    NoGather,
}

/// How a world is set up.
#[derive(Clone, Copy, Debug)]
struct Settings {
    luns: usize,
    connections: u16,
    memory_bytes: u64,
    queue_bytes: u64,
    on_outage: OnOutage,
}

impl Settings {
    fn random(random: &mut Random) -> Self {
        Self {
            luns: 1 + random.below(2) as usize,
            connections: 1 + random.below(4) as u16,
            memory_bytes: [8 << 10, 24 << 10, 200 << 10, 1 << 20][random.below(4) as usize],
            queue_bytes: [60 << 10, 1 << 20, 8 << 20][random.below(3) as usize],
            on_outage: [OnOutage::Queue, OnOutage::Block, OnOutage::Readonly][random.below(3) as usize],
        }
    }
}

fn times() -> Times {
    Times {
        heartbeat_interval: Duration::from_millis(20),
        heartbeat_timeout: Duration::from_millis(200),
        request_timeout: Duration::from_millis(100),
        probation: Duration::from_millis(100),
        stall_timeout: Duration::from_secs(1),
    }
}
