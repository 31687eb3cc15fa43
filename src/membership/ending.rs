//! PURE. Who leaves, who is lost, and the end of the job.

use super::members::{Member, MemberState, Now};
use super::words::{Action, Cause, Close, EventKind, Finish, Halt, Order, Outcome, Phase, Record};
use super::{Membership, name};
use crate::ids::{Step, WorkerId};
use std::time::Duration;

/// How the job is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// All steps are done.
    Complete,
    /// A person stopped it.
    Stopped,
    /// It is to go on later.
    Drained,
    /// Its guard has stopped it.
    Halted(Halt),
    /// It can't go on; but what there is is to be saved.
    Failed(String),
}

impl Membership {
    /// How a generation that is formed now is to close: none if it is to train, or to close by
    /// itself because all steps are done.
    pub(super) fn closing(&self) -> Option<Option<Close>> {
        let ending = self.ending.as_ref()?;
        Some(match ending {
            // Whoever holds its last state knows.
            Ending::Complete | Ending::Halted(_) => None,
            Ending::Stopped | Ending::Failed(_) => Some(Close::Stopped),
            Ending::Drained => Some(Close::Left),
        })
    }

    /// What a worker is told that trains although the job is to end.
    pub(super) fn stop_order(&self) -> Option<Order> {
        match self.ending.as_ref()? {
            Ending::Complete | Ending::Halted(_) => None,
            Ending::Stopped => Some(false),
            Ending::Drained => Some(true),
            Ending::Failed(_) => Some(false),
        }
        .map(|drain| Order::Stop {
            reason: "the job is to end".to_owned(),
            drain,
        })
    }

    pub(super) fn stop(
        &mut self,
        reason: &str,
        ending: Ending,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let over = matches!(self.phase, Phase::Ended(_));
        if over || (self.phase == Phase::Stopping && self.ending.is_some()) {
            return;
        }
        let stop = Record::Event(EventKind::Stop, reason.to_owned());
        actions.push(Action::Persist(stop));
        self.ending = Some(ending);
        if self.phase == Phase::Stopping {
            // All its workers are about to leave, and save what they hold.
        } else if self.seats.is_empty() {
            self.save_and_end(now, actions);
        } else if self.phase != Phase::Recovering {
            self.begin_to_stop(now, actions);
        }
    }

    /// Has the seated workers stop at the end of their step.
    pub(super) fn begin_to_stop(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.enter(Phase::Stopping, now);
        if self.seated().any(|(_, member)| member.rests()) {
            // They see no flag.
            self.regroup(Cause::Close, now, actions);
            return;
        }
        if let Some(order) = self.stop_order() {
            for seat in self.seats.iter() {
                actions.push(Action::Send(seat.worker, order.clone()));
            }
        }
    }

    /// Nobody trains: whoever holds something that is not on disk saves it.
    fn save_and_end(&mut self, now: Now, actions: &mut Vec<Action>) {
        let durable = self.durable();
        let newer = |member: &Member| member.is_able(now) && member.step > durable;
        if self.members.values().any(newer) {
            self.regroup(Cause::Close, now, actions);
        } else {
            self.end(self.outcome(), actions);
        }
    }

    /// Too few workers came.
    pub(super) fn give_up_waiting(&mut self, reason: String, now: Now, actions: &mut Vec<Action>) {
        self.ending = Some(Ending::Failed(reason));
        self.save_and_end(now, actions);
    }

