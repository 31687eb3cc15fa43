//! What goes to the coordinator, and what waits while it is away.
//!
//! The session's own words are said anew after a break, as far as they still mean something; they
//! are not kept. What the training thread reports is kept and told when the coordinator is back:
//! nothing waits for it (invariant 5). It is told again, too: a coordinator that died may have taken
//! with it what it had heard last, and one that knows it already doesn't mind.

use crate::ids::{Generation, Step};
use crate::proto::worker_message::Kind;
use crate::proto::{CheckpointWritten, Evaluated, Progress, WorkerMessage};
use std::collections::VecDeque;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

/// Records of steps that are kept, at most; the oldest go first.
const RECORDS: usize = 4096;
/// Reports on checkpoints that are kept, at most; the oldest go first.
const CHECKPOINTS: usize = 64;
/// Reports on evaluations that are kept, at most; the oldest go first.
const EVALUATIONS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    session: Option<Sender<WorkerMessage>>,
    /// The coordinator has said Welcome in this session.
    admitted: bool,
    /// The newest progress in the present generation, told or not.
    progress: Option<Progress>,
    /// Reports on checkpoints that are not told.
    checkpoints: VecDeque<CheckpointWritten>,
    /// The newest checkpoint that this process has written, told or not.
    saved: Option<CheckpointWritten>,
    /// Reports on evaluations that are not told.
    evaluations: VecDeque<Evaluated>,
    stuck: bool,
}

impl Outbox {
    /// A session is open.
    pub(super) fn open(&mut self, session: Sender<WorkerMessage>) {
        self.session = Some(session);
        self.admitted = false;
        self.stuck = false;
    }

    /// It is over.
    pub(super) fn close(&mut self) {
        self.session = None;
        self.admitted = false;
    }

    /// Whether there is a session.
    pub(super) fn is_open(&self) -> bool {
        self.session.is_some()
    }

    /// Whether the coordinator has stopped taking messages, so that the session is of no use any
    /// more. Says so once.
    pub(super) fn is_stuck(&mut self) -> bool {
        std::mem::take(&mut self.stuck)
    }

    /// Says a word of the session.
    pub(super) fn say(&mut self, kind: Kind) {
        let Some(session) = &self.session else {
            return;
        };
        match session.try_send(WorkerMessage { kind: Some(kind) }) {
            Ok(()) => {}
            // The session's end is under way, and will be heard of.
            Err(TrySendError::Closed(_)) => self.close(),
            Err(TrySendError::Full(_)) => {
                self.close();
                self.stuck = true;
            }
        }
    }

    /// Tells what the training thread reports; now, or when the coordinator is back.
    pub(super) fn progress(&mut self, progress: Progress) {
        let kept = self.progress.get_or_insert_default();
        if kept.generation == progress.generation {
            kept.step = kept.step.max(progress.step);
            kept.records.extend_from_slice(&progress.records);
            let oldest = kept.records.len().saturating_sub(RECORDS);
            kept.records.drain(..oldest);
        } else {
            // Invariant 3: what an older generation had to say has no effect any more.
            kept.clone_from(&progress);
        }
        if self.admitted {
            self.say(Kind::Progress(progress));
        }
    }

    /// As [`Outbox::progress`]. A checkpoint is as good after a membership change as before it, so
    /// it goes out in the name of the `present` generation.
    pub(super) fn checkpoint(&mut self, written: CheckpointWritten, present: Generation) {
        let newest = self.saved.as_ref().map(|saved| saved.step);
        if written.error.is_empty() && newest.is_none_or(|newest| written.step >= newest) {
            self.saved = Some(written.clone());
        }
        if self.admitted {
            self.say(stamped(written, present));
        } else {
            if self.checkpoints.len() == CHECKPOINTS {
                self.checkpoints.pop_front();
            }
            self.checkpoints.push_back(written);
        }
    }

    /// As [`Outbox::checkpoint`]. What a coordinator took with it is in `evaluations.jsonl`.
    pub(super) fn evaluated(&mut self, evaluated: Evaluated, present: Generation) {
        if self.evaluations.len() == EVALUATIONS {
            self.evaluations.pop_front();
        }
        self.evaluations.push_back(evaluated);
        if self.admitted {
            self.tell_evaluations(present);
        }
    }

    fn tell_evaluations(&mut self, present: Generation) {
        for mut evaluated in std::mem::take(&mut self.evaluations) {
            evaluated.generation = present.0;
            self.say(Kind::Evaluated(evaluated));
        }
    }

    /// The coordinator has let this worker in. If its generation goes on it is told all that it has
    /// missed.
    pub(super) fn admitted(&mut self, resumed: bool, present: Generation) {
        self.admitted = self.session.is_some();
        if !resumed {
            self.progress = None;
            return;
        }
        if let Some(progress) = self.progress.clone() {
            self.say(Kind::Progress(progress));
        }
        self.tell_checkpoints(None, present);
        self.tell_evaluations(present);
    }

    /// This worker takes part in a generation, and `known` is the newest checkpoint on record.
    pub(super) fn seated(&mut self, known: Option<Step>, present: Generation) {
        self.tell_checkpoints(known, present);
        self.tell_evaluations(present);
    }

