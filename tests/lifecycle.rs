//! A job's life as people see it: its files, its end, and what it says when something is wrong.

mod processes;

use processes::{COORD, Place, Served, WORKER, job, output, shared_cache, text};
use std::path::Path;
use std::process::Command;

#[test]
fn a_job_leaves_what_the_readme_says() {
    let place = Place::new();
    let run = place.run("run", &["--workers", "2", "--set", "sample.every_steps=4"]);
    assert!(run.status.success(), "{}", text(&run));
    let run_dir = place.run_dir("run");
    for step in [4, 8] {
        let folder = place.checkpoint("run", step);
        for file in ["generator", "discriminator", "optimizer", "generator_ema"] {
            assert!(
                folder.join(format!("{file}.safetensors")).is_file(),
                "{file}"
            );
        }
        assert!(folder.join("manifest.json").is_file());
        let picture = image::open(run_dir.join(format!("samples/step-{step:08}.png"))).unwrap();
        assert!(picture.width() > 4 * 32 && picture.width() == picture.height());
    }
    for file in [
        "ledger.sqlite",
        "coordinator.log",
        "worker-0.log",
        "worker-1.log",
    ] {
        assert!(run_dir.join(file).is_file(), "{file}");
    }
    let metrics = std::fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap();
    let records: Vec<serde_json::Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let steps: Vec<_> = records.iter().filter_map(|r| r["step"].as_u64()).collect();
    assert_eq!(steps, (1..=8).collect::<Vec<_>>());
    for record in &records {
        for key in [
            "epoch",
            "generation",
            "time",
            "images_per_s",
            "loss_d",
            "loss_g",
            "d_real",
            "d_fake",
            "grad_norm_d",
            "grad_norm_g",
        ] {
            assert!(record[key].is_number(), "{key} in {record}");
        }
        assert!(record["images_per_s"].as_f64() > Some(0.0));
        let mean = record["d_real"].as_f64().unwrap();
        assert!(
            (0.0..=1.0).contains(&mean),
            "D(x) is a probability: {record}"
        );
    }
    let times: Vec<_> = records.iter().filter_map(|r| r["time"].as_f64()).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn a_checkpoint_can_be_sampled_and_inspected() {
    let place = Place::new();
    assert!(place.run("run", &[]).status.success());
    let checkpoint = place.checkpoint("run", 8);
    let draw = |out: &str, seed: &str| {
        let mut command = Command::new(WORKER);
        let path = place.path().join(out);
        command
            .arg("sample")
            .arg(&checkpoint)
            .arg("--out")
            .arg(&path);
        command.args(["--count", "6", "--seed", seed]);
        let drawn = output(command);
        assert!(drawn.status.success(), "{}", text(&drawn));
        std::fs::read(path).unwrap()
    };
    assert_eq!(draw("a.png", "1"), draw("b.png", "1"));
    assert_ne!(draw("a.png", "1"), draw("c.png", "2"));
    let mut inspect = Command::new(WORKER);
    inspect.arg("inspect").arg(&checkpoint);
    let manifest = output(inspect);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.stdout).unwrap();
    assert_eq!(manifest["step"], 8);
    assert_eq!(manifest["digest"], place.digest("run", 8));
}

