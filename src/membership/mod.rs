//! PURE. The coordinator's machine: who takes part, and in which generation.
//!
//! ```text
//! Gathering ─▶ Forming ─▶ Running ─▶ Stopping ─▶ Ended
//!     ▲          ▲  ▲        │
//!     │          │  └─ Pausing (a worker comes, goes, or is slow: all rest at the same step)
//!     └──────────┴──── death: the next generation at once; too few: wait
//! Recovering ─▶ Running (the coordinator was started again, and everybody is still there)
//! ```
//!
//! Events and the time come in, decisions go out as values, in the order in which they must be
//! carried out: what is to be durable stands before the word that depends on it. This room knows no
//! sockets, no files and no clock; `coordinator` drives it.
//!
//! Where a generation's state comes from is not decided here: its workers find out among
//! themselves who holds the newest ([`crate::session::newest`]), so nothing depends on how late a
//! report is.
//!
//! - `arriving`: Hello, Ready, and the workers of before a restart;
//! - `forming`: seats, pauses, and what follows a broken generation;
//! - `running`: progress, checkpoints, slow workers;
//! - `ending`: who leaves, who is lost, and the end of the job;
//! - `balance`: how many replicas each hosts.

mod arriving;
pub mod balance;
mod ending;
mod forming;
mod members;
mod running;
#[cfg(test)]
mod tests;
mod words;

pub use members::{Member, MemberState, Now, Rules};
pub use words::{
    Action, Assignment, Breakage, Cause, CheckpointRecord, Close, DeviceKind, Event, EventKind,
    Facts, Finish, Forming, Halt, Order, Outcome, Phase, Record, Recovery, Seat, Standing, Word,
};

use crate::ids::{Generation, Step, WorkerId};
use ending::Ending;
use forming::Trouble;
use running::{Balance, Clock};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Steps that are handed out ahead, unless somebody wants to see what happens when they run out.
const LOOKAHEAD_STEPS: u64 = 1000;

/// What the ledger knows when a coordinator begins.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// The newest generation that was ever persisted.
    pub generation: Generation,
    /// Its workers, by rank, unless nobody of them is left.
    pub seats: Vec<Seat>,
    /// The newest state that some worker has reached.
    pub reached: Step,
    /// The newest whole checkpoint.
    pub checkpoint: Option<CheckpointRecord>,
}

/// The machine.
#[derive(Debug)]
pub struct Membership {
    rules: Rules,
    phase: Phase,
    /// When the phase began.
    since: Now,
    members: BTreeMap<WorkerId, Member>,
    /// The newest generation that was ever persisted.
    generation: Generation,
    /// The newest generation that some worker has spoken of.
    heard: Generation,
    /// Its seats, by rank.
    seats: Arc<[Seat]>,
    /// The state that its workers agreed on, once they have.
    from: Option<Step>,
    /// What had been reached when it was spoken.
    before: Step,
    /// A generation has been formed in this coordinator's life, or its workers are expected back.
    begun: bool,
    checkpoint: Option<CheckpointRecord>,
    /// The newest state that some worker has reached.
    reached: Step,
    /// The epochs that were handed out.
    assigned: Range<u64>,
    /// The epochs before this one are booked. Those that were handed out may not be, if nobody has
    /// said that the generation had formed.
    booked: u64,
    /// Steps that are handed out ahead, at least: what workers live on while no coordinator is
    /// there.
    lookahead: u64,
    /// Why the next generation is formed, while it can't be.
    cause: Cause,
    /// What has gone wrong with the present generation.
    trouble: Trouble,
    /// Of the change that is under way.
    clock: Option<Clock>,
    balance: Balance,
    /// How the job is to end, once it is to.
    ending: Option<Ending>,
    /// Rank 0 has finished: the last checkpoint is safe.
    saved: bool,
    /// No lease ends before: renewing one costs nothing.
    lapse_at: Now,
    /// The processes of the newest generation that agreed on a state: who holds the newest one.
    holders: Vec<String>,
    /// So long one of them whose session broke may come back before the job goes on from less.
    awaited_until: Option<Now>,
    /// When the first bar is lifted.
    unbar_at: Option<Now>,
    #[cfg(test)]
    pub(crate) bugs: Bugs,
}

/// Mistakes that the simulation must find: each is one that somebody has made.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bugs {
    /// What an older generation says has an effect.
    pub(crate) stale_generation_accepted: bool,
    /// A generation is spoken before it is durable.
    pub(crate) spoken_before_persisted: bool,
}

