//! The operating system's word to end, and one that is no reason to.

use std::fmt;
use tokio::signal::unix::{SignalKind, signal};

/// What the process was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: the machine is wanted for something else.
    Terminate,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGHUP: the terminal is gone.
    HangUp,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Signal::Terminate => "SIGTERM",
            Signal::Interrupt => "SIGINT",
            Signal::HangUp => "SIGHUP",
        })
    }
}

/// SIGXFSZ, on every system that tokio runs on but MIPS.
const FILE_TOO_LARGE: i32 = 25;

/// Has a file that grows beyond the process's limit be an error of the write, as on a full disk:
/// training goes on without that file. Left alone, the signal would end the process.
///
/// # Panics
/// Outside a tokio runtime.
pub fn survive_file_limits() {
    if let Err(error) = signal(SignalKind::from_raw(FILE_TOO_LARGE)) {
        tracing::warn!("a file beyond the limit of this process would end it: {error}");
    }
}

/// Resolves when the process has been told to end `times` times, counted from the first poll. If it
/// may not listen for signals it never resolves, and says so in the log.
pub async fn termination(times: u32) -> Signal {
    let streams = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::hangup()),
    );
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hang_up)) = streams else {
        tracing::warn!("can't listen for SIGTERM, SIGINT and SIGHUP");
        return std::future::pending().await;
    };
    let mut told = Signal::Terminate;
    for _ in 0..times {
        told = tokio::select! {
            _ = terminate.recv() => Signal::Terminate,
            _ = interrupt.recv() => Signal::Interrupt,
            _ = hang_up.recv() => Signal::HangUp,
        };
    }
    told
}
