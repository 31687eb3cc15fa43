//! Ranks that are threads of one process.
//!
//! For a worker that is alone, for one process that hosts several ranks, and for tests: the
//! arithmetic is the same as between machines, only the links are queues in memory.

use super::Collective;
use super::abort::Abort;
use super::error::{CollectiveError, Operation, Peers};
use super::exact::{Exact, Links};
use super::group::{GroupFault, check_ranges};
use super::limit::Limit;
use super::wire::Label;
use crate::ids::{Generation, Rank};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One rank of a group whose ranks are all in this process.
pub struct InProcess {
    exact: Exact<Queues>,
}

impl InProcess {
    /// A group whose ranks host these ranges of replicas, to be given to a thread each.
    ///
    /// A collective that a rank waits for longer than `deadline` is an error.
    ///
    /// # Errors
    /// If the ranges don't follow each other from 0 on, or one is empty.
    pub fn group(ranges: &[Range<u32>], deadline: Duration) -> Result<Vec<Self>, GroupFault> {
        let ranks = queues(ranges, deadline)?.into_iter().map(|queues| {
            let rank = queues.rank;
            Self {
                exact: Exact::new(queues, Generation::default(), rank, ranges),
            }
        });
        Ok(ranks.collect())
    }

    /// A worker that is alone and hosts all `replicas`. It waits for nobody.
    ///
    /// # Errors
    /// If there are no replicas.
    pub fn solo(replicas: u32) -> Result<Self, GroupFault> {
        let mut ranks = Self::group(std::slice::from_ref(&(0..replicas)), Duration::MAX)?;
        ranks.pop().ok_or(GroupFault::Empty)
    }

    /// What calls this rank's collective off from another thread.
    pub fn abort_handle(&self) -> Abort {
        self.exact.links().abort.clone()
    }
}

impl Collective for InProcess {
    fn rank(&self) -> Rank {
        self.exact.rank()
    }

    fn world_size(&self) -> u32 {
        self.exact.world_size()
    }

    fn reduce_mean(
        &mut self,
        hosted: &mut [&mut [f32]],
        mean: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.exact.reduce_mean(hosted, mean)
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.exact.barrier()
    }

    fn gather(&mut self, word: u64) -> Result<Vec<u64>, CollectiveError> {
        self.exact.gather(word)
    }

    fn copy(&mut self, holders: &[Rank], vector: &mut [f32]) -> Result<(), CollectiveError> {
        self.exact.copy(holders, vector)
    }

    fn sent_bytes(&self) -> u64 {
        self.exact.sent_bytes()
    }
}

/// What the ranks share.
struct Post {
    mail: Mutex<Mail>,
    changed: Condvar,
}

struct Mail {
    /// From each rank to each, by `from * world_size + to`.
    queues: Vec<VecDeque<(Label, Vec<f32>)>>,
    /// Ranks that send nothing any more.
    gone: Vec<bool>,
    /// Buffers to be used again.
    spare: Vec<Vec<f32>>,
}

impl Post {
    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One rank's ends of the queues.
struct Queues {
    post: Arc<Post>,
    rank: Rank,
    world_size: u32,
    abort: Abort,
    deadline: Duration,
    operation: Operation,
    limit: Limit,
}

/// The ends of the queues of a group whose ranks host these ranges, by rank.
fn queues(ranges: &[Range<u32>], deadline: Duration) -> Result<Vec<Queues>, GroupFault> {
    let replicas = ranges.last().map_or(0, |range| range.end);
    check_ranges(ranges, replicas)?;
    let world_size = ranges.len();
    let post = Arc::new(Post {
        mail: Mutex::new(Mail {
            queues: (0..world_size * world_size)
                .map(|_| VecDeque::new())
                .collect(),
            gone: vec![false; world_size],
            spare: Vec::new(),
        }),
        changed: Condvar::new(),
    });
    let rank = |rank: usize| {
        let rank = Rank(rank as u32);
        let abort = Abort::new();
        let listening = Arc::downgrade(&post);
        abort.on_abort(move || {
            if let Some(post) = listening.upgrade() {
                drop(post.mail());
                post.changed.notify_all();
            }
        });
        Queues {
            post: Arc::clone(&post),
            rank,
            world_size: world_size as u32,
            abort,
            deadline,
            operation: Operation::Reduce,
            limit: Limit::start(deadline),
        }
    };
    Ok((0..world_size).map(rank).collect())
}

const ADDRESS: &str = "this process";

impl Queues {
    fn queue(&self, from: Rank, to: Rank) -> usize {
        (from.0 * self.world_size + to.0) as usize
    }

    fn aborted(&self) -> Result<(), CollectiveError> {
        match self.abort.reason() {
            None => Ok(()),
            Some(reason) => Err(CollectiveError::Aborted {
                generation: Generation::default(),
                reason: reason.to_owned(),
            }),
        }
    }

