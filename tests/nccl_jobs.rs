//! Whole jobs over NCCL, with real processes and the stand-in for its library: the bits are those
//! of a job over TCP, whatever NCCL does badly.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "nccl/library.rs"]
mod library;
mod processes;

use processes::{Place, Process, Served, free_address, text, worker_command};
use std::path::PathBuf;
use std::sync::OnceLock;

const STEPS: u64 = 60;

fn arguments<'a>(images: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["--set", images];
    for setting in [
        "train.steps=60",
        "checkpoint.every_steps=20",
        "sample.every_steps=0",
        "deadlines.collective=3s",
        "deadlines.form=5s",
        "deadlines.heartbeat=3s",
    ]
    .iter()
    .chain(more)
    {
        arguments.extend(["--set", setting]);
    }
    arguments
}

/// What one worker over TCP comes to.
fn undisturbed() -> &'static str {
    static DIGEST: OnceLock<String> = OnceLock::new();
    DIGEST.get_or_init(|| {
        let place = Place::new();
        let images = place.images(500);
        let run = place.run("whole", &arguments(&images, &[]));
        assert!(run.status.success(), "{}", text(&run));
        place.digest("whole", STEPS)
    })
}

/// A job whose workers use NCCL.
struct Job {
    place: Place,
    coordinator: Served,
}

impl Job {
    fn new(more: &[&str]) -> Self {
        let place = Place::new();
        let images = place.images(500);
        let coordinator = place.serve("job", &arguments(&images, more));
        Self { place, coordinator }
    }

    fn worker(&self) -> Process {
        self.worker_with(&[])
    }

    fn worker_with(&self, environment: &[(&str, &str)]) -> Process {
        let mut command = worker_command(&self.coordinator.url);
        // At this address for all of its lives.
        command.args(["--metrics-listen", &free_address()]);
        command.env("GAN_TRANSPORT", "nccl");
        command.env("GAN_NCCL_LIBRARY", library::stand_in());
        command.envs(environment.iter().copied());
        Process::start(command, &self.place.log("w", "worker"))
    }

    /// A file that is there once a fault has happened.
    fn fired(&self) -> PathBuf {
        self.place.path().join("fired")
    }

    /// A worker whose library does this once.
    fn faulty(&self, words: &str) -> Process {
        let fired = self.fired();
        self.worker_with(&[
            ("GAN_STAND_IN_FAULT", words),
            ("GAN_STAND_IN_FIRED", fired.to_str().unwrap()),
        ])
    }

    fn reach(&self, step: u64) {
        self.coordinator.wait(&format!("step {step}"), |status| {
            status["step"].as_u64() >= Some(step)
        });
    }

    /// All end well; gives the digest.
    fn ends(&mut self, workers: &mut [Process]) -> String {
        let coordinator = &mut self.coordinator.process;
        assert_eq!(coordinator.wait(), 0, "{}", coordinator.log());
        for worker in workers {
            assert_eq!(worker.wait(), 0, "{}", worker.log());
        }
        self.place.digest("job", STEPS)
    }
}

fn used_nccl(worker: &Process) -> bool {
    worker.log().contains("sums go over NCCL")
}

/// Invariant 1.
fn same_bits(count: u32) {
    let minimum = format!("workers.min={count}");
    let mut job = Job::new(&[&minimum]);
    let mut workers: Vec<Process> = (0..count).map(|_| job.worker()).collect();
    let digest = job.ends(&mut workers);
    assert!(workers.iter().all(used_nccl), "{}", workers[0].log());
    assert_eq!(digest, undisturbed());
}

#[test]
fn one_worker_over_nccl_comes_to_the_bits_of_tcp() {
    same_bits(1);
}

#[test]
fn two_workers_over_nccl_come_to_the_bits_of_tcp() {
    same_bits(2);
}

#[test]
fn four_workers_over_nccl_come_to_the_bits_of_tcp() {
    same_bits(4);
}

/// What the exact sum is there for.
#[test]
fn a_fast_sum_of_four_workers_has_other_bits() {
    let mut job = Job::new(&["workers.min=4", "train.reduction=fast"]);
    let mut workers: Vec<Process> = (0..4).map(|_| job.worker()).collect();
    assert_ne!(job.ends(&mut workers), undisturbed());
}

