//! Numerical parity with PyTorch's DCGAN example.
//!
//! `goldens/make.py` runs the example's loop in PyTorch and writes what came out; here the same job
//! runs in Ganglion. For single passes, first gradients, losses and running statistics the largest
//! difference in a tensor is at most 1e-5 of its largest element. After ten steps parameters are
//! compared by the norm of the difference, at most 1e-5 of the norm: where a gradient is zero but
//! for rounding, Adam divides noise by its own size, so single elements may differ by a whole step
//! while the network does not. (Measured: at most 8e-7, with AVX-512 and with AVX2.)
#![cfg(feature = "torch")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ganglion::checkpoint::{Kind, Snapshot, TensorData};
use ganglion::collective::{Flags, InProcess};
use ganglion::config::{Job, Objective, Precision, Update, parse};
use ganglion::data::Batch;
use ganglion::ids::{Epoch, ReplicaId, Step};
use ganglion::model::{Architecture, Input, Latents, Network, Player, Statistics, Values, view};
use ganglion::random::{Domain, Key};
use ganglion::train::{Setup, StepReport, Trainer};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Tensor};

const TOLERANCE: f64 = 1e-5;
const STEPS: u64 = 10;
const BATCH: usize = 8;
const IMAGE: usize = 3 * 32 * 32;
const LATENT: usize = 8;
const SEED: u64 = 5;

/// The job that `make.py` runs.
fn job(update: Update, objective: Objective, replicas: u32) -> Job {
    let text = format!(
        r#"
        job = {{ name = "parity", seed = {SEED} }}
        data = {{ uri = "nowhere" }}
        train = {{ replicas = {replicas}, batch = {BATCH}, steps = {STEPS} }}
        [model]
        image_size = 32
        channels = 3
        latent = {LATENT}
        generator_width = 8
        discriminator_width = 8
        "#
    );
    let mut job = parse(&text, "parity", Path::new("."), &[]).unwrap();
    job.train.update = update;
    job.train.objective = objective;
    job
}

/// A golden file.
struct Golden {
    name: String,
    bytes: Vec<u8>,
}

impl Golden {
    fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/goldens")
            .join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        Self {
            name: name.to_owned(),
            bytes,
        }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    fn raw(&self, tensor: &str) -> Vec<u8> {
        self.tensors().tensor(tensor).unwrap().data().to_vec()
    }

    fn floats(&self, tensor: &str) -> Vec<f32> {
        floats(&self.raw(tensor))
    }

    /// The names that start with `prefix`, without it.
    fn names(&self, prefix: &str) -> Vec<String> {
        let tensors = self.tensors();
        let names = tensors.names();
        names
            .into_iter()
            .filter_map(|name| name.strip_prefix(prefix).map(str::to_owned))
            .collect()
    }

    fn losses(&self) -> Vec<[f64; 2]> {
        let values: Vec<f64> = self
            .raw("losses")
            .as_chunks()
            .0
            .iter()
            .map(|&b| f64::from_le_bytes(b))
            .collect();
        values.as_chunks().0.to_vec()
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|&b| f32::from_le_bytes(b))
        .collect()
}

/// A replica's pixels of one step; stored as blocks of 8×8.
fn pixels(inputs: &Golden, replica: u32, step: u64) -> Vec<u8> {
    let stored = inputs.raw(&format!("pixels.{replica}"));
    let size = BATCH * 3 * 16;
    let coarse = &stored[step as usize * size..][..size];
    (0..BATCH * IMAGE)
        .map(|i| {
            let (plane, y, x) = (i / 1024, i / 32 % 32, i % 32);
            coarse[plane * 16 + y / 8 * 4 + x / 8]
        })
        .collect()
}

/// A trainer with the golden initial weights in the place of its own.
fn trainer(job: &Job, inputs: &Golden) -> Trainer {
    let mut trainer = Trainer::new(Setup {
        job,
        device: Device::Cpu,
        replicas: 0..job.train.replicas,
        cores: 2,
    })
    .unwrap();
    let mut state = trainer.snapshot().unwrap();
    for player in ["generator", "discriminator"] {
        for tensor in state.files.get_mut(player).unwrap() {
            tensor.bytes = inputs.raw(&format!("{player}.{}", tensor.name));
        }
    }
    trainer.restore(&state).unwrap();
    trainer
}

