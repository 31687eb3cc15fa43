//! A training step, over all replicas: from State(t) to State(t+1).
//!
//! [`Trainer`] owns the state and the threads that the hosted replicas run on. It is handed batches
//! and a [`Collective`], and knows nothing of files, sockets, the coordinator or other workers. A
//! step is transactional: the next state is made in memory of its own, and either all of it becomes
//! the state or, after an error, none.
//!
//! `step` has the mathematics of one replica, `inputs` what it computes on, `vectors` what it leaves,
//! `layout` where that stands while it travels, `update` what becomes of it with `optimizer`'s Adam,
//! `state` what the next step depends on, `snapshot` its names in a checkpoint, `copying` its way to
//! workers that don't have it, `hosted` what the hosted replicas need.
//! `committing` is the end of a step: what the guard ([`crate::guard`]) says of it, and the state that
//! comes of that; `anchors` are older states that it may go back to.
//!
//! There are two ways through a step, to the same bits. `host` goes through host memory: replicas
//! run side by side on `pool`'s threads, and the step is over when the call returns. `ahead` leaves
//! all of it on the device and is one step ahead of it: `feed` brings it what it computes on,
//! `stretches` is what it does between reductions, kernel by kernel or as graphs that `graphs`
//! records; `pace` has the numbers that change from step to step, `figures` brings back what a step
//! tells, `stopwatch` how long it took. `cache` keeps a data set on the device.

mod ahead;
mod anchors;
mod arithmetic;
mod cache;
mod committing;
mod copying;
mod error;
mod feed;
mod figures;
mod graphs;
mod host;
mod hosted;
mod inputs;
mod layout;
mod optimizer;
mod pace;
mod pool;
mod pyramid;
mod sampler;
mod snapshot;
mod state;
mod step;
mod stopwatch;
mod stretches;
#[cfg(test)]
mod tests;
mod update;
mod vectors;

pub use error::{Attempt, Mismatch, TrainError};
pub use pyramid::Pyramid;
pub use sampler::{Sampler, bytes};

use crate::checkpoint::Snapshot;
use crate::collective::{Collective, Flags};
use crate::config::Job;
use crate::data::{Batch, Pixels};
use crate::guard::Verdict;
use crate::ids::Step;
use crate::model::Latents;
use crate::torch::{self, Adopted, Event, Stream, StreamGuard};
use ahead::Ahead;
use hosted::{Hosted, Traveller};
use pace::Pace;
use state::{PlayerState, State};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use step::Game;
use tch::{Device, Tensor};

/// What a [`Trainer`] is built from.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The job.
    pub job: &'a Job,
    /// Where it computes.
    pub device: Device,
    /// The replicas that it hosts at first: none, for a worker that has no seat yet. Building a
    /// trainer takes a while, and [`Trainer::host`] much less.
    pub replicas: Range<u32>,
    /// Cores that it may use; the bits don't depend on it. On a GPU one thread does everything.
    pub cores: usize,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// The step reached: the state is now State(`step`).
    pub step: Step,
    /// The orders of all workers together.
    pub flags: Flags,
    /// J_D, the mean over all replicas, as the other figures are.
    pub loss_d: f64,
    /// J_G.
    pub loss_g: f64,
    /// Mean D(x): how real D takes real images to be, 0 … 1.
    pub d_real: f64,
    /// Mean D(G(z)), before the update.
    pub d_fake: f64,
    /// L2 norm of D's mean gradient.
    pub grad_norm_d: f64,
    /// L2 norm of G's mean gradient.
    pub grad_norm_g: f64,
    /// Elements of the mean gradients and batch statistics that are not finite: 0 in a healthy job.
    pub nonfinite: u64,
    /// How much fakes vary, in units of the real images; if the guard watches that.
    pub diversity: Option<f64>,
    /// What the guard has made of the step.
    pub verdict: Verdict,
    /// Time spent computing; on a device that reduces by itself, the device's time.
    pub compute: Duration,
    /// Time spent in reductions while nothing was computed, waiting for peers included; on a device
    /// that reduces by itself, the device's time.
    pub reduce: Duration,
    /// Bytes sent to peers in reductions.
    pub sent_bytes: u64,
}

