//! What a job would do, before it does it: `gan-coord check` and `gan-coord plan`.

use super::{CoordinatorError, Foundations};
use crate::config::Job;
use crate::ids::Epoch;
use crate::model::architecture::{Architecture, Player, parameters, state_bytes};
use crate::model::cost::step_flops;
use crate::plan::Span;
use std::fmt::Write;

/// The job, its data and its networks in numbers.
///
/// # Errors
/// [`CoordinatorError`], if the data can't be read or is too small.
pub(super) fn check(job: &Job) -> Result<String, CoordinatorError> {
    let Foundations { dataset, plan } = Foundations::lay(job)?;
    let manifest = dataset.manifest();
    let a_pass = plan.steps_per_epoch();
    let steps = job.total_steps(a_pass);
    let (train, model) = (&job.train, &job.model);
    let side = manifest.image_size;
    let mut out = String::new();
    // Writing to a String can't fail.
    let _ = writeln!(
        out,
        "job            {} (seed {})",
        job.job.name, job.job.seed
    );
    let _ = writeln!(
        out,
        "data           {} samples of {}x{side}x{side}, {} in {} shards\n               digest {}",
        manifest.samples,
        manifest.channels,
        bytes(manifest.samples * dataset.sample_bytes() as u64),
        manifest.shards.len(),
        dataset.digest(),
    );
    if dataset.ignored() > 0 {
        let _ = writeln!(out, "               {}", ignored(dataset.ignored()));
    }
    let _ = writeln!(
        out,
        "batch          {} replicas x {} = {} samples a step",
        train.replicas,
        job.replica_samples(),
        job.global_batch()
    );
    let _ = writeln!(
        out,
        "length         {steps} steps, {:.1} passes over the data of {a_pass} steps each",
        steps as f64 / a_pass as f64
    );
    let _ = writeln!(
        out,
        "game           {}, {} updates, {}",
        train.objective, train.update, train.precision
    );
    for player in [Player::Generator, Player::Discriminator] {
        network(&mut out, &Architecture::of(player, model, train.packing));
    }
    let ema = train.ema_decay > 0.0;
    // Two older ones that it may go back to.
    let (states, anchors) = match job.guard.rolls_back() {
        true => (3, ", anchors"),
        false => (1, ""),
    };
    let _ = writeln!(
        out,
        "state          {} parameters, {} with moments{anchors} and statistics",
        parameters(model, train.packing),
        bytes(states * state_bytes(model, train.packing, ema))
    );
    let _ = writeln!(
        out,
        "cost           {:.2} GFLOP a step",
        (step_flops(model, train) * job.minibatch()) as f64 / 1e9
    );
    let _ = writeln!(
        out,
        "workers        {} to {}, each hosting some of the {} replicas",
        job.workers.min,
        job.max_workers(),
        train.replicas
    );
    let _ = writeln!(out, "the job file and the data are good");
    Ok(out)
}

/// What is said of files that are left out.
pub(super) fn ignored(count: u64) -> String {
    format!("{count} files of other image formats are left out; only PNG and JPEG are read")
}

fn network(out: &mut String, architecture: &Architecture) {
    let name = match architecture.player {
        Player::Generator => "generator",
        Player::Discriminator => "discriminator",
    };
    for (index, stage) in architecture.stages.iter().enumerate() {
        let parameter = &architecture.parameters[stage.weight];
        let shape = |channels: usize, side: usize| format!("{channels}x{side}x{side}");
        let _ = writeln!(
            out,
            "{:<14} {:<14} {:>11} -> {:<11} {:?}",
            if index == 0 { name } else { "" },
            parameter.name,
            shape(stage.layer.inputs(), stage.layer.side_in()),
            shape(stage.layer.outputs(), stage.layer.side_out()),
            parameter.shape,
        );
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.2} GB", count as f64 / 1e9),
    }
}

/// Who reads which samples in an epoch, as text or JSON.
///
/// # Errors
/// [`CoordinatorError`], if the data can't be read or is too small.
pub(super) fn plan(job: &Job, epoch: Epoch, json: bool) -> Result<String, CoordinatorError> {
    let Foundations { dataset, plan } = Foundations::lay(job)?;
    let a_pass = plan.steps_per_epoch();
    let first = epoch.0.saturating_mul(a_pass);
    let planned = plan.epoch(epoch);
    if json {
        let value = serde_json::json!({
            "epoch": epoch,
            "first_step": first,
            "steps": a_pass,
            "data_digest": dataset.digest(),
            "replicas": planned.replicas,
            "tail": planned.tail,
        });
        return Ok(format!("{value}\n"));
    }
    let spans = |spans: &[Span]| {
        let each = spans.iter().map(|span| {
            let end = span.start + span.len;
            format!("shard {} [{}..{end}]", span.shard, span.start)
        });
        each.collect::<Vec<_>>().join(", ")
    };
    let mut out = format!(
        "epoch {epoch}: steps {first} to {}\n",
        first.saturating_add(a_pass)
    );
    for (replica, list) in planned.replicas.iter().enumerate() {
        let _ = writeln!(out, "replica {replica}: {}", spans(list));
    }
    let _ = writeln!(out, "left out: {}", spans(&planned.tail));
    Ok(out)
}
