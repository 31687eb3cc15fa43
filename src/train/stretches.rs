//! The stretches of a step that a device goes through without its peers.
//!
//! A stretch is given to the device kernel by kernel; or, after some steps of that, as one graph
//! that was recorded. A graph knows addresses, not values: it is recorded once for each of the two
//! sets of buffers that the state lives in by turns.

use super::TrainError;
use super::figures;
use super::inputs::{Inputs, Rounds, Weights};
use super::layout::part;
use super::pace::Numbers;
use super::pool::Half;
use super::state::PlayerState;
use super::step::Game;
use super::update;
use super::vectors::Vectors;
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
    /// From the inputs of D's update with this number, from 0, to its vectors.
    First(u32),
    /// That update: D's next state and figures.
    Discriminator(u32),
    /// The rest of G's vectors, with the fakes of D's last update.
    Second,
    /// G's vectors for its update with this number, from 1.
    Again(u32),
    /// G's update with this number, from 0: its next state, and the figures.
    Generator(u32),
}

impl Stretch {
    /// In the order in which the device comes to them.
    pub(super) fn order(update: Update, rounds: Rounds) -> Vec<Self> {
        if update == Update::Simultaneous {
            return vec![
                Self::First(0),
                Self::Second,
                Self::Discriminator(0),
                Self::Generator(0),
            ];
        }
        let mut order = Vec::new();
        for number in 0..rounds.discriminator {
            order.extend([Self::First(number), Self::Discriminator(number)]);
        }
        for number in 0..rounds.generator {
            order.push(match number {
                0 => Self::Second,
                _ => Self::Again(number),
            });
            order.push(Self::Generator(number));
        }
        order
    }
}

/// All that the stretches of one step read and write.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) game: Arc<Game>,
    pub(super) replicas: Range<u32>,
    /// One list a replica, as the vectors are, of one a round.
    pub(super) inputs: Vec<Vec<Inputs>>,
    pub(super) vectors: Vec<Vectors>,
    /// D's and G's.
    pub(super) means: [Tensor; 2],
    /// The state that the step starts from: G's and D's.
    pub(super) from: [PlayerState; 2],
    /// The state that it makes, likewise.
    pub(super) to: [PlayerState; 2],
    pub(super) settings: [Adam; 2],
    /// The numbers of G's and of D's updates.
    pub(super) updates: [Vec<Numbers>; 2],
    /// This worker's orders, as they travel.
    pub(super) flags: Tensor,
    pub(super) figures: Tensor,
    kept: Vec<Half>,
}

