//! The thread that owns the tensors, from one generation to the next.
//!
//! It rests between generations and keeps its state meanwhile. When one begins it connects to its
//! peers, finds out with them who holds the newest state, and sees to it that all do. What follows
//! is `run`'s. Nothing is awaited but its peers and its loader, each with a deadline.

use super::Enrolment;
use super::failure::{Failure, GenerationError, panic_message, reason, suspect, unwound};
use super::history::History;
use super::inbox::{Form, Inbox};
use super::orders::Orders;
use super::pulse::Pulse;
use super::rejoin;
use super::run::{Ended, Run, Work};
use super::saving::{About, Saver};
use super::transport::Transport;
use super::wire::Assignment;
use crate::checkpoint;
use crate::collective::{Abort, Collective, CollectiveError, Deadlines, Listener};
use crate::config::DataCache;
use crate::data::{DataError, Dataset, Loader, LoaderSettings};
use crate::ids::{Generation, Rank, Step};
use crate::membership::{Breakage, CheckpointRecord, DeviceKind, Finish, Forming};
use crate::plan::Plan;
use crate::proto;
use crate::session::{Newest, newest};
use crate::telemetry::metrics;
use crate::train::{Setup, Trainer};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;

/// Steps whose batches are loaded ahead.
const PREFETCH: usize = 4;

/// What the thread tells.
pub(super) enum Report {
    /// It can take part in generations.
    Ready,
    /// It never can.
    Unfit(String),
    /// Connected, and all hold this state.
    Formed(Generation, Step, Forming),
    /// A state is reached, on which nothing depends here.
    Progress(proto::Progress),
    /// A checkpoint is written, or could not be.
    Checkpoint(Box<proto::CheckpointWritten>),
    /// A checkpoint's generator is scored.
    Evaluated(proto::Evaluated),
    /// It rests, as others do in this generation.
    Paused(Generation, Step),
    /// The generation is broken; it rests.
    CollectiveFailed(Generation, Step, Breakage),
    /// It has nothing more to do.
    Ended(Generation, Step, Finish),
}

/// What the thread works with, whatever generations come and go.
pub(super) struct Tools {
    pub(super) enrolment: Enrolment,
    pub(super) dataset: Arc<Dataset>,
    pub(super) device: tch::Device,
    pub(super) device_kind: DeviceKind,
    pub(super) cores: usize,
    pub(super) listener: Arc<Listener>,
    pub(super) orders: Arc<Orders>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) reports: UnboundedSender<Report>,
}

impl Tools {
    pub(super) fn report(&self, report: Report) {
        // If nobody listens any more, the process is ending.
        let _ = self.reports.send(report);
    }

    fn trainer(&self) -> Result<Trainer, GenerationError> {
        let mut trainer = Trainer::new(Setup {
            job: &self.enrolment.job,
            device: self.device,
            replicas: 0..0,
            cores: self.cores,
        })?;
        for remark in trainer.remarks() {
            tracing::warn!("{remark}");
        }
        if self.enrolment.job.data.cache == DataCache::Device {
            trainer.cache(&self.dataset)?;
        }
        Ok(trainer)
    }

    fn plan(&self) -> Result<Plan, GenerationError> {
        let (job, sizes) = (&self.enrolment.job, self.dataset.shard_sizes());
        let (replicas, batch) = (job.train.replicas, job.train.batch);
        Ok(Plan::new(&sizes, job.job.seed, replicas, batch)?)
    }

    fn loader(&self, plan: &Plan, trainer: &Trainer, start: Step) -> Result<Loader, DataError> {
        let job = &self.enrolment.job;
        Loader::start(
            Arc::clone(&self.dataset),
            LoaderSettings {
                seed: job.job.seed,
                batch: job.train.batch,
                steps_per_epoch: plan.steps_per_epoch(),
                replicas: trainer.replicas(),
                start,
                prefetch: PREFETCH,
                places: trainer.has_cache(),
            },
        )
    }

    fn saver(&self, plan: &Plan) -> Result<Saver, GenerationError> {
        let about = About {
            enrolment: self.enrolment.clone(),
            data_digest: self.dataset.digest().to_owned(),
            steps_per_epoch: plan.steps_per_epoch(),
            device: self.device_kind.clone(),
        };
        Saver::start(about, Arc::clone(&self.dataset), self.reports.clone())
            .map_err(GenerationError::Thread)
    }

