//! Invariants 1 to 6 with processes that die: whatever happens to them, the job ends with the bits
//! of an undisturbed run, and every sample of an epoch stands in the ledger once.
//!
//! `GAN_DIE_AT` has a process die at a certain point (`src/faults.rs`); everything else is done
//! from outside, by signals.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod processes;

use processes::{
    COORD, Place, Process, Served, free_address, output, text, wait_until, worker_command,
};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// Epochs of 31 steps, of 1000 images; 8 images are left out of each.
const EPOCH: u64 = 31;
const IMAGES: u32 = 1000;
/// Of most jobs; and of those that take more than one fault.
const SHORT: u64 = 4 * EPOCH;
const LONG: u64 = 20 * EPOCH;

/// What an undisturbed run of one worker has come to after these steps.
fn undisturbed(steps: u64) -> &'static str {
    static DIGESTS: OnceLock<[String; 2]> = OnceLock::new();
    let digests = DIGESTS.get_or_init(|| {
        let place = Place::new();
        let images = place.images(IMAGES);
        let keep = ["--set", "checkpoint.keep_last=99"];
        let run = place.run("whole", &arguments(&images, LONG, &keep));
        assert!(run.status.success(), "{}", text(&run));
        [SHORT, LONG].map(|steps| place.digest("whole", steps))
    });
    &digests[usize::from(steps == LONG)]
}

