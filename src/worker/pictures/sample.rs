//! `gan-worker sample`: a grid of images.

use super::picks::Picks;
use super::source::{Painter, Source, Weights, psi, scale};
use super::{PictureError, Report, drawing, named};
use crate::command::Failure;
use crate::sample::{Format, PADDING, Sheet, grid, write_picture};
use crate::train::{Sampler, TrainError};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tch::Device;

/// Which images, and how they are laid out.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: sixty-four images, numbered, for `gan-worker arithmetic` to name them by
  gan-worker sample runs/mnist --numbers --out grid.png
Example: two minibatches, each normalised by its own statistics (figure 21 of the tutorial)
  gan-worker sample runs/mnist --statistics batch --count 32 --out batches.png")]
pub(in crate::worker) struct Sample {
    #[command(flatten)]
    source: Source,
    /// The picture (PNG) to write.
    #[arg(long)]
    out: PathBuf,
    /// How many images.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    count: u32,
    /// These images instead, as in 3,17,25 or 0-7; 9:3 is image 3 of seed 9.
    #[arg(long, conflicts_with = "count")]
    images: Option<Picks>,
    /// Move latents towards the middle of all: 1 leaves them, 0 gives what all have in common.
    #[arg(long, value_name = "PSI", default_value = "1", value_parser = psi)]
    truncation: f64,
    /// Where batch norm takes its statistics from.
    #[arg(long, value_enum, default_value_t = Norms::Running)]
    statistics: Norms,
    /// Images in a batch, for `--statistics batch` [default: a replica's batch in training].
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=4096))]
    batch: Option<u32>,
    /// Images in a row [default: as many as there are rows].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    columns: Option<u32>,
    /// Repeat each pixel so often along a row [default: 1, or 64 pixels an image with captions].
    #[arg(long, value_parser = scale())]
    scale: Option<u32>,
    /// Write each image's number under it.
    #[arg(long)]
    numbers: bool,
    /// The checkpoint of a coarser level, whose images this one refines; the coarsest first.
    #[arg(long, value_name = "CHECKPOINT")]
    coarser: Vec<PathBuf>,
}

/// Where batch norm takes its statistics from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Norms {
    /// From training: an image depends on its own latent only.
    Running,
    /// From the images of its own minibatch, as in training: images of a batch have something in
    /// common.
    Batch,
}

impl Sample {
    pub(in crate::worker) fn run(self) -> Result<ExitCode, Failure> {
        let json = self.source.json;
        self.draw()?.print(json)
    }

