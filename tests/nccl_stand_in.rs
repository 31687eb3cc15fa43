//! The stand-in for libnccl keeps NCCL's manners, the good ones and the bad ones: what is proved
//! with it is worth as much as it is like the original.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]
#![allow(clippy::disallowed_methods, reason = "real threads take real time")]

#[path = "nccl/library.rs"]
mod library;

use libloading::os::unix::{Library, Symbol};
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const SUCCESS: c_int = 0;
const INVALID_ARGUMENT: c_int = 4;
const REMOTE_ERROR: c_int = 6;
const IN_PROGRESS: c_int = 7;
const FLOAT: c_int = 7;
const SUM: c_int = 0;

/// What nothing healthy takes.
const LONG: Duration = Duration::from_secs(20);
/// What is awaited of something that hangs.
const SHORT: Duration = Duration::from_millis(100);

type UniqueId = [u8; 128];

#[repr(C)]
#[derive(Clone, Copy)]
struct Id(UniqueId);

#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

type Handle = *mut c_void;
type OfHandle = unsafe extern "C" fn(Handle) -> c_int;
type Reading = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
type GetId = unsafe extern "C" fn(*mut Id) -> c_int;
type Init = unsafe extern "C" fn(*mut Handle, c_int, Id, c_int, *mut Config) -> c_int;
type Send = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
type Receive = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
type Reduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    Handle,
    *mut c_void,
) -> c_int;
type Gather =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> c_int;
type Group = unsafe extern "C" fn() -> c_int;
type Arm = unsafe extern "C" fn(Handle, *const c_char) -> c_int;

/// One symbol. The types above are those of the library's functions.
fn symbol<T>(name: &str) -> Symbol<T> {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        // SAFETY: it has no initialisers.
        unsafe { Library::new(library::stand_in()) }.unwrap()
    });
    let name = CString::new(name).unwrap();
    // SAFETY: every caller names a function of the type that it gives.
    unsafe { library.get(name.as_bytes_with_nul()) }.unwrap()
}

fn unique_id() -> Id {
    let mut id = Id([0; 128]);
    // SAFETY: a place for an id.
    let code = unsafe { symbol::<GetId>("ncclGetUniqueId")(&mut id) };
    assert_eq!(code, SUCCESS);
    id
}

/// A rank of a communicator, used by one thread.
struct Rank {
    handle: Handle,
    rank: usize,
}

impl Rank {
    /// Begins to form it.
    fn begin(id: Id, rank: usize, ranks: usize) -> Self {
        let mut handle = std::ptr::null_mut();
        let mut config = Config {
            size: 24,
            magic: 0xcafe_beef,
            version: 22809,
            blocking: 0,
        };
        let init = symbol::<Init>("ncclCommInitRankConfig");
        // SAFETY: places for a handle and a configuration.
        let code = unsafe { init(&mut handle, ranks as c_int, id, rank as c_int, &mut config) };
        assert_eq!(code, IN_PROGRESS);
        Self { handle, rank }
    }

    fn formed(id: Id, rank: usize, ranks: usize) -> Self {
        let formed = Self::begin(id, rank, ranks);
        assert_eq!(formed.settled(LONG), SUCCESS);
        formed
    }

    fn async_error(&self) -> c_int {
        let mut error = -1;
        // SAFETY: a place for a code.
        let code = unsafe { symbol::<Reading>("ncclCommGetAsyncError")(self.handle, &mut error) };
        assert_eq!(code, SUCCESS);
        error
    }

    /// The state when it is no longer in progress, or after so long.
    fn settled(&self, patience: Duration) -> c_int {
        until(patience, || {
            Some(self.async_error()).filter(|&code| code != IN_PROGRESS)
        })
        .unwrap_or(IN_PROGRESS)
    }

    fn query(&self) -> c_int {
        // SAFETY: any handle may be asked.
        unsafe { symbol::<OfHandle>("ganStandInQuery")(self.handle) }
    }

    /// Waits until all is done, for so long.
    fn done(&self, patience: Duration) -> bool {
        until(patience, || (self.query() == SUCCESS).then_some(())).is_some()
    }