fn arguments<'a>(images: &'a str, steps: u64, more: &[&'a str]) -> Vec<&'a str> {
    let steps = if steps == LONG {
        "train.steps=620"
    } else {
        "train.steps=124"
    };
    let mut arguments = vec![
        "--set",
        images,
        "--set",
        steps,
        "--set",
        "checkpoint.every_steps=31",
        "--set",
        "sample.every_steps=0",
        "--set",
        "deadlines.heartbeat=2s",
    ];
    arguments.extend(more);
    arguments
}

/// A job under fault, at an address that stays when its coordinator doesn't.
struct Faulty {
    place: Place,
    images: String,
    steps: u64,
    more: Vec<&'static str>,
    address: String,
    coordinator: Served,
}

impl Faulty {
    fn new(more: &[&'static str]) -> Self {
        Self::of(SHORT, more)
    }

    fn long(more: &[&'static str]) -> Self {
        Self::of(LONG, more)
    }

    fn of(steps: u64, more: &[&'static str]) -> Self {
        let place = Place::new();
        let images = place.images(IMAGES);
        let address = free_address();
        let coordinator = place.serve_on(&address, "job", &arguments(&images, steps, more));
        Self {
            place,
            images,
            steps,
            more: more.to_vec(),
            address,
            coordinator,
        }
    }

    fn url(&self) -> &str {
        &self.coordinator.url
    }

    fn worker(&self) -> Process {
        self.place.worker(self.url(), "w")
    }

    fn worker_that_dies(&self, at: &str) -> Process {
        self.place.worker_that_dies(self.url(), "w", at)
    }

    /// Starts the coordinator again, where it was.
    fn serve_again(&mut self) {
        let arguments = arguments(&self.images, self.steps, &self.more);
        self.coordinator = self.place.serve_on(&self.address, "job", &arguments);
    }

    /// Waits until this step is reached.
    fn reach(&self, step: u64) {
        self.coordinator.wait(&format!("step {step}"), |status| {
            status["step"].as_u64() >= Some(step)
        });
    }

    /// Waits until so many workers train in a generation later than `generation`.
    fn train(&self, workers: usize, generation: u64) -> u64 {
        let trains = |status: &serde_json::Value| {
            let all = status["workers"].as_array().map_or(0, |all| {
                all.iter().filter(|w| w["state"] == "training").count()
            });
            status["phase"] == "running"
                && all == workers
                && status["generation"].as_u64() > Some(generation)
        };
        let what = format!("{workers} workers after generation {generation}");
        let status = self.coordinator.wait(&what, trains);
        status["generation"].as_u64().unwrap()
    }

    /// The job ends as if nothing had happened.
    fn ends_as_ever(self, survivors: &mut [Process]) {
        let Self {
            place,
            coordinator,
            steps,
            ..
        } = self;
        let Served { mut process, .. } = coordinator;
        assert_eq!(process.wait(), 0, "{}", process.log());
        for worker in survivors {
            assert_eq!(worker.wait(), 0, "{}", worker.log());
        }
        assert_eq!(place.digest("job", steps), undisturbed(steps));
        for epoch in 0..steps / EPOCH {
            let mut command = Command::new(COORD);
            command.arg("ledger").arg(place.run_dir("job"));
            command.args(["--epoch", &epoch.to_string()]);
            let ledger = output(command);
            assert!(
                ledger.status.success() && text(&ledger).contains("exactly once"),
                "epoch {epoch}: {}",
                text(&ledger)
            );
        }
    }
}

/// Invariants 1 and 4: one of two workers dies at this point, the other one goes on.
fn dies_at(point: &str) {
    let job = Faulty::new(&["--set", "workers.min=1"]);
    let mut survivor = job.worker();
    job.reach(2);
    let mut victim = job.worker_that_dies(point);
    let code = victim.wait();
    assert!(code != 0, "it was to die: {}", victim.log());
    job.ends_as_ever(std::slice::from_mut(&mut survivor));
}

#[test]
fn a_worker_that_dies_before_a_reduction_leaves_no_trace() {
    dies_at("before-reduction:9");
}

#[test]
fn a_worker_that_dies_in_a_reduction_leaves_no_trace() {
    dies_at("in-reduction:12");
}

#[test]
fn a_worker_that_dies_after_a_reduction_leaves_no_trace() {
    dies_at("after-reduction:9");
}

#[test]
fn a_heal_target_that_dies_leaves_no_trace() {
    dies_at("heal-target:1");
}

#[test]
fn a_heal_source_that_dies_leaves_no_trace() {
    let job = Faulty::new(&["--set", "checkpoint.every_steps=10"]);
    let mut source = job.worker_that_dies("heal-source:1");
    // Its first checkpoint is what is left of it.
    job.coordinator
        .wait("a checkpoint", |status| !status["checkpoints"][0].is_null());
    let mut target = job.worker();
    assert!(source.wait() != 0, "{}", source.log());
    job.ends_as_ever(std::slice::from_mut(&mut target));
}

/// Invariant 6.
#[test]
fn a_leader_that_dies_while_it_writes_a_checkpoint_leaves_no_trace() {
    let job = Faulty::new(&["--set", "workers.min=2"]);
    let mut leader = job.worker_that_dies("checkpoint-write:2");
    wait_until("the leader's joining", || leader.log().contains("welcome"));
    let mut others = [job.worker(), job.worker()];
    assert!(leader.wait() != 0, "{}", leader.log());
    job.ends_as_ever(&mut others);
}

/// Invariants 3 and 5: every write of the ledger is a place to die at, before it and after it.
#[test]
fn a_coordinator_that_dies_at_any_ledger_write_leaves_no_trace() {
    let mut job = Faulty::long(&["--set", "workers.min=2"]);
    let mut workers = [job.worker(), job.worker()];
    job.reach(1);
    let mut deaths = 0;
    for write in 1..=8 {
        for point in ["ledger-write", "ledger-written"] {
            job.coordinator.process.kill();
            let arguments = arguments(&job.images, job.steps, &job.more);
            let mut command = job.place.serve_command(&job.address, "job", &arguments);
            command.env("GAN_DIE_AT", format!("{point}:{write}"));
            let log = job.place.log("job", "coord");
            let mut doomed = Process::start(command, &log);
            // With nothing left to write it lives; then it is killed.
            let mut patience = 150;
            while doomed.is_running() && patience > 0 {
                std::thread::sleep(Duration::from_millis(20));
                patience -= 1;
            }
            deaths += u32::from(!doomed.is_running());
            doomed.kill();
        }
    }
    assert!(deaths >= 4, "only {deaths} died at a write");
    job.serve_again();
    job.ends_as_ever(&mut workers);
}

/// The same, for the writes with which a job begins.
#[test]
fn a_coordinator_that_dies_while_a_job_begins_leaves_no_trace() {
    let job = Faulty::new(&["--set", "workers.min=2"]);
    let Faulty {
        place,
        images,
        steps,
        more,
        address,
        coordinator,
    } = job;
    let mut process = coordinator.process;
    process.kill();
    let mut workers = Vec::new();
    let url = format!("http://{address}");
    for write in 1..=5 {
        let mut command = place.serve_command(&address, "job", &arguments(&images, steps, &more));
        command.env("GAN_DIE_AT", format!("ledger-written:{write}"));
        let mut doomed = Process::start(command, &place.log("job", "coord"));
        while workers.len() < 2 {
            workers.push(place.worker(&url, "w"));
        }
        let mut patience = 200;
        while doomed.is_running() && patience > 0 {
            std::thread::sleep(Duration::from_millis(20));
            patience -= 1;
        }
        doomed.kill();
    }
    let coordinator = place.serve_on(&address, "job", &arguments(&images, steps, &more));
    let job = Faulty {
        place,
        images,
        steps,
        more,
        address,
        coordinator,
    };
    job.ends_as_ever(&mut workers);
}

#[test]
fn a_worker_may_join_in_the_middle_of_an_epoch() {
    let job = Faulty::new(&[]);
    let first = job.worker();
    job.reach(10);
    let second = job.worker();
    let generation = job.train(2, 1);
    let third = job.worker();
    job.train(3, generation);
    let log = first.log();
    assert!(!log.contains("lost"), "nobody's step was aborted: {log}");
    job.ends_as_ever(&mut [first, second, third]);
}

#[test]
fn a_worker_that_is_told_to_go_leaves_no_trace_and_comes_back_by_75() {
    let job = Faulty::new(&["--set", "workers.min=2"]);
    let stay = job.worker();
    let mut go = job.worker();
    job.reach(10);
    go.signal("TERM");
    assert_eq!(go.wait(), 75, "{}", go.log());
    // Below the minimum the job waits, and says for whom.
    let status = job
        .coordinator
        .wait("the wait", |s| s["phase"] == "gathering");
    let detail = status["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("1 of 2"), "{detail}");
    let back = job.worker();
    job.ends_as_ever(&mut [stay, back]);
}

#[test]
fn two_workers_may_be_told_to_go_at_once() {
    let job = Faulty::new(&["--set", "workers.min=3"]);
    let stay = job.worker();
    let mut go = [job.worker(), job.worker()];
    job.reach(10);
    for worker in &go {
        worker.signal("TERM");
    }
    for worker in &mut go {
        assert_eq!(worker.wait(), 75, "{}", worker.log());
    }
    let back = [job.worker(), job.worker()];
    let [first, second] = back;
    job.ends_as_ever(&mut [stay, first, second]);
}

#[test]
fn the_last_worker_that_is_told_to_go_saves_what_it_holds() {
    let job = Faulty::new(&[]);
    let mut only = job.worker();
    job.reach(10);
    only.signal("TERM");
    assert_eq!(only.wait(), 75, "{}", only.log());
    assert!(job.place.newest("job") >= 10);
    let next = job.worker();
    job.ends_as_ever(&mut [next]);
}

/// Invariant 4, when nobody lives.
#[test]
fn when_all_workers_die_the_next_one_goes_on_from_the_checkpoint() {
    let job = Faulty::new(&["--set", "workers.min=2"]);
    let mut workers = [job.worker(), job.worker()];
    job.reach(40);
    for worker in &mut workers {
        worker.kill();
    }
    job.coordinator
        .wait("the wait", |s| s["phase"] == "gathering");
    let mut workers = [job.worker(), job.worker()];
    job.ends_as_ever(&mut workers);
}

#[test]
fn when_everything_dies_a_new_coordinator_and_new_workers_go_on() {
    let mut job = Faulty::new(&["--set", "workers.min=2"]);
    let mut workers = [job.worker(), job.worker()];
    job.reach(40);
    job.coordinator.process.kill();
    for worker in &mut workers {
        worker.kill();
    }
    job.serve_again();
    let mut workers = [job.worker(), job.worker()];
    job.ends_as_ever(&mut workers);
}

/// Invariant 3: it is fenced by its generation, notices, and comes back as a new worker.
#[test]
fn a_zombie_harms_nothing_and_comes_back() {
    let job = Faulty::long(&["--set", "workers.min=1"]);
    let stay = job.worker();
    let zombie = job.worker();
    job.train(2, 0);
    zombie.signal("STOP");
    let alone = job.train(1, 1);
    zombie.signal("CONT");
    job.train(2, alone);
    let status = job.coordinator.status().unwrap();
    let of = |pid: u32| {
        let workers = status["workers"].as_array().unwrap().iter();
        let mut found = workers.filter(|worker| worker["pid"] == pid);
        found.next().unwrap()["worker"].as_u64()
    };
    assert_eq!(of(zombie.pid()), Some(3), "it is a new worker: {status}");
    let log = job.coordinator.process.log();
    assert!(log.contains("no sign of life for 2s"), "{log}");
    job.ends_as_ever(&mut [stay, zombie]);
}

/// Invariant 5: a coordinator that is moved doesn't stop anybody.
#[test]
fn a_coordinator_that_is_told_to_go_is_waited_for() {
    let mut job = Faulty::new(&["--set", "workers.min=2"]);
    let mut workers = [job.worker(), job.worker()];
    job.reach(5);
    job.coordinator.process.signal("TERM");
    assert_eq!(job.coordinator.process.wait(), 75);
    let pids = workers.each_ref().map(Process::pid);
    job.serve_again();
    let status = job.coordinator.wait("its workers", |status| {
        status["phase"] == "running" || status["step"].as_u64() >= Some(SHORT)
    });
    assert_eq!(status["generation"], 1, "the generation goes on: {status}");
    assert_eq!(workers.each_ref().map(Process::pid), pids);
    job.ends_as_ever(&mut workers);
}

/// Invariant 6: training goes on, and what was there stays.
#[test]
fn a_full_disk_costs_a_checkpoint_and_nothing_else() {
    let job = Faulty::new(&["--set", "checkpoint.keep_last=9"]);
    // Checkpoints of this model take 300 KB and more; the limit lets logs through, not those.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 64; exec \"$@\"", "sh"]);
    let worker = worker_command(job.url());
    command.arg(worker.get_program()).args(worker.get_args());
    let mut cramped = Process::start(command, &job.place.log("w", "worker"));
    let status = job.coordinator.wait("a failure", |status| {
        let events = status["events"].as_array();
        events.is_some_and(|events| events.iter().any(|e| e["kind"] == "checkpoint-failed"))
    });
    assert!(status["checkpoints"][0].is_null(), "{status}");
    assert!(
        cramped.log().contains("training goes on"),
        "{}",
        cramped.log()
    );
    let roomy = job.worker();
    job.train(2, 1);
    cramped.kill();
    job.ends_as_ever(&mut [roomy]);
}

/// Invariant 1: replicas move, and no bit with them.
#[test]
fn a_slow_worker_gets_fewer_replicas_and_the_bits_stay() {
    let job = Faulty::long(&["--set", "workers.min=2"]);
    let quick = job.worker();
    let slow = job.worker();
    job.train(2, 0);
    // It works a quarter of the time.
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let pid = slow.pid().to_string();
    let brake = std::thread::spawn(move || {
        let signal = |name: &str| Command::new("kill").args([name, &pid]).status();
        while ended.try_recv().is_err() {
            let _ = signal("-STOP");
            std::thread::sleep(Duration::from_millis(30));
            let _ = signal("-CONT");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let status = job.coordinator.wait("another deal", |status| {
        let workers = status["workers"].as_array();
        let dealt = workers.is_some_and(|all| all.iter().any(|w| w["replicas"] == 3));
        dealt && status["phase"] == "running"
    });
    let _ = end.send(());
    brake.join().unwrap();
    let workers = status["workers"].as_array().unwrap();
    let hosted = |pid: u32| {
        let mut of = workers.iter().filter(|worker| worker["pid"] == pid);
        of.next().unwrap()["replicas"].as_u64()
    };
    assert_eq!(hosted(quick.pid()), Some(3), "{status}");
    assert_eq!(hosted(slow.pid()), Some(1), "{status}");
    let log = job.coordinator.process.log();
    assert!(
        log.contains("rebalanced") && log.contains("2 -> 1 replicas"),
        "{log}"
    );
    job.ends_as_ever(&mut [quick, slow]);
}

/// A network between a worker and the coordinator that swallows everything for a while: both sides
/// find out by themselves, and there is one history.
#[test]
fn a_partition_from_the_coordinator_leaves_no_trace() {
    let job = Faulty::long(&["--set", "workers.min=1"]);
    let network = processes::Network::to(&job.address);
    let near = job.worker();
    let far = job.place.worker(&network.url(), "w");
    let both = job.train(2, 0);
    network.swallow(true);
    let alone = job.train(1, both);
    network.swallow(false);
    job.train(2, alone);
    job.ends_as_ever(&mut [near, far]);
}

/// What the simulation does ten thousand times, once with real processes.
#[test]
fn random_kills_leave_no_trace() {
    let mut job = Faulty::long(&["--set", "workers.min=1"]);
    let mut workers = vec![job.worker(), job.worker()];
    // Any sequence will do; this one is always the same.
    let mut random = 0x9e37_79b9_u32;
    let mut draw = |below: u32| {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random % below
    };
    for at in [10, 60, 120, 180, 250, 320, 390, 460] {
        job.reach(at);
        match draw(4) {
            0 => {
                job.coordinator.process.kill();
                job.serve_again();
            }
            _ => {
                let index = draw(workers.len() as u32) as usize;
                workers[index].kill();
                workers.remove(index);
                workers.push(job.worker());
            }
        }
    }
    job.ends_as_ever(&mut workers);
}
