//! Section 3.4 of the tutorial: noise-contrastive estimation, maximum likelihood and the GAN on one
//! value function, on densities that have closed forms.
//!
//! All three are strategies in the game of figure 20,
//!
//! ```text
//! V = E_data log D(x) + E_generator log(1 - D(x)),    D(x) = p_model(x) / (p_model(x) + p_generator(x))
//! ```
//!
//! which D maximises. What differs is where p_model lives and how the generator changes
//! (Goodfellow 2014, "On distinguishability criteria for estimating generative models",
//! arXiv 1412.6515):
//!
//! | | p_model | the generator |
//! |---|---|---|
//! | [`NoiseContrastive`] | in D | a fixed noise |
//! | [`MaximumLikelihood`] | in D | a copy of p_model, made before each update |
//! | [`Adversarial`] | the generator's own | a network, which descends V |
//!
//! | file | owns |
//! |---|---|
//! | `mixture` | PURE but for libtorch's quantiles: mixtures of normal distributions, where the truth is known |
//! | `bumps` | a family of densities with parameters to learn, normalised or not |
//! | `perceptron` | small fully connected networks |
//! | `learner` | Adam on a few tensors |
//! | `criteria` | the three strategies |
//! | `ratio` | D/(1 - D) as an estimate of p_data/p_model, equation 9 |
//!
//! Nothing here is part of a job: no digest hangs on it. Every draw has a key
//! ([`crate::random`]), and what runs on one thread of one kind of machine gives the same bits again.

mod bumps;
mod criteria;
mod learner;
mod mixture;
mod perceptron;
mod ratio;
#[cfg(test)]
mod tests;

pub use bumps::Bumps;
pub use criteria::{
    Adversarial, Criterion, CriterionError, MaximumLikelihood, NoiseContrastive, value,
};
pub use learner::Learner;
pub use mixture::{Bins, Component, Mixture, MixtureError, divergence, normal_strata};
pub use perceptron::{Between, Perceptron};
pub use ratio::{DensityRatio, Estimation};

use crate::random::{Domain, Key};

/// What a draw of a run is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    Data,
    Noise,
    Latents,
    Discriminator,
    Generator,
}

/// The key of a draw.
pub(crate) fn key(seed: u64, purpose: Use, update: u64) -> Key {
    Key::new(Domain::Density, &[seed, purpose as u64, update])
}
