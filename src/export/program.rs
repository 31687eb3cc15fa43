//! PURE. What a generator computes, as a chain of operations.

use super::ExportError;
use crate::checkpoint::{Kind, TensorData};
use crate::model::Architecture;
use crate::model::architecture::Activation;
use std::collections::BTreeMap;

/// One operation on what the one before has made.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// A transposed convolution.
    ConvTranspose {
        /// Its weight's name in the state dict.
        weight: String,
        /// Side of its kernel, pixels.
        kernel: usize,
        /// Step, pixels.
        stride: usize,
        /// Border, pixels.
        padding: usize,
    },
    /// A batch norm with running statistics.
    BatchNorm {
        /// Its tensors are `<layer>.weight`, `.bias`, `.running_mean` and `.running_var`.
        layer: String,
    },
    /// max(x, 0).
    Relu,
    /// tanh(x).
    Tanh,
}

/// A generator: from latents `[n, latent, 1, 1]` to images `[n, c, s, s]` in -1 … 1.
#[derive(Clone, Debug)]
pub struct Program<'a> {
    /// Numbers of a latent.
    pub latent: usize,
    /// Of an image: channels, rows, columns.
    pub shape: [usize; 3],
    /// In order.
    pub operations: Vec<Operation>,
    /// The state dict, in PyTorch's order.
    pub tensors: Vec<&'a TensorData>,
}

impl<'a> Program<'a> {
    /// What the generator `architecture` computes with these tensors.
    ///
    /// # Errors
    /// [`ExportError::Tensor`] if they are not its state dict.
    pub fn new(
        architecture: &Architecture,
        tensors: &'a [TensorData],
    ) -> Result<Self, ExportError> {
        let mut given: BTreeMap<&str, &TensorData> = tensors
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor))
            .collect();
        let mut ordered = Vec::with_capacity(tensors.len());
        for entry in architecture.entries() {
            let found = given.remove(entry.name.as_str());
            match found {
                Some(tensor) if tensor.shape == entry.shape => ordered.push(tensor),
                other => {
                    let found = other.map(|tensor| format!("it in shape {:?}", tensor.shape));
                    return Err(ExportError::Tensor {
                        name: entry.name,
                        shape: entry.shape,
                        found: found.unwrap_or_else(|| "no such tensor".to_owned()),
                    });
                }
            }
        }
        let mut operations = Vec::new();
        let [mut latent, mut channels, mut side] = [0; 3];
        for stage in &architecture.stages {
            let layer = &stage.convolution;
            if operations.is_empty() {
                latent = layer.inputs;
            }
            (channels, side) = (layer.outputs, layer.side_out);
            operations.push(Operation::ConvTranspose {
                weight: architecture.parameters[stage.weight].name.clone(),
                kernel: crate::model::architecture::KERNEL,
                stride: layer.stride,
                padding: layer.padding,
            });
            if let Some(norm) = stage.norm {
                operations.push(Operation::BatchNorm {
                    layer: format!("main.{}", norm.layer),
                });
            }
            match stage.activation {
                Activation::Relu => operations.push(Operation::Relu),
                Activation::Tanh => operations.push(Operation::Tanh),
                // The discriminator's.
                Activation::LeakyRelu | Activation::Logit => {}
            }
        }
        Ok(Self {
            latent,
            shape: [channels, side, side],
            operations,
            tensors: ordered,
        })
    }

    /// The tensors that operations name, which are numbers all: counts of batches are left out.
    pub fn weights(&self) -> impl Iterator<Item = &'a TensorData> + '_ {
        let numbers = |tensor: &&TensorData| tensor.kind == Kind::F32;
        self.tensors.iter().copied().filter(numbers)
    }
}
