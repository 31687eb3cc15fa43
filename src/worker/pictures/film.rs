//! `gan-worker film`: the sample grids of a run, one after the other.

use super::{PictureError, Report, named, progress};
use crate::command::Failure;
use crate::sample::{Canvas, FILMS, Format, GAP, SampleError, Timing, text_height, write_film};
use clap::Args;
use image::RgbImage;
use image::imageops::{self, FilterType};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Grids that are narrower are enlarged by a whole number.
const NARROW: u32 = 400;

/// Which run, and how fast.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: how the demo's generator learned, eight grids a second
  gan-worker film runs/mnist --fps 8 --out film.gif")]
pub(in crate::worker) struct Film {
    /// The run directory, as in runs/mnist, whose grids are in samples/; sample.every_steps in the
    /// job file says how often one is drawn.
    run_dir: PathBuf,
    /// The film to write (.gif, .webp).
    #[arg(long)]
    out: PathBuf,
    /// Grids a second.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=50))]
    fps: u32,
    /// How long the last grid is shown.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    last: Duration,
    /// Leave all out but every so many; the last grid is always shown.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    every: u32,
    /// Wider grids are made smaller, pixels.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..=8192))]
    width: u32,
    /// Don't write the step under each grid.
    #[arg(long)]
    plain: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl Film {
    pub(in crate::worker) fn run(self) -> Result<ExitCode, Failure> {
        let json = self.json;
        self.draw()?.print(json)
    }

    fn draw(self) -> Result<Report, PictureError> {
        let out = named(&self.out, "gif");
        Format::expect(&out, FILMS)?;
        let grids = thinned(grids(&self.run_dir)?, self.every);
        let (Some((first, _)), Some((last, _))) = (grids.first(), grids.last()) else {
            return Err(PictureError::Command(format!(
                "{}: there are no grids; expected a run directory with samples/step-….png in it, which a job writes every sample.every_steps",
                self.run_dir.join("samples").display()
            )));
        };
        let bar = progress(grids.len() as u64, "filming");
        let mut size = None;
        let frames = grids.iter().map(|(step, path)| {
            bar.inc(1);
            let grid = image::open(path).map_err(|source| SampleError::Decode {
                path: path.clone(),
                source,
            })?;
            let grid = grid.into_rgb8();
            let expected = *size.get_or_insert(grid.dimensions());
            if grid.dimensions() != expected {
                let (wide, high) = grid.dimensions();
                return Err(PictureError::Command(format!(
                    "{}: {wide} x {high} pixels, the first grid has {} x {}; move one kind away",
                    path.display(),
                    expected.0,
                    expected.1
                )));
            }
            Ok(self.frame(grid, *step)?)
        });
        let timing = Timing {
            frame: Duration::from_secs(1) / self.fps,
            last: self.last,
        };
        let count = write_film(&out, frames, timing)?;
        bar.finish_and_clear();
        let text = format!(
            "{}: {count} grids, from step {first} to step {last}",
            out.display()
        );
        let object = json!({
            "out": out,
            "run_dir": self.run_dir,
            "frames": count,
            "first_step": first,
            "last_step": last,
        });
        Ok(Report { text, object })
    }

    /// A grid in the film's size, with its step under it.
    fn frame(&self, grid: RgbImage, step: u64) -> Result<RgbImage, SampleError> {
        let (wide, high) = grid.dimensions();
        let grid = match wide {
            wide if wide > self.width => {
                let high = u64::from(high) * u64::from(self.width) / u64::from(wide);
                let high = u32::try_from(high).unwrap_or(u32::MAX).max(1);
                imageops::resize(&grid, self.width, high, FilterType::Triangle)
            }
            wide => {
                let times = (NARROW.div_ceil(wide.max(1)))
                    .min(self.width / wide.max(1))
                    .max(1);
                imageops::resize(&grid, wide * times, high * times, FilterType::Nearest)
            }
        };
        if self.plain {
            return Ok(grid);
        }
        let (wide, high) = grid.dimensions();
        let caption = 2 * GAP + text_height(2);
        let mut page = Canvas::new(wide, high.saturating_add(caption))?;
        page.picture(&grid, [0, 0]);
        page.centred(&format!("step {step}"), [0, high + GAP], wide, 2);
        Ok(page.into_frame())
    }
}

/// The grids of a run and their steps, in order.
fn grids(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>, PictureError> {
    let folder = run_dir.join("samples");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let listing = |source| PictureError::List {
        path: folder.clone(),
        source,
    };
    let mut grids = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(listing)? {
        let path = entry.map_err(listing)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let step = name.and_then(|name| name.strip_prefix("step-")?.strip_suffix(".png"));
        if let Some(step) = step.and_then(|step| step.parse().ok()) {
            grids.push((step, path));
        }
    }
    grids.sort();
    Ok(grids)
}

/// One in every so many, counted so that the last one stays.
fn thinned<T>(all: Vec<T>, every: u32) -> Vec<T> {
    let count = all.len();
    let every = every.max(1) as usize;
    let kept = all.into_iter().enumerate();
    let kept = kept.filter(|(place, _)| (count - 1 - place).is_multiple_of(every));
    kept.map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_grid_stays() {
        assert_eq!(thinned(vec![1, 2, 3, 4, 5, 6], 2), [2, 4, 6]);
        assert_eq!(thinned(vec![1, 2, 3], 1), [1, 2, 3]);
        assert_eq!(thinned(vec![1, 2, 3], 9), [3]);
        assert!(thinned(Vec::<u8>::new(), 2).is_empty());
    }

    #[test]
    fn grids_are_shown_in_the_order_of_their_steps() {
        let dir = tempfile::tempdir().unwrap();
        assert!(grids(dir.path()).unwrap().is_empty());
        let samples = dir.path().join("samples");
        std::fs::create_dir(&samples).unwrap();
        for name in [
            "step-00000500.png",
            "step-00000009.png",
            "other.png",
            "step-x.png",
        ] {
            std::fs::write(samples.join(name), "").unwrap();
        }
        let steps: Vec<u64> = grids(dir.path())
            .unwrap()
            .into_iter()
            .map(|(step, _)| step)
            .collect();
        assert_eq!(steps, [9, 500]);
    }
}
