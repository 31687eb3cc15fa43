//! Figure 19: arithmetic with latents. Man with glasses - man + woman = woman with glasses, with two
//! properties that can be measured on any image: how bright it is, and how wide what is bright on it.
//! Images are chosen by them, the latents of three are averaged a term, and the sum's image is
//! measured as they were.

use super::{Drawing, FigureError, Picture, Study, Trained};
use crate::random::{Domain, Key};
use crate::sample::geometry::{self, Sign};
use crate::sample::{Images, Sheet};

/// Among how many images the terms are chosen.
const CHOICE: usize = 512;
/// Images a term.
const EACH: usize = 3;

/// What is measured of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measure {
    /// The mean of its pixels, 0 … 255.
    light: f64,
    /// How much farther, as a ratio, its light lies from its middle to the sides than up and down.
    width: f64,
}

fn measure(images: &Images, n: usize) -> Measure {
    let (size, channels) = (images.size as usize, images.channels as usize);
    let pixels = &images.pixels[n * channels * size * size..][..channels * size * size];
    let at = |x: usize, y: usize| -> f64 {
        let value = |channel: usize| f64::from(pixels[(channel * size + y) * size + x]);
        (0..channels).map(value).sum::<f64>() / channels as f64
    };
    let places = || (0..size).flat_map(move |y| (0..size).map(move |x| (x, y)));
    let total: f64 = places().map(|(x, y)| at(x, y)).sum();
    // A black image has no middle, and is as wide as it is high.
    let weight = total.max(1e-9);
    let mean = |of: fn(usize, usize) -> f64| {
        places().map(|(x, y)| at(x, y) * of(x, y)).sum::<f64>() / weight
    };
    let (across, down) = (mean(|x, _| x as f64), mean(|_, y| y as f64));
    let spread = |along: bool| {
        let square = |(x, y): (usize, usize)| {
            let far = if along {
                x as f64 - across
            } else {
                y as f64 - down
            };
            at(x, y) * far * far
        };
        (places().map(square).sum::<f64>() / weight).sqrt()
    };
    Measure {
        light: total / (size * size) as f64,
        width: (spread(true) + 1e-9) / (spread(false) + 1e-9),
    }
}

/// Where `value` stands among `all`, 0 … 1.
fn rank(value: f64, all: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = all.clone().count().max(1) as f64;
    all.filter(|&other| other < value).count() as f64 / count
}

/// The images that have most of two properties: ranks near 1, or near 0 where little is wanted.
fn choose(ranks: &[[f64; 2]], wanted: [bool; 2]) -> Vec<usize> {
    let short = |at: &[f64; 2]| -> f64 {
        let of = |axis: usize| {
            if wanted[axis] {
                1.0 - at[axis]
            } else {
                at[axis]
            }
        };
        // The worse of the two counts.
        of(0).max(of(1))
    };
    let mut order: Vec<usize> = (0..ranks.len()).collect();
    order.sort_by(|&a, &b| {
        short(&ranks[a])
            .total_cmp(&short(&ranks[b]))
            .then(a.cmp(&b))
    });
    order.truncate(EACH);
    order
}

