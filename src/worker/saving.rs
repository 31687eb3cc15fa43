//! Checkpoints and pictures, written off the training thread.
//!
//! A process has one writer, whatever generations come and go: what is under way when a generation
//! ends is written all the same. A failure to write never stops the training: it is logged, counted
//! and reported, and the last good checkpoint stays.

use super::Enrolment;
use super::evaluating::{self, Candidate, Evaluating};
use super::training::Report;
use crate::checkpoint::{Description, Manifest, Snapshot, Store};
use crate::data::Dataset;
use crate::ids::{Generation, Step};
use crate::membership::DeviceKind;
use crate::proto;
use crate::sample::{self, Images};
use crate::telemetry::evaluations::SamplesOf;
use crate::telemetry::metrics;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
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
    /// The newest state that was handed over.
    newest: Option<Step>,
    /// Hears when that is on disk, or has failed.
    pending: Option<Receiver<()>>,
    deadline: Duration,
    /// For the checkpoint before.
    patience: Duration,
    reports: UnboundedSender<Report>,
    /// The job's last step.
    end: Step,
    /// If the job is evaluated.
    evaluating: Option<Evaluating>,
}

enum Task {
    /// Write a state, whether it is the job's last, and say when it is done.
    Checkpoint(Generation, Box<Snapshot>, bool, Sender<()>),
    Picture(Step, Images, u32),
    /// Answer once all before is written: how the checkpoint of this step fared, if it is the
    /// newest.
    Finish(Step, Sender<Result<(), String>>),
}

impl Saver {
    pub(super) fn start(
        about: About,
        dataset: Arc<Dataset>,
        reports: UnboundedSender<Report>,
    ) -> std::io::Result<Self> {
        let (tasks, inbox) = channel();
        let about = Arc::new(about);
        let job = Arc::clone(&about.enrolment.job);
        let deadlines = job.deadlines;
        let evaluating = match job.evaluate.every_steps {
            0 => None,
            _ => Some(Evaluating::start(
                Arc::clone(&about),
                dataset,
                reports.clone(),
            )?),
        };
        let thread = Writer {
            store: Store::new(about.enrolment.run_dir.join("checkpoints")),
            samples: about.enrolment.run_dir.join("samples"),
            about,
            reports: reports.clone(),
            failed: None,
            evaluating: evaluating.as_ref().map(Evaluating::shared),
        };
        std::thread::Builder::new()
            .name("saving".to_owned())
            .spawn(move || thread.run(&inbox))?;
        Ok(Self {
            tasks,
            newest: None,
            pending: None,
            deadline: deadlines.checkpoint,
            patience: deadlines.checkpoint.min(deadlines.collective / 4),
            reports,
            end: Step(u64::MAX),
            evaluating,
        })
    }

    /// The job ends at this step.
    pub(super) fn ends_at(&mut self, end: Step) {
        self.end = end;
    }

    /// Waits for the evaluation of the job's last state, but not longer than for a checkpoint.
    pub(super) fn finish_evaluation(&self) {
        if let Some(evaluating) = &self.evaluating {
            evaluating.finish(self.deadline);
        }
    }

    /// The newest state that was handed over in this process.
    pub(super) fn newest(&self) -> Option<Step> {
        self.newest
    }

    /// Hands a state over. If the one before is still being written it waits, but not so long that
    /// its peers would give this worker up: then this state is left out, and reported as failed.
    pub(super) fn checkpoint(&mut self, generation: Generation, snapshot: Snapshot) {
        let busy = self.pending.as_ref().is_some_and(|pending| {
            pending.recv_timeout(self.patience) == Err(RecvTimeoutError::Timeout)
        });
        if busy {
            let error = "the one before is still being written; this one is left out";
            report_failure(&self.reports, generation, snapshot.step, error);
        } else {
            self.last_checkpoint(generation, snapshot);
        }
    }

    /// Hands the last state over, even if the one before is still being written.
    pub(super) fn last_checkpoint(&mut self, generation: Generation, snapshot: Snapshot) {
        let (done, pending) = channel();
        self.newest = Some(snapshot.step);
        self.pending = Some(pending);
        let last = snapshot.step == self.end;
        let task = Task::Checkpoint(generation, Box::new(snapshot), last, done);
        // If the thread is gone, `finish` says so.
        let _ = self.tasks.send(task);
    }

    pub(super) fn picture(&self, step: Step, images: Images, columns: u32) {
        let _ = self.tasks.send(Task::Picture(step, images, columns));
    }

