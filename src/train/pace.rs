//! Numbers that change from step to step, where the device reads them.
//!
//! What a device is given may be done long after it was given, or again and again: these numbers
//! are no part of it, but lie in memory that is set, in the same queue, before each step.

use super::inputs::Rounds;
use crate::ids::Step;
use crate::torch::{self, TorchError};
use tch::{Device, Kind, Tensor};

/// A share of something new in an average, 0 … 1, in double precision.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) new: Tensor,
    /// 1 - new.
    pub(super) old: Tensor,
}

impl Share {
    pub(super) fn of(share: f64, device: Device) -> Result<Self, TorchError> {
        let number = |value: f64| Tensor::f_full([0i64; 0], value, (Kind::Double, device));
        Ok(Self {
            new: number(share)?,
            old: number(1.0 - share)?,
        })
    }

    /// old·(1 - share) + new·share, rounded once.
    pub(super) fn mix(&self, old: &Tensor, new: &Tensor) -> Result<Tensor, TorchError> {
        let new = new.f_to_kind(Kind::Double)?.f_mul(&self.new)?;
        let old = old.f_to_kind(Kind::Double)?.f_mul(&self.old)?;
        Ok(old.f_add(&new)?.f_to_kind(Kind::Float)?)
    }
}

/// An update's, as Adam takes them.
#[derive(Debug)]
pub(super) struct Numbers {
    /// Which of the player's updates it is, counted from 1 at the job's first.
    pub(super) count: Tensor,
    /// Its step size.
    pub(super) rate: Tensor,
}

impl Numbers {
    fn new(device: Device) -> Result<Self, TorchError> {
        Ok(Self {
            count: Tensor::f_zeros([0i64; 0], (Kind::Float, device))?,
            rate: torch::learning_rate(0.0, device)?,
        })
    }

    /// The same memory.
    pub(super) fn share(&self) -> Self {
        Self {
            count: self.count.shallow_clone(),
            rate: self.rate.shallow_clone(),
        }
    }
}

/// The numbers of the step that is being made.
#[derive(Debug)]
pub(super) struct Pace {
    /// Those of each of G's and each of D's updates in the step.
    pub(super) updates: [Vec<Numbers>; 2],
    /// The generator's share in its average.
    pub(super) share: Share,
    /// The same, in single precision.
    pub(super) weight: Tensor,
}

impl Pace {
    pub(super) fn new(rounds: Rounds, device: Device) -> Result<Self, TorchError> {
        let single = || Tensor::f_zeros([0i64; 0], (Kind::Float, device));
        let updates = |updates: u32| {
            (0..updates)
                .map(|_| Numbers::new(device))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            updates: [updates(rounds.generator)?, updates(rounds.discriminator)?],
            share: Share::of(0.0, device)?,
            weight: single()?,
        })
    }

    /// Sets the numbers to those of the step that reaches `step`, with these step sizes of G and D.
    ///
    /// Early on the average's decay is less, (1 + t)/(10 + t): otherwise it would be made of the
    /// initialisation for the first 1/(1 - decay) steps.
    pub(super) fn set(
        &mut self,
        step: Step,
        decay: f64,
        rates: [f64; 2],
    ) -> Result<(), TorchError> {
        let t = step.0 as f64;
        let share = 1.0 - decay.min((1.0 + t) / (10.0 + t));
        for (updates, rate) in self.updates.iter_mut().zip(rates) {
            let before = step
                .0
                .saturating_sub(1)
                .saturating_mul(updates.len() as u64);
            for (number, update) in (before + 1..).zip(updates) {
                let _ = update.count.f_fill_(number as f64)?;
                let _ = update.rate.f_fill_(rate)?;
            }
        }
        let _ = self.weight.f_fill_(share)?;
        let _ = self.share.new.f_fill_(share)?;
        let _ = self.share.old.f_fill_(1.0 - share)?;
        Ok(())
    }
}
