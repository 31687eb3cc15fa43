//! The machine's transitions, with invented instants.

use super::*;

const GEN: Generation = Generation(1);

fn rules(expected: u32) -> Rules {
    Rules {
        expected,
        max: expected,
        replicas: 4,
        total_steps: 5000,
        steps_per_epoch: 100,
        data_digest: "data".to_owned(),
        device: None,
        join: at(60),
        heartbeat: at(10),
        form: at(20),
        finish: at(30),
    }
}

fn at(seconds: u64) -> Now {
    Duration::from_secs(seconds)
}

fn facts(kind: &str) -> Facts {
    Facts {
        incarnation: "i".to_owned(),
        host: "host".to_owned(),
        pid: 7,
        collective: "10.0.0.1:1".to_owned(),
        device: DeviceKind {
            kind: kind.to_owned(),
            model: "m".to_owned(),
            libtorch: "2.11.0".to_owned(),
        },
        cores: 1,
    }
}

fn machine(expected: u32) -> Membership {
    Membership::new(rules(expected), Generation(0), Source::Fresh, at(0))
}

fn hello(machine: &mut Membership, id: u64, now: u64) -> Vec<Action> {
    machine.handle(Event::Hello(WorkerId(id), facts("cpu")), at(now))
}

fn ready(machine: &mut Membership, id: u64, now: u64) -> Vec<Action> {
    machine.handle(Event::Ready(WorkerId(id), "data".to_owned()), at(now))
}

/// A machine whose workers 1..=n train.
fn running(workers: u64) -> Membership {
    let mut machine = machine(workers as u32);
    for id in 1..=workers {
        hello(&mut machine, id, 1);
    }
    for id in 1..=workers {
        ready(&mut machine, id, 2);
    }
    for id in 1..=workers {
        machine.handle(Event::Formed(WorkerId(id), GEN, Step(0)), at(3));
    }
    assert_eq!(*machine.phase(), Phase::Running);
    machine
}

fn orders(actions: &[Action]) -> Vec<(u64, &Order)> {
    let sent = actions.iter().filter_map(|action| match action {
        Action::Send(worker, order) => Some((worker.0, order)),
        _ => None,
    });
    sent.collect()
}

fn outcome(actions: &[Action]) -> Option<&Outcome> {
    actions.iter().find_map(|action| match action {
        Action::End(outcome) => Some(outcome),
        _ => None,
    })
}

fn refusal(actions: &[Action]) -> &str {
    match orders(actions)[..] {
        [(_, Order::Refused { reason, .. })] => reason,
        ref other => panic!("no refusal in {other:?}"),
    }
}

#[test]
fn a_job_starts_when_all_expected_workers_are_ready() {
    let mut machine = machine(2);
    assert_eq!(orders(&hello(&mut machine, 1, 1)), [(1, &Order::Welcome)]);
    hello(&mut machine, 2, 1);
    assert!(ready(&mut machine, 1, 2).is_empty());
    let actions = ready(&mut machine, 2, 3);
    let orders = orders(&actions);
    assert_eq!(orders.len(), 2);
    for (rank, (worker, order)) in orders.into_iter().enumerate() {
        let Order::Assignment {
            generation,
            rank: given,
            seats,
            source,
            epochs,
        } = order
        else {
            panic!("{order:?}");
        };
        assert_eq!((*generation, given.0 as usize), (GEN, rank));
        assert_eq!(seats[rank].worker.0, worker);
        assert_eq!(
            (seats[0].replicas.clone(), seats[1].replicas.clone()),
            (0..2, 2..4)
        );
        assert_eq!((source, epochs), (&Source::Fresh, &(0..10)));
    }
    assert_eq!(*machine.phase(), Phase::Forming);
}

/// Invariant 3: a generation that is spoken is one that can't be forgotten.
#[test]
fn a_generation_is_persisted_before_it_is_spoken() {
    let mut machine = machine(1);
    hello(&mut machine, 1, 1);
    let actions = ready(&mut machine, 1, 2);
    let persisted = actions.iter().position(
        |a| matches!(a, Action::Persist(Record::Generation { generation, .. }) if *generation == GEN),
    );
    let spoken = actions
        .iter()
        .position(|a| matches!(a, Action::Send(_, Order::Assignment { .. })));
    assert!(persisted.unwrap() < spoken.unwrap(), "{actions:?}");
}

#[test]
fn a_new_coordinator_speaks_a_higher_generation() {
    let source = Source::Checkpoint(CheckpointRecord {
        step: Step(250),
        path: "p".to_owned(),
        digest: "d".to_owned(),
    });
    let mut machine = Membership::new(rules(1), Generation(7), source.clone(), at(0));
    hello(&mut machine, 1, 1);
    let actions = ready(&mut machine, 1, 2);
    let [
        (
            1,
            Order::Assignment {
                generation,
                source: from,
                epochs,
                ..
            },
        ),
    ] = orders(&actions)[..]
    else {
        panic!("{actions:?}");
    };
    assert_eq!((*generation, from), (Generation(8), &source));
    assert_eq!(epochs.start, 2, "the epoch that step 250 lies in");
}

