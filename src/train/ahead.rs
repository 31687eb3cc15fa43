//! A step whose reductions stay on the device, which always has something to do.
//!
//! The host is one step ahead: it gives the device the first stretch of a step before it knows
//! whether the step before has succeeded, on the state which that would make. Then it settles the
//! step before: once that is known to be good it becomes the state, and what the new step writes
//! next is the older buffers. So State(t) is never overwritten before State(t+1) is known to be
//! good; and if the step before says that all are to rest, the stretch is dropped, on every worker.
//! If the guard skips the step before, or rolls back, the stretch began on what never became the
//! state: it is dropped, and done again on what did, on every worker too.
//!
//! ```text
//! host     first(t+1) | settle(t), commit | rest(t+1) | first(t+2) | settle(t+1), commit | …
//! device   … rest(t) → first(t+1) → rest(t+1) → first(t+2) → …
//! ```

use super::error::Attempt;
use super::feed::Feed;
use super::figures::Figures;
use super::state::PlayerState;
use super::step::Game;
use super::stopwatch::{Part, Stopwatch};
use super::stretches::{Materials, Recorder, Stretch, Stretches, Work, share};
use super::{StepReport, TrainError, Trainer};
use crate::collective::{Collective, CollectiveError, Flags, OnDevice};
use crate::config::Update;
use crate::data::Batch;
use crate::ids::Step;
use crate::model::Player;
use crate::torch::{self, TorchError};
use tch::{Kind, Tensor};

/// What the steps of one set of hosted replicas are done with.
#[derive(Debug)]
pub(super) struct Ahead {
    feed: Feed,
    figures: Figures,
    /// This worker's orders, as they travel.
    flags: Tensor,
    raised: Flags,
    /// One for each set of buffers: two steps are under way for a while.
    watches: [Stopwatch; 2],
    pub(super) stretches: Stretches,
    pending: Option<Pending>,
}

/// A step that all of was given to the device.
#[derive(Debug)]
struct Pending {
    /// The one that it reaches.
    step: Step,
    /// The set of buffers that it starts from.
    side: usize,
    /// What the collective had sent before it.
    sent: u64,
}

impl Ahead {
    pub(super) fn new(
        game: &Game,
        replicas: usize,
        recorder: Option<Box<dyn Recorder>>,
    ) -> Result<Self, TorchError> {
        let device = game.device;
        Ok(Self {
            feed: Feed::new(game, replicas)?,
            figures: Figures::new(device, !game.discriminator_layout.diversity.is_empty())?,
            flags: Tensor::f_zeros([Flags::LEN as i64], (Kind::Float, device))?,
            raised: Flags::default(),
            watches: [Stopwatch::new(device), Stopwatch::new(device)],
            stretches: Stretches::new(recorder),
            pending: None,
        })
    }

    /// The step that is under way reaches this one.
    pub(super) fn pending(&self) -> Option<Step> {
        self.pending.as_ref().map(|pending| pending.step)
    }

    /// Forgets the step that is under way: it never was.
    pub(super) fn discard(&mut self) {
        self.pending = None;
    }

    /// Sets this worker's orders for what the device is given from now on.
    fn raise(&mut self, flags: Flags) -> Result<(), TorchError> {
        if flags != self.raised {
            for (index, value) in (0..).zip(flags.encode()) {
                let _ = self
                    .flags
                    .f_narrow(0, index, 1)?
                    .f_fill_(f64::from(value))?;
            }
            self.raised = flags;
        }
        Ok(())
    }
}

impl Trainer {
    /// One step ahead, and the report of the step before. After an error nothing is under way.
    pub(super) fn advance_on_device(
        &mut self,
        batches: &[Batch],
        collective: &mut dyn Collective,
        flags: Flags,
    ) -> Result<Option<StepReport>, TrainError> {
        let mut ahead = match self.ahead.take() {
            Some(ahead) => ahead,
            None => {
                let recorder = self.recorder();
                Box::new(Ahead::new(&self.game, batches.len(), recorder)?)
            }
        };
        let went = self.step_ahead(&mut ahead, batches, collective, flags);
        if went.is_err() {
            ahead.discard();
        }
        self.ahead = Some(ahead);
        went
    }

