//! A job on this machine: the coordinator, and its workers as child processes.
//!
//! They talk over gRPC and TCP as they would across a cluster; only the launching is done here.

use super::status::Progress;
use super::{Coordinator, CoordinatorError, Ending, Served};
use crate::locks::cli::{self, LockArgs};
use crate::membership::{Outcome, Phase};
use crate::telemetry::progress::{self, ProgressView};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, watch};

/// The port that the commands look for.
const DEFAULT_ADDRESS: &str = "127.0.0.1:50051";
/// For the coordinator to notice by itself that a worker ended, before the job is given up.
const NOTICE: Duration = Duration::from_secs(5);
/// For workers to end once the job is over.
const FAREWELL: Duration = Duration::from_secs(15);
/// A worker's exit code when it was told to go.
const LEFT: i32 = 75;
/// What is waited for is told after this time.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the terminal is refreshed.
const REFRESH: Duration = Duration::from_millis(100);

/// How the workers are launched.
#[derive(Clone, Debug)]
pub(super) struct Local {
    /// How many.
    pub(super) workers: u32,
    /// `cpu` or `cuda`; on `cuda`, worker i takes GPU i.
    pub(super) device: String,
    /// The program.
    pub(super) program: PathBuf,
    /// Keys and tokens, which they are given too.
    pub(super) locks: LockArgs,
}

impl Local {
    /// gan-worker lies beside gan-coord, unless `GAN_WORKER` names it.
    pub(super) fn worker_program() -> Result<PathBuf, CoordinatorError> {
        let io = |source| CoordinatorError::Io {
            what: "can't find gan-worker beside this program".to_owned(),
            source,
        };
        let program = match std::env::var_os("GAN_WORKER") {
            Some(path) => PathBuf::from(path),
            None => std::env::current_exe()
                .map_err(io)?
                .with_file_name("gan-worker"),
        };
        if program.is_file() {
            return Ok(program);
        }
        Err(CoordinatorError::Io {
            what: format!(
                "can't find the worker's program {}; build it (cargo build) or name it in GAN_WORKER",
                program.display()
            ),
            source: std::io::ErrorKind::NotFound.into(),
        })
    }

    fn spawn(&self, url: &str, run_dir: &Path) -> Result<Vec<Worker>, CoordinatorError> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let share = (cores / self.workers).max(1);
        (0..self.workers)
            .map(|index| {
                let log = run_dir.join(format!("worker-{index}.log"));
                let io = |source| CoordinatorError::Io {
                    what: format!("can't start worker {index} ({})", self.program.display()),
                    source,
                };
                let file = OpenOptions::new().create(true).append(true).open(&log);
                let file = file.map_err(io)?;
                let device = match self.device.as_str() {
                    "cuda" => format!("cuda:{index}"),
                    other => other.to_owned(),
                };
                let mut command = Command::new(&self.program);
                command
                    .arg("train")
                    .args(["--coordinator", url])
                    .args(["--device", &device])
                    .args(["--cores", &share.to_string()])
                    .args(["--advertise", "127.0.0.1"])
                    .args(self.locks.arguments())
                    .stdin(Stdio::null())
                    .stdout(file.try_clone().map_err(io)?)
                    .stderr(file)
                    // Ctrl-C is for the coordinator, which ends the workers in good order.
                    .process_group(0)
                    .kill_on_drop(true);
                for variable in cli::VARIABLES {
                    command.env_remove(variable);
                }
                let child = command.spawn().map_err(io)?;
                Ok(Worker { index, log, child })
            })
            .collect()
    }
}

struct Worker {
    index: u32,
    log: PathBuf,
    child: Child,
}

