//! The games: what the discriminator and the generator minimise.
//!
//! An objective sees what D says of images, one number s an image, and nothing else: no networks, no
//! images, no optimizer. Each family of games is a file; a game is added by adding one, a name in
//! [`config::Objective`] and a line in [`of`]. All costs are written so that they and their
//! gradients are finite in `f32` for s from -80 to 80, nothing clamped: with softplus, where a
//! sigmoid and then a logarithm give NaN. D's outputs in `bf16` are taken in `f32` first.
//!
//! | file | games | source |
//! |---|---|---|
//! | `tutorial` | minimax, non-saturating, maximum-likelihood | Goodfellow 2016, equations 8, 10, 13, 14 |
//! | `least_squares` | least-squares | Mao et al. 2017, equation 9 |
//! | `margin` | hinge | Lim and Ye 2017; Miyato et al. 2018, equations 16, 17 |
//! | `critic` | wasserstein | Arjovsky et al. 2017; its penalty is the step's |
//! | `relativistic` | relativistic | Jolicoeur-Martineau 2018; Huang et al. 2024, equation 2 |
//! | `divergence` | f-kl … f-gan | Nowozin et al. 2016, tables 2 and 6 |

mod critic;
mod divergence;
mod least_squares;
mod margin;
mod relativistic;
#[cfg(test)]
mod tests;
mod tutorial;

pub use critic::Wasserstein;
pub use divergence::Divergence;
pub use least_squares::LeastSquares;
pub use margin::Hinge;
pub use relativistic::Relativistic;
pub use tutorial::{CrossEntropy, MaximumLikelihood, Minimax, NonSaturating};

use crate::config;
use crate::torch::TorchError;
use std::fmt;
use tch::{Kind, Tensor};

/// A game of two players on D's outputs.
pub trait Objective: fmt::Debug + Send + Sync {
    /// D's cost, from its outputs on real images and on fakes.
    ///
    /// # Shapes
    /// `[n]` and `[m]` to a scalar.
    ///
    /// # Errors
    /// [`TorchError`].
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError>;

    /// G's cost, from D's outputs on its images; and on real ones, if the game [pairs](Self::pairs)
    /// them: no gradient is asked of those.
    ///
    /// # Shapes
    /// `[n]`, and `[n]` again, to a scalar.
    ///
    /// # Errors
    /// [`TorchError`].
    fn generator(&self, fake: &Tensor, real: Option<&Tensor>) -> Result<Tensor, TorchError>;

    /// Whether real image i plays with fake i, so that G's cost needs D's outputs on real images and
    /// both minibatches are of one size.
    fn pairs(&self) -> bool {
        false
    }

    /// How real D takes each image to be, 0 … 1: D(x) and D(G(z)) of reports. D/(1 - D) estimates
    /// p_data/p_model (the tutorial's equation 9) wherever the game has such a D.
    ///
    /// # Shapes
    /// `[n]` and `[m]`, as they come in.
    ///
    /// # Errors
    /// [`TorchError`].
    fn beliefs(&self, real: &Tensor, fake: &Tensor) -> Result<[Tensor; 2], TorchError> {
        // Where s is the log-odds.
        Ok([single(real)?.f_sigmoid()?, single(fake)?.f_sigmoid()?])
    }
}

/// The game that the job file names. `smoothing` is taken off the real images' label
/// ([`config::Regularise::label_smoothing`]), and 0 in games without labels.
pub fn of(objective: config::Objective, smoothing: f64) -> Box<dyn Objective> {
    let labels = CrossEntropy { smoothing };
    match objective {
        config::Objective::Minimax => Box::new(Minimax(labels)),
        config::Objective::NonSaturating => Box::new(NonSaturating(labels)),
        config::Objective::MaximumLikelihood => Box::new(MaximumLikelihood(labels)),
        config::Objective::LeastSquares => Box::new(LeastSquares { smoothing }),
        config::Objective::Hinge => Box::new(Hinge),
        config::Objective::Wasserstein => Box::new(Wasserstein),
        config::Objective::Relativistic => Box::new(Relativistic),
        config::Objective::FKl => Box::new(Divergence::Kl),
        config::Objective::FReverseKl => Box::new(Divergence::ReverseKl),
        config::Objective::FPearson => Box::new(Divergence::Pearson),
        config::Objective::FHellinger => Box::new(Divergence::Hellinger),
        config::Objective::FJs => Box::new(Divergence::JensenShannon),
        config::Objective::FGan => Box::new(Divergence::Gan),
    }
}

/// D's outputs in single precision, as costs are computed: what is already, as it is.
fn single(outputs: &Tensor) -> Result<Tensor, TorchError> {
    Ok(outputs.f_to_kind(Kind::Float)?)
}

/// The mean over a minibatch.
fn mean(values: &Tensor) -> Result<Tensor, TorchError> {
    Ok(values.f_mean(Kind::Float)?)
}
