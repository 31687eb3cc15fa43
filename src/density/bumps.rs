//! A family of densities with parameters to learn: weighted bumps, normalised or not.

use super::mixture::{Component, Mixture, MixtureError};
use crate::torch::TorchError;
use std::f64::consts::TAU;
use tch::Tensor;

/// f(x) = Σ softmax(a)ₖ·exp(-(x - μₖ)²/2σₖ²), which is a mixture of normal distributions once it is
/// divided by its integral Z. Noise-contrastive estimation learns -ln Z as another parameter, c.
///
/// Holds leaves of autograd's graph, or any tensors: `[k]` each, and `[1]`.
#[derive(Debug)]
pub struct Bumps<'a> {
    /// μ
    pub means: &'a Tensor,
    /// ln σ
    pub log_deviations: &'a Tensor,
    /// a
    pub logits: &'a Tensor,
}

impl<'a> Bumps<'a> {
    /// The bumps of a learner's leaves: means, log-deviations and logits come first.
    pub(super) fn of(leaves: &'a [Tensor]) -> Self {
        Self {
            means: &leaves[0],
            log_deviations: &leaves[1],
            logits: &leaves[2],
        }
    }

    /// ln softmax(a)
    fn log_weights(&self) -> Result<Tensor, TorchError> {
        Ok(self.logits.f_log_softmax(-1, self.logits.kind())?)
    }

    /// ln f(x)
    ///
    /// # Shapes
    /// `[n]` to `[n]`.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn log_heights(&self, x: &Tensor) -> Result<Tensor, TorchError> {
        let z = x
            .f_unsqueeze(-1)?
            .f_sub(self.means)?
            .f_div(&self.log_deviations.f_exp()?)?;
        let logs = z
            .f_square()?
            .f_mul_scalar(-0.5)?
            .f_add(&self.log_weights()?)?;
        Ok(logs.f_logsumexp([-1], false)?)
    }

    /// ln Z, a scalar.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn log_mass(&self) -> Result<Tensor, TorchError> {
        let logs = self.log_weights()?.f_add(self.log_deviations)?;
        Ok(logs
            .f_logsumexp([-1], false)?
            .f_add_scalar(0.5 * TAU.ln())?)
    }

    /// ln(f(x)/Z)
    ///
    /// # Shapes
    /// `[n]` to `[n]`.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn log_density(&self, x: &Tensor) -> Result<Tensor, TorchError> {
        Ok(self.log_heights(x)?.f_sub(&self.log_mass()?)?)
    }

    /// f/Z as the mixture that it is.
    ///
    /// # Errors
    /// [`MixtureError`], if a parameter is not finite: learning has diverged.
    pub fn mixture(&self) -> Result<Mixture, MixtureError> {
        let number = |of: &Tensor, k: i64| of.double_value(&[k]);
        let count = self.means.size().first().copied().unwrap_or(0);
        let heights: Vec<f64> = (0..count).map(|k| number(self.logits, k)).collect();
        let highest = heights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut components: Vec<Component> = (0..count)
            .map(|k| {
                let deviation = number(self.log_deviations, k).exp();
                Component {
                    weight: (heights[k as usize] - highest).exp() * deviation,
                    mean: number(self.means, k),
                    deviation,
                }
            })
            .collect();
        let total: f64 = components.iter().map(|of| of.weight).sum();
        for of in &mut components {
            of.weight /= total;
        }
        Mixture::new(components)
    }
}
