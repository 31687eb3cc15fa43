//! A checkpoint's generator, ready to draw.

use super::PictureError;
use super::drawing::check_class;
use super::picks::{Pick, Picks};
use crate::checkpoint::{self, Manifest, Store, TensorData};
use crate::model::Latents;
use crate::sample::{Images, geometry};
use crate::train::Sampler;
use clap::Args;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Device;

/// Which generator draws, and how.
#[derive(Debug, Args)]
pub(super) struct Source {
    /// The checkpoint's folder, as in runs/mnist/checkpoints/step-00000500; or a run directory, for
    /// its newest checkpoint.
    pub(super) checkpoint: PathBuf,
    /// Seed of the latents.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Use the generator's newest weights even if the checkpoint has averaged ones (EMA).
    #[arg(long, alias = "no-ema")]
    pub(super) raw: bool,
    /// Images of this label, by a generator that is told of labels [default: 0; `sample` draws a row of
    /// each].
    #[arg(long, value_name = "LABEL")]
    pub(super) class: Option<u32>,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

/// The weights of a generator that a checkpoint has.
pub(in crate::worker) struct Weights {
    pub(in crate::worker) manifest: Manifest,
    pub(in crate::worker) tensors: Vec<TensorData>,
    /// Whether they are averaged (EMA).
    averaged: bool,
}

impl Weights {
    /// The averaged ones if there are any, unless `raw` ones are wanted.
    pub(in crate::worker) fn open(folder: &Path, raw: bool) -> Result<Self, PictureError> {
        let folder = checkpoint_in(folder)?;
        let averaged = checkpoint::read_manifest(&folder)?.ema && !raw;
        let file = match averaged {
            true => "generator_ema",
            false => "generator",
        };
        let (manifest, tensors) = checkpoint::read_file(&folder, file)?;
        Ok(Self {
            manifest,
            tensors,
            averaged,
        })
    }

    /// For people.
    pub(in crate::worker) fn name(&self) -> &'static str {
        match self.averaged {
            true => "averaged weights",
            false => "newest weights",
        }
    }

    /// What reports say of them in JSON.
    pub(in crate::worker) fn json(&self) -> serde_json::Value {
        json!({
            "job": self.manifest.job,
            "step": self.manifest.step,
            "digest": self.manifest.digest,
            "weights": match self.averaged {
                true => "averaged",
                false => "newest",
            },
        })
    }
}

/// The checkpoint that `folder` is, or the newest one of the run directory that it is.
pub(in crate::worker) fn checkpoint_in(folder: &Path) -> Result<PathBuf, PictureError> {
    let inside = folder.join("checkpoints");
    if !inside.is_dir() {
        return Ok(folder.to_owned());
    }
    let newest = Store::new(&inside).list()?.into_iter().max();
    newest.map(|(_, path)| path).ok_or_else(|| {
        PictureError::Command(format!("{}: there is no checkpoint yet", inside.display()))
    })
}

/// Draws images.
pub(super) struct Painter {
    pub(super) weights: Weights,
    pub(super) sampler: Sampler,
    seed: u64,
    class: Option<u32>,
}

impl Source {
    /// Reads the generator.
    pub(super) fn open(&self) -> Result<Painter, PictureError> {
        let weights = Weights::open(&self.checkpoint, self.raw)?;
        crate::torch::set_threads(1); // The same picture on any machine of a kind.
        let sampler = Sampler::new(&weights.manifest.model, &weights.tensors, Device::Cpu)?;
        check_class(&sampler, self.class)?;
        Ok(Painter {
            weights,
            sampler,
            seed: self.seed,
            class: self.class,
        })
    }
}

impl Painter {
    /// The latents of these images.
    pub(super) fn latents(&self, picks: &Picks) -> Result<Vec<Vec<f32>>, PictureError> {
        let mut largest = BTreeMap::new();
        let seed_of = |pick: &Pick| pick.seed.unwrap_or(self.seed);
        for pick in &picks.0 {
            let number: &mut u32 = largest.entry(seed_of(pick)).or_default();
            *number = pick.number.max(*number);
        }
        let mut drawn = BTreeMap::new();
        for (seed, number) in largest {
            drawn.insert(seed, self.sampler.latents(seed, number as usize + 1)?);
        }
        let latent = |pick: &Pick| {
            let all: &Latents = &drawn[&seed_of(pick)];
            let from = pick.number as usize * all.size();
            all.values()[from..from + all.size()].to_vec()
        };
        Ok(picks.0.iter().map(latent).collect())
    }

