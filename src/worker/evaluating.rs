//! Scores checkpoints while training goes on, on a thread of the lowest priority.
//!
//! What it finds goes to files, metrics and the coordinator, and never back into the training: no bit
//! of the state depends on whether an evaluation exists. One is computed at a time; one that comes
//! meanwhile is left out, unless it is the job's last.

use super::saving::{About, retain};
use super::training::Report;
use crate::checkpoint::{Store, TensorData};
use crate::config::Score;
use crate::data::Dataset;
use crate::evaluate::{Crew, EvaluateError, Evaluator, Level, Settings};
use crate::ids::{Generation, Step};
use crate::proto;
use crate::telemetry::evaluations::{self, Line, SamplesOf};
use crate::telemetry::metrics;
use crate::torch;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::UnboundedSender;

/// A generator to score, from a checkpoint that is on disk.
pub(super) struct Candidate {
    pub(super) step: Step,
    pub(super) digest: String,
    /// The generation that wrote the checkpoint.
    pub(super) generation: Generation,
    pub(super) samples_of: SamplesOf,
    pub(super) tensors: Vec<TensorData>,
}

/// The thread, and what leads to it.
pub(super) struct Evaluating {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What both sides see.
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    called_off: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    waiting: Option<Candidate>,
    running: Option<Step>,
    /// Nothing more will come.
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a candidate over. While another is being scored it is left out; the `last` one waits.
    pub(super) fn offer(&self, candidate: Candidate, last: bool) {
        let mut state = self.lock();
        if let Some(running) = state.running.filter(|_| !last) {
            tracing::info!(
                step = %candidate.step,
                "not evaluated: the evaluation of step {running} is still under way"
            );
            metrics::evaluate::left_out();
            return;
        }
        state.waiting = Some(candidate);
        self.changed.notify_all();
    }

    /// Checkpoints whose scores are not known yet.
    pub(super) fn undecided(&self) -> Vec<Step> {
        let state = self.lock();
        let waiting = state.waiting.as_ref().map(|candidate| candidate.step);
        waiting.into_iter().chain(state.running).collect()
    }

