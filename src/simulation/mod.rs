//! The coordinator's machine and the workers' machines together, on a virtual clock, in a world
//! where things go wrong.
//!
//! A schedule follows from its seed: the job, the delays, who is killed, stopped, cut off or slow,
//! and when. [`Membership`](crate::membership::Membership) and
//! [`Session`](crate::session::Session) are the real ones; what drives them is modelled.
//!
//! - `world`: the clock, and everybody in it;
//! - `network`: sessions, which break, and partitions;
//! - `coordinator`, `decisions`, `ledger`: its process, what `coordinator::driver` does with
//!   decisions, and what it keeps;
//! - `worker`, `training`, `reducing`, `steps`, `collective`: a worker's process, what it does with
//!   its decisions, and its training thread;
//! - `faults`: what goes wrong; `checks`: what must never go wrong; `job`: what is computed.
//!
//! To see one schedule in full:
//!
//! ```text
//! GAN_SIMULATION_SEED=4711 cargo test --lib simulation::one_schedule -- --nocapture
//! ```

mod chance;
mod checks;
mod collective;
mod coordinator;
mod decisions;
mod faults;
mod job;
mod ledger;
mod network;
mod reducing;
mod steps;
mod training;
mod worker;
mod world;

use crate::membership::Bugs;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use world::World;

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, Default)]
struct Mistakes {
    bugs: Bugs,
    oldest_state_taken: bool,
    /// The checks look at consequences alone: not at the mistake itself.
    unwatched: bool,
}

/// What a schedule came to.
#[derive(Clone, Debug, Default)]
struct Summary {
    schedules: u64,
    generations: u64,
    lives: u64,
    processes: u64,
    rewinds: u64,
    faults: u64,
    healed: u64,
    stale: u64,
    stops: u64,
    /// From the end of the faults to the end of the job.
    calm: Duration,
    calm_generations: u64,
    trace: Vec<String>,
}

impl Summary {
    fn add(&mut self, other: &Self) {
        self.schedules += other.schedules;
        self.generations += other.generations;
        self.lives += other.lives;
        self.processes += other.processes;
        self.rewinds += other.rewinds;
        self.faults += other.faults;
        self.healed += other.healed;
        self.stale += other.stale;
        self.stops += other.stops;
        self.calm = self.calm.max(other.calm);
        self.calm_generations = self.calm_generations.max(other.calm_generations);
    }
}

/// What a schedule broke.
#[derive(Clone, Debug)]
struct Failure {
    why: String,
    trace: Vec<String>,
}

/// Events that are shown of a schedule that failed.
const SHOWN: usize = 60;

/// Schedules that `make test` runs.
const SCHEDULES: u64 = 10_000;

/// Runs schedules side by side, until one fails: the first, by its seed, of those that did.
fn search(seeds: Range<u64>, mistakes: Mistakes) -> Result<Summary, (u64, Failure)> {
    let next = AtomicU64::new(seeds.start);
    let run = || {
        let mut total = Summary::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return (total, None);
            }
            match World::new(seed, mistakes, false).run() {
                Ok(summary) => total.add(&summary),
                Err(failure) => {
                    next.store(seeds.end, Ordering::Relaxed);
                    return (total, Some((seed, failure)));
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let mut total = Summary::default();
    let mut first: Option<(u64, Failure)> = None;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            let (summary, failed) = thread.join().expect("a schedule does not panic");
            total.add(&summary);
            if let Some((seed, failure)) = failed
                && first.as_ref().is_none_or(|(other, _)| seed < *other)
            {
                first = Some((seed, failure));
            }
        }
    });
    first.map_or(Ok(total), Err)
}

/// What a person needs to see of a schedule that failed.
fn tell(seed: u64, mistakes: Mistakes, shown: usize) -> String {
    let (why, trace) = match World::new(seed, mistakes, true).run() {
        Ok(summary) => (
            format!(
                "{summary:#?}",
                summary = Summary {
                    trace: Vec::new(),
                    ..summary.clone()
                }
            ),
            summary.trace,
        ),
        Err(failure) => (failure.why, failure.trace),
    };
    let last = trace.len().saturating_sub(shown);
    format!(
        "schedule {seed}: {why}\n\nits last events:\n{}\n\nto see it in full: \
         GAN_SIMULATION_SEED={seed} cargo test --lib simulation::one_schedule -- --nocapture\n",
        trace[last..].join("\n")
    )
}

