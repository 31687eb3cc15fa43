//! PURE. Seats, pauses, and what follows a broken generation.

use super::ending::Ending;
use super::members::{Member, MemberState, Now};
use super::words::{
    Action, Assignment, Breakage, Cause, Close, EventKind, Forming, Order, Phase, Record, Seat,
};
use super::{Membership, balance, name};
use crate::ids::{Rank, Step, WorkerId};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long the machine waits for the death notice that explains a failed collective.
const EXPLANATION: Duration = Duration::from_secs(2);

/// Generations in a row that break without a step and without a death, before the one that the
/// others accuse is left out.
const PATIENCE: u32 = 3;

/// Such generations in a row after which the job is given up.
const FRUITLESS: u32 = 12;

/// What has gone wrong with collectives.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// The first failure of the present generation, until a death or a new generation explains it.
    broken: Option<(Now, String)>,
    /// Whom the workers of the present generation miss.
    accused: BTreeMap<WorkerId, u32>,
    /// Generations in a row that broke without a step.
    fruitless: u32,
}

impl Trouble {
    pub(super) fn explained_by(&self) -> Option<Now> {
        self.broken.as_ref().map(|(at, _)| *at + EXPLANATION)
    }

    pub(super) fn slept(&mut self, length: Duration) {
        if let Some((at, _)) = &mut self.broken {
            *at += length;
        }
    }

    /// A step is done. What broke may have broken after it.
    pub(super) fn over(&mut self) {
        self.fruitless = 0;
    }
}

impl Membership {
    /// Who would stay, of those that could take a seat now.
    pub(super) fn staying(&self, now: Now) -> Vec<WorkerId> {
        let able = self.members.iter();
        able.filter(|(_, member)| member.is_able(now) && !member.leaving)
            .map(|(worker, _)| *worker)
            .collect()
    }

    /// Begins a generation if there are enough workers.
    pub(super) fn gather(&mut self, now: Now, actions: &mut Vec<Action>) {
        let staying = self.staying(now);
        let enough = staying.len() >= self.needed() as usize && self.may_go_on(&staying);
        if enough && self.ending.is_none() {
            self.form(staying, self.cause, None, now, actions);
        } else {
            self.release(now, actions);
        }
    }

    /// Follows a generation that is over with the next one, of whoever is there: or, if those are
    /// too few, with a wait.
    pub(super) fn regroup(&mut self, cause: Cause, now: Now, actions: &mut Vec<Action>) {
        self.trouble.broken = None;
        let staying = self.staying(now);
        if let Some(close) = self.closing() {
            // Whoever is left brings the job to its end, those who are to go among them.
            let able = self.members.iter().filter(|(_, m)| m.is_able(now));
            let able: Vec<WorkerId> = able.map(|(worker, _)| *worker).collect();
            if !able.is_empty() && (close.is_some() || self.may_go_on(&able)) {
                self.form(able, cause, close, now, actions);
                return;
            }
        } else if staying.len() >= self.needed() as usize
            && self.kept_by(&staying, now)
            && self.may_go_on(&staying)
        {
            self.form(staying, cause, None, now, actions);
            self.release(now, actions);
            return;
        }
        self.hold(cause, now, actions);
    }

    /// Whether the job may go on with `staying`: not while all who hold the newest state have lost
    /// their sessions just now, but may live. When the lease is over they count as dead.
    fn may_go_on(&self, staying: &[WorkerId]) -> bool {
        let mut staying = staying.iter().filter_map(|worker| self.members.get(worker));
        // Who sits in the generation has seen its last step end, or the one before; of who has come
        // back it is known what it holds.
        self.awaited_until.is_none()
            || staying.any(|member| {
                let close = member.seat.is_some() || member.step >= self.reached;
                close && self.holders.contains(&member.facts.incarnation)
            })
    }

    /// Whether `staying` hold the newest state, so that those who leave take nothing with them.
    fn kept_by(&self, staying: &[WorkerId], now: Now) -> bool {
        let newest = |member: &&Member| member.step;
        let able = self.members.values().filter(|member| member.is_able(now));
        let leaving = able.filter(|member| member.leaving);
        let kept = staying.iter().filter_map(|worker| self.members.get(worker));
        let durable = self.checkpoint.as_ref().map_or(Step(0), |c| c.step);
        let kept = kept.map(|member| member.step).max().max(Some(durable));
        leaving.max_by_key(newest).map(|member| member.step) <= kept
    }

