//! PURE. The layer lists of DCGAN's generator and discriminator.
//!
//! Layers are numbered as in the `nn.Sequential` called `main` of PyTorch's DCGAN example, whose
//! ReLUs count too, so that a state dict of ours loads into it by name:
//!
//! ```text
//! 64×64   G: 0 ConvT  1 BN  2 ReLU  3 ConvT  4 BN  5 ReLU … 12 ConvT  13 Tanh
//!         D: 0 Conv  1 LeakyReLU  2 Conv  3 BN  4 LeakyReLU … 11 Conv  (12 Sigmoid)
//! ```
//!
//! D ends in logits here; the example's sigmoid has no parameters. Sizes other than 64 add or drop
//! doubling stages: 32 has one less, 128 one more, 256 two more.

use crate::config::{MemoryFormat, Model, Update};
use std::fmt;
use std::ops::Range;

/// Side of every kernel.
pub const KERNEL: usize = 4;

/// Weight of a batch's statistics in the running ones, PyTorch's default.
pub const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// Added to the variance in batch norm, PyTorch's default.
pub const BATCH_NORM_EPSILON: f64 = 1e-5;

/// Slope of the discriminator's leaky ReLUs for negative inputs.
pub const LEAK: f64 = 0.2;

/// One of the two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Player {
    /// G: latent to image.
    Generator,
    /// D: image to logit.
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

/// What follows a convolution and its batch norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// max(x, [`LEAK`]·x).
    LeakyRelu,
    /// Into -1 … 1, the range of the images.
    Tanh,
    /// None: a logit.
    Logit,
}

/// A 4×4 convolution without bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Whether it enlarges.
    pub transposed: bool,
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// Step, pixels.
    pub stride: usize,
    /// Border, pixels.
    pub padding: usize,
    /// Side of its input, pixels.
    pub side_in: usize,
    /// Side of its output, pixels.
    pub side_out: usize,
}

impl Convolution {
    /// Of its weight: `[out, in, 4, 4]`, or `[in, out, 4, 4]` if transposed.
    fn shape(&self) -> Vec<usize> {
        let (first, second) = if self.transposed {
            (self.inputs, self.outputs)
        } else {
            (self.outputs, self.inputs)
        };
        vec![first, second, KERNEL, KERNEL]
    }

    /// Floating-point operations of one image's forward pass; a multiplication and an addition are
    /// two.
    fn flops(&self) -> u64 {
        let side = if self.transposed {
            self.side_in
        } else {
            self.side_out
        };
        2 * (self.inputs * self.outputs * KERNEL * KERNEL * side * side) as u64
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// N(mean, 0.02²).
    Normal {
        /// 0 for weights, 1 for batch norm's scale.
        mean: f64,
    },
    /// All 0.
    Zero,
}

/// A tensor of parameters and its place in the flat vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// `main.N.weight` or `main.N.bias`.
    pub name: String,
    /// N: the layer's number in the example.
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

/// A batch norm: where its parameters and its statistics are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Norm {
    /// Its number in the example.
    pub layer: usize,
    /// Channels.
    pub features: usize,
    /// Index of its scale among the parameters; its shift is the next one.
    pub scale: usize,
    /// Where its means start in a vector of statistics; its variances follow them.
    pub offset: usize,
}

/// A convolution and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The convolution.
    pub convolution: Convolution,
    /// Index of its weight among the parameters.
    pub weight: usize,
    /// The batch norm, if there is one.
    pub norm: Option<Norm>,
    /// The activation.
    pub activation: Activation,
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
    /// A part of the running statistics.
    Statistics(Range<usize>),
    /// The count of batches that the running statistics have seen.
    BatchesTracked,
}

/// One network.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Which one.
    pub player: Player,
    /// In the order of the forward pass.
    pub stages: Vec<Stage>,
    /// In the order of the flat vector, which is PyTorch's.
    pub parameters: Vec<Parameter>,
    /// Length of a vector of statistics: every batch norm's means, then its variances.
    pub statistics: usize,
}

