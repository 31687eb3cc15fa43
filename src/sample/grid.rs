//! Square images side by side on one picture.

use super::{Format, SampleError, write_picture};
use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage};
use std::path::Path;

/// Black pixels around each image of a file: what torchvision's `make_grid` has.
pub const PADDING: u32 = 2;

/// Square images of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// 1 (grey) or 3 (RGB).
    pub channels: u32,
    /// Their side, pixels.
    pub size: u32,
    /// Their pixels, `[n, channels, size, size]`.
    pub pixels: Vec<u8>,
}

impl Images {
    /// How many there are.
    ///
    /// # Errors
    /// [`SampleError::Images`] if the pixels are no whole number of images.
    pub fn count(&self) -> Result<u32, SampleError> {
        let wrong = |detail: String| SampleError::Images { detail };
        if self.channels != 1 && self.channels != 3 {
            let channels = self.channels;
            return Err(wrong(format!("{channels} channels, expected 1 or 3")));
        }
        if self.size == 0 || self.pixels.is_empty() {
            return Err(wrong("there are no pixels".to_owned()));
        }
        let len = self.pixels.len() as u64;
        let image = u64::from(self.size)
            .checked_mul(u64::from(self.size))
            .and_then(|area| area.checked_mul(u64::from(self.channels)))
            .filter(|&image| len.is_multiple_of(image));
        match image.and_then(|image| u32::try_from(len / image).ok()) {
            Some(count) => Ok(count),
            None => Err(wrong(format!(
                "{len} bytes are no whole number of {} x {0} images of {} channels",
                self.size, self.channels
            ))),
        }
    }

    /// The value of channel `channel` of image `n` at column `x` and row `y`.
    pub(super) fn at(&self, n: u32, channel: u32, x: u32, y: u32) -> u8 {
        let [size, n, channel, x, y] = [self.size, n, channel, x, y].map(|number| number as usize);
        let plane = n * self.channels as usize + channel;
        self.pixels[(plane * size + y) * size + x]
    }
}

/// Puts `images` on a black grid, row by row, `columns` to a row (fewer, if there are fewer
/// images), with `padding` pixels around each. The result is grey for one channel and RGB for
/// three.
///
/// # Errors
/// [`SampleError::Images`] if there are none, or they don't fit on a picture.
pub fn grid(images: &Images, columns: u32, padding: u32) -> Result<DynamicImage, SampleError> {
    let count = images.count()?;
    if columns == 0 {
        return Err(SampleError::Images {
            detail: "0 columns, expected at least 1".to_owned(),
        });
    }
    let columns = columns.min(count);
    let side = |cells: u32| {
        let cell = images.size.checked_add(padding)?;
        cell.checked_mul(cells)?.checked_add(padding)
    };
    let (width, height) = side(columns)
        .zip(side(count.div_ceil(columns)))
        .filter(|&(width, height)| u64::from(width) * u64::from(height) <= 1 << 30)
        .ok_or_else(|| SampleError::Images {
            detail: format!("{count} images don't fit on a picture of 2^30 pixels"),
        })?;

    let cell = images.size + padding;
    let places = (0..count).flat_map(|n| {
        let (left, top) = (n % columns * cell + padding, n / columns * cell + padding);
        let pixels = (0..images.size).flat_map(move |y| (0..images.size).map(move |x| (x, y)));
        pixels.map(move |(x, y)| (n, x, y, left + x, top + y))
    });
    if images.channels == 1 {
        let mut picture = GrayImage::new(width, height);
        for (n, x, y, column, row) in places {
            picture.put_pixel(column, row, Luma([images.at(n, 0, x, y)]));
        }
        Ok(picture.into())
    } else {
        let mut picture = RgbImage::new(width, height);
        for (n, x, y, column, row) in places {
            let colour = [0, 1, 2].map(|channel| images.at(n, channel, x, y));
            picture.put_pixel(column, row, Rgb(colour));
        }
        Ok(picture.into())
    }
}

