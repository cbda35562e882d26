//! All combinations of fault, mode and number of connections, several at a time, as a table.

use super::{Cell, FAULTS, Fault, Mode, WORKERS};
use crate::support::machine::lacking;
use crate::support::namespace::lacking_namespaces;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const USAGE: &str =
    "usage: --matrix [--jobs N] [--mode async|sync] [--workers 1|4|16] [--rounds N] [--list] [FAULT]...
A FAULT is a part of a name that --list shows; without one all are run.";

/// Cells that run at the same time; most of their time they wait.
const JOBS: usize = 4;

struct Request {
    jobs: usize,
    /// How often each cell runs.
    rounds: usize,
    modes: Vec<Mode>,
    workers: Vec<u16>,
    faults: Vec<&'static Fault>,
}

impl Request {
    /// `Ok(None)`: the list was asked for.
    fn read(mut words: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut request = Self {
            jobs: JOBS,
            rounds: 1,
            modes: vec![Mode::Async, Mode::Sync],
            workers: WORKERS.to_vec(),
            faults: Vec::new(),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--jobs" => request.jobs = count(&value()?, 64)?,
                "--rounds" => request.rounds = count(&value()?, 1000)?,
                "--mode" => {
                    let text = value()?;
                    request.modes.retain(|mode| mode.to_string() == text);
                    if request.modes.is_empty() {
                        return Err(format!("{text}: not a mode"));
                    }
                }
                "--workers" => {
                    let text = value()?;
                    request.workers.retain(|count| count.to_string() == text);
                    if request.workers.is_empty() {
                        return Err(format!("{text}: not a number of connections that is tried"));
                    }
                }
                "--list" => return Ok(None),
                option if option.starts_with('-') => return Err(format!("{option} is unknown")),
                part => {
                    let found = FAULTS.iter().filter(|fault| fault.name.contains(part));
                    let before = request.faults.len();
                    request.faults.extend(found);
                    if request.faults.len() == before {
                        return Err(format!("no fault's name has {part} in it"));
                    }
                }
            }
        }
        if request.faults.is_empty() {
            request.faults.extend(FAULTS);
        }
        request.faults.sort_by_key(|fault| position(fault));
        request.faults.dedup_by_key(|fault| position(fault));
        Ok(Some(request))
    }
}

fn count(text: &str, max: usize) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=max).contains(number));
    number.ok_or(format!("{text}: not a number from 1 to {max}"))
}

fn position(fault: &Fault) -> usize {
    FAULTS.iter().position(|known| known.name == fault.name).unwrap_or(FAULTS.len())
}

enum Outcome {
    Passed(Duration),
    Failed(Duration, String),
    /// This machine can't.
    Skipped,
}

/// Runs what the words ask for. The last line is `fault-matrix: cells=N failed=M`.
pub(crate) fn main(words: impl Iterator<Item = String>) -> ExitCode {
    let request = match Request::read(words) {
        Ok(Some(request)) => request,
        Ok(None) => {
            FAULTS.iter().for_each(|fault| println!("{}", fault.name));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Some(why) = lacking() {
        eprintln!("the fault matrix can't run here: {why}");
        return ExitCode::FAILURE;
    }
    if let Some(why) = lacking_namespaces() {
        eprintln!("Faults that need network namespaces are skipped: {why}");
    }
    let cells = cells(&request);
    let outcomes = run(&cells, &request);
    print_table(&request, &outcomes);
    let ran = outcomes.iter().filter(|outcome| !matches!(outcome, Outcome::Skipped)).count();
    let mut failed = 0;
    for (cell, outcome) in cells.iter().zip(&outcomes) {
        if let Outcome::Failed(_, why) = outcome {
            failed += 1;
            println!("\nFAILED {} {} {}: {why}", cell.fault.name, cell.mode, cell.workers);
        }
    }
    println!("fault-matrix: cells={ran} failed={failed}");
    if failed == 0 && ran > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// By fault, then mode, then number of connections.
fn cells(request: &Request) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &fault in &request.faults {
        for &mode in &request.modes {
            cells.extend(request.workers.iter().map(|&workers| Cell {
                fault,
                mode,
                workers,
                thorough: true,
            }));
        }
    }
    cells
}

/// Round after round, each cell once; its outcome is the first failure or the last success.
fn run(cells: &[Cell], request: &Request) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes: Mutex<Vec<Option<Outcome>>> = Mutex::new(cells.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..request.jobs {
            scope.spawn(|| {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= cells.len() * request.rounds {
                        return;
                    }
                    let index = turn % cells.len();
                    let outcome = judge(cells[index]);
                    let mut outcomes = outcomes.lock().expect("no thread panics while it notes");
                    if !matches!(outcomes[index], Some(Outcome::Failed(..))) {
                        outcomes[index] = Some(outcome);
                    }
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("no thread panics while it notes");
    outcomes.into_iter().map(|outcome| outcome.unwrap_or(Outcome::Skipped)).collect()
}

/// Runs one in a thread of its own, whose name a panic shows.
fn judge(cell: Cell) -> Outcome {
    if cell.fault.namespaces && lacking_namespaces().is_some() {
        return Outcome::Skipped;
    }
    let name = format!("{} {} {}", cell.fault.name, cell.mode, cell.workers);
    let begun = Instant::now();
    let thread = std::thread::Builder::new().name(name.clone()).spawn(move || cell.run());
    let ended = thread.expect("a thread").join();
    let took = begun.elapsed();
    let (word, outcome) = match ended {
        Ok(()) => ("passed", Outcome::Passed(took)),
        Err(panic) => ("FAILED", Outcome::Failed(took, crate::panic_text(&*panic))),
    };
    eprintln!("{word} {:5.1} s  {name}", took.as_secs_f64());
    outcome
}

fn print_table(request: &Request, outcomes: &[Outcome]) {
    let width = request.faults.iter().map(|fault| fault.name.len()).max().unwrap_or(0);
    let columns: Vec<String> = request
        .modes
        .iter()
        .flat_map(|mode| request.workers.iter().map(move |workers| format!("{mode} n={workers}")))
        .collect();
    print!("{:width$}", "fault");
    columns.iter().for_each(|column| print!("  {column:>13}"));
    println!();
    for (fault, row) in request.faults.iter().zip(outcomes.chunks(columns.len())) {
        print!("{:width$}", fault.name);
        for outcome in row {
            let text = match outcome {
                Outcome::Passed(took) => format!("passed {:4.1} s", took.as_secs_f64()),
                Outcome::Failed(took, _) => format!("FAILED {:4.1} s", took.as_secs_f64()),
                Outcome::Skipped => "skipped".into(),
            };
            print!("  {text:>13}");
        }
        println!();
    }
}
