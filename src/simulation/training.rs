//! A worker's training thread: connect, find the newest state, copy it, do steps, save.
//!
//! What it computes is one number a state ([`State`]); all that the machines depend on is as in
//! `worker::training`.

use super::collective::Group;
use super::job::State;
use super::worker::{Input, ProcessId, process};
use super::world::{Happening, World};
use crate::ids::{Generation, Step};
use crate::membership::balance::Pace;
use crate::membership::{Assignment, Finish, Now, Word};
use crate::session::{Event, Newest};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

/// What the thread is told; a generation with the life of the coordinator that spoke it.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Form(Box<Assignment>, u64),
    Work(Generation, Range<u64>),
}

/// What the thread tells.
#[derive(Clone, Debug)]
pub(super) enum Report {
    Say(Box<Word>),
    Event(Box<Event>),
}

/// What the thread was waiting for.
#[derive(Clone, Debug)]
pub(super) enum Wake {
    /// It has nothing to do: is there a command?
    Begin,
    /// Something that it waits for may have come.
    Look,
    /// It has not come in time.
    Deadline,
    /// The checkpoint is read.
    Read,
    /// Its replicas' gradients are there.
    Computed,
    /// This state is on disk, written for this generation.
    Saved(State, Generation),
}

/// Where the thread is within a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Connecting,
    /// Collectives 0, 1 and 2 are forming's; the others are steps.
    Collective(u64),
    Reading,
    Computing,
    /// All work that was handed out is done.
    Waiting,
    /// The last state is being written.
    Saving,
}

/// A generation, as the thread goes through it.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) assignment: Box<Assignment>,
    pub(super) life: u64,
    pub(super) rank: usize,
    pub(super) place: Place,
    pub(super) next: u64,
    pub(super) epochs: BTreeSet<u64>,
    pub(super) agreed: Option<Newest>,
    /// Called off: the next collective fails.
    pub(super) aborted: bool,
    pub(super) saved: Option<Step>,
    pub(super) finish: Finish,
}

#[derive(Clone, Debug)]
pub(super) struct Thread {
    pub(super) state: State,
    pub(super) commands: VecDeque<Command>,
    pub(super) run: Option<Run>,
    /// Of the present wait: what was waited for before has no effect.
    pub(super) ticket: u64,
    /// Checkpoints that are being written.
    pub(super) saving: u32,
    /// Of the steps since the last sign of life: how many, what they took, for how many replicas.
    pub(super) pace: (u32, Duration, u32),
    pub(super) reported_at: Now,
}

pub(super) const REPORT_EVERY: Duration = Duration::from_millis(100);

impl Thread {
    pub(super) fn new(state: State) -> Self {
        Self {
            state,
            commands: VecDeque::new(),
            run: None,
            ticket: 0,
            saving: 0,
            pace: (0, Duration::ZERO, 0),
            reported_at: Now::ZERO,
        }
    }

    pub(super) fn take_pace(&mut self) -> Option<Pace> {
        let (steps, compute, hosted) = std::mem::take(&mut self.pace);
        let compute = compute.checked_div(steps)?;
        Some(Pace { compute, hosted })
    }

    pub(super) fn run(&mut self) -> &mut Run {
        self.run.as_mut().expect("asked within a generation only")
    }
}

impl World {
    pub(super) fn thread(&mut self, process: ProcessId) -> &mut Thread {
        &mut self.workers[process].thread
    }

    /// The thread waits, at a new place if it goes on.
    pub(super) fn wait(&mut self, process: ProcessId, place: Place, wake: Wake, length: Duration) {
        let thread = self.thread(process);
        thread.ticket += 1;
        thread.run().place = place;
        self.wake_after(process, wake, length);
    }

    pub(super) fn wake_after(&mut self, process: ProcessId, wake: Wake, length: Duration) {
        let ticket = self.thread(process).ticket;
        self.after(
            length,
            Happening::Worker(process, Input::Thread(ticket, wake)),
        );
    }

    /// What the thread says goes through a channel.
    pub(super) fn report(&mut self, process: ProcessId, report: Report) {
        let now = self.now;
        self.schedule(now, Happening::Worker(process, Input::Report(report)));
    }

