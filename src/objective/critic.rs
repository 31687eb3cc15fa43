//! The Wasserstein game (Arjovsky et al. 2017, arXiv 1701.07875): D is a critic, whose mean outputs
//! differ by the distance of the distributions if it is 1-Lipschitz. What makes it so, a gradient
//! penalty (Gulrajani et al. 2017) or spectral normalisation, is not this game's: the penalty needs
//! images.

use super::{Objective, mean, single};
use crate::torch::TorchError;
use tch::Tensor;

/// D: E s_fake - E s_real, minus the estimate of the distance. G: -E s_fake.
#[derive(Clone, Copy, Debug)]
pub struct Wasserstein;

impl Objective for Wasserstein {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        Ok(mean(&single(fake)?)?.f_sub(&mean(&single(real)?)?)?)
    }

    fn generator(&self, fake: &Tensor, _: Option<&Tensor>) -> Result<Tensor, TorchError> {
        Ok(mean(&single(fake)?)?.f_neg()?)
    }

    /// A critic's outputs have no zero: σ(s - c), where c is halfway between both minibatches' means.
    fn beliefs(&self, real: &Tensor, fake: &Tensor) -> Result<[Tensor; 2], TorchError> {
        let (real, fake) = (single(real)?, single(fake)?);
        let centre = mean(&real)?.f_add(&mean(&fake)?)?.f_mul_scalar(0.5)?;
        Ok([
            real.f_sub(&centre)?.f_sigmoid()?,
            fake.f_sub(&centre)?.f_sigmoid()?,
        ])
    }
}
