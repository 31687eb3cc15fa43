//! `gan-worker`'s command line.

use super::bench::Bench;
use super::crew;
use super::devices::Devices;
use super::export::Export;
use super::figures::Figures;
use super::pictures::{Arithmetic, Film, Interpolate, NearestImages, Sample, Truncate};
use super::{Options, WorkerError};
use crate::checkpoint;
use crate::command::{self, Failure, print};
use crate::evaluate::cli::Evaluate;
use crate::locks::Part;
use crate::locks::cli::{self as locks, LockArgs};
use crate::session::Exit;
use crate::telemetry::catalog::Role;
use crate::telemetry::exporter;
use crate::telemetry::logging::{self, LogFormat, LogTarget};
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
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
    /// Draw what lies between images: a strip, and a film.
    Interpolate(Interpolate),
    /// Add latents up and take them away, as in "man with glasses - man + woman".
    Arithmetic(Arithmetic),
    /// Draw the same images closer to what all have in common, and farther from it.
    Truncate(Truncate),
    /// Draw images and the training images that lie nearest: whether any was learned by heart.
    Nearest(NearestImages),
    /// Make a film of a run's sample grids.
    Film(Film),
    /// Write a generator as safetensors, TorchScript or ONNX, for other programs.
    Export(Export),
    /// Print a checkpoint's manifest, after verifying it.
    Inspect(Inspect),
    /// Score a checkpoint's generator against the data: FID, KID, precision, recall, density,
    /// coverage, modes.
    Evaluate(Evaluate),
    /// Measure training steps on a device, without a coordinator: images/s, a step's phases, shares
    /// of what the device can do, memory.
    Bench(Bench),
    /// Draw the figures of Goodfellow's tutorial from runs: small ones, of minutes.
    Figures(Figures),
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
    /// What to compute on: `cpu`, `cuda:<index>`, or `cuda:all`, which starts a worker process for
    /// each GPU and looks after them.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Worker processes to start and look after, on a CPU [default: this one is the worker].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    processes: Option<u32>,
    /// With several processes: how long they may take to leave once they are told to go, because this
    /// one was or because one of them has failed. Then they are killed.
    #[arg(long, default_value = "110s", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Replicas to compute side by side on a CPU, of each process [default: all cores, shared].
    #[arg(long)]
    cores: Option<u32>,
    /// Serve Prometheus metrics, and a sign of life at /health, on this address; further processes
    /// take the ports that follow.
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    /// Host name or address by which peers reach this worker [default: the address that faces the
    /// coordinator].
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// How long the coordinator may be unreachable at the start.
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    join_deadline: Duration,
    /// Listen for other workers where anybody can reach it though there is neither TLS nor a token.
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    locks: LockArgs,
    /// Leave when this process, which has started this one, is no more.
    #[arg(long, value_name = "PID", hide = true)]
    parent: Option<u32>,
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
            WorkerError::Locks(_) | WorkerError::Device { .. } => Failure::wrong(error),
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
            Command::Interpolate(interpolate) => interpolate.run(),
            Command::Arithmetic(arithmetic) => arithmetic.run(),
            Command::Truncate(truncate) => truncate.run(),
            Command::Nearest(nearest) => nearest.run(),
            Command::Film(film) => film.run(),
            Command::Export(export) => export.run(),
            Command::Inspect(inspect) => inspect.run(),
            Command::Evaluate(evaluate) => {
                device(&evaluate.device).and_then(|device| evaluate.run(device, cores(None)))
            }
            Command::Bench(bench) => bench.run(format),
            Command::Figures(figures) => figures.run(),
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
        if let Some(processes) = self.crew()? {
            return self.look_after(processes, format);
        }
        if let Some(parent) = self.parent
            && !crew::go_with_parent(parent).map_err(Failure::failed)?
        {
            tracing::info!("process {parent}, which has started this one, is gone");
            return Ok(ExitCode::from(Exit::Left.code()));
        }
        let device = device(&self.device)?;
        let locks = self.locks.open(&[Part::Worker], None)?;
        let options = Options {
            coordinator: self.coordinator,
            device,
            cores: cores(self.cores),
            advertise: self.advertise,
            join: self.join_deadline,
            locks,
            insecure: self.insecure,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Failure::failed(format!("can't start the runtime: {error}")))?;
        let exit = runtime.block_on(async {
            if let Some(listen) = self.metrics_listen {
                let bound = exporter::install(listen, Role::Worker).map_err(Failure::failed)?;
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

    /// How many worker processes to look after; none if this process is the worker.
    fn crew(&self) -> Result<Option<u32>, Failure> {
        match (self.processes, self.device.as_str()) {
            (None, ALL_GPUS) => {
                // The command may be right and the machine not: another one may do.
                let refuse = |what: String| {
                    let device = ALL_GPUS.to_owned();
                    Failure::failed(WorkerError::Device { device, what })
                };
                let driver = crate::torch::Driver::open();
                let gpus = driver.and_then(|driver| driver.gpus());
                match gpus.map_err(|error| refuse(error.to_string()))?.len() as u32 {
                    0 => Err(refuse("the driver sees no GPU".to_owned())),
                    gpus => Ok(Some(gpus)),
                }
            }
            (processes, "cpu") => Ok(processes),
            (None, _) => Ok(None),
            (Some(_), device) => Err(Failure::wrong(format!(
                "--processes goes with --device cpu, not with {device}; {ALL_GPUS} starts one for each GPU"
            ))),
        }
    }

    /// Starts the processes and gives one exit code for them all.
    fn look_after(&self, processes: u32, format: LogFormat) -> Result<ExitCode, Failure> {
        let metrics = self.metrics_listen;
        let metrics = metrics.map(|listen| crew::metrics_addresses(listen, processes));
        let metrics = metrics.transpose().map_err(Failure::wrong)?;
        let share = self
            .cores
            .unwrap_or_else(|| (cores(None) / processes).max(1));
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let commands = (0..processes).map(|index| {
            let device = match self.device.as_str() {
                ALL_GPUS => format!("cuda:{index}"),
                device => device.to_owned(),
            };
            let mut command = std::process::Command::new(&program);
            command
                .args(["train", "--coordinator", &self.coordinator])
                .args(["--device", &device, "--cores", &share.to_string()])
                .args(["--parent", &std::process::id().to_string()]);
            let join = humantime::format_duration(self.join_deadline).to_string();
            command.args(["--join-deadline", &join]);
            if let Some(format) = clap::ValueEnum::to_possible_value(&format) {
                command.args(["--log-format", format.get_name()]);
            }
            command.args(self.locks.arguments());
            for variable in locks::VARIABLES {
                command.env_remove(variable);
            }
            if self.insecure {
                command.arg("--insecure");
            }
            if let Some(host) = &self.advertise {
                command.args(["--advertise", host]);
            }
            if let Some(addresses) = &metrics {
                let address = addresses[index as usize].to_string();
                command.args(["--metrics-listen", &address]);
            }
            command
        });
        // One thread: the processes go when the thread ends that started them.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::failed(format!("can't start the runtime: {error}")))?;
        let code = runtime.block_on(crew::run(commands.collect(), self.grace));
        Ok(ExitCode::from(code.map_err(Failure::failed)?))
    }
}

/// The name of all the GPUs that there are.
const ALL_GPUS: &str = "cuda:all";

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
