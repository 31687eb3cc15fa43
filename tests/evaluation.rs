//! Evaluations beside a job that trains: what they find, what they keep, and that no bit of the state
//! depends on them.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod processes;

use processes::{Place, WORKER, output, text};
use std::path::PathBuf;
use std::process::Command;

/// A folder of small images with labels.
fn labelled(place: &Place) -> String {
    let set = place.images(160);
    let folder = PathBuf::from(set.trim_start_matches("data.uri="));
    let mut labels: Vec<u8> = [0x0801u32, 160].map(u32::to_be_bytes).concat();
    labels.extend((0..160u32).map(|image| (image % 11 % 3) as u8));
    std::fs::write(folder.join("train-labels-idx1-ubyte"), labels).unwrap();
    set
}

fn lines(place: &Place, name: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(place.run_dir(name).join("evaluations.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The step of the lowest FID, of equals the first.
fn best_of(lines: &[serde_json::Value]) -> u64 {
    let fid = |line: &serde_json::Value| line["scores"]["fid"].as_f64().unwrap();
    let best = lines
        .iter()
        .reduce(|best, line| if fid(line) < fid(best) { line } else { best });
    best.unwrap()["step"].as_u64().unwrap()
}

fn best_link(place: &Place, name: &str) -> u64 {
    let link = place.run_dir(name).join("checkpoints/best");
    let target = std::fs::read_link(link).unwrap();
    let step = target.to_str().unwrap().strip_prefix("step-").unwrap();
    step.parse().unwrap()
}

fn evaluate(arguments: &[&str], checkpoint: &std::path::Path) -> serde_json::Value {
    let mut command = Command::new(WORKER);
    command.arg("evaluate").arg(checkpoint).args(arguments);
    let output = output(command);
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn evaluations_keep_the_best_and_leave_no_trace_in_the_state() {
    let place = Place::new();
    let data = labelled(&place);
    let common = ["--set", &data, "--set", "checkpoint.every_steps=2"];
    let scored = |workers, steps: &'static str| {
        let mut arguments = common.to_vec();
        arguments.extend(["--workers", workers, "--set", steps]);
        for set in [
            "evaluate.every_steps=2",
            "evaluate.samples=64",
            "checkpoint.keep_last=1",
            "checkpoint.keep_best=fid",
        ] {
            arguments.extend(["--set", set]);
        }
        arguments
    };
    let alone = place.run("alone", &scored("1", "train.steps=10"));
    assert!(alone.status.success(), "{}", text(&alone));
    let together = place.run("together", &scored("2", "train.steps=10"));
    assert!(together.status.success(), "{}", text(&together));
    let mut plain = common.to_vec();
    plain.extend(["--set", "train.steps=10"]);
    let plain = place.run("plain", &plain);
    assert!(plain.status.success(), "{}", text(&plain));
    let digest = place.digest("plain", 10);
    assert_eq!(place.digest("alone", 10), digest);
    assert_eq!(place.digest("together", 10), digest);

    for name in ["alone", "together"] {
        let lines = lines(&place, name);
        assert_eq!(
            lines.last().unwrap()["step"],
            10,
            "the last is not left out"
        );
        let best = best_of(&lines);
        assert_eq!(best_link(&place, name), best);
        let link = place.run_dir(name).join("checkpoints/best");
        // Computed again by hand, it is what the job found.
        let line = lines.iter().find(|line| line["step"] == best).unwrap();
        let again = evaluate(&["--samples", "64", "--json", "--workers", "2"], &link);
        for part in ["digest", "protocol", "scores", "floor"] {
            assert_eq!(again[part], line[part], "{name}: {part}");
        }
        let kept = std::fs::read_dir(place.run_dir(name).join("checkpoints")).unwrap();
        let kept = kept.count();
        assert!(kept == 2 + usize::from(best != 10), "{name}: {kept}");
    }

    // A run that goes on knows what was best before.
    let mut resumed = scored("1", "train.steps=14");
    resumed.push("--resume");
    let resumed = place.run("alone", &resumed);
    assert!(resumed.status.success(), "{}", text(&resumed));
    let lines = lines(&place, "alone");
    assert_eq!(lines.last().unwrap()["step"], 14);
    assert_eq!(best_link(&place, "alone"), best_of(&lines));
    let mut events = Command::new(processes::COORD);
    events.arg("ledger").arg(place.run_dir("alone"));
    let events = text(&output(events));
    assert!(
        events.contains("evaluated") && events.contains("step 14: fid"),
        "{events}"
    );
}

#[test]
fn evaluations_without_labels_are_refused_before_the_job_begins() {
    let place = Place::new();
    let data = place.images(70);
    let set = ["--set", &data, "--set", "evaluate.every_steps=4"];
    let refused = place.run("run", &set);
    assert_eq!(refused.status.code(), Some(64), "{}", text(&refused));
    let message = text(&refused);
    assert!(
        message.contains("has no labels") && message.contains("evaluate.extractor"),
        "{message}"
    );
}

#[test]
fn images_from_elsewhere_are_scored_as_if_they_were_drawn() {
    let place = Place::new();
    let data = labelled(&place);
    let run = place.run("run", &["--set", &data, "--set", "train.steps=1"]);
    assert!(run.status.success(), "{}", text(&run));
    let checkpoint = place.checkpoint("run", 1);
    let images = data.trim_start_matches("data.uri=").to_owned();
    let given = ["--images", &images, "--json"];
    let real = evaluate(&given, &checkpoint);
    assert_eq!(real["protocol"]["samples_of"], "given");
    let drawn = evaluate(&["--json"], &checkpoint);
    assert_eq!(drawn["protocol"]["samples_of"], "average");
    let fid = |of: &serde_json::Value| of["scores"]["fid"].as_f64().unwrap();
    assert!(fid(&real) < 0.1 * fid(&drawn), "{real} {drawn}");
    assert_eq!(
        real["protocol"]["extractor"],
        drawn["protocol"]["extractor"]
    );

    // Data of another shape has no checkpoint here to be compared with, and no labels.
    let mut command = Command::new(WORKER);
    let other = place.images(70);
    let other = other.trim_start_matches("data.uri=");
    command
        .arg("evaluate")
        .arg(&checkpoint)
        .args(["--data", other]);
    let refused = output(command);
    assert_eq!(refused.status.code(), Some(64), "{}", text(&refused));
    assert!(text(&refused).contains("no labels"), "{}", text(&refused));
}
