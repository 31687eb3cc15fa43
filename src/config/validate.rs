//! What a job file may say, beyond its types.

use super::{Job, data, model, regularise};

/// One impossible value.
pub(super) struct Fault {
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) expected: String,
}

pub(super) fn require(
    holds: bool,
    key: &'static str,
    value: impl ToString,
    expected: impl Into<String>,
) -> Result<(), Fault> {
    if holds {
        Ok(())
    } else {
        Err(Fault {
            key,
            value: value.to_string(),
            expected: expected.into(),
        })
    }
}

/// What TOML can write down: a job that is written out must read back.
const MAX_SEED: u64 = i64::MAX as u64;
pub(super) const SEEDS: &str = "0 to 9223372036854775807 (2^63 - 1)";

/// The longest job, steps or epochs: an age even of the smallest steps, and far from overflow.
pub(super) const MAX_LENGTH: u64 = 1 << 40;

/// Refuses the first impossible value.
pub(super) fn check(job: &Job) -> Result<(), Fault> {
    let name = &job.job.name;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    require(
        (1..=63).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.'),
        "job.name",
        format!("{name:?}"),
        "1 to 63 letters, digits, '.', '_' or '-', not starting with '.'",
    )?;
    require(job.job.seed <= MAX_SEED, "job.seed", job.job.seed, SEEDS)?;
    data::check(job)?;
    model::check(job)?;
    train(job)?;
    regularise::check(job)?;
    super::optimizer::check(job)?;
    super::guard::check(job)?;
    workers(job)?;
    require(
        job.checkpoint.keep_last >= 1,
        "checkpoint.keep_last",
        job.checkpoint.keep_last,
        "at least 1: the newest checkpoint is what a job resumes from",
    )?;
    require(
        (1..=64).contains(&job.sample.grid),
        "sample.grid",
        job.sample.grid,
        "1 to 64 images along a side",
    )?;
    evaluate(job)?;
    deadlines(job)
}

/// The most samples of an evaluation: enough for any published protocol, and features that fit in
/// memory.
const MAX_EVALUATED: u64 = 1 << 20;

fn evaluate(job: &Job) -> Result<(), Fault> {
    let (evaluate, checkpoint) = (&job.evaluate, &job.checkpoint);
    let (every, saved) = (evaluate.every_steps, checkpoint.every_steps);
    require(
        every == 0 || (saved != 0 && every.is_multiple_of(saved)),
        "evaluate.every_steps",
        every,
        format!(
            "0 (off) or a multiple of checkpoint.every_steps ({saved}): what is evaluated is a checkpoint"
        ),
    )?;
    require(
        (2..=MAX_EVALUATED).contains(&evaluate.samples),
        "evaluate.samples",
        evaluate.samples,
        "2 to 1048576",
    )?;
    require(
        (1..=1024).contains(&evaluate.cores),
        "evaluate.cores",
        evaluate.cores,
        "1 to 1024",
    )?;
    let best = checkpoint.keep_best.filter(|_| every == 0);
    require(
        best.is_none(),
        "checkpoint.keep_best",
        best.map_or(String::new(), |score| format!("\"{score}\"")),
        "none, or evaluations to choose by: set evaluate.every_steps too",
    )
}

fn train(job: &Job) -> Result<(), Fault> {
    let train = &job.train;
    require(
        (1..=65_536).contains(&train.replicas),
        "train.replicas",
        train.replicas,
        "1 to 65536",
    )?;
    require(
        (1..=65_536).contains(&train.batch),
        "train.batch",
        train.batch,
        "1 to 65536",
    )?;
    match (train.steps, train.epochs) {
        (Some(0), _) => require(false, "train.steps", 0, "at least 1"),
        (_, Some(0)) => require(false, "train.epochs", 0, "at least 1"),
        (Some(_), Some(_)) => require(
            false,
            "train.epochs",
            "given beside train.steps",
            "only one of train.steps and train.epochs",
        ),
        (None, None) => require(
            false,
            "train.steps",
            "missing",
            "the length of the job: train.steps or train.epochs",
        ),
        _ => Ok(()),
    }?;
    for (key, length) in [("train.steps", train.steps), ("train.epochs", train.epochs)] {
        let length = length.unwrap_or(1);
        require(
            length <= MAX_LENGTH,
            key,
            length,
            "1 to 1099511627776 (2^40)",
        )?;
    }
    require(
        (0.0..1.0).contains(&train.ema_decay),
        "train.ema_decay",
        train.ema_decay,
        "0 (off) up to, but below 1",
    )
}

fn workers(job: &Job) -> Result<(), Fault> {
    let workers = &job.workers;
    require(
        workers.min >= 1 && workers.min <= job.train.replicas,
        "workers.min",
        workers.min,
        format!("1 to train.replicas ({})", job.train.replicas),
    )?;
    require(
        workers.max == 0 || workers.max >= workers.min,
        "workers.max",
        workers.max,
        format!(
            "0 (train.replicas) or at least workers.min ({})",
            workers.min
        ),
    )?;
    require(
        (1..=1024).contains(&workers.threads),
        "workers.threads",
        workers.threads,
        "1 to 1024",
    )
}

fn deadlines(job: &Job) -> Result<(), Fault> {
    let deadlines = &job.deadlines;
    for (key, value) in [
        ("deadlines.join", deadlines.join),
        ("deadlines.heartbeat", deadlines.heartbeat),
        ("deadlines.form", deadlines.form),
        ("deadlines.collective", deadlines.collective),
        ("deadlines.coordinator", deadlines.coordinator),
        ("deadlines.data", deadlines.data),
        ("deadlines.checkpoint", deadlines.checkpoint),
    ] {
        require(
            value.as_millis() >= 100 && value.as_secs() <= 7 * 24 * 3600,
            key,
            humantime::format_duration(value),
            "100ms to 7 days",
        )?;
    }
    Ok(())
}