impl Architecture {
    /// DCGAN's generator: latent 1×1 → 4×4 → … → image.
    pub fn generator(model: &Model) -> Self {
        let stages = doublings(model);
        let width = model.generator_width as usize;
        let mut architecture = Self::empty(Player::Generator);
        let mut inputs = model.latent as usize;
        for stage in 0..=stages {
            let last = stage == stages;
            let outputs = if last {
                model.channels as usize
            } else {
                width << (stages - 1 - stage)
            };
            let (stride, padding, side_in) = match stage {
                0 => (1, 0, 1),
                _ => (2, 1, 2 << stage),
            };
            let convolution = Convolution {
                transposed: true,
                inputs,
                outputs,
                stride,
                padding,
                side_in,
                side_out: 4 << stage,
            };
            let activation = if last {
                Activation::Tanh
            } else {
                Activation::Relu
            };
            architecture.push(convolution, !last, activation);
            inputs = outputs;
        }
        architecture
    }

    /// DCGAN's discriminator: image → … → 4×4 → logit.
    pub fn discriminator(model: &Model) -> Self {
        let stages = doublings(model);
        let width = model.discriminator_width as usize;
        let mut architecture = Self::empty(Player::Discriminator);
        let mut inputs = model.channels as usize;
        let mut side = model.image_size as usize;
        for stage in 0..stages {
            let convolution = Convolution {
                transposed: false,
                inputs,
                outputs: width << stage,
                stride: 2,
                padding: 1,
                side_in: side,
                side_out: side / 2,
            };
            architecture.push(convolution, stage > 0, Activation::LeakyRelu);
            inputs = convolution.outputs;
            side /= 2;
        }
        let head = Convolution {
            transposed: false,
            inputs,
            outputs: 1,
            stride: 1,
            padding: 0,
            side_in: side,
            side_out: 1,
        };
        architecture.push(head, false, Activation::Logit);
        architecture
    }

    /// Either.
    pub fn of(player: Player, model: &Model) -> Self {
        match player {
            Player::Generator => Self::generator(model),
            Player::Discriminator => Self::discriminator(model),
        }
    }

    /// The same network, its convolutions' weights in this order.
    pub fn ordered(mut self, order: MemoryFormat) -> Self {
        for parameter in &mut self.parameters {
            parameter.order = order;
        }
        self
    }

    fn empty(player: Player) -> Self {
        Self {
            player,
            stages: Vec::new(),
            parameters: Vec::new(),
            statistics: 0,
        }
    }

    fn push(&mut self, convolution: Convolution, norm: bool, activation: Activation) {
        let layer = self.next_layer();
        let features = convolution.outputs;
        let weight = self.parameter(
            layer,
            "weight",
            convolution.shape(),
            Initial::Normal { mean: 0.0 },
        );
        let norm = norm.then(|| {
            let layer = layer + 1;
            let scale = self.parameter(
                layer,
                "weight",
                vec![features],
                Initial::Normal { mean: 1.0 },
            );
            self.parameter(layer, "bias", vec![features], Initial::Zero);
            let offset = self.statistics;
            self.statistics += 2 * features;
            Norm {
                layer,
                features,
                scale,
                offset,
            }
        });
        self.stages.push(Stage {
            convolution,
            weight,
            norm,
            activation,
        });
    }

    /// Each stage so far is a convolution, perhaps a batch norm, and an activation.
    fn next_layer(&self) -> usize {
        self.stages
            .iter()
            .map(|stage| 2 + usize::from(stage.norm.is_some()))
            .sum()
    }

    fn parameter(
        &mut self,
        layer: usize,
        kind: &str,
        shape: Vec<usize>,
        initial: Initial,
    ) -> usize {
        self.parameters.push(Parameter {
            name: format!("main.{layer}.{kind}"),
            layer,
            shape,
            offset: self.len(),
            initial,
            order: MemoryFormat::default(),
        });
        self.parameters.len() - 1
    }

