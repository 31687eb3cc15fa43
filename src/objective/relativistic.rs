//! Relativistic pairing (RpGAN: Jolicoeur-Martineau 2018, arXiv 1807.00734, section 4.1; Huang et
//! al. 2024, arXiv 2501.05441, equation 2): D says how much more real image i is than fake i. There
//! is no absolute output to collapse towards, and with R1 and R2 the game converges locally.

use super::{Objective, mean, single};
use crate::torch::TorchError;
use tch::Tensor;

/// D: E sp(s_fake - s_real). G: E sp(s_real - s_fake).
#[derive(Clone, Copy, Debug)]
pub struct Relativistic;

/// a_i - b_i
fn difference(a: &Tensor, b: &Tensor) -> Result<Tensor, TorchError> {
    // They would be broadcast, were one of them a single number.
    if a.size() != b.size() {
        return Err(TorchError::Shim {
            doing: "pair real images with fakes",
            message: format!(
                "there are {:?} and {:?} outputs of D, and each needs its partner",
                a.size(),
                b.size()
            ),
        });
    }
    Ok(single(a)?.f_sub(&single(b)?)?)
}

impl Objective for Relativistic {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        mean(&difference(fake, real)?.f_softplus()?)
    }

    fn generator(&self, fake: &Tensor, real: Option<&Tensor>) -> Result<Tensor, TorchError> {
        let real = real.ok_or_else(|| TorchError::Shim {
            doing: "pair fakes with real images",
            message: "the game was not given D's outputs on real images".to_owned(),
        })?;
        mean(&difference(real, fake)?.f_softplus()?)
    }

    fn pairs(&self) -> bool {
        true
    }

    /// Of pairs: σ(s_real - s_fake), and the rest.
    fn beliefs(&self, real: &Tensor, fake: &Tensor) -> Result<[Tensor; 2], TorchError> {
        let margin = difference(real, fake)?;
        Ok([margin.f_sigmoid()?, margin.f_neg()?.f_sigmoid()?])
    }
}
