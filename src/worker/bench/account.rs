//! What was measured, for people and for scripts.

use super::ceilings::Ceilings;
use super::measure::{Course, Phases};
use crate::config::Job;
use crate::model::cost;
use crate::torch::DeviceDescription;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Every figure, in seconds, bytes and operations.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Account {
    pub(super) device: String,
    pub(super) libtorch: String,
    pub(super) cores: u32,
    /// Size, channels and widths.
    pub(super) model: String,
    pub(super) update: String,
    pub(super) precision: String,
    pub(super) memory_format: String,
    pub(super) deterministic: bool,
    pub(super) reduction: String,
    pub(super) replicas: u32,
    pub(super) batch: u32,
    /// Measured ones.
    pub(super) steps: usize,
    /// Over all measured steps, by the clock.
    pub(super) images_per_s: f64,
    pub(super) step: StepTimes,
    pub(super) start: Start,
    pub(super) arithmetic: Arithmetic,
    pub(super) traffic: Traffic,
    /// The most memory held at a time: the process's, or on a GPU libtorch's there.
    pub(super) memory_bytes: u64,
}

/// Medians over the measured steps, each by itself.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct StepTimes {
    pub(super) whole_s: f64,
    /// One step in ten is faster than this.
    pub(super) whole_p10_s: f64,
    /// One step in ten is slower than this.
    pub(super) whole_p90_s: f64,
    pub(super) data_s: f64,
    pub(super) compute_s: f64,
    pub(super) reduce_s: f64,
    /// What the others leave of the whole; 0 where they overlap.
    pub(super) rest_s: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Start {
    /// From nothing to State(0).
    pub(super) building_s: f64,
    /// The first step.
    pub(super) first_step_s: f64,
}

/// Floating-point operations, as [`cost::step`] counts them.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Arithmetic {
    pub(super) forward_flops: u64,
    pub(super) backward_flops: u64,
    pub(super) flops_per_s: f64,
    /// A matrix product's rate on this device in this precision.
    pub(super) ceiling: f64,
    pub(super) share: f64,
}

/// Bytes that can't but be moved, as [`cost::traffic`] counts them.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Traffic {
    pub(super) weights: u64,
    pub(super) optimizer: u64,
    pub(super) activations: u64,
    pub(super) bytes_per_s: f64,
    /// A copy's rate on this device.
    pub(super) ceiling: f64,
    pub(super) share: f64,
}

impl Account {
    pub(super) fn new(
        job: &Job,
        device: &DeviceDescription,
        cores: u32,
        course: &Course,
        ceilings: &Ceilings,
        memory_bytes: u64,
    ) -> Self {
        let (model, train) = (&job.model, &job.train);
        let a_step = course.elapsed.as_secs_f64() / course.steps.max(1) as f64;
        let [channels, high, wide] = model.sample_shape();
        let flops = cost::step(model, train);
        let (images, minibatch) = (job.global_batch(), job.minibatch());
        let flops_per_s = (flops.total() * minibatch) as f64 / a_step;
        let moved = cost::traffic(model, train, train.replicas);
        let bytes_per_s = moved.total() as f64 / a_step;
        Self {
            device: format!("{} ({})", device.kind, device.model),
            libtorch: device.libtorch.clone(),
            cores,
            model: format!(
                "{} {channels}x{high}x{wide}, widths {} and {}",
                model.architecture, model.generator_width, model.discriminator_width,
            ),
            update: train.update.to_string(),
            precision: train.precision.to_string(),
            memory_format: train.memory_format.to_string(),
            deterministic: train.deterministic,
            reduction: train.reduction.to_string(),
            replicas: train.replicas,
            batch: train.batch,
            steps: course.steps,
            images_per_s: images as f64 / a_step,
            step: StepTimes::of(&course.phases),
            start: Start {
                building_s: course.building.as_secs_f64(),
                first_step_s: course.first.as_secs_f64(),
            },
            arithmetic: Arithmetic {
                forward_flops: flops.forward * minibatch,
                backward_flops: flops.backward * minibatch,
                flops_per_s,
                ceiling: ceilings.flops_per_s,
                share: flops_per_s / ceilings.flops_per_s,
            },
            traffic: Traffic {
                weights: moved.weights,
                optimizer: moved.optimizer,
                activations: moved.activations,
                bytes_per_s,
                ceiling: ceilings.bytes_per_s,
                share: bytes_per_s / ceilings.bytes_per_s,
            },
            memory_bytes,
        }
    }
}

