//! A worker's process: a session machine, and what `worker` does with its decisions.

use super::job::{DATA, JOB_ID};
use super::network::{ConnectionId, Message, Side};
use super::training::{Command, Report, Thread, Wake};
use super::world::{Happening, World};
use crate::ids::Generation;
use crate::membership::{DeviceKind, Facts, Now, Order, Outcome, Word};
use crate::session::{Action, Event, Exit, Session, Terms};
use std::time::Duration;

pub(super) type ProcessId = usize;

/// For the coordinator to be reachable at the start.
const JOIN: Duration = Duration::from_secs(120);

/// After SIGTERM, before SIGKILL.
const GRACE: Duration = Duration::from_secs(30);

/// What concerns a process.
#[derive(Clone, Debug)]
pub(super) enum Input {
    Session(ConnectionId, Message),
    /// This attempt to connect has lasted long enough, or was refused.
    Unreachable(ConnectionId),
    Prepared,
    Report(Report),
    /// The training thread, if the ticket is its present one.
    Thread(u64, Wake),
    Terminate,
}

/// Orders to the training thread.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Orders {
    pub(super) leaving: bool,
    pub(super) stop: Generation,
    pub(super) drain: Generation,
    pub(super) pause: Generation,
    /// Generations before this one are over.
    pub(super) floor: Generation,
}

#[derive(Clone, Debug)]
enum Life {
    Running,
    /// With what waits for it.
    Stopped(Vec<Input>),
    Gone,
}

#[derive(Debug)]
pub(super) struct Worker {
    session: Session,
    origin: Now,
    life: Life,
    /// When it went, or was stopped.
    pub(super) halted_at: Option<Now>,
    pub(super) exit: Option<Exit>,
    /// When it last lost a session.
    pub(super) unheard_at: Option<Now>,
    pub(super) connection: Option<ConnectionId>,
    /// Nothing gets through to the coordinator before.
    pub(super) cut_off_until: Now,
    /// When a fault last struck it.
    pub(super) disturbed_at: Option<Now>,
    enrolled: bool,
    pub(super) orders: Orders,
    pub(super) thread: Thread,
    pub(super) cores: u32,
    /// What its rounds take, in percent of the job's.
    pub(super) slow: u32,
}

impl Worker {
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.life, Life::Gone)
    }

    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.life, Life::Stopped(..))
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.life, Life::Running)
    }

    pub(super) fn next_deadline(&self) -> Option<Now> {
        if !self.is_running() {
            return None;
        }
        Some(self.session.next_deadline()? + self.origin)
    }
}

/// The process whose incarnation this is.
pub(super) fn process(incarnation: &str) -> ProcessId {
    incarnation.parse().expect("incarnations are numbers here")
}

impl World {
    pub(super) fn start_worker(&mut self) {
        let alive = self.workers.iter().filter(|worker| !worker.is_gone());
        let over = matches!(self.coordinator.outcome, Some(Outcome::Complete(_)));
        if over || alive.count() >= self.faults.crew(&self.job) {
            return;
        }
        let process = self.workers.len();
        let (session, actions) = Session::new(JOIN, Now::ZERO);
        self.workers.push(Worker {
            session,
            origin: self.now,
            life: Life::Running,
            halted_at: None,
            exit: None,
            unheard_at: None,
            connection: None,
            cut_off_until: Now::ZERO,
            disturbed_at: None,
            enrolled: false,
            orders: Orders::default(),
            thread: Thread::new(self.job.first()),
            cores: self.chance.from(1, 2) as u32,
            slow: 100,
        });
        if self.is_traced() {
            self.note(format!("process {process} starts"));
        }
        self.worker_acts(process, actions, None);
    }

    /// The process ends, as its own decision or by SIGKILL.
    pub(super) fn end_worker(&mut self, process: ProcessId, exit: Option<Exit>) {
        let worker = &mut self.workers[process];
        if worker.is_gone() {
            return;
        }
        worker.life = Life::Gone;
        worker.halted_at.get_or_insert(self.now);
        if self.is_traced() {
            self.note(format!("process {process} ends: {exit:?}"));
        }
        self.workers[process].exit = exit.clone();
        if let Some(connection) = self.workers[process].connection {
            self.close(connection, Side::Worker, "the worker is gone");
        }
        self.leave_group(process);
        let calm = !self.faults.calm(self.now).is_zero();
        let alone = !calm || self.coordinator.up.is_none();
        self.checks.exited(process, exit.as_ref(), alone);
        let wait = self.faults.absence(&mut self.chance, self.now);
        self.after(wait, Happening::StartWorker);
    }

