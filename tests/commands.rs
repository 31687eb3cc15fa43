//! What people and scripts get from the programs: commands, messages, metrics, services.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod processes;

use processes::{COORD, Place, WORKER, job, output, shared_cache, text};
use std::path::Path;
use std::process::Command;

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
    let no_run = place.path().display().to_string();
    let mut view = Command::new(COORD);
    view.args(["view", &no_run]);
    let refused = output(view);
    assert_eq!(refused.status.code(), Some(64), "{}", text(&refused));
    let said = format!("{no_run}/ledger.sqlite: no ledger is there");
    assert!(text(&refused).contains(&said), "{}", text(&refused));
    for (program, arguments) in [
        (COORD, ["status", "--coordinator", "localhost"]),
        (WORKER, ["train", "--coordinator", "localhost"]),
        (COORD, ["stop", "--coordinator", "https://x:1"]),
        (WORKER, ["train", "--device", "tpu"]),
        (WORKER, ["sample", "--count", "0"]),
        (WORKER, ["figures", "--figure", "17"]),
        (WORKER, ["figures", "--figure", "18"]),
    ] {
        let mut command = Command::new(program);
        command.args(arguments);
        let refused = output(command);
        assert_eq!(
            refused.status.code(),
            Some(64),
            "{arguments:?}: {}",
            text(&refused)
        );
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
fn a_reader_that_goes_is_no_error() {
    for program in [COORD, WORKER] {
        let mut pipe = Command::new("bash");
        let line = format!("set -o pipefail; {program} completions bash | head -1 >/dev/null");
        pipe.args(["-c", &line]);
        let piped = output(pipe);
        assert!(!text(&piped).contains("panicked"), "{}", text(&piped));
    }
}

#[test]
fn the_readme_links_to_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let links = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'));
    let files: Vec<&str> = links.map(|(link, _)| link).collect();
    assert!(files.len() >= 3, "{files:?}");
    let title = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        title.replace(' ', "-")
    };
    for file in files {
        match file.strip_prefix('#') {
            Some(anchor) => assert!(
                readme
                    .lines()
                    .any(|line| line.starts_with('#') && title(line) == anchor),
                "{file}"
            ),
            None => assert!(root.join(file).exists(), "{file}"),
        }
    }
}

#[test]
fn figures_are_drawn_and_told_of() {
    let place = Place::new();
    let mut command = Command::new(WORKER);
    command.args([
        "figures", "--brief", "--out", "drawn", "--figure", "20", "--figure", "14",
    ]);
    command.current_dir(place.path());
    let told = output(command);
    assert!(told.status.success(), "{}", text(&told));
    for figure in [14, 20] {
        let file = format!("drawn/figure-{figure}.svg");
        assert!(text(&told).contains(&file), "{}", text(&told));
        let svg = std::fs::read_to_string(place.path().join(file)).unwrap();
        assert!(svg.starts_with("<svg ") && svg.contains("KL("), "{figure}");
    }
    let drawn = std::fs::read_dir(place.path().join("drawn")).unwrap();
    assert_eq!(drawn.count(), 2, "and nothing beside");
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

#[test]
fn both_programs_export_their_metrics() {
    use ganglion::telemetry::catalog::{self, Role};
    let place = Place::new();
    let listen = ["--metrics-listen", "127.0.0.1:0"];
    // The diversity of fakes is told where it is watched.
    let sets = [
        "--set",
        "train.steps=100000",
        "--set",
        "guard.collapsed=warn",
    ];
    let long = [&listen[..], &sets].concat();
    let served = place.serve("run", &long);
    let worker = place.worker_with(&served.url, "worker", &listen);
    served.wait("a checkpoint", |status| !status["checkpoints"][0].is_null());
    // This job is not evaluated, so it has no scores.
    let scores = [
        catalog::EVALUATE_SCORE,
        catalog::EVALUATE_STEP,
        catalog::EVALUATE_BEST_STEP,
    ];
    for (process, role) in [
        (&served.process, Role::Coordinator),
        (&worker, Role::Worker),
    ] {
        let page = fetch(&process.said("metrics on http://"));
        for metric in catalog::of(role).filter(|metric| !scores.contains(metric)) {
            assert!(
                page.contains(&format!("# TYPE {} ", metric.name)),
                "{}",
                metric.name
            );
        }
    }
    let page = fetch(&worker.said("metrics on http://"));
    assert!(!page.contains("gan_worker_images_total 0"), "{page}");
    assert!(page.contains("gan_train_loss{net=\"generator\"}"), "{page}");
}

#[test]
fn health_and_reflection_are_served() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let place = Place::new();
    let served = place.serve("run", &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(served.url.clone());
        let channel = endpoint.unwrap().connect().await.unwrap();
        let mut health = HealthClient::new(channel.clone());
        let service = "ganglion.v1.Coordinator".to_owned();
        let answer = health.check(HealthCheckRequest { service }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
        let mut reflection = ServerReflectionClient::new(channel);
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answer = reflection
            .server_reflection_info(tokio_stream::once(request))
            .await;
        let answer = answer
            .unwrap()
            .into_inner()
            .message()
            .await
            .unwrap()
            .unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{answer:?}");
        };
        assert!(
            list.service
                .iter()
                .any(|s| s.name == "ganglion.v1.Coordinator")
        );
    });
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

