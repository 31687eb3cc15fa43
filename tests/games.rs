//! Every game and every regulariser, against PyTorch.
//!
//! `goldens/games.py` writes three steps of each from the papers, draws included; here the same jobs
//! run in Ganglion. Losses, beliefs, and of each vector the norm and one projection differ by at most
//! 1e-5 of what they are, or of the norm. (Measured: at most 6e-7.)
#![cfg(feature = "torch")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ganglion::checkpoint::Snapshot;
use ganglion::collective::{Flags, InProcess};
use ganglion::config::{Job, Objective, Override, parse};
use ganglion::data::Batch;
use ganglion::ids::{Epoch, ReplicaId, Step};
use ganglion::train::{Setup, StepReport, Trainer};
use safetensors::SafeTensors;
use std::path::Path;
use tch::Device;

const TOLERANCE: f64 = 1e-5;
const STEPS: usize = 3;
const BATCH: usize = 4;

const JOB: &str = r#"
    job = { name = "games", seed = 7 }
    data = { uri = "nowhere" }
    train = { replicas = 1, batch = 4, steps = 3 }
    [model]
    image_size = 32
    channels = 1
    latent = 4
    generator_width = 2
    discriminator_width = 2
    discriminator_norm = "none"
"#;

const SIMULTANEOUS: &str = "train.update=simultaneous";
const AUGMENT: &str = r#"regularise.augment=["color", "translation", "cutout"]"#;

/// The cases that are not a game alone, as `games.py` has them.
const REGULARISED: [(&str, &[&str]); 13] = [
    ("r1", &["regularise.r1=2"]),
    ("r2", &["regularise.r2=3"]),
    (
        "r1_r2",
        &[
            "train.objective=relativistic",
            "regularise.r1=1",
            "regularise.r2=1",
            SIMULTANEOUS,
        ],
    ),
    (
        "penalty",
        &["train.objective=hinge", "regularise.gradient_penalty=5"],
    ),
    (
        "penalty_off",
        &[
            "train.objective=wasserstein",
            "regularise.gradient_penalty=0",
        ],
    ),
    (
        "smoothing",
        &["train.objective=minimax", "regularise.label_smoothing=0.1"],
    ),
    (
        "smoothing_squares",
        &[
            "train.objective=least-squares",
            "regularise.label_smoothing=0.2",
        ],
    ),
    (
        "noise",
        &[
            "regularise.instance_noise=0.5",
            "regularise.instance_noise_steps=2",
        ],
    ),
    ("augment", &[AUGMENT]),
    ("packing", &["train.packing=2"]),
    (
        "critic_steps",
        &["train.objective=wasserstein", "train.discriminator_steps=2"],
    ),
    (
        "generator_steps",
        &["train.objective=relativistic", "train.generator_steps=2"],
    ),
    (
        "all",
        &[
            "train.objective=relativistic",
            "regularise.r1=1",
            "regularise.r2=0.5",
            "regularise.gradient_penalty=2",
            "regularise.instance_noise=0.3",
            "regularise.instance_noise_steps=5",
            AUGMENT,
            "train.packing=2",
            "train.discriminator_steps=2",
            "train.generator_steps=3",
        ],
    ),
];

fn job(sets: &[&str]) -> Job {
    let sets: Vec<Override> = sets.iter().map(|set| set.parse().unwrap()).collect();
    parse(JOB, "games", Path::new("."), &sets).unwrap()
}

/// A replica's pixels of one step, which are stored as blocks of 8×8.
fn pixels(golden: &SafeTensors<'_>, job: &Job, step: usize) -> Vec<u8> {
    let coarse = golden.tensor("pixels").unwrap();
    let coarse = &coarse.data()[step * 2 * BATCH * 16..];
    (0..job.replica_samples() as usize * 1024)
        .map(|i| coarse[i / 1024 * 16 + i / 32 % 32 / 8 * 4 + i % 32 / 8])
        .collect()
}