#[test]
fn where_one_worker_has_no_nccl_all_use_tcp_and_say_who() {
    let mut job = Job::new(&["workers.min=2"]);
    let without = [("GAN_NCCL_LIBRARY", "/no/such/libnccl.so.2")];
    let mut workers = [job.worker(), job.worker_with(&without)];
    assert_eq!(job.ends(&mut workers), undisturbed());
    for worker in &workers {
        let log = worker.log();
        assert!(log.contains("not every rank has NCCL"), "{log}");
        assert!(!used_nccl(worker), "{log}");
    }
    assert!(workers[1].log().contains("/no/such/libnccl.so.2"));
}

/// Here one that is for GPUs, and is refused by each attempt to form a group.
#[test]
fn an_nccl_that_never_works_is_given_up_for_tcp() {
    let mut job = Job::new(&["workers.min=2"]);
    let useless = library::fake(job.place.path(), 22_809, &library::NAMES);
    let useless = [("GAN_NCCL_LIBRARY", useless.to_str().unwrap())];
    let mut workers = [job.worker_with(&useless), job.worker_with(&useless)];
    assert_eq!(job.ends(&mut workers), undisturbed());
    let log = workers[0].log();
    assert!(log.contains("is not tried any more"), "{log}");
}

/// Invariants 1 and 4.
#[test]
fn a_worker_that_is_killed_leaves_no_trace_over_nccl() {
    let mut job = Job::new(&["workers.min=1"]);
    let stay = job.worker();
    let mut go = job.worker();
    job.coordinator.wait("two workers that train", |status| {
        let trains = |w: &serde_json::Value| w["state"] == "training";
        let all = status["workers"].as_array();
        all.is_some_and(|all| all.iter().filter(|w| trains(w)).count() == 2)
            || status["step"].as_u64() >= Some(STEPS)
    });
    go.kill();
    let digest = job.ends(&mut [stay]);
    assert_eq!(digest, undisturbed());
}

#[test]
fn a_worker_may_join_over_nccl() {
    let mut job = Job::new(&["workers.min=1"]);
    let first = job.worker();
    job.reach(5);
    let second = job.worker();
    let mut workers = [first, second];
    assert_eq!(job.ends(&mut workers), undisturbed());
    assert!(workers.iter().all(used_nccl), "{}", workers[1].log());
}

/// One of two workers has this fault; gives its log.
fn survives(words: &str) -> String {
    let mut job = Job::new(&["workers.min=2"]);
    let mut workers = [job.worker(), job.faulty(words)];
    let digest = job.ends(&mut workers);
    let log = workers[1].log();
    assert!(job.fired().exists(), "it did not happen: {log}");
    assert!(workers.iter().all(used_nccl), "{log}");
    assert_eq!(digest, undisturbed());
    log
}

#[test]
fn a_rank_that_vanishes_without_an_error_leaves_no_trace() {
    survives("vanish@9");
}

#[test]
fn an_async_error_leaves_no_trace() {
    survives("async-error@9");
}

#[test]
fn partial_data_after_an_abort_leave_no_trace() {
    survives("partial@9");
}

#[test]
fn a_process_whose_abort_hangs_starts_over_and_leaves_no_trace() {
    let log = survives("abort-hangs@9");
    assert!(log.contains("starting over"), "{log}");
    // The same process, another life: it has said hello twice, and serves metrics where it did.
    for says in ["welcome", "metrics on http"] {
        assert!(log.matches(says).count() >= 2, "{says:?} in {log}");
    }
}

#[test]
fn a_rank_that_is_missing_when_nccl_initialises_leaves_no_trace() {
    survives("init-missing");
}

#[test]
fn calls_that_are_in_progress_for_a_while_change_nothing() {
    let mut job = Job::new(&["workers.min=2"]);
    let slow = [("GAN_STAND_IN_FAULT", "in-progress:5")];
    let mut workers = [job.worker(), job.worker_with(&slow)];
    assert_eq!(job.ends(&mut workers), undisturbed());
    assert!(workers.iter().all(used_nccl), "{}", workers[1].log());
}

/// Only the death notice ends what waits for it.
#[test]
fn a_killed_peer_that_nccl_does_not_notice_leaves_no_trace() {
    let mut job = Job::new(&["workers.min=1", "deadlines.collective=60s"]);
    let silent = [("GAN_STAND_IN_FAULT", "silent")];
    let stay = job.worker_with(&silent);
    let mut go = job.worker();
    job.reach(3);
    go.said("sums go over NCCL");
    go.kill();
    assert_eq!(job.ends(&mut [stay]), undisturbed());
}
