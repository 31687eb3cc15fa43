//! What people and scripts read of a ledger.

use super::{EventRecord, GenerationRecord, LedgerError, LedgerReader, SpanRecord};
use crate::coordinator::audit::{Audit, Books};
use crate::ids::{Epoch, Step};
use crate::membership::CheckpointRecord;
use crate::plan::Span;
use serde_json::json;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// Holes and faults that are told; one is enough to look further.
const TOLD: usize = 20;

/// A job's history.
pub(in crate::coordinator) struct History {
    job: super::JobRecord,
    device: Option<crate::membership::DeviceKind>,
    reached: Step,
    steps_per_epoch: Option<u64>,
    generations: Vec<GenerationRecord>,
    /// With the time, and whether it is still there.
    checkpoints: Vec<(CheckpointRecord, f64, bool)>,
    events: Vec<EventRecord>,
}

impl History {
    pub(in crate::coordinator) fn read(
        ledger: &LedgerReader,
        run_dir: &Path,
    ) -> Result<Self, LedgerError> {
        let checkpoints = ledger.timed_checkpoints()?.into_iter();
        Ok(Self {
            job: ledger.job()?.ok_or_else(|| ledger.damaged(NO_JOB))?,
            device: ledger.device()?,
            reached: ledger.reached_step()?,
            steps_per_epoch: ledger.steps_per_epoch()?,
            generations: ledger.generations()?,
            checkpoints: checkpoints
                .map(|(checkpoint, at)| {
                    let there = run_dir.join(&checkpoint.path).exists();
                    (checkpoint, at, there)
                })
                .collect(),
            events: ledger.all_events()?,
        })
    }

    fn epoch(&self) -> u64 {
        self.steps_per_epoch
            .map_or(0, |steps| self.reached.0 / steps.max(1))
    }

