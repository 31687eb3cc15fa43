//! What the coordinator hears, what it decides, and how that is carried out: as
//! `coordinator::driver` does it, what is durable first.

use super::network::{ConnectionId, Message, Side};
use super::world::{Happening, World};
use crate::ids::{Generation, WorkerId};
use crate::membership::{Action, Event, Finish, Membership, Order, Outcome, Record, Word};
use std::time::Duration;

/// How often reached steps are made durable, at most.
const REACHED_EVERY: Duration = Duration::from_secs(1);

/// How often a ledger that can't be written is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

impl World {
    pub(super) fn heard(&mut self, connection: ConnectionId, word: Word) {
        let Some(up) = &mut self.coordinator.up else {
            return;
        };
        let worker = match &word {
            Word::Hello(facts, _) => {
                let known = up.machine.known(&facts.incarnation);
                let introduced = up.sessions.introduce(connection, known);
                if let Some(replaced) = introduced.as_ref().and_then(|i| i.replaced) {
                    self.close(
                        replaced,
                        Side::Coordinator,
                        "another session took its place",
                    );
                }
                introduced.map(|introduced| introduced.worker)
            }
            _ => up.sessions.open.get(&connection).copied().flatten(),
        };
        let Some(worker) = worker else { return };
        if self.is_traced() && !matches!(word, Word::Heartbeat(..) | Word::Progress(..)) {
            self.note(format!("coordinator hears worker {worker}: {word:?}"));
        }
        match self.stale(&word) {
            Some(spoken) if !self.mistakes.unwatched => self.decide_stale(worker, word, spoken),
            _ => self.decide(Event::Said(worker, word)),
        }
    }

    /// The generation of a word that must have no effect, because a newer one is there.
    pub(super) fn stale(&self, word: &Word) -> Option<Generation> {
        let spoken = match word {
            // It is of the process that it speaks.
            Word::Finished(_, _, Finish::Failed(_)) => return None,
            Word::Formed(generation, ..)
            | Word::Progress(generation, _)
            | Word::Heartbeat(generation, ..)
            | Word::CheckpointWritten(generation, _)
            | Word::CheckpointFailed(generation, ..)
            | Word::Evaluated(generation, ..)
            | Word::Paused(generation, _)
            | Word::CollectiveFailed(generation, ..)
            | Word::Finished(generation, ..) => *generation,
            Word::Hello(..) | Word::Ready(..) | Word::Leaving(_) => return None,
        };
        let present = self.coordinator.up.as_ref()?.machine.generation();
        (spoken.0 > 0 && spoken < present).then_some(spoken)
    }

    /// Invariant 3, where it can be seen directly.
    pub(super) fn decide_stale(&mut self, worker: WorkerId, word: Word, spoken: Generation) {
        let Some(up) = &mut self.coordinator.up else {
            return;
        };
        let now = self.now - up.origin;
        if up.stalled.is_some() {
            // What else is due can't be told from what the word does.
            self.decide(Event::Said(worker, word));
            return;
        }
        // Whatever else is due comes first.
        up.waiting.extend(up.machine.handle_timeout(now));
        let shown = |machine: &Membership| {
            let member = machine.members().get(&worker);
            let member = member.map(|m| (m.state, m.step, m.seat.clone(), m.leaving));
            (
                machine.phase().clone(),
                machine.generation(),
                machine.reached(),
                member,
            )
        };
        let before = shown(&up.machine);
        let told = format!("{word:?}");
        let actions = up.machine.handle(Event::Said(worker, word), now);
        let after = shown(&up.machine);
        if !actions.is_empty() || before != after {
            let present = up.machine.generation();
            self.checks.fail(format!(
                "monotonic generations: worker {worker}'s {told} of generation {spoken} has an \
                 effect in generation {present}: {before:?} becomes {after:?}, {actions:?}"
            ));
        }
        self.checks.stale += 1;
        if let Some(up) = &mut self.coordinator.up {
            up.waiting.extend(actions);
        }
        self.carry_out();
    }

    pub(super) fn decide(&mut self, event: Event) {
        let Some(up) = &mut self.coordinator.up else {
            return;
        };
        let now = self.now - up.origin;
        let actions = up.machine.handle(event, now);
        up.waiting.extend(actions);
        if !up.waiting.is_empty() && self.chance.in_thousand(125) {
            // What else has come in is heard first.
            let (wait, life) = (self.chance.ms(0, 2), self.coordinator.life);
            self.after(wait, Happening::CarryOut(life));
            return;
        }
        self.carry_out();
    }

