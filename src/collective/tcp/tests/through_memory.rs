//! What ranks of one host do whose frames go through memory: all that they do over TCP.

use super::*;

/// Ranks of which those share memory that say so.
fn form_mixed(sharing: &[bool], ranges: &[Range<u32>], collective: Duration) -> Vec<Tcp> {
    let doors = listeners(ranges.len());
    let deadlines = Deadlines {
        connect: PATIENT,
        collective,
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..doors.len())
            .map(|rank| {
                let (doors, group) = (&doors, group(1, rank, &doors, ranges));
                let connect = match sharing[rank] {
                    true => Tcp::connect_sharing_memory,
                    false => Tcp::connect,
                };
                scope.spawn(move || connect(&doors[rank], &group, deadlines, &Abort::new()))
            })
            .collect();
        let formed = threads.into_iter().map(|thread| thread.join().unwrap());
        formed.map(Result::unwrap).collect()
    })
}

fn form(ranges: &[Range<u32>], collective: Duration) -> Vec<Member> {
    let formed = form_mixed(&vec![true; ranges.len()], ranges, collective);
    for rank in &formed {
        // Or this would be TCP's suite once more.
        assert_eq!(rank.neighbours().len(), ranges.len() - 1);
    }
    members(formed)
}

/// Half of the ranks share memory, the others are reached through connections.
fn form_half(ranges: &[Range<u32>], collective: Duration) -> Vec<Member> {
    let sharing: Vec<bool> = (0..ranges.len()).map(|rank| rank % 4 != 1).collect();
    members(form_mixed(&sharing, ranges, collective))
}

conformance::suite!(form);

mod half {
    use super::*;
    conformance::suite!(form_half);
}

#[test]
fn who_does_not_want_it_is_left_out() {
    let sharing = [true, false, true];
    let formed = form_mixed(&sharing, &[0..1, 1..2, 2..3], PATIENT);
    let neighbours: Vec<_> = formed.iter().map(Tcp::neighbours).collect();
    assert_eq!(neighbours, [vec![Rank(2)], vec![], vec![Rank(0)]]);
}

#[test]
fn what_was_sent_arrives_though_the_sender_is_gone() {
    let mut formed = form_mixed(&[true; 2], &[0..1, 1..2], PATIENT);
    let mut second = formed.pop().unwrap();
    let mut first = formed.pop().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            first.barrier().unwrap();
            drop(first);
        });
        thread::sleep(Duration::from_millis(30));
        second.barrier().unwrap();
        let error = second.barrier().unwrap_err();
        assert!(matches!(error, CollectiveError::PeerLost { .. }), "{error}");
    });
}

/// A rank that is late by more than a wait stays awake for is woken, again and again.
#[test]
fn ranks_that_are_late_by_turns_are_waited_for() {
    let mut formed = form_mixed(&[true; 2], &[0..1, 1..2], PATIENT);
    thread::scope(|scope| {
        for rank in &mut formed {
            scope.spawn(|| {
                let own = rank.rank().0;
                let (mut vector, mut mean) = ([own as f32; 5], [9.0; 5]);
                for round in 0..300u64 {
                    if round % 2 == u64::from(own) {
                        thread::sleep(Duration::from_micros(round));
                    }
                    rank.reduce_mean(&mut [&mut vector], &mut mean).unwrap();
                    assert_eq!(mean, [0.5; 5]);
                }
            });
        }
    });
}
