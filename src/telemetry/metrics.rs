//! Prometheus metrics: one function for each thing that is measured.
//!
//! A function here does nothing but set metrics; before the [exporter](super::exporter) is there, it
//! does nothing at all.

use super::catalog::{CheckpointOp, Metric, Net};
use std::time::Duration;

fn labels(metric: &Metric, value: Option<&'static str>) -> Vec<metrics::Label> {
    metric
        .label
        .zip(value)
        .map(|(label, value)| metrics::Label::from_static_parts(label.name, value))
        .into_iter()
        .collect()
}

pub(super) fn count(metric: &Metric, value: Option<&'static str>, by: u64) {
    metrics::counter!(metric.name, labels(metric, value)).increment(by);
}

pub(super) fn set(metric: &Metric, value: Option<&'static str>, to: f64) {
    metrics::gauge!(metric.name, labels(metric, value)).set(to);
}

pub(super) fn histogram(metric: &Metric, value: Option<&'static str>) -> metrics::Histogram {
    metrics::histogram!(metric.name, labels(metric, value))
}

fn observe(metric: &Metric, value: Option<&'static str>, duration: Duration) {
    histogram(metric, value).record(duration.as_secs_f64());
}

/// What a worker measures of its own work.
pub mod worker {
    use super::super::catalog::{
        StepPhase, WORKER_ALLREDUCE_BYTES, WORKER_ALLREDUCE_DURATION, WORKER_IMAGES,
        WORKER_STEP_DURATION,
    };
    use super::{Duration, count, observe};

    /// `images` more real images were trained on.
    pub fn images(images: u64) {
        count(&WORKER_IMAGES, None, images);
    }

    /// A step, or a part of one, took `duration`.
    pub fn step(duration: Duration, phase: StepPhase) {
        observe(&WORKER_STEP_DURATION, Some(phase.as_str()), duration);
    }

    /// A step's reductions took `duration`, and this worker sent `bytes` to its peers.
    pub fn allreduce(duration: Duration, bytes: u64) {
        observe(&WORKER_ALLREDUCE_DURATION, None, duration);
        count(&WORKER_ALLREDUCE_BYTES, None, bytes);
    }
}

/// How training goes, over all replicas: every worker of a generation says the same.
pub mod train {
    use super::super::catalog::{
        GuardVerdict, TRAIN_D_FAKE_MEAN, TRAIN_D_REAL_MEAN, TRAIN_DIVERSITY, TRAIN_EPOCH,
        TRAIN_GRAD_NORM, TRAIN_GUARD_VERDICTS, TRAIN_LOSS, TRAIN_NONFINITE, TRAIN_RATE_FACTOR,
        TRAIN_STEP,
    };
    use super::{Net, count, set};
    use crate::ids::{Epoch, Step};

    /// Scalars of a step.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct Scalars {
        /// The discriminator's cost.
        pub loss_d: f64,
        /// The generator's cost.
        pub loss_g: f64,
        /// Mean of D(x).
        pub d_real: f64,
        /// Mean of D(G(z)).
        pub d_fake: f64,
        /// Norm of the discriminator's gradient.
        pub grad_norm_d: f64,
        /// Norm of the generator's gradient.
        pub grad_norm_g: f64,
        /// Elements of gradients and batch statistics that are NaN or infinite.
        pub nonfinite: u64,
        /// How much fakes vary, in units of the real images.
        pub diversity: Option<f64>,
        /// What learning rates are multiplied with.
        pub rate: f64,
    }

    /// The guard had something to say of a step.
    pub fn guarded(verdict: GuardVerdict) {
        count(&TRAIN_GUARD_VERDICTS, Some(verdict.as_str()), 1);
    }

    /// The state of `step`, in `epoch`, is reached or was loaded.
    pub fn reached(step: Step, epoch: Epoch) {
        set(&TRAIN_STEP, None, step.0 as f64);
        set(&TRAIN_EPOCH, None, epoch.0 as f64);
    }

    /// The scalars of the newest step are known.
    pub fn scalars(scalars: &Scalars) {
        for (net, loss, norm) in [
            (Net::Generator, scalars.loss_g, scalars.grad_norm_g),
            (Net::Discriminator, scalars.loss_d, scalars.grad_norm_d),
        ] {
            set(&TRAIN_LOSS, Some(net.as_str()), loss);
            set(&TRAIN_GRAD_NORM, Some(net.as_str()), norm);
        }
        set(&TRAIN_D_REAL_MEAN, None, scalars.d_real);
        set(&TRAIN_D_FAKE_MEAN, None, scalars.d_fake);
        count(&TRAIN_NONFINITE, None, scalars.nonfinite);
        set(&TRAIN_RATE_FACTOR, None, scalars.rate);
        if let Some(diversity) = scalars.diversity {
            set(&TRAIN_DIVERSITY, None, diversity);
        }
    }
}

