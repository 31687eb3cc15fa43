//! The world of one schedule: a clock that jumps to whatever comes next, and everybody in it.

use super::chance::Chance;
use super::checks::Checks;
use super::collective::{Group, GroupId};
use super::coordinator::Coordinator;
use super::faults::Faults;
use super::job::Job;
use super::network::{ConnectionId, Message, Network, Side};
use super::worker::{Input, ProcessId, Worker};
use super::{Failure, Mistakes, Summary};
use crate::ids::Step;
use crate::membership::{Now, Outcome};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

/// What happens at a time.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    /// It comes out of a connection at this side.
    Arrives(ConnectionId, Side, Message),
    /// A side of a connection that hears nothing gives it up.
    KeepAlive(ConnectionId, Side),
    /// It concerns a worker's process.
    Worker(ProcessId, Input),
    /// A stopped process goes on.
    Continue(ProcessId),
    /// A worker's process is killed for not having ended.
    Grace(ProcessId),
    /// This life of the coordinator gets round to its decisions.
    CarryOut(u64),
    /// This life of the coordinator, stopped, goes on.
    ContinueCoordinator(u64),
    /// A coordinator is started if none is there.
    StartCoordinator,
    /// A worker is started if there are too few.
    StartWorker,
    /// Something goes wrong.
    Fault,
    /// Nothing goes wrong any more.
    Peace,
}

struct Scheduled {
    at: Now,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The earliest is the greatest: a heap gives it first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

pub(super) struct World {
    pub(super) now: Now,
    pub(super) chance: Chance,
    pub(super) job: Job,
    pub(super) mistakes: Mistakes,
    pub(super) coordinator: Coordinator,
    pub(super) workers: Vec<Worker>,
    pub(super) network: Network,
    pub(super) groups: BTreeMap<GroupId, Group>,
    /// The whole checkpoints on the shared disk.
    pub(super) store: BTreeMap<Step, u64>,
    pub(super) faults: Faults,
    pub(super) checks: Checks,
    queue: BinaryHeap<Scheduled>,
    order: u64,
    /// What has happened, if it is to be told.
    pub(super) trace: Option<Vec<String>>,
}

/// Times that one deadline may come in a row without the clock's moving.
const RESTLESS: u32 = 1000;

/// For everybody to have gone home once the job is over.
const HOMECOMING: Duration = Duration::from_secs(400);

impl World {
    pub(super) fn new(seed: u64, mistakes: Mistakes, traced: bool) -> Self {
        let mut chance = Chance::new(seed);
        let job = Job::draw(&mut chance);
        let faults = Faults::draw(&mut chance);
        let mut world = Self {
            now: Now::ZERO,
            mistakes,
            coordinator: Coordinator::default(),
            workers: Vec::new(),
            network: Network::draw(&mut chance),
            groups: BTreeMap::new(),
            store: BTreeMap::new(),
            checks: Checks::new(&job),
            queue: BinaryHeap::new(),
            order: 0,
            trace: traced.then(Vec::new),
            chance,
            job,
            faults,
        };
        world.checks.unwatched = mistakes.unwatched;
        world.open();
        world
    }

    pub(super) fn schedule(&mut self, at: Now, what: Happening) {
        self.order += 1;
        let order = self.order;
        self.queue.push(Scheduled { at, order, what });
    }

    pub(super) fn after(&mut self, wait: Duration, what: Happening) {
        self.schedule(self.now + wait, what);
    }