    /// Loads a checkpoint into the trainer.
    fn restore(
        &self,
        trainer: &mut Trainer,
        checkpoint: &CheckpointRecord,
    ) -> Result<(), GenerationError> {
        let CheckpointRecord { step, path, digest } = checkpoint;
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
        Ok(())
    }
}

/// The thread.
pub(super) struct Training {
    tools: Tools,
    inbox: Inbox,
    transport: Transport,
    history: History,
    /// Once this worker has led a generation. What it has begun to write it writes to the end,
    /// whoever leads then.
    saver: Option<Saver>,
    /// The newest checkpoint on record.
    recorded: Option<Step>,
}

impl Training {
    pub(super) fn new(tools: Tools, inbox: Inbox) -> Self {
        Self {
            transport: Transport::of(tools.device),
            tools,
            inbox,
            history: History::default(),
            saver: None,
            recorded: None,
        }
    }

    /// Runs until nobody gives commands any more.
    pub(super) fn run(mut self) {
        // libtorch's own errors come as panics: this thread is where they end.
        let built = catch_unwind(AssertUnwindSafe(|| {
            Ok((self.tools.trainer()?, self.tools.plan()?))
        }));
        let (mut trainer, plan) = match unwound(built) {
            Ok(built) => built,
            Err(error) => return self.tools.report(Report::Unfit(reason(&error))),
        };
        self.tools.report(Report::Ready);
        let mut broken = None;
        while let Ok(form) = self.inbox.wait() {
            let generation = form.assignment.generation();
            let went = match &broken {
                None => catch_unwind(AssertUnwindSafe(|| {
                    self.generation(&mut trainer, &plan, *form)
                })),
                Some(why) => Ok(Ok(Ended::Over(Finish::Failed(String::clone(why))))),
            };
            if let Err(panic) = &went {
                // Nobody knows what state the tensors are in.
                broken = Some(panic_message(panic.as_ref()));
            }
            let step = trainer.step();
            match unwound(went) {
                Ok(Ended::Resting) => self.tools.report(Report::Paused(generation, step)),
                Ok(Ended::Over(finish)) => {
                    self.tools.report(Report::Ended(generation, step, finish));
                }
                Ok(Ended::Superseded) => {
                    tracing::debug!(%generation, %step, "superseded");
                }
                Err(Failure::Error(GenerationError::CalledOff(why))) => {
                    tracing::debug!(%generation, %step, "called off: {why}");
                }
                Err(Failure::Error(GenerationError::Collective(
                    error @ CollectiveError::Stuck { .. },
                ))) => {
                    let failed = rejoin::start_over(&error.to_string());
                    let reason = format!("{error}; and it can't start over: {failed}");
                    broken = Some(reason.clone());
                    let failed = Finish::Failed(reason);
                    self.tools.report(Report::Ended(generation, step, failed));
                }
                Err(Failure::Error(GenerationError::Collective(error))) => {
                    let suspect = suspect(&error);
                    let reason = error.to_string();
                    let breakage = Breakage { reason, suspect };
                    let broken = Report::CollectiveFailed(generation, step, breakage);
                    self.tools.report(broken);
                }
                Err(error) => {
                    let failed = Finish::Failed(reason(&error));
                    self.tools.report(Report::Ended(generation, step, failed));
                }
            }
        }
        if broken.is_none() && self.tools.orders.saves_at_the_end() {
            self.save(&trainer, &plan);
        }
    }

    /// Goes through one generation.
    fn generation(
        &mut self,
        trainer: &mut Trainer,
        plan: &Plan,
        form: Form,
    ) -> Result<Ended, GenerationError> {
        let Form {
            assignment,
            heard_at,
        } = form;
        let group = &assignment.group;
        let (generation, hosted) = (group.generation, assignment.hosted());
        let abort = self.tools.orders.renew(generation);
        let mut forming = Forming {
            abort: heard_at.elapsed(),
            ..Forming::default()
        };
        tracing::info!(
            %generation,
            rank = %group.rank,
            workers = group.peers.len(),
            replicas = ?hosted,
            "forming"
        );
        trainer.host(hosted.clone())?;
        let deadlines = self.tools.enrolment.job.deadlines;
        let deadlines = Deadlines {
            connect: deadlines.form,
            collective: deadlines.collective,
        };
        let reduction = self.tools.enrolment.job.train.reduction;
        let listener = &self.tools.listener;
        let mut collective = self
            .transport
            .connect(listener, group, reduction, deadlines, &abort)?;
        forming.connect = heard_at.elapsed().saturating_sub(forming.abort);
        self.tools.pulse.begin(generation, hosted.len() as u32);
        let went = Seat {
            trainer,
            plan,
            assignment,
            collective: &mut *collective,
            abort: &abort,
        }
        .take(self, forming, heard_at);
        if went.is_err() {
            // Whatever is still queued is of no use to anybody, and the next generation waits.
            abort.abort("this worker has left the generation");
        }
        went
    }

