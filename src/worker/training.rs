//! The thread that owns the tensors.
//!
//! It takes commands between generations, and work within one; it reports what happened. Within a
//! generation nothing is awaited but its peers and its loader, each with a deadline.

use super::Enrolment;
use super::saving::{About, Saver};
use super::wire::{Assignment, EpochWork, Source};
use crate::checkpoint;
use crate::collective::{Abort, Collective, CollectiveError, Deadlines, Flags, Listener, Tcp};
use crate::data::{DataError, Dataset, Loader, LoaderSettings, Next};
use crate::ids::{Epoch, Generation, Rank, Step};
use crate::membership::{DeviceKind, Finish};
use crate::model::Latents;
use crate::plan::{Plan, PlanError};
use crate::proto;
use crate::proto::worker_message::Kind;
use crate::random::{Domain, Key};
use crate::sample::Images;
use crate::telemetry::catalog::StepPhase;
use crate::telemetry::metrics;
use crate::train::{Setup, StepReport, TrainError, Trainer};
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// Steps whose batches are loaded ahead.
const PREFETCH: usize = 4;
/// How often flags are looked at while there is nothing to do.
const FLAGS_EVERY: Duration = Duration::from_millis(50);
/// How often progress is reported, at most.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// What the thread is told.
pub(super) enum Command {
    /// Take part in a generation.
    Form(Box<Assignment>),
    /// More shards for it.
    Work(Generation, Vec<EpochWork>),
}

/// What the thread tells.
pub(super) enum Report {
    /// A message for the coordinator, on which nothing depends here.
    Say(Box<Kind>),
    /// Connected, and holding the state.
    Formed(Generation, Step),
    /// The generation is over for this worker.
    Ended(Generation, Step, Finish),
    /// The generation is broken.
    CollectiveFailed(Generation, Step, String),
}

/// Orders that take effect at the end of a step, on all workers at the same one.
#[derive(Default)]
pub(super) struct Orders {
    leaving: AtomicBool,
    stop: AtomicBool,
    abort: Mutex<Abort>,
}

impl Orders {
    pub(super) fn raise_leaving(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    pub(super) fn raise_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Calls the collective in flight off.
    pub(super) fn abort(&self, reason: &str) {
        let abort = self.abort.lock().unwrap_or_else(PoisonError::into_inner);
        abort.abort(reason);
    }

    fn renew(&self) -> Abort {
        let abort = Abort::new();
        let mut present = self.abort.lock().unwrap_or_else(PoisonError::into_inner);
        *present = abort.clone();
        abort
    }

    fn flags(&self) -> Flags {
        Flags {
            pause: false,
            leaving: self.leaving.load(Ordering::Relaxed),
            stop: self.stop.load(Ordering::Relaxed),
        }
    }
}

/// What the thread owns.
pub(super) struct Training {
    pub(super) enrolment: Enrolment,
    pub(super) dataset: Arc<Dataset>,
    pub(super) device: tch::Device,
    pub(super) device_kind: DeviceKind,
    pub(super) cores: usize,
    pub(super) listener: Arc<Listener>,
    pub(super) orders: Arc<Orders>,
    pub(super) commands: Receiver<Command>,
    pub(super) reports: UnboundedSender<Report>,
}

/// Why a generation can't be gone through.
#[derive(Debug, thiserror::Error)]
enum GenerationError {
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(transparent)]
    Train(TrainError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::CheckpointError),
    #[error(
        "{path} holds digest {found}, but the coordinator's ledger has {expected}; \
         do this worker and the coordinator see the same run directory?"
    )]
    OtherState {
        path: String,
        found: String,
        expected: String,
    },
    #[error("can't start a thread: {0}")]
    Thread(std::io::Error),
    #[error("no work from the coordinator for {}", humantime::format_duration(*.0))]
    NoWork(Duration),
    #[error("the last checkpoint could not be written: {0}")]
    LastCheckpoint(String),
    #[error("the worker is ending")]
    Ending,
}

impl From<TrainError> for GenerationError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Collective { source, .. } => GenerationError::Collective(source),
            other => GenerationError::Train(other),
        }
    }
}