    pub(super) fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    pub(super) fn note(&mut self, line: String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.4} {line}", self.now.as_secs_f64()));
        }
    }

    /// Runs to the end of the job and of everybody in it.
    pub(super) fn run(mut self) -> Result<Summary, Failure> {
        let mut restless = 0;
        let mut over_at = None;
        loop {
            if let Some(why) = self.checks.failure.take() {
                return Err(self.failed(why));
            }
            if self.is_over() {
                let over_at = *over_at.get_or_insert(self.now);
                if self.workers.iter().all(Worker::is_gone) {
                    return self.conclude();
                }
                if self.now > over_at + HOMECOMING {
                    let why = "every wait ends: a worker outlives its job".to_owned();
                    return Err(self.failed(why));
                }
            }
            let due = self.next_deadline();
            let queued = self.queue.peek().map(|next| next.at);
            let before = self.now;
            match (due, queued) {
                (None, None) => {
                    let why = "every wait ends: nobody waits for anything, and the job is not over";
                    return Err(self.failed(why.to_owned()));
                }
                (Some((due, who)), queued) if queued.is_none_or(|at| due < at) => {
                    self.now = self.now.max(due);
                    self.deadline(who);
                }
                _ => {
                    if let Some(next) = self.queue.pop() {
                        self.now = self.now.max(next.at);
                        self.happen(next.what);
                    }
                }
            }
            restless = if self.now > before { 0 } else { restless + 1 };
            if restless > RESTLESS {
                let why = format!(
                    "every wait ends: something comes again and again at one time: {due:?}; {}",
                    self.coordinator.describe()
                );
                return Err(self.failed(why));
            }
            self.check_progress();
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.coordinator.outcome, Some(Outcome::Complete(_)))
    }

    /// The next deadline of a machine, and whose it is: nobody's is the coordinator's.
    fn next_deadline(&self) -> Option<(Now, Option<ProcessId>)> {
        let coordinator = self.coordinator.next_deadline().map(|at| (at, None));
        let workers = self.workers.iter().enumerate();
        let workers = workers.filter_map(|(id, worker)| Some((worker.next_deadline()?, Some(id))));
        workers.chain(coordinator).min()
    }

    fn deadline(&mut self, who: Option<ProcessId>) {
        match who {
            None => self.coordinator_deadline(),
            Some(process) => self.worker_deadline(process),
        }
    }

    pub(super) fn happen(&mut self, what: Happening) {
        match what {
            Happening::Arrives(connection, side, message) => {
                self.arrives(connection, side, message);
            }
            Happening::KeepAlive(connection, side) => self.keep_alive(connection, side),
            Happening::Worker(process, input) => self.worker_input(process, input),
            Happening::Continue(process) => self.continue_worker(process),
            Happening::Grace(process) => self.grace(process),
            Happening::CarryOut(life) => self.carry_out_late(life),
            Happening::ContinueCoordinator(life) => self.continue_coordinator(life),
            Happening::StartCoordinator => self.start_coordinator(),
            Happening::StartWorker => self.start_worker(),
            Happening::Fault => self.fault(),
            Happening::Peace => self.peace(),
        }
    }

    /// Progress once faults stop: the job is complete in bounded time, after boundedly many
    /// generations.
    fn check_progress(&mut self) {
        if self.is_over() {
            return;
        }
        if let Some(why) = self
            .faults
            .overdue(self.now, self.coordinator.generations())
        {
            let phase = self.coordinator.describe();
            self.checks
                .fail(format!("progress once faults stop: {why}; {phase}"));
        }
    }

    fn conclude(mut self) -> Result<Summary, Failure> {
        let ledger = &self.coordinator.ledger;
        self.checks.concluded(&self.job, ledger, &self.workers);
        if let Some(why) = self.checks.failure.take() {
            return Err(self.failed(why));
        }
        let ledger = &self.coordinator.ledger;
        Ok(Summary {
            schedules: 1,
            generations: ledger.generations.len() as u64,
            lives: self.coordinator.life,
            processes: self.workers.len() as u64,
            rewinds: ledger.rewinds,
            faults: self.faults.count,
            healed: self.checks.healed,
            stale: self.checks.stale,
            stops: self.checks.ends,
            calm: self.faults.calm(self.now),
            calm_generations: self.faults.calm_generations(self.coordinator.generations()),
            trace: self.trace.unwrap_or_default(),
        })
    }

    fn failed(&mut self, why: String) -> Failure {
        self.note(format!("FAILED: {why}"));
        Failure {
            why,
            trace: self.trace.take().unwrap_or_default(),
        }
    }
}
