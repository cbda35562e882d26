//! A seeded run of each target, some seconds each. `MIRRORFS_FUZZ_SEED=N` runs one seed alone, `MIRRORFS_FUZZ_MORE=N` adds N
//! cases with new ones.
//!
//! The counts show that the mutations reach what is behind the checksums; they are not asserted for a seed alone.

use mirrorfs_fuzz_targets::allocation::Watching;
use mirrorfs_fuzz_targets::find;
use mirrorfs_fuzz_targets::runner::{SEED_VARIABLE, smoke};

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Runs `cases` cases; each of `at_least` must have been counted so often.
fn run(name: &str, cases: u64, at_least: &[(&str, u64)]) {
    let report = smoke(find(name).unwrap_or_else(|| panic!("no target {name}")), cases);
    if std::env::var_os(SEED_VARIABLE).is_some() {
        return;
    }
    assert!(report.cases >= cases, "{} of {cases} cases were run", report.cases);
    for (what, count) in at_least {
        assert!(report.count(what) >= *count, "only {} of {what}: {:?}", report.count(what), report.counts);
    }
}

#[test]
fn damaged_images() {
    let counts =
        [("mounted", 200), ("not mounted", 20), ("damage met", 80), ("operation", 50_000), ("closed", 150)];
    run("image", 300, &counts);
}

#[test]
fn damaged_labels() {
    run(
        "label",
        1000,
        &[("label read", 400), ("label refused", 150), ("opened", 500), ("resized", 80), ("closed", 200)],
    );
}

#[test]
fn damaged_undo_files() {
    run("undo", 400, &[("taken up", 60), ("given up", 200), ("taken back", 60)]);
}

#[test]
fn damaged_messages() {
    run(
        "wire",
        10_000,
        &[
            ("control read", 1000),
            ("record read", 2000),
            ("barrier read", 300),
            ("response read", 1500),
            ("stream ended", 3000),
        ],
    );
}

#[test]
fn changed_connections() {
    run("transport", 40, &[("connected", 5), ("no handshake", 5)]);
}

#[test]
fn forged_heartbeats() {
    run("heartbeat", 1000, &[("accepted", 20_000), ("accepted with the key", 100), ("forgery seen", 8000)]);
}

#[test]
fn damaged_queues() {
    run("queue", 16, &[("opened", 12), ("replayed", 2), ("mirror compared", 4)]);
}

#[test]
fn senseless_control_messages() {
    run("control", 2000, &[("answered", 150), ("refused", 400), ("reply read", 40)]);
}

#[test]
fn senseless_sizes_and_times() {
    run("units", 10_000, &[("size", 500), ("time", 40)]);
}
