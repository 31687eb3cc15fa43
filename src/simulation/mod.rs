//! The coordinator's machine and the workers' machines together, on a virtual clock, in a world
//! where things go wrong.
//!
//! A schedule follows from its seed: the job, the delays, who is killed, stopped, cut off or slow,
//! and when. [`Membership`](crate::membership::Membership) and
//! [`Session`](crate::session::Session) are the real ones; what drives them is modelled.
//!
//! - `world`: the clock, and everybody in it;
//! - `network`: sessions, which break, and partitions;
//! - `coordinator`, `ledger`: what `coordinator::driver` does with decisions, and what it keeps;
//! - `worker`, `training`, `collective`: what a worker's process does with its own;
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
mod faults;
mod job;
mod ledger;
mod network;
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

#[test]
fn the_invariants_hold_whatever_goes_wrong() {
    let count = std::env::var("GAN_SIMULATION_COUNT").ok();
    let count = count.map_or(SCHEDULES, |count| {
        count.parse().expect("a number of schedules")
    });
    let start = std::env::var("GAN_SIMULATION_FROM").ok();
    let start: u64 = start.map_or(0, |count| count.parse().expect("a seed"));
    match search(start..start + count, Mistakes::default()) {
        Ok(summary) => println!("{summary:#?}"),
        Err((seed, _)) => panic!("{}", tell(seed, Mistakes::default(), SHOWN)),
    }
}

/// Replays the schedule that `GAN_SIMULATION_SEED` names, or the first.
#[test]
fn one_schedule() {
    let seed = std::env::var("GAN_SIMULATION_SEED").ok();
    let seed = seed.map_or(0, |seed| {
        seed.parse().expect("GAN_SIMULATION_SEED is a number")
    });
    println!("{}", tell(seed, Mistakes::default(), usize::MAX));
}
