//! The page over a real socket, from a run directory that the ledger's and the records' owners wrote.

use super::*;
use crate::config::Fit;
use crate::coordinator::ledger::{JobRecord, Ledger};
use crate::data::{Element, Manifest};
use crate::ids::{Generation, Rank, Step, WorkerId};
use crate::membership::{
    Cause, CheckpointRecord, DeviceKind, EventKind, Facts, Forming, Member, MemberState, Outcome,
    Phase, Recovery, Seat,
};
use crate::telemetry::catalog::Role;
use crate::telemetry::evaluations;
use crate::telemetry::exporter;
use crate::telemetry::records::{RecordLog, tests::record};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What no answer may hold: it claims a worker's seat.
const INCARNATION: &str = "0123456789abcdef-incarnation";

fn facts() -> Facts {
    Facts {
        incarnation: INCARNATION.to_owned(),
        job_id: "the job".to_owned(),
        host: "<img src=x>".to_owned(),
        pid: 4711,
        collective: "127.0.0.1:1".to_owned(),
        device: device(),
        cores: 1,
    }
}

fn device() -> DeviceKind {
    DeviceKind {
        kind: "cpu".to_owned(),
        model: "avx2".to_owned(),
        libtorch: "2.11.0".to_owned(),
    }
}

fn seat() -> Seat {
    Seat {
        worker: WorkerId(1),
        rank: Rank(0),
        replicas: 0..4,
        address: "127.0.0.1:1".to_owned(),
        incarnation: INCARNATION.to_owned(),
    }
}

fn data() -> Manifest {
    Manifest {
        version: 1,
        channels: 1,
        image_size: 32,
        element: Element::default(),
        fit: Fit::Pad,
        shard_samples: 16,
        samples: 16,
        labels: false,
        classes: None,
        shards: Vec::new(),
    }
}

/// A run directory after some steps, and its ledger's owner.
fn run() -> (tempfile::TempDir, Ledger) {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path();
    let mut ledger = Ledger::open(run_dir).unwrap();
    let job = JobRecord {
        job_id: "the job".to_owned(),
        name: "small <b>job</b>".to_owned(),
        state_keys: [("train.objective".to_owned(), "hinge".into())].into(),
        data_digest: "d".repeat(64),
        started_unix_seconds: 1_700_000_000.0,
    };
    ledger.begin(&job, &data()).unwrap();
    ledger.set_device(&device()).unwrap();
    ledger.admit(WorkerId(1), &facts(), 1.0).unwrap();
    for (generation, cause) in [(1u32, Cause::Start), (2, Cause::Death)] {
        let at = 1_700_000_000.0 + f64::from(generation);
        let generation = Generation(u64::from(generation));
        ledger.generation(generation, cause, &[seat()], at).unwrap();
    }
    let recovery = Recovery {
        cause: Cause::Death,
        generation: Generation(2),
        detect: Duration::from_millis(10),
        forming: Forming {
            abort: Duration::from_millis(20),
            connect: Duration::from_millis(30),
            heal: Duration::from_millis(40),
        },
        first_step: Duration::from_millis(150),
        whole: Duration::from_millis(250),
    };
    ledger
        .batch(|batch| batch.recovery(&recovery, 3.0))
        .unwrap();
    let checkpoint = CheckpointRecord {
        step: Step(4),
        path: "checkpoints/step-00000004".to_owned(),
        digest: "c".repeat(64),
    };
    ledger.checkpoint(&checkpoint, 4.0).unwrap();
    let event = "worker 2: its stream broke";
    ledger
        .event(Generation(1), EventKind::Died, event, 2.0)
        .unwrap();
    let mut log = RecordLog::open(&run_dir.join("metrics.jsonl")).unwrap();
    log.append(&[record(1), record(2), record(3)]).unwrap();
    evaluations::append(run_dir, &evaluations::tests::line(2, 12.5)).unwrap();
    std::fs::create_dir(run_dir.join("samples")).unwrap();
    std::fs::write(run_dir.join("samples/step-00000002.png"), "a picture").unwrap();
    (dir, ledger)
}

