//! PURE. Who comes, and who comes back.

use super::members::{Member, MemberState, Now};
use super::words::{Action, Cause, EventKind, Facts, Order, Phase, Record, Seat, Standing};
use super::{Membership, name};
use crate::ids::{Step, WorkerId};
use std::sync::Arc;

/// Workers beyond those that can have a seat, that may stand by.
const SPARES: usize = 64;

impl Membership {
    /// The workers that a coordinator before this one knew go on with what they were told. They
    /// are given time to come back before they are taken for dead.
    pub(super) fn expect_back(&mut self, seats: Vec<Seat>, now: Now) {
        if seats.is_empty() {
            return;
        }
        self.begun = true;
        let first = self.reached.0 / self.rules.steps_per_epoch;
        self.assigned = first..self.horizon(self.reached);
        for seat in &seats {
            let facts = Facts {
                incarnation: seat.incarnation.clone(),
                job_id: self.rules.job_id.clone(),
                host: seat.address.clone(),
                pid: 0,
                collective: seat.address.clone(),
                device: self.rules.device.clone().unwrap_or_default(),
                cores: 1,
            };
            let mut member = Member::new(facts, MemberState::Absent, Step(0), now);
            member.seat = Some(seat.clone());
            self.members.insert(seat.worker, member);
        }
        self.holders = seats.iter().map(|seat| seat.incarnation.clone()).collect();
        self.seats = Arc::from(seats);
        self.cause = Cause::CoordinatorRestart;
        self.enter(Phase::Recovering, now);
    }

    pub(super) fn hello(
        &mut self,
        worker: WorkerId,
        facts: Facts,
        standing: Standing,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if let Phase::Ended(outcome) = &self.phase {
            let ended = Order::Ended(outcome.clone());
            actions.push(Action::Send(worker, ended));
            actions.push(Action::Close(worker));
            return;
        }
        if let Err((reason, permanent)) = self.check(worker, &facts) {
            let told = format!("worker {worker} ({facts}): {reason}");
            actions.extend([
                Action::Persist(Record::Event(EventKind::Refused, told)),
                Action::Send(worker, Order::Refused { reason, permanent }),
                Action::Close(worker),
            ]);
            return;
        }
        // A ledger that was lost, or put back from a copy, must not make a number speak twice.
        self.heard = self.heard.max(standing.generation);
        match self.members.get_mut(&worker) {
            Some(member) => {
                member.facts = facts;
                self.back(worker, standing, now, actions);
            }
            None => {
                let joined = format!("worker {worker} ({facts}) on {}", facts.device);
                let member = Member::new(facts.clone(), MemberState::Preparing, standing.step, now);
                self.members.insert(worker, member);
                actions.extend([
                    Action::Persist(Record::Admitted(worker, facts)),
                    Action::Persist(Record::Event(EventKind::Joined, joined)),
                    Action::Send(worker, Order::Welcome { resumed: false }),
                ]);
            }
        }
    }

    /// Why somebody can't be taken, and whether that is for good.
    fn check(&self, worker: WorkerId, facts: &Facts) -> Result<(), (String, bool)> {
        if !facts.job_id.is_empty() && facts.job_id != self.rules.job_id {
            let reason = format!(
                "it belongs to job id {}, and this is the coordinator of {}",
                facts.job_id, self.rules.job_id
            );
            return Err((reason, true));
        }
        let known = self.members.contains_key(&worker);
        let most = self.rules.max.max(self.rules.expected) as usize + SPARES;
        if !known && self.members.len() >= most {
            let reason = format!(
                "the job has its {} workers, and {SPARES} stand by",
                self.rules.max
            );
            return Err((reason, false));
        }
        let others = self.members.iter().filter(|(other, _)| **other != worker);
        let mut present = others.filter(|(_, member)| member.state != MemberState::Absent);
        let first = present.next().map(|(_, member)| &member.facts.device);
        if let Some(device) = self.rules.device.as_ref().or(first)
            && *device != facts.device
        {
            let reason = format!(
                "this job runs on {device}, and {} would give other bits; \
                 use devices of one kind, and one version of libtorch",
                facts.device
            );
            return Err((reason, true));
        }
        Ok(())
    }