    pub(in crate::coordinator) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String can't fail.
        let _ = writeln!(
            out,
            "job {} (id {}), begun {}",
            self.job.name,
            self.job.job_id,
            time(self.job.started_unix_seconds)
        );
        let _ = writeln!(
            out,
            "  reached step {}, in epoch {}",
            self.reached,
            self.epoch()
        );
        if let Some(device) = &self.device {
            let _ = writeln!(out, "  runs on {device}");
        }
        let _ = writeln!(out, "generations");
        for generation in &self.generations {
            let steps = match (generation.from, generation.until) {
                (Some(from), Some(until)) => format!("steps {from} to {until}"),
                _ => "not formed".to_owned(),
            };
            let _ = writeln!(
                out,
                "  {}  {}  {}  {steps}",
                generation.generation,
                time(generation.unix_seconds),
                generation.cause
            );
            for seat in &generation.seats {
                let _ = writeln!(
                    out,
                    "     worker {}  rank {}  replicas {}..{}",
                    seat.worker, seat.rank, seat.replicas.start, seat.replicas.end
                );
            }
        }
        let _ = writeln!(out, "checkpoints");
        for (checkpoint, at, there) in &self.checkpoints {
            let _ = writeln!(
                out,
                "  step {}  {}  {}  {}{}",
                checkpoint.step,
                time(*at),
                checkpoint.path,
                checkpoint.digest,
                if *there { "" } else { "  removed" }
            );
        }
        let _ = writeln!(out, "events");
        for event in &self.events {
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

    pub(in crate::coordinator) fn json(&self) -> serde_json::Value {
        let generations = self.generations.iter().map(|generation| {
            let seats = generation.seats.iter().map(|seat| {
                json!({
                    "worker": seat.worker, "rank": seat.rank,
                    "first_replica": seat.replicas.start, "replicas": seat.replicas.len(),
                })
            });
            json!({
                "generation": generation.generation,
                "unix_seconds": generation.unix_seconds,
                "cause": generation.cause,
                "from_step": generation.from,
                "until_step": generation.until,
                "workers": seats.collect::<Vec<_>>(),
            })
        });
        let checkpoints = self.checkpoints.iter().map(|(checkpoint, at, there)| {
            json!({
                "step": checkpoint.step, "path": checkpoint.path, "digest": checkpoint.digest,
                "unix_seconds": at, "exists": there,
            })
        });
        let events = self.events.iter().map(|event| {
            json!({
                "unix_seconds": event.unix_seconds, "generation": event.generation,
                "kind": event.kind, "detail": event.detail,
            })
        });
        json!({
            "job": self.job.name,
            "job_id": self.job.job_id,
            "started_unix_seconds": self.job.started_unix_seconds,
            "data_digest": self.job.data_digest,
            "device": self.device,
            "step": self.reached,
            "epoch": self.epoch(),
            "steps_per_epoch": self.steps_per_epoch,
            "generations": generations.collect::<Vec<_>>(),
            "checkpoints": checkpoints.collect::<Vec<_>>(),
            "events": events.collect::<Vec<_>>(),
        })
    }
}

const NO_JOB: &str = "it says nothing of its job";

/// An epoch's rows, and whether each sample stands exactly once.
pub(in crate::coordinator) struct EpochReport {
    job: String,
    epoch: Epoch,
    /// The first step, and one past the last; none until something has been dealt.
    steps: Option<(u64, u64)>,
    reached: Step,
    rows: Vec<SpanRecord>,
    tail: Vec<Span>,
    audit: Audit,
}

impl EpochReport {
    pub(in crate::coordinator) fn read(
        ledger: &LedgerReader,
        epoch: Epoch,
    ) -> Result<Self, LedgerError> {
        let job = ledger.job()?.ok_or_else(|| ledger.damaged(NO_JOB))?;
        let data = ledger.data()?;
        let data = data.ok_or_else(|| ledger.damaged("it says nothing of its data"))?;
        let seed = job
            .state_keys
            .get("job.seed")
            .and_then(|seed| seed.as_u64());
        let seed = seed.ok_or_else(|| ledger.damaged("its job has no seed"))?;
        let shards: Vec<u64> = data.shards.iter().map(|shard| shard.samples).collect();
        let (rows, tail) = ledger.epoch(epoch)?;
        let steps = ledger.steps_per_epoch()?.map(|a_pass| {
            let first = epoch.0.saturating_mul(a_pass);
            (first, first.saturating_add(a_pass))
        });
        Ok(Self {
            job: job.name,
            epoch,
            steps,
            reached: ledger.reached_step()?,
            audit: Audit::of(Books {
                epoch,
                seed,
                shards: &shards,
                rows: &rows,
                tail: &tail,
            }),
            rows,
            tail,
        })
    }

    fn is_over(&self) -> bool {
        self.steps.is_some_and(|(_, end)| self.reached.0 >= end)
    }

    /// Whether nothing is wrong, as far as the epoch has come.
    pub(in crate::coordinator) fn is_right(&self) -> bool {
        if self.is_over() {
            self.audit.is_exact()
        } else {
            self.audit.is_sound()
        }
    }

    /// What is wrong, if anything is.
    fn wrong(&self) -> Vec<String> {
        let faults = self.audit.faults.iter().map(ToString::to_string);
        let holes = self.audit.holes.iter().map(ToString::to_string);
        let holes = holes.filter(|_| self.is_over());
        let open = self.rows.iter().filter(|row| self.is_over() && !row.done);
        let open = open.map(|row| format!("{} is not done", samples(row)));
        faults.chain(holes).chain(open).collect()
    }

