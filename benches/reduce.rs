//! How fast replicas' vectors become their mean, in host memory.
//!
//! The vectors are as long as the gradients of DCGAN-64's discriminator and generator. What is
//! called a byte here is one of the mean: `n * 4`. A copy's vector is as long as all of a DCGAN-64's
//! state: both networks' parameters and moments, and the generator's average.

#![allow(clippy::unwrap_used, reason = "a bench that fails is to stop")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ganglion::collective::{
    Abort, Collective, CollectiveError, Deadlines, Group, GroupPeer, InProcess, Listener, Tcp,
};
use ganglion::ids::{Generation, Rank};
use std::hint::black_box;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const DISCRIMINATOR: usize = 2_800_000;
const GENERATOR: usize = 3_600_000;
const STATE: usize = 24_000_000;
const REPLICAS: u32 = 4;
const DEADLINE: Duration = Duration::from_secs(30);

/// What one worker reduces in a step: a vector a hosted replica, and the mean.
struct Vectors {
    hosted: Vec<Vec<f32>>,
    mean: Vec<f32>,
}

impl Vectors {
    fn new(hosted: &Range<u32>, length: usize) -> Self {
        let vector = |replica: u32| (0..length).map(move |i| ((i as u32 ^ replica) % 97) as f32);
        Self {
            hosted: hosted.clone().map(|r| vector(r).collect()).collect(),
            mean: vec![0.0; length],
        }
    }

    fn reduce(&mut self, collective: &mut dyn Collective) {
        let mut hosted: Vec<&mut [f32]> = self.hosted.iter_mut().map(|v| &mut v[..]).collect();
        collective
            .reduce_mean(black_box(&mut hosted), black_box(&mut self.mean))
            .unwrap();
    }
}

/// A rank on a thread of its own, that does its part once for each word it is given.
struct Other {
    go: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Other {
    fn new(mut part: impl FnMut() + Send + 'static) -> Self {
        let (go, words): (_, Receiver<()>) = channel();
        let thread = thread::spawn(move || words.iter().for_each(|()| part()));
        Self {
            go: Some(go),
            thread: Some(thread),
        }
    }

    fn reducing(
        mut collective: Box<dyn Collective>,
        hosted: &Range<u32>,
        lengths: &[usize],
    ) -> Self {
        let mut vectors: Vec<_> = lengths.iter().map(|&n| Vectors::new(hosted, n)).collect();
        Self::new(move || {
            for vectors in &mut vectors {
                vectors.reduce(&mut *collective);
            }
        })
    }

    fn go(&self) {
        self.go.as_ref().unwrap().send(()).unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.go = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn tcp(ranges: &[Range<u32>]) -> Vec<Box<dyn Collective>> {
    processes(ranges, Tcp::connect)
}

fn shared(ranges: &[Range<u32>]) -> Vec<Box<dyn Collective>> {
    processes(ranges, Tcp::connect_sharing_memory)
}

type Connect = fn(&Listener, &Group, Deadlines, &Abort) -> Result<Tcp, CollectiveError>;

fn processes(ranges: &[Range<u32>], connect: Connect) -> Vec<Box<dyn Collective>> {
    let doors: Vec<_> = ranges
        .iter()
        .map(|_| Listener::bind("127.0.0.1:0").unwrap())
        .collect();
    let peers: Vec<_> = doors
        .iter()
        .zip(ranges)
        .map(|(door, range)| GroupPeer {
            address: door.local_addr().to_string(),
            replicas: range.clone(),
        })
        .collect();
    let deadlines = Deadlines {
        connect: DEADLINE,
        collective: DEADLINE,
    };
    let one = |(rank, door): (usize, &Listener)| -> Box<dyn Collective> {
        let group = Group {
            generation: Generation(1),
            rank: Rank(rank as u32),
            peers: peers.clone(),
            replicas: REPLICAS,
            secret: [1; 32],
        };
        Box::new(connect(door, &group, deadlines, &Abort::new()).unwrap())
    };
    thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = doors
            .iter()
            .enumerate()
            .map(|door| scope.spawn(move || one(door)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn in_process(ranges: &[Range<u32>]) -> Vec<Box<dyn Collective>> {
    let ranks = InProcess::group(ranges, DEADLINE).unwrap();
    ranks.into_iter().map(|rank| Box::new(rank) as _).collect()
}

type Form = fn(&[Range<u32>]) -> Vec<Box<dyn Collective>>;

fn reduce(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reduce");
    group.sample_size(20);
    let sizes = [
        ("discriminator", vec![DISCRIMINATOR]),
        ("generator", vec![GENERATOR]),
        ("both", vec![DISCRIMINATOR, GENERATOR]),
    ];
    let alone = 0..REPLICAS;
    let layouts: [(&str, Form, Vec<Range<u32>>); 4] = [
        ("local-sum-of-4", in_process, vec![alone]),
        ("in-process-2x2", in_process, vec![0..2, 2..4]),
        ("tcp-2x2", tcp, vec![0..2, 2..4]),
        ("shared-memory-2x2", shared, vec![0..2, 2..4]),
    ];
    for (layout, form, ranges) in layouts {
        for (size, lengths) in &sizes {
            let bytes: usize = lengths.iter().map(|n| n * 4).sum();
            group.throughput(Throughput::Bytes(bytes as u64));
            let mut ranks = form(&ranges).into_iter();
            let mut first = ranks.next().unwrap();
            let others: Vec<_> = ranks
                .zip(&ranges[1..])
                .map(|(rank, range)| Other::reducing(rank, range, lengths))
                .collect();
            let mut vectors: Vec<_> = lengths
                .iter()
                .map(|&n| Vectors::new(&ranges[0], n))
                .collect();
            group.bench_function(BenchmarkId::new(layout, size), |bencher| {
                bencher.iter(|| {
                    for other in &others {
                        other.go();
                    }
                    for vectors in &mut vectors {
                        vectors.reduce(&mut *first);
                    }
                });
            });
        }
    }
    group.finish();
}

/// From one rank to another, as when a worker joins.
fn copy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("copy");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(STATE as u64 * 4));
    let layouts: [(&str, Form); 3] = [
        ("in-process-1-to-1", in_process),
        ("tcp-1-to-1", tcp),
        ("shared-memory-1-to-1", shared),
    ];
    for (layout, form) in layouts {
        let mut ranks = form(&[0..2, 2..4]).into_iter();
        let (mut holder, mut needy) = (ranks.next().unwrap(), ranks.next().unwrap());
        let mut there = vec![0.0; STATE];
        let other = Other::new(move || needy.copy(&[Rank(0)], black_box(&mut there)).unwrap());
        let mut here: Vec<f32> = (0..STATE).map(|i| (i % 97) as f32).collect();
        group.bench_function(BenchmarkId::new(layout, "state"), |bencher| {
            bencher.iter(|| {
                other.go();
                holder.copy(&[Rank(0)], black_box(&mut here)).unwrap();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, reduce, copy);
criterion_main!(benches);
