//! The end of a step: what the guard makes of it, and the state that comes of that.

use super::state::PlayerState;
use super::{StepReport, TrainError, Trainer};
use crate::config::Adam;
use crate::guard::{Decision, Figures, Verdict};
use crate::ids::Step;
use crate::model::Player;
use crate::torch::Stream;

impl StepReport {
    fn figures(&self) -> Figures {
        Figures {
            nonfinite: self.nonfinite,
            loss_d: self.loss_d,
            gap: self.d_real - self.d_fake,
            diversity: self.diversity,
        }
    }
}

impl Trainer {
    /// Has the guard judge the step that is done, and makes the state what it says. What can fail
    /// comes first.
    ///
    /// What is next is room again if the step is not taken: the state stays where it is.
    pub(super) fn commit(&mut self, report: &mut StepReport) -> Result<(), TrainError> {
        let step = report.step;
        let Decision {
            guard,
            verdict,
            captures,
        } = self
            .state
            .guard
            .judge(&self.job.guard, step, &report.figures());
        let turns = match verdict {
            Verdict::RollBack { .. } => self.roll_back()?,
            _ if verdict.takes_the_step() => self.follow()?,
            _ => false,
        };
        if captures {
            self.capture(turns)?;
        }
        self.mark()?;
        match turns {
            true => self.turn(step),
            false => self.state.step = step,
        }
        self.state.guard = guard;
        report.verdict = verdict;
        Ok(())
    }

    /// The average and the counts follow what is next.
    fn follow(&mut self) -> Result<bool, TrainError> {
        let [of_g, of_d] = self.game.tracked();
        self.next_generator.batches_tracked = self.state.generator.batches_tracked + of_g;
        self.next_discriminator.batches_tracked = self.state.discriminator.batches_tracked + of_d;
        if let Some(average) = &mut self.state.average {
            average.follow(&self.next_generator, &self.pace)?;
        }
        Ok(true)
    }

    /// What is next is the anchor. Without one, which no verdict asks for, the step is skipped.
    fn roll_back(&mut self) -> Result<bool, TrainError> {
        let Some(anchors) = &mut self.state.anchors else {
            return Ok(false);
        };
        anchors.roll_back(
            &mut self.next_generator,
            &mut self.next_discriminator,
            self.state.average.as_mut(),
        )?;
        Ok(true)
    }

    /// What is about to be the state is the next candidate.
    fn capture(&mut self, turns: bool) -> Result<(), TrainError> {
        let state = &mut self.state;
        let Some(anchors) = &mut state.anchors else {
            return Ok(());
        };
        let (generator, discriminator): (&PlayerState, &PlayerState) = match turns {
            true => (&self.next_generator, &self.next_discriminator),
            false => (&state.generator, &state.discriminator),
        };
        Ok(anchors.capture(generator, discriminator, state.average.as_ref())?)
    }

    /// Makes both networks' next states the state; the old ones are room again.
    pub(super) fn turn(&mut self, step: Step) {
        std::mem::swap(&mut self.state.generator, &mut self.next_generator);
        std::mem::swap(&mut self.state.discriminator, &mut self.next_discriminator);
        self.side = 1 - self.side;
        self.state.step = step;
    }

    /// The state is what the device has made of it by here.
    pub(super) fn mark(&mut self) -> Result<(), TrainError> {
        let current = Stream::current(self.game.device)?;
        Ok(self.committed.record(current)?)
    }

    /// A network's settings in the job.
    pub(super) fn settings(&self, player: Player) -> Adam {
        match player {
            Player::Generator => self.job.optimizer.generator(),
            Player::Discriminator => self.job.optimizer.discriminator(),
        }
    }

    /// Sets the numbers that the device reads to those of the step that reaches `step`, which is the
    /// next one.
    pub(super) fn set_pace(&mut self, step: Step) -> Result<(), TrainError> {
        let share = self.share_at(step);
        let rates = [Player::Generator, Player::Discriminator]
            .map(|player| self.settings(player).learning_rate * share);
        Ok(self.pace.set(step, self.job.train.ema_decay, rates)?)
    }

    /// What the guard and the schedule have both learning rates multiplied with, at the state's step.
    pub fn rate(&self) -> f64 {
        self.share_at(self.state.step)
    }

    /// What both learning rates are multiplied with in the step that reaches this one.
    fn share_at(&self, step: Step) -> f64 {
        self.state.guard.rate(&self.job.guard) * self.job.optimizer.schedule.share(step.0)
    }

    /// Why the state is the job's last one, if the guard has stopped the job.
    pub fn halt(&self) -> Option<Verdict> {
        self.state.guard.halt(&self.job.guard)
    }
}
