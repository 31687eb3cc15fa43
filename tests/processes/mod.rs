//! Real processes for tests: gan-coord and gan-worker on loopback, in a folder of their own.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const COORD: &str = env!("CARGO_BIN_EXE_gan-coord");
pub const WORKER: &str = env!("CARGO_BIN_EXE_gan-worker");

/// No test waits longer for anything.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A folder that goes with the test, and the small job.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder =
            tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the test");
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn run_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `gan-coord run` of the small job.
    pub fn run(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(COORD);
        command.arg("run").arg(job());
        self.finish(command, name, arguments)
    }

    fn finish(&self, mut command: Command, name: &str, arguments: &[&str]) -> Output {
        command
            .arg("--run-dir")
            .arg(self.run_dir(name))
            .args(["--set", &shared_cache()])
            .args(arguments);
        output(command)
    }

    /// `gan-coord serve` of the small job, on a port of its own.
    pub fn serve(&self, name: &str, arguments: &[&str]) -> Served {
        self.serve_on("127.0.0.1:0", name, arguments)
    }

    pub fn serve_on(&self, address: &str, name: &str, arguments: &[&str]) -> Served {
        let command = self.serve_command(address, name, arguments);
        let process = Process::start(command, &self.log(name, "coord"));
        let address = process.said("listening on ");
        Served {
            url: format!("http://{address}"),
            process,
        }
    }

    pub fn serve_command(&self, address: &str, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(COORD);
        command
            .arg("serve")
            .arg(job())
            .args(["--listen", address])
            .arg("--run-dir")
            .arg(self.run_dir(name))
            .args(["--set", &shared_cache()])
            .args(arguments);
        command
    }

    /// A log file that no process before has used.
    pub fn log(&self, name: &str, role: &str) -> PathBuf {
        let free = |life: &u32| !self.log_of(name, role, *life).exists();
        let life = (1..).find(free).expect("a free number");
        self.log_of(name, role, life)
    }

    fn log_of(&self, name: &str, role: &str, life: u32) -> PathBuf {
        self.path().join(format!("{name}-{role}-{life}.log"))
    }

    /// `gan-worker train`.
    pub fn worker(&self, url: &str, name: &str) -> Process {
        self.worker_with(url, name, &[])
    }

    pub fn worker_with(&self, url: &str, name: &str, arguments: &[&str]) -> Process {
        let mut command = worker_command(url);
        command.args(arguments);
        Process::start(command, &self.log(name, "worker"))
    }

    /// `gan-worker train` that dies as `faults::point` says.
    pub fn worker_that_dies(&self, url: &str, name: &str, at: &str) -> Process {
        let mut command = worker_command(url);
        command.env("GAN_DIE_AT", at);
        Process::start(command, &self.log(name, "worker"))
    }

    /// A folder of so many small images, as IDX; the same for every test.
    pub fn images(&self, count: u32) -> String {
        let folder = self.path().join(format!("images-{count}"));
        std::fs::create_dir_all(&folder).expect("a folder for images");
        let mut bytes = Vec::new();
        for number in [0x0803, count, 28, 28] {
            bytes.extend(number.to_be_bytes());
        }
        for image in 0..count {
            let pixel = |i: u32| ((i % 28) * (image % 11) + (i / 28) * (image % 7)) as u8;
            bytes.extend((0..28 * 28).map(pixel));
        }
        std::fs::write(folder.join("train-images-idx3-ubyte"), bytes).expect("images");
        format!("data.uri={}", folder.display())
    }

    /// The SHA-256 of the training state of a run's checkpoint.
    pub fn digest(&self, name: &str, step: u64) -> String {
        let folder = self.checkpoint(name, step);
        let mut command = Command::new(WORKER);
        command.arg("inspect").arg(&folder).arg("--digest");
        let output = output(command);
        assert!(output.status.success(), "{}", text(&output));
        let digest = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(digest.len(), 64, "{digest:?}");
        digest
    }

    /// The newest step that has a checkpoint.
    pub fn newest(&self, name: &str) -> u64 {
        let folders = std::fs::read_dir(self.run_dir(name).join("checkpoints")).expect("a folder");
        let steps = folders.filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_prefix("step-")?.parse().ok()
        });
        steps.max().expect("a checkpoint")
    }

    pub fn checkpoint(&self, name: &str, step: u64) -> PathBuf {
        let folder = format!("checkpoints/step-{step:08}");
        self.run_dir(name).join(folder)
    }
}

