//! The loader: spans in, batches out, ahead of the training thread.
//!
//! One thread reads what was assigned, step by step, and stops when `prefetch` steps are ready.
//! Everything that it shares with its owner is behind one lock, so there is no moment at which
//! assigned work is neither waiting, nor being read, nor ready: "exhausted" is always true when it
//! is said. What a replica's batches hold depends on its spans, the seed and the epoch, not on who
//! else is hosted beside it.

use super::{Batch, DataError, Dataset, Element, Pixels, Shard};
use crate::ids::{Epoch, ReplicaId, Step};
use crate::plan::{Span, order};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a dropped loader waits for its thread to end its last batch.
const END_GRACE: Duration = Duration::from_secs(5);

/// What a loader has to know of the job and of its place in it.
#[derive(Clone, Debug)]
pub struct LoaderSettings {
    /// The job's seed.
    pub seed: u64,
    /// Samples a replica and step, b.
    pub batch: u32,
    /// Steps of an epoch, S, as the plan has it.
    pub steps_per_epoch: u64,
    /// The replicas that this worker hosts.
    pub replicas: Range<u32>,
    /// Training goes on from this state.
    pub start: Step,
    /// How many steps may be ready ahead of time; at least 1.
    pub prefetch: usize,
    /// Whether batches say which samples they are of, and don't bring their bytes.
    pub places: bool,
}

/// What [`Loader::next`] has.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// One batch a replica, in their order.
    Batches(Vec<Batch>),
    /// All that was assigned so far has been handed out.
    Exhausted,
}

/// Batches of the replicas that one worker hosts, in the order of steps.
pub struct Loader {
    shared: Arc<Shared>,
    settings: LoaderSettings,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Notified at every change of the state.
    changed: Condvar,
}

struct State {
    /// Epochs that were assigned and are not read to their end. The first is being read.
    work: VecDeque<(Epoch, Vec<Vec<Span>>)>,
    /// The epoch that has to be assigned next.
    expected: Epoch,
    /// The step that [`Loader::next`] hands out next.
    next: Step,
    ready: VecDeque<Vec<Batch>>,
    /// Why nothing more will come; taken by the first who asks.
    failed: Option<DataError>,
    /// The owner is gone.
    closed: bool,
    /// The thread is gone, or about to be.
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change of the state is one assignment or one push, so a panic leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loader {
    /// Starts the thread. The first epoch to assign is the one that `settings.start` lies in.
    ///
    /// # Errors
    /// [`DataError::Assignment`] when the settings make no step, [`DataError::Io`] when there is no
    /// thread to be had.
    pub fn start(dataset: Arc<Dataset>, settings: LoaderSettings) -> Result<Self, DataError> {
        let start = settings.start.0;
        let Some(epoch) = start.checked_div(settings.steps_per_epoch) else {
            return Err(DataError::Assignment {
                epoch: Epoch(0),
                reason: "an epoch has at least one step".to_owned(),
            });
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                work: VecDeque::new(),
                expected: Epoch(epoch),
                next: settings.start,
                ready: VecDeque::new(),
                failed: None,
                closed: false,
                ended: false,
            }),
            changed: Condvar::new(),
        });
        let reader = Reader {
            dataset,
            settings: settings.clone(),
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new()
            .name("loader".to_owned())
            .spawn(move || reader.run())
            .map_err(super::error::io("start a thread to read it", "the data"))?;
        Ok(Self {
            shared,
            settings,
            thread: Some(thread),
        })
    }

    /// Gives it the spans of one whole epoch for every hosted replica. Epochs come in order,
    /// without a gap; of the first one, the steps before `start` are skipped. Spans that the plan
    /// can't have made are an error, which [`next`](Self::next) returns.
    pub fn assign(&self, epoch: Epoch, mut spans: Vec<(ReplicaId, Vec<Span>)>) {
        spans.sort_by_key(|(replica, _)| *replica);
        let given: Vec<u32> = spans.iter().map(|(replica, _)| replica.0).collect();
        let hosted = self.settings.replicas.clone();

        let mut state = self.shared.lock();
        if epoch != state.expected {
            let reason = format!("the next to be assigned is epoch {}", state.expected);
            state.fail(DataError::Assignment { epoch, reason });
        } else if !hosted.clone().eq(given.iter().copied()) {
            let reason = format!("it has spans for the replicas {given:?}, hosted are {hosted:?}");
            state.fail(DataError::Assignment { epoch, reason });
        } else {
            state.expected = epoch.next();
            let spans = spans.into_iter().map(|(_, spans)| spans).collect();
            state.work.push_back((epoch, spans));
        }
        self.shared.changed.notify_all();
    }

    /// The batches of the next step; waits for them no longer than `deadline`. Returns
    /// [`Next::Exhausted`] at once when everything that was assigned before this call has been
    /// handed out.
    ///
    /// # Errors
    /// What the thread met; after that, [`DataError::Ended`]. [`DataError::Deadline`] when the wait
    /// was too long: the step is not lost then, and may be asked for again.
    pub fn next(&mut self, deadline: Duration) -> Result<Next, DataError> {
        let (mut state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), deadline, |state| {
                let over = state.closed || state.ended || state.work.is_empty();
                state.ready.is_empty() && !over
            })
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(batches) = state.ready.pop_front() {
            state.next = state.next.next();
            self.shared.changed.notify_all();
            return Ok(Next::Batches(batches));
        }
        if state.closed || state.ended {
            return Err(state.failed.take().unwrap_or(DataError::Ended));
        }
        match state.work.front() {
            None => Ok(Next::Exhausted),
            Some((epoch, _)) => Err(DataError::Deadline {
                awaited: format!(
                    "the batches of step {} (epoch {epoch}, replicas {:?})",
                    state.next, self.settings.replicas
                ),
                waited: deadline,
            }),
        }
    }
}

