//! What one rank of `nccl_ranks` does and finds out.

use ganglion::collective::{
    Abort, Collective, CollectiveError, Deadlines, Group, GroupPeer, InProcess, Listener, Nccl,
    OnDevice, Tcp,
};
use ganglion::config::Reduction;
use ganglion::ids::{Generation, Rank};
use ganglion::nccl::Library;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// For ranks that have much to compute.
const PATIENT: Duration = Duration::from_secs(60);

/// For an error, once its cause is there. It may take NCCL some seconds to end a communicator.
const BOUND: Duration = Duration::from_secs(15);

/// The check in which the last rank dies.
pub(crate) const KILLED: &str = "killed";

/// All checks of so many ranks, in order.
pub(crate) fn names(world_size: u32) -> Vec<&'static str> {
    let mut names = vec![
        "mean",
        "special-values",
        "repeated",
        "overlap",
        "copy",
        "host-vectors",
        "fast",
    ];
    if world_size > 1 {
        names.extend(["abort", KILLED]);
    }
    names
}

/// One rank's means.
struct Seat {
    device: Device,
    library: Arc<Library>,
    listener: Listener,
    rank: u32,
    ranges: Vec<Range<u32>>,
    addresses: Vec<String>,
}

/// What a check finds: a detail for whoever reads it, or what is wrong.
type Found = Result<String, String>;

/// Does it all, and prints a line a check.
pub(crate) fn run(device: &str, library: Option<&Path>, rank: u32, world_size: u32) {
    let device = match device.strip_prefix("cuda") {
        None => Device::Cpu,
        Some("") => Device::Cuda(rank as usize),
        Some(index) => Device::Cuda(index.trim_start_matches(':').parse().unwrap()),
    };
    if device.is_cuda() {
        assert!(ganglion::torch::load_cuda(), "libtorch has no CUDA here");
    }
    let library = match library {
        Some(path) => Library::open(path),
        None => Library::load(),
    };
    let library = library.unwrap_or_else(|error| panic!("{error}"));
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr());
    let mut addresses = String::new();
    std::io::stdin().read_line(&mut addresses).unwrap();
    let seat = Seat {
        device,
        library,
        listener,
        rank,
        ranges: uneven(world_size),
        addresses: addresses.split_whitespace().map(str::to_owned).collect(),
    };
    seat.check_all(world_size);
}

/// Ranges of one, four, one, two, … replicas.
fn uneven(world_size: u32) -> Vec<Range<u32>> {
    if world_size == 1 {
        return std::iter::once(0..3).collect();
    }
    let sizes = [1, 4, 1, 2].into_iter().cycle().take(world_size as usize);
    let mut start = 0;
    sizes
        .map(|size| {
            start += size;
            start - size..start
        })
        .collect()
}

