//! A training step, over all replicas: from State(t) to State(t+1).
//!
//! [`Trainer`] owns the state and the threads that the hosted replicas run on. It is handed batches
//! and a [`Collective`], and knows nothing of files, sockets, the coordinator or other workers. A
//! step is transactional: the next state is made in memory of its own, and either all of it becomes
//! the state or, after an error, none.
//!
//! `step` has the mathematics of one replica, `layout` what travels, `optimizer` Adam, `state` what
//! the next step depends on, `snapshot` its names in a checkpoint, `copying` its way to workers that
//! don't have it, `hosted` what the hosted replicas need, `pool` their threads.

mod arithmetic;
mod copying;
mod error;
mod hosted;
mod layout;
mod optimizer;
mod pool;
mod sampler;
mod snapshot;
mod state;
mod step;
#[cfg(test)]
mod tests;

pub use error::{Attempt, Mismatch, TrainError};
pub use sampler::Sampler;

use crate::checkpoint::Snapshot;
use crate::collective::{Collective, Flags};
use crate::config::{Adam, Job, Update};
use crate::data::Batch;
use crate::ids::Step;
use crate::model::{Latents, Player};
use crate::torch::{self, Adopted, HostVector, TorchError};
use hosted::{Hosted, slices};
use layout::part;
use state::{PlayerState, State};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use step::{Game, Weights};
use tch::Device;

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
    /// Elements of the mean gradients that are not finite: 0 in a healthy job.
    pub nonfinite: u64,
    /// Time spent computing.
    pub compute: Duration,
    /// Time spent in reductions while nothing was computed, waiting for peers included.
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
    hosted: Hosted,
    /// Where means arrive, and states that are copied.
    discriminator_mean: HostVector,
    generator_mean: HostVector,
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
        Ok(Self {
            next_generator: state.generator.room()?,
            next_discriminator: state.discriminator.room()?,
            state,
            hosted,
            discriminator_mean: HostVector::zeros(game.discriminator_layout.len)?,
            generator_mean: HostVector::zeros(game.generator_layout.len)?,
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
    /// the threads and vectors that still fit.
    ///
    /// # Errors
    /// [`TrainError`]; the trainer then hosts what it hosted before.
    pub fn host(&mut self, replicas: Range<u32>) -> Result<(), TrainError> {
        if replicas == self.hosted.replicas {
            return Ok(());
        }
        self.hosted
            .host(&self.game, &self.job, replicas, self.cores)
    }

    /// t of the State(t) that the trainer has.
    pub fn step(&self) -> Step {
        self.state.step
    }

    /// The replicas that it hosts.
    pub fn replicas(&self) -> Range<u32> {
        self.hosted.replicas.clone()
    }

    /// A copy of the state in host memory.
    ///
    /// # Errors
    /// [`TrainError::Torch`].
    pub fn snapshot(&self) -> Result<Snapshot, TrainError> {
        Ok(snapshot::save(
            &self.state,
            &self.game.generator,
            &self.game.discriminator,
        )?)
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// [`TrainError::State`], which names the first thing that doesn't fit; the state is then what
    /// it was.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), TrainError> {
        self.state = snapshot::load(
            snapshot,
            &self.game.generator,
            &self.game.discriminator,
            self.job.train.ema_decay > 0.0,
            self.game.device,
        )?;
        Ok(())
    }

    /// One step, together with the workers that host the other replicas. `batches` are those of the
    /// hosted replicas at State(t), in their order; `flags` are this worker's orders.
    ///
    /// # Errors
    /// [`TrainError`]. The state is then State(t) still, bit for bit, and the step can be done again
    /// with another collective.
    pub fn advance(
        &mut self,
        batches: Vec<Batch>,
        collective: &mut dyn Collective,
        flags: Flags,
    ) -> Result<StepReport, TrainError> {
        self.check(&batches)?;
        // A trainer may be moved from thread to thread, and the number is a thread's own.
        torch::set_threads(self.job.workers.threads);
        let started = now();
        let sent = collective.sent_bytes();
        let mut reduce = Duration::ZERO;
        let step = self.state.step.next();

        let work = self.hosted.lend(batches);
        self.hosted.pool.begin(&self.weights(), work)?;
        match self.game.update {
            Update::Alternating => {
                self.reduce_discriminator(collective, &mut reduce)?;
                self.update(Player::Discriminator, step)?;
                self.hosted
                    .pool
                    .finish(&self.next_discriminator.parameters)?;
            }
            Update::Simultaneous => {
                // D's gradient travels while G's is computed.
                let begun = now();
                let answers = self.hosted.pool.respond();
                let reduced = self
                    .reduce_discriminator(collective, &mut reduce)
                    .and_then(|()| self.update(Player::Discriminator, step));
                // Whatever came of that, no thread works on this step any more when it is given up.
                let answered = self.hosted.pool.wait(answers);
                reduced?;
                let last = answered?.unwrap_or(begun);
                reduce = reduce.saturating_sub(last - begun);
            }
        }
        self.reduce_generator(collective, flags, &mut reduce)?;
        self.update(Player::Generator, step)?;

        let mut report = self.report(step)?;
        self.commit(step)?;
        report.reduce = reduce;
        report.sent_bytes = collective.sent_bytes() - sent;
        report.compute = (now() - started).saturating_sub(reduce);
        Ok(report)
    }

    /// Images of these latents: from the generator's average if one is kept, with running
    /// statistics.
    ///
    /// # Shapes
    /// `[latents.count(), c, s, s]`, 0 … 255.
    ///
    /// # Errors
    /// [`TrainError::Latents`] or [`TrainError::Torch`].
    pub fn sample(&self, latents: &Latents) -> Result<Vec<u8>, TrainError> {
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
        )?
        .sample(latents)
    }

    /// Refuses batches that are not the hosted replicas' at this step.
    fn check(&self, batches: &[Batch]) -> Result<(), TrainError> {
        let wrong = |detail: String| TrainError::Batches {
            step: self.state.step,
            detail,
        };
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
        let size = self.game.images.iter().product::<i64>() as usize;
        for (batch, replica) in batches.iter().zip(self.hosted.replicas.clone()) {
            if batch.replica.0 != replica || batch.step != self.state.step {
                return Err(wrong(format!(
                    "expected replica {replica}'s, found replica {}'s at State({})",
                    batch.replica, batch.step
                )));
            }
            if batch.pixels.len() != size {
                return Err(wrong(format!(
                    "replica {replica}'s has {} pixel values, but train.batch images take {size}",
                    batch.pixels.len()
                )));
            }
        }
        Ok(())
    }

    fn weights(&self) -> Weights {
        Weights {
            generator: self.state.generator.parameters.shallow_clone(),
            discriminator: self.state.discriminator.parameters.shallow_clone(),
        }
    }

    fn reduce_discriminator(
        &mut self,
        collective: &mut dyn Collective,
        spent: &mut Duration,
    ) -> Result<(), TrainError> {
        let mut hosted = slices(&mut self.hosted.discriminator_vectors)?;
        let mean = self.discriminator_mean.as_mut_slice()?;
        reduce(self.state.step, collective, &mut hosted, mean, spent)
    }

    fn reduce_generator(
        &mut self,
        collective: &mut dyn Collective,
        flags: Flags,
        spent: &mut Duration,
    ) -> Result<(), TrainError> {
        let mut hosted = slices(&mut self.hosted.generator_vectors)?;
        for vector in &mut hosted {
            self.game.generator_layout.raise(flags, vector);
        }
        let mean = self.generator_mean.as_mut_slice()?;
        reduce(self.state.step, collective, &mut hosted, mean, spent)
    }

    /// Makes a network's next parameters and moments from its mean gradient.
    fn update(&mut self, player: Player, step: Step) -> Result<(), TrainError> {
        let (from, to, mean, gradients, settings): (_, _, _, _, Adam) = match player {
            Player::Generator => (
                &self.state.generator,
                &mut self.next_generator,
                &mut self.generator_mean,
                &self.game.generator_layout.gradients,
                self.job.optimizer.generator(),
            ),
            Player::Discriminator => (
                &self.state.discriminator,
                &mut self.next_discriminator,
                &mut self.discriminator_mean,
                &self.game.discriminator_layout.gradients,
                self.job.optimizer.discriminator(),
            ),
        };
        let gradient = part(&mean.lend(), gradients)
            .and_then(|gradient| gradient.f_to_device(self.game.device))
            .map_err(TorchError::from)?;
        Ok(optimizer::update(from, to, &gradient, settings, step)?)
    }

    /// Reads the means, and follows the running statistics in the order of the forward passes:
    /// D on real images, D on fakes, and in an alternating step the new D on fakes.
    fn report(&mut self, step: Step) -> Result<StepReport, TrainError> {
        let (d, g) = (&self.game.discriminator_layout, &self.game.generator_layout);
        let of_d = self.discriminator_mean.as_slice()?;
        let of_g = self.generator_mean.as_slice()?;

        let mut judgements = vec![&of_d[d.real.clone()], &of_d[d.fake.clone()]];
        if self.game.update == Update::Alternating {
            judgements.push(&of_g[g.judged.clone()]);
        }
        self.next_discriminator
            .track(&self.state.discriminator, &judgements);
        self.next_generator
            .track(&self.state.generator, &[&of_g[g.generated.clone()]]);

        let (grad_norm_d, nonfinite_d) = optimizer::measure(&of_d[d.gradients.clone()]);
        let (grad_norm_g, nonfinite_g) = optimizer::measure(&of_g[g.gradients.clone()]);
        Ok(StepReport {
            step,
            flags: g.flags(of_g),
            loss_d: f64::from(of_d[d.loss]),
            loss_g: f64::from(of_g[g.loss]),
            d_real: f64::from(of_d[d.belief_real]),
            d_fake: f64::from(of_d[d.belief_fake]),
            grad_norm_d,
            grad_norm_g,
            nonfinite: nonfinite_d + nonfinite_g,
            compute: Duration::ZERO,
            reduce: Duration::ZERO,
            sent_bytes: 0,
        })
    }

    /// Makes what is next the state. The one thing that can fail comes first and changes nothing
    /// then.
    fn commit(&mut self, step: Step) -> Result<(), TrainError> {
        if let Some(average) = &mut self.state.average {
            average.follow(&self.next_generator, self.job.train.ema_decay, step)?;
        }
        self.turn(step);
        Ok(())
    }

    /// Makes both networks' next states the state; the old ones are room again.
    fn turn(&mut self, step: Step) {
        std::mem::swap(&mut self.state.generator, &mut self.next_generator);
        std::mem::swap(&mut self.state.discriminator, &mut self.next_discriminator);
        self.state.step = step;
    }
}

fn reduce(
    step: Step,
    collective: &mut dyn Collective,
    hosted: &mut [&mut [f32]],
    mean: &mut [f32],
    spent: &mut Duration,
) -> Result<(), TrainError> {
    let started = now();
    let result = collective.reduce_mean(hosted, mean);
    *spent += now() - started;
    result.map_err(|source| TrainError::Collective {
        step,
        attempt: Attempt::Advance,
        source,
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the trainer drives the device and reports how long that took; nothing else depends on it"
)]
fn now() -> Instant {
    Instant::now()
}
