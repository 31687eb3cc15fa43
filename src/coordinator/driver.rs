//! The thread that owns the membership machine, the ledger and the clock.
//!
//! Events come in by a channel, in one order; the machine decides; the decisions are carried out
//! in their order, the durable ones before this thread goes on. Nothing here is in the path of a
//! training step: workers never wait for an answer between two steps.
//!
//! What can't be written to the ledger now (the disk is full) is not spoken either: the decisions
//! wait in their order and are tried again, and meanwhile workers train on.

use super::guarding;
use super::ledger::{Ledger, LedgerError};
use super::plans::Plans;
use super::recording::{label, log_line, recovered, unix_seconds, write};
use super::sessions::{Outbox, SessionId, Sessions};
use super::status::{Evaluations, Progress};
use super::wanted::Wanted;
use super::wire::{self, Context};
use crate::config::{Guard, Score};
use crate::faults::{self, Point};
use crate::ids::{Generation, Rank, Step, WorkerId};
use crate::membership::{
    Action, Assignment, Event, EventKind, MemberState, Membership, Order, Outcome, Record, Word,
};
use crate::proto;
use crate::telemetry::catalog::{SpanState, WorkerState};
use crate::telemetry::evaluations;
use crate::telemetry::metrics::coord;
use crate::telemetry::records::RecordLog;
use hmac::{Hmac, KeyInit, Mac};
use prost::bytes::Bytes;
use proto::coordinator_message::Kind as ToWorker;
use sha2::Sha256;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often reached steps are made durable, at most. What a crash of the machine forgets of them,
/// workers report again.
const REACHED_EVERY: Duration = Duration::from_secs(1);

/// How often the world is shown where the job stands, at most; and longer the more workers there
/// are, since all of them are shown.
const SHOWN_EVERY: Duration = Duration::from_millis(50);
const SHOWN_EVERY_WORKER: Duration = Duration::from_micros(25);

/// The longest wait for an event.
const TICK: Duration = Duration::from_millis(500);

/// Events that are handled before the clock is looked at again.
const AT_ONCE: usize = 1024;

/// How often a ledger that can't be written is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Decisions that may wait for such a ledger.
const WAITING: usize = 1 << 20;

/// Events that a status shows.
const EVENTS_SHOWN: u32 = 32;

/// Signs of life, which wait until the driver looks: ten thousand workers beat every second, and
/// none of them needs to wake it.
pub(super) type Beats = Arc<Mutex<Vec<(SessionId, Word)>>>;

/// What reaches the driver.
pub(super) enum Input {
    /// A session is open.
    Opened(SessionId, Outbox),
    /// A worker said something; with the records of the steps that it covers.
    Said(SessionId, Word, Vec<proto::StepRecord>),
    /// A session is over.
    Closed(SessionId, String),
    /// Somebody else said something.
    Event(Event),
    /// The coordinator is to go; the job goes on without it until it is back.
    Leave,
}

/// What can end a coordinator, other than its job.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The ledger can't be written: what isn't durable must not be spoken.
    #[error("the ledger can't be written, so the coordinator ends; workers keep their state: {0}")]
    Ledger(#[from] LedgerError),
    /// No randomness for the generations' secrets.
    #[error("the operating system gives no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

/// How a coordinator's life ended.
pub(super) enum End {
    /// With its job.
    Over(Outcome),
    /// Before its job, which had reached this state.
    Left(Step),
}

/// Everything that the driver owns.
pub(super) struct Driver {
    pub(super) machine: Membership,
    pub(super) ledger: Ledger,
    pub(super) records: RecordLog,
    pub(super) plans: Plans,
    pub(super) batch: u32,
    pub(super) samples_per_step: u64,
    /// What the guard's verdicts are told by.
    pub(super) guard: Guard,
    pub(super) total_steps: u64,
    pub(super) heartbeat: Duration,
    pub(super) welcome: proto::Welcome,
    /// The origin of the machine's time.
    pub(super) origin: Instant,
    /// Seconds that the job had run before this coordinator began.
    pub(super) seconds_before: f64,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) secrets: Secrets,
    pub(super) sessions: Sessions,
    pub(super) beats: Beats,
    pub(super) reached: Reached,
    pub(super) waiting: Waiting,
    /// The newest generation's members, encoded.
    pub(super) members: (Generation, Bytes),
    pub(super) shown: Shown,
    /// What the first of the steps that were reported last took to compute, seconds.
    pub(super) compute: f64,
    /// How many workers there should be.
    pub(super) wanted: Wanted,
    /// By which score a checkpoint is the best.
    pub(super) judged_by: Score,
}

