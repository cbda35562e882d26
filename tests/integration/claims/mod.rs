//! The 47 claims of the method's source document, a test for each.
//!
//! A *primary storage request* is a block request of the mount on its image; a *mirror storage request* is the peer's copy of
//! it. The *first heartbeat* travels from mount to peer, the *second* back. The *first* predetermined time is
//! `--heartbeat-timeout`, the *second* `--heartbeat-interval`, the *third* `--request-timeout`.
//!
//! Claims that speak of one course of events share one run of it, whose observations they judge.

mod arrays;
mod both_ways;
mod interruption;
mod modes;
mod steady;

use crate::Case;
use serde_json::Value;
use std::panic::{UnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock};

/// How many there are.
const COUNT: usize = 47;

pub(crate) const CASES: &[Case] = &[
    ("claim_01_requests_are_mirrored_under_heartbeats_both_ways", steady::claim_01),
    ("claim_02_a_missed_second_heartbeat_closes_and_queues", interruption::claim_02),
    ("claim_03_connections_are_reestablished_when_it_is_heard_again", interruption::claim_03),
    ("claim_04_the_queue_crosses_the_reestablished_connections", interruption::claim_04),
    ("claim_05_only_more_than_the_first_time_is_an_interruption", interruption::claim_05),
    ("claim_06_reestablished_only_after_an_unbroken_probation", interruption::claim_06),
    ("claim_07_the_corresponding_mirror_image_gets_the_data", steady::claim_07),
    ("claim_08_each_mirror_request_is_answered_stored_or_not", modes::claim_08),
    ("claim_09_n_connections_each_between_two_threads_and_arrays_of_n", arrays::claim_09),
    ("claim_10_each_element_holds_a_socket_and_a_timestamp", arrays::claim_10),
    ("claim_11_each_connection_is_made_from_its_elements_parameter", arrays::claim_11),
    ("claim_12_a_heartbeat_sender_and_receiver_thread_on_each_side", steady::claim_12),
    ("claim_13_each_side_sends_by_its_own_timer", steady::claim_13),
    ("claim_14_a_heartbeat_updates_all_n_timestamps", steady::claim_14),
    ("claim_15_a_mirror_element_older_than_the_first_time_is_marked_closed", interruption::claim_15),
    ("claim_16_an_idle_connection_thread_looks_and_waits_again_or_exits", interruption::claim_16),
    ("claim_17_the_first_heartbeat_again_makes_n_fresh_threads_ready", interruption::claim_17),
    ("claim_18_the_second_heartbeat_again_starts_the_probation", interruption::claim_18),
    ("claim_19_asynchronous_answers_come_from_the_primary_alone", modes::claim_19),
    ("claim_20_synchronous_answers_wait_for_the_mirrors_response", modes::claim_20),
    ("claim_21_a_lun_not_designated_leaves_no_trace", modes::claim_21),
    ("claim_22_data_connections_are_tcp", steady::claim_22),
    ("claim_23_heartbeats_are_udp_at_the_second_time", steady::claim_23),
    ("claim_24_two_directions_over_two_connections", both_ways::claim_24),
    ("claim_25_heartbeats_both_ways_for_both_directions", both_ways::claim_25),
    ("claim_26_host_a_misses_it_and_closes_its_direction", both_ways::claim_26),
    ("claim_27_host_a_queues_and_hears_it_again", both_ways::claim_27),
    ("claim_28_host_a_sends_its_queue", both_ways::claim_28),
    ("claim_29_host_b_misses_it_and_closes_its_direction", both_ways::claim_29),
    ("claim_30_host_b_queues_and_hears_it_again", both_ways::claim_30),
    ("claim_31_host_b_sends_its_queue_and_both_cut_recover_too", both_ways::claim_31),
    ("claim_32_the_system_of_two_servers_answers_under_heartbeats", steady::claim_32),
    ("claim_33_one_module_on_each_side_makes_n_threads_and_the_array", arrays::claim_33),
    ("claim_34_connection_thread_i_is_connected_to_worker_i", arrays::claim_34),
    ("claim_35_one_module_on_each_side_makes_the_heartbeat_threads", steady::claim_35),
    ("claim_36_the_local_receiver_updates_every_local_timestamp", steady::claim_36),
    ("claim_37_the_local_verdict_travels_to_the_mirrors_array", interruption::claim_37),
    ("claim_38_a_timed_out_connection_thread_judges_the_timestamp_itself", interruption::claim_38),
    ("claim_39_the_program_mirrors_under_heartbeats", steady::claim_39),
    ("claim_40_the_program_closes_and_queues", interruption::claim_40),
    ("claim_41_the_program_reestablishes", interruption::claim_41),
    ("claim_42_the_program_sends_the_queue", interruption::claim_42),
    ("claim_43_the_program_answers_stored_or_not", modes::claim_43),
    ("claim_44_the_methods_heartbeats_are_periodic_udp", steady::claim_44),
    ("claim_45_the_heartbeats_of_both_directions_are_periodic_udp", both_ways::claim_45),
    ("claim_46_the_systems_heartbeats_are_periodic_udp", steady::claim_46),
    ("claim_47_the_programs_heartbeats_are_periodic_udp", steady::claim_47),
];