/// What a [`Work`] is made from, but for the networks.
pub(super) struct Materials {
    pub(super) replicas: Range<u32>,
    pub(super) inputs: Vec<Vec<Inputs>>,
    pub(super) vectors: Vec<Vectors>,
    pub(super) means: [Tensor; 2],
    pub(super) settings: [Adam; 2],
    pub(super) updates: [Vec<Numbers>; 2],
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
            updates,
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
            updates,
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
            inputs: self
                .inputs
                .iter()
                .map(|rounds| rounds.iter().map(Inputs::share).collect())
                .collect(),
            vectors: self.vectors.iter().map(Vectors::share).collect(),
            means: [of_d.shallow_clone(), of_g.shallow_clone()],
            from: players(&self.from),
            to: players(&self.to),
            settings: self.settings,
            updates: share(&self.updates),
            flags: self.flags.shallow_clone(),
            figures: self.figures.shallow_clone(),
            kept: Vec::new(),
        }
    }

    /// Has the device do a stretch, kernel by kernel.
    pub(super) fn run(&mut self, stretch: Stretch) -> Result<(), TrainError> {
        match stretch {
            Stretch::First(number) => self.first(number),
            Stretch::Discriminator(number) => self.discriminator(number),
            Stretch::Second => self.second(),
            Stretch::Again(number) => self.again(number),
            Stretch::Generator(number) => self.generator(number),
        }
    }

    fn first(&mut self, number: u32) -> Result<(), TrainError> {
        let [generator, discriminator] = &self.from;
        let discriminator = match number {
            0 => discriminator,
            _ => &self.to[1],
        };
        let weights = Weights::of(generator, discriminator);
        self.kept.clear();
        let replicas = self.replicas.clone().zip(&self.inputs).zip(&self.vectors);
        for ((replica, inputs), vectors) in replicas {
            let inputs = &inputs[number as usize];
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

    fn discriminator(&mut self, number: u32) -> Result<(), TrainError> {
        let ([_, from], [_, to], [mean, _]) = (&self.from, &mut self.to, &self.means);
        let [_, settings] = self.settings;
        let update = update::Update {
            game: &self.game,
            number,
            now: &self.updates[1][number as usize],
        };
        update.discriminator(from, to, mean, settings)?;
        let layout = &self.game.discriminator_layout;
        figures::write_discriminator(&self.figures, mean, layout, number)?;
        Ok(())
    }

    fn second(&mut self) -> Result<(), TrainError> {
        let [_, discriminator] = &self.to;
        for (replica, half) in self.replicas.clone().zip(self.kept.drain(..)) {
            of(replica, || match half {
                Half::Alternating(fakes) => self.game.deceive(fakes, &discriminator.parameters),
                Half::Simultaneous(answer) => self.game.respond(answer),
            })?;
        }
        self.raise()
    }

    fn again(&mut self, number: u32) -> Result<(), TrainError> {
        let [generator, discriminator] = &self.to;
        let weights = Weights::of(generator, discriminator);
        let round = self.game.rounds.of_generator(number) as usize;
        let replicas = self.replicas.clone().zip(&self.inputs).zip(&self.vectors);
        for ((replica, inputs), vectors) in replicas {
            let vector = vectors.generator.shallow_clone();
            of(replica, || {
                self.game.again(&weights, &inputs[round], vector)
            })?;
        }
        self.raise()
    }

    /// Writes this worker's orders.
    fn raise(&self) -> Result<(), TrainError> {
        for vectors in &self.vectors {
            part(&vectors.generator, &self.game.generator_layout.flags)
                .and_then(|mut place| place.f_copy_(&self.flags))
                .map_err(torch::TorchError::from)?;
        }
        Ok(())
    }

    fn generator(&mut self, number: u32) -> Result<(), TrainError> {
        let ([from, _], [to_g, to_d], [_, mean]) = (&self.from, &mut self.to, &self.means);
        let [settings, _] = self.settings;
        let update = update::Update {
            game: &self.game,
            number,
            now: &self.updates[0][number as usize],
        };
        update.generator(from, [to_g, to_d], mean, settings)?;
        let layout = &self.game.generator_layout;
        figures::write_generator(&self.figures, mean, layout, number)?;
        Ok(())
    }
}

/// The same memory.
pub(super) fn share(updates: &[Vec<Numbers>; 2]) -> [Vec<Numbers>; 2] {
    updates
        .each_ref()
        .map(|updates| updates.iter().map(Numbers::share).collect())
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
    fn record(&mut self, work: Work, order: &[Stretch]) -> Result<Box<dyn Recorded>, TrainError>;
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
}

impl Stretches {
    pub(super) fn new(recorder: Option<Box<dyn Recorder>>) -> Self {
        Self {
            recorder,
            done: [0; 2],
            recorded: [None, None],
        }
    }

    /// Before a step that starts from the buffers of `side`: records its stretches if it is time.
    pub(super) fn prepare(&mut self, side: usize, work: &Work) {
        let Some(recorder) = &mut self.recorder else {
            return;
        };
        if self.recorded[side].is_some() {
            return;
        }
        self.done[side] += 1;
        if self.done[side] <= WARM_UP {
            return;
        }
        match recorder.record(
            work.share(),
            &Stretch::order(work.game.update, work.game.rounds),
        ) {
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
