//! A forward pass, as a function of a flat parameter vector.

use super::architecture::{
    Activation, Architecture, BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM, Convolution, LEAK, Norm,
    Parameter,
};
use crate::config::{MemoryFormat, Precision};
use crate::torch::{self, TorchError};
use tch::{Device, Kind, Tensor};

/// Where batch norm takes its statistics from.
#[derive(Clone, Copy, Debug)]
pub enum Statistics<'a> {
    /// From the batch. They are also written to this vector, each layer's means, then its unbiased
    /// variances; it must not hold NaN, and must not be written to until the backward pass is over.
    Batch(&'a Tensor),
    /// From this vector: the running ones.
    Running(&'a Tensor),
}

/// A network over a flat parameter vector that it doesn't own.
#[derive(Debug)]
pub struct Network<'a> {
    architecture: &'a Architecture,
    /// One a parameter: views of the flat vector, or of its copy in the kind that layer computes in.
    leaves: Vec<Tensor>,
}

impl<'a> Network<'a> {
    /// A network whose parameters' gradients can be asked for.
    ///
    /// # Errors
    /// [`TorchError`], if `flat` is too short.
    pub fn trainable(
        architecture: &'a Architecture,
        flat: &Tensor,
        precision: Precision,
    ) -> Result<Self, TorchError> {
        Self::new(architecture, flat, precision, true)
    }

    /// A network that gradients only pass through, to its input.
    ///
    /// # Errors
    /// [`TorchError`], if `flat` is too short.
    pub fn frozen(
        architecture: &'a Architecture,
        flat: &Tensor,
        precision: Precision,
    ) -> Result<Self, TorchError> {
        Self::new(architecture, flat, precision, false)
    }

    fn new(
        architecture: &'a Architecture,
        flat: &Tensor,
        precision: Precision,
        trainable: bool,
    ) -> Result<Self, TorchError> {
        // All at once, rather than a layer at each of its uses as autocast does: D's weights are
        // used twice.
        let half = match precision {
            Precision::F32 | Precision::Tf32 => None,
            Precision::Bf16 => Some(flat.f_detach()?.f_to_kind(Kind::BFloat16)?),
        };
        let kinds = kinds(architecture);
        let leaves = architecture
            .parameters
            .iter()
            .zip(kinds)
            .map(|(parameter, in_half)| {
                let flat = half.as_ref().filter(|_| in_half).unwrap_or(flat);
                let leaf = view(flat, parameter)?.f_detach()?;
                Ok(leaf.f_set_requires_grad(trainable)?)
            })
            .collect::<Result<_, TorchError>>()?;
        Ok(Self {
            architecture,
            leaves,
        })
    }

    /// The parameters as leaves of autograd's graph, in the architecture's order.
    pub fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    /// The leaves alone: enough to ask for gradients when the forward pass is over.
    pub fn into_leaves(self) -> Vec<Tensor> {
        self.leaves
    }

    /// The forward pass.
    ///
    /// # Shapes
    /// Generator: `[n, latent, 1, 1]` to `[n, c, s, s]` in -1 … 1. Discriminator: `[n, c, s, s]` to
    /// logits `[n]`, which are `f32` in every precision; images are of the kind that their network
    /// computes in.
    ///
    /// # Errors
    /// [`TorchError`], if the input doesn't fit.
    pub fn forward(
        &self,
        input: &Tensor,
        statistics: Statistics<'_>,
    ) -> Result<Tensor, TorchError> {
        let mut x = input.shallow_clone();
        for stage in &self.architecture.stages {
            let weight = &self.leaves[stage.weight];
            // Nothing, where it is of that kind already.
            x = x.f_to_kind(weight.kind())?;
            x = convolve(&stage.convolution, &x, weight)?;
            if let Some(norm) = stage.norm {
                x = self.normalise(norm, &x, statistics)?;
            }
            // In place: neither a convolution nor batch norm keeps its output for the way back.
            x = match stage.activation {
                Activation::Relu => x.f_relu_()?,
                Activation::LeakyRelu => torch::leaky_relu_(x, LEAK)?,
                Activation::Tanh => x.f_tanh_()?,
                Activation::Logit => x.f_flatten(0, -1)?,
            };
        }
        Ok(x)
    }

    fn normalise(
        &self,
        norm: Norm,
        x: &Tensor,
        statistics: Statistics<'_>,
    ) -> Result<Tensor, TorchError> {
        // With momentum 1 the "running" statistics are the batch's, written where they travel from.
        let (vector, training, momentum) = match statistics {
            Statistics::Batch(vector) => (vector, true, 1.0),
            Statistics::Running(vector) => (vector, false, BATCH_NORM_MOMENTUM),
        };
        let features = norm.features as i64;
        let mean = vector.f_narrow(0, norm.offset as i64, features)?;
        let variance = vector.f_narrow(0, norm.offset as i64 + features, features)?;
        Ok(x.f_batch_norm(
            Some(&self.leaves[norm.scale]),
            Some(&self.leaves[norm.scale + 1]),
            Some(&mean),
            Some(&variance),
            training,
            momentum,
            BATCH_NORM_EPSILON,
            true,
        )?)
    }
}

