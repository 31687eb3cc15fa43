//! One generation's steps, from the state that all its workers hold to a pause or the end.

use super::failure::GenerationError;
use super::history::History;
use super::inbox::{Came, Inbox};
use super::saving::Saver;
use super::training::{Report, Tools};
use super::wire::{self, EpochWork};
use crate::collective::{Abort, Collective, Flags};
use crate::config::Job;
use crate::data::{DataError, Loader, Mixture, Next};
use crate::faults::{self, Point};
use crate::guard::Verdict;
use crate::ids::{Epoch, Generation, Step};
use crate::membership::{Close, Finish, Halt};
use crate::model::Latents;
use crate::plan::Plan;
use crate::proto;
use crate::random::{Domain, Key};
use crate::sample::{self, Images};
use crate::telemetry::catalog::{GuardVerdict, StepPhase};
use crate::telemetry::metrics;
use crate::train::{StepReport, TrainError, Trainer};
use std::time::{Duration, Instant};

/// How often progress is reported, at most.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// How a generation ends that did not break.
#[derive(Debug)]
pub(super) enum Ended {
    /// The worker rests, and keeps its state for the next one.
    Resting,
    /// The worker has nothing more to do.
    Over(Finish),
    /// Another one has taken its place already.
    Superseded,
}

/// The shards that a worker reads in a generation. A loader takes epochs one after another; the
/// coordinator may say one twice, or begin before the step that training goes on from.
pub(super) struct Work {
    loader: Loader,
    expected: Epoch,
}

impl Work {
    /// The first epoch is the one that the loader starts in.
    pub(super) fn new(loader: Loader, expected: Epoch) -> Self {
        Self { loader, expected }
    }

    /// Takes what is new, and says whether there was any.
    pub(super) fn give(&mut self, epochs: Vec<EpochWork>) -> bool {
        let mut new = false;
        for (epoch, spans) in epochs {
            if epoch == self.expected {
                self.expected = epoch.next();
                self.loader.assign(epoch, spans);
                new = true;
            } else if epoch > self.expected {
                // What lies between was lost with a session. The coordinator says it again when
                // this worker is back, and this epoch too.
                tracing::warn!(%epoch, "epoch {} has not come yet", self.expected);
                break;
            }
        }
        new
    }

    fn next(&mut self, deadline: Duration) -> Result<Next, DataError> {
        self.loader.next(deadline)
    }
}

/// When what happened last.
struct Moments {
    /// Progress was reported.
    reported: Option<Instant>,
    /// A step became the state.
    stepped: Instant,
    /// How long the last batches were waited for.
    waited: Duration,
}

/// One generation's run.
pub(super) struct Run<'a> {
    pub(super) tools: &'a Tools,
    pub(super) inbox: &'a mut Inbox,
    pub(super) history: &'a mut History,
    /// Rank 0's, which leads: it alone saves, and tells the coordinator of steps.
    pub(super) saver: Option<&'a mut Saver>,
    /// The newest checkpoint that the coordinator knew when the generation began.
    pub(super) on_record: Option<Step>,
    /// The newest step whose record the coordinator has. After a fault it may be one that is yet to
    /// be done again.
    pub(super) told: Step,
    /// The state that was last reported in this generation.
    pub(super) reported: Option<Step>,
    pub(super) generation: Generation,
    pub(super) total: Step,
    /// Do no step, and finish like this.
    pub(super) close: Option<Close>,
    pub(super) trainer: &'a mut Trainer,
    pub(super) plan: &'a Plan,
    pub(super) collective: &'a mut dyn Collective,
    pub(super) abort: &'a Abort,
    pub(super) work: Work,
}

