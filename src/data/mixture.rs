//! Points of a plane, drawn from a mixture of normal distributions: the ring and the grid on which
//! GANs show how many modes they find (Srivastava et al. 2017; Lin et al. 2018).
//!
//! Every point is a function of the seed and its number, in arithmetic whose results don't depend on
//! a machine's mathematical library: all machines draw the same bytes.

use crate::config::Data;
use crate::random::{Domain, Key};
use std::f64::consts::{PI, TAU};

/// A mixture of as many normal distributions as it has centres, all of one weight and one deviation.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// The modes.
    pub centres: Vec<[f64; 2]>,
    /// Standard deviation of each, in both directions.
    pub deviation: f64,
}

impl Mixture {
    /// The mixture that `data.uri` names, if it names one: `synthetic:ring` or `synthetic:grid`.
    pub fn of(data: &Data) -> Option<Self> {
        let modes = data.modes()?;
        let scale = data.scale()?;
        let centres = match data.uri.strip_prefix("synthetic:")? {
            "ring" => (0..modes).map(|k| on_circle(k, modes, scale)).collect(),
            "grid" => on_grid(modes, scale),
            _ => return None,
        };
        Some(Self {
            centres,
            deviation: data.deviation()?,
        })
    }

    /// The mode that point `index` belongs to: all in turn, so that each has as many points as the
    /// others, give or take one.
    pub(super) fn mode(&self, index: u64) -> u32 {
        (index % self.centres.len() as u64) as u32
    }

    /// Point `index` of a data set of this seed.
    pub(super) fn point(&self, seed: u64, index: u64) -> [f32; 2] {
        let mut stream = Key::new(Domain::Synthetic, &[seed, index]).stream();
        let centre = self.centres[self.mode(index) as usize];
        centre.map(|coordinate| (coordinate + self.deviation * stream.normal()) as f32)
    }
}

fn on_circle(k: u32, modes: u32, radius: f64) -> [f64; 2] {
    let angle = TAU * f64::from(k) / f64::from(modes);
    [radius * cosine(angle), radius * cosine(angle - PI / 2.0)]
}

/// Row by row, with 0 in the middle.
fn on_grid(modes: u32, spacing: f64) -> Vec<[f64; 2]> {
    let side = modes.isqrt();
    let at = |k: u32| spacing * (f64::from(k) - f64::from(side - 1) / 2.0);
    (0..side)
        .flat_map(|row| (0..side).map(move |column| [at(column), at(row)]))
        .collect()
}

/// By its series, for angles of at most one turn.
fn cosine(angle: f64) -> f64 {
    let angle = if angle > PI { angle - TAU } else { angle };
    let mut term = 1.0;
    let mut sum = 1.0;
    for k in 1..=16 {
        let k = f64::from(2 * k);
        term *= -angle * angle / (k * (k - 1.0));
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use std::path::Path;

    fn data(uri: &str, rest: &str) -> Data {
        let text = format!(
            "job = {{ name = \"j\" }}\ntrain = {{ steps = 1 }}\nmodel = {{ architecture = \"mlp\" }}\n\
             [data]\nuri = \"{uri}\"\n{rest}"
        );
        parse(&text, "test", Path::new("/"), &[]).unwrap().data
    }

    #[test]
    fn the_defaults_are_pacgans() {
        let ring = Mixture::of(&data("synthetic:ring", "")).unwrap();
        assert_eq!((ring.centres.len(), ring.deviation), (8, 0.01));
        let half = 0.5f64.sqrt();
        let expected = [
            [1.0, 0.0],
            [half, half],
            [0.0, 1.0],
            [-half, half],
            [-1.0, 0.0],
            [-half, -half],
            [0.0, -1.0],
            [half, -half],
        ];
        for (found, expected) in ring.centres.iter().zip(expected) {
            assert!((found[0] - expected[0]).abs() + (found[1] - expected[1]).abs() < 1e-14);
        }
        let grid = Mixture::of(&data("synthetic:grid", "")).unwrap();
        assert_eq!((grid.centres.len(), grid.deviation), (25, 0.05));
        assert_eq!(grid.centres[0], [-4.0, -4.0]);
        assert_eq!(grid.centres[1], [-2.0, -4.0]);
        assert_eq!(grid.centres[24], [4.0, 4.0]);
        let mut other = data("synthetic:grid", "");
        other.uri = "/somewhere".to_owned();
        assert_eq!(Mixture::of(&other), None);
    }

    #[test]
    fn points_lie_about_their_modes_as_they_should() {
        let more = "synthetic = { modes = 9, scale = 3.0, deviation = 0.5 }";
        let grid = Mixture::of(&data("synthetic:grid", more)).unwrap();
        let count = 20_000;
        let (mut mean, mut square) = (0.0, 0.0);
        for index in 0..count {
            let centre = grid.centres[grid.mode(index) as usize];
            let point = grid.point(7, index);
            for (coordinate, centre) in point.iter().zip(centre) {
                let off = f64::from(*coordinate) - centre;
                mean += off / (2 * count) as f64;
                square += off * off / (2 * count) as f64;
            }
        }
        assert!(
            mean.abs() < 0.01 && (square.sqrt() - 0.5).abs() < 0.01,
            "{mean} {square}"
        );
        assert_eq!(grid.point(7, 3), grid.point(7, 3));
        assert_ne!(grid.point(7, 3), grid.point(8, 3));
    }
}
