//! Runs targets for a long time, or one seed: `fuzz_long [--target NAME]... [--seconds N] [--from SEED] [--cases N]`.
//!
//! For each target it prints its failures, each with the seed, and a closing line: `fuzz: target=… cases=… failed=…`. Exit code 1
//! where a case failed. To be built with overflow checks: the development profile.

use mirrorfs_fuzz_targets::allocation::Watching;
use mirrorfs_fuzz_targets::{TARGETS, Target, find, runner};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Failures after which a target is not run on.
const FAILURES_MAX: usize = 20;

struct Arguments {
    targets: Vec<&'static Target>,
    seconds: u64,
    from: u64,
    cases: u64,
}

fn arguments() -> Result<Arguments, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64);
    let mut parsed = Arguments { targets: Vec::new(), seconds: 60, from: now, cases: u64::MAX };
    let mut rest = std::env::args().skip(1);
    while let Some(name) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: not a number"));
        match name.as_str() {
            "--target" => parsed.targets.push(find(&value).ok_or_else(|| format!("no target {value}"))?),
            "--seconds" => parsed.seconds = number()?,
            "--from" => parsed.from = number()?,
            "--cases" => parsed.cases = number()?,
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    if parsed.targets.is_empty() {
        parsed.targets = TARGETS.iter().collect();
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("fuzz_long: {error}");
            return ExitCode::from(2);
        }
    };
    let mut failed = false;
    for target in arguments.targets {
        let until = Instant::now() + Duration::from_secs(arguments.seconds);
        let seeds = (0..arguments.cases).map(|index| arguments.from.wrapping_add(index));
        let report = runner::run(target, seeds, Some(until), FAILURES_MAX);
        for failure in &report.failures {
            println!("{} {}={}: {}", target.name, runner::SEED_VARIABLE, failure.seed, failure.what);
        }
        println!("{} {:?}", target.name, report.counts);
        println!("fuzz: target={} cases={} failed={}", target.name, report.cases, report.failures.len());
        failed |= !report.failures.is_empty();
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
