//! Differentiable augmentation (Zhao et al. 2020, arXiv 2006.10738): what D sees, real or fake, is
//! altered by chance, so that it can't learn a small data set by heart, and G's gradient passes
//! through.
//!
//! All is done with a few numbers an image, so that a device that replays a recorded step only
//! needs those anew: shifting is a product with matrices of zeros and ones, which is exact, and
//! whose gradient is one too. (`tf32` rounds the images in it, as D's first layer would.)

use crate::config::Augmentation;
use crate::random::Stream;
use crate::torch::{TorchError, channels_last, is_channels_last};
use tch::{Device, Kind, Tensor};

/// The part of an image's side by which it is shifted at most.
const SHIFT: f64 = 0.125;

/// The part of an image's side that a cutout's has.
const CUTOUT: f64 = 0.5;

/// Which of them are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Augmentations {
    /// Brightness, saturation and contrast.
    pub color: bool,
    /// Shifts, with grey coming in.
    pub translation: bool,
    /// A grey square.
    pub cutout: bool,
}

impl Augmentations {
    /// Numbers for each image.
    pub const NUMBERS: usize = 7;

    /// Those that the job file names.
    pub fn of(named: &[Augmentation]) -> Self {
        Self {
            color: named.contains(&Augmentation::Color),
            translation: named.contains(&Augmentation::Translation),
            cutout: named.contains(&Augmentation::Cutout),
        }
    }

    /// Whether there are any.
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// The numbers for one image of this side: brightness, saturation, contrast; the shift down and
    /// right; the cutout's centre, down and right. All of them, whichever are on.
    pub fn draw(stream: &mut Stream, side: u32) -> [f32; Self::NUMBERS] {
        let shift = u64::from(whole(side, SHIFT));
        // A square of an even side has one centre more.
        let centres = u64::from(side) + u64::from(whole(side, CUTOUT).is_multiple_of(2));
        let shifted = |stream: &mut Stream| {
            let drawn = stream.below(2 * shift + 1);
            drawn as f32 - shift as f32
        };
        [
            stream.uniform() - 0.5,
            stream.uniform() * 2.0,
            stream.uniform() + 0.5,
            shifted(stream),
            shifted(stream),
            stream.below(centres) as f32,
            stream.below(centres) as f32,
        ]
    }

    /// Alters images by their numbers, in single precision and in their memory order.
    ///
    /// # Shapes
    /// `[n, c, s, s]` and `[n, NUMBERS]` to `[n, c, s, s]`.
    ///
    /// # Errors
    /// [`TorchError`], if shapes don't fit.
    pub fn apply(self, images: &Tensor, numbers: &Tensor) -> Result<Tensor, TorchError> {
        let mut x = images.f_to_kind(Kind::Float)?;
        let number = |index: i64| numbers.f_narrow(1, index, 1)?.f_view([-1, 1, 1, 1]);
        if self.color {
            x = x.f_add(&number(0)?)?;
            x = spread(&x, &[1], &number(1)?)?;
            x = spread(&x, &[1, 2, 3], &number(2)?)?;
        }
        let side = x.size()[2];
        if self.translation {
            let down = shift(&number(3)?, side)?;
            let right = shift(&number(4)?, side)?.f_transpose(2, 3)?;
            x = down.f_matmul(&x)?.f_matmul(&right)?;
        }
        if self.cutout {
            let cut = |index: i64, shape: [i64; 4]| -> Result<Tensor, TorchError> {
                let from_centre = places(side, x.device(), shape)?.f_sub(&number(index)?)?;
                let half = f64::from(whole(side as u32, CUTOUT) / 2);
                let width = f64::from(whole(side as u32, CUTOUT));
                let within = from_centre.f_ge(-half)?;
                Ok(within.f_logical_and(&from_centre.f_lt(width - half)?)?)
            };
            let rows = cut(5, [1, 1, side, 1])?;
            let columns = cut(6, [1, 1, 1, side])?;
            let kept = rows.f_logical_and(&columns)?.f_logical_not()?;
            x = x.f_mul(&kept.f_to_kind(Kind::Float)?)?;
        }
        match is_channels_last(images) {
            true => channels_last(&x),
            false => Ok(x),
        }
    }
}

/// A part of a side, in whole pixels.
fn whole(side: u32, part: f64) -> u32 {
    (f64::from(side) * part + 0.5) as u32
}

/// 0, 1, … `side` - 1
fn places(side: i64, device: Device, shape: [i64; 4]) -> Result<Tensor, TorchError> {
    Ok(Tensor::f_arange(side, (Kind::Float, device))?.f_view(shape)?)
}

/// Scales what differs from the mean over `dimensions`.
fn spread(x: &Tensor, dimensions: &[i64], factor: &Tensor) -> Result<Tensor, TorchError> {
    let mean = x.f_mean_dim(dimensions, true, Kind::Float)?;
    Ok(x.f_sub(&mean)?.f_mul(factor)?.f_add(&mean)?)
}

