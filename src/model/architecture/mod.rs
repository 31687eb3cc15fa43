//! PURE. The layer lists of the generator and the discriminator.
//!
//! Layers are numbered as in the `nn.Sequential` called `main` of PyTorch's DCGAN example, whose
//! ReLUs count too, so that a state dict of ours loads into it by name:
//!
//! ```text
//! 64×64   G: 0 ConvT  1 BN  2 ReLU  3 ConvT  4 BN  5 ReLU … 12 ConvT  13 Tanh
//!         D: 0 Conv  1 LeakyReLU  2 Conv  3 BN  4 LeakyReLU … 11 Conv  (12 Sigmoid)
//! points  G: 0 Linear  1 BN  2 ReLU … 12 Linear
//!         D: 0 Linear  1 Maxout  2 Linear  3 Maxout … 6 Linear
//! ```
//!
//! D ends in logits here; the example's sigmoid has no parameters. Other sizes have other numbers of
//! strided stages ([`Model::sides`]). `layers` lists them for a job's `[model]`; here is what a list
//! consists of.

mod layers;
#[cfg(test)]
mod tests;

use crate::config::{HiddenNoise, MemoryFormat, Model};
use std::fmt;
use std::ops::Range;

/// Weight of a batch's statistics in the running ones, PyTorch's default.
pub const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// Added to the variance in batch norm and layer norm, PyTorch's default.
pub const NORM_EPSILON: f64 = 1e-5;

/// Slope of the discriminator's leaky ReLUs for negative inputs.
pub const LEAK: f64 = 0.2;

/// One of the two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Player {
    /// G: latent to sample.
    Generator,
    /// D: sample to logit.
    Discriminator,
}

impl Player {
    /// Its number in the keys of its weights.
    pub fn number(self) -> u64 {
        match self {
            Player::Generator => 0,
            Player::Discriminator => 1,
        }
    }
}

impl fmt::Display for Player {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Player::Generator => "generator",
            Player::Discriminator => "discriminator",
        })
    }
}

/// What follows a layer and its norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// max(x, [`LEAK`]·x).
    LeakyRelu,
    /// The largest of so many pieces of each unit (Goodfellow et al. 2013): a layer of n outputs has
    /// n / pieces units, whose pieces lie side by side.
    Maxout {
        /// How many.
        pieces: usize,
    },
    /// Into -1 … 1, the range of the images.
    Tanh,
    /// None: a point.
    Identity,
    /// None: a band, which is added to the coarser image.
    Band,
    /// None: a logit.
    Logit,
}

/// A convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Whether it enlarges.
    pub transposed: bool,
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// Side of the kernel, pixels.
    pub kernel: usize,
    /// Step, pixels.
    pub stride: usize,
    /// Border, pixels.
    pub padding: usize,
    /// Pixels added to the lower and the right side of an enlarged output, which otherwise would be
    /// too small: 0 or 1.
    pub output_padding: usize,
    /// Side of its input, pixels.
    pub side_in: usize,
    /// Side of its output, pixels.
    pub side_out: usize,
}

/// A fully connected layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Numbers in.
    pub inputs: usize,
    /// Numbers out.
    pub outputs: usize,
}

/// What has the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A convolution.
    Convolution(Convolution),
    /// A fully connected layer.
    Linear(Linear),
}

impl Layer {
    /// Of its weight: `[out, in, k, k]`, or `[in, out, k, k]` if transposed; `[out, in]` if fully
    /// connected.
    fn shape(&self) -> Vec<usize> {
        match self {
            Layer::Convolution(layer) => {
                let (first, second) = if layer.transposed {
                    (layer.inputs, layer.outputs)
                } else {
                    (layer.outputs, layer.inputs)
                };
                vec![first, second, layer.kernel, layer.kernel]
            }
            Layer::Linear(layer) => vec![layer.outputs, layer.inputs],
        }
    }

    /// Channels or numbers in.
    pub fn inputs(&self) -> usize {
        match self {
            Layer::Convolution(layer) => layer.inputs,
            Layer::Linear(layer) => layer.inputs,
        }
    }

    /// Channels or numbers out.
    pub fn outputs(&self) -> usize {
        match self {
            Layer::Convolution(layer) => layer.outputs,
            Layer::Linear(layer) => layer.outputs,
        }
    }

    /// Side of its input, pixels.
    pub fn side_in(&self) -> usize {
        match self {
            Layer::Convolution(layer) => layer.side_in,
            Layer::Linear(_) => 1,
        }
    }

    /// Side of its output, pixels.
    pub fn side_out(&self) -> usize {
        match self {
            Layer::Convolution(layer) => layer.side_out,
            Layer::Linear(_) => 1,
        }
    }

