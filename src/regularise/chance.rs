//! The draws of one replica's round, where the device reads them: always in the same memory.

use super::{Augmentations, Regularisers, Round, Side};
use crate::random::{Domain, Key};
use crate::torch::{Generator, TorchError};
use tch::{Kind, Tensor};

/// What chance does to the images of one round, and where it puts what lies between them.
#[derive(Debug)]
pub struct Chance {
    /// `[2, b, c, s, s]`, both sides', and a view of each.
    noise: Option<Tensor>,
    sides: Option<[Tensor; 2]>,
    /// `[b, 7]` each: views of the uniform numbers, of which these come first.
    augmentations: Option<[Tensor; 2]>,
    /// `[b/m]`: what follows them.
    mixes: Option<Tensor>,
}

/// Numbers of one side's augmentations, and mixes.
pub(super) fn sizes(of: &Regularisers) -> (usize, usize) {
    let [batch, ..] = of.images;
    let numbers = match of.augmentations.any() {
        true => batch as usize * Augmentations::NUMBERS,
        false => 0,
    };
    let mixes = match of.gradient_penalty > 0.0 {
        true => (batch / i64::from(of.packing)) as usize,
        false => 0,
    };
    (numbers, mixes)
}

/// What a round's draws are for.
#[derive(Clone, Copy)]
enum Use {
    Augmentation(Side),
    Mixes,
    Noise,
}

fn key(of: &Regularisers, (step, replica, round): Round, use_: Use) -> Key {
    let number = match use_ {
        Use::Augmentation(Side::Real) => 0,
        Use::Augmentation(Side::Fake) => 1,
        Use::Mixes => 2,
        Use::Noise => 3,
    };
    let numbers = [of.seed, step.0, replica.0.into(), round.into(), number];
    Key::new(Domain::Chance, &numbers)
}

/// Of one replica's round. The draws of one kind don't depend on whether there are others.
pub(super) fn draw(of: &Regularisers, round: Round) -> Vec<f32> {
    let (numbers, mixes) = sizes(of);
    let side = of.images[2] as u32;
    let mut draws = Vec::with_capacity(2 * numbers + mixes);
    for of_side in [Side::Real, Side::Fake] {
        let mut stream = key(of, round, Use::Augmentation(of_side)).stream();
        for _ in 0..numbers / Augmentations::NUMBERS {
            draws.extend(Augmentations::draw(&mut stream, side));
        }
    }
    let mut stream = key(of, round, Use::Mixes).stream();
    draws.extend((0..mixes).map(|_| stream.uniform()));
    draws
}

impl Chance {
    /// Over these uniform numbers, which are [drawn](Regularisers::draw) already or will be.
    ///
    /// # Errors
    /// [`TorchError`], if there are too few of them.
    pub fn over(of: &Regularisers, uniform: Tensor) -> Result<Self, TorchError> {
        let (numbers, mixes) = sizes(of);
        let device = uniform.device();
        let noise = (of.noise > 0.0)
            .then(|| {
                let [b, c, h, w] = of.images;
                Tensor::f_zeros([2, b, c, h, w], (Kind::Float, device))
            })
            .transpose()?;
        let rows = [-1, Augmentations::NUMBERS as i64];
        let (numbers, mixes) = (numbers as i64, mixes as i64);
        let part = |side: i64| uniform.f_narrow(0, side * numbers, numbers)?.f_view(rows);
        let augmentations = match numbers {
            0 => None,
            _ => Some([part(0)?, part(1)?]),
        };
        let sides = noise
            .as_ref()
            .map(|noise| -> Result<_, TorchError> { Ok([noise.f_get(0)?, noise.f_get(1)?]) })
            .transpose()?;
        let mixes = match mixes {
            0 => None,
            _ => Some(uniform.f_narrow(0, 2 * numbers, mixes)?),
        };
        Ok(Self {
            noise,
            augmentations,
            mixes,
            sides,
        })
    }

    /// The same memory.
    pub fn share(&self) -> Self {
        let pair = |pair: &Option<[Tensor; 2]>| {
            let pair = pair.as_ref();
            pair.map(|pair| pair.each_ref().map(Tensor::shallow_clone))
        };
        let one = |one: &Option<Tensor>| one.as_ref().map(Tensor::shallow_clone);
        Self {
            noise: one(&self.noise),
            augmentations: pair(&self.augmentations),
            mixes: one(&self.mixes),
            sides: pair(&self.sides),
        }
    }

    /// Draws the noise, on the device that it is for.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn draw_noise(&mut self, of: &Regularisers, round: Round) -> Result<(), TorchError> {
        let Some(noise) = &mut self.noise else {
            return Ok(());
        };
        let deviation = of.deviation(round.0);
        if deviation == 0.0 {
            let _ = noise.f_zero_()?;
            return Ok(());
        }
        let key = key(of, round, Use::Noise);
        Generator::new(noise.device(), key)?.normal_(noise, 0.0, deviation)
    }

    /// `[b, 7]`, if images are augmented.
    pub(super) fn augmentations(&self, side: Side) -> Option<&Tensor> {
        let [real, fake] = self.augmentations.as_ref()?;
        Some(match side {
            Side::Real => real,
            Side::Fake => fake,
        })
    }

    /// `[b, c, s, s]`, if there is noise.
    pub(super) fn noise(&self, side: Side) -> Option<&Tensor> {
        let [real, fake] = self.sides.as_ref()?;
        Some(match side {
            Side::Real => real,
            Side::Fake => fake,
        })
    }

    /// `[b/m]`, 0 … 1: where the gradient penalty's samples lie between fakes and real ones.
    pub fn mixes(&self) -> Option<&Tensor> {
        self.mixes.as_ref()
    }
}
