use super::{TempDirs, assert_says, job, number, numbered, open};
use crate::data::{Batch, DataError, Dataset, Loader, LoaderSettings, Next, Pixels};
use crate::ids::{Epoch, ReplicaId, Step};
use crate::plan::{Plan, Span, order};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

const SEED: u64 = 5;
const BATCH: u32 = 3;
const REPLICAS: u32 = 4;
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

struct Fixture {
    _dirs: TempDirs,
    data: Arc<Dataset>,
    plan: Plan,
}

/// 110 samples in shards of 20: 9 steps of 4 × 3 samples an epoch, and a tail of 2.
fn fixture() -> Fixture {
    let dirs = TempDirs::new();
    numbered(dirs.source.path(), 110);
    let sets = ["data.shard_samples=20"];
    let data = open(&job(dirs.source.path(), dirs.cache.path(), &sets)).unwrap();
    let plan = Plan::new(&data.shard_sizes(), SEED, REPLICAS, BATCH).unwrap();
    assert_eq!(plan.steps_per_epoch(), 9);
    Fixture {
        _dirs: dirs,
        data: Arc::new(data),
        plan,
    }
}

impl Fixture {
    fn loader(&self, replicas: Range<u32>, start: u64) -> Loader {
        self.loader_of(replicas, start, false)
    }

    fn loader_of(&self, replicas: Range<u32>, start: u64, places: bool) -> Loader {
        let settings = LoaderSettings {
            seed: SEED,
            batch: BATCH,
            steps_per_epoch: self.plan.steps_per_epoch(),
            replicas,
            start: Step(start),
            prefetch: 2,
            places,
        };
        Loader::start(Arc::clone(&self.data), settings).unwrap()
    }

    fn spans(&self, replicas: Range<u32>, epoch: u64) -> Vec<(ReplicaId, Vec<Span>)> {
        let plan = self.plan.epoch(Epoch(epoch));
        replicas
            .map(|r| (ReplicaId(r), plan.replicas[r as usize].clone()))
            .collect()
    }

    fn loaded(&self, replicas: Range<u32>, start: u64, epochs: Range<u64>) -> Vec<Vec<Batch>> {
        let mut loader = self.loader(replicas.clone(), start);
        for epoch in epochs {
            loader.assign(Epoch(epoch), self.spans(replicas.clone(), epoch));
        }
        drain(&mut loader)
    }
}

fn drain(loader: &mut Loader) -> Vec<Vec<Batch>> {
    let mut steps = Vec::new();
    while let Next::Batches(batches) = loader.next(LONG).unwrap() {
        steps.push(batches);
    }
    steps
}

fn numbers(batch: &Batch) -> Vec<u32> {
    let Pixels::Bytes(pixels) = &batch.pixels else {
        panic!("{batch:?} brings no bytes");
    };
    assert_eq!(pixels.len(), BATCH as usize * 32 * 32);
    let numbers: Vec<u32> = pixels.chunks(32 * 32).map(number).collect();
    let labels: Vec<u32> = numbers.iter().map(|number| number % 7).collect();
    assert_eq!(batch.labels, Some(labels), "labels belong to other samples");
    numbers
}

#[test]
fn batches_are_what_plan_and_order_say() {
    let fixture = fixture();
    let steps = fixture.loaded(0..REPLICAS, 0, 0..3);
    assert_eq!(steps.len(), 27);
    for epoch in 0..3 {
        let plan = fixture.plan.epoch(Epoch(epoch));
        for (replica, spans) in plan.replicas.iter().enumerate() {
            let mut expected = Vec::new();
            for &span in spans {
                let shard = fixture.data.shard(span.shard).unwrap();
                for index in order(SEED, Epoch(epoch), span) {
                    expected.push(number(shard.sample(index).unwrap().pixels));
                }
            }
            for (step, expected) in (epoch * 9..).zip(expected.chunks(BATCH as usize)) {
                let batch = &steps[step as usize][replica];
                assert_eq!((batch.step, batch.epoch), (Step(step), Epoch(epoch)));
                assert_eq!(batch.replica, ReplicaId(replica as u32));
                assert_eq!(numbers(batch), expected);
            }
        }
    }
}

#[test]
fn places_name_the_samples_that_bytes_would_bring() {
    let fixture = fixture();
    let whole: Vec<u8> = (0..fixture.data.shard_sizes().len() as u32)
        .flat_map(|shard| fixture.data.shard(shard).unwrap().pixels().to_vec())
        .collect();
    assert_eq!(whole.len() as u64, fixture.data.samples() * 32 * 32);
    let bytes = fixture.loaded(1..3, 4, 0..2);
    let mut loader = fixture.loader_of(1..3, 4, true);
    for epoch in 0..2 {
        loader.assign(Epoch(epoch), fixture.spans(1..3, epoch));
    }
    let places = drain(&mut loader);
    assert_eq!(places.len(), bytes.len());
    for (mut place, byte) in places
        .into_iter()
        .flatten()
        .zip(bytes.into_iter().flatten())
    {
        let Pixels::Places(numbers) = &place.pixels else {
            panic!("{place:?} names no places");
        };
        let images = numbers
            .iter()
            .flat_map(|&place| whole[place as usize * 32 * 32..][..32 * 32].to_vec());
        place.pixels = Pixels::Bytes(images.collect());
        assert!(place == byte, "{place:?} {byte:?}");
    }
}

