//! PURE. The coordinator's machine: who takes part, and in which generation.
//!
//! `Gathering → Forming → Running → Stopping → Ended`. Events and the time come in, decisions go
//! out as values, in the order in which they must be carried out: what is to be durable stands
//! before the word that depends on it. This room knows no sockets, no files and no clock;
//! `coordinator` drives it.
//!
//! In this version a job starts when all expected workers are there and ends when one is lost.
//! Nothing here fixes the membership, though: seats are dealt anew for each generation, and
//! [`Source`] says where its state comes from.

mod members;
#[cfg(test)]
mod tests;
mod words;

pub use members::{Member, MemberState, Now, Rules, deal};
pub use words::{
    Action, Cause, CheckpointRecord, DeviceKind, Event, EventKind, Facts, Finish, Order, Outcome,
    Phase, Record, Seat, Source,
};

use crate::ids::{Generation, Rank, Step, WorkerId};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// How long the machine waits for the death notice that explains a failed collective.
const EXPLANATION: Duration = Duration::from_secs(2);

/// Steps that are handed out ahead, at least: what workers live on while no coordinator is there.
const LOOKAHEAD_STEPS: u64 = 1000;

/// Epochs that are handed out ahead, at least.
const LOOKAHEAD_EPOCHS: u64 = 2;

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
    source: Source,
    /// The epochs that were handed out.
    assigned: Range<u64>,
    /// A failed collective that waits for the death notice that explains it.
    unexplained: Option<(Now, String)>,
    /// How members finished.
    finished_step: Step,
    stopped: bool,
    drained: bool,
}

impl Membership {
    /// A machine that gathers workers. `generation` is the newest that the ledger knows.
    pub fn new(rules: Rules, generation: Generation, source: Source, now: Now) -> Self {
        let reached = source.step();
        Self {
            rules,
            phase: Phase::Gathering,
            since: now,
            members: BTreeMap::new(),
            generation,
            source,
            assigned: 0..0,
            unexplained: None,
            finished_step: reached,
            stopped: false,
            drained: false,
        }
    }

    /// Where the job stands.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The newest generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Everybody who has a session.
    pub fn members(&self) -> &BTreeMap<WorkerId, Member> {
        &self.members
    }

    /// The newest state that some worker holds.
    pub fn reached(&self) -> Step {
        let newest = self.members.values().map(|member| member.step).max();
        newest.unwrap_or_default().max(self.finished_step)
    }

    /// Who is waited for, for people.
    pub fn waiting_for(&self) -> String {
        let count = |state| self.members.values().filter(|m| m.state == state).count();
        match &self.phase {
            Phase::Gathering => format!(
                "waiting for workers: {} of {} ready, {} preparing their data",
                count(MemberState::Ready),
                self.rules.expected,
                count(MemberState::Preparing),
            ),
            Phase::Forming => format!(
                "waiting for {} to connect",
                self.names(&[MemberState::Forming])
            ),
            Phase::Running => String::new(),
            Phase::Stopping => format!(
                "waiting for {} to finish",
                self.names(&[MemberState::Forming, MemberState::Training])
            ),
            Phase::Ended(outcome) => outcome.to_string(),
        }
    }

