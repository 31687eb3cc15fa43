//! `gan-coord`'s command line.

use super::local::Local;
use super::{Coordinator, CoordinatorError, Ending, Options, preview};
use crate::config::{self, ConfigError, Job, Override};
use crate::ids::Epoch;
use crate::membership::Outcome;
use crate::proto;
use crate::proto::coordinator_client::CoordinatorClient;
use crate::telemetry::catalog::Role;
use crate::telemetry::logging::{self, LogFormat, LogTarget};
use crate::telemetry::metrics;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tonic::transport::Channel;

/// The exit code of a wrong command, job file or data set (`EX_USAGE`): trying again won't help.
const WRONG: u8 = 64;
/// The exit code of everything else that fails.
const FAILED: u8 = 1;
/// For a coordinator to answer a person.
const ANSWER: Duration = Duration::from_secs(10);

/// Coordinates the exact, distributed training of a DCGAN.
#[derive(Debug, Parser)]
#[command(name = "gan-coord", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Form of the log lines.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train on this machine: a coordinator and N workers, with a progress bar.
    Run(Run),
    /// Coordinate workers that are started elsewhere (`gan-worker train`).
    Serve(Serve),
    /// Check the job file and the data, and print what would run.
    Check(JobArgs),
    /// Print who reads which samples in an epoch.
    Plan(PlanArgs),
    /// Ask a running coordinator what its job is doing.
    Status(StatusArgs),
    /// Finish the step, write a checkpoint, and end the job.
    Stop(Remote),
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct JobArgs {
    /// The job file (TOML).
    job: PathBuf,
    /// Override a key of the job file, as in `--set train.steps=100`. May be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
}

impl JobArgs {
    fn load(&self) -> Result<Job, ConfigError> {
        let overrides: Result<Vec<Override>, _> =
            self.overrides.iter().map(|text| text.parse()).collect();
        config::load(&self.job, &overrides?)
    }
}

#[derive(Debug, Args)]
struct RunDir {
    /// Folder for checkpoints, samples, metrics, logs and the ledger [default: runs/<job name>].
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// Go on from the run directory's newest checkpoint.
    #[arg(long)]
    resume: bool,
    /// Serve Prometheus metrics on this address.
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
}

impl RunDir {
    fn path(&self, job: &Job) -> PathBuf {
        let default = || PathBuf::from("runs").join(&job.job.name);
        self.run_dir.clone().unwrap_or_else(default)
    }
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    job: JobArgs,
    /// Worker processes to start.
    #[arg(long, default_value_t = 1)]
    workers: u32,
    /// What they compute on; with `cuda`, worker i takes GPU i.
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda"])]
    device: String,
    #[command(flatten)]
    place: RunDir,
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    job: JobArgs,
    /// Address for workers and people (gRPC).
    #[arg(long, default_value = "127.0.0.1:50051")]
    listen: SocketAddr,
    #[command(flatten)]
    place: RunDir,
}

#[derive(Debug, Args)]
struct PlanArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Which pass over the data, counted from 0.
    #[arg(long, default_value_t = 0)]
    epoch: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Remote {
    /// The coordinator's URL.
    #[arg(
        long,
        env = "GAN_COORDINATOR",
        default_value = "http://127.0.0.1:50051"
    )]
    coordinator: String,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    remote: Remote,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print again whenever something changes, until the job ends.
    #[arg(long)]
    watch: bool,
}

/// Why a command has failed, with its exit code.
struct Failure {
    code: u8,
    message: String,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self {
            code: WRONG,
            message: error.to_string(),
        }
    }
}

impl From<CoordinatorError> for Failure {
    fn from(error: CoordinatorError) -> Self {
        Self {
            code: if error.is_users() { WRONG } else { FAILED },
            message: error.to_string(),
        }
    }
}

fn failed(message: impl ToString) -> Failure {
    Failure {
        code: FAILED,
        message: message.to_string(),
    }
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Run(run) => run.run(self.log_format.into()),
            Command::Serve(serve) => serve.run(self.log_format.into()),
            Command::Check(args) => args
                .load()
                .map_err(Failure::from)
                .and_then(|job| print(&preview::check(&job)?)),
            Command::Plan(args) => args
                .job
                .load()
                .map_err(Failure::from)
                .and_then(|job| print(&preview::plan(&job, Epoch(args.epoch), args.json)?)),
            Command::Status(status) => on_runtime(status.run()),
            Command::Stop(remote) => on_runtime(stop(remote)),
            Command::Completions { shell } => {
                let mut out = std::io::stdout();
                clap_complete::generate(shell, &mut Cli::command(), "gan-coord", &mut out);
                Ok(ExitCode::SUCCESS)
            }
        };
        result.unwrap_or_else(|failure| {
            eprintln!("gan-coord: {}", failure.message);
            ExitCode::from(failure.code)
        })
    }
}

impl From<Format> for LogFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        }
    }
}

fn on_runtime(work: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| failed(format!("can't start the runtime: {error}")))?
        .block_on(work)
}

/// Resolves at Ctrl-C or SIGTERM; a second one ends the process at once.
async fn told_to_stop() -> Ending {
    let reason = crate::signals::termination().await;
    tokio::spawn(async {
        crate::signals::termination().await;
        eprintln!("gan-coord: told twice; ending at once");
        std::process::exit(130);
    });
    eprintln!(
        "\ngan-coord: {reason}: finishing the step, then a checkpoint (again to end at once)"
    );
    Ending::Stop(reason)
}