    /// Floating-point operations of one sample's forward pass; a multiplication and an addition are
    /// two.
    pub fn flops(&self) -> u64 {
        let products = match self {
            Layer::Convolution(layer) => {
                let side = if layer.transposed {
                    layer.side_in
                } else {
                    layer.side_out
                };
                layer.inputs * layer.outputs * layer.kernel * layer.kernel * side * side
            }
            Layer::Linear(layer) => layer.inputs * layer.outputs,
        };
        2 * products as u64
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// N(mean, deviation²).
    Normal {
        /// 0 for weights, 1 for batch norm's scale.
        mean: f64,
        /// 0.02 in DCGAN (Radford et al. 2015, section 4); in fully connected layers, which have
        /// fewer inputs, one by the square root of their number.
        deviation: f64,
    },
    /// All the same.
    Constant(f64),
}

/// A tensor of parameters and its place in the flat vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// `main.N.weight`, `main.N.weight_orig` under spectral norm, or `main.N.bias`; what D learns of
    /// labels is `label.weight` or `projection.weight`.
    pub name: String,
    /// N: the layer's number in the example; what D learns of labels follows the last.
    pub layer: usize,
    /// As in PyTorch.
    pub shape: Vec<usize>,
    /// Where it starts.
    pub offset: usize,
    /// How it starts.
    pub initial: Initial,
    /// The order of a convolution's weight in the flat vector. It is that of the activations, so
    /// that no pass has to reorder it.
    pub order: MemoryFormat,
    /// Its vectors, if it is divided by its largest singular value.
    pub spectral: Option<Spectral>,
}

impl Parameter {
    /// How many numbers it has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its place in the flat vector.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// The power iteration's vectors of a weight, taken as a matrix of as many rows as it has outputs:
/// `weight_u` and `weight_v` of `torch.nn.utils.spectral_norm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spectral {
    /// Where u starts among the running values; v follows it.
    pub offset: usize,
    /// Length of u.
    pub rows: usize,
    /// Length of v.
    pub columns: usize,
}

impl Spectral {
    /// u's place among the running values.
    pub fn u(&self) -> Range<usize> {
        self.offset..self.offset + self.rows
    }

    /// v's place among the running values.
    pub fn v(&self) -> Range<usize> {
        self.u().end..self.u().end + self.columns
    }
}

/// A norm: where its parameters and its statistics are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Norm {
    /// Its number in the example.
    pub layer: usize,
    /// Channels.
    pub features: usize,
    /// Index of its scale among the parameters; its shift is the next one.
    pub scale: usize,
    /// Of a batch norm, where its means start in a vector of statistics; its variances follow them.
    /// None: a layer norm, which takes its statistics from each sample.
    pub statistics: Option<usize>,
}

/// What is appended to a layer's input, as channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// A part of z, the same everywhere.
    Latent(Range<usize>),
    /// The label as a one-hot vector, the same everywhere.
    OneHot,
    /// The label's plane: a row of the parameter with this index.
    Plane(usize),
    /// The coarser image, made as large or as small as the layer's input.
    Coarse,
}

/// A layer and what follows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// The layer. What is appended to its input counts among its inputs.
    pub layer: Layer,
    /// What is appended to its input, in this order.
    pub appended: Vec<Appended>,
    /// Index of its weight among the parameters.
    pub weight: usize,
    /// Index of its bias, if it has one.
    pub bias: Option<usize>,
    /// The norm, if there is one.
    pub norm: Option<Norm>,
    /// The activation.
    pub activation: Activation,
    /// Which of a sample's numbers of hidden noise are for its output; none if it is empty.
    pub noise: Range<usize>,
}

impl Stage {
    /// Numbers of a sample's output.
    pub fn output_len(&self) -> usize {
        let units = match self.activation {
            Activation::Maxout { pieces } => self.layer.outputs() / pieces,
            _ => self.layer.outputs(),
        };
        units * self.layer.side_out() * self.layer.side_out()
    }
}

/// One tensor of a state dict.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// As in the example.
    pub name: String,
    /// As in PyTorch; a scalar has none.
    pub shape: Vec<usize>,
    /// Where its values are.
    pub source: Source,
}

/// Where the values of an [`Entry`] are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The parameter with this index.
    Parameter(usize),
    /// A part of the running values.
    Running(Range<usize>),
    /// The count of batches that the running statistics have seen.
    BatchesTracked,
}

