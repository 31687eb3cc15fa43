//! Numbers that change from step to step, where the device reads them.
//!
//! What a device is given may be done long after it was given, or again and again: these numbers
//! are no part of it, but lie in memory that is set, in the same queue, before each step.

use super::inputs::Rounds;
use crate::ids::Step;
use crate::torch::TorchError;
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

/// The numbers of the step that is being made.
#[derive(Debug)]
pub(super) struct Pace {
    /// The number of each of G's and each of D's updates in the step, counted from the job's first,
    /// as Adam takes them.
    pub(super) counts: [Vec<Tensor>; 2],
    /// The generator's share in its average.
    pub(super) share: Share,
    /// The same, in single precision.
    pub(super) weight: Tensor,
}

impl Pace {
    pub(super) fn new(rounds: Rounds, device: Device) -> Result<Self, TorchError> {
        let single = || Tensor::f_zeros([0i64; 0], (Kind::Float, device));
        let counts = |updates: u32| {
            (0..updates)
                .map(|_| single())
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            counts: [counts(rounds.generator)?, counts(rounds.discriminator)?],
            share: Share::of(0.0, device)?,
            weight: single()?,
        })
    }

    /// Sets the numbers to those of the step that reaches `step`.
    ///
    /// Early on the average's decay is less, (1 + t)/(10 + t): otherwise it would be made of the
    /// initialisation for the first 1/(1 - decay) steps.
    pub(super) fn set(&mut self, step: Step, decay: f64) -> Result<(), TorchError> {
        let t = step.0 as f64;
        let share = 1.0 - decay.min((1.0 + t) / (10.0 + t));
        for counts in &mut self.counts {
            let before = step.0.saturating_sub(1).saturating_mul(counts.len() as u64);
            for (number, count) in (before + 1..).zip(counts) {
                let _ = count.f_fill_(number as f64)?;
            }
        }
        let _ = self.weight.f_fill_(share)?;
        let _ = self.share.new.f_fill_(share)?;
        let _ = self.share.old.f_fill_(1.0 - share)?;
        Ok(())
    }
}