#[test]
fn work_is_handed_out_ahead_and_never_past_the_end() {
    let mut machine = running(2);
    let progress = |step| Event::Progress(WorkerId(1), GEN, Step(step));
    assert!(orders(&machine.handle(progress(0), at(4))).is_empty());
    let actions = machine.handle(progress(1), at(4));
    let work = Order::Work {
        generation: GEN,
        epochs: 10..11,
    };
    assert_eq!(orders(&actions), [(1, &work), (2, &work)]);
    let actions = machine.handle(progress(4500), at(5));
    let [(_, Order::Work { epochs, .. }), _] = orders(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(*epochs, 11..50);
    assert!(orders(&machine.handle(progress(4999), at(6))).is_empty());
}

/// Invariant 3.
#[test]
fn an_older_generations_message_has_no_effect() {
    let mut machine = running(1);
    let old = Generation(0);
    for event in [
        Event::Progress(WorkerId(1), old, Step(9)),
        Event::Formed(WorkerId(1), old, Step(9)),
        Event::CollectiveFailed(WorkerId(1), old, Step(9), "x".to_owned()),
        Event::Finished(WorkerId(1), old, Step(9), Finish::Complete),
        Event::CheckpointFailed(WorkerId(1), old, Step(9), "x".to_owned()),
    ] {
        assert!(machine.handle(event, at(4)).is_empty());
    }
    assert_eq!(
        (machine.reached(), machine.phase()),
        (Step(0), &Phase::Running)
    );
}

#[test]
fn strangers_are_not_heard() {
    let mut machine = running(1);
    let event = Event::Finished(WorkerId(9), GEN, Step(5000), Finish::Complete);
    assert!(machine.handle(event, at(4)).is_empty());
    assert_eq!(*machine.phase(), Phase::Running);
}

#[test]
fn what_would_change_the_bits_is_refused() {
    let mut machine = machine(3);
    hello(&mut machine, 1, 1);
    let actions = machine.handle(Event::Hello(WorkerId(2), facts("cuda")), at(1));
    assert!(refusal(&actions).contains("other bits"), "{actions:?}");
    let actions = machine.handle(Event::Ready(WorkerId(1), "other".to_owned()), at(1));
    assert!(refusal(&actions).contains("same samples"), "{actions:?}");
    assert!(machine.members().is_empty());
}

#[test]
fn a_worker_too_many_or_too_late_is_refused() {
    let mut one = machine(1);
    hello(&mut one, 1, 1);
    assert!(refusal(&hello(&mut one, 2, 1)).contains("has its 1 workers"));
    let mut late = running(1);
    assert!(refusal(&hello(&mut late, 2, 5)).contains("running"));
}

#[test]
fn a_lost_worker_ends_the_job_and_is_named() {
    let mut machine = running(2);
    machine.handle(Event::Progress(WorkerId(2), GEN, Step(41)), at(4));
    let actions = machine.handle(
        Event::Lost(WorkerId(2), "its stream broke".to_owned()),
        at(5),
    );
    let Some(Outcome::Failed(reason)) = outcome(&actions) else {
        panic!("{actions:?}");
    };
    let ended = Order::Ended(Outcome::Failed(reason.clone()));
    assert_eq!(orders(&actions), [(1, &ended)]);
    for part in ["worker 2", "host, pid 7", "its stream broke", "41"] {
        assert!(reason.contains(part), "{reason}");
    }
}

#[test]
fn a_worker_that_is_lost_while_gathering_is_only_missing() {
    let mut machine = machine(2);
    hello(&mut machine, 1, 1);
    let actions = machine.handle(Event::Lost(WorkerId(1), "gone".to_owned()), at(2));
    assert_eq!(outcome(&actions), None);
    hello(&mut machine, 2, 3);
    hello(&mut machine, 3, 3);
    ready(&mut machine, 2, 4);
    assert_eq!(orders(&ready(&mut machine, 3, 4)).len(), 2);
}

#[test]
fn a_failed_collective_waits_for_the_death_that_explains_it() {
    let failed = || Event::CollectiveFailed(WorkerId(1), GEN, Step(9), "rank 1 is gone".to_owned());
    let mut explained = running(2);
    assert!(explained.handle(failed(), at(5)).is_empty());
    let actions = explained.handle(Event::Lost(WorkerId(2), "died".to_owned()), at(6));
    assert!(
        outcome(&actions)
            .unwrap()
            .to_string()
            .contains("lost worker 2")
    );

    let mut unexplained = running(2);
    unexplained.handle(failed(), at(5));
    assert_eq!(unexplained.next_deadline(), Some(at(7)));
    let actions = unexplained.handle_timeout(at(7));
    assert!(
        outcome(&actions)
            .unwrap()
            .to_string()
            .contains("rank 1 is gone")
    );
}

/// Invariant 7.
#[test]
fn every_wait_ends_and_says_who_was_waited_for() {
    let mut gathering = machine(2);
    hello(&mut gathering, 1, 1);
    ready(&mut gathering, 1, 50);
    gathering.handle(Event::Heartbeat(WorkerId(1)), at(55));
    assert_eq!(gathering.next_deadline(), Some(at(60)));
    let actions = gathering.handle_timeout(at(60));
    assert!(
        outcome(&actions)
            .unwrap()
            .to_string()
            .contains("1 of 2 ready"),
        "{actions:?}"
    );

    let mut forming = machine(2);
    for id in [1, 2] {
        hello(&mut forming, id, 1);
    }
    for id in [1, 2] {
        ready(&mut forming, id, 2);
    }
    forming.handle(Event::Formed(WorkerId(1), GEN, Step(0)), at(3));
    for id in [1, 2] {
        forming.handle(Event::Heartbeat(WorkerId(id)), at(21));
    }
    assert_eq!(forming.next_deadline(), Some(at(22)));
    let actions = forming.handle_timeout(at(22));
    assert!(
        outcome(&actions).unwrap().to_string().contains("worker 2"),
        "{actions:?}"
    );

    let mut silent = running(2);
    silent.handle(Event::Heartbeat(WorkerId(1)), at(12));
    assert_eq!(silent.next_deadline(), Some(at(13)));
    let actions = silent.handle_timeout(at(13));
    assert!(actions.contains(&Action::Close(WorkerId(2))));
    let said = outcome(&actions).unwrap().to_string();
    assert!(
        said.contains("worker 2") && said.contains("no sign of life for 10s"),
        "{said}"
    );

    let mut stopping = running(2);
    stopping.handle(Event::Stop("enough".to_owned()), at(5));
    for id in [1, 2] {
        stopping.handle(Event::Heartbeat(WorkerId(id)), at(34));
    }
    assert_eq!(stopping.next_deadline(), Some(at(35)));
    let actions = stopping.handle_timeout(at(35));
    assert!(
        outcome(&actions).unwrap().to_string().contains("to finish"),
        "{actions:?}"
    );
}

#[test]
fn a_stop_is_told_to_all_and_ends_when_all_have_finished() {
    let mut machine = running(2);
    let actions = machine.handle(Event::Stop("enough".to_owned()), at(4));
    let stop = Order::Stop {
        reason: "enough".to_owned(),
        drain: false,
    };
    assert_eq!(orders(&actions), [(1, &stop), (2, &stop)]);
    assert!(
        machine
            .handle(Event::Stop("again".to_owned()), at(4))
            .is_empty()
    );
    let finished = |id| Event::Finished(WorkerId(id), GEN, Step(33), Finish::Stopped);
    let actions = machine.handle(finished(1), at(5));
    assert_eq!(orders(&actions), [(1, &Order::Acknowledged)]);
    // It may go now: its stream's end is no loss.
    assert!(
        machine
            .handle(Event::Lost(WorkerId(1), "ended".to_owned()), at(5))
            .is_empty()
    );
    let actions = machine.handle(finished(2), at(6));
    assert_eq!(outcome(&actions), Some(&Outcome::Stopped(Step(33))));
}

#[test]
fn a_stop_before_the_job_began_ends_it() {
    let mut machine = machine(2);
    hello(&mut machine, 1, 1);
    let actions = machine.handle(Event::Stop("enough".to_owned()), at(2));
    assert_eq!(outcome(&actions), Some(&Outcome::Stopped(Step(0))));
}

#[test]
fn a_complete_job_ends_with_its_last_step() {
    let mut machine = running(2);
    let finished = |id| Event::Finished(WorkerId(id), GEN, Step(5000), Finish::Complete);
    assert_eq!(outcome(&machine.handle(finished(2), at(5))), None);
    let actions = machine.handle(finished(1), at(6));
    assert_eq!(outcome(&actions), Some(&Outcome::Complete(Step(5000))));
    assert!(actions.contains(&Action::Persist(Record::Reached(Step(5000)))));
    assert_eq!(machine.next_deadline(), None);
}

#[test]
fn a_worker_that_fails_before_it_has_a_seat_harms_nobody() {
    let mut machine = machine(1);
    hello(&mut machine, 1, 1);
    let failed = Finish::Failed("no such folder".to_owned());
    let actions = machine.handle(
        Event::Finished(WorkerId(1), Generation(0), Step(0), failed),
        at(2),
    );
    assert_eq!(outcome(&actions), None);
    hello(&mut machine, 2, 3);
    assert_eq!(orders(&ready(&mut machine, 2, 4)).len(), 1);
}

#[test]
fn replicas_are_dealt_evenly_and_all() {
    for workers in 1..=7 {
        for replicas in workers..=23 {
            let shares = deal(replicas, workers);
            assert_eq!(shares.len(), workers as usize);
            assert_eq!(
                (shares[0].start, shares[shares.len() - 1].end),
                (0, replicas)
            );
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
            let sizes = shares.iter().map(|share| share.len());
            let (least, most) = (sizes.clone().min().unwrap(), sizes.max().unwrap());
            assert!(least >= 1 && most - least <= 1, "{shares:?}");
        }
    }
}

/// Invariant 3: a worker without a seat has no part in the generation that it names.
#[test]
fn a_spare_worker_cannot_speak_for_a_generation() {
    let mut machine = Membership::new(
        Rules { max: 3, ..rules(2) },
        Generation(0),
        Source::Fresh,
        at(0),
    );
    for id in [1, 2, 3] {
        hello(&mut machine, id, 1);
    }
    for id in [1, 2] {
        ready(&mut machine, id, 2);
    }
    ready(&mut machine, 3, 3);
    let checkpoint = CheckpointRecord {
        step: Step(900),
        path: "p".to_owned(),
        digest: "d".to_owned(),
    };
    for event in [
        Event::Progress(WorkerId(3), GEN, Step(900)),
        Event::CheckpointWritten(WorkerId(3), GEN, checkpoint),
        Event::CollectiveFailed(WorkerId(3), GEN, Step(9), "x".to_owned()),
    ] {
        assert!(machine.handle(event, at(4)).is_empty());
    }
    assert_eq!(machine.reached(), Step(0));
}

/// Invariant 1: also over a resume.
#[test]
fn a_job_that_has_begun_is_not_continued_on_another_kind_of_device() {
    let mut first = machine(1);
    hello(&mut first, 1, 1);
    let cpu = facts("cpu").device;
    let actions = ready(&mut first, 1, 2);
    assert!(
        actions.contains(&Action::Persist(Record::Device(cpu.clone()))),
        "{actions:?}"
    );
    let rules = Rules {
        device: Some(cpu),
        ..rules(1)
    };
    let mut resumed = Membership::new(rules, GEN, Source::Fresh, at(0));
    let actions = resumed.handle(Event::Hello(WorkerId(1), facts("cuda")), at(1));
    assert!(refusal(&actions).contains("other bits"), "{actions:?}");
    hello(&mut resumed, 2, 1);
    let actions = ready(&mut resumed, 2, 2);
    assert!(
        !actions
            .iter()
            .any(|a| matches!(a, Action::Persist(Record::Device(_))))
    );
}

#[test]
fn a_job_that_is_drained_says_that_it_is_not_done() {
    let mut machine = running(2);
    let actions = machine.handle(Event::Leaving(WorkerId(2), GEN), at(4));
    let told = orders(&actions);
    assert!(
        matches!(told[..], [(1, Order::Stop { drain: true, .. }), (2, _)]),
        "{told:?}"
    );
    let finished = |id| Event::Finished(WorkerId(id), GEN, Step(33), Finish::Left);
    machine.handle(finished(1), at(5));
    let actions = machine.handle(finished(2), at(5));
    assert_eq!(outcome(&actions), Some(&Outcome::Drained(Step(33))));
    let mut idle = self::machine(2);
    let actions = idle.handle(Event::Drain("SIGTERM".to_owned()), at(1));
    assert_eq!(outcome(&actions), Some(&Outcome::Drained(Step(0))));
}

#[test]
fn a_stop_that_is_under_way_is_not_made_a_failure_from_outside() {
    let mut machine = running(1);
    machine.handle(Event::Stop("enough".to_owned()), at(4));
    assert!(
        machine
            .handle(Event::Fail("a worker ended".to_owned()), at(5))
            .is_empty()
    );
    let mut other = running(1);
    let actions = other.handle(Event::Fail("a worker ended".to_owned()), at(5));
    assert!(matches!(outcome(&actions), Some(Outcome::Failed(_))));
}

/// Invariant 2: what a checkpoint holds is done, even if its progress report comes later.
#[test]
fn a_checkpoint_marks_its_step_as_reached_first() {
    let mut machine = running(1);
    let checkpoint = CheckpointRecord {
        step: Step(50),
        path: "p".to_owned(),
        digest: "d".to_owned(),
    };
    let actions = machine.handle(
        Event::CheckpointWritten(WorkerId(1), GEN, checkpoint),
        at(4),
    );
    assert_eq!(actions[0], Action::Persist(Record::Reached(Step(50))));
}
