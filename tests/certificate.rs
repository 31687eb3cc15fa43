//! What a job has computed, others can compute again: `result.json` and `gan-coord verify`.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod processes;

use processes::{COORD, Place, Served, output, text};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A small job that is complete, with checkpoints at 4 and 8, and its certificate.
fn complete(place: &Place, arguments: &[&str]) -> PathBuf {
    let run = place.run("run", arguments);
    assert!(run.status.success(), "{}", text(&run));
    place.run_dir("run").join("result.json")
}

fn verify(place: &Place, certificate: &Path, arguments: &[&str]) -> Output {
    // Where it computes unless told; nothing may stay there.
    let temporary = place.path().join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let mut command = Command::new(COORD);
    command.arg("verify").arg(certificate).args(arguments);
    command.env("TMPDIR", &temporary);
    let verified = output(command);
    let left: Vec<_> = std::fs::read_dir(&temporary).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    verified
}

fn read(certificate: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(certificate).unwrap()).unwrap()
}

fn write(place: &Place, name: &str, value: &serde_json::Value) -> PathBuf {
    let path = place.path().join(name);
    std::fs::write(&path, value.to_string()).unwrap();
    path
}

/// Invariant 1, for those who weren't there.
#[test]
fn a_complete_job_verifies_with_another_number_of_workers() {
    let place = Place::new();
    let certificate = complete(&place, &["--workers", "2"]);
    let said = read(&certificate);
    assert_eq!(said["steps"], 8);
    for (index, step) in [(0, 4), (1, 8)] {
        let kept = &said["checkpoints"][index];
        assert_eq!(kept["step"], step);
        assert_eq!(kept["digest"], place.digest("run", step));
        let path = kept["path"].as_str().unwrap();
        assert_eq!(
            certificate.with_file_name(path),
            place.checkpoint("run", step)
        );
    }
    assert!(said["checkpoints"][2].is_null());
    // Nothing but the certificate is needed.
    let elsewhere = write(&place, "elsewhere.json", &said);
    std::fs::remove_dir_all(place.run_dir("run")).unwrap();
    let verified = verify(&place, &elsewhere, &["--workers", "3"]);
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified));
    let told = String::from_utf8(verified.stdout).unwrap();
    let digest = |index: usize| said["checkpoints"][index]["digest"].as_str().unwrap();
    let expected = format!(
        "step 4  equal  {}\nstep 8  equal  {}\nequal: 2 checkpoints to step 8\n",
        digest(0),
        digest(1)
    );
    assert_eq!(told, expected);
    let warned = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(!warned.contains("warning"), "{warned}");
}

