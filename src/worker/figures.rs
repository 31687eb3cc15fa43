//! `gan-worker figures`: the tutorial's figures, from runs.

use crate::command::{Failure, print};
use crate::figures::{Drawing, Figure, Study};
use clap::Args;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Draws the tutorial's figures from runs of its own.
#[derive(Debug, Args)]
pub(super) struct Figures {
    /// The folder to write to; it is created if it isn't there.
    #[arg(long, value_name = "DIR", default_value = "figures")]
    out: PathBuf,
    /// Draw this figure alone; may be given several times [default: all].
    #[arg(long = "figure", value_name = "N", value_parser = figure)]
    figures: Vec<Figure>,
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
        format!("expected one of the tutorial's figures {}", known.join(", "))
    })
}

impl Figures {
    /// Runs the command.
    pub(super) fn run(mut self) -> Result<ExitCode, Failure> {
        if self.figures.is_empty() {
            self.figures = Figure::ALL.to_vec();
        }
        self.figures.sort_unstable();
        self.figures.dedup();
        // Before minutes of work rather than after.
        fs::create_dir_all(&self.out).map_err(|error| {
            Failure::wrong(format!("{}: can't create it: {error}", self.out.display()))
        })?;
        crate::torch::set_threads(1); // The same bytes on any machine of a kind.
        let study = Study {
            seed: self.seed,
            brief: self.brief,
        };
        for figure in &self.figures {
            print(&format!("{figure}: {}\n", figure.subject()))?;
            let Drawing { svg, findings } = figure
                .draw(&study)
                .map_err(|error| Failure::failed(format!("{figure}: {error}")))?;
            let path = self.out.join(format!("figure-{}.svg", figure.number()));
            write(&path, svg.as_bytes()).map_err(|error| {
                Failure::failed(format!("{}: can't write it: {error}", path.display()))
            })?;
            for finding in findings {
                print(&format!("  {finding}\n"))?;
            }
            print(&format!("  {}\n", path.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A reader sees the whole file or the one that was there before.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written
}
