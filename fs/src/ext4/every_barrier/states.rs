//! Which states are judged: for each barrier the image as it was there, and with parts of the requests behind it.

use super::super::test_support::Random;
use super::history::{Oracle, ThreadExpectation};
use super::judge::{Judge, Seen};
use super::pages::Pages;
use super::record::Recording;
use crossbeam::channel::bounded;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Jobs that wait for a judge at most.
const WAITING_MAX: usize = 16;

/// How far to go.
#[derive(Clone, Copy)]
pub(super) struct Limits<'a> {
    /// States of each barrier at most.
    pub(super) states_per_barrier: usize,
    /// States judged at most.
    pub(super) states_max: usize,
    /// Failures after which no more is judged.
    pub(super) failures_max: usize,
    /// Where images that failed are kept.
    pub(super) keep: Option<&'a Path>,
}

/// How it went.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) barriers: usize,
    pub(super) states: usize,
    pub(super) seen: Seen,
    pub(super) failures: Vec<String>,
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        self.barriers += other.barriers;
        self.states += other.states;
        self.count(other.seen);
        self.failures.extend(other.failures);
    }

    fn count(&mut self, seen: Seen) {
        self.seen.replays += seen.replays;
        self.seen.orphans += seen.orphans;
        self.seen.compared += seen.compared;
        self.seen.files += seen.files;
    }
}

struct Job {
    /// How to find it again.
    name: String,
    crashed: Pages,
    expected: Arc<Vec<ThreadExpectation>>,
}

/// The parts of an epoch that a power cut keeps or loses, each as one: event, and range in the image.
fn pieces(recording: &Recording, epoch: Range<usize>) -> Vec<(usize, Range<u64>)> {
    let size = recording.form.block_size;
    let mut pieces = Vec::new();
    for number in epoch {
        let range = recording.events[number].range();
        let mut at = range.start;
        while at < range.end {
            let end = (at / size * size + size).min(range.end);
            pieces.push((number, at..end));
            at = end;
        }
    }
    pieces
}

/// Up to `wanted` different choices of `count` pieces, the first one empty. All of them together are the state of the next
/// barrier: that is left to that one, where there is one.
fn choose(count: usize, wanted: usize, all: bool, random: &mut Random) -> Vec<Vec<bool>> {
    let mut chosen = vec![vec![false; count]];
    let mut known: HashSet<Vec<bool>> = chosen.iter().cloned().collect();
    if all {
        known.insert(vec![true; count]);
        chosen.push(vec![true; count]);
    } else {
        known.insert(vec![true; count]);
    }
    for _ in 0..4 * wanted {
        if chosen.len() >= wanted || count == 0 {
            break;
        }
        let one = random.below(count);
        let choice: Vec<bool> = match random.below(8) {
            0 => (0..count).map(|at| at != one).collect(),
            1 => (0..count).map(|at| at == one).collect(),
            2 => (0..count).map(|at| at < one).collect(),
            3 => (0..count).map(|at| at >= one).collect(),
            4 => (0..count).map(|_| random.below(8) > 0).collect(),
            5 => (0..count).map(|_| random.below(8) == 0).collect(),
            _ => (0..count).map(|_| random.below(2) == 0).collect(),
        };
        if known.insert(choice.clone()) {
            chosen.push(choice);
        }
    }
    chosen.truncate(wanted.max(1));
    chosen
}

/// Judges the states of every barrier of a recording.
pub(super) fn judge_all(recording: &Recording, seed: u64, limits: Limits<'_>) -> Tally {
    let tally = Mutex::new(Tally::default());
    if let Err(why) = recording.check_escapes() {
        tally.lock().failures.push(why);
    }
    let judges = std::thread::available_parallelism().map_or(2, |count| count.get().min(4));
    std::thread::scope(|scope| {
        let (sender, receiver) = bounded::<Job>(WAITING_MAX);
        for _ in 0..judges {
            let (receiver, tally) = (receiver.clone(), &tally);
            scope.spawn(move || {
                let mut judge = Judge::new(recording);
                for job in receiver {
                    if tally.lock().failures.len() >= limits.failures_max {
                        continue;
                    }
                    let judged = judge.judge(&job.crashed, &job.expected);
                    let mut tally = tally.lock();
                    tally.states += 1;
                    match judged {
                        Ok(seen) => tally.count(seen),
                        Err(why) => {
                            if let Some(dir) = limits.keep {
                                keep(dir, &job);
                            }
                            tally.failures.push(format!("{}: {why}", job.name));
                        }
                    }
                }
            });
        }
        drop(receiver);
        let mut random = Random(seed ^ 0x5EED);
        let mut oracle = Oracle::new(&recording.histories, &recording.acks, &recording.syncs);
        let mut pages = recording.base.clone();
        let mut sent = 0;
        for barriers in 0..=recording.syncs.len() {
            let epoch = recording.epoch(barriers);
            let expected = Arc::new(oracle.at(barriers, epoch.end));
            let pieces = pieces(recording, epoch);
            let last = barriers == recording.syncs.len();
            let chosen = choose(pieces.len(), limits.states_per_barrier, last, &mut random);
            if sent >= limits.states_max || tally.lock().failures.len() >= limits.failures_max {
                break;
            }
            for choice in chosen {
                let mut crashed = pages.clone();
                let kept = choice.iter().filter(|kept| **kept).count();
                for ((number, range), _) in pieces.iter().zip(&choice).filter(|(_, kept)| **kept) {
                    crashed.apply(&recording.events[*number], range.clone());
                }
                let name = format!(
                    "seed {seed}, barrier {barriers}, state {sent} ({kept} of {} pieces)",
                    pieces.len()
                );
                sent += 1;
                sender.send(Job { name, crashed, expected: expected.clone() }).expect("a judge lives");
            }
            for (number, range) in pieces {
                pages.apply(&recording.events[number], range);
            }
            // The state before the first is none.
            tally.lock().barriers += usize::from(barriers > 0);
        }
    });
    tally.into_inner()
}

fn keep(dir: &Path, job: &Job) {
    let path = dir.join(format!("{}.img", job.name.replace([' ', ','], "_")));
    let write = || -> std::io::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::create(&path)?;
        file.set_len(job.crashed.size_bytes())?;
        for index in 0..job.crashed.count() {
            if let Some(page) = job.crashed.page(index) {
                file.write_all_at(page, index as u64 * super::pages::PAGE_BYTES)?;
            }
        }
        Ok(())
    };
    match write() {
        Ok(()) => println!("kept: {}", path.display()),
        Err(error) => println!("{} can't be kept: {error}", path.display()),
    }
}