    fn lost(&self, rank: Rank) -> CollectiveError {
        CollectiveError::PeerLost {
            generation: Generation::default(),
            rank,
            address: ADDRESS.to_owned(),
            source: io::Error::new(io::ErrorKind::ConnectionAborted, "its collective is gone"),
        }
    }
}

impl Links for Queues {
    fn begin(&mut self, operation: Operation) -> Result<(), CollectiveError> {
        self.operation = operation;
        self.limit = Limit::start(self.deadline);
        self.aborted()
    }

    fn send(&mut self, to: Rank, label: Label, values: &[f32]) -> Result<(), CollectiveError> {
        self.aborted()?;
        let mut buffer = self.post.mail().spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(values);
        let queue = self.queue(self.rank, to);
        let mut mail = self.post.mail();
        if mail.gone[to.0 as usize] {
            return Err(self.lost(to));
        }
        mail.queues[queue].push_back((label, buffer));
        drop(mail);
        self.post.changed.notify_all();
        Ok(())
    }

    fn send_all(&mut self, label: Label, values: &[f32]) -> Result<(), CollectiveError> {
        let own = self.rank;
        let mut others = (0..self.world_size).map(Rank).filter(|to| *to != own);
        others.try_for_each(|to| self.send(to, label, values))
    }

    fn receive(
        &mut self,
        from: Rank,
        label: Label,
        into: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let queue = self.queue(from, self.rank);
        let mut mail = self.post.mail();
        let (found, buffer) = loop {
            self.aborted()?;
            if let Some(message) = mail.queues[queue].pop_front() {
                break message;
            }
            if mail.gone[from.0 as usize] {
                return Err(self.lost(from));
            }
            let Some(left) = self.limit.left() else {
                return Err(CollectiveError::Deadline {
                    generation: label.generation,
                    operation: self.operation,
                    missing: Peers(vec![(from, ADDRESS.to_owned())]),
                    waited: self.limit.waited(),
                    last: String::new(),
                });
            };
            mail = self
                .post
                .changed
                .wait_timeout(mail, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        };
        drop(mail);
        // The same check as on a wire, so that misuse looks the same in tests.
        if let Err(mismatch) = label.check(into.len(), &found.header(buffer.len())) {
            return Err(CollectiveError::Protocol {
                generation: label.generation,
                rank: from,
                address: ADDRESS.to_owned(),
                field: mismatch.field,
                expected: mismatch.expected,
                found: mismatch.found,
            });
        }
        into.copy_from_slice(&buffer);
        self.post.mail().spare.push(buffer);
        Ok(())
    }

    fn cut(&mut self) {
        self.post.mail().gone[self.rank.0 as usize] = true;
        self.post.changed.notify_all();
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        self.cut();
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{self, Member};
    use super::*;

    fn form(ranges: &[Range<u32>], deadline: Duration) -> Vec<Member> {
        InProcess::group(ranges, deadline)
            .unwrap()
            .into_iter()
            .map(|rank| Member {
                abort: rank.abort_handle(),
                collective: Box::new(rank),
            })
            .collect()
    }

    conformance::suite!(form);

    #[test]
    fn a_range_without_a_replica_is_refused() {
        assert!(InProcess::solo(0).is_err());
        assert!(InProcess::group(&[0..1, 1..1], Duration::from_secs(1)).is_err());
    }

    /// A network that takes this long for a frame.
    struct Slow {
        queues: Queues,
        pause: Duration,
    }

    impl Links for Slow {
        fn begin(&mut self, operation: Operation) -> Result<(), CollectiveError> {
            self.queues.begin(operation)
        }
        fn send(&mut self, to: Rank, label: Label, values: &[f32]) -> Result<(), CollectiveError> {
            std::thread::sleep(self.pause);
            self.queues.send(to, label, values)
        }
        fn send_all(&mut self, label: Label, values: &[f32]) -> Result<(), CollectiveError> {
            self.queues.send_all(label, values)
        }
        fn receive(
            &mut self,
            from: Rank,
            label: Label,
            into: &mut [f32],
        ) -> Result<(), CollectiveError> {
            self.queues.receive(from, label, into)
        }
        fn cut(&mut self) {
            self.queues.cut();
        }
    }

    /// 30 chunks at 20 ms each, against a deadline of 300 ms.
    #[test]
    fn a_copy_may_take_longer_than_a_deadline_while_it_makes_progress() {
        let (chunks, pause, deadline) = (30, Duration::from_millis(20), Duration::from_millis(300));
        let started = conformance::now();
        std::thread::scope(|scope| {
            for queues in queues(&[0..1, 1..2], deadline).unwrap() {
                scope.spawn(move || {
                    let rank = queues.rank;
                    let slow = Slow { queues, pause };
                    let mut exact = Exact::new(slow, Generation(0), rank, &[0..1, 1..2]);
                    let mut vector = vec![1.0 - rank.0 as f32; chunks * super::super::exact::CHUNK];
                    exact.copy(&[Rank(0)], &mut vector).unwrap();
                    assert!(vector.iter().all(|&value| value == 1.0));
                });
            }
        });
        assert!(started.elapsed() > 2 * deadline);
    }
}