/// The part of a flat vector that is `parameter`, in its shape.
///
/// A convolution's weight lies in memory in the parameter's order.
///
/// # Errors
/// [`TorchError::Tch`], if the vector is too short.
pub fn view(flat: &Tensor, parameter: &Parameter) -> Result<Tensor, TorchError> {
    let part = flat.f_narrow(0, parameter.offset as i64, parameter.len() as i64)?;
    let shape: Vec<i64> = parameter.shape.iter().map(|&side| side as i64).collect();
    Ok(match (parameter.order, shape[..].as_ref()) {
        (MemoryFormat::ChannelsLast, &[first, second, high, wide]) => part
            .f_view([first, high, wide, second])?
            .f_permute([0, 3, 1, 2])?,
        _ => part.f_view(&shape[..])?,
    })
}

/// Which parameters a network has in half precision, if it computes in it: the convolutions'
/// weights. Batch norm keeps its own in single precision, and so does D's head: rounded to 8 bits,
/// a logit of a sure D would tell little, and of all layers it is the cheapest.
fn kinds(architecture: &Architecture) -> Vec<bool> {
    let mut half = vec![false; architecture.parameters.len()];
    for stage in &architecture.stages {
        half[stage.weight] = stage.activation != Activation::Logit;
    }
    half
}

fn convolve(convolution: &Convolution, x: &Tensor, weight: &Tensor) -> Result<Tensor, TorchError> {
    // Measured on a Zen 4 at batch 32: the gradient of 512×256 weights over 4×4 positions takes half
    // as long this way, in f32 and in bf16; over 8×8 positions there is nothing to gain.
    let few = convolution.side_in.min(convolution.side_out) <= 4;
    let fits = (convolution.stride, convolution.padding) == (2, 1);
    if weight.device() == Device::Cpu && weight.requires_grad() && few && fits {
        return torch::convolve_by_product(x, weight, convolution.transposed);
    }
    let stride = [convolution.stride as i64; 2];
    let padding = [convolution.padding as i64; 2];
    Ok(if convolution.transposed {
        x.f_conv_transpose2d(weight, None::<&Tensor>, stride, padding, [0, 0], 1, [1, 1])?
    } else {
        x.f_conv2d(weight, None::<&Tensor>, stride, padding, [1, 1], 1)?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Model;
    use crate::model::{Latents, initial_parameters};
    use crate::random::{Domain, Key};
    use tch::{Device, Kind};

    fn model() -> Model {
        Model {
            image_size: 32,
            channels: 3,
            latent: 6,
            generator_width: 4,
            discriminator_width: 4,
        }
    }

    fn fakes(count: usize) -> (Tensor, Tensor) {
        let architecture = Architecture::generator(&model());
        let flat = initial_parameters(&architecture, 3).unwrap();
        let statistics =
            Tensor::zeros([architecture.statistics as i64], (Kind::Float, Device::Cpu));
        let latents = Latents::draw(Key::new(Domain::Latents, &[0]), count, 6).unwrap();
        let images = Network::frozen(&architecture, &flat, Precision::F32)
            .unwrap()
            .forward(
                &latents.to_tensor(Device::Cpu).unwrap(),
                Statistics::Batch(&statistics),
            )
            .unwrap();
        (images, statistics)
    }

    #[test]
    fn activations_are_channels_last_and_of_the_documented_shapes() {
        let (images, _) = fakes(5);
        assert_eq!(images.size(), [5, 3, 32, 32]);
        assert!(torch::is_channels_last(&images));
        let architecture = Architecture::discriminator(&model());
        let flat = initial_parameters(&architecture, 3).unwrap();
        let statistics =
            Tensor::zeros([architecture.statistics as i64], (Kind::Float, Device::Cpu));
        let logits = Network::frozen(&architecture, &flat, Precision::F32)
            .unwrap()
            .forward(&images, Statistics::Batch(&statistics))
            .unwrap();
        assert_eq!(logits.size(), [5]);
    }

    #[test]
    fn the_statistics_written_are_the_batchs() {
        // The first norm sees ConvT(z), which a frozen network of one stage shows.
        let (_, statistics) = fakes(7);
        let architecture = Architecture::generator(&model());
        let flat = initial_parameters(&architecture, 3).unwrap();
        let latents = Latents::draw(Key::new(Domain::Latents, &[0]), 7, 6).unwrap();
        let first = convolve(
            &architecture.stages[0].convolution,
            &latents.to_tensor(Device::Cpu).unwrap(),
            &view(&flat, &architecture.parameters[0]).unwrap(),
        )
        .unwrap();
        let rows = first.permute([1, 0, 2, 3]).reshape([16, -1]);
        let near = |a: Tensor, from: i64| {
            let difference = (a - statistics.narrow(0, from, 16)).abs().max();
            assert!(difference.double_value(&[]) < 1e-6);
        };
        near(rows.mean_dim(1, false, Kind::Float), 0);
        near(rows.var_dim(1, true, false), 16);
    }

    #[test]
    fn a_frozen_network_passes_gradients_to_its_input_only() {
        let architecture = Architecture::discriminator(&model());
        let flat = initial_parameters(&architecture, 3).unwrap();
        let statistics =
            Tensor::zeros([architecture.statistics as i64], (Kind::Float, Device::Cpu));
        let network = Network::frozen(&architecture, &flat, Precision::F32).unwrap();
        let image = fakes(2).0.detach().set_requires_grad(true);
        let cost = network
            .forward(&image, Statistics::Batch(&statistics))
            .unwrap()
            .sum(Kind::Float);
        let gradient = Tensor::run_backward(&[cost], &[&image], false, false);
        assert!(gradient[0].abs().max().double_value(&[]) > 0.0);
        assert!(network.leaves().iter().all(|leaf| !leaf.requires_grad()));
    }
}
