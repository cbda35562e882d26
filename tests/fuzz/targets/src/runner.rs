//! Runs cases, each with a limit of time, and judges them: no panic in any thread, no hang, no allocation out of bounds.

use crate::{Input, Target, allocation};
use parking_lot::{Mutex, Once};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A seed to run alone.
pub const SEED_VARIABLE: &str = "MIRRORFS_FUZZ_SEED";
/// How many cases more to run, with seeds of this moment.
pub const MORE_VARIABLE: &str = "MIRRORFS_FUZZ_MORE";

/// Cases of all targets run one at a time: panics and allocations belong to the process.
static ONE_CASE: Mutex<()> = Mutex::new(());
/// What panicked since the case began, in any thread.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    /// This thread judges cases: what it panics with is a test's own failure.
    static RUNS_CASES: Cell<bool> = const { Cell::new(false) };
}

fn watch_panics() {
    RUNS_CASES.set(true);
    static SET: Once = Once::new();
    SET.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = thread::current();
            let name = thread.name().unwrap_or("unnamed").to_owned();
            if ONE_CASE.is_locked() && !RUNS_CASES.get() {
                PANICS.lock().push(format!("thread {name}: {info}"));
            } else {
                before(info);
            }
        }));
    });
}

/// A case that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What happened.
    pub what: String,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases run.
    pub cases: u64,
    /// Cases that failed.
    pub failures: Vec<Failure>,
    /// What the target counted.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Report {
    /// How often the target counted this.
    #[must_use]
    pub fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }
}

type Answer = (Result<(), String>, BTreeMap<&'static str, u64>);

/// A thread that runs cases; given up when one hangs.
struct Worker {
    seeds: Sender<u64>,
    answers: Receiver<Answer>,
}

impl Worker {
    fn start(target: &'static Target) -> Self {
        let (seeds, taken) = channel::<u64>();
        let (answer, answers) = channel();
        // Takes seeds, gives answers; ends when the runner drops its end.
        let run = move || {
            for seed in taken {
                let mut input = Input::from_seed(seed);
                let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(&mut input)));
                let outcome = outcome.map_err(|_| "it panicked".to_owned());
                if answer.send((outcome, input.counts().clone())).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name(format!("fuzz-{}", target.name))
            .spawn(run)
            .expect("a thread for the cases can be started");
        Self { seeds, answers }
    }
}

/// Runs the cases of these seeds, at most until `until`; stops after `failures_max` failures.
///
/// # Panics
/// If no thread can be started.
pub fn run(
    target: &'static Target,
    seeds: impl IntoIterator<Item = u64>,
    until: Option<Instant>,
    failures_max: usize,
) -> Report {
    watch_panics();
    let mut report = Report::default();
    let mut worker = Worker::start(target);
    for seed in seeds {
        if report.failures.len() >= failures_max || until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        let _alone = ONE_CASE.lock();
        PANICS.lock().clear();
        let watch = allocation::begin();
        worker.seeds.send(seed).expect("the worker lives as long as its cases end");
        let what = match worker.answers.recv_timeout(target.time_limit) {
            Ok((outcome, counts)) => {
                for (name, count) in counts {
                    *report.counts.entry(name).or_default() += count;
                }
                let panics = std::mem::take(&mut *PANICS.lock());
                let panicked = (!panics.is_empty()).then(|| panics.join("; "));
                outcome.err().map_or(panicked.clone(), |what| Some(panicked.unwrap_or(what)))
            }
            Err(_) => {
                let limit: Duration = target.time_limit;
                worker = Worker::start(target);
                Some(format!("it hangs: not done after {} s", limit.as_secs_f32()))
            }
        };
        report.cases += 1;
        if let Some(what) = what.or_else(|| watch.exceeded(&target.bounds)) {
            report.failures.push(Failure { seed, what });
        }
    }
    report
}

/// A smoke run: the seeds below `cases`, or the one that the environment names, and as many more as it asks for.
///
/// # Panics
/// If a case fails, with its seed; if the environment's numbers are none.
#[must_use]
pub fn smoke(target: &'static Target, cases: u64) -> Report {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
    };
    let one = number(SEED_VARIABLE);
    let seeds: Vec<u64> = match one {
        Some(seed) => vec![seed],
        None => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let from = now.map_or(1 << 32, |now| now.as_nanos() as u64 | 1 << 63);
            let more = number(MORE_VARIABLE).unwrap_or(0);
            (0..cases).chain((0..more).map(|index| from.wrapping_add(index))).collect()
        }
    };
    let report = run(target, seeds.iter().copied(), None, 1);
    if let Some(Failure { seed, what }) = report.failures.first() {
        panic!("{} {}: {what}\nto run it again: {SEED_VARIABLE}={seed}", target.name, report.cases);
    }
    assert_eq!(report.cases, seeds.len() as u64, "not all cases were run");
    println!("fuzz: target={} cases={} failed=0 {:?}", target.name, report.cases, report.counts);
    report
}
