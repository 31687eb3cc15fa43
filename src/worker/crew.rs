//! Several workers on one machine, as processes of their own under this one, which looks after them
//! and computes nothing: one for each GPU, or as many as are asked for on a CPU.
//!
//! The parent hands on what it is told by signals, and its exit code says for all of them what
//! whoever started it wants to know: is there anything to come back for? If one of them fails, the
//! others are told to go, which they do in good order, so that the machine begins anew as a whole. It
//! knows of no job and no coordinator, and opens no device.

use crate::signals::{self, Signal};
use rustix::process::{Pid, kill_process, set_parent_process_death_signal};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::task::Poll;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// Codes that say that the command, the job file or the data is wrong, or that this worker can never
/// take part: starting it again won't help.
const WRONG: [i32; 2] = [64, 78];
/// The code of a worker that was told to go.
const LEFT: i32 = 75;
/// The code of a crew of which one has failed.
const FAILED: u8 = 1;

/// What can keep a crew from beginning.
#[derive(Debug, thiserror::Error)]
pub(super) enum CrewError {
    /// A process can't be started.
    #[error("can't start worker process {index}: {source}")]
    Start {
        /// Which one.
        index: u32,
        /// Why.
        source: io::Error,
    },
    /// There are not so many ports.
    #[error(
        "--metrics-listen {listen}: each of {processes} processes takes a port of its own from \
         there on, and they end at 65535"
    )]
    Ports {
        /// As typed.
        listen: SocketAddr,
        /// How many there are.
        processes: u32,
    },
}

/// How one process of the crew has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The job is over.
    Done,
    /// It was told to go, and went.
    Left,
    /// It can never take part; its exit code.
    Wrong(u8),
    /// Everything else.
    Failed,
}

impl Ended {
    /// `told`: it was told to end. Then the signal's own effect is an end in good order too: it had not
    /// begun yet.
    fn of(status: ExitStatus, told: bool) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(0), _) => Ended::Done,
            (Some(LEFT), _) => Ended::Left,
            (Some(code), _) if WRONG.contains(&code) => Ended::Wrong(code as u8),
            (None, Some(signal)) if told && signal != rustix::process::Signal::KILL.as_raw() => {
                Ended::Left
            }
            _ => Ended::Failed,
        }
    }

    fn is_reason_to_go(self) -> bool {
        matches!(self, Ended::Wrong(_) | Ended::Failed)
    }
}

/// One exit code for all. What can never be right comes first. Then, if one of them has seen the job
/// end, there is nothing to come back for, whatever became of the others on the way out.
fn fold(ends: &[Ended]) -> u8 {
    let wrong = ends.iter().find_map(|ended| match ended {
        Ended::Wrong(code) => Some(*code),
        _ => None,
    });
    match wrong {
        Some(code) => code,
        None if ends.contains(&Ended::Done) => 0,
        None if ends.contains(&Ended::Failed) || ends.is_empty() => FAILED,
        None => LEFT as u8,
    }
}

/// The metrics address of each process: the ports follow each other, unless any port will do.
///
/// # Errors
/// [`CrewError::Ports`]
pub(super) fn metrics_addresses(
    listen: SocketAddr,
    processes: u32,
) -> Result<Vec<SocketAddr>, CrewError> {
    let ports = CrewError::Ports { listen, processes };
    let first = u32::from(listen.port());
    (0..processes)
        .map(|index| match first {
            0 => Some(listen),
            first => {
                let port = u16::try_from(first + index).ok()?;
                Some(SocketAddr::new(listen.ip(), port))
            }
        })
        .collect::<Option<_>>()
        .ok_or(ports)
}

struct Member {
    index: u32,
    child: Child,
    ended: Option<Ended>,
}

impl Member {
    /// A process that has ended, and was asked for its status, has no number any more: no other
    /// one can be meant.
    fn tell(&self, signal: rustix::process::Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            return;
        };
        if let Err(error) = kill_process(pid, signal) {
            tracing::warn!(process = self.index, "can't be told to go: {error}");
        }
    }
}

/// What happens next.
enum Next {
    Ended(usize, io::Result<ExitStatus>),
    Told(Signal),
    Overdue,
}

