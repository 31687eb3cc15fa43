//! PURE. What a generator computes, as a chain of operations.

use super::ExportError;
use crate::checkpoint::{Kind, TensorData};
use crate::model::Architecture;
use crate::model::architecture::{Activation, Layer};
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
        /// Pixels added to the lower and the right side.
        output_padding: usize,
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
        let [latent, ..] = architecture.input;
        let [mut channels, mut side] = [0; 2];
        check(architecture)?;
        for (number, stage) in architecture.stages.iter().enumerate() {
            let layer = match &stage.layer {
                Layer::Convolution(layer) if layer.transposed => layer,
                _ => return Err(refused("it has layers that are no transposed convolutions")),
            };
            // The first layer's latents are its whole input; further ones get theirs beside it.
            if number > 0 && !stage.appended.is_empty() {
                return Err(refused("its latents are split over its layers"));
            }
            (channels, side) = (layer.outputs, layer.side_out);
            operations.push(Operation::ConvTranspose {
                weight: architecture.parameters[stage.weight].name.clone(),
                kernel: layer.kernel,
                stride: layer.stride,
                padding: layer.padding,
                output_padding: layer.output_padding,
            });
            if let Some(norm) = stage.norm {
                operations.push(Operation::BatchNorm {
                    layer: format!("main.{}", norm.layer),
                });
            }
            match stage.activation {
                Activation::Relu => operations.push(Operation::Relu),
                Activation::Tanh => operations.push(Operation::Tanh),
                Activation::Identity => {}
                Activation::Band => return Err(refused("it refines images (model.pyramid)")),
                Activation::LeakyRelu | Activation::Maxout { .. } | Activation::Logit => {
                    return Err(refused("it has a discriminator's activations"));
                }
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

/// Refuses generators that take more than latents.
fn check(architecture: &Architecture) -> Result<(), ExportError> {
    if architecture.classes > 0 {
        return Err(refused(
            "it takes labels beside latents (model.conditional)",
        ));
    }
    if architecture.coarse > 0 {
        return Err(refused("it refines images (model.pyramid)"));
    }
    if architecture.noise > 0 {
        return Err(refused(
            "it takes noise beside latents (model.hidden_noise)",
        ));
    }
    Ok(())
}

fn refused(why: &str) -> ExportError {
    ExportError::Refused {
        why: format!("{why}; --format safetensors has its weights"),
    }
}
