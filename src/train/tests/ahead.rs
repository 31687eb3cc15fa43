//! The way through a step that leaves everything on the device, here the CPU, is the other way's
//! equal to the bit, one step ahead.

use super::super::stretches::{Recorded, Recorder, Stretch, Work};
use super::*;
use crate::collective::OnDevice;
use std::collections::VecDeque;

/// A rank whose reductions are queued as on a device: a mean is there when it is joined, and holds
/// garbage before. `fails_at` is the number of the settling, counted from 1, that fails after all was
/// done, as when a peer died meanwhile; the means are garbage then.
pub(super) struct Queued<C> {
    rank: C,
    queue: VecDeque<(Vec<Tensor>, Tensor)>,
    joined: Vec<Tensor>,
    fails_at: Option<u32>,
    settled: u32,
    started: u32,
}

pub(super) fn queued<C: Collective>(rank: C) -> Queued<C> {
    Queued {
        rank,
        queue: VecDeque::new(),
        joined: Vec::new(),
        fails_at: None,
        settled: 0,
        started: 0,
    }
}

impl<C: Collective> Collective for Queued<C> {
    fn rank(&self) -> Rank {
        self.rank.rank()
    }
    fn world_size(&self) -> u32 {
        self.rank.world_size()
    }
    fn reduce_mean(&mut self, _: &mut [&mut [f32]], _: &mut [f32]) -> Result<(), CollectiveError> {
        panic!("nothing goes through host memory")
    }
    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.rank.barrier()
    }
    fn gather(&mut self, word: u64) -> Result<Vec<u64>, CollectiveError> {
        self.rank.gather(word)
    }
    fn copy(&mut self, _: &[Rank], _: &mut [f32]) -> Result<(), CollectiveError> {
        panic!("nothing goes through host memory")
    }
    fn sent_bytes(&self) -> u64 {
        self.rank.sent_bytes()
    }
    fn on_device(&mut self) -> Option<&mut dyn OnDevice> {
        Some(self)
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor).unwrap()
}

impl<C: Collective> OnDevice for Queued<C> {
    fn start(&mut self, hosted: &[Tensor], mean: &Tensor) -> Result<(), CollectiveError> {
        self.started += 1;
        let _ = mean.shallow_clone().fill_(f64::NAN);
        let hosted = hosted.iter().map(Tensor::shallow_clone).collect();
        self.queue.push_back((hosted, mean.shallow_clone()));
        Ok(())
    }

    fn join(&mut self) -> Result<(), CollectiveError> {
        let (hosted, mut mean) = self.queue.pop_front().expect("a reduction was started");
        let mut vectors: Vec<Vec<f32>> = hosted.iter().map(values).collect();
        let mut slices: Vec<&mut [f32]> = vectors.iter_mut().map(Vec::as_mut_slice).collect();
        let mut sum = vec![0.0; mean.numel()];
        self.rank.reduce_mean(&mut slices, &mut sum)?;
        mean.copy_(&Tensor::from_slice(&sum));
        for mut vector in hosted {
            // Unspecified, says the contract.
            let _ = vector.fill_(f64::NAN);
        }
        self.joined.push(mean);
        Ok(())
    }

    fn settle(&mut self) -> Result<(), CollectiveError> {
        assert!(self.queue.is_empty(), "a reduction was never joined");
        self.settled += 1;
        let joined = std::mem::take(&mut self.joined);
        if self.fails_at == Some(self.settled) {
            for mut mean in joined {
                let _ = mean.fill_(f64::NAN);
            }
            return Err(CollectiveError::Aborted {
                generation: Generation(1),
                reason: "a peer died".to_owned(),
            });
        }
        Ok(())
    }

    fn copy(&mut self, holders: &[Rank], vector: &Tensor) -> Result<(), CollectiveError> {
        let mut copy = values(vector);
        self.rank.copy(holders, &mut copy)?;
        if !holders.contains(&self.rank.rank()) {
            vector.shallow_clone().copy_(&Tensor::from_slice(&copy));
        }
        Ok(())
    }
}

fn batches(trainer: &Trainer, of: impl Fn(u64, u32) -> Batch) -> Vec<Batch> {
    let step = trainer.tentative().0;
    trainer
        .replicas()
        .map(|replica| of(step, replica))
        .collect()
}

