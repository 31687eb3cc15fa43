//! The kernel distance: KID (Bińkowski et al. 2018, arXiv 1801.01401).
//!
//! The squared maximum mean discrepancy under the kernel (x·y/d + 1)³, estimated without bias on
//! subsets; the score is their mean.

use super::crew::Crew;
use super::{EvaluateError, draws};
use crate::random::{Domain, Key};
use tch::{Kind, Tensor};

/// Subsets, and samples of each from either side: the paper's.
const SUBSETS: usize = 100;
const SUBSET: usize = 1000;

/// KID.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct KernelDistance {
    pub(super) mean: f64,
    /// Over the subsets; none if there is only one, of all samples.
    pub(super) deviation: Option<f64>,
}

/// Of features `[n, d]` and `[m, d]`, f64.
pub(super) fn distance(
    crew: &Crew,
    x: &Tensor,
    y: &Tensor,
    seed: u64,
) -> Result<KernelDistance, EvaluateError> {
    let (n, m) = (x.size()[0] as usize, y.size()[0] as usize);
    let size = SUBSET.min(n).min(m);
    if size == n && size == m {
        let mean = discrepancy(x, y)?;
        return Ok(KernelDistance {
            mean,
            deviation: None,
        });
    }
    let found = crew.run(
        SUBSETS,
        || Ok((x.shallow_clone(), y.shallow_clone())),
        |(x, y), subset| {
            let part = |of: &Tensor, side: u64| -> Result<Tensor, EvaluateError> {
                let numbers = [seed, draws::SUBSETS, subset as u64, side];
                let chosen = choose(Key::new(Domain::Evaluation, &numbers), of.size()[0], size);
                Ok(of.f_index_select(0, &Tensor::f_from_slice(&chosen)?)?)
            };
            discrepancy(&part(x, 0)?, &part(y, 1)?)
        },
    )?;
    let mean = found.iter().sum::<f64>() / found.len() as f64;
    let squares = found.iter().map(|value| (value - mean).powi(2));
    let deviation = (squares.sum::<f64>() / found.len() as f64).sqrt();
    Ok(KernelDistance {
        mean,
        deviation: Some(deviation),
    })
}

/// `size` different numbers below `n`, uniformly.
fn choose(key: Key, n: i64, size: usize) -> Vec<i64> {
    let mut stream = key.stream();
    let mut numbers: Vec<i64> = (0..n).collect();
    for place in 0..size {
        let other = place + stream.below(n as u64 - place as u64) as usize;
        numbers.swap(place, other);
    }
    numbers.truncate(size);
    numbers
}

/// The unbiased estimate: means of k(x, x') and k(y, y') over pairs of different samples, minus twice
/// that of k(x, y) over all.
fn discrepancy(x: &Tensor, y: &Tensor) -> Result<f64, EvaluateError> {
    Ok(within(x)? + within(y)? - 2.0 * kernel(x, y)?.f_mean(Kind::Double)?.f_double_value(&[])?)
}

fn within(x: &Tensor) -> Result<f64, EvaluateError> {
    let kernel = kernel(x, x)?;
    let n = x.size()[0] as f64;
    let all = kernel.f_sum(Kind::Double)?.f_double_value(&[])?;
    let same = kernel.f_trace()?.f_double_value(&[])?;
    Ok((all - same) / (n * (n - 1.0)))
}

fn kernel(x: &Tensor, y: &Tensor) -> Result<Tensor, EvaluateError> {
    let d = x.size()[1] as f64;
    Ok(x.f_matmul(&y.f_transpose(0, 1)?)?
        .f_div_scalar(d)?
        .f_add_scalar(1.0)?
        .f_pow_tensor_scalar(3.0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::tests::{close, normal};

    fn scalar(x: &Tensor, y: &Tensor) -> f64 {
        let (x, y) = (rows(x), rows(y));
        let k = |a: &[f64], b: &[f64]| {
            let dot: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
            (dot / a.len() as f64 + 1.0).powi(3)
        };
        let within = |x: &[Vec<f64>]| {
            let mut sum = 0.0;
            for (i, a) in x.iter().enumerate() {
                for (j, b) in x.iter().enumerate() {
                    sum += if i == j { 0.0 } else { k(a, b) };
                }
            }
            sum / (x.len() * (x.len() - 1)) as f64
        };
        let mut across = 0.0;
        for a in &x {
            for b in &y {
                across += k(a, b);
            }
        }
        within(&x) + within(&y) - 2.0 * across / (x.len() * y.len()) as f64
    }

    fn rows(x: &Tensor) -> Vec<Vec<f64>> {
        Vec::<Vec<f64>>::try_from(x).unwrap()
    }

    #[test]
    fn it_is_the_definition() {
        let (x, y) = (normal(1, &[7, 3]), normal(2, &[5, 3]) + 0.5);
        close(discrepancy(&x, &y).unwrap(), scalar(&x, &y), 1e-10);
    }

    /// The mean over all subsets of a finite population is the population's own value: that is what
    /// being unbiased means, and what the usual estimate with k(x, x) in it is not.
    #[test]
    fn it_is_unbiased() {
        let (x, y) = (normal(3, &[6, 2]), normal(4, &[6, 2]) * 1.5);
        let subsets: Vec<Tensor> = (0u32..64)
            .filter(|bits| bits.count_ones() == 3)
            .map(|bits| {
                let chosen: Vec<i64> = (0..6).filter(|bit| bits >> bit & 1 == 1).collect();
                Tensor::from_slice(&chosen)
            })
            .collect();
        assert_eq!(subsets.len(), 20);
        let mut sum = 0.0;
        for a in &subsets {
            for b in &subsets {
                sum += discrepancy(&x.index_select(0, a), &y.index_select(0, b)).unwrap();
            }
        }
        close(sum / 400.0, discrepancy(&x, &y).unwrap(), 1e-10);
    }

    #[test]
    fn subsets_are_keyed_and_bits_do_not_depend_on_the_crew() {
        let (x, y) = (normal(5, &[1500, 4]), normal(6, &[1200, 4]));
        let one = distance(&Crew::new(1), &x, &y, 0).unwrap();
        assert_eq!(one, distance(&Crew::new(3), &x, &y, 0).unwrap());
        assert_ne!(one, distance(&Crew::new(1), &x, &y, 1).unwrap());
        // The same distribution: 0 but for chance.
        let deviation = one.deviation.unwrap();
        assert!(one.mean.abs() < 3.0 * deviation, "{one:?}");
        let apart = distance(&Crew::new(1), &x, &(y + 1.0), 0).unwrap();
        assert!(apart.mean > 10.0 * deviation, "{apart:?}");
    }

    #[test]
    fn a_choice_is_without_repetition() {
        let mut chosen = choose(Key::new(Domain::Evaluation, &[1]), 50, 50);
        assert_ne!(chosen, (0..50).collect::<Vec<_>>());
        chosen.sort_unstable();
        assert_eq!(chosen, (0..50).collect::<Vec<_>>());
    }
}
