//! Threads that share an evaluation.
//!
//! The work is cut into chunks whose borders depend on the work alone. Each thread takes the next
//! chunk that nobody has, computes it with one intra-op thread, and results are put together in the
//! order of the chunks: so no bit depends on how many threads there are.

use super::EvaluateError;
use crate::torch;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How many threads, and whether they still should.
#[derive(Clone, Debug)]
pub struct Crew {
    workers: usize,
    called_off: Arc<AtomicBool>,
}

impl Crew {
    /// As many threads; at least one.
    pub fn new(workers: usize) -> Self {
        Self {
            workers: workers.max(1),
            called_off: Arc::default(),
        }
    }

    /// What calls it off: once it is true, work ends soon, with [`EvaluateError::CalledOff`].
    pub fn called_off(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.called_off)
    }

    /// An error once it is called off.
    pub(super) fn check(&self) -> Result<(), EvaluateError> {
        if self.called_off.load(Ordering::Relaxed) {
            return Err(EvaluateError::CalledOff);
        }
        Ok(())
    }

    /// Does chunks `0..chunks` and returns their results in this order. `seat` makes what one thread
    /// works with; tensors belong there, for threads can't share a handle.
    ///
    /// # Errors
    /// That of the first chunk, in their order, that failed.
    pub(super) fn run<S: Send, T: Send>(
        &self,
        chunks: usize,
        mut seat: impl FnMut() -> Result<S, EvaluateError>,
        work: impl Fn(&S, usize) -> Result<T, EvaluateError> + Sync,
    ) -> Result<Vec<T>, EvaluateError> {
        let threads = self.workers.min(chunks);
        let seats = (0..threads)
            .map(|_| seat())
            .collect::<Result<Vec<_>, _>>()?;
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let done: Mutex<Vec<(usize, Result<T, EvaluateError>)>> = Mutex::default();
        let serve = |seat: S| {
            torch::set_threads(1);
            // Chunks are taken in their order: all before one that fails are done, or being done.
            while !failed.load(Ordering::Relaxed) {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= chunks {
                    return;
                }
                let result = self
                    .check()
                    .and_then(|()| torch::catch("evaluate a chunk", || work(&seat, chunk)));
                if result.is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
                done.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((chunk, result));
            }
        };
        std::thread::scope(|scope| {
            let serve = &serve;
            let handles: Vec<_> = seats
                .into_iter()
                .map(|seat| {
                    std::thread::Builder::new()
                        .name("evaluating".to_owned())
                        .spawn_scoped(scope, move || serve(seat))
                })
                .collect();
            for handle in handles {
                let handle = handle.map_err(|error| EvaluateError::Thread(error.to_string()))?;
                if handle.join().is_err() {
                    return Err(EvaluateError::Thread("it panicked".to_owned()));
                }
            }
            Ok(())
        })?;
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(chunk, _)| *chunk);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_whoever_computed_them() {
        for workers in 1..5 {
            let crew = Crew::new(workers);
            let squares = crew.run(50, || Ok(()), |(), chunk| Ok(chunk * chunk));
            let expected: Vec<usize> = (0..50).map(|chunk| chunk * chunk).collect();
            assert_eq!(squares.unwrap(), expected);
        }
        assert!(
            Crew::new(3)
                .run(0, || Ok(()), |(), _| Ok(()))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn the_first_fault_is_told_whoever_met_it() {
        for workers in 1..5 {
            let failed = Crew::new(workers).run(
                50,
                || Ok(()),
                |(), chunk| match chunk {
                    7 | 9 => Err(EvaluateError::Thread(chunk.to_string())),
                    _ => Ok(()),
                },
            );
            let message = failed.unwrap_err().to_string();
            assert!(message.ends_with(": 7"), "{message}");
        }
    }

    #[test]
    fn what_is_called_off_ends() {
        let crew = Crew::new(2);
        crew.called_off().store(true, Ordering::Relaxed);
        let result = crew.run(5, || Ok(()), |(), _| Ok(()));
        assert!(matches!(result, Err(EvaluateError::CalledOff)));
    }
}
