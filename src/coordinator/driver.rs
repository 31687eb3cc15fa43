//! Drives the membership machine: one thread that owns it, the ledger and the clock.
//!
//! Events come in by a channel, in one order; the machine decides; the decisions are carried out
//! in their order, the durable ones before this thread goes on. Nothing here is in the path of a
//! training step: workers never wait for an answer between two steps.

use super::ledger::{self, Ledger, LedgerError};
use super::status::Progress;
use super::wire::{self, Context};
use crate::ids::{Epoch, Generation, Rank, Step, WorkerId};
use crate::membership::{
    Action, Cause, Event, EventKind, MemberState, Membership, Order, Outcome, Record, Seat,
};
use crate::plan::Plan;
use crate::proto;
use crate::telemetry::catalog::{self, SpanState, WorkerState};
use crate::telemetry::metrics::coord;
use crate::telemetry::records::{self, RecordLog};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tonic::Status;

/// How often reached steps are made durable, at most. What a crash of the machine forgets of them,
/// workers report again.
const REACHED_EVERY: Duration = Duration::from_secs(1);

/// Messages that may wait for one worker before it is given up.
pub(super) const OUTBOX: usize = 256;

/// Events that a status shows.
const EVENTS_SHOWN: u32 = 32;

/// Where a worker's messages go.
pub(super) type Outbox = mpsc::Sender<Result<proto::CoordinatorMessage, Status>>;

/// What reaches the driver.
pub(super) enum Input {
    /// A session is open.
    Opened(WorkerId, Outbox),
    /// Somebody said something.
    Said(Event, Vec<proto::StepRecord>),
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

/// Everything that the driver owns.
pub(super) struct Driver {
    pub(super) machine: Membership,
    pub(super) ledger: Ledger,
    pub(super) records: RecordLog,
    pub(super) plan: Plan,
    pub(super) batch: u32,
    pub(super) samples_per_step: u64,
    pub(super) total_steps: u64,
    pub(super) welcome: proto::Welcome,
    /// The origin of the machine's time.
    pub(super) origin: Instant,
    /// Seconds that the job had run before this coordinator began.
    pub(super) seconds_before: f64,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) secrets: Secrets,
    pub(super) sessions: HashMap<WorkerId, Outbox>,
    pub(super) reached: Reached,
    /// Events or checkpoints were recorded since the world was last shown them.
    pub(super) history_grew: bool,
}

/// The steps that are reached, and those that the ledger knows of.
#[derive(Default)]
pub(super) struct Reached {
    newest: Step,
    durable: Step,
    durable_at: Option<Duration>,
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

    /// Runs until the job is over.
    pub(super) fn run(mut self, inbox: &Receiver<Input>) -> Result<Outcome, DriverError> {
        loop {
            self.publish()?;
            let now = self.now();
            let wait = self
                .machine
                .next_deadline()
                .map_or(Duration::from_secs(1), |at| at.saturating_sub(now))
                .min(Duration::from_secs(1));
            let actions = match inbox.recv_timeout(wait) {
                Ok(Input::Opened(worker, outbox)) => {
                    self.sessions.insert(worker, outbox);
                    Vec::new()
                }
                Ok(Input::Said(event, records)) => {
                    let now = self.now();
                    self.log(&event, &records, now);
                    if let Event::Lost(worker, _) = &event {
                        self.sessions.remove(worker);
                    }
                    self.machine.handle(event, now)
                }
                Err(RecvTimeoutError::Timeout) => {
                    let now = self.now();
                    self.machine.handle_timeout(now)
                }
                // The service is gone, and with it everybody who could say something.
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(Outcome::Failed(
                        "the coordinator's server has ended".to_owned(),
                    ));
                }
            };
            if let Some(outcome) = self.carry_out(actions)? {
                self.make_reached_durable()?;
                self.publish()?;
                return Ok(outcome);
            }
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) -> Result<Option<Outcome>, DriverError> {
        let mut outcome = None;
        for action in actions {
            match action {
                Action::Persist(record) => self.persist(record)?,
                Action::Send(worker, order) => self.send(worker, order),
                Action::Close(worker) => drop(self.sessions.remove(&worker)),
                Action::End(how) => outcome = Some(how),
            }
        }
        Ok(outcome)
    }

