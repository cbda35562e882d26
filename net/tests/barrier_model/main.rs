//! The barrier protocol, checked in every state that it can reach: n connections, alignment at barriers, durable marks,
//! a session's end, and resumption after a crash of either side. Each step of the primary, of the n connection threads,
//! of the disks and of the faults is a step of the model (`model`), and all their orders are tried, for n = 2 and n = 3.
//!
//! Two variants: **A**, a barrier is sent on all n connections, which all meet; **B**, lazy barriers, whose rules follow.
//!
//! # Lazy barriers: the sender
//!
//! State of one session, nothing at its begin, also when epochs are sent again: `prev`, the barrier sent last (0: none);
//! `mark[j]`, the barrier that connection j was last told of (0: none); `dirty`, the connections that carried a request
//! since the last barrier.
//!
//! - **S1**: before anything that connection j carries: if `mark[j] != prev`, first `After(prev)`, and `mark[j] = prev`.
//! - **S2, a request for connection j**: S1, then the request, and j is dirty. Within an epoch all requests of a region go to
//!   one connection; which one may be chosen anew at each barrier, and in each session.
//! - **S3, barrier e**: its participants P are the dirty connections; connection 0 if there is none. On each of them S1, then
//!   `Barrier { e, chain, P }`, the same on all, and `mark[j] = e`. Then nothing is dirty and `prev = e`. No barrier of the log
//!   is left out, also if no request of its epoch is left.
//! - **S4**: `ResyncBegin` and `ResyncEnd`, each alone in its epoch, are requests for connection 0.
//! - **S5**: one answer is awaited for each barrier, whichever connection it comes on, none for `After`.
//!
//! # Lazy barriers: the receiver
//!
//! State of one session: `completed`, the last barrier completed (0: none).
//!
//! - **R1, `After(e)`**: the thread waits until `completed >= e`.
//! - **R2, `Barrier { e, P }`**: the thread arrives and waits until `completed >= e`. When all of P have arrived, one of them
//!   completes e: gathered content, sync, label, `completed = e`; all who wait look again; `durable(e)` is answered, once.
//! - **R3, a request** is applied at once.
//! - **R4**: each wait ends with the session, and who completes looks first whether it is over.
//!
//! # Why this is enough
//!
//! Each participant of barrier e+1 has stood behind barrier e or `After(e)`: barriers complete in order, and one at a time. While
//! e completes nobody applies: threads with requests of e or before have arrived, those with later ones stand behind a mark of e
//! or later. So all that a barrier does to the images holds as it does in A. `durable(e)` may be heard after `durable(e + 1)`,
//! on another connection; it means every epoch up to it. No wait is for ever: all frames of a barrier are in their pipes before
//! any frame that follows it in the log.
//!
//! S1 in front of a barrier matters for one kind only: where connection 0 is in for an epoch of which only the barrier is
//! left, it may not have been told of anything, and would complete it, and have it answered durable, with everything before it
//! unwritten. A barrier that names its predecessor and is completed only behind that would do as well
//! ([`types::Order::Predecessor`], checked too); with neither it is found out.
//!
//! # What is checked
//!
//! The six properties at the end of `model`, in every state, against everything that a power cut could leave of the mirror there.
//! [`types::Defect`] lists rules that are broken on purpose; each must be found out.
//!
//! Bounds: one LUN of three blocks, each in a region of its own; contents of whole blocks, so torn blocks are not seen; the
//! resync reads all its regions in one step; the queue on disk is what a crash leaves of the log. `MIRRORFS_BARRIER_MODEL=long`
//! takes longer scripts and more faults: some minutes.
//!
//! The checker is `stateright`'s breadth-first search; its dependencies (an HTTP server for its explorer among them) come
//! with the tests alone.

#![allow(clippy::unwrap_used, reason = "tests")]

mod history;
mod model;
mod peer;
mod primary;
mod scripts;
mod types;

use model::{ACCEPTED, Barriers, CONSISTENT, CONVERGES, DURABLE, Faults, GOES_ON, RETIRED};
use primary::Rules;
use scripts::{every, script};
use stateright::{Checker, HasDiscoveries, Model};
use std::collections::BTreeMap;
use types::{Defect, Item, Order, Variant};

/// Breaks of the session, crashes of the peer, crashes of the primary.
const fn faults(breaks: u8, peer_crashes: u8, primary_crashes: u8) -> Faults {
    Faults { breaks, peer_crashes, primary_crashes }
}

