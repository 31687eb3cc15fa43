//! Invariant 1: which processes computed a result leaves no trace in a single bit of it.

mod processes;

use processes::{Place, Served, text};

/// Runs the small job and gives the digests of its two checkpoints.
fn digests(place: &Place, name: &str, arguments: &[&str]) -> [String; 2] {
    let output = place.run(name, arguments);
    assert!(output.status.success(), "{}", text(&output));
    [4, 8].map(|step| place.digest(name, step))
}

#[test]
fn the_digest_is_the_same_for_any_number_of_workers() {
    let place = Place::new();
    for update in ["alternating", "simultaneous"] {
        let set = format!("train.update={update}");
        let runs: Vec<_> = ["1", "2", "3", "4"]
            .into_iter()
            .map(|workers| {
                let name = format!("{update}-{workers}");
                digests(&place, &name, &["--workers", workers, "--set", &set])
            })
            .collect();
        assert!(runs.iter().all(|run| *run == runs[0]), "{update}: {runs:?}");
        assert_ne!(runs[0][0], runs[0][1], "training changes the state");
    }
}

#[test]
fn the_digest_is_the_same_for_any_number_of_workers_in_bf16() {
    let place = Place::new();
    let run = |name: &str, workers: &str, precision: &str| {
        let precision = format!("train.precision={precision}");
        let format = "train.memory_format=contiguous";
        let set = ["--workers", workers, "--set", &precision, "--set", format];
        digests(&place, name, &set)
    };
    let alone = run("alone", "1", "bf16");
    assert_eq!(run("together", "3", "bf16"), alone);
    assert_ne!(run("single", "2", "f32"), alone);
}

/// A game with all that can be added to it, and one whose players make several updates a step.
#[test]
fn the_digest_is_the_same_for_any_number_of_workers_in_other_games() {
    let place = Place::new();
    let regularised = [
        "train.objective=relativistic",
        "model.discriminator_norm=none",
        "regularise.r1=1",
        "regularise.r2=1",
        "regularise.instance_noise=0.2",
        "regularise.instance_noise_steps=6",
        r#"regularise.augment=["color", "translation", "cutout"]"#,
        "train.packing=2",
        "train.update=simultaneous",
    ];
    let critic = [
        "train.objective=wasserstein",
        "model.discriminator_norm=layer",
        "train.discriminator_steps=2",
        "train.generator_steps=2",
    ];
    for (game, sets) in [("regularised", &regularised[..]), ("critic", &critic[..])] {
        let run = |workers: &str| {
            let mut arguments = vec!["--workers", workers];
            for set in sets {
                arguments.extend(["--set", set]);
            }
            digests(&place, &format!("{game}-{workers}"), &arguments)
        };
        let alone = run("1");
        assert_eq!(run("3"), alone, "{game}");
        assert_ne!(alone[0], alone[1], "training changes the state");
    }
}

#[test]
fn workers_that_are_started_elsewhere_compute_the_same_bits() {
    let place = Place::new();
    let local = digests(&place, "local", &["--workers", "2"]);
    let Served { url, mut process } = place.serve("served", &["--set", "workers.min=2"]);
    let mut workers = [place.worker(&url, "first"), place.worker(&url, "second")];
    for worker in &mut workers {
        assert_eq!(worker.wait(), 0, "{}", worker.log());
    }
    assert_eq!(process.wait(), 0, "{}", process.log());
    assert_eq!([4, 8].map(|step| place.digest("served", step)), local);
}

#[test]
fn sums_through_shared_memory_and_through_connections_are_the_same_bits() {
    const SAID: &str = "sums go through memory shared";
    let place = Place::new();
    let run = |name: &str, shared: bool| {
        let set = format!("workers.shared_memory={shared}");
        let found = digests(&place, name, &["--workers", "3", "--set", &set]);
        for worker in 0..3 {
            let log = place.run_dir(name).join(format!("worker-{worker}.log"));
            let log = std::fs::read_to_string(log).expect("a worker's log");
            let expected = shared && cfg!(target_os = "linux");
            assert_eq!(log.contains(SAID), expected, "{log}");
        }
        found
    };
    assert_eq!(run("shared", true), run("connected", false));
}

#[test]
fn a_resumed_job_continues_bit_for_bit() {
    let place = Place::new();
    let straight = digests(&place, "straight", &["--workers", "2"]);
    let first = place.run("resumed", &["--workers", "2", "--set", "train.steps=3"]);
    assert!(first.status.success(), "{}", text(&first));
    // The number of workers, the length and the intervals may change.
    let second = [
        "--workers",
        "3",
        "--resume",
        "--set",
        "checkpoint.keep_last=9",
    ];
    assert_eq!(digests(&place, "resumed", &second), straight);
}

#[test]
fn another_seed_gives_other_bits() {
    let place = Place::new();
    let seven = digests(&place, "seven", &[]);
    let eight = digests(&place, "eight", &["--set", "job.seed=8"]);
    assert!(seven[0] != eight[0] && seven[1] != eight[1]);
}