/// What becomes of checkpoints.
pub mod checkpoint {
    use super::super::catalog::{
        CHECKPOINT_BYTES, CHECKPOINT_DURATION, CHECKPOINT_FAILURES, CHECKPOINT_LAST_SUCCESS,
    };
    use super::{CheckpointOp, Duration, count, observe, set};

    /// A checkpoint of `bytes` was written, which took `duration` and ended at `unix_seconds`.
    pub fn written(duration: Duration, bytes: u64, unix_seconds: f64) {
        observe(
            &CHECKPOINT_DURATION,
            Some(CheckpointOp::Write.as_str()),
            duration,
        );
        set(&CHECKPOINT_BYTES, None, bytes as f64);
        set(&CHECKPOINT_LAST_SUCCESS, None, unix_seconds);
    }

    /// A checkpoint was read and verified, which took `duration`.
    pub fn read(duration: Duration) {
        observe(
            &CHECKPOINT_DURATION,
            Some(CheckpointOp::Read.as_str()),
            duration,
        );
    }

    /// A checkpoint could not be written.
    pub fn failed() {
        count(&CHECKPOINT_FAILURES, None, 1);
    }
}

/// What becomes of evaluations.
pub mod evaluate {
    use super::super::catalog::{
        EVALUATE_BEST_STEP, EVALUATE_DURATION, EVALUATE_FAILURES, EVALUATE_LEFT_OUT,
        EVALUATE_SCORE, EVALUATE_STEP,
    };
    use super::super::evaluations::Scores;
    use super::{Duration, count, observe, set};
    use crate::ids::Step;

    /// The checkpoint of `step` was scored, which took `duration`.
    pub fn scored(step: Step, scores: &Scores, duration: Duration) {
        for (score, &value) in scores {
            set(&EVALUATE_SCORE, Some(score.as_str()), value);
        }
        set(&EVALUATE_STEP, None, step.0 as f64);
        observe(&EVALUATE_DURATION, None, duration);
    }

    /// The best checkpoint is that of `step`.
    pub fn best(step: Step) {
        set(&EVALUATE_BEST_STEP, None, step.0 as f64);
    }

    /// An evaluation was due while another was under way.
    pub fn left_out() {
        count(&EVALUATE_LEFT_OUT, None, 1);
    }

    /// An evaluation failed.
    pub fn failed() {
        count(&EVALUATE_FAILURES, None, 1);
    }
}

/// What the coordinator knows of the job.
pub mod coord {
    use super::super::catalog::{
        COORD_GENERATION, COORD_RECONFIGURATIONS, COORD_RECOVERY_DURATION, COORD_SPANS,
        COORD_WORKER_LAG, COORD_WORKERS, COORD_WORKERS_WANTED, Cause, RecoveryPhase, SpanState,
        WorkerState,
    };
    use super::{Duration, count, observe, set};
    use crate::ids::Generation;

    /// `workers` workers are in `state`.
    pub fn workers(state: WorkerState, workers: usize) {
        set(&COORD_WORKERS, Some(state.as_str()), workers as f64);
    }

    /// `workers` workers are meant to take part.
    pub fn workers_wanted(workers: usize) {
        set(&COORD_WORKERS_WANTED, None, workers as f64);
    }

    /// `generation` is formed, because of `cause`.
    pub fn reconfigured(generation: Generation, cause: Cause) {
        set(&COORD_GENERATION, None, generation.0 as f64);
        count(&COORD_RECONFIGURATIONS, Some(cause.as_str()), 1);
    }

    /// A recovery, or a part of one, took `duration`.
    pub fn recovery(duration: Duration, phase: RecoveryPhase) {
        observe(&COORD_RECOVERY_DURATION, Some(phase.as_str()), duration);
    }

    /// `spans` spans of the current epoch are in `state`.
    pub fn spans(state: SpanState, spans: u64) {
        set(&COORD_SPANS, Some(state.as_str()), spans as f64);
    }

