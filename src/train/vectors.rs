//! A replica's two vectors: how they are filled, and what is read from their means.

use super::inputs::{Inputs, Rounds};
use super::layout::part;
use super::step::Game;
use crate::config::Update;
use crate::model::{Architecture, view};
use crate::torch::TorchError;
use tch::{Kind, Tensor};

/// A replica's two vectors, to be written.
#[derive(Debug)]
pub(super) struct Vectors {
    pub(super) discriminator: Tensor,
    pub(super) generator: Tensor,
}

impl Vectors {
    /// The same memory.
    pub(super) fn share(&self) -> Self {
        Self {
            discriminator: self.discriminator.shallow_clone(),
            generator: self.generator.shallow_clone(),
        }
    }
}

impl Game {
    /// What D's batch norm saw in one of its updates, in the order of the forward passes, from the
    /// mean of D's vectors: real images, fakes; or both together.
    pub(super) fn looks(&self, of_d: &Tensor) -> Result<Vec<Tensor>, TorchError> {
        let d = &self.discriminator_layout;
        let mut looks = vec![part(of_d, &d.real)?];
        if !self.together() {
            looks.push(part(of_d, &d.fake)?);
        }
        Ok(looks)
    }

    /// What both networks' batch norms saw in one of G's updates, from the mean of G's vectors: D the
    /// fakes, if it looked at them once more, and G latents.
    pub(super) fn judgements(&self, of_g: &Tensor) -> Result<(Option<Tensor>, Tensor), TorchError> {
        let g = &self.generator_layout;
        let judged = match self.update {
            Update::Alternating => Some(part(of_g, &g.judged)?),
            Update::Simultaneous => None,
        };
        Ok((judged, part(of_g, &g.generated)?))
    }

    /// How many batches the running statistics of G and of D follow in a step. D's real images of
    /// paired games and those between real and fake are not among them.
    pub(super) fn tracked(&self) -> [i64; 2] {
        let Rounds {
            discriminator,
            generator,
        } = self.rounds;
        let judged = match self.update {
            Update::Alternating => generator,
            Update::Simultaneous => 0,
        };
        let looks = if self.together() { 1 } else { 2 };
        [generator.into(), (looks * discriminator + judged).into()]
    }

    /// The places of the statistics of G(z), D(real) and D(fake), zeroed, as those of a second D's
    /// are: batch norm multiplies what is there by 0, which would keep a NaN.
    ///
    /// All of them, before the first forward pass: between a pass that leaves statistics in a vector
    /// and the end of the backward pass through it, autograd would take a write anywhere in that
    /// vector for a change of the statistics, and refuse.
    pub(super) fn clear(&self, vectors: &Vectors) -> Result<(Tensor, Tensor, Tensor), TorchError> {
        let (d, g) = (&self.discriminator_layout, &self.generator_layout);
        let zeroed = |vector, range| part(vector, range)?.f_zero_();
        let _judged = zeroed(&vectors.generator, &g.judged)?;
        Ok((
            zeroed(&vectors.generator, &g.generated)?,
            zeroed(&vectors.discriminator, &d.real)?,
            zeroed(&vectors.discriminator, &d.fake)?,
        ))
    }

    pub(super) fn write_discriminator(
        &self,
        vector: &Tensor,
        gradients: &[Tensor],
        loss: &Tensor,
        [on_real, on_fake]: [&Tensor; 2],
    ) -> Result<(), TorchError> {
        let to = &self.discriminator_layout;
        write_gradients(&self.discriminator, vector, gradients)?;
        write_scalar(vector, to.loss, loss)?;
        let beliefs = self
            .objective
            .beliefs(&on_real.f_detach()?, &on_fake.f_detach()?)?;
        for (place, belief) in [to.belief_real, to.belief_fake].into_iter().zip(beliefs) {
            write_scalar(vector, place, &belief.f_mean(Kind::Float)?)?;
        }
        Ok(())
    }

    /// How much the samples of each batch, real and fake, differ from each other: a pixel's standard
    /// deviation over the batch, in the mean over channels and pixels. Before augmentation and noise,
    /// which are no merit of G's.
    pub(super) fn write_diversity(
        &self,
        vector: &Tensor,
        inputs: &Inputs,
        fake: &Tensor,
    ) -> Result<(), TorchError> {
        let places = self.discriminator_layout.diversity.clone();
        if places.is_empty() {
            return Ok(());
        }
        let real = self.real(&inputs.pixels)?;
        for (place, images) in places.zip([&real, fake]) {
            let images = images.f_detach()?.f_to_kind(Kind::Float)?;
            let deviation = images.f_std_dim(&[0i64][..], false, false)?;
            write_scalar(vector, place, &deviation.f_mean(Kind::Float)?)?;
        }
        Ok(())
    }

    pub(super) fn write_generator(
        &self,
        vector: &Tensor,
        gradients: &[Tensor],
        loss: &Tensor,
    ) -> Result<(), TorchError> {
        write_gradients(&self.generator, vector, gradients)?;
        write_scalar(vector, self.generator_layout.loss, loss)
    }
}

/// The gradients begin every vector, in the order of the flat parameters.
fn write_gradients(
    architecture: &Architecture,
    vector: &Tensor,
    gradients: &[Tensor],
) -> Result<(), TorchError> {
    for (parameter, gradient) in architecture.parameters.iter().zip(gradients) {
        view(vector, parameter)?.f_copy_(gradient)?;
    }
    Ok(())
}

fn write_scalar(vector: &Tensor, place: usize, value: &Tensor) -> Result<(), TorchError> {
    let value = value.f_detach()?.f_reshape([1])?;
    part(vector, &(place..place + 1))?.f_copy_(&value)?;
    Ok(())
}
