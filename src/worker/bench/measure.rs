//! The steps that are measured.

use super::BenchError;
use crate::collective::{Abort, Collective, Deadlines, Flags, Group, GroupPeer, Listener};
use crate::config::{DataCache, Job};
use crate::data::{Batch, DataError, Dataset, Loader, LoaderSettings, Next, Pixels};
use crate::ids::{Epoch, Generation, Rank, ReplicaId, Step};
use crate::plan::Plan;
use crate::random::{Domain, Key};
use crate::train::{Setup, StepReport, Trainer};
use crate::worker::transport::Transport;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::Device;

/// Steps whose batches are loaded ahead, as in a job.
const PREFETCH: usize = 4;
/// Different batches of noise.
const NOISES: u32 = 4;

/// How long each part of the measured steps took, a step at a time.
#[derive(Debug, Default)]
pub(super) struct Phases {
    /// Until its batches were there.
    pub(super) data: Vec<Duration>,
    /// Computing.
    pub(super) compute: Vec<Duration>,
    /// Adding up over replicas; beside computing, where the two overlap.
    pub(super) reduce: Vec<Duration>,
    /// From one step's end to the next one's.
    pub(super) whole: Vec<Duration>,
}

/// What a run of steps took.
#[derive(Debug)]
pub(super) struct Course {
    /// From nothing to State(0), libtorch's own beginnings included.
    pub(super) building: Duration,
    /// The first step, which every library prepares something for.
    pub(super) first: Duration,
    /// How many steps were measured.
    pub(super) steps: usize,
    /// Each of them.
    pub(super) phases: Phases,
    /// All of them together.
    pub(super) elapsed: Duration,
}

impl Course {
    /// Trains `warmup` steps (at least one, the first), then `steps` that are measured.
    pub(super) fn run(
        job: &Job,
        device: Device,
        cores: u32,
        data: bool,
        [warmup, steps]: [usize; 2],
    ) -> Result<Self, BenchError> {
        let began = now();
        let mut runner = Runner::new(job, device, cores, data)?;
        let building = began.elapsed();
        let began = now();
        runner.step()?;
        runner.settle()?;
        let first = began.elapsed();
        for _ in 1..warmup {
            runner.step()?;
        }
        runner.settle()?;
        runner.phases = Phases::default();
        let began = now();
        for _ in 0..steps {
            runner.step()?;
        }
        runner.settle()?;
        Ok(Self {
            building,
            first,
            steps,
            phases: runner.phases,
            elapsed: began.elapsed(),
        })
    }
}

/// All replicas of the job on one device.
struct Runner {
    trainer: Trainer,
    collective: Box<dyn Collective>,
    feed: Feed,
    phases: Phases,
    /// The collective's address.
    _listener: Listener,
}

impl Runner {
    fn new(job: &Job, device: Device, cores: u32, data: bool) -> Result<Self, BenchError> {
        let mut trainer = Trainer::new(Setup {
            job,
            device,
            replicas: 0..job.train.replicas,
            cores: cores as usize,
        })?;
        let feed = if data {
            Feed::data(job, &mut trainer)?
        } else {
            Feed::noise(job)
        };
        let listener = Listener::bind("127.0.0.1:0")?;
        Ok(Self {
            trainer,
            collective: alone(job, device, &listener)?,
            feed,
            phases: Phases::default(),
            _listener: listener,
        })
    }

    fn step(&mut self) -> Result<(), BenchError> {
        let began = now();
        let batches = self.feed.next(self.trainer.tentative())?;
        self.phases.data.push(began.elapsed());
        let report = self
            .trainer
            .advance(batches, &mut *self.collective, Flags::default())?;
        self.phases.whole.push(began.elapsed());
        self.note(report);
        Ok(())
    }

    /// Waits until all that was begun is done.
    fn settle(&mut self) -> Result<(), BenchError> {
        let report = self.trainer.settle(&mut *self.collective)?;
        self.note(report);
        Ok(())
    }

    /// A report may be of the step before.
    fn note(&mut self, report: Option<StepReport>) {
        if let Some(report) = report {
            self.phases.compute.push(report.compute);
            self.phases.reduce.push(report.reduce);
        }
    }
}

/// A generation of one worker, by the transport that a worker on this device takes.
fn alone(
    job: &Job,
    device: Device,
    listener: &Listener,
) -> Result<Box<dyn Collective>, BenchError> {
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
    let mut transport = Transport::of(device);
    Ok(transport.connect(listener, &group, job, deadlines, &Abort::new())?)
}

/// Where batches come from.
pub(super) enum Feed {
    /// The same few batches again and again, a copy for each replica and step.
    Noise {
        replicas: u32,
        batches: Vec<Pixels>,
        /// Of each batch, if the networks are told of labels.
        labels: Option<Vec<u32>>,
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
        let sample: u64 = job.packed_shape().into_iter().map(u64::from).product();
        let len = u64::from(job.replica_samples()) * sample;
        let batch = |number| {
            // A generator by Marsaglia (2003), xorshift64, from a key: quick, and noise enough.
            let mut state = Key::new(Domain::Samples, &[job.job.seed, number]).seed() | 1;
            let byte = |_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            };
            let bytes: Vec<u8> = (0..len).map(byte).collect();
            match model.has_points() {
                true => {
                    Pixels::Numbers(bytes.iter().map(|&x| f32::from(x) / 128.0 - 1.0).collect())
                }
                false => Pixels::Bytes(bytes),
            }
        };
        Self::Noise {
            replicas: train.replicas,
            batches: (0..u64::from(NOISES)).map(batch).collect(),
            labels: model.is_conditional().then(|| {
                (0..job.replica_samples())
                    .map(|i| i % model.classes)
                    .collect()
            }),
        }
    }

    pub(super) fn data(job: &Job, trainer: &mut Trainer) -> Result<Self, BenchError> {
        let dataset = Dataset::open(job, &mut |_, _| {})?;
        if job.data.cache == DataCache::Device {
            trainer.cache(&dataset)?;
        }
        Self::read(job, dataset, trainer.has_cache())
    }

    fn read(job: &Job, dataset: Dataset, places: bool) -> Result<Self, BenchError> {
        let train = &job.train;
        let sizes = dataset.shard_sizes();
        let plan = Plan::new(&sizes, job.job.seed, train.replicas, job.replica_samples())?;
        let loader = Loader::start(
            Arc::new(dataset),
            LoaderSettings {
                seed: job.job.seed,
                batch: job.replica_samples(),
                steps_per_epoch: plan.steps_per_epoch(),
                replicas: 0..train.replicas,
                start: Step(0),
                prefetch: PREFETCH,
                places,
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
            Self::Noise {
                replicas,
                batches,
                labels,
            } => {
                let of = |replica: u32| Batch {
                    step,
                    epoch: Epoch(0),
                    replica: ReplicaId(replica),
                    pixels: batches[((step.0 as u32).wrapping_add(replica) % NOISES) as usize]
                        .clone(),
                    labels: labels.clone(),
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
    use std::path::Path;

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
            assert!(matches!(&batch.pixels, Pixels::Bytes(bytes) if bytes.len() == 2 * 32 * 32));
        }
        assert_ne!(first[0].pixels, first[1].pixels);
        assert_ne!(first[0].pixels, feed.next(Step(1)).unwrap()[0].pixels);
        let again = feed.next(Step(u64::from(NOISES))).unwrap();
        assert_eq!(first[2].pixels, again[2].pixels);
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
        let dataset = Dataset::open(&job, &mut |_, _| {}).unwrap();
        let mut feed = Feed::read(&job, dataset, false).unwrap();
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