/// Numbers of many magnitudes, so that another order of additions gives other bits.
fn value(replica: u32, index: usize) -> f32 {
    let mut x = (u64::from(replica) << 32 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    let magnitude = [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4][(x >> 40) as usize % 9];
    ((x & 0xff_ffff) as f32 / 8_388_608.0 - 1.0) * magnitude
}

/// Where additions and NaNs are at their worst.
fn special(replica: u32, index: usize) -> f32 {
    let odd = [
        f32::NAN,
        f32::from_bits(0xffc0_1234),
        f32::INFINITY,
        f32::NEG_INFINITY,
        -0.0,
        0.0,
        f32::MIN_POSITIVE / 8.0,
        f32::MAX,
    ];
    match index % 4 {
        0 => odd[(index / 4 + replica as usize) % odd.len()],
        1 => -0.0,
        2 if replica == 0 => odd[(index / 4) % odd.len()],
        _ => value(replica, index),
    }
}

fn vector(replica: u32, length: usize, of: fn(u32, usize) -> f32) -> Vec<f32> {
    (0..length).map(|index| of(replica, index)).collect()
}

fn same(what: &str, found: &[f32], expected: &[f32]) -> Result<(), String> {
    let differs = |(found, expected): (&f32, &f32)| found.to_bits() != expected.to_bits();
    match found.iter().zip(expected).position(differs) {
        None if found.len() == expected.len() => Ok(()),
        None => Err(format!(
            "{what}: {} of {} elements",
            found.len(),
            expected.len()
        )),
        Some(at) => Err(format!(
            "{what}: element {at} is {:?} ({:08x}), expected {:?} ({:08x})",
            found[at],
            found[at].to_bits(),
            expected[at],
            expected[at].to_bits()
        )),
    }
}

fn text(error: CollectiveError) -> String {
    error.to_string()
}

/// What an error is called, for the table.
fn kind(error: &CollectiveError) -> String {
    let debug = format!("{error:?}");
    let end = debug.find([' ', '{', '(']).unwrap_or(debug.len());
    debug[..end].to_owned()
}

fn on_device(nccl: &mut Nccl) -> Result<&mut dyn OnDevice, String> {
    nccl.on_device()
        .ok_or("it has no way on the device".to_owned())
}

impl Seat {
    fn check_all(&self, world_size: u32) {
        // One group for all that goes well, one for each that doesn't.
        let mut formed = self.form(1, Reduction::Exact, PATIENT);
        let mut with = |check: &dyn Fn(&mut Nccl) -> Found| match &mut formed {
            Ok((nccl, _)) => check(nccl),
            Err(error) => Err(format!("the group could not be formed: {error}")),
        };
        for name in names(world_size) {
            let found = catch_unwind(AssertUnwindSafe(|| match name {
                "mean" => with(&|nccl| self.mean(nccl)),
                "special-values" => with(&|nccl| self.special_values(nccl)),
                "repeated" => with(&|nccl| self.repeated(nccl)),
                "overlap" => with(&|nccl| self.overlap(nccl)),
                "copy" => with(&|nccl| self.copy(nccl)),
                "host-vectors" => with(&|nccl| self.host_vectors(nccl)),
                "fast" => self.fast(),
                "abort" => self.abort(),
                _ => self.killed(),
            }));
            let found = found.unwrap_or_else(|_| Err("it panicked; see its errors".to_owned()));
            let (mark, detail) = match &found {
                Ok(detail) => ("ok", detail),
                Err(detail) => ("FAIL", detail),
            };
            println!("{mark} {name} {}", detail.replace('\n', " "));
        }
    }

    fn form(
        &self,
        generation: u64,
        reduction: Reduction,
        deadline: Duration,
    ) -> Result<(Nccl, Abort), String> {
        let peers = self.addresses.iter().zip(&self.ranges);
        let group = Group {
            generation: Generation(generation),
            rank: Rank(self.rank),
            peers: peers
                .map(|(address, replicas)| GroupPeer {
                    address: address.clone(),
                    replicas: replicas.clone(),
                })
                .collect(),
            replicas: self.replicas(),
            secret: [7; 32],
        };
        let deadlines = Deadlines {
            connect: PATIENT,
            collective: deadline,
        };
        let abort = Abort::new();
        let tcp = Tcp::connect(&self.listener, &group, deadlines, &abort).map_err(text)?;
        let (library, device) = (&self.library, self.device);
        let nccl = Nccl::form(tcp, &group, library, device, reduction, deadlines, &abort);
        Ok((nccl.map_err(text)?, abort))
    }

    fn replicas(&self) -> u32 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    fn hosted(&self, length: usize, of: fn(u32, usize) -> f32) -> Vec<Tensor> {
        let own = self.ranges[self.rank as usize].clone();
        own.map(|replica| self.to_device(&vector(replica, length, of)))
            .collect()
    }

    fn to_device(&self, values: &[f32]) -> Tensor {
        Tensor::from_slice(values).to_device(self.device)
    }

    fn empty(&self, length: usize) -> Tensor {
        Tensor::full([length as i64], -1e30, (Kind::Float, self.device))
    }

    fn read(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.to_device(Device::Cpu)).unwrap()
    }

    /// The mean as one process computes it that hosts all replicas.
    fn expected(&self, length: usize, of: fn(u32, usize) -> f32) -> Vec<f32> {
        let replicas = self.replicas();
        let mut vectors: Vec<Vec<f32>> = (0..replicas)
            .map(|replica| vector(replica, length, of))
            .collect();
        let mut hosted: Vec<&mut [f32]> = vectors.iter_mut().map(|v| &mut v[..]).collect();
        let mut mean = vec![0.0; length];
        let mut alone = InProcess::solo(replicas).unwrap();
        alone.reduce_mean(&mut hosted, &mut mean).unwrap();
        mean
    }

    fn reduce(
        &self,
        nccl: &mut Nccl,
        length: usize,
        of: fn(u32, usize) -> f32,
    ) -> Result<Vec<f32>, String> {
        let (hosted, mean) = (self.hosted(length, of), self.empty(length));
        let nccl = on_device(nccl)?;
        nccl.start(&hosted, &mean).map_err(text)?;
        nccl.join().map_err(text)?;
        nccl.settle().map_err(text)?;
        Ok(Self::read(&mean))
    }

    fn mean(&self, nccl: &mut Nccl) -> Found {
        let lengths = [1, 2, 3, 7, 1000, 65_537, 1 << 19];
        for length in lengths {
            let mean = self.reduce(nccl, length, value)?;
            same(
                &format!("length {length}"),
                &mean,
                &self.expected(length, value),
            )?;
        }
        Ok(format!(
            "{} replicas as {:?}, {} lengths up to {}, bit for bit",
            self.replicas(),
            self.ranges,
            lengths.len(),
            1 << 19
        ))
    }

    fn special_values(&self, nccl: &mut Nccl) -> Found {
        let mean = self.reduce(nccl, 999, special)?;
        same("special values", &mean, &self.expected(999, special))?;
        Ok("NaN, infinities, zeros, subnormals".to_owned())
    }

    fn repeated(&self, nccl: &mut Nccl) -> Found {
        const COUNT: u32 = 100;
        let expected = self.expected(4099, value);
        let began = Instant::now();
        for round in 0..COUNT {
            let mean = self.reduce(nccl, 4099, value)?;
            same(&format!("round {round}"), &mean, &expected)?;
        }
        let each = began.elapsed() / COUNT;
        Ok(format!(
            "{COUNT} reductions, {each:.0?} each with its copies"
        ))
    }

    /// Two at once, as a step has them, and something that is computed from both.
    fn overlap(&self, nccl: &mut Nccl) -> Found {
        let (long, short) = (200_003, 70_001);
        let shifted = |replica, index| value(replica, index + 5_000_000);
        for _ in 0..5 {
            let (first, second) = (self.hosted(long, value), self.hosted(short, shifted));
            let (of_first, of_second) = (self.empty(long), self.empty(short));
            let nccl = on_device(nccl)?;
            nccl.start(&first, &of_first).map_err(text)?;
            let busy = Tensor::ones([256, 256], (Kind::Float, self.device));
            let busy = busy.matmul(&busy).sum(Kind::Float);
            nccl.start(&second, &of_second).map_err(text)?;
            nccl.join().map_err(text)?;
            let twice = &of_first * 2.0;
            nccl.join().map_err(text)?;
            let thrice = &of_second * 4.0;
            nccl.settle().map_err(text)?;
            same(
                "the first",
                &Self::read(&of_first),
                &self.expected(long, value),
            )?;
            same(
                "the second",
                &Self::read(&of_second),
                &self.expected(short, shifted),
            )?;
            let scaled = |mean: Vec<f32>, by: f32| mean.iter().map(|v| v * by).collect::<Vec<_>>();
            same(
                "after the first",
                &Self::read(&twice),
                &scaled(self.expected(long, value), 2.0),
            )?;
            same(
                "after the second",
                &Self::read(&thrice),
                &scaled(self.expected(short, shifted), 4.0),
            )?;
            if f64::try_from(busy).unwrap() != 256.0 * 256.0 * 256.0 {
                return Err("what was computed meanwhile is wrong".to_owned());
            }
        }
        Ok("two in flight, and what is computed from each after its join".to_owned())
    }

    fn copy(&self, nccl: &mut Nccl) -> Found {
        let world_size = self.ranges.len() as u32;
        let mut lists = vec![vec![Rank(0)]];
        if world_size > 1 {
            lists.push(vec![Rank(world_size - 1)]);
        }
        if world_size > 2 {
            lists.push(vec![Rank(0), Rank(world_size - 1)]);
        }
        let length = 300_007;
        let truth = vector(9, length, special);
        for holders in &lists {
            let holds = holders.contains(&Rank(self.rank));
            let tensor = match holds {
                true => self.to_device(&truth),
                false => self.empty(length),
            };
            on_device(nccl)?.copy(holders, &tensor).map_err(text)?;
            same(&format!("from {holders:?}"), &Self::read(&tensor), &truth)?;
        }
        Ok(format!("{} lists of holders, bit for bit", lists.len()))
    }

    /// The same collective's other face, and its words.
    fn host_vectors(&self, nccl: &mut Nccl) -> Found {
        let own = self.ranges[self.rank as usize].clone();
        let mut vectors: Vec<Vec<f32>> = own.map(|replica| vector(replica, 5003, value)).collect();
        let mut hosted: Vec<&mut [f32]> = vectors.iter_mut().map(|v| &mut v[..]).collect();
        let mut mean = vec![0.0; 5003];
        nccl.reduce_mean(&mut hosted, &mut mean).map_err(text)?;
        same("the mean", &mean, &self.expected(5003, value))?;
        nccl.barrier().map_err(text)?;
        let words = nccl.gather(100 + u64::from(self.rank)).map_err(text)?;
        let expected: Vec<u64> = (0..self.ranges.len() as u64)
            .map(|rank| 100 + rank)
            .collect();
        if words != expected {
            return Err(format!("gathered {words:?}"));
        }
        Ok(format!("{} bytes sent so far", nccl.sent_bytes()))
    }

    fn fast(&self) -> Found {
        let (mut nccl, _) = self.form(2, Reduction::Fast, PATIENT)?;
        let positive = |replica, index| 1.0 + value(replica, index).abs().min(1.0);
        let mean = self.reduce(&mut nccl, 100_003, positive)?;
        let expected = self.expected(100_003, positive);
        let off = mean.iter().zip(&expected).map(|(a, b)| (a / b - 1.0).abs());
        let worst = off.fold(0.0_f32, f32::max);
        let differ = mean
            .iter()
            .zip(&expected)
            .filter(|(a, b)| a.to_bits() != b.to_bits());
        if worst.is_nan() || worst > 1e-6 {
            return Err(format!("{worst:e} off the exact mean"));
        }
        Ok(format!(
            "{} of 100003 differ from the exact mean, by {worst:.1e} at most",
            differ.count()
        ))
    }

    /// Rank 0 doesn't come, and rank 1 is called off. The others hear of it from rank 1.
    fn abort(&self) -> Found {
        let (mut nccl, abort) = self.form(3, Reduction::Exact, PATIENT)?;
        let (hosted, mean) = (self.hosted(1 << 16, value), self.empty(1 << 16));
        let nccl = on_device(&mut nccl)?;
        if self.rank == 0 {
            std::thread::sleep(Duration::from_secs(1));
        }
        let caller = std::thread::spawn({
            let calls = self.rank == 1;
            move || {
                std::thread::sleep(Duration::from_millis(300));
                let called_at = Instant::now();
                if calls {
                    abort.abort("a check calls it off");
                }
                called_at
            }
        });
        let began = Instant::now();
        let started = nccl.start(&hosted, &mean);
        let Err(error) = started.and_then(|()| nccl.settle()) else {
            return Err("a mean without all of its replicas".to_owned());
        };
        let ended_at = Instant::now();
        let latency = ended_at.saturating_duration_since(caller.join().unwrap());
        if nccl.start(&hosted, &mean).is_ok() {
            return Err("it can be used again".to_owned());
        }
        match (self.rank, &error) {
            (1, CollectiveError::Aborted { .. }) if latency < BOUND => {
                Ok(format!("latency {latency:.1?}"))
            }
            (rank, _) if rank != 1 && ended_at - began < BOUND => {
                Ok(format!("{} on another rank", kind(&error)))
            }
            _ => Err(format!("{error} {latency:.1?} after the call")),
        }
    }

    /// The last rank kills itself with a reduction in flight.
    fn killed(&self) -> Found {
        const ROUNDS: u32 = 10;
        let (mut nccl, _) = self.form(4, Reduction::Exact, PATIENT)?;
        let is_victim = self.rank as usize == self.ranges.len() - 1;
        let (hosted, mean) = (self.hosted(1 << 18, value), self.empty(1 << 18));
        let nccl = on_device(&mut nccl)?;
        for round in 0.. {
            let began = Instant::now();
            let started = nccl.start(&hosted, &mean);
            if is_victim && round == ROUNDS {
                let pid = std::process::id().to_string();
                let _ = Command::new("kill").args(["-9", &pid]).status();
                std::thread::sleep(PATIENT);
            }
            let error = match started.and_then(|()| nccl.settle()) {
                Ok(()) if round < ROUNDS => continue,
                Ok(()) => return Err("a mean without one of its replicas".to_owned()),
                Err(error) => error,
            };
            let took = began.elapsed();
            let is_sound = round == ROUNDS && took < BOUND;
            let again = nccl.start(&hosted, &mean).is_ok();
            return match is_sound && !again {
                true => Ok(format!("{} after {took:.1?}", kind(&error))),
                false => Err(format!(
                    "round {round}: {error} after {took:.1?}; again: {again}"
                )),
            };
        }
        Err("no rounds".to_owned())
    }
}
