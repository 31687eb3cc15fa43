//! Every game and every regulariser: the same bits, whoever computes them and on whichever way.

use super::ahead::{Tape, queued, train_ahead};
use super::*;
use crate::config::Override;
use std::collections::BTreeMap;

const NO_NORM: &str = "model.discriminator_norm=none";
const AUGMENT: &str = r#"regularise.augment=["color", "translation", "cutout"]"#;
const SIMULTANEOUS: &str = "train.update=simultaneous";

/// What is added to each, one by one and all at once.
const REGULARISED: [&[&str]; 13] = [
    &["regularise.r1=2", NO_NORM],
    &["regularise.r2=2", "model.discriminator_norm=layer"],
    &["regularise.gradient_penalty=3", NO_NORM],
    &["regularise.label_smoothing=0.1"],
    &[
        "regularise.instance_noise=0.5",
        "regularise.instance_noise_steps=3",
    ],
    &[r#"regularise.augment=["color"]"#],
    &[r#"regularise.augment=["translation"]"#],
    &[r#"regularise.augment=["cutout"]"#],
    &["train.packing=3"],
    &["model.spectral_norm=true", "train.objective=hinge"],
    &[
        "optimizer.schedule.decay=cosine",
        "optimizer.schedule.start=1",
        "optimizer.schedule.steps=9",
    ],
    &[
        "train.objective=relativistic",
        "regularise.r1=1",
        "regularise.r2=1",
        NO_NORM,
    ],
    &[
        "train.objective=relativistic",
        "regularise.r1=1",
        "regularise.r2=1",
        "regularise.gradient_penalty=2",
        "regularise.instance_noise=0.2",
        "regularise.instance_noise_steps=4",
        AUGMENT,
        "train.packing=3",
        "model.spectral_norm=true",
        NO_NORM,
    ],
];

/// Games with more than one update of a player in a step, which are alternating.
const ROUNDS: [&[&str]; 4] = [
    &["train.discriminator_steps=2"],
    &["train.generator_steps=2"],
    &[
        "train.objective=wasserstein",
        "train.discriminator_steps=3",
        NO_NORM,
    ],
    &[
        "train.objective=relativistic",
        "train.discriminator_steps=2",
        "train.generator_steps=3",
        "regularise.r1=1",
        "regularise.gradient_penalty=1",
        "regularise.instance_noise=0.2",
        "regularise.instance_noise_steps=4",
        AUGMENT,
        "train.packing=3",
        "model.spectral_norm=true",
        NO_NORM,
    ],
];

fn set(sets: &[&str]) -> Job {
    let text = toml::to_string(&job(Update::Alternating, 0.9)).unwrap();
    let sets: Vec<Override> = sets.iter().map(|set| set.parse().unwrap()).collect();
    parse(&text, "test", Path::new("."), &sets).unwrap()
}

/// All of them, by what they are called in a message.
fn all() -> BTreeMap<String, Job> {
    let mut sets: Vec<Vec<String>> = Vec::new();
    for objective in Objective::ALL {
        let objective = format!("train.objective={objective}");
        let norm = match objective.ends_with("wasserstein") {
            true => NO_NORM,
            false => "model.discriminator_norm=batch",
        };
        sets.push(vec![objective, norm.to_owned()]);
    }
    let owned = |sets: &[&str]| sets.iter().map(|&set| set.to_owned()).collect();
    sets.extend(REGULARISED.iter().map(|sets| owned(sets)));
    for both in sets.clone() {
        sets.push([both, vec![SIMULTANEOUS.to_owned()]].concat());
    }
    sets.extend(ROUNDS.iter().map(|sets| owned(sets)));
    sets.into_iter()
        .map(|sets| {
            let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
            (sets.join(" "), set(&sets))
        })
        .collect()
}

#[test]
fn every_game_has_the_same_bits_for_any_number_of_workers() {
    for (name, job) in all() {
        let alone = train(&mut trainer(&job, 0..REPLICAS, 2), 3);
        for ranges in [vec![0..1, 1..4], vec![0..1, 1..2, 2..4]] {
            for (state, _) in train_together(&job, &ranges, 3, |_| Flags::default()) {
                assert!(state == alone, "{name} on {ranges:?}");
            }
        }
    }
}

/// No key is without effect, and none has another's.
#[test]
fn every_game_has_bits_of_its_own() {
    // These differ by constants, and so have one gradient.
    let same = ["minimax", "f-gan", "f-js"];
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for (name, job) in all() {
        let state = train(&mut trainer(&job, 0..REPLICAS, 2), 2);
        if let Some(other) = seen.insert(crate::checkpoint::digest(&state), name.clone()) {
            let is_same = |name: &str| same.iter().any(|game| name.contains(game));
            assert!(is_same(&other) && is_same(&name), "{other} and {name}");
        }
    }
}

/// The first steps are done kernel by kernel, the last as they were recorded.
#[test]
fn every_game_has_the_same_bits_on_a_device_recorded_or_not() {
    for (name, job) in all() {
        let mut host = trainer(&job, 0..REPLICAS, 2);
        let mut device = trainer(&job, 0..REPLICAS, 1);
        let game = Arc::clone(&device.game);
        let tape = Box::new(Tape::default());
        let ahead = Ahead::new(&game, REPLICAS as usize, Some(tape)).unwrap();
        device.ahead = Some(Box::new(ahead));
        for recorded in [false, true] {
            let steps = if recorded { 5 } else { 3 };
            let expected: Vec<_> = (0..steps)
                .map(|_| advance(&mut host, &mut Alone::default()).unwrap())
                .collect();
            let found = train_ahead(&mut device, &mut queued(Alone::default()), steps);
            let state = host.snapshot().unwrap();
            assert!(device.snapshot().unwrap() == state, "{name}, {recorded}");
            for (found, expected) in found.iter().zip(&expected) {
                let figures = |report: &StepReport| {
                    let beliefs = [report.d_real, report.d_fake];
                    ([report.loss_d, report.loss_g], beliefs, report.nonfinite)
                };
                assert_eq!(figures(found), figures(expected), "{name}");
            }
            let stretches = &device.ahead.as_ref().unwrap().stretches;
            assert_eq!(stretches.is_recorded(0), recorded, "{name}");
        }
    }
}

#[test]
fn bf16_goes_through_every_regulariser() {
    for sets in REGULARISED.iter().chain(&ROUNDS) {
        let mut job = set(sets);
        job.train.precision = crate::config::Precision::Bf16;
        let mut trainer = trainer(&job, 0..REPLICAS, 2);
        let report = advance(&mut trainer, &mut Alone::default()).unwrap();
        assert_eq!(report.nonfinite, 0, "{sets:?}");
        assert!(
            report.loss_d.is_finite() && report.loss_g.is_finite(),
            "{sets:?}"
        );
        let alone = train(&mut trainer, 1);
        for (state, _) in train_together(&job, &[0..3, 3..4], 2, |_| Flags::default()) {
            assert!(state == alone, "{sets:?}");
        }
    }
}

#[test]
fn a_step_counts_what_it_did() {
    let job = set(&["train.discriminator_steps=2", "train.generator_steps=3"]);
    let mut trainer = trainer(&job, 0..REPLICAS, 2);
    let state = train(&mut trainer, 2);
    let tracked = |file, name| count(tensor(&state, file, name));
    assert_eq!(tracked("generator", "main.1.num_batches_tracked"), 2 * 3);
    // Real images and fakes for each of D's updates, fakes once more for each of G's.
    assert_eq!(
        tracked("discriminator", "main.3.num_batches_tracked"),
        2 * (2 * 2 + 3)
    );
    assert_eq!(tracked("optimizer", "step"), 2);
    // Adam's count is of updates: with it wrong, the first moments would be corrected wrongly, which
    // tests/games.rs would see.
    let counts = trainer.pace.updates.each_ref().map(|updates| {
        let counts = updates.iter().map(|update| update.count.double_value(&[]));
        counts.collect::<Vec<_>>()
    });
    assert_eq!(counts, [vec![4.0, 5.0, 6.0], vec![3.0, 4.0]]);
}

/// A schedule goes by the state's step, whoever computes it: rates after a restart are those of one
/// run.
#[test]
fn rates_fall_as_the_schedule_says_through_a_restart() {
    let job = set(&[
        "optimizer.generator.learning_rate=0.004",
        "optimizer.discriminator.learning_rate=0.002",
        "optimizer.schedule.decay=linear",
        "optimizer.schedule.start=1",
        "optimizer.schedule.steps=4",
        "optimizer.schedule.end=0.5",
    ]);
    let mut trainer = trainer(&job, 0..REPLICAS, 2);
    for (step, share) in [1.0, 0.875, 0.75, 0.625, 0.5, 0.5].into_iter().enumerate() {
        if step == 3 {
            let state = trainer.snapshot().unwrap();
            trainer = super::trainer(&job, 0..REPLICAS, 1);
            trainer.restore(&state).unwrap();
        }
        advance(&mut trainer, &mut Alone::default()).unwrap();
        let [g, d] = (trainer.pace.updates.each_ref()).map(|updates| &updates[0].rate);
        let rates = [g, d].map(|rate| rate.double_value(&[]));
        assert_eq!(rates, [0.004 * share, 0.002 * share], "step {}", step + 1);
        assert_eq!(trainer.rate(), share);
    }
}

/// At a rate of 0 nothing moves any more but what is no parameter.
#[test]
fn a_rate_of_zero_leaves_the_parameters_alone() {
    let job = set(&[
        "optimizer.schedule.decay=linear",
        "optimizer.schedule.steps=2",
    ]);
    let mut trainer = trainer(&job, 0..REPLICAS, 2);
    let mut states = (0..3).map(|_| train(&mut trainer, 1));
    let [first, second, third] = [(); 3].map(|()| states.next().unwrap());
    for network in ["generator", "discriminator"] {
        let weights = |state| floats(tensor(state, network, "main.0.weight"));
        assert_eq!(weights(&third), weights(&second), "{network}");
    }
    // Half of the rate was left in the first.
    let [untrained, one] =
        [0, 1].map(|steps| train(&mut super::trainer(&job, 0..REPLICAS, 2), steps));
    let weights = |state| floats(tensor(state, "generator", "main.0.weight"));
    assert_eq!(weights(&one), weights(&first));
    assert_ne!(weights(&one), weights(&untrained));
}

#[test]
fn what_is_not_finite_is_counted_in_every_update() {
    let job = set(&["train.discriminator_steps=2", "train.generator_steps=2"]);
    let mut broken = train(&mut trainer(&job, 0..REPLICAS, 2), 1);
    let weight = &mut broken.files.get_mut("generator").unwrap()[0];
    weight.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let mut host = trainer(&job, 0..REPLICAS, 2);
    host.restore(&broken).unwrap();
    let expected = advance(&mut host, &mut Alone::default()).unwrap();
    let mut device = trainer(&job, 0..REPLICAS, 2);
    device.restore(&broken).unwrap();
    let found = train_ahead(&mut device, &mut queued(Alone::default()), 1);
    assert_eq!(found[0].nonfinite, expected.nonfinite);
    // All gradients of both updates of both players, and more batch statistics than one update has.
    let parameters = crate::model::architecture::parameters(&job.model, 1) as u64;
    let game = &host.game;
    let statistics = (game.generator.statistics + 3 * game.discriminator.statistics) as u64;
    assert!(
        (parameters + 1..=2 * (parameters + statistics)).contains(&expected.nonfinite),
        "{}",
        expected.nonfinite
    );
}

#[test]
fn a_batch_has_samples_for_every_update_of_d() {
    let job = set(&["train.discriminator_steps=2"]);
    let mut trainer = trainer(&job, 0..2, 1);
    let mut short = batch(&job, 0, 1);
    if let Pixels::Bytes(bytes) = &mut short.pixels {
        bytes.truncate(bytes.len() / 2);
    }
    let batches = vec![batch(&job, 0, 0), short];
    let error = trainer
        .advance(batches, &mut Alone::default(), Flags::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("train.discriminator_steps"), "{error}");
}

#[test]
fn every_round_has_draws_of_its_own() {
    let job = set(&[
        "train.discriminator_steps=2",
        "train.generator_steps=2",
        "regularise.instance_noise=1",
        "regularise.instance_noise_steps=4",
        "regularise.gradient_penalty=1",
        NO_NORM,
        AUGMENT,
    ]);
    let game = Game::new(&job, Device::Cpu);
    let batch = batch(&job, 0, 0);
    let inputs: Vec<_> = (0..game.rounds.all())
        .map(|round| game.inputs(&batch, round, None).unwrap())
        .collect();
    assert_eq!(inputs.len(), 3);
    for (a, b) in [(0, 1), (1, 2), (0, 2)] {
        let (first, second) = (&inputs[a], &inputs[b]);
        assert!(!first.latents.equal(&second.latents));
        // G's further round has no real samples of its own.
        assert_eq!(first.pixels.equal(&second.pixels), (a, b) == (1, 2));
        let of = |round: usize| {
            let numbers = (Step(0), ReplicaId(0), round as u32);
            game.regularisers.draw(numbers)
        };
        assert!(of(a).iter().zip(of(b)).filter(|(x, y)| **x == *y).count() < of(a).len() / 2);
        let shown = |round: usize, side| {
            let flat = Tensor::zeros(game.images, (tch::Kind::Float, Device::Cpu));
            let chance = &inputs[round].chance;
            game.regularisers.show(&flat, side, chance).unwrap()
        };
        use crate::regularise::Side::{Fake, Real};
        assert!(!shown(a, Real).equal(&shown(b, Real)));
        assert!(!shown(a, Real).equal(&shown(a, Fake)));
    }
    // σ falls along a line to nothing.
    let deviations = [0, 1, 2, 4, 9].map(|step| game.regularisers.deviation(Step(step)));
    assert_eq!(deviations, [1.0, 0.75, 0.5, 0.0, 0.0]);
}