const fn rules(variant: Variant, connections: usize) -> Rules {
    Rules { connections, variant, order: Order::Mark, defect: None }
}

/// States seen, and of each property that does not hold the shortest way there.
struct Outcome {
    states: usize,
    failed: BTreeMap<&'static str, String>,
}

fn check(rules: Rules, scripts: Vec<Vec<Item>>, faults: Faults, until: HasDiscoveries) -> Outcome {
    // All epochs spread over the connections; every other one, and the others when they are sent again.
    let spreads: &[u8] = match rules.variant {
        Variant::Everywhere => &[0b1111],
        Variant::Lazy => &[0b1111, 0b0101],
    };
    let checker = Barriers { rules, scripts, spreads, faults }
        .checker()
        .threads(2)
        .finish_when(until)
        .spawn_bfs()
        .join();
    let failed = checker.discoveries().into_iter().map(|(name, path)| {
        let last = format!("{:#?}", path.last_state());
        (name, format!("{:#?}\n{last}", path.into_actions()))
    });
    Outcome { states: checker.unique_state_count(), failed: failed.collect() }
}

fn scripts_of(texts: &[&str]) -> Vec<Vec<Item>> {
    texts.iter().map(|text| script(text)).collect()
}

/// The blocks that reach every connection.
fn blocks(connections: usize) -> u32 {
    if connections == 2 { 2 } else { 3 }
}

/// What is run each time: every short script, some longer ones, each with the faults that it can bear.
fn usual(connections: usize, order: Order) -> Vec<(Vec<Vec<Item>>, Faults)> {
    let (short, longer): (_, &[&str]) = if connections == 2 {
        // The order that is not built gets the short round.
        (every(if order == Order::Mark { 3 } else { 2 }, 2), &["00|10|", "0|1|01|", "1|-|01|"])
    } else {
        (every(2, 3), &["012|20|", "0|1|2|0|", "2|-|12|", "00|12|2|"])
    };
    vec![
        (short, faults(1, 1, 0)),
        (scripts_of(longer), faults(1, 2, 0)),
        (scripts_of(&["0|1|0|"]), faults(2, 1, 0)),
        (scripts_of(&["0|1|", "01|"]), faults(1, 0, 1)),
        (scripts_of(&["01|"]), faults(0, 1, 1)),
    ]
}

/// What takes minutes.
fn long(connections: usize) -> Vec<(Vec<Vec<Item>>, Faults)> {
    let longer: &[&str] = if connections == 2 {
        &["00|10|", "01|10|", "00|01|1|", "01|-|10|", "20|02|1|", "0|1|0|1|"]
    } else {
        &["012|20|", "00|12|2|", "01|-|20|", "2|-|02|1|", "0|1|2|0|"]
    };
    vec![
        (every(3, blocks(connections)), faults(1, 1, 0)),
        (scripts_of(longer), faults(2, 2, 0)),
        (every(2, 2), faults(1, 0, 1)),
        (scripts_of(&["0|1|", "01|", "00|1|"]), faults(0, 1, 1)),
        (scripts_of(&["01|"]), faults(1, 1, 1)),
        (scripts_of(&["01|"]), faults(0, 0, 2)),
    ]
}

/// Each script by itself, so that what has been seen of one need not be kept for the others.
fn holds(rules: Rules, at_least: usize) {
    let is_long = std::env::var("MIRRORFS_BARRIER_MODEL").is_ok_and(|value| value == "long");
    let runs = if is_long { long(rules.connections) } else { usual(rules.connections, rules.order) };
    let (mut states, mut failed) = (0, 0);
    for (scripts, faults) in runs {
        for script in scripts {
            let outcome = check(rules, vec![script.clone()], faults, HasDiscoveries::AnyFailures);
            states += outcome.states;
            for (name, path) in outcome.failed {
                failed += 1;
                println!("{name}: {script:?} with {faults:?}\n{path}");
            }
        }
    }
    let (letter, connections) = (rules.variant.letter(), rules.connections);
    println!("barrier-model: variant={letter} n={connections} states={states} failed={failed}");
    assert_eq!(failed, 0);
    assert!(states >= at_least, "{states} states are fewer than the protocol has");
}

#[test]
fn barrier_on_all_of_two_connections() {
    holds(rules(Variant::Everywhere, 2), 700_000);
}

#[test]
fn barrier_on_all_of_three_connections() {
    holds(rules(Variant::Everywhere, 3), 450_000);
}

#[test]
fn lazy_barrier_on_two_connections() {
    holds(rules(Variant::Lazy, 2), 1_500_000);
}