    /// Writes the state that this worker holds, if that is more than what is saved: it ends, and
    /// there is no coordinator that could know of others who hold it.
    fn save(&mut self, trainer: &Trainer, plan: &Plan) {
        let step = trainer.step();
        let generation = self.tools.orders.newest();
        let handed = self.saver.as_ref().and_then(Saver::newest);
        if generation == Generation(0) || handed.max(self.recorded) >= Some(step) {
            return;
        }
        let saved = self.lead(plan).and_then(|saver| {
            saver.last_checkpoint(generation, trainer.snapshot()?);
            saver.finish(step).map_err(GenerationError::LastCheckpoint)
        });
        match saved {
            Ok(()) => tracing::info!(%step, "saved what this worker holds"),
            Err(error) => tracing::error!(%step, "what this worker holds is lost: {error}"),
        }
    }

    /// The process's one writer.
    fn lead(&mut self, plan: &Plan) -> Result<&mut Saver, GenerationError> {
        let saver = match self.saver.take() {
            Some(saver) => saver,
            None => self.tools.saver(plan)?,
        };
        Ok(self.saver.insert(saver))
    }
}

/// A worker's place in a generation that is connected.
struct Seat<'a> {
    trainer: &'a mut Trainer,
    plan: &'a Plan,
    assignment: Assignment,
    collective: &'a mut dyn Collective,
    abort: &'a Abort,
}

impl Seat<'_> {
    /// Gets the newest state, and trains.
    fn take(
        self,
        training: &mut Training,
        mut forming: Forming,
        heard_at: Instant,
    ) -> Result<Ended, GenerationError> {
        let Seat {
            trainer,
            plan,
            assignment,
            collective,
            abort,
        } = self;
        let generation = assignment.generation();
        let words = collective.gather(trainer.step().0)?;
        let held: Vec<Step> = words.into_iter().map(Step).collect();
        let saved = assignment.checkpoint.as_ref();
        let newest = newest(&held, saved.map(|saved| saved.step));
        let start = newest.step();
        // It reads ahead while the state is on its way.
        let loader = training.tools.loader(plan, trainer, start)?;
        let mut work = Work::new(loader, plan.locate(start).0);
        work.give(assignment.work);
        let leads = collective.rank() == Rank(0);
        if let (Newest::Saved(_), true, Some(saved)) = (&newest, leads, saved) {
            training.tools.restore(trainer, saved)?;
        }
        let holders = newest.holders();
        if holders.len() < collective.world_size() as usize {
            tracing::debug!(%generation, step = %start, ?held, ?holders, "copying the state");
            trainer.copy_state(start, &holders, collective)?;
        }
        collective.barrier()?;
        forming.heal = heard_at
            .elapsed()
            .saturating_sub(forming.abort + forming.connect);
        tracing::debug!(%generation, step = %start, ?forming, "formed");
        metrics::train::reached(start, plan.locate(start).0);
        training.tools.pulse.holds(start);
        training.history.go_on_from(start);
        training.recorded = saved.map(|saved| saved.step);
        let formed = Report::Formed(generation, start, forming);
        training.tools.report(formed);

        if leads {
            training.lead(plan)?.ends_at(assignment.total);
        }
        let went = Run {
            tools: &training.tools,
            inbox: &mut training.inbox,
            history: &mut training.history,
            saver: training.saver.as_mut().filter(|_| leads),
            on_record: training.recorded,
            told: assignment.recorded,
            reported: None,
            generation,
            total: assignment.total,
            close: assignment.close,
            trainer: &mut *trainer,
            plan,
            collective,
            abort,
            work,
        }
        .train();
        // A step that is under way still has nobody who would settle it.
        trainer.discard();
        went
    }
}
