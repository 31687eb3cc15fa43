//! What the job is doing, for people and scripts.

use super::ledger::{EventRecord, time};
use crate::config::Score;
use crate::ids::{Generation, Step, WorkerId};
use crate::membership::{CheckpointRecord, Member, Phase};
use crate::proto;
use crate::telemetry::evaluations::{self, Evaluation, Line, figure};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// What the driver shows the world.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) phase: Phase,
    pub(super) detail: String,
    pub(super) generation: Generation,
    pub(super) step: Step,
    /// Since the job began.
    pub(super) seconds: f64,
    /// On the machine's clock.
    pub(super) now: Duration,
    pub(super) images_per_second: f64,
    pub(super) newest: Option<proto::StepRecord>,
    pub(super) members: BTreeMap<WorkerId, Member>,
    pub(super) events: Vec<EventRecord>,
    pub(super) checkpoints: Vec<CheckpointRecord>,
    pub(super) evaluations: Evaluations,
}

/// The evaluations that people ask for.
#[derive(Clone, Debug, Default)]
pub(super) struct Evaluations {
    newest: Option<Evaluation>,
    best: Option<Evaluation>,
}

impl Evaluations {
    /// Of all of a run's. A best one may be of a checkpoint that is gone.
    pub(super) fn of(lines: &[Line], score: Score) -> Self {
        let best = evaluations::best(lines, score, |_, _| true);
        Self {
            newest: lines.last().map(|line| line.evaluation.clone()),
            best: best.map(|line| line.evaluation.clone()),
        }
    }
}

fn evaluation(evaluation: &Evaluation) -> proto::EvaluationStatus {
    let scores = evaluation.scores.iter();
    let scores = scores.map(|(score, &value)| proto::ScoreStatus {
        name: score.to_string(),
        value,
        floor: evaluation.floor.get(score).copied(),
    });
    proto::EvaluationStatus {
        step: evaluation.step.0,
        scores: scores.collect(),
        samples: evaluation.protocol.samples,
        extractor: evaluation.protocol.extractor.hash.clone(),
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            phase: Phase::Gathering,
            detail: String::new(),
            generation: Generation(0),
            step: Step(0),
            seconds: 0.0,
            now: Duration::ZERO,
            images_per_second: 0.0,
            newest: None,
            members: BTreeMap::new(),
            events: Vec::new(),
            checkpoints: Vec::new(),
            evaluations: Evaluations::default(),
        }
    }
}

impl Progress {
    /// Takes one step's throughput into the moving average (over about ten steps).
    pub(super) fn count(&mut self, images_per_second: f64) {
        if !images_per_second.is_finite() {
            return;
        }
        self.images_per_second = if self.images_per_second == 0.0 {
            images_per_second
        } else {
            0.9 * self.images_per_second + 0.1 * images_per_second
        };
    }
}

/// What stays the same while a coordinator lives.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) job: String,
    pub(super) job_id: String,
    pub(super) total_steps: u64,
    pub(super) steps_per_epoch: u64,
}