impl Training {
    /// Runs until nobody gives commands any more.
    pub(super) fn run(mut self) {
        let mut trainer = None;
        while let Ok(command) = self.commands.recv() {
            let Command::Form(assignment) = command else {
                continue; // Work for a generation that is over.
            };
            let generation = assignment.group.generation;
            // libtorch's own errors come as panics: this thread is where they end.
            let went = catch_unwind(AssertUnwindSafe(|| {
                self.generation(&mut trainer, *assignment)
            }));
            let step = trainer.as_ref().map_or(Step(0), Trainer::step);
            let report = match went {
                Ok(Ok(finish)) => Report::Ended(generation, step, finish),
                Ok(Err(GenerationError::Collective(error))) => {
                    Report::CollectiveFailed(generation, step, error.to_string())
                }
                Ok(Err(error)) => {
                    Report::Ended(generation, step, Finish::Failed(error.to_string()))
                }
                Err(panic) => {
                    let why = panic_message(panic.as_ref());
                    Report::Ended(generation, step, Finish::Failed(why))
                }
            };
            let _ = self.reports.send(report);
        }
    }

    /// Goes through one generation: connect, load the state, train.
    fn generation(
        &mut self,
        held: &mut Option<Trainer>,
        assignment: Assignment,
    ) -> Result<Finish, GenerationError> {
        let job = Arc::clone(&self.enrolment.job);
        let abort = self.orders.renew();
        let hosted = assignment.hosted();
        let Assignment {
            group,
            source,
            total_steps,
            work,
        } = assignment;
        let generation = group.generation;
        tracing::info!(
            %generation,
            rank = %group.rank,
            workers = group.peers.len(),
            replicas = ?hosted,
            "forming"
        );
        let trainer = self.ready_trainer(held, hosted.clone(), &source)?;
        let deadlines = Deadlines {
            connect: job.deadlines.form,
            collective: job.deadlines.collective,
        };
        let mut collective = Tcp::connect(&self.listener, &group, deadlines, &abort)?;
        collective.barrier()?;
        let sizes = self.dataset.shard_sizes();
        let plan = Plan::new(&sizes, job.job.seed, job.train.replicas, job.train.batch)?;
        let loader = self.loader(&plan, hosted, trainer.step(), work)?;
        let leader = collective.rank() == Rank(0);
        let saver = if leader {
            Some(self.saver(&plan)?)
        } else {
            None
        };
        let _ = self
            .reports
            .send(Report::Formed(generation, trainer.step()));
        let mut run = Run {
            training: self,
            trainer,
            collective: &mut collective,
            loader,
            saver,
            saved_at: None,
            generation,
            total: Step(total_steps),
            plan,
            records: Vec::new(),
        };
        run.train()
    }

    /// The trainer, with the state that the generation starts from.
    fn ready_trainer<'a>(
        &self,
        held: &'a mut Option<Trainer>,
        hosted: Range<u32>,
        source: &Source,
    ) -> Result<&'a mut Trainer, GenerationError> {
        let job = &self.enrolment.job;
        let fresh = || {
            Trainer::new(Setup {
                job,
                device: self.device,
                replicas: hosted.clone(),
                cores: self.cores,
            })
        };
        let mut trainer = match held.take() {
            Some(mut trainer) if !matches!(source, Source::Fresh) => {
                trainer.host(hosted.clone())?;
                trainer
            }
            _ => fresh()?,
        };
        if let Source::Checkpoint { path, step, digest } = source {
            let folder = self.enrolment.run_dir.join(path);
            let (manifest, snapshot) = checkpoint::read(&folder)?;
            if manifest.digest != *digest || manifest.step != *step {
                return Err(GenerationError::OtherState {
                    path: folder.display().to_string(),
                    found: manifest.digest,
                    expected: digest.clone(),
                });
            }
            trainer.restore(&snapshot)?;
            tracing::info!(%step, "state loaded from {}", folder.display());
        }
        Ok(held.insert(trainer))
    }

    fn loader(
        &self,
        plan: &Plan,
        hosted: Range<u32>,
        start: Step,
        work: Vec<EpochWork>,
    ) -> Result<Loader, GenerationError> {
        let job = &self.enrolment.job;
        let loader = Loader::start(
            Arc::clone(&self.dataset),
            LoaderSettings {
                seed: job.job.seed,
                batch: job.train.batch,
                steps_per_epoch: plan.steps_per_epoch(),
                replicas: hosted,
                start,
                prefetch: PREFETCH,
            },
        )?;
        for (epoch, spans) in work {
            loader.assign(epoch, spans);
        }
        Ok(loader)
    }

    fn saver(&self, plan: &Plan) -> Result<Saver, GenerationError> {
        let about = About {
            enrolment: self.enrolment.clone(),
            data_digest: self.dataset.digest().to_owned(),
            steps_per_epoch: plan.steps_per_epoch(),
            device: self.device_kind.clone(),
        };
        Saver::start(about, self.reports.clone()).map_err(GenerationError::Thread)
    }
}