/// The state, and all it takes to advance it.
#[derive(Debug)]
pub struct Trainer {
    game: Arc<Game>,
    job: Job,
    cores: usize,
    state: State,
    /// Room in which the next state of each network is made.
    next_generator: PlayerState,
    next_discriminator: PlayerState,
    /// Which of the two sets of buffers the state lies in: 0 or 1, in turns.
    side: usize,
    pace: Pace,
    hosted: Hosted,
    /// Where means arrive, and states that are copied.
    discriminator_mean: Traveller,
    generator_mean: Traveller,
    /// The data set, if it lies on the device.
    cache: Option<Tensor>,
    /// Once a step's reductions have stayed on the device.
    ahead: Option<Box<Ahead>>,
    /// The state is read here, and does not wait for the step that is under way.
    aside: Stream,
    /// Where the device was when the state became the state.
    committed: Event,
    remarks: Vec<String>,
    /// By which all of the process computes while the trainer lives.
    _rules: Adopted,
}

impl Trainer {
    /// A trainer at State(0), which is a function of the job alone.
    ///
    /// # Errors
    /// [`TrainError`], if the device or memory is not to be had, or the job has no such replicas.
    pub fn new(setup: Setup<'_>) -> Result<Self, TrainError> {
        let game = Game::new(setup.job, setup.device);
        Self::playing(game, setup)
    }

    fn playing(game: Game, setup: Setup<'_>) -> Result<Self, TrainError> {
        let Setup {
            job,
            device,
            replicas,
            cores,
        } = setup;
        let remarks = arithmetic::remarks(job, device)?;
        let rules = Adopted::new(arithmetic::rules(job), device)?;
        torch::set_threads(job.workers.threads);
        let game = Arc::new(game);
        let state = State::initial(job, &game.generator, &game.discriminator, device)?;
        let mut hosted = Hosted::nothing();
        hosted.host(&game, job, replicas, cores)?;
        let mut committed = Event::new(device, false)?;
        committed.record(Stream::current(device)?)?;
        Ok(Self {
            next_generator: state.generator.room()?,
            next_discriminator: state.discriminator.room()?,
            state,
            side: 0,
            pace: Pace::new(game.rounds, device)?,
            hosted,
            discriminator_mean: Traveller::new(game.discriminator_layout.len, device)?,
            generator_mean: Traveller::new(game.generator_layout.len, device)?,
            cache: None,
            ahead: None,
            aside: Stream::from_pool(device, false)?,
            committed,
            game,
            job: job.clone(),
            cores,
            remarks,
            _rules: rules,
        })
    }

    /// What people should know of the job's arithmetic on this device: sentences for a log.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Hosts these replicas from now on, maybe none: a new generation. The state stays, and so do
    /// the threads and vectors that still fit; a step that is under way is [discarded](Self::discard).
    ///
    /// # Errors
    /// [`TrainError`]; the trainer then hosts what it hosted before.
    pub fn host(&mut self, replicas: Range<u32>) -> Result<(), TrainError> {
        self.discard();
        if replicas == self.hosted.replicas {
            return Ok(());
        }
        // It knows the addresses of vectors that may go.
        self.ahead = None;
        self.hosted
            .host(&self.game, &self.job, replicas, self.cores)
    }

    /// t of the State(t) that the trainer has.
    pub fn step(&self) -> Step {
        self.state.step
    }

    /// t of the state that the next [`advance`](Self::advance) starts from: that of the step which
    /// is under way, if one is, and otherwise of the state.
    pub fn tentative(&self) -> Step {
        let pending = self.ahead.as_ref().and_then(|ahead| ahead.pending());
        pending.unwrap_or(self.state.step)
    }

    /// The replicas that it hosts.
    pub fn replicas(&self) -> Range<u32> {
        self.hosted.replicas.clone()
    }

    /// A copy of the state in host memory. A step that is under way is no part of it, and not waited
    /// for.
    ///
    /// # Errors
    /// [`TrainError::Torch`].
    pub fn snapshot(&self) -> Result<Snapshot, TrainError> {
        let _aside = self.read_aside()?;
        Ok(snapshot::save(
            &self.state,
            &self.game.generator,
            &self.game.discriminator,
        )?)
    }

