//! PURE. Samples of a mixture in the plane, whose modes can be counted exactly: PacGAN's protocol
//! (Lin et al. 2018, arXiv 1712.04086, section 4.1).

use crate::data::Mixture;

/// Standard deviations from a mode within which a sample is good.
const GOOD: f64 = 3.0;

/// How samples are spread over the modes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    /// Modes with at least one good sample.
    pub(super) modes: u64,
    /// Share of the samples that are good: within three standard deviations of the nearest mode.
    pub(super) high_quality: f64,
}

/// Counts samples.
pub(super) fn spread(mixture: &Mixture, samples: &[[f64; 2]]) -> Spread {
    let mut found = vec![false; mixture.centres.len()];
    let mut good = 0u64;
    for [x, y] in samples {
        let distance = |centre: &[f64; 2]| (x - centre[0]).hypot(y - centre[1]);
        let nearest = mixture
            .centres
            .iter()
            .enumerate()
            .map(|(mode, centre)| (mode, distance(centre)))
            .min_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((mode, distance)) = nearest
            && distance <= GOOD * mixture.deviation
        {
            found[mode] = true;
            good += 1;
        }
    }
    Spread {
        modes: found.into_iter().filter(|&found| found).count() as u64,
        high_quality: if samples.is_empty() {
            0.0
        } else {
            good as f64 / samples.len() as f64
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::tests::{close, normal};

    /// Eight modes on the unit circle.
    fn ring() -> Mixture {
        let at = |mode: u32| f64::from(mode) * std::f64::consts::TAU / 8.0;
        Mixture {
            centres: (0..8)
                .map(|mode| [at(mode).cos(), at(mode).sin()])
                .collect(),
            deviation: 0.01,
        }
    }

    /// Within 3σ of a Gaussian in the plane lie 1 - e^(-9/2) = 98.89 % of it.
    #[test]
    fn the_data_itself_has_every_mode_and_the_share_of_its_gaussians() {
        let mixture = ring();
        let noise = Vec::<Vec<f64>>::try_from(normal(1, &[20_000, 2])).unwrap();
        let at = |(index, noise): (usize, &Vec<f64>)| {
            let centre = mixture.centres[index % mixture.centres.len()];
            [0, 1].map(|axis| centre[axis] + mixture.deviation * noise[axis])
        };
        let samples: Vec<[f64; 2]> = noise.iter().enumerate().map(at).collect();
        let found = spread(&mixture, &samples);
        assert_eq!(found.modes, 8);
        close(found.high_quality, 1.0 - (-4.5f64).exp(), 0.003);
    }

    #[test]
    fn a_mode_needs_one_good_sample_and_what_is_between_modes_is_bad() {
        let points = [[1.0, 0.0], [1.029, 0.0], [1.031, 0.0], [0.0, 0.0]];
        let found = spread(&ring(), &points);
        assert_eq!((found.modes, found.high_quality), (1, 0.5));
        let nothing = spread(&ring(), &[[f64::NAN, 0.0], [9.0, 9.0]]);
        assert_eq!((nothing.modes, nothing.high_quality), (0, 0.0));
        assert_eq!(spread(&ring(), &[]).high_quality, 0.0);
    }
}
