//! Every kind of network, as exact as the default.

use super::ahead::{queued, train_ahead};
use super::*;
use crate::config::{
    BatchNorm, Conditional, Distribution, Family, HiddenNoise, LatentInput, MemoryFormat, Model,
    Normalisation, Precision,
};

/// Variations of the small job's networks, each with more than one at a time: together they have all.
fn variants() -> Vec<(&'static str, Model)> {
    let small = job(Update::Alternating, 0.0).model;
    let point = Model {
        architecture: Family::Mlp,
        generator_layers: 2,
        discriminator_layers: 2,
        maxout_pieces: 3,
        generator_width: 8,
        discriminator_width: 8,
        ..small.clone()
    };
    let with = |change: &dyn Fn(&mut Model), of: &Model| {
        let mut model = of.clone();
        change(&mut model);
        model
    };
    let told = |model: &mut Model, conditional| {
        model.conditional = conditional;
        model.classes = 5;
    };
    vec![
        (
            "wide enough for Winograd's filtering",
            with(
                &|model| {
                    model.generator_width = 32;
                    model.discriminator_width = 32;
                },
                &small,
            ),
        ),
        (
            "spectral norm without another",
            with(
                &|model| {
                    model.spectral_norm = true;
                    model.discriminator_norm = Normalisation::None;
                    model.latent_distribution = Distribution::Uniform;
                },
                &small,
            ),
        ),
        (
            "layer norm, 5×5 kernels on 28×28",
            with(
                &|model| {
                    model.discriminator_norm = Normalisation::Layer;
                    model.image_size = 28;
                    model.kernel = 5;
                },
                &small,
            ),
        ),
        (
            "split latents, additive noise, labels by concatenation, 4×4 kernels on 28×28",
            with(
                &|model| {
                    model.latent_input = LatentInput::Split;
                    model.hidden_noise = HiddenNoise::Additive;
                    model.image_size = 28;
                    told(model, Conditional::Concatenation);
                },
                &small,
            ),
        ),
        (
            "multiplicative noise, binary latents, labels by projection, spectral norm beside batch norm",
            with(
                &|model| {
                    model.hidden_noise = HiddenNoise::Multiplicative;
                    model.spectral_norm = true;
                    model.binary_latents = 2;
                    told(model, Conditional::Projection);
                },
                &small,
            ),
        ),
        (
            "batch norm of both together",
            with(&|model| model.batch_norm = BatchNorm::Together, &small),
        ),
        (
            "a level of a pyramid, with labels",
            with(
                &|model| {
                    model.pyramid = true;
                    told(model, Conditional::Concatenation);
                },
                &small,
            ),
        ),
        (
            "a level of a pyramid, batch norm together",
            with(
                &|model| {
                    model.pyramid = true;
                    model.batch_norm = BatchNorm::Together;
                },
                &small,
            ),
        ),
        ("points", point.clone()),
        (
            "points, split latents, noise, labels by concatenation, spectral norm",
            with(
                &|model| {
                    model.latent_input = LatentInput::Split;
                    model.hidden_noise = HiddenNoise::Multiplicative;
                    model.spectral_norm = true;
                    model.binary_latents = 2;
                    told(model, Conditional::Concatenation);
                },
                &point,
            ),
        ),
        (
            "points, labels by projection",
            with(&|model| told(model, Conditional::Projection), &point),
        ),
    ]
}

fn varied(update: Update, model: &Model) -> Job {
    let mut job = job(update, 0.9);
    job.model = model.clone();
    job
}

#[test]
fn every_network_is_the_same_for_any_number_of_threads_and_workers_and_when_resumed() {
    for (name, model) in variants() {
        for update in UPDATES {
            let job = varied(update, &model);
            let alone = train(&mut trainer(&job, 0..REPLICAS, 1), 4);
            let threads = train(&mut trainer(&job, 0..REPLICAS, 4), 4);
            assert!(alone == threads, "{name}, {update:?}: threads");
            for (state, report) in train_together(&job, &[0..1, 1..4], 4, |_| Flags::default()) {
                assert!(state == alone, "{name}, {update:?}: workers");
                assert_eq!(report.nonfinite, 0, "{name}");
            }
            let saved = train(&mut trainer(&job, 0..REPLICAS, 2), 2);
            let mut resumed = trainer(&job, 0..REPLICAS, 2);
            resumed.restore(&saved).unwrap();
            assert!(
                train(&mut resumed, 2) == alone,
                "{name}, {update:?}: resumed"
            );
            let mut device = trainer(&job, 0..REPLICAS, 2);
            train_ahead(&mut device, &mut queued(Alone::default()), 4);
            assert!(
                device.snapshot().unwrap() == alone,
                "{name}, {update:?}: on a device"
            );
        }
    }
}

