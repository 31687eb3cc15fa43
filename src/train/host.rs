//! A step whose reductions go through host memory. It is over when the call returns.

use super::error::Attempt;
use super::hosted::slices;
use super::inputs::Weights;
use super::{StepReport, TrainError, Trainer, now, update};
use crate::collective::{Collective, Flags};
use crate::config::Update;
use crate::data::Batch;
use crate::faults;
use crate::guard::Verdict;
use crate::ids::Step;
use crate::model::Player;
use crate::torch::{self, Measure};
use std::sync::Arc;
use std::time::Duration;

impl Trainer {
    pub(super) fn advance_in_host_memory(
        &mut self,
        batches: Vec<Batch>,
        collective: &mut dyn Collective,
        flags: Flags,
    ) -> Result<StepReport, TrainError> {
        // A trainer may be moved from thread to thread, and the number is a thread's own.
        torch::set_threads(self.job.workers.threads);
        let started = now();
        let sent = collective.sent_bytes();
        let mut reduce = Duration::ZERO;
        let step = self.state.step.next();
        self.set_pace(step)?;

        let batches: Vec<Arc<Batch>> = batches.into_iter().map(Arc::new).collect();
        let rounds = self.game.rounds;
        let mut gradients = Gradients::default();
        for round in 0..rounds.discriminator {
            let work = self.hosted.lend(&batches);
            let cache = self.cache.as_ref();
            let discriminator = match round {
                0 => &self.state.discriminator,
                _ => &self.next_discriminator,
            };
            let weights = Weights::of(&self.state.generator, discriminator);
            self.hosted.pool.begin(&weights, work, round, cache)?;
            match self.game.update {
                Update::Alternating => {
                    self.reduce_discriminator(collective, &mut reduce)?;
                    gradients.add(
                        Player::Discriminator,
                        self.update(Player::Discriminator, round)?,
                    );
                }
                Update::Simultaneous => {
                    // D's gradient travels while G's is computed.
                    let begun = now();
                    let answers = self.hosted.pool.respond();
                    let reduced = self
                        .reduce_discriminator(collective, &mut reduce)
                        .and_then(|()| self.update(Player::Discriminator, round));
                    // Whatever came of that, no thread works on this step any more when it is given
                    // up.
                    let answered = self.hosted.pool.wait(answers);
                    gradients.add(Player::Discriminator, reduced?);
                    let last = answered?.unwrap_or(begun);
                    reduce = reduce.saturating_sub(last - begun);
                }
            }
        }
        if self.game.update == Update::Alternating {
            self.hosted
                .pool
                .finish(&self.next_discriminator.parameters)?;
        }
        for update in 0..rounds.generator {
            if update > 0 {
                let work = self.hosted.lend(&batches);
                let cache = self.cache.as_ref();
                let weights = Weights::of(&self.next_generator, &self.next_discriminator);
                let round = rounds.of_generator(update);
                self.hosted.pool.again(&weights, work, round, cache)?;
            }
            self.reduce_generator(collective, flags, &mut reduce)?;
            gradients.add(Player::Generator, self.update(Player::Generator, update)?);
        }

        let mut report = self.report(step, gradients)?;
        self.commit(&mut report)?;
        report.reduce = reduce;
        report.sent_bytes = collective.sent_bytes() - sent;
        report.compute = (now() - started).saturating_sub(reduce);
        Ok(report)
    }

    fn reduce_discriminator(
        &mut self,
        collective: &mut dyn Collective,
        spent: &mut Duration,
    ) -> Result<(), TrainError> {
        let mut hosted = slices(&mut self.hosted.discriminator_vectors)?;
        faults::poison(self.state.step, self.hosted.replicas.start, &mut hosted);
        let mean = self.discriminator_mean.host().as_mut_slice()?;
        reduce(self.state.step, collective, &mut hosted, mean, spent)?;
        Ok(self.discriminator_mean.arrive()?)
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
        let mean = self.generator_mean.host().as_mut_slice()?;
        reduce(self.state.step, collective, &mut hosted, mean, spent)?;
        Ok(self.generator_mean.arrive()?)
    }

    /// Makes a network's next state from the mean of its vectors, in the update of the step that has
    /// this number, and measures what it made it of.
    fn update(&mut self, player: Player, number: u32) -> Result<Measure, TrainError> {
        let settings = self.settings(player);
        let work = update::Update {
            game: &self.game,
            number,
            now: &self.pace.updates[player.number() as usize][number as usize],
        };
        let (d, g) = (&self.game.discriminator_layout, &self.game.generator_layout);
        let (gradients, loss, mean, measured) = match player {
            Player::Discriminator => {
                let mean = self.discriminator_mean.lend();
                let measured = work.discriminator(
                    &self.state.discriminator,
                    &mut self.next_discriminator,
                    &mean,
                    settings,
                )?;
                (&d.gradients, d.loss, &mut self.discriminator_mean, measured)
            }
            Player::Generator => {
                let mean = self.generator_mean.lend();
                let measured = work.generator(
                    &self.state.generator,
                    [&mut self.next_generator, &mut self.next_discriminator],
                    &mean,
                    settings,
                )?;
                (&g.gradients, g.loss, &mut self.generator_mean, measured)
            }
        };
        let mean = mean.host().as_slice()?;
        let mut measured = match measured {
            Some(measured) => measured,
            None => torch::measure(&mean[gradients.clone()]),
        };
        // Batch statistics become part of the state too.
        measured.nonfinite += torch::measure(&mean[gradients.end..loss]).nonfinite;
        Ok(measured)
    }

    /// Reads the means of the last updates.
    fn report(&mut self, step: Step, gradients: Gradients) -> Result<StepReport, TrainError> {
        let (d, g) = (&self.game.discriminator_layout, &self.game.generator_layout);
        let of_d = self.discriminator_mean.host().as_slice()?;
        let of_g = self.generator_mean.host().as_slice()?;
        Ok(StepReport {
            step,
            flags: g.flags(of_g),
            loss_d: f64::from(of_d[d.loss]),
            loss_g: f64::from(of_g[g.loss]),
            d_real: f64::from(of_d[d.belief_real]),
            d_fake: f64::from(of_d[d.belief_fake]),
            grad_norm_d: gradients.norm_d,
            grad_norm_g: gradients.norm_g,
            nonfinite: gradients.nonfinite,
            diversity: match of_d[d.diversity.clone()] {
                [real, fake] => Some(f64::from(fake) / f64::from(real)),
                _ => None,
            },
            verdict: Verdict::Keep,
            compute: Duration::ZERO,
            reduce: Duration::ZERO,
            sent_bytes: 0,
        })
    }
}

/// What a step's gradients are like.
#[derive(Clone, Copy, Debug, Default)]
struct Gradients {
    /// Of D's last update.
    norm_d: f64,
    /// Of G's last update.
    norm_g: f64,
    /// Of all of them.
    nonfinite: u64,
}

impl Gradients {
    fn add(&mut self, player: Player, seen: Measure) {
        match player {
            Player::Discriminator => self.norm_d = seen.norm,
            Player::Generator => self.norm_g = seen.norm,
        }
        self.nonfinite += seen.nonfinite;
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
