//! What the training thread is told to do, in order; but a newer generation goes before all that
//! was said of older ones.

use super::wire::{Assignment, EpochWork};
use crate::ids::Generation;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// What the thread is told.
pub(super) enum Command {
    /// Take part in a generation.
    Form(Box<Form>),
    /// More shards for it.
    Work(Generation, Vec<EpochWork>),
    /// A flag was raised, or a collective was called off: look again, should you be waiting.
    Look,
}

/// A generation to take part in.
pub(super) struct Form {
    pub(super) assignment: Assignment,
    /// When the worker heard of it.
    pub(super) heard_at: Instant,
}

/// What came for a thread that is in a generation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// Shards of this generation.
    Work(Vec<EpochWork>),
    /// A newer generation: this one is over.
    Successor,
    /// Nothing that changes its work.
    Nothing,
}

/// Nobody gives commands any more: the worker is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ending;

pub(super) struct Inbox {
    commands: Receiver<Command>,
    /// The newest generation that has not begun.
    next: Option<Box<Form>>,
}

impl Inbox {
    pub(super) fn new(commands: Receiver<Command>) -> Self {
        Self {
            commands,
            next: None,
        }
    }

    /// Waits for a generation; of several it is the newest.
    pub(super) fn wait(&mut self) -> Result<Box<Form>, Ending> {
        loop {
            while let Ok(command) = self.commands.try_recv() {
                self.absorb(command, None);
            }
            if let Some(form) = self.next.take() {
                return Ok(form);
            }
            let command = self.commands.recv().map_err(|_| Ending)?;
            self.absorb(command, None);
        }
    }

    /// What has come for `generation`, without waiting.
    pub(super) fn look(&mut self, generation: Generation) -> Result<Came, Ending> {
        loop {
            if self.next.is_some() {
                return Ok(Came::Successor);
            }
            let command = match self.commands.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Empty) => return Ok(Came::Nothing),
                Err(TryRecvError::Disconnected) => return Err(Ending),
            };
            if let Some(work) = self.absorb(command, Some(generation)) {
                return Ok(Came::Work(work));
            }
        }
    }

    /// The next that comes for `generation`; nothing if that takes longer than `patience`, or if it
    /// is a call to look at the orders.
    pub(super) fn await_next(
        &mut self,
        generation: Generation,
        patience: Duration,
    ) -> Result<Came, Ending> {
        if self.next.is_some() {
            return Ok(Came::Successor);
        }
        // One at a time: a call to look that came a moment ago has not been answered.
        let command = match self.commands.recv_timeout(patience) {
            Ok(command) => command,
            Err(RecvTimeoutError::Timeout) => return Ok(Came::Nothing),
            Err(RecvTimeoutError::Disconnected) => return Err(Ending),
        };
        match self.absorb(command, Some(generation)) {
            Some(work) => Ok(Came::Work(work)),
            None if self.next.is_some() => Ok(Came::Successor),
            None => Ok(Came::Nothing),
        }
    }

    /// Keeps what is for a generation to come, and gives what is for the `present` one. Invariant 3:
    /// what is for an older one has no effect.
    fn absorb(&mut self, command: Command, present: Option<Generation>) -> Option<Vec<EpochWork>> {
        let next = self.next.as_ref().map(|next| next.assignment.generation());
        match command {
            Command::Form(form) => {
                if next.max(present) < Some(form.assignment.generation()) {
                    self.next = Some(form);
                }
            }
            Command::Work(generation, work) => {
                if let Some(next) = &mut self.next
                    && next.assignment.generation() == generation
                {
                    next.assignment.work.extend(work);
                } else if present == Some(generation) {
                    return Some(work);
                }
            }
            Command::Look => {}
        }
        None
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a form carries a real instant")]
mod tests {
    use super::*;
    use crate::collective::Group;
    use crate::ids::{Epoch, Rank, Step};
    use std::sync::mpsc::{Sender, channel};

    fn form(generation: u64) -> Command {
        let group = Group {
            generation: Generation(generation),
            rank: Rank(0),
            peers: Vec::new(),
            replicas: 0,
            secret: [0; 32],
        };
        let assignment = Assignment {
            group,
            checkpoint: None,
            total: Step(8),
            close: None,
            recorded: Step(0),
            work: vec![epoch(0)],
        };
        Command::Form(Box::new(Form {
            assignment,
            heard_at: Instant::now(),
        }))
    }

    fn epoch(epoch: u64) -> EpochWork {
        (Epoch(epoch), Vec::new())
    }

    fn work(generation: u64, of: u64) -> Command {
        Command::Work(Generation(generation), vec![epoch(of)])
    }

    fn inbox(told: impl IntoIterator<Item = Command>) -> (Sender<Command>, Inbox) {
        let (sender, commands) = channel();
        for command in told {
            sender.send(command).unwrap();
        }
        (sender, Inbox::new(commands))
    }

    /// Invariant 3.
    #[test]
    fn of_several_generations_only_the_newest_begins_with_all_its_work() {
        let told = [
            work(1, 9),
            form(2),
            work(2, 1),
            form(4),
            work(4, 1),
            form(3),
            work(2, 2),
        ];
        let (sender, mut inbox) = inbox(told);
        let form = inbox.wait().unwrap();
        assert_eq!(form.assignment.generation(), Generation(4));
        assert_eq!(form.assignment.work, [epoch(0), epoch(1)]);
        let four = Generation(4);
        assert_eq!(inbox.look(four), Ok(Came::Nothing));
        sender.send(work(3, 2)).unwrap();
        sender.send(work(4, 2)).unwrap();
        assert_eq!(inbox.look(four), Ok(Came::Work(vec![epoch(2)])));
        drop(sender);
        assert_eq!(inbox.look(four), Err(Ending));
        assert!(inbox.wait().is_err());
    }

    #[test]
    fn a_successor_is_not_lost_on_a_thread_that_is_busy() {
        let (_sender, mut inbox) = inbox([Command::Look, form(5), work(5, 1)]);
        let four = Generation(4);
        assert_eq!(inbox.look(four), Ok(Came::Successor));
        assert_eq!(inbox.await_next(four, Duration::ZERO), Ok(Came::Successor));
        let form = inbox.wait().unwrap();
        assert_eq!(form.assignment.generation(), Generation(5));
        assert_eq!(form.assignment.work, [epoch(0), epoch(1)]);
    }

    #[test]
    fn whoever_waits_is_woken_by_work_and_by_flags() {
        let (sender, mut inbox) = inbox([]);
        let one = Generation(1);
        let soon = Duration::from_millis(1);
        assert_eq!(inbox.await_next(one, soon), Ok(Came::Nothing));
        let long = Duration::from_secs(3600);
        sender.send(Command::Look).unwrap();
        assert_eq!(inbox.await_next(one, long), Ok(Came::Nothing));
        sender.send(work(1, 3)).unwrap();
        let next = inbox.await_next(one, long);
        assert_eq!(next, Ok(Came::Work(vec![epoch(3)])));
        sender.send(form(1)).unwrap();
        // It is in it already.
        assert_eq!(inbox.await_next(one, long), Ok(Came::Nothing));
        sender.send(form(2)).unwrap();
        assert_eq!(inbox.await_next(one, long), Ok(Came::Successor));
        drop(sender);
        assert_eq!(inbox.await_next(Generation(2), long), Ok(Came::Successor));
        assert!(inbox.wait().is_ok());
        assert_eq!(inbox.await_next(Generation(2), long), Err(Ending));
    }
}