fn ahead(
    trainer: &mut Trainer,
    collective: &mut dyn Collective,
    flags: Flags,
) -> Result<Option<StepReport>, TrainError> {
    let job = trainer.job.clone();
    let batches = batches(trainer, |step, replica| batch(&job, step, replica));
    trainer.advance(batches, collective, flags)
}

/// The reports of `steps` steps, the last of which is settled.
fn train_ahead(
    trainer: &mut Trainer,
    collective: &mut dyn Collective,
    steps: usize,
) -> Vec<StepReport> {
    let before = trainer.step().0;
    let mut reports = Vec::new();
    for index in 0..steps as u64 {
        assert_eq!(trainer.tentative(), Step(before + index));
        let report = ahead(trainer, collective, Flags::default()).unwrap();
        assert_eq!(report.is_some(), index > 0, "reports come one step late");
        assert_eq!(
            trainer.step(),
            Step(before + index),
            "the step before is the state"
        );
        reports.extend(report);
    }
    reports.extend(trainer.settle(collective).unwrap());
    assert_eq!(trainer.settle(collective).unwrap(), None);
    assert_eq!(
        (trainer.step(), trainer.tentative()),
        (Step(before + steps as u64), trainer.step())
    );
    reports
}

#[test]
fn the_way_on_a_device_makes_the_bits_of_the_way_through_host_memory() {
    for update in UPDATES {
        for ema in [0.0, 0.9] {
            let job = job(update, ema);
            let mut host = trainer(&job, 0..REPLICAS, 2);
            let expected: Vec<_> = (0..5)
                .map(|_| advance(&mut host, &mut Alone::default()).unwrap())
                .collect();
            let state = host.snapshot().unwrap();
            let mut device = trainer(&job, 0..REPLICAS, 2);
            let reports = train_ahead(&mut device, &mut queued(Alone::default()), 5);
            assert!(device.snapshot().unwrap() == state, "{update:?}, {ema}");
            let digest = crate::checkpoint::digest;
            assert_eq!(digest(&device.snapshot().unwrap()), digest(&state));
            for (found, expected) in reports.iter().zip(&expected) {
                let same = StepReport {
                    // They are added up in another order.
                    grad_norm_d: found.grad_norm_d,
                    grad_norm_g: found.grad_norm_g,
                    compute: found.compute,
                    reduce: found.reduce,
                    ..expected.clone()
                };
                assert_eq!(*found, same);
                for (found, expected) in [
                    (found.grad_norm_d, expected.grad_norm_d),
                    (found.grad_norm_g, expected.grad_norm_g),
                ] {
                    assert!(
                        (found - expected).abs() <= 1e-12 * expected,
                        "{found} {expected}"
                    );
                }
                assert!(found.compute > Duration::ZERO);
            }
            // And it goes on in host memory, and on the device again.
            let straight = train(&mut host, 3);
            train(&mut device, 1);
            train_ahead(&mut device, &mut queued(Alone::default()), 2);
            assert!(device.snapshot().unwrap() == straight, "{update:?}, {ema}");
        }
    }
}

