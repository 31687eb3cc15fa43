//! Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et
//! al. 2020, arXiv 2002.09797): who lies in whose neighbourhood.
//!
//! A set's neighbourhoods are balls around its points, each as wide as the distance to the point's
//! k-th nearest neighbour in the set.

use super::EvaluateError;
use super::crew::Crew;
use tch::{Kind, Tensor};

/// Neighbours for precision and recall: that paper's.
const NEAREST: i64 = 3;

/// Neighbours for density and coverage: the other paper's.
const NEIGHBOURHOOD: i64 = 5;

/// The smallest set that has neighbourhoods.
pub(super) const FEWEST: u64 = NEIGHBOURHOOD as u64 + 1;

/// Points whose distances are computed at a time.
const ROWS: i64 = 256;

/// How two sets lie in each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Overlap {
    /// Share of the samples in the neighbourhood of any real.
    pub(super) precision: f64,
    /// Share of the reals in the neighbourhood of any sample.
    pub(super) recall: f64,
    /// Neighbourhoods of reals that a sample lies in, as a share of k; 1 if both are alike.
    pub(super) density: f64,
    /// Share of the reals with a sample in their neighbourhood.
    pub(super) coverage: f64,
}

/// Of samples `[n, d]` and reals `[m, d]`, f64, [`FEWEST`] of each at least.
pub(super) fn overlap(
    crew: &Crew,
    samples: &Tensor,
    reals: &Tensor,
) -> Result<Overlap, EvaluateError> {
    let radii = |of: &Tensor| radii(crew, of);
    let (of_reals, of_samples) = (radii(reals)?, radii(samples)?);
    let n = samples.size()[0];
    let m = reals.size()[0];
    let seat = || {
        Ok((
            samples.shallow_clone(),
            reals.shallow_clone(),
            of_samples.nearest.shallow_clone(),
            of_reals.nearest.shallow_clone(),
            of_reals.neighbourhood.shallow_clone(),
        ))
    };
    let parts = crew.run(
        n.unsigned_abs().div_ceil(ROWS.unsigned_abs()) as usize,
        seat,
        |(samples, reals, of_samples, near, around), chunk| {
            let first = chunk as i64 * ROWS;
            let rows = ROWS.min(n - first);
            let distances = distances(&samples.f_narrow(0, first, rows)?, reals)?;
            let own = of_samples.f_narrow(0, first, rows)?.f_unsqueeze(1)?;
            let count = |within: Tensor| -> Result<i64, EvaluateError> {
                Ok(within.f_sum(Kind::Int64)?.f_int64_value(&[])?)
            };
            Ok(Part {
                precise: count(distances.f_le_tensor(near)?.f_any_dim(1, false)?)?,
                dense: count(distances.f_le_tensor(around)?)?,
                recalled: distances.f_le_tensor(&own)?.f_any_dim(0, false)?,
                covered: distances.f_le_tensor(around)?.f_any_dim(0, false)?,
            })
        },
    )?;
    let share = |of: fn(&Part) -> &Tensor| -> Result<f64, EvaluateError> {
        let all = parts.iter().map(of).collect::<Vec<_>>();
        let any = Tensor::f_stack(&all, 0)?.f_any_dim(0, false)?;
        Ok(any.f_sum(Kind::Int64)?.f_int64_value(&[])? as f64 / m as f64)
    };
    let total = |of: fn(&Part) -> i64| parts.iter().map(of).sum::<i64>() as f64;
    Ok(Overlap {
        precision: total(|part| part.precise) / n as f64,
        recall: share(|part| &part.recalled)?,
        density: total(|part| part.dense) / (NEIGHBOURHOOD * n) as f64,
        coverage: share(|part| &part.covered)?,
    })
}

/// What some of the samples contribute.
struct Part {
    precise: i64,
    dense: i64,
    /// `[m]`, which reals lie in one's neighbourhood.
    recalled: Tensor,
    /// `[m]`, in which reals' neighbourhoods one lies.
    covered: Tensor,
}

/// Squared radii are larger by this share of the largest squared norm: a point on a border counts,
/// however its distance was rounded.
const SLACK: f64 = 1e-12;

/// Squared radii of a set's neighbourhoods, `[n]`.
struct Radii {
    nearest: Tensor,
    neighbourhood: Tensor,
}

fn radii(crew: &Crew, of: &Tensor) -> Result<Radii, EvaluateError> {
    let n = of.size()[0];
    let parts = crew.run(
        n.unsigned_abs().div_ceil(ROWS.unsigned_abs()) as usize,
        || Ok(of.shallow_clone()),
        |of, chunk| {
            let first = chunk as i64 * ROWS;
            let distances = distances(&of.f_narrow(0, first, ROWS.min(n - first))?, of)?;
            // The smallest is that to the point itself.
            let (smallest, _) = distances.f_topk(NEIGHBOURHOOD + 1, 1, false, true)?;
            let of = |k| Ok::<_, EvaluateError>(smallest.f_select(1, k)?.f_contiguous()?);
            Ok((of(NEAREST)?, of(NEIGHBOURHOOD)?))
        },
    )?;
    let (nearest, neighbourhood): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let slack = SLACK * squares(of)?.f_max()?.f_double_value(&[])?;
    Ok(Radii {
        nearest: Tensor::f_cat(&nearest, 0)?.f_add_scalar(slack)?,
        neighbourhood: Tensor::f_cat(&neighbourhood, 0)?.f_add_scalar(slack)?,
    })
}

