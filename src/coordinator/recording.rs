//! What a record becomes: rows of the ledger, lines of `metrics.jsonl`, metrics.

use super::ledger::{Batch, LedgerError};
use super::plans::Plans;
use crate::ids::{Epoch, Generation, Step};
use crate::membership::{Cause, Record, Recovery};
use crate::plan::EpochPlan;
use crate::proto;
use crate::telemetry::catalog::{self, RecoveryPhase};
use crate::telemetry::metrics::coord;
use crate::telemetry::records;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Writes one record down.
pub(super) fn write(
    batch: &mut Batch<'_>,
    record: &Record,
    present: Generation,
    plans: &mut Plans,
    samples: u32,
    reached: Step,
    unix: f64,
) -> Result<(), LedgerError> {
    match record {
        Record::Generation {
            generation,
            cause,
            seats,
        } => batch.generation(*generation, *cause, seats, unix),
        Record::Assigned {
            generation,
            seats,
            epochs,
            from,
        } => {
            let a_pass = plans.plan.steps_per_epoch();
            let plans: Vec<EpochPlan> = plans.of(epochs).cloned().collect();
            batch.assign(*generation, seats, &plans, *from, a_pass, samples)
        }
        Record::Device(device) => batch.set_device(device),
        Record::Admitted(worker, facts) => batch.admit(*worker, facts, unix),
        Record::Vacated => batch.vacate(),
        // The driver's clock decides when.
        Record::Reached(_) => Ok(()),
        Record::Recovered(recovery) => batch.recovery(recovery, unix),
        Record::Rewound(step) => batch.rewind(*step),
        Record::Checkpoint(checkpoint) => {
            batch.reached(reached.max(checkpoint.step))?;
            batch.checkpoint(checkpoint, unix)
        }
        Record::Event(kind, detail) => batch.event(present, *kind, detail, unix),
    }
}

/// `compute` is the part of the first step that would have been needed anyway, seconds.
pub(super) fn recovered(recovery: &Recovery, compute: f64) {
    let Recovery {
        cause,
        generation,
        detect,
        forming,
        first_step,
        whole,
    } = *recovery;
    let seconds = |duration: Duration| duration.as_secs_f64();
    tracing::info!(
        %cause,
        %generation,
        abort = seconds(forming.abort),
        connect = seconds(forming.connect),
        heal = seconds(forming.heal),
        first_step = seconds(first_step),
        compute,
        whole = seconds(whole),
        "recovered"
    );
    for (phase, took) in [
        (RecoveryPhase::Detect, detect),
        (RecoveryPhase::Abort, forming.abort),
        (RecoveryPhase::Form, forming.connect),
        (RecoveryPhase::Heal, forming.heal),
        (RecoveryPhase::FirstStep, first_step),
        (RecoveryPhase::Whole, whole),
    ] {
        coord::recovery(took, phase);
    }
}

pub(super) fn label(cause: Cause) -> catalog::Cause {
    match cause {
        Cause::Start => catalog::Cause::Start,
        Cause::Join => catalog::Cause::Join,
        Cause::Leave => catalog::Cause::Leave,
        Cause::Death => catalog::Cause::Death,
        Cause::CollectiveFailure => catalog::Cause::CollectiveFailure,
        Cause::CoordinatorRestart => catalog::Cause::CoordinatorRestart,
        Cause::Rebalance => catalog::Cause::Rebalance,
        Cause::Close => catalog::Cause::Close,
    }
}

/// One step, as `metrics.jsonl` has it.
pub(super) fn log_line(
    record: &proto::StepRecord,
    generation: Generation,
    time: f64,
    samples: u64,
) -> records::Record {
    records::Record {
        step: Step(record.step),
        epoch: Epoch(record.epoch),
        generation,
        time,
        images_per_s: samples as f64 / record.seconds,
        loss_d: record.loss_d,
        loss_g: record.loss_g,
        d_real: record.d_real,
        d_fake: record.d_fake,
        grad_norm_d: record.grad_norm_d,
        grad_norm_g: record.grad_norm_g,
        reduce_s: record.reduce_seconds,
    }
}

/// Seconds since 1970, for people.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver is where the time of day comes in"
)]
pub(super) fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
