//! PURE. Who reads which samples when.
//!
//! A [`Plan`] maps (shard sizes, seed, epoch, R, b) to every replica's ordered spans. It knows
//! nothing of workers, files or time, so whoever computes it gets the same answer: sample ids come
//! from here, never from a loader's cursor, and a step that is done again reads the same samples.
//!
//! An epoch is laid out in three moves. The shards are shuffled and laid end to end in a ring. A
//! seeded point of the ring is where replica 0 starts; each replica takes the next S·b samples.
//! What is left before the ring closes is the tail: fewer samples than one step needs. Because the
//! point is uniform over the *samples*, each sample is equally likely to be in the tail of an
//! epoch, even when there is one shard only; and because each replica takes one contiguous arc,
//! all of its spans but the first and the last are whole shards.
//!
//! Within a span the samples are permuted by [`order`]. Packing has shuffled the data set once, so
//! a shard is a random mixture of it.

use crate::ids::{Epoch, Step};
use crate::random::{Domain, Key};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A run of samples within one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Span {
    /// The shard's index in the manifest.
    pub shard: u32,
    /// The first sample, counted within the shard.
    pub start: u64,
    /// How many samples.
    pub len: u64,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is less than one global batch.
    #[error(
        "the data set has {have} samples, but one step takes {need} (train.replicas × train.batch, for \
         each of train.discriminator_steps): \
         give it more samples, fewer replicas or a smaller batch"
    )]
    TooFewSamples {
        /// Samples in the data set.
        have: u64,
        /// Samples of one step: R·b.
        need: u64,
    },
    /// A step without samples.
    #[error("{replicas} replicas of {batch} samples make no step: both must be at least 1")]
    EmptyBatch {
        /// R.
        replicas: u32,
        /// b.
        batch: u32,
    },
    /// More shards or samples than can be numbered: the manifest is wrong.
    #[error("the data set claims {shards} shards with more than 2^64 samples or 2^32 shards")]
    TooLarge {
        /// Shards in the manifest.
        shards: usize,
    },
}

/// The pure function from an epoch to everybody's samples, for one data set and job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    shards: Vec<u64>,
    seed: u64,
    replicas: u32,
    batch: u32,
    samples: u64,
    steps: u64,
}

/// One pass over the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochPlan {
    /// Which pass.
    pub epoch: Epoch,
    /// The spans of each replica, in the order in which it uses them: S·b samples each.
    pub replicas: Vec<Vec<Span>>,
    /// What no replica uses in this epoch: fewer samples than one step takes.
    pub tail: Vec<Span>,
}

impl Plan {
    /// A plan for shards of the given numbers of samples, R replicas and b samples a replica and
    /// step.
    ///
    /// # Errors
    /// [`PlanError`] when the data set is smaller than one step, or a number makes no sense.
    pub fn new(shards: &[u64], seed: u64, replicas: u32, batch: u32) -> Result<Self, PlanError> {
        let need = u64::from(replicas) * u64::from(batch);
        if need == 0 {
            return Err(PlanError::EmptyBatch { replicas, batch });
        }
        let have = shards
            .iter()
            .try_fold(0u64, |sum, &samples| sum.checked_add(samples))
            .filter(|_| u32::try_from(shards.len()).is_ok())
            .ok_or(PlanError::TooLarge {
                shards: shards.len(),
            })?;
        if have < need {
            return Err(PlanError::TooFewSamples { have, need });
        }
        Ok(Self {
            shards: shards.to_vec(),
            seed,
            replicas,
            batch,
            samples: have,
            steps: have / need,
        })
    }

    /// Samples in the data set, N.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Steps in an epoch: S = ⌊N / R·b⌋, at least 1.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps
    }

    /// The epoch to which the step that starts from `State(state)` belongs, and its index there.
    pub fn locate(&self, state: Step) -> (Epoch, u64) {
        (Epoch(state.0 / self.steps), state.0 % self.steps)
    }

    /// Everybody's samples in one pass.
    pub fn epoch(&self, epoch: Epoch) -> EpochPlan {
        let mut stream = Key::new(Domain::Epoch, &[self.seed, epoch.0]).stream();
        let mut shards: Vec<Span> = (0..)
            .zip(&self.shards)
            .filter(|(_, samples)| **samples > 0)
            .map(|(shard, &len)| Span {
                shard,
                start: 0,
                len,
            })
            .collect();
        stream.shuffle(&mut shards);
        let mut ring = rotated(shards, stream.below(self.samples));

        let share = self.steps * u64::from(self.batch);
        let replicas = (0..self.replicas).map(|_| take(&mut ring, share)).collect();
        EpochPlan {
            epoch,
            replicas,
            tail: ring.into(),
        }
    }
}