    /// Too few are left: they keep their state and wait.
    fn hold(&mut self, cause: Cause, now: Now, actions: &mut Vec<Action>) {
        match self.ending {
            // The last checkpoint is not written: somebody has to come and do it.
            Some(Ending::Complete) => self.ending = None,
            Some(_) => {
                self.reached = self.durable();
                actions.push(Action::Persist(Record::Rewound(self.reached)));
                self.end(self.outcome(), actions);
                return;
            }
            None => {}
        }
        let generation = self.generation;
        self.cause = cause;
        self.seats = Arc::from([]);
        self.clock = None;
        self.enter(Phase::Gathering, now);
        let mut held = false;
        for (worker, member) in &mut self.members {
            if member.seat.take().is_none() {
                continue;
            }
            held = true;
            member.state = MemberState::Holding;
            let why = format!("{cause}; {} workers are needed", self.rules.min);
            actions.push(Action::Send(*worker, Order::Hold(generation, why)));
        }
        if !held {
            self.vacate(actions);
        }
        let paused = format!("{cause}: {}", self.waiting_for());
        actions.push(Action::Persist(Record::Event(EventKind::Paused, paused)));
        self.release(now, actions);
    }

    /// Records that nobody is left of the newest generation, unless somebody is still awaited.
    pub(super) fn vacate(&self, actions: &mut Vec<Action>) {
        let newer = |member: &Member| member.step > self.durable();
        if self.awaited_until.is_none() && !self.members.values().any(newer) {
            actions.push(Action::Persist(Record::Vacated));
        }
    }

    pub(super) fn durable(&self) -> Step {
        self.checkpoint.as_ref().map_or(Step(0), |c| c.step)
    }

    /// Lets those go who were told to and are in no generation: at once if others hold what they
    /// hold, otherwise after they have saved it.
    pub(super) fn release(&mut self, now: Now, actions: &mut Vec<Action>) {
        let leaving: Vec<WorkerId> = self
            .members
            .iter()
            .filter(|(_, member)| member.leaving && member.seat.is_none())
            .map(|(worker, _)| *worker)
            .collect();
        if leaving.is_empty() {
            return;
        }
        let seated: Vec<WorkerId> = self.seated().map(|(worker, _)| worker).collect();
        let mut staying = self.staying(now);
        staying.extend(seated);
        if self.kept_by(&staying, now) {
            for worker in leaving {
                let Some(member) = self.members.remove(&worker) else {
                    continue;
                };
                let left = name(worker, &member);
                actions.extend([
                    Action::Send(worker, Order::Release),
                    Action::Close(worker),
                    Action::Persist(Record::Event(EventKind::Left, left)),
                ]);
            }
        } else if self.phase == Phase::Gathering {
            let close = Some(Close::Left);
            self.form(leaving, Cause::Close, close, now, actions);
        }
    }

    /// Deals seats, and speaks the next generation.
    pub(super) fn form(
        &mut self,
        mut workers: Vec<WorkerId>,
        cause: Cause,
        close: Option<Close>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        self.generation = self.generation.max(self.heard).next();
        // Those who have a seat keep it, then those who hold more; ranks follow the same order.
        workers.sort_by_key(|worker| {
            let member = self.members.get(worker);
            let seated = member.is_some_and(|member| member.seat.is_some());
            let step = member.filter(|_| !seated).map(|member| member.step);
            (!seated, Reverse(step), *worker)
        });
        workers.truncate(self.rules.max.min(self.rules.replicas) as usize);
        let seats = self.deal(&workers);
        let mut dealt: BTreeMap<WorkerId, &Seat> =
            seats.iter().map(|seat| (seat.worker, seat)).collect();
        for (worker, member) in &mut self.members {
            let seat = dealt.remove(worker);
            if member.seat.is_some() && seat.is_none() {
                member.state = MemberState::Holding;
                let why = "this generation goes on without it".to_owned();
                let hold = Order::Hold(self.generation, why);
                actions.push(Action::Send(*worker, hold));
            }
            member.seat = seat.cloned();
            if seat.is_some() {
                member.state = MemberState::Forming;
            }
        }
        drop(dealt);
        self.seats = Arc::from(seats);
        self.from = None;
        self.before = self.reached;
        self.saved = false;
        self.trouble.broken = None;
        self.trouble.accused.clear();
        self.balance.dealt(now);
        // Those who are seated hold the newest state, or load the checkpoint: they start no earlier
        // than at either.
        let known = self.seated().map(|(_, member)| member.step).max();
        let least = known.unwrap_or_default().max(self.durable());
        self.assigned = least.0 / self.rules.steps_per_epoch..self.horizon(least);
        self.begun = true;
        match (&self.ending, &self.phase) {
            // The whole stop has one deadline.
            (Some(_), Phase::Stopping) => {}
            (Some(_), _) => self.enter(Phase::Stopping, now),
            (None, _) => self.enter(Phase::Forming, now),
        }
        self.speak(cause, close, actions);
    }