    /// The least advanced worker is `steps` behind the most advanced one.
    pub fn worker_lag(steps: u64) {
        set(&COORD_WORKER_LAG, None, steps as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalog::{
        self, Cause, RecoveryPhase, Role, SpanState, StepPhase, VERSION, WorkerState,
    };
    use super::super::exporter::recorder;
    use super::*;
    use crate::config::Score;
    use crate::ids::{Epoch, Generation, Step};

    /// What `role` exports after `work`.
    fn rendered(role: Role, work: impl FnOnce()) -> String {
        let (recorder, recorded) = recorder(role).unwrap();
        metrics::with_local_recorder(&recorder, work);
        recorded.render()
    }

    fn work_of_a_worker() {
        worker::images(128);
        worker::images(128);
        worker::step(Duration::from_millis(70), StepPhase::Whole);
        worker::allreduce(Duration::from_millis(3), 4096);
        train::reached(Step(7), Epoch(1));
        train::scalars(&train::Scalars {
            loss_d: 1.5,
            loss_g: 0.5,
            d_real: 0.75,
            d_fake: 0.25,
            grad_norm_d: 3.0,
            grad_norm_g: 4.0,
            nonfinite: 2,
            diversity: Some(0.5),
            rate: 1.0,
        });
        checkpoint::written(Duration::from_secs(1), 1000, 1_700_000_000.5);
        checkpoint::read(Duration::from_secs(1));
        checkpoint::failed();
        let scores = [(Score::Fid, 12.5), (Score::Modes, 10.0)];
        evaluate::scored(Step(500), &scores.into(), Duration::from_secs(20));
        evaluate::best(Step(400));
        evaluate::left_out();
        evaluate::failed();
    }

    fn work_of_a_coordinator() {
        coord::workers(WorkerState::Training, 4);
        coord::workers_wanted(5);
        coord::reconfigured(Generation(3), Cause::Death);
        coord::recovery(Duration::from_millis(300), RecoveryPhase::Whole);
        coord::spans(SpanState::Done, 12);
        coord::worker_lag(2);
    }

    #[test]
    fn counters_and_histograms_are_there_before_anything_happens() {
        let text = rendered(Role::Worker, || {});
        for line in [
            "# HELP gan_worker_images_total Real images that this worker trained on.",
            "# TYPE gan_worker_images_total counter",
            "gan_worker_images_total 0",
            "gan_checkpoint_failures_total 0",
            "# TYPE gan_worker_step_duration_seconds histogram",
            "gan_worker_step_duration_seconds_bucket{phase=\"data\",le=\"0.05\"} 0",
            "gan_worker_step_duration_seconds_count{phase=\"whole\"} 0",
            &format!("gan_build_info{{version=\"{VERSION}\"}} 1"),
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no {line:?} in\n{text}"
            );
        }
        assert!(
            !text.contains("gan_train_loss"),
            "a loss that nobody computed"
        );
        assert!(!text.contains("gan_coord_"));

        let text = rendered(Role::Coordinator, || {});
        for cause in Cause::ALL {
            let line = format!(
                "gan_coord_reconfigurations_total{{cause=\"{}\"}} 0",
                cause.as_str()
            );
            assert!(text.contains(&line), "no {line:?} in\n{text}");
        }
        assert!(!text.contains("gan_worker_") && !text.contains("gan_train_"));
    }

    #[test]
    fn what_is_measured_is_exported() {
        let text = rendered(Role::Worker, work_of_a_worker)
            + &rendered(Role::Coordinator, work_of_a_coordinator);
        for line in [
            "gan_worker_images_total 256",
            "gan_worker_step_duration_seconds_bucket{phase=\"whole\",le=\"0.05\"} 0",
            "gan_worker_step_duration_seconds_bucket{phase=\"whole\",le=\"0.1\"} 1",
            "gan_worker_step_duration_seconds_sum{phase=\"whole\"} 0.07",
            "gan_worker_allreduce_duration_seconds_count 1",
            "gan_worker_allreduce_bytes_total 4096",
            "gan_train_loss{net=\"discriminator\"} 1.5",
            "gan_train_loss{net=\"generator\"} 0.5",
            "gan_train_d_real_mean 0.75",
            "gan_train_d_fake_mean 0.25",
            "gan_train_grad_norm{net=\"discriminator\"} 3",
            "gan_train_grad_norm{net=\"generator\"} 4",
            "gan_train_nonfinite_total 2",
            "gan_train_epoch 1",
            "gan_train_step 7",
            "gan_checkpoint_duration_seconds_count{op=\"write\"} 1",
            "gan_checkpoint_duration_seconds_count{op=\"read\"} 1",
            "gan_checkpoint_bytes 1000",
            "gan_checkpoint_last_success_timestamp_seconds 1700000000.5",
            "gan_checkpoint_failures_total 1",
            "gan_evaluate_score{score=\"fid\"} 12.5",
            "gan_evaluate_score{score=\"modes\"} 10",
            "gan_evaluate_step 500",
            "gan_evaluate_best_step 400",
            "gan_evaluate_duration_seconds_sum 20",
            "gan_evaluate_left_out_total 1",
            "gan_evaluate_failures_total 1",
            "gan_coord_workers{state=\"training\"} 4",
            "gan_coord_workers{state=\"waiting\"} 0",
            "gan_coord_workers_wanted 5",
            "gan_coord_generation 3",
            "gan_coord_reconfigurations_total{cause=\"death\"} 1",
            "gan_coord_reconfigurations_total{cause=\"join\"} 0",
            "gan_coord_recovery_duration_seconds_count{phase=\"whole\"} 1",
            "gan_coord_spans{state=\"done\"} 12",
            "gan_coord_worker_lag_steps 2",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no {line:?} in\n{text}"
            );
        }
        for metric in catalog::ALL {
            let line = format!("# TYPE {} {}", metric.name, metric.kind.label());
            assert!(
                text.lines().any(|found| found == line),
                "no {line:?} in\n{text}"
            );
        }
        assert!(
            !text.contains("quantile"),
            "a histogram without buckets is a summary"
        );
    }
}