    fn send(&self, data: &[f32], peer: usize) -> c_int {
        let send = symbol::<Send>("ncclSend");
        let (data, count) = (data.as_ptr().cast(), data.len());
        // SAFETY: the tests keep the data until the group is over.
        unsafe {
            send(
                data,
                count,
                FLOAT,
                peer as c_int,
                self.handle,
                std::ptr::null_mut(),
            )
        }
    }

    fn receive(&self, data: &mut [f32], peer: usize) -> c_int {
        let receive = symbol::<Receive>("ncclRecv");
        let (data, count) = (data.as_mut_ptr().cast(), data.len());
        // SAFETY: the tests keep the data until the group is over.
        unsafe {
            receive(
                data,
                count,
                FLOAT,
                peer as c_int,
                self.handle,
                std::ptr::null_mut(),
            )
        }
    }

    fn reduce(&self, data: &mut [f32]) -> c_int {
        let reduce = symbol::<Reduce>("ncclAllReduce");
        let (at, count) = (data.as_mut_ptr(), data.len());
        let stream = std::ptr::null_mut();
        // SAFETY: the tests keep the data until the group is over; in place is allowed.
        unsafe { reduce(at.cast(), at.cast(), count, FLOAT, SUM, self.handle, stream) }
    }

    fn gather(&self, data: &[f32], all: &mut [f32]) -> c_int {
        let gather = symbol::<Gather>("ncclAllGather");
        let (from, to) = (data.as_ptr().cast(), all.as_mut_ptr().cast());
        // SAFETY: the tests keep the data until the group is over.
        unsafe {
            gather(
                from,
                to,
                data.len(),
                FLOAT,
                self.handle,
                std::ptr::null_mut(),
            )
        }
    }

    fn arm(&self, words: &str) {
        let words = CString::new(words).unwrap();
        // SAFETY: a string that ends in NUL.
        let code = unsafe { symbol::<Arm>("ganStandInFault")(self.handle, words.as_ptr()) };
        assert_eq!(code, SUCCESS, "{words:?}");
    }

    fn abort(&self) {
        // SAFETY: a handle of the library's.
        let code = unsafe { symbol::<OfHandle>("ncclCommAbort")(self.handle) };
        assert_eq!(code, SUCCESS);
    }

    fn end(&self) {
        // SAFETY: a handle of the library's.
        unsafe {
            let finalized = symbol::<OfHandle>("ncclCommFinalize")(self.handle);
            assert!([SUCCESS, IN_PROGRESS].contains(&finalized), "{finalized}");
            assert_eq!(self.settled(LONG), SUCCESS);
            assert_eq!(symbol::<OfHandle>("ncclCommDestroy")(self.handle), SUCCESS);
        }
    }
}

