//! The invariants of a step, on networks small enough to train in a moment.

mod ahead;
mod copying;
mod exactness;
mod faults;
mod games;
mod guard;
mod precision;
mod step;
mod variants;

use super::inputs::Weights;
use super::layout::part;
use super::vectors::Vectors;
use super::*;
use crate::checkpoint::TensorData;
use crate::collective::{CollectiveError, InProcess};
use crate::config::{Objective, Update, parse};
use crate::ids::{Epoch, Generation, Rank, ReplicaId};
use crate::model::Player;
use crate::objective;
use crate::random::{Domain, Key};
use crate::torch::TorchError;
use std::path::Path;
use std::time::Duration;
use tch::Tensor;

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

/// Samples that are a function of step and replica.
fn batch(job: &Job, step: u64, replica: u32) -> Batch {
    let mut stream = Key::new(Domain::Span, &[step, u64::from(replica)]).stream();
    let len = job.replica_samples() * job.packed_shape().iter().product::<u32>();
    let pixels = match job.model.has_points() {
        true => Pixels::Numbers((0..len).map(|_| stream.normal() as f32).collect()),
        false => Pixels::Bytes((0..len).map(|_| stream.below(256) as u8).collect()),
    };
    let classes = job.model.classes;
    let mut label = |_| stream.below(classes.into()) as u32;
    Batch {
        step: Step(step),
        epoch: Epoch(0),
        replica: ReplicaId(replica),
        pixels,
        labels: (classes > 0).then(|| (0..job.replica_samples()).map(&mut label).collect()),
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
    let report = trainer.advance(batches, collective, Flags::default())?;
    Ok(report.expect("in host memory a step is over when the call returns"))
}

fn train(trainer: &mut Trainer, steps: usize) -> Snapshot {
    for _ in 0..steps {
        advance(trainer, &mut Alone::default()).unwrap();
    }
    trainer.snapshot().unwrap()
}

/// One worker, which takes what it hosts for all replicas there are; its reduction with this number,
/// counted from 1, fails.
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
        let mut all = InProcess::solo(hosted.len() as u32).unwrap();
        all.reduce_mean(hosted, mean)
    }
    fn barrier(&mut self) -> Result<(), CollectiveError> {
        Ok(())
    }
    fn gather(&mut self, word: u64) -> Result<Vec<u64>, CollectiveError> {
        Ok(vec![word])
    }
    fn copy(&mut self, _: &[Rank], _: &mut [f32]) -> Result<(), CollectiveError> {
        Ok(())
    }
    fn sent_bytes(&self) -> u64 {
        0
    }
}

/// The state after `steps` on workers that host these ranges, and the reports of the last step.
fn train_together(
    job: &Job,
    ranges: &[Range<u32>],
    steps: usize,
    flags: impl Fn(u32) -> Flags + Sync,
) -> Vec<(Snapshot, StepReport)> {
    let group = InProcess::group(ranges, Duration::from_secs(60)).unwrap();
    std::thread::scope(|scope| {
        let workers: Vec<_> = group
            .into_iter()
            .zip(ranges)
            .map(|(mut collective, range)| {
                let rank = collective.rank().0;
                let flags = &flags;
                scope.spawn(move || {
                    let mut trainer = trainer(job, range.clone(), 2);
                    let mut last = None;
                    for _ in 0..steps {
                        let batches = range
                            .clone()
                            .map(|replica| batch(job, trainer.step().0, replica))
                            .collect();
                        last = trainer
                            .advance(batches, &mut collective, flags(rank))
                            .unwrap();
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
