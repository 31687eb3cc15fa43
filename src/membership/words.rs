//! PURE. The words of the membership machine: what it hears, and what it decides.

use super::balance::Pace;
use crate::ids::{Generation, Rank, Step, WorkerId};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// New for each process.
    pub incarnation: String,
    /// The job that it has taken part in; empty if in none.
    pub job_id: String,
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
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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

/// What a worker that says Hello brings along from before: it may have lost the coordinator, or the
/// coordinator may have been started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The newest generation that it took part in; 0 is none.
    pub generation: Generation,
    /// It still takes part: it forms it, trains or rests in it, or has finished it.
    pub within: bool,
    /// The newest state that it holds.
    pub step: Step,
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
    /// The process that sits there: it alone can claim the seat from a new coordinator.
    pub incarnation: String,
}

/// What has happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A worker has said something.
    Said(WorkerId, Word),
    /// A worker's session broke.
    Lost(WorkerId, String),
    /// A person wants the job to end.
    Stop(String),
    /// The job is to end now and to go on later.
    Drain(String),
    /// Whoever launched the workers sees that the job can't go on.
    Fail(String),
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq)]
pub enum Word {
    /// First of a session, and again of each session that follows a broken one.
    Hello(Facts, Standing),
    /// It has its data, of this digest, holds this state, and waits for a seat.
    Ready(String, Step),
    /// It is connected to its peers, and all of them hold this state.
    Formed(Generation, Step, Forming),
    /// It has reached a state.
    Progress(Generation, Step),
    /// A sign of life, with the state that it holds and how fast it is.
    Heartbeat(Generation, Step, Option<Pace>),
    /// It has written a checkpoint.
    CheckpointWritten(Generation, CheckpointRecord),
    /// It could not write a checkpoint.
    CheckpointFailed(Generation, Step, String),
    /// It has scored a checkpoint: what it found, for people.
    Evaluated(Generation, Step, String),
    /// It saw the flag of a membership change, and rests at this state.
    Paused(Generation, Step),
    /// Its collective broke; it rests at this state.
    CollectiveFailed(Generation, Step, Breakage),
    /// It was told to go.
    Leaving(Generation),
    /// It has nothing more to do.
    Finished(Generation, Step, Finish),
}

/// How long a worker took to get into a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forming {
    /// From hearing of it to having left the step before.
    pub abort: Duration,
    /// Until all peers were connected.
    pub connect: Duration,
    /// Until all held the newest state.
    pub heal: Duration,
}

/// How a collective broke, as one rank saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breakage {
    /// In words.
    pub reason: String,
    /// The peer that was lost, late, or out of reach.
    pub suspect: Option<Rank>,
}

/// Why a worker has finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The job's last step is done.
    Complete,
    /// A stop flag was seen.
    Stopped,
    /// Everybody was told to go (SIGTERM).
    Left,
    /// The job's guard has stopped it: its state is the last one.
    Halted(Halt),
    /// It can't go on.
    Failed(String),
}

/// Why a job's guard has stopped it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halt {
    /// In words.
    pub reason: String,
    /// The newest state that is known to be sound.
    pub sound: Step,
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, sound } = self;
        write!(f, "{reason}; sound up to step {sound}")
    }
}

impl fmt::Display for Finish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finish::Complete => f.write_str("complete"),
            Finish::Stopped => f.write_str("stopped"),
            Finish::Left => f.write_str("told to go"),
            Finish::Halted(halt) => write!(f, "stopped by its guard: {halt}"),
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
        seats: Arc<[Seat]>,
    },
    /// The shards of these epochs are dealt to the generation's workers.
    Assigned {
        /// By whom they will be read.
        generation: Generation,
        /// Who sits where.
        seats: Arc<[Seat]>,
        /// The epochs.
        epochs: Range<u64>,
        /// The state that it goes on from: what came before is somebody else's.
        from: Step,
    },
    /// A worker is admitted, under a number that is never given again.
    Admitted(WorkerId, Facts),
    /// Nobody of the newest generation is left.
    Vacated,
    /// The job's first generation computes on devices of this kind, and so must all others.
    Device(DeviceKind),
    /// Some worker has reached this state.
    Reached(Step),
    /// The job goes on from this state, which is older than what was reached: nobody who held a
    /// newer one is left.
    Rewound(Step),
    /// The first step after a change of membership is done.
    Recovered(Recovery),
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
    /// A worker came.
    Join,
    /// A worker went, by its own wish.
    Leave,
    /// A worker died.
    Death,
    /// A reduction failed, and nobody is known to be dead.
    CollectiveFailure,
    /// The coordinator came back, and some workers did not.
    CoordinatorRestart,
    /// A worker was slow.
    Rebalance,
    /// The job ends, and the newest state is to be saved.
    Close,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Start => "start",
            Cause::Join => "join",
            Cause::Leave => "leave",
            Cause::Death => "death",
            Cause::CollectiveFailure => "collective failure",
            Cause::CoordinatorRestart => "coordinator restart",
            Cause::Rebalance => "rebalance",
            Cause::Close => "close",
        })
    }
}

