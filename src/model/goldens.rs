//! Numerical parity with PyTorch of the kinds of networks beside its example, layer by layer: what
//! `tests/goldens/make_networks.py` has written.
//!
//! The largest difference in a tensor is at most 2e-5 of its largest element.

use super::architecture::Source;
use super::{Architecture, Input, Network, Player, Statistics, Values, iterate, view};
use crate::config::{
    Conditional, Family, HiddenNoise, LatentInput, Model, Normalisation, Precision,
};
use safetensors::SafeTensors;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const TOLERANCE: f64 = 2e-5;

struct Golden(Vec<u8>);

impl Golden {
    fn open() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self(std::fs::read(root.join("tests/goldens/networks.safetensors")).unwrap())
    }

    fn find(&self, name: &str) -> Option<Tensor> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let view = tensors.tensor(name).ok()?;
        let shape: Vec<i64> = view.shape().iter().map(|&side| side as i64).collect();
        let kind = match view.dtype() {
            safetensors::Dtype::F32 => Kind::Float,
            safetensors::Dtype::I64 => Kind::Int64,
            other => panic!("{name} is of {other:?}"),
        };
        Some(Tensor::from_data_size(view.data(), &shape, kind))
    }

    fn get(&self, name: &str) -> Tensor {
        self.find(name)
            .unwrap_or_else(|| panic!("there is no {name}"))
    }
}

#[track_caller]
fn close(name: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{name}");
    let scale = expected.abs().max().double_value(&[]);
    let error = (found - expected).abs().max().double_value(&[]);
    assert!(
        error <= TOLERANCE * scale,
        "{name}: off by {error}, its largest is {scale}"
    );
}

/// Computes a case and compares all that comes out.
fn compare(golden: &Golden, case: &str, player: Player, model: &Model) {
    let architecture = Architecture::of(player, model, 1);
    let zeros = |len: usize| Tensor::zeros([len as i64], (Kind::Float, Device::Cpu));
    let (flat, running) = (zeros(architecture.len()), zeros(architecture.running));
    for entry in architecture.entries() {
        let values = || golden.get(&format!("{case}/{}", entry.name));
        match &entry.source {
            Source::Parameter(index) => {
                view(&flat, &architecture.parameters[*index])
                    .unwrap()
                    .copy_(&values());
            }
            Source::Running(range) => {
                let (from, len) = (range.start as i64, range.len() as i64);
                running.narrow(0, from, len).copy_(&values());
            }
            Source::BatchesTracked => {}
        }
    }
    let statistics = zeros(architecture.statistics);
    let values = Values {
        parameters: &flat,
        running: &running,
    };
    let network = Network::trainable(&architecture, values, Precision::F32).unwrap();
    let input = |name: &str| golden.find(&format!("{case}/in/{name}"));
    let (x, labels, noise) = (input("x").unwrap(), input("labels"), input("noise"));
    let input = Input {
        x: &x,
        labels: labels.as_ref(),
        noise: noise.as_ref(),
        coarse: None,
    };
    let output = network
        .forward(input, Statistics::Batch(&statistics))
        .unwrap();
    let expected = golden.get(&format!("{case}/out"));
    close(case, &output.view(&expected.size()[..]), &expected);
    let cost = golden.get(&format!("{case}/cost")).view(&output.size()[..]);
    let cost = (output * cost).sum(Kind::Float);
    let gradients = Tensor::run_backward(&[cost], network.leaves(), false, false);
    for (parameter, gradient) in architecture.parameters.iter().zip(&gradients) {
        let name = format!("{case}/grad/{}", parameter.name);
        close(&name, gradient, &golden.get(&name));
    }
    let next = iterate(&architecture, &flat, &running).unwrap();
    for entry in architecture.entries() {
        let Some(expected) = golden.find(&format!("{case}/next/{}", entry.name)) else {
            continue;
        };
        let Source::Running(range) = entry.source else {
            panic!("{} runs", entry.name);
        };
        let from = (range.start - architecture.statistics) as i64;
        close(
            &entry.name,
            &next.narrow(0, from, range.len() as i64),
            &expected,
        );
    }
}

fn model() -> Model {
    Model {
        image_size: 32,
        channels: 1,
        latent: 6,
        generator_width: 4,
        discriminator_width: 4,
        ..Model::default()
    }
}

#[test]
fn spectral_norm_is_pytorchs() {
    let model = Model {
        spectral_norm: true,
        discriminator_norm: Normalisation::None,
        ..model()
    };
    compare(&Golden::open(), "spectral", Player::Discriminator, &model);
}

#[test]
fn layer_norm_is_pytorchs_group_norm_of_one_group() {
    let model = Model {
        discriminator_norm: Normalisation::Layer,
        ..model()
    };
    compare(&Golden::open(), "layer", Player::Discriminator, &model);
}

#[test]
fn kernels_of_5_pixels_on_28_are_pytorchs() {
    let model = Model {
        image_size: 28,
        channels: 3,
        kernel: 5,
        ..model()
    };
    let golden = Golden::open();
    compare(&golden, "generator5", Player::Generator, &model);
    compare(&golden, "discriminator5", Player::Discriminator, &model);
}

#[test]
fn split_latents_noise_and_labels_are_what_they_are_in_pytorch() {
    let told = |conditional| Model {
        image_size: 28,
        conditional,
        classes: 5,
        ..model()
    };
    let golden = Golden::open();
    let split = Model {
        latent: 10,
        latent_input: LatentInput::Split,
        hidden_noise: HiddenNoise::Additive,
        hidden_noise_strength: 0.5,
        ..told(Conditional::Concatenation)
    };
    compare(&golden, "split", Player::Generator, &split);
    let concatenation = told(Conditional::Concatenation);
    compare(
        &golden,
        "concatenation",
        Player::Discriminator,
        &concatenation,
    );
    let projection = told(Conditional::Projection);
    compare(&golden, "projection", Player::Discriminator, &projection);
}

#[test]
fn fully_connected_layers_are_pytorchs() {
    let model = Model {
        architecture: Family::Mlp,
        generator_layers: 2,
        discriminator_layers: 2,
        maxout_pieces: 3,
        generator_width: 8,
        discriminator_width: 8,
        ..model()
    };
    let golden = Golden::open();
    compare(&golden, "perceptron", Player::Generator, &model);
    compare(&golden, "maxout", Player::Discriminator, &model);
}
