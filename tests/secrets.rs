//! No secret in logs, metrics, status or the ledger: jobs at the level `trace`, and all that they wrote.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]
#![allow(
    clippy::disallowed_methods,
    reason = "certificates are valid by the world's clock"
)]
#![allow(dead_code, unreachable_pub, reason = "modules that other tests share")]

#[path = "doors/keys.rs"]
mod keys;
mod processes;

use keys::{Certs, JOB, Lock, TOKEN, ask, serve, worker};
use processes::{Network, Place, Process, Served, wait_until};
use std::fmt::Write;
use std::fs;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::path::Path;

const TOLD: [&str; 2] = ["--metrics-listen", "127.0.0.1:0"];
const TWO: [&str; 4] = ["--set", "workers.min=2", "--set", "train.steps=100000"];

/// What is in the ways that logs might write bytes.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut hex = String::new();
    let mut escaped = String::new();
    for byte in secret {
        write!(hex, "{byte:02x}").unwrap();
        write!(escaped, "{}", byte.escape_ascii()).unwrap();
    }
    let list: Vec<String> = secret.iter().map(u8::to_string).collect();
    [
        secret.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
    ]
    .into_iter()
    .chain([escaped.into_bytes(), list.join(", ").into_bytes()])
    .collect()
}

/// Everything in a folder, but for what is in `but`.
fn files(folder: &Path, but: &[&str], all: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if but.contains(&name) {
            continue;
        }
        if path.is_dir() {
            files(&path, but, all);
        } else {
            all.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
}

fn fetch(process: &Process) -> Vec<u8> {
    let url = process.said("metrics on http://");
    let address = url.split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = Vec::new();
    stream.read_to_end(&mut page).unwrap();
    page
}

/// What the job of two workers writes and shows to its end, which is when it has gone a few steps.
fn everything(
    place: &Place,
    served: &mut Served,
    workers: &mut [Process],
    lock: &Lock,
) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let steps = place.run_dir("job").join("metrics.jsonl");
    wait_until("some steps", || {
        fs::read_to_string(&steps).is_ok_and(|text| text.lines().count() >= 5)
    });
    for process in workers.iter().chain([&served.process]) {
        all.push(("metrics".to_owned(), fetch(process)));
    }
    let status = ask(served, "status", lock);
    assert!(status.status.success());
    all.push(("status".to_owned(), status.stdout));
    let stopped = ask(served, "stop", lock);
    assert!(stopped.status.success());
    all.push(("stop".to_owned(), [stopped.stdout, stopped.stderr].concat()));
    for worker in workers {
        assert_eq!(worker.wait(), 0);
    }
    assert_eq!(served.process.wait(), 0);
    files(place.path(), &["keys", "token"], &mut all);
    let traced = all.iter().filter(|(name, bytes)| {
        name.ends_with(".log") && bytes.windows(5).any(|window| window == b"TRACE")
    });
    assert!(traced.count() >= 3, "the logs hold what there is to say");
    assert!(all.iter().any(|(name, _)| name.ends_with("ledger.sqlite")));
    all
}

/// Logs are long, and windows of them slow.
fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let Some((first, rest)) = needle.split_first() else {
        return false;
    };
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| byte == first) {
        from += at + 1;
        if bytes[from..].starts_with(rest) {
            return true;
        }
    }
    false
}

#[test]
fn neither_keys_nor_tokens_are_written() {
    let place = Place::new();
    let certs = Certs::of(&place, "keys", JOB);
    let token = Lock::token(&place, "token", TOKEN);
    let lock = |part| certs.lock(part).and(&token).traced();
    let mut served = serve(
        &place,
        "job",
        &lock("coordinator"),
        &[&TWO[..], &TOLD].concat(),
    );
    let mut workers =
        ["first", "second"].map(|name| worker(&place, &served.url, name, &lock("worker"), &TOLD));
    let all = everything(&place, &mut served, &mut workers, &lock("operator"));
    for part in ["coordinator", "worker", "operator"] {
        let secrets = lock(part).secrets();
        assert!(secrets.len() >= 3, "{}", secrets.len());
        for secret in secrets {
            for (name, bytes) in &all {
                assert!(!contains(bytes, secret.as_bytes()), "{name} holds {secret}");
            }
        }
    }
}

#[test]
fn the_generations_secret_is_not_written() {
    let place = Place::new();
    let token = Lock::token(&place, "token", TOKEN).traced();
    let mut served = serve(&place, "job", &token, &[&TWO[..], &TOLD].concat());
    // What the coordinator tells a worker passes by here.
    let network = Network::to(served.url.trim_start_matches("http://"));
    let mut workers = [
        worker(&place, &network.url(), "first", &token, &TOLD),
        worker(&place, &served.url, "second", &token, &TOLD),
    ];
    let all = everything(&place, &mut served, &mut workers, &token);
    // Field 4 of an Assignment: 32 bytes. Some of what looks like it is something else.
    let heard = network.heard();
    let found: Vec<&[u8]> = heard
        .windows(34)
        .filter(|window| window[..2] == [0x22, 32] && window[2..].iter().any(|byte| *byte >= 0x80))
        .map(|window| &window[2..])
        .collect();
    assert!(!found.is_empty(), "{} bytes were heard", heard.len());
    for secret in found {
        for form in forms(secret) {
            for (name, bytes) in &all {
                assert!(!contains(bytes, &form), "{name} holds {secret:?}");
            }
        }
    }
    for (name, bytes) in &all {
        assert!(!contains(bytes, TOKEN.as_bytes()), "{name} holds the token");
    }
}