#[test]
fn every_sample_is_loaded_exactly_once_an_epoch() {
    let fixture = fixture();
    let steps = fixture.loaded(0..REPLICAS, 0, 0..2);
    for (epoch, steps) in (0..).zip(steps.chunks(9)) {
        let mut seen: Vec<u32> = steps.iter().flatten().flat_map(numbers).collect();
        for span in fixture.plan.epoch(Epoch(epoch)).tail {
            let shard = fixture.data.shard(span.shard).unwrap();
            let tail = span.start..span.start + span.len;
            seen.extend(tail.map(|index| number(shard.sample(index).unwrap().pixels)));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..110).collect::<Vec<_>>());
    }
}

#[test]
fn a_loader_started_late_goes_on_like_one_started_at_0() {
    let fixture = fixture();
    let whole = fixture.loaded(0..REPLICAS, 0, 0..3);
    for start in 0..=18 {
        let late = fixture.loaded(0..REPLICAS, start, start / 9..3);
        assert_eq!(late, whole[start as usize..], "from {start}");
    }
}

#[test]
fn a_replicas_batches_do_not_depend_on_who_hosts_it() {
    let fixture = fixture();
    let whole = fixture.loaded(0..REPLICAS, 4, 0..2);
    for range in [0..1, 1..4, 2..3, 2..4] {
        let part = fixture.loaded(range.clone(), 4, 0..2);
        let range = range.start as usize..range.end as usize;
        let expected: Vec<Vec<Batch>> = whole.iter().map(|b| b[range.clone()].to_vec()).collect();
        assert_eq!(part, expected, "{range:?}");
    }
}

#[test]
fn work_assigned_before_next_is_never_called_exhausted() {
    let fixture = fixture();
    let mut loader = fixture.loader(0..REPLICAS, 0);
    assert_eq!(loader.next(Duration::ZERO).unwrap(), Next::Exhausted);
    for epoch in 0..200 {
        loader.assign(Epoch(epoch), fixture.spans(0..REPLICAS, epoch));
        assert_eq!(drain(&mut loader).len(), 9, "epoch {epoch}");
        assert_eq!(loader.next(Duration::ZERO).unwrap(), Next::Exhausted);
    }
}

#[test]
fn a_wait_past_the_deadline_names_what_was_awaited_and_loses_nothing() {
    let fixture = fixture();
    let mut loader = fixture.loader(1..3, 5);
    let locks: Vec<_> = fixture
        .data
        .shards
        .iter()
        .map(|s| s.lock().unwrap())
        .collect();
    loader.assign(Epoch(0), fixture.spans(1..3, 0));
    for _ in 0..2 {
        let error = loader.next(SHORT).unwrap_err();
        assert!(matches!(error, DataError::Deadline { .. }));
        assert_says(&error.to_string(), &["50ms", "step 5", "epoch 0", "1..3"]);
    }
    drop(locks);
    let Next::Batches(batches) = loader.next(LONG).unwrap() else {
        panic!("the work is still there");
    };
    assert_eq!(batches[0].step, Step(5));
    assert_eq!(drain(&mut loader).len(), 3);
}

#[test]
fn a_dropped_loader_leaves_no_thread_behind() {
    let fixture = fixture();
    for taken in 0..4 {
        let mut loader = fixture.loader(0..REPLICAS, 0);
        if taken > 0 {
            loader.assign(Epoch(0), fixture.spans(0..REPLICAS, 0));
        }
        for _ in 1..taken {
            loader.next(LONG).unwrap(); // the thread is then full, or about to be
        }
        drop(loader);
        assert_eq!(
            Arc::strong_count(&fixture.data),
            1,
            "the thread holds the data"
        );
    }
}

#[test]
fn spans_that_the_plan_cannot_have_made_are_refused() {
    let fixture = fixture();
    let good = || fixture.spans(0..2, 0);
    let mut missing = good();
    missing.pop();
    let mut twice = good();
    twice.push(twice[0].clone());
    let mut short = good();
    short[1].1.pop();
    let mut outside = good();
    outside[0].1[0].start = 20; // a shard has 20
    let mut overflow = good();
    overflow[0].1[0].start = u64::MAX;
    let mut stranger = good();
    stranger[0].1[0].shard = 99;
    for (epoch, spans, says) in [
        (0, missing, "hosted are 0..2"),
        (0, twice, "hosted are 0..2"),
        (0, short, "replica 1 is given"),
        (0, outside, "doesn't have"),
        (0, overflow, "doesn't have"),
        (0, stranger, "shard: 99"),
        (1, good(), "the next to be assigned is epoch 0"),
    ] {
        let mut loader = fixture.loader(0..2, 0);
        loader.assign(Epoch(epoch), spans);
        let error = loader.next(LONG).unwrap_err();
        assert!(matches!(error, DataError::Assignment { .. }), "{error}");
        assert_says(&error.to_string(), &[&format!("epoch {epoch}"), says]);
        assert!(matches!(loader.next(LONG), Err(DataError::Ended)));
    }
}

#[test]
fn a_corrupt_shard_reaches_the_training_thread_as_an_error() {
    let fixture = fixture();
    for shard in &fixture.data.manifest().shards {
        let path = fixture.data.folder().join(&shard.file);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let mut loader = fixture.loader(0..1, 0);
    loader.assign(Epoch(0), fixture.spans(0..1, 0));
    let error = loader.next(LONG).unwrap_err();
    assert_says(&error.to_string(), &[".shard", "SHA-256"]);
}
