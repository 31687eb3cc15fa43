//! Checkpoints and pictures, written off the training thread.
//!
//! A failure to write never stops the training: it is logged, counted and reported, and the last
//! good checkpoint stays.

use super::Enrolment;
use super::training::Report;
use super::wire;
use crate::checkpoint::{Description, Snapshot, Store};
use crate::ids::{Generation, Step};
use crate::membership::DeviceKind;
use crate::proto;
use crate::proto::worker_message::Kind;
use crate::sample::{self, Images};
use crate::telemetry::metrics;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::UnboundedSender;

/// What the pictures and checkpoints say of themselves.
pub(super) struct About {
    pub(super) enrolment: Enrolment,
    pub(super) data_digest: String,
    pub(super) steps_per_epoch: u64,
    pub(super) device: DeviceKind,
}

/// A thread that writes.
pub(super) struct Saver {
    tasks: Sender<Task>,
    /// Answers when the newest checkpoint is on disk, or has failed.
    pending: Option<Receiver<()>>,
    deadline: Duration,
    reports: UnboundedSender<Report>,
}

enum Task {
    Checkpoint(Generation, Box<Snapshot>, Sender<()>),
    Picture(Step, Images, u32),
}

impl Saver {
    pub(super) fn start(about: About, reports: UnboundedSender<Report>) -> std::io::Result<Self> {
        let (tasks, inbox) = channel();
        let deadline = about.enrolment.job.deadlines.checkpoint;
        let thread = Writer {
            store: Store::new(about.enrolment.run_dir.join("checkpoints")),
            samples: about.enrolment.run_dir.join("samples"),
            about,
            reports: reports.clone(),
        };
        std::thread::Builder::new()
            .name("saving".to_owned())
            .spawn(move || thread.run(&inbox))?;
        Ok(Self {
            tasks,
            pending: None,
            deadline,
            reports,
        })
    }

    /// Hands a state over. If the one before is still being written, waits for it first.
    pub(super) fn checkpoint(&mut self, generation: Generation, snapshot: Snapshot) {
        if let Err(error) = self.flush() {
            report_failure(&self.reports, generation, snapshot.step, &error);
            return;
        }
        let (done, pending) = channel();
        self.pending = Some(pending);
        let task = Task::Checkpoint(generation, Box::new(snapshot), done);
        // If the thread is gone, the next flush says so.
        let _ = self.tasks.send(task);
    }

    pub(super) fn picture(&self, step: Step, images: Images, columns: u32) {
        let _ = self.tasks.send(Task::Picture(step, images, columns));
    }

    /// Waits until the newest checkpoint is on disk, or has failed.
    pub(super) fn flush(&mut self) -> Result<(), String> {
        let Some(pending) = &self.pending else {
            return Ok(());
        };
        match pending.recv_timeout(self.deadline) {
            Ok(()) => {
                self.pending = None;
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => Err(format!(
                "the checkpoint before is not on disk after {} (deadlines.checkpoint)",
                humantime::format_duration(self.deadline)
            )),
            Err(RecvTimeoutError::Disconnected) => {
                self.pending = None;
                Err("the thread that writes checkpoints has died; see the log".to_owned())
            }
        }
    }
}

struct Writer {
    about: About,
    store: Store,
    samples: PathBuf,
    reports: UnboundedSender<Report>,
}

impl Writer {
    fn run(self, tasks: &Receiver<Task>) {
        while let Ok(task) = tasks.recv() {
            match task {
                Task::Checkpoint(generation, snapshot, done) => {
                    self.checkpoint(generation, &snapshot);
                    let _ = done.send(());
                }
                Task::Picture(step, images, columns) => {
                    let path = self.samples.join(format!("step-{:08}.png", step.0));
                    if let Err(error) = sample::write_png(&path, &images, columns) {
                        tracing::warn!("no picture of step {step}: {error}");
                    }
                }
            }
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "how long a checkpoint takes, and when it was made, is for people"
    )]
    fn checkpoint(&self, generation: Generation, snapshot: &Snapshot) {
        let began = Instant::now();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let step = snapshot.step;
        let about = self.description(generation, step, unix.unwrap_or_default().as_secs_f64());
        let written = self.store.write(snapshot, &about);
        let took = began.elapsed();
        match written {
            Ok(manifest) => {
                tracing::info!(%step, digest = %manifest.digest, "checkpoint written in {took:.0?}");
                metrics::checkpoint::written(
                    took,
                    manifest.total_bytes(),
                    about.created_unix_seconds,
                );
                let message = proto::CheckpointWritten {
                    generation: generation.0,
                    step: step.0,
                    path: format!("checkpoints/step-{:08}", step.0),
                    digest: manifest.digest.clone(),
                    bytes: manifest.total_bytes(),
                    seconds: took.as_secs_f64(),
                    error: String::new(),
                };
                let _ = self
                    .reports
                    .send(Report::Say(Box::new(Kind::CheckpointWritten(message))));
                let keep = self.about.enrolment.job.checkpoint;
                if let Err(error) = self.store.retain(keep.keep_last, keep.keep_every) {
                    tracing::warn!("old checkpoints can't be removed: {error}");
                }
            }
            Err(error) => report_failure(&self.reports, generation, step, &error.to_string()),
        }
    }

    fn description(&self, generation: Generation, step: Step, unix_seconds: f64) -> Description {
        let About {
            enrolment,
            data_digest,
            steps_per_epoch,
            device,
        } = &self.about;
        let job = &enrolment.job;
        Description {
            job: job.job.name.clone(),
            job_id: enrolment.job_id.clone(),
            epoch: crate::ids::Epoch(step.0 / steps_per_epoch),
            generation,
            data_digest: data_digest.clone(),
            state_keys: job.state_keys(),
            model: job.model.clone(),
            ema: job.train.ema_decay > 0.0,
            software: BTreeMap::from([
                ("ganglion".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
                ("libtorch".to_owned(), device.libtorch.clone()),
            ]),
            device: device.to_string(),
            created_unix_seconds: unix_seconds,
        }
    }
}

fn report_failure(
    reports: &UnboundedSender<Report>,
    generation: Generation,
    step: Step,
    error: &str,
) {
    tracing::error!(
        %step,
        "the checkpoint can't be written; training goes on, and the one before stays: {error}"
    );
    metrics::checkpoint::failed();
    let message = wire::checkpoint_failed(generation, step, error);
    let _ = reports.send(Report::Say(Box::new(message)));
}