impl Membership {
    /// A machine that gathers workers, or waits for those of before to come back.
    pub fn new(rules: Rules, past: Past, now: Now) -> Self {
        Self::with_lookahead(rules, past, LOOKAHEAD_STEPS, now)
    }

    /// One that hands out so many steps ahead.
    pub(crate) fn with_lookahead(rules: Rules, past: Past, lookahead: u64, now: Now) -> Self {
        let Past {
            generation,
            seats,
            reached,
            checkpoint,
        } = past;
        let saved = checkpoint.as_ref().map_or(Step(0), |c| c.step);
        let mut machine = Self {
            phase: Phase::Gathering,
            since: now,
            members: BTreeMap::new(),
            generation,
            heard: generation,
            seats: Arc::from([]),
            from: None,
            before: reached.max(saved),
            begun: false,
            reached: reached.max(saved),
            checkpoint,
            assigned: 0..0,
            booked: reached.0 / rules.steps_per_epoch,
            lookahead,
            cause: Cause::Start,
            trouble: Trouble::default(),
            clock: None,
            balance: Balance::new(now),
            ending: None,
            saved: false,
            lapse_at: now,
            holders: Vec::new(),
            awaited_until: None,
            unbar_at: None,
            #[cfg(test)]
            bugs: Bugs::default(),
            rules,
        };
        machine.expect_back(seats, now);
        machine
    }

    /// Where the job stands.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The newest generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Everybody who has a session, or is expected back.
    pub fn members(&self) -> &BTreeMap<WorkerId, Member> {
        &self.members
    }

    /// The worker that this process is known as.
    pub fn known(&self, incarnation: &str) -> Option<WorkerId> {
        let mut members = self.members.iter();
        let known = members.find(|(_, member)| member.facts.incarnation == incarnation);
        known.map(|(worker, _)| *worker)
    }

    /// The newest state that some worker has reached.
    pub fn reached(&self) -> Step {
        self.reached
    }

    /// Who is waited for, for people.
    pub fn waiting_for(&self) -> String {
        match &self.phase {
            Phase::Gathering => format!(
                "waiting for workers: {} of {} ready, {} preparing their data",
                self.staying(self.since).len(),
                self.needed(),
                self.count(MemberState::Preparing),
            ),
            Phase::Recovering => {
                format!(
                    "waiting for {} to come back",
                    self.names(&[MemberState::Absent])
                )
            }
            Phase::Forming => format!(
                "waiting for {} to connect",
                self.names(&[MemberState::Forming])
            ),
            Phase::Running => String::new(),
            Phase::Pausing(cause) => format!(
                "waiting for {} to end the step ({cause})",
                self.names(&[MemberState::Training, MemberState::Forming])
            ),
            Phase::Stopping => format!(
                "waiting for {} to finish",
                self.names(&[
                    MemberState::Forming,
                    MemberState::Training,
                    MemberState::Paused
                ])
            ),
            Phase::Ended(outcome) => outcome.to_string(),
        }
    }

    fn count(&self, state: MemberState) -> usize {
        self.members.values().filter(|m| m.state == state).count()
    }

