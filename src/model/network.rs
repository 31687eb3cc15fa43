//! A forward pass, as a function of a flat parameter vector.

use super::architecture::{
    Activation, Appended, Architecture, BATCH_NORM_MOMENTUM, Convolution, LEAK, Layer,
    NORM_EPSILON, Norm, Parameter, Player, Stage,
};
use super::spectral;
use crate::config::{HiddenNoise, MemoryFormat, Precision};
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

/// What a network is a function of, beside its parameters.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// G's latents, `[n, z, 1, 1]`; D's samples, `[n, c, s, s]`.
    pub x: &'a Tensor,
    /// One label a sample, `[n]`, `i64`. A conditional network needs them, no other looks at them.
    pub labels: Option<&'a Tensor>,
    /// Numbers from N(0, 1), `[n, noise]`, for a generator with hidden noise.
    pub noise: Option<&'a Tensor>,
    /// The images of half the side, `[n, c, s/2, s/2]`, for a level of a pyramid.
    pub coarse: Option<&'a Tensor>,
}

impl<'a> From<&'a Tensor> for Input<'a> {
    /// For a network that needs nothing else.
    fn from(x: &'a Tensor) -> Self {
        Self {
            x,
            labels: None,
            noise: None,
            coarse: None,
        }
    }
}

/// The flat vectors that a network lies over.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// Its parameters.
    pub parameters: &'a Tensor,
    /// Its running values, of which spectral norm's vectors are a part; nothing else is read.
    pub running: &'a Tensor,
}

/// A network over flat vectors that it doesn't own.
#[derive(Debug)]
pub struct Network<'a> {
    architecture: &'a Architecture,
    /// One a parameter: views of the flat vector, or of its copy in the kind that layer computes in.
    leaves: Vec<Tensor>,
    /// What the layers compute with: the leaves, or what spectral norm makes of them.
    weights: Vec<Tensor>,
}

impl<'a> Network<'a> {
    /// A network whose parameters' gradients can be asked for.
    ///
    /// # Errors
    /// [`TorchError`], if a vector is too short.
    pub fn trainable(
        architecture: &'a Architecture,
        values: Values<'_>,
        precision: Precision,
    ) -> Result<Self, TorchError> {
        Self::new(architecture, values, precision, true)
    }

    /// A network that gradients only pass through, to its input.
    ///
    /// # Errors
    /// [`TorchError`], if a vector is too short.
    pub fn frozen(
        architecture: &'a Architecture,
        values: Values<'_>,
        precision: Precision,
    ) -> Result<Self, TorchError> {
        Self::new(architecture, values, precision, false)
    }