impl Coordinator {
    /// Serves the job to workers on this machine, and shows its progress in the terminal.
    pub(super) async fn run_local(
        self,
        local: Local,
        stop: impl Future<Output = Ending> + Send + 'static,
    ) -> Result<Outcome, CoordinatorError> {
        let io = |source| CoordinatorError::Io {
            what: "can't listen on 127.0.0.1".to_owned(),
            source,
        };
        if let Some(outcome) = self.over()? {
            return Ok(outcome);
        }
        let scheme = match self.options.locks.keys {
            Some(_) => "https",
            None => "http",
        };
        // Where `status` and `stop` look, unless another job is there already.
        let listener = match TcpListener::bind(DEFAULT_ADDRESS).await {
            Ok(listener) => listener,
            Err(_) => {
                let listener = TcpListener::bind("127.0.0.1:0").await.map_err(io)?;
                let address = listener.local_addr().map_err(io)?;
                eprintln!("status and stop need --coordinator {scheme}://{address}");
                listener
            }
        };
        let url = format!("{scheme}://{}", listener.local_addr().map_err(io)?);
        let workers = local.spawn(&url, &self.options.run_dir)?;
        let workers = Arc::new(Mutex::new(workers));
        let progress = self.shown.subscribe();
        let bar = progress::Progress::new(self.total_steps(), self.start());
        let show = tokio::spawn(show(bar, progress));
        let watched = Arc::clone(&workers);
        let needed = self.options.job.workers.min.min(local.workers) as usize;
        let ending = async move {
            tokio::select! {
                ending = stop => ending,
                ending = too_few(&watched, needed) => ending,
            }
        };
        let served = self.serve_shown(listener, ending).await;
        let _ = show.await;
        reap(&mut workers.lock().await).await;
        Ok(match served? {
            Served::Over(outcome) => outcome,
            Served::Left(step) => Outcome::Drained(step),
        })
    }
}

/// Ends when fewer workers are left than the job needs, for no others will come, and the
/// coordinator has had time to say it better. As long as there are enough, the job goes on.
async fn too_few(workers: &Mutex<Vec<Worker>>, needed: usize) -> Ending {
    let mut gone: Vec<u32> = Vec::new();
    loop {
        let mut workers = workers.lock().await;
        let launched = workers.len();
        for worker in workers.iter_mut() {
            let Ok(Some(status)) = worker.child.try_wait() else {
                continue;
            };
            if status.success() || gone.contains(&worker.index) {
                continue;
            }
            gone.push(worker.index);
            let left = launched - gone.len();
            // It was told to go, and the coordinator knows.
            let told = status.code() == Some(LEFT);
            if left >= needed {
                let name = worker.index;
                eprintln!("worker {name} ended ({status}); {left} go on");
                continue;
            }
            let account = format!(
                "worker {} ended ({status}); the end of {}:\n{}",
                worker.index,
                worker.log.display(),
                last_lines(&worker.log, 8)
            );
            drop(workers);
            tokio::time::sleep(NOTICE).await;
            return if told {
                Ending::Drain(account)
            } else {
                Ending::Fail(account)
            };
        }
        drop(workers);
        tokio::time::sleep(REFRESH).await;
    }
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(count)..];
    tail.iter().map(|line| format!("  {line}\n")).collect()
}

/// Waits for the workers to end; kills those that don't.
async fn reap(workers: &mut [Worker]) {
    let all = async {
        for worker in workers.iter_mut() {
            let _ = worker.child.wait().await;
        }
    };
    if tokio::time::timeout(FAREWELL, all).await.is_ok() {
        return;
    }
    for worker in workers {
        if let Ok(None) = worker.child.try_wait() {
            tracing::warn!("worker {} does not end and is killed", worker.index);
            let _ = worker.child.kill().await;
        }
    }
}

/// Shows the progress until the job is over.
#[expect(
    clippy::disallowed_methods,
    reason = "the terminal is refreshed in real time"
)]
async fn show(mut bar: progress::Progress, mut progress: watch::Receiver<Progress>) {
    let began = Instant::now();
    let mut told = String::new();
    loop {
        let last = {
            let now = progress.borrow_and_update();
            let waits = matches!(
                now.phase,
                Phase::Gathering | Phase::Recovering | Phase::Forming
            );
            if waits && began.elapsed() > PATIENCE && told != now.detail {
                told.clone_from(&now.detail);
                bar.note(&told);
            }
            if let Some(newest) = now.newest {
                let view = ProgressView {
                    step: now.step,
                    images_per_second: now.images_per_second,
                    loss_d: newest.loss_d,
                    loss_g: newest.loss_g,
                    d_real: newest.d_real,
                    d_fake: newest.d_fake,
                };
                bar.update(&view, Instant::now());
            }
            matches!(now.phase, Phase::Ended(_))
        };
        if last || progress.changed().await.is_err() {
            break;
        }
        tokio::time::sleep(REFRESH).await;
    }
    bar.finish("");
}
