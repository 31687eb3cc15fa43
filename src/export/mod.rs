//! A generator in forms that other programs read: safetensors, TorchScript, ONNX.
//!
//! `program` says what a generator computes, as a chain of operations over its state dict;
//! `onnx` and `script` write that down, each in its own language. Images come out in -1 … 1, and
//! batch norm uses the running statistics: an image depends on its own latent, and on what else its
//! generator is given of it, alone. The same generator
//! gives the same bytes. This room knows nothing of command lines or of where a state dict comes
//! from.

mod onnx;
mod program;
#[cfg(feature = "torch")]
mod script;

pub use onnx::to_onnx;
pub use program::{Given, Operation, Part, Program};
#[cfg(feature = "torch")]
pub use script::to_torchscript;

use crate::checkpoint::CheckpointError;
#[cfg(feature = "torch")]
use crate::torch::TorchError;

/// Why a generator can't be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The state dict lacks a tensor, or has it in another shape.
    #[error("the state dict has {found}, expected {name} of shape {shape:?}")]
    Tensor {
        /// Its name.
        name: String,
        /// Its shape in the model.
        shape: Vec<usize>,
        /// What is there instead.
        found: String,
    },
    /// The format has no words for what the generator does.
    #[error("the generator can't be exported: {why}")]
    Refused {
        /// Why not.
        why: String,
    },
    /// It is too large for the format.
    #[error("the generator's weights have {bytes} bytes; a file of ONNX holds less than 2 GiB")]
    TooLarge {
        /// Of its weights.
        bytes: usize,
    },
    /// The file can't be encoded.
    #[error(transparent)]
    Encode(#[from] CheckpointError),
    /// libtorch refused.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Torch(#[from] TorchError),
}

#[cfg(test)]
#[cfg(feature = "torch")]
mod tests {
    use super::*;
    use crate::checkpoint::{Kind, TensorData};
    use crate::config::{Conditional, Family, HiddenNoise, LatentInput, Model, Precision};
    use crate::model::architecture::Source;
    use crate::model::{Architecture, Input, Network, Statistics, Values, view};
    use tch::Tensor;

    /// A small generator, with weights that make pictures of all greys.
    pub(super) struct Example {
        pub(super) name: &'static str,
        architecture: Architecture,
        parameters: Tensor,
        running: Tensor,
        pub(super) tensors: Vec<TensorData>,
        pub(super) latents: Tensor,
    }

    const COUNT: i64 = 5;

    /// Numbers between -1 and 1 without an order.
    fn numbers(count: usize) -> Tensor {
        let wave = |i: usize| (i as f64 * 12.9898).sin() * 43758.5453;
        let numbers: Vec<f32> = (0..count).map(|i| (wave(i).fract()) as f32).collect();
        Tensor::from_slice(&numbers)
    }

    fn small() -> Model {
        Model {
            image_size: 32,
            channels: 3,
            latent: 6,
            generator_width: 4,
            ..Model::default()
        }
    }

    fn points() -> Model {
        Model {
            architecture: Family::Mlp,
            generator_layers: 2,
            generator_width: 8,
            ..small()
        }
    }

    fn told(model: Model) -> Model {
        Model {
            conditional: Conditional::Concatenation,
            classes: 4,
            ..model
        }
    }

    impl Example {
        pub(super) fn plain() -> Self {
            Self::new("plain", &small())
        }

        /// Generators that are given all there is, in all ways.
        pub(super) fn all() -> Vec<Self> {
            let split = |model| Model {
                latent_input: LatentInput::Split,
                ..model
            };
            let noisy = |kind, model| Model {
                hidden_noise: kind,
                hidden_noise_strength: 0.3,
                ..model
            };
            let odd = Model {
                image_size: 28,
                ..small()
            };
            let level = Model {
                pyramid: true,
                ..small()
            };
            let models = [
                ("plain", small()),
                ("28 pixels, labels, split latents", split(told(odd))),
                ("additive noise", noisy(HiddenNoise::Additive, small())),
                (
                    "multiplicative noise, labels",
                    noisy(HiddenNoise::Multiplicative, told(small())),
                ),
                ("a level of a pyramid", level.clone()),
                (
                    "a level of a pyramid, labels, split latents, noise",
                    noisy(HiddenNoise::Additive, split(told(level))),
                ),
                ("points", points()),
                (
                    "points, labels, split latents, noise",
                    noisy(HiddenNoise::Multiplicative, split(told(points()))),
                ),
            ];
            let made = models.iter().map(|(name, model)| Self::new(name, model));
            made.collect()
        }