/// Ten steps: the reports, and the states after the first and the last.
fn train(job: &Job, inputs: &Golden) -> (Vec<StepReport>, Snapshot, Snapshot) {
    let mut trainer = trainer(job, inputs);
    let mut collective = InProcess::solo(job.train.replicas).unwrap();
    let mut reports = Vec::new();
    let mut first = None;
    for step in 0..STEPS {
        let batches = (0..job.train.replicas)
            .map(|replica| Batch {
                step: Step(step),
                epoch: Epoch(0),
                replica: ReplicaId(replica),
                pixels: pixels(inputs, replica, step).into(),
                labels: None,
            })
            .collect();
        reports.push(
            trainer
                .advance(batches, &mut collective, Flags::default())
                .unwrap()
                .expect("in host memory a step is over when the call returns"),
        );
        if step == 0 {
            first = Some(trainer.snapshot().unwrap());
        }
    }
    (reports, first.unwrap(), trainer.snapshot().unwrap())
}

fn by_name(tensors: &[TensorData]) -> BTreeMap<&str, &TensorData> {
    tensors.iter().map(|t| (t.name.as_str(), t)).collect()
}

/// What `f64::max` would pass over.
fn finite(what: &str, values: &[f32]) {
    let odd = values.iter().position(|value| !value.is_finite());
    assert_eq!(odd, None, "{what}: NaN or infinite at this index");
}

/// max |a - b| ≤ 1e-5 · max |b|
fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    finite(what, found);
    finite(what, expected);
    let largest = expected
        .iter()
        .fold(0f64, |max, b| max.max(f64::from(b.abs())));
    let error = found
        .iter()
        .zip(expected)
        .fold(0f64, |max, (a, b)| max.max(f64::from((a - b).abs())));
    assert!(
        error <= TOLERANCE * largest,
        "{what}: {error:e} of {largest:e}"
    );
}

/// ‖a - b‖ ≤ 1e-5 · ‖b‖
fn close_by_norm(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    finite(what, found);
    finite(what, expected);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    let size = norm(&mut expected.iter().map(|b| f64::from(*b)));
    assert!(error <= TOLERANCE * size, "{what}: {:e}", error / size);
}

/// Compares ten steps with a golden file.
fn compare(golden: &Golden, job: &Job, inputs: &Golden) {
    let (reports, first, last) = train(job, inputs);
    for (step, (report, [d, g])) in reports.iter().zip(golden.losses()).enumerate() {
        for (found, expected) in [(report.loss_d, d), (report.loss_g, g)] {
            let close = (found - expected).abs() <= TOLERANCE * expected.abs();
            assert!(close, "{} step {step}: {found} for {expected}", golden.name);
        }
    }
    // Adam's first moment after one step is (1 - β₁) times the gradient, and β₁ is ½: exact.
    let moments = by_name(&first.files["optimizer"]);
    for name in golden.names("gradient.") {
        let (player, parameter) = name.split_once('.').unwrap();
        let moment = moments[format!("{player}.exp_avg.{parameter}").as_str()];
        let gradient: Vec<f32> = floats(&moment.bytes).iter().map(|m| m * 2.0).collect();
        let expected = golden.floats(&format!("gradient.{name}"));
        close(
            &format!("{} gradient of {name}", golden.name),
            &gradient,
            &expected,
        );
    }
    for player in ["generator", "discriminator"] {
        let found = by_name(&last.files[player]);
        let names = golden.names(&format!("after.{player}."));
        assert_eq!(names.len(), found.len());
        for name in names {
            let tensor = found[name.as_str()];
            let key = format!("after.{player}.{name}");
            let what = format!("{} {key}", golden.name);
            match tensor.kind {
                Kind::I64 => assert_eq!(tensor.bytes, golden.raw(&key), "{what}"),
                Kind::F32 => close_by_norm(&what, &floats(&tensor.bytes), &golden.floats(&key)),
            }
        }
    }
}

fn objectives(update: Update, label: &str) {
    let inputs = Golden::open("inputs");
    for (objective, name) in [
        (Objective::Minimax, "minimax"),
        (Objective::NonSaturating, "non-saturating"),
        (Objective::MaximumLikelihood, "maximum-likelihood"),
    ] {
        let golden = Golden::open(&format!("{label}_{name}"));
        compare(&golden, &job(update, objective, 1), &inputs);
    }
}

