//! A worker's training thread: connect, find the newest state, copy it, do steps, save.
//!
//! What it computes is one number a state ([`State`]); all that the machines depend on is as in
//! `worker::training`.

use super::checks::Agreed;
use super::collective::{Group, Part};
use super::job::State;
use super::worker::{Input, ProcessId, process};
use super::world::{Happening, World};
use crate::collective::Flags;
use crate::ids::{Generation, Rank, Step};
use crate::membership::balance::Pace;
use crate::membership::{
    Assignment, Breakage, CheckpointRecord, Close, Finish, Forming, Now, Word,
};
use crate::session::{Event, Newest, newest, oldest};
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
enum Place {
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
struct Run {
    assignment: Box<Assignment>,
    life: u64,
    rank: usize,
    place: Place,
    next: u64,
    epochs: BTreeSet<u64>,
    agreed: Option<Newest>,
    /// Called off: the next collective fails.
    aborted: bool,
    saved: Option<Step>,
    finish: Finish,
}

#[derive(Clone, Debug)]
pub(super) struct Thread {
    pub(super) state: State,
    commands: VecDeque<Command>,
    run: Option<Run>,
    /// Of the present wait: what was waited for before has no effect.
    ticket: u64,
    /// Checkpoints that are being written.
    saving: u32,
    /// Of the steps since the last sign of life: how many, what they took, for how many replicas.
    pace: (u32, Duration, u32),
    reported_at: Now,
}

const REPORT_EVERY: Duration = Duration::from_millis(100);

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

    fn run(&mut self) -> &mut Run {
        self.run.as_mut().expect("asked within a generation only")
    }
}

impl World {
    fn thread(&mut self, process: ProcessId) -> &mut Thread {
        &mut self.workers[process].thread
    }

    /// The thread waits, at a new place if it goes on.
    fn wait(&mut self, process: ProcessId, place: Place, wake: Wake, length: Duration) {
        let thread = self.thread(process);
        thread.ticket += 1;
        thread.run().place = place;
        self.wake_after(process, wake, length);
    }

    fn wake_after(&mut self, process: ProcessId, wake: Wake, length: Duration) {
        let ticket = self.thread(process).ticket;
        self.after(
            length,
            Happening::Worker(process, Input::Thread(ticket, wake)),
        );
    }

    /// What the thread says goes through a channel.
    fn report(&mut self, process: ProcessId, report: Report) {
        let now = self.now;
        self.schedule(now, Happening::Worker(process, Input::Report(report)));
    }

    fn report_event(&mut self, process: ProcessId, event: Event) {
        self.report(process, Report::Event(Box::new(event)));
    }