    fn tell_checkpoints(&mut self, known: Option<Step>, present: Generation) {
        let waiting = std::mem::take(&mut self.checkpoints);
        let newest = self.saved.clone();
        let is_told = |saved: &CheckpointWritten| {
            waiting.iter().any(|written| written == saved)
                || known.is_some_and(|known| known.0 >= saved.step)
        };
        let again = newest.filter(|saved| !is_told(saved));
        for written in waiting.into_iter().chain(again) {
            self.say(stamped(written, present));
        }
    }
}

fn stamped(mut written: CheckpointWritten, present: Generation) -> Kind {
    written.generation = present.0;
    Kind::CheckpointWritten(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::StepRecord;
    use tokio::sync::mpsc::{Receiver, channel};

    fn progress(generation: u64, step: u64) -> Progress {
        Progress {
            generation,
            step,
            records: vec![StepRecord {
                step,
                ..StepRecord::default()
            }],
        }
    }

    fn written(step: u64) -> CheckpointWritten {
        CheckpointWritten {
            generation: 1,
            step,
            ..CheckpointWritten::default()
        }
    }

    /// What has arrived: steps of records, and (generation, step) of checkpoints.
    fn arrived(inbox: &mut Receiver<WorkerMessage>) -> (Vec<u64>, Vec<(u64, u64)>) {
        let (mut steps, mut checkpoints) = (Vec::new(), Vec::new());
        while let Ok(message) = inbox.try_recv() {
            match message.kind {
                Some(Kind::Progress(told)) => {
                    assert_eq!(told.records.last().map(|last| last.step), Some(told.step));
                    steps.extend(told.records.iter().map(|record| record.step));
                }
                Some(Kind::CheckpointWritten(told)) => {
                    checkpoints.push((told.generation, told.step));
                }
                other => panic!("{other:?}"),
            }
        }
        (steps, checkpoints)
    }

    /// Invariant 5.
    #[test]
    fn what_the_coordinator_missed_it_is_told_when_it_is_back() {
        let (sender, mut inbox) = channel(8);
        let mut outbox = Outbox::default();
        outbox.progress(progress(1, 1));
        outbox.open(sender);
        // It has not said Welcome yet.
        outbox.progress(progress(1, 2));
        outbox.checkpoint(written(2), Generation(1));
        assert_eq!(arrived(&mut inbox), (vec![], vec![]));
        outbox.admitted(true, Generation(1));
        outbox.progress(progress(1, 3));
        assert_eq!(arrived(&mut inbox), (vec![1, 2, 3], vec![(1, 2)]));
    }

    #[test]
    fn what_may_have_died_with_a_coordinator_is_told_the_next() {
        let mut outbox = Outbox::default();
        for coordinator in 0..2 {
            let (sender, mut inbox) = channel(8);
            outbox.open(sender);
            outbox.admitted(true, Generation(2));
            if coordinator == 0 {
                outbox.progress(progress(2, 3));
                outbox.checkpoint(written(2), Generation(2));
            }
            assert_eq!(
                arrived(&mut inbox),
                (vec![3], vec![(2, 2)]),
                "{coordinator}"
            );
            outbox.close();
        }
    }

    #[test]
    fn after_a_fencing_progress_is_nothing_and_a_checkpoint_still_counts() {
        let (sender, mut inbox) = channel(8);
        let mut outbox = Outbox::default();
        outbox.progress(progress(1, 5));
        outbox.checkpoint(written(4), Generation(1));
        outbox.open(sender);
        outbox.admitted(false, Generation(1));
        assert_eq!(arrived(&mut inbox), (vec![], vec![]));
        outbox.seated(Some(Step(2)), Generation(3));
        assert_eq!(arrived(&mut inbox), (vec![], vec![(3, 4)]));
        outbox.seated(Some(Step(4)), Generation(4));
        assert_eq!(arrived(&mut inbox), (vec![], vec![]));
    }

    #[test]
    fn a_backlog_has_an_end_and_keeps_what_is_newest() {
        let (sender, mut inbox) = channel(CHECKPOINTS + 1);
        let mut outbox = Outbox::default();
        for step in 1..=5000 {
            outbox.progress(progress(1, step));
            outbox.checkpoint(written(step), Generation(1));
        }
        outbox.open(sender);
        outbox.admitted(true, Generation(1));
        assert!(!outbox.is_stuck());
        let (steps, checkpoints) = arrived(&mut inbox);
        assert_eq!((steps.len(), steps[RECORDS - 1]), (RECORDS, 5000));
        assert_eq!(checkpoints.len(), CHECKPOINTS);
        assert_eq!(checkpoints[CHECKPOINTS - 1], (1, 5000));

        outbox.progress(progress(1, 5001));
        outbox.close();
        outbox.progress(progress(1, 5002));
        outbox.progress(progress(2, 5003));
        let (sender, mut inbox) = channel(8);
        outbox.open(sender);
        outbox.admitted(true, Generation(2));
        assert_eq!(arrived(&mut inbox).0, [5003]);
    }

    #[test]
    fn a_coordinator_that_takes_nothing_any_more_is_noticed() {
        let (sender, _inbox) = channel(1);
        let mut outbox = Outbox::default();
        outbox.open(sender);
        outbox.admitted(true, Generation(1));
        outbox.progress(progress(1, 1));
        assert!(!outbox.is_stuck());
        outbox.progress(progress(1, 2));
        assert!(outbox.is_stuck() && !outbox.is_stuck());
    }
}