fn until<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        let seen = look();
        if seen.is_some() || began.elapsed() > patience {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn group(calls: impl FnOnce()) -> c_int {
    // SAFETY: they take nothing.
    unsafe {
        assert_eq!(symbol::<Group>("ncclGroupStart")(), SUCCESS);
        calls();
        symbol::<Group>("ncclGroupEnd")()
    }
}

/// Each rank on a thread of its own.
fn ranks(count: usize, each: impl Fn(Rank) + Sync) {
    let id = unique_id();
    std::thread::scope(|scope| {
        for rank in 0..count {
            let each = &each;
            scope.spawn(move || each(Rank::formed(id, rank, count)));
        }
    });
}

/// More than any socket's buffers hold.
const LARGE: usize = 3 << 20;

#[test]
fn a_group_of_sends_and_receipts_does_not_deadlock_whatever_the_sizes() {
    ranks(3, |rank| {
        let length = |from: usize, to: usize| LARGE / (1 + 2 * from + to);
        let value = |from: usize, to: usize| (10 * from + to) as f32;
        let sent: Vec<Vec<f32>> = (0..3)
            .map(|to| vec![value(rank.rank, to); length(rank.rank, to)])
            .collect();
        let mut received: Vec<Vec<f32>> = (0..3)
            .map(|from| vec![-1.0; length(from, rank.rank)])
            .collect();
        let code = group(|| {
            for (peer, sent) in sent.iter().enumerate() {
                assert_eq!(rank.send(sent, peer), SUCCESS);
            }
            for (peer, received) in received.iter_mut().enumerate() {
                assert_eq!(rank.receive(received, peer), SUCCESS);
            }
        });
        assert_eq!(code, SUCCESS);
        assert!(rank.done(LONG));
        for (from, received) in received.iter().enumerate() {
            assert!(received.iter().all(|&v| v == value(from, rank.rank)));
        }
        rank.end();
    });
}

#[test]
fn groups_run_in_order_after_the_call_has_returned() {
    ranks(2, |rank| {
        // Many small ones, none waited for, and a collective between them.
        let peer = 1 - rank.rank;
        let sent: Vec<f32> = (0..100).map(|i| (1000 * rank.rank + i) as f32).collect();
        let mut received = vec![0.0; 100];
        let mut sum = vec![1.0 + rank.rank as f32; 5];
        for i in 0..100 {
            let code = group(|| {
                rank.receive(&mut received[i..=i], peer);
                rank.send(&sent[i..=i], peer);
            });
            assert_eq!(code, SUCCESS);
            if i == 50 {
                assert_eq!(rank.reduce(&mut sum), SUCCESS);
            }
        }
        assert!(rank.done(LONG));
        let expected: Vec<f32> = (0..100).map(|i| (1000 * peer + i) as f32).collect();
        assert_eq!(received, expected);
        assert_eq!(sum, [3.0; 5]);
        rank.end();
    });
}

#[test]
fn all_ranks_get_one_sum_and_its_order_is_a_rings() {
    // In any order that adds the small ones first they count, and after the large one they don't.
    let values = [1.0_f32, 1e8, 1.0, -1e8];
    ranks(4, |rank| {
        let mut sum = vec![values[rank.rank]; 7];
        assert_eq!(rank.reduce(&mut sum), SUCCESS);
        assert!(rank.done(LONG));
        let from =
            |first: usize| (1..4).fold(values[first], |sum, i| sum + values[(first + i) % 4]);
        let expected: Vec<f32> = (0..7)
            .map(|i| from((0..4).find(|part| i < (part + 1) * 7 / 4).unwrap()))
            .collect();
        assert_eq!(sum, expected);
        let tree = (values[0] + values[1]) + (values[2] + values[3]);
        assert!(sum.iter().any(|&sum| sum != tree), "{sum:?}");
        let mut all = vec![0.0; 8];
        let own = [rank.rank as f32, 10.0 + rank.rank as f32];
        assert_eq!(rank.gather(&own, &mut all), SUCCESS);
        assert!(rank.done(LONG));
        assert_eq!(all, [0.0, 10.0, 1.0, 11.0, 2.0, 12.0, 3.0, 13.0]);
        rank.end();
    });
}

#[test]
fn a_rank_alone_adds_up_nothing() {
    ranks(1, |rank| {
        let mut sum = vec![1.5; 3];
        assert_eq!(rank.reduce(&mut sum), SUCCESS);
        assert!(rank.done(LONG));
        assert_eq!(sum, [1.5; 3]);
        rank.end();
    });
}

#[test]
fn ranks_that_disagree_about_a_length_hang_until_they_are_aborted() {
    ranks(2, |rank| {
        let mut data = vec![1.0; 10 + rank.rank];
        if rank.rank == 0 {
            assert_eq!(rank.send(&data, 1), SUCCESS);
            assert!(rank.done(LONG), "its bytes are gone");
            std::thread::sleep(2 * SHORT);
        } else {
            assert_eq!(rank.receive(&mut data, 0), SUCCESS);
            assert!(!rank.done(SHORT));
        }
        rank.abort();
        assert_eq!(rank.query(), SUCCESS, "it says that all is done");
    });
}

#[test]
fn a_missing_rank_leaves_the_others_in_progress_and_they_can_be_aborted() {
    let id = unique_id();
    let waiting = Rank::begin(id, 0, 2);
    assert_eq!(waiting.settled(SHORT), IN_PROGRESS);
    let mut data = [0.0];
    assert_eq!(
        waiting.reduce(&mut data),
        INVALID_ARGUMENT,
        "it is not ready"
    );
    waiting.abort();

    let id = unique_id();
    // SAFETY: a string that ends in NUL.
    let code =
        unsafe { symbol::<Arm>("ganStandInFault")(std::ptr::null_mut(), c"init-missing".as_ptr()) };
    assert_eq!(code, SUCCESS);
    let both = [Rank::begin(id, 0, 2), Rank::begin(id, 1, 2)];
    for rank in &both {
        assert_eq!(rank.settled(SHORT), IN_PROGRESS);
    }
    for rank in &both {
        rank.abort();
    }
}

/// Rank 1 has the fault; this is what both see after `SHORT`, before anything is aborted.
fn faulty(words: &str, sees: impl Fn(&Rank, &[f32]) + Sync) {
    ranks(2, |rank| {
        if rank.rank == 1 {
            rank.arm(words);
        }
        for healthy in [true, false] {
            let mut data = vec![1.0; 1000];
            let sent = vec![7.0; 1000];
            let code = group(|| {
                rank.send(&sent, 1 - rank.rank);
                rank.receive(&mut data, 1 - rank.rank);
            });
            assert_eq!(code, SUCCESS);
            if healthy {
                assert!(rank.done(LONG));
                assert_eq!(data, [7.0; 1000]);
                continue;
            }
            assert!(!rank.done(SHORT));
            sees(&rank, &data);
            std::thread::sleep(SHORT);
            rank.abort();
            assert_eq!(rank.query(), SUCCESS);
        }
    });
}

#[test]
fn a_rank_that_vanishes_tells_nobody() {
    faulty("vanish@2", |rank, data| {
        assert_eq!(rank.async_error(), SUCCESS);
        if rank.rank == 0 {
            assert_eq!(data, [1.0; 1000]);
        }
    });
}

#[test]
fn an_async_error_leaves_the_stream_hanging() {
    faulty("async-error@2", |rank, _| {
        let expected = [SUCCESS, REMOTE_ERROR][rank.rank];
        assert_eq!(rank.async_error(), expected);
        assert_eq!(rank.query(), IN_PROGRESS);
    });
}

#[test]
fn after_an_abort_partial_data_pass_for_whole() {
    faulty("partial@2", |rank, data| {
        assert_eq!(rank.async_error(), SUCCESS);
        let (whole, partial) = data.split_at(500);
        assert_eq!(whole, [7.0; 500]);
        if rank.rank == 1 {
            assert_eq!(partial, [1.0; 500]);
        }
    });
}

#[test]
fn a_peer_that_dies_is_a_remote_error_unless_it_is_silent() {
    for (words, expected) in [("", REMOTE_ERROR), ("silent", SUCCESS)] {
        ranks(2, |rank| {
            if rank.rank == 1 {
                rank.abort();
                return;
            }
            rank.arm(words);
            let mut data = vec![1.0; 10];
            assert_eq!(rank.reduce(&mut data), SUCCESS);
            assert!(!rank.done(SHORT));
            assert_eq!(rank.async_error(), expected);
            rank.abort();
        });
    }
}

#[test]
fn an_abort_may_never_return() {
    ranks(1, |rank| {
        rank.arm("abort-hangs");
        let handle = rank.handle as usize;
        // It hangs to the end of the process.
        let hanging = std::thread::spawn(move || {
            Rank {
                handle: handle as Handle,
                rank: 0,
            }
            .abort();
        });
        std::thread::sleep(SHORT);
        assert!(!hanging.is_finished());
    });
}

#[test]
fn what_is_in_progress_is_not_in_the_stream_yet_and_can_not_be_used() {
    ranks(2, |rank| {
        rank.arm("in-progress:200");
        let mut sum = vec![2.0; 4];
        let mut other = vec![2.0; 4];
        assert_eq!(rank.reduce(&mut sum), IN_PROGRESS);
        assert_eq!(rank.query(), SUCCESS, "a stream knows nothing of it");
        assert_eq!(rank.reduce(&mut other), INVALID_ARGUMENT);
        assert_eq!(sum, [2.0; 4]);
        assert_eq!(rank.settled(LONG), SUCCESS);
        assert!(rank.done(LONG));
        assert_eq!(sum, [4.0; 4]);
        assert_eq!(other, [2.0; 4]);
        rank.end();
    });
}
