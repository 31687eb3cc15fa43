//! Invariant 3: what an older generation says has no effect, whoever says it and however late.

use super::*;

/// Every kind of word that belongs to a generation.
fn words(generation: Generation) -> Vec<Word> {
    let step = Step(900);
    let pace = Pace {
        compute: at(1),
        hosted: 1,
    };
    let finishes = [
        Finish::Complete,
        Finish::Stopped,
        Finish::Left,
        Finish::Failed("x".to_owned()),
    ];
    let finished = finishes.map(|finish| Word::Finished(generation, step, finish));
    let others = [
        Word::Formed(generation, step, Forming::default()),
        Word::Progress(generation, step),
        Word::Heartbeat(generation, step, None),
        Word::Heartbeat(generation, step, Some(pace)),
        Word::CheckpointWritten(generation, checkpoint(900)),
        Word::CheckpointFailed(generation, step, "x".to_owned()),
        Word::Paused(generation, step),
        Word::CollectiveFailed(generation, step, broken(Some(0))),
    ];
    others.into_iter().chain(finished).collect()
}

/// Not a single field of the machine is another one afterwards.
fn assert_deaf(job: &mut Job, id: u64, word: Word) {
    job.beat(&[id]);
    let before = format!("{:?}", job.machine);
    let actions = job.say(id, word.clone());
    assert!(actions.is_empty(), "{word:?}: {actions:?}");
    assert_eq!(format!("{:?}", job.machine), before, "{word:?}");
}

/// Jobs of generation 2, in every phase that has one, whose workers 2 and 3 were in generation 1.
fn jobs() -> Vec<Job> {
    let forming = || {
        let mut job = Job::running(elastic(3, 4), 3);
        job.lost(1);
        assert_eq!(*job.phase(), Phase::Forming);
        job
    };
    let running = || {
        let mut job = forming();
        job.formed(&[2, 3], 10);
        job
    };
    let mut pausing = running();
    pausing.hello(4);
    pausing.ready(4, 0);
    assert!(matches!(pausing.phase(), Phase::Pausing(_)));
    let mut stopping = running();
    stopping.event(Event::Stop("enough".to_owned()));
    assert_eq!(*stopping.phase(), Phase::Stopping);
    vec![forming(), running(), pausing, stopping]
}

#[test]
fn no_word_of_an_older_generation_has_an_effect_in_any_phase() {
    for mut job in jobs() {
        assert_eq!(job.generation(), Generation(2));
        for word in words(Generation(1)) {
            assert_deaf(&mut job, 2, word);
        }
    }
}

#[test]
fn no_word_of_a_generation_that_is_held_has_an_effect() {
    let mut job = Job::running(rules(2), 2);
    job.lost(2);
    assert_eq!(*job.phase(), Phase::Gathering);
    let failed = |word: &Word| matches!(word, Word::Finished(.., Finish::Failed(_)));
    for word in words(Generation(1)) {
        if !failed(&word) {
            assert_deaf(&mut job, 1, word);
        }
    }
    // But who holds no seat may say that it can't go on.
    for word in words(Generation(1)).into_iter().filter(failed) {
        let actions = job.say(1, word);
        assert_eq!(told(&actions), [(1, "acknowledged")]);
    }
}

#[test]
fn a_spare_worker_cannot_speak_for_a_generation() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.hello(3);
    job.ready(3, 0);
    for word in words(Generation(1)) {
        if !matches!(word, Word::Finished(.., Finish::Failed(_))) {
            assert_deaf(&mut job, 3, word);
        }
    }
}

#[test]
fn nor_can_anybody_speak_for_a_generation_to_come() {
    let mut job = Job::running(elastic(2, 2), 2);
    for word in words(Generation(2)) {
        assert_deaf(&mut job, 1, word);
    }
}

/// The mistake that the simulation must find is one.
#[test]
fn a_machine_that_hears_the_past_is_misled() {
    let mut job = Job::running(elastic(2, 2), 2);
    job.lost(1);
    job.bugs.stale_generation_accepted = true;
    job.say(2, Word::Progress(Generation(1), Step(900)));
    assert_eq!(job.reached(), Step(900));
}
