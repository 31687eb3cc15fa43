//! Adam on a few tensors.

use crate::config::Adam;
use crate::torch::{FusedAdam, TorchError, learning_rate};
use tch::{Kind, Tensor};

/// Parameters, with what Adam remembers of them.
#[derive(Debug)]
pub struct Learner {
    shapes: Vec<Vec<i64>>,
    flat: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    updates: u32,
    adam: Adam,
}

impl Learner {
    /// A learner that starts at `parts`.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn new(parts: &[Tensor], adam: Adam) -> Result<Self, TorchError> {
        let flat: Vec<Tensor> = parts
            .iter()
            .map(|part| part.f_detach()?.f_reshape([-1]))
            .collect::<Result<_, _>>()?;
        let flat = Tensor::f_cat(&flat, 0)?.f_to_kind(Kind::Float)?;
        Ok(Self {
            shapes: parts.iter().map(Tensor::size).collect(),
            exp_avg: flat.f_zeros_like()?,
            exp_avg_sq: flat.f_zeros_like()?,
            flat,
            updates: 0,
            adam,
        })
    }

    /// The parts as leaves of autograd's graph. They share the learner's memory: an update changes
    /// them.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn leaves(&self) -> Result<Vec<Tensor>, TorchError> {
        let mut at = 0;
        let leaf = |shape: &Vec<i64>| -> Result<Tensor, TorchError> {
            let len: i64 = shape.iter().product();
            let part = self.flat.f_narrow(0, at, len)?.f_view(&shape[..])?;
            at += len;
            Ok(part.f_detach()?.f_set_requires_grad(true)?)
        };
        self.shapes.iter().map(leaf).collect()
    }

    /// The step size of the updates to come.
    pub fn set_rate(&mut self, rate: f64) {
        self.adam.learning_rate = rate;
    }

    /// One update down the gradient of `cost` by `leaves`, which [`leaves`](Self::leaves) gave and
    /// each of which has a part in it.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn descend(&mut self, cost: &Tensor, leaves: &[Tensor]) -> Result<(), TorchError> {
        let gradients = Tensor::f_run_backward(&[cost], leaves, false, false)?;
        let gradients: Vec<Tensor> = gradients
            .iter()
            .map(|gradient| gradient.f_reshape([-1]))
            .collect::<Result<_, _>>()?;
        self.updates += 1;
        let rate = learning_rate(self.adam.learning_rate, self.flat.device())?;
        FusedAdam {
            parameters: &mut self.flat,
            gradients: &Tensor::f_cat(&gradients, 0)?,
            exp_avg: &mut self.exp_avg,
            exp_avg_sq: &mut self.exp_avg_sq,
            count: &Tensor::from(self.updates as f32),
            learning_rate: &rate,
            beta1: self.adam.beta1,
            beta2: self.adam.beta2,
            epsilon: self.adam.epsilon,
        }
        .apply()
    }
}