/// One generation's steps.
struct Run<'a> {
    training: &'a Training,
    trainer: &'a mut Trainer,
    collective: &'a mut dyn Collective,
    loader: Loader,
    /// Rank 0's.
    saver: Option<Saver>,
    /// The newest step whose state was handed to the saver.
    saved_at: Option<Step>,
    generation: Generation,
    total: Step,
    plan: Plan,
    /// Of the steps that are not yet reported.
    records: Vec<proto::StepRecord>,
}

impl Run<'_> {
    #[expect(
        clippy::disallowed_methods,
        reason = "steps are timed, and progress is reported in real time"
    )]
    fn train(&mut self) -> Result<Finish, GenerationError> {
        let mut reported_at = Instant::now();
        let mut stepped_at = reported_at;
        let mut finish = Finish::Complete;
        while self.trainer.step() < self.total {
            self.take_work()?;
            let deadline = self.training.enrolment.job.deadlines.data;
            let asked_at = Instant::now();
            let batches = match self.loader.next(deadline)? {
                Next::Batches(batches) => batches,
                Next::Exhausted => {
                    self.report();
                    if let Some(ended) = self.wait_for_work()? {
                        finish = ended;
                        break;
                    }
                    continue;
                }
            };
            let waited = asked_at.elapsed();
            let epoch = self.plan.locate(self.trainer.step()).0;
            let flags = self.training.orders.flags();
            let report = self.trainer.advance(batches, self.collective, flags)?;
            let now = Instant::now();
            let took = now.duration_since(std::mem::replace(&mut stepped_at, now));
            self.record(&report, epoch.0, waited, took);
            self.save(&report)?;
            if now.duration_since(reported_at) >= REPORT_EVERY {
                reported_at = now;
                self.report();
            }
            if report.flags.any() {
                tracing::info!(step = %report.step, flags = ?report.flags, "ending here");
                finish = ending(report.flags);
                break;
            }
        }
        self.report();
        if let Some(mut saver) = self.saver.take() {
            let last = self.trainer.step();
            if self.saved_at != Some(last) {
                saver.last_checkpoint(self.generation, self.trainer.snapshot()?);
            }
            if !due(last, self.training.enrolment.job.sample.every_steps) {
                self.picture(&saver)?;
            }
            saver.finish().map_err(GenerationError::LastCheckpoint)?;
        }
        Ok(finish)
    }

    /// Takes what the coordinator has sent, without waiting.
    fn take_work(&mut self) -> Result<(), GenerationError> {
        loop {
            match self.training.commands.try_recv() {
                Ok(command) => {
                    self.give(command);
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(GenerationError::Ending),
            }
        }
    }

    /// Waits for the coordinator, or for a flag: then there is no step at whose end it would be seen.
    #[expect(
        clippy::disallowed_methods,
        reason = "the wait has a deadline in real time"
    )]
    fn wait_for_work(&mut self) -> Result<Option<Finish>, GenerationError> {
        let patience = self.training.enrolment.job.deadlines.coordinator;
        let step = self.trainer.step();
        tracing::warn!(%step, "all work that was handed out is done; waiting for more");
        let deadline = Instant::now() + patience;
        loop {
            let flags = self.training.orders.flags();
            if flags.any() {
                return Ok(Some(ending(flags)));
            }
            match self.training.commands.recv_timeout(FLAGS_EVERY) {
                Ok(command) => {
                    if self.give(command) {
                        return Ok(None);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(GenerationError::Ending),
            }
            if Instant::now() >= deadline {
                return Err(GenerationError::NoWork(patience));
            }
        }
    }

    /// Takes work of this generation, and says whether it was such.
    fn give(&mut self, command: Command) -> bool {
        match command {
            Command::Work(generation, epochs) if generation == self.generation => {
                for (epoch, spans) in epochs {
                    self.loader.assign(epoch, spans);
                }
                true
            }
            // Invariant 3: another generation's work has no effect here.
            Command::Work(..) | Command::Form(_) => false,
        }
    }

    fn measure(&self, report: &StepReport, epoch: u64, waited: Duration, took: Duration) {
        let hosted = self.trainer.replicas().len() as u64;
        let batch = u64::from(self.training.enrolment.job.train.batch);
        metrics::worker::images(hosted * batch);
        metrics::worker::step(waited, StepPhase::Data);
        metrics::worker::step(report.compute, StepPhase::Compute);
        metrics::worker::step(report.reduce, StepPhase::Reduce);
        metrics::worker::step(took, StepPhase::Whole);
        metrics::worker::allreduce(report.reduce, report.sent_bytes);
        metrics::train::reached(report.step, Epoch(epoch));
        metrics::train::scalars(&metrics::train::Scalars {
            loss_d: report.loss_d,
            loss_g: report.loss_g,
            d_real: report.d_real,
            d_fake: report.d_fake,
            grad_norm_d: report.grad_norm_d,
            grad_norm_g: report.grad_norm_g,
            nonfinite: report.nonfinite,
        });
    }

    fn record(&mut self, report: &StepReport, epoch: u64, waited: Duration, took: Duration) {
        self.measure(report, epoch, waited, took);
        if self.saver.is_some() {
            self.records.push(proto::StepRecord {
                step: report.step.0,
                epoch,
                seconds: took.as_secs_f64(),
                reduce_seconds: report.reduce.as_secs_f64(),
                loss_d: report.loss_d,
                loss_g: report.loss_g,
                d_real: report.d_real,
                d_fake: report.d_fake,
                grad_norm_d: report.grad_norm_d,
                grad_norm_g: report.grad_norm_g,
                nonfinite: report.nonfinite,
            });
        }
    }

    fn report(&mut self) {
        let progress = proto::Progress {
            generation: self.generation.0,
            step: self.trainer.step().0,
            records: std::mem::take(&mut self.records),
        };
        let message = Box::new(Kind::Progress(progress));
        let _ = self.training.reports.send(Report::Say(message));
    }

    /// Checkpoints and draws what is due at this step.
    fn save(&mut self, report: &StepReport) -> Result<(), GenerationError> {
        let Some(mut saver) = self.saver.take() else {
            return Ok(());
        };
        let job = &self.training.enrolment.job;
        if due(report.step, job.checkpoint.every_steps) {
            let taken = saver.checkpoint(self.generation, self.trainer.snapshot()?);
            self.saved_at = taken.then_some(report.step);
        }
        if due(report.step, job.sample.every_steps) {
            self.picture(&saver)?;
        }
        self.saver = Some(saver);
        Ok(())
    }

    fn picture(&self, saver: &Saver) -> Result<(), GenerationError> {
        let job = &self.training.enrolment.job;
        let columns = job.sample.grid;
        let key = Key::new(Domain::Samples, &[job.job.seed]);
        let count = (columns * columns) as usize;
        let latents =
            Latents::draw(key, count, job.model.latent as usize).map_err(TrainError::from)?;
        let pixels = self.trainer.sample(&latents)?;
        let images = Images {
            channels: job.model.channels,
            size: job.model.image_size,
            pixels,
        };
        saver.picture(self.trainer.step(), images, columns);
        Ok(())
    }
}

/// How training ends at these flags.
fn ending(flags: Flags) -> Finish {
    if flags.leaving && !flags.stop {
        Finish::Left
    } else {
        Finish::Stopped
    }
}

/// What a panic says: libtorch's account of what it can't do.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!(
        "the training thread panicked: {}",
        text.unwrap_or("no message")
    )
}

/// Whether something that happens every `every` steps happens at this one; 0 is never.
fn due(step: Step, every: u64) -> bool {
    every != 0 && step.0.is_multiple_of(every)
}
