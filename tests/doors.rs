//! Locked doors, with real processes: who belongs to a job gets in, who doesn't stays out and says why,
//! and whatever comes to the doors leaves no trace in a bit of the result, and no secret anywhere.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]
#![allow(
    clippy::disallowed_methods,
    reason = "certificates are valid by the world's clock"
)]
#![allow(dead_code, unreachable_pub, reason = "modules that other tests share")]

#[path = "doors/keys.rs"]
mod keys;
mod processes;
#[path = "doors/strangers.rs"]
mod strangers;

use ganglion::locks::Part;
use ganglion::proto;
use ganglion::proto::coordinator_client::CoordinatorClient;
use keys::{Certs, JOB, Lock, Odd, TOKEN, ask, serve, worker};
use processes::{COORD, Place, Served, WORKER, output, text, wait_until};
use std::fs;
use std::process::Command;
use tokio_stream::wrappers::ReceiverStream;

/// As long as it is not stopped; sums go through the network, and not through memory.
const LONG: [&str; 6] = [
    "--set",
    "train.steps=100000",
    "--set",
    "workers.min=2",
    "--set",
    "workers.shared_memory=false",
];
const BRIEF: [&str; 2] = ["--join-deadline", "2s"];

/// Waits until the job has reached a step, as its log of steps says.
fn reaches(place: &Place, name: &str, step: usize) {
    let metrics = place.run_dir(name).join("metrics.jsonl");
    wait_until("a step", || {
        let text = fs::read_to_string(&metrics).unwrap_or_default();
        text.lines().count() >= step
    });
}

fn steps(place: &Place, name: &str) -> usize {
    let metrics = place.run_dir(name).join("metrics.jsonl");
    fs::read_to_string(metrics).unwrap().lines().count()
}

/// Stops the job, and compares what has become of it with the same job without locks and strangers.
fn ends_as_if_alone(place: &Place, name: &str, served: &mut Served, lock: &Lock) {
    let told = ask(served, "stop", lock);
    assert!(told.status.success(), "{}", text(&told));
    assert_eq!(served.process.wait(), 0, "{}", served.process.log());
    let step = place.newest(name);
    let alone = format!("{name}-alone");
    let steps = format!("train.steps={step}");
    let run = place.run(&alone, &["--workers", "2", "--set", &steps]);
    assert!(run.status.success(), "{}", text(&run));
    assert_eq!(place.digest(name, step), place.digest(&alone, step));
}

#[test]
fn a_job_behind_tls_goes_on_through_new_keys_and_has_the_bits_of_one_without() {
    let place = Place::new();
    let certs = Certs::of(&place, "keys", JOB);
    let mut served = serve(&place, "job", &certs.lock("coordinator"), &LONG);
    let start = |name| worker(&place, &served.url, name, &certs.lock("worker"), &[]);
    let mut workers = vec![start("first"), start("second")];
    reaches(&place, "job", 3);
    // A new CA, whom all trust from now on besides the old one; the coordinator's certificate is its.
    let new = Certs::of(&place, "new", JOB);
    let both =
        ["keys", "new"].map(|name| fs::read(place.path().join(name).join("ca.pem")).unwrap());
    replace(&certs, "ca.pem", &both.concat());
    for file in ["coordinator-key.pem", "coordinator.pem"] {
        replace(&certs, file, &fs::read(new.0.join(file)).unwrap());
    }
    replace(&new, "ca.pem", &both.concat());
    let before = steps(&place, "job");
    workers.push(worker(
        &place,
        &served.url,
        "third",
        &new.lock("worker"),
        &[],
    ));
    wait_until("the third worker", || {
        workers[2].log().contains("generation")
    });
    reaches(&place, "job", before + 10);
    let seen = ask(&served, "status", &new.lock("operator"));
    assert!(seen.status.success(), "{}", text(&seen));
    ends_as_if_alone(&place, "job", &mut served, &certs.lock("operator"));
    for worker in &mut workers {
        assert_eq!(worker.wait(), 0, "{}", worker.log());
    }
}

/// As a rotation does it: another file in the place of the one that is there.
fn replace(certs: &Certs, file: &str, bytes: &[u8]) {
    let new = certs.0.join("new");
    fs::write(&new, bytes).unwrap();
    fs::rename(&new, certs.0.join(file)).unwrap();
}