/// The ring of `shards`, cut open before its sample number `point`.
fn rotated(shards: Vec<Span>, point: u64) -> VecDeque<Span> {
    let mut ring = VecDeque::from(shards);
    let before = take(&mut ring, point);
    ring.extend(before);
    ring
}

/// Takes the next `samples` samples off the front of `ring`.
fn take(ring: &mut VecDeque<Span>, mut samples: u64) -> Vec<Span> {
    let mut taken = Vec::new();
    while samples > 0
        && let Some(front) = ring.front_mut()
    {
        let len = front.len.min(samples);
        taken.push(Span { len, ..*front });
        front.start += len;
        front.len -= len;
        samples -= len;
        if front.len == 0 {
            ring.pop_front();
        }
    }
    taken
}

/// The samples of a span (indices inside its shard), in the order in which they are used.
pub fn order(seed: u64, epoch: Epoch, span: Span) -> Vec<u64> {
    let mut samples: Vec<u64> = (span.start..span.start.saturating_add(span.len)).collect();
    let numbers = [seed, epoch.0, u64::from(span.shard), span.start];
    Key::new(Domain::Span, &numbers)
        .stream()
        .shuffle(&mut samples);
    samples
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn ids(spans: &[Span]) -> impl Iterator<Item = (u32, u64)> {
        spans
            .iter()
            .flat_map(|span| (span.start..span.start + span.len).map(|i| (span.shard, i)))
    }

    fn all(shards: &[u64]) -> HashSet<(u32, u64)> {
        (0..)
            .zip(shards)
            .flat_map(|(shard, &samples)| (0..samples).map(move |i| (shard, i)))
            .collect()
    }

    fn partial(shards: &[u64], spans: &[Span]) -> usize {
        spans
            .iter()
            .filter(|span| span.len != shards[span.shard as usize])
            .count()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn every_sample_is_used_exactly_once_but_for_the_tail(
            shards in prop::collection::vec(0u64..40, 1..12),
            seed: u64,
            epoch: u64,
            replicas in 1u32..9,
            batch in 1u32..9,
        ) {
            let need = u64::from(replicas * batch);
            let have: u64 = shards.iter().sum();
            let plan = match Plan::new(&shards, seed, replicas, batch) {
                Ok(plan) => plan,
                Err(error) => {
                    prop_assert!(have < need);
                    prop_assert_eq!(error, PlanError::TooFewSamples { have, need });
                    return Ok(());
                }
            };
            prop_assert_eq!(plan.steps_per_epoch(), have / need);
            let epoch = plan.epoch(Epoch(epoch));
            prop_assert_eq!(epoch.replicas.len(), replicas as usize);

            let mut seen = HashSet::new();
            for spans in &epoch.replicas {
                let share: u64 = spans.iter().map(|span| span.len).sum();
                prop_assert_eq!(share, plan.steps_per_epoch() * u64::from(batch));
                prop_assert!(partial(&shards, spans) <= 2, "{:?}", spans);
            }
            let tail: u64 = epoch.tail.iter().map(|span| span.len).sum();
            prop_assert!(tail < need);
            for spans in epoch.replicas.iter().chain([&epoch.tail]) {
                prop_assert!(spans.iter().all(|span| span.len > 0));
                for id in ids(spans) {
                    prop_assert!(seen.insert(id), "{:?} is there twice", id);
                }
            }
            prop_assert_eq!(seen, all(&shards));
        }

        #[test]
        fn an_order_is_a_permutation_of_its_span(
            seed: u64, epoch: u64, shard: u32, start in 0u64..1 << 40, len in 0u64..300,
        ) {
            let span = Span { shard, start, len };
            let mut samples = order(seed, Epoch(epoch), span);
            samples.sort_unstable();
            prop_assert_eq!(samples, (start..start + len).collect::<Vec<_>>());
        }

        #[test]
        fn a_step_is_located_where_counting_finds_it(samples in 6u64..60, state in 0u64..1000) {
            let plan = Plan::new(&[samples], 0, 3, 2).unwrap();
            let (epoch, index) = plan.locate(Step(state));
            prop_assert!(index < plan.steps_per_epoch());
            prop_assert_eq!(epoch.0 * plan.steps_per_epoch() + index, state);
        }
    }

    #[test]
    fn the_tail_is_another_seeded_choice_each_epoch_even_of_one_shard() {
        let plan = Plan::new(&[1000], 3, 4, 16).unwrap();
        let tails: Vec<Vec<Span>> = (0..20).map(|e| plan.epoch(Epoch(e)).tail).collect();
        assert!(tails.iter().flatten().all(|span| span.len < 64));
        let distinct: HashSet<&Vec<Span>> = tails.iter().collect();
        assert!(distinct.len() > 15, "{tails:?}");
        let other = Plan::new(&[1000], 4, 4, 16).unwrap();
        assert_ne!(other.epoch(Epoch(0)).tail, tails[0]);
    }

    /// The tail is a uniform window of the ring, so no sample is favoured, whatever its shard.
    #[test]
    fn every_sample_is_as_likely_as_any_other_to_be_in_the_tail() {
        let shards = [7, 3, 0, 9];
        let plan = Plan::new(&shards, 1, 3, 2).unwrap();
        let epochs = 20_000;
        let mut count = std::collections::HashMap::new();
        for epoch in 0..epochs {
            for id in ids(&plan.epoch(Epoch(epoch)).tail) {
                *count.entry(id).or_insert(0u64) += 1;
            }
        }
        let expected = epochs as f64 / 19.0; // a tail of one sample out of 19
        for id in all(&shards) {
            let seen = count.get(&id).copied().unwrap_or(0) as f64;
            assert!(
                (seen / expected - 1.0).abs() < 0.15,
                "{id:?}: {seen}, not {expected}"
            );
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_nothing_else_does() {
        let shards = [100, 100, 100, 50];
        let plan = Plan::new(&shards, 1, 4, 8).unwrap();
        assert_eq!(plan.epoch(Epoch(3)), plan.clone().epoch(Epoch(3)));
        assert_ne!(plan.epoch(Epoch(0)).replicas, plan.epoch(Epoch(1)).replicas);
        let other = Plan::new(&shards, 2, 4, 8).unwrap();
        assert_ne!(
            plan.epoch(Epoch(0)).replicas,
            other.epoch(Epoch(0)).replicas
        );
        let span = Span {
            shard: 1,
            start: 0,
            len: 100,
        };
        let first = order(1, Epoch(0), span);
        assert_ne!(first, order(1, Epoch(1), span));
        assert_ne!(first, order(2, Epoch(0), span));
        assert_ne!(first, order(1, Epoch(0), Span { shard: 2, ..span }));
    }

    #[test]
    fn spans_are_mostly_whole_shards() {
        let shards = [10; 100];
        let plan = Plan::new(&shards, 0, 4, 5).unwrap();
        let epoch = plan.epoch(Epoch(0));
        for spans in &epoch.replicas {
            assert!(
                spans.len() <= 26 && partial(&shards, spans) <= 2,
                "{spans:?}"
            );
        }
    }

    #[test]
    fn impossible_plans_are_refused() {
        let refused = |shards: &[u64], r, b| Plan::new(shards, 0, r, b).unwrap_err();
        assert_eq!(
            refused(&[3, 4], 4, 2),
            PlanError::TooFewSamples { have: 7, need: 8 }
        );
        assert_eq!(
            refused(&[], 1, 1),
            PlanError::TooFewSamples { have: 0, need: 1 }
        );
        assert_eq!(
            refused(&[9], 0, 2),
            PlanError::EmptyBatch {
                replicas: 0,
                batch: 2
            }
        );
        assert_eq!(
            refused(&[u64::MAX, 1], 1, 1),
            PlanError::TooLarge { shards: 2 }
        );
        assert!(refused(&[7], 4, 2).to_string().contains("7 samples"));
    }

    /// The bits of a job hang on these values: they must never change.
    #[test]
    fn the_plan_is_fixed_for_ever() {
        let plan = Plan::new(&[5, 0, 4, 6], 7, 2, 3).unwrap();
        let span = |shard, start, len| Span { shard, start, len };
        let epoch = plan.epoch(Epoch(2));
        assert_eq!(
            epoch.replicas,
            [
                vec![span(0, 2, 3), span(3, 0, 3)],
                vec![span(3, 3, 3), span(2, 0, 3)],
            ]
        );
        assert_eq!(epoch.tail, [span(2, 3, 1), span(0, 0, 2)]);
        assert_eq!(order(7, Epoch(2), span(3, 1, 5)), [2, 4, 5, 3, 1]);
    }
}