/// One network.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Which one.
    pub player: Player,
    /// Of its input, but for the batch: `[z, 1, 1]`, or a sample's; D's has the channels of all
    /// samples that it judges together.
    pub input: [usize; 3],
    /// In the order of the forward pass.
    pub stages: Vec<Stage>,
    /// In the order of the flat vector, which is PyTorch's.
    pub parameters: Vec<Parameter>,
    /// Length of a vector of statistics: every batch norm's means, then its variances.
    pub statistics: usize,
    /// Length of the vector of running values: running statistics, then every spectral norm's
    /// vectors.
    pub running: usize,
    /// Channels of the coarser image that it goes on from, or 0.
    pub coarse: usize,
    /// How many labels there are, if it is told of them, else 0.
    pub classes: usize,
    /// Index of the vectors, one a label, that D's last features are multiplied by.
    pub projection: Option<usize>,
    /// How many numbers of hidden noise a sample takes.
    pub noise: usize,
    /// What they do, and their standard deviation.
    pub hidden_noise: (HiddenNoise, f64),
}

impl Architecture {
    /// The same network, its convolutions' weights in this order.
    pub fn ordered(mut self, order: MemoryFormat) -> Self {
        for parameter in &mut self.parameters {
            parameter.order = order;
        }
        self
    }

    /// How many parameters there are: the length of the flat vector.
    pub fn len(&self) -> usize {
        self.parameters.last().map_or(0, |last| last.range().end)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The norms, in the order of the forward pass.
    pub fn norms(&self) -> impl Iterator<Item = Norm> + '_ {
        self.stages.iter().filter_map(|stage| stage.norm)
    }

    /// The state dict: names, shapes and sources, in PyTorch's order.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for stage in &self.stages {
            self.weight_entries(stage.weight, &mut entries);
            entries.extend(stage.bias.map(|bias| self.entry(bias)));
            let Some(norm) = stage.norm else { continue };
            entries.push(self.entry(norm.scale));
            entries.push(self.entry(norm.scale + 1));
            let Some(offset) = norm.statistics else {
                continue;
            };
            let means = offset..offset + norm.features;
            let variances = means.end..means.end + norm.features;
            for (name, range) in [("running_mean", means), ("running_var", variances)] {
                entries.push(Entry {
                    name: format!("main.{}.{name}", norm.layer),
                    shape: vec![norm.features],
                    source: Source::Running(range),
                });
            }
            entries.push(Entry {
                name: format!("main.{}.num_batches_tracked", norm.layer),
                shape: Vec::new(),
                source: Source::BatchesTracked,
            });
        }
        let planes = self
            .stages
            .iter()
            .flat_map(|stage| &stage.appended)
            .filter_map(|appended| match appended {
                Appended::Plane(index) => Some(*index),
                _ => None,
            });
        for weight in planes.chain(self.projection) {
            self.weight_entries(weight, &mut entries);
        }
        entries
    }

    fn entry(&self, index: usize) -> Entry {
        Entry {
            name: self.parameters[index].name.clone(),
            shape: self.parameters[index].shape.clone(),
            source: Source::Parameter(index),
        }
    }

    /// A weight, and its spectral norm's vectors.
    fn weight_entries(&self, index: usize, entries: &mut Vec<Entry>) {
        let entry = self.entry(index);
        if let Some(spectral) = self.parameters[index].spectral {
            let name = entry.name.trim_end_matches("_orig");
            let vectors = [("u", spectral.u()), ("v", spectral.v())];
            let vectors = vectors.map(|(vector, range)| Entry {
                name: format!("{name}_{vector}"),
                shape: vec![range.len()],
                source: Source::Running(range),
            });
            entries.push(entry);
            entries.extend(vectors);
        } else {
            entries.push(entry);
        }
    }

    /// Floating-point operations of one sample's forward pass, in convolutions and fully connected
    /// layers; of a network that judges several samples together, of all of them.
    pub fn forward_flops(&self) -> u64 {
        self.stages.iter().map(|stage| stage.layer.flops()).sum()
    }
}

/// Parameters of both networks, for a D that judges so many samples together.
pub fn parameters(model: &Model, packed: u32) -> usize {
    Architecture::generator(model).len() + Architecture::discriminator(model, packed).len()
}

/// Bytes of a job's whole state: parameters, Adam's two moments and running values, and the
/// generator's average if one is kept.
pub fn state_bytes(model: &Model, packed: u32, average: bool) -> u64 {
    let f32s = |player| {
        let architecture = Architecture::of(player, model, packed);
        let once = architecture.len() + architecture.running;
        let average = average && player == Player::Generator;
        once + 2 * architecture.len() + if average { once } else { 0 }
    };
    4 * (f32s(Player::Generator) + f32s(Player::Discriminator)) as u64
}
