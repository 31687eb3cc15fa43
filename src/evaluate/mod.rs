//! What a generator is worth: scores of its samples against the data.
//!
//! An [`Evaluator`] is prepared for a data set: it trains the feature extractor (`classifier`, which
//! `cache` keeps) or loads the one that the user names (`script`), takes features of real samples
//! (`reals`), and computes what one half of them scores against the other: the floor. Then it scores
//! generators and images. `frechet` (FID), `kernel` (KID), `manifold` (precision, recall, density,
//! coverage), `modes` (classes, KL) and `mixture` (points in the plane) are the scores; `crew` shares
//! the work among threads, and no bit depends on how many.
//!
//! Scores are a function of the checkpoint, the data and the settings: every draw is keyed, samples
//! are drawn with running statistics, and sums are added in a fixed order. This room knows nothing of
//! run directories, of the coordinator, or of when an evaluation is due, and it reads no clock. `cli`
//! is `gan-worker evaluate`.

mod cache;
mod classifier;
pub mod cli;
mod crew;
mod error;
mod evaluator;
mod frechet;
mod kernel;
mod manifold;
mod mixture;
mod modes;
mod origin;
mod reals;
mod script;
#[cfg(test)]
mod tests;

pub use crew::Crew;
pub use error::EvaluateError;
pub use evaluator::{Evaluator, Level, Settings};
pub use origin::job_of;

/// What evaluations draw, the second number of their keys.
mod draws {
    /// Latents: seed, this, chunk.
    pub(super) const LATENTS: u64 = 0;
    /// An order of samples: seed, this, what for.
    pub(super) const ORDER: u64 = 1;
    /// Subsets of the kernel distance: seed, this, subset, side.
    pub(super) const SUBSETS: u64 = 2;
    /// Weights of the classifier: 0, this, layer.
    pub(super) const WEIGHTS: u64 = 3;
    /// Shifts of a batch: 0, this, step.
    pub(super) const SHIFTS: u64 = 4;

    /// What an order is for: which samples are compared,
    pub(super) const COMPARED: u64 = 0;
    /// which the classifier is tested on,
    pub(super) const SPLIT: u64 = 1;
    /// in which order it sees the others,
    pub(super) const PASSES: u64 = 2;
    /// which of the images that were given are compared,
    pub(super) const GIVEN: u64 = 3;
    /// or from which a level of a pyramid goes on.
    pub(super) const REFINED: u64 = 4;
}