impl Drop for Loader {
    /// Ends the thread, which finishes the sample at hand. Should that hang (a dead disk), the
    /// thread is left to itself after a while: nothing waits for ever.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.changed.notify_all();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, END_GRACE, |state| !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        let ended = state.ended;
        drop(state);
        match self.thread.take() {
            Some(thread) if ended => drop(thread.join()), // a panic was told by its own message
            _ => tracing::warn!("the loader's thread hangs and is left behind"),
        }
    }
}

impl State {
    fn fail(&mut self, error: DataError) {
        self.failed.get_or_insert(error);
        self.closed = true;
    }
}

/// The thread's side.
struct Reader {
    dataset: Arc<Dataset>,
    settings: LoaderSettings,
    shared: Arc<Shared>,
}

/// Says that the thread has ended, however it did.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

impl Reader {
    fn run(self) {
        let _end = End(&self.shared);
        let mut step = self.settings.start;
        while let Some((epoch, spans)) = self.await_work() {
            if let Err(error) = self.epoch(epoch, &spans, &mut step) {
                self.shared.lock().fail(error);
                return;
            }
        }
    }

    /// The next epoch. It stays in the queue, as a sign that it is being read.
    fn await_work(&self) -> Option<(Epoch, Vec<Vec<Span>>)> {
        let idle = |state: &mut State| state.work.is_empty() && !state.closed;
        let state = self
            .shared
            .changed
            .wait_while(self.shared.lock(), idle)
            .unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return None;
        }
        state.work.front().cloned()
    }

    /// Reads one epoch from `step` on, and leaves `step` at its end. Returns early when closed.
    fn epoch(&self, epoch: Epoch, spans: &[Vec<Span>], step: &mut Step) -> Result<(), DataError> {
        let steps = self.settings.steps_per_epoch;
        let done = step.0 % steps;
        let skip = done.saturating_mul(self.settings.batch.into());
        let mut cursors = Vec::with_capacity(spans.len());
        for (replica, spans) in self.settings.replicas.clone().zip(spans) {
            self.check(epoch, ReplicaId(replica), spans)?;
            cursors.push(Cursor {
                epoch,
                replica: ReplicaId(replica),
                skip,
                spans: spans.iter(),
                order: Vec::new().into_iter(),
                shard: None,
            });
        }
        for index in done..steps {
            let mut batches = Vec::with_capacity(cursors.len());
            for cursor in &mut cursors {
                match self.batch(cursor, *step)? {
                    Some(batch) => batches.push(batch),
                    None => return Ok(()),
                }
            }
            let full = |state: &mut State| {
                state.ready.len() >= self.settings.prefetch.max(1) && !state.closed
            };
            let mut state = self
                .shared
                .changed
                .wait_while(self.shared.lock(), full)
                .unwrap_or_else(PoisonError::into_inner);
            if state.closed {
                return Ok(());
            }
            state.ready.push_back(batches);
            *step = step.next();
            if index + 1 == steps {
                state.work.pop_front();
            }
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    /// Refuses spans that are no epoch of this data set: they come over the wire.
    fn check(&self, epoch: Epoch, replica: ReplicaId, spans: &[Span]) -> Result<(), DataError> {
        let wrong = |reason| DataError::Assignment { epoch, reason };
        let shards = &self.dataset.manifest().shards;
        let mut samples = 0u64;
        for span in spans {
            let end = span.start.checked_add(span.len);
            let shard = shards.get(span.shard as usize);
            if !matches!((end, shard), (Some(end), Some(shard)) if end <= shard.samples) {
                return Err(wrong(format!(
                    "replica {replica} is given {span:?}, which the data set doesn't have"
                )));
            }
            samples = samples.saturating_add(span.len);
        }
        let share = self
            .settings
            .steps_per_epoch
            .saturating_mul(self.settings.batch.into());
        if samples != share {
            return Err(wrong(format!(
                "replica {replica} is given {samples} samples, but an epoch takes {share}"
            )));
        }
        Ok(())
    }

    /// The next batch of a replica; `None` when the owner is gone.
    fn batch(&self, cursor: &mut Cursor<'_>, step: Step) -> Result<Option<Batch>, DataError> {
        if self.shared.lock().closed {
            return Ok(None);
        }
        let samples = self.settings.batch as usize;
        let mut pixels = match self.settings.places {
            true => Pixels::Places(Vec::with_capacity(samples)),
            false => match self.dataset.element() {
                Element::Byte => {
                    Pixels::Bytes(Vec::with_capacity(samples * self.dataset.sample_bytes()))
                }
                Element::Float => Pixels::Numbers(Vec::with_capacity(
                    samples * self.dataset.sample_bytes() / 4,
                )),
            },
        };
        let mut labels = Vec::new();
        for _ in 0..samples {
            let index = cursor.next(&self.settings, &self.dataset)?;
            let shard = cursor.shard.as_ref().map(|(shard, _)| shard);
            let Some(sample) = index.and_then(|index| shard?.sample(index)) else {
                return Err(DataError::Assignment {
                    epoch: cursor.epoch,
                    reason: format!("replica {} runs out of samples", cursor.replica),
                });
            };
            match (&mut pixels, index, &cursor.shard) {
                (Pixels::Places(places), Some(index), Some((_, first))) => {
                    places.push((first + index).cast_signed());
                }
                (Pixels::Bytes(bytes), ..) => bytes.extend_from_slice(sample.pixels),
                (Pixels::Numbers(numbers), ..) => {
                    let (values, _) = sample.pixels.as_chunks();
                    numbers.extend(values.iter().map(|&value| f32::from_le_bytes(value)));
                }
                // A sample was found, so there is an index and a shard.
                (Pixels::Places(_), ..) => {}
            }
            labels.extend(sample.label);
        }
        Ok(Some(Batch {
            step,
            epoch: cursor.epoch,
            replica: cursor.replica,
            pixels,
            labels: self.dataset.manifest().labels.then_some(labels),
        }))
    }
}

/// One replica's place in its spans of an epoch.
struct Cursor<'a> {
    epoch: Epoch,
    replica: ReplicaId,
    /// Samples to pass over before the first that is used.
    skip: u64,
    spans: std::slice::Iter<'a, Span>,
    /// What is left of the span at hand, and its shard.
    order: std::vec::IntoIter<u64>,
    /// And the place of its first sample in the data set.
    shard: Option<(Arc<Shard>, u64)>,
}

impl Cursor<'_> {
    /// The next sample's index in `self.shard`; `None` after the last. Spans that are passed over
    /// are not opened.
    fn next(
        &mut self,
        settings: &LoaderSettings,
        dataset: &Dataset,
    ) -> Result<Option<u64>, DataError> {
        loop {
            if let Some(index) = self.order.next() {
                return Ok(Some(index));
            }
            let Some(&span) = self.spans.next() else {
                return Ok(None);
            };
            if self.skip >= span.len {
                self.skip -= span.len;
                continue;
            }
            let before = &dataset.manifest().shards[..span.shard as usize];
            let first = before.iter().map(|shard| shard.samples).sum();
            self.shard = Some((dataset.shard(span.shard)?, first));
            let mut samples = order(settings.seed, self.epoch, span);
            samples.drain(..self.skip as usize);
            self.skip = 0;
            self.order = samples.into_iter();
        }
    }
}
