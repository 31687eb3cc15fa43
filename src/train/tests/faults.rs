//! What a failure leaves behind: nothing.

use super::*;

#[test]
fn a_failed_reduction_leaves_the_state_untouched() {
    for update in UPDATES {
        let job = job(update, 0.9);
        let mut trainer = trainer(&job, 0..REPLICAS, 2);
        for fails_at in [1, 2] {
            let before = trainer.snapshot().unwrap();
            let mut failing = Alone {
                fails_at: Some(fails_at),
                ..Alone::default()
            };
            let error = advance(&mut trainer, &mut failing).unwrap_err();
            assert!(matches!(error, TrainError::Collective { .. }), "{error}");
            assert!(
                trainer.snapshot().unwrap() == before,
                "{update:?} {fails_at}"
            );
            advance(&mut trainer, &mut Alone::default()).unwrap();
        }
        let straight = train(&mut self::trainer(&job, 0..REPLICAS, 2), 2);
        assert!(
            trainer.snapshot().unwrap() == straight,
            "{update:?}: done again, another result"
        );
    }
}

/// Half a step leaves graphs on the threads, and in them vectors that other replicas get next.
#[test]
fn replicas_move_after_half_a_step_without_changing_a_bit() {
    for update in UPDATES {
        let job = job(update, 0.0);
        let mut trainer = trainer(&job, 0..REPLICAS, 2);
        for hosted in [0..1, 1..4, 0..3, 2..4] {
            trainer.host(hosted).unwrap();
            let mut failing = Alone {
                fails_at: Some(1),
                ..Alone::default()
            };
            advance(&mut trainer, &mut failing).unwrap_err();
        }
        trainer.host(0..REPLICAS).unwrap();
        let straight = train(&mut self::trainer(&job, 0..REPLICAS, 1), 2);
        assert!(train(&mut trainer, 2) == straight, "{update:?}");
    }
}

/// A game whose generator cost can't be computed.
#[derive(Debug)]
struct Broken;

impl objective::Objective for Broken {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        objective::of(Objective::NonSaturating, 0.0).discriminator(real, fake)
    }
    fn generator(&self, _: &Tensor, _: Option<&Tensor>) -> Result<Tensor, TorchError> {
        panic!("no such game")
    }
}

#[test]
fn a_panic_in_a_replica_is_an_error_that_names_it_and_changes_nothing() {
    for update in UPDATES {
        let job = job(update, 0.0);
        let game = Game {
            objective: Box::new(Broken),
            ..Game::new(&job, Device::Cpu)
        };
        let setup = Setup {
            job: &job,
            device: Device::Cpu,
            replicas: 1..3,
            cores: 2,
        };
        let mut trainer = Trainer::playing(game, setup).unwrap();
        let before = trainer.snapshot().unwrap();
        for _ in 0..2 {
            let error = advance(&mut trainer, &mut Alone::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("replica 1") && error.contains("no such game"),
                "{error}"
            );
            assert!(trainer.snapshot().unwrap() == before);
        }
    }
}

#[test]
fn batches_of_other_steps_or_replicas_are_refused() {
    let job = job(Update::Alternating, 0.0);
    let mut trainer = trainer(&job, 0..2, 1);
    let mut short = batch(&job, 0, 1);
    if let Pixels::Bytes(bytes) = &mut short.pixels {
        bytes.pop();
    }
    for wrong in [
        vec![batch(&job, 0, 0)],
        vec![batch(&job, 0, 1), batch(&job, 0, 0)],
        vec![batch(&job, 1, 0), batch(&job, 1, 1)],
        vec![batch(&job, 0, 0), short],
    ] {
        let result = trainer.advance(wrong, &mut Alone::default(), Flags::default());
        assert!(matches!(result, Err(TrainError::Batches { .. })));
    }
    assert_eq!(trainer.step(), Step(0));
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_name() {
    let job = job(Update::Alternating, 0.0);
    let mut trainer = trainer(&job, 0..1, 1);
    let good = train(&mut trainer, 1);
    let refuse = |trainer: &mut Trainer, change: &dyn Fn(&mut Snapshot), words: &[&str]| {
        let mut bad = good.clone();
        change(&mut bad);
        let message = trainer.restore(&bad).unwrap_err().to_string();
        for word in words {
            assert!(message.contains(word), "{message}");
        }
        assert!(trainer.snapshot().unwrap() == good);
    };
    let file = |s: &mut Snapshot, name: &str, change: &dyn Fn(&mut Vec<TensorData>)| {
        change(s.files.get_mut(name).unwrap());
    };
    refuse(
        &mut trainer,
        &|s| drop(s.files.remove("optimizer")),
        &["optimizer", "missing"],
    );
    refuse(
        &mut trainer,
        &|s| drop(s.files.insert("generator_ema".to_owned(), Vec::new())),
        &["generator_ema", "train.ema_decay"],
    );
    refuse(
        &mut trainer,
        &|s| file(s, "generator", &|list| drop(list.remove(0))),
        &["generator", "no tensor main.0.weight"],
    );
    refuse(
        &mut trainer,
        &|s| file(s, "discriminator", &|list| list[0].shape = vec![1]),
        &["discriminator", "main.0.weight", "[1]", "[4, 1, 4, 4]"],
    );
    refuse(
        &mut trainer,
        &|s| file(s, "discriminator", &|list| list[0].bytes.truncate(255)),
        &["main.0.weight", "255 bytes", "256"],
    );
    refuse(
        &mut trainer,
        &|s| {
            file(s, "generator", &|list| {
                let extra = TensorData {
                    name: "main.99.weight".to_owned(),
                    ..list[0].clone()
                };
                list.push(extra);
            });
        },
        &["generator", "main.99.weight"],
    );
    refuse(
        &mut trainer,
        &|s| file(s, "generator", &|list| list.push(list[0].clone())),
        &["main.0.weight twice"],
    );
    refuse(
        &mut trainer,
        &|s| s.step = Step(9),
        &["optimizer", "step is 1", "9"],
    );
    trainer.restore(&good).unwrap();
}

#[test]
fn what_is_not_finite_is_counted() {
    let job = job(Update::Alternating, 0.0);
    let mut trainer = trainer(&job, 0..1, 1);
    let mut state = trainer.snapshot().unwrap();
    let weight = &mut state.files.get_mut("generator").unwrap()[0];
    weight.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    trainer.restore(&state).unwrap();
    let report = advance(&mut trainer, &mut Alone::default()).unwrap();
    assert!(report.nonfinite > 0);
    assert!(!report.loss_d.is_finite());
}
