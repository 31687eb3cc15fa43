//! f-GAN (Nowozin et al. 2016, arXiv 1606.00709): D's output v becomes a variational function
//! T = g_f(v), and E_data[T] - E_model[f*(T)] bounds the divergence D_f(data ‖ model) =
//! ∫ p_model·f(p_data/p_model) from below. D maximises the bound, and G minimises the same.
//!
//! | divergence | f(u) | g_f(v) | f*(g_f(v)), as computed | ln(p_data/p_model) at the bound |
//! |---|---|---|---|---|
//! | Kullback-Leibler | u·ln u | v | exp(v - 1) | v - 1 |
//! | reverse KL | -ln u | -exp(-v) | v - 1 | v |
//! | Pearson χ² | (u - 1)² | v | v²/4 + v | ln(1 + v/2) |
//! | squared Hellinger | (√u - 1)² | 1 - exp(-v) | exp(v) - 1 | 2v |
//! | Jensen-Shannon | u·ln u - (u + 1)·ln((u + 1)/2) | ln 2 - sp(-v) | sp(v) - ln 2 | v |
//! | GAN | u·ln u - (u + 1)·ln(u + 1) | -sp(-v) | sp(v) | v |
//!
//! f* and g_f are put together on paper, so that nothing overflows or cancels in between. The bound is
//! tight where T = f'(p_data/p_model); the last column solves that for the ratio, which is what
//! reports show as D(x) = ratio/(1 + ratio). `f-gan` is the tutorial's minimax in other words.

use super::{Objective, mean, single};
use crate::torch::TorchError;
use std::f64::consts::LN_2;
use tch::Tensor;

/// What D bounds and G minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// KL(data ‖ model), as maximum likelihood. Finite in f32 for outputs up to 89.
    Kl,
    /// KL(model ‖ data). Finite in f32 for outputs down to -88.
    ReverseKl,
    /// Pearson's χ².
    Pearson,
    /// The squared Hellinger distance. Finite in f32 for outputs between -88 and 88.
    Hellinger,
    /// Twice the Jensen-Shannon divergence.
    JensenShannon,
    /// Twice the Jensen-Shannon divergence, less ln 4.
    Gan,
}

impl Divergence {
    /// g_f(v), the output activation.
    fn activation(self, v: &Tensor) -> Result<Tensor, TorchError> {
        Ok(match self {
            Self::Kl | Self::Pearson => v.shallow_clone(),
            Self::ReverseKl => v.f_neg()?.f_exp()?.f_neg()?,
            Self::Hellinger => v.f_neg()?.f_expm1()?.f_neg()?,
            Self::JensenShannon => v.f_neg()?.f_softplus()?.f_neg()?.f_add_scalar(LN_2)?,
            Self::Gan => v.f_neg()?.f_softplus()?.f_neg()?,
        })
    }

    /// f*(g_f(v))
    fn conjugate(self, v: &Tensor) -> Result<Tensor, TorchError> {
        Ok(match self {
            Self::Kl => v.f_sub_scalar(1.0)?.f_exp()?,
            Self::ReverseKl => v.f_sub_scalar(1.0)?,
            Self::Pearson => v.f_square()?.f_mul_scalar(0.25)?.f_add(v)?,
            Self::Hellinger => v.f_expm1()?,
            Self::JensenShannon => v.f_softplus()?.f_sub_scalar(LN_2)?,
            Self::Gan => v.f_softplus()?,
        })
    }

    /// ratio/(1 + ratio)
    fn belief(self, v: &Tensor) -> Result<Tensor, TorchError> {
        let v = single(v)?;
        Ok(match self {
            Self::Kl => v.f_sub_scalar(1.0)?.f_sigmoid()?,
            Self::ReverseKl | Self::JensenShannon | Self::Gan => v.f_sigmoid()?,
            Self::Hellinger => v.f_mul_scalar(2.0)?.f_sigmoid()?,
            Self::Pearson => {
                // No ratio is negative.
                let ratio = v.f_mul_scalar(0.5)?.f_add_scalar(1.0)?.f_relu()?;
                ratio.f_div(&ratio.f_add_scalar(1.0)?)?
            }
        })
    }
}

impl Objective for Divergence {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        let real = mean(&self.activation(&single(real)?)?)?;
        let fake = mean(&self.conjugate(&single(fake)?)?)?;
        Ok(fake.f_sub(&real)?)
    }

    fn generator(&self, fake: &Tensor, _: Option<&Tensor>) -> Result<Tensor, TorchError> {
        Ok(mean(&self.conjugate(&single(fake)?)?)?.f_neg()?)
    }

    fn beliefs(&self, real: &Tensor, fake: &Tensor) -> Result<[Tensor; 2], TorchError> {
        Ok([self.belief(real)?, self.belief(fake)?])
    }
}
