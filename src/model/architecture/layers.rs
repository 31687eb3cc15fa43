//! The lists themselves: from `[model]` to the layers of each network.

use super::{
    Activation, Appended, Architecture, Convolution, Initial, Layer, Linear, Norm, Parameter,
    Player, Spectral, Stage,
};
use crate::config::{Conditional, Family, HiddenNoise, MemoryFormat, Model, Normalisation};
use std::ops::Range;

/// Standard deviation of DCGAN's initial weights (Radford et al. 2015, section 4).
const DEVIATION: f64 = 0.02;

impl Architecture {
    /// The generator: latent to sample.
    pub fn generator(model: &Model) -> Self {
        let mut list = List::new(Player::Generator, model, [model.latent as usize, 1, 1]);
        match model.architecture {
            Family::Dcgan => list.enlarge(model),
            Family::Mlp => list.perceptron(model),
        }
        list.finish()
    }

    /// The discriminator: so many samples, one after the other in the channels, to one logit
    /// (PacGAN, Lin et al. 2018); 1 in an ordinary game.
    pub fn discriminator(model: &Model, packed: u32) -> Self {
        let [channels, high, wide] = model.sample_shape().map(|side| side as usize);
        let input = [channels * packed as usize, high, wide];
        let mut list = List::new(Player::Discriminator, model, input);
        match model.architecture {
            Family::Dcgan => list.reduce(model),
            Family::Mlp => list.maxouts(model),
        }
        list.finish()
    }

    /// Either.
    pub fn of(player: Player, model: &Model, packed: u32) -> Self {
        match player {
            Player::Generator => Self::generator(model),
            Player::Discriminator => Self::discriminator(model, packed),
        }
    }
}

/// What follows a layer, as the lists say it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follows {
    Batch,
    Layer,
    /// A bias in the layer instead.
    Bias,
    /// Neither.
    Nothing,
}

/// A network that is being listed.
struct List {
    architecture: Architecture,
    /// What the next layer's input has.
    channels: usize,
    side: usize,
    /// Whether weights are divided by their largest singular values.
    spectral: bool,
    /// The parts of z for the layers, the first first.
    latents: Vec<Range<usize>>,
}

impl List {
    fn new(player: Player, model: &Model, input: [usize; 3]) -> Self {
        let generator = player == Player::Generator;
        let hidden_noise = match generator {
            true => model.hidden_noise,
            false => HiddenNoise::None,
        };
        Self {
            architecture: Architecture {
                player,
                input,
                stages: Vec::new(),
                parameters: Vec::new(),
                statistics: 0,
                running: 0,
                coarse: match model.pyramid {
                    true => model.channels as usize,
                    false => 0,
                },
                classes: match model.is_conditional() {
                    true => model.classes as usize,
                    false => 0,
                },
                projection: None,
                noise: 0,
                hidden_noise: (hidden_noise, model.hidden_noise_strength),
            },
            channels: input[0],
            side: input[1],
            spectral: model.spectral_norm && !generator,
            latents: match generator {
                true => latents(model),
                false => Vec::new(),
            },
        }
    }

    /// Places of running values that come after all statistics are known only now.
    fn finish(self) -> Architecture {
        let mut architecture = self.architecture;
        architecture.running = architecture.statistics;
        for parameter in &mut architecture.parameters {
            if let Some(spectral) = &mut parameter.spectral {
                spectral.offset = architecture.running;
                architecture.running += spectral.rows + spectral.columns;
            }
        }
        architecture
    }

    /// DCGAN's generator: latent 1×1 → 4×4 → … → image.
    fn enlarge(&mut self, model: &Model) {
        let width = model.generator_width as usize;
        let mut sides = model.sides();
        sides.reverse();
        self.channels = 0;
        for (stage, &side) in sides.iter().enumerate() {
            let last = stage + 1 == sides.len();
            let outputs = match last {
                true => model.channels as usize,
                false => width << (sides.len() - 2 - stage),
            };
            let mut appended = self.next_latents();
            if stage == 0 && model.is_conditional() {
                appended.push(Appended::OneHot);
            }
            if stage > 0 && model.pyramid {
                appended.push(Appended::Coarse);
            }
            let inputs = self.channels + self.channels_of(&appended);
            let (kernel, stride, padding) = match stage {
                0 => (side, 1, 0),
                _ => strided(model),
            };
            let plain = (self.side - 1) * stride + kernel - 2 * padding;
            let layer = Layer::Convolution(Convolution {
                transposed: true,
                inputs,
                outputs,
                kernel,
                stride,
                padding,
                output_padding: side - plain,
                side_in: self.side,
                side_out: side,
            });
            match last {
                true if model.pyramid => {
                    self.push(layer, appended, Follows::Nothing, Activation::Band)
                }
                true => self.push(layer, appended, Follows::Nothing, Activation::Tanh),
                false => self.push(layer, appended, Follows::Batch, Activation::Relu),
            }
        }
    }

