//! What the vectors hold that travel between workers.
//!
//! A replica contributes one flat `f32` vector a network. The mean over all replicas is the mean
//! gradient, the batch statistics averaged over replicas, the global losses and everybody's flags:
//!
//! ```text
//! discriminator   gradients | statistics of D(real) | of D(fake) | J_D, D(x), D(G(z)), diversity
//! generator       gradients | statistics of G(z) | of D(fake), judged again | J_G | flags
//! ```
//!
//! The flags come last in the vector that is reduced last, so that all workers see them at the same
//! place: after a whole step.

use crate::collective::Flags;
use crate::config::Update;
use crate::model::Architecture;
use std::ops::Range;
use tch::Tensor;

/// D's vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiscriminatorLayout {
    /// ∂J_D/∂θ_D, in the order of the flat parameters.
    pub(super) gradients: Range<usize>,
    /// D's batch statistics on real images.
    pub(super) real: Range<usize>,
    /// D's batch statistics on fakes.
    pub(super) fake: Range<usize>,
    /// J_D.
    pub(super) loss: usize,
    /// Mean D(x).
    pub(super) belief_real: usize,
    /// Mean D(G(z)).
    pub(super) belief_fake: usize,
    /// Standard deviations over the batch, in the mean over pixels, of real images and of fakes;
    /// empty if nobody watches them.
    pub(super) diversity: Range<usize>,
    /// Of the whole vector.
    pub(super) len: usize,
}

/// G's vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GeneratorLayout {
    /// ∂J_G/∂θ_G, in the order of the flat parameters.
    pub(super) gradients: Range<usize>,
    /// G's batch statistics.
    pub(super) generated: Range<usize>,
    /// The updated D's batch statistics on the fakes; empty in a simultaneous update, where no
    /// second D looks at them.
    pub(super) judged: Range<usize>,
    /// J_G.
    pub(super) loss: usize,
    /// The orders.
    pub(super) flags: Range<usize>,
    /// Of the whole vector.
    pub(super) len: usize,
}

impl DiscriminatorLayout {
    pub(super) fn new(discriminator: &Architecture, watches_diversity: bool) -> Self {
        let mut end = 0;
        Self {
            gradients: take(&mut end, discriminator.len()),
            real: take(&mut end, discriminator.statistics),
            fake: take(&mut end, discriminator.statistics),
            loss: take(&mut end, 1).start,
            belief_real: take(&mut end, 1).start,
            belief_fake: take(&mut end, 1).start,
            diversity: take(&mut end, if watches_diversity { 2 } else { 0 }),
            len: end,
        }
    }
}

impl GeneratorLayout {
    pub(super) fn new(
        generator: &Architecture,
        discriminator: &Architecture,
        update: Update,
    ) -> Self {
        let judged = match update {
            Update::Alternating => discriminator.statistics,
            Update::Simultaneous => 0,
        };
        let mut end = 0;
        Self {
            gradients: take(&mut end, generator.len()),
            generated: take(&mut end, generator.statistics),
            judged: take(&mut end, judged),
            loss: take(&mut end, 1).start,
            flags: take(&mut end, Flags::LEN),
            len: end,
        }
    }

    /// Writes this worker's orders.
    pub(super) fn raise(&self, flags: Flags, vector: &mut [f32]) {
        vector[self.flags.clone()].copy_from_slice(&flags.encode());
    }

    /// Reads everybody's orders from the mean.
    pub(super) fn flags(&self, mean: &[f32]) -> Flags {
        let mut share = [0.0; Flags::LEN];
        share.copy_from_slice(&mean[self.flags.clone()]);
        Flags::decode(share)
    }
}

fn take(end: &mut usize, len: usize) -> Range<usize> {
    let start = *end;
    *end += len;
    start..*end
}

/// A part of a vector, sharing its memory.
pub(super) fn part(vector: &Tensor, range: &Range<usize>) -> Result<Tensor, tch::TchError> {
    vector.f_narrow(0, range.start as i64, range.len() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Model;

    #[test]
    fn flags_come_last_and_nothing_overlaps() {
        let model = Model::default();
        let (g, d) = (
            Architecture::generator(&model),
            Architecture::discriminator(&model, 1),
        );
        for update in [Update::Alternating, Update::Simultaneous] {
            let layout = GeneratorLayout::new(&g, &d, update);
            assert_eq!(layout.flags.end, layout.len);
            assert_eq!(layout.gradients, 0..g.len());
            assert_eq!(layout.generated.start, layout.gradients.end);
            assert_eq!(layout.judged.start, layout.generated.end);
            assert_eq!(layout.loss, layout.judged.end);
            assert_eq!(layout.flags.start, layout.loss + 1);
            let mut vector = vec![0.0; layout.len];
            let flags = Flags {
                stop: true,
                ..Flags::default()
            };
            layout.raise(flags, &mut vector);
            assert_eq!(layout.flags(&vector), flags);
        }
        for (watches, scalars) in [(false, 3), (true, 5)] {
            let layout = DiscriminatorLayout::new(&d, watches);
            assert_eq!(layout.real.len() + layout.fake.len(), 2 * d.statistics);
            assert_eq!(layout.len, d.len() + 2 * d.statistics + scalars);
            assert_eq!(layout.diversity.end, layout.len);
        }
    }
}