    /// Writes the generation down, and tells its workers.
    fn speak(&mut self, cause: Cause, close: Option<Close>, actions: &mut Vec<Action>) {
        let mut durable = Vec::new();
        if self.rules.device.is_none() {
            let first = self.seats.first();
            let first = first.and_then(|seat| self.members.get(&seat.worker));
            self.rules.device = first.map(|first| first.facts.device.clone());
            let device = self.rules.device.clone();
            durable.extend(device.map(|device| Action::Persist(Record::Device(device))));
        }
        durable.push(Action::Persist(Record::Generation {
            generation: self.generation,
            cause,
            seats: Arc::clone(&self.seats),
        }));
        let spoken = self.seats.iter().map(|seat| {
            let assignment = Assignment {
                generation: self.generation,
                rank: seat.rank,
                seats: Arc::clone(&self.seats),
                checkpoint: self.checkpoint.clone(),
                epochs: self.assigned.clone(),
                close,
            };
            Action::Send(seat.worker, Order::Assignment(assignment))
        });
        #[cfg(test)]
        if self.bugs.spoken_before_persisted {
            actions.extend(spoken);
            actions.extend(durable);
            return;
        }
        actions.extend(durable);
        actions.extend(spoken);
    }

    fn deal(&self, workers: &[WorkerId]) -> Vec<Seat> {
        let members: Vec<&Member> = workers
            .iter()
            .filter_map(|worker| self.members.get(worker))
            .collect();
        let shares = self.shares(&members);
        let ranges = balance::ranges(&shares);
        let seats = workers.iter().zip(members).zip(ranges);
        seats
            .enumerate()
            .map(|(rank, ((worker, member), replicas))| Seat {
                worker: *worker,
                rank: Rank(rank as u32),
                replicas,
                address: member.facts.collective.clone(),
                incarnation: member.facts.incarnation.clone(),
            })
            .collect()
    }

    pub(super) fn formed(
        &mut self,
        worker: WorkerId,
        step: Step,
        forming: Forming,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let Some(member) = self.members.get_mut(&worker) else {
            return;
        };
        if member.state == MemberState::Forming {
            member.state = MemberState::Training;
        }
        member.step = step;
        if let Some(clock) = &mut self.clock {
            clock.formed(forming, now);
        }
        match self.from {
            None => self.agreed(step, actions),
            Some(from) if from == step => {}
            Some(from) => {
                // The workers agreed on one state among themselves: this can't be.
                let told = format!(
                    "{} starts generation {} at step {step}, others at {from}",
                    self.members
                        .get(&worker)
                        .map_or_else(String::new, |m| name(worker, m)),
                    self.generation
                );
                self.fail(told, actions);
            }
        }
    }

    /// The generation's workers have agreed on the state that they go on from.
    fn agreed(&mut self, from: Step, actions: &mut Vec<Action>) {
        self.from = Some(from);
        self.holders = self.seats.iter().map(|s| s.incarnation.clone()).collect();
        self.awaited_until = None;
        // If more than that has been reached meanwhile, then by this generation.
        if from < self.reached && self.reached == self.before {
            let told = format!("from step {} to {from}", self.reached);
            self.reached = from;
            for member in self.members.values_mut() {
                member.step = member.step.min(from);
            }
            actions.extend([
                Action::Persist(Record::Rewound(from)),
                Action::Persist(Record::Event(EventKind::Rewound, told)),
            ]);
        }
        actions.push(self.book(from, self.assigned.start));
        if from > self.reached {
            self.reached = from;
            actions.push(Action::Persist(Record::Reached(from)));
        }
        // Its workers may have been further than was known when it was spoken.
        self.hand_out(actions);
    }

    /// Books what the generation's workers were given of the epochs from `start` on, and what those
    /// before them were given that is not booked yet.
    pub(super) fn book(&mut self, from: Step, start: u64) -> Action {
        let booked = std::mem::replace(&mut self.booked, self.assigned.end);
        let start = start.min(booked).min(from.0 / self.rules.steps_per_epoch);
        Action::Persist(Record::Assigned {
            generation: self.generation,
            seats: Arc::clone(&self.seats),
            epochs: start..self.assigned.end,
            from,
        })
    }

