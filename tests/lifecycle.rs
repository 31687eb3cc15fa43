//! A job's life: its files, its end, and what becomes of it when something is wrong.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod processes;

use processes::{
    COORD, Place, Process, Served, WORKER, free_address, job, output, shared_cache, text,
};
use std::process::Command;

/// `gan-coord run` with two workers, which has done its first steps.
fn local_run(place: &Place, steps: &str) -> Process {
    let mut command = Command::new(COORD);
    command.arg("run").arg(job()).args(["--workers", "2"]);
    command.arg("--run-dir").arg(place.run_dir("run"));
    command.args(["--set", &shared_cache(), "--set", steps]);
    let run = Process::start(command, &place.path().join("run.log"));
    let metrics = place.run_dir("run").join("metrics.jsonl");
    processes::wait_until("the first steps", || {
        std::fs::metadata(&metrics).is_ok_and(|file| file.len() > 1000)
    });
    run
}

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
    let resumed = place.run("run", &["--resume"]);
    assert!(resumed.status.success(), "{}", text(&resumed));
    assert_eq!(place.digest("run", 8), straight);
}

#[test]
fn a_job_whose_checkpoints_are_all_damaged_does_not_begin_anew() {
    let place = Place::new();
    assert!(place.run("run", &[]).status.success());
    for step in [4, 8] {
        let manifest = place.checkpoint("run", step).join("manifest.json");
        std::fs::write(manifest, "{").unwrap();
    }
    let refused = place.run("run", &["--resume"]);
    assert_eq!(refused.status.code(), Some(64), "{}", text(&refused));
    assert!(
        text(&refused).contains("none of the 2 checkpoints"),
        "{}",
        text(&refused)
    );
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
    let reached = place.newest("stopped");
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
fn ctrl_c_ends_a_local_run_with_a_checkpoint() {
    let place = Place::new();
    let mut run = local_run(&place, "train.steps=100000");
    run.signal("INT");
    assert_eq!(run.wait(), 0, "{}", run.log());
    let reached = place.newest("run");
    assert!(
        run.log().contains(&format!("stopped at step {reached}")),
        "{}",
        run.log()
    );
}

#[test]
fn a_worker_waits_for_a_coordinator_that_comes_later() {
    let place = Place::new();
    let address = free_address();
    let mut worker = place.worker(&format!("http://{address}"), "early");
    worker.said("can't reach the coordinator yet");
    let Served { mut process, .. } = place.serve_on(&address, "late", &[]);
    assert_eq!(worker.wait(), 0, "{}", worker.log());
    assert_eq!(process.wait(), 0, "{}", process.log());
    assert_eq!(place.newest("late"), 8);
}

/// Nothing waits for ever, and nothing that was computed is lost.
#[test]
fn a_job_that_waits_in_vain_saves_its_state_and_says_for_whom_it_waited() {
    let place = Place::new();
    let long = [
        "--set",
        "train.steps=100000",
        "--set",
        "workers.min=2",
        "--set",
        "deadlines.join=4s",
    ];
    let served = place.serve("lost", &long);
    let mut first = place.worker(&served.url, "first");
    let mut second = place.worker(&served.url, "second");
    let status = served.wait("step 6", |status| status["step"].as_u64() >= Some(6));
    let pid = second.pid();
    second.kill();
    assert_eq!(first.wait(), 1, "{}", first.log());
    assert!(first.log().contains("the job is over: failed"));
    let Served { mut process, .. } = served;
    assert_eq!(process.wait(), 1, "{}", process.log());
    let log = process.log();
    assert!(
        log.contains(&format!("pid {pid}")) && log.contains("waiting for workers: 1 of 2 ready"),
        "{log}"
    );
    let saved = place.newest("lost");
    assert!(Some(saved) >= status["step"].as_u64(), "{saved} {status}");
    let on = saved + 4;
    let resumed = place.run("lost", &["--resume", "--set", &format!("train.steps={on}")]);
    assert!(resumed.status.success(), "{}", text(&resumed));
    place.digest("lost", on);
}

#[test]
fn a_local_run_goes_on_without_a_worker_that_dies() {
    let place = Place::new();
    let steps = "train.steps=150";
    let mut run = local_run(&place, steps);
    let children = Command::new("pgrep")
        .args(["-P", &run.pid().to_string()])
        .output()
        .unwrap();
    let children = String::from_utf8(children.stdout).unwrap();
    let child = children.lines().next().unwrap();
    let killed = Command::new("kill").args(["-9", child]).status().unwrap();
    assert!(killed.success());
    assert_eq!(run.wait(), 0, "{}", run.log());
    assert!(run.log().contains("1 go on"), "{}", run.log());
    assert!(place.run("whole", &["--set", steps]).status.success());
    assert_eq!(place.digest("run", 150), place.digest("whole", 150));
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
        "--set",
        "deadlines.coordinator=2s",
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
fn a_folder_of_images_is_trained_on() {
    let place = Place::new();
    let folder = place.path().join("images");
    for class in ["a", "b"] {
        std::fs::create_dir_all(folder.join(class)).unwrap();
        for number in 0..40_u32 {
            let picture = image::RgbImage::from_fn(40 + number, 50, |x, y| {
                image::Rgb([(x * number) as u8, (y * 3) as u8, (x ^ y) as u8])
            });
            let kind = if number % 2 == 0 { "png" } else { "jpg" };
            picture
                .save(folder.join(class).join(format!("{number}.{kind}")))
                .unwrap();
        }
    }
    let uri = format!("data.uri={}", folder.display());
    let arguments = [
        "--set",
        &uri,
        "--set",
        "model.channels=3",
        "--set",
        "data.fit=cover",
    ];
    std::fs::write(folder.join("a/other.webp"), "left out").unwrap();
    let run = place.run("images", &arguments);
    assert!(run.status.success(), "{}", text(&run));
    assert!(
        text(&run).contains("1 files of other image formats"),
        "{}",
        text(&run)
    );
    assert_eq!(place.newest("images"), 8);
    std::fs::write(folder.join("b/broken.png"), "no picture").unwrap();
    let refused = place.run("broken", &arguments);
    assert_eq!(refused.status.code(), Some(64), "{}", text(&refused));
    assert!(text(&refused).contains("broken.png"), "{}", text(&refused));
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
fn a_local_run_that_is_told_to_go_drains() {
    let place = Place::new();
    let mut run = local_run(&place, "train.steps=100000");
    run.signal("TERM");
    assert_eq!(run.wait(), 75, "{}", run.log());
    let reached = place.newest("run");
    assert!(
        run.log().contains(&format!("drained at step {reached}")),
        "{}",
        run.log()
    );
}

#[test]
fn a_run_directory_of_another_job_is_refused() {
    let place = Place::new();
    assert!(place.run("run", &[]).status.success());
    let command = place.serve_command("127.0.0.1:0", "run", &["--set", "job.seed=8"]);
    let refused = output(command);
    assert_eq!(refused.status.code(), Some(64), "{}", text(&refused));
    assert!(
        text(&refused).contains("job.seed is 8, was 7"),
        "{}",
        text(&refused)
    );
}

#[test]
fn a_job_whose_last_checkpoint_cannot_be_written_is_not_complete() {
    let place = Place::new();
    let run_dir = place.run_dir("run");
    std::fs::create_dir(&run_dir).unwrap();
    std::fs::write(run_dir.join("checkpoints"), "no folder").unwrap();
    let run = place.run("run", &[]);
    assert_eq!(run.status.code(), Some(1), "{}", text(&run));
    assert!(
        text(&run).contains("the last checkpoint could not be written"),
        "{}",
        text(&run)
    );
    let log = std::fs::read_to_string(run_dir.join("worker-0.log")).unwrap();
    assert!(
        log.contains("training goes on"),
        "step 4's failure ended nothing: {log}"
    );
}