#[test]
fn strangers_stay_outside_are_told_why_and_leave_no_trace() {
    let place = Place::new();
    let keys = Odd::of(&place, "keys");
    let coordinator = keys.lock("coordinator", JOB, Part::Coordinator, 3600);
    let mine = keys.lock("worker", JOB, Part::Worker, 3600);
    let operator = keys.lock("operator", JOB, Part::Operator, 3600);
    let mut served = serve(&place, "job", &coordinator, &LONG);
    let mut workers = ["first", "second"].map(|name| worker(&place, &served.url, name, &mine, &[]));
    reaches(&place, "job", 2);
    let expired = keys.lock("expired", JOB, Part::Worker, -600);
    let other_job = keys.lock("other", "other", Part::Worker, 3600);
    let other_ca = Certs::of(&place, "others", JOB).lock("worker");
    let plain = served.url.replace("https", "http");
    let strangers = [
        (
            "plain",
            &plain,
            Lock::default(),
            1,
            "can't reach the coordinator",
        ),
        ("expired", &served.url, expired, 1, "expired"),
        (
            "other-job",
            &served.url,
            other_job,
            1,
            "job/small/coordinator, expected spiffe://ganglion/job/other/coordinator",
        ),
        ("other-ca", &served.url, other_ca, 1, "UnknownIssuer"),
        (
            "no-worker",
            &served.url,
            operator.clone(),
            64,
            "job/small/operator, expected",
        ),
        ("no-keys", &served.url, Lock::default(), 64, "--tls-ca"),
    ];
    let mut strangers = strangers.map(|(name, url, lock, code, said)| {
        let process = worker(&place, url, name, &lock, &BRIEF);
        (process, code, said)
    });
    let address = served.url.replace("https://", "");
    strangers::garbage(&address);
    let mut silent = strangers::slow(&address, 40);
    for worker in &workers {
        let ports = strangers::listening(worker.pid());
        assert!(!ports.is_empty());
        for port in ports {
            let door = format!("127.0.0.1:{port}");
            strangers::garbage(&door);
            silent.extend(strangers::slow(&door, 40));
        }
    }
    for (process, code, said) in &mut strangers {
        assert_eq!(process.wait(), *code, "{}", process.log());
        assert!(process.log().contains(*said), "{said}: {}", process.log());
    }
    let log = served.process.log();
    for said in [
        "closed a connection: the certificate is for spiffe://ganglion/job/other/worker, expected",
        "closed a connection: TLS: invalid peer certificate: certificate expired",
        "closed a connection: the other side speaks no TLS",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
    // Who trains may not stop the job, but see it if asked by its part.
    let refused = ask(&served, "stop", &mine);
    assert_eq!(refused.status.code(), Some(64), "{}", text(&refused));
    ends_as_if_alone(&place, "job", &mut served, &operator);
    for worker in &mut workers {
        assert_eq!(worker.wait(), 0, "{}", worker.log());
        assert!(
            worker.log().contains("refused a connection"),
            "{}",
            worker.log()
        );
    }
}

#[test]
fn without_the_token_or_measure_nobody_is_heard_and_the_job_goes_on() {
    let place = Place::new();
    let token = Lock::token(&place, "token", TOKEN);
    let listen = ["--metrics-listen", "127.0.0.1:0"];
    let mut served = serve(&place, "job", &token, &[&LONG[..], &listen].concat());
    let page = served.process.said("metrics on http://");
    let page = page.trim_end_matches("/metrics");
    let mut workers =
        ["first", "second"].map(|name| worker(&place, &served.url, name, &token, &[]));
    reaches(&place, "job", 2);
    let wrong = Lock::token(&place, "wrong", &TOKEN.replace('0', "x"));
    let mut strangers = [("none", Lock::default()), ("other", wrong.clone())]
        .map(|(name, lock)| worker(&place, &served.url, name, &lock, &BRIEF));
    let refused = ask(&served, "stop", &wrong);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(
        text(&refused).contains("--token-file"),
        "{}",
        text(&refused)
    );
    strangers::garbage(&served.url.replace("http://", ""));
    // The page's port has no token, but limits.
    let _silent = strangers::slow(page, 40);
    let endless = [&b"GET / HTTP/1.1\r\nx: "[..], &[b'x'; 40 << 10]].concat();
    for bytes in [&[0; 4096][..], &[0xff; 100], &endless] {
        strangers::is_shown_out(page, bytes);
    }
    assert!(strangers::answer(page, "/health").starts_with("HTTP/1.1 200"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(too_much(&served.url));
    for stranger in &mut strangers {
        assert_eq!(stranger.wait(), 1, "{}", stranger.log());
        assert!(
            stranger.log().contains("--token-file"),
            "{}",
            stranger.log()
        );
    }
    let log = served.process.log();
    assert!(log.contains("it joins too often"), "{log}");
    ends_as_if_alone(&place, "job", &mut served, &token);
    for worker in &mut workers {
        assert_eq!(worker.wait(), 0, "{}", worker.log());
    }
}

/// One that has the token and abuses it.
async fn too_much(url: &str) {
    let endpoint = proto::endpoint(url).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut client = CoordinatorClient::new(channel);
    let request = |messages: Vec<proto::WorkerMessage>| {
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        for message in messages {
            sender.try_send(message).unwrap();
        }
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        let word = format!("Bearer {TOKEN}").parse().unwrap();
        request.metadata_mut().insert("authorization", word);
        (request, sender)
    };
    let hello = |host: usize| proto::WorkerMessage {
        kind: Some(proto::worker_message::Kind::Hello(proto::Hello {
            protocol: "ganglion.v1".to_owned(),
            incarnation: "stranger".to_owned(),
            host: "x".repeat(host),
            collective: "127.0.0.1:1".to_owned(),
            device: Some(proto::Device::default()),
            ..proto::Hello::default()
        })),
    };
    // Longer than any text, and longer than any message.
    for length in [20 << 10, 5 << 20] {
        let (request, _open) = request(vec![hello(length)]);
        let mut replies = client.session(request).await.unwrap().into_inner();
        assert!(!matches!(replies.message().await, Ok(Some(_))), "{length}");
    }
    let (mut headers, _open) = request(Vec::new());
    let long = "x".repeat(40 << 10).parse().unwrap();
    headers.metadata_mut().insert("x-long", long);
    if let Ok(replies) = client.session(headers).await {
        let first = replies.into_inner().message().await;
        assert!(first.is_err(), "{first:?}");
    }
    let endpoint = proto::endpoint(url).unwrap();
    let mut client = CoordinatorClient::new(endpoint.connect().await.unwrap());
    let mut refused = None;
    for _ in 0..5_000 {
        let (request, _gone) = request(Vec::new());
        if let Err(status) = client.session(request).await {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.expect("a flood of joins is stopped");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
}

#[test]
fn an_open_door_is_what_was_asked_for() {
    let place = Place::new();
    let refused = output(place.serve_command("0.0.0.0:0", "open", &[]));
    assert_eq!(refused.status.code(), Some(64), "{}", text(&refused));
    assert!(text(&refused).contains("--insecure"), "{}", text(&refused));
    let open = place.serve_on("0.0.0.0:0", "open", &["--insecure"]);
    assert!(open.process.log().contains("--insecure: whoever reaches"));
    let mut train = Command::new(WORKER);
    train.args(["train", "--coordinator", "http://127.0.0.1:1"]);
    train.args(["--advertise", "192.0.2.1", "--cores", "1"]);
    let refused = output(train);
    assert_eq!(refused.status.code(), Some(64), "{}", text(&refused));
    assert!(text(&refused).contains("--insecure"), "{}", text(&refused));
    let certs = Certs::of(&place, "keys", JOB);
    let before = fs::read(certs.0.join("ca.pem")).unwrap();
    let mut again = Command::new(COORD);
    again.arg("certs").arg(&certs.0).args(["--job", JOB]);
    let refused = output(again);
    assert_eq!(refused.status.code(), Some(64), "{}", text(&refused));
    assert_eq!(fs::read(certs.0.join("ca.pem")).unwrap(), before);
    // A whole job on this machine, behind TLS.
    let local = |name: &str| certs.0.join(name).display().to_string();
    let (ca, cert, key) = (local("ca.pem"), local("local.pem"), local("local-key.pem"));
    let keys = ["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    let run = place.run("locked", &[&keys[..], &["--workers", "2"]].concat());
    assert!(run.status.success(), "{}", text(&run));
    assert!(place.run("alone", &[]).status.success());
    assert_eq!(place.digest("locked", 8), place.digest("alone", 8));
}
