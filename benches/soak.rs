//! A job that is not left in peace: a random fault every few seconds, for minutes.
//!
//! `make soak MINUTES=10`, or `cargo bench --bench soak -- --minutes 10 --seed 1`. A coordinator and
//! up to four workers train the small test job with eight replicas, while workers are killed, told
//! to go, stopped and continued, and joined by others, and the coordinator is killed and started
//! again. In the end the job is stopped, done once more by one worker that is left in peace, and the
//! digests are compared. Prints what was survived, and how long each change of membership took.

#![allow(clippy::unwrap_used, reason = "a soak that fails is to stop")]
#![allow(clippy::disallowed_methods, reason = "a soak takes real time")]

#[path = "../tests/processes/mod.rs"]
mod processes;

use processes::{COORD, Place, Process, Served, free_address, output, text};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// Workers at most.
const WORKERS: usize = 4;
/// For a change to be over, and everybody back in step.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: f64| -> f64 {
        let place = arguments.iter().position(|argument| argument == name);
        place.map_or(default, |place| arguments[place + 1].parse().unwrap())
    };
    // Cargo passes `--bench` when it is to measure, and nothing when it only wants a run.
    let measure = arguments.iter().any(|argument| argument == "--bench");
    let minutes = number("--minutes", if measure { 10.0 } else { 0.05 });
    let seed = number("--seed", 1.0) as u64;
    Soak::new(seed).run(Duration::from_secs_f64(minutes * 60.0), measure);
}

/// xorshift: any sequence will do, if it can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below
    }
}

/// Seconds, by name of the part.
type Parts = BTreeMap<&'static str, Vec<f64>>;

