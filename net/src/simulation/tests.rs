//! Random lives; defects planted.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::faults::Faults;
use super::random::Random;
use super::world::World;
use super::{Defect, Settings};

const PHASES: u64 = 4;
const PHASE_STEPS: u64 = 4000;

/// One life: faults, then peace in which both sides must come together, some times over.
fn life(seed: u64, defect: Option<Defect>) -> World {
    let mut random = Random::new(seed);
    let settings = Settings::random(&mut random);
    let mut world = World::new(seed, settings, defect);
    for _ in 0..PHASES {
        world.faults = Faults::random(&mut random);
        world.run_until(PHASE_STEPS, |_| false);
        if world.violation.is_some() {
            break;
        }
        world.must_recover();
    }
    world
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn lives() {
    let only = number("MIRRORFS_SIMULATION_SEED");
    let wanted = number("MIRRORFS_SIMULATION_STEPS").unwrap_or(1_000_000);
    let (mut steps, mut seeds, mut failed) = (0, 0, 0);
    let mut seed = only.unwrap_or(1);
    let mut counts = super::world::Counts::default();
    while steps < wanted && (only.is_none() || seeds == 0) {
        let world = life(seed, None);
        counts.add(&world.counts);
        steps += world.steps;
        seeds += 1;
        if let Some(violation) = &world.violation {
            failed += 1;
            if number("MIRRORFS_SIMULATION_GO_ON").is_none() {
                println!("{}", world.trace());
            }
            println!("seed {seed}, step {}, {:?}: {violation}", world.steps, world.settings);
            if number("MIRRORFS_SIMULATION_GO_ON").is_none() {
                break;
            }
        }
        seed += 1;
    }
    println!("{counts:?}");
    println!("simulation: seeds={seeds} steps={steps} failed={failed}");
    assert_eq!(failed, 0, "replay with MIRRORFS_SIMULATION_SEED={seed}");
    assert!(only.is_some() || counts.all_happened(), "the lives were too quiet: {counts:?}");
}

/// Lives with this defect, until the judge has found it.
fn is_caught(defect: Defect) {
    for seed in 1..=LIVES_WITH_A_DEFECT {
        let world = life(seed, Some(defect));
        if let Some(violation) = &world.violation {
            println!("{defect:?}: seed {seed}, step {}: {violation}", world.steps);
            return;
        }
    }
    panic!("{defect:?} was not found out in {LIVES_WITH_A_DEFECT} lives");
}

/// Lives in which a planted defect must have been found.
const LIVES_WITH_A_DEFECT: u64 = 60;

#[test]
fn swapped_barriers_are_caught() {
    is_caught(Defect::BarriersSwapped);
}

#[test]
fn durable_answered_before_the_sync_is_caught() {
    is_caught(Defect::DurableBeforeSync);
}

#[test]
fn overlapping_requests_on_two_connections_are_caught() {
    is_caught(Defect::OverlappingOnTwo);
}

#[test]
fn retirement_at_applied_is_caught() {
    is_caught(Defect::RetiredAtApplied);
}

#[test]
fn an_old_session_that_still_applies_is_caught() {
    is_caught(Defect::OldSessionStillApplying);
}

#[test]
fn reused_epoch_numbers_are_caught() {
    is_caught(Defect::EpochReused);
}