/// A number from the environment.
fn asked(variable: &str) -> Option<u64> {
    let asked = std::env::var(variable).ok()?;
    Some(
        asked
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {asked}")),
    )
}

/// Set `GAN_SIMULATION_COUNT` for more schedules, `GAN_SIMULATION_FROM` for others.
#[test]
fn the_invariants_hold_whatever_goes_wrong() {
    let from = asked("GAN_SIMULATION_FROM").unwrap_or(0);
    let count = asked("GAN_SIMULATION_COUNT").unwrap_or(SCHEDULES);
    let summary = match search(from..from + count, Mistakes::default()) {
        Ok(summary) => summary,
        Err((seed, _)) => panic!("{}", tell(seed, Mistakes::default(), SHOWN)),
    };
    println!("{summary:#?}");
    // A world in which nothing goes wrong would prove nothing.
    assert_eq!(summary.schedules, count);
    assert!(summary.faults > 5 * count, "{summary:?}");
    assert!(summary.generations > 3 * count, "{summary:?}");
    assert!(summary.lives > 2 * count, "{summary:?}");
    for seen in [
        summary.rewinds,
        summary.healed,
        summary.stale,
        summary.stops,
    ] {
        assert!(seen > count / 20, "{summary:?}");
    }
}

/// With `GAN_SIMULATION_SEED`, shows that schedule in full.
#[test]
fn one_schedule_is_the_same_every_time() {
    let seed = asked("GAN_SIMULATION_SEED");
    let told = tell(seed.unwrap_or(1), Mistakes::default(), usize::MAX);
    if seed.is_some() {
        println!("{told}");
    }
    assert!(told.lines().count() > 50, "{told}");
    assert_eq!(
        told,
        tell(seed.unwrap_or(1), Mistakes::default(), usize::MAX)
    );
}

/// Looks for a mistake, and says how it is found; the same schedules without it are fine.
fn found(mistakes: Mistakes) -> String {
    let (seed, failure) = search(0..SCHEDULES, mistakes).expect_err("the mistake is not found");
    if let Err((seed, _)) = search(0..seed + 1, Mistakes::default()) {
        panic!("{}", tell(seed, Mistakes::default(), SHOWN));
    }
    println!("schedule {seed}: {}", failure.why);
    failure.why
}

/// Invariant 3.
#[test]
fn a_word_of_an_older_generation_that_has_an_effect_is_found() {
    let bugs = Bugs {
        stale_generation_accepted: true,
        ..Bugs::default()
    };
    let mistakes = Mistakes {
        bugs,
        ..Mistakes::default()
    };
    let why = found(mistakes);
    assert!(why.starts_with("monotonic generations: "), "{why}");
}

/// Invariant 3: what isn't durable must not be spoken. What comes of it is found too, by a
/// coordinator that is killed in between.
#[test]
fn a_generation_that_is_spoken_before_it_is_durable_is_found() {
    let bugs = Bugs {
        spoken_before_persisted: true,
        ..Bugs::default()
    };
    let mut mistakes = Mistakes {
        bugs,
        ..Mistakes::default()
    };
    let why = found(mistakes);
    assert!(why.starts_with("durable before spoken: "), "{why}");
    mistakes.unwatched = true;
    let why = found(mistakes);
    assert!(why.starts_with("monotonic generations: "), "{why}");
    assert!(why.contains("is spoken twice"), "{why}");
}

/// Invariant 4. And if nobody looks at who copies what from whom, what survivors lose is found.
#[test]
fn a_survivor_that_goes_on_from_an_older_state_is_found() {
    let mut mistakes = Mistakes {
        oldest_state_taken: true,
        ..Mistakes::default()
    };
    let why = found(mistakes);
    assert!(why.starts_with("nothing committed is lost: "), "{why}");
    mistakes.unwatched = true;
    let why = found(mistakes);
    assert!(why.starts_with("nothing committed is lost: "), "{why}");
}
