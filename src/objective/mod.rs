//! The games: what the discriminator and the generator minimise.
//!
//! An objective sees logits and nothing else: no networks, no images, no optimizer. All costs are
//! written with softplus, which stays finite where a sigmoid and then a logarithm give NaN.

mod tutorial;

pub use tutorial::{MaximumLikelihood, Minimax, NonSaturating};

use crate::config;
use crate::torch::TorchError;
use std::fmt;
use tch::Tensor;

/// A game of two players on D's logits; D believes in x with probability σ(logit).
pub trait Objective: fmt::Debug + Send + Sync {
    /// D's cost, from its logits on real images and on fakes.
    ///
    /// # Shapes
    /// `[n]` and `[m]` to a scalar.
    ///
    /// # Errors
    /// [`TorchError`].
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError>;

    /// G's cost, from D's logits on its images.
    ///
    /// # Shapes
    /// `[n]` to a scalar.
    ///
    /// # Errors
    /// [`TorchError`].
    fn generator(&self, fake: &Tensor) -> Result<Tensor, TorchError>;
}

/// The game that the job file names.
pub fn of(objective: config::Objective) -> Box<dyn Objective> {
    match objective {
        config::Objective::Minimax => Box::new(Minimax),
        config::Objective::NonSaturating => Box::new(NonSaturating),
        config::Objective::MaximumLikelihood => Box::new(MaximumLikelihood),
    }
}
