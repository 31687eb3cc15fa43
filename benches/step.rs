//! A whole training step on the CPU: DCGAN at 64×64, width 64, two replicas of 32 images.
//!
//! Compare with one process of PyTorch's example at batch 64 in the same session: machines differ.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ganglion::collective::{Flags, InProcess};
use ganglion::config::{MemoryFormat, Precision, Update, parse};
use ganglion::data::Batch;
use ganglion::ids::{Epoch, ReplicaId};
use ganglion::train::{Setup, Trainer};
use std::hint::black_box;
use std::path::Path;
use tch::Device;

const REPLICAS: u32 = 2;
const BATCH: u32 = 32;

fn step(criterion: &mut Criterion) {
    let text = format!(
        r#"
        job = {{ name = "bench" }}
        data = {{ uri = "nowhere" }}
        train = {{ replicas = {REPLICAS}, batch = {BATCH}, steps = 1 }}
        "#
    );
    let mut group = criterion.benchmark_group("step 64x64 width 64");
    group.sample_size(10);
    group.throughput(Throughput::Elements(u64::from(REPLICAS * BATCH)));
    ganglion::torch::keep_memory();
    let (last, first) = (MemoryFormat::ChannelsLast, MemoryFormat::Contiguous);
    for (label, update, precision, format) in [
        ("alternating", Update::Alternating, Precision::F32, last),
        ("simultaneous", Update::Simultaneous, Precision::F32, last),
        (
            "alternating bf16",
            Update::Alternating,
            Precision::Bf16,
            last,
        ),
        (
            "simultaneous bf16",
            Update::Simultaneous,
            Precision::Bf16,
            last,
        ),
        (
            "alternating contiguous",
            Update::Alternating,
            Precision::F32,
            first,
        ),
    ] {
        if precision == Precision::Bf16 && !ganglion::torch::has_fast_bf16() {
            println!("{label} is left out: this processor computes bf16 by way of f32, slowly");
            continue;
        }
        let mut job = parse(&text, "bench", Path::new("."), &[]).expect("the job is sound");
        job.train.update = update;
        job.train.precision = precision;
        job.train.memory_format = format;
        let mut trainer = Trainer::new(Setup {
            job: &job,
            device: Device::Cpu,
            replicas: 0..REPLICAS,
            cores: 2,
        })
        .expect("a trainer on the CPU");
        let mut collective = InProcess::solo(REPLICAS).expect("one rank hosts all");
        let pixels: Vec<u8> = (0..BATCH * 3 * 64 * 64)
            .map(|i| (i * 7 % 251) as u8)
            .collect();
        group.bench_function(label, |bencher| {
            bencher.iter(|| {
                let batches = (0..REPLICAS)
                    .map(|replica| Batch {
                        step: trainer.step(),
                        epoch: Epoch(0),
                        replica: ReplicaId(replica),
                        pixels: pixels.clone().into(),
                        labels: None,
                    })
                    .collect();
                black_box(
                    trainer
                        .advance(batches, &mut collective, Flags::default())
                        .expect("a step"),
                )
            });
        });
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
