//! The state, from the workers that hold it to those that don't.
//!
//! After a failure survivors may be a step apart, and a worker that joins has State(0). What travels
//! is every bit of the state, one flat vector after another, through the memory that means arrive
//! in: the large vectors are not there a second time. The copy is made in the room of the next
//! state, and becomes the state when all of it is there.

use super::error::Attempt;
use super::layout::part;
use super::state::{Average, PlayerState};
use super::{TrainError, Trainer};
use crate::collective::{Collective, CollectiveError};
use crate::ids::{Rank, Step};
use crate::torch::{HostVector, TorchError};
use tch::Tensor;

impl Trainer {
    /// Makes every worker's state what it is on the `holders`, to the bit: parameters, moments,
    /// running statistics, the generator's average if one is kept, and the step.
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
        let mut running = [&generator.running, &discriminator.running]
            .into_iter()
            .chain(average.map(|average| &average.running))
            .flatten()
            .copied()
            .collect::<Vec<f32>>();
        let copied = copying.collective.copy(holders, &mut running);
        copied.map_err(failed)?;
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
            copying.flat(&average.parameters, staging, &failed)?;
        }
        if !holds {
            self.take(step, &running, tracked)?;
        }
        Ok(())
    }

    /// Makes what was copied the state. The one thing that can fail comes first, and changes nothing
    /// then.
    fn take(&mut self, step: Step, running: &[f32], tracked: [i64; 3]) -> Result<(), TrainError> {
        let (of_generator, rest) = running.split_at(self.next_generator.running.len());
        let (of_discriminator, of_average) = rest.split_at(self.next_discriminator.running.len());
        if let Some(Average {
            parameters,
            running,
            batches_tracked,
        }) = &mut self.state.average
        {
            let staged = staged(&mut self.generator_mean, parameters.numel())?;
            parameters.f_copy_(&staged).map_err(TorchError::from)?;
            running.copy_from_slice(of_average);
            *batches_tracked = tracked[2];
        }
        self.next_generator.running.copy_from_slice(of_generator);
        self.next_generator.batches_tracked = tracked[0];
        self.next_discriminator
            .running
            .copy_from_slice(of_discriminator);
        self.next_discriminator.batches_tracked = tracked[1];
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

    /// Copies one network's parameters and moments to `to`.
    fn player(
        &mut self,
        from: &PlayerState,
        to: &mut PlayerState,
        staging: &mut HostVector,
        failed: &impl Fn(CollectiveError) -> TrainError,
    ) -> Result<(), TrainError> {
        for (from, to) in [
            (&from.parameters, &mut to.parameters),
            (&from.exp_avg, &mut to.exp_avg),
            (&from.exp_avg_sq, &mut to.exp_avg_sq),
        ] {
            self.flat(from, staging, failed)?;
            if !self.holds {
                let staged = staged(staging, to.numel())?;
                to.f_copy_(&staged).map_err(TorchError::from)?;
            }
        }
        Ok(())
    }

    /// Copies a flat vector from the holders' `from` to the beginning of `staging`.
    fn flat(
        &mut self,
        from: &Tensor,
        staging: &mut HostVector,
        failed: &impl Fn(CollectiveError) -> TrainError,
    ) -> Result<(), TrainError> {
        let len = from.numel();
        if self.holds {
            let mut staged = staged(staging, len)?;
            staged.f_copy_(from).map_err(TorchError::from)?;
        }
        let vector = &mut staging.as_mut_slice()?[..len];
        let copied = self.collective.copy(self.holders, vector);
        copied.map_err(failed)
    }
}

/// The first `len` elements of the memory that a mean arrives in, which is at least as long as the
/// parameters.
fn staged(staging: &mut HostVector, len: usize) -> Result<Tensor, TorchError> {
    Ok(part(&staging.lend(), &(0..len))?)
}