    /// A worker that is known has lost its session, or its coordinator, and has found this one.
    fn back(&mut self, worker: WorkerId, standing: Standing, now: Now, actions: &mut Vec<Action>) {
        let present = self.generation;
        let Some(member) = self.members.get_mut(&worker) else {
            return;
        };
        member.seen_at = now;
        member.step = member.step.max(standing.step);
        let seated = member.seat.is_some();
        let resumed = seated && standing.generation == present && standing.within;
        if resumed {
            if member.state == MemberState::Absent {
                // If it rests it will say so next.
                member.state = MemberState::Training;
            }
        } else {
            // What it was told last never reached it. It leaves what it is in.
            member.seat = None;
            if member.state != MemberState::Preparing {
                member.state = MemberState::Holding;
            }
        }
        let told = format!("{} is back, at step {}", name(worker, member), member.step);
        let step = member.step;
        actions.extend([
            Action::Persist(Record::Event(EventKind::Joined, told)),
            Action::Send(worker, Order::Welcome { resumed }),
        ]);
        if resumed {
            self.reach(step, now, actions);
            self.tell_again(worker, actions);
        } else if seated
            && matches!(
                self.phase,
                Phase::Forming | Phase::Running | Phase::Pausing(_) | Phase::Stopping
            )
        {
            self.regroup(Cause::CollectiveFailure, now, actions);
        }
    }

    /// Says again what may have been lost with a session.
    fn tell_again(&self, worker: WorkerId, actions: &mut Vec<Action>) {
        let Some(seat) = self.members.get(&worker).and_then(|m| m.seat.as_ref()) else {
            return;
        };
        let generation = self.generation;
        actions.push(Action::Send(
            worker,
            Order::Work {
                generation,
                replicas: seat.replicas.clone(),
                epochs: self.assigned.clone(),
            },
        ));
        if let Phase::Pausing(_) = self.phase {
            actions.push(Action::Send(worker, Order::Pause(generation)));
        }
        if let (Phase::Stopping, Some(order)) = (&self.phase, self.stop_order()) {
            actions.push(Action::Send(worker, order));
        }
    }

    pub(super) fn ready(
        &mut self,
        worker: WorkerId,
        digest: &str,
        step: Step,
        actions: &mut Vec<Action>,
    ) {
        let Some(member) = self.members.get_mut(&worker) else {
            return;
        };
        if digest != self.rules.data_digest {
            let reason = format!(
                "its data has digest {digest}, but the job's has {}: both must read the same samples",
                self.rules.data_digest
            );
            let refused = format!("{}: {reason}", name(worker, member));
            self.members.remove(&worker);
            let permanent = true;
            actions.extend([
                Action::Persist(Record::Event(EventKind::Refused, refused)),
                Action::Send(worker, Order::Refused { reason, permanent }),
                Action::Close(worker),
            ]);
            return;
        }
        member.step = member.step.max(step);
        if matches!(member.state, MemberState::Preparing | MemberState::Holding)
            && member.seat.is_none()
        {
            member.state = MemberState::Ready;
        }
    }

    /// Ends the wait for the workers of before, once all have come back or were given up.
    pub(super) fn recovered(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.count(MemberState::Absent) > 0 {
            return;
        }
        let whole = self.seated().count() == self.seats.len();
        if self
            .seated()
            .any(|(_, member)| member.state == MemberState::Finished)
        {
            self.enter(Phase::Stopping, now);
            if !whole {
                self.regroup(Cause::CoordinatorRestart, now, actions);
            }
            return;
        }
        if self.ending.is_some() {
            if whole {
                self.begin_to_stop(now, actions);
            } else {
                self.regroup(Cause::CoordinatorRestart, now, actions);
            }
            return;
        }
        if !whole || self.seated().any(|(_, member)| member.rests()) {
            self.regroup(Cause::CoordinatorRestart, now, actions);
            return;
        }
        // If they were still forming, they have yet to say where they start.
        self.from = None;
        self.enter(Phase::Running, now);
        actions.extend([
            self.book(self.reached, self.assigned.start),
            Action::Persist(Record::Event(
                EventKind::Resumed,
                format!(
                    "generation {} goes on: all its workers are back",
                    self.generation
                ),
            )),
        ]);
    }
}
