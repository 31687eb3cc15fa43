//! Stand-in: the interface that the engine is written against.
mod flags;
pub use flags::Flags;

use crate::ids::{Generation, Rank};

/// Stand-in.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// Somebody in this process called it off.
    #[error("generation {generation}: the collective was aborted: {reason}")]
    Aborted {
        /// The membership.
        generation: Generation,
        /// What they said.
        reason: String,
    },
}

/// Stand-in.
pub trait Collective: Send {
    /// This worker's place.
    fn rank(&self) -> Rank;
    /// How many workers.
    fn world_size(&self) -> u32;
    /// The mean over all replicas.
    fn reduce_mean(
        &mut self,
        hosted: &mut [&mut [f32]],
        mean: &mut [f32],
    ) -> Result<(), CollectiveError>;
    /// Waits for every rank.
    fn barrier(&mut self) -> Result<(), CollectiveError>;
}
