//! Why the training thread can't go through a generation, and who is to blame.

use super::inbox::Ending;
use crate::checkpoint;
use crate::collective::CollectiveError;
use crate::data::DataError;
use crate::ids::{Rank, Step};
use crate::plan::PlanError;
use crate::train::TrainError;
use std::any::Any;
use std::time::Duration;

/// Why a generation can't be gone through.
#[derive(Debug, thiserror::Error)]
pub(super) enum GenerationError {
    #[error(transparent)]
    Collective(CollectiveError),
    /// The worker's loop said so: another generation, or none, is what counts now.
    #[error("it was called off: {0}")]
    CalledOff(String),
    #[error(transparent)]
    Train(TrainError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::CheckpointError),
    #[error(
        "{path} holds digest {found}, but the coordinator's ledger has {expected}; \
         do this worker and the coordinator see the same run directory?"
    )]
    OtherState {
        path: String,
        found: String,
        expected: String,
    },
    #[error("can't start a thread: {0}")]
    Thread(std::io::Error),
    #[error(
        "no work from the coordinator for {} (deadlines.coordinator); rank 0 has saved step {step}",
        humantime::format_duration(*waited)
    )]
    NoWork { waited: Duration, step: Step },
    #[error("the last checkpoint could not be written: {0}")]
    LastCheckpoint(String),
    #[error("the worker is ending")]
    Ending,
}

impl From<CollectiveError> for GenerationError {
    fn from(error: CollectiveError) -> Self {
        match error {
            // Only this process calls its collectives off.
            CollectiveError::Aborted { reason, .. } => GenerationError::CalledOff(reason),
            other => GenerationError::Collective(other),
        }
    }
}

impl From<TrainError> for GenerationError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Collective { source, .. } => source.into(),
            other => GenerationError::Train(other),
        }
    }
}

impl From<Ending> for GenerationError {
    fn from(_: Ending) -> Self {
        GenerationError::Ending
    }
}

/// The peer that a collective failed on, if it can be named.
pub(super) fn suspect(error: &CollectiveError) -> Option<Rank> {
    match error {
        CollectiveError::Deadline { missing, .. } => missing.0.first().map(|(rank, _)| *rank),
        CollectiveError::PeerLost { rank, .. }
        | CollectiveError::Refused { rank, .. }
        | CollectiveError::Protocol { rank, .. } => Some(*rank),
        _ => None,
    }
}

/// How something went that may have panicked.
pub(super) enum Failure {
    Error(GenerationError),
    Panic(String),
}

pub(super) fn unwound<T>(
    went: std::thread::Result<Result<T, GenerationError>>,
) -> Result<T, Failure> {
    match went {
        Ok(result) => result.map_err(Failure::Error),
        Err(panic) => Err(Failure::Panic(panic_message(panic.as_ref()))),
    }
}

pub(super) fn reason(failure: &Failure) -> String {
    match failure {
        Failure::Error(error) => error.to_string(),
        Failure::Panic(message) => message.clone(),
    }
}

/// What a panic says: libtorch's account of what it can't do.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!(
        "the training thread panicked: {}",
        text.unwrap_or("no message")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::{Operation, Peers, Refusal};
    use crate::ids::Generation;

    #[test]
    fn who_was_lost_late_or_out_of_reach_is_named() {
        let generation = Generation(3);
        let address = || "10.0.0.2:1".to_owned();
        let late = CollectiveError::Deadline {
            generation,
            operation: Operation::Reduce,
            missing: Peers(vec![(Rank(2), address()), (Rank(5), address())]),
            waited: Duration::from_secs(1),
            last: String::new(),
        };
        assert_eq!(suspect(&late), Some(Rank(2)));
        let refused = CollectiveError::Refused {
            generation,
            rank: Rank(1),
            address: address(),
            refusal: Refusal::Closed,
        };
        assert_eq!(suspect(&refused), Some(Rank(1)));
        let newest = Generation(4);
        let stale = CollectiveError::Stale { generation, newest };
        assert_eq!(suspect(&stale), None);
        // It may be this worker's own, or that of a peer that nobody can name.
        let source = "NCCL reports an error".into();
        let device = CollectiveError::Device { generation, source };
        assert_eq!(suspect(&device), None);
    }

    #[test]
    fn what_this_process_called_off_is_nobodys_fault() {
        let aborted = CollectiveError::Aborted {
            generation: Generation(3),
            reason: "4 takes its place".to_owned(),
        };
        let error = GenerationError::from(aborted);
        assert!(matches!(error, GenerationError::CalledOff(_)), "{error}");
    }
}
