//! NCCL between processes, one a rank: the same sums to the bit, and the same errors within bounds.
//!
//! ```text
//! nccl_ranks [--device cpu|cuda|cuda:N] [--library PATH] [--ranks 1,2,4]
//! ```
//!
//! It starts itself once a rank, prints `ok` or `FAIL`, a name and a detail for each check, and ends
//! with status 0 if all went well. Under `cargo test` it runs on the stand-in with 1, 2 and 4 ranks;
//! carried to a machine with GPUs it runs on the real library. `cuda` gives each rank a GPU of its
//! own. `cuda:N` puts them all on that one, which NCCL doesn't support and can be talked into: it
//! takes ranks for processes of several machines.

#![allow(clippy::unwrap_used, reason = "a rank that can't go on fails")]
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

#[path = "nccl/checks.rs"]
mod checks;
#[path = "nccl/library.rs"]
mod library;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// For all checks of one number of ranks.
const PATIENCE: Duration = Duration::from_secs(150);

/// What was typed.
struct Options {
    device: String,
    library: Option<PathBuf>,
    ranks: Vec<u32>,
    /// This process is that rank of so many.
    rank: Option<(u32, u32)>,
}

fn options() -> Result<Option<Options>, String> {
    let mut options = Options {
        device: "cpu".to_owned(),
        library: None,
        ranks: vec![1, 2, 4],
        rank: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        let wrong = |what: &str| format!("{argument} {what}: expected numbers");
        match argument.as_str() {
            "--device" => options.device = value()?,
            "--library" => options.library = Some(PathBuf::from(value()?)),
            "--ranks" => {
                let ranks = value()?;
                let numbers = ranks.split(',').map(str::parse);
                options.ranks = numbers
                    .collect::<Result<_, _>>()
                    .map_err(|_| wrong(&ranks))?;
            }
            "--rank" => {
                let place = value()?;
                let (rank, of) = place.split_once('/').ok_or_else(|| wrong(&place))?;
                let number = |text: &str| text.parse().map_err(|_| wrong(&place));
                options.rank = Some((number(rank)?, number(of)?));
            }
            "--list" => return Ok(None),
            // What `cargo test` hands to every test: options of its harness, and names to look for.
            option if option.starts_with('-') => {}
            name if "nccl_ranks".contains(name) => {}
            _ => return Ok(None),
        }
    }
    Ok(Some(options))
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("nccl_ranks: {message}");
            return ExitCode::from(64);
        }
    };
    if let Some((rank, world_size)) = options.rank {
        checks::run(
            &options.device,
            options.library.as_deref(),
            rank,
            world_size,
        );
        return ExitCode::SUCCESS;
    }
    let mut all_well = true;
    for &world_size in &options.ranks {
        all_well &= world(&options, world_size);
    }
    ExitCode::from(u8::from(!all_well))
}

/// A rank's process, which ends with this one.
struct Rank {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    said: Vec<String>,
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rank {
    fn start(options: &Options, rank: u32, world_size: u32) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--device", &options.device]);
        command.args(["--rank", &format!("{rank}/{world_size}")]);
        let library = match (&options.library, options.device.as_str()) {
            (None, "cpu") => Some(library::stand_in()),
            (given, _) => given.clone(),
        };
        if let Some(library) = library {
            command.arg("--library").arg(library);
        }
        if options.device.starts_with("cuda:") && world_size > 1 {
            command.env("NCCL_HOSTID", format!("rank{rank}"));
            command.envs([
                ("NCCL_SOCKET_IFNAME", "lo"),
                ("NCCL_NET", "Socket"),
                ("NCCL_IB_DISABLE", "1"),
                ("NCCL_MNNVL_ENABLE", "0"),
                ("NCCL_NVLS_ENABLE", "0"),
                ("NCCL_MAX_CTAS", "1"),
                ("NCCL_ALGO", "Ring"),
                ("NCCL_PROTO", "Simple"),
            ]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this program starts again");
        let (sender, lines) = std::sync::mpsc::channel();
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self {
            child,
            lines,
            said: Vec::new(),
        }
    }

    /// Its next line; none when it has ended, or at the deadline.
    fn line(&mut self, until: Instant) -> Option<String> {
        let left = until.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(left).ok()
    }

    /// Hears the rest, and how it ended; none if it didn't.
    fn end(&mut self, until: Instant) -> Option<ExitStatus> {
        while let Some(line) = self.line(until) {
            self.said.push(line);
        }
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// All checks with so many ranks; whether all went well.
fn world(options: &Options, world_size: u32) -> bool {
    let until = Instant::now() + PATIENCE;
    let mut ranks: Vec<Rank> = (0..world_size)
        .map(|rank| Rank::start(options, rank, world_size))
        .collect();
    let told = ranks.iter_mut().map(|rank| rank.line(until));
    let addresses: Vec<String> = told.flatten().collect();
    if addresses.len() < ranks.len() {
        println!("FAIL ranks={world_size} start: not every rank came up");
        return false;
    }
    let addresses = format!("{}\n", addresses.join(" "));
    for rank in &mut ranks {
        let mut to = rank.child.stdin.take().expect("it is piped");
        let _ = to.write_all(addresses.as_bytes());
    }
    let ends: Vec<Option<ExitStatus>> = ranks.iter_mut().map(|rank| rank.end(until)).collect();
    let mut all_well = true;
    // The last rank kills itself in the last check, and has nothing to say of it.
    for name in checks::names(world_size) {
        let victim = (name == checks::KILLED).then_some(world_size as usize - 1);
        let judged = ranks
            .iter()
            .enumerate()
            .filter(|(rank, _)| Some(*rank) != victim);
        let verdicts: Vec<Option<&str>> = judged
            .map(|(_, rank)| {
                let says = |line: &&String| line.split(' ').nth(1) == Some(name);
                rank.said.iter().find(says).map(String::as_str)
            })
            .collect();
        let is_ok = |verdict: &Option<&str>| verdict.is_some_and(|line| line.starts_with("ok "));
        let detail = |verdict: &Option<&str>| {
            let line = verdict.unwrap_or("- - said nothing");
            line.splitn(3, ' ').nth(2).unwrap_or_default().to_owned()
        };
        let (mark, details) = if verdicts.iter().all(is_ok) {
            let mut details: Vec<String> = verdicts.iter().map(detail).collect();
            details.dedup();
            ("ok  ", details.join(" | "))
        } else {
            all_well = false;
            let bad = verdicts.iter().filter(|verdict| !is_ok(verdict));
            ("FAIL", bad.map(detail).collect::<Vec<_>>().join(" | "))
        };
        println!("{mark} ranks={world_size} {name} {details}");
    }
    for (rank, end) in ends.iter().enumerate() {
        use std::os::unix::process::ExitStatusExt;
        let is_victim = world_size > 1 && rank as u32 == world_size - 1;
        let well = match end {
            Some(status) if is_victim => status.signal() == Some(9),
            Some(status) => status.success(),
            None => false,
        };
        if !well {
            all_well = false;
            println!("FAIL ranks={world_size} rank {rank} ended with {end:?}");
        }
    }
    all_well
}
