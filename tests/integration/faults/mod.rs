//! Each fault that two machines and a network can produce, under a running workload that fsyncs.
//!
//! While it lasts and when it is over a copy of the mirror, taken at one instant, is clean after journal replay and holds
//! every file whose fsync was confirmed (asynchronous mode: by `mirrorfs sync`). After healing both images are equal and
//! the queue is empty. As a test each fault runs once, with mode and number of connections rotating; all combinations are
//! run by `--matrix` (see [`matrix`]).

mod host_faults;
mod link_faults;
pub(crate) mod matrix;
mod stage;

use crate::support::Way;
use crate::support::namespace::lacking_namespaces;
use libtest_mimic::Trial;
use stage::Stage;
use std::fmt;
use std::time::Duration;

/// Numbers of connections that are tried.
const WORKERS: [u16; 3] = [1, 4, 16];

/// When a write is answered, and with that what must be on the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Async,
    Sync,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Async { "async" } else { "sync" })
    }
}

/// One combination.
#[derive(Clone, Copy)]
struct Cell {
    fault: &'static Fault,
    mode: Mode,
    workers: u16,
    /// Flaps more often: for the whole matrix.
    thorough: bool,
}

impl Cell {
    fn run(self) {
        Stage::start(self).run(self.fault.scenario);
    }
}

/// A fault, and what it needs.
struct Fault {
    name: &'static str,
    scenario: fn(&mut Stage),
    /// More arguments of the mount.
    arguments: &'static [&'static str],
    /// MiB of a disk of its own below the peer's directory, below the queue.
    mirror_disk: Option<u32>,
    queue_disk: Option<u32>,
    /// Synchronous mode: the scenario writes during the outage, so that answers may not wait for its end.
    writes_during_outage: bool,
    /// Each side in a network namespace of its own.
    namespaces: bool,
}

const fn fault(name: &'static str, scenario: fn(&mut Stage)) -> Fault {
    Fault {
        name,
        scenario,
        arguments: &[],
        mirror_disk: None,
        queue_disk: None,
        writes_during_outage: false,
        namespaces: false,
    }
}

const FAULTS: &[Fault] = &[
    fault("peer_killed", host_faults::peer_killed),
    fault("primary_killed", host_faults::primary_killed),
    fault("both_killed", host_faults::both_killed),
    fault("link_cut", |stage| stage.outage(|stage| stage.link.unplug())),
    fault("connections_broken", link_faults::connections_broken),
    fault("one_way_loss_to_the_mirror", |stage| {
        stage.outage(|stage| stage.link.unplug_way(Way::ToMirror));
    }),
    fault("one_way_loss_to_the_primary", |stage| {
        stage.outage(|stage| stage.link.unplug_way(Way::ToPrimary));
    }),
    fault("flapping_every_second", |stage| link_faults::flapping(stage, Duration::from_secs(1), 3)),
    fault("flapping_every_five_seconds", |stage| link_faults::flapping(stage, Duration::from_secs(5), 1)),
    fault("a_fifth_of_the_datagrams_lost", link_faults::a_fifth_lost),
    fault("a_link_of_one_mib_a_second", link_faults::slow_link),
    fault("a_hundred_milliseconds_of_delay", link_faults::delayed_link),
    fault("datagrams_duplicated_and_forged", link_faults::forged),
    fault("a_bit_flipped_on_the_wire", link_faults::flipped),
    Fault {
        mirror_disk: Some(24),
        writes_during_outage: true,
        ..fault("the_peers_disk_is_full", host_faults::full_mirror)
    },
    Fault {
        arguments: &["--stall-timeout=1s"],
        ..fault("a_stalled_link_with_heartbeats", link_faults::stalled)
    },
    Fault {
        queue_disk: Some(6),
        writes_during_outage: true,
        ..fault("the_queues_disk_is_full", host_faults::full_queue)
    },
    fault("heartbeats_lost_both_ways_on_a_busy_link", link_faults::heartbeats_lost),
    Fault { writes_during_outage: true, ..fault("a_damaged_segment", host_faults::damaged_segment) },
    Fault { writes_during_outage: true, ..fault("damaged_sled_files", host_faults::damaged_index) },
    Fault { namespaces: true, ..fault("the_interface_taken_down", link_faults::interface_down) },
];

/// Each fault once, with mode and number of connections rotating.
pub(crate) fn trials(lacking: bool) -> Vec<Trial> {
    let mut trials: Vec<Trial> = FAULTS
        .iter()
        .enumerate()
        .map(|(row, fault)| {
            let mode = [Mode::Async, Mode::Sync][row % 2];
            let cell = Cell { fault, mode, workers: WORKERS[row % 3], thorough: false };
            let ignored = lacking || fault.namespaces && lacking_namespaces().is_some();
            Trial::test(format!("faults::{}", fault.name), move || crate::guarded(|| cell.run()))
                .with_ignored_flag(ignored)
        })
        .collect();
    let judges = || crate::guarded(|| JUDGES.run());
    trials.push(Trial::test("faults::the_judges_fail_when_they_should", judges).with_ignored_flag(lacking));
    trials
}

/// Not a fault: what would make the others worthless.
const JUDGES: Cell = Cell {
    fault: &fault("the_judges_fail_when_they_should", host_faults::judges_fail),
    mode: Mode::Async,
    workers: 4,
    thorough: false,
};
