//! The three games of Goodfellow's tutorial (arXiv 1701.00160, section 3.2). They share D's cost,
//! equation 8, and differ in G's. With log-odds s and sp = softplus, -log σ(s) = sp(-s) and
//! -log(1 - σ(s)) = sp(s). The ½ before each expectation, which only scales the step, is left out,
//! as in the DCGAN paper's code.

use super::{Objective, mean, single};
use crate::torch::TorchError;
use tch::Tensor;

/// Equation 8: E sp(-s_real) + E sp(s_fake), the cross-entropy of labels 1 and 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrossEntropy {
    /// Taken off the label 1: one-sided label smoothing (Salimans et al. 2016, section 3.4). The
    /// optimal D is then (1 - smoothing)·p_data/(p_data + p_model), and its log-odds have a bound.
    pub smoothing: f64,
}

impl CrossEntropy {
    fn of(self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        let real = single(real)?;
        let mut on_real = real.f_neg()?.f_softplus()?;
        if self.smoothing > 0.0 {
            // (1 - α)·sp(-s) + α·sp(s), for sp(s) is s + sp(-s).
            on_real = on_real.f_add(&real.f_mul_scalar(self.smoothing)?)?;
        }
        Ok(mean(&on_real)?.f_add(&mean(&single(fake)?.f_softplus()?)?)?)
    }
}

/// Equation 10: a zero-sum game. G's cost is -E sp(s_fake); its gradient vanishes where D is sure.
#[derive(Clone, Copy, Debug)]
pub struct Minimax(pub CrossEntropy);

/// Equation 13: G's cost is E sp(-s_fake), whose gradient is largest where D is sure.
#[derive(Clone, Copy, Debug)]
pub struct NonSaturating(pub CrossEntropy);

/// Equation 14: G's cost is -E exp(s_fake), which has the gradient of KL(data ‖ model) when D is
/// optimal. Finite in f32 for log-odds up to 88.
#[derive(Clone, Copy, Debug)]
pub struct MaximumLikelihood(pub CrossEntropy);

impl Objective for Minimax {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        self.0.of(real, fake)
    }

    fn generator(&self, fake: &Tensor, _: Option<&Tensor>) -> Result<Tensor, TorchError> {
        Ok(mean(&single(fake)?.f_softplus()?)?.f_neg()?)
    }
}

impl Objective for NonSaturating {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        self.0.of(real, fake)
    }

    fn generator(&self, fake: &Tensor, _: Option<&Tensor>) -> Result<Tensor, TorchError> {
        mean(&single(fake)?.f_neg()?.f_softplus()?)
    }
}

impl Objective for MaximumLikelihood {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        self.0.of(real, fake)
    }

    fn generator(&self, fake: &Tensor, _: Option<&Tensor>) -> Result<Tensor, TorchError> {
        Ok(mean(&single(fake)?.f_exp()?)?.f_neg()?)
    }
}
