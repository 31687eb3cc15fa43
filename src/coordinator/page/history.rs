//! What the ledger says, for a page: the newest of each kind, and how many there are.

use super::super::ledger::{
    EventRecord, GenerationBrief, JobRecord, LedgerError, LedgerReader, WorkerBrief,
};
use crate::ids::Step;
use crate::membership::{CheckpointRecord, DeviceKind, EventKind, Seat};
use serde_json::{Value, json};
use std::path::Path;

/// Rows that are shown of each kind.
const ROWS: u32 = 200;
/// Workers that are shown; of ten thousand the rest is counted.
pub(super) const WORKERS: usize = 256;

/// The newest of a ledger.
pub(super) struct History {
    pub(super) job: JobRecord,
    device: Option<DeviceKind>,
    data_digest: String,
    pub(super) reached: Step,
    pub(super) steps_per_epoch: Option<u64>,
    generations: Vec<GenerationBrief>,
    /// With the time, and whether it is still there.
    checkpoints: Vec<(CheckpointRecord, f64, bool)>,
    events: Vec<EventRecord>,
    /// How many there are: generations, checkpoints, events.
    counts: [u64; 3],
    /// The newest generation's members, and which processes they were.
    members: Vec<(Seat, Option<WorkerBrief>)>,
    members_count: usize,
}

impl History {
    pub(super) fn read(run_dir: &Path) -> Result<Self, LedgerError> {
        let ledger = LedgerReader::open(run_dir)?;
        let job = ledger.job()?;
        let job = job.ok_or_else(|| ledger.damaged("it says nothing of its job"))?;
        let seats = ledger.newest_seats()?;
        let members_count = seats.len();
        let members = seats.into_iter().take(WORKERS).map(|seat| {
            let worker = ledger.worker(seat.worker)?;
            Ok((seat, worker))
        });
        let checkpoints = ledger.recent_checkpoints(ROWS)?.into_iter();
        Ok(Self {
            device: ledger.device()?,
            data_digest: job.data_digest.clone(),
            reached: ledger.reached_step()?,
            steps_per_epoch: ledger.steps_per_epoch()?,
            generations: ledger.recent_generations(ROWS)?,
            checkpoints: checkpoints
                .map(|(checkpoint, at)| {
                    let there = run_dir.join(&checkpoint.path).exists();
                    (checkpoint, at, there)
                })
                .collect(),
            events: ledger.events(ROWS)?,
            counts: ledger.counts()?,
            members: members.collect::<Result<_, LedgerError>>()?,
            members_count,
            job,
        })
    }

    /// How the job ended, if that is the last that is known of it.
    pub(super) fn ended(&self) -> Option<&str> {
        let of = |kind: EventKind| kind.to_string();
        let begun = [EventKind::Coordinator, EventKind::Joined].map(of);
        let ended = of(EventKind::Ended);
        let mut newest = self.events.iter().rev();
        let last = newest.find(|event| event.kind == ended || begun.contains(&event.kind))?;
        (last.kind == ended).then_some(&last.detail)
    }

    /// The newest generation's number.
    pub(super) fn generation(&self) -> u64 {
        self.generations.last().map_or(0, |last| last.generation.0)
    }

    /// The job, whatever becomes of it.
    pub(super) fn job_json(&self) -> Value {
        json!({
            "name": self.job.name,
            "id": self.job.job_id,
            "started": self.job.started_unix_seconds,
            "device": self.device.as_ref().map(ToString::to_string),
            "data": self.data_digest,
            "objective": self.job.state_keys.get("train.objective"),
            "image_size": self.job.state_keys.get("model.image_size"),
            "seed": self.job.state_keys.get("job.seed"),
        })
    }

    pub(super) fn generations_json(&self) -> Value {
        let rows = self.generations.iter().map(|generation| {
            json!({
                "generation": generation.generation,
                "at": generation.unix_seconds,
                "cause": generation.cause,
                "workers": generation.workers,
                "from": generation.from,
                "until": generation.until,
                "recovery": generation.recovery,
            })
        });
        json!({"total": self.counts[0], "rows": rows.collect::<Vec<_>>()})
    }

    pub(super) fn checkpoints_json(&self) -> Value {
        let rows = self.checkpoints.iter().map(|(checkpoint, at, there)| {
            json!({
                "step": checkpoint.step, "digest": checkpoint.digest, "at": at, "exists": there,
            })
        });
        json!({"total": self.counts[1], "rows": rows.collect::<Vec<_>>()})
    }

    pub(super) fn events_json(&self) -> Value {
        let rows = self.events.iter().map(|event| {
            json!({
                "at": event.unix_seconds, "generation": event.generation,
                "kind": event.kind, "detail": event.detail,
            })
        });
        json!({"total": self.counts[2], "rows": rows.collect::<Vec<_>>()})
    }

    /// The newest generation's workers, when nobody says what they are doing.
    pub(super) fn workers_json(&self) -> Value {
        let rows = self.members.iter().map(|(seat, worker)| {
            json!({
                "rank": seat.rank,
                "worker": seat.worker,
                "host": worker.as_ref().map(|worker| &worker.host),
                "pid": worker.as_ref().map(|worker| worker.pid),
                "device": worker.as_ref().and_then(|w| Some(w.device.as_ref()?.to_string())),
                "first_replica": seat.replicas.start,
                "replicas": seat.replicas.len(),
            })
        });
        json!({"total": self.members_count, "rows": rows.collect::<Vec<_>>()})
    }
}
