//! What is added to a game: what is done to images before D sees them, and what D pays for its
//! slope.
//!
//! Real images and fakes go the same way to D, each with draws of its own:
//!
//! ```text
//! image → augmentation → + noise → packed → D's input
//! ```
//!
//! G's gradient comes back along that way. The penalties are on D's slope by its *input*, one norm a
//! sample; a sample is what D gives one output for, so with packing it is a pack. They are taken
//! through autograd twice, and make sense only where D's output on a sample depends on that sample
//! alone: not through batch norm, which the job file's check sees to.
//!
//! This room knows tensors and keys, and no networks, players or optimizers. All chance comes in as
//! a [`Chance`], whose draws are keyed by (seed, step, replica, round), so that whoever computes a
//! replica's step sees the same.

mod augmentation;
mod chance;
mod packing;
mod penalty;

pub use augmentation::Augmentations;
pub use chance::Chance;
pub use packing::pack;
pub use penalty::{interpolate, squared_norm, squared_norm_off_one};

use crate::config::Job;
use crate::ids::{ReplicaId, Step};
use crate::torch::TorchError;
use tch::Tensor;

/// What draws belong to: the state that the step starts from, the replica, and its round in the step,
/// from 0: each update has draws of its own.
pub type Round = (Step, ReplicaId, u32);

/// Which of D's two minibatches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Real images.
    Real,
    /// The generator's.
    Fake,
}

/// All that the job file adds to its game, but for the smoothing of labels, which is the
/// objective's.
#[derive(Clone, Debug)]
pub struct Regularisers {
    /// What is done to each image.
    pub augmentations: Augmentations,
    /// Images that D sees at a time, m.
    pub packing: u32,
    /// λ of λ·E(‖∂D/∂x̂‖ - 1)², where x̂ lies between a real sample and a fake; 0 for none.
    pub gradient_penalty: f64,
    /// γ of γ/2·E‖∂D/∂x‖² on real samples; 0 for none.
    pub r1: f64,
    /// γ of γ/2·E‖∂D/∂x‖² on fakes; 0 for none.
    pub r2: f64,
    /// Noise's standard deviation at the first step; 0 for none.
    noise: f64,
    /// After so many steps there is none.
    noise_steps: u64,
    seed: u64,
    /// `[b, c, s, s]`
    images: [i64; 4],
}

impl Regularisers {
    /// Those of a job.
    pub fn of(job: &Job) -> Self {
        let ours = &job.regularise;
        let [channels, high, wide] = job.model.sample_shape().map(i64::from);
        Self {
            augmentations: Augmentations::of(&ours.augment),
            packing: job.train.packing,
            gradient_penalty: job.gradient_penalty(),
            r1: ours.r1,
            r2: ours.r2,
            noise: ours.instance_noise,
            noise_steps: ours.instance_noise_steps,
            seed: job.job.seed,
            images: [job.train.batch.into(), channels, high, wide],
        }
    }

    /// Noise's standard deviation in the step that starts from State(`step`): it falls along a line
    /// to 0 at `regularise.instance_noise_steps`.
    pub fn deviation(&self, step: Step) -> f64 {
        if step.0 >= self.noise_steps {
            return 0.0;
        }
        self.noise * (1.0 - step.0 as f64 / self.noise_steps as f64)
    }

    /// How many uniform numbers a round takes.
    pub fn draws(&self) -> usize {
        let (numbers, mixes) = chance::sizes(self);
        2 * numbers + mixes
    }

    /// The uniform numbers of a replica's round, in the order in which a [`Chance`] keeps them: on
    /// the host, for they are few.
    pub fn draw(&self, round: Round) -> Vec<f32> {
        chance::draw(self, round)
    }

    /// An image's way to D.
    ///
    /// # Shapes
    /// `[b, c, s, s]` to `[b/m, m·c, s, s]`.
    ///
    /// # Errors
    /// [`TorchError`].
    pub fn show(&self, images: &Tensor, side: Side, chance: &Chance) -> Result<Tensor, TorchError> {
        let mut shown = images.shallow_clone();
        if let Some(parameters) = chance.augmentations(side) {
            shown = self.augmentations.apply(&shown, parameters)?;
        }
        if let Some(noise) = chance.noise(side) {
            shown = shown.f_add(noise)?;
        }
        pack(&shown, self.packing)
    }
}
