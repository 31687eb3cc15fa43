//! From any image to a square of `model.image_size` with `model.channels` channels, as bytes
//! `[channels, size, size]`.
//!
//! The arithmetic is chosen so that every machine makes the same bytes: integers for grey and for
//! transparency, and a triangle filter (bilinear, widened when it scales down; what torchvision's
//! `Resize` does) for scaling, which needs no transcendental function. Orientation tags of
//! cameras are not applied, as in torchvision. Transparent pixels are laid on black.

use super::error::DataError;
use super::jpeg;
use super::manifest::Shape;
use crate::config::Fit;
use image::imageops::{self, FilterType};
use image::{DynamicImage, GrayImage, ImageBuffer, ImageReader, Pixel, RgbImage};
use std::path::Path;

/// An image more elongated than this is refused with `Fit::Cover`: all but a sliver of it would be
/// cropped, after being scaled at great cost.
const MAX_ASPECT: u32 = 64;

/// Reads and fits one PNG or JPEG.
pub(super) fn read(path: &Path, shape: &Shape) -> Result<Vec<u8>, DataError> {
    let refuse = |reason: String| DataError::Image {
        image: path.display().to_string(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|error| refuse(format!("can't be read ({error})")))?;
    let image = ImageReader::new(std::io::Cursor::new(&bytes))
        .with_guessed_format()
        .map_err(|error| refuse(format!("can't be read ({error})")))?
        .decode()
        .map_err(|error| refuse(format!("can't be decoded ({error})")))?;
    // After decoding, which limits the size, for the walk remembers something of each block. The
    // decoder takes much for a JPEG that is none, and fills gaps with grey; PNG has checksums.
    if bytes.starts_with(&[0xff, 0xd8]) {
        jpeg::check(&bytes).map_err(refuse)?;
    }
    let image = on_black(image);
    let name = || path.display().to_string();
    if shape.channels == 1 {
        Ok(planes(&square(grey(&image), shape, name)?))
    } else {
        Ok(planes(&square(image, shape, name)?))
    }
}

/// Fits a grey image that is already decoded; `name` names it in errors.
pub(super) fn fit_grey(
    (columns, rows): (u32, u32),
    pixels: &[u8],
    shape: &Shape,
    name: impl Fn() -> String,
) -> Result<Vec<u8>, DataError> {
    let image = GrayImage::from_raw(columns, rows, pixels.to_vec()).ok_or_else(|| {
        let reason = format!("{} bytes for {columns}×{rows} pixels", pixels.len());
        DataError::Image {
            image: name(),
            reason,
        }
    })?;
    Ok(square(image, shape, name)?
        .into_raw()
        .repeat(shape.channels as usize))
}

fn on_black(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    let mut flat = RgbImage::new(image.width(), image.height());
    for (to, from) in flat.pixels_mut().zip(image.pixels()) {
        let [r, g, b, alpha] = from.0;
        to.0 = [r, g, b].map(|c| ((u16::from(c) * u16::from(alpha) + 127) / 255) as u8);
    }
    flat
}

/// ITU-R 601 luma in 16-bit fixed point, as Pillow has it. A grey pixel keeps its value.
fn grey(image: &RgbImage) -> GrayImage {
    let mut flat = GrayImage::new(image.width(), image.height());
    for (to, from) in flat.pixels_mut().zip(image.pixels()) {
        let [r, g, b] = from.0.map(u32::from);
        to.0 = [((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u8];
    }
    flat
}

type Image<P> = ImageBuffer<P, Vec<u8>>;

fn square<P: Pixel<Subpixel = u8> + 'static>(
    image: Image<P>,
    shape: &Shape,
    name: impl Fn() -> String,
) -> Result<Image<P>, DataError> {
    let size = shape.size;
    let (width, height) = image.dimensions();
    if (width, height) == (size, size) {
        return Ok(image);
    }
    match shape.fit {
        Fit::Pad if width > size || height > size => Err(DataError::TooLarge {
            image: name(),
            width,
            height,
            size,
        }),
        Fit::Pad => {
            let mut padded = Image::new(size, size);
            let (left, top) = ((size - width) / 2, (size - height) / 2);
            imageops::replace(&mut padded, &image, left.into(), top.into());
            Ok(padded)
        }
        Fit::Cover => {
            let (short, long) = (width.min(height), width.max(height));
            if short == 0 || long / short >= MAX_ASPECT {
                return Err(DataError::Image {
                    image: name(),
                    reason: format!(
                        "{width}×{height} pixels are too elongated for data.fit = \"cover\" \
                         (more than {MAX_ASPECT}:1)"
                    ),
                });
            }
            let scaled = |side: u32| (u64::from(side) * u64::from(size) / u64::from(short)) as u32;
            let (width, height) = (scaled(width), scaled(height));
            let image = imageops::resize(&image, width, height, FilterType::Triangle);
            let (left, top) = ((width - size) / 2, (height - size) / 2);
            Ok(imageops::crop_imm(&image, left, top, size, size).to_image())
        }
    }
}

/// `[height, width, channels]` to `[channels, height, width]`.
fn planes<P: Pixel<Subpixel = u8>>(image: &Image<P>) -> Vec<u8> {
    let channels = usize::from(P::CHANNEL_COUNT);
    let raw = image.as_raw();
    (0..channels)
        .flat_map(|channel| raw.iter().skip(channel).step_by(channels).copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Element;
    use image::{Luma, Rgb};

    fn shape(channels: u32, size: u32, fit: Fit) -> Shape {
        Shape {
            channels,
            size,
            fit,
            element: Element::Byte,
        }
    }

    #[test]
    fn padding_keeps_the_pixels_and_centres_them() {
        let fitted = fit_grey((2, 1), &[7, 9], &shape(3, 4, Fit::Pad), String::new).unwrap();
        let plane = [0, 0, 0, 0, 0, 7, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(fitted, plane.repeat(3));
    }

    #[test]
    fn padding_refuses_a_larger_image_by_name() {
        let name = || "big.png".to_owned();
        let error = fit_grey((5, 2), &[0; 10], &shape(1, 4, Fit::Pad), name).unwrap_err();
        let message = error.to_string();
        for needle in ["big.png", "5×2", "4×4", "cover"] {
            assert!(message.contains(needle), "{message}");
        }
    }

    #[test]
    fn covering_crops_the_centre_of_the_longer_side() {
        // Three 4×4 blocks, side by side or on top of each other: the middle one stays.
        let wide = GrayImage::from_fn(12, 4, |x, _| Luma([[10, 200, 30][x as usize / 4]]));
        let tall = imageops::rotate90(&wide);
        for image in [wide, tall] {
            let fitted = square(image, &shape(1, 4, Fit::Cover), String::new).unwrap();
            assert!(fitted.pixels().all(|p| p.0 == [200]), "{fitted:?}");
        }
        // Scaled up: a 2×6 gradient to 8×8 is flat across and rises along.
        let image = GrayImage::from_fn(2, 6, |_, y| Luma([y as u8 * 40]));
        let fitted = square(image, &shape(1, 8, Fit::Cover), String::new).unwrap();
        assert_eq!(fitted.dimensions(), (8, 8));
        for y in 1..8 {
            assert!(fitted.get_pixel(3, y).0 > fitted.get_pixel(3, y - 1).0);
            assert_eq!(fitted.get_pixel(0, y), fitted.get_pixel(7, y));
        }
    }

    #[test]
    fn slivers_are_refused_and_not_scaled() {
        let image = GrayImage::new(6400, 100);
        assert!(square(image, &shape(1, 32, Fit::Cover), String::new).is_err());
        let image = GrayImage::new(6399, 100);
        assert!(square(image, &shape(1, 32, Fit::Cover), String::new).is_ok());
    }

    #[test]
    fn grey_and_transparency_are_integers() {
        let image = RgbImage::from_fn(256, 1, |x, _| Rgb([x as u8; 3]));
        assert!((0..256).all(|x| grey(&image).get_pixel(x, 0).0 == [x as u8]));
        let mut image = image::RgbaImage::new(2, 1);
        image.get_pixel_mut(0, 0).0 = [255, 100, 0, 128];
        image.get_pixel_mut(1, 0).0 = [255, 100, 0, 0];
        let flat = on_black(DynamicImage::ImageRgba8(image));
        assert_eq!(flat.as_raw(), &[128, 50, 0, 0, 0, 0]);
    }

    #[test]
    fn channels_become_planes() {
        let image = RgbImage::from_raw(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(planes(&image), [1, 4, 2, 5, 3, 6]);
    }
}
