//! `gan-worker`'s command line.

use super::bench::Bench;
use super::devices::Devices;
use super::{Options, WorkerError, drawing};
use crate::checkpoint;
use crate::command::{self, Failure, print};
use crate::ids::Step;
use crate::sample;
use crate::session::Exit;
use crate::telemetry::catalog::Role;
use crate::telemetry::logging::{self, LogFormat, LogTarget};
use crate::telemetry::metrics;
use crate::train::Sampler;
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Trains a DCGAN's replicas on one device, and looks at what was trained.
#[derive(Debug, Parser)]
#[command(name = "gan-worker", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Form of the log lines.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take part in a job until it is over.
    Train(Train),
    /// List what there is to compute on and to communicate with, and why something is missing.
    Devices {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Draw a grid of images from a checkpoint's generator.
    Sample(Sample),
    /// Print a checkpoint's manifest, after verifying it.
    Inspect(Inspect),
    /// Measure training steps on a device, without a coordinator: images/s, a step's phases, shares
    /// of what the device can do, memory.
    Bench(Bench),
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct Train {
    /// The coordinator's URL.
    #[arg(
        long,
        env = "GAN_COORDINATOR",
        default_value = "http://127.0.0.1:50051"
    )]
    coordinator: String,
    /// What to compute on: `cpu`, or `cuda:<index>`.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Replicas to compute side by side on a CPU [default: all cores].
    #[arg(long)]
    cores: Option<u32>,
    /// Serve Prometheus metrics on this address.
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    /// Host name or address by which peers reach this worker [default: the address that faces the
    /// coordinator].
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// How long the coordinator may be unreachable at the start.
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    join_deadline: Duration,
}

#[derive(Debug, Args)]
struct Sample {
    /// The checkpoint's folder, as in runs/mnist/checkpoints/step-00000500.
    checkpoint: PathBuf,
    /// The picture (PNG) to write.
    #[arg(long)]
    out: PathBuf,
    /// How many images.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    count: u32,
    /// Seed of the latents.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Use the generator's newest weights even if the checkpoint has averaged ones (EMA).
    #[arg(long)]
    no_ema: bool,
    /// Images of this label alone, by a generator that is told of labels [default: a row of each].
    #[arg(long, value_name = "LABEL")]
    class: Option<u32>,
    /// The checkpoint of a coarser level, whose images this one refines; the coarsest first.
    #[arg(long, value_name = "CHECKPOINT")]
    coarser: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct Inspect {
    /// The checkpoint's folder.
    checkpoint: PathBuf,
    /// Print just the SHA-256 of the training state.
    #[arg(long)]
    digest: bool,
}

impl From<WorkerError> for Failure {
    fn from(error: WorkerError) -> Self {
        match error {
            WorkerError::Listen(_) => Failure::failed(error),
            WorkerError::Url(_) | WorkerError::Device { .. } => Failure::wrong(error),
        }
    }
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        crate::torch::keep_memory();
        let format = self.log_format;
        let result = match self.command {
            Command::Train(train) => train.run(format),
            Command::Devices { json } => devices(json),
            Command::Sample(sample) => sample.run(),
            Command::Inspect(inspect) => inspect.run(),
            Command::Bench(bench) => bench.run(format),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "gan-worker", &mut script);
                print(&String::from_utf8_lossy(&script))
            }
        };
        command::end("gan-worker", result)
    }
}

impl Train {
    fn run(self, format: LogFormat) -> Result<ExitCode, Failure> {
        logging::init(format, &LogTarget::Stderr).map_err(Failure::failed)?;
        let device = device(&self.device)?;
        let options = Options {
            coordinator: self.coordinator,
            device,
            cores: cores(self.cores),
            advertise: self.advertise,
            join: self.join_deadline,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Failure::failed(format!("can't start the runtime: {error}")))?;
        let exit = runtime.block_on(async {
            if let Some(listen) = self.metrics_listen {
                let bound = metrics::install(listen, Role::Worker).map_err(Failure::failed)?;
                tracing::info!("metrics on http://{}/metrics", bound.address());
            }
            Ok::<_, Failure>(super::run(options).await?)
        })?;
        // A data set that is still being opened must not keep the process.
        runtime.shutdown_timeout(Duration::from_secs(1));
        match &exit {
            Exit::Done => tracing::info!("done"),
            Exit::Left => tracing::info!("left in good order"),
            Exit::Unfit(reason) | Exit::Failed(reason) => eprintln!("gan-worker: {reason}"),
        }
        Ok(ExitCode::from(exit.code()))
    }
}