    pub(super) fn leaving(&mut self, worker: WorkerId, now: Now, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&worker) else {
            return;
        };
        if std::mem::replace(&mut member.leaving, true) {
            return;
        }
        let told = format!("{} was told to go", name(worker, member));
        actions.push(Action::Persist(Record::Event(EventKind::Leaving, told)));
        if member.seat.is_none() {
            self.release(now, actions);
        }
    }

    pub(super) fn finished(
        &mut self,
        worker: WorkerId,
        step: Step,
        finish: Finish,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let Some(member) = self.members.get_mut(&worker) else {
            return;
        };
        let told = format!("{}: {finish}", name(worker, member));
        let failed = matches!(finish, Finish::Failed(_));
        let seat = member.seat.clone();
        let (Some(seat), false) = (seat.as_ref(), failed) else {
            // It can't go on. Perhaps others can.
            self.members.remove(&worker);
            actions.push(Action::Persist(Record::Event(
                EventKind::Died,
                told.clone(),
            )));
            // If it has been told something else meanwhile it doesn't end: then it comes back, new.
            actions.push(Action::Send(worker, Order::Acknowledged));
            actions.push(Action::Close(worker));
            let others = self.members.values();
            let mut others = others.filter(|m| m.is_able(now) || m.state == MemberState::Absent);
            if seat.is_some() && others.next().is_none() {
                self.fail(told, actions);
            } else if seat.is_some() {
                self.bereaved(now, Duration::ZERO, actions);
            }
            return;
        };
        member.state = MemberState::Finished;
        member.step = member.step.max(step);
        self.saved |= seat.rank.0 == 0;
        self.reached = self.reached.max(step);
        let ending = match finish {
            // All who took part were told to go; the job waits for others.
            Finish::Left => None,
            Finish::Stopped => Some(Ending::Stopped),
            Finish::Halted(halt) => Some(Ending::Halted(halt)),
            Finish::Complete | Finish::Failed(_) => Some(Ending::Complete),
        };
        // It doesn't go on, whatever else it was told.
        let halted = matches!(ending, Some(Ending::Halted(_)));
        if self.ending.is_none() || halted {
            self.ending = ending;
        }
        if !matches!(self.phase, Phase::Stopping | Phase::Recovering) {
            self.enter(Phase::Stopping, now);
        }
    }

    /// Ends the job, or the stay of its workers, once all of them have finished.
    pub(super) fn conclude(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.seats.is_empty() {
            return;
        }
        let finished = |(_, member): (_, &Member)| member.state == MemberState::Finished;
        if !self.seated().all(finished) {
            // If they rest, no flag will reach them any more.
            let rest = self.seated().all(|(_, member)| member.rests());
            if rest && self.trouble.explained_by().is_none() {
                self.regroup(Cause::Close, now, actions);
            }
            return;
        }
        actions.push(Action::Persist(Record::Reached(self.reached)));
        let seated: Vec<WorkerId> = self.seated().map(|(worker, _)| worker).collect();
        let outcome = self.ending.is_some().then(|| self.outcome());
        let told = match &outcome {
            // They saved what there was; whether there was anything doesn't decide how they end.
            Some(failed @ Outcome::Failed(_)) => Order::Ended(failed.clone()),
            _ => Order::Acknowledged,
        };
        for worker in &seated {
            actions.push(Action::Send(*worker, told.clone()));
        }
        if let Some(outcome) = outcome {
            self.end(outcome, actions);
            return;
        }
        for worker in seated {
            if let Some(member) = self.members.remove(&worker) {
                let left = Record::Event(EventKind::Left, name(worker, &member));
                actions.extend([Action::Persist(left), Action::Close(worker)]);
            }
        }
        self.deserted(Cause::Leave, now, actions);
    }

    /// Nobody is left who took part; whoever comes next goes on from the checkpoint.
    fn deserted(&mut self, cause: Cause, now: Now, actions: &mut Vec<Action>) {
        self.seats = std::sync::Arc::from([]);
        self.clock = None;
        self.cause = cause;
        self.enter(Phase::Gathering, now);
        let told = format!("{cause}: {}", self.waiting_for());
        actions.extend([
            Action::Persist(Record::Vacated),
            Action::Persist(Record::Event(EventKind::Paused, told)),
        ]);
    }

    pub(super) fn outcome(&self) -> Outcome {
        let step = self.reached;
        match &self.ending {
            _ if step.0 >= self.rules.total_steps => Outcome::Complete(step),
            Some(Ending::Stopped) => Outcome::Stopped(step),
            Some(Ending::Drained) => Outcome::Drained(step),
            Some(Ending::Halted(halt)) => Outcome::Halted(step, halt.clone()),
            Some(Ending::Failed(reason)) => Outcome::Failed(reason.clone()),
            Some(Ending::Complete) | None => Outcome::Complete(step),
        }
    }

    pub(super) fn lost(
        &mut self,
        worker: WorkerId,
        why: &str,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let member = self.members.get(&worker);
        if member.is_some_and(|member| self.holders.contains(&member.facts.incarnation)) {
            self.awaited_until = Some(now + self.rules.heartbeat);
        }
        self.give_up(vec![worker], why, now, actions);
    }

    /// Takes workers for dead.
    pub(super) fn give_up(
        &mut self,
        workers: Vec<WorkerId>,
        why: &str,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if let Phase::Ended(_) = self.phase {
            return;
        }
        let mut silence = None;
        for worker in workers {
            let Some(member) = self.members.get(&worker) else {
                continue;
            };
            if member.state == MemberState::Finished && self.saved {
                // It may go: all it did is safe.
                self.members.remove(&worker);
                actions.push(Action::Close(worker));
                continue;
            }
            let told = format!(
                "{}: {why}; its last reported step was {}",
                name(worker, member),
                member.step
            );
            if member.seat.is_some() {
                silence = silence.max(Some(now.saturating_sub(member.seen_at)));
            }
            self.members.remove(&worker);
            actions.extend([
                Action::Close(worker),
                Action::Persist(Record::Event(EventKind::Died, told)),
            ]);
        }
        if let Some(silence) = silence {
            self.bereaved(now, silence, actions);
        }
    }

    /// Somebody who took part is gone. `silence` is how long it had not been heard of.
    fn bereaved(&mut self, now: Now, silence: Duration, actions: &mut Vec<Action>) {
        if self.phase == Phase::Stopping && self.saved {
            return; // What there was to save is safe.
        }
        if let Phase::Forming | Phase::Running | Phase::Pausing(_) | Phase::Stopping = self.phase {
            self.start_clock(Cause::Death, now, silence);
            self.regroup(Cause::Death, now, actions);
        }
    }

    pub(super) fn fail(&mut self, reason: String, actions: &mut Vec<Action>) {
        self.end(Outcome::Failed(reason), actions);
    }

    pub(super) fn end(&mut self, outcome: Outcome, actions: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        let ended = Record::Event(EventKind::Ended, outcome.to_string());
        actions.extend([Action::Persist(Record::Vacated), Action::Persist(ended)]);
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
