//! Each judge of the runner, seen to fail.

use mirrorfs_fuzz_targets::allocation::Watching;
use mirrorfs_fuzz_targets::broken;
use mirrorfs_fuzz_targets::runner::{Report, run};
use mirrorfs_fuzz_targets::{Input, Target};

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// The first failure among some cases.
fn failure(target: &'static Target) -> (u64, String) {
    let report: Report = run(target, 0..200, None, 1);
    let failure = report.failures.first().unwrap_or_else(|| panic!("{} was not seen to fail", target.name));
    (failure.seed, failure.what.clone())
}

#[test]
fn a_panic_is_seen_and_its_seed_leads_to_it_again() {
    let (seed, what) = failure(&broken::PANICS);
    assert!(what.contains("attempt to add with overflow") && what.contains("broken.rs"), "{what}");
    let again = run(&broken::PANICS, [seed], None, 1);
    assert_eq!(again.failures.len(), 1, "seed {seed} fails each time");
    assert!(run(&broken::PANICS, 0..seed, None, 1).failures.is_empty(), "those before it do not");
}

#[test]
fn a_panic_in_a_thread_beside_is_seen() {
    let (_, what) = failure(&broken::PANICS_BESIDE);
    assert!(what.contains("never so"), "{what}");
}

#[test]
fn a_hang_is_seen_and_the_run_goes_on() {
    let report = run(&broken::HANGS, 0..3, None, 10);
    assert_eq!((report.cases, report.failures.len()), (3, 3));
    assert!(report.failures[0].what.contains("hangs"), "{:?}", report.failures);
}

#[test]
fn an_allocation_out_of_bounds_is_seen() {
    let (_, what) = failure(&broken::ALLOCATES);
    assert!(what.contains("bytes at once"), "{what}");
}

#[test]
fn an_access_outside_the_image_is_seen() {
    let (_, what) = failure(&broken::READS_OUTSIDE);
    assert!(what.contains("an access outside the image") && what.contains("read of 512 bytes"), "{what}");
}

/// A mutator that gets checksums wrong tests nothing but the checksums.
#[test]
fn sealing_an_undamaged_image_changes_nothing() {
    let (places, changed) = mirrorfs_fuzz_targets::sealed_anew();
    assert!(places > 5000, "{places} structures");
    assert_eq!(changed, 0, "bytes changed in {places} structures");
}

#[test]
fn a_fuzzers_bytes_decide_until_they_end() {
    let mut input = Input::from_bytes(&[3, 0x34, 0x12, 9]);
    assert_eq!((input.below(10), input.below(0x1_0000), input.below(4)), (3, 0x1234, 1));
    let (one, other) = (input.number(), Input::from_bytes(&[3, 0x34, 0x12, 8]).bytes(5));
    assert_ne!(one, u64::from(other[4]), "what follows depends on all of them");
}
