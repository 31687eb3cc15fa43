//! The stretches of a step that a device goes through without its peers.
//!
//! A stretch is given to the device kernel by kernel; or, after some steps of that, as one graph
//! that was recorded. A graph knows addresses, not values: it is recorded once for each of the two
//! sets of buffers that the state lives in by turns.

use super::TrainError;
use super::figures;
use super::layout::part;
use super::optimizer;
use super::pool::Half;
use super::state::PlayerState;
use super::step::{Game, Inputs, Vectors, Weights};
use crate::config::{Adam, Update};
use crate::ids::ReplicaId;
use crate::torch;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use tch::Tensor;

/// A part of a step between reductions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stretch {
    /// From the inputs to D's vectors.
    First,
    /// D's next parameters.
    Discriminator,
    /// The rest of G's vectors.
    Second,
    /// G's next parameters, both running statistics, the figures.
    Generator,
}

impl Stretch {
    /// In the order in which the device comes to them.
    pub(super) fn order(update: Update) -> [Self; 4] {
        match update {
            Update::Alternating => [
                Self::First,
                Self::Discriminator,
                Self::Second,
                Self::Generator,
            ],
            Update::Simultaneous => [
                Self::First,
                Self::Second,
                Self::Discriminator,
                Self::Generator,
            ],
        }
    }
}

/// All that the stretches of one step read and write.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) game: Arc<Game>,
    pub(super) replicas: Range<u32>,
    /// One a replica, as the vectors are.
    pub(super) inputs: Vec<Inputs>,
    pub(super) vectors: Vec<Vectors>,
    /// D's and G's.
    pub(super) means: [Tensor; 2],
    /// The state that the step starts from: G's and D's.
    pub(super) from: [PlayerState; 2],
    /// The state that it makes, likewise.
    pub(super) to: [PlayerState; 2],
    pub(super) settings: [Adam; 2],
    /// The step's number, as Adam takes it.
    pub(super) count: Tensor,
    /// This worker's orders, as they travel.
    pub(super) flags: Tensor,
    pub(super) figures: Tensor,
    kept: Vec<Half>,
}

/// What a [`Work`] is made from, but for the networks.
pub(super) struct Materials {
    pub(super) replicas: Range<u32>,
    pub(super) inputs: Vec<Inputs>,
    pub(super) vectors: Vec<Vectors>,
    pub(super) means: [Tensor; 2],
    pub(super) settings: [Adam; 2],
    pub(super) count: Tensor,
    pub(super) flags: Tensor,
    pub(super) figures: Tensor,
}

impl Work {
    pub(super) fn new(
        game: Arc<Game>,
        materials: Materials,
        from: [PlayerState; 2],
        to: [PlayerState; 2],
    ) -> Self {
        let Materials {
            replicas,
            inputs,
            vectors,
            means,
            settings,
            count,
            flags,
            figures,
        } = materials;
        Self {
            game,
            replicas,
            inputs,
            vectors,
            means,
            from,
            to,
            settings,
            count,
            flags,
            figures,
            kept: Vec::new(),
        }
    }

    /// The same memory.
    pub(super) fn share(&self) -> Self {
        let players = |[g, d]: &[PlayerState; 2]| [g.share(), d.share()];
        let [of_d, of_g] = &self.means;
        Self {
            game: Arc::clone(&self.game),
            replicas: self.replicas.clone(),
            inputs: self.inputs.iter().map(Inputs::share).collect(),
            vectors: self.vectors.iter().map(Vectors::share).collect(),
            means: [of_d.shallow_clone(), of_g.shallow_clone()],
            from: players(&self.from),
            to: players(&self.to),
            settings: self.settings,
            count: self.count.shallow_clone(),
            flags: self.flags.shallow_clone(),
            figures: self.figures.shallow_clone(),
            kept: Vec::new(),
        }
    }

    /// Has the device do a stretch, kernel by kernel.
    pub(super) fn run(&mut self, stretch: Stretch) -> Result<(), TrainError> {
        match stretch {
            Stretch::First => self.first(),
            Stretch::Discriminator => self.discriminator(),
            Stretch::Second => self.second(),
            Stretch::Generator => self.generator(),
        }
    }

    fn first(&mut self) -> Result<(), TrainError> {
        let [generator, discriminator] = &self.from;
        let weights = Weights {
            generator: generator.parameters.shallow_clone(),
            discriminator: discriminator.parameters.shallow_clone(),
        };
        self.kept.clear();
        let replicas = self.replicas.clone().zip(&self.inputs).zip(&self.vectors);
        for ((replica, inputs), vectors) in replicas {
            let vectors = vectors.share();
            let half = of(replica, || match self.game.update {
                Update::Alternating => {
                    let fakes = self.game.discriminate(&weights, inputs, vectors)?;
                    Ok(Half::Alternating(fakes))
                }
                Update::Simultaneous => {
                    let answer = self.game.oppose(&weights, inputs, vectors)?;
                    Ok(Half::Simultaneous(answer))
                }
            })?;
            self.kept.push(half);
        }
        Ok(())
    }

