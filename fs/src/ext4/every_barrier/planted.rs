//! Each planted defect is seen to be caught. What is judged ends at the first state that fails.

use super::super::defect::{Defect, Planted};
use super::record::{Form, Plan, record};
use super::states::{Limits, judge_all};
use super::{FORM_1K, FORM_2K, FORM_4K};
use std::time::Duration;

/// Recordings made before a defect counts as not caught.
const SEEDS: u64 = 4;
const LIMITS: Limits<'_> = Limits { states_per_barrier: 6, states_max: 1500, failures_max: 1, keep: None };
const MIXED: Plan =
    Plan { threads: 3, operations: 60, storms: 1, sweeps: 0, sync_time: Duration::from_micros(150) };
/// The log is full to the brim when its tail moves. Syncs take so long that the next commit is always wanted already.
const SWEEPS: Plan =
    Plan { threads: 1, operations: 4, storms: 0, sweeps: 60, sync_time: Duration::from_millis(2) };

/// Records with the defect and judges, until a state fails; says what was found.
fn catch(defect: Defect, form: Form, plan: Plan) -> String {
    for seed in 1..=SEEDS {
        let recording = record(form, plan, 1000 + seed, Planted(Some(defect)));
        let tally = judge_all(&recording, seed, LIMITS);
        if let Some(why) = tally.failures.into_iter().next() {
            println!("{defect:?}: caught after {} states: {why}", tally.states);
            return why;
        }
    }
    panic!("{defect:?} was not caught");
}

#[test]
fn judge_catches_a_dropped_revoke() {
    catch(Defect::DroppedRevoke, FORM_1K, MIXED);
}

#[test]
fn judge_catches_a_freed_block_reused_before_its_barrier() {
    catch(Defect::EarlyReuse, FORM_1K, MIXED);
}

#[test]
fn judge_catches_a_commit_record_before_its_blocks() {
    catch(Defect::EarlyCommitRecord, FORM_4K, MIXED);
}

#[test]
fn judge_catches_a_skipped_orphan() {
    catch(Defect::SkippedOrphan, FORM_2K, MIXED);
}

#[test]
fn judge_catches_a_missing_bitmap_update() {
    catch(Defect::MissingBitmapUpdate, FORM_4K, MIXED);
}

/// The next transaction is written where recovery still begins, so that nothing of the log is found, and what was committed while
/// the last round was brought home is lost. That takes a log so full that the transaction behind the move needs the very blocks
/// that it has freed, in a round that ends by itself (one that a full log has ended is followed by another, and a flush).
#[test]
fn judge_catches_an_unflushed_tail() {
    catch(Defect::UnflushedTail, FORM_1K, SWEEPS);
}

#[test]
fn judge_catches_an_unescaped_magic_number() {
    let why = catch(Defect::UnescapedMagic, FORM_2K, MIXED);
    assert!(why.contains("magic number"), "{why}");
}
