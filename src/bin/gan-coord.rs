//! Coordinates a job: see `gan-coord --help`.

use clap::Parser;
use ganglion::coordinator::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    Cli::try_parse().map_or_else(ganglion::command::usage, Cli::run)
}
