//! Figure 18: what a DCGAN draws.

use super::{Drawing, FigureError, Picture, Study, Trained};
use crate::sample::Sheet;

const COLUMNS: u32 = 12;
const ROWS: u32 = 6;

/// Draws it.
pub(super) fn draw(study: &Study, trained: &Trained) -> Result<Drawing, FigureError> {
    let latents = trained.latents(study.seed, (COLUMNS * ROWS) as usize)?;
    let images = trained.paint(&latents)?;
    let sheet = Sheet {
        images: &images,
        columns: COLUMNS,
        captions: Vec::new(),
        headers: Vec::new(),
        breaks: Vec::new(),
        band: None,
        scale: None,
    };
    Ok(Drawing {
        picture: Picture::Png(sheet.draw()?),
        findings: vec![format!(
            "{} samples of {}, none chosen",
            latents.len(),
            trained.says()
        )],
    })
}
