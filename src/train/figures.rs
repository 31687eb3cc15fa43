//! What a step tells of itself, from the device to the host without waiting for it.

use super::layout::{DiscriminatorLayout, GeneratorLayout, part};
use super::{StepReport, TrainError};
use crate::collective::Flags;
use crate::guard::Verdict;
use crate::ids::Step;
use crate::torch::{Event, Stream, TorchError, copy_async, pin_memory};
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// Norms and counts of both gradients, G's cost, everybody's flags, D's cost and two beliefs.
const LEN: usize = 4 + 1 + Flags::LEN + 3;

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

    /// Where [`write`] puts them.
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

/// Writes the figures of these means to `place`, on the device.
pub(super) fn write(
    place: &mut Tensor,
    (of_d, d): (&Tensor, &DiscriminatorLayout),
    (of_g, g): (&Tensor, &GeneratorLayout),
) -> Result<(), TorchError> {
    let mut figures = Vec::with_capacity(6);
    for (mean, gradients, loss) in [(of_d, &d.gradients, d.loss), (of_g, &g.gradients, g.loss)] {
        let gradient = part(mean, gradients)?;
        let norm = gradient.f_norm_scalaropt_dtype(2.0, Kind::Double)?;
        // Batch statistics become part of the state too.
        let bad = part(mean, &(0..loss))?.f_isfinite()?.f_logical_not()?;
        figures.push(norm.f_reshape([1])?);
        figures.push(bad.f_sum(Kind::Double)?.f_reshape([1])?);
    }
    // The scalars end both vectors, in this order.
    figures.push(part(of_g, &(g.loss..g.len))?.f_to_kind(Kind::Double)?);
    figures.push(part(of_d, &(d.loss..d.len))?.f_to_kind(Kind::Double)?);
    place.f_copy_(&Tensor::f_cat(&figures, 0)?)?;
    Ok(())
}