#[test]
fn every_network_computes_in_every_precision_and_order() {
    for (name, model) in variants() {
        let mut job = varied(Update::Alternating, &model);
        let single = train(&mut trainer(&job, 0..REPLICAS, 2), 1);
        for (precision, order) in [
            (Precision::F32, MemoryFormat::Contiguous),
            (Precision::Bf16, MemoryFormat::ChannelsLast),
            (Precision::Bf16, MemoryFormat::Contiguous),
        ] {
            job.train.precision = precision;
            job.train.memory_format = order;
            let mut trainer = trainer(&job, 0..REPLICAS, 2);
            let report = advance(&mut trainer, &mut Alone::default()).unwrap();
            assert_eq!(report.nonfinite, 0, "{name} in {precision}");
            let found = trainer.snapshot().unwrap();
            // Adam's first step is as long for any gradient, but its first moment tells.
            for tensor in &single.files["optimizer"] {
                if !tensor.name.contains("exp_avg.") {
                    continue;
                }
                let expected = floats(tensor);
                let found = floats(super::tensor(&found, "optimizer", &tensor.name));
                let off = expected
                    .iter()
                    .zip(&found)
                    .map(|(a, b)| f64::from(a - b).powi(2));
                let size = expected.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
                let off = (off.sum::<f64>() / size.max(1e-24)).sqrt();
                // Few and narrow layers, where sums nearly cancel: bf16 is only near.
                let bound = if precision == Precision::Bf16 {
                    0.6
                } else {
                    1e-2
                };
                assert!(
                    off < bound,
                    "{name}, {precision}, {order:?}: {} {off}",
                    tensor.name
                );
            }
        }
    }
}

#[test]
fn all_parameters_of_every_network_are_trained() {
    for (name, model) in variants() {
        let job = varied(Update::Alternating, &model);
        let mut trainer = trainer(&job, 0..REPLICAS, 2);
        let before = trainer.snapshot().unwrap();
        train(&mut trainer, 2);
        let after = trainer.snapshot().unwrap();
        for file in ["generator", "discriminator"] {
            for (old, new) in before.files[file].iter().zip(&after.files[file]) {
                // Of a head, u is 1 or -1.
                if old.name.ends_with("_u") && old.shape == [1] {
                    continue;
                }
                assert_ne!(
                    old.bytes, new.bytes,
                    "{name}: {file} {} stayed as it was",
                    old.name
                );
            }
        }
        // Rows of labels that nobody has seen stay, others don't: G depends on the label.
        let sampler = Sampler::new(&job.model, &after.files["generator"], Device::Cpu).unwrap();
        let latents = Latents::of(&job.model, Key::new(Domain::Samples, &[1]), 3).unwrap();
        if job.model.pyramid {
            assert!(
                sampler.values(&latents, &[0, 0, 0]).is_err(),
                "there is nothing to refine"
            );
            let grey: Vec<f32> = (0..3 * 256)
                .map(|i| (i % 256) as f32 / 128.0 - 1.0)
                .collect();
            let images = sampler.refine(&grey, &latents, &[0, 0, 0]).unwrap();
            assert_eq!(images.len(), 3 * 1024);
            // A band is added: the image is near the coarser one, in each square of 2×2.
            let off: f32 = (0..256)
                .map(|i| {
                    let at = i / 16 * 2 * 32 + i % 16 * 2;
                    let square = images[at] + images[at + 1] + images[at + 32] + images[at + 33];
                    (square / 4.0 - grey[i]).abs() / 256.0
                })
                .sum();
            assert!(off < 0.5, "{off}");
            continue;
        }
        let zeros = sampler.values(&latents, &[0, 0, 0]).unwrap();
        assert!(zeros.iter().all(|value| value.is_finite()), "{name}");
        if job.model.is_conditional() {
            assert_ne!(
                zeros,
                sampler.values(&latents, &[1, 1, 1]).unwrap(),
                "{name}"
            );
            let error = sampler
                .values(&latents, &[0, 5, 0])
                .unwrap_err()
                .to_string();
            assert!(error.contains("0 to 4"), "{error}");
        }
        // An image is a function of its latent and its label, hidden noise and all.
        let one = Latents::new(6, latents.values()[6..12].to_vec()).unwrap();
        let size = zeros.len() / 3;
        assert_eq!(
            sampler.values(&one, &[0]).unwrap(),
            zeros[size..2 * size],
            "{name}"
        );
    }
}

