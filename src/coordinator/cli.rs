//! `gan-coord`'s command line.

use super::ledger::{EpochReport, History, LedgerError, LedgerReader};
use super::local::Local;
use super::page::{self, View};
use super::verify::Verify;
use super::{Coordinator, CoordinatorError, Ending, Options, Served, preview};
use crate::checkpoint::Store;
use crate::command::{self, Failure, print};
use crate::config::{self, ConfigError, Job, Override};
use crate::ids::Epoch;
use crate::locks::cli::LockArgs;
use crate::locks::{self, Locks, Part, certs::CertsArgs};
use crate::membership::Outcome;
use crate::proto;
use crate::proto::coordinator_client::CoordinatorClient;
use crate::signals::{self, Signal};
use crate::telemetry::logging::{self, LogFormat, LogTarget};
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tonic::transport::Channel;

/// The exit code of a job that is to go on later: told to go (`EX_TEMPFAIL`).
const DRAINED: u8 = 75;
/// The exit code of a job that its guard has stopped: to try it again won't help.
const HALTED: u8 = 76;
/// For a coordinator to answer a person.
const ANSWER: Duration = Duration::from_secs(10);

/// Coordinates the exact, distributed training of a DCGAN.
#[derive(Debug, Parser)]
#[command(name = "gan-coord", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Form of the log lines.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
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
    /// Serve a page to look at a run directory, of a job that runs or has ended.
    View(View),
    /// Print a job's history, or who read which samples in an epoch: also while it runs.
    Ledger(LedgerArgs),
    /// Compute a complete job again, and compare each checkpoint with its certificate.
    Verify(Verify),
    /// Make keys and certificates to try TLS with: a CA, and what it signs for each part in a job.
    Certs(CertsArgs),
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
    /// Serve Prometheus metrics, at /metrics, and a page to look at, at /, on this address.
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
}

impl RunDir {
    /// What may not be as it was meant: a mistyped `--run-dir` should not cost a run, and images
    /// that are left out should not go unnoticed.
    fn tell(&self, coordinator: &Coordinator, run_dir: &Path) {
        if coordinator.ignored() > 0 {
            eprintln!("{}", preview::ignored(coordinator.ignored()));
        }
        let (from, place) = (coordinator.start(), run_dir.display());
        match coordinator.expected_back() {
            0 if from.0 > 0 => eprintln!("going on from step {from} in {place}"),
            0 if coordinator.is_resumed() => {
                eprintln!("there is no checkpoint in {place}; beginning at step 0");
            }
            0 => {}
            workers => eprintln!(
                "the job in {place} had {workers} workers: going on with those that come back, \
                 or from step {from}"
            ),
        }
    }

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
    /// Go on from the run directory's newest checkpoint.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    place: RunDir,
    #[command(flatten)]
    locks: LockArgs,
}

/// A run directory that holds this job already is gone on with: its workers may still be training.
#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    job: JobArgs,
    /// Address for workers and people (gRPC).
    #[arg(long, default_value = "127.0.0.1:50051")]
    listen: SocketAddr,
    /// Listen where others can reach it though there is neither TLS nor a token.
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    place: RunDir,
    #[command(flatten)]
    locks: LockArgs,
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
    #[command(flatten)]
    locks: LockArgs,
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

#[derive(Debug, Args)]
struct LedgerArgs {
    /// The job's run directory.
    run_dir: PathBuf,
    /// Print who read which samples in this pass over the data, counted from 0, and check that each
    /// was used exactly once: exit code 1 if one was not.
    #[arg(long)]
    epoch: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl LedgerArgs {
    fn run(&self) -> Result<ExitCode, Failure> {
        let ledger = LedgerReader::open(&self.run_dir)?;
        let Some(epoch) = self.epoch else {
            let history = History::read(&ledger, &self.run_dir)?;
            return print(&if self.json {
                format!("{}\n", history.json())
            } else {
                history.text()
            });
        };
        let report = EpochReport::read(&ledger, Epoch(epoch))?;
        print(&if self.json {
            format!("{}\n", report.json())
        } else {
            report.text()
        })?;
        Ok(if report.is_right() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        if error.is_users() {
            Self::wrong(error)
        } else {
            Self::failed(error)
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::wrong(error)
    }
}

impl From<CoordinatorError> for Failure {
    fn from(error: CoordinatorError) -> Self {
        if error.is_users() {
            Self::wrong(error)
        } else {
            Self::failed(error)
        }
    }
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Run(run) => run.run(self.log_format),
            Command::Serve(serve) => serve.run(self.log_format),
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
            Command::View(view) => on_runtime(view.run()),
            Command::Ledger(ledger) => ledger.run(),
            Command::Verify(verify) => verify.run(self.log_format),
            Command::Certs(certs) => certs.run(),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "gan-coord", &mut script);
                print(&String::from_utf8_lossy(&script))
            }
        };
        command::end("gan-coord", result)
    }
}

