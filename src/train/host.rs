//! A step whose reductions go through host memory. It is over when the call returns.

use super::error::Attempt;
use super::hosted::slices;
use super::step::Weights;
use super::{StepReport, TrainError, Trainer, now, optimizer};
use crate::collective::{Collective, Flags};
use crate::config::Update;
use crate::data::Batch;
use crate::ids::Step;
use crate::model::Player;
use crate::torch::{self, Measure};
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
        self.pace.set(step, self.job.train.ema_decay)?;

        let work = self.hosted.lend(batches);
        let cache = self.cache.as_ref();
        self.hosted.pool.begin(&self.weights(), work, cache)?;
        let seen_of_d = match self.game.update {
            Update::Alternating => {
                self.reduce_discriminator(collective, &mut reduce)?;
                let seen = self.update(Player::Discriminator)?;
                self.hosted
                    .pool
                    .finish(&self.next_discriminator.parameters)?;
                seen
            }
            Update::Simultaneous => {
                // D's gradient travels while G's is computed.
                let begun = now();
                let answers = self.hosted.pool.respond();
                let reduced = self
                    .reduce_discriminator(collective, &mut reduce)
                    .and_then(|()| self.update(Player::Discriminator));
                // Whatever came of that, no thread works on this step any more when it is given up.
                let answered = self.hosted.pool.wait(answers);
                let seen = reduced?;
                let last = answered?.unwrap_or(begun);
                reduce = reduce.saturating_sub(last - begun);
                seen
            }
        };
        self.reduce_generator(collective, flags, &mut reduce)?;
        let seen_of_g = self.update(Player::Generator)?;

        let mut report = self.report(step, seen_of_d, seen_of_g)?;
        self.commit(step)?;
        report.reduce = reduce;
        report.sent_bytes = collective.sent_bytes() - sent;
        report.compute = (now() - started).saturating_sub(reduce);
        Ok(report)
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

    /// Makes a network's next parameters and moments from its mean gradient, and measures that.
    fn update(&mut self, player: Player) -> Result<Measure, TrainError> {
        let (from, to, mean, gradients, settings) = match player {
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
        let gradient =
            super::layout::part(&mean.lend(), gradients).map_err(torch::TorchError::from)?;
        let count = &self.pace.count;
        let measured = optimizer::update(from, to, &gradient, settings, count)?;
        drop(gradient);
        Ok(match measured {
            Some(measured) => measured,
            None => torch::measure(&mean.host().as_slice()?[gradients.clone()]),
        })
    }

    /// Follows the running statistics, and reads the means.
    fn report(
        &mut self,
        step: Step,
        seen_of_d: Measure,
        seen_of_g: Measure,
    ) -> Result<StepReport, TrainError> {
        {
            let (of_d, of_g) = (self.discriminator_mean.lend(), self.generator_mean.lend());
            let [looks, generated] = self.game.statistics(&of_d, &of_g)?;
            let state = &self.state;
            self.next_discriminator
                .track(&state.discriminator, &looks)?;
            self.next_generator.track(&state.generator, &generated)?;
        }
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
            grad_norm_d: seen_of_d.norm,
            grad_norm_g: seen_of_g.norm,
            nonfinite: seen_of_d.nonfinite + seen_of_g.nonfinite,
            compute: Duration::ZERO,
            reduce: Duration::ZERO,
            sent_bytes: 0,
        })
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
