//! Films: GIF, which everything shows, in 256 colours a frame; and WebP, which keeps all of them.
//!
//! The `image` crate encodes a WebP of one frame. A film is a list of such frames in a container of
//! its own (RIFF; Google's "WebP Container Specification"), which this room writes.

use super::{Format, SampleError, write_whole};
use image::codecs::gif::{GifEncoder, Repeat};
use image::codecs::webp::WebPEncoder;
use image::{Delay, DynamicImage, ExtendedColorType, Frame, RgbImage};
use std::path::Path;
use std::time::Duration;

/// What a film may be written as.
pub const FILMS: &[Format] = &[Format::Gif, Format::WebP];

/// The shortest time that browsers show a GIF's frame for; what is shorter they take as 100 ms.
const SHORTEST: Duration = Duration::from_millis(20);

/// How neuquant looks for 256 colours: 1 … 30, 1 being the most thorough.
const GIF_SPEED: i32 = 10;

/// How long frames are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Each frame but the last. A GIF counts in hundredths of a second.
    pub frame: Duration,
    /// The last one, before the film begins again.
    pub last: Duration,
}

/// Writes `frames` to `path`, a `.gif` or `.webp`, as a film that begins again at its end. All
/// frames must be as large as the first. A reader sees the whole film or what was there before.
/// Returns how many frames there were.
///
/// # Errors
/// [`SampleError`], or what a frame failed with; no file is left behind then.
pub fn write_film<E: From<SampleError>>(
    path: &Path,
    frames: impl IntoIterator<Item = Result<RgbImage, E>>,
    timing: Timing,
) -> Result<usize, E> {
    let mut reel = match Format::expect(path, FILMS)? {
        Format::WebP => Reel::WebP(Vec::new()),
        _ => Reel::Gif(Vec::new()),
    };
    let mut size = None;
    let mut count = 0;
    let mut frames = frames.into_iter().peekable();
    // GIF's frames hang together, so its encoder lives as long as they come.
    let bytes = match &mut reel {
        Reel::Gif(bytes) => {
            let mut encoder = GifEncoder::new_with_speed(&mut *bytes, GIF_SPEED);
            encoder
                .set_repeat(Repeat::Infinite)
                .map_err(encoding(path))?;
            while let Some(frame) = frames.next() {
                let frame = frame?;
                alike(&mut size, &frame)?;
                let shown = timing.of(frames.peek().is_none());
                let delay = Delay::from_saturating_duration(hundredths(shown));
                let frame = DynamicImage::from(frame).into_rgba8();
                encoder
                    .encode_frame(Frame::from_parts(frame, 0, 0, delay))
                    .map_err(encoding(path))?;
                count += 1;
            }
            drop(encoder);
            std::mem::take(bytes)
        }
        Reel::WebP(chunks) => {
            while let Some(frame) = frames.next() {
                let frame = frame?;
                alike(&mut size, &frame)?;
                let shown = timing.of(frames.peek().is_none());
                push_webp_frame(chunks, &frame, shown).map_err(encoding(path))?;
                count += 1;
            }
            webp_container(size.unwrap_or_default(), chunks)
        }
    };
    if count == 0 {
        let detail = "there are no frames".to_owned();
        return Err(SampleError::Frames { detail }.into());
    }
    write_whole(path, &bytes)?;
    Ok(count)
}

enum Reel {
    Gif(Vec<u8>),
    /// The frames' chunks so far.
    WebP(Vec<u8>),
}

impl Timing {
    fn of(&self, last: bool) -> Duration {
        if last { self.last } else { self.frame }
    }
}

fn hundredths(shown: Duration) -> Duration {
    let rounded = (shown.max(SHORTEST).as_millis() + 5) / 10 * 10;
    Duration::from_millis(u64::try_from(rounded).unwrap_or(u64::MAX))
}

fn encoding(path: &Path) -> impl FnOnce(image::ImageError) -> SampleError {
    let path = path.to_owned();
    |source| SampleError::Encode { path, source }
}

/// Films have one size.
fn alike(size: &mut Option<(u32, u32)>, frame: &RgbImage) -> Result<(), SampleError> {
    let (wide, high) = frame.dimensions();
    // 2^14 is WebP's limit, 2^16 GIF's.
    if wide > 1 << 14 || high > 1 << 14 {
        return Err(SampleError::Frames {
            detail: format!("frames of {wide} x {high} pixels; expected at most 16384 a side"),
        });
    }
    let first = *size.get_or_insert((wide, high));
    if first != (wide, high) {
        return Err(SampleError::Frames {
            detail: format!(
                "a frame has {wide} x {high} pixels, the first one {} x {}",
                first.0, first.1
            ),
        });
    }
    Ok(())
}