struct Soak {
    place: Place,
    images: String,
    address: String,
    coordinator: Served,
    workers: Vec<Process>,
    random: Random,
    faults: BTreeMap<&'static str, u32>,
    deaths: Parts,
    planned: Parts,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let place = Place::new();
        let images = place.images(4096);
        let address = free_address();
        let coordinator = place.serve_on(&address, "job", &arguments(&images, 1 << 40));
        let workers = (0..WORKERS).map(|_| place.worker(&coordinator.url, "w"));
        let workers = workers.collect();
        Self {
            place,
            images,
            address,
            coordinator,
            workers,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            faults: BTreeMap::new(),
            deaths: Parts::new(),
            planned: Parts::new(),
        }
    }

    fn run(mut self, length: Duration, measure: bool) {
        self.settle(WORKERS);
        let began = Instant::now();
        // In test mode one kill will do.
        let mut first = true;
        while began.elapsed() < length || std::mem::take(&mut first) {
            self.disturb();
            std::thread::sleep(Duration::from_millis(500 + self.random.below(1500) as u64));
            first = false;
        }
        let took = began.elapsed();
        let steps = self.stop();
        let survived: u32 = self.faults.values().sum();
        println!(
            "{survived} faults survived in {took:.0?}, {steps} steps: {:?}",
            self.faults
        );
        show(
            "kill -9 of a worker, to the survivors' next step",
            &self.deaths,
        );
        show(
            "a planned change, from the first at rest to the next step",
            &self.planned,
        );
        let digest = self.place.digest("job", steps);
        let whole = self.place.run("whole", &arguments(&self.images, steps));
        assert!(whole.status.success(), "{}", text(&whole));
        assert_eq!(digest, self.place.digest("whole", steps), "the bits differ");
        println!("digest at step {steps}, with and without faults: {digest}");
        if measure {
            let mut command = Command::new(COORD);
            command
                .arg("ledger")
                .arg(self.place.run_dir("job"))
                .args(["--epoch", "0"]);
            let ledger = output(command);
            assert!(ledger.status.success(), "{}", text(&ledger));
            println!("epoch 0: each sample stands in the ledger once");
        }
    }

    /// One fault, and its end.
    fn disturb(&mut self) {
        match self.random.below(8) {
            0..4 => self.kill_worker(),
            4 => self.tell_worker_to_go(),
            5 => self.stop_and_continue(),
            6 => self.kill_coordinator(),
            _ => self.kill_two(),
        }
        self.settle(WORKERS);
    }

    fn count(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
    }

    fn kill_worker(&mut self) {
        self.count("kill -9 of a worker");
        let victim = self.random.below(self.workers.len());
        let mut victim = self.workers.remove(victim);
        let before = self.recovered().len();
        let at = unix_seconds();
        victim.kill();
        self.wait("a recovery", |soak| soak.recovered().len() > before);
        let notice = self.died_at(victim.pid());
        if let (Some(change), Some(notice)) = (self.recovered().get(before), notice)
            && change.cause == "death"
        {
            let detect = (notice - at).max(0.0);
            record(&mut self.deaths, change, detect);
        }
        self.join();
    }

    fn join(&mut self) {
        let before = self.recovered().len();
        self.workers
            .push(self.place.worker(&self.coordinator.url, "w"));
        self.settle(self.workers.len());
        self.planned_since(before);
    }

    fn planned_since(&mut self, before: usize) {
        for change in self.recovered().iter().skip(before) {
            if change.cause == "join" || change.cause == "leave" {
                record(&mut self.planned, change, 0.0);
            }
        }
    }

    fn tell_worker_to_go(&mut self) {
        self.count("SIGTERM of a worker");
        let before = self.recovered().len();
        let leaver = self.random.below(self.workers.len());
        let mut leaver = self.workers.remove(leaver);
        leaver.signal("TERM");
        assert_eq!(leaver.wait(), 75, "{}", leaver.log());
        self.settle(self.workers.len());
        self.planned_since(before);
        self.join();
    }

    /// A zombie: it comes back after it was taken for dead.
    fn stop_and_continue(&mut self) {
        self.count("SIGSTOP past the lease, then SIGCONT");
        let zombie = self.random.below(self.workers.len());
        self.workers[zombie].signal("STOP");
        self.settle(self.workers.len() - 1);
        self.workers[zombie].signal("CONT");
    }

    fn kill_two(&mut self) {
        self.count("kill -9 of two workers at once");
        for _ in 0..2 {
            let victim = self.random.below(self.workers.len());
            self.workers.remove(victim).kill();
        }
        for _ in 0..2 {
            self.workers
                .push(self.place.worker(&self.coordinator.url, "w"));
        }
    }

    fn kill_coordinator(&mut self) {
        self.count("kill -9 of the coordinator");
        self.coordinator.process.kill();
        std::thread::sleep(Duration::from_millis(self.random.below(500) as u64));
        let arguments = arguments(&self.images, 1 << 40);
        self.coordinator = self.place.serve_on(&self.address, "job", &arguments);
    }

    /// Waits until so many workers train, and have done a step together.
    fn settle(&self, workers: usize) {
        let training = |status: &serde_json::Value| {
            let all = status["workers"].as_array().map_or(0, |all| {
                all.iter().filter(|w| w["state"] == "training").count()
            });
            status["phase"] == "running" && all == workers
        };
        let before = self.coordinator.wait("all to train", training);
        let step = before["step"].as_u64();
        self.coordinator.wait("a step of all", |status| {
            training(status) && status["step"].as_u64() > step
        });
    }

    fn wait(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(
                began.elapsed() < PATIENCE,
                "waited for {what}: {}",
                self.coordinator.process.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What this coordinator has said of changes so far.
    fn recovered(&self) -> Vec<Change> {
        let log = self.coordinator.process.log();
        let lines = log.lines().filter(|line| line.contains("recovered cause="));
        lines.filter_map(Change::parse).collect()
    }

    /// When the coordinator learned that a process had died.
    fn died_at(&self, pid: u32) -> Option<f64> {
        let status = self.coordinator.status()?;
        let events = status["events"].as_array()?.iter();
        let of = format!("pid {pid})");
        let mut deaths = events.filter(|event| {
            event["kind"] == "died" && event["detail"].as_str().is_some_and(|d| d.contains(&of))
        });
        deaths.next_back()?["unix_seconds"].as_f64()
    }

    /// Ends the job, and says at which step.
    fn stop(&mut self) -> u64 {
        let mut stop = Command::new(COORD);
        stop.args(["stop", "--coordinator", &self.coordinator.url]);
        let told = output(stop);
        assert!(told.status.success(), "{}", text(&told));
        assert_eq!(self.coordinator.process.wait(), 0);
        for worker in &mut self.workers {
            assert_eq!(worker.wait(), 0, "{}", worker.log());
        }
        self.place.newest("job")
    }
}

/// A change of membership, as the coordinator's log has it; seconds.
struct Change {
    cause: String,
    abort: f64,
    connect: f64,
    heal: f64,
    first_step: f64,
    compute: f64,
    whole: f64,
}

impl Change {
    fn parse(line: &str) -> Option<Self> {
        let field = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}="))?;
            rest.split_whitespace().next()
        };
        let seconds = |name: &str| field(name)?.parse().ok();
        Some(Self {
            cause: field("cause")?.to_owned(),
            abort: seconds("abort")?,
            connect: seconds("connect")?,
            heal: seconds("heal")?,
            first_step: seconds("first_step")?,
            compute: seconds("compute")?,
            whole: seconds("whole")?,
        })
    }
}

fn record(parts: &mut Parts, change: &Change, detect: f64) {
    let beyond = (change.first_step - change.compute).max(0.0);
    for (name, seconds) in [
        ("1 detect", detect),
        ("2 abort", change.abort),
        ("3 re-form", change.connect),
        ("4 heal", change.heal),
        ("5 first step, without its compute", beyond),
        (
            "6 all, without compute",
            detect + change.whole - change.compute,
        ),
        ("7 all", detect + change.whole),
    ] {
        parts.entry(name).or_default().push(seconds);
    }
}

fn show(title: &str, parts: &Parts) {
    let count = parts.values().map(Vec::len).max().unwrap_or(0);
    println!("{title} ({count} times), ms:");
    for (name, seconds) in parts {
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| 1e3 * sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        println!(
            "  {:<36} p50 {:>7.1}   p99 {:>7.1}   most {:>7.1}",
            &name[2..],
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}

fn arguments(images: &str, steps: u64) -> Vec<&str> {
    // Leaked: there are a few of them in the life of this program.
    let steps: &'static str = Box::leak(format!("train.steps={steps}").into_boxed_str());
    let mut arguments = vec!["--set", images, "--set", steps];
    for setting in [
        "train.replicas=8",
        "train.batch=4",
        "checkpoint.every_steps=200",
        "sample.every_steps=0",
        "deadlines.heartbeat=2s",
    ] {
        arguments.extend(["--set", setting]);
    }
    arguments
}

fn unix_seconds() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}