    /// Finishes the step that is under way, if one is.
    pub(super) fn settle_on_device(
        &mut self,
        collective: &mut dyn Collective,
    ) -> Result<Option<StepReport>, TrainError> {
        let Some(mut ahead) = self.ahead.take() else {
            return Ok(None);
        };
        let settled = self.settle_pending(&mut ahead, collective);
        ahead.discard();
        self.ahead = Some(ahead);
        settled
    }

    fn step_ahead(
        &mut self,
        ahead: &mut Ahead,
        batches: &[Batch],
        collective: &mut dyn Collective,
        flags: Flags,
    ) -> Result<Option<StepReport>, TrainError> {
        // A trainer may be moved from thread to thread, and the number is a thread's own.
        torch::set_threads(self.job.workers.threads);
        let side = if ahead.pending.is_some() {
            1 - self.side
        } else {
            self.side
        };
        let mut begun = (side, self.first(ahead, side, Some(batches))?);

        let settled = self.settle_pending(ahead, collective)?;
        if let Some(report) = &settled {
            if report.flags.any() || self.halt().is_some() {
                return Ok(settled);
            }
            if !report.verdict.takes_the_step() {
                // What it was begun on never became the state.
                begun = (self.side, self.first(ahead, self.side, None)?);
            }
        }
        let (side, work) = begun;
        self.rest(ahead, work, side, collective, flags)?;
        Ok(settled)
    }

    /// Gives the device the first stretch of a step that starts from the buffers of `side`, on these
    /// batches, or on those that it has.
    fn first(
        &mut self,
        ahead: &mut Ahead,
        side: usize,
        batches: Option<&[Batch]>,
    ) -> Result<Work, TrainError> {
        let mut work = self.work(ahead, side)?;
        ahead.stretches.prepare(side, &work);
        ahead.watches[side].start()?;
        if let Some(batches) = batches {
            ahead.feed.fill(&self.game, batches, self.cache.as_ref())?;
        }
        ahead.stretches.run(Stretch::First(0), side, &mut work)?;
        ahead.watches[side].mark(Part::Compute)?;
        Ok(work)
    }

    /// What a step reads and writes that starts from the buffers of `side`.
    fn work(&mut self, ahead: &Ahead, side: usize) -> Result<Work, TrainError> {
        let state = [&self.state.generator, &self.state.discriminator];
        let next = [&self.next_generator, &self.next_discriminator];
        let (from, to) = if side == self.side {
            (state, next)
        } else {
            (next, state)
        };
        let materials = Materials {
            replicas: self.hosted.replicas.clone(),
            inputs: ahead.feed.inputs()?,
            vectors: self.hosted.vectors(),
            means: [self.discriminator_mean.lend(), self.generator_mean.lend()],
            settings: [Player::Generator, Player::Discriminator]
                .map(|player| self.settings(player)),
            updates: share(&self.pace.updates),
            flags: ahead.flags.shallow_clone(),
            figures: ahead.figures.place(),
        };
        let game = std::sync::Arc::clone(&self.game);
        let [from, to] = [from, to].map(|players| players.map(PlayerState::share));
        Ok(Work::new(game, materials, from, to))
    }