    fn names(&self, states: &[MemberState]) -> String {
        let names: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| states.contains(&member.state))
            .map(|(worker, member)| name(*worker, member))
            .collect();
        if names.is_empty() {
            "nobody".to_owned()
        } else {
            names.join(", ")
        }
    }

    /// How many workers it takes to go on.
    fn needed(&self) -> u32 {
        if self.begun {
            self.rules.min
        } else {
            self.rules.expected
        }
    }

    fn seated(&self) -> impl Iterator<Item = (WorkerId, &Member)> {
        let seats = self.seats.iter();
        seats.filter_map(|seat| {
            let member = self.members.get(&seat.worker)?;
            member.seat.is_some().then_some((seat.worker, member))
        })
    }

    /// When [`Membership::handle_timeout`] wants to be called, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Now> {
        if let Phase::Ended(_) = self.phase {
            return None;
        }
        let lapse = (!self.members.is_empty()).then_some(self.lapse_at);
        let times = [
            self.phase_deadline(),
            self.trouble.explained_by(),
            lapse,
            self.awaited_until,
            self.unbar_at,
        ];
        times.into_iter().flatten().min()
    }

    fn phase_deadline(&self) -> Option<Now> {
        let length = match self.phase {
            Phase::Gathering => self.rules.join,
            Phase::Recovering => self.rules.heartbeat,
            // It is broken, and followed by another once that is explained.
            Phase::Forming if self.trouble.explained_by().is_some() => return None,
            // The workers' own deadline comes first, and says more.
            Phase::Forming => self.rules.form + self.rules.form / 4,
            Phase::Pausing(_) => self.rules.pause,
            Phase::Stopping => self.rules.finish,
            Phase::Running | Phase::Ended(_) => return None,
        };
        Some(self.since + length)
    }

    /// The time has come that [`Membership::next_deadline`] named (or any other).
    pub fn handle_timeout(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Phase::Ended(_) = self.phase {
            return actions;
        }
        if now >= self.lapse_at {
            self.lapse(now, &mut actions);
        }
        if self.awaited_until.is_some_and(|at| now >= at) {
            self.awaited_until = None;
            if self.phase == Phase::Gathering {
                self.vacate(&mut actions);
            }
        }
        self.explain(now, &mut actions);
        if self.phase_deadline().is_some_and(|at| now >= at) {
            self.overdue(now, &mut actions);
        }
        self.settle(now, &mut actions);
        self.lift_bars(now);
        actions
    }

    /// Gives up who has shown no sign of life.
    fn lapse(&mut self, now: Now, actions: &mut Vec<Action>) {
        let heartbeat = self.rules.heartbeat;
        // An absent member's own deadline is the phase's; one that has finished may be gone, once
        // all it did is safe.
        let saved = self.saved;
        let watched = |member: &&Member| match member.state {
            MemberState::Absent => false,
            MemberState::Finished => !saved,
            _ => true,
        };
        let silent: Vec<WorkerId> = self
            .members
            .iter()
            .filter(|(_, member)| watched(member) && now >= member.seen_at + heartbeat)
            .map(|(worker, _)| *worker)
            .collect();
        let why = format!(
            "no sign of life for {}",
            humantime::format_duration(heartbeat)
        );
        self.give_up(silent, &why, now, actions);
        let oldest = self.members.values().filter(watched);
        let oldest = oldest.map(|member| member.seen_at).min();
        self.lapse_at = oldest.unwrap_or(now) + heartbeat;
    }

    /// The coordinator itself was stopped, or had no time, for so long: nobody could be heard, so
    /// nobody's silence counts.
    pub fn slept(&mut self, length: std::time::Duration) {
        for member in self.members.values_mut() {
            member.seen_at += length;
        }
        self.since += length;
        self.lapse_at += length;
        self.trouble.slept(length);
        if let Some(at) = &mut self.awaited_until {
            *at += length;
        }
    }

    /// The phase has lasted too long.
    fn overdue(&mut self, now: Now, actions: &mut Vec<Action>) {
        let waited = humantime::format_duration(now.saturating_sub(self.since));
        let reason = format!("{} (for {waited})", self.waiting_for());
        let stuck = |states: &[MemberState]| -> Vec<WorkerId> {
            let stuck = self.seated().filter(|(_, m)| states.contains(&m.state));
            stuck.map(|(worker, _)| worker).collect()
        };
        match self.phase {
            Phase::Gathering => self.give_up_waiting(reason, now, actions),
            Phase::Recovering => {
                let absent = stuck(&[MemberState::Absent]);
                let why = "it has not come back since the coordinator was started again";
                self.give_up(absent, why, now, actions);
            }
            Phase::Forming => {
                let stuck = stuck(&[MemberState::Forming]);
                if stuck.is_empty() {
                    // They rest, and never said which state they had formed at.
                    self.regroup(Cause::CollectiveFailure, now, actions);
                    return;
                }
                let why = "it has not connected to its peers in time (deadlines.form)";
                self.give_up(stuck, why, now, actions);
            }
            Phase::Pausing(_) => {
                let why = "it has not ended its step in time (deadlines.collective)";
                let stuck = stuck(&[MemberState::Training, MemberState::Forming]);
                self.give_up(stuck, why, now, actions);
            }
            Phase::Stopping if self.ending.is_none() => {
                let unfinished = self.seated();
                let unfinished = unfinished.filter(|(_, m)| m.state != MemberState::Finished);
                let unfinished = unfinished.map(|(worker, _)| worker).collect();
                let why = "it was told to go, and has not finished in time";
                self.give_up(unfinished, why, now, actions);
            }
            Phase::Stopping => self.fail(reason, actions),
            Phase::Running | Phase::Ended(_) => {}
        }
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Said(worker, word) => {
                // Ten thousand workers beat every second: that must cost little.
                let idle = matches!(word, Word::Heartbeat(..) | Word::Progress(..));
                self.said(worker, word, now, &mut actions);
                if idle && !self.is_unbalanced(now) {
                    return actions;
                }
            }
            Event::Lost(worker, why) => self.lost(worker, &why, now, &mut actions),
            Event::Stop(reason) => self.stop(&reason, Ending::Stopped, now, &mut actions),
            Event::Drain(reason) => self.stop(&reason, Ending::Drained, now, &mut actions),
            // A stop that is under way has a deadline of its own.
            Event::Fail(_) if self.phase == Phase::Stopping => {}
            Event::Fail(reason) => self.fail(reason, &mut actions),
        }
        self.settle(now, &mut actions);
        actions
    }

    fn said(&mut self, worker: WorkerId, word: Word, now: Now, actions: &mut Vec<Action>) {
        if let Word::Hello(facts, standing) = word {
            self.hello(worker, facts, standing, now, actions);
            return;
        }
        let accepts_stale = self.accepts_stale();
        let Some(member) = self.members.get_mut(&worker) else {
            return; // Refused, or already given up: it can't do harm.
        };
        member.seen_at = now;
        // Invariant 3: what an older generation says has no effect.
        if let Some(spoken) = word.generation() {
            let present = member.seat.is_some() && spoken == self.generation;
            // Who has no seat may still say that it can't go on.
            let failed = matches!(word, Word::Finished(.., Finish::Failed(_)));
            let unfit = failed && member.seat.is_none();
            if !(present || unfit || accepts_stale) {
                return;
            }
        }
        match word {
            Word::Hello(..) => {}
            Word::Ready(digest, step) => self.ready(worker, &digest, step, actions),
            Word::Formed(_, step, forming) => self.formed(worker, step, forming, now, actions),
            Word::Progress(_, step) => self.progress(worker, step, now, actions),
            Word::Heartbeat(generation, step, pace) => {
                if generation == self.generation && member.seat.is_some() {
                    self.heartbeat(worker, step, pace, now, actions);
                }
            }
            Word::CheckpointWritten(_, checkpoint) => self.checkpoint(checkpoint, now, actions),
            Word::CheckpointFailed(_, step, error) => {
                let told = format!("step {step}, by worker {worker}: {error}");
                let kind = EventKind::CheckpointFailed;
                actions.push(Action::Persist(Record::Event(kind, told)));
            }
            Word::Evaluated(_, step, found) => {
                let told = Record::Event(EventKind::Evaluated, format!("step {step}: {found}"));
                actions.push(Action::Persist(told));
            }
            Word::Paused(_, step) => self.paused(worker, step, now),
            Word::CollectiveFailed(_, step, breakage) => {
                self.collective_failed(worker, step, breakage, now, actions);
            }
            Word::Leaving(_) => self.leaving(worker, now, actions),
            Word::Finished(_, step, finish) => self.finished(worker, step, finish, now, actions),
        }
    }

    fn accepts_stale(&self) -> bool {
        #[cfg(test)]
        return self.bugs.stale_generation_accepted;
        #[cfg(not(test))]
        false
    }

    /// Decides what follows from where everybody stands now.
    fn settle(&mut self, now: Now, actions: &mut Vec<Action>) {
        // One change may lead to the next: a generation that has formed may have to pause.
        for _ in 0..4 {
            let before = (self.phase.clone(), self.generation);
            self.settle_once(now, actions);
            if before == (self.phase.clone(), self.generation) {
                return;
            }
        }
    }

    fn settle_once(&mut self, now: Now, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Gathering => self.gather(now, actions),
            Phase::Recovering => self.recovered(now, actions),
            Phase::Forming => self.await_formed(now, actions),
            Phase::Running => self.look_for_change(now, actions),
            Phase::Pausing(cause) => {
                if self.seated().all(|(_, member)| member.rests()) {
                    self.regroup(cause, now, actions);
                }
            }
            Phase::Stopping => self.conclude(now, actions),
            Phase::Ended(_) => {}
        }
    }

    fn enter(&mut self, phase: Phase, now: Now) {
        self.phase = phase;
        self.since = now;
    }
}

fn name(worker: WorkerId, member: &Member) -> String {
    format!("worker {worker} ({})", member.facts)
}
