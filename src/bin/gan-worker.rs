//! Trains on one device: see `gan-worker --help`.

use clap::Parser;
use ganglion::worker::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    Cli::try_parse().map_or_else(ganglion::command::usage, Cli::run)
}
