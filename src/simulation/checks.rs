//! The invariants of the design, checked at every step of a schedule. The first that is broken is
//! kept, in words that begin with the invariant's name.

use super::faults::Faults;
use super::job::{Job, State};
use super::ledger::Ledger;
use super::worker::{ProcessId, Worker};
use crate::ids::{Generation, Step};
use crate::membership::{Assignment, Now, Outcome, Record, Seat};
use crate::session::Exit;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A generation whose workers agreed on a state.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) generation: Generation,
    pub(super) from: Step,
    pub(super) processes: Vec<ProcessId>,
    pub(super) spoken_at: Now,
}

#[derive(Debug)]
pub(super) struct Checks {
    pub(super) failure: Option<String>,
    /// Consequences alone are looked at.
    pub(super) unwatched: bool,
    /// The bits of `State(0)` to the last.
    reference: Vec<u64>,
    /// For all workers to finish, once they were told to.
    farewell: Duration,
    /// Who was told of which generation, by which life of the coordinator.
    spoken: BTreeMap<Generation, (u64, Arc<[Seat]>)>,
    /// The newest generation that each process took part in.
    accepted: BTreeMap<ProcessId, Generation>,
    /// Which generation did which step.
    done: BTreeSet<(Generation, Step)>,
    /// The coordinator was started again, and knows the members of a newer generation only, which
    /// never agreed.
    pub(super) forgotten: bool,
    /// When the job was last ended, to go on later.
    ended_at: Now,
    /// From which state each generation went on.
    began: BTreeMap<Generation, Step>,
    /// The newest generation whose workers agreed.
    agreed: Option<Agreed>,
    /// Steps that the ledger can't know the doer of: a checkpoint alone tells of them.
    pub(super) unheard: BTreeSet<u64>,
    /// A coordinator found, when it started, that there was nothing left to do; whoever was still
    /// there heard no last word.
    pub(super) found_complete: bool,
    /// Copies of a newer state.
    pub(super) healed: u64,
    /// Words of older generations.
    pub(super) stale: u64,
    /// Ends other than completion.
    pub(super) ends: u64,
}

impl Checks {
    pub(super) fn new(job: &Job) -> Self {
        Self {
            failure: None,
            unwatched: false,
            reference: job.reference(),
            farewell: job.farewell(),
            spoken: BTreeMap::new(),
            accepted: BTreeMap::new(),
            done: BTreeSet::new(),
            forgotten: false,
            ended_at: Now::ZERO,
            began: BTreeMap::new(),
            agreed: None,
            unheard: BTreeSet::new(),
            found_complete: false,
            healed: 0,
            stale: 0,
            ends: 0,
        }
    }

    pub(super) fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    /// Invariants 1 and 2: there is one `State(t)`, made of every replica's batches, each once.
    pub(super) fn state(&mut self, state: &State, whose: &str) {
        let expected = self.reference.get(state.step.0 as usize);
        if expected != Some(&state.bits) {
            self.fail(format!(
                "one history: {whose} State({}) is {:016x}, expected {expected:016x?}",
                state.step, state.bits
            ));
        }
    }

    /// Invariant 3, the coordinator's side.
    pub(super) fn spoken(&mut self, life: u64, assignment: &Assignment, ledger: &Ledger) {
        let Assignment {
            generation, seats, ..
        } = assignment;
        let recorded = ledger.generations.get(generation);
        let durable = recorded.is_some_and(|r| (r.life, &r.seats) == (life, seats));
        if !durable && !self.unwatched {
            self.fail(format!(
                "durable before spoken: generation {generation} is spoken, and the ledger has \
                 {recorded:?}"
            ));
        }
        let (by, before) = self
            .spoken
            .entry(*generation)
            .or_insert_with(|| (life, Arc::clone(seats)));
        if (*by, &*before) != (life, seats) {
            let why = format!(
                "monotonic generations: {generation} is spoken twice, by life {by} for {before:?} \
                 and by life {life} for {seats:?}"
            );
            self.fail(why);
        }
        if let Some((newest, _)) = self.spoken.last_key_value()
            && newest > generation
        {
            self.fail(format!(
                "monotonic generations: {generation} is spoken after {newest}"
            ));
        }
    }

    /// Invariant 3, the worker's side.
    pub(super) fn accepted(&mut self, process: ProcessId, generation: Generation) {
        let before = self.accepted.insert(process, generation);
        if before.is_some_and(|before| before >= generation) {
            self.fail(format!(
                "monotonic generations: process {process} takes {generation} after {before:?}"
            ));
        }
    }

    /// Invariant 4, within a generation: it goes on from the newest that its members have.
    pub(super) fn agreed(
        &mut self,
        generation: Generation,
        from: Step,
        held: impl Iterator<Item = Step>,
    ) {
        let most = held.max().unwrap_or_default();
        if from < most && !self.unwatched {
            self.fail(format!(
                "nothing committed is lost: generation {generation} goes on from step {from}, and \
                 one of its members holds {most}"
            ));
        }
    }

