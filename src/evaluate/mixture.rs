//! PURE. Mixtures of Gaussians in the plane, whose modes can be counted exactly: PacGAN's protocol
//! (Lin et al. 2018, arXiv 1712.04086, section 4.1).

/// Standard deviations from a mode within which a sample is good.
const GOOD: f64 = 3.0;

/// Modes of one spread.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// Where they are.
    pub centres: Vec<[f64; 2]>,
    /// Standard deviation of each, in both directions.
    pub deviation: f64,
}

/// How samples are spread over the modes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Modes with at least one good sample.
    pub modes: u64,
    /// Share of the samples that are good: within three standard deviations of the nearest mode.
    pub high_quality: f64,
}

impl Mixture {
    /// Eight modes on the unit circle, σ = 0.01.
    pub fn ring() -> Self {
        let at = |mode: u32| f64::from(mode) * std::f64::consts::TAU / 8.0;
        Self {
            centres: (0..8)
                .map(|mode| [at(mode).cos(), at(mode).sin()])
                .collect(),
            deviation: 0.01,
        }
    }

    /// 25 modes from -4 to 4 in steps of 2 either way, σ = 0.05.
    pub fn grid() -> Self {
        let places = || (-2..=2).map(|place| 2.0 * f64::from(place));
        Self {
            centres: places()
                .flat_map(|x| places().map(move |y| [x, y]))
                .collect(),
            deviation: 0.05,
        }
    }

    /// Counts samples.
    pub fn spread(&self, samples: &[[f64; 2]]) -> Spread {
        let mut found = vec![false; self.centres.len()];
        let mut good = 0u64;
        for [x, y] in samples {
            let distance = |centre: &[f64; 2]| (x - centre[0]).hypot(y - centre[1]);
            let nearest = self
                .centres
                .iter()
                .enumerate()
                .map(|(mode, centre)| (mode, distance(centre)))
                .min_by(|a, b| a.1.total_cmp(&b.1));
            if let Some((mode, distance)) = nearest
                && distance <= GOOD * self.deviation
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::tests::{close, normal};

    #[test]
    fn the_modes_are_pacgans() {
        let (ring, grid) = (Mixture::ring(), Mixture::grid());
        assert_eq!((ring.centres.len(), grid.centres.len()), (8, 25));
        for [x, y] in ring.centres {
            close(x.hypot(y), 1.0, 1e-12);
        }
        assert_eq!(grid.centres[0], [-4.0, -4.0]);
        assert_eq!(grid.centres[24], [4.0, 4.0]);
    }

    /// Within 3σ of a Gaussian in the plane lie 1 - e^(-9/2) = 98.89 % of it.
    #[test]
    fn the_data_itself_has_every_mode_and_the_share_of_its_gaussians() {
        for mixture in [Mixture::ring(), Mixture::grid()] {
            let noise = Vec::<Vec<f64>>::try_from(normal(1, &[20_000, 2])).unwrap();
            let at = |(index, noise): (usize, &Vec<f64>)| {
                let centre = mixture.centres[index % mixture.centres.len()];
                [0, 1].map(|axis| centre[axis] + mixture.deviation * noise[axis])
            };
            let samples: Vec<[f64; 2]> = noise.iter().enumerate().map(at).collect();
            let spread = mixture.spread(&samples);
            assert_eq!(spread.modes, mixture.centres.len() as u64);
            close(spread.high_quality, 1.0 - (-4.5f64).exp(), 0.003);
        }
    }

    #[test]
    fn a_mode_needs_one_good_sample_and_what_is_between_modes_is_bad() {
        let ring = Mixture::ring();
        let spread = ring.spread(&[[1.0, 0.0], [1.03, 0.0], [1.031, 0.0], [0.0, 0.0]]);
        assert_eq!(spread.modes, 1);
        assert_eq!(spread.high_quality, 0.5);
        let nothing = ring.spread(&[[f64::NAN, 0.0], [9.0, 9.0]]);
        assert_eq!((nothing.modes, nothing.high_quality), (0, 0.0));
        assert_eq!(ring.spread(&[]).high_quality, 0.0);
    }
}
