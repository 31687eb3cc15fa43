//! Steps, the flags at their ends, and what is saved.

use super::collective::Part;
use super::job::State;
use super::training::{Command, Place, REPORT_EVERY, Report, Wake};
use super::worker::ProcessId;
use super::world::World;
use crate::collective::Flags;
use crate::ids::Generation;
use crate::membership::{CheckpointRecord, Finish, Word};
use crate::session::Event;

impl World {
    /// Begins a step, if there is one to do and its batches are known.
    pub(super) fn step(&mut self, process: ProcessId) {
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
    pub(super) fn take_work(&mut self, process: ProcessId) {
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
    pub(super) fn waiting(&mut self, process: ProcessId) {
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

    pub(super) fn flags(&mut self, process: ProcessId) -> Flags {
        let generation = self.thread(process).run().assignment.generation;
        let orders = self.workers[process].orders;
        Flags {
            pause: orders.pause == generation,
            leaving: orders.leaving || orders.drain == generation,
            stop: orders.stop == generation,
            ..Flags::default()
        }
    }

    pub(super) fn computed(&mut self, process: ProcessId) {
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
    pub(super) fn stepped(&mut self, process: ProcessId, parts: &[Part]) {
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

    pub(super) fn progress(&mut self, process: ProcessId) {
        let now = self.now;
        let thread = self.thread(process);
        thread.reported_at = now;
        let step = thread.state.step;
        let generation = thread.run().assignment.generation;
        let progress = Word::Progress(generation, step);
        self.report(process, Report::Say(Box::new(progress)));
    }

    /// Hands the state to the thread that writes.
    pub(super) fn save(&mut self, process: ProcessId) {
        let thread = self.thread(process);
        thread.saving += 1;
        let state = thread.state;
        let generation = thread.run().assignment.generation;
        let length = self.chance.ms(20, 1500);
        self.wake_after(process, Wake::Saved(state, generation), length);
    }

    pub(super) fn saved(&mut self, process: ProcessId, state: State, generation: Generation) {
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

    pub(super) fn pause(&mut self, process: ProcessId) {
        self.progress(process);
        let step = self.thread(process).state.step;
        let generation = self.thread(process).run().assignment.generation;
        self.end_run(process, Event::Paused(generation, step));
    }

    /// Nothing more is to be done; what there is is saved first.
    pub(super) fn finish(&mut self, process: ProcessId, finish: Finish) {
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

    pub(super) fn finished(&mut self, process: ProcessId) {
        let step = self.thread(process).state.step;
        let run = self.thread(process).run();
        let (generation, finish) = (run.assignment.generation, run.finish.clone());
        self.end_run(process, Event::TrainingEnded(generation, step, finish));
    }
}
