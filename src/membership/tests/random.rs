//! Any events in any order: the machine neither spins nor waits for ever, and no generation is
//! spoken before it is durable or twice.

use super::*;
use proptest::prelude::*;

/// Something that happens to some worker.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// Everybody does what it is expected to do next.
    Obey,
    Hello,
    Back {
        older: bool,
        within: bool,
    },
    Ready,
    Formed,
    Progress,
    Beat,
    Paused,
    Fails(Option<u32>),
    Saved,
    Leaves,
    Finished(u8),
    Lost,
    Stop,
    Drain,
    Slept,
}

fn deeds() -> impl Strategy<Value = Deed> {
    prop_oneof![
        12 => Just(Deed::Obey),
        4 => Just(Deed::Hello),
        1 => any::<(bool, bool)>().prop_map(|(older, within)| Deed::Back { older, within }),
        6 => Just(Deed::Ready),
        8 => Just(Deed::Formed),
        4 => Just(Deed::Progress),
        4 => Just(Deed::Beat),
        6 => Just(Deed::Paused),
        2 => proptest::option::of(0u32..4).prop_map(Deed::Fails),
        1 => Just(Deed::Saved),
        1 => Just(Deed::Leaves),
        2 => (0u8..4).prop_map(Deed::Finished),
        1 => Just(Deed::Lost),
        1 => Just(Deed::Slept),
    ]
}

/// A worker, when, and what; sometimes of a generation that is over.
fn events() -> impl Strategy<Value = Vec<(u64, u64, bool, Deed)>> {
    let ending = prop_oneof![20 => deeds(), 1 => Just(Deed::Stop), 1 => Just(Deed::Drain)];
    let event = (1u64..6, 0u64..4, proptest::bool::weighted(0.1), ending);
    proptest::collection::vec(event, 0..120)
}

fn happens(job: &mut Job, id: u64, stale: bool, deed: Deed) {
    let generation = Generation(job.generation().0.saturating_sub(u64::from(stale)));
    let from = job.from.unwrap_or(job.reached());
    let step = Step(job.reached().0 + 1);
    let word = match deed {
        Deed::Obey => {
            obey(job, step);
            return;
        }
        Deed::Hello => Word::Hello(facts(id), Standing::default()),
        Deed::Back { older, within } => {
            let generation = Generation(generation.0.saturating_sub(u64::from(older)));
            let standing = Standing {
                generation,
                within,
                step: from,
            };
            Word::Hello(facts(id), standing)
        }
        Deed::Ready => Word::Ready("data".to_owned(), Step(0)),
        Deed::Formed => Word::Formed(generation, from, Forming::default()),
        Deed::Progress => Word::Progress(generation, step),
        Deed::Beat => Word::Heartbeat(generation, from, None),
        Deed::Paused => Word::Paused(generation, step),
        Deed::Fails(suspect) => Word::CollectiveFailed(generation, step, broken(suspect)),
        Deed::Saved => Word::CheckpointWritten(generation, checkpoint(job.reached().0)),
        Deed::Leaves => Word::Leaving(generation),
        Deed::Finished(how) => {
            let finish = match how {
                0 => Finish::Complete,
                1 => Finish::Stopped,
                2 => Finish::Left,
                _ => Finish::Failed("x".to_owned()),
            };
            Word::Finished(generation, step, finish)
        }
        Deed::Lost => {
            job.lost(id);
            return;
        }
        Deed::Stop => {
            job.event(Event::Stop("enough".to_owned()));
            return;
        }
        Deed::Drain => {
            job.event(Event::Drain("SIGTERM".to_owned()));
            return;
        }
        Deed::Slept => {
            job.slept(at(2));
            job.after(2);
            return;
        }
    };
    job.say(id, word);
}

fn obey(job: &mut Job, step: Step) {
    for id in 1..4 {
        let state = job.members().get(&WorkerId(id)).map(|member| member.state);
        let from = job.from.unwrap_or(job.reached()).0;
        match (state, job.phase()) {
            (None, Phase::Recovering) | (Some(MemberState::Absent), _) => {
                job.back(id, job.generation().0, true, from);
            }
            (None, _) => {
                job.hello(id);
            }
            (Some(MemberState::Preparing | MemberState::Holding), _) => {
                job.ready(id, 0);
            }
            (Some(MemberState::Forming), _) => {
                job.formed(&[id], from);
            }
            (Some(MemberState::Training), Phase::Pausing(_)) => {
                job.paused(&[id], step.0);
            }
            (Some(MemberState::Training), Phase::Stopping) => {
                let stopped = job.closing() == Some(Some(Close::Stopped));
                let finish = if stopped {
                    Finish::Stopped
                } else {
                    Finish::Left
                };
                job.finished(id, step.0, finish);
            }
            (Some(MemberState::Training), Phase::Running) => {
                job.progress(id, step.0);
            }
            _ => {}
        }
    }
}

