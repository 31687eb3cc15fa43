//! What a checkpoint's generator draws: images, points, images of a class, and those of a pyramid.

use super::PictureError;
use crate::model::Latents;
use crate::random::{Domain, Key};
use crate::sample::{self, Images};
use crate::train::{Pyramid, Sampler, TrainError};

/// A row of each label in turn, if the generator is told of labels; or `class` everywhere.
pub(super) fn labels(sampler: &Sampler, class: Option<u32>, count: u32, columns: u32) -> Vec<u32> {
    let classes = sampler.model().classes.max(1);
    let label = |image: u32| class.unwrap_or(image / columns.max(1) % classes);
    (0..count).map(label).collect()
}

/// Draws one sample a label, by generators from the coarsest level to the finest; an ordinary one is
/// alone. Points come as one picture of all.
pub(super) fn draw(levels: Vec<Sampler>, seed: u64, labels: &[u32]) -> Result<Images, TrainError> {
    let plane = levels.last().filter(|finest| finest.model().has_points());
    if let Some(sampler) = plane {
        let key = Key::new(Domain::Samples, &[seed]);
        let latents = Latents::of(sampler.model(), key, labels.len())?;
        let points = sampler.values(&latents, labels)?;
        return Ok(sample::scatter(&points, sample::extent(&points)));
    }
    let pyramid = Pyramid::new(levels)?;
    Ok(Images {
        channels: pyramid.model().channels,
        size: pyramid.model().image_size,
        pixels: pyramid.draw(seed, labels)?,
    })
}

/// Refuses a class that the generator isn't told of.
pub(super) fn check_class(sampler: &Sampler, class: Option<u32>) -> Result<(), PictureError> {
    let model = sampler.model();
    match class {
        Some(_) if !model.is_conditional() => Err(PictureError::Command(
            "--class: this generator is not told of labels (model.conditional)".to_owned(),
        )),
        Some(class) if class >= model.classes => Err(PictureError::Command(format!(
            "--class {class}: the labels are 0 to {}",
            model.classes - 1
        ))),
        _ => Ok(()),
    }
}
