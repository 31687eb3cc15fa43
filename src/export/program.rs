//! PURE. What a generator computes, as a chain of operations.

use super::ExportError;
use crate::checkpoint::{Kind, TensorData};
use crate::config::HiddenNoise;
use crate::model::Architecture;
use crate::model::architecture::{Activation, Appended, Layer, Stage};
use std::collections::BTreeMap;
use std::ops::Range;

/// What a generator is given, besides its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// `latents`, so many numbers each: `[n, latent, 1, 1]`.
    Latents(usize),
    /// `labels`, integers below this: `[n]`.
    Labels(usize),
    /// `noise`, so many numbers from N(0, 1) each, for the hidden layers: `[n, noise]`.
    Noise(usize),
    /// `coarse`, the images of half the side that a level of a pyramid goes on from: `[n, c, s/2, s/2]`
    /// in -1 … 1.
    Coarse([usize; 3]),
}

impl Given {
    /// Its name in a file.
    pub fn name(self) -> &'static str {
        match self {
            Given::Latents(_) => "latents",
            Given::Labels(_) => "labels",
            Given::Noise(_) => "noise",
            Given::Coarse(_) => "coarse",
        }
    }
}

/// What is put beside the channels that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// These numbers of the latents, the same everywhere.
    Latents(Range<usize>),
    /// The labels as one-hot vectors, the same everywhere.
    OneHot,
    /// The coarse images, averaged over squares of so many pixels.
    Coarse(usize),
}

/// One operation on what the one before has made.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Parts beside what there is as channels, after it; the first operation has nothing but its
    /// parts. `[n, c, side, side]`, or `[n, c]` before fully connected layers.
    Append {
        /// In order.
        parts: Vec<Part>,
        /// Pixels along a side; none before fully connected layers.
        side: Option<usize>,
    },
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
    /// A fully connected layer: x·Wᵀ + b.
    Linear {
        /// Its weight's name in the state dict.
        weight: String,
        /// Its bias's, if it has one.
        bias: Option<String>,
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
    /// Hidden noise: x + strength·noise, or x·(1 + strength·noise).
    Noise {
        /// Which numbers of the noise.
        range: Range<usize>,
        /// Of x, without n.
        shape: Vec<usize>,
        /// Factor of the noise.
        strength: f64,
        /// Which of the two.
        multiplicative: bool,
    },
    /// The coarse images, each pixel repeated so many times along a line, added.
    AddCoarse(usize),
    /// From `[n, c]` to `[n, c, 1, 1]`: points.
    Pixel,
}

/// A generator: from latents, and what else it is given, to images `[n, c, s, s]` in -1 … 1.
///
/// A level of a pyramid gives images that may go a little beyond; points are what they are.
#[derive(Clone, Debug)]
pub struct Program<'a> {
    /// In order; the latents are first.
    pub given: Vec<Given>,
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
        let operations = operations(architecture)?;
        let stage = architecture.stages.last();
        let layer = stage.map(|stage| &stage.layer);
        let [channels, side] = layer.map_or([0; 2], |layer| [layer.outputs(), layer.side_out()]);
        let [latent, ..] = architecture.input;
        let given = [
            Some(Given::Latents(latent)),
            (architecture.classes > 0).then_some(Given::Labels(architecture.classes)),
            (architecture.noise > 0).then_some(Given::Noise(architecture.noise)),
            (architecture.coarse > 0).then_some(Given::Coarse([
                architecture.coarse,
                side / 2,
                side / 2,
            ])),
        ];
        Ok(Self {
            given: given.into_iter().flatten().collect(),
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

/// A generator's layers, and what lies between them.
fn operations(architecture: &Architecture) -> Result<Vec<Operation>, ExportError> {
    let mut operations = Vec::new();
    let [latent, ..] = architecture.input;
    let name = |index: usize| architecture.parameters[index].name.clone();
    for (number, stage) in architecture.stages.iter().enumerate() {
        let (side, flat) = match &stage.layer {
            Layer::Convolution(layer) => (layer.side_in, false),
            Layer::Linear(_) => (1, true),
        };
        let parts = parts(architecture, stage)?;
        // A first convolution that takes the latents and nothing else has them as they come.
        let as_given = !flat && number == 0 && parts == [Part::Latents(0..latent)];
        if !parts.is_empty() && !as_given {
            operations.push(Operation::Append {
                parts,
                side: (!flat).then_some(side),
            });
        }
        operations.push(match &stage.layer {
            Layer::Convolution(layer) if layer.transposed => Operation::ConvTranspose {
                weight: name(stage.weight),
                kernel: layer.kernel,
                stride: layer.stride,
                padding: layer.padding,
                output_padding: layer.output_padding,
            },
            Layer::Convolution(_) => return Err(refused("it has a discriminator's layers")),
            Layer::Linear(_) => Operation::Linear {
                weight: name(stage.weight),
                bias: stage.bias.map(name),
            },
        });
        if let Some(norm) = stage.norm {
            operations.push(Operation::BatchNorm {
                layer: format!("main.{}", norm.layer),
            });
        }
        match stage.activation {
            Activation::Relu => operations.push(Operation::Relu),
            Activation::Tanh => operations.push(Operation::Tanh),
            Activation::Identity => operations.push(Operation::Pixel),
            Activation::Band => operations.push(Operation::AddCoarse(2)),
            Activation::LeakyRelu | Activation::Maxout { .. } | Activation::Logit => {
                return Err(refused("it has a discriminator's activations"));
            }
        }
        operations.extend(noise(architecture, stage, flat));
    }
    Ok(operations)
}

/// What a layer has appended to its input.
fn parts(architecture: &Architecture, stage: &Stage) -> Result<Vec<Part>, ExportError> {
    let image = architecture
        .stages
        .last()
        .map_or(0, |stage| stage.layer.side_out());
    let parts = stage.appended.iter().map(|appended| match appended {
        Appended::Latent(range) => Ok(Part::Latents(range.clone())),
        Appended::OneHot => Ok(Part::OneHot),
        Appended::Coarse => Ok(Part::Coarse(image / 2 / stage.layer.side_in())),
        Appended::Plane(_) => Err(refused("it has a discriminator's planes of labels")),
    });
    parts.collect()
}

/// The noise on a layer's output, if there is any.
fn noise(architecture: &Architecture, stage: &Stage, flat: bool) -> Option<Operation> {
    let (kind, strength) = architecture.hidden_noise;
    let multiplicative = match kind {
        HiddenNoise::None => return None,
        HiddenNoise::Additive => false,
        HiddenNoise::Multiplicative => true,
    };
    let (channels, side) = (stage.layer.outputs(), stage.layer.side_out());
    (!stage.noise.is_empty()).then(|| Operation::Noise {
        range: stage.noise.clone(),
        shape: match flat {
            true => vec![channels],
            false => vec![channels, side, side],
        },
        strength,
        multiplicative,
    })
}

fn refused(why: &str) -> ExportError {
    ExportError::Refused {
        why: why.to_owned(),
    }
}