/// The status message.
pub(super) fn message(identity: &Identity, progress: &Progress) -> proto::JobStatus {
    let workers = progress.members.iter().map(|(id, member)| {
        let seat = member.seat.as_ref();
        proto::WorkerStatus {
            worker: id.0,
            state: member.state.to_string(),
            rank: seat.map(|seat| seat.rank.0),
            host: member.facts.host.clone(),
            pid: member.facts.pid,
            device: member.facts.device.to_string(),
            first_replica: seat.map_or(0, |seat| seat.replicas.start),
            replicas: seat.map_or(0, |seat| seat.replicas.len() as u32),
            step: member.step.0,
            last_seen_seconds: progress.now.saturating_sub(member.seen_at).as_secs_f64(),
        }
    });
    let checkpoints = progress
        .checkpoints
        .iter()
        .map(|c| proto::CheckpointStatus {
            step: c.step.0,
            path: c.path.clone(),
            digest: c.digest.clone(),
        });
    let events = progress.events.iter().map(|event| proto::EventStatus {
        unix_seconds: event.unix_seconds,
        kind: event.kind.clone(),
        detail: event.detail.clone(),
        generation: event.generation.0,
    });
    proto::JobStatus {
        job: identity.job.clone(),
        job_id: identity.job_id.clone(),
        phase: progress.phase.to_string(),
        detail: progress.detail.clone(),
        generation: progress.generation.0,
        step: progress.step.0,
        total_steps: identity.total_steps,
        epoch: progress.step.0 / identity.steps_per_epoch.max(1),
        images_per_second: progress.images_per_second,
        seconds: progress.seconds,
        newest: progress.newest,
        workers: workers.collect(),
        checkpoints: checkpoints.collect(),
        events: events.collect(),
        newest_evaluation: progress.evaluations.newest.as_ref().map(evaluation),
        best_evaluation: progress.evaluations.best.as_ref().map(evaluation),
    }
}

/// A status as people read it.
pub fn text(status: &proto::JobStatus) -> String {
    let mut out = String::new();
    // Writing to a String can't fail.
    let _ = writeln!(
        out,
        "{}  {}  step {}/{}  epoch {}  generation {}  {:.0} images/s  {:.0} s",
        status.job,
        status.phase,
        status.step,
        status.total_steps,
        status.epoch,
        status.generation,
        status.images_per_second,
        status.seconds,
    );
    if !status.detail.is_empty() {
        let _ = writeln!(out, "  {}", status.detail);
    }
    if let Some(newest) = &status.newest {
        let _ = writeln!(
            out,
            "  loss D {:.3}  G {:.3}  D(x) {:.3}  D(G(z)) {:.3}",
            newest.loss_d, newest.loss_g, newest.d_real, newest.d_fake
        );
    }
    for worker in &status.workers {
        let rank = worker.rank.map_or("-".to_owned(), |rank| rank.to_string());
        let _ = writeln!(
            out,
            "  worker {}  rank {rank}  {}  replicas {}..{}  step {}  {} pid {}  {}  seen {:.1} s ago",
            worker.worker,
            worker.state,
            worker.first_replica,
            worker.first_replica + worker.replicas,
            worker.step,
            worker.host,
            worker.pid,
            worker.device,
            worker.last_seen_seconds,
        );
    }
    if let Some(newest) = status.checkpoints.last() {
        let _ = writeln!(
            out,
            "  newest checkpoint: step {}  {}  {}",
            newest.step, newest.path, newest.digest
        );
    }
    for (which, evaluation) in [
        ("newest", &status.newest_evaluation),
        ("best", &status.best_evaluation),
    ] {
        let Some(evaluation) = evaluation else {
            continue;
        };
        let scores = evaluation.scores.iter();
        let scores = scores.map(|score| format!("{} {}", score.name, figure(score.value)));
        let _ = writeln!(
            out,
            "  {which} evaluation: step {}  {}",
            evaluation.step,
            scores.collect::<Vec<_>>().join("  ")
        );
    }
    for event in status.events.iter().rev().take(8).rev() {
        let _ = writeln!(
            out,
            "  {}  generation {}  {}  {}",
            time(event.unix_seconds),
            event.generation,
            event.kind,
            event.detail
        );
    }
    out
}

