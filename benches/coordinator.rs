//! The coordinator alone, with thousands of workers that only talk.
//!
//! Each simulated worker has its own connection and its own gRPC session with a real `gan-coord`
//! process: it says Hello and Ready, forms every generation that it is told of, and beats once a
//! second. What is measured is the coordinator's process, from outside: CPU time and memory from
//! `/proc`, and what it says itself of how long it took to decide and queue a generation.
//!
//! `cargo bench --bench coordinator -- --workers 10000 --seconds 20`; both processes need a file
//! descriptor a worker.

#![allow(clippy::unwrap_used, reason = "a bench that fails is to stop")]
#![allow(clippy::disallowed_methods, reason = "a bench takes real time")]

use ganglion::config;
use ganglion::data::Dataset;
use ganglion::proto::coordinator_client::CoordinatorClient;
use ganglion::proto::{
    self, coordinator_message::Kind as FromCoordinator, worker_message::Kind as ToCoordinator,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// Each worker's time between two signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// For anything.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the simulated workers have come to.
#[derive(Default)]
struct Reached {
    welcome: AtomicU64,
    /// How many were told of each generation.
    assigned: Mutex<BTreeMap<u64, u64>>,
}

impl Reached {
    fn assigned(&self, generation: u64) {
        *self.assigned.lock().unwrap().entry(generation).or_default() += 1;
    }

    /// The newest generation that so many were told of, after another.
    fn told(&self, workers: u64, after: u64) -> Option<u64> {
        let assigned = self.assigned.lock().unwrap();
        let told = assigned.iter().filter(|(_, told)| **told >= workers);
        let newest = told.map(|(generation, _)| *generation).max();
        newest.filter(|generation| *generation > after)
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: u64| {
        let place = arguments.iter().position(|argument| argument == name);
        place.map_or(default, |place| arguments[place + 1].parse().unwrap())
    };
    // Cargo passes `--bench` when it is to measure, and nothing when it only wants a run.
    let measure = arguments.iter().any(|argument| argument == "--bench");
    let workers = number("--workers", if measure { 10_000 } else { 8 });
    let seconds = number("--seconds", if measure { 20 } else { 1 });
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(run(workers, seconds));
}

async fn run(workers: u64, seconds: u64) {
    let folder = tempfile::tempdir().unwrap();
    let job_file = job(folder.path(), workers);
    let job = config::load(&job_file, &[]).unwrap();
    let digest = Dataset::open(&job, &mut |_, _| {})
        .unwrap()
        .digest()
        .to_owned();
    let coordinator = Coordinator::start(folder.path(), &job_file);
    let empty = coordinator.memory("VmRSS");

    let reached = Arc::new(Reached::default());
    let connecting = Arc::new(Semaphore::new(64));
    let began = Instant::now();
    let mut tasks = Vec::new();
    let start = |index: u64| {
        let worker = Worker {
            url: coordinator.url.clone(),
            index,
            digest: digest.clone(),
            reached: Arc::clone(&reached),
        };
        tokio::spawn(worker.run(Arc::clone(&connecting)))
    };
    // Two are missing, and no generation begins: this is what sessions alone take.
    tasks.extend((2..workers).map(start));
    wait("all to be welcome", || {
        reached.welcome.load(Ordering::Relaxed) >= workers - 2
    })
    .await;
    println!(
        "{} sessions open after {:.1?}",
        workers - 2,
        began.elapsed()
    );
    tokio::time::sleep(BEAT).await;
    let memory = coordinator.memory("VmRSS").saturating_sub(empty);
    println!(
        "memory of the sessions: {:.1} KB a worker",
        memory as f64 / workers as f64
    );
    let began = Instant::now();
    tasks.extend((0..2).map(start));
    wait("a generation of all", || reached.told(workers, 0).is_some()).await;
    let whole = reached.told(workers, 0).unwrap();
    println!("all in one generation after {:.1?}", began.elapsed());
    tokio::time::sleep(BEAT).await;

    let cpu = coordinator.cpu();
    let measured = Instant::now();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let share = (coordinator.cpu() - cpu) / measured.elapsed().as_secs_f64();
    println!(
        "{workers} heartbeats a second: {:.1} % of a core",
        100.0 * share
    );
    let memory = coordinator.memory("VmRSS").saturating_sub(empty);
    println!(
        "memory, members of one generation: {:.1} KB a worker",
        memory as f64 / workers as f64
    );

    let died = Instant::now();
    tasks.pop().unwrap().abort();
    let next = || reached.told(workers - 1, whole);
    wait("the next generation", || next().is_some()).await;
    println!(
        "a death: decided and queued to {} workers in {}; all had heard of it after {:.2?}",
        workers - 1,
        coordinator.said_of_generation(next().unwrap()),
        died.elapsed()
    );
    println!(
        "memory at its highest: {:.1} KB a worker",
        coordinator.memory("VmHWM").saturating_sub(empty) as f64 / workers as f64
    );
}

async fn wait(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A job of one replica a worker, on images that are all the same.
fn job(folder: &Path, workers: u64) -> PathBuf {
    let images = folder.join("images");
    std::fs::create_dir(&images).unwrap();
    // Epochs of 16 steps.
    let count = 16 * u32::try_from(workers).unwrap();
    let mut bytes = Vec::new();
    for number in [0x0803, count, 28, 28] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.resize(bytes.len() + 28 * 28 * count as usize, 7);
    std::fs::write(images.join("train-images-idx3-ubyte"), bytes).unwrap();
    let text = format!(
        "[job]\nname = \"bench\"\n[data]\nuri = \"images\"\nfit = \"pad\"\nshard_folder = \"cache\"\n\
         [model]\nimage_size = 32\nchannels = 1\n\
         [train]\nreplicas = {workers}\nbatch = 1\nsteps = 1000000\n\
         [workers]\nmin = {}\n\
         [deadlines]\nheartbeat = \"120s\"\nform = \"300s\"\n",
        workers - 1
    );
    let file = folder.join("job.toml");
    std::fs::write(&file, text).unwrap();
    file
}

/// A `gan-coord serve`.
struct Coordinator {
    process: Child,
    url: String,
    log: PathBuf,
}

impl Coordinator {
    fn start(folder: &Path, job: &Path) -> Self {
        let log = folder.join("coordinator.log");
        let file = std::fs::File::create(&log).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_gan-coord"))
            .arg("serve")
            .arg(job)
            .args(["--listen", "127.0.0.1:0", "--run-dir"])
            .arg(folder.join("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut coordinator = Self {
            process,
            url: String::new(),
            log,
        };
        let began = Instant::now();
        while coordinator.url.is_empty() {
            assert!(began.elapsed() < PATIENCE, "it does not listen");
            std::thread::sleep(Duration::from_millis(10));
            if let Some(address) = coordinator.word_after("listening on ") {
                coordinator.url = format!("http://{address}");
            }
        }
        coordinator
    }

    fn word_after(&self, phrase: &str) -> Option<String> {
        let log = std::fs::read_to_string(&self.log).unwrap();
        let (_, rest) = log.split_once(phrase)?;
        Some(rest.split_whitespace().next()?.to_owned())
    }

    /// How long it took to decide on a generation and to queue it, in its own words.
    fn said_of_generation(&self, generation: u64) -> String {
        let phrase = format!("generation {generation} decided and queued in ");
        self.word_after(&phrase)
            .unwrap_or_else(|| "(it did not say)".to_owned())
    }

    /// CPU time since it began, seconds.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks = |field: usize| -> f64 {
            fields
                .split_whitespace()
                .nth(field)
                .unwrap()
                .parse()
                .unwrap()
        };
        // utime and stime, in hundredths of a second on Linux.
        (ticks(11) + ticks(12)) / 100.0
    }

    /// A line of /proc/PID/status, KB.
    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A worker that computes nothing.
struct Worker {
    url: String,
    index: u64,
    digest: String,
    reached: Arc<Reached>,
}

impl Worker {
    async fn run(self, connecting: Arc<Semaphore>) {
        let permit = connecting.acquire().await.unwrap();
        let endpoint = proto::endpoint(&self.url).unwrap().tcp_nodelay(true);
        let channel = endpoint.connect().await.unwrap();
        let mut client = CoordinatorClient::new(channel).max_decoding_message_size(64 << 20);
        let (outbox, messages) = mpsc::channel(16);
        let say = |kind| proto::WorkerMessage { kind: Some(kind) };
        let Ok(()) = outbox.send(say(self.hello())).await else {
            return;
        };
        let mut inbox = client
            .session(ReceiverStream::new(messages))
            .await
            .unwrap()
            .into_inner();
        drop(permit);
        // Not all of them in the same moment.
        let offset = BEAT.mul_f64((self.index % 1000) as f64 / 1000.0);
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + offset, BEAT);
        let mut generation = 0;
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    let heartbeat = proto::Heartbeat { generation, ..Default::default() };
                    let Ok(()) = outbox.send(say(ToCoordinator::Heartbeat(heartbeat))).await else { return };
                }
                message = inbox.message() => {
                    let Ok(Some(message)) = message else { return };
                    match message.kind {
                        Some(FromCoordinator::Welcome(_)) => {
                            self.reached.welcome.fetch_add(1, Ordering::Relaxed);
                            let ready = proto::Ready {
                                data_digest: self.digest.clone(),
                                step: 0,
                            };
                            let Ok(()) = outbox.send(say(ToCoordinator::Ready(ready))).await else { return };
                        }
                        Some(FromCoordinator::Assignment(assignment)) => {
                            generation = assignment.generation;
                            self.reached.assigned(generation);
                            let formed = proto::Formed { generation, ..Default::default() };
                            let Ok(()) = outbox.send(say(ToCoordinator::Formed(formed))).await else { return };
                        }
                        Some(FromCoordinator::Pause(pause)) => {
                            let paused = proto::Paused { generation: pause.generation, step: 0 };
                            let Ok(()) = outbox.send(say(ToCoordinator::Paused(paused))).await else { return };
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn hello(&self) -> ToCoordinator {
        ToCoordinator::Hello(proto::Hello {
            protocol: "ganglion.v1".to_owned(),
            incarnation: format!("simulated-{}", self.index),
            host: "simulated".to_owned(),
            collective: format!("10.0.{}.{}:4000", self.index / 250, self.index % 250),
            device: Some(proto::Device {
                kind: "cpu".to_owned(),
                model: "none".to_owned(),
                libtorch: "none".to_owned(),
            }),
            cores: 1,
            ..Default::default()
        })
    }
}
