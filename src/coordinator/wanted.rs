//! PURE. How many workers the job is meant to have, for an alert on those that are missing.
//!
//! Nobody tells the coordinator: whoever wants more workers starts them, and whoever wants fewer tells
//! some to go. So as many are wanted as have taken part, less those that left in good order. A worker
//! that died is wanted until another one takes its place.

/// How many workers are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The job starts with so many, and never means to have fewer.
    least: usize,
    /// In the newest generation.
    seated: usize,
    /// Seated, and dead without being replaced.
    remembered: usize,
}

impl Wanted {
    /// Before anybody has come. What an earlier coordinator of the job saw is not known.
    pub(super) fn new(least: u32) -> Self {
        Self {
            least: least as usize,
            seated: 0,
            remembered: 0,
        }
    }

    /// A generation of so many workers is formed.
    pub(super) fn formed(&mut self, workers: usize) {
        self.seated = workers;
        self.remembered = self.remembered.max(workers);
    }

    /// A worker is gone, in good order: before or after the generation that does without it.
    pub(super) fn left(&mut self) {
        self.remembered = self.remembered.saturating_sub(1);
    }

    pub(super) fn count(&self) -> usize {
        self.least.max(self.seated).max(self.remembered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_wanted_until_they_are_replaced() {
        let mut wanted = Wanted::new(1);
        assert_eq!(wanted.count(), 1);
        wanted.formed(3);
        wanted.formed(2);
        assert_eq!(wanted.count(), 3, "one is missing");
        wanted.formed(3);
        wanted.formed(4);
        assert_eq!(wanted.count(), 4, "more were started");
    }

    #[test]
    fn those_who_left_are_not_wanted() {
        let mut wanted = Wanted::new(1);
        wanted.formed(3);
        wanted.formed(2);
        wanted.left();
        assert_eq!(wanted.count(), 2);
        wanted.left();
        assert_eq!(
            wanted.count(),
            2,
            "it takes part until there is a generation without it"
        );
        wanted.formed(1);
        assert_eq!(wanted.count(), 1);
    }

    #[test]
    fn no_fewer_are_wanted_than_the_job_starts_with() {
        let mut wanted = Wanted::new(2);
        wanted.formed(2);
        wanted.left();
        wanted.left();
        wanted.formed(0);
        assert_eq!(wanted.count(), 2);
    }
}