/// A status as scripts read it.
pub fn json(status: &proto::JobStatus) -> serde_json::Value {
    let record = |r: &proto::StepRecord| {
        serde_json::json!({
            "step": r.step, "epoch": r.epoch, "seconds": r.seconds,
            "reduce_seconds": r.reduce_seconds, "loss_d": r.loss_d, "loss_g": r.loss_g,
            "d_real": r.d_real, "d_fake": r.d_fake, "grad_norm_d": r.grad_norm_d,
            "grad_norm_g": r.grad_norm_g, "nonfinite": r.nonfinite,
        })
    };
    let workers = status.workers.iter().map(|w| {
        serde_json::json!({
            "worker": w.worker, "state": w.state, "rank": w.rank, "host": w.host, "pid": w.pid,
            "device": w.device, "first_replica": w.first_replica, "replicas": w.replicas,
            "step": w.step, "last_seen_seconds": w.last_seen_seconds,
        })
    });
    let checkpoints = status
        .checkpoints
        .iter()
        .map(|c| serde_json::json!({"step": c.step, "path": c.path, "digest": c.digest}));
    let events = status.events.iter().map(
        |e| serde_json::json!({"unix_seconds": e.unix_seconds, "generation": e.generation, "kind": e.kind, "detail": e.detail}),
    );
    let evaluation = |e: &proto::EvaluationStatus| {
        let of = |value: fn(&proto::ScoreStatus) -> Option<f64>| {
            let scores = e.scores.iter();
            let scores =
                scores.filter_map(|score| Some((score.name.clone(), value(score)?.into())));
            scores.collect::<serde_json::Map<String, serde_json::Value>>()
        };
        serde_json::json!({
            "step": e.step, "samples": e.samples, "extractor": e.extractor,
            "scores": of(|score| Some(score.value)), "floor": of(|score| score.floor),
        })
    };
    serde_json::json!({
        "job": status.job,
        "job_id": status.job_id,
        "phase": status.phase,
        "detail": status.detail,
        "generation": status.generation,
        "step": status.step,
        "total_steps": status.total_steps,
        "epoch": status.epoch,
        "images_per_s": status.images_per_second,
        "seconds": status.seconds,
        "newest": status.newest.as_ref().map(record),
        "workers": workers.collect::<Vec<_>>(),
        "checkpoints": checkpoints.collect::<Vec<_>>(),
        "events": events.collect::<Vec<_>>(),
        "newest_evaluation": status.newest_evaluation.as_ref().map(evaluation),
        "best_evaluation": status.best_evaluation.as_ref().map(evaluation),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_scripts_are_told_the_newest_score_and_the_best() {
        let lines = [12.5, 7.25, 30.0].into_iter().zip(1..);
        let lines: Vec<Line> = lines
            .map(|(fid, step)| crate::telemetry::evaluations::tests::line(step, fid))
            .collect();
        let identity = Identity {
            job: "tiny".to_owned(),
            job_id: String::new(),
            total_steps: 9,
            steps_per_epoch: 3,
        };
        let progress = Progress {
            evaluations: Evaluations::of(&lines, Score::Fid),
            ..Progress::default()
        };
        let status = message(&identity, &progress);
        let text = text(&status);
        assert!(
            text.contains("newest evaluation: step 3  fid 30.00"),
            "{text}"
        );
        assert!(
            text.contains("best evaluation: step 2  fid 7.250"),
            "{text}"
        );
        let json = json(&status);
        assert_eq!(json["best_evaluation"]["scores"]["fid"], 7.25);
        assert_eq!(json["newest_evaluation"]["step"], 3);
        assert!(json["newest_evaluation"]["floor"]["fid"].is_f64());
    }

    #[test]
    fn people_are_told_when_something_happened_and_in_which_generation() {
        let status = proto::JobStatus {
            events: vec![proto::EventStatus {
                unix_seconds: 1_700_000_000.5,
                kind: "died".to_owned(),
                detail: "worker 2: its stream broke".to_owned(),
                generation: 3,
            }],
            ..proto::JobStatus::default()
        };
        let line = "2023-11-14T22:13:20.500Z  generation 3  died  worker 2: its stream broke";
        assert!(text(&status).contains(line), "{}", text(&status));
        let event = &json(&status)["events"][0];
        assert_eq!(event["unix_seconds"], 1_700_000_000.5);
        assert_eq!(event["generation"], 3);
    }
}
