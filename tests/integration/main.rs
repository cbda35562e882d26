//! Whole-system tests: real mounts, real sockets, killed processes, cut links.
//!
//! They run as root. A test that this machine can't carry out is listed as ignored, with the reason, never as passed.

mod commands;
mod crash;
mod images;
mod lifecycle;
mod outage;
mod programs;
mod refusals;
mod support;

use libtest_mimic::{Arguments, Failed, Trial};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A test by name.
pub(crate) type Case = (&'static str, fn());

fn main() {
    let arguments = Arguments::from_args();
    let lacking = support::machine::lacking();
    if let Some(why) = &lacking {
        eprintln!("All whole-system tests are SKIPPED: {why}");
    }
    let themes: [(&str, &[Case]); 7] = [
        ("commands", commands::CASES),
        ("crash", crash::CASES),
        ("images", images::CASES),
        ("lifecycle", lifecycle::CASES),
        ("outage", outage::CASES),
        ("programs", programs::CASES),
        ("refusals", refusals::CASES),
    ];
    let trials = themes
        .iter()
        .flat_map(|(theme, cases)| cases.iter().map(move |(name, run)| (format!("{theme}::{name}"), *run)))
        .map(|(name, run)| Trial::test(name, move || guarded(run)).with_ignored_flag(lacking.is_some()))
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}

/// A panic is a failure of that test; its values have been dropped, which cleans up, before the next one.
fn guarded(run: fn()) -> Result<(), Failed> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Failed::from(text.unwrap_or("panicked"))
    })
}