/// Adds an `ANMF` chunk: a frame that fills the picture and replaces what was there.
fn push_webp_frame(
    chunks: &mut Vec<u8>,
    frame: &RgbImage,
    shown: Duration,
) -> Result<(), image::ImageError> {
    let (wide, high) = frame.dimensions();
    let mut file = Vec::new();
    WebPEncoder::new_lossless(&mut file).encode(frame, wide, high, ExtendedColorType::Rgb8)?;
    // RIFF, length, WEBP; then the one chunk of a lossless picture, padded already.
    let picture = file.get(12..).filter(|chunk| chunk.starts_with(b"VP8L"));
    let picture = picture.ok_or_else(|| {
        image::ImageError::IoError(std::io::Error::other(
            "the encoder has written another kind of WebP than a lossless picture",
        ))
    })?;
    let milliseconds = u32::try_from(shown.as_millis()).unwrap_or(u32::MAX);
    let mut body = Vec::with_capacity(16 + picture.len());
    for number in [0, 0, wide - 1, high - 1, milliseconds.min((1 << 24) - 1)] {
        body.extend(&number.to_le_bytes()[..3]);
    }
    body.push(0b10); // don't blend
    body.extend(picture);
    push_chunk(chunks, b"ANMF", &body);
    Ok(())
}

fn webp_container((wide, high): (u32, u32), frames: &[u8]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    let mut extended = vec![0b10, 0, 0, 0]; // an animation
    for side in [wide, high] {
        extended.extend(&side.saturating_sub(1).to_le_bytes()[..3]);
    }
    push_chunk(&mut body, b"VP8X", &extended);
    push_chunk(&mut body, b"ANIM", &[0; 6]); // over transparent black, for ever
    body.extend(frames);
    let mut file = Vec::with_capacity(body.len() + 8);
    push_chunk(&mut file, b"RIFF", &body);
    file
}

/// A chunk of RIFF: name, length, content, and a zero if the length is odd.
fn push_chunk(out: &mut Vec<u8>, name: &[u8; 4], body: &[u8]) {
    out.extend(name);
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    out.extend(length.to_le_bytes());
    out.extend(body);
    if body.len() % 2 == 1 {
        out.push(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::AnimationDecoder;
    use image::codecs::gif::GifDecoder;
    use image::codecs::webp::WebPDecoder;
    use std::fs;
    use std::io::Cursor;

    /// Frames with few colours, so that a GIF holds them exactly; odd sides, so that chunks are
    /// padded.
    fn frames() -> Vec<RgbImage> {
        let frame = |n: u32| {
            RgbImage::from_fn(19, 7, |x, y| {
                image::Rgb([(x * 13) as u8, (n * 40) as u8, (y / 3 * 90) as u8])
            })
        };
        (0..5).map(frame).collect()
    }

    const TIMING: Timing = Timing {
        frame: Duration::from_millis(66),
        last: Duration::from_millis(1500),
    };

    fn film(name: &str) -> (tempfile::TempDir, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new").join(name);
        let frames = || frames().into_iter().map(Ok::<_, SampleError>);
        assert_eq!(write_film(&path, frames(), TIMING).unwrap(), 5);
        let bytes = fs::read(&path).unwrap();
        write_film(&path, frames(), TIMING).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes, "the same, byte for byte");
        (dir, bytes)
    }

    fn check(decoder: impl AnimationDecoder<'static>, delays: [u32; 2]) {
        let decoded = decoder.into_frames().collect_frames().unwrap();
        assert_eq!(decoded.len(), 5);
        for (n, (found, frame)) in decoded.iter().zip(frames()).enumerate() {
            let pixels = DynamicImage::from(found.buffer().clone()).into_rgb8();
            assert_eq!(pixels, frame, "frame {n}");
            let (ms, per) = found.delay().numer_denom_ms();
            assert_eq!(ms / per, delays[usize::from(n == 4)], "frame {n}");
        }
    }

    #[test]
    fn a_gif_decodes_to_what_was_drawn() {
        let (_dir, bytes) = film("x.gif");
        check(GifDecoder::new(Cursor::new(bytes)).unwrap(), [70, 1500]);
    }

    #[test]
    fn a_webp_decodes_to_what_was_drawn() {
        let (_dir, bytes) = film("x.webp");
        assert_eq!(
            bytes.len(),
            8 + u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize
        );
        check(WebPDecoder::new(Cursor::new(bytes)).unwrap(), [66, 1500]);
    }

    #[test]
    fn what_is_no_film_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["x.gif", "x.webp"] {
            let path = dir.path().join(name);
            let message = |frames: Vec<RgbImage>| {
                let frames = frames.into_iter().map(Ok::<_, SampleError>);
                write_film(&path, frames, TIMING).unwrap_err().to_string()
            };
            assert!(message(Vec::new()).contains("no frames"));
            let message = message(vec![RgbImage::new(2, 2), RgbImage::new(2, 3)]);
            assert!(message.contains("2 x 3"), "{message}");
        }
        let path = dir.path().join("x.png");
        let refused = write_film(
            &path,
            frames().into_iter().map(Ok::<_, SampleError>),
            TIMING,
        );
        assert!(refused.unwrap_err().to_string().contains(".gif or .webp"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