        fn new(name: &'static str, model: &Model) -> Self {
            let architecture = Architecture::generator(model);
            let parameters = numbers(architecture.len()) * 0.5;
            // Variances must not be negative.
            let running = numbers(architecture.running).abs() * 0.3 + 0.05;
            let values = |tensor: &Tensor| {
                let flat = tensor.contiguous().view(-1);
                let values = Vec::<f32>::try_from(flat).unwrap();
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect()
            };
            let mut tensors = Vec::new();
            for entry in architecture.entries() {
                let (kind, bytes) = match entry.source {
                    Source::Parameter(index) => {
                        let parameter = &architecture.parameters[index];
                        (Kind::F32, values(&view(&parameters, parameter).unwrap()))
                    }
                    Source::Running(range) => {
                        let part = running.narrow(0, range.start as i64, range.len() as i64);
                        (Kind::F32, values(&part))
                    }
                    Source::BatchesTracked => (Kind::I64, 9i64.to_le_bytes().to_vec()),
                };
                tensors.push(TensorData {
                    name: entry.name,
                    kind,
                    shape: entry.shape,
                    bytes,
                });
            }
            Self {
                name,
                architecture,
                parameters,
                running,
                tensors,
                latents: (numbers(30) * 2.0).view([COUNT, 6, 1, 1]),
            }
        }

        pub(super) fn program(&self) -> Program<'_> {
            Program::new(&self.architecture, &self.tensors).unwrap()
        }

        /// What it is given, by its names.
        pub(super) fn given(&self) -> Vec<(&'static str, Tensor)> {
            let program = self.program();
            let given = program.given.iter().map(|given| {
                let value = match *given {
                    Given::Latents(_) => self.latents.copy(),
                    Given::Labels(classes) => {
                        let labels: Vec<i64> =
                            (0..COUNT).map(|n| (n + 1) % classes as i64).collect();
                        Tensor::from_slice(&labels)
                    }
                    Given::Noise(noise) => {
                        numbers(COUNT as usize * noise).view([COUNT, noise as i64]) * 1.7
                    }
                    Given::Coarse([channels, high, wide]) => {
                        let numbers = numbers(COUNT as usize * channels * high * wide);
                        let sides = [channels, high, wide].map(|side| side as i64);
                        numbers.view([COUNT, sides[0], sides[1], sides[2]]) * 0.9
                    }
                };
                (given.name(), value)
            });
            given.collect()
        }

        /// What this program's own generator makes of them.
        pub(super) fn images(&self) -> Tensor {
            let values = Values {
                parameters: &self.parameters,
                running: &self.running,
            };
            let given = self.given();
            let named = |wanted| {
                let found = given.iter().find(|(name, _)| *name == wanted);
                found.map(|(_, value)| value)
            };
            let input = Input {
                x: &self.latents,
                labels: named("labels"),
                noise: named("noise"),
                coarse: named("coarse"),
            };
            Network::frozen(&self.architecture, values, Precision::F32)
                .unwrap()
                .forward(input, Statistics::Running(&self.running))
                .unwrap()
        }
    }

    pub(super) fn near(found: &Tensor, expected: &Tensor, name: &str) {
        assert_eq!(found.size(), expected.size(), "{name}");
        let farthest = |difference: Tensor| difference.abs().max().double_value(&[]);
        assert!(farthest(expected - expected.mean(tch::Kind::Float)) > 0.2);
        let difference = farthest(found - expected);
        assert!(difference < 1e-5, "{name}: {difference}");
    }

    #[test]
    fn another_generators_weights_are_refused_by_name() {
        let example = Example::plain();
        let refused = |tensors: &[TensorData]| {
            let program = Program::new(&example.architecture, tensors);
            program.unwrap_err().to_string()
        };
        let message = refused(&example.tensors[1..]);
        assert!(
            message.contains("no such tensor") && message.contains("main.0.weight"),
            "{message}"
        );
        let mut reshaped = example.tensors.clone();
        reshaped[0].shape.swap(0, 1);
        let message = refused(&reshaped);
        assert!(message.contains("expected main.0.weight"), "{message}");
        assert_eq!(example.program().tensors.len(), example.tensors.len());
    }
}
