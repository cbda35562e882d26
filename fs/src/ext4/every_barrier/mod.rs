//! Every barrier: a workload is recorded request by request, and for each sync that ended the image is rebuilt as it was there,
//! and with random parts of the requests that came after it, up to the next. Each of these states is recovered twice, by
//! ourselves and by `e2fsck -E journal_only`. What must hold of each:
//!
//! - both replays give the same bytes (superblocks aside; where orphans are left e2fsck cleans them up in the same run, and what
//!   the two give is judged, not compared), and `e2fsck -fn` finds nothing in either, ours after a mount for changes and a close;
//! - names, links, attributes and symbolic links are those behind one operation, not before the last that was synced;
//! - a file that was fsynced is there, with what it held then or was given since, unit by unit;
//! - no file shows another's data, older data of its own, or garbage.
//!
//! 1,000 states are judged without more ado. A long run:
//!
//! ```text
//! MIRRORFS_BARRIER_STATES=10000 cargo test -p mirrorfs-fs --locked --lib every_barrier_leaves -- --nocapture
//! ```
//!
//! `MIRRORFS_BARRIER_STATES=N`: at least that many states, of at least a twentieth as many barriers (both asserted).
//! `MIRRORFS_BARRIER_SEED=S`: the first recording's seed (1 without it); each further one has the next. A seed stands for the
//! operations of every thread and for the choice of states; how the threads interleave is the machine's doing, therefore
//! `MIRRORFS_BARRIER_KEEP=DIR` keeps the images that fail. The run ends with a line for scripts:
//! `every-barrier: barriers=B states=N failed=F`.

mod content;
mod fsck;
mod history;
mod judge;
mod pages;
mod planted;
mod record;
mod states;
mod worker;
mod workload;

use super::defect::Planted;
use crate::image::recorder::Event;
use record::{Form, Plan, record};
use states::{Limits, Tally, judge_all};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// As mke2fs makes images today.
const FORM_4K: Form = Form {
    block_size: 4096,
    features: "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,\
               dir_nlink,extra_isize,metadata_csum",
    free_bytes: 6 << 20,
};
/// Checksums, but block numbers of 32 bits.
const FORM_2K: Form = Form {
    block_size: 2048,
    features: "has_journal,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,extra_isize,metadata_csum",
    free_bytes: 4 << 20,
};
/// No checksums: what is torn is not noticed by them.
const FORM_1K: Form = Form {
    block_size: 1024,
    features: "has_journal,ext_attr,dir_index,filetype,extent,sparse_super,large_file,extra_isize",
    free_bytes: 3 << 20,
};
const FORMS: [Form; 3] = [FORM_1K, FORM_2K, FORM_4K];

/// States judged without a wish.
const STATES: usize = 1_000;
/// States of each barrier, at most: few in the short run, so that it has barriers of all kinds.
const STATES_PER_BARRIER: (usize, usize) = (4, 16);
/// A sync takes a while, now a shorter one, now a longer one: others write meanwhile.
const SYNC_TIMES: [Duration; 2] = [Duration::from_micros(150), Duration::from_millis(2)];

fn plan(seed: u64) -> Plan {
    Plan { threads: 3, operations: 70, storms: 1, sweeps: 4, sync_time: SYNC_TIMES[(seed % 2) as usize] }
}

fn number_from(variable: &str, otherwise: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
        Err(_) => otherwise,
    }
}

#[test]
fn every_barrier_leaves_what_was_synced() {
    let wanted = number_from("MIRRORFS_BARRIER_STATES", STATES);
    let first = number_from("MIRRORFS_BARRIER_SEED", 1) as u64;
    let keep = std::env::var_os("MIRRORFS_BARRIER_KEEP").map(PathBuf::from);
    let (few, many) = STATES_PER_BARRIER;
    let states_per_barrier = if wanted > STATES { many } else { few };
    let limits =
        Limits { states_per_barrier, states_max: usize::MAX, failures_max: 20, keep: keep.as_deref() };
    let (mut total, mut discards) = (Tally::default(), 0);
    for seed in first.. {
        let form = FORMS[(seed % 3) as usize];
        let begun = Instant::now();
        let recording = record(form, plan(seed), seed, Planted::default());
        let (recorded, begun) = (begun.elapsed(), Instant::now());
        discards += recording.events.iter().filter(|event| matches!(event, Event::Discard { .. })).count();
        let tally = judge_all(&recording, seed, limits);
        println!(
            "recording: seed={seed} block_size={} requests={} barriers={} states={} failed={} recorded_ms={} judged_ms={}",
            form.block_size,
            recording.events.len(),
            tally.barriers,
            tally.states,
            tally.failures.len(),
            recorded.as_millis(),
            begun.elapsed().as_millis(),
        );
        total.add(tally);
        let enough = total.states >= wanted && total.barriers >= wanted / 20 && seed >= first + 2;
        if enough || total.failures.len() >= limits.failures_max {
            break;
        }
    }
    println!("seen: {:?} discards={discards}", total.seen);
    for why in &total.failures {
        println!("FAILED {why}");
    }
    println!(
        "every-barrier: barriers={} states={} failed={}",
        total.barriers,
        total.states,
        total.failures.len()
    );
    assert!(
        total.failures.is_empty(),
        "{} states failed, the first: {}",
        total.failures.len(),
        total.failures[0]
    );
    assert!(total.states >= wanted, "{} states", total.states);
    assert!(total.barriers >= wanted / 20, "{} barriers", total.barriers);
    // A judge that never had anything to do would be content with everything.
    let seen = total.seen;
    assert!(seen.replays > wanted / 2 && seen.compared > wanted / 2, "{seen:?}");
    assert!(seen.orphans > 0 && seen.files > total.states && discards > 0, "{seen:?}, {discards} discards");
}