pub(super) fn on_runtime(
    work: impl Future<Output = Result<ExitCode, Failure>>,
) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("can't start the runtime: {error}")))?;
    let result = runtime.block_on(work);
    // Data that is still being packed must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// As [`told_to_stop`]; but SIGTERM moves the coordinator, not the job: whoever sent it will start
/// another one.
async fn told_to_go() -> Ending {
    match signals::termination(1).await {
        Signal::Terminate => {
            say("SIGTERM: leaving; the workers train on");
            Ending::Leave
        }
        signal => stopping(signal),
    }
}

/// Resolves at Ctrl-C, SIGTERM, or when the terminal is gone.
pub(super) async fn told_to_stop() -> Ending {
    stopping(signals::termination(1).await)
}

fn stopping(signal: Signal) -> Ending {
    say(&format!(
        "{signal}: finishing the step, then a checkpoint (again to end at once)"
    ));
    match signal {
        Signal::Terminate => Ending::Drain(signal.to_string()),
        Signal::Interrupt | Signal::HangUp => Ending::Stop(signal.to_string()),
    }
}

/// A terminal that is gone can't be told.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "\ngan-coord: {what}");
}

impl Run {
    fn run(self, format: LogFormat) -> Result<ExitCode, Failure> {
        let job = self.job.load()?;
        if self.workers == 0 || self.workers > job.max_workers() {
            return Err(Failure::wrong(format!(
                "--workers {}: expected 1 to {}, the least of train.replicas ({}) and \
                     workers.max ({}, where 0 sets no bound)",
                self.workers,
                job.max_workers(),
                job.train.replicas,
                job.workers.max
            )));
        }
        let run_dir = self.place.path(&job);
        let locks = self.locks.open(&[Part::Coordinator], Some(&job.job.name))?;
        // The workers have the same certificate.
        self.locks.open(&[Part::Worker], Some(&job.job.name))?;
        let local = Local {
            workers: self.workers,
            device: self.device,
            program: Local::worker_program()?,
            locks: self.locks,
        };
        std::fs::create_dir_all(&run_dir).map_err(|error| {
            Failure::wrong(format!(
                "--run-dir {}: can't make it: {error}",
                run_dir.display()
            ))
        })?;
        let log = LogTarget::File(run_dir.join("coordinator.log"));
        logging::init(format, &log).map_err(Failure::failed)?;
        let coordinator = Coordinator::open(Options {
            job,
            run_dir: run_dir.clone(),
            resume: self.resume,
            expected: self.workers,
            locks,
        })?;
        self.place.tell(&coordinator, &run_dir);
        on_runtime(async move {
            let page = page::of(&coordinator, self.place.metrics_listen).await?;
            if let Some(page) = &page {
                eprintln!("page: http://{}/", page.address());
            }
            let outcome = tokio::select! {
                outcome = coordinator.run_local(local, told_to_stop()) => outcome?,
                // The workers are killed when they are dropped.
                signal = signals::termination(2) => told_twice(signal),
            };
            page::finish(page).await;
            report(&outcome, &run_dir)
        })
    }
}

impl Serve {
    fn run(self, format: LogFormat) -> Result<ExitCode, Failure> {
        let job = self.job.load()?;
        logging::init(format, &LogTarget::Stderr).map_err(Failure::failed)?;
        let locks = self.locks.open(&[Part::Coordinator], Some(&job.job.name))?;
        locks.check_listening(self.listen.ip(), "for workers and people", self.insecure)?;
        let run_dir = self.place.path(&job);
        on_runtime(async move {
            let options = Options {
                expected: job.workers.min,
                job,
                run_dir: run_dir.clone(),
                resume: true,
                locks,
            };
            // Packing the data may take long. A container's first process would not even hear that
            // it is to go, if it didn't listen.
            let opening = tokio::task::spawn_blocking(|| Coordinator::open(options));
            let coordinator = tokio::select! {
                opened = opening => opened.map_err(Failure::failed)??,
                signal = signals::termination(1) => {
                    say(&format!("{signal}: leaving before the job was opened"));
                    return Ok(ExitCode::from(DRAINED));
                }
            };
            self.place.tell(&coordinator, &run_dir);
            let page = page::of(&coordinator, self.place.metrics_listen).await?;
            let listener = tokio::net::TcpListener::bind(self.listen)
                .await
                .map_err(|error| {
                    Failure::failed(format!("can't listen on {}: {error}", self.listen))
                })?;
            let served = tokio::select! {
                served = coordinator.serve(listener, told_to_go()) => served?,
                signal = signals::termination(2) => Served::Over(told_twice(signal)),
            };
            page::finish(page).await;
            match served {
                Served::Over(outcome) => report(&outcome, &run_dir),
                Served::Left(step) => {
                    print(&format!(
                        "left at step {step}; the workers train on and wait for a coordinator: \
                         start gan-coord serve again on {}\n",
                        run_dir.display()
                    ))?;
                    Ok(ExitCode::from(DRAINED))
                }
            }
        })
    }
}

pub(super) fn told_twice(signal: Signal) -> Outcome {
    Outcome::Failed(format!("{signal} again: ended at once"))
}