#[test]
fn a_pyramid_is_drawn_from_coarse_to_fine() {
    let level = |image_size: u32, pyramid: bool| {
        let mut job = job(Update::Alternating, 0.0);
        job.model.image_size = image_size;
        job.model.pyramid = pyramid;
        job.data.reduce = 32 / image_size;
        let mut trainer = trainer(&job, 0..REPLICAS, 2);
        let state = train(&mut trainer, 1);
        Sampler::new(&job.model, &state.files["generator"], Device::Cpu).unwrap()
    };
    let pyramid = Pyramid::new(vec![level(8, false), level(16, true), level(32, true)]).unwrap();
    let images = pyramid.draw(3, &[0; 5]).unwrap();
    assert_eq!(images.len(), 5 * 32 * 32);
    // An image doesn't depend on how many are drawn, and begins with the coarsest level's.
    assert_eq!(pyramid.draw(3, &[0; 5]).unwrap(), images);
    for (levels, says) in [
        (vec![level(16, true)], "below it"),
        (vec![level(8, false), level(32, true)], "twice the side"),
        (vec![level(8, false), level(16, false)], "model.pyramid"),
        (vec![], "at least one"),
    ] {
        let error = Pyramid::new(levels).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn labels_that_do_not_fit_are_refused_by_name() {
    let mut job = job(Update::Alternating, 0.0);
    job.model.conditional = Conditional::Projection;
    job.model.classes = 3;
    let mut trainer = trainer(&job, 0..1, 1);
    let refused = |trainer: &mut Trainer, labels: Option<Vec<u32>>| {
        let batch = Batch {
            labels,
            ..batch(&job, 0, 0)
        };
        let error = trainer.advance(vec![batch], &mut Alone::default(), Flags::default());
        error.unwrap_err().to_string()
    };
    assert!(refused(&mut trainer, None).contains("model.conditional"));
    assert!(refused(&mut trainer, Some(vec![0, 3, 1])).contains("label 3"));
    assert!(refused(&mut trainer, Some(vec![0, 1])).contains("2 labels"));
}

#[test]
fn spectral_norm_follows_every_weights_largest_singular_value() {
    let mut job = job(Update::Alternating, 0.0);
    job.model.spectral_norm = true;
    job.model.discriminator_norm = Normalisation::None;
    let mut trainer = trainer(&job, 0..REPLICAS, 2);
    let state = train(&mut trainer, 20);
    for tensor in &state.files["discriminator"] {
        let Some(name) = tensor.name.strip_suffix("weight_orig") else {
            continue;
        };
        let rows = tensor.shape[0] as i64;
        let weight = Tensor::from_slice(&floats(tensor)).view([rows, -1]);
        let vector = |of: &str| {
            let name = format!("{name}weight_{of}");
            Tensor::from_slice(&floats(super::tensor(&state, "discriminator", &name)))
        };
        let (u, v) = (vector("u"), vector("v"));
        let sigma = u.dot(&weight.mv(&v)).double_value(&[]);
        let (_, singular, _) = weight.svd(true, true);
        let truth = singular.max().double_value(&[]);
        // One iteration a step lags behind weights that move, and never gives too much.
        assert!(
            (0.75..1.001).contains(&(sigma / truth)),
            "{name}: {sigma} for {truth}"
        );
        for vector in [u, v] {
            assert!((vector.norm().double_value(&[]) - 1.0).abs() < 1e-5);
        }
    }
}