    /// DCGAN's discriminator: image → … → 4×4 → logit.
    fn reduce(&mut self, model: &Model) {
        let width = model.discriminator_width as usize;
        let (kernel, stride, padding) = strided(model);
        let sides = model.sides();
        let plane = match model.conditional {
            Conditional::Concatenation => Some(self.vectors("label", self.side * self.side)),
            _ => None,
        };
        for (stage, &side_out) in sides.iter().skip(1).enumerate() {
            let mut appended = Vec::new();
            if stage == 0 {
                appended.extend(plane.map(Appended::Plane));
                appended.extend(model.pyramid.then_some(Appended::Coarse));
            }
            let layer = Layer::Convolution(Convolution {
                transposed: false,
                inputs: self.channels + self.channels_of(&appended),
                outputs: width << stage,
                kernel,
                stride,
                padding,
                output_padding: 0,
                side_in: self.side,
                side_out,
            });
            let follows = match (stage, model.discriminator_norm) {
                (0, _) => Follows::Nothing,
                (_, Normalisation::Batch) => Follows::Batch,
                (_, Normalisation::Layer) => Follows::Layer,
                (_, Normalisation::None) => Follows::Bias,
            };
            self.push(layer, appended, follows, Activation::LeakyRelu);
        }
        self.project(model);
        let head = Layer::Convolution(Convolution {
            transposed: false,
            inputs: self.channels,
            outputs: 1,
            kernel: self.side,
            stride: 1,
            padding: 0,
            output_padding: 0,
            side_in: self.side,
            side_out: 1,
        });
        self.push(head, Vec::new(), Follows::Nothing, Activation::Logit);
    }

    /// Fully connected layers with batch norm and ReLUs, then a point.
    fn perceptron(&mut self, model: &Model) {
        self.channels = 0;
        let [dimensions, ..] = model.sample_shape();
        for stage in 0..=model.generator_layers {
            let mut appended = self.next_latents();
            if stage == 0 && model.is_conditional() {
                appended.push(Appended::OneHot);
            }
            let last = stage == model.generator_layers;
            let layer = Layer::Linear(Linear {
                inputs: self.channels + self.channels_of(&appended),
                outputs: match last {
                    true => dimensions,
                    false => model.generator_width,
                } as usize,
            });
            match last {
                true => self.push(layer, appended, Follows::Bias, Activation::Identity),
                false => self.push(layer, appended, Follows::Batch, Activation::Relu),
            }
        }
    }

    /// Maxout layers, then a logit.
    fn maxouts(&mut self, model: &Model) {
        let pieces = model.maxout_pieces as usize;
        for stage in 0..model.discriminator_layers {
            let appended = match model.conditional {
                Conditional::Concatenation if stage == 0 => vec![Appended::OneHot],
                _ => Vec::new(),
            };
            let layer = Layer::Linear(Linear {
                inputs: self.channels + self.channels_of(&appended),
                outputs: model.discriminator_width as usize * pieces,
            });
            self.push(
                layer,
                appended,
                Follows::Bias,
                Activation::Maxout { pieces },
            );
        }
        self.project(model);
        let head = Layer::Linear(Linear {
            inputs: self.channels,
            outputs: 1,
        });
        self.push(head, Vec::new(), Follows::Bias, Activation::Logit);
    }

    /// A vector a label, for the features of the last hidden layer.
    fn project(&mut self, model: &Model) {
        if model.conditional == Conditional::Projection {
            self.architecture.projection = Some(self.vectors("projection", self.channels));
        }
    }

    /// The part of z that is the next layer's.
    fn next_latents(&mut self) -> Vec<Appended> {
        let next = self.architecture.stages.len();
        let range = self.latents.get(next).cloned();
        range.map(Appended::Latent).into_iter().collect()
    }

    fn channels_of(&self, appended: &[Appended]) -> usize {
        let channels = |appended: &Appended| match appended {
            Appended::Latent(range) => range.len(),
            Appended::OneHot => self.architecture.classes,
            Appended::Plane(_) => 1,
            Appended::Coarse => self.architecture.coarse,
        };
        appended.iter().map(channels).sum()
    }