/// Three steps from the golden weights: the reports, and the states after the first and the last.
fn train(golden: &SafeTensors<'_>, job: &Job) -> (Vec<StepReport>, Snapshot, Snapshot) {
    let mut trainer = Trainer::new(Setup {
        job,
        device: Device::Cpu,
        replicas: 0..1,
        cores: 1,
    })
    .unwrap();
    let mut state = trainer.snapshot().unwrap();
    let packed = if job.train.packing > 1 { "packed_" } else { "" };
    for (player, packed) in [("generator", ""), ("discriminator", packed)] {
        for tensor in state.files.get_mut(player).unwrap() {
            let initial = golden.tensor(&format!("initial.{packed}{player}.{}", tensor.name));
            match initial {
                Ok(initial) => {
                    assert_eq!(initial.shape(), tensor.shape);
                    tensor.bytes = initial.data().to_vec();
                }
                // Running statistics start as they do everywhere.
                Err(_) => assert!(
                    tensor.name.contains("running") || tensor.name.contains("tracked"),
                    "{}",
                    tensor.name
                ),
            }
        }
    }
    trainer.restore(&state).unwrap();
    let mut collective = InProcess::solo(1).unwrap();
    let mut reports = Vec::new();
    let mut first = None;
    for step in 0..STEPS {
        let batch = Batch {
            step: Step(step as u64),
            epoch: Epoch(0),
            replica: ReplicaId(0),
            pixels: pixels(golden, job, step).into(),
            labels: None,
        };
        let report = trainer.advance(vec![batch], &mut collective, Flags::default());
        reports.push(report.unwrap().unwrap());
        first.get_or_insert_with(|| trainer.snapshot().unwrap());
    }
    (reports, first.unwrap(), trainer.snapshot().unwrap())
}

fn numbers(golden: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let tensor = golden.tensor(name).unwrap_or_else(|_| panic!("{name}"));
    let bytes = tensor.data().as_chunks().0;
    bytes.iter().map(|&b| f64::from_le_bytes(b)).collect()
}

/// The norm of a vector, and its projection on cos(i)/√n.
fn digest(values: &[f32]) -> [f64; 2] {
    let values: Vec<f64> = values.iter().copied().map(f64::from).collect();
    let norm = values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let projection: f64 = (0..)
        .zip(&values)
        .map(|(i, x)| x * f64::from(i).cos())
        .sum();
    [norm, projection / (values.len() as f64).sqrt()]
}

fn gather<'a>(snapshot: &'a Snapshot, file: &'a str, part: &'a str) -> Vec<f32> {
    let named = snapshot.files[file]
        .iter()
        .filter(|tensor| tensor.name.contains(part));
    let bytes = named.flat_map(|tensor| tensor.bytes.as_chunks().0);
    bytes.map(|&b| f32::from_le_bytes(b)).collect()
}

fn close(what: &str, found: f64, expected: f64, scale: f64) -> f64 {
    let error = (found - expected).abs() / scale.abs().max(1e-3);
    assert!(error <= TOLERANCE, "{what}: {found} for {expected}");
    error
}

/// Compares a case, and returns the largest error.
fn compare(golden: &SafeTensors<'_>, case: &str, job: &Job) -> f64 {
    let (reports, first, last) = train(golden, job);
    let losses = numbers(golden, &format!("{case}.losses"));
    let beliefs = numbers(golden, &format!("{case}.beliefs"));
    let mut worst = 0f64;
    for (index, report) in reports.iter().enumerate() {
        let what = format!("{case}, step {index}");
        for (found, expected) in [
            (report.loss_d, losses[index * 2]),
            (report.loss_g, losses[index * 2 + 1]),
            (report.d_real, beliefs[index * 2]),
            (report.d_fake, beliefs[index * 2 + 1]),
        ] {
            // Where costs cancel, what is left has the error of what did.
            worst = worst.max(close(&what, found, expected, expected.abs().max(1.0)));
        }
        assert_eq!(report.nonfinite, 0);
    }
    for player in ["generator", "discriminator"] {
        for (when, state) in [("first", &first), ("last", &last)] {
            let moments = gather(state, "optimizer", &format!("{player}.exp_avg."));
            let name = format!("{case}.{player}.{when}");
            let expected = numbers(golden, &name);
            for (found, &value) in digest(&moments).iter().zip(&expected) {
                worst = worst.max(close(&name, *found, value, expected[0]));
            }
        }
    }
    let name = format!("{case}.running");
    let expected = numbers(golden, &name);
    for (found, &value) in digest(&gather(&last, "generator", "running"))
        .iter()
        .zip(&expected)
    {
        worst = worst.max(close(&name, *found, value, expected[0]));
    }
    worst
}

fn with_golden(check: impl FnOnce(&SafeTensors<'_>)) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/games.safetensors");
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    check(&SafeTensors::deserialize(&bytes).unwrap());
}

#[test]
fn steps_of_every_game_are_pytorchs() {
    with_golden(|golden| {
        let mut worst = 0f64;
        for objective in Objective::ALL {
            let set = format!("train.objective={objective}");
            worst = worst.max(compare(golden, &objective.to_string(), &job(&[&set])));
            let case = format!("{objective}.simultaneous");
            worst = worst.max(compare(golden, &case, &job(&[&set, SIMULTANEOUS])));
        }
        println!("at most {worst:e}");
    });
}

#[test]
fn steps_with_every_regulariser_are_pytorchs() {
    with_golden(|golden| {
        let mut worst = 0f64;
        for (case, sets) in REGULARISED {
            worst = worst.max(compare(golden, case, &job(sets)));
        }
        println!("at most {worst:e}");
    });
}