    /// Waits until the step that is under way is over, and makes it the state.
    fn settle_pending(
        &mut self,
        ahead: &mut Ahead,
        collective: &mut dyn Collective,
    ) -> Result<Option<StepReport>, TrainError> {
        let Some(pending) = &ahead.pending else {
            return Ok(None);
        };
        let settled = self.on_device(collective)?.settle();
        settled.map_err(|source| self.failed(source))?;
        let mut report = ahead.figures.read(pending.step)?;
        let watch = &ahead.watches[pending.side];
        report.compute = watch.read(Part::Compute)?;
        report.reduce = watch.read(Part::Reduce)?;
        report.sent_bytes = collective.sent_bytes().saturating_sub(pending.sent);
        self.commit(&mut report)?;
        ahead.pending = None;
        Ok(Some(report))
    }

    /// Gives the device what follows the first stretch: both reductions, beside what can be
    /// computed meanwhile, and both updates, which write the older buffers.
    fn rest(
        &mut self,
        ahead: &mut Ahead,
        mut work: Work,
        side: usize,
        collective: &mut dyn Collective,
        flags: Flags,
    ) -> Result<(), TrainError> {
        let step = self.state.step.next();
        let sent = collective.sent_bytes();
        self.set_pace(step)?;
        ahead.raise(flags)?;
        let [of_d, of_g] = work.means.each_ref().map(Tensor::shallow_clone);
        let (d, g): (Vec<Tensor>, Vec<Tensor>) = work
            .vectors
            .iter()
            .map(|vectors| vectors.share())
            .map(|vectors| (vectors.discriminator, vectors.generator))
            .unzip();
        let rounds = self.game.rounds;

        ahead.watches[side].mark(Part::Other)?;
        if self.game.update == Update::Simultaneous {
            self.start(collective, &d, &of_d)?;
            ahead.stretches.run(Stretch::Second, side, &mut work)?;
            self.start(collective, &g, &of_g)?;
            ahead.watches[side].mark(Part::Compute)?;
            self.join(collective)?;
            ahead.watches[side].mark(Part::Reduce)?;
            let discriminator = Stretch::Discriminator(0);
            ahead.stretches.run(discriminator, side, &mut work)?;
            ahead.watches[side].mark(Part::Compute)?;
            self.join(collective)?;
            ahead.watches[side].mark(Part::Reduce)?;
            ahead
                .stretches
                .run(Stretch::Generator(0), side, &mut work)?;
        } else {
            for stretch in Stretch::order(self.game.update, rounds) {
                let reduced = match stretch {
                    // Done already.
                    Stretch::First(0) => continue,
                    Stretch::First(_) | Stretch::Second | Stretch::Again(_) => None,
                    Stretch::Discriminator(_) => Some((&d, &of_d)),
                    Stretch::Generator(_) => Some((&g, &of_g)),
                };
                if let Some((hosted, mean)) = reduced {
                    self.start(collective, hosted, mean)?;
                    ahead.watches[side].mark(Part::Compute)?;
                    self.join(collective)?;
                    ahead.watches[side].mark(Part::Reduce)?;
                }
                ahead.stretches.run(stretch, side, &mut work)?;
            }
        }
        ahead.watches[side].mark(Part::Compute)?;
        ahead.figures.send()?;
        ahead.pending = Some(Pending { step, side, sent });
        Ok(())
    }

    fn start(
        &self,
        collective: &mut dyn Collective,
        hosted: &[Tensor],
        mean: &Tensor,
    ) -> Result<(), TrainError> {
        let started = self.on_device(collective)?.start(hosted, mean);
        started.map_err(|source| self.failed(source))
    }

    fn join(&self, collective: &mut dyn Collective) -> Result<(), TrainError> {
        let joined = self.on_device(collective)?.join();
        joined.map_err(|source| self.failed(source))
    }

    fn on_device<'a>(
        &self,
        collective: &'a mut dyn Collective,
    ) -> Result<&'a mut dyn OnDevice, TrainError> {
        let step = self.state.step;
        collective
            .on_device()
            .ok_or(TrainError::OtherCollective { step })
    }

    fn failed(&self, source: CollectiveError) -> TrainError {
        TrainError::Collective {
            step: self.state.step,
            attempt: Attempt::Advance,
            source,
        }
    }
}
