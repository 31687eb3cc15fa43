//! The state, from the workers that hold it to those that don't.
//!
//! After a failure survivors may be a step apart, and a worker that joins has State(0). What travels
//! is every bit of the state, one flat vector after another: from device to device, or through the
//! host memory that means arrive in, so that the large vectors are not there a second time. The copy
//! is made in the room of the next state, and becomes the state when all of it is there.

use super::error::Attempt;
use super::hosted::Traveller;
use super::layout::part;
use super::snapshot::host_values;
use super::state::{Average, PlayerState};
use super::{TrainError, Trainer};
use crate::collective::{Collective, CollectiveError};
use crate::ids::{Rank, Step};
use crate::torch::TorchError;
use tch::Tensor;

impl Trainer {
    /// Makes every worker's state what it is on the `holders`, to the bit: parameters, moments,
    /// running statistics, the generator's average if one is kept, and the step. A step that is
    /// under way is [discarded](Trainer::discard).
    ///
    /// All ranks of the collective call it, with the same list in rising order; all holders are at
    /// State(`step`), whose bits are the same everywhere. A deadline runs for the next part of the
    /// state, not for all of it: see [`Collective::copy`].
    ///
    /// # Errors
    /// [`TrainError::NotHeld`] on a holder that has another state, before anything is sent;
    /// otherwise as [`advance`](Trainer::advance). After an error the state is what it was.
    pub fn copy_state(
        &mut self,
        step: Step,
        holders: &[Rank],
        collective: &mut dyn Collective,
    ) -> Result<(), TrainError> {
        self.discard();
        let held = self.state.step;
        let holds = holders.contains(&collective.rank());
        if holds && held != step {
            return Err(TrainError::NotHeld { step, held });
        }
        let failed = |source: CollectiveError| TrainError::Collective {
            step: held,
            attempt: Attempt::Copy(step),
            source,
        };
        let mut copying = Copying {
            holders,
            holds,
            collective,
        };
        let average = self.state.average.as_ref();
        let (generator, discriminator) = (&self.state.generator, &self.state.discriminator);

        // First, for it finds out whether the ranks agree on what they do.
        let own = [&generator.running, &discriminator.running]
            .into_iter()
            .chain(average.map(|average| &average.running))
            .collect::<Vec<_>>();
        let own = Tensor::f_cat(&own, 0).map_err(TorchError::from)?;
        let running = copying.running(own, &failed)?;
        if holders.len() == copying.collective.world_size() as usize {
            return Ok(());
        }
        let looks = [
            Some(generator.batches_tracked),
            Some(discriminator.batches_tracked),
            average.map(|average| average.batches_tracked),
        ];
        let mut tracked = [0; 3];
        for (tracked, own) in tracked.iter_mut().zip(looks) {
            if let Some(own) = own {
                *tracked = copying.integer(own).map_err(failed)?;
            }
        }
        for (from, to, staging) in [
            (
                &self.state.generator,
                &mut self.next_generator,
                &mut self.generator_mean,
            ),
            (
                &self.state.discriminator,
                &mut self.next_discriminator,
                &mut self.discriminator_mean,
            ),
        ] {
            copying.player(from, to, staging, &failed)?;
        }
        if let Some(average) = average {
            // It stays in the staging memory: there is no room for a next average.
            let staging = &mut self.generator_mean;
            copying.flat(&average.parameters, None, staging, &failed)?;
        }
        let on_device = collective.on_device().is_some();
        if !holds {
            self.take(step, &running, tracked, on_device)?;
        }
        Ok(())
    }

