//! The steps that are measured.

use super::super::transport::Transport;
use super::BenchError;
use crate::collective::{
    Abort, Collective, CollectiveError, Deadlines, Flags, Group, GroupPeer, Listener,
};
use crate::config::Job;
use crate::data::{Batch, DataError, Dataset, Loader, LoaderSettings, Next};
use crate::ids::{Epoch, Generation, Rank, ReplicaId, Step};
use crate::plan::Plan;
use crate::random::{Domain, Key};
use crate::train::{Setup, StepReport, Trainer};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::Device;

/// Steps whose batches are loaded ahead, as in a job.
const PREFETCH: usize = 4;
/// Different batches of noise.
const NOISES: u32 = 4;

/// A step's time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phases {
    /// Until its batches were there.
    pub(super) data: Duration,
    /// Computing.
    pub(super) compute: Duration,
    /// Adding up over replicas.
    pub(super) reduce: Duration,
    /// All of it, from this step's end to the last one's.
    pub(super) whole: Duration,
}

/// What a run of steps took.
#[derive(Debug)]
pub(super) struct Course {
    /// From nothing to State(0), libtorch's own beginnings included.
    pub(super) building: Duration,
    /// The first step, which every library prepares something for.
    pub(super) first: Duration,
    /// The measured steps.
    pub(super) steps: Vec<Phases>,
    /// All of these together.
    pub(super) elapsed: Duration,
}

impl Course {
    /// Trains `warmup` steps (at least one, the first), then `steps` that are measured.
    pub(super) fn run(
        job: &Job,
        device: Device,
        cores: u32,
        feed: Feed,
        warmup: usize,
        steps: usize,
    ) -> Result<Self, BenchError> {
        let began = now();
        let mut runner = Runner::new(job, device, cores, feed)?;
        let building = began.elapsed();
        let began = now();
        runner.step()?;
        runner.rest()?;
        let first = began.elapsed();
        for _ in 1..warmup {
            runner.step()?;
        }
        runner.rest()?;
        let began = now();
        let mut timed = Vec::new();
        for _ in 0..steps {
            timed.extend(runner.step()?);
        }
        timed.extend(runner.rest()?);
        Ok(Self {
            building,
            first,
            steps: timed,
            elapsed: began.elapsed(),
        })
    }
}

/// All replicas of the job on one device.
struct Runner {
    trainer: Trainer,
    collective: Box<dyn Collective>,
    feed: Feed,
    /// The state that the next step starts from.
    from: Step,
}

impl Runner {
    fn new(job: &Job, device: Device, cores: u32, feed: Feed) -> Result<Self, BenchError> {
        let replicas = job.train.replicas;
        let trainer = Trainer::new(Setup {
            job,
            device,
            replicas: 0..replicas,
            cores: cores as usize,
        })?;
        Ok(Self {
            from: trainer.step(),
            trainer,
            collective: alone(job, device)?,
            feed,
        })
    }

    /// One step. On a device the trainer tells of the one before, if one was under way.
    fn step(&mut self) -> Result<Option<Phases>, BenchError> {
        let began = now();
        let batches = self.feed.next(self.from)?;
        let data = began.elapsed();
        let report = self
            .trainer
            .advance(batches, &mut *self.collective, Flags::default())?;
        self.from = self.from.next();
        Ok(report.map(|report| phases(&report, data, began.elapsed())))
    }

    /// Waits until all that was begun is done, and tells of it.
    fn rest(&mut self) -> Result<Option<Phases>, BenchError> {
        let began = now();
        let report = self.trainer.settle(&mut *self.collective)?;
        Ok(report.map(|report| phases(&report, Duration::ZERO, began.elapsed())))
    }
}

/// The collective of a generation of one worker: on a GPU what is measured must go the way that a
/// job's steps go.
fn alone(job: &Job, device: Device) -> Result<Box<dyn Collective>, CollectiveError> {
    let listener = Listener::bind("127.0.0.1:0")?;
    let replicas = job.train.replicas;
    let group = Group {
        generation: Generation(1),
        rank: Rank(0),
        peers: vec![GroupPeer {
            address: listener.local_addr().to_string(),
            replicas: 0..replicas,
        }],
        replicas,
        secret: [0; 32],
    };
    let deadlines = Deadlines {
        connect: job.deadlines.form,
        collective: job.deadlines.collective,
    };
    let reduction = job.train.reduction;
    Transport::of(device).connect(&listener, &group, reduction, deadlines, &Abort::new())
}

/// This alone knows what the trainer tells of a step.
fn phases(report: &StepReport, data: Duration, whole: Duration) -> Phases {
    Phases {
        data,
        compute: report.compute,
        reduce: report.reduce,
        whole,
    }
}

/// Where batches come from.
pub(super) enum Feed {
    /// The same few batches again and again, a copy for each replica and step.
    Noise {
        replicas: u32,
        batches: Vec<Vec<u8>>,
    },
    /// The job's data, through its loader.
    Data {
        loader: Box<Loader>,
        plan: Plan,
        deadline: Duration,
        next: Epoch,
    },
}

