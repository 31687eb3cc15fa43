//! `gan-worker bench`: training steps on one device, measured, without a coordinator.
//!
//! `measure` runs the steps, `ceilings` finds out what the device can do, `account` puts both
//! together. It trains like a worker that hosts every replica of its job, on noise unless it is told
//! to read the job's data; what it trains is thrown away.

mod account;
mod ceilings;
mod measure;

use super::cli;
use crate::collective::CollectiveError;
use crate::command::{Failure, print};
use crate::config::{self, ConfigError, Job, Override};
use crate::data::DataError;
use crate::plan::PlanError;
use crate::telemetry::logging::{self, LogFormat, LogTarget};
use crate::torch::{TorchError, device_description, peak_memory};
use crate::train::TrainError;
use account::Account;
use clap::Args;
use measure::Course;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tch::Device;

/// What it is measured on, and how long.
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// The job file (TOML) [default: DCGAN as in the paper, at 64×64].
    job: Option<PathBuf>,
    /// What to compute on: `cpu`, or `cuda:<index>`.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Replicas to compute side by side on a CPU [default: all cores].
    #[arg(long)]
    cores: Option<u32>,
    /// Measured steps.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Steps before those.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    warmup: u32,
    /// Replicas, all of them here [default: the job file's, or as many as a CPU has cores, or 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    replicas: Option<u32>,
    /// Read the job's data, instead of noise in memory.
    #[arg(long, requires = "job")]
    data: bool,
    /// Override a key of the job, as in `--set train.precision=bf16`. May be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Torch(#[from] TorchError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Config(_)
            | BenchError::Plan(_)
            | BenchError::Train(TrainError::Precision { .. }) => Failure::wrong(error),
            _ => Failure::failed(error),
        }
    }
}

impl Bench {
    pub(super) fn run(self, format: LogFormat) -> Result<ExitCode, Failure> {
        logging::init(format, &LogTarget::Stderr).map_err(Failure::failed)?;
        let device = cli::device(&self.device)?;
        let account = self.measure(device)?;
        print(&if self.json {
            let json = serde_json::to_string_pretty(&account).map_err(Failure::failed)?;
            format!("{json}\n")
        } else {
            account.to_string()
        })
    }

    fn measure(&self, device: Device) -> Result<Account, BenchError> {
        let cores = cli::cores(self.cores);
        let job = self.job(device, cores)?;
        let described = device_description(device)?;
        let lengths = [self.warmup, self.steps].map(|steps| steps as usize);
        let course = Course::run(&job, device, cores, self.data, lengths)?;
        // What follows needs memory of its own.
        let memory = peak_memory(device)?;
        let ceilings = ceilings::measure(device, &job.train, cores)?;
        Ok(Account::new(
            &job, &described, cores, &course, &ceilings, memory,
        ))
    }

    /// The job: of the file, or the default one, with what was asked for.
    fn job(&self, device: Device, cores: u32) -> Result<Job, BenchError> {
        let mut overrides: Vec<Override> = Vec::new();
        if let Some(replicas) = self.replicas {
            overrides.push(format!("train.replicas={replicas}").parse()?);
        }
        for text in &self.overrides {
            overrides.push(text.parse()?);
        }
        if let Some(path) = &self.job {
            return Ok(config::load(path, &overrides)?);
        }
        let (replicas, batch) = match device {
            Device::Cpu => (cores, 32),
            _ => (1, 128),
        };
        let text = format!(
            "job = {{ name = 'bench' }}\n\
             data = {{ uri = 'noise' }}\n\
             train = {{ replicas = {replicas}, batch = {batch}, steps = {} }}\n",
            u64::from(self.warmup) + u64::from(self.steps),
        );
        Ok(config::parse(
            &text,
            "the default job",
            Path::new("."),
            &overrides,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(overrides: &[&str]) -> Bench {
        Bench {
            job: None,
            device: "cpu".to_owned(),
            cores: Some(1),
            steps: 3,
            warmup: 1,
            replicas: Some(2),
            data: false,
            overrides: overrides.iter().map(|&text| text.to_owned()).collect(),
            json: false,
        }
    }

    /// Real steps of a tiny network: every figure is there and fits the others.
    #[test]
    fn a_bench_accounts_for_what_it_ran() {
        let small = [
            "model.image_size=32",
            "model.generator_width=4",
            "model.discriminator_width=4",
            "train.batch=2",
        ];
        let account = bench(&small).measure(Device::Cpu).unwrap();
        assert_eq!((account.replicas, account.batch, account.steps), (2, 2, 3));
        let by_clock = 4.0 * 3.0 / account.images_per_s;
        assert!(account.step.whole_s * 3.0 < by_clock * 3.0 && by_clock > 0.0);
        let phases = &account.step;
        let parts = phases.data_s + phases.compute_s + phases.reduce_s;
        assert!(parts <= phases.whole_s * 1.5, "{phases:?}");
        for share in [account.arithmetic.share, account.traffic.share] {
            assert!(share > 0.0 && share < 1.5, "{share}");
        }
        assert!(account.memory_bytes > 1 << 20);
        let table = account.to_string();
        for needle in ["images/s", "GFLOP/s", "GB/s", "2 replicas x 2"] {
            assert!(table.contains(needle), "{needle} in {table}");
        }
        let json = serde_json::to_value(&account).unwrap();
        assert_eq!(json["arithmetic"]["ceiling"], account.arithmetic.ceiling);
    }

    #[test]
    fn a_job_is_what_was_asked_for() {
        let mut asked = bench(&["train.update=simultaneous"]);
        let job = asked.job(Device::Cpu, 4).unwrap();
        assert_eq!((job.train.replicas, job.train.batch), (2, 32));
        assert_eq!(job.train.update, config::Update::Simultaneous);
        asked.replicas = None;
        assert_eq!(asked.job(Device::Cpu, 4).unwrap().train.replicas, 4);
        let gpu = asked.job(Device::Cuda(0), 4).unwrap().train;
        assert_eq!((gpu.replicas, gpu.batch), (1, 128));
        let refused = bench(&["train.bach=3"]).job(Device::Cpu, 1).unwrap_err();
        assert!(refused.to_string().contains("bach"), "{refused}");
    }
}