#[test]
fn lazy_barrier_on_three_connections() {
    holds(rules(Variant::Lazy, 3), 900_000);
}

#[test]
fn lazy_barrier_that_names_its_predecessor() {
    holds(Rules { order: Order::Predecessor, ..rules(Variant::Lazy, 2) }, 500_000);
}

/// The defect must be found out, and by one of these.
fn is_found(variant: Variant, defect: Defect, text: &str, faults: Faults, by: &[&'static str]) {
    for connections in [2, 3] {
        let sound = rules(variant, connections);
        let outcome = check(
            Rules { defect: Some(defect), ..sound },
            scripts_of(&[text]),
            faults,
            HasDiscoveries::AnyOf(by.iter().copied().collect()),
        );
        let found: Vec<_> = outcome.failed.keys().copied().collect();
        println!(
            "{defect:?} variant={} n={connections}: {found:?} after {} states",
            variant.letter(),
            outcome.states
        );
        assert!(found.iter().any(|name| by.contains(name)), "{defect:?} went unnoticed: {found:?}");
        let outcome = check(sound, scripts_of(&[text]), faults, HasDiscoveries::AnyFailures);
        assert!(outcome.failed.is_empty(), "without the defect: {:?}", outcome.failed);
    }
}

const BOTH: [Variant; 2] = [Variant::Everywhere, Variant::Lazy];

#[test]
fn swapped_barrier_is_found() {
    for variant in BOTH {
        is_found(variant, Defect::BarrierSwapped, "01|01|", faults(0, 0, 0), &[CONSISTENT]);
    }
}

#[test]
fn durable_before_the_sync_is_found() {
    for variant in BOTH {
        is_found(variant, Defect::DurableBeforeSync, "01|", faults(0, 0, 0), &[DURABLE, RETIRED]);
    }
}

#[test]
fn label_before_the_sync_is_found() {
    for variant in BOTH {
        is_found(variant, Defect::LabelBeforeSync, "01|", faults(0, 0, 0), &[CONSISTENT]);
    }
}

#[test]
fn overlap_on_two_connections_is_found() {
    for variant in BOTH {
        is_found(variant, Defect::OverlapOnTwoConnections, "00|", faults(0, 0, 0), &[CONSISTENT, CONVERGES]);
    }
}

#[test]
fn retirement_at_applied_is_found() {
    for variant in BOTH {
        is_found(variant, Defect::RetiredAtApplied, "01|", faults(0, 0, 0), &[RETIRED]);
    }
}

#[test]
fn old_session_that_still_applies_is_found() {
    for variant in BOTH {
        is_found(variant, Defect::OldSessionApplies, "00|1|", faults(1, 0, 0), &[CONSISTENT, CONVERGES]);
    }
}

#[test]
fn reused_epoch_is_found() {
    for variant in BOTH {
        is_found(variant, Defect::EpochReused, "0|1|", faults(0, 0, 1), &[CONSISTENT, CONVERGES]);
    }
}

#[test]
fn unmarked_cut_is_found() {
    for variant in BOTH {
        is_found(variant, Defect::CutNotMarked, "0|1|", faults(0, 0, 1), &[CONSISTENT, CONVERGES]);
    }
}

#[test]
fn left_out_gather_is_found() {
    for variant in BOTH {
        is_found(variant, Defect::GatherLeftOut, "00|1|", faults(0, 1, 0), &[CONSISTENT, DURABLE]);
    }
}

#[test]
fn refused_label_of_the_epoch_before_is_found() {
    for variant in BOTH {
        is_found(variant, Defect::LabelBehindRefused, "0|1|", faults(0, 1, 0), &[GOES_ON]);
    }
}

#[test]
fn left_out_mark_is_found() {
    is_found(Variant::Lazy, Defect::AfterLeftOut, "0|1|", faults(0, 0, 0), &[CONSISTENT, ACCEPTED]);
}

#[test]
fn barrier_without_requests_that_awaits_no_other_is_found() {
    is_found(Variant::Lazy, Defect::PredecessorNotAwaited, "1|-|", faults(0, 0, 0), &[CONSISTENT, DURABLE]);
}

/// The story: the mirror lost power twice in a row, each time before its label was on the disk. What the label said then was
/// two epochs old although nothing was missing, and everything was sent again.
#[test]
fn label_left_behind_by_the_last_power_cut_is_found() {
    for variant in BOTH {
        is_found(variant, Defect::LabelLeftBehind, "0|1|0|", faults(0, 2, 0), &[GOES_ON]);
    }
}