    pub(super) fn await_formed(&mut self, now: Now, actions: &mut Vec<Action>) {
        let forming = |(_, member): (WorkerId, &Member)| member.state == MemberState::Forming;
        if self.seats.is_empty() || self.seated().any(forming) {
            return;
        }
        if let Some(from) = self.from {
            self.enter(Phase::Running, now);
            let told = format!(
                "generation {} of {} workers, from step {from}",
                self.generation,
                self.seats.len()
            );
            actions.push(Action::Persist(Record::Event(EventKind::Resumed, told)));
            self.look_for_change(now, actions);
        }
    }

    /// Asks the workers to rest at the end of their step.
    pub(super) fn pause(&mut self, cause: Cause, now: Now, actions: &mut Vec<Action>) {
        self.enter(Phase::Pausing(cause), now);
        let paused = format!("generation {}: {cause}", self.generation);
        for seat in self.seats.iter() {
            let pause = Order::Pause(self.generation);
            actions.push(Action::Send(seat.worker, pause));
        }
        actions.push(Action::Persist(Record::Event(EventKind::Paused, paused)));
    }

    pub(super) fn paused(&mut self, worker: WorkerId, step: Step, now: Now) {
        if let Phase::Pausing(cause) = self.phase {
            self.start_clock(cause, now, Duration::ZERO);
        }
        if let Some(member) = self.members.get_mut(&worker) {
            member.state = MemberState::Paused;
            member.step = member.step.max(step);
        }
    }

    pub(super) fn collective_failed(
        &mut self,
        worker: WorkerId,
        step: Step,
        breakage: Breakage,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let suspect = breakage
            .suspect
            .and_then(|rank| self.seats.get(rank.0 as usize));
        if let Some(seat) = suspect {
            *self.trouble.accused.entry(seat.worker).or_default() += 1;
        }
        let Some(member) = self.members.get_mut(&worker) else {
            return;
        };
        member.state = MemberState::Broken;
        member.step = member.step.max(step);
        let told = format!(
            "{} at step {step}: {}",
            name(worker, member),
            breakage.reason
        );
        actions.push(Action::Persist(Record::Event(
            EventKind::Broken,
            told.clone(),
        )));
        self.trouble.broken.get_or_insert((now, told));
        // If all of them say so themselves, there is no death to wait for.
        let all = self.seated().all(|(_, member)| member.rests());
        if all && self.trouble.fruitless == 0 {
            self.unexplained(now, actions);
        }
    }

    /// Stops waiting for a death that would explain a failed collective.
    pub(super) fn explain(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.trouble.explained_by().is_none_or(|at| now < at) {
            return;
        }
        if self.phase == Phase::Recovering {
            // Whoever is missing may be the reason, and has a deadline of its own.
            self.trouble.broken = None;
        } else {
            self.unexplained(now, actions);
        }
    }

    fn unexplained(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Some((notice, reason)) = self.trouble.broken.take() else {
            return;
        };
        self.trouble.fruitless += 1;
        if self.trouble.fruitless >= FRUITLESS {
            self.fail(
                format!(
                    "{FRUITLESS} generations in a row broke without a step; the last: {reason}"
                ),
                actions,
            );
            return;
        }
        if self.trouble.fruitless >= PATIENCE {
            self.bar(now, actions);
        }
        self.start_clock(Cause::CollectiveFailure, notice, Duration::ZERO);
        self.regroup(Cause::CollectiveFailure, now, actions);
    }

    /// Leaves out for a while whom the others can't reach: of two that can't reach each other, the
    /// younger.
    fn bar(&mut self, now: Now, actions: &mut Vec<Action>) {
        let accused = self.trouble.accused.iter();
        let worst = accused.max_by_key(|(worker, count)| (**count, **worker));
        let Some((&worker, _)) = worst else { return };
        let staying = self.staying(now).len();
        let length = self.rules.form * (1 << (self.trouble.fruitless - PATIENCE).min(6));
        if let Some(member) = self.members.get_mut(&worker)
            && staying > 1
        {
            member.barred_until = now + length;
            self.unbar_at = Some(self.unbar_at.unwrap_or(now + length).min(now + length));
            let told = format!(
                "{}: its peers can't reach it; it gets no seat for {}",
                name(worker, member),
                humantime::format_duration(length)
            );
            actions.push(Action::Persist(Record::Event(EventKind::Broken, told)));
        }
    }

    /// Finds when the next bar is over.
    pub(super) fn lift_bars(&mut self, now: Now) {
        if self.unbar_at.is_some_and(|at| now >= at) {
            let bars = self.members.values().map(|member| member.barred_until);
            self.unbar_at = bars.filter(|at| *at > now).min();
        }
    }
}
