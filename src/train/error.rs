//! What can go wrong in a step.

use crate::checkpoint::Kind;
use crate::collective::CollectiveError;
use crate::config::Precision;
use crate::data::DataError;
use crate::ids::{ReplicaId, Step};
use crate::torch::TorchError;
use std::fmt;

/// Why a step, or a change of the state, was refused. The state is then what it was before.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The workers didn't get there together. It can be tried again in a new generation.
    #[error("{attempt} is not done, and this worker still has State({step}): {source}")]
    Collective {
        /// The state that the trainer still has.
        step: Step,
        /// What was tried.
        attempt: Attempt,
        /// Why.
        source: CollectiveError,
    },
    /// A replica's mathematics failed.
    #[error("replica {replica}: {source}")]
    Replica {
        /// Whose.
        replica: ReplicaId,
        /// Why.
        source: TorchError,
    },
    /// libtorch refused something that is common to the replicas.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// The device doesn't have the arithmetic that the job wants.
    #[error("train.precision = \"{precision}\" can't be had on {device}: it {needs}")]
    Precision {
        /// What the job wants.
        precision: Precision,
        /// Where.
        device: String,
        /// What it takes, and what to do.
        needs: &'static str,
    },
    /// The operating system gave no thread.
    #[error("can't start a thread for replicas: {0}")]
    Thread(std::io::Error),
    /// A replica thread is gone. Replicas that panic don't end their thread, so this is a bug.
    #[error("a replica thread has ended; build a new trainer")]
    ThreadLost,
    /// The batches handed in are not those of the hosted replicas at this step.
    #[error("the batches don't fit State({step}): {detail}")]
    Batches {
        /// The state that the trainer has.
        step: Step,
        /// What is wrong with them.
        detail: String,
    },
    /// A step is under way that another collective has part in.
    #[error(
        "the step after State({step}) is under way with a collective on the device, which this one \
         is not; discard it first"
    )]
    OtherCollective {
        /// The state that the trainer has.
        step: Step,
    },
    /// A sample that was to go to the device.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A worker that is to give a state to the others has another one. Nothing was sent.
    #[error("can't give State({step}) to the other workers: this one has State({held})")]
    NotHeld {
        /// The state that it was to have.
        step: Step,
        /// The one that it has.
        held: Step,
    },
    /// Replicas that the job doesn't have.
    #[error("can't host replicas {start} to {end} (exclusive) of a job with {replicas}")]
    Replicas {
        /// First.
        start: u32,
        /// First after them.
        end: u32,
        /// R.
        replicas: u32,
    },
    /// A saved state that doesn't fit the job's networks.
    #[error("the state's file {file} doesn't fit this job: {mismatch}")]
    State {
        /// `generator`, `discriminator`, `optimizer`, `generator_ema`, `guard`; those of an older
        /// state begin with `anchor_` or `candidate_`.
        file: String,
        /// What differs.
        mismatch: Mismatch,
    },
    /// Latents that the generator can't take.
    #[error("a latent of {found} numbers, but the generator takes {expected} (model.latent)")]
    Latents {
        /// Size of those handed in.
        found: usize,
        /// Size of the generator's.
        expected: usize,
    },
    /// Coarser images that the generator can't refine.
    #[error("no images can be refined: {detail}")]
    Coarse {
        /// What is wrong with them.
        detail: String,
    },
    /// Labels that the generator can't make samples for.
    #[error("labels don't fit the generator: {detail}")]
    Labels {
        /// What is wrong with them.
        detail: String,
    },
}

/// What workers do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// A step.
    Advance,
    /// To copy this state from those that hold it.
    Copy(Step),
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attempt::Advance => f.write_str("the next step"),
            Attempt::Copy(step) => write!(f, "the copy of State({step})"),
        }
    }
}

/// How a saved state differs from what the job's networks need.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// A file is not there.
    #[error("it is missing")]
    NoFile,
    /// A file is there for which the job has no use.
    #[error(
        "the job has no such part (train.ema_decay decides whether there is a generator_ema, \
         guard.nonfinite, guard.overpowered and guard.collapsed whether there are anchors)"
    )]
    ExtraFile,
    /// A tensor is not there.
    #[error("it has no tensor {0}")]
    NoTensor(String),
    /// A tensor is there that no network has.
    #[error("it has a tensor {0}, which the networks don't have")]
    ExtraTensor(String),
    /// A tensor is there twice.
    #[error("it has the tensor {0} twice")]
    TwiceTensor(String),
    /// A tensor has another shape or kind.
    #[error("{name} is {found_kind:?} {found:?}, but must be {expected_kind:?} {expected:?}")]
    Shape {
        /// Which.
        name: String,
        /// Its dimensions.
        found: Vec<usize>,
        /// Its elements.
        found_kind: Kind,
        /// Those of the network's.
        expected: Vec<usize>,
        /// Those of the network's.
        expected_kind: Kind,
    },
    /// A tensor's bytes don't fill its shape.
    #[error("{name} has {found} bytes, but its shape takes {expected}")]
    Bytes {
        /// Which.
        name: String,
        /// How many there are.
        found: usize,
        /// How many it takes.
        expected: usize,
    },
    /// A number that can't be.
    #[error("{0} has a value that it can't have")]
    Value(String),
    /// A count that contradicts another.
    #[error("{name} is {found}, but must be {expected}")]
    Count {
        /// Which.
        name: String,
        /// Its value.
        found: i64,
        /// The value that the rest of the state implies.
        expected: i64,
    },
}