/// Draws it.
pub(super) fn draw(study: &Study, trained: &Trained) -> Result<Drawing, FigureError> {
    /// How far the images around the sum differ from it, in each number of its latent.
    const AROUND: f32 = 0.25;
    let none = || FigureError::Plot("there are no latents to add up".to_owned());
    let latents = trained.latents(study.seed, CHOICE)?;
    let images = trained.paint(&latents)?;
    let measured: Vec<Measure> = (0..CHOICE).map(|n| measure(&images, n)).collect();
    let ranks_of = |of: Measure| {
        [
            rank(of.light, measured.iter().map(|other| other.light)),
            rank(of.width, measured.iter().map(|other| other.width)),
        ]
    };
    let ranks: Vec<[f64; 2]> = measured.iter().map(|&of| ranks_of(of)).collect();
    let terms = [
        (Sign::Plus, "bright wide", [true, true]),
        (Sign::Minus, "dark wide", [false, true]),
        (Sign::Plus, "dark narrow", [false, false]),
    ];
    let (mut chosen, mut means) = (Vec::new(), Vec::new());
    for (sign, _, wanted) in terms {
        let of: Vec<Vec<f32>> = choose(&ranks, wanted)
            .into_iter()
            .map(|n| latents[n].clone())
            .collect();
        let rows: Vec<&[f32]> = of.iter().map(Vec::as_slice).collect();
        means.push((sign, geometry::mean(&rows).ok_or_else(none)?));
        chosen.push(of);
    }
    let signed: Vec<(Sign, &[f32])> = means
        .iter()
        .map(|(sign, of)| (*sign, of.as_slice()))
        .collect();
    let sum = geometry::sum(&signed).ok_or_else(none)?;
    let mut moves = Key::new(Domain::Density, &[study.seed, u64::MAX, 19]).stream();
    let around: Vec<Vec<f32>> = (0..EACH)
        .map(|_| {
            // Uniform in -1 … 1.
            let mut step = || moves.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0;
            sum.iter().map(|z| z + AROUND * step()).collect()
        })
        .collect();
    chosen.push(around);
    // Row by row: three images a term, then the images of their means.
    let mut shown: Vec<Vec<f32>> = Vec::new();
    for row in 0..EACH {
        shown.extend(chosen.iter().map(|column| column[row].clone()));
    }
    shown.extend(means.iter().map(|(_, of)| of.clone()));
    shown.push(sum);
    let drawn = trained.paint(&shown)?;
    let columns = terms.len() + 1;
    let last = ranks_of(measure(&drawn, shown.len() - 1));
    let captions = (0..shown.len()).map(|n| match (n / columns, n % columns) {
        (EACH, 3) => "sum".to_owned(),
        (EACH, _) => "mean".to_owned(),
        (_, 3) => "near it".to_owned(),
        _ => String::new(),
    });
    let mut headers: Vec<String> = terms
        .iter()
        .map(|(sign, name, _)| format!("{} {name}", sign.symbol()))
        .collect();
    headers.push("=".to_owned());
    let sheet = Sheet {
        images: &drawn,
        columns: columns as u32,
        captions: captions.collect(),
        headers,
        breaks: vec![3],
        band: Some(EACH as u32),
        // Room for the headers.
        scale: Some(crate::sample::magnification(drawn.size, 256)),
    };
    let percent = |rank: f64| 100.0 * rank;
    Ok(Drawing {
        picture: Picture::Png(sheet.draw()?),
        findings: vec![format!(
            "bright wide - dark wide + dark narrow: the sum's image is brighter than {:.0} % of {CHOICE} samples of {}, and wider than {:.0} %",
            percent(last[0]),
            trained.says(),
            percent(last[1])
        )],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_measured_by_their_light_and_where_it_lies() {
        let mut pixels = vec![0u8; 3 * 8 * 8];
        // A wide bar, a high bar, nothing.
        for i in 1..7 {
            pixels[4 * 8 + i] = 64;
            pixels[64 + i * 8 + 4] = 128;
        }
        let images = Images {
            channels: 1,
            size: 8,
            pixels,
        };
        let [wide, high, black] = [0, 1, 2].map(|n| measure(&images, n));
        assert_eq!(wide.light, 6.0 * 64.0 / 64.0);
        assert_eq!(high.light, 2.0 * wide.light);
        assert!(wide.width > 1e3 && high.width < 1e-3 && black.width == 1.0);
    }

    #[test]
    fn terms_are_the_images_that_have_both_properties() {
        let ranks = [
            [0.9, 0.9],
            [0.99, 0.5],
            [0.8, 0.1],
            [0.1, 0.95],
            [0.85, 0.85],
            [0.7, 0.7],
        ];
        assert_eq!(choose(&ranks, [true, true]), [0, 4, 5]);
        assert_eq!(choose(&ranks, [true, false])[0], 2);
        assert_eq!(rank(2.0, [1.0, 2.0, 3.0, 0.0].into_iter()), 0.5);
    }
}
