//! The fuzz targets of mirrorfs: everything that reads bytes which somebody else wrote.
//!
//! A target takes its decisions from an [`Input`], which is a seed (smoke runs, the long driver) or a fuzzer's bytes (the
//! crate beside this one, for cargo-fuzz), and panics on what may not happen. `tests/fuzz/README.md` says how to run them.

pub mod allocation;
pub mod broken;
mod control_socket;
mod files;
mod heartbeat;
mod image;
mod input;
mod label;
pub mod mutate;
mod queue;
pub mod runner;
mod transport;
mod undo;
mod units_text;
mod wire;

// Of the binary, which is no library.
#[path = "../../../../src/control/mod.rs"]
mod control;
#[path = "../../../../src/exit_code.rs"]
mod exit_code;
#[path = "../../../../src/units.rs"]
mod units;

use allocation::Bounds;
pub use image::sealed_anew;
pub use input::Input;
use std::time::Duration;

/// One target.
#[derive(Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Runs one case; panics on what may not happen.
    pub run: fn(&mut Input<'_>),
    /// A case that takes longer hangs. Generous: the machine may be loaded.
    pub time_limit: Duration,
    /// What a case may allocate.
    pub bounds: Bounds,
}

/// No case takes a second by itself; the first ones make the images, and the machine may stand still for others' work.
const TIME_LIMIT: Duration = Duration::from_secs(120);

const fn target(name: &'static str, run: fn(&mut Input<'_>), largest: usize, live: usize) -> Target {
    Target { name, run, time_limit: TIME_LIMIT, bounds: Bounds { largest, live } }
}

/// All of them.
pub static TARGETS: [Target; 9] = [
    target("image", image::run, 20 << 20, 160 << 20),
    target("label", label::run, 1 << 20, 8 << 20),
    target("undo", undo::run, 4 << 20, 16 << 20),
    target("wire", wire::run, 2 << 20, 16 << 20),
    target("transport", transport::run, 1 << 20, 16 << 20),
    target("heartbeat", heartbeat::run, 1 << 20, 4 << 20),
    target("queue", queue::run, 16 << 20, 160 << 20),
    target("control", control_socket::run, 1 << 20, 16 << 20),
    target("units", units_text::run, 1 << 20, 1 << 20),
];

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Runs one case of a fuzzer's bytes.
///
/// # Panics
/// If there is no such target; if the case fails.
pub fn run_bytes(name: &str, bytes: &[u8]) {
    let target = find(name).unwrap_or_else(|| panic!("no target {name}"));
    (target.run)(&mut Input::from_bytes(bytes));
}