#[test]
fn devices_are_listed_and_what_is_missing_has_a_reason() {
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(WORKER);
        command.arg("devices").args(arguments);
        let told = output(command);
        assert!(told.status.success(), "{}", text(&told));
        String::from_utf8(told.stdout).unwrap()
    };
    let table = ask(&[]);
    let lines: Vec<&str> = table.lines().collect();
    for row in [
        "cpu ",
        "libtorch ",
        "  CUDA ",
        "driver ",
        "NCCL ",
        "graphs     ",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(row)), "{table}");
    }
    let json: serde_json::Value = serde_json::from_str(&ask(&["--json"])).unwrap();
    assert!(json["cpu"]["cores"].as_u64() > Some(0), "{json}");
    let version = json["libtorch"]["version"].as_str().unwrap();
    assert!(version.starts_with("2."), "{json}");
    let folder = Path::new(json["libtorch"]["folder"].as_str().unwrap());
    assert!(folder.join("libtorch_cpu.so").exists(), "{json}");
    for (part, sign, library) in [
        (&json["libtorch"]["cuda"], "gpus", "libtorch_cuda.so"),
        (&json["driver"], "cuda", "libcuda.so.1"),
    ] {
        let why = part["missing"].as_str().unwrap_or_default();
        assert!(!part[sign].is_null() || why.contains(library), "{json}");
    }
}

/// The page that an exporter serves.
fn fetch(url: &str) -> String {
    use std::io::{Read, Write};
    let address = url.trim_end_matches("/metrics");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(processes::DEADLINE)).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

/// 70 little pictures, whose epochs are two steps of the small job, with 6 left out.
fn pictures(place: &Place) -> String {
    let folder = place.path().join("pictures");
    std::fs::create_dir(&folder).unwrap();
    for index in 0..70u8 {
        let picture = image::GrayImage::from_fn(8, 8, |x, y| image::Luma([index + (x * y) as u8]));
        picture
            .save(folder.join(format!("{index:02}.png")))
            .unwrap();
    }
    format!("data.uri={}", folder.display())
}

fn ledger(run_dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(COORD);
    command.arg("ledger").arg(run_dir).args(arguments);
    let told = output(command);
    (told.status.code(), text(&told))
}

