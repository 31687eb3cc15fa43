//! The invariants of a step, on networks small enough to train in a moment.

use super::*;
use crate::checkpoint::TensorData;
use crate::collective::CollectiveError;
use crate::config::{Objective, parse};
use crate::ids::{Epoch, Generation, Rank, ReplicaId};
use crate::objective;
use crate::random::{Domain, Key};
use std::path::Path;
use std::sync::{Condvar, Mutex};

const REPLICAS: u32 = 4;

fn job(update: Update, ema_decay: f64) -> Job {
    let text = format!(
        r#"
        [job]
        name = "small"
        seed = 11
        [data]
        uri = "nowhere"
        [model]
        image_size = 32
        channels = 1
        latent = 6
        generator_width = 4
        discriminator_width = 4
        [train]
        replicas = {REPLICAS}
        batch = 3
        steps = 100
        ema_decay = {ema_decay}
        "#
    );
    let mut job = parse(&text, "test", Path::new("."), &[]).unwrap();
    job.train.update = update;
    job
}

/// Pixels that are a function of step and replica.
fn batch(job: &Job, step: u64, replica: u32) -> Batch {
    let mut stream = Key::new(Domain::Span, &[step, u64::from(replica)]).stream();
    let len = job.train.batch * job.model.channels * job.model.image_size.pow(2);
    Batch {
        step: Step(step),
        epoch: Epoch(0),
        replica: ReplicaId(replica),
        pixels: (0..len).map(|_| stream.below(256) as u8).collect(),
        labels: None,
    }
}

fn trainer(job: &Job, replicas: Range<u32>, cores: usize) -> Trainer {
    Trainer::new(Setup {
        job,
        device: Device::Cpu,
        replicas,
        cores,
    })
    .unwrap()
}

fn advance(
    trainer: &mut Trainer,
    collective: &mut dyn Collective,
) -> Result<StepReport, TrainError> {
    let batches = trainer
        .replicas()
        .map(|replica| batch(&trainer.job, trainer.step().0, replica))
        .collect();
    trainer.advance(batches, collective, Flags::default())
}

fn train(trainer: &mut Trainer, steps: usize) -> Snapshot {
    for _ in 0..steps {
        advance(trainer, &mut Alone::default()).unwrap();
    }
    trainer.snapshot().unwrap()
}

/// The canonical tree.
fn sum(vectors: &[Vec<f32>]) -> Vec<f32> {
    match vectors {
        [one] => one.clone(),
        many => {
            let mid = many.len().next_power_of_two() / 2;
            let (left, right) = (sum(&many[..mid]), sum(&many[mid..]));
            left.iter().zip(&right).map(|(a, b)| a + b).collect()
        }
    }
}

fn mean_of(vectors: &[Vec<f32>], mean: &mut [f32]) {
    for (mean, sum) in mean.iter_mut().zip(sum(vectors)) {
        *mean = sum / vectors.len() as f32;
    }
}

/// One worker that hosts all replicas; its reduction with this number, counted from 1, fails.
#[derive(Default)]
struct Alone {
    fails_at: Option<u32>,
    done: u32,
}

impl Collective for Alone {
    fn rank(&self) -> Rank {
        Rank(0)
    }
    fn world_size(&self) -> u32 {
        1
    }
    fn reduce_mean(
        &mut self,
        hosted: &mut [&mut [f32]],
        mean: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.done += 1;
        if self.fails_at == Some(self.done) {
            // A failed reduction leaves garbage behind.
            mean.fill(f32::NAN);
            hosted.iter_mut().for_each(|vector| vector.fill(f32::NAN));
            return Err(CollectiveError::Aborted {
                generation: Generation(1),
                reason: "a test".to_owned(),
            });
        }
        mean_of(&hosted.iter().map(|v| v.to_vec()).collect::<Vec<_>>(), mean);
        Ok(())
    }
    fn barrier(&mut self) -> Result<(), CollectiveError> {
        Ok(())
    }
}

/// Workers in one process that show each other all their vectors.
struct Meeting {
    /// (vectors by replica, how many workers have read them)
    table: Mutex<(Vec<Option<Vec<f32>>>, u32)>,
    changed: Condvar,
    workers: u32,
}

struct Together {
    rank: u32,
    first: usize,
    meeting: Arc<Meeting>,
}

impl Collective for Together {
    fn rank(&self) -> Rank {
        Rank(self.rank)
    }
    fn world_size(&self) -> u32 {
        self.meeting.workers
    }
    fn reduce_mean(
        &mut self,
        hosted: &mut [&mut [f32]],
        mean: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let meeting = &self.meeting;
        let mut table = meeting
            .changed
            .wait_while(meeting.table.lock().unwrap(), |t| t.0[self.first].is_some())
            .unwrap();
        for (place, vector) in table.0[self.first..].iter_mut().zip(hosted) {
            *place = Some(vector.to_vec());
        }
        meeting.changed.notify_all();
        table = meeting
            .changed
            .wait_while(table, |t| t.0.iter().any(Option::is_none))
            .unwrap();
        let vectors: Vec<_> = table.0.iter().map(|v| v.clone().unwrap()).collect();
        mean_of(&vectors, mean);
        table.1 += 1;
        if table.1 == meeting.workers {
            table.1 = 0;
            table.0.iter_mut().for_each(|place| *place = None);
            meeting.changed.notify_all();
        } else {
            let emptied = |t: &mut (Vec<Option<Vec<f32>>>, u32)| t.1 != 0;
            drop(meeting.changed.wait_while(table, emptied).unwrap());
        }
        Ok(())
    }
    fn barrier(&mut self) -> Result<(), CollectiveError> {
        Ok(())
    }
}

