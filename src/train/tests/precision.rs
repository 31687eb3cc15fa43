//! Other arithmetic: near single precision, and as exact from worker to worker.

use super::*;
use crate::config::{MemoryFormat, Precision};

/// Each precision and memory format that a CPU has, but for the default.
const OTHERS: [(Precision, MemoryFormat); 3] = [
    (Precision::F32, MemoryFormat::Contiguous),
    (Precision::Bf16, MemoryFormat::ChannelsLast),
    (Precision::Bf16, MemoryFormat::Contiguous),
];

fn computing(update: Update, (precision, order): (Precision, MemoryFormat)) -> Job {
    let mut job = job(update, 0.9);
    job.train.precision = precision;
    job.train.memory_format = order;
    job
}

/// A tensor's name and values.
type Named = (String, Vec<f32>);

/// Adam's first moments after one step, which are the mean gradient times 1 - β1, and the losses.
fn first_step(job: &Job) -> (Vec<Named>, [f64; 2], Snapshot) {
    let mut trainer = trainer(job, 0..REPLICAS, 2);
    let before = trainer.snapshot().unwrap();
    let report = advance(&mut trainer, &mut Alone::default()).unwrap();
    let after = trainer.snapshot().unwrap();
    let moments = after.files["optimizer"]
        .iter()
        .filter(|tensor| tensor.name.contains("exp_avg."))
        .map(|tensor| (tensor.name.clone(), floats(tensor)))
        .collect();
    (moments, [report.loss_d, report.loss_g], before)
}

/// Wide enough that batch norm has something to average over: with few channels and images the
/// rounding of bf16 is a large share of sums that nearly cancel.
fn wider(mut job: Job) -> Job {
    job.train.batch = 12;
    job.model.generator_width = 16;
    job.model.discriminator_width = 16;
    job
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// How far the gradients may be from single precision's: all of them together, and each tensor's, as
/// shares of the norm; and the losses. In another order of f32, rounding. In bf16, ten layers of
/// activations with 8 bits: 6 % of all, 10 % of the first layer's that they are passed back to, and
/// 3e-4 were measured.
fn bounds(precision: Precision) -> (f64, f64, f64) {
    match precision {
        Precision::Bf16 => (0.1, 0.15, 0.001),
        _ => (1e-4, 1e-3, 1e-5),
    }
}

#[test]
fn gradients_and_losses_are_near_single_precisions() {
    for update in UPDATES {
        let (expected, losses, start) = first_step(&wider(job(update, 0.9)));
        for other in OTHERS {
            let (found, found_losses, found_start) = first_step(&wider(computing(update, other)));
            assert!(found_start == start, "State(0) is the same in {other:?}");
            let (of_all, of_one, of_loss) = bounds(other.0);
            for (found, expected) in found_losses.iter().zip(losses) {
                let error = (found - expected).abs();
                assert!(error <= of_loss, "{other:?}: {found} for {expected}");
            }
            let (mut errors, mut scales) = (Vec::new(), Vec::new());
            for ((name, found), (other_name, expected)) in found.iter().zip(&expected) {
                assert_eq!(name, other_name);
                let pairs = found.iter().zip(expected);
                let error = norm(pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
                let scale = norm(expected.iter().map(|value| f64::from(*value)));
                assert!(
                    scale > 0.0 && error <= of_one * scale,
                    "{update:?}, {other:?}: {name} is off by {error:e}, its norm is {scale:e}"
                );
                errors.push(error);
                scales.push(scale);
            }
            let (error, scale) = (norm(errors.into_iter()), norm(scales.into_iter()));
            assert!(error <= of_all * scale, "{update:?}, {other:?}: {error:e}");
            assert!(error > 0.0, "{other:?} computes as the default does");
        }
    }
}

#[test]
fn the_state_is_the_same_for_any_number_of_threads_and_workers_in_every_precision() {
    for update in UPDATES {
        for other in OTHERS {
            let job = computing(update, other);
            let alone = train(&mut trainer(&job, 0..REPLICAS, 1), 3);
            let threads = train(&mut trainer(&job, 0..REPLICAS, 4), 3);
            assert!(alone == threads, "{update:?}, {other:?}");
            for (state, _) in train_together(&job, &[0..1, 1..4], 3, |_| Flags::default()) {
                assert!(state == alone, "{update:?}, {other:?}");
            }
        }
    }
}

#[test]
fn a_resumed_job_is_the_uninterrupted_one_in_every_precision() {
    for other in OTHERS {
        let job = computing(Update::Alternating, other);
        let straight = train(&mut trainer(&job, 0..REPLICAS, 2), 4);
        let saved = train(&mut trainer(&job, 0..REPLICAS, 2), 2);
        let mut resumed = trainer(&job, 0..REPLICAS, 2);
        resumed.restore(&saved).unwrap();
        assert!(train(&mut resumed, 2) == straight, "{other:?}");
        // Samples are drawn in single precision, whatever the networks train in.
        let latents = Latents::draw(Key::new(Domain::Samples, &[3]), 2, 6).unwrap();
        let tensors = &straight.files["generator_ema"];
        let sampler = Sampler::new(&job.model, tensors, Device::Cpu).unwrap();
        let (drawn, expected) = (
            resumed.sample(&latents).unwrap(),
            sampler.sample(&latents).unwrap(),
        );
        let far = drawn.iter().zip(&expected).any(|(a, b)| a.abs_diff(*b) > 1);
        assert!(!far, "{other:?}");
    }
}

#[test]
fn what_travels_is_single_precision_and_not_rounded_to_less() {
    let job = computing(Update::Alternating, OTHERS[1]);
    let state = train(&mut trainer(&job, 0..REPLICAS, 2), 2);
    for (file, name) in [
        ("generator", "main.3.weight"),
        ("optimizer", "discriminator.exp_avg.main.2.weight"),
    ] {
        let values = floats(tensor(&state, file, name));
        let fine = values.iter().filter(|value| value.to_bits() & 0xffff != 0);
        assert!(fine.count() > values.len() / 2, "{name} is bfloat16");
    }
}

#[test]
fn a_precision_that_the_device_lacks_is_refused() {
    let job = computing(
        Update::Alternating,
        (Precision::Tf32, MemoryFormat::ChannelsLast),
    );
    let error = Trainer::new(Setup {
        job: &job,
        device: Device::Cpu,
        replicas: 0..REPLICAS,
        cores: 1,
    })
    .unwrap_err();
    assert!(
        matches!(
            error,
            TrainError::Precision {
                precision: Precision::Tf32,
                ..
            }
        ),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("\"tf32\" can't be had on a CPU") && text.contains("use train.precision"),
        "{text}"
    );
}

#[test]
fn what_a_job_gives_up_is_said() {
    let sure = trainer(&job(Update::Alternating, 0.0), 0..1, 1);
    assert!(sure.remarks().is_empty(), "{:?}", sure.remarks());
    let mut job = job(Update::Alternating, 0.0);
    job.train.deterministic = false;
    // Other tests compute by deterministic rules meanwhile: on a CPU these are the same.
    let remarks = trainer(&job, 0..1, 1).remarks().join("\n");
    assert!(remarks.contains("train.deterministic = false"), "{remarks}");
    assert!(remarks.contains("changes nothing on a CPU"), "{remarks}");
}
