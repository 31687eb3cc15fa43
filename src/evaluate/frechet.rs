//! The Fréchet distance between the Gaussians that fit two sets of features: FID (Heusel et al. 2017,
//! arXiv 1706.08500).

use super::EvaluateError;
use tch::{Kind, Tensor};

/// The Gaussian that fits a set of features.
#[derive(Debug)]
pub(super) struct Gaussian {
    /// `[d]`
    mean: Tensor,
    /// `[d, d]`, with n - 1 in the denominator.
    covariance: Tensor,
}

impl Gaussian {
    /// Of features `[n, d]`, f64, with n at least 2.
    pub(super) fn of(features: &Tensor) -> Result<Self, EvaluateError> {
        let n = features.size()[0];
        let mean = features.f_mean_dim(&[0i64][..], false, Kind::Double)?;
        let centred = features.f_sub(&mean)?;
        let covariance = centred
            .f_transpose(0, 1)?
            .f_matmul(&centred)?
            .f_div_scalar((n - 1) as f64)?;
        Ok(Self { mean, covariance })
    }

    /// |m₁ - m₂|² + tr(C₁ + C₂ - 2·(C₁C₂)^½). The trace of the last term is that of
    /// (C₁^½ C₂ C₁^½)^½, which is symmetric: all roots are those of eigenvalues that are real, and at
    /// least 0 but for rounding.
    pub(super) fn distance(&self, other: &Gaussian) -> Result<f64, EvaluateError> {
        let shift = self.mean.f_sub(&other.mean)?;
        let shift = shift.f_dot(&shift)?.f_double_value(&[])?;
        let root = square_root(&self.covariance)?;
        let product = root.f_matmul(&other.covariance)?.f_matmul(&root)?;
        let symmetric = product
            .f_add(&product.f_transpose(0, 1)?)?
            .f_mul_scalar(0.5)?;
        let eigenvalues = symmetric.f_linalg_eigvalsh("L")?;
        let cross = eigenvalues
            .f_clamp_min(0.0)?
            .f_sqrt()?
            .f_sum(Kind::Double)?
            .f_double_value(&[])?;
        let traces = self.covariance.f_trace()?.f_double_value(&[])?
            + other.covariance.f_trace()?.f_double_value(&[])?;
        Ok((shift + traces - 2.0 * cross).max(0.0))
    }
}

/// The root of a symmetric matrix without negative eigenvalues.
fn square_root(matrix: &Tensor) -> Result<Tensor, EvaluateError> {
    let (values, vectors) = matrix.f_linalg_eigh("L")?;
    let roots = values.f_clamp_min(0.0)?.f_sqrt()?;
    Ok(vectors
        .f_mul(&roots)?
        .f_matmul(&vectors.f_transpose(0, 1)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::tests::{close, normal};
    use tch::Device;

    fn gaussian(mean: &[f64], covariance: &[f64]) -> Gaussian {
        let d = mean.len() as i64;
        Gaussian {
            mean: Tensor::from_slice(mean),
            covariance: Tensor::from_slice(covariance).view([d, d]),
        }
    }

    #[test]
    fn commuting_gaussians_have_a_closed_form() {
        // Diagonal: |m|² + Σ (σ₁ - σ₂)².
        let a = gaussian(&[0.0, 1.0], &[4.0, 0.0, 0.0, 9.0]);
        let b = gaussian(&[3.0, -1.0], &[1.0, 0.0, 0.0, 16.0]);
        let expected = 9.0 + 4.0 + 1.0 + 1.0;
        close(a.distance(&b).unwrap(), expected, 1e-12);
        close(b.distance(&a).unwrap(), expected, 1e-12);
        close(a.distance(&a).unwrap(), 0.0, 1e-12);
    }

    /// numpy 2.4: `np.trace(c1 + c2 - 2 * root) + ((m1 - m2)**2).sum()`, where with `w, v =
    /// np.linalg.eig(c1 @ c2)` the root is `(v * np.sqrt(w)) @ np.linalg.inv(v)`: another way to it.
    #[test]
    fn others_are_what_numpy_says() {
        let a = gaussian(
            &[0.5, -1.0, 2.0],
            &[2.0, 0.3, -0.4, 0.3, 1.0, 0.2, -0.4, 0.2, 0.5],
        );
        let b = gaussian(
            &[0.0, 0.25, 1.5],
            &[1.0, -0.2, 0.1, -0.2, 3.0, 0.6, 0.1, 0.6, 0.8],
        );
        close(a.distance(&b).unwrap(), 3.046_482_485_955_621, 1e-12);
    }

    #[test]
    fn features_of_a_known_gaussian_come_near_its_distance() {
        // y = 2x + 1 of as many draws: the distance of N(0, I) and N(1, 4I) in 4 dimensions.
        let (x, y) = (normal(1, &[20_000, 4]), normal(2, &[20_000, 4]) * 2.0 + 1.0);
        let found = Gaussian::of(&x)
            .unwrap()
            .distance(&Gaussian::of(&y).unwrap())
            .unwrap();
        close(found, 4.0 + 4.0, 0.15);
        // A direction without spread has a root as well.
        let flat = Tensor::zeros([20_000, 4], (Kind::Double, Device::Cpu));
        let found = Gaussian::of(&flat)
            .unwrap()
            .distance(&Gaussian::of(&x).unwrap())
            .unwrap();
        close(found, 4.0, 0.15);
    }
}