    fn persist(&mut self, record: Record) -> Result<(), DriverError> {
        let unix = unix_seconds();
        self.history_grew |= matches!(record, Record::Event(..) | Record::Checkpoint(_));
        match record {
            Record::Generation {
                generation,
                cause,
                seats,
            } => {
                tracing::info!(%generation, %cause, workers = seats.len(), "forming");
                self.ledger.generation(generation, cause, &seats, unix)?;
                coord::reconfigured(
                    generation,
                    match cause {
                        Cause::Start => catalog::Cause::Start,
                    },
                );
            }
            Record::Assigned { generation, epochs } => {
                let seats: Vec<Seat> = self.seats();
                let plans = ledger::plans(&self.plan, &epochs);
                let (a_pass, from) = (self.plan.steps_per_epoch(), self.machine.reached());
                self.ledger
                    .assign(generation, &seats, &plans, from, a_pass, self.batch)?;
            }
            Record::Device(device) => self.ledger.set_device(&device)?,
            Record::Reached(step) => {
                self.reached.newest = self.reached.newest.max(step);
                let now = self.now();
                let due = |at| now >= at + REACHED_EVERY;
                if self.reached.durable_at.is_none_or(due) {
                    self.make_reached_durable()?;
                }
            }
            Record::Checkpoint(checkpoint) => {
                let digest = &checkpoint.digest;
                tracing::info!(step = %checkpoint.step, %digest, "checkpoint");
                self.make_reached_durable()?;
                self.ledger.checkpoint(&checkpoint, unix)?;
            }
            Record::Event(kind, detail) => {
                match kind {
                    EventKind::Died | EventKind::Refused | EventKind::CheckpointFailed => {
                        tracing::warn!("{kind}: {detail}");
                    }
                    _ => tracing::info!("{kind}: {detail}"),
                }
                let generation = self.machine.generation();
                self.ledger.event(generation, kind, &detail, unix)?;
            }
        }
        Ok(())
    }

    fn make_reached_durable(&mut self) -> Result<(), DriverError> {
        if self.reached.newest > self.reached.durable {
            self.ledger.reached(self.reached.newest)?;
            self.reached.durable = self.reached.newest;
            self.reached.durable_at = Some(self.now());
            let epoch = self.plan.locate(self.reached.newest).0;
            let (assigned, done) = self.ledger.span_counts(epoch)?;
            coord::spans(SpanState::Assigned, assigned);
            coord::spans(SpanState::Done, done);
        }
        Ok(())
    }

    fn seats(&self) -> Vec<Seat> {
        let members = self.machine.members().values();
        members.filter_map(|member| member.seat.clone()).collect()
    }

    fn send(&mut self, worker: WorkerId, order: Order) {
        let plans = match &order {
            Order::Assignment { epochs, .. } | Order::Work { epochs, .. } => {
                ledger::plans(&self.plan, epochs)
            }
            _ => Vec::new(),
        };
        let member = self.machine.members().get(&worker);
        let hosted = member
            .and_then(|member| member.seat.as_ref())
            .map_or(0..0, |seat| seat.replicas.clone());
        let message = wire::tell(
            worker,
            order,
            Context {
                welcome: &self.welcome,
                secret: self.secrets.of(self.machine.generation()),
                total_steps: self.total_steps,
                plans: &plans,
                hosted,
            },
        );
        let Some(outbox) = self.sessions.get(&worker) else {
            return;
        };
        if let Err(error) = outbox.try_send(Ok(message)) {
            // It doesn't read, or is gone: its stream ends, and the death notice follows.
            tracing::warn!(%worker, "a message can't be delivered: {error}");
            self.sessions.remove(&worker);
        }
    }

