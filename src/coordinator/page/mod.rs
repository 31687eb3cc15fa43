//! The page: what a run directory holds and a running job says, for a browser.
//!
//! A [`View`] reads the run directory's files as they grow, the same while the job runs and after it;
//! where a coordinator is alive, it adds what only that one knows ([`Live`]). Browsers get the page's
//! files, which are a part of the program, and then server-sent events. Nothing here can change
//! anything, and no secret is read: not even a worker's incarnation, with which it claims its seat.

mod command;
mod curves;
mod events;
mod history;
mod routes;
mod server;
#[cfg(test)]
mod tests;
mod view;

pub(super) use command::{View, finish, of};

use super::status::{Identity, Progress};
use crate::telemetry::exporter::Recorded;
use server::Server;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, watch};

/// Browsers that are told of news at a time.
const LISTENERS: usize = 64;

/// What only a coordinator that is alive can say.
pub(super) struct Live {
    pub(super) identity: Identity,
    pub(super) progress: watch::Receiver<Progress>,
}

/// All that a page is made from.
pub(super) struct Page {
    run_dir: PathBuf,
    view: Mutex<view::View>,
    /// A change of the job, for a page of a running one.
    progress: Option<watch::Receiver<Progress>>,
    /// This process's metrics, if they are served beside the page.
    metrics: Option<Recorded>,
    /// Room for listeners.
    listeners: Arc<Semaphore>,
    /// True when the last news is to be told.
    closing: watch::Sender<bool>,
}

impl Page {
    /// The page of a job that this process coordinates.
    pub(super) fn live(run_dir: &Path, live: Live, metrics: Recorded) -> Self {
        Self::new(run_dir, Some(live), Some(metrics))
    }

    /// The page of a run directory, whoever may be writing there.
    pub(super) fn of_files(run_dir: &Path) -> Self {
        Self::new(run_dir, None, None)
    }

    fn new(run_dir: &Path, live: Option<Live>, metrics: Option<Recorded>) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            progress: live.as_ref().map(|live| live.progress.clone()),
            view: Mutex::new(view::View::new(run_dir, live)),
            metrics,
            listeners: Arc::new(Semaphore::new(LISTENERS)),
            closing: watch::Sender::new(false),
        }
    }

    fn view(&self) -> MutexGuard<'_, view::View> {
        // What a panic has left half read is read again when the file is replaced, and is only shown.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