/// A change of membership and its parts, on the coordinator's clock but for those that workers
/// measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Why there was one.
    pub cause: Cause,
    /// The generation that goes on.
    pub generation: Generation,
    /// From the last sign of life to the death notice; nothing if nobody died.
    pub detect: Duration,
    /// The slowest worker's parts.
    pub forming: Forming,
    /// From the generation's being formed to its first step's end.
    pub first_step: Duration,
    /// From the notice, or from the first worker's coming to rest, to the first step's end.
    pub whole: Duration,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The coordinator was started on a run directory that holds a job.
    Coordinator,
    /// A worker came.
    Joined,
    /// A worker was refused.
    Refused,
    /// A worker was lost.
    Died,
    /// A worker was told to go.
    Leaving,
    /// A worker is gone, in good order.
    Left,
    /// Training rests.
    Paused,
    /// Training goes on.
    Resumed,
    /// The job goes on from an older state.
    Rewound,
    /// A collective broke.
    Broken,
    /// Replicas are dealt anew.
    Rebalanced,
    /// A stop was asked for.
    Stop,
    /// A checkpoint was written.
    Checkpoint,
    /// A checkpoint could not be written.
    CheckpointFailed,
    /// The guard has found something, and changed nothing.
    Warned,
    /// The guard has skipped a step.
    Skipped,
    /// The guard has set the networks back.
    RolledBack,
    /// The guard has stopped the job.
    Halted,
    /// A checkpoint was scored.
    Evaluated,
    /// The job ended.
    Ended,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EventKind::Coordinator => "coordinator",
            EventKind::Joined => "joined",
            EventKind::Refused => "refused",
            EventKind::Died => "died",
            EventKind::Leaving => "leaving",
            EventKind::Left => "left",
            EventKind::Paused => "paused",
            EventKind::Resumed => "resumed",
            EventKind::Rewound => "rewound",
            EventKind::Broken => "broken",
            EventKind::Rebalanced => "rebalanced",
            EventKind::Stop => "stop",
            EventKind::Checkpoint => "checkpoint",
            EventKind::CheckpointFailed => "checkpoint-failed",
            EventKind::Warned => "warned",
            EventKind::Skipped => "skipped",
            EventKind::RolledBack => "rolled-back",
            EventKind::Halted => "halted",
            EventKind::Evaluated => "evaluated",
            EventKind::Ended => "ended",
        })
    }
}

/// What a worker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// You are in; this is the job.
    Welcome {
        /// You are known, and your generation goes on.
        resumed: bool,
    },
    /// You can't take part.
    Refused {
        /// Why.
        reason: String,
        /// Coming back won't help.
        permanent: bool,
    },
    /// Take this seat. Whatever generation you are in is over.
    Assignment(Assignment),
    /// More shards.
    Work {
        /// For this generation.
        generation: Generation,
        /// The worker's replicas.
        replicas: Range<u32>,
        /// The epochs.
        epochs: Range<u64>,
    },
    /// Raise the pause flag: a new generation is wanted.
    Pause(Generation),
    /// This generation is over and there is no new one yet: keep the state and wait.
    Hold(Generation, String),
    /// You were told to go, and may.
    Release,
    /// Raise the stop flag, or to drain the leaving flag.
    Stop {
        /// Why.
        reason: String,
        /// The job is to go on later.
        drain: bool,
    },
    /// `Finished` has arrived, and the last checkpoint is safe.
    Acknowledged,
    /// The job is over without you.
    Ended(Outcome),
}

/// A seat in a generation, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Its number.
    pub generation: Generation,
    /// The worker's.
    pub rank: Rank,
    /// Everybody's, by rank.
    pub seats: Arc<[Seat]>,
    /// The newest checkpoint: the state to start from if nobody holds a newer one.
    pub checkpoint: Option<CheckpointRecord>,
    /// The epochs whose shards come along.
    pub epochs: Range<u64>,
    /// Do no step: agree on the newest state, save it, and finish like this.
    pub close: Option<Close>,
}

/// How a generation that does no step ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The job was stopped.
    Stopped,
    /// The job is to go on later.
    Left,
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
    /// Its guard has stopped it, for good.
    Halted(Step, Halt),
    /// It could not go on.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Complete(step) => write!(f, "complete at step {step}"),
            Outcome::Stopped(step) => write!(f, "stopped at step {step}"),
            Outcome::Drained(step) => write!(f, "drained at step {step}"),
            Outcome::Halted(step, halt) => {
                write!(f, "stopped by its guard at step {step}: {halt}")
            }
            Outcome::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

/// Where the job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for workers.
    Gathering,
    /// The coordinator was started again, and waits for the workers of before.
    Recovering,
    /// Seats are dealt; workers connect and share the newest state.
    Forming,
    /// Steps are done.
    Running,
    /// A new generation is wanted; workers rest at the end of their step.
    Pausing(Cause),
    /// A stop is under way, or the last steps are done and the last checkpoint is being written.
    Stopping,
    /// It is over.
    Ended(Outcome),
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Gathering => "gathering",
            Phase::Recovering => "recovering",
            Phase::Forming => "forming",
            Phase::Running => "running",
            Phase::Pausing(_) => "pausing",
            Phase::Stopping => "stopping",
            Phase::Ended(_) => "ended",
        })
    }
}

impl Word {
    /// The generation that the word belongs to, if it belongs to one.
    pub(super) fn generation(&self) -> Option<Generation> {
        match self {
            Word::Formed(generation, ..)
            | Word::Progress(generation, _)
            | Word::CheckpointWritten(generation, _)
            | Word::CheckpointFailed(generation, ..)
            | Word::Evaluated(generation, ..)
            | Word::Paused(generation, _)
            | Word::CollectiveFailed(generation, ..)
            | Word::Finished(generation, ..) => Some(*generation),
            Word::Hello(..) | Word::Ready(..) | Word::Heartbeat(..) | Word::Leaving(_) => None,
        }
    }
}
