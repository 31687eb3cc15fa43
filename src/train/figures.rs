//! What a step tells of itself, from the device to the host without waiting for it.

use super::layout::{DiscriminatorLayout, GeneratorLayout, part};
use super::{StepReport, TrainError};
use crate::collective::Flags;
use crate::guard::Verdict;
use crate::ids::Step;
use crate::torch::{Event, Stream, TorchError, copy_async, pin_memory};
use std::ops::Range;
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// Where D's cost and two beliefs begin: after norms and counts of both gradients, G's cost and
/// everybody's flags.
const OF_D: usize = 4 + 1 + Flags::LEN;
/// With them.
const LEN: usize = OF_D + 3;

/// How often the device is asked whether they have come. It has more to do meanwhile.
const PATIENCE: Duration = Duration::from_micros(20);

/// The figures of the step that is under way.
#[derive(Debug)]
pub(super) struct Figures {
    device: Tensor,
    /// Pinned, if that is another memory.
    host: Tensor,
    sent: Event,
}

impl Figures {
    /// Two more numbers come if the `diversity` of images is watched.
    pub(super) fn new(device: Device, diversity: bool) -> Result<Self, TorchError> {
        let len = LEN + if diversity { 2 } else { 0 };
        let zeros = |device| Tensor::f_zeros([len as i64], (Kind::Double, device));
        let host = zeros(Device::Cpu)?;
        Ok(Self {
            device: zeros(device)?,
            host: match device {
                Device::Cpu => host,
                _ => pin_memory(&host)?,
            },
            sent: Event::new(device, false)?,
        })
    }

    /// Where they are written.
    pub(super) fn place(&self) -> Tensor {
        self.device.shallow_clone()
    }

    /// Queues their way to the host.
    pub(super) fn send(&mut self) -> Result<(), TorchError> {
        copy_async(&mut self.host, &self.device)?;
        self.sent.record(Stream::current(self.device.device())?)
    }

    /// Waits until they are there, and says what they are. Kernels have no deadline: the reductions
    /// before them are over.
    pub(super) fn read(&self, step: Step) -> Result<StepReport, TrainError> {
        while !self.sent.is_complete()? {
            std::thread::sleep(PATIENCE);
        }
        let mut all = vec![0f64; self.host.numel()];
        self.host
            .f_copy_data(&mut all, self.host.numel())
            .map_err(TorchError::from)?;
        let mut values = [0f64; LEN];
        let (first, diversity) = all.split_at(LEN);
        values.copy_from_slice(first);
        let [
            grad_norm_d,
            nonfinite_d,
            grad_norm_g,
            nonfinite_g,
            loss_g,
            flags @ ..,
            loss_d,
            d_real,
            d_fake,
        ] = values;
        Ok(StepReport {
            step,
            flags: Flags::decode(flags.map(|share| share as f32)),
            loss_d,
            loss_g,
            d_real,
            d_fake,
            grad_norm_d,
            grad_norm_g,
            nonfinite: (nonfinite_d + nonfinite_g) as u64,
            diversity: match diversity {
                [real, fake] => Some(fake / real),
                _ => None,
            },
            verdict: Verdict::Keep,
            compute: Duration::ZERO,
            reduce: Duration::ZERO,
            sent_bytes: 0,
        })
    }
}

/// Writes the figures of D's update with this number in the step, from 0, to `place`, on the device.
/// Those of the step's last stay, but what is not finite is counted together.
pub(super) fn write_discriminator(
    place: &Tensor,
    mean: &Tensor,
    layout: &DiscriminatorLayout,
    number: u32,
) -> Result<(), TorchError> {
    let updating = (&layout.gradients, layout.loss);
    write_gradient(place, 0, mean, updating, number)?;
    // The scalars end both vectors, in this order.
    let scalars = part(mean, &(layout.loss..layout.len))?;
    let mut there = place.f_narrow(0, OF_D as i64, scalars.size1()?)?;
    there.f_copy_(&scalars)?;
    Ok(())
}

/// Likewise, of G's.
pub(super) fn write_generator(
    place: &Tensor,
    mean: &Tensor,
    layout: &GeneratorLayout,
    number: u32,
) -> Result<(), TorchError> {
    let updating = (&layout.gradients, layout.loss);
    write_gradient(place, 2, mean, updating, number)?;
    let scalars = part(mean, &(layout.loss..layout.len))?;
    place.f_narrow(0, 4, scalars.size1()?)?.f_copy_(&scalars)?;
    Ok(())
}

/// A gradient's norm, and how much of all that an update makes a state of isn't finite: batch
/// statistics are between the gradient and the loss.
fn write_gradient(
    place: &Tensor,
    at: i64,
    mean: &Tensor,
    (gradients, loss): (&Range<usize>, usize),
    number: u32,
) -> Result<(), TorchError> {
    let norm = part(mean, gradients)?.f_norm_scalaropt_dtype(2.0, Kind::Double)?;
    place.f_narrow(0, at, 1)?.f_copy_(&norm.f_reshape([1])?)?;
    let bad = part(mean, &(0..loss))?.f_isfinite()?.f_logical_not()?;
    let bad = bad.f_sum(Kind::Double)?.f_reshape([1])?;
    let mut count = place.f_narrow(0, at + 1, 1)?;
    match number {
        0 => count.f_copy_(&bad)?,
        _ => {
            let _ = count.f_add_(&bad)?;
        }
    }
    Ok(())
}