    /// The latents of these images, moved towards the middle of all by ψ.
    pub(super) fn latents_at(
        &self,
        picks: &Picks,
        psi: f64,
    ) -> Result<Vec<Vec<f32>>, PictureError> {
        let latents = self.latents(picks)?;
        if psi == 1.0 {
            return Ok(latents);
        }
        latents.iter().map(|z| self.truncated(z, psi)).collect()
    }

    /// A latent that is moved towards the middle of all by ψ.
    pub(super) fn truncated(&self, latent: &[f32], psi: f64) -> Result<Vec<f32>, PictureError> {
        let binary = self.sampler.model().binary_latents as usize;
        if binary == latent.len() {
            return Err(PictureError::Command(
                "truncation: all of this generator's latents are -1 or 1 (model.binary_latents), and \
                 those are not moved"
                    .to_owned(),
            ));
        }
        Ok(geometry::truncated(latent, binary, psi))
    }

    /// The images of latents, with running statistics: each depends on its own latent only.
    pub(super) fn paint(&self, latents: &[Vec<f32>]) -> Result<Images, PictureError> {
        self.paint_of(latents, &self.labels(latents.len()))
    }

    /// The images of latents for these labels.
    pub(super) fn paint_of(
        &self,
        latents: &[Vec<f32>],
        labels: &[u32],
    ) -> Result<Images, PictureError> {
        self.check_images()?;
        self.images(self.sampler.sample_of(&listed(latents)?, labels)?)
    }

    /// The images of latents for these labels, with the statistics of their batches, of so many each.
    /// The last batch must be whole.
    pub(super) fn paint_batches(
        &self,
        latents: &[Vec<f32>],
        labels: &[u32],
        batch: usize,
    ) -> Result<Images, PictureError> {
        self.check_images()?;
        let latents = listed(latents)?;
        self.images(self.sampler.sample_batches(&latents, labels, batch)?)
    }

    /// The label that was asked for, or the first, so often.
    fn labels(&self, count: usize) -> Vec<u32> {
        vec![self.class.unwrap_or(0); count]
    }

    /// Refuses what makes no images of latents alone.
    fn check_images(&self) -> Result<(), PictureError> {
        let model = self.sampler.model();
        let wrong = |message: &str| Err(PictureError::Command(message.to_owned()));
        if model.has_points() {
            return wrong("this generator makes points, not images: only `sample` draws those");
        }
        if model.pyramid {
            return wrong(
                "this generator is a level of a pyramid and refines images: only `sample` draws those, \
                 with the coarser levels as --coarser",
            );
        }
        Ok(())
    }

    fn images(&self, pixels: Vec<u8>) -> Result<Images, PictureError> {
        Ok(Images {
            channels: self.weights.manifest.model.channels,
            size: self.weights.manifest.model.image_size,
            pixels,
        })
    }

    /// `step 500, averaged weights, seed 3`
    pub(super) fn says(&self) -> String {
        let Weights { manifest, .. } = &self.weights;
        let (step, weights) = (manifest.step, self.weights.name());
        format!("step {step}, {weights}, seed {}", self.seed)
    }
}

/// Latents one after the other, as the sampler takes them.
fn listed(latents: &[Vec<f32>]) -> Result<Latents, PictureError> {
    let size = latents.first().map_or(0, Vec::len);
    Latents::new(size, latents.concat())
        .ok_or_else(|| PictureError::Command("there are no latents".to_owned()))
}

/// A ψ that a person has typed.
pub(super) fn psi(text: &str) -> Result<f64, String> {
    let psi = text.trim().parse().ok();
    psi.filter(|psi| (0.0..=10.0).contains(psi))
        .ok_or_else(|| format!("{text:?} is no truncation; expected a number from 0 to 10, as 0.7"))
}

/// What limits how large pixels are drawn.
pub(super) fn scale() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=64)
}