impl Run<'_> {
    #[expect(
        clippy::disallowed_methods,
        reason = "steps are timed, and progress is reported in real time"
    )]
    pub(super) fn train(mut self) -> Result<Ended, GenerationError> {
        match self.close {
            None => {}
            Some(Close::Stopped) => return self.conclude(Finish::Stopped),
            Some(Close::Left) => return self.conclude(Finish::Left),
        }
        if let Some(verdict) = self.halted() {
            // The guard has stopped the job here, and not all who were to say so have.
            return self.halt(verdict);
        }
        self.save_what_is_due()?;
        let mut at = Moments {
            reported: None,
            stepped: Instant::now(),
            waited: Duration::ZERO,
        };
        while self.trainer.tentative() < self.total {
            match self.inbox.look(self.generation)? {
                Came::Nothing => {}
                Came::Successor => return Ok(Ended::Superseded),
                Came::Work(epochs) => {
                    self.work.give(epochs);
                    continue;
                }
            }
            let asked_at = Instant::now();
            let batches = match self.work.next(self.job().deadlines.data)? {
                Next::Batches(batches) => batches,
                Next::Exhausted => {
                    let settled = self.trainer.settle(self.collective)?;
                    if let Some(ended) = self.reached(settled, &mut at)? {
                        return Ok(ended);
                    }
                    self.report();
                    match self.wait_for_work()? {
                        None => continue,
                        Some(ended) => return Ok(ended),
                    }
                }
            };
            at.waited = asked_at.elapsed();
            let flags = self.tools.orders.flags(self.generation);
            faults::pass(Point::BeforeReduction);
            let went = self.trainer.advance(batches, self.collective, flags)?;
            faults::pass(Point::AfterReduction);
            if let Some(ended) = self.reached(went, &mut at)? {
                return Ok(ended);
            }
        }
        let settled = self.trainer.settle(self.collective)?;
        match self.reached(settled, &mut at)? {
            Some(ended) => Ok(ended),
            None => self.conclude(Finish::Complete),
        }
    }

    /// Does what is due at a step that has become the state, if one has; and says how the
    /// generation ends, if all are to rest here.
    ///
    /// The trainer may be a step ahead already. What is saved is the state, and not that.
    #[expect(
        clippy::disallowed_methods,
        reason = "steps are timed, and progress is reported in real time"
    )]
    fn reached(
        &mut self,
        report: Option<StepReport>,
        at: &mut Moments,
    ) -> Result<Option<Ended>, GenerationError> {
        let Some(report) = report else {
            return Ok(None);
        };
        let now = Instant::now();
        let took = now.duration_since(std::mem::replace(&mut at.stepped, now));
        self.record(&report, at.waited, took);
        // The first step ends a recovery: the coordinator hears of it at once.
        let due = |at: Instant| now.duration_since(at) >= REPORT_EVERY;
        if at.reported.is_none_or(due) {
            at.reported = Some(now);
            self.report();
        }
        self.save(&report)?;
        if let Some(verdict) = self.halted() {
            return self.halt(verdict).map(Some);
        }
        if report.flags.any() && report.step < self.total {
            return self.obey(report.flags).map(Some);
        }
        Ok(None)
    }

    /// Why the job ends at the state that is reached, if its guard says so. At the job's last step
    /// there is nothing left to stop.
    fn halted(&self) -> Option<Verdict> {
        let verdict = self.trainer.halt()?;
        (self.trainer.step() < self.total).then_some(verdict)
    }

    /// All see the verdict at the same step, as they do a flag.
    fn halt(&mut self, verdict: Verdict) -> Result<Ended, GenerationError> {
        let step = self.trainer.step();
        self.conclude(Finish::Halted(Halt {
            reason: verdict.to_string(),
            sound: verdict.sound(step),
        }))
    }

    fn job(&self) -> &Job {
        &self.tools.enrolment.job
    }

    /// Does what the flags say that all have seen at this step.
    fn obey(&mut self, flags: Flags) -> Result<Ended, GenerationError> {
        let step = self.trainer.step();
        tracing::info!(%step, ?flags, "resting here");
        if flags.stop {
            self.conclude(Finish::Stopped)
        } else if flags.everybody_leaves {
            self.conclude(Finish::Left)
        } else {
            self.report();
            Ok(Ended::Resting)
        }
    }

    /// Saves the state, and leaves nothing to do.
    fn conclude(&mut self, finish: Finish) -> Result<Ended, GenerationError> {
        self.report();
        let last = self.trainer.step();
        if !due(last, self.job().sample.every_steps) {
            self.picture()?;
        }
        self.save_now()?;
        if let (Some(saver), Finish::Complete) = (&self.saver, &finish) {
            saver.finish_evaluation();
        }
        Ok(Ended::Over(finish))
    }

    /// Waits for the coordinator. There is no step at whose end a flag would be seen by all, so
    /// whoever sees one of its own rests: its peers wait as well, at the same step, and see theirs;
    /// or they were handed more and wait for it in their next step, which breaks then. Either way
    /// the state is State(t) everywhere, and the coordinator, which asked for the rest, hears of it
    /// from everybody. Even a stop is left to it: it has the next generation save the state.
    #[expect(
        clippy::disallowed_methods,
        reason = "the wait has a deadline in real time"
    )]
    fn wait_for_work(&mut self) -> Result<Option<Ended>, GenerationError> {
        let patience = self.job().deadlines.coordinator;
        let step = self.trainer.step();
        tracing::warn!(%step, "all work that was handed out is done; waiting for more");
        let deadline = Instant::now() + patience;
        loop {
            if let Some(reason) = self.abort.reason() {
                return Err(GenerationError::CalledOff(reason.to_owned()));
            }
            let flags = self.tools.orders.flags(self.generation);
            if flags.any() {
                if flags.leaving {
                    // There may be no coordinator, and nobody who stays.
                    self.save_now()?;
                }
                tracing::info!(%step, ?flags, "resting here");
                return Ok(Some(Ended::Resting));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.save_now()?;
                let waited = patience;
                return Err(GenerationError::NoWork { waited, step });
            }
            match self.inbox.await_next(self.generation, left)? {
                Came::Work(epochs) => {
                    if self.work.give(epochs) {
                        return Ok(None);
                    }
                }
                Came::Successor => return Ok(Some(Ended::Superseded)),
                Came::Nothing => {}
            }
        }
    }

    fn record(&mut self, report: &StepReport, waited: Duration, took: Duration) {
        // That of the state which the step started from.
        let epoch = self.plan.locate(Step(report.step.0.saturating_sub(1))).0;
        self.tools.pulse.computed(report.step, report.compute);
        self.measure(report, epoch, waited, took);
        self.history.push(proto::StepRecord {
            step: report.step.0,
            epoch: epoch.0,
            seconds: took.as_secs_f64(),
            reduce_seconds: report.reduce.as_secs_f64(),
            loss_d: report.loss_d,
            loss_g: report.loss_g,
            d_real: report.d_real,
            d_fake: report.d_fake,
            grad_norm_d: report.grad_norm_d,
            grad_norm_g: report.grad_norm_g,
            nonfinite: report.nonfinite,
            compute_seconds: report.compute.as_secs_f64(),
            guard: wire::guarded(&report.verdict),
        });
        self.tell(report);
    }

    /// Logs what the guard had to say: whoever leads, for all.
    fn tell(&self, report: &StepReport) {
        let StepReport {
            step,
            nonfinite,
            verdict,
            ..
        } = report;
        let label = match verdict {
            Verdict::Keep => return,
            Verdict::Warn(_) => GuardVerdict::Warn,
            Verdict::Skip(_) => GuardVerdict::Skip,
            Verdict::RollBack { .. } => GuardVerdict::RollBack,
            Verdict::Stop { .. } => GuardVerdict::Stop,
        };
        metrics::train::guarded(label);
        if self.saver.is_some() {
            tracing::warn!(%step, nonfinite, "the guard: {verdict}");
        } else {
            tracing::debug!(%step, nonfinite, "the guard: {verdict}");
        }
    }

    fn measure(&self, report: &StepReport, epoch: Epoch, waited: Duration, took: Duration) {
        let hosted = self.trainer.replicas().len() as u64;
        let batch = u64::from(self.job().replica_samples());
        metrics::worker::images(hosted * batch);
        metrics::worker::step(waited, StepPhase::Data);
        metrics::worker::step(report.compute, StepPhase::Compute);
        metrics::worker::step(report.reduce, StepPhase::Reduce);
        metrics::worker::step(took, StepPhase::Whole);
        metrics::worker::allreduce(report.reduce, report.sent_bytes);
        metrics::train::reached(report.step, epoch);
        metrics::train::scalars(&metrics::train::Scalars {
            loss_d: report.loss_d,
            loss_g: report.loss_g,
            d_real: report.d_real,
            d_fake: report.d_fake,
            grad_norm_d: report.grad_norm_d,
            grad_norm_g: report.grad_norm_g,
            nonfinite: report.nonfinite,
            diversity: report.diversity,
            rate: self.trainer.rate(),
        });
    }

    /// Tells the coordinator of the state, and of the steps that it doesn't know.
    fn report(&mut self) {
        let step = self.trainer.step();
        if self.saver.is_none() || self.reported == Some(step) {
            return;
        }
        let records = self.history.since(self.told);
        self.told = self.told.max(step);
        self.reported = Some(step);
        self.tools.report(Report::Progress(proto::Progress {
            generation: self.generation.0,
            step: step.0,
            records,
        }));
    }

    /// Checkpoints and draws what is due at this step.
    fn save(&mut self, report: &StepReport) -> Result<(), GenerationError> {
        let (checkpoint, picture) = {
            let job = self.job();
            let is_due = |every| due(report.step, every);
            (
                is_due(job.checkpoint.every_steps),
                is_due(job.sample.every_steps),
            )
        };
        if let Some(saver) = self.saver.as_mut().filter(|_| checkpoint) {
            saver.checkpoint(self.generation, self.trainer.snapshot()?);
        }
        if picture {
            self.picture()?;
        }
        Ok(())
    }

    /// Whoever led before may have died before the checkpoint was on record that was due here.
    fn save_what_is_due(&mut self) -> Result<(), GenerationError> {
        let step = self.trainer.step();
        let is_due = step > Step(0) && due(step, self.job().checkpoint.every_steps);
        let is_lacking = is_due && !self.is_saved(step);
        if let Some(saver) = self.saver.as_mut().filter(|_| is_lacking) {
            saver.last_checkpoint(self.generation, self.trainer.snapshot()?);
        }
        Ok(())
    }

    /// Sees to it that the state is on disk.
    fn save_now(&mut self) -> Result<(), GenerationError> {
        let step = self.trainer.step();
        let is_saved = self.is_saved(step);
        let Some(saver) = &mut self.saver else {
            return Ok(());
        };
        if !is_saved {
            saver.last_checkpoint(self.generation, self.trainer.snapshot()?);
        }
        saver.finish(step).map_err(GenerationError::LastCheckpoint)
    }

    /// Whether the state is on record, or in the hands of the writer.
    fn is_saved(&self, step: Step) -> bool {
        let handed = self.saver.as_ref().and_then(|saver| saver.newest());
        [self.on_record, handed].contains(&Some(step))
    }

    fn picture(&self) -> Result<(), GenerationError> {
        let Some(saver) = &self.saver else {
            return Ok(());
        };
        let job = self.job();
        let columns = job.sample.grid;
        let key = Key::new(Domain::Samples, &[job.job.seed]);
        let count = (columns * columns) as usize;
        let latents = Latents::first(&job.model, key, count).map_err(TrainError::from)?;
        if let Some(mixture) = Mixture::of(&job.data) {
            // The same for all pictures of a job, so that they are comparable.
            let centres: Vec<f32> = mixture
                .centres
                .iter()
                .flatten()
                .map(|&x| x as f32)
                .collect();
            let labels: Vec<u32> = (0..count as u32)
                .map(|i| i % job.model.classes.max(1))
                .collect();
            let points = self.trainer.values(&latents, &labels)?;
            let picture = sample::scatter(&points, sample::extent(&centres));
            saver.picture(self.trainer.step(), picture, 1);
            return Ok(());
        }
        // A row of one label, if the networks are told of labels.
        let labels: Vec<u32> = (0..count as u32)
            .map(|image| image / columns % job.model.classes.max(1))
            .collect();
        let pixels = match job.model.pyramid {
            // Real images of half the side are made finer: the level below is another job.
            true => {
                let by = 2 * job.data.reduce as usize;
                let coarse = self.tools.dataset.first_reduced(count, by)?;
                self.trainer.refine_images(&coarse, &latents, &labels)?
            }
            false => self.trainer.sample_of(&latents, &labels)?,
        };
        let images = Images {
            channels: job.model.channels,
            size: job.model.image_size,
            pixels,
        };
        saver.picture(self.trainer.step(), images, columns);
        Ok(())
    }
}

/// Whether something that happens every `every` steps happens at this one; 0 is never.
fn due(step: Step, every: u64) -> bool {
    every != 0 && step.0.is_multiple_of(every)
}
