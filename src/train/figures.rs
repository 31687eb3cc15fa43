//! What a step tells of itself, from the device to the host without waiting for it.

use super::layout::{DiscriminatorLayout, GeneratorLayout, part};
use super::{StepReport, TrainError};
use crate::collective::Flags;
use crate::ids::Step;
use crate::torch::{Event, Stream, TorchError, copy_async, pin_memory};
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// Norms and counts of both gradients, D's cost and two beliefs, G's cost, everybody's flags.
const LEN: usize = 4 + 3 + 1 + Flags::LEN;

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
    pub(super) fn new(device: Device) -> Result<Self, TorchError> {
        let zeros = |device| Tensor::f_zeros([LEN as i64], (Kind::Double, device));
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
        let mut values = [0f64; LEN];
        self.host
            .f_copy_data(&mut values, LEN)
            .map_err(TorchError::from)?;
        let [
            grad_norm_d,
            nonfinite_d,
            grad_norm_g,
            nonfinite_g,
            loss_d,
            d_real,
            d_fake,
            loss_g,
            flags @ ..,
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
    write_gradient(place, 0, &part(mean, &layout.gradients)?, number)?;
    // The scalars end both vectors, in this order.
    let scalars = part(mean, &(layout.loss..layout.len))?;
    place.f_narrow(0, 4, 3)?.f_copy_(&scalars)?;
    Ok(())
}

/// Likewise, of G's.
pub(super) fn write_generator(
    place: &Tensor,
    mean: &Tensor,
    layout: &GeneratorLayout,
    number: u32,
) -> Result<(), TorchError> {
    write_gradient(place, 2, &part(mean, &layout.gradients)?, number)?;
    let scalars = part(mean, &(layout.loss..layout.len))?;
    place.f_narrow(0, 7, (LEN - 7) as i64)?.f_copy_(&scalars)?;
    Ok(())
}

fn write_gradient(
    place: &Tensor,
    at: i64,
    gradient: &Tensor,
    number: u32,
) -> Result<(), TorchError> {
    let norm = gradient.f_norm_scalaropt_dtype(2.0, Kind::Double)?;
    place.f_narrow(0, at, 1)?.f_copy_(&norm.f_reshape([1])?)?;
    let bad = gradient.f_isfinite()?.f_logical_not()?;
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
