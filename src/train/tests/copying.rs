//! A state that is copied is the holders', to the bit.

use super::*;
use crate::checkpoint::digest;

const RANGES: [Range<u32>; 3] = [0..1, 1..3, 3..4];

/// A trainer that has gone alone to State(`steps`), and hosts `replicas` now.
fn at(job: &Job, steps: usize, replicas: Range<u32>) -> Trainer {
    let mut trainer = trainer(job, 0..REPLICAS, 2);
    train(&mut trainer, steps);
    trainer.host(replicas).unwrap();
    trainer
}

/// Gives every trainer a rank and a thread; returns what `work` came to on each.
fn on_ranks<T: Send>(
    trainers: Vec<Trainer>,
    work: impl Fn(&mut Trainer, &mut InProcess) -> T + Sync,
) -> Vec<(Trainer, T)> {
    let ranges = match trainers.len() {
        3 => RANGES.to_vec(),
        _ => vec![0..2, 2..4],
    };
    let group = InProcess::group(&ranges, Duration::from_secs(60)).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = group
            .into_iter()
            .zip(trainers)
            .map(|(mut collective, mut trainer)| {
                let work = &work;
                scope.spawn(move || {
                    let outcome = work(&mut trainer, &mut collective);
                    (trainer, outcome)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn after_a_copy_every_worker_has_the_holders_state_and_goes_on_with_it() {
    for (update, ema) in [
        (Update::Alternating, 0.9),
        (Update::Alternating, 0.0),
        (Update::Simultaneous, 0.9),
    ] {
        let job = job(update, ema);
        let straight = {
            let mut trainer = trainer(&job, 0..REPLICAS, 2);
            [train(&mut trainer, 2), train(&mut trainer, 1)]
        };
        for holders in [vec![0], vec![2], vec![0, 2], vec![1, 2], vec![0, 1, 2]] {
            let holders: Vec<Rank> = holders.into_iter().map(Rank).collect();
            // The others are a step behind, or have just started.
            let trainers = (0..3)
                .map(|rank| {
                    let holds = holders.contains(&Rank(rank));
                    let steps = if holds { 2 } else { rank as usize % 2 };
                    at(&job, steps, RANGES[rank as usize].clone())
                })
                .collect();
            let copied = on_ranks(trainers, |trainer, collective| {
                trainer.copy_state(Step(2), &holders, collective).unwrap();
                let copy = trainer.snapshot().unwrap();
                advance(trainer, collective).unwrap();
                [copy, trainer.snapshot().unwrap()]
            });
            for (rank, (trainer, [copy, next])) in copied.into_iter().enumerate() {
                let what = format!("{update:?}, {ema}: rank {rank} from {holders:?}");
                assert_eq!(digest(&copy), digest(&straight[0]), "{what}");
                assert!(copy == straight[0], "{what}");
                assert_eq!(digest(&next), digest(&straight[1]), "{what}");
                assert_eq!(trainer.step(), Step(3));
            }
        }
    }
}

#[test]
fn any_bits_and_any_count_are_copied() {
    let job = job(Update::Alternating, 0.9);
    for (of_g, of_d) in [(i64::MAX, i64::MIN), ((1 << 24) + 1, -1)] {
        let mut holder = at(&job, 1, 0..2);
        let mut odd = holder.snapshot().unwrap();
        for file in ["generator", "generator_ema", "optimizer"] {
            let bits = [0x7fa0_0001u32, 0x8000_0000, 0x0000_0001];
            let bytes = &mut odd.files.get_mut(file).unwrap()[0].bytes;
            for (place, bits) in bytes.as_chunks_mut().0.iter_mut().zip(bits) {
                *place = bits.to_le_bytes();
            }
        }
        holder.restore(&odd).unwrap();
        holder.state.generator.batches_tracked = of_g;
        holder.state.discriminator.batches_tracked = of_d;
        holder.state.average.as_mut().unwrap().batches_tracked = of_g - 1;
        let before = holder.snapshot().unwrap();
        let copied = on_ranks(vec![holder, at(&job, 0, 2..4)], |trainer, collective| {
            trainer.copy_state(Step(1), &[Rank(0)], collective).unwrap();
        });
        for (trainer, ()) in copied {
            assert!(trainer.snapshot().unwrap() == before);
        }
    }
}

/// A rank whose operation with this number, counted from 1, fails after half of it.
struct Failing<'a> {
    rank: &'a mut InProcess,
    fails_at: u32,
    done: u32,
}

impl Failing<'_> {
    fn fails(&mut self) -> bool {
        self.done += 1;
        if self.done == self.fails_at {
            self.rank.abort_handle().abort("a worker died");
        }
        self.done == self.fails_at
    }
}

impl Collective for Failing<'_> {
    fn rank(&self) -> Rank {
        self.rank.rank()
    }
    fn world_size(&self) -> u32 {
        self.rank.world_size()
    }
    fn reduce_mean(&mut self, _: &mut [&mut [f32]], _: &mut [f32]) -> Result<(), CollectiveError> {
        panic!("nothing is reduced in a copy")
    }
    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.rank.barrier()
    }
    fn gather(&mut self, word: u64) -> Result<Vec<u64>, CollectiveError> {
        self.fails();
        self.rank.gather(word)
    }
    fn copy(&mut self, holders: &[Rank], vector: &mut [f32]) -> Result<(), CollectiveError> {
        if self.fails() && !holders.contains(&self.rank()) {
            let half = vector.len() / 2;
            vector[..half].fill(f32::NAN);
        }
        self.rank.copy(holders, vector)
    }
    fn sent_bytes(&self) -> u64 {
        0
    }
}

#[test]
fn a_copy_that_fails_anywhere_leaves_every_state_untouched() {
    let job = job(Update::Alternating, 0.9);
    let mut trainers = vec![at(&job, 2, 0..2), at(&job, 1, 2..4)];
    let before: Vec<_> = trainers.iter().map(|t| t.snapshot().unwrap()).collect();
    let mut failures = 0;
    loop {
        // Now the one that gives dies, now the one that takes.
        let dying = failures % 2;
        let outcomes = on_ranks(trainers, |trainer, collective| {
            let fails_at = if collective.rank().0 == dying {
                failures + 1
            } else {
                0
            };
            let mut failing = Failing {
                rank: collective,
                fails_at,
                done: 0,
            };
            let outcome = trainer.copy_state(Step(2), &[Rank(0)], &mut failing);
            if outcome.is_err() {
                // As a worker does, so that its peers don't wait for it.
                failing.rank.abort_handle().abort("a copy failed");
                let _ = failing.rank.barrier();
            }
            outcome
        });
        let done = outcomes.iter().all(|(_, outcome)| outcome.is_ok());
        trainers = Vec::new();
        for ((trainer, outcome), before) in outcomes.into_iter().zip(&before) {
            if let Err(error) = outcome {
                let attempt = Attempt::Copy(Step(2));
                let expected = matches!(
                    &error,
                    TrainError::Collective { step, attempt: tried, .. }
                        if *step == before.step && *tried == attempt
                );
                assert!(expected, "{error}");
                assert!(
                    trainer.snapshot().unwrap() == *before,
                    "{failures}: {error}"
                );
            }
            trainers.push(trainer);
        }
        if done {
            break;
        }
        failures += 1;
    }
    // One copy of the running statistics, three counts, three vectors a network and the average.
    assert_eq!(failures, 1 + 3 + 6 + 1);
    for trainer in &mut trainers {
        assert!(trainer.snapshot().unwrap() == before[0]);
        trainer.host(0..REPLICAS).unwrap();
    }
    let straight = train(&mut trainer(&job, 0..REPLICAS, 2), 3);
    assert!(train(&mut trainers[1], 1) == straight);
}

#[test]
fn a_holder_with_another_state_says_so_and_sends_nothing() {
    let job = job(Update::Alternating, 0.0);
    let trainers = vec![at(&job, 1, 0..2), at(&job, 0, 2..4)];
    let outcomes = on_ranks(trainers, |trainer, collective| {
        let outcome = trainer.copy_state(Step(2), &[Rank(0)], collective);
        if let Err(TrainError::NotHeld { step, held }) = &outcome {
            assert_eq!((*step, *held), (Step(2), Step(1)));
            collective.abort_handle().abort("no such state");
            assert!(collective.barrier().is_err());
        }
        outcome.unwrap_err().to_string()
    });
    assert_eq!(
        outcomes[0].1,
        "can't give State(2) to the other workers: this one has State(1)"
    );
    let words = "the copy of State(2) is not done, and this worker still has State(0): ";
    assert!(outcomes[1].1.starts_with(words), "{}", outcomes[1].1);
    let steps = [0, 1].map(|rank: usize| outcomes[rank].0.step());
    assert_eq!(steps, [Step(1), Step(0)]);
}

#[test]
fn an_impossible_list_of_holders_is_refused() {
    let job = job(Update::Alternating, 0.0);
    let trainers = vec![at(&job, 1, 0..2), at(&job, 1, 2..4)];
    on_ranks(trainers, |trainer, collective| {
        for holders in [vec![], vec![Rank(1), Rank(0)], vec![Rank(0), Rank(7)]] {
            let error = trainer
                .copy_state(Step(1), &holders, collective)
                .unwrap_err();
            assert!(error.to_string().contains("list of holders"), "{error}");
        }
        assert_eq!(trainer.step(), Step(1));
    });
}