    /// Waits until all is written, for two checkpoints' time at most, and says how the checkpoint of
    /// `last` fared, if that was handed over last.
    pub(super) fn finish(&self, last: Step) -> Result<(), String> {
        let (done, written) = channel();
        let _ = self.tasks.send(Task::Finish(last, done));
        let deadline = 2 * self.deadline;
        match written.recv_timeout(deadline) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(format!(
                "not on disk after {} (twice deadlines.checkpoint)",
                humantime::format_duration(deadline)
            )),
            Err(RecvTimeoutError::Disconnected) => {
                Err("the thread that writes has died; see the log".to_owned())
            }
        }
    }
}

struct Writer {
    about: Arc<About>,
    store: Store,
    samples: PathBuf,
    reports: UnboundedSender<Report>,
    /// The newest checkpoint, if it could not be written, and why.
    failed: Option<(Step, String)>,
    evaluating: Option<Arc<evaluating::Shared>>,
}

impl Writer {
    fn run(mut self, tasks: &Receiver<Task>) {
        while let Ok(task) = tasks.recv() {
            match task {
                Task::Checkpoint(generation, snapshot, last, done) => {
                    let step = snapshot.step;
                    let written = self.checkpoint(generation, &snapshot);
                    let _ = done.send(());
                    self.failed = match written {
                        Ok(manifest) => {
                            self.evaluate(generation, *snapshot, manifest, last);
                            self.retain(generation, step);
                            None
                        }
                        Err(why) => Some((step, why)),
                    };
                }
                Task::Finish(last, done) => {
                    let failed = self.failed.as_ref().filter(|(step, _)| *step == last);
                    let _ = done.send(failed.map_or(Ok(()), |(_, why)| Err(why.clone())));
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
    fn checkpoint(&self, generation: Generation, snapshot: &Snapshot) -> Result<Manifest, String> {
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
                let _ = self.reports.send(Report::Checkpoint(Box::new(message)));
                Ok(manifest)
            }
            Err(error) => {
                let error = error.to_string();
                report_failure(&self.reports, generation, step, &error);
                Err(error)
            }
        }
    }

    /// Has the generator scored, if it is due.
    fn evaluate(&self, generation: Generation, snapshot: Snapshot, written: Manifest, last: bool) {
        let Some(evaluating) = &self.evaluating else {
            return;
        };
        let every = self.about.enrolment.job.evaluate.every_steps;
        if !last && !snapshot.step.0.is_multiple_of(every) {
            return;
        }
        let Snapshot { step, mut files } = snapshot;
        let (samples_of, tensors) = match files.remove("generator_ema") {
            Some(tensors) => (SamplesOf::Average, tensors),
            None => {
                let newest = files.remove("generator").unwrap_or_default();
                (SamplesOf::Newest, newest)
            }
        };
        let candidate = Candidate {
            step,
            digest: written.digest,
            generation,
            samples_of,
            tensors,
        };
        evaluating.offer(candidate, last);
    }

    /// Lets old checkpoints go: not the best, nor one that may turn out to be.
    fn retain(&self, generation: Generation, newest: Step) {
        let job = &self.about.enrolment.job;
        let mut spared = Vec::new();
        if let Some(score) = job.checkpoint.keep_best {
            // First those that are undecided: one that is decided meanwhile is in the file by now.
            let evaluating = self.evaluating.as_ref();
            spared = evaluating.map_or(Vec::new(), |evaluating| evaluating.undecided());
            let run_dir = &self.about.enrolment.run_dir;
            spared.extend(evaluating::name_best(
                &self.store,
                run_dir,
                score,
                generation,
            ));
        }
        let keep = job.checkpoint;
        let kept = self
            .store
            .retain(keep.keep_last, keep.keep_every, newest, &spared, generation);
        if let Err(error) = kept {
            tracing::warn!("old checkpoints can't be removed: {error}");
        }
    }

    fn description(&self, generation: Generation, step: Step, unix_seconds: f64) -> Description {
        let About {
            enrolment,
            data_digest,
            steps_per_epoch,
            device,
        } = &*self.about;
        let job = &enrolment.job;
        Description {
            job: job.job.name.clone(),
            job_id: enrolment.job_id.clone(),
            epoch: crate::ids::Epoch(step.0 / steps_per_epoch),
            generation,
            data_digest: data_digest.clone(),
            data: job.data.clone(),
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
    let message = proto::CheckpointWritten {
        generation: generation.0,
        step: step.0,
        error: error.to_owned(),
        ..Default::default()
    };
    let _ = reports.send(Report::Checkpoint(Box::new(message)));
}
