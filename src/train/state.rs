//! State(t): all that the next step depends on.

use super::TrainError;
use super::anchors::Anchors;
use super::layout::part;
use super::pace::{Pace, Share};
use crate::config::Job;
use crate::guard::Guard;
use crate::ids::Step;
use crate::model::architecture::BATCH_NORM_MOMENTUM;
use crate::model::{Architecture, initial_parameters, initial_running, iterate};
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
    /// Running values, in the architecture's order, likewise: batch norm's running means and
    /// variances, then spectral norm's vectors.
    pub(super) running: Tensor,
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
    pub(super) running: Tensor,
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
    pub(super) guard: Guard,
    /// When the job can be rolled back.
    pub(super) anchors: Option<Box<Anchors>>,
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
        let mut state = Self {
            step: Step(0),
            generator,
            discriminator,
            average,
            guard: Guard::default(),
            anchors: None,
        };
        if job.guard.rolls_back() {
            state.anchors = Some(Box::new(Anchors::initial(&state)?));
        }
        Ok(state)
    }
}

impl PlayerState {
    fn initial(architecture: &Architecture, seed: u64, device: Device) -> Result<Self, TorchError> {
        let parameters = initial_parameters(architecture, seed)?;
        let running = initial_running(architecture, &parameters, seed)?;
        let parameters = parameters.f_to_device(device)?;
        Ok(Self {
            exp_avg: parameters.f_zeros_like()?,
            exp_avg_sq: parameters.f_zeros_like()?,
            parameters,
            running: Tensor::f_from_slice(&running)?.f_to_device(device)?,
            batches_tracked: 0,
        })
    }

    /// Room for a next state: the same sizes, other memory.
    pub(super) fn room(&self) -> Result<Self, TorchError> {
        Ok(Self {
            parameters: self.parameters.f_zeros_like()?,
            exp_avg: self.exp_avg.f_zeros_like()?,
            exp_avg_sq: self.exp_avg_sq.f_zeros_like()?,
            running: self.running.f_zeros_like()?,
            batches_tracked: self.batches_tracked,
        })
    }

    /// Becomes what `from` is, in memory of its own.
    pub(super) fn take(&mut self, from: &Self) -> Result<(), TorchError> {
        for (to, from) in [
            (&mut self.parameters, &from.parameters),
            (&mut self.exp_avg, &from.exp_avg),
            (&mut self.exp_avg_sq, &from.exp_avg_sq),
            (&mut self.running, &from.running),
        ] {
            to.f_copy_(from)?;
        }
        self.batches_tracked = from.batches_tracked;
        Ok(())
    }

    /// The same memory.
    pub(super) fn share(&self) -> Self {
        Self {
            parameters: self.parameters.shallow_clone(),
            exp_avg: self.exp_avg.shallow_clone(),
            exp_avg_sq: self.exp_avg_sq.shallow_clone(),
            running: self.running.shallow_clone(),
            batches_tracked: self.batches_tracked,
        }
    }

    /// Sets the running statistics to those of `from`, which may be this one, after it has seen
    /// `batches`, in this order: running = 0.9·running + 0.1·batch, where a batch's statistics are
    /// means over the replicas.
    pub(super) fn track(
        &mut self,
        from: &Self,
        batches: &[Tensor],
        architecture: &Architecture,
    ) -> Result<(), TorchError> {
        let share = Share::of(BATCH_NORM_MOMENTUM, self.running.device())?;
        let statistics = 0..architecture.statistics;
        let mut running = part(&from.running, &statistics)?;
        for batch in batches {
            running = share.mix(&running, batch)?;
        }
        Ok(part(&self.running, &statistics)?.f_copy_(&running)?)
    }

    /// Sets spectral norm's vectors to what one power iteration makes of those of `from`, which may
    /// be this one, with its weights.
    pub(super) fn iterate(
        &mut self,
        from: &Self,
        architecture: &Architecture,
    ) -> Result<(), TorchError> {
        let vectors = architecture.statistics..architecture.running;
        if !vectors.is_empty() {
            let next = iterate(architecture, &from.parameters, &from.running)?;
            part(&self.running, &vectors)?.f_copy_(&next)?;
        }
        Ok(())
    }
}

impl Average {
    fn of(generator: &PlayerState) -> Result<Self, TorchError> {
        let mut average = Self {
            parameters: generator.parameters.f_zeros_like()?,
            running: generator.running.f_zeros_like()?,
            batches_tracked: generator.batches_tracked,
        };
        average.parameters.f_copy_(&generator.parameters)?;
        average.running.f_copy_(&generator.running)?;
        Ok(average)
    }

    /// Room for another one.
    pub(super) fn room(&self) -> Result<Self, TorchError> {
        Ok(Self {
            parameters: self.parameters.f_zeros_like()?,
            running: self.running.f_zeros_like()?,
            batches_tracked: self.batches_tracked,
        })
    }

    /// Becomes what `from` is, in memory of its own.
    pub(super) fn take(&mut self, from: &Self) -> Result<(), TorchError> {
        self.parameters.f_copy_(&from.parameters)?;
        self.running.f_copy_(&from.running)?;
        self.batches_tracked = from.batches_tracked;
        Ok(())
    }

    /// average = decay·average + (1 - decay)·generator, at the step that the pace is set to.
    pub(super) fn follow(
        &mut self,
        generator: &PlayerState,
        pace: &Pace,
    ) -> Result<(), TorchError> {
        // What needs memory comes first, and changes nothing then.
        let running = pace.share.mix(&self.running, &generator.running)?;
        let _ = self
            .parameters
            .f_lerp_tensor_(&generator.parameters, &pace.weight)?;
        self.running.f_copy_(&running)?;
        self.batches_tracked = generator.batches_tracked;
        Ok(())
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
            running: Tensor::from_slice(&[1f32]),
            batches_tracked: 4,
        };
        let mut to = from.room().unwrap();
        let batches = [10f32, 0.0].map(|value| Tensor::from_slice(&[value]));
        let mut architecture = Architecture::generator(&crate::config::Model::default());
        (architecture.statistics, architecture.running) = (1, 1);
        to.track(&from, &batches, &architecture).unwrap();
        let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor).unwrap();
        assert_eq!(values(&to.running), [(0.9f64 * f64::from(1.9f32)) as f32]);
        assert_eq!(values(&from.running), [1.0]);
    }
}
