//! Trains on one device: see `gan-worker --help`.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    ganglion::worker::cli::Cli::parse().run()
}
