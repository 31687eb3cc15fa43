//! What the worker's loop wants of the training thread, without waiting for it.
//!
//! Flags take effect at the end of a step, on all workers at the same one; a call-off takes effect
//! at once. The thread may be just about to connect when a call-off comes, so what is remembered is
//! not which collective to call off, but which generations are over.

use crate::collective::{Abort, Flags};
use crate::ids::Generation;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default)]
pub(super) struct Orders {
    /// Whoever is told to go is told for good.
    leaving: AtomicBool,
    save: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Generations before this one are over.
    floor: Generation,
    why: String,
    /// A pause concerns one generation: the next is what it was for.
    pause: Generation,
    /// So does the end of the job: another coordinator may go on with it.
    stop: Generation,
    drain: Generation,
    /// The newest generation that the thread took part in, and what calls its collective off.
    present: (Generation, Abort),
}

impl Orders {
    pub(super) fn raise_leaving(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    pub(super) fn raise_stop(&self, generation: Generation) {
        let mut state = self.state();
        state.stop = state.stop.max(generation);
    }

    pub(super) fn raise_drain(&self, generation: Generation) {
        let mut state = self.state();
        state.drain = state.drain.max(generation);
    }

    /// Should the process end now, what it holds is to be saved.
    pub(super) fn save_at_the_end(&self) {
        self.save.store(true, Ordering::Relaxed);
    }

    pub(super) fn saves_at_the_end(&self) -> bool {
        self.save.load(Ordering::Relaxed)
    }

    pub(super) fn raise_pause(&self, generation: Generation) {
        let mut state = self.state();
        state.pause = state.pause.max(generation);
    }

    /// Calls off every collective of generations before `floor`: the one in flight, and those that
    /// are yet to begin.
    pub(super) fn abort(&self, floor: Generation, reason: &str) {
        let mut state = self.state();
        if floor > state.floor {
            state.floor = floor;
            reason.clone_into(&mut state.why);
        }
        let (generation, abort) = state.present.clone();
        drop(state);
        if generation < floor {
            abort.abort(reason);
        }
    }

    /// What calls off the collective of `generation`, which the thread is about to begin.
    pub(super) fn renew(&self, generation: Generation) -> Abort {
        let abort = Abort::new();
        let mut state = self.state();
        state.present = (generation, abort.clone());
        if generation < state.floor {
            abort.abort(state.why.clone());
        }
        abort
    }

    /// The newest generation that the thread took part in; 0 is none.
    pub(super) fn newest(&self) -> Generation {
        self.state().present.0
    }

    /// This worker's orders in `generation`.
    pub(super) fn flags(&self, generation: Generation) -> Flags {
        let state = self.state();
        Flags {
            pause: state.pause == generation,
            leaving: state.drain == generation || self.leaving.load(Ordering::Relaxed),
            stop: state.stop == generation,
            ..Flags::default()
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_off_reaches_what_is_in_flight_and_what_is_about_to_begin() {
        let orders = Orders::default();
        let third = orders.renew(Generation(3));
        orders.abort(Generation(3), "for those before");
        assert_eq!(third.reason(), None, "generation 3 is not before 3");
        orders.abort(Generation(5), "5 takes its place");
        assert_eq!(third.reason(), Some("5 takes its place"));
        let late = orders.renew(Generation(4));
        assert_eq!(late.reason(), Some("5 takes its place"));
        let fifth = orders.renew(Generation(5));
        assert_eq!(fifth.reason(), None);
    }

    /// Invariant 3.
    #[test]
    fn an_older_call_off_and_an_older_pause_have_no_effect() {
        let orders = Orders::default();
        orders.abort(Generation(5), "over");
        orders.abort(Generation(2), "long over");
        assert_eq!(orders.renew(Generation(4)).reason(), Some("over"));
        let sixth = orders.renew(Generation(6));
        orders.abort(Generation(6), "over");
        assert_eq!(sixth.reason(), None);
        orders.raise_pause(Generation(6));
        orders.raise_pause(Generation(5));
        assert!(orders.flags(Generation(6)).pause);
        assert!(!orders.flags(Generation(5)).pause);
    }

    #[test]
    fn who_is_told_to_go_is_told_for_good_and_all_else_is_for_one_generation() {
        let orders = Orders::default();
        orders.raise_pause(Generation(2));
        orders.raise_leaving();
        let second = orders.flags(Generation(2));
        assert!(second.pause && second.leaving && !second.stop);
        orders.raise_stop(Generation(3));
        let third = orders.flags(Generation(3));
        assert!(!third.pause && third.leaving && third.stop);
        assert!(!orders.flags(Generation(4)).stop);

        let drained = Orders::default();
        drained.raise_drain(Generation(3));
        assert!(drained.flags(Generation(3)).leaving && !drained.flags(Generation(4)).leaving);
    }
}