#[test]
fn a_digest_that_was_tampered_with_is_found_and_its_step_named() {
    let place = Place::new();
    let certificate = complete(
        &place,
        &[
            "--set",
            "checkpoint.every_steps=2",
            "--set",
            "checkpoint.keep_last=9",
        ],
    );
    let mut said = read(&certificate);
    assert_eq!(said["checkpoints"].as_array().unwrap().len(), 4);
    said["checkpoints"][1]["digest"] = "0".repeat(64).into();
    said["device"]["model"] = "another".into();
    let tampered = write(&place, "tampered.json", &said);
    let kept = place.path().join("kept");
    let verified = verify(&place, &tampered, &["--run-dir", kept.to_str().unwrap()]);
    let told = text(&verified);
    assert_eq!(verified.status.code(), Some(1), "{told}");
    for says in [
        "step 2  equal",
        "step 4  DIFFERENT",
        &"0".repeat(64),
        &place.digest("run", 4),
        "differs first at step 4 (equal up to step 2)",
        "warning: this runs on cpu",
        "the job ran on cpu (another, libtorch",
    ] {
        assert!(told.contains(says), "{says:?} in {told}");
    }
    // Progress may have told of step 6 (6/8) before the difference was found.
    assert!(!told.contains("step 6  "), "{told}");
    assert!(kept.join("checkpoints/step-00000002").is_dir());
    // What was computed there is no place for another go.
    let again = verify(&place, &tampered, &["--run-dir", kept.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(64), "{}", text(&again));
}

#[test]
fn what_is_no_longer_the_job_that_was_run_is_refused() {
    let place = Place::new();
    let certificate = complete(&place, &[]);
    let said = read(&certificate);
    let job = said["job"].as_str().unwrap();
    assert!(job.contains("seed = 7"), "{job}");
    let with = |key: &str, value: serde_json::Value| {
        let mut said = said.clone();
        said[key] = value;
        said
    };
    let other_job = with("job", job.replace("seed = 7", "seed = 8").into());
    let other_data = with("data_sha256", "0".repeat(64).into());
    let unknown = with("extra", 1.into());
    let cases: &[(&serde_json::Value, &[&str], &[&str])] = &[
        (&other_job, &[], &["job_sha256"]),
        (&other_data, &[], &["data.uri", "digest", &"0".repeat(64)]),
        (&unknown, &[], &["extra"]),
        (&said, &["--set", "job.seed=8"], &["job.seed is 8, was 7"]),
        (
            &said,
            &["--set", "data.uri=/no/such/place"],
            &["/no/such/place"],
        ),
        (&said, &["--workers", "5"], &["--workers 5", "1 to 4"]),
        (&said, &["--until", "3"], &["--until 3", "step 4"]),
    ];
    for (said, arguments, needles) in cases {
        let tampered = write(&place, "tampered.json", said);
        let refused = verify(&place, &tampered, arguments);
        let message = text(&refused);
        assert_eq!(refused.status.code(), Some(64), "{arguments:?}: {message}");
        for needle in *needles {
            assert!(message.contains(needle), "{arguments:?}: {message}");
        }
    }
}

/// What a GPU computes is told by the certificate alone here: nothing is computed again.
#[test]
fn a_result_that_no_other_run_has_is_not_verified_and_says_why() {
    let place = Place::new();
    let certificate = complete(&place, &["--set", "train.deterministic=false"]);
    let mut said = read(&certificate);
    assert_eq!(said["deterministic"], false);
    // On a CPU the kernels are deterministic anyway.
    let verified = verify(&place, &certificate, &[]);
    assert!(verified.status.success(), "{}", text(&verified));
    said["device"]["kind"] = "cuda".into();
    let refused = verify(&place, &write(&place, "gpu.json", &said), &[]);
    let message = text(&refused);
    assert_eq!(refused.status.code(), Some(64), "{message}");
    for needle in ["can't be verified", "train.deterministic = false"] {
        assert!(message.contains(needle), "{message}");
    }
}

#[test]
fn until_ends_at_the_newest_checkpoint_up_to_there() {
    let place = Place::new();
    let certificate = complete(&place, &[]);
    let verified = verify(&place, &certificate, &["--until", "7"]);
    let told = text(&verified);
    assert_eq!(verified.status.code(), Some(0), "{told}");
    assert!(told.contains("equal: 1 checkpoint to step 4"), "{told}");
    assert!(!told.contains("step 8"), "{told}");
}

/// A job that was stopped has checkpoints at odd steps; retention has removed others.
#[test]
fn a_job_with_a_history_verifies() {
    let place = Place::new();
    let keep = [
        "--set",
        "checkpoint.every_steps=2",
        "--set",
        "checkpoint.keep_last=3",
    ];
    let first = place.run("run", &[&keep[..], &["--set", "train.steps=5"]].concat());
    assert!(first.status.success(), "{}", text(&first));
    let certificate = complete(
        &place,
        &[&keep[..], &["--resume", "--workers", "2"]].concat(),
    );
    let said = read(&certificate);
    let steps: Vec<_> = said["checkpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|kept| kept["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [5, 6, 8]);
    let verified = verify(&place, &certificate, &[]);
    let told = text(&verified);
    assert_eq!(verified.status.code(), Some(0), "{told}");
    assert!(told.contains("equal: 3 checkpoints to step 8"), "{told}");
}

#[test]
fn every_complete_job_has_a_certificate_and_no_other() {
    let place = Place::new();
    let Served { url, mut process } = place.serve("run", &[]);
    let certificate = place.run_dir("run").join("result.json");
    assert!(!certificate.exists());
    let mut worker = place.worker(&url, "worker");
    assert_eq!(worker.wait(), 0, "{}", worker.log());
    assert_eq!(process.wait(), 0, "{}", process.log());
    let said = read(&certificate);
    // Lost, and found to be missing.
    std::fs::remove_file(&certificate).unwrap();
    let resumed = place.run("run", &["--resume"]);
    assert!(resumed.status.success(), "{}", text(&resumed));
    assert_eq!(read(&certificate), said);
    // An older checkpoint that is damaged is left out.
    std::fs::remove_file(&certificate).unwrap();
    std::fs::write(place.checkpoint("run", 4).join("manifest.json"), "{").unwrap();
    let resumed = place.run("run", &["--resume"]);
    assert!(resumed.status.success(), "{}", text(&resumed));
    assert_eq!(read(&certificate)["checkpoints"][0], said["checkpoints"][1]);
    // It can't be written: that is an error, and nothing else is lost.
    std::fs::remove_file(&certificate).unwrap();
    std::fs::create_dir(&certificate).unwrap();
    let failed = place.run("run", &["--resume"]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    assert!(text(&failed).contains("result.json"), "{}", text(&failed));
    std::fs::remove_dir(&certificate).unwrap();
    // A job that goes further has another one.
    let further = complete(&place, &["--resume", "--set", "train.steps=9"]);
    assert_eq!(read(&further)["steps"], 9);
    assert_eq!(read(&further)["job_id"], said["job_id"]);
}