impl StepTimes {
    fn of(phases: &Phases) -> Self {
        let at = |tenths, values: &[Duration]| quantile(values, tenths).as_secs_f64();
        let whole_s = at(5, &phases.whole);
        let (data_s, compute_s) = (at(5, &phases.data), at(5, &phases.compute));
        let reduce_s = at(5, &phases.reduce);
        Self {
            whole_s,
            whole_p10_s: at(1, &phases.whole),
            whole_p90_s: at(9, &phases.whole),
            data_s,
            compute_s,
            reduce_s,
            rest_s: (whole_s - data_s - compute_s - reduce_s).max(0.0),
        }
    }
}

/// The value that `tenths` of ten are below, by rank; zero of nothing.
fn quantile(values: &[Duration], tenths: usize) -> Duration {
    let mut values = values.to_vec();
    values.sort_unstable();
    let last = values.len().saturating_sub(1);
    let rank = (last * tenths + 5) / 10;
    values.get(rank).copied().unwrap_or_default()
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step, arithmetic, traffic) = (&self.step, &self.arithmetic, &self.traffic);
        let giga = |count: u64| count as f64 / 1e9;
        writeln!(
            f,
            "device      {}, libtorch {}, {} cores",
            self.device, self.libtorch, self.cores
        )?;
        writeln!(
            f,
            "job         DCGAN {}; {} replicas x {} images; {}, {}, {}, {} reduction{}",
            self.model,
            self.replicas,
            self.batch,
            self.update,
            self.precision,
            self.memory_format,
            self.reduction,
            if self.deterministic {
                ""
            } else {
                ", not deterministic"
            },
        )?;
        writeln!(
            f,
            "speed       {:.2} images/s over {} steps",
            self.images_per_s, self.steps
        )?;
        writeln!(
            f,
            "step        {:.3} ms (median; one in ten below {:.3}, one in ten above {:.3})",
            step.whole_s * 1e3,
            step.whole_p10_s * 1e3,
            step.whole_p90_s * 1e3
        )?;
        writeln!(
            f,
            "phases      data {:.3} ms, compute {:.3} ms, reduce {:.3} ms, rest {:.3} ms",
            step.data_s * 1e3,
            step.compute_s * 1e3,
            step.reduce_s * 1e3,
            step.rest_s * 1e3
        )?;
        writeln!(
            f,
            "start       {:.2} s to the first state, {:.3} s for the first step",
            self.start.building_s, self.start.first_step_s
        )?;
        writeln!(
            f,
            "arithmetic  {:.2} GFLOP a step (forward {:.2}, backward {:.2}): {:.1} GFLOP/s, \
             {:.1} % of {:.1} (a matrix product in {})",
            giga(arithmetic.forward_flops + arithmetic.backward_flops),
            giga(arithmetic.forward_flops),
            giga(arithmetic.backward_flops),
            arithmetic.flops_per_s / 1e9,
            arithmetic.share * 100.0,
            arithmetic.ceiling / 1e9,
            self.precision
        )?;
        writeln!(
            f,
            "traffic     at least {:.3} GB a step (weights {:.3}, optimizer {:.3}, activations {:.3}): \
             {:.2} GB/s, {:.1} % of {:.1} (a copy)",
            giga(traffic.weights + traffic.optimizer + traffic.activations),
            giga(traffic.weights),
            giga(traffic.optimizer),
            giga(traffic.activations),
            traffic.bytes_per_s / 1e9,
            traffic.share * 100.0,
            traffic.ceiling / 1e9
        )?;
        writeln!(f, "memory      {:.3} GB at most", giga(self.memory_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let seconds = |values: &[u64]| -> Vec<Duration> {
            values.iter().map(|&s| Duration::from_secs(s)).collect()
        };
        let eleven: Vec<u64> = (0..11).rev().collect();
        for tenths in [0, 1, 5, 9, 10] {
            let found = quantile(&seconds(&eleven), tenths);
            assert_eq!(found, Duration::from_secs(tenths as u64));
        }
        assert_eq!(quantile(&seconds(&[3]), 9), Duration::from_secs(3));
        assert_eq!(quantile(&[], 5), Duration::ZERO);
    }

    #[test]
    fn the_rest_is_what_the_phases_leave() {
        let ms = |ms| vec![Duration::from_millis(ms)];
        let mut phases = Phases {
            data: ms(1),
            compute: ms(20),
            reduce: ms(4),
            whole: ms(30),
        };
        let times = StepTimes::of(&phases);
        assert!((times.rest_s - 0.005).abs() < 1e-9);
        assert!((times.whole_p90_s - 0.030).abs() < 1e-9);
        // A reduction beside the computation.
        phases.reduce = ms(15);
        assert_eq!(StepTimes::of(&phases).rest_s, 0.0);
    }
}
