//! The coordinator's process: a machine, and what `coordinator::driver` does with its decisions.

use super::ledger::Ledger;
use super::network::{ConnectionId, Message, Side};
use super::world::{Happening, World};
use crate::ids::{Generation, Step, WorkerId};
use crate::membership::{
    Action, CheckpointRecord, Event, Finish, Membership, Now, Order, Outcome, Record, Word,
};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How often reached steps are made durable, at most.
const REACHED_EVERY: Duration = Duration::from_secs(1);

/// How often a ledger that can't be written is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// The longest wait of the driver's loop.
const TICK: Duration = Duration::from_millis(500);

/// What outlives a process, and the process, if there is one.
#[derive(Default)]
pub(super) struct Coordinator {
    /// Counts its processes.
    pub(super) life: u64,
    pub(super) up: Option<Up>,
    pub(super) ledger: Ledger,
    /// The ledger can't be written before.
    pub(super) full_until: Now,
    /// How the last process ended, unless it was killed.
    pub(super) outcome: Option<Outcome>,
}

/// A process.
pub(super) struct Up {
    pub(super) machine: Membership,
    origin: Now,
    sessions: Sessions,
    waiting: VecDeque<Action>,
    /// The newest state whose record was written.
    reached: Step,
    durable_at: Now,
    stopped: Option<Stopped>,
    /// Since when the ledger can't be written: nothing is spoken, and no deadline counts.
    stalled: Option<Now>,
    /// Decisions that it will yet carry out before it is killed.
    pub(super) dies_after: Option<u64>,
}

/// What waits for a process that is stopped.
struct Stopped {
    since: Now,
    inputs: Vec<(ConnectionId, Message)>,
}

/// As `coordinator::driver::Sessions`.
struct Sessions {
    open: BTreeMap<ConnectionId, Option<WorkerId>>,
    workers: BTreeMap<WorkerId, ConnectionId>,
    next: WorkerId,
}

impl Sessions {
    fn introduce(&mut self, session: ConnectionId, known: Option<WorkerId>) -> Option<Introduced> {
        let place = self.open.get_mut(&session)?;
        let worker = known.unwrap_or_else(|| {
            let new = self.next;
            self.next = new.next();
            new
        });
        *place = Some(worker);
        let before = self.workers.insert(worker, session);
        let replaced = before.filter(|before| *before != session);
        let replaced = replaced.filter(|before| self.open.remove(before).is_some());
        Some(Introduced { worker, replaced })
    }

    fn close(&mut self, session: ConnectionId) -> Option<WorkerId> {
        let worker = self.open.remove(&session)??;
        if self.workers.get(&worker) == Some(&session) {
            self.workers.remove(&worker);
            return Some(worker);
        }
        None
    }
}

struct Introduced {
    worker: WorkerId,
    replaced: Option<ConnectionId>,
}

impl Coordinator {
    pub(super) fn is_stopped(&self) -> bool {
        self.up.as_ref().is_some_and(|up| up.stopped.is_some())
    }

    pub(super) fn next_deadline(&self) -> Option<Now> {
        let up = self.up.as_ref();
        let up = up.filter(|up| up.stopped.is_none() && up.stalled.is_none())?;
        Some(up.machine.next_deadline()? + up.origin)
    }

    pub(super) fn generations(&self) -> u64 {
        self.ledger.generations.len() as u64
    }

    pub(super) fn describe(&self) -> String {
        match &self.up {
            None => "no coordinator is there".to_owned(),
            Some(up) => format!(
                "{} at step {}: {}",
                up.machine.phase(),
                up.machine.reached(),
                up.machine.waiting_for()
            ),
        }
    }
}

impl World {
    pub(super) fn start_coordinator(&mut self) {
        let over = matches!(self.coordinator.outcome, Some(Outcome::Complete(_)));
        if self.coordinator.up.is_some() || over {
            return;
        }
        let life = self.coordinator.life + 1;
        let newest = self.store.last_key_value();
        let checkpoint = newest.map(|(step, bits)| CheckpointRecord {
            step: *step,
            path: format!("checkpoints/step-{step}"),
            digest: format!("{bits:016x}"),
        });
        let ledger = &mut self.coordinator.ledger;
        if let Some(checkpoint) = &checkpoint {
            // What led to it may have been done by a generation that nobody had heard of.
            let known = ledger.reached.min(checkpoint.step);
            self.checks.unheard.extend(known.0..checkpoint.step.0);
            ledger
                .checkpoints
                .insert(checkpoint.step, checkpoint.clone());
            if checkpoint.step.0 >= self.job.total {
                ledger.reach(checkpoint.step);
                self.checks.found_complete = true;
                let complete = Outcome::Complete(checkpoint.step);
                self.coordinator.outcome = Some(complete);
                return;
            }
        }
        let (past, next) = (ledger.past(checkpoint), ledger.worker.next());
        let (reached, rules) = (ledger.reached, self.job.rules(ledger.device.clone()));
        if self.is_traced() {
            self.note(format!("coordinator {life} starts with {past:?}"));
        }
        let mut machine = Membership::with_lookahead(rules, past, self.job.ahead, Now::ZERO);
        machine.bugs = self.mistakes.bugs;
        self.coordinator.life = life;
        self.coordinator.outcome = None;
        self.coordinator.up = Some(Up {
            machine,
            origin: self.now,
            sessions: Sessions {
                open: BTreeMap::new(),
                workers: BTreeMap::new(),
                next,
            },
            waiting: VecDeque::new(),
            reached,
            durable_at: Now::ZERO,
            stopped: None,
            stalled: None,
            dies_after: None,
        });
    }

