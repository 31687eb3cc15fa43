//! A step whose reductions go through host memory. It is over when the call returns.

use super::error::Attempt;
use super::hosted::slices;
use super::step::Weights;
use super::{StepReport, TrainError, Trainer, now, optimizer};
use crate::collective::{Collective, Flags};
use crate::config::Update;
use crate::data::Batch;
use crate::faults;
use crate::guard::Verdict;
use crate::ids::Step;
use crate::model::Player;
use crate::torch;
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
        match self.game.update {
            Update::Alternating => {
                self.reduce_discriminator(collective, &mut reduce)?;
                self.update(Player::Discriminator)?;
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
                    .and_then(|()| self.update(Player::Discriminator));
                // Whatever came of that, no thread works on this step any more when it is given up.
                let answered = self.hosted.pool.wait(answers);
                reduced?;
                let last = answered?.unwrap_or(begun);
                reduce = reduce.saturating_sub(last - begun);
            }
        }
        self.reduce_generator(collective, flags, &mut reduce)?;
        self.update(Player::Generator)?;

        let mut report = self.report(step)?;
        self.commit(&mut report)?;
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

    /// Makes a network's next parameters and moments from its mean gradient.
    fn update(&mut self, player: Player) -> Result<(), TrainError> {
        let settings = self.adam(player);
        let (from, to, mean, gradients) = match player {
            Player::Generator => (
                &self.state.generator,
                &mut self.next_generator,
                &mut self.generator_mean,
                &self.game.generator_layout.gradients,
            ),
            Player::Discriminator => (
                &self.state.discriminator,
                &mut self.next_discriminator,
                &mut self.discriminator_mean,
                &self.game.discriminator_layout.gradients,
            ),
        };
        let gradient =
            super::layout::part(&mean.lend(), gradients).map_err(torch::TorchError::from)?;
        let count = &self.pace.count;
        Ok(optimizer::update(from, to, &gradient, settings, count)?)
    }

    /// Follows the running statistics, and reads the means.
    fn report(&mut self, step: Step) -> Result<StepReport, TrainError> {
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
        let (grad_norm_d, nonfinite_d) = optimizer::measure(&of_d[d.gradients.clone()]);
        let (grad_norm_g, nonfinite_g) = optimizer::measure(&of_g[g.gradients.clone()]);
        // What else becomes part of the state.
        let (_, nonfinite_s) = optimizer::measure(&of_d[d.gradients.end..d.loss]);
        let (_, nonfinite_t) = optimizer::measure(&of_g[g.gradients.end..g.loss]);
        Ok(StepReport {
            step,
            flags: g.flags(of_g),
            loss_d: f64::from(of_d[d.loss]),
            loss_g: f64::from(of_g[g.loss]),
            d_real: f64::from(of_d[d.belief_real]),
            d_fake: f64::from(of_d[d.belief_fake]),
            grad_norm_d,
            grad_norm_g,
            nonfinite: nonfinite_d + nonfinite_g + nonfinite_s + nonfinite_t,
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
