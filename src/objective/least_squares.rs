//! Least squares (Mao et al. 2017, arXiv 1611.04076, equation 9): D's output is regressed on labels,
//! 1 for real and 0 for fake, and G wants its images' label to be 1.

use super::{Objective, mean, single};
use crate::torch::TorchError;
use tch::Tensor;

/// D: ½ E (s_real - 1)² + ½ E s_fake². G: ½ E (s_fake - 1)².
#[derive(Clone, Copy, Debug)]
pub struct LeastSquares {
    /// Taken off the label 1 in D's cost.
    pub smoothing: f64,
}

/// ½ E (s - label)²
fn miss(outputs: &Tensor, label: f64) -> Result<Tensor, TorchError> {
    let error = single(outputs)?.f_sub_scalar(label)?;
    Ok(mean(&error.f_square()?)?.f_mul_scalar(0.5)?)
}

impl Objective for LeastSquares {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        Ok(miss(real, 1.0 - self.smoothing)?.f_add(&miss(fake, 0.0)?)?)
    }

    fn generator(&self, fake: &Tensor, _: Option<&Tensor>) -> Result<Tensor, TorchError> {
        miss(fake, 1.0)
    }

    /// The optimal output is p_data/(p_data + p_model) itself.
    fn beliefs(&self, real: &Tensor, fake: &Tensor) -> Result<[Tensor; 2], TorchError> {
        Ok([
            single(real)?.f_clamp(0.0, 1.0)?,
            single(fake)?.f_clamp(0.0, 1.0)?,
        ])
    }
}
