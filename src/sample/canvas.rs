//! A page with images and short texts on it, and the one layout that most pictures have.

use super::{Images, SampleError, font};
use image::{DynamicImage, Rgb, RgbImage};

/// The page.
pub const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
/// What is written on it.
pub const INK: Rgb<u8> = Rgb([40, 40, 40]);

/// Pixels between images on a page.
pub const GAP: u32 = 4;

/// The least side of an image that captions fit under, pixels.
const CAPTIONED: u32 = 64;

/// The most pixels that a page may have.
const MOST: u64 = 1 << 28;

/// How often a pixel of images of side `size` is repeated along a row, so that they are at least
/// `least` pixels wide.
pub fn magnification(size: u32, least: u32) -> u32 {
    least.div_ceil(size.max(1)).max(1)
}

/// A page.
#[derive(Debug)]
pub struct Canvas {
    picture: RgbImage,
}

impl Canvas {
    /// An empty page.
    ///
    /// # Errors
    /// [`SampleError::Images`] if it would be too large.
    pub fn new(width: u32, height: u32) -> Result<Self, SampleError> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 || pixels > MOST {
            return Err(SampleError::Images {
                detail: format!(
                    "a picture of {width} x {height} pixels; expected 1 to 2^28 of them: ask for fewer images or a smaller scale"
                ),
            });
        }
        Ok(Self {
            picture: RgbImage::from_pixel(width, height, PAPER),
        })
    }

    /// Draws image `n` of `images`, each pixel `scale` times as wide and high. What lies outside the
    /// page is left out.
    pub fn image(&mut self, images: &Images, n: u32, [left, top]: [u32; 2], scale: u32) {
        for y in 0..images.size {
            for x in 0..images.size {
                let colour = match images.channels {
                    1 => [images.at(n, 0, x, y); 3],
                    _ => [0, 1, 2].map(|channel| images.at(n, channel, x, y)),
                };
                self.fill([left + x * scale, top + y * scale], [scale; 2], Rgb(colour));
            }
        }
    }

    /// Draws a picture as it is. What lies outside the page is left out.
    pub fn picture(&mut self, picture: &RgbImage, [left, top]: [u32; 2]) {
        image::imageops::replace(&mut self.picture, picture, left.into(), top.into());
    }

    /// Writes `text` with its upper left corner there, in dots of `scale` pixels.
    pub fn text(&mut self, text: &str, [left, top]: [u32; 2], scale: u32) {
        for (x, y) in font::dots(text) {
            self.fill([left + x * scale, top + y * scale], [scale; 2], INK);
        }
    }

    /// Writes `text` in the middle of the `width` pixels from `left` on.
    pub fn centred(&mut self, text: &str, [left, top]: [u32; 2], width: u32, scale: u32) {
        let free = width.saturating_sub(text_width(text, scale));
        self.text(text, [left + free / 2, top], scale);
    }

    /// Fills a rectangle.
    pub fn fill(&mut self, [left, top]: [u32; 2], [width, height]: [u32; 2], colour: Rgb<u8>) {
        let (right, bottom) = (
            left.saturating_add(width).min(self.picture.width()),
            top.saturating_add(height).min(self.picture.height()),
        );
        for y in top..bottom {
            for x in left..right {
                self.picture.put_pixel(x, y, colour);
            }
        }
    }

    /// What was drawn.
    pub fn finish(self) -> DynamicImage {
        self.picture.into()
    }

    /// What was drawn, as a frame of a film.
    pub fn into_frame(self) -> RgbImage {
        self.picture
    }
}

/// Pixels that `text` takes from left to right.
pub fn text_width(text: &str, scale: u32) -> u32 {
    font::width(text).saturating_mul(scale)
}

/// Pixels that a line of text takes from top to bottom, with what separates it from the next.
pub fn text_height(scale: u32) -> u32 {
    (font::HEIGHT + 1) * scale
}

/// Images in rows, with texts.
#[derive(Clone, Debug)]
pub struct Sheet<'a> {
    /// What is shown, row by row.
    pub images: &'a Images,
    /// Images in a row.
    pub columns: u32,
    /// Under each image; as many as there are images, or none.
    pub captions: Vec<String>,
    /// Above each column; as many as there are columns, or none.
    pub headers: Vec<String>,
    /// Columns after which there is more room, as between samples and what they are compared with.
    pub breaks: Vec<u32>,
    /// So many rows belong together: there is more room after each such band.
    pub band: Option<u32>,
    /// How often each pixel of an image is repeated; `None` for images of at least 64 pixels.
    pub scale: Option<u32>,
}