/// The steps that are reached, and those that the ledger knows of.
#[derive(Clone, Copy)]
pub(super) struct Reached {
    newest: Step,
    durable: Step,
    durable_at: Option<Duration>,
}

impl Reached {
    /// As the ledger has it.
    pub(super) fn at(step: Step) -> Self {
        Self {
            newest: step,
            durable: step,
            durable_at: None,
        }
    }
}

/// Decisions that are not carried out yet.
#[derive(Default)]
pub(super) struct Waiting {
    actions: VecDeque<Action>,
    stalled: Option<Stalled>,
}

/// The ledger can't be written. Nothing is spoken meanwhile, so no deadline counts either.
struct Stalled {
    since: Duration,
    retry_at: Duration,
    why: String,
}

/// When the world was last shown where the job stands.
#[derive(Default)]
pub(super) struct Shown {
    at: Option<Duration>,
    /// Something has changed since.
    stale: bool,
    /// Events or checkpoints were recorded since.
    history_grew: bool,
}

impl Shown {
    pub(super) fn everything() -> Self {
        Self {
            at: None,
            stale: true,
            history_grew: true,
        }
    }
}

/// One secret a generation, derived from one that never leaves this process.
pub(super) struct Secrets([u8; 32]);

impl Secrets {
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        let mut root = [0; 32];
        getrandom::fill(&mut root)?;
        Ok(Self(root))
    }

    fn of(&self, generation: Generation) -> [u8; 32] {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0)
            .expect("HMAC takes a key of any length");
        mac.update(&generation.0.to_le_bytes());
        mac.finalize().into_bytes().into()
    }
}