/// Invariant 2, as anybody can check it.
#[test]
fn the_ledger_shows_that_each_sample_was_used_exactly_once() {
    let place = Place::new();
    let data = pictures(&place);
    let run = |workers: &str, steps: &str| {
        let steps = format!("train.steps={steps}");
        let run = place.run(
            "run",
            &[
                "--resume",
                "--workers",
                workers,
                "--set",
                &data,
                "--set",
                "data.shard_samples=16",
                "--set",
                &steps,
            ],
        );
        assert!(run.status.success(), "{}", text(&run));
    };
    run("2", "4");
    run("3", "7");
    let run_dir = place.run_dir("run");
    for epoch in ["0", "1", "2"] {
        let (code, told) = ledger(&run_dir, &["--epoch", epoch]);
        assert_eq!(code, Some(0), "{told}");
        for says in [
            "of 70 samples: 64 done, 0 assigned, 6 left out, 0 nowhere, 0 more than once",
            "each sample stands exactly once",
            "replica 3\n",
        ] {
            assert!(told.contains(says), "{says:?} in {told}");
        }
    }
    // In mid-epoch it isn't over, and that is no fault.
    let (code, told) = ledger(&run_dir, &["--epoch", "3"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("it ends at step 8, and the job has reached step 7"),
        "{told}"
    );
    let (code, told) = ledger(&run_dir, &["--epoch", "9"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("not begun"), "{told}");
    // Another generation brings it to its end.
    run("1", "8");
    let (code, told) = ledger(&run_dir, &["--epoch", "3", "--json"]);
    assert_eq!(code, Some(0), "{told}");
    let json = told.lines().find(|line| line.starts_with('{')).unwrap();
    let epoch: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(epoch["each_exactly_once"], true, "{epoch}");
    let rows = epoch["rows"].as_array().unwrap();
    for generation in [2, 3] {
        let read = rows.iter().filter(|row| row["generation"] == generation);
        let read =
            read.map(|row| row["part"][1].as_u64().unwrap() - row["part"][0].as_u64().unwrap());
        assert_eq!(read.sum::<u64>(), 32, "{epoch}");
    }
    let (code, told) = ledger(&run_dir, &[]);
    assert_eq!(code, Some(0), "{told}");
    for says in [
        "job small",
        "reached step 8, in epoch 4",
        "steps 0 to 4",
        "steps 4 to 7",
        "steps 7 to 8",
        "rank 0  replicas 0..2",
        "rank 2  replicas 3..4",
        "checkpoints/step-00000008",
        "generation 2  joined  worker ",
        "complete at step 8",
    ] {
        assert!(told.contains(says), "{says:?} in {told}");
    }
    let (code, told) = ledger(&run_dir, &["--json"]);
    assert_eq!(code, Some(0), "{told}");
    let json = told.lines().find(|line| line.starts_with('{')).unwrap();
    let history: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(history["generations"][1]["from_step"], 4, "{history}");
    assert_eq!(history["step"], 8);

    // A ledger that is wrong is found out.
    let tamper = |statement: &str| {
        let tables = rusqlite::Connection::open(run_dir.join("ledger.sqlite")).unwrap();
        assert!(tables.execute(statement, []).unwrap() > 0, "{statement}");
    };
    tamper("DELETE FROM spans WHERE epoch = 0 AND replica = 2");
    let (code, told) = ledger(&run_dir, &["--epoch", "0"]);
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.contains("16 nowhere") && told.contains("stands nowhere"),
        "{told}"
    );
    assert!(told.contains("  shard "), "{told}");
    tamper("INSERT INTO tails VALUES (1, 0, 3, 2)");
    let (code, told) = ledger(&run_dir, &["--epoch", "1"]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("shard 0 [3..5] stands 2 times"), "{told}");
}

#[test]
fn the_ledger_is_read_while_the_job_runs_and_what_is_none_is_refused() {
    let place = Place::new();
    let (code, told) = ledger(&place.run_dir("nowhere"), &[]);
    assert_eq!(code, Some(64), "{told}");
    assert!(told.contains("nowhere"), "{told}");
    let (code, told) = ledger(place.path(), &["--epoch", "0"]);
    assert_eq!(code, Some(64), "{told}");
    assert!(told.contains("ledger.sqlite"), "{told}");
    let served = place.serve("run", &["--set", "train.steps=100000"]);
    let _worker = place.worker(&served.url, "worker");
    served.wait("step 3", |status| status["step"].as_u64() >= Some(3));
    let (code, told) = ledger(&place.run_dir("run"), &[]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("joined"), "{told}");
    let (code, told) = ledger(&place.run_dir("run"), &["--epoch", "0"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("worker 1  assigned"), "{told}");
}

#[test]
fn a_bench_needs_no_coordinator_and_tells_scripts_what_it_measured() {
    let bench = |arguments: &[&str]| {
        let mut command = Command::new(WORKER);
        command.args(["bench", "--cores", "1", "--steps", "2", "--warmup", "1"]);
        for set in [
            "model.image_size=32",
            "model.generator_width=4",
            "model.discriminator_width=4",
            "train.batch=2",
        ] {
            command.args(["--set", set]);
        }
        command.args(arguments);
        output(command)
    };
    let told = bench(&["--json"]);
    assert!(told.status.success(), "{}", text(&told));
    let json: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert!(json["images_per_s"].as_f64().unwrap() > 0.0);
    assert_eq!(json["steps"], 2);
    for share in [&json["arithmetic"]["share"], &json["traffic"]["share"]] {
        assert!(share.as_f64().unwrap() > 0.0, "{json}");
    }
    let refused = bench(&["--set", "train.bach=3"]);
    assert_eq!(refused.status.code(), Some(64), "{}", text(&refused));
    assert!(text(&refused).contains("bach"), "{}", text(&refused));
}