/// The matrices that shift rows down by so many: `[n, 1, 1, 1]` to `[n, 1, side, side]`.
fn shift(by: &Tensor, side: i64) -> Result<Tensor, TorchError> {
    let to = places(side, by.device(), [1, 1, side, 1])?;
    let from = places(side, by.device(), [1, 1, 1, side])?;
    Ok(from.f_add(by)?.f_eq_tensor(&to)?.f_to_kind(Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Domain, Key};

    fn images() -> Tensor {
        let values: Vec<f32> = (0..2 * 3 * 64).map(|i| (i as f32 * 0.13).sin()).collect();
        Tensor::from_slice(&values).view([2, 3, 8, 8])
    }

    fn numbers(each: [[f32; 7]; 2]) -> Tensor {
        Tensor::from_slice(&each.concat()).view([2, 7])
    }

    const STILL: [f32; 7] = [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0];

    #[test]
    fn nothing_is_done_by_still_numbers() {
        let on = Augmentations {
            color: false,
            translation: true,
            cutout: false,
        };
        let found = on.apply(&images(), &numbers([STILL, STILL])).unwrap();
        assert!(found.equal(&images()));
        let color = Augmentations {
            color: true,
            ..Augmentations::default()
        };
        let found = color.apply(&images(), &numbers([STILL, STILL])).unwrap();
        assert!((found - images()).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn each_image_is_shifted_by_its_own_numbers() {
        let on = Augmentations {
            translation: true,
            ..Augmentations::default()
        };
        let mut second = STILL;
        (second[3], second[4]) = (2.0, -3.0);
        let found = on.apply(&images(), &numbers([STILL, second])).unwrap();
        assert!(found.get(0).equal(&images().get(0)));
        for (y, x) in [(0, 0), (1, 7), (2, 0), (7, 4), (5, 5), (3, 1)] {
            let (from_y, from_x) = (y - 2, x + 3);
            let expected = match (from_y, from_x) {
                (0..8, 0..8) => images().double_value(&[1, 2, from_y, from_x]),
                _ => 0.0,
            };
            assert_eq!(found.double_value(&[1, 2, y, x]), expected, "{y} {x}");
        }
    }

    #[test]
    fn a_cutout_is_a_square_of_half_the_side() {
        let on = Augmentations {
            cutout: true,
            ..Augmentations::default()
        };
        let mut first = STILL;
        (first[5], first[6]) = (3.0, 8.0);
        let found = on.apply(&images(), &numbers([first, STILL])).unwrap();
        for y in 0..8 {
            for x in 0..8 {
                let cut = (1..5).contains(&y) && x >= 6;
                let expected = match cut {
                    true => 0.0,
                    false => images().double_value(&[0, 1, y, x]),
                };
                assert_eq!(found.double_value(&[0, 1, y, x]), expected, "{y} {x}");
                let corner = found.double_value(&[1, 1, y, x]) == 0.0;
                assert_eq!(corner, y < 2 && x < 2);
            }
        }
    }

    #[test]
    fn colours_move_as_their_numbers_say() {
        let on = Augmentations {
            color: true,
            ..Augmentations::default()
        };
        let alter = |numbers: [f32; 7]| {
            on.apply(&images(), &self::numbers([numbers, STILL]))
                .unwrap()
        };
        let mut bright = STILL;
        bright[0] = 0.25;
        let moved = alter(bright) - images();
        assert!((moved.get(0) - 0.25).abs().max().double_value(&[]) < 1e-6);
        assert!(moved.get(1).abs().max().double_value(&[]) < 1e-6);
        // Without saturation all channels are alike; without contrast, all pixels.
        let mut grey = STILL;
        grey[1] = 0.0;
        let apart = alter(grey).get(0).std_dim([0i64].as_slice(), false, false);
        assert!(apart.max().double_value(&[]) < 1e-6);
        let mut even = STILL;
        even[2] = 0.0;
        assert!(alter(even).get(0).std(false).double_value(&[]) < 1e-6);
    }

    /// By each pixel, against differences.
    #[test]
    fn gradients_pass_through() {
        let on = Augmentations {
            color: true,
            translation: true,
            cutout: true,
        };
        let mut stream = Key::new(Domain::Chance, &[1]).stream();
        let numbers = numbers([(); 2].map(|()| Augmentations::draw(&mut stream, 8)));
        let weights: Vec<f32> = (0..2 * 3 * 64).map(|i| (i as f32 * 0.31).cos()).collect();
        let weights = Tensor::from_slice(&weights).view([2, 3, 8, 8]);
        let cost = |x: &Tensor| (on.apply(x, &numbers).unwrap() * &weights).sum(Kind::Double);
        let x = images().set_requires_grad(true);
        cost(&x).backward();
        assert!(x.grad().abs().max().double_value(&[]) > 0.0);
        for place in [0, 77, 200, 383] {
            let nudge = Tensor::zeros([2 * 3 * 64], (Kind::Float, Device::Cpu));
            let _ = nudge.narrow(0, place, 1).fill_(0.5);
            let nudge = nudge.view([2, 3, 8, 8]);
            // It is linear in each pixel.
            let slope = cost(&(images() + &nudge)) - cost(&(images() - &nudge));
            let found = x.grad().view([-1]).double_value(&[place]);
            assert!((slope.double_value(&[]) - found).abs() < 1e-4);
        }
    }

    #[test]
    fn draws_are_within_their_ranges() {
        let mut stream = Key::new(Domain::Chance, &[0]).stream();
        let draws: Vec<_> = (0..2000)
            .map(|_| Augmentations::draw(&mut stream, 32))
            .collect();
        let range = |index: usize| {
            let values = draws.iter().map(|draw| draw[index]);
            let low = values.clone().fold(f32::INFINITY, f32::min);
            (low, values.fold(f32::NEG_INFINITY, f32::max))
        };
        for (index, low, high) in [(0, -0.5, 0.5), (1, 0.0, 2.0), (2, 0.5, 1.5)] {
            let found = range(index);
            assert!(found.0 >= low && found.1 < high);
            assert!(found.0 < low + 0.01 && found.1 > high - 0.01);
        }
        for index in [3, 4] {
            assert_eq!(range(index), (-4.0, 4.0));
        }
        for index in [5, 6] {
            assert_eq!(range(index), (0.0, 32.0));
        }
    }
}
