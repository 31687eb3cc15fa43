//! What a cluster needs of the programs: several workers under one parent, probes, and an end in good
//! order, whenever it is asked for.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod processes;

use processes::{Place, Process, Served, WORKER, wait_until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

const LONG: [&str; 4] = ["--set", "train.steps=100000", "--set", "workers.min=2"];

/// A crew of two, known to its peers by a name.
fn crew(place: &Place, url: &str, name: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new(WORKER);
    command
        .args(["train", "--coordinator", url, "--cores", "1"])
        .args(["--processes", "2", "--advertise", "localhost"])
        .args(arguments);
    Process::start(command, &place.log(name, "worker"))
}

/// The processes that a crew looks after.
fn members(crew: &Process) -> Vec<String> {
    let children = Command::new("pgrep")
        .args(["-P", &crew.pid().to_string()])
        .output()
        .unwrap();
    let children = String::from_utf8(children.stdout).unwrap();
    children.lines().map(str::to_owned).collect()
}

fn is_running(pid: &str) -> bool {
    // A zombie that nobody has asked for its status doesn't run.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn reaches(served: &Served, step: u64) {
    served.wait("a step", |status| status["step"].as_u64() >= Some(step));
}

#[test]
fn a_crew_is_as_many_workers_and_leaves_no_trace() {
    let place = Place::new();
    let Served { mut process, url } = place.serve("crew", &["--set", "workers.min=2"]);
    let mut crew = crew(&place, &url, "crew", &[]);
    assert_eq!(crew.wait(), 0, "{}", crew.log());
    assert_eq!(process.wait(), 0, "{}", process.log());
    assert!(place.run("alone", &[]).status.success());
    assert_eq!(place.digest("crew", 8), place.digest("alone", 8));
}

#[test]
fn a_crew_that_is_told_to_go_leaves_as_a_worker_does() {
    let place = Place::new();
    let served = place.serve("crew", &LONG);
    let mut first = crew(&place, &served.url, "first", &[]);
    reaches(&served, 3);
    let processes = members(&first);
    assert_eq!(processes.len(), 2, "{processes:?}");
    first.signal("TERM");
    assert_eq!(first.wait(), 75, "{}", first.log());
    assert!(!processes.iter().any(|pid| is_running(pid)));
    // The job has lost nothing, and goes on with the next.
    let left = served.status().unwrap()["step"].as_u64().unwrap();
    let mut second = crew(&place, &served.url, "second", &[]);
    reaches(&served, left + 3);
    second.signal("INT");
    assert_eq!(second.wait(), 75, "{}", second.log());
}

/// As when both of a job's Jobs are deleted at once.
#[test]
fn what_is_told_to_go_all_at_once_is_saved() {
    let place = Place::new();
    let settings = [&LONG[..], &["--set", "checkpoint.every_steps=0"]].concat();
    let mut served = place.serve("gone", &settings);
    let mut crew = crew(&place, &served.url, "crew", &[]);
    reaches(&served, 3);
    served.process.signal("TERM");
    crew.signal("TERM");
    assert_eq!(served.process.wait(), 75, "{}", served.process.log());
    assert_eq!(crew.wait(), 75, "{}", crew.log());
    let saved = place.newest("gone");
    assert!(saved >= 3, "{saved}");
    let again = place.serve("gone", &settings);
    let mut second = self::crew(&place, &again.url, "second", &[]);
    reaches(&again, saved + 2);
    second.signal("TERM");
    assert_eq!(second.wait(), 75, "{}", second.log());
}

#[test]
fn a_crew_that_loses_a_process_goes_as_a_whole() {
    let place = Place::new();
    let served = place.serve("crew", &LONG);
    let mut crew = crew(&place, &served.url, "crew", &[]);
    reaches(&served, 3);
    let lost = &members(&crew)[0];
    let killed = Command::new("kill").args(["-9", lost]).status().unwrap();
    assert!(killed.success());
    assert_eq!(crew.wait(), 1, "{}", crew.log());
    let log = crew.log();
    assert!(log.contains("the others are to go"), "{log}");
    assert!(log.contains("exit status: 75"), "in good order: {log}");
}

#[test]
fn the_processes_of_a_crew_that_is_killed_go_too() {
    let place = Place::new();
    let served = place.serve("crew", &LONG);
    let mut crew = crew(&place, &served.url, "crew", &[]);
    reaches(&served, 3);
    let processes = members(&crew);
    assert_eq!(processes.len(), 2, "{processes:?}");
    crew.kill();
    wait_until("the end of its processes", || {
        !processes.iter().any(|pid| is_running(pid))
    });
    assert!(crew.log().contains("left in good order"), "{}", crew.log());
}

/// What the kubelet asks: HTTP of a worker's processes, gRPC of the coordinator.
#[test]
fn both_programs_answer_probes() {
    let place = Place::new();
    let served = place.serve("probed", &LONG);
    let listen = ["--metrics-listen", "127.0.0.1:0"];
    let crew = crew(&place, &served.url, "probed", &listen);
    reaches(&served, 1);
    let log = crew.log();
    let addresses: Vec<&str> = log
        .split("metrics on http://")
        .skip(1)
        .filter_map(|rest| rest.split('/').next())
        .collect();
    assert_eq!(addresses.len(), 2, "{log}");
    for address in addresses {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = "GET /health HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let status = runtime.block_on(async {
        use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
        let coordinator = tonic::transport::Endpoint::from_shared(served.url.clone()).unwrap();
        let mut client = HealthClient::new(coordinator.connect().await.unwrap());
        // The kubelet names no service.
        let request = HealthCheckRequest::default();
        client.check(request).await.unwrap().into_inner().status()
    });
    assert_eq!(
        status,
        tonic_health::pb::health_check_response::ServingStatus::Serving
    );
}

#[test]
fn a_crew_that_can_not_be_is_refused() {
    let place = Place::new();
    for (arguments, said) in [
        (
            &["--processes", "2", "--device", "cuda:0"][..],
            "--device cpu",
        ),
        (
            &["--processes", "2", "--metrics-listen", "127.0.0.1:65535"],
            "65535",
        ),
        (&["--processes", "0"], "--processes"),
    ] {
        let mut command = Command::new(WORKER);
        command.arg("train").args(arguments);
        let mut refused = Process::start(command, &place.log("refused", "worker"));
        assert_eq!(refused.wait(), 64, "{}", refused.log());
        assert!(refused.log().contains(said), "{}", refused.log());
    }
}

/// Opening may mean packing for hours, and a container's first process hears only what it listens for.
#[test]
fn a_coordinator_that_is_told_to_go_before_it_serves_goes() {
    let place = Place::new();
    // Whoever opens this waits for somebody to write to it.
    let pipe = place.path().join("train-images-idx3-ubyte");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let data = format!("data.uri={}", pipe.display());
    let command = place.serve_command("127.0.0.1:0", "slow", &["--set", &data]);
    let mut process = Process::start(command, &place.log("slow", "coord"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(process.is_running(), "{}", process.log());
    process.signal("TERM");
    assert_eq!(process.wait(), 75, "{}", process.log());
}