/// Every worker's state and reports after `steps` steps on a device, or until flags are up.
fn train_ahead_together(
    job: &Job,
    ranges: &[Range<u32>],
    steps: usize,
    flags: impl Fn(u32, usize) -> Flags + Sync,
) -> Vec<(Snapshot, Vec<StepReport>)> {
    let group = InProcess::group(ranges, Duration::from_secs(60)).unwrap();
    std::thread::scope(|scope| {
        let workers: Vec<_> = group
            .into_iter()
            .zip(ranges)
            .map(|(rank, range)| {
                let flags = &flags;
                scope.spawn(move || {
                    let number = rank.rank().0;
                    let mut collective = queued(rank);
                    let mut trainer = trainer(job, range.clone(), 1);
                    let mut reports: Vec<StepReport> = Vec::new();
                    for step in 0..steps {
                        let raised = flags(number, step);
                        reports.extend(ahead(&mut trainer, &mut collective, raised).unwrap());
                        if reports.last().is_some_and(|report| report.flags.any()) {
                            assert_eq!(trainer.tentative(), trainer.step(), "nothing is under way");
                            break;
                        }
                    }
                    reports.extend(trainer.settle(&mut collective).unwrap());
                    (trainer.snapshot().unwrap(), reports)
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    })
}

#[test]
fn on_a_device_too_the_state_is_the_same_for_any_number_of_workers() {
    for update in UPDATES {
        let job = job(update, 0.9);
        let alone = train(&mut trainer(&job, 0..REPLICAS, 2), 4);
        for ranges in [vec![0..4; 1], vec![0..2, 2..4], vec![0..1, 1..2, 2..4]] {
            for (state, reports) in train_ahead_together(&job, &ranges, 4, |_, _| Flags::default())
            {
                assert!(state == alone, "{update:?} on {ranges:?}");
                assert_eq!(reports.len(), 4);
                let sends = ranges.len() > 1;
                assert!(
                    reports
                        .iter()
                        .all(|report| (report.sent_bytes > 0) == sends)
                );
            }
        }
    }
}

#[test]
fn all_workers_rest_at_the_same_step_on_a_device() {
    for update in UPDATES {
        let job = job(update, 0.9);
        // Raised on one worker, with its third step.
        let raise = |rank, step| Flags {
            pause: rank == 1 && step >= 2,
            ..Flags::default()
        };
        let straight = train(&mut trainer(&job, 0..REPLICAS, 2), 3);
        for (state, reports) in train_ahead_together(&job, &[0..1, 1..3, 3..4], 9, raise) {
            let steps: Vec<_> = reports.iter().map(|report| report.step.0).collect();
            assert_eq!(
                steps,
                [1, 2, 3],
                "the fourth step, begun already, was dropped"
            );
            assert!(reports[2].flags.pause && !reports[1].flags.any());
            assert!(state == straight, "{update:?}");
        }
    }
}

#[test]
fn a_step_that_is_not_known_to_be_good_never_becomes_the_state() {
    for update in UPDATES {
        let job = job(update, 0.9);
        let straight = train(&mut trainer(&job, 0..REPLICAS, 2), 4);
        for fails_at in 1..=3 {
            let mut trainer = trainer(&job, 0..REPLICAS, 2);
            let mut failing = Queued {
                fails_at: Some(fails_at),
                ..queued(Alone::default())
            };
            let mut states = vec![trainer.snapshot().unwrap()];
            let error = loop {
                match ahead(&mut trainer, &mut failing, Flags::default()) {
                    Ok(Some(_)) => states.push(trainer.snapshot().unwrap()),
                    Ok(None) => {}
                    Err(error) => break error,
                }
            };
            let expected = matches!(
                &error,
                TrainError::Collective { step, attempt: Attempt::Advance, .. }
                    if step.0 == u64::from(fails_at) - 1
            );
            assert!(expected, "{error}");
            let held = u64::from(fails_at) - 1;
            assert_eq!(
                (trainer.step(), trainer.tentative()),
                (Step(held), Step(held))
            );
            assert!(
                trainer.snapshot().unwrap() == states[held as usize],
                "{update:?}, {fails_at}: the state is another"
            );
            // The same worker does it again, with others.
            let left = 4 - held as usize;
            train_ahead(&mut trainer, &mut queued(Alone::default()), left);
            assert!(
                trainer.snapshot().unwrap() == straight,
                "{update:?}, {fails_at}"
            );
        }
    }
}

#[test]
fn what_is_under_way_is_no_part_of_the_state() {
    for update in UPDATES {
        let job = job(update, 0.9);
        let straight: Vec<_> = {
            let mut trainer = trainer(&job, 0..REPLICAS, 2);
            (0..5).map(|_| train(&mut trainer, 1)).collect()
        };
        let mut trainer = trainer(&job, 0..REPLICAS, 2);
        let mut collective = queued(Alone::default());
        let latents = Latents::draw(Key::new(Domain::Samples, &[3]), 2, 6).unwrap();
        for step in 1..4 {
            ahead(&mut trainer, &mut collective, Flags::default()).unwrap();
            if step > 1 {
                assert_eq!(trainer.step(), Step(step - 1));
                let state = &straight[step as usize - 2];
                assert!(trainer.snapshot().unwrap() == *state, "{update:?} {step}");
                let sampler =
                    Sampler::new(&job.model, &state.files["generator_ema"], Device::Cpu).unwrap();
                let drawn = trainer.sample(&latents).unwrap();
                assert_eq!(drawn, sampler.sample(&latents).unwrap());
            }
            assert_eq!(trainer.tentative(), Step(step));
        }
        // Forgotten: a copy to nobody, other replicas, a state from a checkpoint.
        trainer.discard();
        assert_eq!((trainer.step(), trainer.tentative()), (Step(2), Step(2)));
        ahead(
            &mut trainer,
            &mut queued(Alone::default()),
            Flags::default(),
        )
        .unwrap();
        trainer.host(1..3).unwrap();
        trainer.host(0..REPLICAS).unwrap();
        assert_eq!(trainer.tentative(), Step(2));
        ahead(
            &mut trainer,
            &mut queued(Alone::default()),
            Flags::default(),
        )
        .unwrap();
        trainer.restore(&straight[2]).unwrap();
        assert_eq!((trainer.step(), trainer.tentative()), (Step(3), Step(3)));
        train_ahead(&mut trainer, &mut queued(Alone::default()), 2);
        assert!(trainer.snapshot().unwrap() == straight[4], "{update:?}");
    }
}

#[test]
fn a_collective_of_the_other_way_settles_nothing() {
    let job = job(Update::Alternating, 0.0);
    let mut trainer = trainer(&job, 0..REPLICAS, 2);
    ahead(
        &mut trainer,
        &mut queued(Alone::default()),
        Flags::default(),
    )
    .unwrap();
    let error = trainer.settle(&mut Alone::default()).unwrap_err();
    assert!(
        matches!(error, TrainError::OtherCollective { step: Step(0) }),
        "{error}"
    );
    assert_eq!(trainer.tentative(), Step(0));
    // And a batch of the next state is not one of this state.
    ahead(
        &mut trainer,
        &mut queued(Alone::default()),
        Flags::default(),
    )
    .unwrap();
    let early = (0..REPLICAS)
        .map(|replica| batch(&job, 0, replica))
        .collect();
    let error = trainer.advance(early, &mut queued(Alone::default()), Flags::default());
    assert!(matches!(
        error,
        Err(TrainError::Batches { step: Step(1), .. })
    ));
}

#[test]
fn a_state_is_copied_from_device_to_device() {
    for (update, ema) in [(Update::Alternating, 0.9), (Update::Simultaneous, 0.0)] {
        let job = job(update, ema);
        let straight = train(&mut trainer(&job, 0..REPLICAS, 2), 3);
        let ranges = [0..1, 1..3, 3..4];
        let group = InProcess::group(&ranges, Duration::from_secs(60)).unwrap();
        let states: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = group
                .into_iter()
                .zip(&ranges)
                .map(|(rank, range)| {
                    let job = &job;
                    scope.spawn(move || {
                        let holds = rank.rank() != Rank(1);
                        let mut trainer = trainer(job, 0..REPLICAS, 1);
                        train(&mut trainer, if holds { 2 } else { 0 });
                        trainer.host(range.clone()).unwrap();
                        let mut collective = queued(rank);
                        trainer
                            .copy_state(Step(2), &[Rank(0), Rank(2)], &mut collective)
                            .unwrap();
                        train_ahead(&mut trainer, &mut collective, 1);
                        trainer.snapshot().unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(states.iter().all(|state| *state == straight), "{update:?}");
    }
}

/// Records like CUDA: nothing is done meanwhile, and later the same is done with what lies at the
/// same addresses then.
#[derive(Debug)]
struct Tape {
    /// The recording with this number, counted from 1, fails.
    fails_at: Option<u32>,
    made: u32,
}

#[derive(Debug)]
struct Reel(Work);

impl Recorder for Tape {
    fn record(&mut self, work: Work, _: [Stretch; 4]) -> Result<Box<dyn Recorded>, TrainError> {
        self.made += 1;
        if self.fails_at == Some(self.made) {
            return Err(TrainError::ThreadLost);
        }
        Ok(Box::new(Reel(work)))
    }
}

impl Recorded for Reel {
    fn replay(&mut self, stretch: Stretch) -> Result<(), TrainError> {
        self.0.run(stretch)
    }
}

#[test]
fn stretches_that_are_recorded_and_replayed_make_the_same_bits() {
    for update in UPDATES {
        let job = job(update, 0.9);
        let straight = train(&mut trainer(&job, 0..REPLICAS, 2), 14);
        for fails_at in [None, Some(1), Some(2)] {
            let mut trainer = trainer(&job, 0..REPLICAS, 2);
            let tape = Tape { fails_at, made: 0 };
            let game = std::sync::Arc::clone(&trainer.game);
            let recording = Ahead::new(&game, REPLICAS as usize, Some(Box::new(tape))).unwrap();
            trainer.ahead = Some(Box::new(recording));
            let mut collective = queued(Alone::default());
            train_ahead(&mut trainer, &mut collective, 9);
            // A step that is begun, and dropped: the recorded stretches are still good.
            ahead(&mut trainer, &mut collective, Flags::default()).unwrap();
            collective.fails_at = Some(collective.settled + 1);
            ahead(&mut trainer, &mut collective, Flags::default()).unwrap_err();
            train_ahead(&mut trainer, &mut queued(Alone::default()), 5);
            assert!(
                trainer.snapshot().unwrap() == straight,
                "{update:?}, {fails_at:?}"
            );
            let stretches = &trainer.ahead.as_ref().unwrap().stretches;
            let recorded = [0, 1].map(|side| stretches.is_recorded(side));
            match fails_at {
                None => assert_eq!(recorded, [true, true]),
                Some(1) => assert_eq!(recorded, [false, false]),
                _ => assert_eq!(recorded.iter().filter(|&&recorded| recorded).count(), 1),
            }
        }
    }
}

#[test]
fn a_data_set_on_the_device_makes_the_bits_of_one_in_host_memory() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for index in 0..30u32 {
        let image = image::GrayImage::from_fn(32, 32, |x, y| {
            image::Luma([(index * 7 + x * 3 + y * 5) as u8])
        });
        image
            .save(dirs[0].path().join(format!("{index:02}.png")))
            .unwrap();
    }
    for update in UPDATES {
        let mut job = job(update, 0.9);
        job.data.uri = dirs[0].path().display().to_string();
        job.data.shard_folder = Some(dirs[1].path().to_owned());
        job.data.shard_samples = 8;
        let dataset = crate::data::Dataset::open(&job, &mut |_, _| {}).unwrap();
        assert_eq!(
            (dataset.samples(), dataset.sample_shape()),
            (30, [1, 32, 32])
        );
        let pixels: Vec<u8> = (0..4)
            .flat_map(|shard| dataset.shard(shard).unwrap().pixels().to_vec())
            .collect();
        let places = |step: u64, replica: u32| -> Vec<i64> {
            let mut stream = Key::new(Domain::Epoch, &[step, u64::from(replica)]).stream();
            (0..job.train.batch)
                .map(|_| stream.below(30).cast_signed())
                .collect()
        };
        let named = |step, replica| Batch {
            pixels: Pixels::Places(places(step, replica)),
            ..batch(&job, step, replica)
        };
        let brought = |step, replica| Batch {
            pixels: Pixels::Bytes(
                places(step, replica)
                    .iter()
                    .flat_map(|&place| pixels[place as usize * 1024..][..1024].to_vec())
                    .collect(),
            ),
            ..batch(&job, step, replica)
        };

        let mut host = trainer(&job, 0..REPLICAS, 2);
        let without = batches(&host, named);
        let error = host.advance(without, &mut Alone::default(), Flags::default());
        assert!(error.unwrap_err().to_string().contains("no data set"));
        assert!(
            !host.cache(&dataset).unwrap() && !host.has_cache(),
            "a CPU has no use for it"
        );
        for _ in 0..3 {
            let batches = batches(&host, brought);
            host.advance(batches, &mut Alone::default(), Flags::default())
                .unwrap();
        }
        let state = host.snapshot().unwrap();

        let mut cached = trainer(&job, 0..REPLICAS, 2);
        cached.hold(&dataset).unwrap();
        assert!(cached.has_cache());
        let batches_of = batches(&cached, named);
        cached
            .advance(batches_of, &mut Alone::default(), Flags::default())
            .unwrap();
        let mut collective = queued(Alone::default());
        for _ in 0..2 {
            let batches = batches(&cached, named);
            cached
                .advance(batches, &mut collective, Flags::default())
                .unwrap();
        }
        cached.settle(&mut collective).unwrap();
        assert!(cached.snapshot().unwrap() == state, "{update:?}");

        let mut wrong = batches(&cached, named);
        wrong[1].pixels = Pixels::Places(vec![0, 30, 1]);
        let error = cached
            .advance(wrong, &mut collective, Flags::default())
            .unwrap_err();
        assert!(error.to_string().contains("no place 30"), "{error}");
    }
}
