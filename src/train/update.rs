//! One update of a player: from the mean of all replicas' vectors to its next state.
//!
//! A step's first update of a player makes the next state from the state; further ones go on from
//! what is next already, in its memory. The state stays as it is.

use super::layout::part;
use super::optimizer;
use super::pace::Numbers;
use super::state::PlayerState;
use super::step::Game;
use crate::config::Adam;
use crate::torch::{Measure, TorchError};
use tch::Tensor;

/// What an update has, beside what it works on.
#[derive(Debug)]
pub(super) struct Update<'a> {
    pub(super) game: &'a Game,
    /// Its number among the player's in the step, from 0.
    pub(super) number: u32,
    /// Its numbers as Adam takes them.
    pub(super) now: &'a Numbers,
}

impl Update<'_> {
    /// D's, and what was [seen](optimizer::update) of its gradient.
    pub(super) fn discriminator(
        &self,
        from: &PlayerState,
        to: &mut PlayerState,
        mean: &Tensor,
        settings: Adam,
    ) -> Result<Option<Measure>, TorchError> {
        let game = self.game;
        let from = match self.number {
            0 => from.share(),
            _ => to.share(),
        };
        to.track(&from, &game.looks(mean)?, &game.discriminator)?;
        // With the weights that the looks were with, which Adam replaces now.
        to.iterate(&from, &game.discriminator)?;
        let gradient = part(mean, &game.discriminator_layout.gradients)?;
        optimizer::update(&from, to, &gradient, settings, self.now)
    }

    /// G's, likewise. D's running statistics follow its look at G's fakes.
    pub(super) fn generator(
        &self,
        from: &PlayerState,
        [to, judge]: [&mut PlayerState; 2],
        mean: &Tensor,
        settings: Adam,
    ) -> Result<Option<Measure>, TorchError> {
        let game = self.game;
        let from = match self.number {
            0 => from.share(),
            _ => to.share(),
        };
        let (judged, generated) = game.judgements(mean)?;
        if let Some(judged) = judged {
            let seen = judge.share();
            judge.track(&seen, &[judged], &game.discriminator)?;
        }
        to.track(&from, &[generated], &game.generator)?;
        to.iterate(&from, &game.generator)?;
        let gradient = part(mean, &game.generator_layout.gradients)?;
        optimizer::update(&from, to, &gradient, settings, self.now)
    }
}
