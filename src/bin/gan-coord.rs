//! Coordinates a job: see `gan-coord --help`.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    ganglion::coordinator::cli::Cli::parse().run()
}
