//! A thread that writes TensorBoard's event files while the job runs, after what the run directory
//! says: training never waits for it, and if it can't write, it says so once and ends.

use super::recording::unix_seconds;
use crate::ids::Step;
use crate::telemetry::tensorboard::{Board, BoardError};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How often it looks for what is new.
const EVERY: Duration = Duration::from_secs(1);
/// For the last of it, when the job is over.
const FAREWELL: Duration = Duration::from_secs(5);

/// The thread, while it runs.
pub(super) struct Following {
    /// Dropped, it tells the thread to catch up and end.
    end: Sender<()>,
    ended: Receiver<()>,
}

impl Following {
    /// Begins to follow `run_dir`, whose records end at `recorded`.
    pub(super) fn start(run_dir: &Path, recorded: Step) -> Option<Self> {
        let run_dir = PathBuf::from(run_dir);
        let ((end, told), (done, ended)) = (channel(), channel());
        let thread = std::thread::Builder::new().name("tensorboard".to_owned());
        let spawned = thread.spawn(move || {
            if let Err(error) = follow(&run_dir, recorded, &told) {
                tracing::warn!("{error}; training goes on without");
            }
            let _ = done.send(());
        });
        match spawned {
            Ok(_) => Some(Self { end, ended }),
            Err(error) => {
                tracing::warn!("no event files for TensorBoard: can't start a thread: {error}");
                None
            }
        }
    }

    /// Waits until all that the run directory says is written, but not for long.
    pub(super) fn finish(self) {
        drop(self.end);
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(FAREWELL) {
            tracing::warn!("the last events for TensorBoard were not written within {FAREWELL:?}");
        }
    }
}

fn follow(run_dir: &Path, recorded: Step, told: &Receiver<()>) -> Result<(), BoardError> {
    let mut board = Board::open(run_dir, recorded, unix_seconds())?;
    loop {
        let last = match told.recv_timeout(EVERY) {
            Err(RecvTimeoutError::Timeout) => false,
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
        };
        while board.catch_up()? {}
        if last {
            return Ok(());
        }
    }
}
