//! A guard's verdicts with processes that die: a rollback is part of the job's pure function, and a
//! job that its guard stops ends once and for all.
//!
//! `GAN_NAN_AT` makes a replica's gradients NaN in certain steps, and `GAN_DIE_AT` has a process die
//! at a certain point (`src/faults.rs`).

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod processes;

use processes::{COORD, Place, Process, output, text, worker_command};
use std::process::Command;

const STEPS: u64 = 62;
/// From State(30) and (31): the second one is the rollback, which makes State(32).
const POISON: &str = "30..32:2";
const ROLLBACK: u64 = 32;

fn arguments<'a>(images: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["--set", images];
    for set in [
        "train.steps=62",
        "checkpoint.every_steps=7",
        "checkpoint.keep_last=99",
        "sample.every_steps=0",
        "deadlines.heartbeat=2s",
        "guard.nonfinite_steps=2",
        "guard.anchor_every=10",
    ]
    .iter()
    .chain(more)
    {
        arguments.extend(["--set", *set]);
    }
    arguments
}

fn worker(place: &Place, url: &str, dies_at: Option<String>) -> Process {
    let mut command = worker_command(url);
    command.env("GAN_NAN_AT", POISON);
    if let Some(at) = dies_at {
        command.env("GAN_DIE_AT", at);
    }
    Process::start(command, &place.log("w", "worker"))
}

fn ledger(place: &Place, name: &str) -> String {
    let mut command = Command::new(COORD);
    command.arg("ledger").arg(place.run_dir(name));
    text(&output(command))
}

/// A run of one worker that nothing else happens to.
fn undisturbed(place: &Place, images: &str) -> String {
    let served = place.serve(
        "whole",
        &arguments(images, &["guard.nonfinite=\"roll-back\""]),
    );
    let mut only = worker(place, &served.url, None);
    let mut process = served.process;
    assert_eq!(process.wait(), 0, "{}", process.log());
    assert_eq!(only.wait(), 0, "{}", only.log());
    place.digest("whole", STEPS)
}

#[test]
fn a_rollback_leaves_no_trace_of_who_did_it_even_when_workers_die_right_there() {
    let place = Place::new();
    let images = place.images(1000);
    let expected = undisturbed(&place, &images);
    let rolled_back = format!("step {ROLLBACK}: rolled back to the networks of State(20)");
    let told = ledger(&place, "whole");
    assert_eq!(told.matches(&rolled_back).count(), 1, "{told}");
    assert_eq!(told.matches("step 31: skipped").count(), 1, "{told}");

    for (name, passage) in [
        ("before", ROLLBACK - 1),
        ("at", ROLLBACK),
        ("after", ROLLBACK + 1),
    ] {
        let more = ["guard.nonfinite=\"roll-back\"", "workers.min=2"];
        let served = place.serve(name, &arguments(&images, &more));
        // It counts from the start: it is there when the job begins.
        let victim = Some(format!("after-reduction:{passage}"));
        let mut victim = worker(&place, &served.url, victim);
        let mut stays = worker(&place, &served.url, None);
        assert!(victim.wait() != 0, "{}", victim.log());
        // Who comes now has nothing, and gets the anchors too.
        let mut joins = worker(&place, &served.url, None);
        let mut process = served.process;
        assert_eq!(process.wait(), 0, "{}", process.log());
        for worker in [&mut stays, &mut joins] {
            assert_eq!(worker.wait(), 0, "{}", worker.log());
        }
        assert_eq!(place.digest(name, STEPS), expected, "{name}");
        let told = ledger(&place, name);
        assert_eq!(told.matches(&rolled_back).count(), 1, "{told}");
    }
}

/// When all die, what goes on is a checkpoint that lies between the anchor and the rollback.
#[test]
fn a_checkpoint_between_the_anchor_and_the_rollback_leads_to_the_same_bits() {
    let place = Place::new();
    let images = place.images(1000);
    let expected = undisturbed(&place, &images);
    let served = place.serve(
        "job",
        &arguments(&images, &["guard.nonfinite=\"roll-back\""]),
    );
    let at = Some(format!("before-reduction:{ROLLBACK}"));
    let mut first = worker(&place, &served.url, at);
    assert!(first.wait() != 0, "{}", first.log());
    assert_eq!(place.newest("job"), 28);
    let mut second = worker(&place, &served.url, None);
    let mut process = served.process;
    assert_eq!(process.wait(), 0, "{}", process.log());
    assert_eq!(second.wait(), 0, "{}", second.log());
    assert_eq!(place.digest("job", STEPS), expected);
    assert!(
        second.log().contains("rolled back"),
        "the leader logs it: {}",
        second.log()
    );
}

#[test]
fn a_job_that_its_guard_stops_says_why_and_which_checkpoint_is_good_and_stays_stopped() {
    let place = Place::new();
    let images = place.images(1000);
    // D(x) - D(G(z)) is always more than this: found as soon as it can be.
    let more = [
        "guard.overpowered=\"stop\"",
        "guard.overpowered_gap=-1",
        "guard.overpowered_steps=10",
        "workers.min=2",
    ];
    let mut arguments = arguments(&images, &more);
    let run = |arguments: &[&str]| place.run("job", &[&["--workers", "2"], arguments].concat());
    let ended = run(&arguments);
    let said = text(&ended);
    assert_eq!(ended.status.code(), Some(76), "{said}");
    for words in [
        "stopped by its guard at step 10",
        "above guard.overpowered_gap = -1",
        "over 10 steps",
        "none of those that are kept",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let told = ledger(&place, "job");
    assert_eq!(told.matches("halted  step 10:").count(), 1, "{told}");
    assert_eq!(place.newest("job"), 10, "what was computed is saved");

    arguments.push("--resume");
    let again = run(&arguments);
    assert_eq!(again.status.code(), Some(76), "{}", text(&again));
    assert!(text(&again).contains("stopped by its guard at step 10"));
    assert_eq!(place.newest("job"), 10, "no step is done");
}

/// What isn't finite never becomes the state: then the newest checkpoint is good.
#[test]
fn the_last_good_checkpoint_of_a_job_that_can_not_stay_finite_is_its_newest() {
    let place = Place::new();
    let images = place.images(1000);
    let served = place.serve("job", &arguments(&images, &["guard.nonfinite=\"stop\""]));
    let mut only = worker(&place, &served.url, None);
    let mut process = served.process;
    assert_eq!(process.wait(), 76, "{}", process.log());
    assert_eq!(only.wait(), 0, "{}", only.log());
    let said = process.log();
    let good = format!(
        "last good checkpoint  {}",
        place.checkpoint("job", ROLLBACK).display()
    );
    assert!(said.contains(&good), "{said}");
    assert!(said.contains("guard.nonfinite_steps = 2"), "{said}");
}
