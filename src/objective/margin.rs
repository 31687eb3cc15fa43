//! Hinge (Lim and Ye 2017, arXiv 1705.02894; Miyato et al. 2018, equations 16 and 17): D is a
//! classifier with a margin, and outputs beyond it pull at nothing.
//!
//! Its output has a sign but no scale of belief: reports show it as though it were log-odds.

use super::{Objective, mean, single};
use crate::torch::TorchError;
use tch::Tensor;

/// D: E max(0, 1 - s_real) + E max(0, 1 + s_fake). G: -E s_fake.
#[derive(Clone, Copy, Debug)]
pub struct Hinge;

impl Objective for Hinge {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        let real = single(real)?.f_neg()?.f_add_scalar(1.0)?.f_relu()?;
        let fake = single(fake)?.f_add_scalar(1.0)?.f_relu()?;
        Ok(mean(&real)?.f_add(&mean(&fake)?)?)
    }

    fn generator(&self, fake: &Tensor, _: Option<&Tensor>) -> Result<Tensor, TorchError> {
        Ok(mean(&single(fake)?)?.f_neg()?)
    }
}