    fn push(
        &mut self,
        layer: Layer,
        appended: Vec<Appended>,
        follows: Follows,
        activation: Activation,
    ) {
        let number = self.next_layer();
        let features = layer.outputs();
        let deviation = match layer {
            Layer::Convolution(_) => DEVIATION,
            Layer::Linear(layer) => (layer.inputs as f64).sqrt().recip(),
        };
        let weight = self.weight(number, "main", layer.shape(), deviation);
        let bias = (follows == Follows::Bias).then(|| {
            let zero = Initial::Constant(0.0);
            self.parameter(format!("main.{number}.bias"), number, vec![features], zero)
        });
        let norm = match follows {
            Follows::Batch => Some(self.norm(number + 1, features, layer, true)),
            Follows::Layer => Some(self.norm(number + 1, features, layer, false)),
            Follows::Bias | Follows::Nothing => None,
        };
        let mut stage = Stage {
            layer,
            appended,
            weight,
            bias,
            norm,
            activation,
            noise: 0..0,
        };
        let architecture = &mut self.architecture;
        let hidden = activation == Activation::Relu;
        if architecture.hidden_noise.0 != HiddenNoise::None && hidden {
            stage.noise = architecture.noise..architecture.noise + stage.output_len();
            architecture.noise = stage.noise.end;
        }
        self.side = layer.side_out();
        self.channels = stage.output_len() / (self.side * self.side);
        architecture.stages.push(stage);
    }

    fn norm(&mut self, number: usize, features: usize, layer: Layer, batch: bool) -> Norm {
        let one = match layer {
            Layer::Convolution(_) => Initial::Normal {
                mean: 1.0,
                deviation: DEVIATION,
            },
            Layer::Linear(_) => Initial::Constant(1.0),
        };
        let name = |kind: &str| format!("main.{number}.{kind}");
        let scale = self.parameter(name("weight"), number, vec![features], one);
        let zero = Initial::Constant(0.0);
        self.parameter(name("bias"), number, vec![features], zero);
        let statistics = batch.then_some(self.architecture.statistics);
        if batch {
            self.architecture.statistics += 2 * features;
        }
        Norm {
            layer: number,
            features,
            scale,
            statistics,
        }
    }

    /// What D learns of labels: a vector for each.
    fn vectors(&mut self, name: &str, len: usize) -> usize {
        // A number of its own, whatever layers there are.
        let number = usize::from(u16::MAX);
        let shape = vec![self.architecture.classes, len];
        let deviation = DEVIATION;
        let normal = Initial::Normal {
            mean: 0.0,
            deviation,
        };
        if self.spectral {
            return self.divided(format!("{name}.weight_orig"), number, shape, normal);
        }
        self.parameter(format!("{name}.weight"), number, shape, normal)
    }

    fn weight(&mut self, number: usize, of: &str, shape: Vec<usize>, deviation: f64) -> usize {
        let normal = Initial::Normal {
            mean: 0.0,
            deviation,
        };
        if self.spectral {
            return self.divided(format!("{of}.{number}.weight_orig"), number, shape, normal);
        }
        self.parameter(format!("{of}.{number}.weight"), number, shape, normal)
    }

    /// A weight that is divided by its largest singular value.
    fn divided(
        &mut self,
        name: String,
        layer: usize,
        shape: Vec<usize>,
        initial: Initial,
    ) -> usize {
        let (rows, columns) = (shape[0], shape[1..].iter().product());
        let index = self.parameter(name, layer, shape, initial);
        self.architecture.parameters[index].spectral = Some(Spectral {
            offset: 0,
            rows,
            columns,
        });
        index
    }

    fn parameter(
        &mut self,
        name: String,
        layer: usize,
        shape: Vec<usize>,
        initial: Initial,
    ) -> usize {
        let offset = self.architecture.len();
        let parameters = &mut self.architecture.parameters;
        parameters.push(Parameter {
            name,
            layer,
            shape,
            offset,
            initial,
            order: MemoryFormat::default(),
            spectral: None,
        });
        parameters.len() - 1
    }

    /// Each stage so far is a layer, perhaps a norm, and an activation.
    fn next_layer(&self) -> usize {
        let stages = self.architecture.stages.iter();
        stages
            .map(|stage| 2 + usize::from(stage.norm.is_some()))
            .sum()
    }
}

/// Kernel, stride and padding of the layers that halve or double the side.
fn strided(model: &Model) -> (usize, usize, usize) {
    let kernel = model.kernel as usize;
    (kernel, 2, (kernel - 1) / 2)
}

/// The parts of z, as equal as can be: the first ones have one number more.
fn latents(model: &Model) -> Vec<Range<usize>> {
    let latent = model.latent as usize;
    let parts = model.latent_parts() as usize;
    let (share, more) = (latent / parts, latent % parts);
    let start = |part: usize| part * share + part.min(more);
    (0..parts)
        .map(|part| start(part)..start(part + 1))
        .collect()
}