    pub(super) fn terminate_worker(&mut self, process: ProcessId) {
        self.worker_input(process, Input::Terminate);
        self.after(GRACE, Happening::Grace(process));
    }

    pub(super) fn grace(&mut self, process: ProcessId) {
        if !self.workers[process].is_gone() {
            self.note(format!(
                "process {process} is killed: it has not ended in time"
            ));
            self.end_worker(process, None);
        }
    }

    pub(super) fn stop_worker(&mut self, process: ProcessId, length: Duration) {
        let worker = &mut self.workers[process];
        if !worker.is_running() {
            return;
        }
        worker.life = Life::Stopped(Vec::new());
        worker.halted_at = Some(self.now);
        self.watch(process, &[Side::Coordinator]);
        self.after(length, Happening::Continue(process));
    }

    pub(super) fn continue_worker(&mut self, process: ProcessId) {
        let worker = &mut self.workers[process];
        if !worker.is_stopped() {
            return;
        }
        let before = std::mem::replace(&mut worker.life, Life::Running);
        worker.halted_at = None;
        // What it did not say meanwhile is held against it a little later.
        worker.disturbed_at = worker.disturbed_at.max(Some(self.now));
        self.note(format!("process {process} goes on"));
        self.resume_sending(process);
        if let Life::Stopped(inputs) = before {
            for input in inputs {
                self.worker_input(process, input);
            }
        }
    }

    pub(super) fn worker_deadline(&mut self, process: ProcessId) {
        let worker = &mut self.workers[process];
        let now = self.now - worker.origin;
        let actions = worker.session.handle_timeout(now);
        self.worker_acts(process, actions, None);
    }

    pub(super) fn worker_input(&mut self, process: ProcessId, input: Input) {
        let worker = &mut self.workers[process];
        match &mut worker.life {
            Life::Gone => return,
            Life::Stopped(inputs) => {
                inputs.push(input);
                return;
            }
            Life::Running => {}
        }
        let mut command = None;
        let event = match input {
            Input::Thread(ticket, wake) => {
                self.wake(process, ticket, wake);
                return;
            }
            Input::Terminate => Event::Terminate,
            Input::Prepared => Event::Prepared(DATA.to_owned()),
            Input::Unreachable(connection) => {
                if worker.connection != Some(connection) || self.is_opened(connection) {
                    return;
                }
                self.close(connection, Side::Worker, "it took too long to open");
                self.workers[process].connection = None;
                Event::Unreachable("no answer".to_owned())
            }
            Input::Session(connection, message) => {
                if worker.connection != Some(connection) {
                    return; // Of a connection that has been given up.
                }
                match message {
                    Message::Opened => Event::Connected,
                    Message::Order(order, life) => self.hear(process, order, life, &mut command),
                    Message::Closed(why) => {
                        worker.connection = None;
                        worker.unheard_at = Some(self.now);
                        if self.is_opened(connection) {
                            Event::Disconnected(why.to_owned())
                        } else {
                            Event::Unreachable(why.to_owned())
                        }
                    }
                    Message::Open | Message::Word(_) => return,
                }
            }
            Input::Report(Report::Say(word)) => {
                self.say(process, *word);
                return;
            }
            Input::Report(Report::Event(event)) => *event,
        };
        if self.is_traced() {
            self.note(format!("process {process} has {event:?}"));
        }
        let worker = &mut self.workers[process];
        let now = self.now - worker.origin;
        let actions = worker.session.handle(event, now);
        self.worker_acts(process, actions, command);
    }