    /// Waits until all that was handed over is scored; false if it is not by then.
    #[expect(
        clippy::disallowed_methods,
        reason = "the wait has a deadline in real time"
    )]
    fn finish(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        while state.running.is_some() || state.waiting.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (state, _) = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// The next candidate; none once it is over.
    fn next(&self) -> Option<Candidate> {
        let mut state = self.lock();
        state.running = None;
        self.changed.notify_all();
        loop {
            if state.over {
                return None;
            }
            if let Some(candidate) = state.waiting.take() {
                state.running = Some(candidate.step);
                return Some(candidate);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Evaluating {
    /// Starts the thread. It prepares itself when the first candidate comes.
    pub(super) fn start(
        about: Arc<About>,
        dataset: Arc<Dataset>,
        reports: UnboundedSender<Report>,
    ) -> std::io::Result<Self> {
        let job = &about.enrolment.job;
        let crew = Crew::new(job.evaluate.cores as usize);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            called_off: crew.called_off(),
        });
        let scorer = Scorer {
            settings: Settings {
                samples: job.evaluate.samples,
                seed: 0,
                extractor: job.evaluate.extractor.clone(),
                device: tch::Device::Cpu,
                crew,
            },
            store: Store::new(about.enrolment.run_dir.join("checkpoints")),
            run_dir: about.enrolment.run_dir.clone(),
            about,
            dataset,
            reports,
            evaluator: None,
        };
        let thread = std::thread::Builder::new().name("evaluating".to_owned());
        let theirs = Arc::clone(&shared);
        let thread = thread.spawn(move || scorer.run(&theirs))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Waits for what is under way, but not longer than this.
    pub(super) fn finish(&self, patience: Duration) {
        if !self.shared.finish(patience) {
            tracing::warn!(
                "the last evaluation is not over after {}; going without it",
                humantime::format_duration(patience)
            );
        }
    }
}

impl Drop for Evaluating {
    /// Nothing may compute while the process is torn down.
    fn drop(&mut self) {
        self.shared.called_off.store(true, Ordering::Relaxed);
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // If it panicked, the log says so.
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Scorer {
    about: Arc<About>,
    dataset: Arc<Dataset>,
    settings: Settings,
    store: Store,
    run_dir: PathBuf,
    reports: UnboundedSender<Report>,
    evaluator: Option<Evaluator>,
}

impl Scorer {
    fn run(mut self, shared: &Shared) {
        torch::lower_priority();
        while let Some(candidate) = shared.next() {
            let step = candidate.step;
            let scored = torch::catch("evaluate", || self.score(&candidate));
            match scored {
                // The one that was the best before may go.
                Ok(()) => retain(
                    &self.store,
                    &self.about,
                    shared.undecided(),
                    step,
                    candidate.generation,
                ),
                Err(EvaluateError::CalledOff) => return,
                Err(error) => {
                    tracing::error!(%step, "not evaluated: {error}");
                    metrics::evaluate::failed();
                }
            }
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "how long an evaluation takes, and when it was made, is for people"
    )]
    fn score(&mut self, candidate: &Candidate) -> Result<(), EvaluateError> {
        let began = Instant::now();
        let job = &self.about.enrolment.job;
        let evaluator = match self.evaluator.take() {
            Some(evaluator) => evaluator,
            None => {
                let dataset = Arc::clone(&self.dataset);
                let mut told = |what: &str| tracing::info!("evaluation: {what}");
                Evaluator::prepare(job, dataset, &self.settings, &mut told)?
            }
        };
        let evaluator = self.evaluator.insert(evaluator);
        let Candidate {
            step,
            ref digest,
            samples_of,
            ref tensors,
            ..
        } = *candidate;
        let level = Level {
            model: &job.model,
            tensors,
        };
        let evaluation = evaluator.generator(&[level], samples_of, step, digest)?;
        let took = began.elapsed();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let line = Line {
            evaluation,
            unix_seconds: now.unwrap_or_default().as_secs_f64(),
            seconds: took.as_secs_f64(),
        };
        metrics::evaluate::scored(step, &line.evaluation.scores, took);
        let mut told = line.evaluation.summary();
        if let Err(error) = evaluations::append(&self.run_dir, &line) {
            tracing::error!(%step, "{error}");
            metrics::evaluate::failed();
        } else if let Some(best) = job.checkpoint.keep_best
            && let Some(best) = name_best(&self.store, &self.run_dir, best, candidate.generation)
        {
            told = format!("{told}  (best: step {best})");
        }
        tracing::info!(%step, "evaluated in {took:.0?}: {told}");
        let message = proto::Evaluated {
            generation: candidate.generation.0,
            step: step.0,
            summary: told,
        };
        let _ = self.reports.send(Report::Evaluated(message));
        Ok(())
    }
}

/// The best checkpoint that is there, by what `evaluations.jsonl` says.
pub(super) fn best(store: &Store, run_dir: &std::path::Path, score: Score) -> Option<Step> {
    let lines = evaluations::read(run_dir)
        .map_err(|error| tracing::warn!("{error}; no checkpoint is known to be the best"))
        .ok()?;
    let is_there = |step, digest: &str| {
        crate::checkpoint::read_manifest(&store.path(step))
            .is_ok_and(|manifest| manifest.digest == digest)
    };
    let best = evaluations::best(&lines, score, is_there)?;
    Some(best.evaluation.step)
}

/// Has `checkpoints/best` lead to it, and says which it is.
pub(super) fn name_best(
    store: &Store,
    run_dir: &std::path::Path,
    score: Score,
    generation: Generation,
) -> Option<Step> {
    let step = best(store, run_dir, score)?;
    if let Err(error) = store.name_best(step, generation) {
        tracing::warn!("checkpoints/best is not renewed: {error}");
    }
    metrics::evaluate::best(step);
    Some(step)
}