    /// Invariant 4, from one generation to the next: whoever took part in the one before, and was
    /// not struck itself, brings along what it holds.
    pub(super) fn followed(&mut self, next: Agreed, workers: &[Worker], ledger: &Ledger) {
        self.began.insert(next.generation, next.from);
        let Some(last) = &self.agreed else {
            self.agreed = Some(next);
            return;
        };
        if last.generation >= next.generation {
            return;
        }
        for process in &last.processes {
            let worker = &workers[*process];
            let struck = worker.disturbed_at.is_some_and(|at| at >= last.spoken_at);
            let held = worker.thread.state.step;
            let recorded = ledger.generations.get(&last.generation);
            let unheard = recorded.is_none_or(|recorded| recorded.from.is_none());
            let ended = self.ended_at >= last.spoken_at;
            let excused = struck || unheard || ended || self.forgotten;
            // Whose session broke is taken for dead, and its peers may be one step behind.
            let unheard = worker.unheard_at.is_some_and(|at| at >= last.spoken_at);
            let least = if unheard { next.from.next() } else { next.from };
            if worker.is_running() && !excused && held > least {
                let why = format!(
                    "nothing committed is lost: generation {} goes on from step {}, and process \
                     {process} of generation {}, which nothing has struck, holds {held}",
                    next.generation, next.from, last.generation
                );
                self.failure.get_or_insert(why);
                return;
            }
        }
        // A state that was away may come back, and be newer than what went on without it.
        for step in last.from.0..next.from.0 {
            if !self.done.contains(&(last.generation, Step(step))) {
                self.unheard.insert(step);
            }
        }
        self.agreed = Some(next);
        self.forgotten = false;
    }

    /// A coordinator is started.
    pub(super) fn started(&mut self, ledger: &Ledger) {
        let newest = ledger.generations.last_key_value();
        let agreed = self.agreed.as_ref().map(|agreed| &agreed.generation);
        self.forgotten |= newest.map(|(generation, _)| generation) > agreed;
    }

    pub(super) fn stepped(&mut self, generation: Generation, from: Step) {
        self.done.insert((generation, from));
    }

    pub(super) fn recorded(&mut self, record: &Record) {
        if let Record::Assigned { seats, .. } = record {
            let mut next = 0;
            for seat in seats.iter() {
                if seat.replicas.start != next || seat.replicas.is_empty() {
                    self.fail(format!("exactly once: replicas are dealt as {seats:?}"));
                    return;
                }
                next = seat.replicas.end;
            }
        }
    }

    /// A job ends as it was asked to, or because it can't go on.
    pub(super) fn ended(&mut self, outcome: &Outcome, faults: &Faults, now: Now) {
        let allowed = match outcome {
            Outcome::Complete(step) => step.0 + 1 == self.reference.len() as u64,
            Outcome::Stopped(_) => faults.stopped,
            Outcome::Drained(_) => faults.drained,
            Outcome::Halted(..) => false,
            // A stop has one deadline, and faults may last as long.
            Outcome::Failed(why) => faults.calm(now) < self.farewell && why.contains("to finish"),
        };
        if !matches!(outcome, Outcome::Complete(_)) {
            self.ends += 1;
            // Whoever is still on its way when a job is ended has nobody to bring anything to.
            self.ended_at = now;
        }
        if !allowed {
            let calm = faults.calm(now);
            self.fail(format!(
                "the right outcome: {outcome} ({calm:?} after the last fault)"
            ));
        }
    }

    /// A worker ends well, but for one that a fault or the end of the job has left alone.
    pub(super) fn exited(&mut self, process: ProcessId, exit: Option<&Exit>, alone: bool) {
        let wrong = match exit {
            Some(Exit::Unfit(_)) => true,
            Some(Exit::Failed(why)) => !alone && !why.contains("the job is over"),
            Some(Exit::Done | Exit::Left) | None => false,
        };
        if wrong {
            self.fail(format!(
                "the right outcome: process {process} ends with {exit:?}"
            ));
        }
    }

    /// Invariant 2, in the ledger: every replica's part of every step is booked once, on a
    /// generation that has done that step.
    pub(super) fn concluded(&mut self, job: &Job, ledger: &Ledger, workers: &[Worker]) {
        if let Some(Agreed {
            generation,
            processes,
            spoken_at,
            ..
        }) = &self.agreed
        {
            for process in processes {
                let worker = &workers[*process];
                let struck = worker.disturbed_at.is_some_and(|at| at >= *spoken_at);
                if !self.found_complete
                    && !struck
                    && !worker.orders.leaving
                    && matches!(worker.exit, Some(Exit::Failed(_)))
                {
                    let why = format!(
                        "the right outcome: process {process} of the last generation, {generation}, \
                         which nothing has struck, ends with {:?}",
                        worker.exit
                    );
                    self.failure.get_or_insert(why);
                }
            }
        }
        if ledger.reached.0 != job.total {
            self.fail(format!(
                "exactly once: the job is complete, and the ledger says step {}",
                ledger.reached
            ));
        }
        // Who did what is known if nothing was done twice, and if nothing was done by a generation
        // whose coordinator did not hear that it had formed.
        let unheard = ledger.generations.iter().any(|(generation, recorded)| {
            let began = self.began.get(generation).copied();
            let known = recorded.heard && recorded.from == began;
            let did = || self.done.iter().any(|(by, _)| by == generation);
            !known && (recorded.from.is_some() || did())
        });
        let exact = ledger.rewinds == 0 && self.unheard.is_empty() && !unheard;
        let mut wrong = None;
        for step in 0..job.total {
            let row = ledger.booked.get(&step).map_or(&[][..], Vec::as_slice);
            for replica in 0..job.replicas {
                let booked = row.get(replica as usize).copied().flatten();
                let right = booked.is_some_and(|generation| {
                    !exact || self.done.contains(&(generation, Step(step)))
                });
                if !right && !self.unheard.contains(&step) {
                    wrong.get_or_insert((step, replica, booked));
                }
            }
        }
        if let Some((step, replica, booked)) = wrong {
            self.fail(format!(
                "exactly once: replica {replica} of step {step} is booked on {booked:?}, which did \
                 not do it"
            ));
        }
    }
}
