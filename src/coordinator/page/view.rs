//! All that is shown, as it is now: files that are read as they grow, and the live job.

use super::Live;
use super::curves::{Columns, Cursor, Curves};
use super::history::{History, WORKERS};
use crate::coordinator::status::Progress;
use crate::telemetry::evaluations;
use crate::telemetry::pictures::{self, Picture};
use crate::telemetry::records::Record;
use crate::telemetry::tail::Tail;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};
use tokio::time::Instant;

/// Files are looked at no more often, however many look at the page.
const FRESH: Duration = Duration::from_millis(300);
/// Frames of the film, at most about so many.
const FRAMES: usize = 60;
/// Evaluations that are shown.
const EVALUATIONS: usize = 300;

/// What a run directory says, as far as it was read.
pub(super) struct View {
    run_dir: PathBuf,
    live: Option<Live>,
    tail: Tail,
    curves: Curves,
    history: Option<History>,
    evaluations: Value,
    /// The length of their file when it was read.
    evaluated: u64,
    frames: Vec<Picture>,
    pictures: usize,
    /// When something was written last, seconds since 1970.
    written: Option<f64>,
    /// What can't be read, and why.
    troubles: Vec<String>,
    looked_at: Option<Instant>,
    more: bool,
}

/// What a browser lacks.
pub(super) struct News {
    pub(super) curves: Option<Columns>,
    /// All of the rest, by part.
    pub(super) state: Map<String, Value>,
    /// There is more to be read at once.
    pub(super) more: bool,
}

impl View {
    pub(super) fn new(run_dir: &Path, live: Option<Live>) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            live,
            tail: Tail::new(run_dir.join("metrics.jsonl")),
            curves: Curves::new(),
            history: None,
            evaluations: json!([]),
            evaluated: 0,
            frames: Vec::new(),
            pictures: 0,
            written: None,
            troubles: Vec::new(),
            looked_at: None,
            more: false,
        }
    }

    /// What has come since `cursor`, which it moves on; of a long file a piece at a time.
    pub(super) fn news(&mut self, cursor: &mut Cursor) -> News {
        self.look();
        let curves = self.curves.since(*cursor).map(|(columns, now)| {
            *cursor = now;
            columns
        });
        News {
            curves,
            state: self.state(),
            more: self.more,
        }
    }

    /// Has the next look be a new one, however short ago the last was.
    pub(super) fn look_again(&mut self) {
        self.looked_at = None;
    }

    /// Reads what is new, unless that was done just now.
    fn look(&mut self) {
        let now = Instant::now();
        let fresh = self.looked_at.is_some_and(|at| now < at + FRESH);
        if fresh && !self.more {
            return;
        }
        if !fresh {
            self.troubles.clear();
            self.look_around();
        }
        self.looked_at = Some(now);
        match self.tail.next_piece() {
            Ok(piece) => {
                if piece.anew {
                    self.curves.clear();
                }
                piece.records.iter().for_each(|r| self.curves.add(r));
                self.more = piece.more;
            }
            Err(error) => {
                self.more = false;
                self.troubles.push(format!("metrics.jsonl: {error}"));
            }
        }
    }

    fn look_around(&mut self) {
        match History::read(&self.run_dir) {
            Ok(history) => self.history = Some(history),
            Err(error) => self.troubles.push(error.to_string()),
        }
        match pictures::list(&self.run_dir) {
            Ok(all) => {
                self.pictures = all.len();
                self.frames = pictures::evenly(&all, FRAMES);
            }
            Err(error) => self.troubles.push(format!("samples: {error}")),
        }
        let file = |name: &str| fs::metadata(self.run_dir.join(name)).ok();
        let evaluated = file(evaluations::FILE).map_or(0, |file| file.len());
        let written = ["metrics.jsonl", "ledger.sqlite-wal", "ledger.sqlite"].map(file);
        let written = written.into_iter().flatten().filter_map(|file| {
            let at = file.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            Some(at.as_secs_f64())
        });
        self.written = written.reduce(f64::max);
        if evaluated != self.evaluated {
            match evaluations::read(&self.run_dir) {
                Ok(lines) => {
                    self.evaluated = evaluated;
                    self.evaluations = scores(&lines);
                }
                Err(error) => self.troubles.push(error.to_string()),
            }
        }
    }

    /// Everything but the curves.
    fn state(&self) -> Map<String, Value> {
        let frames = self.frames.iter();
        let frames = frames.map(|frame| json!({"name": frame.name, "step": frame.step}));
        let history = self.history.as_ref();
        let of = |part: fn(&History) -> Value| history.map_or(Value::Null, part);
        let always = json!({
            "version": crate::telemetry::catalog::VERSION,
            "live": self.live.is_some(),
            "job": of(History::job_json),
            "generations": of(History::generations_json),
            "checkpoints": of(History::checkpoints_json),
            "events": of(History::events_json),
            "evaluations": self.evaluations,
            "frames": frames.collect::<Vec<_>>(),
            "pictures": self.pictures,
            "newest": self.curves.newest().map(figures),
            "reading": self.more,
            "troubles": self.troubles,
        });
        let now = match &self.live {
            Some(live) => live_json(live, history),
            None => self.files_json(),
        };
        let parts = [always, now].into_iter().filter_map(|part| match part {
            Value::Object(part) => Some(part),
            _ => None,
        });
        parts.flatten().collect()
    }

    /// Where the job stands, as far as files can tell.
    fn files_json(&self) -> Value {
        let Some(history) = &self.history else {
            return json!({"phase": "unknown"});
        };
        let newest = self.curves.newest();
        let step = newest.map_or(history.reached.0, |newest| newest.step.0);
        let step = step.max(history.reached.0);
        let ended = history.ended();
        json!({
            "phase": if ended.is_some() { "ended" } else { "open" },
            "detail": ended,
            "written": self.written,
            "generation": history.generation(),
            "step": step,
            "epoch": history.steps_per_epoch.map(|steps| step / steps.max(1)),
            "images_per_s": newest.map(|newest| newest.images_per_s),
            "seconds": newest.map(|newest| newest.time),
            "workers": history.workers_json(),
        })
    }
}

