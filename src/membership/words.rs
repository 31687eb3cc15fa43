//! PURE. The words of the membership machine: what it hears, and what it decides.

use crate::ids::{Generation, Rank, Step, WorkerId};
use std::fmt;
use std::ops::Range;

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// New for each process.
    pub incarnation: String,
    /// For people.
    pub host: String,
    /// For people.
    pub pid: u32,
    /// Where its peers reach it, `host:port`.
    pub collective: String,
    /// What the bits of a result depend on.
    pub device: DeviceKind,
    /// Replicas that it computes side by side.
    pub cores: u32,
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, pid {}", self.host, self.pid)
    }
}

/// Devices of one kind give the same bits.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceKind {
    /// `cpu` or `cuda`.
    pub kind: String,
    /// The processor's vector instructions, or the GPU's model.
    pub model: String,
    /// Version of libtorch.
    pub libtorch: String,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, libtorch {})",
            self.kind, self.model, self.libtorch
        )
    }
}

/// Where a generation's state comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The initialisation, which every worker makes from the seed.
    Fresh,
    /// A checkpoint.
    Checkpoint(CheckpointRecord),
}

impl Source {
    /// The step of the state.
    pub fn step(&self) -> Step {
        match self {
            Source::Fresh => Step(0),
            Source::Checkpoint(checkpoint) => checkpoint.step,
        }
    }
}

/// A checkpoint as the ledger knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// Its step.
    pub step: Step,
    /// Relative to the run directory.
    pub path: String,
    /// SHA-256 of the training state.
    pub digest: String,
}

/// A worker's place in a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Who sits there.
    pub worker: WorkerId,
    /// Its rank.
    pub rank: Rank,
    /// The replicas it hosts.
    pub replicas: Range<u32>,
    /// Where its peers reach it.
    pub address: String,
    /// Of the process that sits there.
    pub incarnation: String,
}

/// What has happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A session began.
    Hello(WorkerId, Facts),
    /// The worker has its data, of this digest.
    Ready(WorkerId, String),
    /// The worker is connected to its peers and holds the state.
    Formed(WorkerId, Generation, Step),
    /// The worker has reached a state.
    Progress(WorkerId, Generation, Step),
    /// The worker has written a checkpoint.
    CheckpointWritten(WorkerId, Generation, CheckpointRecord),
    /// The worker could not write a checkpoint.
    CheckpointFailed(WorkerId, Generation, Step, String),
    /// The worker's collective broke.
    CollectiveFailed(WorkerId, Generation, Step, String),
    /// The worker was told to go.
    Leaving(WorkerId, Generation),
    /// The worker has nothing more to say.
    Finished(WorkerId, Generation, Step, Finish),
    /// A sign of life.
    Heartbeat(WorkerId),
    /// The session broke.
    Lost(WorkerId, String),
    /// A person wants the job to end.
    Stop(String),
    /// The coordinator was told to go; the job is to go on later.
    Drain(String),
    /// Whoever launched the workers sees that the job can't go on.
    Fail(String),
}

/// Why a worker has finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The job's last step is done.
    Complete,
    /// A stop flag was seen.
    Stopped,
    /// A leaving flag was seen: some worker, or the coordinator, was told to go (SIGTERM).
    Left,
    /// It can't go on.
    Failed(String),
}

impl fmt::Display for Finish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finish::Complete => f.write_str("complete"),
            Finish::Stopped => f.write_str("stopped"),
            Finish::Left => f.write_str("told to go"),
            Finish::Failed(reason) => f.write_str(reason),
        }
    }
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make it durable before what follows.
    Persist(Record),
    /// Tell a worker.
    Send(WorkerId, Order),
    /// End a worker's session.
    Close(WorkerId),
    /// The job is over.
    End(Outcome),
}

/// What the ledger is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A generation is about to be spoken.
    Generation {
        /// Its number.
        generation: Generation,
        /// Why there is a new one.
        cause: Cause,
        /// Who takes part.
        seats: Vec<Seat>,
    },
    /// The shards of these epochs are dealt to the generation's workers.
    Assigned {
        /// By whom they will be read.
        generation: Generation,
        /// The epochs.
        epochs: Range<u64>,
    },
    /// The job's first generation computes on devices of this kind, and so must all others.
    Device(DeviceKind),
    /// Some worker has reached this state.
    Reached(Step),
    /// A checkpoint is whole.
    Checkpoint(CheckpointRecord),
    /// Something that people want to find again.
    Event(EventKind, String),
}

