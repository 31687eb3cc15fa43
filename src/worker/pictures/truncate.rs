//! `gan-worker truncate`: the same images at several truncations.

use super::picks::Picks;
use super::source::{Source, psi, scale};
use super::{PictureError, Report, named};
use crate::command::Failure;
use crate::sample::{Format, Sheet, write_picture};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Which images, and how far they are moved.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: eight images, from what all have in common to more than themselves
  gan-worker truncate runs/mnist --values 0,0.25,0.5,0.75,1,1.25 --out truncation.png")]
pub(in crate::worker) struct Truncate {
    #[command(flatten)]
    source: Source,
    /// The picture (PNG) to write: a row for each image, a column for each truncation.
    #[arg(long)]
    out: PathBuf,
    /// Which images, as in 3,17,25 or 0-7; 9:3 is image 3 of seed 9.
    #[arg(long, default_value = "0-7")]
    images: Picks,
    /// Truncations ψ: latents are multiplied by them.
    #[arg(
        long,
        value_name = "PSI,…",
        value_delimiter = ',',
        value_parser = psi,
        default_value = "0,0.2,0.4,0.6,0.8,1,1.2"
    )]
    values: Vec<f64>,
    /// Repeat each pixel so often along a row [default: 64 pixels an image].
    #[arg(long, value_parser = scale())]
    scale: Option<u32>,
}

impl Truncate {
    pub(in crate::worker) fn run(self) -> Result<ExitCode, Failure> {
        let json = self.source.json;
        self.draw()?.print(json)
    }

    fn draw(self) -> Result<Report, PictureError> {
        let out = named(&self.out, "png");
        Format::expect(&out, &[Format::Png])?;
        let painter = self.source.open()?;
        let whole = painter.latents(&self.images)?;
        let mut moved = Vec::new();
        for latent in &whole {
            for &psi in &self.values {
                moved.push(painter.truncated(latent, psi)?);
            }
        }
        let images = painter.paint(&moved)?;
        let headers = self.values.iter().map(|psi| format!("ψ {psi}"));
        let sheet = Sheet {
            images: &images,
            columns: self.values.len() as u32,
            captions: Vec::new(),
            headers: headers.collect(),
            breaks: Vec::new(),
            band: None,
            scale: self.scale,
        };
        write_picture(&out, &sheet.draw()?)?;
        let text = format!(
            "{}: {} images at {} truncations, {}",
            out.display(),
            whole.len(),
            self.values.len(),
            painter.says()
        );
        let object = json!({
            "out": out,
            "checkpoint": painter.weights.json(),
            "seed": self.source.seed,
            "images": self.images.captions(),
            "truncations": self.values,
        });
        Ok(Report { text, object })
    }
}
