//! Whole-system tests: real mounts, real sockets, killed processes, cut links.
//!
//! They run as root. A test that this machine can't carry out is listed as ignored, with the reason, never as passed.

mod claims;
mod commands;
mod crash;
mod faults;
mod images;
mod lifecycle;
mod namespaces;
mod outage;
mod posix;
mod programs;
mod protocol;
mod refusals;
mod support;
mod takeover;

use libtest_mimic::{Arguments, Failed, Trial};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A test by name.
pub(crate) type Case = (&'static str, fn());

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some("--matrix") {
        return faults::matrix::main(words);
    }
    let arguments = Arguments::from_args();
    let lacking = support::machine::lacking();
    if let Some(why) = &lacking {
        eprintln!("All whole-system tests are SKIPPED: {why}");
    } else if let Some(why) = support::namespace::lacking_namespaces() {
        eprintln!("Tests in network namespaces are SKIPPED: {why}");
    }
    let missing = claims::missing();
    assert!(missing.is_empty(), "claims without a test of their own: {missing:?}");
    let without_judges = posix::judges_lacking();
    if let (Some(why), None) = (&without_judges, &lacking) {
        eprintln!("The judges' tests are SKIPPED: {why}");
    }
    let themes: [(&str, &[Case]); 12] = [
        // The longest first.
        ("judges", posix::JUDGES),
        ("claims", claims::CASES),
        ("commands", commands::CASES),
        ("crash", crash::CASES),
        ("images", images::CASES),
        ("lifecycle", lifecycle::CASES),
        ("outage", outage::CASES),
        ("posix", posix::CASES),
        ("programs", programs::CASES),
        ("protocol", protocol::CASES),
        ("refusals", refusals::CASES),
        ("takeover", takeover::CASES),
    ];
    let mut trials: Vec<Trial> = themes
        .iter()
        .flat_map(|(theme, cases)| cases.iter().map(move |(name, run)| (format!("{theme}::{name}"), *run)))
        .map(|(name, run)| {
            let why = programs::lacking(name.trim_start_matches("programs::"));
            if let (None, Some(why)) = (&lacking, &why) {
                eprintln!("{name} is SKIPPED: {why}");
            }
            let no_judges = name.starts_with("judges::") && without_judges.is_some();
            let ignored = lacking.is_some() || why.is_some() || no_judges;
            let noted = name.clone();
            let run = move || {
                let outcome = guarded(run);
                claims::note(&noted, outcome.is_ok());
                outcome
            };
            Trial::test(name, run).with_ignored_flag(ignored)
        })
        .collect();
    trials.extend(faults::trials(lacking.is_some()));
    trials.extend(namespaces::trials(lacking.is_some()));
    let conclusion = libtest_mimic::run(&arguments, trials);
    claims::print_table();
    conclusion.exit_code()
}

/// A panic is a failure of that test; its values have been dropped, which cleans up, before the next one.
pub(crate) fn guarded(run: impl FnOnce()) -> Result<(), Failed> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| Failed::from(panic_text(&*panic)))
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_string()
}