/// Why a generation is formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The job begins, or goes on from a checkpoint.
    Start,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Start => "start",
        })
    }
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A worker came.
    Joined,
    /// A worker was refused.
    Refused,
    /// A worker was lost.
    Died,
    /// A worker was told to go.
    Leaving,
    /// A generation runs.
    Running,
    /// A stop was asked for.
    Stop,
    /// A checkpoint was written.
    Checkpoint,
    /// A checkpoint could not be written.
    CheckpointFailed,
    /// The job ended.
    Ended,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EventKind::Joined => "joined",
            EventKind::Refused => "refused",
            EventKind::Died => "died",
            EventKind::Leaving => "leaving",
            EventKind::Running => "running",
            EventKind::Stop => "stop",
            EventKind::Checkpoint => "checkpoint",
            EventKind::CheckpointFailed => "checkpoint-failed",
            EventKind::Ended => "ended",
        })
    }
}

/// What a worker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// You are in; this is the job.
    Welcome,
    /// You can't take part.
    Refused {
        /// Why.
        reason: String,
        /// Coming back won't help.
        permanent: bool,
    },
    /// Take this seat.
    Assignment {
        /// Of this generation.
        generation: Generation,
        /// Yours.
        rank: Rank,
        /// Everybody's, by rank.
        seats: Vec<Seat>,
        /// The state to start from.
        source: Source,
        /// The epochs whose shards come along.
        epochs: Range<u64>,
    },
    /// More shards.
    Work {
        /// For this generation.
        generation: Generation,
        /// The epochs.
        epochs: Range<u64>,
    },
    /// Raise the stop flag, or to drain the leaving flag.
    Stop {
        /// Why.
        reason: String,
        /// The job is to go on later.
        drain: bool,
    },
    /// `Finished` has arrived.
    Acknowledged,
    /// The job is over without you.
    Ended(Outcome),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All its steps are done.
    Complete(Step),
    /// A person stopped it; it can be resumed.
    Stopped(Step),
    /// A worker or the coordinator was told to go; it is to be resumed.
    Drained(Step),
    /// It could not go on.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Complete(step) => write!(f, "complete at step {step}"),
            Outcome::Stopped(step) => write!(f, "stopped at step {step}"),
            Outcome::Drained(step) => write!(f, "drained at step {step}"),
            Outcome::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

/// Where the job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for workers.
    Gathering,
    /// Seats are dealt; workers connect and load the state.
    Forming,
    /// Steps are done.
    Running,
    /// A stop is under way, or the last steps are done and the last checkpoint is being written.
    Stopping,
    /// It is over.
    Ended(Outcome),
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Gathering => "gathering",
            Phase::Forming => "forming",
            Phase::Running => "running",
            Phase::Stopping => "stopping",
            Phase::Ended(_) => "ended",
        })
    }
}

impl Event {
    pub(super) fn worker(&self) -> Option<WorkerId> {
        match self {
            Event::Hello(worker, _)
            | Event::Ready(worker, _)
            | Event::Formed(worker, ..)
            | Event::Progress(worker, ..)
            | Event::CheckpointWritten(worker, ..)
            | Event::CheckpointFailed(worker, ..)
            | Event::CollectiveFailed(worker, ..)
            | Event::Leaving(worker, _)
            | Event::Finished(worker, ..)
            | Event::Heartbeat(worker)
            | Event::Lost(worker, _) => Some(*worker),
            Event::Stop(_) | Event::Drain(_) | Event::Fail(_) => None,
        }
    }

    /// The generation that the event belongs to, if it belongs to one.
    pub(super) fn generation(&self) -> Option<Generation> {
        match self {
            Event::Formed(_, generation, _)
            | Event::Progress(_, generation, _)
            | Event::CheckpointWritten(_, generation, _)
            | Event::CheckpointFailed(_, generation, ..)
            | Event::CollectiveFailed(_, generation, ..)
            | Event::Leaving(_, generation)
            | Event::Finished(_, generation, ..) => Some(*generation),
            _ => None,
        }
    }
}
