//! How often a lossy network makes either side take the other for dead although it is not.
//!
//! That is too rare to be waited for. What can be counted is how often which silence comes between two heartbeats that are
//! accepted; its tail is carried on to the heartbeat timeout.

use super::Now;
use super::simulation::{Faults, Link};
use crate::config::Times;
use std::time::Duration;

const YEAR_SECONDS: f64 = 365.25 * 86_400.0;
/// Fewer silences than this say nothing about how often they come.
const ENOUGH: u64 = 20;

/// Silences longer than so many hundredths of a second.
fn longer(silences: &[u64], hundredths: usize) -> u64 {
    silences.iter().skip(hundredths + 1).sum()
}

/// False cuts a year, as seen by one side in so many simulated seconds.
///
/// From the longest silence that was seen often enough, twice that part of the tail is looked at; with each step to the
/// right the silences must become rarer at least as quickly as there on average.
fn cuts_in_a_year(silences: &[u64], seconds: f64, timeout: Duration) -> f64 {
    let seen = (0..silences.len()).rfind(|at| longer(silences, *at) >= ENOUGH).expect("some silences");
    let half = seen / 2;
    let (early, late) = (longer(silences, half) as f64, longer(silences, seen) as f64);
    let decay_of_a_hundredth = (late / early).powf(1.0 / (seen - half) as f64);
    let left = timeout.as_millis() as f64 / 10.0 - seen as f64;
    late / seconds * YEAR_SECONDS * decay_of_a_hundredth.powf(left)
}

/// The probe itself: where cuts are frequent enough to be counted, the tail foretells them.
#[test]
fn the_tail_foretells_the_cuts_that_can_be_counted() {
    let (silences, seconds) = silences(20, Duration::from_secs(40_000));
    let timeout = Duration::from_millis(400);
    // What would be known had only a twentieth of the time been watched.
    let thinned: Vec<u64> = silences.iter().map(|count| count / 20).collect();
    let foretold = cuts_in_a_year(&thinned, seconds / 20.0, timeout);
    let counted = longer(&silences, 40) as f64 / seconds * YEAR_SECONDS;
    assert!(
        counted > 0.0 && (0.1..10.0).contains(&(foretold / counted)),
        "{foretold} foretold, {counted} counted"
    );
}

fn silences(percent: u64, span: Duration) -> (Vec<u64>, f64) {
    let faults = Faults { drop_percent: percent, delay_max_us: 40_000, ..Faults::default() };
    let mut link = Link::new(Times::default(), faults, 77);
    link.run_until(Now(span));
    let [local, mirror] = &link.silences;
    let length = local.len().max(mirror.len());
    let at = |side: &[u64], index: usize| side.get(index).copied().unwrap_or(0);
    ((0..length).map(|index| at(local, index) + at(mirror, index)).collect(), span.as_secs_f64())
}

/// A fifth of the datagrams lost in both directions, for ever, with the default times.
#[test]
fn a_fifth_of_loss_cuts_a_link_less_than_once_in_a_million_years() {
    let (silences, seconds) = silences(20, Duration::from_secs(100_000));
    let timeout = Times::default().heartbeat_timeout;
    let tail: Vec<(usize, u64)> = (10..=200).step_by(10).map(|at| (at * 10, longer(&silences, at))).collect();
    println!("silences longer than so many milliseconds in {seconds} s: {tail:?}");
    let rate = cuts_in_a_year(&silences, seconds, timeout);
    println!("false cuts a year at 20 % loss: {rate:.1e}");
    assert!(rate < 1e-6, "{rate:e} false cuts a year: {tail:?}");
}