    /// Goes on from a saved state. A step that is under way is [discarded](Self::discard).
    ///
    /// # Errors
    /// [`TrainError::State`], which names the first thing that doesn't fit; the state is then what
    /// it was.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), TrainError> {
        self.discard();
        let state = snapshot::load(
            snapshot,
            &self.game.generator,
            &self.game.discriminator,
            &self.job,
            self.game.device,
        )?;
        self.mark()?;
        // It knows the addresses of the old one.
        self.ahead = None;
        self.state = state;
        Ok(())
    }

    /// One step, together with the workers that host the other replicas. `batches` are those of the
    /// hosted replicas at State([`tentative`](Self::tentative)), in their order; `flags` are this
    /// worker's orders.
    ///
    /// Returns the report of the step that became the state. With a collective that reduces [on the
    /// device](Collective::on_device) this is the step before, which was under way, and nothing if
    /// none was: the new one is under way then, until the next call or [`settle`](Self::settle). But
    /// if any flags are up in that report all workers rest there, as they do if the guard stops the
    /// job: nothing is under way, and these batches are those of the next step still.
    ///
    /// # Errors
    /// [`TrainError`]. The state is then State(t) still, bit for bit, nothing is under way, and the
    /// step can be done again with another collective.
    pub fn advance(
        &mut self,
        batches: Vec<Batch>,
        collective: &mut dyn Collective,
        flags: Flags,
    ) -> Result<Option<StepReport>, TrainError> {
        if collective.on_device().is_none() {
            self.discard();
        }
        self.check(&batches)?;
        if collective.on_device().is_some() {
            self.advance_on_device(&batches, collective, flags)
        } else {
            self.advance_in_host_memory(batches, collective, flags)
                .map(Some)
        }
    }

    /// Finishes the step that is under way, and returns its report; nothing if none is.
    ///
    /// # Errors
    /// As [`advance`](Self::advance): nothing is under way then.
    pub fn settle(
        &mut self,
        collective: &mut dyn Collective,
    ) -> Result<Option<StepReport>, TrainError> {
        self.settle_on_device(collective)
    }

    /// Forgets the step that is under way, if one is: the state is what it was before it. Other
    /// workers may have finished it, and then hold a newer state.
    pub fn discard(&mut self) {
        if let Some(ahead) = &mut self.ahead {
            ahead.discard();
        }
    }

    /// Images of these latents: from the generator's average if one is kept, with running
    /// statistics; of a conditional generator, for the labels in turn.
    ///
    /// # Shapes
    /// `[latents.count(), c, s, s]`, 0 … 255.
    ///
    /// # Errors
    /// [`TrainError::Latents`] or [`TrainError::Torch`].
    pub fn sample(&self, latents: &Latents) -> Result<Vec<u8>, TrainError> {
        let _aside = self.read_aside()?;
        self.sampler()?.sample(latents)
    }

    /// The same for these labels: [`Sampler::sample_of`].
    ///
    /// # Errors
    /// As there.
    pub fn sample_of(&self, latents: &Latents, labels: &[u32]) -> Result<Vec<u8>, TrainError> {
        let _aside = self.read_aside()?;
        self.sampler()?.sample_of(latents, labels)
    }

    /// What the generator makes of these latents for these labels, as it makes it:
    /// [`Sampler::values`].
    ///
    /// # Errors
    /// As there.
    pub fn values(&self, latents: &Latents, labels: &[u32]) -> Result<Vec<f32>, TrainError> {
        let _aside = self.read_aside()?;
        self.sampler()?.values(latents, labels)
    }

    /// The images that a level of a pyramid makes of coarser ones, 0 … 255: [`Sampler::refine`].
    ///
    /// # Errors
    /// As there.
    pub fn refine_images(
        &self,
        coarse: &[f32],
        latents: &Latents,
        labels: &[u32],
    ) -> Result<Vec<u8>, TrainError> {
        let _aside = self.read_aside()?;
        let images = self.sampler()?.refine(coarse, latents, labels)?;
        Ok(images.into_iter().map(sampler::byte).collect())
    }

    /// Only while the state is [read aside](Self::read_aside).
    fn sampler(&self) -> Result<Sampler, TrainError> {
        torch::set_threads(self.job.workers.threads);
        let (parameters, running) = match &self.state.average {
            Some(average) => (&average.parameters, &average.running),
            None => (
                &self.state.generator.parameters,
                &self.state.generator.running,
            ),
        };
        let architecture = self.game.generator.clone();
        Sampler::over(
            architecture,
            &self.job.model,
            parameters,
            running,
            self.game.device,
        )
    }

    /// Refuses batches that are not the hosted replicas' at this step.
    fn check(&self, batches: &[Batch]) -> Result<(), TrainError> {
        let step = self.tentative();
        let wrong = |detail: String| TrainError::Batches { step, detail };
        if self.hosted.replicas.is_empty() {
            return Err(wrong("the trainer hosts no replicas yet".to_owned()));
        }
        if batches.len() != self.hosted.replicas.len() {
            return Err(wrong(format!(
                "{} batches for {} hosted replicas",
                batches.len(),
                self.hosted.replicas.len()
            )));
        }
        let size = self.game.samples_len() * self.game.rounds.discriminator as usize;
        for (batch, replica) in batches.iter().zip(self.hosted.replicas.clone()) {
            if batch.replica.0 != replica || batch.step != step {
                return Err(wrong(format!(
                    "expected replica {replica}'s, found replica {}'s at State({})",
                    batch.replica, batch.step
                )));
            }
            let found = match (&batch.pixels, self.game.kind) {
                (Pixels::Bytes(bytes), tch::Kind::Uint8) => bytes.len(),
                (Pixels::Numbers(numbers), tch::Kind::Float) => numbers.len(),
                (Pixels::Places(places), _) => {
                    self.check_places(places).map_err(|detail| {
                        wrong(format!("replica {replica}'s names places, but {detail}"))
                    })?;
                    size
                }
                (Pixels::Bytes(_) | Pixels::Numbers(_), _) => {
                    return Err(wrong(format!(
                        "replica {replica}'s has {:?}, which are no samples of \
                         model.architecture = \"{}\"",
                        batch.pixels, self.job.model.architecture
                    )));
                }
            };
            if found != size {
                return Err(wrong(format!(
                    "replica {replica}'s has {found} values, but {} samples take {size}",
                    self.batch_samples()
                )));
            }
            self.check_labels(batch)
                .map_err(|detail| wrong(format!("replica {replica}'s {detail}")))?;
        }
        Ok(())
    }

    /// Refuses labels that the networks can't be told of.
    fn check_labels(&self, batch: &Batch) -> Result<(), String> {
        if !self.game.takes_labels() {
            return Ok(());
        }
        let (model, expected) = (&self.job.model, self.job.replica_samples() as usize);
        let Some(labels) = &batch.labels else {
            return Err(format!(
                "has no labels, and model.conditional = \"{}\" needs them",
                model.conditional
            ));
        };
        if labels.len() != expected {
            return Err(format!(
                "has {} labels for {expected} samples",
                labels.len()
            ));
        }
        match labels.iter().find(|&&label| label >= model.classes) {
            Some(label) => Err(format!(
                "has the label {label}, but model.classes = {}: labels are 0 to {}",
                model.classes,
                model.classes - 1
            )),
            None => Ok(()),
        }
    }

    fn check_places(&self, places: &[i64]) -> Result<(), String> {
        let batch = self.job.replica_samples() as usize;
        let Some(cache) = &self.cache else {
            return Err("no data set is on the device".to_owned());
        };
        let samples = cache.size()[0];
        if places.len() != batch {
            let expected = self.batch_samples();
            return Err(format!("{} instead of {expected}", places.len()));
        }
        match places.iter().find(|place| !(0..samples).contains(place)) {
            Some(place) => Err(format!("the data set on the device has no place {place}")),
            None => Ok(()),
        }
    }

    /// How many samples a replica's batch has, for a message.
    fn batch_samples(&self) -> String {
        match self.job.train.discriminator_steps {
            1 => format!("{} (train.batch)", self.job.train.batch),
            _ => format!(
                "{} (train.batch × train.discriminator_steps)",
                self.job.replica_samples()
            ),
        }
    }

    /// While what it returns lives this thread's work waits for the state, and for nothing that the
    /// device was given after it: a step that is under way may wait for peers.
    fn read_aside(&self) -> Result<StreamGuard, TrainError> {
        self.committed.block(self.aside)?;
        Ok(self.aside.guard()?)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the trainer drives the device and reports how long that took; nothing else depends on it"
)]
fn now() -> Instant {
    Instant::now()
}