/// Squared distances, `[a, b]`, from the products: exact to some 1e-15 of the squared norms.
fn distances(a: &Tensor, b: &Tensor) -> Result<Tensor, EvaluateError> {
    // In place: large tensors that come and go between small ones that stay tear the heap to pieces,
    // and a process of 26,000 samples grew by 8 GB.
    let mut distances = a.f_matmul(&b.f_transpose(0, 1)?)?;
    let _ = distances
        .f_mul_scalar_(-2.0)?
        .f_add_(&squares(a)?.f_unsqueeze(1)?)?
        .f_add_(&squares(b)?)?
        .f_clamp_min_(0.0)?;
    Ok(distances)
}

/// Squared norms, `[n]`.
fn squares(of: &Tensor) -> Result<Tensor, EvaluateError> {
    Ok(of
        .f_mul(of)?
        .f_sum_dim_intlist(&[1i64][..], false, Kind::Double)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::tests::{close, normal};

    /// Points on a line.
    fn line(points: impl IntoIterator<Item = f64>) -> Tensor {
        let points: Vec<f64> = points.into_iter().collect();
        Tensor::from_slice(&points).view([points.len() as i64, 1])
    }

    #[test]
    fn a_set_lies_in_itself() {
        let x = normal(1, &[700, 5]);
        let found = overlap(&Crew::new(2), &x, &x).unwrap();
        assert_eq!(
            (found.precision, found.recall, found.coverage),
            (1.0, 1.0, 1.0)
        );
        // Each point lies in its own ball and, on average, in k others'.
        close(found.density, 6.0 / 5.0, 1e-9);
    }

    #[test]
    fn sets_apart_have_nothing_in_common() {
        let (x, y) = (normal(1, &[300, 2]), normal(2, &[400, 2]) + 100.0);
        let found = overlap(&Crew::new(1), &x, &y).unwrap();
        let nothing = Overlap {
            precision: 0.0,
            recall: 0.0,
            density: 0.0,
            coverage: 0.0,
        };
        assert_eq!(found, nothing);
    }

    /// Reals at 0, 1 … 9 and 100, 101 … 109: samples that all lie at the first half are precise,
    /// and recall and cover half.
    #[test]
    fn a_mode_that_is_missing_costs_recall_and_coverage() {
        let reals = line((0..10).chain(100..110).map(f64::from));
        let samples = line((0..10).map(|i| f64::from(i) + 0.25));
        let found = overlap(&Crew::new(1), &samples, &reals).unwrap();
        assert_eq!(
            (found.precision, found.recall, found.coverage),
            (1.0, 0.5, 0.5)
        );
        // And the other way round half of them are not precise.
        let found = overlap(&Crew::new(1), &reals, &samples).unwrap();
        assert_eq!(
            (found.precision, found.recall, found.coverage),
            (0.5, 1.0, 1.0)
        );
    }

    /// Against the definitions, written out.
    #[test]
    fn it_is_the_definitions() {
        let (x, y) = (normal(7, &[40, 3]), normal(8, &[50, 3]) * 0.7 + 0.3);
        let (a, b) = (
            Vec::<Vec<f64>>::try_from(&x).unwrap(),
            Vec::<Vec<f64>>::try_from(&y).unwrap(),
        );
        let d = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let radius = |set: &[Vec<f64>], i: usize, k: usize| {
            let mut all: Vec<f64> = set.iter().map(|other| d(&set[i], other)).collect();
            all.sort_by(f64::total_cmp);
            all[k]
        };
        let inside = |of: &[Vec<f64>], k: usize, point: &[f64]| {
            let within = |&i: &usize| d(&of[i], point) <= radius(of, i, k);
            (0..of.len()).filter(within).count()
        };
        let share = |set: &[Vec<f64>], of: &[Vec<f64>]| {
            let found = set.iter().filter(|point| inside(of, 3, point) > 0).count();
            found as f64 / set.len() as f64
        };
        let covered = (0..b.len()).filter(|&i| {
            let nearest = a.iter().map(|sample| d(sample, &b[i]));
            nearest.fold(f64::MAX, f64::min) <= radius(&b, i, 5)
        });
        let density: usize = a.iter().map(|sample| inside(&b, 5, sample)).sum();
        let expected = Overlap {
            precision: share(&a, &b),
            recall: share(&b, &a),
            density: density as f64 / 200.0,
            coverage: covered.count() as f64 / 50.0,
        };
        assert!(
            expected.precision < 1.0 && expected.coverage < 1.0,
            "{expected:?}"
        );
        for workers in 1..4 {
            assert_eq!(overlap(&Crew::new(workers), &x, &y).unwrap(), expected);
        }
    }
}
