//! The numbers that name things, each a type of its own so that none is taken for another.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number that follows.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A place in a generation's ring of workers: `0..world_size`.
    Rank(u32)
}
number! {
    /// One membership. It only grows, across coordinator crashes too; 0 is "none yet".
    Generation(u64)
}
number! {
    /// A count of updates of both networks; `State(t)` is what `Step(t)` has reached, and
    /// `Step(0)` is the initialisation.
    Step(u64)
}
number! {
    /// A pass over the data, counted from 0.
    Epoch(u64)
}
number! {
    /// A logical data-parallel worker: `0..R`, for the whole life of a job.
    ReplicaId(u32)
}
number! {
    /// A process that takes part in a job. One that was given up and comes back is a new worker.
    WorkerId(u64)
}
