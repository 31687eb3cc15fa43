//! Older states' networks, to which a job can be rolled back. They are part of the state.
//!
//! There are two: the anchor, which has proved sound, and the candidate, which is to follow it. They
//! lie beside the state, on the device; so a job that can be rolled back takes twice the memory for
//! its networks, and its checkpoints are three times as large.

use super::state::{Average, PlayerState, State};
use crate::torch::TorchError;

/// The networks of a state, with all that belongs to them.
#[derive(Debug)]
pub(super) struct Anchor {
    pub(super) generator: PlayerState,
    pub(super) discriminator: PlayerState,
    pub(super) average: Option<Average>,
}

/// Both of a state's.
#[derive(Debug)]
pub(super) struct Anchors {
    /// What a rollback leads to.
    pub(super) anchor: Anchor,
    /// It is the next one, if nothing is found in time.
    pub(super) candidate: Anchor,
}

impl Anchor {
    /// Room for one.
    pub(super) fn room(
        generator: &PlayerState,
        discriminator: &PlayerState,
        average: Option<&Average>,
    ) -> Result<Self, TorchError> {
        Ok(Self {
            generator: generator.room()?,
            discriminator: discriminator.room()?,
            average: average.map(Average::room).transpose()?,
        })
    }

    fn of(
        generator: &PlayerState,
        discriminator: &PlayerState,
        average: Option<&Average>,
    ) -> Result<Self, TorchError> {
        let mut anchor = Self::room(generator, discriminator, average)?;
        anchor.take(generator, discriminator, average)?;
        Ok(anchor)
    }

    fn take(
        &mut self,
        generator: &PlayerState,
        discriminator: &PlayerState,
        average: Option<&Average>,
    ) -> Result<(), TorchError> {
        self.generator.take(generator)?;
        self.discriminator.take(discriminator)?;
        match (&mut self.average, average) {
            (Some(to), Some(from)) => to.take(from),
            _ => Ok(()),
        }
    }
}

impl Anchors {
    /// Those of State(0): itself.
    pub(super) fn initial(state: &State) -> Result<Self, TorchError> {
        let of = || {
            Anchor::of(
                &state.generator,
                &state.discriminator,
                state.average.as_ref(),
            )
        };
        Ok(Self {
            anchor: of()?,
            candidate: of()?,
        })
    }

    /// Room for those of such a state.
    pub(super) fn room(state: &State) -> Result<Self, TorchError> {
        let room = || {
            Anchor::room(
                &state.generator,
                &state.discriminator,
                state.average.as_ref(),
            )
        };
        Ok(Self {
            anchor: room()?,
            candidate: room()?,
        })
    }

    /// The candidate has proved sound; these networks are the next candidate.
    pub(super) fn capture(
        &mut self,
        generator: &PlayerState,
        discriminator: &PlayerState,
        average: Option<&Average>,
    ) -> Result<(), TorchError> {
        std::mem::swap(&mut self.anchor, &mut self.candidate);
        self.candidate.take(generator, discriminator, average)
    }

    /// Sets these networks, and the candidate, to the anchor.
    pub(super) fn roll_back(
        &mut self,
        generator: &mut PlayerState,
        discriminator: &mut PlayerState,
        average: Option<&mut Average>,
    ) -> Result<(), TorchError> {
        let Self { anchor, candidate } = self;
        candidate.take(
            &anchor.generator,
            &anchor.discriminator,
            anchor.average.as_ref(),
        )?;
        generator.take(&anchor.generator)?;
        discriminator.take(&anchor.discriminator)?;
        match (average, &anchor.average) {
            (Some(to), Some(from)) => to.take(from),
            _ => Ok(()),
        }
    }

    pub(super) fn both(&self) -> [&Anchor; 2] {
        [&self.anchor, &self.candidate]
    }

    pub(super) fn both_mut(&mut self) -> [&mut Anchor; 2] {
        [&mut self.anchor, &mut self.candidate]
    }
}
