//! `gan-worker figures`: the tutorial's figures, from runs.

use super::pictures::Weights;
use crate::command::{Failure, print};
use crate::figures::{Drawing, Figure, Picture, Study, Trained};
use crate::sample::{write_picture, write_whole};
use crate::train::Sampler;
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Which figures, and where to.
#[derive(Debug, Args)]
#[command(after_help = "\
Figures 18 and 19 show a generator that was trained, and are left out unless --checkpoint names it.
The others take a few minutes together.")]
pub(super) struct Figures {
    /// The folder to write to; it is created if it isn't there.
    #[arg(long, value_name = "DIR", default_value = "figures")]
    out: PathBuf,
    /// Draw this figure alone; may be given several times [default: all].
    #[arg(long = "figure", value_name = "N", value_parser = figure)]
    figures: Vec<Figure>,
    /// A checkpoint's folder, or a run directory, whose newest checkpoint's generator figures 18 and
    /// 19 show.
    #[arg(long, value_name = "CHECKPOINT")]
    checkpoint: Option<PathBuf>,
    /// Seed of every draw: the same seed gives the same bytes.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Runs of a few updates, to see that everything works.
    #[arg(long, hide = true)]
    brief: bool,
}

fn figure(number: &str) -> Result<Figure, String> {
    let found = Figure::ALL
        .into_iter()
        .find(|figure| figure.number().to_string() == number);
    found.ok_or_else(|| {
        let known = Figure::ALL.map(|figure| figure.number().to_string());
        format!(
            "expected one of the tutorial's figures {}",
            known.join(", ")
        )
    })
}

/// A line on standard output; whoever doesn't read it doesn't miss it.
fn say(text: &str) {
    let _ = print(&format!("  {text}\n"));
}

impl Figures {
    /// Runs the command.
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let figures = self.chosen()?;
        crate::torch::set_threads(1); // The same bytes on any machine of a kind.
        let study = Study {
            seed: self.seed,
            brief: self.brief,
            trained: self.checkpoint.as_deref().map(trained).transpose()?,
            say,
        };
        // Before minutes of work rather than after.
        fs::create_dir_all(&self.out).map_err(|error| {
            Failure::wrong(format!("{}: can't create it: {error}", self.out.display()))
        })?;
        for figure in figures {
            print(&format!("{figure}: {}\n", figure.subject()))?;
            let Drawing { picture, findings } = figure
                .draw(&study)
                .map_err(|error| Failure::failed(format!("{figure}: {error}")))?;
            let file = |extension: &str| {
                let name = format!("figure-{}.{extension}", figure.number());
                self.out.join(name)
            };
            let (path, written) = match &picture {
                Picture::Svg(svg) => (file("svg"), write_whole(&file("svg"), svg.as_bytes())),
                Picture::Png(picture) => (file("png"), write_picture(&file("png"), picture)),
            };
            written.map_err(Failure::failed)?;
            for finding in findings {
                print(&format!("  {finding}\n"))?;
            }
            print(&format!("  {}\n", path.display()))?;
        }
        if self.figures.is_empty() && self.checkpoint.is_none() {
            print(
                "figures 18 and 19 show a generator that was trained: name it with --checkpoint\n",
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The figures in their order, each once.
    fn chosen(&self) -> Result<Vec<Figure>, Failure> {
        let blind = self.checkpoint.is_none();
        if self.figures.is_empty() {
            let can = |figure: &Figure| !(blind && figure.shows_a_generator());
            return Ok(Figure::ALL.into_iter().filter(can).collect());
        }
        if let Some(figure) = self
            .figures
            .iter()
            .find(|one| blind && one.shows_a_generator())
        {
            return Err(Failure::wrong(format!(
                "{figure} shows a generator that was trained: name its checkpoint or run directory with --checkpoint"
            )));
        }
        let mut figures = self.figures.clone();
        figures.sort_unstable();
        figures.dedup();
        Ok(figures)
    }
}

/// A checkpoint's generator, with averaged weights if it has them.
fn trained(folder: &Path) -> Result<Trained, Failure> {
    let weights = Weights::open(folder, false)?;
    let model = &weights.manifest.model;
    let sampler =
        Sampler::new(model, &weights.tensors, tch::Device::Cpu).map_err(Failure::failed)?;
    let says = format!("step {}, {}", weights.manifest.step, weights.name());
    Ok(Trained::new(
        sampler,
        model.channels,
        model.image_size,
        says,
    ))
}