async fn serve(page: Page) -> Server {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Server::start(any, page).await.unwrap()
}

/// Sends a request's head.
async fn ask(server: &Server, method: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Reads until the answer holds `wanted`, or to its end.
async fn hear(stream: &mut TcpStream, heard: &mut String, wanted: Option<&str>) {
    let mut bytes = [0; 4096];
    // Also if it goes on talking of something else.
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    while wanted.is_none_or(|wanted| !heard.contains(wanted)) {
        let read = tokio::time::timeout_at(until, stream.read(&mut bytes)).await;
        let read = read
            .unwrap_or_else(|_| panic!("no {wanted:?} in time: {heard}"))
            .unwrap();
        if read == 0 {
            assert!(wanted.is_none(), "no {wanted:?} in {heard}");
            return;
        }
        heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
}

/// Head and body.
async fn get(server: &Server, path: &str) -> (String, String) {
    let mut answer = String::new();
    hear(&mut ask(server, "GET", path).await, &mut answer, None).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

async fn json(server: &Server, path: &str) -> Value {
    let (head, body) = get(server, path).await;
    assert!(head.contains("application/json"), "{head}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn a_page_of_files_says_what_the_run_directory_says() {
    let (dir, _owner) = run();
    let server = serve(Page::of_files(dir.path())).await;
    let state = json(&server, "/state").await;
    assert_eq!(state["live"], false);
    assert_eq!(state["phase"], "open", "nobody has said that it ended");
    assert_eq!(
        (&state["step"], &state["generation"]),
        (&3.into(), &2.into())
    );
    assert_eq!(state["job"]["name"], "small <b>job</b>");
    assert_eq!(state["job"]["objective"], "hinge");
    let generations = &state["generations"];
    assert_eq!(generations["total"], 2);
    assert_eq!(generations["rows"][0]["recovery"], Value::Null);
    assert_eq!(generations["rows"][1]["cause"], "death");
    assert_eq!(generations["rows"][1]["workers"], 1);
    assert_eq!(generations["rows"][1]["recovery"]["whole"], 0.25);
    assert_eq!(generations["rows"][1]["recovery"]["heal"], 0.04);
    let checkpoint = &state["checkpoints"]["rows"][0];
    assert_eq!(checkpoint["digest"], "c".repeat(64));
    assert_eq!(checkpoint["exists"], false, "its folder is gone");
    assert_eq!(state["events"]["rows"][0]["kind"], "died");
    assert_eq!(state["evaluations"][0]["scores"]["fid"], 12.5);
    assert_eq!(state["workers"]["rows"][0]["host"], "<img src=x>");
    assert_eq!(state["workers"]["rows"][0]["replicas"], 4);
    assert_eq!(state["frames"][0]["name"], "step-00000002.png");
    assert_eq!(state["troubles"], Value::Array(Vec::new()));
    let curves = json(&server, "/curves").await;
    assert_eq!(curves["step"], serde_json::json!([1, 2, 3]));
    assert_eq!(curves["series"]["loss_d"]["mean"][2], record(3).loss_d);
}

#[tokio::test]
async fn the_end_is_told_from_the_ledger() {
    let (dir, mut owner) = run();
    let detail = "complete at step 3";
    owner
        .event(Generation(2), EventKind::Ended, detail, 9.0)
        .unwrap();
    let server = serve(Page::of_files(dir.path())).await;
    let state = json(&server, "/state").await;
    assert_eq!(
        (&state["phase"], &state["detail"]),
        (&"ended".into(), &detail.into())
    );
    // It was resumed, and goes on.
    let event = EventKind::Coordinator;
    owner.event(Generation(2), event, "is back", 10.0).unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(json(&server, "/state").await["phase"], "open");
}

#[tokio::test]
async fn no_answer_holds_what_claims_a_seat() {
    let (dir, _owner) = run();
    let (live, _progress) = live();
    let metrics = exporter::recorder(Role::Coordinator).unwrap().1;
    let pages = [
        Page::of_files(dir.path()),
        Page::live(dir.path(), live, metrics),
    ];
    for page in pages {
        let server = serve(page).await;
        for path in ["/state", "/curves", "/metrics"] {
            let (_, body) = get(&server, path).await;
            assert!(!body.contains(INCARNATION), "{path}: {body}");
        }
        let (mut stream, mut heard) = (ask(&server, "GET", "/events").await, String::new());
        hear(&mut stream, &mut heard, Some("event: state")).await;
        server.finish().await;
        hear(&mut stream, &mut heard, None).await;
        assert!(!heard.contains(INCARNATION), "{heard}");
        assert!(heard.contains("4711"), "the worker is there");
    }
}

#[tokio::test]
async fn the_pages_files_ask_for_nothing_from_elsewhere() {
    let (dir, _owner) = run();
    let server = serve(Page::of_files(dir.path())).await;
    let (head, body) = get(&server, "/").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    for header in [
        "content-security-policy: default-src 'none'; script-src 'self'",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
    ] {
        assert!(head.contains(header), "no {header} in {head}");
    }
    for name in ["href=\"style.css\"", "src=\"main.js\""] {
        assert!(body.contains(name), "{body}");
    }
    for name in [
        "style.css",
        "main.js",
        "chart.js",
        "curves.js",
        "film.js",
        "tables.js",
        "timeline.js",
        "text.js",
    ] {
        let (head, body) = get(&server, &format!("/{name}")).await;
        assert!(head.starts_with("http/1.1 200"), "{name}: {head}");
        let kind = if name.ends_with("css") {
            "text/css"
        } else {
            "text/javascript"
        };
        assert!(head.contains(kind), "{name}: {head}");
        // Markup from data would be somebody else's program.
        assert!(
            !body.contains("innerHTML") && !body.contains("insertAdjacent"),
            "{name}"
        );
        let away = body.replace("http://www.w3.org/2000/svg", "");
        assert!(
            !away.contains("://"),
            "{name} asks for something from elsewhere"
        );
    }
}

#[tokio::test]
async fn samples_come_from_their_folder_alone() {
    let (dir, _owner) = run();
    std::fs::write(dir.path().join("secret.png"), "secret").unwrap();
    let server = serve(Page::of_files(dir.path())).await;
    let (head, body) = get(&server, "/samples/step-00000002.png?job=x").await;
    assert!(head.contains("image/png"), "{head}");
    assert_eq!(body, "a picture");
    for path in [
        "/samples/step-00000003.png",
        "/samples/../secret.png",
        "/samples/..%2fsecret.png",
        "/samples/%2e%2e/secret.png",
        "/samples/..%5csecret.png",
        "/samples/%2fetc%2fpasswd",
        "/samples/step-00000002.png%00",
        "/samples/",
        "/secret.png",
        "/ledger.sqlite",
    ] {
        let (head, body) = get(&server, path).await;
        assert!(head.starts_with("http/1.1 404"), "{path}: {head}");
        assert!(!body.contains("secret"), "{path}");
    }
    let mut refused = String::new();
    hear(
        &mut ask(&server, "POST", "/state").await,
        &mut refused,
        None,
    )
    .await;
    assert!(refused.starts_with("HTTP/1.1 405"), "read only: {refused}");
}

fn live() -> (Live, watch::Sender<Progress>) {
    let member = Member {
        facts: facts(),
        state: MemberState::Training,
        seat: Some(seat()),
        step: Step(3),
        seen_at: Duration::ZERO,
        leaving: false,
        round: None,
        barred_until: Duration::ZERO,
    };
    let progress = watch::Sender::new(Progress {
        phase: Phase::Running,
        generation: Generation(2),
        step: Step(3),
        images_per_second: 100.0,
        members: [(WorkerId(1), member)].into(),
        ..Progress::default()
    });
    let identity = Identity {
        job: "small".to_owned(),
        job_id: "the job".to_owned(),
        total_steps: 8,
        steps_per_epoch: 4,
    };
    let receiver = progress.subscribe();
    let live = Live {
        identity,
        progress: receiver,
    };
    (live, progress)
}

#[tokio::test]
async fn a_browser_is_told_what_is_new_and_how_it_ended() {
    let (dir, _owner) = run();
    // Opened before, for that puts another file in its place.
    let mut log = RecordLog::open(&dir.path().join("metrics.jsonl")).unwrap();
    let (live, progress) = live();
    let metrics = exporter::recorder(Role::Coordinator).unwrap().1;
    let server = serve(Page::live(dir.path(), live, metrics)).await;
    let (mut stream, mut heard) = (ask(&server, "GET", "/events").await, String::new());
    hear(&mut stream, &mut heard, Some("\"total_steps\":8")).await;
    assert!(heard.contains("text/event-stream"), "{heard}");
    assert!(heard.contains("event: curves"), "{heard}");
    for shown in [
        "\"phase\":\"running\"",
        "\"images_per_s\":100.0",
        "\"lag\":0",
        "\"rank\":0",
    ] {
        assert!(heard.contains(shown), "no {shown} in {heard}");
    }
    // What the records gain is told, and only that.
    heard.clear();
    log.append(&[record(4)]).unwrap();
    hear(&mut stream, &mut heard, Some("\"from\":2,\"step\":[3,4]")).await;
    log.append(&[record(5)]).unwrap();
    hear(&mut stream, &mut heard, Some("\"from\":3,\"step\":[4,5]")).await;
    progress.send_modify(|progress| progress.phase = Phase::Ended(Outcome::Complete(Step(8))));
    server.finish().await;
    hear(&mut stream, &mut heard, None).await;
    let end = heard.rsplit("event: state").next().unwrap();
    assert!(end.contains("\"detail\":\"complete at step 8\""), "{heard}");
    assert!(
        !end.contains("generations"),
        "what stays as it was is not told again: {end}"
    );
    assert!(heard.contains("event: end"), "{heard}");
}

#[tokio::test]
async fn metrics_and_health_are_beside_a_live_page() {
    let (dir, _owner) = run();
    let (live, _progress) = live();
    let metrics = exporter::recorder(Role::Coordinator).unwrap().1;
    let server = serve(Page::live(dir.path(), live, metrics)).await;
    let (head, body) = get(&server, "/metrics").await;
    assert!(head.contains("content-type: text/plain"), "{head}");
    assert!(body.contains("gan_coord_generation 0"), "{body}");
    let (head, body) = get(&server, "/health").await;
    assert!(
        head.starts_with("http/1.1 200") && body == "OK",
        "{head} {body}"
    );
    let files = serve(Page::of_files(dir.path())).await;
    assert!(get(&files, "/metrics").await.0.starts_with("http/1.1 404"));
    assert!(get(&files, "/health").await.0.starts_with("http/1.1 200"));
}

#[tokio::test]
async fn a_ledger_of_before_recoveries_were_kept_is_shown() {
    let (dir, owner) = run();
    drop(owner);
    let ledger = rusqlite::Connection::open(dir.path().join("ledger.sqlite")).unwrap();
    ledger.execute_batch("DROP TABLE recoveries").unwrap();
    let server = serve(Page::of_files(dir.path())).await;
    let state = json(&server, "/state").await;
    assert_eq!(state["generations"]["rows"][1]["cause"], "death");
    assert_eq!(state["generations"]["rows"][1]["recovery"], Value::Null);
}

#[tokio::test]
async fn more_listeners_than_there_is_room_for_are_told_so() {
    let (dir, _owner) = run();
    let page = Page::of_files(dir.path());
    let _all = Arc::clone(&page.listeners).try_acquire_many_owned(LISTENERS as u32);
    let server = serve(page).await;
    let (head, _) = get(&server, "/events").await;
    assert!(head.starts_with("http/1.1 503"), "{head}");
}
