//! What a step does.

use super::*;

#[test]
fn a_step_trains_both_networks_and_reports_it() {
    for update in UPDATES {
        let job = job(update, 0.0);
        let mut trainer = trainer(&job, 0..REPLICAS, 2);
        let before = trainer.snapshot().unwrap();
        let report = advance(&mut trainer, &mut Alone::default()).unwrap();
        let after = trainer.snapshot().unwrap();
        assert_eq!(
            (report.step, trainer.step(), after.step),
            (Step(1), Step(1), Step(1))
        );
        assert_eq!(report.nonfinite, 0);
        assert!(report.grad_norm_d > 0.0 && report.grad_norm_g > 0.0);
        // At the start D is near ½ everywhere, where J_D = 2 ln 2 and J_G = ln 2.
        assert!((report.loss_d - 1.386).abs() < 0.5 && (report.loss_g - 0.693).abs() < 0.5);
        assert!((0.2..0.8).contains(&report.d_real) && (0.2..0.8).contains(&report.d_fake));
        for file in ["generator", "discriminator"] {
            for (old, new) in before.files[file].iter().zip(&after.files[file]) {
                assert_ne!(old.bytes, new.bytes, "{file} {} stayed as it was", old.name);
            }
        }
        let tracked = |file| {
            count(tensor(
                &after,
                file,
                if file == "generator" {
                    "main.1.num_batches_tracked"
                } else {
                    "main.3.num_batches_tracked"
                },
            ))
        };
        let looks = if update == Update::Alternating { 3 } else { 2 };
        assert_eq!((tracked("generator"), tracked("discriminator")), (1, looks));
        assert_eq!(count(tensor(&after, "optimizer", "step")), 1);
        assert_eq!(report.sent_bytes, 0, "nobody else is there");
    }
}

#[test]
fn the_generators_half_leaves_the_discriminator_alone() {
    let job = job(Update::Alternating, 0.0);
    let game = Game::new(&job, Device::Cpu);
    let state = State::initial(&job, &game.generator, &game.discriminator, Device::Cpu).unwrap();
    let zeros = |len: usize| Tensor::zeros([len as i64], (tch::Kind::Float, Device::Cpu));
    let vectors = Vectors {
        discriminator: zeros(game.discriminator_layout.len),
        generator: zeros(game.generator_layout.len),
    };
    let (of_d, of_g) = (
        vectors.discriminator.shallow_clone(),
        vectors.generator.shallow_clone(),
    );
    let weights = Weights::of(&state.generator, &state.discriminator);
    let d = weights.discriminator.copy();
    let inputs = game.inputs(&batch(&job, 0, 0), 0, None).unwrap();
    let fakes = game.discriminate(&weights, &inputs, vectors).unwrap();
    let judged = of_d.copy();
    assert_eq!(
        part(&of_g, &game.generator_layout.gradients)
            .unwrap()
            .abs()
            .max()
            .double_value(&[]),
        0.0
    );
    game.deceive(fakes, &weights.discriminator).unwrap();
    assert!(
        weights.discriminator.equal(&d),
        "D's parameters changed in G's half"
    );
    assert!(of_d.equal(&judged), "D's gradients changed in G's half");
    assert!(
        part(&of_g, &game.generator_layout.gradients)
            .unwrap()
            .abs()
            .max()
            .double_value(&[])
            > 0.0
    );
}

#[test]
fn flags_are_everybodys_at_the_same_step() {
    let job = job(Update::Simultaneous, 0.0);
    let raised = |rank| Flags {
        leaving: rank == 1,
        ..Flags::default()
    };
    for (_, report) in train_together(&job, &[0..1, 1..2, 2..4], 1, raised) {
        assert_eq!(report.flags, raised(1));
        // Of three slices a worker sends two as sums, and its own to two peers as the mean.
        let gradients = crate::model::architecture::parameters(&job.model, 1) as u64;
        let floor = 4 * gradients * 4 / 3;
        assert!(
            (floor..2 * floor).contains(&report.sent_bytes),
            "{report:?}"
        );
    }
}

#[test]
fn the_average_follows_the_generator_with_its_running_statistics() {
    // At step 2 the decay is at most 3/12: the average forgets the initialisation first.
    let job = job(Update::Alternating, 0.75);
    let decay = 0.25;
    let mut trainer = trainer(&job, 0..REPLICAS, 2);
    let before = train(&mut trainer, 1);
    let after = train(&mut trainer, 1);
    for name in [
        "main.3.weight",
        "main.1.bias",
        "main.1.running_mean",
        "main.4.running_var",
    ] {
        let old = floats(tensor(&before, "generator_ema", name));
        let new = floats(tensor(&after, "generator_ema", name));
        let to = floats(tensor(&after, "generator", name));
        for ((old, new), to) in old.iter().zip(&new).zip(&to) {
            let expected = decay * f64::from(*old) + (1.0 - decay) * f64::from(*to);
            assert!(
                (f64::from(*new) - expected).abs() < 1e-6,
                "{name}: {new} for {expected}"
            );
        }
        assert_ne!(new, to);
    }
    assert_eq!(
        count(tensor(
            &after,
            "generator_ema",
            "main.1.num_batches_tracked"
        )),
        2
    );

    let latents = Latents::draw(Key::new(Domain::Samples, &[11]), 3, 6).unwrap();
    let sampler = |file: &str| Sampler::new(&job.model, &after.files[file], Device::Cpu).unwrap();
    let drawn = trainer.sample(&latents).unwrap();
    assert_eq!(drawn, sampler("generator_ema").sample(&latents).unwrap());
    assert_eq!(drawn, sampler("generator_ema").draw(11, 3).unwrap());
    assert_ne!(drawn, sampler("generator").sample(&latents).unwrap());
}

#[test]
fn an_image_does_not_depend_on_its_neighbours() {
    let job = job(Update::Alternating, 0.0);
    let mut trainer = trainer(&job, 0..REPLICAS, 2);
    train(&mut trainer, 2);
    let many = Latents::draw(Key::new(Domain::Samples, &[1]), 21, 6).unwrap();
    let all = trainer.sample(&many).unwrap();
    assert_eq!(all.len(), 21 * 32 * 32);
    assert!(all.iter().any(|&pixel| pixel != all[0]));
    for index in [0, 5, 20] {
        let one = Latents::new(6, many.values()[index * 6..][..6].to_vec()).unwrap();
        assert_eq!(trainer.sample(&one).unwrap(), all[index * 1024..][..1024]);
    }
    let wrong = Latents::new(5, vec![0.0; 10]).unwrap();
    assert!(matches!(
        trainer.sample(&wrong),
        Err(TrainError::Latents {
            found: 5,
            expected: 6
        })
    ));
}