    /// Turns an order into an event, and what it carries into a command.
    fn hear(
        &mut self,
        process: ProcessId,
        order: Order,
        life: u64,
        command: &mut Option<Command>,
    ) -> Event {
        match order {
            Order::Welcome { resumed } => {
                self.workers[process].enrolled = true;
                Event::Welcome(Terms {
                    resumed,
                    heartbeat: self.job.heartbeat / 4,
                    patience: self.job.patience,
                    farewell: self.job.farewell(),
                })
            }
            Order::Refused { reason, permanent } => Event::Refused { reason, permanent },
            Order::Assignment(assignment) => {
                let event = Event::Assignment(assignment.generation, assignment.close);
                *command = Some(Command::Form(Box::new(assignment), life));
                event
            }
            Order::Work {
                generation, epochs, ..
            } => {
                *command = Some(Command::Work(generation, epochs));
                Event::Work(generation)
            }
            Order::Pause(generation) => Event::Pause(generation),
            Order::Hold(generation, reason) => Event::Hold(generation, reason),
            Order::Release => Event::Release,
            Order::Stop { drain, .. } => Event::Stop { drain },
            Order::Acknowledged => Event::Acknowledged,
            Order::Ended(outcome) => Event::Ended {
                good: matches!(outcome, Outcome::Complete(_) | Outcome::Stopped(_)),
                outcome: outcome.to_string(),
            },
        }
    }

    fn worker_acts(
        &mut self,
        process: ProcessId,
        actions: Vec<Action>,
        mut command: Option<Command>,
    ) {
        for action in actions {
            let orders = &mut self.workers[process].orders;
            match action {
                Action::Connect => {
                    // A new attempt ends the one before.
                    if let Some(before) = self.workers[process].connection.take() {
                        self.close(before, Side::Worker, "the worker connects anew");
                    }
                    let connection = self.connect(process);
                    self.workers[process].connection = Some(connection);
                }
                Action::SayHello(mut standing) => {
                    let held = self.workers[process].thread.state.step;
                    standing.step = standing.step.max(held);
                    let facts = self.facts(process);
                    self.say(process, Word::Hello(facts, standing));
                }
                Action::Prepare => {
                    let wait = self.chance.ms(1, 1500);
                    self.after(wait, Happening::Worker(process, Input::Prepared));
                }
                Action::SayReady(digest) => {
                    let held = self.workers[process].thread.state.step;
                    self.say(process, Word::Ready(digest, held));
                }
                Action::Form => {
                    let generation = self.workers[process].session.generation();
                    self.checks.accepted(process, generation);
                    self.command(process, command.take());
                }
                Action::GiveWork => self.command(process, command.take()),
                Action::Abort(floor, _) => self.abort(process, floor),
                Action::RaisePause(generation) => orders.pause = orders.pause.max(generation),
                Action::RaiseStop(generation) => orders.stop = orders.stop.max(generation),
                Action::RaiseDrain(generation) => orders.drain = orders.drain.max(generation),
                Action::RaiseLeaving => orders.leaving = true,
                Action::SayFormed(generation, step, forming) => {
                    self.say(process, Word::Formed(generation, step, forming));
                }
                Action::SayLeaving(generation) => self.say(process, Word::Leaving(generation)),
                Action::SayPaused(generation, step) => {
                    self.say(process, Word::Paused(generation, step));
                }
                Action::SayCollectiveFailed(generation, step, breakage) => {
                    self.say(process, Word::CollectiveFailed(generation, step, breakage));
                }
                Action::SayFinished(generation, step, finish) => {
                    self.say(process, Word::Finished(generation, step, finish));
                }
                Action::Beat => {
                    let worker = &mut self.workers[process];
                    let (step, pace) = (worker.thread.state.step, worker.thread.take_pace());
                    let generation = worker.session.generation();
                    self.say(process, Word::Heartbeat(generation, step, pace));
                }
                Action::Exit(exit) => self.end_worker(process, Some(exit)),
            }
        }
        // Raised flags are seen by a thread that waits.
        self.look(process);
    }

    fn facts(&self, process: ProcessId) -> Facts {
        let worker = &self.workers[process];
        Facts {
            incarnation: process.to_string(),
            job_id: if worker.enrolled { JOB_ID } else { "" }.to_owned(),
            host: format!("host{process}"),
            pid: process as u32,
            collective: format!("host{process}:1"),
            device: DeviceKind::default(),
            cores: worker.cores,
        }
    }

    /// What can't be delivered is dropped.
    fn say(&mut self, process: ProcessId, word: Word) {
        let connection = self.workers[process].connection;
        if let Some(connection) = connection.filter(|id| self.is_opened(*id)) {
            self.send(connection, Side::Coordinator, Message::Word(word));
        }
    }
}