/// Name and success of each claim's test that has run.
static OUTCOMES: Mutex<Vec<(String, bool)>> = Mutex::new(Vec::new());

/// Notes how a test ended, for [`print_table`].
pub(crate) fn note(name: &str, passed: bool) {
    if let Some((_, name)) = name.split_once("claims::") {
        OUTCOMES.lock().expect("no test panics while noting").push((name.into(), passed));
    }
}

/// Numbers without a test of their own.
pub(crate) fn missing() -> Vec<usize> {
    let has = |number: &usize| {
        let prefix = format!("claim_{number:02}_");
        CASES.iter().filter(|(name, _)| name.starts_with(&prefix)).count() == 1
    };
    (1..=COUNT).filter(|number| !has(number)).collect()
}

/// The 47 rows, if any of them has run.
pub(crate) fn print_table() {
    let outcomes = OUTCOMES.lock().expect("no test panics while noting");
    if outcomes.is_empty() {
        return;
    }
    println!("claim  outcome  test");
    for (name, _) in CASES {
        let outcome = match outcomes.iter().find(|(noted, _)| noted == name) {
            Some((_, true)) => "passed",
            Some((_, false)) => "FAILED",
            None => "not run",
        };
        println!("{:>5}  {outcome:<7}  claims::{name}", name.get(6..8).unwrap_or_default());
    }
}

/// A course of events that several claims judge: run once, by whoever asks first.
struct Shared<T: 'static> {
    seen: OnceLock<Result<T, String>>,
    run: fn() -> T,
}

impl<T: Send + Sync> Shared<T> {
    const fn new(run: fn() -> T) -> Self {
        Self { seen: OnceLock::new(), run }
    }

    #[track_caller]
    fn get(&'static self) -> &'static T
    where
        fn() -> T: UnwindSafe,
    {
        let run = self.run;
        let seen = self.seen.get_or_init(|| catch_unwind(run).map_err(|panic| crate::panic_text(&*panic)));
        match seen {
            Ok(seen) => seen,
            Err(why) => panic!("the course of events that this claim judges went wrong: {why}"),
        }
    }
}

/// A number of a status.
#[track_caller]
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a number"))
}

/// The link of a mount's status.
fn link(status: &Value) -> &Value {
    &status["mount"]["link"]
}

/// The mirror log of a mount's status.
fn log(status: &Value) -> &Value {
    &status["mount"]["log"]
}

/// The elements of an array in a status.
#[track_caller]
fn elements(side: &Value) -> &Vec<Value> {
    side["elements"].as_array().unwrap_or_else(|| panic!("no array in {side}"))
}

/// The state of each.
fn states(side: &Value) -> Vec<String> {
    elements(side).iter().map(|element| element["state"].as_str().unwrap_or_default().to_string()).collect()
}

/// Milliseconds since the timestamp of each.
fn ages(side: &Value) -> Vec<u64> {
    elements(side).iter().map(|element| element["timestamp_age_ms"].as_u64().unwrap_or(u64::MAX)).collect()
}

/// Writes a file and fsyncs it.
#[track_caller]
fn write_synced(path: &std::path::Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("writing");
    std::fs::File::open(path).and_then(|file| file.sync_all()).expect("fsync");
}
