//! Keys and tokens of a job, in files, and programs that use them.

use crate::processes::{COORD, Place, Process, Served, WORKER, job, output, shared_cache, text};
use ganglion::locks::certs::{Authority, Validity};
use ganglion::locks::{Identity, Part};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

/// The job's name, as in `tests/data/small.toml`.
pub const JOB: &str = "small";

pub const TOKEN: &str = "a-token-that-nobody-would-guess-0123456789";

/// What a program is given to be let in, as variables.
#[derive(Clone, Default)]
pub struct Lock(Vec<(&'static str, PathBuf)>);

impl Lock {
    pub fn files(ca: &Path, cert: &Path, key: &Path) -> Self {
        Self(vec![
            ("GAN_TLS_CA", ca.to_owned()),
            ("GAN_TLS_CERT", cert.to_owned()),
            ("GAN_TLS_KEY", key.to_owned()),
        ])
    }

    /// The token `word`, in a file of its own.
    pub fn token(place: &Place, name: &str, word: &str) -> Self {
        let path = place.path().join(name);
        std::fs::write(&path, format!("{word}\n")).unwrap();
        Self(vec![("GAN_TOKEN_FILE", path)])
    }

    pub fn and(&self, other: &Self) -> Self {
        Self([&self.0[..], &other.0].concat())
    }

    /// And all that there is to say is logged.
    pub fn traced(&self) -> Self {
        self.and(&Self(vec![("GAN_LOG", "trace".into())]))
    }

    /// The private key, as its file has it, line by line; and the token.
    pub fn secrets(&self) -> Vec<String> {
        let of = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
        let (keys, tokens): (Vec<_>, Vec<_>) = self
            .0
            .iter()
            .filter(|(name, _)| ["GAN_TLS_KEY", "GAN_TOKEN_FILE"].contains(name))
            .map(|(_, path)| of(path))
            .partition(|text| text.contains("BEGIN"));
        let lines = |text: &String| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let secret = |line: &String| !line.contains("-----") && line.len() > 16;
        let all = keys.iter().chain(&tokens).flat_map(lines);
        all.filter(secret).collect()
    }
}

/// What `gan-coord certs` makes.
pub struct Certs(pub PathBuf);

impl Certs {
    pub fn of(place: &Place, name: &str, job: &str) -> Self {
        let folder = place.path().join(name);
        let mut command = Command::new(COORD);
        command.arg("certs").arg(&folder).args(["--job", job]);
        let made = output(command);
        assert!(made.status.success(), "{}", text(&made));
        Self(folder)
    }

    pub fn lock(&self, part: &str) -> Lock {
        let file = |name: &str| self.0.join(name);
        Lock::files(
            &file("ca.pem"),
            &file(&format!("{part}.pem")),
            &file(&format!("{part}-key.pem")),
        )
    }
}

/// Keys of one CA that `gan-coord certs` would not make: for another job, or not valid any more.
pub struct Odd {
    folder: PathBuf,
    ca: Authority,
}

impl Odd {
    pub fn of(place: &Place, name: &str) -> Self {
        let folder = place.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let ca = Authority::new("odd", valid(3600)).unwrap();
        std::fs::write(folder.join("ca.pem"), ca.cert()).unwrap();
        Self { folder, ca }
    }

    /// Valid for so many seconds from now on, or until so many before.
    pub fn lock(&self, name: &str, job: &str, part: Part, seconds: i64) -> Lock {
        let hosts = ["127.0.0.1".to_owned()];
        let identity = Identity::new(job, part);
        let issued = self.ca.issue(&[identity], &hosts, valid(seconds)).unwrap();
        let path = |end: &str| self.folder.join(format!("{name}{end}.pem"));
        std::fs::write(path(""), issued.cert).unwrap();
        std::fs::write(path("-key"), issued.key).unwrap();
        Lock::files(&self.folder.join("ca.pem"), &path(""), &path("-key"))
    }
}

fn valid(seconds: i64) -> Validity {
    let now = SystemTime::now();
    let length = Duration::from_secs(seconds.unsigned_abs());
    Validity {
        from: now - Duration::from_secs(7200),
        until: if seconds < 0 {
            now - length
        } else {
            now + length
        },
    }
}

/// `gan-coord serve` of the small job behind this lock.
pub fn serve(place: &Place, name: &str, lock: &Lock, arguments: &[&str]) -> Served {
    let mut command = Command::new(COORD);
    command
        .arg("serve")
        .arg(job())
        .args(["--listen", "127.0.0.1:0", "--run-dir"])
        .arg(place.run_dir(name))
        .args(["--set", &shared_cache()])
        .args(arguments)
        .envs(lock.0.clone());
    let process = Process::start(command, &place.log(name, "coord"));
    let address = process.said("listening on ");
    let is_tls = lock.0.iter().any(|(name, _)| *name == "GAN_TLS_CA");
    let scheme = if is_tls { "https" } else { "http" };
    Served {
        url: format!("{scheme}://{address}"),
        process,
    }
}

/// `gan-worker train` with this lock, which gives up soon if it isn't let in.
pub fn worker(place: &Place, url: &str, name: &str, lock: &Lock, arguments: &[&str]) -> Process {
    let mut command = Command::new(WORKER);
    command
        .args(["train", "--coordinator", url, "--cores", "1"])
        .args(["--advertise", "127.0.0.1"])
        .args(arguments)
        .envs(lock.0.clone());
    Process::start(command, &place.log(name, "worker"))
}

/// A command of `gan-coord` to the coordinator.
pub fn ask(served: &Served, command: &str, lock: &Lock) -> Output {
    let mut asked = Command::new(COORD);
    asked
        .args([command, "--coordinator", &served.url])
        .envs(lock.0.clone());
    output(asked)
}