/// What holds whatever has happened.
fn assert_sound(job: &Job) {
    let seated = job
        .members()
        .iter()
        .filter_map(|(id, m)| Some((id, m, m.seat.as_ref()?)));
    for (id, member, seat) in seated.clone() {
        assert_eq!(
            job.seats.get(seat.rank.0 as usize),
            Some(seat),
            "worker {id}"
        );
        let state = member.state;
        let seatless = matches!(
            state,
            MemberState::Preparing | MemberState::Ready | MemberState::Holding
        );
        assert!(!seatless, "worker {id} has a seat and is {state}");
    }
    let rest = seated
        .clone()
        .filter(|(_, member, _)| member.rests())
        .count();
    match job.phase() {
        Phase::Gathering => assert_eq!(seated.count(), 0),
        Phase::Forming | Phase::Pausing(_) => assert_eq!(seated.count(), job.seats.len()),
        Phase::Running => {
            assert_eq!(seated.count(), job.seats.len());
            // Nobody rests while nothing follows from it.
            assert!(rest == 0 || job.trouble.explained_by().is_some(), "{job:?}");
        }
        // Somebody may have finished and gone; or not have come back.
        Phase::Stopping | Phase::Recovering | Phase::Ended(_) => {}
    }
    let ghost = |member: &Member| member.state == MemberState::Absent;
    let ghosts = job.members().values().any(ghost);
    assert!(!ghosts || matches!(job.phase(), Phase::Recovering | Phase::Ended(_)));
}

/// A job that was begun, or begins anew.
fn job(restarted: bool) -> Job {
    let rules = Rules {
        min: 2,
        ..elastic(2, 3)
    };
    if !restarted {
        return Job::new(rules);
    }
    let before = Job::running(rules.clone(), 2);
    let past = Past {
        generation: before.generation(),
        seats: before.seats.to_vec(),
        reached: Step(10),
        checkpoint: None,
    };
    Job::with(rules, past)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Invariants 3 and 7.
    #[test]
    fn whatever_happens_the_machine_neither_spins_nor_waits_for_ever(
        restarted in any::<bool>(),
        events in events(),
    ) {
        let mut job = job(restarted);
        for (id, seconds, stale, deed) in events {
            job.after(seconds);
            // Like the driver: the clock is looked at after each event. `timeout` asserts that the
            // next deadline lies ahead.
            happens(&mut job, id, stale, deed);
            if job.next_deadline().is_some_and(|at| at <= job.now) {
                job.timeout();
            }
            assert_sound(&job);
        }
        // Then nobody ever says anything again.
        for _ in 0..200 {
            if let Phase::Ended(_) = job.phase() {
                break;
            }
            prop_assert!(job.next_deadline().is_some(), "{:?} has no deadline", job.phase());
            job.due();
        }
        prop_assert!(matches!(job.phase(), Phase::Ended(_)), "{:?}", job.phase());
    }

    /// Invariant 7: nor does it if all workers live, and none of them ever does what it is told.
    #[test]
    fn workers_that_live_and_do_nothing_are_not_waited_for_for_ever(
        restarted in any::<bool>(),
        events in events(),
    ) {
        let mut job = job(restarted);
        for (id, seconds, stale, deed) in events {
            job.after(seconds);
            happens(&mut job, id, stale, deed);
            if job.next_deadline().is_some_and(|at| at <= job.now) {
                job.timeout();
            }
            assert_sound(&job);
        }
        for _ in 0..400 {
            // In a generation that runs, it is the workers' collectives that have deadlines.
            if let Phase::Ended(_) | Phase::Running = job.phase() {
                break;
            }
            let ids: Vec<u64> = job.members().keys().map(|worker| worker.0).collect();
            let absent = |job: &Job, id| job.members()[&WorkerId(id)].state == MemberState::Absent;
            for id in ids {
                if !absent(&job, id) {
                    job.beat(&[id]);
                }
            }
            job.after(1);
            if job.next_deadline().is_some_and(|at| at <= job.now) {
                job.timeout();
            }
        }
        let over = matches!(job.phase(), Phase::Ended(_) | Phase::Running);
        prop_assert!(over, "{:?}: {}", job.phase(), job.waiting_for());
    }
}
