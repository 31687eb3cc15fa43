//! A Laplacian pyramid of generators (Denton et al. 2015), from the coarsest to the finest.

use super::TrainError;
use super::sampler::{Sampler, bytes};
use crate::config::Model;
use crate::model::Latents;
use crate::random::{Domain, Key};
use crate::torch::TorchError;

/// Generators, each of which refines what the one before it makes.
#[derive(Debug)]
pub struct Pyramid {
    levels: Vec<Sampler>,
}

impl Pyramid {
    /// The coarsest comes first: it makes images of z alone. Each of the others is a level of a
    /// pyramid whose images have twice the side.
    ///
    /// # Errors
    /// [`TrainError::Coarse`], which says which level doesn't fit.
    pub fn new(levels: Vec<Sampler>) -> Result<Self, TrainError> {
        let pyramid = Self::of(levels)?;
        let first = &pyramid.levels[0];
        if first.refines() {
            return Err(TrainError::Coarse {
                detail: format!(
                    "the coarsest level, of {0}×{0} pixels, refines images itself; name the one below \
                     it first",
                    first.model().image_size
                ),
            });
        }
        Ok(pyramid)
    }

    /// Levels whose first may be one that refines images of somebody else's.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(levels: Vec<Sampler>) -> Result<Self, TrainError> {
        let wrong = |detail: String| Err(TrainError::Coarse { detail });
        if levels.is_empty() {
            return wrong("a pyramid has at least one level".to_owned());
        }
        for pair in levels.windows(2) {
            let (below, above) = (pair[0].model(), pair[1].model());
            let fits = above.pyramid
                && above.image_size == 2 * below.image_size
                && above.channels == below.channels;
            if !fits {
                return wrong(format!(
                    "a level of {0}×{0} pixels and {1} channels doesn't refine one of {2}×{2} and {3}; \
                     expected model.pyramid = true, twice the side and as many channels",
                    above.image_size, above.channels, below.image_size, below.channels
                ));
            }
        }
        Ok(Self { levels })
    }

    /// The finest level's `[model]`.
    pub fn model(&self) -> &Model {
        // There is at least one: `new` has refused none.
        self.levels[self.levels.len() - 1].model()
    }

    /// Draws images of the seed's own for these labels, one each: each level's latents have a key of
    /// their own, and the coarsest level's are those of its grid.
    ///
    /// # Shapes
    /// `[labels.len(), c, s, s]` of the finest level, 0 … 255.
    ///
    /// # Errors
    /// As [`Sampler::refine`].
    pub fn draw(&self, seed: u64, labels: &[u32]) -> Result<Vec<u8>, TrainError> {
        let latents = |level, model: &Model| {
            let key = match level {
                0 => Key::new(Domain::Samples, &[seed]),
                _ => Key::new(Domain::Samples, &[seed, level]),
            };
            Latents::first(model, key, labels.len())
        };
        Ok(bytes(self.values(None, latents, labels)?))
    }

    /// What the levels make of coarser images, if the first refines such, of each level's latents and
    /// of these labels, one each.
    ///
    /// # Shapes
    /// `[labels.len(), c, s, s]` of the finest level, about -1 … 1.
    ///
    /// # Errors
    /// As [`Sampler::refine`].
    pub fn values(
        &self,
        coarse: Option<Vec<f32>>,
        latents: impl Fn(u64, &Model) -> Result<Latents, TorchError>,
        labels: &[u32],
    ) -> Result<Vec<f32>, TrainError> {
        let mut values = coarse;
        for (level, sampler) in (0..).zip(&self.levels) {
            let latents = latents(level, sampler.model())?;
            values = Some(match values {
                None => sampler.values(&latents, labels)?,
                Some(coarse) => sampler.refine(&coarse, &latents, labels)?,
            });
        }
        Ok(values.unwrap_or_default())
    }
}