    fn names(&self, states: &[MemberState]) -> String {
        let names: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| states.contains(&member.state))
            .map(|(id, member)| format!("worker {id} ({})", member.facts))
            .collect();
        if names.is_empty() {
            "nobody".to_owned()
        } else {
            names.join(", ")
        }
    }

    /// When [`Membership::handle_timeout`] wants to be called, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Now> {
        if let Phase::Ended(_) = self.phase {
            return None;
        }
        let phase = self.phase_deadline();
        let explanation = self.unexplained.as_ref().map(|(at, _)| *at + EXPLANATION);
        let lapse = self
            .members
            .values()
            .filter(|member| member.state != MemberState::Finished)
            .map(|member| member.seen_at + self.rules.heartbeat)
            .min();
        [phase, explanation, lapse].into_iter().flatten().min()
    }

    fn phase_deadline(&self) -> Option<Now> {
        match self.phase {
            Phase::Gathering => Some(self.since + self.rules.join),
            Phase::Forming => Some(self.since + self.rules.form),
            Phase::Stopping => Some(self.since + self.rules.finish),
            Phase::Running | Phase::Ended(_) => None,
        }
    }

    /// The time has come that [`Membership::next_deadline`] named (or any other).
    pub fn handle_timeout(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        let heartbeat = self.rules.heartbeat;
        let silent: Vec<WorkerId> = self
            .members
            .iter()
            .filter(|(_, m)| m.state != MemberState::Finished && now >= m.seen_at + heartbeat)
            .map(|(id, _)| *id)
            .collect();
        for worker in silent {
            actions.push(Action::Close(worker));
            let why = format!(
                "no sign of life for {}",
                humantime::format_duration(heartbeat)
            );
            actions.extend(self.lost(worker, &why));
        }
        if let Some((at, reason)) = self.unexplained.clone()
            && now >= at + EXPLANATION
        {
            self.fail(reason, &mut actions);
        }
        if self.phase_deadline().is_some_and(|at| now >= at) {
            let waited = humantime::format_duration(now.saturating_sub(self.since));
            let reason = format!("{} (for {waited})", self.waiting_for());
            self.fail(reason, &mut actions);
        }
        actions
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        if let Event::Hello(worker, facts) = event {
            return self.hello(worker, facts, now);
        }
        match event {
            Event::Stop(reason) => return self.stop(&reason, false, now),
            Event::Drain(reason) => return self.stop(&reason, true, now),
            // A stop that is under way has a deadline of its own.
            Event::Fail(_) if self.phase == Phase::Stopping => return Vec::new(),
            Event::Fail(reason) => {
                let mut actions = Vec::new();
                self.fail(reason, &mut actions);
                return actions;
            }
            _ => {}
        }
        let worker = event.worker();
        let Some(member) = worker.and_then(|worker| self.members.get_mut(&worker)) else {
            return Vec::new(); // Refused, or already given up: it can't do harm.
        };
        member.seen_at = now;
        // Invariant 3: what an older generation says has no effect.
        if let Some(spoken) = event.generation() {
            let present = member.seat.is_some() && spoken == self.generation;
            // Who never had a seat may still say that it goes.
            let goes = matches!(event, Event::Finished(..) | Event::Leaving(..));
            let spare_goes = goes && member.seat.is_none();
            if !(present || spare_goes) {
                return Vec::new();
            }
        }
        match event {
            Event::Ready(worker, digest) => self.ready(worker, &digest, now),
            Event::Formed(worker, _, step) => self.formed(worker, step, now),
            Event::Progress(worker, _, step) => self.progress(worker, step),
            Event::CheckpointWritten(_, _, checkpoint) => self.checkpoint(checkpoint),
            Event::CheckpointFailed(worker, _, step, error) => {
                let told = format!("step {step}, by worker {worker}: {error}");
                vec![Action::Persist(Record::Event(
                    EventKind::CheckpointFailed,
                    told,
                ))]
            }
            Event::CollectiveFailed(worker, _, step, reason) => {
                self.collective_failed(worker, step, &reason, now)
            }
            Event::Leaving(worker, _) => self.leaving(worker, now),
            Event::Finished(worker, _, step, finish) => self.finished(worker, step, finish, now),
            Event::Lost(worker, why) => self.lost(worker, &why),
            Event::Heartbeat(_)
            | Event::Hello(..)
            | Event::Stop(_)
            | Event::Drain(_)
            | Event::Fail(_) => Vec::new(),
        }
    }

    fn hello(&mut self, worker: WorkerId, facts: Facts, now: Now) -> Vec<Action> {
        let refuse = |reason: String, permanent: bool| {
            vec![
                Action::Persist(Record::Event(
                    EventKind::Refused,
                    format!("worker {worker} ({facts}): {reason}"),
                )),
                Action::Send(worker, Order::Refused { reason, permanent }),
                Action::Close(worker),
            ]
        };
        match &self.phase {
            Phase::Gathering => {}
            Phase::Ended(outcome) => {
                let ended = Order::Ended(outcome.clone());
                return vec![Action::Send(worker, ended), Action::Close(worker)];
            }
            _ => {
                return refuse(
                    "the job is running; a running job takes no further workers in this version"
                        .to_owned(),
                    true,
                );
            }
        }
        if self.members.len() >= self.rules.max as usize {
            return refuse(
                format!("the job has its {} workers already", self.rules.max),
                true,
            );
        }
        let first = self
            .members
            .values()
            .next()
            .map(|first| &first.facts.device);
        if let Some(device) = self.rules.device.as_ref().or(first)
            && *device != facts.device
        {
            return refuse(
                format!(
                    "this job runs on {device}, and {} would give other bits; \
                     use devices of one kind, and one version of libtorch",
                    facts.device
                ),
                true,
            );
        }
        let joined = Record::Event(
            EventKind::Joined,
            format!("worker {worker} ({facts}) on {}", facts.device),
        );
        self.members.insert(
            worker,
            Member {
                facts,
                state: MemberState::Preparing,
                seat: None,
                step: Step(0),
                seen_at: now,
            },
        );
        vec![
            Action::Persist(joined),
            Action::Send(worker, Order::Welcome),
        ]
    }

    fn ready(&mut self, worker: WorkerId, digest: &str, now: Now) -> Vec<Action> {
        let Some(member) = self.members.get_mut(&worker) else {
            return Vec::new();
        };
        if digest != self.rules.data_digest {
            let reason = format!(
                "its data has digest {digest}, but the job's has {}: both must read the same samples",
                self.rules.data_digest
            );
            let refused = format!("worker {worker} ({}): {reason}", member.facts);
            self.members.remove(&worker);
            return vec![
                Action::Persist(Record::Event(EventKind::Refused, refused)),
                Action::Send(
                    worker,
                    Order::Refused {
                        reason,
                        permanent: true,
                    },
                ),
                Action::Close(worker),
            ];
        }
        if member.state == MemberState::Preparing {
            member.state = MemberState::Ready;
        }
        let ready = self
            .members
            .values()
            .filter(|m| m.state == MemberState::Ready);
        if self.phase == Phase::Gathering && ready.count() >= self.rules.expected as usize {
            return self.form(Cause::Start, now);
        }
        Vec::new()
    }

    /// Deals seats to everybody who is ready, and speaks the next generation.
    fn form(&mut self, cause: Cause, now: Now) -> Vec<Action> {
        self.generation = self.generation.next();
        let ready: Vec<WorkerId> = self
            .members
            .iter()
            .filter(|(_, member)| member.state == MemberState::Ready)
            .map(|(id, _)| *id)
            .collect();
        let shares = deal(self.rules.replicas, ready.len() as u32);
        let mut seats = Vec::with_capacity(ready.len());
        for (rank, (worker, replicas)) in ready.into_iter().zip(shares).enumerate() {
            let Some(member) = self.members.get_mut(&worker) else {
                continue;
            };
            let seat = Seat {
                worker,
                rank: Rank(rank as u32),
                replicas,
                address: member.facts.collective.clone(),
                incarnation: member.facts.incarnation.clone(),
            };
            member.state = MemberState::Forming;
            member.seat = Some(seat.clone());
            member.step = self.source.step();
            seats.push(seat);
        }
        let first = self.source.step().0 / self.rules.steps_per_epoch;
        self.assigned = first..self.horizon(self.source.step());
        self.enter(Phase::Forming, now);
        let mut actions = Vec::new();
        if self.rules.device.is_none() {
            let first = self.members.values().next();
            self.rules.device = first.map(|first| first.facts.device.clone());
            actions.extend(
                self.rules
                    .device
                    .clone()
                    .map(|d| Action::Persist(Record::Device(d))),
            );
        }
        actions.extend([
            Action::Persist(Record::Generation {
                generation: self.generation,
                cause,
                seats: seats.clone(),
            }),
            Action::Persist(Record::Assigned {
                generation: self.generation,
                epochs: self.assigned.clone(),
            }),
        ]);
        for seat in &seats {
            actions.push(Action::Send(
                seat.worker,
                Order::Assignment {
                    generation: self.generation,
                    rank: seat.rank,
                    seats: seats.clone(),
                    source: self.source.clone(),
                    epochs: self.assigned.clone(),
                },
            ));
        }
        actions
    }

    /// One past the last epoch that should be handed out when `step` is reached.
    fn horizon(&self, step: Step) -> u64 {
        let a_pass = self.rules.steps_per_epoch;
        let ahead = (LOOKAHEAD_EPOCHS * a_pass).max(LOOKAHEAD_STEPS);
        let until = step.0.saturating_add(ahead).min(self.rules.total_steps);
        until.div_ceil(a_pass)
    }

    fn formed(&mut self, worker: WorkerId, step: Step, now: Now) -> Vec<Action> {
        let Some(member) = self.members.get_mut(&worker) else {
            return Vec::new();
        };
        if member.state == MemberState::Forming {
            member.state = MemberState::Training;
            member.step = step;
        }
        let all = self
            .members
            .values()
            .filter(|member| member.seat.is_some())
            .all(|member| member.state != MemberState::Forming);
        if self.phase != Phase::Forming || !all {
            return Vec::new();
        }
        self.enter(Phase::Running, now);
        vec![Action::Persist(Record::Event(
            EventKind::Running,
            format!("generation {} from step {step}", self.generation),
        ))]
    }

    fn progress(&mut self, worker: WorkerId, step: Step) -> Vec<Action> {
        let before = self.reached();
        if let Some(member) = self.members.get_mut(&worker) {
            member.step = member.step.max(step);
        }
        if step <= before {
            return Vec::new();
        }
        let mut actions = vec![Action::Persist(Record::Reached(step))];
        let horizon = self.horizon(step);
        if horizon > self.assigned.end {
            let epochs = self.assigned.end..horizon;
            self.assigned.end = horizon;
            actions.push(Action::Persist(Record::Assigned {
                generation: self.generation,
                epochs: epochs.clone(),
            }));
            for (worker, member) in &self.members {
                if member.seat.is_some() && member.state != MemberState::Finished {
                    let generation = self.generation;
                    let epochs = epochs.clone();
                    actions.push(Action::Send(*worker, Order::Work { generation, epochs }));
                }
            }
        }
        actions
    }

    fn checkpoint(&mut self, checkpoint: CheckpointRecord) -> Vec<Action> {
        let told = format!("step {} in {}", checkpoint.step, checkpoint.path);
        if checkpoint.step >= self.source.step() {
            self.source = Source::Checkpoint(checkpoint.clone());
        }
        vec![
            // It may come before the progress that led to it.
            Action::Persist(Record::Reached(checkpoint.step)),
            Action::Persist(Record::Checkpoint(checkpoint)),
            Action::Persist(Record::Event(EventKind::Checkpoint, told)),
        ]
    }

    fn collective_failed(
        &mut self,
        worker: WorkerId,
        step: Step,
        reason: &str,
        now: Now,
    ) -> Vec<Action> {
        let facts = self.members.get(&worker).map(|member| &member.facts);
        let who = facts.map_or_else(String::new, |facts| format!(" ({facts})"));
        let told = format!("worker {worker}{who} at step {step}: {reason}");
        self.unexplained.get_or_insert((now, told));
        Vec::new()
    }

    fn leaving(&mut self, worker: WorkerId, now: Now) -> Vec<Action> {
        let facts = self.members.get(&worker).map(|member| &member.facts);
        let who = facts.map_or_else(String::new, |facts| format!(" ({facts})"));
        let seated = self.members.get(&worker).is_some_and(|m| m.seat.is_some());
        let reason = format!("worker {worker}{who} was told to go");
        let mut actions = vec![Action::Persist(Record::Event(
            EventKind::Leaving,
            reason.clone(),
        ))];
        if seated {
            // This version can't go on without it.
            actions.extend(self.stop(&reason, true, now));
        }
        actions
    }

    fn finished(&mut self, worker: WorkerId, step: Step, finish: Finish, now: Now) -> Vec<Action> {
        let Some(member) = self.members.get_mut(&worker) else {
            return Vec::new();
        };
        if member.seat.is_none() {
            // It never took part: the job waits for another one.
            let told = format!("worker {worker} ({}): {finish}", member.facts);
            self.members.remove(&worker);
            return vec![
                Action::Persist(Record::Event(EventKind::Died, told)),
                Action::Send(worker, Order::Acknowledged),
            ];
        }
        member.state = MemberState::Finished;
        member.step = member.step.max(step);
        let who = format!("worker {worker} ({})", member.facts);
        self.finished_step = self.finished_step.max(step);
        let mut actions = vec![Action::Send(worker, Order::Acknowledged)];
        match finish {
            Finish::Failed(reason) => {
                self.fail(format!("{who}: {reason}"), &mut actions);
                return actions;
            }
            Finish::Stopped => self.stopped = true,
            Finish::Left => self.drained = true,
            Finish::Complete => {}
        }
        let all = self
            .members
            .values()
            .filter(|member| member.seat.is_some())
            .all(|member| member.state == MemberState::Finished);
        if all {
            actions.push(Action::Persist(Record::Reached(self.finished_step)));
            let step = self.finished_step;
            let outcome = match (self.stopped, self.drained) {
                _ if step.0 >= self.rules.total_steps => Outcome::Complete(step),
                (true, _) => Outcome::Stopped(step),
                (false, true) => Outcome::Drained(step),
                (false, false) => Outcome::Complete(step),
            };
            self.end(outcome, &mut actions);
        } else if self.phase != Phase::Stopping && !matches!(self.phase, Phase::Ended(_)) {
            self.enter(Phase::Stopping, now);
        }
        actions
    }

    fn lost(&mut self, worker: WorkerId, why: &str) -> Vec<Action> {
        let Some(member) = self.members.get(&worker) else {
            return Vec::new();
        };
        if member.state == MemberState::Finished || matches!(self.phase, Phase::Ended(_)) {
            return Vec::new();
        }
        let told = format!("worker {worker} ({}): {why}", member.facts);
        let seated = member.seat.is_some();
        let step = member.step;
        self.members.remove(&worker);
        let mut actions = vec![Action::Persist(Record::Event(
            EventKind::Died,
            told.clone(),
        ))];
        if seated {
            self.fail(
                format!("lost {told}; its last reported step was {step}"),
                &mut actions,
            );
        }
        actions
    }

    fn stop(&mut self, reason: &str, drain: bool, now: Now) -> Vec<Action> {
        let mut actions = vec![Action::Persist(Record::Event(
            EventKind::Stop,
            reason.to_owned(),
        ))];
        match self.phase {
            Phase::Gathering => {
                let step = self.source.step();
                let outcome = if drain {
                    Outcome::Drained
                } else {
                    Outcome::Stopped
                };
                self.end(outcome(step), &mut actions);
            }
            Phase::Forming | Phase::Running => {
                for (worker, member) in &self.members {
                    if member.seat.is_some() {
                        let reason = reason.to_owned();
                        actions.push(Action::Send(*worker, Order::Stop { reason, drain }));
                    }
                }
                self.enter(Phase::Stopping, now);
            }
            Phase::Stopping | Phase::Ended(_) => actions.clear(),
        }
        actions
    }

    fn enter(&mut self, phase: Phase, now: Now) {
        self.phase = phase;
        self.since = now;
    }

    fn fail(&mut self, reason: String, actions: &mut Vec<Action>) {
        self.end(Outcome::Failed(reason), actions);
    }

    fn end(&mut self, outcome: Outcome, actions: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        self.unexplained = None;
        actions.push(Action::Persist(Record::Event(
            EventKind::Ended,
            outcome.to_string(),
        )));
        for (worker, member) in &self.members {
            if member.state != MemberState::Finished {
                actions.push(Action::Send(*worker, Order::Ended(outcome.clone())));
                actions.push(Action::Close(*worker));
            }
        }
        actions.push(Action::End(outcome.clone()));
        self.phase = Phase::Ended(outcome);
    }
}
