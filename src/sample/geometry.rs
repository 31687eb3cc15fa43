//! PURE. Where latents lie, and ways between them.
//!
//! A latent is a list of numbers around 0. Sums are taken in `f64` and rounded once, so that
//! their order tells nothing.

/// The point at `t` (0 … 1) of the way from `from` to `to` along the sphere: Shoemake 1985, as
/// White 2016 uses it for latents. Numbers drawn from N(0, 1) lie close to a sphere, and the
/// straight way would leave it.
///
/// The ends are exactly `from` and `to`. Where no way along a sphere is determined (parallel or
/// opposite directions, or a 0) it goes straight.
pub fn slerp(from: &[f32], to: &[f32], t: f64) -> Vec<f32> {
    if t <= 0.0 {
        return from.to_vec();
    }
    if t >= 1.0 {
        return to.to_vec();
    }
    let cosine = dot(from, to) / (dot(from, from) * dot(to, to)).sqrt();
    let angle = cosine.clamp(-1.0, 1.0).acos();
    let sine = angle.sin();
    // NaN, where one is 0, compares as false.
    let (a, b) = if sine > 1e-6 {
        (((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine)
    } else {
        (1.0 - t, t)
    };
    let between = |(from, to): (&f32, &f32)| (a * f64::from(*from) + b * f64::from(*to)) as f32;
    from.iter().zip(to).map(between).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.sum()
}

/// `latent` moved towards the middle of all, which is 0: ψ·z. 1 leaves it, 0 gives what all
/// latents have in common, more than 1 exaggerates.
///
/// That is truncation as StyleGAN has it (Karras et al. 2019, section B). BigGAN's draws numbers
/// anew until they are below a threshold, which gives other latents for each threshold; here an
/// image keeps its identity. The first `binary` numbers stay: those are -1 or 1, and a generator has
/// never seen what is between them.
pub fn truncated(latent: &[f32], binary: usize, psi: f64) -> Vec<f32> {
    let (codes, numbers) = latent.split_at(binary.min(latent.len()));
    let scaled = numbers.iter().map(|&z| (f64::from(z) * psi) as f32);
    codes.iter().copied().chain(scaled).collect()
}

/// Whether a term is added or taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Added.
    Plus,
    /// Taken away.
    Minus,
}

impl Sign {
    /// `+` or `-`.
    pub fn symbol(self) -> char {
        match self {
            Sign::Plus => '+',
            Sign::Minus => '-',
        }
    }
}

/// The mean of latents; `None` if there are none, or they differ in size.
pub fn mean(latents: &[&[f32]]) -> Option<Vec<f32>> {
    let first = latents.first()?;
    if latents.iter().any(|latent| latent.len() != first.len()) {
        return None;
    }
    let numbers = (0..first.len()).map(|i| {
        let sum: f64 = latents.iter().map(|latent| f64::from(latent[i])).sum();
        (sum / latents.len() as f64) as f32
    });
    Some(numbers.collect())
}

/// The sum of signed terms, as in Radford et al. 2015 (the tutorial's figure 19): woman with
/// glasses = man with glasses - man + woman. `None` as for [`mean`].
pub fn sum(terms: &[(Sign, &[f32])]) -> Option<Vec<f32>> {
    let (_, first) = terms.first()?;
    if terms.iter().any(|(_, term)| term.len() != first.len()) {
        return None;
    }
    let numbers = (0..first.len()).map(|i| {
        let signed = terms.iter().map(|(sign, term)| match sign {
            Sign::Plus => f64::from(term[i]),
            Sign::Minus => -f64::from(term[i]),
        });
        signed.sum::<f64>() as f32
    });
    Some(numbers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm(z: &[f32]) -> f64 {
        dot(z, z).sqrt()
    }

    #[test]
    fn slerp_keeps_to_the_sphere_and_to_equal_angles() {
        let (a, b) = ([3.0, 0.0, 4.0], [0.0, 5.0, 0.0]);
        assert_eq!(slerp(&a, &b, 0.0), a);
        assert_eq!(slerp(&a, &b, 1.0), b);
        let mut before = a.to_vec();
        for step in 1..=9 {
            let z = slerp(&a, &b, f64::from(step) / 9.0);
            assert!((norm(&z) - 5.0).abs() < 1e-5, "{z:?}");
            let angle = (dot(&before, &z) / 25.0).acos();
            assert!((angle - 10f64.to_radians()).abs() < 1e-5, "{angle}");
            before = z;
        }
    }

    #[test]
    fn slerp_goes_straight_where_there_is_no_sphere() {
        assert_eq!(slerp(&[1.0, 2.0], &[3.0, 6.0], 0.5), [2.0, 4.0]);
        assert_eq!(slerp(&[1.0, 0.0], &[-1.0, 0.0], 0.25), [0.5, 0.0]);
        assert_eq!(slerp(&[0.0, 0.0], &[2.0, 0.0], 0.5), [1.0, 0.0]);
        assert_eq!(slerp(&[2.0], &[4.0], 0.5), [3.0]);
    }

    #[test]
    fn truncation_goes_to_the_middle() {
        let z = [0.3, -2.0];
        assert_eq!(truncated(&z, 0, 1.0), z);
        assert_eq!(truncated(&z, 0, 0.0), [0.0, 0.0]);
        assert_eq!(truncated(&z, 0, 0.5), [0.15, -1.0]);
        assert_eq!(truncated(&[-1.0, 1.0, 3.0], 2, 0.5), [-1.0, 1.0, 1.5]);
    }

    #[test]
    fn figure_19_is_a_sum_of_means() {
        let glasses = mean(&[&[1.0, 3.0], &[3.0, 5.0]]).unwrap();
        assert_eq!(glasses, [2.0, 4.0]);
        let (man, woman) = ([0.5, 1.0], [-1.0, 1.5]);
        let terms: [(Sign, &[f32]); 3] = [
            (Sign::Plus, &glasses),
            (Sign::Minus, &man),
            (Sign::Plus, &woman),
        ];
        assert_eq!(sum(&terms).unwrap(), [0.5, 4.5]);
        let reversed: Vec<_> = terms.into_iter().rev().collect();
        assert_eq!(sum(&terms), sum(&reversed));
    }

    #[test]
    fn nothing_and_unequal_sizes_have_no_mean() {
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[&[1.0], &[1.0, 2.0]]), None);
        assert_eq!(sum(&[]), None);
        assert_eq!(sum(&[(Sign::Plus, &[1.0]), (Sign::Minus, &[])]), None);
    }
}
