//! A wait that has begun and its end.

use std::time::{Duration, Instant};

/// How long something may take, from when on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    started: Instant,
    length: Duration,
}

impl Limit {
    /// Starts now.
    #[expect(
        clippy::disallowed_methods,
        reason = "sockets and threads are waited for on the real clock"
    )]
    pub(super) fn start(length: Duration) -> Self {
        Self {
            started: Instant::now(),
            length,
        }
    }

    /// What has passed.
    pub(super) fn waited(&self) -> Duration {
        self.started.elapsed()
    }

    /// What is left; nothing once it is over. Never zero, which sockets take for "for ever".
    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.length.checked_sub(self.waited())?;
        (left > Duration::ZERO).then_some(left)
    }
}
