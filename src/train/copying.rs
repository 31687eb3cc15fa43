//! The state, from the workers that hold it to those that don't.
//!
//! After a failure survivors may be a step apart, and a worker that joins has State(0). What travels
//! is every bit of the state, one flat vector after another: from device to device, or through the
//! host memory that means arrive in, so that the large vectors are not there a second time. The copy
//! is made in the room of the next state, and becomes the state when all of it is there. Older states
//! that the job may be rolled back to have no such room: a worker that doesn't hold them makes it.

use super::anchors::{Anchor, Anchors};
use super::error::{Attempt, Mismatch};
use super::hosted::Traveller;
use super::layout::part;
use super::snapshot::host_values;
use super::state::{Average, PlayerState, State};
use super::{TrainError, Trainer};
use crate::collective::{Collective, CollectiveError};
use crate::guard::{self, Guard};
use crate::ids::{Rank, Step};
use crate::torch::TorchError;
use tch::Tensor;

impl Trainer {
    /// Makes every worker's state what it is on the `holders`, to the bit: parameters, moments,
    /// running statistics, the generator's average if one is kept, the guard's numbers, the states
    /// that it may go back to, and the step. A step that is under way is
    /// [discarded](Trainer::discard).
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

        // First, for it finds out whether the ranks agree on what they do. The guard's numbers come
        // along.
        let anchors = self.state.anchors.as_deref();
        let words = words(&self.state);
        let small = own_small(&self.state, &words)?;
        let small = copying.running(small, &failed)?;
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
        // There is no room for other anchors, so it is made; and kept, for they are the state's then.
        let mut copied = match anchors {
            Some(_) if !holds => Some(Box::new(Anchors::room(&self.state)?)),
            _ => None,
        };
        if let Some(anchors) = anchors {
            let mut rooms = copied.as_deref_mut().map(Anchors::both_mut);
            for (index, from) in anchors.both().into_iter().enumerate() {
                let to = rooms.as_mut().map(|rooms| &mut *rooms[index]);
                let staging = [&mut self.generator_mean, &mut self.discriminator_mean];
                copying.anchor(from, to, staging, &failed)?;
            }
        }
        if let Some(average) = average {
            // It stays in the staging memory: there is no room for a next average.
            let staging = &mut self.generator_mean;
            copying.flat(&average.parameters, None, staging, &failed)?;
        }
        let on_device = collective.on_device().is_some();
        if !holds {
            let copied = Copied {
                small,
                tracked,
                anchors: copied,
            };
            self.take(step, copied, words.len(), on_device)?;
        }
        Ok(())
    }

    /// Makes what was copied the state. What can fail comes first, and most of it changes nothing
    /// then: the average, which has no room of its own, comes last.
    fn take(
        &mut self,
        step: Step,
        copied: Copied,
        words: usize,
        on_device: bool,
    ) -> Result<(), TrainError> {
        let Copied {
            small,
            tracked,
            mut anchors,
        } = copied;
        let mut from = 0;
        let mut next = |to: &mut Tensor| -> Result<(), TorchError> {
            let len = to.numel();
            to.f_copy_(&part(&small, &(from..from + len))?)?;
            from += len;
            Ok(())
        };
        next(&mut self.next_generator.running)?;
        next(&mut self.next_discriminator.running)?;
        self.next_generator.batches_tracked = tracked[0];
        self.next_discriminator.batches_tracked = tracked[1];
        if let Some(anchors) = anchors.as_deref_mut() {
            for anchor in anchors.both_mut() {
                next(&mut anchor.generator.running)?;
                next(&mut anchor.discriminator.running)?;
                if let Some(average) = &mut anchor.average {
                    next(&mut average.running)?;
                }
            }
        }
        let average = self.state.average.as_ref();
        let average = average.map_or(0, |average| average.running.numel());
        let end = small.numel() - average;
        let mut numbers = {
            let digits = part(&small, &(end - words * DIGITS..end)).map_err(TorchError::from)?;
            numbers(&host_values(&digits)?).into_iter()
        };
        let mut guard = [0; guard::WORDS];
        for (word, number) in guard.iter_mut().zip(&mut numbers) {
            *word = number;
        }
        let guard = Guard::from_words(guard).map_err(|name| TrainError::State {
            file: "guard".to_owned(),
            mismatch: Mismatch::Value(name.to_owned()),
        })?;
        if let Some(anchors) = anchors.as_deref_mut() {
            for anchor in anchors.both_mut() {
                let average = anchor.average.as_mut();
                for tracked in [
                    Some(&mut anchor.generator.batches_tracked),
                    Some(&mut anchor.discriminator.batches_tracked),
                    average.map(|average| &mut average.batches_tracked),
                ] {
                    // Only those that are there have travelled.
                    if let Some(tracked) = tracked
                        && let Some(number) = numbers.next()
                    {
                        *tracked = number.cast_signed();
                    }
                }
            }
        }
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
            let last = part(&small, &(end..small.numel())).map_err(TorchError::from)?;
            running.f_copy_(&last).map_err(TorchError::from)?;
            *batches_tracked = tracked[2];
        }
        self.mark()?;
        self.turn(step);
        self.state.guard = guard;
        if anchors.is_some() {
            self.state.anchors = anchors;
        }
        Ok(())
    }
}