    /// How many parameters there are: the length of the flat vector.
    pub fn len(&self) -> usize {
        self.parameters.last().map_or(0, |last| last.range().end)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The batch norms, in the order of the forward pass.
    pub fn norms(&self) -> impl Iterator<Item = Norm> + '_ {
        self.stages.iter().filter_map(|stage| stage.norm)
    }

    /// The state dict: names, shapes and sources, in PyTorch's order.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let parameter = |index: usize| Entry {
            name: self.parameters[index].name.clone(),
            shape: self.parameters[index].shape.clone(),
            source: Source::Parameter(index),
        };
        for stage in &self.stages {
            entries.push(parameter(stage.weight));
            let Some(norm) = stage.norm else { continue };
            entries.push(parameter(norm.scale));
            entries.push(parameter(norm.scale + 1));
            let means = norm.offset..norm.offset + norm.features;
            let variances = means.end..means.end + norm.features;
            for (name, range) in [("running_mean", means), ("running_var", variances)] {
                entries.push(Entry {
                    name: format!("main.{}.{name}", norm.layer),
                    shape: vec![norm.features],
                    source: Source::Statistics(range),
                });
            }
            entries.push(Entry {
                name: format!("main.{}.num_batches_tracked", norm.layer),
                shape: Vec::new(),
                source: Source::BatchesTracked,
            });
        }
        entries
    }

    /// Floating-point operations of one image's forward pass, in the convolutions.
    pub fn forward_flops(&self) -> u64 {
        self.stages
            .iter()
            .map(|stage| stage.convolution.flops())
            .sum()
    }

    /// Operations of the backward pass to the parameters; each convolution's gradient costs as much
    /// as its forward pass, once for its weight and once for its input, and nobody asks for the
    /// first layer's input.
    fn backward_to_parameters(&self) -> u64 {
        let first = self
            .stages
            .first()
            .map_or(0, |stage| stage.convolution.flops());
        2 * self.forward_flops() - first
    }
}

/// Parameters of both networks.
pub fn parameters(model: &Model) -> usize {
    Architecture::generator(model).len() + Architecture::discriminator(model).len()
}

/// Bytes of a job's whole state: parameters, Adam's two moments and running statistics, and the
/// generator's average if one is kept.
pub fn state_bytes(model: &Model, average: bool) -> u64 {
    let f32s = |player| {
        let architecture = Architecture::of(player, model);
        let once = architecture.len() + architecture.statistics;
        let average = average && player == Player::Generator;
        once + 2 * architecture.len() + if average { once } else { 0 }
    };
    4 * (f32s(Player::Generator) + f32s(Player::Discriminator)) as u64
}

/// Floating-point operations a training step spends on one image, in the convolutions; they are all
/// but a few percent of it.
pub fn step_flops(model: &Model, update: Update) -> u64 {
    let g = Architecture::generator(model);
    let d = Architecture::discriminator(model);
    let generation = g.forward_flops() + g.backward_to_parameters();
    let judging = 2 * d.forward_flops() + 2 * d.backward_to_parameters();
    // D is frozen while G's gradient passes through it: inputs only, the image among them.
    let passing = d.forward_flops();
    match update {
        // The fakes are judged again by the new D.
        Update::Alternating => generation + judging + d.forward_flops() + passing,
        Update::Simultaneous => generation + judging + passing,
    }
}