fn figures(record: &Record) -> Value {
    json!({
        "step": record.step, "loss_d": record.loss_d, "loss_g": record.loss_g,
        "d_real": record.d_real, "d_fake": record.d_fake,
        "grad_norm_d": record.grad_norm_d, "grad_norm_g": record.grad_norm_g,
    })
}

/// Where the job stands, as its coordinator says.
fn live_json(live: &Live, history: Option<&History>) -> Value {
    let progress = live.progress.borrow();
    let Progress {
        members,
        images_per_second,
        ..
    } = &*progress;
    let seated = members.values().filter_map(|member| member.seat.as_ref());
    let replicas: usize = seated.map(|seat| seat.replicas.len()).sum();
    let steps = members.values().filter(|member| member.seat.is_some());
    let newest = steps.map(|member| member.step.0).max().unwrap_or(0);
    let mut all: Vec<_> = members.iter().collect();
    // By rank; those without a seat come last.
    all.sort_by_key(|(id, member)| (member.seat.as_ref().map_or(u32::MAX, |s| s.rank.0), **id));
    let rows = all.iter().take(WORKERS).map(|(id, member)| {
        let seat = member.seat.as_ref();
        let share = seat.map(|seat| seat.replicas.len() as f64 / replicas.max(1) as f64);
        json!({
            "worker": id,
            "state": member.state.to_string(),
            "leaving": member.leaving,
            "rank": seat.map(|seat| seat.rank),
            "host": member.facts.host,
            "pid": member.facts.pid,
            "device": member.facts.device.to_string(),
            "first_replica": seat.map(|seat| seat.replicas.start),
            "replicas": seat.map_or(0, |seat| seat.replicas.len()),
            "images_per_s": share.map(|share| share * images_per_second),
            "round": member.round.map(|round| round.as_secs_f64()),
            "step": member.step,
            "lag": seat.map(|_| newest.saturating_sub(member.step.0)),
            "seen": progress.now.saturating_sub(member.seen_at).as_secs_f64(),
        })
    });
    let detail = match &progress.phase {
        crate::membership::Phase::Ended(outcome) => outcome.to_string(),
        _ => progress.detail.clone(),
    };
    let identity = &live.identity;
    json!({
        "phase": progress.phase.to_string(),
        "detail": detail,
        "generation": progress.generation,
        "step": progress.step,
        "total_steps": identity.total_steps,
        "epoch": progress.step.0 / identity.steps_per_epoch.max(1),
        "images_per_s": images_per_second,
        "seconds": progress.seconds,
        "started": history.map(|history| history.job.started_unix_seconds),
        "workers": {"total": all.len(), "rows": rows.collect::<Vec<_>>()},
    })
}

fn scores(lines: &[evaluations::Line]) -> Value {
    let newest = &lines[lines.len().saturating_sub(EVALUATIONS)..];
    let rows = newest.iter().map(|line| {
        json!({
            "step": line.evaluation.step,
            "at": line.unix_seconds,
            "scores": line.evaluation.scores,
            "floor": line.evaluation.floor,
        })
    });
    rows.collect()
}