    /// Appends the steps' records to `metrics.jsonl`.
    fn log(&mut self, event: &Event, records: &[proto::StepRecord], now: Duration) {
        let Event::Progress(worker, generation, _) = event else {
            return;
        };
        let member = self.machine.members().get(worker);
        let seat = member.and_then(|member| member.seat.as_ref());
        let leads = seat.is_some_and(|seat| seat.rank == Rank(0))
            && *generation == self.machine.generation();
        let Some(newest) = records.last().filter(|_| leads) else {
            return;
        };
        // The newest step has just ended; each one before it, a step's duration earlier.
        let mut time = self.seconds_before + now.as_secs_f64();
        let mut lines: Vec<_> = Vec::with_capacity(records.len());
        for record in records.iter().rev() {
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
        // Records are for people; a disk that is full must not end the job.
        if let Err(error) = self.records.append(&lines) {
            tracing::error!("{error}; training goes on");
        }
        self.progress.send_modify(|progress| {
            progress.newest = Some(*newest);
            for line in &lines {
                progress.count(line.images_per_s);
            }
        });
    }

    /// Sets the metrics that follow from the machine's state.
    fn measure(&self) {
        let members = self.machine.members();
        for (state, shown) in [
            (MemberState::Preparing, WorkerState::Joining),
            (MemberState::Ready, WorkerState::Waiting),
            (MemberState::Forming, WorkerState::Forming),
            (MemberState::Training, WorkerState::Training),
            (MemberState::Finished, WorkerState::Leaving),
        ] {
            let count = members.values().filter(|m| m.state == state).count();
            coord::workers(shown, count);
        }
        let steps = members
            .values()
            .filter(|member| member.seat.is_some())
            .map(|member| member.step.0);
        let (least, most) = (steps.clone().min(), steps.max());
        coord::worker_lag(most.unwrap_or(0) - least.unwrap_or(0));
    }

    /// Shows the world where the job stands.
    fn publish(&mut self) -> Result<(), DriverError> {
        let history = if std::mem::take(&mut self.history_grew) {
            let mut checkpoints = self.ledger.checkpoints()?;
            // Those that retention has removed are history.
            let run_dir = Path::new(&self.welcome.run_dir);
            checkpoints.retain(|checkpoint| run_dir.join(&checkpoint.path).exists());
            Some((self.ledger.events(EVENTS_SHOWN)?, checkpoints))
        } else {
            None
        };
        self.measure();
        let now = self.now();
        self.progress.send_modify(|progress| {
            progress.phase = self.machine.phase().clone();
            progress.detail = self.machine.waiting_for();
            progress.generation = self.machine.generation();
            progress.step = self.machine.reached();
            progress.seconds = self.seconds_before + now.as_secs_f64();
            progress.now = now;
            progress.members = self.machine.members().clone();
            if let Some((events, checkpoints)) = history {
                progress.events = events;
                progress.checkpoints = checkpoints;
            }
        });
        Ok(())
    }
}

/// One step, as `metrics.jsonl` has it.
fn log_line(
    record: &proto::StepRecord,
    generation: Generation,
    time: f64,
    samples: u64,
) -> records::Record {
    records::Record {
        step: Step(record.step),
        epoch: Epoch(record.epoch),
        generation,
        time,
        images_per_s: samples as f64 / record.seconds,
        loss_d: record.loss_d,
        loss_g: record.loss_g,
        d_real: record.d_real,
        d_fake: record.d_fake,
        grad_norm_d: record.grad_norm_d,
        grad_norm_g: record.grad_norm_g,
        reduce_s: record.reduce_seconds,
    }
}

/// Seconds since 1970, for people.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver is where the time of day comes in"
)]
pub(super) fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