/// A coordinator that serves.
pub struct Served {
    pub url: String,
    pub process: Process,
}

impl Served {
    pub fn status(&self) -> Option<serde_json::Value> {
        let mut command = Command::new(COORD);
        command.args(["status", "--json", "--coordinator", &self.url]);
        let output = output(command);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Waits until the status says what is wanted.
    pub fn wait(
        &self,
        what: &str,
        holds: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let began = Instant::now();
        loop {
            if let Some(status) = self.status()
                && holds(&status)
            {
                return status;
            }
            assert!(
                began.elapsed() < DEADLINE,
                "waited for {what}: {}",
                self.process.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A child process that doesn't outlive the test.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file = std::fs::File::create(log).expect("a log file");
        let errors = file.try_clone().expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .expect("the program starts");
        Self {
            child,
            log: log.to_owned(),
        }
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log holds `phrase`, and gives the word that follows.
    pub fn said(&self, phrase: &str) -> String {
        let began = Instant::now();
        loop {
            if let Some((_, rest)) = self.log().split_once(phrase)
                && let Some((word, _)) = rest.split_once(char::is_whitespace)
            {
                return word.to_owned();
            }
            assert!(
                began.elapsed() < DEADLINE,
                "waited for {phrase:?}: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// Its exit code.
    pub fn wait(&mut self) -> i32 {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("its own child") {
                return status.code().unwrap_or(-1);
            }
            assert!(
                began.elapsed() < DEADLINE,
                "it does not end: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn worker_command(url: &str) -> Command {
    let mut command = Command::new(WORKER);
    command
        .args(["train", "--coordinator", url, "--cores", "1"])
        .args(["--advertise", "127.0.0.1"]);
    command
}

pub fn job() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/small.toml")
}

/// All tests read the same packed data.
pub fn shared_cache() -> String {
    format!(
        "data.shard_folder={}/data-cache",
        env!("CARGO_TARGET_TMPDIR")
    )
}

pub fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A network that can be cut without either end being told.
pub struct Network {
    address: String,
    swallows: Arc<AtomicBool>,
    /// What came from the other end.
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Network {
    /// A way to this address.
    pub fn to(address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let network = Self {
            address: listener.local_addr().expect("its address").to_string(),
            swallows: Arc::default(),
            heard: Arc::default(),
        };
        let (target, swallows) = (address.to_owned(), Arc::clone(&network.swallows));
        let heard = Arc::clone(&network.heard);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(&target) else {
                    continue;
                };
                let directions = [(&near, &far, None), (&far, &near, Some(&heard))];
                for (from, to, heard) in directions {
                    let from = from.try_clone().expect("a socket");
                    let to = to.try_clone().expect("a socket");
                    let (swallows, heard) = (Arc::clone(&swallows), heard.cloned());
                    std::thread::spawn(move || carry(from, to, &swallows, heard.as_deref()));
                }
            }
        });
        network
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What the other end has said so far, to all.
    pub fn heard(&self) -> Vec<u8> {
        self.heard.lock().expect("nobody panics").clone()
    }

    /// From now on nothing arrives, or what has waited does.
    pub fn swallow(&self, everything: bool) {
        self.swallows.store(everything, Ordering::SeqCst);
    }
}

fn carry(
    mut from: TcpStream,
    mut to: TcpStream,
    swallows: &AtomicBool,
    heard: Option<&Mutex<Vec<u8>>>,
) {
    let mut buffer = [0; 4096];
    loop {
        let read = from.read(&mut buffer).unwrap_or(0);
        if let Some(heard) = heard {
            let mut heard = heard.lock().expect("nobody panics");
            heard.extend(&buffer[..read]);
        }
        while swallows.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// A port that is free now. Whoever can shouldn't use this, but let the system choose.
pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").to_string()
}

/// Runs a command to its end, which must come in time.
pub fn output(mut command: Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let pid = child.id();
    let (done, ended) = std::sync::mpsc::channel();
    let watch = std::thread::spawn(move || {
        if ended.recv_timeout(DEADLINE).is_err() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    });
    let output = child.wait_with_output().expect("its own child");
    let _ = done.send(());
    let _ = watch.join();
    output
}

pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