impl Sheet<'_> {
    /// Draws it.
    ///
    /// # Errors
    /// [`SampleError::Images`] if the images are no images or too many.
    pub fn draw(&self) -> Result<DynamicImage, SampleError> {
        let count = self.images.count()?;
        let columns = self.columns.clamp(1, count);
        let scale = self
            .scale
            .unwrap_or_else(|| magnification(self.images.size, CAPTIONED));
        let side = u64::from(self.images.size) * u64::from(scale);
        let side = u32::try_from(side).unwrap_or(u32::MAX);
        let dots = (side / 32).clamp(1, 3);
        let line = text_height(dots);
        let header = if self.headers.is_empty() { 0 } else { line };
        let caption = if self.captions.is_empty() { 0 } else { line };
        let step = side.saturating_add(GAP);
        let row = step.saturating_add(caption);
        let left = |column: u32| {
            let wide = self.breaks.iter().filter(|&&after| after <= column).count() as u32;
            GAP.saturating_add(column.saturating_mul(step))
                .saturating_add(wide * 3 * GAP)
        };
        let top = |row_number: u32| {
            let bands = self.band.map_or(0, |rows| row_number / rows.max(1));
            (GAP + header)
                .saturating_add(row_number.saturating_mul(row))
                .saturating_add(bands.saturating_mul(3 * GAP))
        };
        let height = top((count - 1) / columns).saturating_add(row);
        let mut page = Canvas::new(left(columns - 1).saturating_add(step), height)?;
        for (text, column) in self.headers.iter().zip(0..columns) {
            page.centred(text, [left(column), GAP], side, dots);
        }
        for n in 0..count {
            let place = [left(n % columns), top(n / columns)];
            page.image(self.images, n, place, scale);
            if let Some(text) = self.captions.get(n as usize) {
                let under = [place[0], place[1] + side + dots];
                page.centred(text, under, side, dots);
            }
        }
        Ok(page.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(n: u32, size: u32) -> Images {
        let pixels = (0..n).flat_map(|n| vec![(n * 10 + 5) as u8; (size * size) as usize]);
        Images {
            channels: 1,
            size,
            pixels: pixels.collect(),
        }
    }

    #[test]
    fn a_sheet_has_every_image_where_it_belongs() {
        let images = images(5, 2);
        let sheet = Sheet {
            images: &images,
            columns: 2,
            captions: Vec::new(),
            headers: Vec::new(),
            breaks: vec![1],
            band: Some(2),
            scale: Some(3),
        };
        let page = sheet.draw().unwrap().into_rgb8();
        // Two columns of 6 pixels, 4 between and around, and 12 more after the first; and likewise
        // three rows, with 12 more after two.
        assert_eq!(page.dimensions(), (4 + 6 + 4 + 12 + 6 + 4, 3 * 10 + 12 + 4));
        for n in 0..5u32 {
            let (x, y) = ([4, 26][(n % 2) as usize], [4, 14, 36][(n / 2) as usize]);
            for at in [(x, y), (x + 5, y + 5)] {
                assert_eq!(page[at], Rgb([(n * 10 + 5) as u8; 3]), "image {n}");
            }
            for at in [(x - 1, y), (x + 6, y), (x, y + 6)] {
                assert_eq!(page[at], PAPER, "beside image {n}");
            }
        }
        assert_eq!(page[(26, 36)], PAPER, "there is no sixth");
    }

    #[test]
    fn captions_and_headers_have_room_of_their_own() {
        let images = images(2, 32);
        let plain = Sheet {
            images: &images,
            columns: 2,
            captions: Vec::new(),
            headers: Vec::new(),
            breaks: Vec::new(),
            band: None,
            scale: None,
        };
        let written = Sheet {
            captions: vec!["17".to_owned(), "0.25".to_owned()],
            headers: vec!["a".to_owned(), "b".to_owned()],
            ..plain.clone()
        };
        let (plain, written) = (plain.draw().unwrap(), written.draw().unwrap());
        assert_eq!(plain.width(), 2 * 68 + 4, "32 pixels become 64");
        assert_eq!(written.height(), plain.height() + 2 * text_height(2));
        let inked = |page: &DynamicImage| {
            let page = page.to_rgb8();
            page.pixels().filter(|pixel| **pixel == INK).count()
        };
        assert_eq!(inked(&plain), 0);
        let letters: usize = ["17", "0.25", "a", "b"]
            .iter()
            .map(|text| font::dots(text).count())
            .sum();
        assert_eq!(inked(&written), 4 * letters, "dots of 2 x 2 pixels");
    }

    #[test]
    fn a_page_that_is_too_large_is_refused() {
        assert!(Canvas::new(0, 4).is_err());
        let message = Canvas::new(1 << 20, 1 << 20).unwrap_err().to_string();
        assert!(message.contains("fewer images"), "{message}");
        let images = images(2, 2);
        let sheet = Sheet {
            images: &images,
            columns: 2,
            captions: Vec::new(),
            headers: Vec::new(),
            breaks: Vec::new(),
            band: None,
            scale: Some(u32::MAX),
        };
        assert!(sheet.draw().is_err());
    }
}
