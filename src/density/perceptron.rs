//! Small fully connected networks.

use super::learner::Learner;
use crate::config::Adam;
use crate::random::Key;
use crate::torch::{Generator, TorchError};
use tch::{Device, Kind, Tensor};

/// What stands between two layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// tanh: smooth functions.
    Tanh,
    /// max(0, x): functions with edges.
    Relu,
}

/// Layers of weights and biases, and the learner of their parameters.
#[derive(Debug)]
pub struct Perceptron {
    learner: Learner,
    between: Between,
}

impl Perceptron {
    /// A network with these widths, input and output among them, at Glorot and Bengio's (2010)
    /// weights.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn new(
        widths: &[usize],
        between: Between,
        key: Key,
        adam: Adam,
    ) -> Result<Self, TorchError> {
        let mut generator = Generator::new(Device::Cpu, key)?;
        let mut parts = Vec::new();
        for pair in widths.windows(2) {
            let [from, to] = [pair[0] as i64, pair[1] as i64];
            let mut weight = Tensor::f_zeros([to, from], (Kind::Float, Device::Cpu))?;
            generator.normal_(&mut weight, 0.0, (2.0 / (from + to) as f64).sqrt())?;
            parts.push(weight);
            parts.push(Tensor::f_zeros([to], (Kind::Float, Device::Cpu))?);
        }
        let learner = Learner::new(&parts, adam)?;
        Ok(Self { learner, between })
    }

    /// Its parameters: each layer's weight, then its bias.
    pub fn learner(&mut self) -> &mut Learner {
        &mut self.learner
    }

    /// Its parameters as leaves of autograd's graph.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn leaves(&self) -> Result<Vec<Tensor>, TorchError> {
        self.learner.leaves()
    }

    /// The forward pass, through `leaves`: the network's own, or copies.
    ///
    /// # Shapes
    /// `[n, first width]` to `[n, last width]`.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn forward(&self, leaves: &[Tensor], input: &Tensor) -> Result<Tensor, TorchError> {
        let mut x = input.shallow_clone();
        let layers = leaves.len() / 2;
        for (index, layer) in leaves.chunks_exact(2).enumerate() {
            x = x.f_linear(&layer[0], Some(&layer[1]))?;
            if index + 1 < layers {
                x = match self.between {
                    Between::Tanh => x.f_tanh()?,
                    Between::Relu => x.f_relu()?,
                };
            }
        }
        Ok(x)
    }

    /// A network of one number: the forward pass from and to lists.
    ///
    /// # Shapes
    /// `[n]` to `[n]`.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn on_line(&self, leaves: &[Tensor], input: &Tensor) -> Result<Tensor, TorchError> {
        let output = self.forward(leaves, &input.f_unsqueeze(-1)?)?;
        Ok(output.f_squeeze_dim(-1)?)
    }
}