    fn draw(self) -> Result<Report, PictureError> {
        let out = named(&self.out, "png");
        Format::expect(&out, &[Format::Png])?;
        if self.batch.is_some() && self.statistics == Norms::Running {
            let message =
                "--batch is for --statistics batch: with running statistics there are no batches";
            return Err(PictureError::Command(message.to_owned()));
        }
        let painter = self.source.open()?;
        let model = painter.sampler.model();
        if model.has_points() || model.pyramid || !self.coarser.is_empty() {
            return self.draw_whole(painter, &out);
        }
        let picks = self
            .images
            .clone()
            .unwrap_or_else(|| Picks::first(self.count));
        let count = picks.0.len() as u32;
        let batch = match self.statistics {
            Norms::Running => None,
            Norms::Batch => Some(self.batch_of(&painter.weights.manifest.state_keys)?),
        };
        let columns = self.columns.unwrap_or_else(|| match batch {
            // A batch fills its rows, so that one sees where the next begins.
            Some(batch) => (1..batch)
                .find(|c| c * c >= batch && batch.is_multiple_of(*c))
                .unwrap_or(batch),
            None => (1..).find(|c| c * c >= count).unwrap_or(1),
        });
        let labels = |count| drawing::labels(&painter.sampler, self.source.class, count, columns);
        let images = match batch {
            None => {
                let latents = painter.latents_at(&picks, self.truncation)?;
                painter.paint_of(&latents, &labels(count))?
            }
            Some(batch) => {
                // The last batch is filled up with the images that follow.
                let whole = count.div_ceil(batch) * batch;
                let mut filled = picks.clone();
                let next = picks.0.iter().map(|pick| pick.number).max().unwrap_or(0) + 1;
                filled.0.extend(
                    Picks::first(next + whole - count)
                        .0
                        .split_off(next as usize),
                );
                let latents = painter.latents_at(&filled, self.truncation)?;
                let mut images = painter.paint_batches(&latents, &labels(whole), batch as usize)?;
                let shown = images.pixels.len() / whole as usize * count as usize;
                images.pixels.truncate(shown);
                images
            }
        };
        let plain = batch.is_none() && !self.numbers && self.scale.is_none();
        let picture = match plain {
            true => grid(&images, columns, PADDING)?,
            false => {
                let rows = batch.map(|batch| batch.div_ceil(columns));
                Sheet {
                    images: &images,
                    columns,
                    captions: match self.numbers {
                        true => picks.captions(),
                        false => Vec::new(),
                    },
                    headers: Vec::new(),
                    breaks: Vec::new(),
                    // A batch that ends within a row has no gap after it.
                    band: rows.filter(|rows| batch == Some(rows * columns)),
                    scale: self.scale,
                }
                .draw()?
            }
        };
        write_picture(&out, &picture)?;
        let statistics = batch.map_or(String::new(), |batch| {
            format!(", statistics of batches of {batch}")
        });
        let text = format!(
            "{}: {count} images of {}{statistics}",
            out.display(),
            painter.says()
        );
        let object = json!({
            "out": out,
            "checkpoint": painter.weights.json(),
            "seed": self.source.seed,
            "images": picks.captions(),
            "truncation": self.truncation,
            "batch": batch,
        });
        Ok(Report { text, object })
    }

    /// Draws what is drawn all together: points, or images that pass through the levels of a pyramid.
    fn draw_whole(self, painter: Painter, out: &Path) -> Result<Report, PictureError> {
        let plain = self.images.is_none()
            && self.truncation == 1.0
            && self.statistics == Norms::Running
            && self.scale.is_none()
            && !self.numbers;
        if !plain {
            let message = "of points, and of a pyramid, --count, --columns, --class and --seed can be chosen: \
                           leave out --images, --truncation, --statistics, --scale and --numbers";
            return Err(PictureError::Command(message.to_owned()));
        }
        let mut levels = Vec::new();
        for checkpoint in &self.coarser {
            let weights = Weights::open(checkpoint, self.source.raw)?;
            let model = &weights.manifest.model;
            levels.push(Sampler::new(model, &weights.tensors, Device::Cpu)?);
        }
        let columns = self
            .columns
            .unwrap_or_else(|| (1..).find(|c| c * c >= self.count).unwrap_or(1));
        let class = self.source.class;
        let labels = drawing::labels(&painter.sampler, class, self.count, columns);
        let (says, checkpoint) = (painter.says(), painter.weights.json());
        levels.push(painter.sampler);
        let images =
            drawing::draw(levels, self.source.seed, &labels).map_err(|error| match error {
                TrainError::Coarse { detail } => {
                    PictureError::Command(format!("--coarser: {detail}"))
                }
                error => error.into(),
            })?;
        write_picture(out, &grid(&images, columns, PADDING)?)?;
        Ok(Report {
            text: format!("{}: {} samples of {says}", out.display(), self.count),
            object: json!({
                "out": out,
                "checkpoint": checkpoint,
                "seed": self.source.seed,
                "count": self.count,
            }),
        })
    }

    /// The batch that was asked for, or a replica's in training.
    fn batch_of(&self, keys: &crate::config::StateKeys) -> Result<u32, PictureError> {
        let trained = || keys.get("train.batch")?.as_u64()?.try_into().ok();
        let batch = self.batch.or_else(trained).filter(|&batch| batch >= 2);
        batch.ok_or_else(|| {
            let message = "the job's batch has no two images to take statistics from; say --batch";
            PictureError::Command(message.to_owned())
        })
    }
}
