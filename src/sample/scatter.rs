//! Points of a plane as a picture.

use super::Images;

/// Side of a picture of points, pixels.
const SIDE: u32 = 512;

/// Draws points, `[n, 2]`, as white dots of 2×2 pixels on black: one picture, whose middle is 0 and
/// whose sides are `extent` away from it. Points beyond them are left out, and so are points that are
/// no numbers.
pub fn scatter(points: &[f32], extent: f32) -> Images {
    let side = SIDE as usize;
    let mut pixels = vec![0; side * side];
    let place = |coordinate: f32| {
        let at = (coordinate / extent + 1.0) / 2.0 * SIDE as f32;
        (at >= 0.0 && at < SIDE as f32).then_some(at as usize)
    };
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
    fn an_extent_has_room_for_all() {
        assert_eq!(extent(&[1.0, -4.0, f32::NAN]), 5.0);
        assert_eq!(extent(&[]), 1.0);
        let points = [3.0, -4.0, -4.0, 3.9];
        assert_eq!(white(&scatter(&points, extent(&points))).len(), 8);
    }
}
