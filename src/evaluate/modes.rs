//! PURE. Modes by classes: which of them samples were found of, and how far their shares are from
//! the data's. Stacked MNIST's protocol (Srivastava et al. 2017, VEEGAN) with a classifier of ours.

use std::collections::BTreeMap;

/// How samples are spread over classes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Census {
    counts: BTreeMap<u32, u64>,
    total: u64,
}

impl Census {
    /// Of one class a sample.
    pub(super) fn of(classes: impl IntoIterator<Item = u32>) -> Self {
        let mut census = Self::default();
        for class in classes {
            *census.counts.entry(class).or_default() += 1;
            census.total += 1;
        }
        census
    }

    /// How many of the classes of `data` samples were found of.
    pub(super) fn modes(&self, data: &Census) -> u64 {
        let found = data.counts.keys().filter(|c| self.counts.contains_key(c));
        found.count() as u64
    }

    /// KL(samples ‖ uniform over `classes`), nats.
    pub(super) fn kl_uniform(&self, classes: usize) -> f64 {
        self.divergence(|_| Some(1.0 / classes as f64))
            .unwrap_or(0.0)
    }

    /// KL(samples ‖ data), nats; none if a sample is of a class that the data lacks.
    pub(super) fn kl_data(&self, data: &Census) -> Option<f64> {
        self.divergence(|class| {
            let count = *data.counts.get(&class)?;
            Some(count as f64 / data.total as f64)
        })
    }

    fn divergence(&self, expected: impl Fn(u32) -> Option<f64>) -> Option<f64> {
        let mut sum = 0.0;
        for (&class, &count) in &self.counts {
            let share = count as f64 / self.total as f64;
            sum += share * (share / expected(class)?).ln();
        }
        Some(sum.max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::tests::close;

    #[test]
    fn divergences_have_closed_forms() {
        // Half of the classes, evenly: ln 2 from the uniform distribution.
        let half = Census::of((0..5).cycle().take(100));
        close(half.kl_uniform(10), 2f64.ln(), 1e-12);
        // One class alone: ln K, the worst there is.
        close(Census::of([3; 7]).kl_uniform(1000), 1000f64.ln(), 1e-12);
        // From itself nothing, and from other shares Σ p ln(p/q).
        let data = Census::of([0, 0, 0, 1]);
        close(data.kl_data(&data).unwrap(), 0.0, 1e-12);
        let even = Census::of([0, 1]);
        let expected = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        close(even.kl_data(&data).unwrap(), expected, 1e-12);
    }

    #[test]
    fn modes_are_the_datas() {
        let data = Census::of(0..10);
        assert_eq!(Census::of([1, 1, 4, 12]).modes(&data), 2);
        assert_eq!(Census::of([1, 12]).kl_data(&data), None);
        assert_eq!(Census::default().modes(&data), 0);
    }

    /// What a perfect sampler of VEEGAN's protocol gets: (K - 1)/2n from chance alone.
    #[test]
    fn chance_alone_is_what_the_literature_has() {
        let mut stream = crate::random::Key::new(crate::random::Domain::Evaluation, &[9]).stream();
        let drawn = Census::of((0..26_000).map(|_| stream.below(1000) as u32));
        assert_eq!(drawn.modes(&Census::of(0..1000)), 1000);
        close(drawn.kl_uniform(1000), 0.0192, 0.003);
    }
}