impl Feed {
    pub(super) fn noise(job: &Job) -> Self {
        let (model, train) = (&job.model, &job.train);
        let side = u64::from(model.image_size);
        let len = u64::from(train.batch) * u64::from(model.channels) * side * side;
        let batch = |number| {
            // A generator by Marsaglia (2003), xorshift64, from a key: quick, and noise enough.
            let mut state = Key::new(Domain::Samples, &[job.job.seed, number]).seed() | 1;
            let byte = |_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            };
            (0..len).map(byte).collect()
        };
        Self::Noise {
            replicas: train.replicas,
            batches: (0..u64::from(NOISES)).map(batch).collect(),
        }
    }

    pub(super) fn data(job: &Job) -> Result<Self, BenchError> {
        let dataset = Dataset::open(job, &mut |_, _| {})?;
        let train = &job.train;
        let sizes = dataset.shard_sizes();
        let plan = Plan::new(&sizes, job.job.seed, train.replicas, train.batch)?;
        let loader = Loader::start(
            Arc::new(dataset),
            LoaderSettings {
                seed: job.job.seed,
                batch: train.batch,
                steps_per_epoch: plan.steps_per_epoch(),
                replicas: 0..train.replicas,
                start: Step(0),
                prefetch: PREFETCH,
                places: false,
            },
        )?;
        let mut feed = Self::Data {
            loader: Box::new(loader),
            plan,
            deadline: job.deadlines.data,
            next: Epoch(0),
        };
        // One epoch ahead of the one that is read, as a coordinator deals them.
        feed.assign();
        feed.assign();
        Ok(feed)
    }

    fn assign(&mut self) {
        if let Self::Data {
            loader, plan, next, ..
        } = self
        {
            let replicas = plan.epoch(*next).replicas;
            let spans = (0..).map(ReplicaId).zip(replicas).collect();
            loader.assign(*next, spans);
            *next = next.next();
        }
    }

    fn next(&mut self, step: Step) -> Result<Vec<Batch>, DataError> {
        match self {
            Self::Noise { replicas, batches } => {
                let of = |replica: u32| Batch {
                    step,
                    epoch: Epoch(0),
                    replica: ReplicaId(replica),
                    pixels: batches[((step.0 as u32).wrapping_add(replica) % NOISES) as usize]
                        .clone()
                        .into(),
                    labels: None,
                };
                Ok((0..*replicas).map(of).collect())
            }
            Self::Data {
                loader,
                plan,
                deadline,
                next,
            } => {
                let (epoch, deadline) = (plan.locate(step).0, *deadline);
                let batches = match loader.next(deadline)? {
                    Next::Batches(batches) => batches,
                    // Every epoch was assigned before its first step.
                    Next::Exhausted => return Err(DataError::Ended),
                };
                if epoch.next() >= *next {
                    self.assign();
                }
                Ok(batches)
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use crate::data::Pixels;
    use std::path::Path;

    fn bytes(batch: &Batch) -> &[u8] {
        match &batch.pixels {
            Pixels::Bytes(bytes) => bytes,
            Pixels::Places(_) => panic!("noise has no place in a data set"),
        }
    }

    #[test]
    fn noise_has_the_shape_of_the_jobs_batches_and_repeats() {
        let text = "
            job = { name = 'noise' }
            data = { uri = 'nowhere' }
            train = { replicas = 3, batch = 2, steps = 1 }
            model = { image_size = 32, channels = 1 }
        ";
        let job = parse(text, "noise", Path::new("."), &[]).unwrap();
        let mut feed = Feed::noise(&job);
        let first = feed.next(Step(0)).unwrap();
        assert_eq!(first.len(), 3);
        for (batch, replica) in first.iter().zip(0..) {
            assert_eq!(batch.replica, ReplicaId(replica));
            assert_eq!(bytes(batch).len(), 2 * 32 * 32);
        }
        assert_ne!(bytes(&first[0]), bytes(&first[1]));
        assert_ne!(bytes(&first[0]), bytes(&feed.next(Step(1)).unwrap()[0]));
        let again = feed.next(Step(u64::from(NOISES))).unwrap();
        assert_eq!(bytes(&first[2]), bytes(&again[2]));
        assert_eq!(again[2].step, Step(u64::from(NOISES)));
    }

    /// The demo's digits, over the end of an epoch and further.
    #[test]
    fn data_goes_on_from_epoch_to_epoch() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "
            job = {{ name = 'digits' }}
            data = {{ uri = 'tests/data/mnist', shard_folder = '{}' }}
            train = {{ replicas = 2, batch = 1000, steps = 1 }}
            model = {{ image_size = 32, channels = 1 }}
            ",
            folder.path().display()
        );
        let job = parse(&text, "digits", Path::new(env!("CARGO_MANIFEST_DIR")), &[]).unwrap();
        let mut feed = Feed::data(&job).unwrap();
        for step in 0..16 {
            let batches = feed.next(Step(step)).unwrap();
            let epoch = Epoch(step / 5);
            assert!(
                batches
                    .iter()
                    .all(|b| b.step == Step(step) && b.epoch == epoch)
            );
        }
    }
}