    pub(super) fn coordinator_deadline(&mut self) {
        let Some(up) = &mut self.coordinator.up else {
            return;
        };
        let actions = up.machine.handle_timeout(self.now - up.origin);
        up.waiting.extend(actions);
        self.carry_out();
    }

    pub(super) fn carry_out_late(&mut self, life: u64) {
        if self.coordinator.life == life && !self.coordinator.is_stopped() {
            self.carry_out();
        }
    }

    /// Carries out what was decided, in its order.
    pub(super) fn carry_out(&mut self) {
        let life = self.coordinator.life;
        if let Some(up) = &mut self.coordinator.up
            && self.coordinator.full_until <= self.now
            && let Some(since) = up.stalled.take()
        {
            up.machine.slept(self.now - since);
        }
        while let Some(up) = &mut self.coordinator.up {
            let Some(action) = up.waiting.front() else {
                break;
            };
            if matches!(action, Action::Persist(_)) && self.coordinator.full_until > self.now {
                up.stalled.get_or_insert(self.now);
                self.after(RETRY_EVERY, Happening::CarryOut(life));
                return;
            }
            if let Some(left) = &mut up.dies_after {
                if *left == 0 {
                    self.kill_coordinator(life);
                    return;
                }
                *left -= 1;
            }
            match up.waiting.pop_front() {
                Some(Action::Persist(record)) => self.persist(&record),
                Some(Action::Send(worker, order)) => self.tell(worker, order),
                Some(Action::Close(worker)) => {
                    if let Some(session) = up.sessions.workers.remove(&worker) {
                        up.sessions.open.remove(&session);
                        self.close(
                            session,
                            Side::Coordinator,
                            "the coordinator ended the session",
                        );
                    }
                }
                Some(Action::End(outcome)) => {
                    self.end(outcome);
                    return;
                }
                None => {}
            }
        }
        self.make_reached_durable();
    }

    pub(super) fn persist(&mut self, record: &Record) {
        let Some(up) = &mut self.coordinator.up else {
            return;
        };
        match record {
            Record::Reached(step) => up.reached = up.reached.max(*step),
            Record::Rewound(step) => up.reached = *step,
            _ => {}
        }
        let pace = (self.job.epoch, self.job.replicas);
        let (reached, life) = (up.reached, self.coordinator.life);
        let ledger = &mut self.coordinator.ledger;
        if let Err(why) = ledger.write(record, life, reached, pace) {
            self.checks.fail(why);
        }
        self.checks.recorded(record);
        if self.is_traced() && !matches!(record, Record::Reached(_)) {
            self.note(format!("coordinator writes {record:?}"));
        }
    }

    pub(super) fn make_reached_durable(&mut self) {
        let now = self.now;
        let full = self.coordinator.full_until > now;
        if let Some(up) = &mut self.coordinator.up
            && now >= up.durable_at + REACHED_EVERY
            && !full
        {
            up.durable_at = now;
            self.coordinator.ledger.reach(up.reached);
        }
    }

    pub(super) fn tell(&mut self, worker: WorkerId, order: Order) {
        let life = self.coordinator.life;
        if let Order::Assignment(assignment) = &order {
            let ledger = &self.coordinator.ledger;
            self.checks.spoken(life, assignment, ledger);
        }
        let Some(up) = &self.coordinator.up else {
            return;
        };
        let Some(session) = up.sessions.workers.get(&worker).copied() else {
            return;
        };
        if self.is_traced() {
            self.note(format!("coordinator tells worker {worker}: {order:?}"));
        }
        self.send(session, Side::Worker, Message::Order(order, life));
    }

    pub(super) fn end(&mut self, outcome: Outcome) {
        let life = self.coordinator.life;
        self.note(format!("coordinator {life} ends: {outcome}"));
        if let Some(up) = self.coordinator.up.take() {
            self.coordinator.ledger.reach(up.reached);
        }
        self.hang_up(life);
        self.checks.ended(&outcome, &self.faults, self.now);
        if !matches!(outcome, Outcome::Complete(_)) {
            // Somebody starts it again.
            let wait = self.chance.ms(500, 5000);
            self.after(wait, Happening::StartCoordinator);
        }
        self.coordinator.outcome = Some(outcome);
    }
}
