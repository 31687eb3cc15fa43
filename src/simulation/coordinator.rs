//! The coordinator's process: a machine, and what `coordinator::driver` does with its decisions.

use super::ledger::Ledger;
use super::network::{ConnectionId, Message, Side};
use super::world::{Happening, World};
use crate::ids::{Step, WorkerId};
use crate::membership::{Action, CheckpointRecord, Event, Membership, Now, Outcome};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

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
    pub(super) origin: Now,
    pub(super) sessions: Sessions,
    pub(super) waiting: VecDeque<Action>,
    /// The newest state whose record was written.
    pub(super) reached: Step,
    pub(super) durable_at: Now,
    pub(super) stopped: Option<Stopped>,
    /// Since when the ledger can't be written: nothing is spoken, and no deadline counts.
    pub(super) stalled: Option<Now>,
    /// Decisions that it will yet carry out before it is killed.
    pub(super) dies_after: Option<u64>,
}

/// What waits for a process that is stopped.
pub(super) struct Stopped {
    since: Now,
    inputs: Vec<(ConnectionId, Message)>,
}

/// As `coordinator::driver::Sessions`.
pub(super) struct Sessions {
    pub(super) open: BTreeMap<ConnectionId, Option<WorkerId>>,
    pub(super) workers: BTreeMap<WorkerId, ConnectionId>,
    pub(super) next: WorkerId,
}

impl Sessions {
    pub(super) fn introduce(
        &mut self,
        session: ConnectionId,
        known: Option<WorkerId>,
    ) -> Option<Introduced> {
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

    pub(super) fn close(&mut self, session: ConnectionId) -> Option<WorkerId> {
        let worker = self.open.remove(&session)??;
        if self.workers.get(&worker) == Some(&session) {
            self.workers.remove(&worker);
            return Some(worker);
        }
        None
    }
}

pub(super) struct Introduced {
    pub(super) worker: WorkerId,
    pub(super) replaced: Option<ConnectionId>,
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
        self.checks.started(ledger);
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
    pub(super) fn hang_up(&mut self, life: u64) {
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
}