/// How often the side doubles between 4 and the image.
fn doublings(model: &Model) -> usize {
    (model.image_size / 4).ilog2() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(image_size: u32) -> Model {
        Model {
            image_size,
            ..Model::default()
        }
    }

    fn names(architecture: &Architecture) -> Vec<String> {
        architecture
            .entries()
            .into_iter()
            .map(|entry| format!("{} {:?}", entry.name, entry.shape))
            .collect()
    }

    #[test]
    fn the_counts_are_those_of_pytorchs_example() {
        // sum(p.numel() for p in net.parameters()), nz = 100, ngf = ndf = 64, nc = 3.
        assert_eq!(Architecture::generator(&model(64)).len(), 3_576_704);
        assert_eq!(Architecture::discriminator(&model(64)).len(), 2_765_568);
        assert_eq!(parameters(&model(64)), 3_576_704 + 2_765_568);
    }

    #[test]
    fn the_names_are_those_of_pytorchs_example() {
        let small = Model {
            image_size: 32,
            channels: 1,
            latent: 5,
            generator_width: 2,
            discriminator_width: 3,
        };
        assert_eq!(
            names(&Architecture::generator(&small)),
            [
                "main.0.weight [5, 8, 4, 4]",
                "main.1.weight [8]",
                "main.1.bias [8]",
                "main.1.running_mean [8]",
                "main.1.running_var [8]",
                "main.1.num_batches_tracked []",
                "main.3.weight [8, 4, 4, 4]",
                "main.4.weight [4]",
                "main.4.bias [4]",
                "main.4.running_mean [4]",
                "main.4.running_var [4]",
                "main.4.num_batches_tracked []",
                "main.6.weight [4, 2, 4, 4]",
                "main.7.weight [2]",
                "main.7.bias [2]",
                "main.7.running_mean [2]",
                "main.7.running_var [2]",
                "main.7.num_batches_tracked []",
                "main.9.weight [2, 1, 4, 4]",
            ]
        );
        assert_eq!(
            names(&Architecture::discriminator(&small)),
            [
                "main.0.weight [3, 1, 4, 4]",
                "main.2.weight [6, 3, 4, 4]",
                "main.3.weight [6]",
                "main.3.bias [6]",
                "main.3.running_mean [6]",
                "main.3.running_var [6]",
                "main.3.num_batches_tracked []",
                "main.5.weight [12, 6, 4, 4]",
                "main.6.weight [12]",
                "main.6.bias [12]",
                "main.6.running_mean [12]",
                "main.6.running_var [12]",
                "main.6.num_batches_tracked []",
                "main.8.weight [1, 12, 4, 4]",
            ]
        );
        let layers = |size| {
            let last = |a: Architecture| a.parameters.last().map(|p| p.layer);
            (
                last(Architecture::generator(&model(size))),
                last(Architecture::discriminator(&model(size))),
            )
        };
        assert_eq!(layers(64), (Some(12), Some(11)));
        assert_eq!(layers(128), (Some(15), Some(14)));
        assert_eq!(layers(256), (Some(18), Some(17)));
    }

    #[test]
    fn stages_fit_each_other_and_the_image() {
        for size in [32, 64, 128, 256] {
            let g = Architecture::generator(&model(size));
            let d = Architecture::discriminator(&model(size));
            for architecture in [&g, &d] {
                for pair in architecture.stages.windows(2) {
                    assert_eq!(pair[0].convolution.outputs, pair[1].convolution.inputs);
                    assert_eq!(pair[0].convolution.side_out, pair[1].convolution.side_in);
                }
                let mut end = 0;
                for parameter in &architecture.parameters {
                    assert_eq!(parameter.offset, end);
                    end = parameter.range().end;
                }
                assert_eq!(architecture.len(), end);
            }
            let side = size as usize;
            assert_eq!(g.stages.last().unwrap().convolution.side_out, side);
            assert_eq!(d.stages[0].convolution.side_in, side);
            assert_eq!(d.stages.last().unwrap().convolution.side_out, 1);
        }
    }

    /// Figures of the design: about 2.3 GFLOP an image with D frozen in G's phase, 2.1 simultaneous.
    #[test]
    fn the_cost_is_what_was_measured() {
        let gflop = |update| step_flops(&model(64), update) as f64 / 1e9;
        let (alternating, simultaneous) = (gflop(Update::Alternating), gflop(Update::Simultaneous));
        assert!((2.2..2.4).contains(&alternating), "{alternating}");
        assert!((2.0..2.2).contains(&simultaneous), "{simultaneous}");
    }
}