/// The state after `steps` on workers that host these ranges, and the reports of the last step.
fn train_together(
    job: &Job,
    ranges: &[Range<u32>],
    steps: usize,
    flags: impl Fn(u32) -> Flags + Sync,
) -> Vec<(Snapshot, StepReport)> {
    let meeting = Arc::new(Meeting {
        table: Mutex::new((vec![None; REPLICAS as usize], 0)),
        changed: Condvar::new(),
        workers: ranges.len() as u32,
    });
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..)
            .zip(ranges)
            .map(|(rank, range)| {
                let mut collective = Together {
                    rank,
                    first: range.start as usize,
                    meeting: Arc::clone(&meeting),
                };
                let flags = &flags;
                scope.spawn(move || {
                    let mut trainer = trainer(job, range.clone(), 2);
                    let mut last = None;
                    for _ in 0..steps {
                        let batches = range
                            .clone()
                            .map(|replica| batch(job, trainer.step().0, replica))
                            .collect();
                        last = trainer.advance(batches, &mut collective, flags(rank)).ok();
                    }
                    (trainer.snapshot().unwrap(), last.unwrap())
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    })
}

fn tensor<'a>(snapshot: &'a Snapshot, file: &str, name: &str) -> &'a TensorData {
    snapshot.files[file]
        .iter()
        .find(|t| t.name == name)
        .unwrap()
}

fn floats(tensor: &TensorData) -> Vec<f32> {
    tensor
        .bytes
        .as_chunks()
        .0
        .iter()
        .map(|&b| f32::from_le_bytes(b))
        .collect()
}

fn count(tensor: &TensorData) -> i64 {
    i64::from_le_bytes(tensor.bytes[..].try_into().unwrap())
}

const UPDATES: [Update; 2] = [Update::Alternating, Update::Simultaneous];

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
        let gradients = crate::model::architecture::parameters(&job.model) as u64;
        assert!(report.reduced_bytes > 4 * gradients);
    }
}

#[test]
fn the_state_is_the_same_for_any_number_of_threads() {
    for update in UPDATES {
        let job = job(update, 0.0);
        let states = [1, 2, 4].map(|cores| train(&mut trainer(&job, 0..REPLICAS, cores), 5));
        assert!(
            states[0] == states[1] && states[0] == states[2],
            "{update:?}"
        );
    }
}

#[test]
fn the_state_is_the_same_for_any_number_of_workers() {
    for update in UPDATES {
        let job = job(update, 0.9);
        let alone = train(&mut trainer(&job, 0..REPLICAS, 2), 5);
        for ranges in [vec![0..2, 2..4], vec![0..1, 1..4], vec![0..1, 1..2, 2..4]] {
            for (state, _) in train_together(&job, &ranges, 5, |_| Flags::default()) {
                assert!(state == alone, "{update:?} on {ranges:?}");
            }
        }
    }
}

#[test]
fn replicas_move_without_changing_a_bit() {
    let job = job(Update::Alternating, 0.0);
    let straight = train(&mut trainer(&job, 0..REPLICAS, 2), 4);
    let mut moving = trainer(&job, 0..1, 2);
    moving.host(0..REPLICAS).unwrap();
    train(&mut moving, 2);
    moving.host(1..3).unwrap();
    moving.host(0..REPLICAS).unwrap();
    assert!(train(&mut moving, 2) == straight);
    assert!(matches!(
        moving.host(2..9),
        Err(TrainError::Replicas { .. })
    ));
    assert_eq!(moving.replicas(), 0..REPLICAS);
}

#[test]
fn a_resumed_job_is_the_uninterrupted_one() {
    for update in UPDATES {
        let job = job(update, 0.9);
        let straight = train(&mut trainer(&job, 0..REPLICAS, 2), 6);
        let mut saved = train(&mut trainer(&job, 0..REPLICAS, 2), 3);
        // What is read back from disk is ordered by name.
        for tensors in saved.files.values_mut() {
            tensors.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let mut resumed = trainer(&job, 0..REPLICAS, 2);
        resumed.restore(&saved).unwrap();
        assert_eq!(resumed.step(), Step(3));
        assert!(train(&mut resumed, 3) == straight, "{update:?}");
    }
}

#[test]
fn a_failed_reduction_leaves_the_state_untouched() {
    for update in UPDATES {
        let job = job(update, 0.9);
        let mut trainer = trainer(&job, 0..REPLICAS, 2);
        for fails_at in [1, 2] {
            let before = trainer.snapshot().unwrap();
            let mut failing = Alone {
                fails_at: Some(fails_at),
                done: 0,
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
    let weights = Weights {
        generator: state.generator.parameters.shallow_clone(),
        discriminator: state.discriminator.parameters.shallow_clone(),
    };
    let d = weights.discriminator.copy();
    let fakes = game
        .discriminate(&weights, &batch(&job, 0, 0), vectors)
        .unwrap();
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
    }
}

#[test]
fn the_average_follows_the_generator_with_its_running_statistics() {
    let decay = 0.75;
    let job = job(Update::Alternating, decay);
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

/// A game whose generator cost can't be computed.
#[derive(Debug)]
struct Broken;

impl objective::Objective for Broken {
    fn discriminator(&self, real: &Tensor, fake: &Tensor) -> Result<Tensor, TorchError> {
        objective::of(Objective::NonSaturating).discriminator(real, fake)
    }
    fn generator(&self, _: &Tensor) -> Result<Tensor, TorchError> {
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
    short.pixels.pop();
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
        &|s| file(s, "discriminator", &|list| drop(list[0].bytes.pop())),
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
