//! Random operations of several threads on a mount against a model in memory.
//!
//! Each thread works in an area of its own, and now and then in one that all share, which is locked for an operation
//! and its comparison: so the outcome of each is exact, errors and times included. Between rounds the mount is taken down,
//! judged by e2fsck, mounted again, and compared as a whole.
//!
//! `MIRRORFS_MODEL_SEED` runs one seed (as a failure names it), `MIRRORFS_MODEL_SEEDS` that many instead of the few
//! of an ordinary run, `MIRRORFS_MODEL_STEPS` sets the steps of each thread in each round.

mod area;
mod tree;

use crate::support::{Mount, can_mount};
use area::{Area, Defect, KINDS, Random};
use mirrorfs_fs::fuse::Mode;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

const THREADS: usize = 4;
const ROUNDS: usize = 3;
const STEPS: usize = 250;
const SEEDS: u64 = 3;

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// One thread of a round. Its own area says by what random numbers it goes to the shared one.
fn work(steps: usize, own: &mut Area, shared: &Mutex<Area>, mut random: Random) {
    for _ in 0..steps {
        if random.below(4) == 0 {
            // Another thread's failure poisons it; that failure is the one to be seen.
            let Ok(mut shared) = shared.lock() else { return };
            shared.step();
        } else {
            own.step();
        }
    }
}

/// Runs a seed; gives the operations that succeeded, by kind.
fn run(seed: u64, steps: usize) -> BTreeMap<&'static str, usize> {
    println!("seed {seed} (MIRRORFS_MODEL_SEED={seed} repeats it)");
    let mode = if seed.is_multiple_of(2) { Mode::Sync } else { Mode::Async };
    let mut mount = Mount::new(&["data"], mode);
    let root = mount.root();
    let area = |name: &str, number: u64| Area::make(root.join(name), seed * 1000 + number, Defect::None);
    let mut areas: Vec<Area> =
        (0..THREADS).map(|index| area(&format!("own-{index}"), index as u64)).collect();
    let shared = Mutex::new(area("shared", 999));
    for round in 0..ROUNDS {
        std::thread::scope(|scope| {
            for (index, own) in areas.iter_mut().enumerate() {
                let shared = &shared;
                let random = Random(seed ^ (index as u64) << 32 ^ (round as u64) << 48);
                scope.spawn(move || work(steps, own, shared, random));
            }
        });
        let mut compare = |close: bool| {
            let names = |area: &mut Area| {
                if close {
                    area.close();
                }
                area.compare_all()
            };
            let own: usize = areas.iter_mut().map(names).sum();
            own + names(&mut shared.lock().unwrap())
        };
        let before = compare(true);
        mount.remount();
        assert_eq!(compare(false), before, "names, seed {seed}");
        assert!(before > 20, "seed {seed}: only {before} names");
    }
    mount.finish();
    let mut done = BTreeMap::new();
    for area in areas.iter().chain([&*shared.lock().unwrap()]) {
        for (kind, count) in &area.done {
            *done.entry(*kind).or_default() += count;
        }
    }
    done
}

#[test]
fn threads_on_a_mount_agree_with_a_model() {
    if !can_mount() {
        return;
    }
    let seeds: Vec<u64> = match setting("MIRRORFS_MODEL_SEED") {
        Some(seed) => vec![seed],
        None => (1..=setting("MIRRORFS_MODEL_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let steps = setting("MIRRORFS_MODEL_STEPS").map_or(STEPS, |steps| steps as usize);
    for seed in seeds {
        let done = run(seed, steps);
        println!("seed {seed}: {done:?}");
        // The suite's own measure: each kind was carried out with success, and most steps were.
        let total: usize = done.values().sum();
        assert!(total * 2 >= THREADS * ROUNDS * steps, "seed {seed}: only {total} operations succeeded");
        for kind in KINDS {
            let count = done.get(kind).copied().unwrap_or(0);
            assert!(
                count * 1000 >= THREADS * ROUNDS * steps,
                "seed {seed}: {kind} succeeded {count} times only"
            );
        }
    }
}

/// A judge that never fails proves nothing: each planted defect must be seen.
#[test]
fn the_model_sees_planted_defects() {
    if !can_mount() {
        return;
    }
    let defects = [
        (Defect::None, ""),
        (Defect::LostXattr, "ctime|attributes"),
        (Defect::WrongLinks, "links"),
        (Defect::TornWrite, "content|size"),
        (Defect::StaleTime, "mtime"),
        (Defect::LostMode, "ctime|mode"),
        (Defect::LeftName, "mtime|names|links"),
    ];
    let mount = Mount::new(&["data"], Mode::Async);
    for (number, (defect, words)) in defects.into_iter().enumerate() {
        let mut area = Area::make(mount.root().join(format!("area-{number}")), 77, defect);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            (0..400).for_each(|_| area.step());
            area.compare_all();
        }));
        match outcome {
            Ok(()) => assert_eq!(defect, Defect::None, "not seen"),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                assert_ne!(defect, Defect::None, "{text}");
                assert!(words.split('|').any(|word| text.contains(word)), "{defect:?}: {text}");
            }
        }
        drop(area);
    }
    mount.finish();
}