impl Run {
    fn run(self, format: LogFormat) -> Result<ExitCode, Failure> {
        let job = self.job.load()?;
        if self.workers == 0 || self.workers > job.train.replicas {
            return Err(Failure {
                code: WRONG,
                message: format!(
                    "--workers {}: expected 1 to train.replicas ({})",
                    self.workers, job.train.replicas
                ),
            });
        }
        let run_dir = self.place.path(&job);
        let local = Local {
            workers: self.workers,
            device: self.device,
            program: Local::worker_program()?,
        };
        std::fs::create_dir_all(&run_dir)
            .map_err(|error| failed(format!("{}: {error}", run_dir.display())))?;
        let log = LogTarget::File(run_dir.join("coordinator.log"));
        logging::init(format, &log).map_err(failed)?;
        let coordinator = Coordinator::open(Options {
            job,
            run_dir: run_dir.clone(),
            resume: self.place.resume,
            expected: self.workers,
        })?;
        let listen = self.place.metrics_listen;
        on_runtime(async move {
            install_metrics(listen)?;
            let outcome = coordinator.run_local(local, told_to_stop()).await?;
            report(&outcome, &run_dir)
        })
    }
}

impl Serve {
    fn run(self, format: LogFormat) -> Result<ExitCode, Failure> {
        let job = self.job.load()?;
        logging::init(format, &LogTarget::Stderr).map_err(failed)?;
        let run_dir = self.place.path(&job);
        let coordinator = Coordinator::open(Options {
            expected: job.workers.min,
            job,
            run_dir: run_dir.clone(),
            resume: self.place.resume,
        })?;
        on_runtime(async move {
            install_metrics(self.place.metrics_listen)?;
            let listener = tokio::net::TcpListener::bind(self.listen)
                .await
                .map_err(|error| failed(format!("can't listen on {}: {error}", self.listen)))?;
            let outcome = coordinator.serve(listener, told_to_stop()).await?;
            report(&outcome, &run_dir)
        })
    }
}

fn install_metrics(listen: Option<SocketAddr>) -> Result<(), Failure> {
    let Some(listen) = listen else {
        return Ok(());
    };
    let bound = metrics::install(listen, Role::Coordinator).map_err(failed)?;
    tracing::info!("metrics on http://{}/metrics", bound.address());
    Ok(())
}

/// Prints how the job ended and where its files are.
fn report(outcome: &Outcome, run_dir: &std::path::Path) -> Result<ExitCode, Failure> {
    let place = run_dir.display();
    match outcome {
        Outcome::Complete(step) => {
            println!("complete at step {step}");
            println!("  checkpoints  {place}/checkpoints");
            println!("  pictures     {place}/samples");
            println!("  metrics      {place}/metrics.jsonl");
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Stopped(step) => {
            println!("stopped at step {step}; --resume goes on from {place}/checkpoints");
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Failed(reason) => Err(failed(format!(
            "the job failed: {}\n  logs: {place}/*.log; --resume goes on from the newest checkpoint",
            reason.trim_end()
        ))),
    }
}

/// Prints; a reader that has gone is no error.
fn print(text: &str) -> Result<ExitCode, Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(failed(error)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

async fn client(remote: &Remote) -> Result<CoordinatorClient<Channel>, Failure> {
    let url = &remote.coordinator;
    let endpoint = tonic::transport::Endpoint::from_shared(url.clone()).map_err(|_| Failure {
        code: WRONG,
        message: format!("--coordinator {url}: expected a URL like http://127.0.0.1:50051"),
    })?;
    let channel = endpoint.connect_timeout(ANSWER).connect().await;
    let channel = channel.map_err(|_| {
        failed(format!(
            "no coordinator answers at {url}; is the job running, and the address right?"
        ))
    })?;
    Ok(CoordinatorClient::new(channel))
}

fn refused(url: &str, status: &tonic::Status) -> Failure {
    failed(format!(
        "the coordinator at {url} answered: {}",
        status.message()
    ))
}

impl StatusArgs {
    async fn run(self) -> Result<ExitCode, Failure> {
        let url = self.remote.coordinator.clone();
        let mut client = client(&self.remote).await?;
        let show = |status: &proto::JobStatus| {
            if self.json {
                println!("{}", super::status_json(status));
            } else {
                print!("{}", super::status_text(status));
            }
        };
        if self.watch {
            let request = proto::WatchRequest {
                interval_seconds: 1.0,
            };
            let stream = client.watch(request).await;
            let mut stream = stream
                .map_err(|status| refused(&url, &status))?
                .into_inner();
            while let Ok(Some(status)) = stream.message().await {
                show(&status);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut request = tonic::Request::new(proto::StatusRequest {});
        request.set_timeout(ANSWER);
        let status = client.status(request).await;
        show(
            &status
                .map_err(|status| refused(&url, &status))?
                .into_inner(),
        );
        Ok(ExitCode::SUCCESS)
    }
}

async fn stop(remote: Remote) -> Result<ExitCode, Failure> {
    let url = remote.coordinator.clone();
    let mut client = client(&remote).await?;
    let mut request = tonic::Request::new(proto::ControlRequest {
        order: Some(proto::control_request::Order::Stop(proto::StopJob {
            reason: "gan-coord stop".to_owned(),
        })),
    });
    request.set_timeout(ANSWER);
    let reply = client.control(request).await;
    let step = reply
        .map_err(|status| refused(&url, &status))?
        .into_inner()
        .step;
    println!("told at step {step}: the job finishes the step, writes a checkpoint, and ends");
    Ok(ExitCode::SUCCESS)
}
