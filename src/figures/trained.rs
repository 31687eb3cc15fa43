//! A generator that was trained, for the figures that show one.

use super::FigureError;
use crate::model::Latents;
use crate::sample::Images;
use crate::train::Sampler;

/// A checkpoint's generator of images. Each image depends on its own latent alone (running
/// statistics).
#[derive(Debug)]
pub struct Trained {
    sampler: Sampler,
    says: String,
}

impl Trained {
    /// This generator; `says` tells people which it is.
    ///
    /// # Errors
    /// [`FigureError::NoImages`], if latents alone make no images of it.
    pub fn new(sampler: Sampler, says: String) -> Result<Self, FigureError> {
        let model = sampler.model();
        if model.has_points() {
            return Err(FigureError::NoImages("makes points"));
        }
        if model.pyramid {
            return Err(FigureError::NoImages(
                "refines images, as a level of a pyramid",
            ));
        }
        Ok(Self { sampler, says })
    }

    /// Which one it is.
    pub(super) fn says(&self) -> &str {
        &self.says
    }

    /// The first `count` latents of a seed.
    pub(super) fn latents(&self, seed: u64, count: usize) -> Result<Vec<Vec<f32>>, FigureError> {
        let latents = self.sampler.latents(seed, count)?;
        let each = latents.values().chunks(latents.size().max(1));
        Ok(each.map(<[f32]>::to_vec).collect())
    }

    /// The images of latents, by a conditional generator for its labels in turn.
    pub(super) fn paint(&self, latents: &[Vec<f32>]) -> Result<Images, FigureError> {
        let classes = self.sampler.model().classes.max(1);
        let labels: Vec<u32> = (0..latents.len() as u32).map(|n| n % classes).collect();
        self.paint_of(latents, &labels)
    }

    /// The images of latents, by a conditional generator all of them for its first label.
    pub(super) fn paint_alike(&self, latents: &[Vec<f32>]) -> Result<Images, FigureError> {
        self.paint_of(latents, &vec![0; latents.len()])
    }

    fn paint_of(&self, latents: &[Vec<f32>], labels: &[u32]) -> Result<Images, FigureError> {
        let size = latents.first().map_or(0, Vec::len);
        let latents = Latents::new(size, latents.concat())
            .ok_or_else(|| FigureError::Plot("there are no latents to draw".to_owned()))?;
        let model = self.sampler.model();
        Ok(Images {
            channels: model.channels,
            size: model.image_size,
            pixels: self.sampler.sample_of(&latents, labels)?,
        })
    }
}