/// Writes `images` as a grid to the PNG file `path`, whose name ends in `.png` (or `.PNG`).
/// A reader sees the whole picture or the one that was there before.
///
/// # Errors
/// [`SampleError`]; no file is left behind then. Its folder, which is created if it isn't there,
/// stays.
pub fn write_png(path: &Path, images: &Images, columns: u32) -> Result<(), SampleError> {
    Format::expect(path, &[Format::Png])?;
    write_picture(path, &grid(images, columns, PADDING)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// `n` images whose every pixel has another value than its neighbours.
    fn images(n: u32, channels: u32, size: u32) -> Images {
        let pixels = (0..n * channels * size * size).map(|i| (i % 251 + 1) as u8);
        Images {
            channels,
            size,
            pixels: pixels.collect(),
        }
    }

    #[test]
    fn pixels_stand_where_they_belong() {
        let images = images(6, 1, 4);
        let picture = grid(&images, 3, 2).unwrap().into_luma8();
        assert_eq!(picture.dimensions(), (3 * 6 + 2, 2 * 6 + 2));
        let mut drawn = 0;
        for (x, y, pixel) in picture.enumerate_pixels() {
            // Undo the layout in another way than it is done: by remainders of the cell.
            let inside =
                |at: u32| (at >= 2 && (at - 2) % 6 < 4).then(|| ((at - 2) / 6, (at - 2) % 6));
            let expected = match (inside(x), inside(y)) {
                (Some((column, dx)), Some((row, dy))) => {
                    drawn += 1;
                    images.pixels[((row * 3 + column) * 16 + dy * 4 + dx) as usize]
                }
                _ => 0,
            };
            assert_eq!(pixel.0, [expected], "at {x}, {y}");
        }
        assert_eq!(drawn, 6 * 16);
    }

    #[test]
    fn channels_are_red_green_blue() {
        let planes = [10, 20, 30, 40, 50, 60];
        let images = Images {
            channels: 3,
            size: 1,
            pixels: planes.to_vec(),
        };
        let picture = grid(&images, 8, 0).unwrap().into_rgb8();
        assert_eq!(picture.dimensions(), (2, 1));
        assert_eq!(picture.get_pixel(0, 0).0, [10, 20, 30]);
        assert_eq!(picture.get_pixel(1, 0).0, [40, 50, 60]);
    }

    #[test]
    fn a_last_row_may_be_short() {
        let picture = grid(&images(5, 1, 2), 2, 1).unwrap().into_luma8();
        assert_eq!(picture.dimensions(), (2 * 3 + 1, 3 * 3 + 1));
        assert_eq!(picture.get_pixel(1, 7).0, [17], "first pixel of the fifth");
        for (x, y) in [(4, 7), (5, 8)] {
            assert_eq!(picture.get_pixel(x, y).0, [0], "no sixth");
        }
    }

    #[test]
    fn a_file_decodes_to_what_was_drawn() {
        let dir = tempfile::tempdir().unwrap();
        for channels in [1, 3] {
            let path = dir.path().join(format!("samples/{channels}/step-7.png"));
            let images = images(7, channels, 8);
            for _ in 0..2 {
                write_png(&path, &images, 3).unwrap();
            }
            let decoded = image::open(&path).unwrap();
            assert_eq!(decoded, grid(&images, 3, 2).unwrap());
            assert_eq!(decoded.color().channel_count() as u32, channels);
            let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
            assert_eq!(left, 1, "no temporary file stays");
        }
    }

    #[test]
    fn a_failure_leaves_nothing_behind_and_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken.png");
        fs::create_dir(&path).unwrap();
        let message = write_png(&path, &images(1, 1, 2), 1)
            .unwrap_err()
            .to_string();
        assert!(message.contains("taken.png: can't rename"), "{message}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let message = write_png(&path.join("x/../../taken.png/.."), &images(1, 1, 2), 1);
        assert!(message.is_err());
    }

    #[test]
    fn only_a_png_is_written_as_one() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["x.jpg", "x", "x.png.gif", "png", "new/.png", "new/x."] {
            let path = dir.path().join(name);
            let message = write_png(&path, &images(1, 1, 2), 1)
                .unwrap_err()
                .to_string();
            assert!(message.contains(".png"), "{name}: {message}");
            assert!(message.contains(name), "{message}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{name}");
        }
        let path = dir.path().join("new/X.PNG");
        write_png(&path, &images(1, 1, 2), 1).unwrap();
        assert!(path.is_file());
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let refused = |images: &Images, columns| grid(images, columns, 2).unwrap_err().to_string();
        let good = images(4, 3, 4);
        let short = Images {
            pixels: good.pixels[1..].to_vec(),
            ..good.clone()
        };
        assert!(refused(&short, 2).contains("191 bytes"));
        assert!(
            refused(
                &Images {
                    channels: 2,
                    ..good.clone()
                },
                2
            )
            .contains("expected 1 or 3")
        );
        assert!(
            refused(
                &Images {
                    size: u32::MAX,
                    ..good.clone()
                },
                2
            )
            .contains("no whole number")
        );
        assert!(
            refused(
                &Images {
                    pixels: vec![],
                    ..good.clone()
                },
                2
            )
            .contains("no pixels")
        );
        assert!(refused(&good, 0).contains("0 columns"));
        assert!(grid(&good, 2, u32::MAX).is_err());
    }
}