    fn verdict(&self) -> String {
        let wrong = self.wrong();
        if !wrong.is_empty() {
            let more = wrong.len().saturating_sub(TOLD);
            let mut out = String::from("the ledger is WRONG:\n");
            for line in wrong.iter().take(TOLD) {
                let _ = writeln!(out, "  {line}");
            }
            if more > 0 {
                let _ = writeln!(out, "  and {more} more like these");
            }
            return out;
        }
        match self.steps {
            Some(_) if self.is_over() => "each sample stands exactly once\n".to_owned(),
            Some((first, end)) if self.reached.0 > first => format!(
                "the epoch is not over: it ends at step {end}, and the job has reached step {}\n",
                self.reached
            ),
            _ => format!(
                "the epoch has not begun: the job has reached step {}\n",
                self.reached
            ),
        }
    }

    pub(in crate::coordinator) fn text(&self) -> String {
        let mut out = format!("job {}, epoch {}", self.job, self.epoch);
        // Writing to a String can't fail.
        if let Some((first, end)) = self.steps {
            let _ = write!(out, ": steps {first} to {end}");
        }
        out.push('\n');
        let mut replica = None;
        for row in &self.rows {
            if replica != Some(row.replica) {
                replica = Some(row.replica);
                let _ = writeln!(out, "replica {}", row.replica);
            }
            let _ = writeln!(
                out,
                "  {:<36} generation {}  worker {}  {}",
                samples(row),
                row.generation,
                row.worker,
                state(row)
            );
        }
        let tail: Vec<String> = self.tail.iter().map(shown).collect();
        if !tail.is_empty() {
            let _ = writeln!(out, "left out\n  {}", tail.join(", "));
        }
        let Audit {
            samples,
            done,
            assigned,
            tail,
            never,
            twice,
            ..
        } = &self.audit;
        let _ = writeln!(
            out,
            "of {samples} samples: {done} done, {assigned} assigned, {tail} left out, \
             {never} nowhere, {twice} more than once"
        );
        out + &self.verdict()
    }

    pub(in crate::coordinator) fn json(&self) -> serde_json::Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "replica": row.replica,
                "shard": row.span.shard,
                "start": row.span.start,
                "end": row.span.start.saturating_add(row.span.len),
                "part": [row.part.start, row.part.end],
                "generation": row.generation,
                "worker": row.worker,
                "state": state(row),
            })
        });
        let tail = self.tail.iter().map(|span| {
            let end = span.start.saturating_add(span.len);
            json!({"shard": span.shard, "start": span.start, "end": end})
        });
        json!({
            "job": self.job,
            "epoch": self.epoch,
            "first_step": self.steps.map(|(first, _)| first),
            "end_step": self.steps.map(|(_, end)| end),
            "step": self.reached,
            "over": self.is_over(),
            "rows": rows.collect::<Vec<_>>(),
            "tail": tail.collect::<Vec<_>>(),
            "samples": {
                "all": self.audit.samples,
                "done": self.audit.done,
                "assigned": self.audit.assigned,
                "left_out": self.audit.tail,
                "nowhere": self.audit.never,
                "more_than_once": self.audit.twice,
            },
            "each_exactly_once": self.is_over() && self.audit.is_exact(),
            "wrong": self.wrong(),
        })
    }
}

fn state(row: &SpanRecord) -> &'static str {
    if row.done { "done" } else { "assigned" }
}

fn shown(span: &Span) -> String {
    let end = span.start.saturating_add(span.len);
    format!("shard {} [{}..{end}]", span.shard, span.start)
}

fn samples(row: &SpanRecord) -> String {
    let mut out = shown(&row.span);
    if row.part != (0..row.span.len) {
        // Writing to a String can't fail.
        let _ = write!(out, ", {}..{} in its order", row.part.start, row.part.end);
    }
    out
}

/// A time as people write it, UTC.
pub(in crate::coordinator) fn time(unix_seconds: f64) -> String {
    // What RFC 3339 can't say is said in seconds.
    const YEAR_10000: f64 = 253_402_300_800.0;
    match Duration::try_from_secs_f64(unix_seconds) {
        Ok(since) if unix_seconds < YEAR_10000 => {
            humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
        }
        _ => format!("{unix_seconds} s since 1970"),
    }
}