/// The cores that a person named, or all that there are.
pub(super) fn cores(named: Option<u32>) -> u32 {
    let all = || std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    named.unwrap_or_else(all).max(1)
}

fn devices(json: bool) -> Result<ExitCode, Failure> {
    let devices = Devices::found();
    if !json {
        return print(&devices.to_string());
    }
    let devices = serde_json::to_string_pretty(&devices).map_err(Failure::failed)?;
    print(&format!("{devices}\n"))
}

/// The device that a person named, if it is there.
pub(super) fn device(name: &str) -> Result<tch::Device, Failure> {
    let refuse = |what: String| {
        let device = name.to_owned();
        Failure::from(WorkerError::Device { device, what })
    };
    if name == "cpu" {
        return Ok(tch::Device::Cpu);
    }
    let index = match name.strip_prefix("cuda") {
        Some("") => Some(0),
        Some(rest) => rest.strip_prefix(':').and_then(|index| index.parse().ok()),
        None => None,
    };
    let Some(index) = index else {
        return Err(refuse(
            "expected cpu or cuda:<index>, as in cuda:0".to_owned(),
        ));
    };
    determined_cublas().map_err(|error| refuse(error.to_string()))?;
    crate::torch::load_cuda();
    let count = tch::Cuda::device_count();
    if !tch::Cuda::is_available() || (index as i64) >= count {
        return Err(refuse(format!(
            "libtorch sees {count} GPUs; is the driver there, and was libtorch set up with GAN_CUDA=1?"
        )));
    }
    Ok(tch::Device::Cuda(index))
}

/// cuBLAS gives the same bits from run to run only if its workspace is told in the environment when
/// the process starts; if it isn't, the process starts itself again with it.
fn determined_cublas() -> std::io::Result<()> {
    const NAME: &str = "CUBLAS_WORKSPACE_CONFIG";
    if std::env::var_os(NAME).is_some() {
        return Ok(());
    }
    let again = std::process::Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(NAME, ":4096:8")
        .exec();
    Err(again) // `exec` returns only if it fails.
}

impl Sample {
    fn run(self) -> Result<ExitCode, Failure> {
        crate::torch::set_threads(1); // The same picture on any machine of a kind.
        let mut levels = Vec::new();
        for checkpoint in &self.coarser {
            levels.push(self.level(checkpoint)?.0);
        }
        let (finest, step, averaged) = self.level(&self.checkpoint)?;
        drawing::check_class(&finest, self.class)?;
        let columns = (1..).find(|c| c * c >= self.count).unwrap_or(1);
        let labels = drawing::labels(&finest, self.class, self.count, columns);
        levels.push(finest);
        let images = drawing::draw(levels, self.seed, &labels).map_err(Failure::failed)?;
        sample::write_png(&self.out, &images, columns).map_err(Failure::failed)?;
        let weights = if averaged {
            "averaged weights"
        } else {
            "newest weights"
        };
        print(&format!(
            "{}: {} images of step {step}, {weights}, seed {}\n",
            self.out.display(),
            self.count,
            self.seed
        ))
    }

    /// A checkpoint's generator, its step, and whether its weights are averaged.
    fn level(&self, folder: &Path) -> Result<(Sampler, Step, bool), Failure> {
        let manifest = checkpoint::read_manifest(folder).map_err(Failure::failed)?;
        let averaged = manifest.ema && !self.no_ema;
        let file = if averaged {
            "generator_ema"
        } else {
            "generator"
        };
        let (manifest, tensors) = checkpoint::read_file(folder, file).map_err(Failure::failed)?;
        let sampler =
            Sampler::new(&manifest.model, &tensors, tch::Device::Cpu).map_err(Failure::failed)?;
        Ok((sampler, manifest.step, averaged))
    }
}

impl Inspect {
    fn run(self) -> Result<ExitCode, Failure> {
        let (manifest, snapshot) = checkpoint::read(&self.checkpoint).map_err(Failure::failed)?;
        if self.digest {
            return print(&format!("{}\n", checkpoint::digest(&snapshot)));
        }
        let manifest = serde_json::to_string_pretty(&manifest).map_err(Failure::failed)?;
        print(&format!("{manifest}\n"))
    }
}
