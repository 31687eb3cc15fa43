//! `gan-worker interpolate`: from one latent to the next, along the sphere.

use super::picks::Picks;
use super::source::{Painter, Source, psi, scale};
use super::{PictureError, Report, named, progress};
use crate::command::Failure;
use crate::sample::{
    Canvas, Format, Sheet, Timing, geometry, magnification, write_film, write_picture,
};
use clap::Args;
use image::RgbImage;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The least side of a film, pixels.
const FILM: u32 = 256;
/// Frames that are drawn at a time.
const CHUNK: u64 = 64;
/// The most frames of a film.
const MOST: u64 = 10_000;
const FORMATS: &[Format] = &[Format::Png, Format::Gif, Format::WebP];

/// Between which images, and what is made of the ways.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: ways between four images of the grid of seed 0, as a strip and as a film
  gan-worker interpolate runs/mnist --between 3,17,25,40 --out ways.png --out ways.gif")]
pub(in crate::worker) struct Interpolate {
    #[command(flatten)]
    source: Source,
    /// What to write: a strip with a row for each way (.png), or a film that comes back to where it
    /// began (.gif, .webp). May be repeated.
    #[arg(long, required = true)]
    out: Vec<PathBuf>,
    /// Images to go between, by their numbers in the grid of `gan-worker sample`; 9:3 is image 3 of
    /// seed 9.
    #[arg(long, default_value = "0,1,2,3")]
    between: Picks,
    /// Images in a row of the strip, both ends among them.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=256))]
    columns: u32,
    /// Frames of the film from one image to the next.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(2..=1000))]
    frames: u32,
    /// Frames a second.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=50))]
    fps: u32,
    /// Move latents towards the middle of all first: 1 leaves them, 0 makes all the same.
    #[arg(long, value_name = "PSI", default_value = "1", value_parser = psi)]
    truncation: f64,
    /// Repeat each pixel so often along a row [default: 64 pixels an image, 256 in a film].
    #[arg(long, value_parser = scale())]
    scale: Option<u32>,
}

impl Interpolate {
    pub(in crate::worker) fn run(self) -> Result<ExitCode, Failure> {
        let json = self.source.json;
        self.draw()?.print(json)
    }

    fn draw(self) -> Result<Report, PictureError> {
        let named = |path: &PathBuf| named(path, "png");
        let outs: Vec<PathBuf> = self.out.iter().map(named).collect();
        for out in &outs {
            Format::expect(out, FORMATS)?;
        }
        if self.between.0.len() < 2 {
            let message = "--between has one image; expected two or more, as in --between 3,17";
            return Err(PictureError::Command(message.to_owned()));
        }
        let painter = self.source.open()?;
        let stops = painter.latents_at(&self.between, self.truncation)?;
        let mut told = Vec::new();
        for out in &outs {
            told.push(match Format::of(out) {
                Some(Format::Png) => self.strip(&painter, &stops, out)?,
                _ => self.film(&painter, &stops, out)?,
            });
        }
        let object = json!({
            "out": outs,
            "checkpoint": painter.weights.json(),
            "seed": self.source.seed,
            "between": self.between.captions(),
            "truncation": self.truncation,
        });
        let text = told.join("\n");
        Ok(Report { text, object })
    }

    /// A row for each way.
    fn strip(
        &self,
        painter: &Painter,
        stops: &[Vec<f32>],
        out: &Path,
    ) -> Result<String, PictureError> {
        let last = self.columns - 1;
        let ways = stops.windows(2).flat_map(|ends| {
            (0..self.columns).map(move |column| {
                let t = f64::from(column) / f64::from(last);
                geometry::slerp(&ends[0], &ends[1], t)
            })
        });
        let images = painter.paint(&ways.collect::<Vec<_>>())?;
        let names = self.between.captions();
        let captions = names.windows(2).flat_map(|ends| {
            (0..self.columns).map(move |column| match column {
                0 => ends[0].clone(),
                column if column == last => ends[1].clone(),
                _ => String::new(),
            })
        });
        let sheet = Sheet {
            images: &images,
            columns: self.columns,
            captions: captions.collect(),
            headers: Vec::new(),
            breaks: Vec::new(),
            band: None,
            scale: self.scale,
        };
        write_picture(out, &sheet.draw()?)?;
        Ok(format!(
            "{}: {} ways of {} images, {}",
            out.display(),
            stops.len() - 1,
            self.columns,
            painter.says()
        ))
    }

    /// From each image to the next, and from the last to the first.
    fn film(
        &self,
        painter: &Painter,
        stops: &[Vec<f32>],
        out: &Path,
    ) -> Result<String, PictureError> {
        let frame = |number: u64| {
            let way = (number / u64::from(self.frames)) as usize;
            let t = (number % u64::from(self.frames)) as f64 / f64::from(self.frames);
            geometry::slerp(&stops[way], &stops[(way + 1) % stops.len()], t)
        };
        let count = stops.len() as u64 * u64::from(self.frames);
        if count > MOST {
            return Err(PictureError::Command(format!(
                "a film of {count} frames; expected at most {MOST}: lower --frames"
            )));
        }
        let bar = progress(count, "drawing");
        let drawn = (0..count.div_ceil(CHUNK)).flat_map(|chunk| {
            let numbers = chunk * CHUNK..count.min((chunk + 1) * CHUNK);
            bar.inc(numbers.end - numbers.start);
            match self.frames_of(painter, &numbers.map(frame).collect::<Vec<_>>()) {
                Ok(frames) => frames.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        });
        let each = Duration::from_secs(1) / self.fps;
        let timing = Timing {
            frame: each,
            last: each,
        };
        let frames = write_film(out, drawn, timing)?;
        bar.finish_and_clear();
        Ok(format!(
            "{}: {frames} frames, {} a second, {}",
            out.display(),
            self.fps,
            painter.says()
        ))
    }

    /// One image a frame.
    fn frames_of(
        &self,
        painter: &Painter,
        latents: &[Vec<f32>],
    ) -> Result<Vec<RgbImage>, PictureError> {
        let images = painter.paint(latents)?;
        let scale = self
            .scale
            .unwrap_or_else(|| magnification(images.size, FILM));
        let side = images.size.saturating_mul(scale);
        let frame = |n| {
            let mut page = Canvas::new(side, side)?;
            page.image(&images, n, [0, 0], scale);
            Ok(page.into_frame())
        };
        (0..images.count()?).map(frame).collect()
    }
}