impl Driver {
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Runs until the job is over, or the coordinator is told to go.
    pub(super) fn run(mut self, inbox: &Receiver<Input>) -> Result<End, DriverError> {
        let mut looked_at = self.now();
        loop {
            let wait = self.wait();
            let first = match inbox.recv_timeout(wait) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                // The service is gone, and with it everybody who could say something.
                Err(RecvTimeoutError::Disconnected) => return self.leave(),
            };
            self.notice_sleep(looked_at + wait);
            looked_at = self.now();
            let generation = self.machine.generation();
            for input in first.into_iter().chain(inbox.try_iter().take(AT_ONCE)) {
                if let Input::Leave = input {
                    return self.leave();
                }
                self.take(input);
            }
            self.take_beats();
            let now = self.now();
            let due = self.machine.next_deadline().is_some_and(|at| now >= at);
            if due && self.waiting.stalled.is_none() {
                let actions = self.machine.handle_timeout(now);
                self.decide(actions);
            }
            let outcome = self.carry_out()?;
            if generation < self.machine.generation() && self.waiting.actions.is_empty() {
                let took = self.now().saturating_sub(looked_at);
                let generation = self.machine.generation();
                tracing::info!("generation {generation} decided and queued in {took:.1?}");
            }
            let due = self.reached.durable_at;
            if outcome.is_some() || due.is_none_or(|at| now >= at + REACHED_EVERY) {
                self.make_reached_durable();
            }
            self.show(outcome.is_some())?;
            if let Some(outcome) = outcome {
                return Ok(End::Over(outcome));
            }
        }
    }

    fn take_beats(&mut self) {
        let beats = std::mem::take(&mut *self.beats.lock().unwrap_or_else(PoisonError::into_inner));
        for (session, beat) in beats {
            self.take(Input::Said(session, beat, Vec::new()));
        }
    }

    /// Until the next thing that is due.
    fn wait(&self) -> Duration {
        let now = self.now();
        let due = match &self.waiting.stalled {
            Some(stalled) => Some(stalled.retry_at),
            None => self.machine.next_deadline(),
        };
        let show = self.shown.stale.then(|| self.shown_next());
        let times = [due, show];
        let next = times.into_iter().flatten().min();
        let tick = TICK.min(self.heartbeat / 16);
        next.map_or(tick, |at| at.saturating_sub(now)).min(tick)
    }

    /// A coordinator that was stopped, or whose disk hung, has heard nobody: that is not their
    /// silence.
    fn notice_sleep(&mut self, expected: Duration) {
        let slept = self.now().saturating_sub(expected);
        if slept > self.heartbeat / 4 {
            let length =
                humantime::format_duration(Duration::from_millis(slept.as_millis() as u64));
            tracing::warn!(
                "this coordinator had no time for {length}; leases are that much longer"
            );
            self.machine.slept(slept);
        }
    }

    fn take(&mut self, input: Input) {
        self.shown.stale = true;
        let event = match input {
            Input::Opened(session, outbox) => {
                self.sessions.open(session, outbox);
                return;
            }
            Input::Said(session, word, records) => {
                let worker = match &word {
                    Word::Hello(facts, _) => {
                        let known = self.machine.known(&facts.incarnation);
                        self.sessions.introduce(session, known)
                    }
                    _ => self.sessions.worker(session),
                };
                // Of a session that was given up.
                let Some(worker) = worker else { return };
                let now = self.now();
                self.log(worker, &word, &records, now);
                Event::Said(worker, word)
            }
            Input::Closed(session, why) => match self.sessions.close(session) {
                Some(worker) => Event::Lost(worker, why),
                None => return,
            },
            Input::Event(event) => event,
            Input::Leave => return,
        };
        let now = self.now();
        let actions = self.machine.handle(event, now);
        self.decide(actions);
    }

    /// The coordinator goes. Its workers go on; all that it knows is made durable first.
    fn leave(mut self) -> Result<End, DriverError> {
        self.carry_out()?;
        self.make_reached_durable();
        Ok(End::Left(self.machine.reached()))
    }

    fn decide(&mut self, actions: Vec<Action>) {
        self.waiting.actions.extend(actions);
    }

    /// Carries out what was decided, in its order. What stands together is written together.
    fn carry_out(&mut self) -> Result<Option<Outcome>, DriverError> {
        if let Some(stalled) = &self.waiting.stalled
            && self.now() < stalled.retry_at
        {
            return Ok(None);
        }
        while let Some(action) = self.waiting.actions.front() {
            if let Action::Persist(_) = action {
                if !self.persist()? {
                    return Ok(None);
                }
                continue;
            }
            match self.waiting.actions.pop_front() {
                Some(Action::Send(worker, order)) => self.send(worker, order),
                Some(Action::Close(worker)) => self.sessions.drop_worker(worker),
                Some(Action::End(outcome)) => return Ok(Some(outcome)),
                Some(Action::Persist(_)) | None => {}
            }
        }
        Ok(None)
    }

    /// Writes the records at the head of the queue, with one sync of the disk. False if that has
    /// to wait.
    fn persist(&mut self) -> Result<bool, DriverError> {
        let unix = unix_seconds();
        let actions = self.waiting.actions.iter();
        let records: Vec<Record> = actions
            .map_while(|action| match action {
                Action::Persist(record) => Some(record.clone()),
                _ => None,
            })
            .collect();
        let reached = self.reached.newest;
        let (plans, samples, machine) = (&mut self.plans, self.batch, &self.machine);
        faults::pass(Point::LedgerWrite);
        let written = self.ledger.batch(|batch| {
            for record in &records {
                write(
                    batch,
                    record,
                    machine.generation(),
                    plans,
                    samples,
                    reached,
                    unix,
                )?;
            }
            Ok(())
        });
        match written {
            Ok(()) => {}
            Err(error) if error.is_transient() && self.waiting.actions.len() < WAITING => {
                let now = self.now();
                let stalled = self.waiting.stalled.take();
                if stalled.is_none() {
                    tracing::error!(
                        "{error}; no decision takes effect until it can be written, and training goes on"
                    );
                }
                self.waiting.stalled = Some(Stalled {
                    since: stalled.map_or(now, |stalled| stalled.since),
                    retry_at: now + RETRY_EVERY,
                    why: error.to_string(),
                });
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(stalled) = self.waiting.stalled.take() {
            tracing::info!("the ledger can be written again");
            self.machine.slept(self.now().saturating_sub(stalled.since));
        }
        faults::pass(Point::LedgerWritten);
        self.waiting.actions.drain(..records.len());
        for record in records {
            self.written(record);
        }
        Ok(true)
    }

    /// What else a record means, once it is durable.
    fn written(&mut self, record: Record) {
        match record {
            Record::Generation {
                generation,
                cause,
                seats,
            } => {
                tracing::info!(%generation, %cause, workers = seats.len(), "forming");
                self.members = (generation, wire::members(&seats));
                coord::reconfigured(generation, label(cause));
                self.wanted.formed(seats.len());
            }
            Record::Reached(step) => self.reached.newest = self.reached.newest.max(step),
            Record::Rewound(step) => {
                self.reached = Reached {
                    newest: step,
                    durable: step,
                    ..self.reached
                };
            }
            Record::Checkpoint(checkpoint) => {
                let digest = &checkpoint.digest;
                tracing::info!(step = %checkpoint.step, %digest, "checkpoint");
                self.reached.durable = self.reached.durable.max(self.reached.newest);
                self.shown.history_grew = true;
            }
            Record::Recovered(recovery) => recovered(&recovery, self.compute),
            Record::Event(kind, detail) => {
                if kind == EventKind::Left {
                    self.wanted.left();
                }
                match kind {
                    EventKind::Died
                    | EventKind::Refused
                    | EventKind::Broken
                    | EventKind::Rewound
                    | EventKind::Warned
                    | EventKind::Skipped
                    | EventKind::RolledBack
                    | EventKind::Halted
                    | EventKind::CheckpointFailed => tracing::warn!("{kind}: {detail}"),
                    _ => tracing::info!("{kind}: {detail}"),
                }
                self.shown.history_grew = true;
            }
            Record::Assigned { .. }
            | Record::Device(_)
            | Record::Admitted(..)
            | Record::Vacated => {}
        }
    }

    /// Writes down how far the job is, now and then.
    fn make_reached_durable(&mut self) {
        let now = self.now();
        if self.reached.newest <= self.reached.durable || self.waiting.stalled.is_some() {
            return;
        }
        self.reached.durable_at = Some(now);
        if let Err(error) = self.ledger.reached(self.reached.newest) {
            tracing::warn!("{error}; trying again");
            return;
        }
        self.reached.durable = self.reached.newest;
        let epoch = self.plans.plan.locate(self.reached.newest).0;
        self.plans.forget_before(epoch.0);
        match self.ledger.span_counts(epoch) {
            Ok((assigned, done)) => {
                coord::spans(SpanState::Assigned, assigned);
                coord::spans(SpanState::Done, done);
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }

    fn send(&mut self, worker: WorkerId, order: Order) {
        let Some(outbox) = self.sessions.outbox(worker) else {
            return;
        };
        let context = Context {
            welcome: &self.welcome,
            total_steps: self.total_steps,
            recorded: self.records.last_step(),
        };
        let mut messages = Vec::with_capacity(1);
        match order {
            Order::Assignment(assignment) => {
                let Assignment {
                    generation,
                    rank,
                    seats,
                    epochs,
                    ..
                } = &assignment;
                let Some(seat) = seats.get(rank.0 as usize) else {
                    return;
                };
                if self.members.0 != *generation {
                    self.members = (*generation, wire::members(seats));
                }
                let members = self.members.1.clone();
                let (parts, members) = wire::members_parts(*generation, members);
                messages.extend(parts);
                let work = wire::work(*generation, self.plans.of(epochs), &seat.replicas);
                let secret = self.secrets.of(*generation);
                messages.push(wire::assignment(
                    &assignment,
                    members,
                    secret,
                    work,
                    &context,
                ));
            }
            Order::Work {
                generation,
                replicas,
                epochs,
            } => {
                let work = wire::work(generation, self.plans.of(&epochs), &replicas);
                messages.push(wire::message(ToWorker::Work(work)));
            }
            order => messages.extend(wire::tell(worker, order, &context)),
        }
        for message in messages {
            if let Err(error) = outbox.try_send(Ok(message)) {
                // It doesn't read, or is gone: its stream ends, and the death notice follows.
                tracing::warn!(%worker, "a message can't be delivered: {error}");
                self.sessions.silence(worker);
                return;
            }
        }
    }

    /// Appends the steps' records to `metrics.jsonl`. A step that is done again after a fault has
    /// the same figures: it is recorded once.
    fn log(&mut self, worker: WorkerId, word: &Word, records: &[proto::StepRecord], now: Duration) {
        let Word::Progress(generation, _) = word else {
            return;
        };
        let member = self.machine.members().get(&worker);
        let seat = member.and_then(|member| member.seat.as_ref());
        let leads = seat.is_some_and(|seat| seat.rank == Rank(0))
            && *generation == self.machine.generation();
        let Some(newest) = records.last().filter(|_| leads) else {
            return;
        };
        self.compute = records.first().map_or(0.0, |first| first.compute_seconds);
        let recorded = self.records.last_step();
        let new = |record: &&proto::StepRecord| record.step > recorded.0;
        // The newest step has just ended; each one before it, a step's duration earlier.
        let mut time = self.seconds_before + now.as_secs_f64();
        let mut lines: Vec<_> = Vec::with_capacity(records.len());
        for record in records.iter().filter(new).rev() {
            lines.push(log_line(record, *generation, time, self.samples_per_step));
            time -= record.seconds;
        }
        lines.reverse();
        // A batch that came late must not make the next one seem to have gone back.
        let mut earliest = self.records.last_time().unwrap_or(0.0);
        for line in &mut lines {
            line.time = line.time.max(earliest);
            earliest = line.time;
        }
        // First: a record that is there is not told again.
        for record in records.iter().filter(new) {
            if let Some((kind, detail)) = guarding::event(record, &self.guard) {
                self.write_down(*generation, kind, detail);
            }
        }
        // Records are for people; a disk that is full must not end the job.
        if let Err(error) = self.records.append(&lines) {
            tracing::error!("{error}; training goes on");
        }
        self.progress.send_modify(|progress| {
            progress.newest = Some(*newest);
            for record in records.iter().filter(new) {
                progress.count(self.samples_per_step as f64 / record.seconds);
            }
        });
    }

    /// Writes an event down at once, or later if that can't be.
    fn write_down(&mut self, generation: Generation, kind: EventKind, detail: String) {
        let unix = unix_seconds();
        let written = self
            .ledger
            .batch(|batch| batch.event_once(generation, kind, &detail, unix));
        let event = Record::Event(kind, detail);
        match written {
            Ok(()) => self.written(event),
            Err(error) => {
                tracing::warn!("{error}; trying again");
                self.decide(vec![Action::Persist(event)]);
            }
        }
    }

    /// Sets the metrics that follow from the machine's state.
    fn measure(&self) {
        let members = self.machine.members();
        let count = |states: &[MemberState]| {
            let members = members.values();
            members.filter(|m| states.contains(&m.state)).count()
        };
        use MemberState as State;
        for (shown, states) in [
            (WorkerState::Joining, &[State::Preparing, State::Absent][..]),
            (WorkerState::Waiting, &[State::Ready, State::Holding]),
            (WorkerState::Forming, &[State::Forming]),
            (
                WorkerState::Training,
                &[State::Training, State::Paused, State::Broken],
            ),
            (WorkerState::Leaving, &[State::Finished]),
        ] {
            coord::workers(shown, count(states));
        }
        coord::workers_wanted(self.wanted.count());
        let steps = members
            .values()
            .filter(|member| member.seat.is_some())
            .map(|member| member.step.0);
        let (least, most) = (steps.clone().min(), steps.max());
        coord::worker_lag(most.unwrap_or(0) - least.unwrap_or(0));
    }

    fn shown_next(&self) -> Duration {
        let workers = self.machine.members().len() as u32;
        let every = SHOWN_EVERY.max(SHOWN_EVERY_WORKER * workers);
        self.shown.at.map_or(Duration::ZERO, |at| at + every)
    }

    /// Shows the world where the job stands, if that has changed and was not shown just now.
    fn show(&mut self, at_once: bool) -> Result<(), DriverError> {
        let now = self.now();
        let phase_changed = self.progress.borrow().phase != *self.machine.phase();
        if !(at_once || phase_changed || (self.shown.stale && now >= self.shown_next())) {
            return Ok(());
        }
        let history = if std::mem::take(&mut self.shown.history_grew) {
            let mut checkpoints = self.ledger.checkpoints()?;
            // Those that retention has removed are history.
            let run_dir = Path::new(&self.welcome.run_dir);
            checkpoints.retain(|checkpoint| run_dir.join(&checkpoint.path).exists());
            // It is for people: a file that can't be read now is read the next time.
            let evaluations = evaluations::read(run_dir).unwrap_or_default();
            Some((
                self.ledger.events(EVENTS_SHOWN)?,
                checkpoints,
                Evaluations::of(&evaluations, self.judged_by),
            ))
        } else {
            None
        };
        self.shown.at = Some(now);
        self.shown.stale = false;
        self.measure();
        let stalled = self.waiting.stalled.as_ref();
        let stalled = stalled.map(|s| format!("the ledger can't be written: {}", s.why));
        self.progress.send_modify(|progress| {
            progress.phase = self.machine.phase().clone();
            progress.detail = stalled.unwrap_or_else(|| self.machine.waiting_for());
            progress.generation = self.machine.generation();
            progress.step = self.machine.reached();
            progress.seconds = self.seconds_before + now.as_secs_f64();
            progress.now = now;
            progress.members = self.machine.members().clone();
            if let Some((events, checkpoints, evaluations)) = history {
                progress.evaluations = evaluations;
                progress.events = events;
                progress.checkpoints = checkpoints;
            }
        });
        Ok(())
    }
}
