//! Stand-in: the type that the engine is written against.
use crate::ids::{Epoch, ReplicaId, Step};

/// One replica's samples of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The step that starts from this state.
    pub step: Step,
    /// The pass.
    pub epoch: Epoch,
    /// Whose.
    pub replica: ReplicaId,
    /// `[b, c, s, s]`.
    pub pixels: Vec<u8>,
    /// One a sample.
    pub labels: Option<Vec<u32>>,
}
