//! Equation 9: D/(1 - D) as an estimate of p_data/p_model.

use super::criteria::value;
use super::mixture::Mixture;
use super::perceptron::{Between, Perceptron};
use super::{Use, key};
use crate::config::Adam;
use crate::torch::TorchError;
use tch::{Kind, Tensor};

/// How D is trained for an estimate.
#[derive(Clone, Copy, Debug)]
pub struct Estimation {
    /// Of every draw.
    pub seed: u64,
    /// How many.
    pub updates: u32,
    /// Draws from each of the two distributions in one update.
    pub batch: usize,
    /// Widths of the two hidden layers.
    pub width: usize,
}

impl Default for Estimation {
    fn default() -> Self {
        Self {
            seed: 0,
            updates: 1500,
            batch: 512,
            width: 32,
        }
    }
}

/// A discriminator of two distributions that stay as they are, and so comes close to its optimum.
#[derive(Debug)]
pub struct DensityRatio {
    discriminator: Perceptron,
}

impl DensityRatio {
    /// Trains D on fresh draws with equation 8, its step size falling to 0 along half a cosine.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn estimate(data: &Mixture, model: &Mixture, how: &Estimation) -> Result<Self, TorchError> {
        const RATE: f64 = 5e-3;
        let adam = Adam {
            learning_rate: RATE,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        };
        let widths = [1, how.width, how.width, 1];
        let key_of = |purpose, update| key(how.seed, purpose, update);
        let mut discriminator =
            Perceptron::new(&widths, Between::Tanh, key_of(Use::Discriminator, 0), adam)?;
        for update in 0..how.updates {
            let draws = |of: &Mixture, purpose| -> Result<Tensor, TorchError> {
                let drawn = of.draw(key_of(purpose, update.into()), how.batch);
                Ok(Tensor::f_from_slice(&drawn)?.f_to_kind(Kind::Float)?)
            };
            let (real, fake) = (draws(data, Use::Data)?, draws(model, Use::Noise)?);
            let leaves = discriminator.leaves()?;
            let cost = value(
                &discriminator.on_line(&leaves, &real)?,
                &discriminator.on_line(&leaves, &fake)?,
            )?
            .f_neg()?;
            let gone = f64::from(update) / f64::from(how.updates);
            let rate = RATE * 0.5 * (1.0 + (std::f64::consts::PI * gone).cos());
            discriminator.learner().set_rate(rate);
            discriminator.learner().descend(&cost, &leaves)?;
        }
        Ok(Self { discriminator })
    }

    /// ln(D/(1 - D)), D's logit, which estimates ln(p_data/p_model).
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn log_ratio(&self, x: &[f64]) -> Result<Vec<f64>, TorchError> {
        let x = Tensor::f_from_slice(x)?.f_to_kind(Kind::Float)?;
        let leaves = self.discriminator.leaves()?;
        let logits = self.discriminator.on_line(&leaves, &x)?.f_detach()?;
        Ok(Vec::<f64>::try_from(logits.f_to_kind(Kind::Double)?)?)
    }
}
