//! A generator that was trained, for the figures that show one.

use super::FigureError;
use crate::model::Latents;
use crate::sample::Images;
use crate::train::Sampler;

/// A checkpoint's generator. Each image depends on its own latent alone (running statistics).
#[derive(Debug)]
pub struct Trained {
    sampler: Sampler,
    channels: u32,
    size: u32,
    says: String,
}

impl Trained {
    /// A generator of images with so many channels and pixels along a side; `says` tells people
    /// which.
    pub fn new(sampler: Sampler, channels: u32, size: u32, says: String) -> Self {
        Self {
            sampler,
            channels,
            size,
            says,
        }
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

    /// The images of latents.
    pub(super) fn paint(&self, latents: &[Vec<f32>]) -> Result<Images, FigureError> {
        let size = latents.first().map_or(0, Vec::len);
        let latents = Latents::new(size, latents.concat())
            .ok_or_else(|| FigureError::Plot("there are no latents to draw".to_owned()))?;
        Ok(Images {
            channels: self.channels,
            size: self.size,
            pixels: self.sampler.sample(&latents)?,
        })
    }
}
