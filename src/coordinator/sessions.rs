//! Who is at the other end of which session.
//!
//! A session is one connection; a worker is a process, and may have several sessions one after the
//! other. What an old session says counts for nothing once there is a newer one.

use crate::ids::WorkerId;
use crate::proto;
use std::collections::HashMap;
use tokio::sync::mpsc;
use tonic::Status;

/// Messages that may wait for one worker before it is given up.
pub(super) const OUTBOX: usize = 256;

/// Where a worker's messages go.
pub(super) type Outbox = mpsc::Sender<Result<proto::CoordinatorMessage, Status>>;

/// One connection of a worker. A worker that comes back has a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SessionId(pub(super) u64);

/// Who is at the other end of which session.
pub(super) struct Sessions {
    outboxes: HashMap<SessionId, (Outbox, Option<WorkerId>)>,
    workers: HashMap<WorkerId, SessionId>,
    /// The number that the next new worker gets; none is ever given twice.
    next: WorkerId,
}

impl Sessions {
    pub(super) fn new(next: WorkerId) -> Self {
        Self {
            outboxes: HashMap::new(),
            workers: HashMap::new(),
            next,
        }
    }

    /// A connection is there; who it is will be said.
    pub(super) fn open(&mut self, session: SessionId, outbox: Outbox) {
        self.outboxes.insert(session, (outbox, None));
    }

    /// The worker doesn't read what it is told: its stream ends, and the notice of that still finds
    /// who it was.
    pub(super) fn silence(&mut self, worker: WorkerId) {
        let session = self.workers.get(&worker);
        if let Some((outbox, _)) = session.and_then(|session| self.outboxes.get_mut(session)) {
            *outbox = mpsc::channel(1).0;
        }
    }

    /// Who has said Hello in this session.
    pub(super) fn worker(&self, session: SessionId) -> Option<WorkerId> {
        self.outboxes.get(&session).and_then(|(_, worker)| *worker)
    }

    /// A process has said who it is. If it is known under `known`, this session takes the place of
    /// the one before.
    pub(super) fn introduce(
        &mut self,
        session: SessionId,
        known: Option<WorkerId>,
    ) -> Option<WorkerId> {
        let (_, place) = self.outboxes.get_mut(&session)?;
        let worker = known.unwrap_or_else(|| {
            let new = self.next;
            self.next = new.next();
            new
        });
        *place = Some(worker);
        if let Some(before) = self.workers.insert(worker, session)
            && before != session
        {
            self.outboxes.remove(&before);
        }
        Some(worker)
    }

    /// The worker whose session this was, if it has no newer one.
    pub(super) fn close(&mut self, session: SessionId) -> Option<WorkerId> {
        let (_, worker) = self.outboxes.remove(&session)?;
        let worker = worker?;
        if self.workers.get(&worker) == Some(&session) {
            self.workers.remove(&worker);
            return Some(worker);
        }
        None
    }

    /// Where the worker's messages go.
    pub(super) fn outbox(&self, worker: WorkerId) -> Option<&Outbox> {
        let session = self.workers.get(&worker)?;
        self.outboxes.get(session).map(|(outbox, _)| outbox)
    }

    /// Ends the worker's session.
    pub(super) fn drop_worker(&mut self, worker: WorkerId) {
        if let Some(session) = self.workers.remove(&worker) {
            self.outboxes.remove(&session);
        }
    }
}