    pub(super) fn report_event(&mut self, process: ProcessId, event: Event) {
        self.report(process, Report::Event(Box::new(event)));
    }

    pub(super) fn group(&mut self, process: ProcessId) -> &mut Group {
        let run = self.workers[process].thread.run();
        let id = (run.assignment.generation, run.life);
        self.groups.get_mut(&id).expect("joined when the run began")
    }

    pub(super) fn command(&mut self, process: ProcessId, command: Option<Command>) {
        let thread = self.thread(process);
        thread.commands.extend(command);
        if thread.run.is_none() {
            self.wake_after(process, Wake::Begin, Duration::ZERO);
        }
    }

    pub(super) fn wake(&mut self, process: ProcessId, ticket: u64, wake: Wake) {
        if let Wake::Saved(state, generation) = wake {
            self.saved(process, state, generation);
            return;
        }
        if self.thread(process).ticket != ticket {
            return;
        }
        if self.thread(process).run.is_none() {
            self.begin(process);
            return;
        }
        match wake {
            Wake::Look => self.look(process),
            Wake::Deadline => self.late(process),
            Wake::Read => self.read(process),
            Wake::Computed => self.computed(process),
            Wake::Begin | Wake::Saved(..) => {}
        }
    }

    /// Takes the next generation, if one was given.
    pub(super) fn begin(&mut self, process_id: ProcessId) {
        let now = self.now;
        let floor = self.workers[process_id].orders.floor;
        let (assignment, life) = loop {
            match self.thread(process_id).commands.pop_front() {
                Some(Command::Form(assignment, life)) => break (assignment, life),
                Some(Command::Work(..)) => {}
                None => return,
            }
        };
        let seats = assignment.seats.iter();
        let processes: Vec<_> = seats.map(|seat| process(&seat.incarnation)).collect();
        let generation = assignment.generation;
        let group = self.groups.entry((generation, life));
        let group = group.or_insert_with(|| Group::new(processes, now));
        let rank = assignment.rank.0 as usize;
        group.joined[rank] = true;
        let run = Run {
            life,
            rank,
            place: Place::Connecting,
            next: 0,
            epochs: assignment.epochs.clone().collect(),
            agreed: None,
            aborted: generation < floor,
            saved: None,
            finish: Finish::Complete,
            assignment,
        };
        self.thread(process_id).run = Some(run);
        self.thread(process_id).pace = (0, Duration::ZERO, 0);
        let form = self.job.form;
        self.wait(process_id, Place::Connecting, Wake::Deadline, form);
        self.tell_peers(process_id);
        self.wake_after(process_id, Wake::Look, Duration::ZERO);
    }

    /// Looks whether what the thread waits for has come.
    pub(super) fn look(&mut self, process: ProcessId) {
        let worker = &self.workers[process];
        let Some(run) = worker.thread.run.as_ref().filter(|_| worker.is_running()) else {
            return;
        };
        let (place, aborted) = (run.place, run.aborted);
        match place {
            Place::Connecting | Place::Collective(_) if aborted => {
                self.broken(process, None, "called off");
            }
            Place::Connecting => self.connecting(process),
            Place::Collective(number) => self.reducing(process, number),
            Place::Waiting => self.waiting(process),
            Place::Reading | Place::Computing | Place::Saving => {}
        }
    }

    pub(super) fn end_run(&mut self, process: ProcessId, event: Event) {
        self.leave_group(process);
        let thread = self.thread(process);
        thread.run = None;
        thread.ticket += 1;
        self.report_event(process, event);
        self.wake_after(process, Wake::Begin, Duration::ZERO);
    }

    pub(super) fn abort(&mut self, process: ProcessId, floor: Generation) {
        let orders = &mut self.workers[process].orders;
        orders.floor = orders.floor.max(floor);
        let floor = orders.floor;
        if let Some(run) = &mut self.workers[process].thread.run
            && run.assignment.generation < floor
        {
            run.aborted = true;
            self.leave_group(process);
        }
    }
}