    pub(super) fn kill_coordinator(&mut self, life: u64) {
        if self.coordinator.life != life || self.coordinator.up.take().is_none() {
            return;
        }
        self.note(format!("coordinator {life} is killed"));
        self.hang_up(life);
        let wait = self.faults.absence(&mut self.chance, self.now);
        self.after(wait, Happening::StartCoordinator);
    }

    /// The coordinator's process is gone, and its kernel ends its connections.
    fn hang_up(&mut self, life: u64) {
        for connection in 0..self.network.connections.len() {
            if self.network.connections[connection].life == life {
                self.close(connection, Side::Coordinator, "the coordinator is gone");
            }
        }
    }

    pub(super) fn stop_coordinator(&mut self, length: Duration) {
        let since = self.now;
        let Some(up) = &mut self.coordinator.up else {
            return;
        };
        if up.stopped.is_some() {
            return;
        }
        let inputs = Vec::new();
        up.stopped = Some(Stopped { since, inputs });
        for process in 0..self.workers.len() {
            self.watch(process, &[Side::Worker]);
        }
        let life = self.coordinator.life;
        self.after(length, Happening::ContinueCoordinator(life));
    }

    pub(super) fn continue_coordinator(&mut self, life: u64) {
        let now = self.now;
        let up = self.coordinator.up.as_mut();
        let Some(up) = up.filter(|_| self.coordinator.life == life) else {
            return;
        };
        let Some(Stopped { since, inputs }) = up.stopped.take() else {
            return;
        };
        // As the driver notices it.
        let due = up.machine.next_deadline().map(|at| at + up.origin);
        let wait = due.map_or(TICK, |at| at.saturating_sub(since)).min(TICK);
        let slept = now.saturating_sub(since + wait);
        if slept > self.job.heartbeat / 4 {
            up.machine.slept(slept);
        }
        for (connection, message) in inputs {
            self.coordinator_input(life, connection, message);
        }
        self.carry_out();
    }

    pub(super) fn coordinator_input(
        &mut self,
        life: u64,
        connection: ConnectionId,
        message: Message,
    ) {
        let up = self.coordinator.up.as_mut();
        let Some(up) = up.filter(|_| self.coordinator.life == life) else {
            return;
        };
        if let Some(stopped) = &mut up.stopped {
            stopped.inputs.push((connection, message));
            return;
        }
        if self.trace.is_some() && matches!(message, Message::Open | Message::Closed(_)) {
            let line = format!("coordinator has {message:?} of connection {connection}");
            self.note(line);
        }
        let Some(up) = &mut self.coordinator.up else {
            return;
        };
        match message {
            Message::Open => {
                up.sessions.open.insert(connection, None);
                self.send(connection, Side::Worker, Message::Opened);
            }
            Message::Word(word) => self.heard(connection, word),
            Message::Closed(why) => {
                if let Some(worker) = up.sessions.close(connection) {
                    self.decide(Event::Lost(worker, why.to_owned()));
                }
                self.close(connection, Side::Coordinator, "its stream ended");
            }
            Message::Opened | Message::Order(..) => {}
        }
    }

    fn heard(&mut self, connection: ConnectionId, word: Word) {
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
            Some(spoken) => self.decide_stale(worker, word, spoken),
            None => self.decide(Event::Said(worker, word)),
        }
    }

    /// The generation of a word that must have no effect, because a newer one is there.
    fn stale(&self, word: &Word) -> Option<Generation> {
        let spoken = match word {
            // It is of the process that it speaks.
            Word::Finished(_, _, Finish::Failed(_)) => return None,
            Word::Formed(generation, ..)
            | Word::Progress(generation, _)
            | Word::Heartbeat(generation, ..)
            | Word::CheckpointWritten(generation, _)
            | Word::CheckpointFailed(generation, ..)
            | Word::Paused(generation, _)
            | Word::CollectiveFailed(generation, ..)
            | Word::Finished(generation, ..) => *generation,
            Word::Hello(..) | Word::Ready(..) | Word::Leaving(_) => return None,
        };
        let present = self.coordinator.up.as_ref()?.machine.generation();
        (spoken.0 > 0 && spoken < present).then_some(spoken)
    }

    /// Invariant 3, where it can be seen directly.
    fn decide_stale(&mut self, worker: WorkerId, word: Word, spoken: Generation) {
        let Some(up) = &mut self.coordinator.up else {
            return;
        };
        let now = self.now - up.origin;
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
    fn carry_out(&mut self) {
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

    fn persist(&mut self, record: &Record) {
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

    fn make_reached_durable(&mut self) {
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

    fn tell(&mut self, worker: WorkerId, order: Order) {
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

    fn end(&mut self, outcome: Outcome) {
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