    fn new(
        architecture: &'a Architecture,
        values: Values<'_>,
        precision: Precision,
        trainable: bool,
    ) -> Result<Self, TorchError> {
        // All at once, rather than a layer at each of its uses as autocast does: D's weights are
        // used twice.
        let flat = values.parameters;
        let half = match precision {
            Precision::F32 | Precision::Tf32 => None,
            Precision::Bf16 => Some(flat.f_detach()?.f_to_kind(Kind::BFloat16)?),
        };
        let mut leaves = Vec::with_capacity(architecture.parameters.len());
        let mut weights = Vec::with_capacity(architecture.parameters.len());
        for (parameter, in_half) in architecture.parameters.iter().zip(kinds(architecture)) {
            let half = half.as_ref().filter(|_| in_half);
            // Spectral norm divides in single precision.
            let flat = half
                .filter(|_| parameter.spectral.is_none())
                .unwrap_or(flat);
            let leaf = view(flat, parameter)?
                .f_detach()?
                .f_set_requires_grad(trainable)?;
            weights.push(match parameter.spectral {
                Some(spectral) => {
                    let divided = spectral::divide(&leaf, spectral, values.running)?;
                    divided.f_to_kind(half.map_or(Kind::Float, Tensor::kind))?
                }
                None => leaf.shallow_clone(),
            });
            leaves.push(leaf);
        }
        Ok(Self {
            architecture,
            leaves,
            weights,
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
    /// Generator: `[n, z, 1, 1]` to `[n, c, s, s]`, images in -1 … 1. Discriminator: `[n, c, s, s]` to
    /// logits `[n]`, which are `f32` in every precision; samples are of the kind that their network
    /// computes in.
    ///
    /// # Errors
    /// [`TorchError`], if the input doesn't fit or lacks something.
    pub fn forward(
        &self,
        input: Input<'_>,
        statistics: Statistics<'_>,
    ) -> Result<Tensor, TorchError> {
        let architecture = self.architecture;
        let one_hot = self.one_hot(input)?;
        let mut x = match architecture.player {
            // Its latents are appended to nothing.
            Player::Generator => None,
            Player::Discriminator => Some(input.x.shallow_clone()),
        };
        let mut judgement = None;
        for stage in &architecture.stages {
            let weight = &self.weights[stage.weight];
            let first = x.is_none() || stage.weight == 0;
            let whole = self.extend(stage, x, input, one_hot.as_ref())?;
            let whole = match stage.layer {
                // Libraries choose how they multiply matrices by where these begin in memory, and
                // what is fed may begin anywhere.
                Layer::Linear(_) if first => whole.f_mul_scalar(1.0)?,
                _ => whole,
            };
            if stage.activation == Activation::Logit {
                judgement = self.project(&whole, one_hot.as_ref())?;
            }
            // Nothing, where it is of that kind already.
            let whole = whole.f_to_kind(weight.kind())?;
            let bias = stage.bias.map(|bias| &self.weights[bias]);
            let mut y = match &stage.layer {
                Layer::Convolution(layer) => convolve(layer, &whole, weight, bias)?,
                Layer::Linear(_) => whole.f_flatten(1, -1)?.f_linear(weight, bias)?,
            };
            if let Some(norm) = stage.norm {
                y = self.normalise(norm, &y, statistics)?;
            }
            // In place: no layer and no norm keeps its output for the way back.
            y = match stage.activation {
                Activation::Relu => y.f_relu_()?,
                Activation::LeakyRelu => torch::leaky_relu_(y, LEAK)?,
                Activation::Maxout { pieces } => y
                    .f_unflatten(1, [-1, pieces as i64])?
                    .f_amax([2i64], false)?,
                Activation::Tanh => y.f_tanh_()?,
                Activation::Identity => y.f_unsqueeze(-1)?.f_unsqueeze(-1)?,
                Activation::Band => {
                    let coarse = input.coarse.ok_or_else(|| lacking("a coarser image"))?;
                    let side = stage.layer.side_out();
                    y.f_add(&resized(coarse, side)?.f_to_kind(y.kind())?)?
                }
                Activation::Logit => y.f_flatten(0, -1)?,
            };
            if !stage.noise.is_empty() {
                y = self.disturb(stage, &y, input)?;
            }
            x = Some(y);
        }
        let x = x.ok_or_else(|| lacking("a layer"))?;
        Ok(match judgement {
            Some(judgement) => x.f_add(&judgement)?,
            None => x,
        })
    }

    /// The labels as one-hot vectors, `[n, classes]`, if the network is told of labels.
    fn one_hot(&self, input: Input<'_>) -> Result<Option<Tensor>, TorchError> {
        let classes = self.architecture.classes as i64;
        if classes == 0 {
            return Ok(None);
        }
        let labels = input.labels.ok_or_else(|| lacking("labels"))?;
        let numbers = Tensor::f_arange(classes, (Kind::Int64, labels.device()))?;
        let equal = labels.f_unsqueeze(1)?.f_eq_tensor(&numbers)?;
        Ok(Some(equal.f_to_kind(Kind::Float)?))
    }

    /// A layer's input with what is appended to it.
    fn extend(
        &self,
        stage: &Stage,
        x: Option<Tensor>,
        input: Input<'_>,
        one_hot: Option<&Tensor>,
    ) -> Result<Tensor, TorchError> {
        let kind = self.weights[stage.weight].kind();
        let side = stage.layer.side_in() as i64;
        let ordered = x.as_ref().is_some_and(torch::is_channels_last);
        let one_hot = || one_hot.ok_or_else(|| lacking("labels"));
        let flat = matches!(stage.layer, Layer::Linear(_));
        let everywhere = |part: Tensor| -> Result<Tensor, TorchError> {
            let (n, channels) = (part.size()[0], part.size()[1]);
            let part = part.f_to_kind(kind)?.f_reshape([n, channels, 1, 1])?;
            Ok(part.f_expand([n, channels, side, side], false)?)
        };
        let mut parts = Vec::new();
        for appended in &stage.appended {
            parts.push(match appended {
                Appended::Latent(range) => {
                    let (from, len) = (range.start as i64, range.len() as i64);
                    everywhere(input.x.f_narrow(1, from, len)?)?
                }
                Appended::OneHot => everywhere(one_hot()?.shallow_clone())?,
                Appended::Coarse => {
                    let coarse = input.coarse.ok_or_else(|| lacking("a coarser image"))?;
                    resized(coarse, stage.layer.side_in())?.f_to_kind(kind)?
                }
                Appended::Plane(index) => {
                    let planes = &self.weights[*index];
                    let plane = one_hot()?.f_to_kind(planes.kind())?.f_matmul(planes)?;
                    plane.f_to_kind(kind)?.f_reshape([-1, 1, side, side])?
                }
            });
        }
        if let Some(x) = x {
            if parts.is_empty() {
                return Ok(x);
            }
            let x = x.f_to_kind(kind)?;
            parts.insert(
                0,
                if flat {
                    x.f_reshape([x.size()[0], -1, 1, 1])?
                } else {
                    x
                },
            );
        }
        let whole = match &parts[..] {
            [part] => part.shallow_clone(),
            parts => Tensor::f_cat(parts, 1)?,
        };
        match ordered && !flat {
            true => torch::channels_last(&whole),
            false => Ok(whole),
        }
    }

    /// What the label adds to D's logits, from the features of the last hidden layer (Miyato and
    /// Koyama 2018, equation 3): their sums over all positions, times the label's vector.
    fn project(
        &self,
        features: &Tensor,
        one_hot: Option<&Tensor>,
    ) -> Result<Option<Tensor>, TorchError> {
        let Some(index) = self.architecture.projection else {
            return Ok(None);
        };
        let one_hot = one_hot.ok_or_else(|| lacking("labels"))?;
        let features = features.f_to_kind(Kind::Float)?;
        let features = match features.dim() {
            4 => features.f_sum_dim_intlist([2i64, 3].as_slice(), false, Kind::Float)?,
            _ => features,
        };
        let vectors = one_hot.f_matmul(&self.weights[index])?;
        let products = vectors.f_mul(&features)?;
        Ok(Some(products.f_sum_dim_intlist(
            [1i64].as_slice(),
            false,
            Kind::Float,
        )?))
    }

    /// Hidden noise on a layer's output.
    fn disturb(&self, stage: &Stage, y: &Tensor, input: Input<'_>) -> Result<Tensor, TorchError> {
        let noise = input.noise.ok_or_else(|| lacking("hidden noise"))?;
        let (from, len) = (stage.noise.start as i64, stage.noise.len() as i64);
        let (kind, strength) = self.architecture.hidden_noise;
        let noise = noise
            .f_narrow(1, from, len)?
            .f_reshape(y.size())?
            .f_mul_scalar(strength)?
            .f_to_kind(y.kind())?;
        Ok(match kind {
            HiddenNoise::None => y.shallow_clone(),
            HiddenNoise::Additive => y.f_add(&noise)?,
            HiddenNoise::Multiplicative => y.f_mul(&noise.f_add_scalar(1.0)?)?,
        })
    }

    fn normalise(
        &self,
        norm: Norm,
        x: &Tensor,
        statistics: Statistics<'_>,
    ) -> Result<Tensor, TorchError> {
        let (scale, shift) = (&self.weights[norm.scale], &self.weights[norm.scale + 1]);
        let Some(offset) = norm.statistics else {
            // Of one group: over all channels and positions of a sample.
            let kind = x.kind();
            let (scale, shift) = (scale.f_to_kind(kind)?, shift.f_to_kind(kind)?);
            return Ok(x.f_group_norm(1, Some(&scale), Some(&shift), NORM_EPSILON, true)?);
        };
        // With momentum 1 the "running" statistics are the batch's, written where they travel from.
        let (vector, training, momentum) = match statistics {
            Statistics::Batch(vector) => (vector, true, 1.0),
            Statistics::Running(vector) => (vector, false, BATCH_NORM_MOMENTUM),
        };
        let features = norm.features as i64;
        let mean = vector.f_narrow(0, offset as i64, features)?;
        let variance = vector.f_narrow(0, offset as i64 + features, features)?;
        Ok(x.f_batch_norm(
            Some(scale),
            Some(shift),
            Some(&mean),
            Some(&variance),
            training,
            momentum,
            NORM_EPSILON,
            true,
        )?)
    }
}

/// Images made as large or as small as this: pixels repeated, or averaged.
fn resized(images: &Tensor, side: usize) -> Result<Tensor, TorchError> {
    let (found, side) = (images.size()[3], side as i64);
    Ok(match side {
        _ if side > found => images.f_upsample_nearest2d([side, side], None::<f64>, None::<f64>)?,
        _ if side < found => reduced(images, found / side)?,
        _ => images.shallow_clone(),
    })
}

/// Images averaged over squares of `by` × `by` pixels.
///
/// # Errors
/// [`TorchError`].
pub fn reduced(images: &Tensor, by: i64) -> Result<Tensor, TorchError> {
    if by == 1 {
        return Ok(images.shallow_clone());
    }
    Ok(images.f_avg_pool2d([by, by], [by, by], [0, 0], false, true, None::<i64>)?)
}

fn lacking(what: &str) -> TorchError {
    TorchError::Shim {
        doing: "compute a forward pass",
        message: format!("the network needs {what}, and was given none"),
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

/// Which parameters a network has in half precision, if it computes in it: the convolutions' and
/// fully connected layers' weights and biases. Norms keep their own in single precision, and so does
/// D's head: rounded to 8 bits, a logit of a sure D would tell little, and of all layers it is the
/// cheapest. What D learns of labels stays in single precision too.
fn kinds(architecture: &Architecture) -> Vec<bool> {
    let mut half = vec![false; architecture.parameters.len()];
    for stage in &architecture.stages {
        for index in [Some(stage.weight), stage.bias].into_iter().flatten() {
            half[index] = stage.activation != Activation::Logit;
        }
    }
    half
}

fn convolve(
    convolution: &Convolution,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, TorchError> {
    let dcgans = (convolution.kernel, convolution.stride, convolution.padding) == (4, 2, 1);
    let learns = weight.requires_grad() || x.requires_grad();
    if weight.device() == Device::Cpu && dcgans && bias.is_none() && learns {
        let sides = [convolution.side_in, convolution.side_out];
        let (few, many) = (sides[0].min(sides[1]), sides[0].max(sides[1]));
        // Measured on a Zen 4 with AVX2: from 32 channels on, every layer of DCGAN takes 0.6 to 0.85
        // of the time this way, forward and backward, with 2 to 128 images.
        let wide = weight.size()[..2].iter().all(|&channels| channels >= 32);
        if weight.kind() == Kind::Float && wide && few * 2 == many && few.is_multiple_of(2) {
            return torch::winograd(x, weight, convolution.transposed);
        }
        // Measured on a Zen 4 at batch 32: the gradient of 512×256 weights over 4×4 positions takes
        // half as long this way, in f32 and in bf16; over 8×8 positions there is nothing to gain.
        if weight.requires_grad() && few <= 4 && many.is_multiple_of(2) {
            return torch::convolve_by_product(x, weight, convolution.transposed);
        }
    }
    let stride = [convolution.stride as i64; 2];
    let padding = [convolution.padding as i64; 2];
    let more = [convolution.output_padding as i64; 2];
    Ok(if convolution.transposed {
        x.f_conv_transpose2d(weight, bias, stride, padding, more, 1, [1, 1])?
    } else {
        x.f_conv2d(weight, bias, stride, padding, [1, 1], 1)?
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
            ..Model::default()
        }
    }

    /// Without spectral norm: nothing is read of running values.
    fn frozen<'a>(architecture: &'a Architecture, flat: &Tensor) -> Network<'a> {
        let values = Values {
            parameters: flat,
            running: flat,
        };
        Network::frozen(architecture, values, Precision::F32).unwrap()
    }

    fn fakes(count: usize) -> (Tensor, Tensor) {
        let architecture = Architecture::generator(&model());
        let flat = initial_parameters(&architecture, 3).unwrap();
        let statistics =
            Tensor::zeros([architecture.statistics as i64], (Kind::Float, Device::Cpu));
        let latents = Latents::draw(Key::new(Domain::Latents, &[0]), count, 6).unwrap();
        let images = frozen(&architecture, &flat)
            .forward(
                Input::from(&latents.to_tensor(Device::Cpu).unwrap()),
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
        let architecture = Architecture::discriminator(&model(), 1);
        let flat = initial_parameters(&architecture, 3).unwrap();
        let statistics =
            Tensor::zeros([architecture.statistics as i64], (Kind::Float, Device::Cpu));
        let logits = frozen(&architecture, &flat)
            .forward(Input::from(&images), Statistics::Batch(&statistics))
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
        let Layer::Convolution(layer) = &architecture.stages[0].layer else {
            panic!("DCGAN begins with a convolution");
        };
        let first = convolve(
            layer,
            &latents.to_tensor(Device::Cpu).unwrap(),
            &view(&flat, &architecture.parameters[0]).unwrap(),
            None,
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
        let architecture = Architecture::discriminator(&model(), 1);
        let flat = initial_parameters(&architecture, 3).unwrap();
        let statistics =
            Tensor::zeros([architecture.statistics as i64], (Kind::Float, Device::Cpu));
        let network = frozen(&architecture, &flat);
        let image = fakes(2).0.detach().set_requires_grad(true);
        let cost = network
            .forward(Input::from(&image), Statistics::Batch(&statistics))
            .unwrap()
            .sum(Kind::Float);
        let gradient = Tensor::run_backward(&[cost], &[&image], false, false);
        assert!(gradient[0].abs().max().double_value(&[]) > 0.0);
        assert!(network.leaves().iter().all(|leaf| !leaf.requires_grad()));
    }
}