/// What has arrived and is in no network's room.
struct Copied {
    /// As [`own_small`] has it.
    small: Tensor,
    tracked: [i64; 3],
    anchors: Option<Box<Anchors>>,
}

/// The guard's numbers, and the counts of the anchors.
fn words(state: &State) -> Vec<u64> {
    let mut words = state.guard.words().to_vec();
    if let Some(anchors) = &state.anchors {
        for anchor in anchors.both() {
            let average = anchor.average.as_ref();
            let counts = [
                Some(anchor.generator.batches_tracked),
                Some(anchor.discriminator.batches_tracked),
                average.map(|average| average.batches_tracked),
            ];
            words.extend(counts.into_iter().flatten().map(i64::cast_unsigned));
        }
    }
    words
}

/// All small parts of the state, as one vector: running statistics of both networks and of the
/// anchors, these words, and the average's running statistics.
fn own_small(state: &State, words: &[u64]) -> Result<Tensor, TorchError> {
    let mut parts = vec![
        state.generator.running.shallow_clone(),
        state.discriminator.running.shallow_clone(),
    ];
    if let Some(anchors) = &state.anchors {
        for anchor in anchors.both() {
            parts.push(anchor.generator.running.shallow_clone());
            parts.push(anchor.discriminator.running.shallow_clone());
            parts.extend(anchor.average.as_ref().map(|a| a.running.shallow_clone()));
        }
    }
    let device = state.generator.running.device();
    parts.push(Tensor::f_from_slice(&digits(words))?.f_to_device(device)?);
    parts.extend(state.average.as_ref().map(|a| a.running.shallow_clone()));
    Ok(Tensor::f_cat(&parts, 0)?)
}

/// A number travels as so many of base 65536: single precision holds each exactly.
const DIGITS: usize = 4;

fn digits(words: &[u64]) -> Vec<f32> {
    let digits = |word: &u64| [0, 16, 32, 48].map(|shift| f32::from((word >> shift) as u16));
    words.iter().flat_map(digits).collect()
}

fn numbers(digits: &[f32]) -> Vec<u64> {
    let (words, _) = digits.as_chunks::<DIGITS>();
    let number = |word: &[f32; DIGITS]| {
        let digits = word.iter().rev();
        digits.fold(0, |number, digit| (number << 16) | *digit as u64)
    };
    words.iter().map(number).collect()
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

    /// The holders' small parts, where the networks compute.
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

    /// Copies an older state's networks to `to`, but for the running statistics.
    fn anchor(
        &mut self,
        from: &Anchor,
        to: Option<&mut Anchor>,
        [of_g, of_d]: [&mut Traveller; 2],
        failed: &impl Fn(CollectiveError) -> TrainError,
    ) -> Result<(), TrainError> {
        let (mut generator, mut discriminator, mut average) = match to {
            Some(Anchor {
                generator,
                discriminator,
                average,
            }) => (Some(generator), Some(discriminator), average.as_mut()),
            None => (None, None, None),
        };
        for (from, to, staging) in [
            (&from.generator, &mut generator, &mut *of_g),
            (&from.discriminator, &mut discriminator, of_d),
        ] {
            let [parameters, exp_avg, exp_avg_sq] = match to {
                Some(to) => [
                    Some(&mut to.parameters),
                    Some(&mut to.exp_avg),
                    Some(&mut to.exp_avg_sq),
                ],
                None => [None, None, None],
            };
            self.flat(&from.parameters, parameters, staging, failed)?;
            self.flat(&from.exp_avg, exp_avg, staging, failed)?;
            self.flat(&from.exp_avg_sq, exp_avg_sq, staging, failed)?;
        }
        if let Some(from) = &from.average {
            let to = average.as_mut().map(|average| &mut average.parameters);
            self.flat(&from.parameters, to, of_g, failed)?;
        }
        Ok(())
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
