//! State(t): all that the next step depends on.

use super::TrainError;
use crate::config::Job;
use crate::ids::Step;
use crate::model::architecture::BATCH_NORM_MOMENTUM;
use crate::model::{Architecture, initial_parameters};
use crate::torch::TorchError;
use tch::{Device, Tensor};

/// One network and its optimizer.
#[derive(Debug)]
pub(super) struct PlayerState {
    /// Flat, on the device.
    pub(super) parameters: Tensor,
    /// Adam's first moment, likewise.
    pub(super) exp_avg: Tensor,
    /// Adam's second moment, likewise.
    pub(super) exp_avg_sq: Tensor,
    /// Batch norm's running means and variances, in the architecture's order. A few thousand
    /// numbers that arrive in host memory, so they stay there.
    pub(super) running: Vec<f32>,
    /// Batches that the running statistics have seen: `num_batches_tracked`.
    pub(super) batches_tracked: i64,
}

/// The generator's exponential moving average, with its running statistics: without them its
/// samples would be broken.
#[derive(Debug)]
pub(super) struct Average {
    /// Flat, on the device.
    pub(super) parameters: Tensor,
    /// As in [`PlayerState`].
    pub(super) running: Vec<f32>,
    /// The generator's own.
    pub(super) batches_tracked: i64,
}

/// State(t).
#[derive(Debug)]
pub(super) struct State {
    /// t.
    pub(super) step: Step,
    pub(super) generator: PlayerState,
    pub(super) discriminator: PlayerState,
    /// When `train.ema_decay` is above 0.
    pub(super) average: Option<Average>,
}

impl State {
    /// State(0), a function of the seed.
    pub(super) fn initial(
        job: &Job,
        generator: &Architecture,
        discriminator: &Architecture,
        device: Device,
    ) -> Result<Self, TrainError> {
        let generator = PlayerState::initial(generator, job.job.seed, device)?;
        let discriminator = PlayerState::initial(discriminator, job.job.seed, device)?;
        let average = (job.train.ema_decay > 0.0)
            .then(|| Average::of(&generator))
            .transpose()?;
        Ok(Self {
            step: Step(0),
            generator,
            discriminator,
            average,
        })
    }
}

impl PlayerState {
    fn initial(architecture: &Architecture, seed: u64, device: Device) -> Result<Self, TorchError> {
        let parameters = initial_parameters(architecture, seed)?.f_to_device(device)?;
        Ok(Self {
            exp_avg: parameters.f_zeros_like()?,
            exp_avg_sq: parameters.f_zeros_like()?,
            parameters,
            running: initial_running(architecture),
            batches_tracked: 0,
        })
    }

    /// Room for a next state: the same sizes, other memory.
    pub(super) fn room(&self) -> Result<Self, TorchError> {
        Ok(Self {
            parameters: self.parameters.f_zeros_like()?,
            exp_avg: self.exp_avg.f_zeros_like()?,
            exp_avg_sq: self.exp_avg_sq.f_zeros_like()?,
            running: self.running.clone(),
            batches_tracked: self.batches_tracked,
        })
    }

    /// Sets the running statistics to those of `from` after it has seen `batches`, in this order:
    /// running = 0.9·running + 0.1·batch, where a batch's statistics are means over the replicas.
    pub(super) fn track(&mut self, from: &Self, batches: &[&[f32]]) {
        self.running.clone_from(&from.running);
        for batch in batches {
            blend(&mut self.running, batch, BATCH_NORM_MOMENTUM);
        }
        self.batches_tracked = from.batches_tracked + batches.len() as i64;
    }
}

impl Average {
    fn of(generator: &PlayerState) -> Result<Self, TorchError> {
        let mut parameters = generator.parameters.f_zeros_like()?;
        parameters.f_copy_(&generator.parameters)?;
        Ok(Self {
            parameters,
            running: generator.running.clone(),
            batches_tracked: generator.batches_tracked,
        })
    }

    /// average = decay·average + (1 - decay)·generator, at the step that is being made.
    ///
    /// Early on the decay is less, (1 + t)/(10 + t): otherwise the average would be made of the
    /// initialisation for the first 1/(1 - decay) steps.
    pub(super) fn follow(
        &mut self,
        generator: &PlayerState,
        decay: f64,
        step: Step,
    ) -> Result<(), TorchError> {
        let t = step.0 as f64;
        let share = 1.0 - decay.min((1.0 + t) / (10.0 + t));
        // The only step that can fail comes first, and it is elementwise: all or nothing.
        let _ = self.parameters.f_lerp_(&generator.parameters, share)?;
        blend(&mut self.running, &generator.running, share);
        self.batches_tracked = generator.batches_tracked;
        Ok(())
    }
}

/// Means 0 and variances 1, as PyTorch starts them.
fn initial_running(architecture: &Architecture) -> Vec<f32> {
    let mut running = vec![0.0; architecture.statistics];
    for norm in architecture.norms() {
        let variances = norm.offset + norm.features..norm.offset + 2 * norm.features;
        running[variances].fill(1.0);
    }
    running
}

/// running = (1 - share)·running + share·new, rounded once.
fn blend(running: &mut [f32], new: &[f32], share: f64) {
    for (running, new) in running.iter_mut().zip(new) {
        *running = ((1.0 - share) * f64::from(*running) + share * f64::from(*new)) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn running_statistics_follow_the_order_of_the_batches() {
        let parameters = Tensor::zeros([1], (Kind::Float, Device::Cpu));
        let from = PlayerState {
            exp_avg: parameters.copy(),
            exp_avg_sq: parameters.copy(),
            parameters,
            running: vec![1.0],
            batches_tracked: 4,
        };
        let mut to = from.room().unwrap();
        to.track(&from, &[&[10.0], &[0.0]]);
        assert_eq!(to.running, [(0.9f64 * f64::from(1.9f32)) as f32]);
        assert_eq!(to.batches_tracked, 6);
        assert_eq!(from.running, [1.0]);
    }
}