#[test]
#[should_panic(expected = "NaN or infinite")]
fn nan_is_close_to_nothing() {
    close("nan", &[f32::NAN; 3], &[1.0; 3]);
}

#[test]
fn alternating_steps_are_pytorchs() {
    objectives(Update::Alternating, "alternating");
}

#[test]
fn simultaneous_steps_are_pytorchs() {
    objectives(Update::Simultaneous, "simultaneous");
}

#[test]
fn two_replicas_are_the_mean_of_two() {
    let inputs = Golden::open("inputs");
    for (update, label) in [
        (Update::Alternating, "alternating"),
        (Update::Simultaneous, "simultaneous"),
    ] {
        let golden = Golden::open(&format!("two_replicas_{label}"));
        compare(&golden, &job(update, Objective::NonSaturating, 2), &inputs);
    }
}

#[test]
fn forward_passes_are_pytorchs() {
    let inputs = Golden::open("inputs");
    let job = job(Update::Alternating, Objective::NonSaturating, 1);
    let flat = |player: Player| {
        let architecture = Architecture::of(player, &job.model, 1);
        let flat = Tensor::zeros([architecture.len() as i64], (tch::Kind::Float, Device::Cpu));
        for parameter in &architecture.parameters {
            let values = inputs.floats(&format!("{player}.{}", parameter.name));
            let shape: Vec<i64> = parameter.shape.iter().map(|&side| side as i64).collect();
            let values = Tensor::from_slice(&values).view(&shape[..]);
            view(&flat, parameter).unwrap().copy_(&values);
        }
        (architecture, flat)
    };
    let forward = |player: Player, input: &Tensor| {
        let (architecture, flat) = flat(player);
        let statistics = Tensor::zeros(
            [architecture.statistics as i64],
            (tch::Kind::Float, Device::Cpu),
        );
        let values = Values {
            parameters: &flat,
            running: &statistics,
        };
        Network::frozen(&architecture, values, Precision::F32)
            .unwrap()
            .forward(Input::from(input), Statistics::Batch(&statistics))
            .unwrap()
    };
    let values = |t: &Tensor| Vec::<f32>::try_from(t.contiguous().view([-1])).unwrap();

    // The key's draws are those that make.py made, up to the vector instructions of the processor.
    let key = Key::new(Domain::Latents, &[SEED, 0, 0]);
    let latents = Latents::draw(key, BATCH, LATENT).unwrap();
    let stored = inputs.floats("latents.0");
    close("latents", latents.values(), &stored[..BATCH * LATENT]);

    let fake = forward(Player::Generator, &latents.to_tensor(Device::Cpu).unwrap());
    close("images", &values(&fake), &inputs.floats("forward.images"));
    let on_fake = forward(Player::Discriminator, &fake);
    close(
        "logits of fakes",
        &values(&on_fake),
        &inputs.floats("forward.logits_fake"),
    );
    let real: Vec<f32> = pixels(&inputs, 0, 0)
        .iter()
        .map(|&p| f32::from(p) / 127.5 - 1.0)
        .collect();
    let real = Tensor::from_slice(&real).view([BATCH as i64, 3, 32, 32]);
    let on_real = forward(Player::Discriminator, &real);
    close(
        "logits of reals",
        &values(&on_real),
        &inputs.floats("forward.logits_real"),
    );
}

/// So that `load_state_dict(strict=True)` of the example takes our files.
#[test]
fn state_dicts_have_the_names_and_shapes_of_the_example() {
    let inputs = Golden::open("inputs");
    let job = job(Update::Alternating, Objective::NonSaturating, 1);
    let state = trainer(&job, &inputs).snapshot().unwrap();
    let tensors = inputs.tensors();
    for player in ["generator", "discriminator"] {
        let names = inputs.names(&format!("{player}."));
        let found = by_name(&state.files[player]);
        assert_eq!(names.len(), found.len());
        for name in names {
            let golden = tensors.tensor(&format!("{player}.{name}")).unwrap();
            let tensor = found[name.as_str()];
            assert_eq!(tensor.shape, golden.shape(), "{name}");
            let kind = match golden.dtype() {
                safetensors::Dtype::I64 => Kind::I64,
                _ => Kind::F32,
            };
            assert_eq!(tensor.kind, kind, "{name}");
        }
    }
}