/// Invariant 6.
#[test]
fn a_damaged_checkpoint_is_refused_and_the_one_before_is_taken() {
    let place = Place::new();
    assert!(place.run("run", &[]).status.success());
    let straight = place.digest("run", 8);
    let file = place.checkpoint("run", 8).join("optimizer.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let mut inspect = Command::new(WORKER);
    inspect.arg("inspect").arg(place.checkpoint("run", 8));
    let refused = output(inspect);
    assert!(!refused.status.success());
    assert!(
        text(&refused).contains("optimizer.safetensors"),
        "{}",
        text(&refused)
    );
    std::fs::remove_dir_all(place.checkpoint("run", 8)).unwrap();
    let resumed = place.run("run", &["--resume"]);
    assert!(resumed.status.success(), "{}", text(&resumed));
    assert_eq!(place.digest("run", 8), straight);
}

#[test]
fn a_stop_finishes_the_step_and_can_be_resumed() {
    let place = Place::new();
    let long = ["--set", "train.steps=100000", "--set", "workers.min=2"];
    let served = place.serve("stopped", &long);
    let mut workers = [
        place.worker(&served.url, "first"),
        place.worker(&served.url, "second"),
    ];
    served.wait("step 3", |status| status["step"].as_u64() >= Some(3));
    let mut stop = Command::new(COORD);
    stop.args(["stop", "--coordinator", &served.url]);
    let told = output(stop);
    assert!(told.status.success(), "{}", text(&told));
    let Served { mut process, .. } = served;
    assert_eq!(process.wait(), 0, "{}", process.log());
    for worker in &mut workers {
        assert_eq!(worker.wait(), 0, "{}", worker.log());
    }
    let reached = newest(&place, "stopped");
    assert!(
        process
            .log()
            .contains(&format!("stopped at step {reached}")),
        "{}",
        process.log()
    );
    // The same step, gone to straight, holds the same bits.
    let steps = format!("train.steps={reached}");
    assert!(place.run("straight", &["--set", &steps]).status.success());
    assert_eq!(
        place.digest("stopped", reached),
        place.digest("straight", reached)
    );
}

#[test]
fn a_worker_that_is_told_to_go_ends_the_job_in_good_order() {
    let place = Place::new();
    let long = ["--set", "train.steps=100000", "--set", "workers.min=2"];
    let served = place.serve("left", &long);
    let mut first = place.worker(&served.url, "first");
    let mut second = place.worker(&served.url, "second");
    served.wait("step 3", |status| status["step"].as_u64() >= Some(3));
    second.signal("TERM");
    assert_eq!(second.wait(), 75, "{}", second.log());
    assert_eq!(first.wait(), 0, "{}", first.log());
    let Served { mut process, .. } = served;
    assert_eq!(process.wait(), 0, "{}", process.log());
    assert!(newest(&place, "left") >= 3);
}

#[test]
fn a_lost_worker_ends_the_job_with_its_name() {
    let place = Place::new();
    let long = ["--set", "train.steps=100000", "--set", "workers.min=2"];
    let served = place.serve("lost", &long);
    let mut first = place.worker(&served.url, "first");
    let mut second = place.worker(&served.url, "second");
    served.wait("step 3", |status| status["step"].as_u64() >= Some(3));
    let pid = second.pid();
    second.kill();
    assert_eq!(first.wait(), 1, "{}", first.log());
    let Served { mut process, .. } = served;
    assert_eq!(process.wait(), 1, "{}", process.log());
    let log = process.log();
    assert!(
        log.contains(&format!("pid {pid}")) && log.contains("lost worker"),
        "{log}"
    );
    let resumed = place.run("lost", &["--resume", "--set", "train.steps=20"]);
    let behind = text(&resumed).contains("at least that");
    assert!(resumed.status.success() || behind, "{}", text(&resumed));
}

/// Invariant 5.
#[test]
fn training_goes_on_without_the_coordinator() {
    let place = Place::new();
    let steps = [
        "--set",
        "train.steps=60",
        "--set",
        "checkpoint.every_steps=0",
    ];
    let mut served = place.serve("alone", &steps);
    let mut worker = place.worker(&served.url, "worker");
    served.wait("step 2", |status| status["step"].as_u64() >= Some(2));
    served.process.kill();
    assert_eq!(worker.wait(), 0, "{}", worker.log());
    assert!(place.run("whole", &steps).status.success());
    assert_eq!(place.digest("alone", 60), place.digest("whole", 60));
}

#[test]
fn a_run_directory_holds_one_job() {
    let place = Place::new();
    assert!(place.run("run", &[]).status.success());
    let again = place.run("run", &[]);
    assert_eq!(again.status.code(), Some(64), "{}", text(&again));
    assert!(text(&again).contains("--resume"), "{}", text(&again));
    let other = place.run(
        "run",
        &["--resume", "--set", "train.batch=4", "--set", "job.seed=1"],
    );
    assert_eq!(other.status.code(), Some(64));
    let message = text(&other);
    assert!(message.contains("train.batch is 4, was 8"), "{message}");
    assert!(message.contains("job.seed is 1, was 7"), "{message}");
    let done = place.run("run", &["--resume"]);
    assert!(
        done.status.success() && text(&done).contains("complete at step 8"),
        "{}",
        text(&done)
    );
}

#[test]
fn bad_input_gets_one_clear_message_and_exit_code_64() {
    let place = Place::new();
    let empty = place.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let empty = format!("data.uri={}", empty.display());
    let cases: &[(&[&str], &[&str])] = &[
        (&["--set", "train.bach=3"], &["small.toml", "bach"]),
        (
            &["--set", "train.batch=0"],
            &["small.toml", "train.batch", "expected"],
        ),
        (
            &["--set", "model.image_size=33"],
            &["model.image_size = 33", "32, 64, 128 or 256"],
        ),
        (&["--set", "data.uri=/no/such/place"], &["/no/such/place"]),
        (&["--set", &empty], &["empty"]),
        (&["--set", "train.batch=4000"], &["10000", "16000"]),
        (&["--set", "nonsense"], &["section.key=value"]),
        (&["--workers", "5"], &["--workers 5", "train.replicas (4)"]),
    ];
    for (arguments, needles) in cases {
        let refused = place.run("bad", arguments);
        let message = text(&refused);
        assert_eq!(refused.status.code(), Some(64), "{arguments:?}: {message}");
        for needle in *needles {
            assert!(message.contains(needle), "{arguments:?}: {message}");
        }
        assert!(!message.contains("panicked"), "{message}");
    }
    let mut missing = Command::new(COORD);
    missing.args(["check", "no-such-job.toml"]);
    let refused = output(missing);
    assert_eq!(refused.status.code(), Some(64));
    assert!(text(&refused).contains("no-such-job.toml"));
}

#[test]
fn check_and_plan_tell_what_would_run() {
    let place = Place::new();
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(COORD);
        command.arg(arguments[0]).arg(job()).args(&arguments[1..]);
        command
            .args(["--set", &shared_cache()])
            .current_dir(place.path());
        let told = output(command);
        assert!(told.status.success(), "{}", text(&told));
        String::from_utf8(told.stdout).unwrap()
    };
    let told = ask(&["check"]);
    for needle in [
        "10000 samples of 1x32x32",
        "4 replicas x 8",
        "8 steps",
        "main.0.weight",
    ] {
        assert!(told.contains(needle), "{needle} in {told}");
    }
    let plan: serde_json::Value =
        serde_json::from_str(&ask(&["plan", "--epoch", "2", "--json"])).unwrap();
    let spans = plan["replicas"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|r| r.as_array().unwrap());
    let used: u64 = spans.map(|span| span["len"].as_u64().unwrap()).sum();
    assert_eq!(used, 10_000 / 32 * 32);
    assert!(ask(&["plan", "--epoch", "2"]).contains("replica 3:"));
}

#[test]
fn both_programs_print_completions() {
    for program in [COORD, WORKER] {
        let mut command = Command::new(program);
        command.args(["completions", "bash"]);
        let script = output(command);
        let name = Path::new(program)
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        assert!(script.status.success() && text(&script).contains(&name));
    }
}

/// The newest step that has a checkpoint.
fn newest(place: &Place, name: &str) -> u64 {
    let folders = std::fs::read_dir(place.run_dir(name).join("checkpoints")).unwrap();
    folders
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_prefix("step-")?.parse().ok()
        })
        .max()
        .expect("a checkpoint")
}