/// Prints how the job ended and where its files are.
fn report(outcome: &Outcome, run_dir: &Path) -> Result<ExitCode, Failure> {
    let place = run_dir.display();
    match outcome {
        Outcome::Complete(step) => print(&format!(
            "complete at step {step}\n  checkpoints  {place}/checkpoints\n  \
             pictures     {place}/samples\n  metrics      {place}/metrics.jsonl\n  \
             certificate  {place}/result.json\n"
        )),
        Outcome::Stopped(step) => print(&format!(
            "stopped at step {step}; --resume goes on from {place}/checkpoints\n"
        )),
        Outcome::Drained(step) => {
            print(&format!(
                "drained at step {step}; --resume goes on from {place}/checkpoints\n"
            ))?;
            Ok(ExitCode::from(DRAINED))
        }
        Outcome::Halted(step, halt) => {
            let checkpoints = Store::new(run_dir.join("checkpoints"))
                .list()
                .map_err(Failure::failed)?;
            let sound = checkpoints.iter().rfind(|(step, _)| *step <= halt.sound);
            let sound = match sound {
                Some((_, path)) => path.display().to_string(),
                None => "none of those that are kept (checkpoint.keep_last, checkpoint.keep_every)"
                    .to_owned(),
            };
            print(&format!(
                "stopped by its guard at step {step}: {}\n  last good checkpoint  {sound}\n  \
                 checkpoints           {place}/checkpoints\n  \
                 metrics               {place}/metrics.jsonl\n\
                 It can't be resumed: start another one, with other settings, in a new run directory\n",
                halt.reason
            ))?;
            Ok(ExitCode::from(HALTED))
        }
        Outcome::Failed(reason) => Err(Failure::failed(format!(
            "the job failed: {}\n  logs: {place}/*.log; --resume goes on from the newest checkpoint",
            reason.trim_end()
        ))),
    }
}

async fn client(remote: &Remote) -> Result<(CoordinatorClient<Channel>, Locks), Failure> {
    let url = &remote.coordinator;
    let locks = remote
        .locks
        .open(&[Part::Operator, Part::Coordinator], None)?;
    // A host that has vanished is noticed.
    let endpoint = locks
        .endpoint(url)?
        .http2_keep_alive_interval(ANSWER)
        .keep_alive_timeout(ANSWER)
        .keep_alive_while_idle(true);
    let channel = locks::dial(endpoint, &locks, ANSWER).await;
    let channel = channel.map_err(|error| {
        let why = command::innermost(&error);
        Failure::failed(format!(
            "no coordinator answers at {url} ({why}); is the job running, and the address right?"
        ))
    })?;
    Ok((CoordinatorClient::new(channel), locks))
}

fn signed<T>(locks: &Locks, request: T) -> Result<tonic::Request<T>, Failure> {
    let signed = locks.sign(request);
    signed.map_err(|status| Failure::wrong(status.message()))
}

fn refused(url: &str, status: &tonic::Status) -> Failure {
    Failure::failed(format!(
        "the coordinator at {url} answered: {}",
        status.message()
    ))
}

impl StatusArgs {
    async fn run(self) -> Result<ExitCode, Failure> {
        let url = self.remote.coordinator.clone();
        let (mut client, locks) = client(&self.remote).await?;
        let show = |status: &proto::JobStatus| {
            if self.json {
                print(&format!("{}\n", super::status_json(status)))
            } else {
                print(&super::status_text(status))
            }
        };
        if self.watch {
            let request = proto::WatchRequest {
                interval_seconds: 1.0,
            };
            let stream = client.watch(signed(&locks, request)?).await;
            let mut stream = stream
                .map_err(|status| refused(&url, &status))?
                .into_inner();
            let mut phase = String::new();
            loop {
                match stream.message().await {
                    Ok(Some(status)) => {
                        phase.clone_from(&status.phase);
                        show(&status)?;
                    }
                    Ok(None) if phase == "ended" => return Ok(ExitCode::SUCCESS),
                    _ => return Err(Failure::failed(format!("the coordinator at {url} is gone"))),
                }
            }
        }
        let mut request = signed(&locks, proto::StatusRequest {})?;
        request.set_timeout(ANSWER);
        let status = client.status(request).await;
        show(
            &status
                .map_err(|status| refused(&url, &status))?
                .into_inner(),
        )
    }
}

async fn stop(remote: Remote) -> Result<ExitCode, Failure> {
    let url = remote.coordinator.clone();
    let (mut client, locks) = client(&remote).await?;
    let order = proto::control_request::Order::Stop(proto::StopJob {
        reason: "gan-coord stop".to_owned(),
    });
    let mut request = signed(&locks, proto::ControlRequest { order: Some(order) })?;
    request.set_timeout(ANSWER);
    let reply = client.control(request).await;
    let step = reply
        .map_err(|status| refused(&url, &status))?
        .into_inner()
        .step;
    print(&format!(
        "told at step {step}: the job finishes the step, writes a checkpoint, and ends\n"
    ))
}
