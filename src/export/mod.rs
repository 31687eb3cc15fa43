//! A generator in forms that other programs read: safetensors, TorchScript, ONNX.
//!
//! `program` says what a generator computes, as a chain of operations over its state dict;
//! `onnx` and `script` write that down, each in its own language. Images come out in -1 … 1, and
//! batch norm uses the running statistics: an image depends on its latent alone. The same generator
//! gives the same bytes. This room knows nothing of command lines or of where a state dict comes
//! from.

mod onnx;
mod program;
#[cfg(feature = "torch")]
mod script;

pub use onnx::to_onnx;
pub use program::{Operation, Program};
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

#[cfg(all(test, feature = "torch"))]
mod tests {
    use super::*;
    use crate::checkpoint::{Kind, TensorData};
    use crate::config::{Model, Precision};
    use crate::model::architecture::Source;
    use crate::model::{Architecture, Network, Statistics, view};
    use tch::Tensor;

    /// A small generator, with weights that make pictures of all greys.
    pub(super) struct Example {
        architecture: Architecture,
        parameters: Tensor,
        running: Tensor,
        pub(super) tensors: Vec<TensorData>,
        pub(super) latents: Tensor,
    }

    /// Numbers between -1 and 1 without an order.
    fn numbers(count: usize) -> Tensor {
        let wave = |i: usize| (i as f64 * 12.9898).sin() * 43758.5453;
        let numbers: Vec<f32> = (0..count).map(|i| (wave(i).fract()) as f32).collect();
        Tensor::from_slice(&numbers)
    }

    impl Example {
        pub(super) fn new() -> Self {
            let model = Model {
                image_size: 32,
                channels: 3,
                latent: 6,
                generator_width: 4,
                ..Model::default()
            };
            let architecture = Architecture::generator(&model);
            let parameters = numbers(architecture.len()) * 0.5;
            // Variances must not be negative.
            let running = numbers(architecture.statistics).abs() * 0.3 + 0.05;
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
                    Source::Statistics(range) => {
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
                architecture,
                parameters,
                running,
                tensors,
                latents: (numbers(30) * 2.0).view([5, 6, 1, 1]),
            }
        }

        pub(super) fn program(&self) -> Program<'_> {
            Program::new(&self.architecture, &self.tensors).unwrap()
        }

        /// What this program's own generator makes of the latents.
        pub(super) fn images(&self) -> Tensor {
            Network::frozen(&self.architecture, &self.parameters, Precision::F32)
                .unwrap()
                .forward(&self.latents, Statistics::Running(&self.running))
                .unwrap()
        }
    }

    pub(super) fn near(found: &Tensor, expected: &Tensor) {
        assert_eq!(found.size(), expected.size());
        let farthest = |difference: Tensor| difference.abs().max().double_value(&[]);
        assert!(farthest(expected - expected.mean(tch::Kind::Float)) > 0.2);
        let difference = farthest(found - expected);
        assert!(difference < 1e-5, "{difference}");
    }

    #[test]
    fn another_generators_weights_are_refused_by_name() {
        let example = Example::new();
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
