//! Targets that are broken on purpose: what the judges must see. A judge that has never failed proves nothing.

use crate::allocation::Bounds;
use crate::{Input, Target};
use std::time::Duration;

const BOUNDS: Bounds = Bounds { largest: 1 << 20, live: 4 << 20 };
const LIMIT: Duration = Duration::from_secs(120);

/// Panics in the case of this seed, which is a sum that overflows.
pub static PANICS: Target = Target { name: "panics", run: panics, time_limit: LIMIT, bounds: BOUNDS };
/// A thread beside it panics, and nobody asks how it ended.
pub static PANICS_BESIDE: Target =
    Target { name: "panics-beside", run: panics_beside, time_limit: LIMIT, bounds: BOUNDS };
/// Never ends.
pub static HANGS: Target =
    Target { name: "hangs", run: hangs, time_limit: Duration::from_millis(200), bounds: BOUNDS };
/// Believes a length of 2 MiB.
pub static ALLOCATES: Target =
    Target { name: "allocates", run: allocates, time_limit: LIMIT, bounds: BOUNDS };

/// Reads behind an image's end.
pub static READS_OUTSIDE: Target =
    Target { name: "reads-outside", run: crate::image::reads_outside, time_limit: LIMIT, bounds: BOUNDS };

fn panics(input: &mut Input<'_>) {
    let length = input.number() as u8 | 0xF0;
    let end = length.checked_add(input.below(32) as u8);
    assert!(end.is_some(), "attempt to add with overflow");
}

fn panics_beside(input: &mut Input<'_>) {
    let value = input.number();
    let beside = std::thread::spawn(move || assert_eq!(value, 0, "never so"));
    let _nobody_asks = beside.join();
}

fn hangs(_: &mut Input<'_>) {
    loop {
        std::thread::park();
    }
}

fn allocates(input: &mut Input<'_>) {
    let bytes = vec![1_u8; (2 << 20) + input.index(10)];
    assert_eq!(std::hint::black_box(&bytes)[0], 1);
}
