//! The collective over the tests' stand-in of NCCL: what every collective must do, what only
//! devices have, and what real NCCL does badly.

use super::super::conformance::{self, Member, PATIENT, now};
use super::super::error::Operation;
use super::super::group::GroupPeer;
use super::super::in_process::InProcess;
use super::super::listener::Listener;
use super::*;
use crate::nccl::{Communicator, stand_in};
use std::ops::Range;

/// Short, for waits that are meant to fail.
const BRIEF: Duration = Duration::from_millis(400);

/// Anything that takes longer hangs.
const BOUND: Duration = Duration::from_secs(15);

struct Settings {
    reduction: Reduction,
    deadlines: Deadlines,
    /// A fault of the communicator of the rank with this number, before it is made.
    at_start: Option<(u32, &'static str)>,
}

impl Settings {
    fn new(collective: Duration) -> Self {
        Self {
            reduction: Reduction::Exact,
            deadlines: Deadlines {
                connect: PATIENT,
                collective,
            },
            at_start: None,
        }
    }
}

type Formed = (Result<Nccl, CollectiveError>, Abort);

fn try_form(ranges: &[Range<u32>], settings: &Settings) -> Vec<Formed> {
    let library = stand_in();
    let doors: Vec<Listener> = ranges
        .iter()
        .map(|_| Listener::bind("127.0.0.1:0").unwrap())
        .collect();
    let peers: Vec<GroupPeer> = doors
        .iter()
        .zip(ranges)
        .map(|(door, range)| GroupPeer {
            address: door.local_addr().to_string(),
            replicas: range.clone(),
        })
        .collect();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(&doors)
            .map(|(rank, door)| {
                let group = Group {
                    generation: Generation(1),
                    rank: Rank(rank),
                    peers: peers.clone(),
                    replicas: ranges.last().unwrap().end,
                    secret: [7; 32],
                };
                let library = &library;
                scope.spawn(move || {
                    if let Some((unlucky, words)) = settings.at_start
                        && unlucky == rank
                    {
                        assert!(library.arm_next(words));
                    }
                    let (abort, deadlines) = (Abort::new(), settings.deadlines);
                    let control = Tcp::connect(door, &group, deadlines, &abort).unwrap();
                    let formed = Nccl::form(
                        control,
                        &group,
                        library,
                        Device::Cpu,
                        settings.reduction,
                        deadlines,
                        &abort,
                    );
                    (formed, abort)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

fn form_with(ranges: &[Range<u32>], settings: &Settings) -> Vec<Nccl> {
    try_form(ranges, settings)
        .into_iter()
        .map(|(rank, _)| rank.unwrap())
        .collect()
}

fn form(ranges: &[Range<u32>], collective: Duration) -> Vec<Member> {
    try_form(ranges, &Settings::new(collective))
        .into_iter()
        .map(|(rank, abort)| Member {
            collective: Box::new(rank.unwrap()),
            abort,
        })
        .collect()
}

conformance::suite!(form);

fn value(replica: u32, index: usize) -> f32 {
    let x = (u64::from(replica) << 40 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let magnitude = 10f32.powi((x >> 40) as i32 % 9 - 4);
    ((x >> 8 & 0xff_ffff) as f32 / 8_388_608.0 - 1.0) * magnitude
}

fn vectors(hosted: Range<u32>, length: usize) -> Vec<Tensor> {
    let vector = |replica| {
        let values: Vec<f32> = (0..length).map(|index| value(replica, index)).collect();
        Tensor::from_slice(&values)
    };
    hosted.map(vector).collect()
}

/// The mean as one process computes it in host memory.
fn expected(replicas: u32, length: usize) -> Vec<u32> {
    let vector = |replica| (0..length).map(|i| value(replica, i)).collect();
    let mut vectors: Vec<Vec<f32>> = (0..replicas).map(vector).collect();
    let mut hosted: Vec<&mut [f32]> = vectors.iter_mut().map(|vector| &mut vector[..]).collect();
    let mut mean = vec![0.0; length];
    let mut solo = InProcess::solo(replicas).unwrap();
    solo.reduce_mean(&mut hosted, &mut mean).unwrap();
    mean.into_iter().map(f32::to_bits).collect()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = Vec::<f32>::try_from(tensor).unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

fn empty(length: usize) -> Tensor {
    Tensor::full([length as i64], -7.0, (Kind::Float, Device::Cpu))
}

/// Gives every rank a thread; returns what each came to.
fn on_threads<T: Send>(ranks: Vec<Nccl>, work: impl Fn(Nccl, u32) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(ranks)
            .map(|(rank, nccl)| {
                let work = &work;
                scope.spawn(move || work(nccl, rank))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap());
        joined.collect()
    })
}

/// One reduction on the device, of one vector a hosted replica.
fn reduce(nccl: &mut Nccl, hosted: Range<u32>, length: usize) -> Result<Tensor, CollectiveError> {
    let mean = empty(length);
    nccl.start(&vectors(hosted, length), &mean)?;
    nccl.join()?;
    nccl.settle()?;
    Ok(mean)
}

#[test]
fn two_reductions_at_a_time_give_the_bits_of_host_memory() {
    let ranges = [0..1, 1..4, 4..6];
    let (long, short) = (70_001, 1003);
    let (of_long, of_short) = (expected(6, long), expected(6, short));
    let ranks = form_with(&ranges, &Settings::new(PATIENT));
    on_threads(ranks, |mut nccl, rank| {
        let hosted = ranges[rank as usize].clone();
        for _ in 0..3 {
            let (first, second) = (empty(long), empty(short));
            let (d, g) = (
                vectors(hosted.clone(), long),
                vectors(hosted.clone(), short),
            );
            nccl.start(&d, &first).unwrap();
            nccl.start(&g, &second).unwrap();
            nccl.join().unwrap();
            nccl.join().unwrap();
            nccl.settle().unwrap();
            assert_eq!(bits(&first), of_long);
            assert_eq!(bits(&second), of_short);
            // What goes over the connections between the processes follows in the same order.
            nccl.barrier().unwrap();
        }
        assert!(nccl.sent_bytes() > 0);
        let error = nccl.join().unwrap_err().to_string();
        assert!(error.contains("no reduction that was started"), "{error}");
        nccl.settle().unwrap();
    });
}

#[test]
fn a_worker_that_is_alone_needs_no_communicator() {
    let mut ranks = form_with(std::slice::from_ref(&(0..5)), &Settings::new(PATIENT));
    let mut nccl = ranks.pop().unwrap();
    let mean = reduce(&mut nccl, 0..5, 1001).unwrap();
    assert_eq!(bits(&mean), expected(5, 1001));
    OnDevice::copy(&mut nccl, &[Rank(0)], &mean).unwrap();
    assert_eq!((nccl.sent_bytes(), nccl.arm("vanish")), (0, false));
}

#[test]
fn a_copy_between_devices_is_the_holders_vector_bit_for_bit() {
    let ranges = [0..1, 1..2, 2..3];
    let ranks = form_with(&ranges, &Settings::new(PATIENT));
    let pattern = |index: usize| match index % 5 {
        0 => f32::from_bits(0x7fa0_0001 ^ index as u32),
        1 => -0.0,
        2 => f32::from_bits(1),
        _ => value(3, index),
    };
    on_threads(ranks, |mut nccl, rank| {
        for holders in [
            vec![Rank(1)],
            vec![Rank(0), Rank(2)],
            vec![Rank(0), Rank(1), Rank(2)],
        ] {
            for length in [0, 1, 5, 100_003] {
                let of: Vec<f32> = (0..length).map(pattern).collect();
                let vector = match holders.contains(&Rank(rank)) {
                    true => Tensor::from_slice(&of),
                    false => empty(length),
                };
                OnDevice::copy(&mut nccl, &holders, &vector).unwrap();
                assert_eq!(bits(&vector), bits(&Tensor::from_slice(&of)));
            }
        }
        assert_eq!(nccl.sent_bytes() % 4, 0);
        let error = OnDevice::copy(&mut nccl, &[], &empty(3)).unwrap_err();
        assert!(matches!(error, CollectiveError::Holders { .. }), "{error}");
        // It is the caller's mistake, and the group is none the worse for it.
        let mean = reduce(&mut nccl, rank..rank + 1, 17).unwrap();
        assert_eq!(bits(&mean), expected(3, 17));
    });
}

#[test]
fn a_copy_that_is_longer_than_a_round_arrives_whole() {
    let ranks = form_with(&[0..1, 1..2], &Settings::new(PATIENT));
    let length = 2 * ROUND + 3;
    on_threads(ranks, |mut nccl, rank| {
        let vector = match rank {
            0 => Tensor::arange(length as i64, (Kind::Float, Device::Cpu)),
            _ => empty(length),
        };
        OnDevice::copy(&mut nccl, &[Rank(0)], &vector).unwrap();
        assert!(vector.equal(&Tensor::arange(length as i64, (Kind::Float, Device::Cpu))));
    });
}

#[test]
fn the_fast_sum_is_the_same_on_all_ranks_and_close_to_the_exact_one() {
    let ranges = [0..2, 2..3, 3..7];
    let settings = Settings {
        reduction: Reduction::Fast,
        ..Settings::new(PATIENT)
    };
    let means = on_threads(form_with(&ranges, &settings), |mut nccl, rank| {
        let hosted = ranges[rank as usize].clone();
        bits(&reduce(&mut nccl, hosted, 5003).unwrap())
    });
    assert!(means.windows(2).all(|pair| pair[0] == pair[1]));
    let exact = expected(7, 5003);
    for (fast, exact) in means[0].iter().zip(&exact) {
        let (fast, exact) = (f32::from_bits(*fast), f32::from_bits(*exact));
        // Against the largest term: the terms may cancel.
        assert!((fast - exact).abs() <= 1e-2, "{fast} {exact}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_before_anything_is_sent() {
    let ranks = form_with(&[0..1, 1..2], &Settings::new(PATIENT));
    on_threads(ranks, |mut nccl, rank| {
        let fits = || empty(10);
        let double = fits().to_kind(Kind::Double);
        let square = empty(16).view([4, 4]);
        let column = square.select(1, 0);
        for (hosted, mean, words) in [
            (vec![double], fits(), "vector 0 is"),
            (vec![fits()], square.shallow_clone(), "vector 1 is"),
            (vec![column], empty(4), "contiguous"),
            (vec![empty(9)], fits(), "vector 0 has 9 elements"),
            (vec![], fits(), "was given 0"),
        ] {
            let error = nccl.start(&hosted, &mean).unwrap_err();
            assert!(matches!(error, CollectiveError::Vectors { .. }), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
        let mean = reduce(&mut nccl, rank..rank + 1, 10).unwrap();
        assert_eq!(bits(&mean), expected(2, 10));
    });
}

#[test]
fn the_library_and_the_device_must_fit() {
    let library = stand_in();
    let id = library.unique_id().unwrap();
    let error = Communicator::begin(&library, &id, 0, 1, Device::Cuda(0)).unwrap_err();
    assert!(matches!(error, NcclError::Device { .. }), "{error}");
    let error = Communicator::begin(&library, &id, 2, 2, Device::Cpu).unwrap_err();
    assert!(matches!(error, NcclError::Rank { .. }), "{error}");
}

#[test]
fn what_nccl_calls_in_progress_is_waited_for() {
    let settings = Settings {
        at_start: Some((1, "in-progress:50")),
        ..Settings::new(PATIENT)
    };
    let ranks = form_with(&[0..1, 1..2], &settings);
    on_threads(ranks, |mut nccl, rank| {
        for _ in 0..3 {
            let mean = reduce(&mut nccl, rank..rank + 1, 1001).unwrap();
            assert_eq!(bits(&mean), expected(2, 1001));
        }
        OnDevice::copy(&mut nccl, &[Rank(1)], &empty(100)).unwrap();
    });
}

/// Has rank 1 of three fail so in its second reduction, and says what all came to in it. Nobody may
/// take its mean for good, nothing may hang, and afterwards every call must be an error.
fn outcomes(words: &str, deadline: Duration) -> Vec<CollectiveError> {
    let ranks = form_with(&[0..1, 1..2, 2..3], &Settings::new(deadline));
    let start = now();
    let errors = on_threads(ranks, |mut nccl, rank| {
        let mean = reduce(&mut nccl, rank..rank + 1, 30_001).unwrap();
        assert_eq!(bits(&mean), expected(3, 30_001));
        // Nobody fails before all are through the first.
        nccl.barrier().unwrap();
        if rank == 1 {
            assert!(nccl.arm(words), "{words}");
        }
        let error = reduce(&mut nccl, rank..rank + 1, 30_001).unwrap_err();
        for again in [nccl.settle(), nccl.barrier(), nccl.join()] {
            let again = again.unwrap_err();
            assert!(matches!(again, CollectiveError::Broken { .. }), "{again}");
        }
        error
    });
    assert!(start.elapsed() < BOUND, "{words}: {errors:?}");
    errors
}

fn is_of_the_device<E: std::error::Error + 'static>(error: &CollectiveError) -> bool {
    match error {
        CollectiveError::Device { source, .. } => source.is::<E>(),
        _ => false,
    }
}

/// Each noticed it by itself, or heard of it from another that did.
fn all_failed_by<E: std::error::Error + 'static>(errors: &[CollectiveError]) {
    let lost = |error: &CollectiveError| matches!(error, CollectiveError::PeerLost { .. });
    let expected = |error| is_of_the_device::<E>(error) || lost(error);
    assert!(errors.iter().all(expected), "{errors:?}");
    assert!(errors.iter().any(is_of_the_device::<E>), "{errors:?}");
}

#[test]
fn a_rank_that_vanishes_without_an_error_is_noticed_at_the_deadline() {
    all_failed_by::<Hung>(&outcomes("vanish", BRIEF));
}

#[test]
fn partial_data_after_an_abort_is_never_a_mean() {
    all_failed_by::<Hung>(&outcomes("partial", BRIEF));
}

#[test]
fn an_error_that_nccl_tells_ends_a_call_that_hangs() {
    // Long before the deadline.
    all_failed_by::<NcclError>(&outcomes("async-error", PATIENT));
}

#[test]
fn an_abort_that_never_returns_is_stuck_and_no_hang() {
    let errors = outcomes("abort-hangs@1", BRIEF);
    let stuck = |error: &CollectiveError| matches!(error, CollectiveError::Stuck { .. });
    assert!(stuck(&errors[1]), "{errors:?}");
    assert!(!stuck(&errors[0]) && !stuck(&errors[2]), "{errors:?}");
    assert!(errors[1].to_string().contains("must end and rejoin"));
}

#[test]
fn a_rank_that_is_missing_when_nccl_initialises_is_an_error_at_the_deadline() {
    let mut settings = Settings::new(PATIENT);
    settings.deadlines.connect = 2 * BRIEF;
    settings.at_start = Some((1, "init-missing"));
    let start = now();
    let formed = try_form(&[0..1, 1..2, 2..3], &settings);
    assert!(start.elapsed() < BOUND);
    let errors: Vec<_> = formed
        .into_iter()
        .map(|(rank, _)| rank.err().unwrap())
        .collect();
    all_failed_by::<NcclError>(&errors);
}

#[test]
fn ranks_that_sum_otherwise_find_out() {
    let exact = Settings::new(PATIENT);
    let ranks = form_with(&[0..1, 1..2], &exact);
    let outcomes = on_threads(ranks, |mut nccl, rank| {
        if rank == 1 {
            nccl.reduction = Reduction::Fast;
        }
        reduce(&mut nccl, rank..rank + 1, 1001).map(drop)
    });
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
    let texts = outcomes
        .into_iter()
        .map(|outcome| outcome.unwrap_err().to_string());
    assert!(
        texts
            .into_iter()
            .any(|text| text.contains("whose reduction"))
    );
}

/// As when a process is killed on a host where NCCL doesn't notice.
#[test]
fn a_peer_that_dies_in_silence_is_an_error_at_once() {
    let ranges = [0..1, 1..2, 2..3];
    let formed = try_form(&ranges, &Settings::new(PATIENT));
    let (ranks, aborts): (Vec<_>, Vec<_>) = formed.into_iter().unzip();
    let ranks: Vec<_> = ranks.into_iter().map(Result::unwrap).collect();
    let start = now();
    let errors = on_threads(ranks, |mut nccl, rank| {
        // What waits for a peer that is gone hangs, and nothing moves any more on rank 1.
        assert!(nccl.arm(if rank == 1 { "silent,vanish" } else { "silent" }));
        if rank == 1 {
            let abort = aborts[1].clone();
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(100));
                abort.abort("killed");
            });
        }
        reduce(&mut nccl, rank..rank + 1, 30_001).unwrap_err()
    });
    assert!(start.elapsed() < BOUND, "{errors:?}");
    for (rank, error) in errors.iter().enumerate() {
        let expected = match rank {
            1 => matches!(error, CollectiveError::Aborted { .. }),
            _ => matches!(error, CollectiveError::PeerLost { .. }),
        };
        assert!(expected, "rank {rank}: {error}");
    }
}

#[test]
fn a_rank_that_never_waits_is_freed_by_its_watchdog() {
    let ranks = form_with(&[0..1, 1..2], &Settings::new(BRIEF));
    on_threads(ranks, |mut nccl, rank| {
        if rank == 1 {
            assert!(nccl.arm("vanish"));
        }
        let mean = empty(1001);
        nccl.start(&vectors(rank..rank + 1, 1001), &mean).unwrap();
        // Like a thread that hangs in a call of the device's.
        let (watch, start) = (nccl.watch.clone().unwrap(), now());
        while !watch.is_poisoned() {
            assert!(start.elapsed() < BOUND);
            thread::sleep(Duration::from_millis(5));
        }
        let start = now();
        assert!(nccl.settle().is_err());
        assert!(start.elapsed() < BOUND);
    });
}

#[test]
fn a_rank_that_is_missing_is_named() {
    let mut ranks = form_with(&[0..1, 1..2], &Settings::new(BRIEF));
    let error = reduce(&mut ranks[0], 0..1, 1001).unwrap_err();
    match &error {
        CollectiveError::Deadline {
            missing, operation, ..
        } => {
            assert_eq!(missing.0[0].0, Rank(1));
            assert_eq!(*operation, Operation::Reduce);
        }
        _ => panic!("{error}"),
    }
}

#[test]
fn what_is_dropped_in_the_middle_is_an_error_for_the_peers_and_ends_in_time() {
    let ranks = form_with(&[0..1, 1..2], &Settings::new(PATIENT));
    let start = now();
    on_threads(ranks, |mut nccl, rank| {
        if rank == 1 {
            nccl.start(&vectors(1..2, 1001), &empty(1001)).unwrap();
            return;
        }
        thread::sleep(Duration::from_millis(50));
        let error = reduce(&mut nccl, 0..1, 1001).unwrap_err();
        assert!(matches!(error, CollectiveError::PeerLost { .. }), "{error}");
    });
    assert!(start.elapsed() < BOUND);
}
