//! What only TCP has: strangers, generations, and peers that aren't there.

use super::super::conformance::{self, Member, PATIENT, now};
use super::super::error::Refusal;
use super::super::group::GroupPeer;
use super::*;
use std::io::Read;
use std::net::TcpStream;
use std::ops::Range;

fn listeners(count: usize) -> Vec<Listener> {
    (0..count)
        .map(|_| Listener::bind("127.0.0.1:0").unwrap())
        .collect()
}

/// The group of these listeners, seen by one of them.
fn group(generation: u64, rank: usize, doors: &[Listener], ranges: &[Range<u32>]) -> Group {
    let peers = doors.iter().zip(ranges).map(|(door, range)| GroupPeer {
        address: door.local_addr().to_string(),
        replicas: range.clone(),
    });
    Group {
        generation: Generation(generation),
        rank: Rank(rank as u32),
        peers: peers.collect(),
        replicas: ranges.last().unwrap().end,
        secret: [generation as u8; 32],
    }
}

fn connect(door: &Listener, group: &Group, connect: Duration) -> Result<Tcp, CollectiveError> {
    let deadlines = Deadlines {
        connect,
        collective: PATIENT,
    };
    Tcp::connect(door, group, deadlines, &Abort::new())
}

/// Connects all ranks, each with its own view of the group.
fn connect_all(
    doors: &[Listener],
    groups: &[Group],
    deadlines: Deadlines,
) -> Vec<Result<Tcp, CollectiveError>> {
    thread::scope(|scope| {
        let threads: Vec<_> = doors
            .iter()
            .zip(groups)
            .map(|(door, group)| {
                scope.spawn(move || Tcp::connect(door, group, deadlines, &Abort::new()))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

fn form_on(doors: &[Listener], generation: u64, ranges: &[Range<u32>]) -> Vec<Tcp> {
    let groups: Vec<_> = (0..doors.len())
        .map(|rank| group(generation, rank, doors, ranges))
        .collect();
    let deadlines = Deadlines {
        connect: PATIENT,
        collective: PATIENT,
    };
    let formed = connect_all(doors, &groups, deadlines);
    formed.into_iter().map(Result::unwrap).collect()
}

fn members(formed: impl IntoIterator<Item = Tcp>) -> Vec<Member> {
    let member = |rank: Tcp| Member {
        abort: rank.abort_handle(),
        collective: Box::new(rank),
    };
    formed.into_iter().map(member).collect()
}

fn form(ranges: &[Range<u32>], collective: Duration) -> Vec<Member> {
    form_behind(&listeners(ranges.len()), ranges, collective)
}

fn form_behind(doors: &[Listener], ranges: &[Range<u32>], collective: Duration) -> Vec<Member> {
    let groups: Vec<_> = (0..doors.len())
        .map(|rank| group(1, rank, doors, ranges))
        .collect();
    let deadlines = Deadlines {
        connect: PATIENT,
        collective,
    };
    let formed = connect_all(doors, &groups, deadlines);
    members(formed.into_iter().map(Result::unwrap))
}

conformance::suite!(form);

mod through_memory;
mod within_tls;

fn works(mut formed: Vec<Tcp>) {
    thread::scope(|scope| {
        for rank in &mut formed {
            scope.spawn(|| {
                let (mut vector, mut mean) = ([rank.rank().0 as f32; 5], [9.0; 5]);
                rank.barrier().unwrap();
                rank.reduce_mean(&mut [&mut vector], &mut mean).unwrap();
                assert_eq!(mean, [0.5; 5]);
            });
        }
    });
}

#[test]
fn a_listener_lives_through_generations() {
    let doors = listeners(2);
    for generation in [1, 2, 7] {
        works(form_on(&doors, generation, &[0..1, 1..2]));
    }
    let again = connect(&doors[0], &group(7, 0, &doors, &[0..1, 1..2]), PATIENT);
    let error = again.err().unwrap();
    assert!(matches!(error, CollectiveError::Stale { .. }), "{error}");
}

#[test]
fn a_stale_generation_is_refused() {
    let doors = listeners(2);
    let formed = form_on(&doors, 5, &[0..1, 1..2]);
    // A process that knows nothing of generation 5 calls with 4.
    let late = Listener::bind("127.0.0.1:0").unwrap();
    let old = group(4, 1, &doors, &[0..1, 1..2]);
    let error = connect(&late, &old, PATIENT).err().unwrap();
    match error {
        CollectiveError::Refused { rank, refusal, .. } => {
            let newest = Generation(5);
            assert_eq!((rank, refusal), (Rank(0), Refusal::Stale { newest }));
        }
        error => panic!("{error}"),
    }
    works(formed);
}

#[test]
fn a_wrong_secret_is_refused_and_the_right_one_still_gets_in() {
    let doors = listeners(2);
    let right: Vec<_> = (0..2)
        .map(|rank| group(1, rank, &doors, &[0..1, 1..2]))
        .collect();
    let impostor = Listener::bind("127.0.0.1:0").unwrap();
    let mut wrong = right[1].clone();
    wrong.secret[0] ^= 1;
    thread::scope(|scope| {
        let first = scope.spawn(|| connect(&doors[0], &right[0], PATIENT).unwrap());
        let error = connect(&impostor, &wrong, PATIENT).err().unwrap();
        let refused = matches!(
            error,
            CollectiveError::Refused {
                refusal: Refusal::Proof,
                ..
            }
        );
        assert!(refused, "{error}");
        let second = connect(&doors[1], &right[1], PATIENT).unwrap();
        works(vec![first.join().unwrap(), second]);
    });
}

/// One that knows the protocol but not the secret, and goes on after the listener's proof.
#[test]
fn a_caller_without_the_secret_is_not_let_in() {
    let doors = listeners(2);
    let groups: Vec<_> = (0..2)
        .map(|rank| group(1, rank, &doors, &[0..1, 1..2]))
        .collect();
    thread::scope(|scope| {
        let first = scope.spawn(|| connect(&doors[0], &groups[0], PATIENT).unwrap());
        let hello = wire::Hello {
            generation: Generation(1),
            from: Rank(1),
            to: Rank(0),
            nonce: [3; 32],
        };
        let mut answer = [0; wire::Answer::LEN];
        let mut stream = loop {
            let mut stream = TcpStream::connect(doors[0].local_addr()).unwrap();
            stream.set_read_timeout(Some(PATIENT)).unwrap();
            stream.write_all(&hello.encode()).unwrap();
            stream.read_exact(&mut answer).unwrap();
            match wire::Answer::decode(&answer).unwrap().verdict {
                wire::Verdict::Welcome => break stream,
                // The first rank's thread has not got that far.
                verdict => assert_eq!(verdict, wire::Verdict::NotYet),
            }
        };
        stream.write_all(&[0x55; 32]).unwrap();
        // Closed or reset: anything but the byte that means "in".
        assert!(!matches!(stream.read(&mut [0]), Ok(1)));
        assert!(!first.is_finished());
        let second = connect(&doors[1], &groups[1], PATIENT).unwrap();
        works(vec![first.join().unwrap(), second]);
    });
}

#[test]
fn strangers_do_not_keep_a_group_from_forming() {
    let doors = listeners(2);
    let mut strangers = Vec::new();
    for door in &doors {
        for _ in 0..20 {
            strangers.push(TcpStream::connect(door.local_addr()).unwrap());
        }
        let mut garbage = TcpStream::connect(door.local_addr()).unwrap();
        garbage.write_all(&[0xaa; 4096]).unwrap();
        strangers.push(garbage);
    }
    let start = now();
    let formed = form_on(&doors, 1, &[0..1, 1..2]);
    // One after the other, the silent ones' handshakes would take twenty times as long.
    assert!(start.elapsed() < 10 * super::super::listener::HANDSHAKE);
    works(formed);
    drop(strangers);
}

#[test]
fn peers_that_are_missing_are_named_at_the_deadline() {
    let doors = listeners(3);
    let ranges = [0..1, 1..2, 2..3];
    let brief = Duration::from_millis(300);
    // Rank 0 has not heard of the generation, and rank 2 doesn't call.
    let waiting = group(1, 1, &doors, &ranges);
    let error = connect(&doors[1], &waiting, brief).err().unwrap();
    match &error {
        CollectiveError::Deadline {
            missing,
            waited,
            operation,
            ..
        } => {
            let of = |rank: usize| (Rank(rank as u32), doors[rank].local_addr().to_string());
            assert_eq!(*missing, Peers(vec![of(0), of(2)]));
            assert_eq!(*operation, Operation::Connect);
            assert!(*waited >= brief);
        }
        _ => panic!("{error}"),
    }
    assert!(
        error.to_string().contains("not heard of this generation"),
        "{error}"
    );
    // Nobody listens where rank 0 should be.
    let mut waiting = group(2, 1, &doors, &ranges);
    waiting.peers[0].address = "127.0.0.1:1".to_owned();
    let error = connect(&doors[1], &waiting, brief).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("rank 0 (127.0.0.1:1)"), "{text}");
    assert!(text.contains("refused"), "{text}");
}

#[test]
fn an_abort_ends_connecting() {
    let doors = listeners(2);
    for rank in 0..2 {
        let abort = Abort::new();
        let group = group(1 + rank as u64, rank, &doors, &[0..1, 1..2]);
        let deadlines = Deadlines {
            connect: PATIENT,
            collective: PATIENT,
        };
        let start = now();
        let error = thread::scope(|scope| {
            let (door, abort, group) = (&doors[rank], &abort, &group);
            let waiting = scope.spawn(move || Tcp::connect(door, group, deadlines, abort));
            thread::sleep(Duration::from_millis(20));
            abort.abort("a newer generation");
            waiting.join().unwrap().err().unwrap()
        });
        assert!(matches!(error, CollectiveError::Aborted { .. }), "{error}");
        assert!(start.elapsed() < PATIENT / 2);
    }
}

#[test]
fn what_was_sent_arrives_though_the_sender_is_gone() {
    let doors = listeners(2);
    let mut formed = form_on(&doors, 1, &[0..1, 1..2]);
    let mut second = formed.pop().unwrap();
    let mut first = formed.pop().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            first.barrier().unwrap();
            drop(first);
        });
        thread::sleep(Duration::from_millis(30));
        second.barrier().unwrap();
    });
}