    fn group(&mut self, process: ProcessId) -> &mut Group {
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
    fn begin(&mut self, process_id: ProcessId) {
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

    /// Has the other ranks look at what has changed.
    fn tell_peers(&mut self, process: ProcessId) {
        for peer in self.group(process).processes.clone() {
            if peer != process && !self.workers[peer].is_gone() {
                let delay = self.chance.ms(0, 3);
                self.wake_after(peer, Wake::Look, delay);
            }
        }
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

    /// The rank that this one can't hear, and until when.
    fn unheard(&mut self, process: ProcessId) -> Option<(usize, Now)> {
        let now = self.now;
        let peers = self.group(process).processes.clone();
        let mut peers = peers.into_iter().enumerate();
        peers.find_map(|(rank, peer)| Some((rank, self.network.apart(process, peer, now)?.1)))
    }

    fn connecting(&mut self, process: ProcessId) {
        let group = self.group(process);
        let joined = |rank: usize| group.joined[rank];
        let gone = (0..group.left.len()).find(|rank| group.left[*rank].is_some());
        if let Some(gone) = gone.filter(|rank| joined(*rank)) {
            self.broken(process, Some(gone), "a peer left while connecting");
        } else if (0..group.joined.len()).all(joined) {
            match self.unheard(process) {
                Some((_, until)) => {
                    let wait = until - self.now + Duration::from_millis(1);
                    self.wake_after(process, Wake::Look, wait);
                }
                None => self.enter(process, 0, Flags::default()),
            }
        }
    }

    fn enter(&mut self, process: ProcessId, gradient: u64, flags: Flags) {
        let (now, collective) = (self.now, self.job.collective);
        let state = self.thread(process).state;
        let run = self.workers[process].thread.run();
        let (number, rank) = (run.next, run.rank);
        run.next += 1;
        let part = Part {
            state,
            gradient,
            replicas: run.assignment.seats[rank].replicas.len() as u32,
            flags,
        };
        let id = (run.assignment.generation, run.life);
        self.wait(
            process,
            Place::Collective(number),
            Wake::Deadline,
            collective,
        );
        let group = self.groups.get_mut(&id).expect("joined when the run began");
        let last = group.enter(number, rank, part, now, &mut self.chance);
        if last {
            for (rank, peer) in group.processes.clone().into_iter().enumerate() {
                let operation = self.groups.get_mut(&id).and_then(|g| g.operation(number));
                let at = operation.map_or(now, |operation| operation.done_at(rank));
                self.wake_after(peer, Wake::Look, at - now);
            }
        }
        self.look(process);
    }

    fn reducing(&mut self, process: ProcessId, number: u64) {
        let now = self.now;
        let run = self.thread(process).run();
        let rank = run.rank;
        let group = self.group(process);
        let gone = (0..group.left.len()).find(|rank| group.left[*rank].is_some());
        let (processes, left) = (group.processes.clone(), group.left.clone());
        let Some(operation) = group.operation(number).cloned() else {
            return;
        };
        if !operation.is_full() {
            if let Some(gone) = gone {
                self.broken(process, Some(gone), "a peer is gone");
            }
            return;
        }
        let done_at = operation.done_at(rank);
        if now < done_at {
            self.wake_after(process, Wake::Look, done_at - now);
            return;
        }
        for (other, peer) in processes.iter().enumerate() {
            if other == rank || operation.done[other] {
                continue;
            }
            let sent_at = operation.sent_at(other, rank);
            if left[other].is_some_and(|at| sent_at > at) {
                self.broken(process, Some(other), "a peer is gone");
                return;
            }
            if self.workers[*peer].halted_at.is_some_and(|at| sent_at > at) {
                return; // It is stopped; when it goes on it says so.
            }
            if let Some((since, until)) = self.network.apart(process, *peer, now)
                && sent_at > since
            {
                let wait = until - now + Duration::from_millis(1);
                self.wake_after(process, Wake::Look, wait);
                return;
            }
        }
        if let Some(operation) = self.group(process).operation(number) {
            operation.done[rank] = true;
        }
        let parts: Vec<Part> = operation.parts.into_iter().flatten().collect();
        match number {
            0 => self.agree(process, &parts),
            1 => self.copy(process, &parts),
            2 => self.formed(process),
            _ => self.stepped(process, &parts),
        }
    }

    /// The wait for peers has lasted too long.
    fn late(&mut self, process: ProcessId) {
        let run = self.thread(process).run();
        let place = run.place;
        let group = self.group(process);
        let missing = match place {
            Place::Connecting => group.joined.iter().position(|joined| !joined),
            Place::Collective(number) => group
                .operation(number)
                .and_then(|operation| operation.parts.iter().position(Option::is_none)),
            Place::Waiting => {
                let why = "no work from the coordinator".to_owned();
                self.finish(process, Finish::Failed(why));
                return;
            }
            _ => return,
        };
        let halted = group.processes.clone();
        let halted = halted
            .iter()
            .position(|peer| self.workers[*peer].halted_at.is_some());
        let unheard = self.unheard(process).map(|(rank, _)| rank);
        self.broken(process, missing.or(unheard).or(halted), "too late");
    }

    /// Who holds what is known: the newest is right.
    fn agree(&mut self, process: ProcessId, parts: &[Part]) {
        let held: Vec<Step> = parts.iter().map(|part| part.state.step).collect();
        let run = self.thread(process).run();
        let saved = run.assignment.checkpoint.as_ref().map(|c| c.step);
        let first = run.rank == 0;
        let choose = if self.mistakes.oldest_state_taken {
            oldest
        } else {
            newest
        };
        let agreed = choose(&held, saved);
        self.agreement(process, agreed.step(), parts, saved);
        self.thread(process).run().agreed = Some(agreed.clone());
        if first && matches!(agreed, Newest::Saved(_)) {
            let length = self.chance.ms(20, 800);
            self.wait(process, Place::Reading, Wake::Read, length);
        } else {
            self.enter(process, 0, Flags::default());
        }
    }

    /// Tells the checks, once a generation.
    fn agreement(&mut self, process: ProcessId, from: Step, parts: &[Part], saved: Option<Step>) {
        let group = self.group(process);
        if std::mem::replace(&mut group.agreed, true) {
            return;
        }
        let (processes, spoken_at) = (group.processes.clone(), group.spoken_at);
        let assignment = &self.thread(process).run().assignment;
        // What does no step leaves nobody behind.
        let (generation, closing) = (assignment.generation, assignment.close.is_some());
        let held = parts.iter().map(|part| part.state.step);
        self.checks.agreed(generation, from, held.chain(saved));
        let agreed = Agreed {
            generation,
            from,
            processes,
            spoken_at,
        };
        if !closing {
            self.checks.followed(agreed, &self.workers);
        }
    }

    fn read(&mut self, process: ProcessId) {
        let Some(step) = self.thread(process).run().agreed.as_ref().map(Newest::step) else {
            return;
        };
        let Some(bits) = self.store.get(&step).copied() else {
            self.checks.fail(format!(
                "a checkpoint of {step} is spoken of, and isn't there"
            ));
            return;
        };
        self.thread(process).state = State { step, bits };
        self.enter(process, 0, Flags::default());
    }

    fn copy(&mut self, process: ProcessId, parts: &[Part]) {
        let agreed = self.thread(process).run().agreed.clone();
        let Some(agreed) = agreed else { return };
        for holder in agreed.holders() {
            let held = parts[holder.0 as usize].state;
            self.checks.state(&held, "a holder's");
            if held.step != agreed.step() {
                self.checks
                    .fail(format!("rank {holder} holds {held:?}, not {agreed:?}"));
            }
            if self.thread(process).state.step != agreed.step() {
                self.checks.healed += 1;
                self.thread(process).state = held;
            }
        }
        self.enter(process, 0, Flags::default());
    }

    fn formed(&mut self, process: ProcessId) {
        let step = self.thread(process).state.step;
        let run = self.thread(process).run();
        let (generation, close) = (run.assignment.generation, run.assignment.close);
        let formed = Event::Formed(generation, step, Forming::default());
        self.report_event(process, formed);
        match close {
            Some(Close::Stopped) => self.finish(process, Finish::Stopped),
            Some(Close::Left) => self.finish(process, Finish::Left),
            None => self.step(process),
        }
    }

    /// Begins a step, if there is one to do and its batches are known.
    fn step(&mut self, process: ProcessId) {
        let step = self.thread(process).state.step;
        if step.0 >= self.job.total {
            self.finish(process, Finish::Complete);
            return;
        }
        self.take_work(process);
        let epoch = step.0 / self.job.epoch;
        let run = self.thread(process).run();
        if !run.epochs.contains(&epoch) {
            self.progress(process);
            let patience = self.job.patience;
            self.wait(process, Place::Waiting, Wake::Deadline, patience);
            return;
        }
        let hosted = run.assignment.seats[run.rank].replicas.len() as u32;
        let worker = &self.workers[process];
        let rounds = hosted.div_ceil(worker.cores);
        let usual = self.job.round * rounds * worker.slow / 100;
        let compute = self.chance.time(usual, usual + usual / 10);
        let (steps, took, _) = self.thread(process).pace;
        self.thread(process).pace = (steps + 1, took + compute, hosted);
        self.wait(process, Place::Computing, Wake::Computed, compute);
    }

    /// Takes the work that has come, and leaves the next generation where it is.
    fn take_work(&mut self, process: ProcessId) {
        let thread = self.thread(process);
        let Some(run) = &mut thread.run else { return };
        let generation = run.assignment.generation;
        let epochs = &mut run.epochs;
        thread.commands.retain(|command| match command {
            Command::Work(of, more) => {
                if *of == generation {
                    epochs.extend(more.clone());
                }
                false
            }
            Command::Form(..) => true,
        });
    }

    /// Without work no step's end would show a flag: so its own count.
    fn waiting(&mut self, process: ProcessId) {
        self.take_work(process);
        let step = self.thread(process).state.step;
        let epoch = step.0 / self.job.epoch;
        let flags = self.flags(process);
        let run = self.thread(process).run();
        if run.aborted {
            self.broken(process, None, "called off");
        } else if run.epochs.contains(&epoch) {
            self.step(process);
        } else if flags.stop {
            self.finish(process, Finish::Stopped);
        } else if flags.any() {
            self.pause(process);
        }
    }

    fn flags(&mut self, process: ProcessId) -> Flags {
        let generation = self.thread(process).run().assignment.generation;
        let orders = self.workers[process].orders;
        Flags {
            pause: orders.pause == generation,
            leaving: orders.leaving || orders.drain == generation,
            stop: orders.stop == generation,
            ..Flags::default()
        }
    }

    fn computed(&mut self, process: ProcessId) {
        let state = self.thread(process).state;
        let run = self.thread(process).run();
        if run.aborted {
            self.broken(process, None, "called off");
            return;
        }
        let hosted = run.assignment.seats[run.rank].replicas.clone();
        let gradient = self.job.gradient(state, hosted);
        let flags = self.flags(process);
        self.enter(process, gradient, flags);
    }

    /// A step is done here: its parameters and moments change together.
    fn stepped(&mut self, process: ProcessId, parts: &[Part]) {
        let before = self.thread(process).state;
        let sum = parts.iter().map(|part| part.gradient);
        let state = self.job.follow(before, sum.fold(0, u64::wrapping_add));
        self.checks.state(&state, "a worker's");
        self.thread(process).state = state;
        let now = self.now;
        let run = self.thread(process).run();
        let (generation, leads) = (run.assignment.generation, run.rank == 0);
        self.checks.stepped(generation, before.step);
        let every = self.job.every;
        if leads && every > 0 && state.step.0.is_multiple_of(every) {
            if self.thread(process).saving == 0 {
                self.thread(process).run().saved = Some(state.step);
                self.save(process);
            } else {
                let busy = "the one before is still being written".to_owned();
                let failed = Word::CheckpointFailed(generation, state.step, busy);
                self.report(process, Report::Say(Box::new(failed)));
            }
        }
        if now >= self.thread(process).reported_at + REPORT_EVERY {
            self.progress(process);
        }
        let any = |flag: fn(&Part) -> bool| parts.iter().any(flag);
        if any(|part| part.flags.stop) {
            self.finish(process, Finish::Stopped);
        } else if parts.iter().all(|part| part.flags.leaving) {
            self.finish(process, Finish::Left);
        } else if any(|part| part.flags.pause || part.flags.leaving) {
            self.pause(process);
        } else {
            self.step(process);
        }
    }

    fn progress(&mut self, process: ProcessId) {
        let now = self.now;
        let thread = self.thread(process);
        thread.reported_at = now;
        let step = thread.state.step;
        let generation = thread.run().assignment.generation;
        let progress = Word::Progress(generation, step);
        self.report(process, Report::Say(Box::new(progress)));
    }

    /// Hands the state to the thread that writes.
    fn save(&mut self, process: ProcessId) {
        let thread = self.thread(process);
        thread.saving += 1;
        let state = thread.state;
        let generation = thread.run().assignment.generation;
        let length = self.chance.ms(20, 1500);
        self.wake_after(process, Wake::Saved(state, generation), length);
    }

    fn saved(&mut self, process: ProcessId, state: State, generation: Generation) {
        self.checks.state(&state, "a checkpoint's");
        self.store.insert(state.step, state.bits);
        let written = CheckpointRecord {
            step: state.step,
            path: format!("checkpoints/step-{}", state.step),
            digest: format!("{:016x}", state.bits),
        };
        let word = Word::CheckpointWritten(generation, written);
        self.report(process, Report::Say(Box::new(word)));
        let thread = self.thread(process);
        thread.saving -= 1;
        if thread.saving == 0
            && let Some(run) = &thread.run
            && run.place == Place::Saving
        {
            self.finished(process);
        }
    }

    fn pause(&mut self, process: ProcessId) {
        self.progress(process);
        let step = self.thread(process).state.step;
        let generation = self.thread(process).run().assignment.generation;
        self.end_run(process, Event::Paused(generation, step));
    }

    /// Nothing more is to be done; what there is is saved first.
    fn finish(&mut self, process: ProcessId, finish: Finish) {
        self.progress(process);
        let step = self.thread(process).state.step;
        let run = self.thread(process).run();
        let leads = run.rank == 0 && !matches!(finish, Finish::Failed(_));
        let saved = run.saved == Some(step);
        run.finish = finish;
        if leads && !saved {
            self.save(process);
        }
        if leads && self.thread(process).saving > 0 {
            let thread = self.thread(process);
            thread.ticket += 1;
            thread.run().place = Place::Saving;
        } else {
            self.finished(process);
        }
    }

    fn finished(&mut self, process: ProcessId) {
        let step = self.thread(process).state.step;
        let run = self.thread(process).run();
        let (generation, finish) = (run.assignment.generation, run.finish.clone());
        self.end_run(process, Event::TrainingEnded(generation, step, finish));
    }

    fn broken(&mut self, process: ProcessId, suspect: Option<usize>, reason: &str) {
        let step = self.thread(process).state.step;
        let generation = self.thread(process).run().assignment.generation;
        let breakage = Breakage {
            reason: reason.to_owned(),
            suspect: suspect.map(|rank| Rank(rank as u32)),
        };
        self.end_run(process, Event::CollectiveFailed(generation, step, breakage));
    }

    fn end_run(&mut self, process: ProcessId, event: Event) {
        self.leave_group(process);
        let thread = self.thread(process);
        thread.run = None;
        thread.ticket += 1;
        self.report_event(process, event);
        self.wake_after(process, Wake::Begin, Duration::ZERO);
    }

    /// Its connections to its peers are closed.
    pub(super) fn leave_group(&mut self, process: ProcessId) {
        let worker = &self.workers[process];
        let at = worker.halted_at.unwrap_or(self.now);
        let Some(run) = &worker.thread.run else {
            return;
        };
        let rank = run.rank;
        self.group(process).left[rank].get_or_insert(at);
        self.tell_peers(process);
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

    /// A process that was stopped goes on with what it was sending.
    pub(super) fn resume_sending(&mut self, process: ProcessId) {
        let now = self.now;
        let Some(run) = &self.workers[process].thread.run else {
            return;
        };
        let (rank, id) = (run.rank, (run.assignment.generation, run.life));
        if let Some(group) = self.groups.get_mut(&id) {
            group.resume(rank, now, &mut self.chance);
        }
        self.tell_peers(process);
    }
}
