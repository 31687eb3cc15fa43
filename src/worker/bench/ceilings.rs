//! What the device can do, measured by the two things that it does best.

use crate::config::{Precision, Train};
use crate::torch::{self, Adopted, Rules, TorchError};
use std::hint::black_box;
use std::time::Instant;
use tch::{Cuda, Device, Kind, Tensor};

/// A block of repetitions lasts at least this long, seconds.
const BLOCK: f64 = 0.05;
/// Of so many blocks the fastest counts.
const BLOCKS: usize = 5;

/// Rates that no step will reach.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ceilings {
    /// Floating-point operations a second in a product of two large square matrices.
    pub(super) flops_per_s: f64,
    /// Bytes a second, read and written together, in a copy of a large tensor.
    pub(super) bytes_per_s: f64,
}

/// Measures on `cores` threads of a CPU, or all of a GPU, in the precision that is trained in.
pub(super) fn measure(device: Device, train: &Train, cores: u32) -> Result<Ceilings, TorchError> {
    let rules = Rules {
        deterministic: train.deterministic,
        tf32: train.precision == Precision::Tf32,
    };
    let _adopted = Adopted::new(rules, device)?;
    torch::set_threads(cores);
    // Large enough for all units to be busy; the copy's far larger than any cache.
    let (side, len): (i64, i64) = match device {
        Device::Cpu if cores <= 4 => (1024, 1 << 26),
        Device::Cpu => (4096, 1 << 27),
        _ => (8192, 1 << 28),
    };
    let kind = match train.precision {
        Precision::F32 | Precision::Tf32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    };
    let flops_per_s = {
        // Random numbers: a GPU's clock rises on zeros.
        let square = || Tensor::f_randn([side, side], (kind, device));
        let (a, b, product) = (square()?, square()?, square()?);
        let seconds = fastest(device, || {
            let _product = black_box(a.f_matmul_out(&product, &b)?);
            Ok(())
        })?;
        2.0 * (side as f64).powi(3) / seconds
    };
    let bytes_per_s = {
        let from = Tensor::f_ones([len], (Kind::Float, device))?;
        let mut to = from.f_zeros_like()?;
        let seconds = fastest(device, || {
            to.f_copy_(black_box(&from))?;
            Ok(())
        })?;
        2.0 * 4.0 * len as f64 / seconds
    };
    Ok(Ceilings {
        flops_per_s,
        bytes_per_s,
    })
}

/// Seconds that `work` takes at its fastest.
fn fastest(
    device: Device,
    mut work: impl FnMut() -> Result<(), TorchError>,
) -> Result<f64, TorchError> {
    let mut block = |repetitions: u32| {
        wait(device);
        let began = now();
        for _ in 0..repetitions {
            work()?;
        }
        wait(device);
        Ok::<_, TorchError>(began.elapsed().as_secs_f64() / f64::from(repetitions))
    };
    block(2)?;
    let repetitions = (BLOCK / block(1)?.max(1e-6)).ceil() as u32;
    let mut best = f64::INFINITY;
    for _ in 0..BLOCKS {
        best = best.min(block(repetitions)?);
    }
    Ok(best)
}

/// Until the device has done all that it was told.
fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}