/// Starts the commands, looks after them until all have ended, and gives the exit code for all. Once
/// they have been told to go, each has `grace` to do so.
///
/// # Errors
/// [`CrewError::Start`]; those that had started are killed.
///
/// # Cancel safety
/// Whoever drops it kills them all.
pub(super) async fn run(
    commands: Vec<std::process::Command>,
    grace: Duration,
) -> Result<u8, CrewError> {
    let mut terminated = pin!(signals::termination(1));
    let mut members = Vec::new();
    for (index, command) in (0..).zip(commands) {
        let child = Command::from(command)
            .stdin(Stdio::null())
            // Ctrl-C is for the parent, which hands it on: the workers shall hear it once.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| CrewError::Start { index, source })?;
        let pid = child.id();
        tracing::info!(process = index, pid, "started");
        members.push(Member {
            index,
            child,
            ended: None,
        });
    }
    let mut deadline = None;
    while members.iter().any(|member| member.ended.is_none()) {
        let overdue = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let next = tokio::select! {
            (index, status) = next_end(&mut members) => Next::Ended(index, status),
            signal = &mut terminated => Next::Told(signal),
            () = overdue => Next::Overdue,
        };
        match next {
            Next::Ended(index, status) => {
                let told = deadline.is_some();
                let ended = match &status {
                    Ok(status) => Ended::of(*status, told),
                    Err(_) => Ended::Failed,
                };
                log(index, &status, ended);
                members[index].ended = Some(ended);
                if ended.is_reason_to_go() && !told {
                    deadline = Some(Instant::now() + grace);
                    tell(&members, Signal::Terminate);
                }
            }
            Next::Told(signal) => {
                tracing::info!("{signal}: handed on");
                terminated.set(signals::termination(1));
                deadline.get_or_insert(Instant::now() + grace);
                tell(&members, signal);
            }
            Next::Overdue => {
                tracing::warn!("some have not gone within {grace:?} (--grace) and are killed");
                deadline = Some(Instant::now() + grace);
                for member in members.iter().filter(|member| member.ended.is_none()) {
                    member.tell(rustix::process::Signal::KILL);
                }
            }
        }
    }
    let ends: Vec<Ended> = members.iter().filter_map(|member| member.ended).collect();
    Ok(fold(&ends))
}

fn tell(members: &[Member], signal: Signal) {
    let signal = match signal {
        Signal::Terminate => rustix::process::Signal::TERM,
        Signal::Interrupt => rustix::process::Signal::INT,
        Signal::HangUp => rustix::process::Signal::HUP,
    };
    for member in members.iter().filter(|member| member.ended.is_none()) {
        member.tell(signal);
    }
}

fn log(process: usize, status: &io::Result<ExitStatus>, ended: Ended) {
    match status {
        Ok(status) if ended.is_reason_to_go() => {
            tracing::error!(process, "ended ({status}); the others are to go");
        }
        Ok(status) => tracing::info!(process, "ended ({status})"),
        Err(error) => tracing::error!(process, "nothing is known of its end: {error}"),
    }
}

/// The next one to end.
///
/// # Cancel safety
/// Nothing is lost: a process that has ended is found again.
async fn next_end(members: &mut [Member]) -> (usize, io::Result<ExitStatus>) {
    poll_fn(|context| {
        for (index, member) in members.iter_mut().enumerate() {
            if member.ended.is_some() {
                continue;
            }
            if let Poll::Ready(status) = pin!(member.child.wait()).poll(context) {
                return Poll::Ready((index, status));
            }
        }
        Poll::Pending
    })
    .await
}

/// Sees to it that this process is told to go when its parent is no more: a parent that was killed
/// can hand nothing on. False if there is no such parent already.
///
/// The system counts the parent's *thread*: a crew starts its processes from the thread that lives
/// as long as it does.
pub(super) fn go_with_parent(parent: u32) -> io::Result<bool> {
    set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let is = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    Ok(is.and_then(|pid| u32::try_from(pid).ok()) == Some(parent))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that can't go on fails")]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn an_exit_code_says_whether_there_is_anything_to_come_back_for() {
        use Ended::{Done, Failed, Left, Wrong};
        for (ends, code) in [
            (&[Done, Done][..], 0),
            (&[Left, Left], 75),
            (&[Left, Failed, Left], 1),
            // The others heard of it while it fell.
            (&[Done, Failed], 0),
            (&[Done, Left], 0),
            (&[Left, Wrong(78), Failed], 78),
            (&[Wrong(64), Left], 64),
            (&[Done, Wrong(78)], 78),
            (&[], 1),
        ] {
            assert_eq!(fold(ends), code, "{ends:?}");
        }
    }

    #[test]
    fn a_process_that_is_ended_before_it_began_has_left() {
        let (exited, killed) = (|code: i32| code << 8, |signal: i32| signal);
        for (raw, told, ended) in [
            (exited(0), false, Ended::Done),
            (exited(75), false, Ended::Left),
            (exited(64), true, Ended::Wrong(64)),
            (exited(78), false, Ended::Wrong(78)),
            (exited(1), true, Ended::Failed),
            (killed(15), true, Ended::Left),
            (killed(15), false, Ended::Failed),
            (killed(9), true, Ended::Failed),
            (killed(11), false, Ended::Failed),
        ] {
            assert_eq!(
                Ended::of(ExitStatus::from_raw(raw), told),
                ended,
                "{raw:#x}"
            );
        }
    }

    #[test]
    fn metrics_of_a_crew_have_ports_that_follow_each_other() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(
            metrics_addresses(address("0.0.0.0:9464"), 3).unwrap(),
            ["0.0.0.0:9464", "0.0.0.0:9465", "0.0.0.0:9466"].map(address)
        );
        assert_eq!(
            metrics_addresses(address("[::]:0"), 2).unwrap(),
            [address("[::]:0"); 2]
        );
        assert!(metrics_addresses(address("127.0.0.1:65535"), 1).is_ok());
        let error = metrics_addresses(address("127.0.0.1:65535"), 2).unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:65535"), "{error}");
    }
}