    /// Makes what was copied the state. What can fail comes first, and most of it changes nothing
    /// then: the average, which has no room of its own, comes last.
    fn take(
        &mut self,
        step: Step,
        running: &Tensor,
        tracked: [i64; 3],
        on_device: bool,
    ) -> Result<(), TrainError> {
        let mut from = 0;
        let mut next = |to: &mut Tensor| -> Result<(), TorchError> {
            let len = to.numel();
            to.f_copy_(&part(running, &(from..from + len))?)?;
            from += len;
            Ok(())
        };
        next(&mut self.next_generator.running)?;
        next(&mut self.next_discriminator.running)?;
        self.next_generator.batches_tracked = tracked[0];
        self.next_discriminator.batches_tracked = tracked[1];
        if let Some(Average {
            parameters,
            running,
            batches_tracked,
        }) = &mut self.state.average
        {
            let staging = &mut self.generator_mean;
            let memory = match on_device {
                true => staging.lend(),
                false => staging.host().lend(),
            };
            let staged = part(&memory, &(0..parameters.numel())).map_err(TorchError::from)?;
            parameters.f_copy_(&staged).map_err(TorchError::from)?;
            next(running)?;
            *batches_tracked = tracked[2];
        }
        self.mark()?;
        self.turn(step);
        Ok(())
    }
}

/// One worker's part in copying a state.
struct Copying<'a> {
    holders: &'a [Rank],
    holds: bool,
    collective: &'a mut dyn Collective,
}

impl Copying<'_> {
    /// The holders' integer, to the bit.
    fn integer(&mut self, own: i64) -> Result<i64, CollectiveError> {
        let words = self.collective.gather(own.cast_unsigned())?;
        let first = self.holders.first().map_or(0, |holder| holder.0 as usize);
        // A collective's words are as many as its ranks, and it has refused other holders.
        Ok(words[first].cast_signed())
    }

    /// The holders' running statistics, where the networks compute.
    fn running(
        &mut self,
        own: Tensor,
        failed: &impl Fn(CollectiveError) -> TrainError,
    ) -> Result<Tensor, TrainError> {
        if let Some(device) = self.collective.on_device() {
            device.copy(self.holders, &own).map_err(failed)?;
            return Ok(own);
        }
        let mut values = host_values(&own)?;
        let copied = self.collective.copy(self.holders, &mut values);
        copied.map_err(failed)?;
        let values = Tensor::f_from_slice(&values).map_err(TorchError::from)?;
        Ok(values.f_to_device(own.device()).map_err(TorchError::from)?)
    }

    /// Copies one network's parameters and moments to `to`.
    fn player(
        &mut self,
        from: &PlayerState,
        to: &mut PlayerState,
        staging: &mut Traveller,
        failed: &impl Fn(CollectiveError) -> TrainError,
    ) -> Result<(), TrainError> {
        self.flat(&from.parameters, Some(&mut to.parameters), staging, failed)?;
        self.flat(&from.exp_avg, Some(&mut to.exp_avg), staging, failed)?;
        self.flat(&from.exp_avg_sq, Some(&mut to.exp_avg_sq), staging, failed)
    }

    /// Copies a flat vector from the holders' `from` to the others' `to`; or, if there is none, to
    /// the beginning of `staging`, a vector that is at least as long.
    fn flat(
        &mut self,
        from: &Tensor,
        to: Option<&mut Tensor>,
        staging: &mut Traveller,
        failed: &impl Fn(CollectiveError) -> TrainError,
    ) -> Result<(), TrainError> {
        let len = from.numel();
        if let Some(device) = self.collective.on_device() {
            let vector = match to {
                _ if self.holds => from.shallow_clone(),
                Some(to) => to.shallow_clone(),
                None => part(&staging.lend(), &(0..len)).map_err(TorchError::from)?,
            };
            return device.copy(self.holders, &vector).map_err(failed);
        }
        if self.holds {
            let staged = part(&staging.host().lend(), &(0..len));
            staged
                .and_then(|mut staged| staged.f_copy_(from))
                .map_err(TorchError::from)?;
        }
        let vector = &mut staging.host().as_mut_slice()?[..len];
        let copied = self.collective.copy(self.holders, vector);
        copied.map_err(failed)?;
        if let Some(to) = to.filter(|_| !self.holds) {
            part(&staging.host().lend(), &(0..len))
                .and_then(|staged| to.f_copy_(&staged))
                .map_err(TorchError::from)?;
        }
        Ok(())
    }
}