    fn discriminator(&mut self) -> Result<(), TrainError> {
        let ([_, from], [_, to], [mean, _]) = (&self.from, &mut self.to, &self.means);
        let gradients = &self.game.discriminator_layout.gradients;
        let gradient = part(mean, gradients).map_err(torch::TorchError::from)?;
        let [_, settings] = self.settings;
        Ok(optimizer::update(
            from,
            to,
            &gradient,
            settings,
            &self.count,
        )?)
    }

    fn second(&mut self) -> Result<(), TrainError> {
        let [_, discriminator] = &self.to;
        for (replica, half) in self.replicas.clone().zip(self.kept.drain(..)) {
            of(replica, || match half {
                Half::Alternating(fakes) => self.game.deceive(fakes, &discriminator.parameters),
                Half::Simultaneous(answer) => self.game.respond(answer),
            })?;
        }
        for vectors in &self.vectors {
            part(&vectors.generator, &self.game.generator_layout.flags)
                .and_then(|mut place| place.f_copy_(&self.flags))
                .map_err(torch::TorchError::from)?;
        }
        Ok(())
    }

    fn generator(&mut self) -> Result<(), TrainError> {
        let ([from_g, from_d], [to_g, to_d]) = (&self.from, &mut self.to);
        let (d, g) = (&self.game.discriminator_layout, &self.game.generator_layout);
        let [of_d, of_g] = &self.means;
        let gradient = part(of_g, &g.gradients).map_err(torch::TorchError::from)?;
        let [settings, _] = self.settings;
        optimizer::update(from_g, to_g, &gradient, settings, &self.count)?;
        let [looks, generated] = self.game.statistics(of_d, of_g)?;
        to_d.track(from_d, &looks)?;
        to_g.track(from_g, &generated)?;
        figures::write(&mut self.figures, (of_d, d), (of_g, g))?;
        Ok(())
    }
}

/// A replica's mathematics. The functions of tch that panic are an error that names the replica.
fn of<T>(
    replica: u32,
    body: impl FnOnce() -> Result<T, torch::TorchError>,
) -> Result<T, TrainError> {
    torch::catch("compute a step", body).map_err(|source| TrainError::Replica {
        replica: ReplicaId(replica),
        source,
    })
}

/// What records stretches.
pub(super) trait Recorder: Send + fmt::Debug {
    /// Records the stretches in this order. Nothing of it is done on the device, and an error
    /// leaves nothing behind.
    fn record(&mut self, work: Work, order: [Stretch; 4]) -> Result<Box<dyn Recorded>, TrainError>;
}

/// Stretches that were recorded.
pub(super) trait Recorded: Send + fmt::Debug {
    /// Has the device do one again, with what lies now at the addresses of then.
    fn replay(&mut self, stretch: Stretch) -> Result<(), TrainError>;
}

/// Steps that are done kernel by kernel before they are recorded, for each set of buffers: libraries
/// choose their kernels and take their memory meanwhile.
const WARM_UP: u32 = 3;

/// How the stretches of each set of buffers are done.
#[derive(Debug)]
pub(super) struct Stretches {
    /// None: always kernel by kernel.
    recorder: Option<Box<dyn Recorder>>,
    done: [u32; 2],
    recorded: [Option<Box<dyn Recorded>>; 2],
    /// What was recorded has these numbers in it.
    settings: Option<[Adam; 2]>,
}

impl Stretches {
    pub(super) fn new(recorder: Option<Box<dyn Recorder>>) -> Self {
        Self {
            recorder,
            done: [0; 2],
            recorded: [None, None],
            settings: None,
        }
    }

    /// Before a step that starts from the buffers of `side`: records its stretches if it is time.
    pub(super) fn prepare(&mut self, side: usize, work: &Work) {
        let Some(recorder) = &mut self.recorder else {
            return;
        };
        if self.settings.replace(work.settings) != Some(work.settings) {
            // After a rollback the rates are lower.
            self.recorded = [None, None];
        }
        if self.recorded[side].is_some() {
            return;
        }
        self.done[side] += 1;
        if self.done[side] <= WARM_UP {
            return;
        }
        match recorder.record(work.share(), Stretch::order(work.game.update)) {
            Ok(recorded) => self.recorded[side] = Some(recorded),
            Err(error) => {
                tracing::warn!("steps are done kernel by kernel: they can't be recorded: {error}");
                self.recorder = None;
            }
        }
    }

    /// Does a stretch of a step that starts from the buffers of `side`.
    pub(super) fn run(
        &mut self,
        stretch: Stretch,
        side: usize,
        work: &mut Work,
    ) -> Result<(), TrainError> {
        match &mut self.recorded[side] {
            Some(recorded) => recorded.replay(stretch),
            None => work.run(stretch),
        }
    }

    /// Whether the stretches of this set of buffers are recorded.
    #[cfg(test)]
    pub(super) fn is_recorded(&self, side: usize) -> bool {
        self.recorded[side].is_some()
    }
}
