//! Points of a plane as a picture.

use super::{Images, font};

/// Side of a picture of points, pixels.
const SIDE: u32 = 512;

/// Greys of the lines at round numbers, of those through 0, and of the numbers at their ends.
const LINE: u8 = 40;
const AXIS: u8 = 80;
const NUMBER: u8 = 150;

/// The most lines on one side of 0.
const MOST_LINES: f32 = 5.0;

/// Draws points, `[n, 2]`, as white dots of 2×2 pixels on black: one picture, whose middle is 0 and
/// whose sides are `extent` away from it, with grey lines at round numbers. Points beyond the sides
/// are left out, and so are points that are no numbers.
pub fn scatter(points: &[f32], extent: f32) -> Images {
    let side = SIDE as usize;
    let mut pixels = vec![0; side * side];
    let place = |coordinate: f32| {
        let at = (coordinate / extent + 1.0) / 2.0 * SIDE as f32;
        (at >= 0.0 && at < SIDE as f32).then_some(at as usize)
    };
    rule(&mut pixels, extent, place);
    for &[x, y] in points.as_chunks().0 {
        // Pictures are written from the top, and y grows upwards.
        let (Some(column), Some(row)) = (place(x), place(-y)) else {
            continue;
        };
        for row in row..(row + 2).min(side) {
            for column in column..(column + 2).min(side) {
                pixels[row * side + column] = 255;
            }
        }
    }
    Images {
        channels: 1,
        size: SIDE,
        pixels,
    }
}

/// Draws lines at round numbers, and the numbers along the left and the lower side.
fn rule(pixels: &mut [u8], extent: f32, place: impl Fn(f32) -> Option<usize>) {
    let side = SIDE as usize;
    let Some((step, power)) = step(extent) else {
        return;
    };
    let lines = (extent / step).floor() as i32;
    // Those through 0 come last, and so lie above the others.
    let mut order: Vec<i32> = (-lines..=lines).collect();
    order.sort_by_key(|line| *line == 0);
    let places = order
        .iter()
        .filter_map(|&line| Some((line, place(line as f32 * step)?)));
    let places: Vec<(i32, usize)> = places.collect();
    for &(line, at) in &places {
        let grey = if line == 0 { AXIS } else { LINE };
        for along in 0..side {
            pixels[along * side + at] = grey;
            // The lower of the middle two rows is 0's, as the right one of the columns is.
            pixels[at * side + along] = grey;
        }
    }
    let mut write = |text: &str, left: usize, top: usize| {
        for (x, y) in font::dots(text) {
            let (column, row) = (left + x as usize, top + y as usize);
            if column < side && row < side {
                pixels[row * side + column] = NUMBER;
            }
        }
    };
    for (line, at) in places {
        let number = number(line as f32 * step, power);
        write(&number, at + 3, side - font::HEIGHT as usize - 2);
        if line != 0 {
            write(&number, 3, side - at + 2);
        }
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that gives few lines, and that power. None where
/// points are so far away, or so close together, that single precision has no such steps: those of a
/// run that has diverged, or collapsed.
fn step(extent: f32) -> Option<(f32, i32)> {
    let least = extent / MOST_LINES;
    let power = least.log10().floor();
    if !(-30.0..=30.0).contains(&power) {
        return None;
    }
    let power = power as i32;
    let steps = [(1.0, power), (2.0, power), (5.0, power), (1.0, power + 1)];
    let mut steps = steps
        .map(|(digit, power)| (digit * 10f32.powi(power), power))
        .into_iter();
    // Rounding must not make a sixth line of five.
    steps.find(|(step, _)| *step >= 0.999 * least)
}

/// A multiple of a step, short enough to stand between two lines.
fn number(value: f32, power: i32) -> String {
    match power {
        0..=4 => format!("{value:.0}"),
        -4..0 => format!("{value:.*}", power.unsigned_abs() as usize),
        _ => format!("{value:.1e}"),
    }
}

/// An extent that has all of these points, and some room around them.
pub fn extent(points: &[f32]) -> f32 {
    let farthest = points
        .iter()
        .filter(|coordinate| coordinate.is_finite())
        .fold(0f32, |farthest, coordinate| farthest.max(coordinate.abs()));
    if farthest > 0.0 { 1.25 * farthest } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn white(images: &Images) -> Vec<(u32, u32)> {
        let pixels = (0..)
            .zip(&images.pixels)
            .filter(|(_, pixel)| **pixel == 255);
        pixels.map(|(at, _)| (at % SIDE, at / SIDE)).collect()
    }

    #[test]
    fn points_stand_where_they_belong() {
        let images = scatter(&[0.0, 0.0], 2.0);
        assert_eq!(images.count().unwrap(), 1);
        assert_eq!(
            white(&images),
            [(256, 256), (257, 256), (256, 257), (257, 257)]
        );
        // To the right and up.
        let images = scatter(&[1.0, 1.5], 2.0);
        assert_eq!(white(&images)[0], (384, 64));
        let outside = [2.5, 0.0, f32::NAN, 0.0, 0.0, f32::INFINITY];
        assert_eq!(white(&scatter(&outside, 2.0)), []);
    }

    #[test]
    fn lines_stand_at_round_numbers() {
        assert_eq!(step(5.0), Some((1.0, 0)));
        assert_eq!(step(1.25), Some((0.5, -1)));
        assert_eq!(step(0.04), Some((0.01, -2)));
        assert_eq!(step(700.0), Some((200.0, 2)));
        assert_eq!(number(-1.5, -1), "-1.5");
        assert_eq!(number(400.0, 2), "400");
        assert_eq!(number(3.0 * 5e-7, -7), "1.5e-6");
        let images = scatter(&[], 2.0);
        let at = |x: u32, y: u32| images.pixels[(y * SIDE + x) as usize];
        for (column, grey) in [(0, LINE), (128, LINE), (256, AXIS), (384, LINE), (130, 0)] {
            assert_eq!(at(column, 20), grey, "column {column}");
            assert_eq!(at(20, column), if column == 0 { LINE } else { grey });
        }
        assert!(images.pixels.contains(&NUMBER));
        // Small and large ones have lines as well.
        for extent in [1e-6, 1e6] {
            let lines = scatter(&[], extent).pixels[20 * SIDE as usize..][..SIDE as usize]
                .iter()
                .filter(|pixel| **pixel == LINE)
                .count();
            assert!((2..=10).contains(&lines), "{lines}");
        }
    }

    /// Of a run that has diverged, or whose points are one.
    #[test]
    fn points_at_the_end_of_single_precision_are_drawn_without_lines() {
        for far in [f32::MAX, 1e-45] {
            let points = [far, -far];
            let images = scatter(&points, extent(&points));
            assert!(!images.pixels.contains(&AXIS), "{far}");
        }
    }

    #[test]
    fn an_extent_has_room_for_all() {
        assert_eq!(extent(&[1.0, -4.0, f32::NAN]), 5.0);
        assert_eq!(extent(&[]), 1.0);
        let points = [3.0, -4.0, -4.0, 3.9];
        assert_eq!(white(&scatter(&points, extent(&points))).len(), 8);
    }
}
