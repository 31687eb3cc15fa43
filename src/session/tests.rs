//! The machine's transitions, with invented instants.

mod linking;
mod random;
mod working;

use super::*;

const GEN: Generation = Generation(3);

fn at(seconds: u64) -> Now {
    Duration::from_secs(seconds)
}

fn joining() -> Session {
    let (session, actions) = Session::new(at(60), at(0));
    assert_eq!(actions, [Action::Connect]);
    session
}

fn welcome(resumed: bool) -> Event {
    Event::Welcome(Terms {
        resumed,
        heartbeat: at(2),
        patience: at(30),
        farewell: at(20),
    })
}

fn standing(generation: u64, within: bool, step: u64) -> Action {
    Action::SayHello(Standing {
        generation: Generation(generation),
        within,
        step: Step(step),
    })
}

fn say_ready() -> Action {
    Action::SayReady("d".to_owned())
}

fn preparing() -> Session {
    let mut session = joining();
    let hello = session.handle(Event::Connected, at(1));
    assert_eq!(hello, [standing(0, false, 0)]);
    assert_eq!(session.handle(welcome(false), at(1)), [Action::Prepare]);
    session
}

fn waiting() -> Session {
    let mut session = preparing();
    let ready = session.handle(Event::Prepared("d".to_owned()), at(2));
    assert_eq!(ready, [say_ready()]);
    session
}

fn forming() -> Session {
    let mut session = waiting();
    let actions = session.handle(Event::Assignment(GEN, None), at(3));
    assert_eq!(actions, [Action::Form]);
    session
}

fn training() -> Session {
    let mut session = forming();
    let took = Forming::default();
    let formed = session.handle(Event::Formed(GEN, Step(5), took), at(4));
    assert_eq!(formed, [Action::SayFormed(GEN, Step(5), took)]);
    session
}

/// At rest, since its collective broke.
fn broken() -> Session {
    let mut session = training();
    session.handle(breaks(GEN, 9), at(4));
    session
}

fn finishing(finish: Finish) -> Session {
    let mut session = training();
    let said = session.handle(ended(finish.clone()), at(4));
    assert_eq!(said, [Action::SayFinished(GEN, Step(9), finish)]);
    session
}

fn breakage() -> Breakage {
    Breakage {
        reason: "rank 1 is gone".to_owned(),
        suspect: None,
    }
}

fn breaks(generation: Generation, step: u64) -> Event {
    Event::CollectiveFailed(generation, Step(step), breakage())
}

fn ended(finish: Finish) -> Event {
    Event::TrainingEnded(GEN, Step(9), finish)
}

fn unreachable() -> Event {
    Event::Unreachable("refused".to_owned())
}

fn disconnected() -> Event {
    Event::Disconnected("gone".to_owned())
}

fn failed() -> Finish {
    Finish::Failed("no memory".to_owned())
}

/// Loses the coordinator, and says Hello again.
fn reconnect(session: &mut Session, now: Now) -> Vec<Action> {
    assert_eq!(session.handle(disconnected(), now), []);
    let retry_at = session.next_deadline().expect("it tries again");
    assert_eq!(session.handle_timeout(retry_at), [Action::Connect]);
    session.handle(Event::Connected, retry_at)
}

fn exit(actions: &[Action]) -> &Exit {
    match actions {
        [.., Action::Exit(exit)] => exit,
        other => panic!("no exit in {other:?}"),
    }
}
