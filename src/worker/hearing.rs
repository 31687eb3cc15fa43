//! What reaches the worker's loop, as events that its machine knows.

use super::client::FromSession;
use super::inbox::{Command, Form};
use super::training::Report;
use super::{Enrolment, Input, Worker, wire};
use crate::config;
use crate::ids::Generation;
use crate::proto;
use crate::session::{Event, Terms};
use proto::coordinator_message::Kind as FromCoordinator;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// An event, or the passing of time.
pub(super) enum Heard {
    Event(Event),
    Timeout,
}

impl Worker {
    /// Turns what came in into an event, or passes it on if no decision is needed.
    pub(super) fn event(&mut self, input: Input, command: &mut Option<Command>) -> Option<Heard> {
        let event = match input {
            Input::Timeout => return Some(Heard::Timeout),
            Input::Terminate => Event::Terminate,
            // An attempt that was given up has nothing to say any more.
            Input::Session(report) if report.attempt != self.attempt => return None,
            Input::Session(report) => self.came(report.came, command),
            Input::Opened(Err(reason)) => Event::Failed(reason),
            Input::Opened(Ok(dataset)) => match self.start_training(dataset) {
                // What it will have to wait for is done before a seat is asked for.
                Ok(()) => return None,
                Err(reason) => Event::Failed(reason),
            },
            Input::Training(report) => self.reported(report)?,
        };
        Some(Heard::Event(event))
    }

    fn came(&mut self, came: FromSession, command: &mut Option<Command>) -> Event {
        match came {
            FromSession::Opened(session) => {
                self.unreachable = None;
                self.outbox.open(session);
                Event::Connected
            }
            FromSession::Unreachable(error) => {
                // It is tried again every few seconds; once is enough for people.
                if self.unreachable.as_ref() != Some(&error) {
                    tracing::info!("can't reach the coordinator yet: {error}");
                    self.unreachable = Some(error.clone());
                }
                Event::Unreachable(error)
            }
            FromSession::Closed(why) => {
                tracing::warn!("{why}");
                self.hang_up();
                Event::Disconnected(why)
            }
            FromSession::Said(message) => self.hear(message, command).unwrap_or_else(|malformed| {
                Event::Failed(format!(
                    "{malformed}; use the same version of both programs"
                ))
            }),
        }
    }

    fn reported(&mut self, report: Report) -> Option<Event> {
        let event = match report {
            Report::Progress(progress) => {
                self.outbox.progress(progress);
                return None;
            }
            Report::Checkpoint(written) => {
                self.outbox.checkpoint(*written, self.session.generation());
                return None;
            }
            Report::Evaluated(evaluated) => {
                self.outbox.evaluated(evaluated, self.session.generation());
                return None;
            }
            Report::Ready => {
                let digest = self.training.as_ref().map(|training| &training.data_digest);
                Event::Prepared(digest.cloned().unwrap_or_default())
            }
            Report::Unfit(reason) => Event::Failed(reason),
            Report::Formed(generation, step, forming) => Event::Formed(generation, step, forming),
            Report::Paused(generation, step) => Event::Paused(generation, step),
            Report::Ended(generation, step, finish) => {
                Event::TrainingEnded(generation, step, finish)
            }
            Report::CollectiveFailed(generation, step, breakage) => {
                tracing::warn!(%step, "{}", breakage.reason);
                Event::CollectiveFailed(generation, step, breakage)
            }
        };
        Some(event)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "how long the training thread takes to leave what it does is measured from here"
    )]
    fn hear(
        &mut self,
        message: proto::CoordinatorMessage,
        command: &mut Option<Command>,
    ) -> Result<Event, wire::Malformed> {
        let event = match message.kind.ok_or(wire::Malformed::Empty)? {
            FromCoordinator::MembersPart(_) => return Err(wire::Malformed::Part),
            FromCoordinator::Welcome(welcome) => self.welcome(&welcome)?,
            FromCoordinator::Refused(refused) => Event::Refused {
                reason: refused.reason,
                permanent: refused.permanent,
            },
            FromCoordinator::Assignment(message) => {
                let assignment = wire::assignment(message)?;
                let event = Event::Assignment(assignment.generation(), assignment.close);
                *command = Some(Command::Form(Box::new(Form {
                    assignment,
                    heard_at: Instant::now(),
                })));
                event
            }
            FromCoordinator::Work(message) => {
                let generation = Generation(message.generation);
                *command = Some(Command::Work(generation, wire::work(message)));
                Event::Work(generation)
            }
            FromCoordinator::Pause(pause) => Event::Pause(Generation(pause.generation)),
            FromCoordinator::Hold(hold) => {
                tracing::info!(generation = hold.generation, "to wait: {}", hold.reason);
                Event::Hold(Generation(hold.generation), hold.reason)
            }
            FromCoordinator::Release(_) => Event::Release,
            FromCoordinator::Stop(stop) => {
                tracing::info!("told to stop: {}", stop.reason);
                Event::Stop { drain: stop.drain }
            }
            FromCoordinator::Ended(ended) => Event::Ended {
                outcome: ended.outcome,
                good: ended.good,
            },
            FromCoordinator::Acknowledged(_) => Event::Acknowledged,
        };
        Ok(event)
    }

    /// The first Welcome brings the job; a later one must be of the same.
    fn welcome(&mut self, welcome: &proto::Welcome) -> Result<Event, wire::Malformed> {
        let heartbeat = wire::heartbeat(welcome.heartbeat_seconds)?;
        let enrolment = match self.enrolment.take() {
            Some(known) if known.job_id != welcome.job_id => {
                return Ok(Event::Refused {
                    reason: format!(
                        "this worker takes part in job id {}, and the coordinator is now that of \
                         {}: start a new worker for it",
                        known.job_id, welcome.job_id
                    ),
                    permanent: true,
                });
            }
            Some(known) => known,
            None => match enrolment(welcome) {
                Ok(new) => new,
                Err(reason) => return Ok(Event::Failed(reason)),
            },
        };
        tracing::info!(
            worker = welcome.worker,
            job = %enrolment.job.job.name,
            id = %welcome.job_id,
            resumed = welcome.resumed,
            "welcome"
        );
        self.hello.job_id.clone_from(&enrolment.job_id);
        let deadlines = enrolment.job.deadlines;
        self.enrolment = Some(enrolment);
        let present = self.session.generation();
        self.outbox.admitted(welcome.resumed, present);
        Ok(Event::Welcome(Terms {
            resumed: welcome.resumed,
            heartbeat,
            patience: deadlines.coordinator,
            farewell: deadlines.collective + 2 * deadlines.checkpoint + deadlines.coordinator,
        }))
    }
}

fn enrolment(welcome: &proto::Welcome) -> Result<Enrolment, String> {
    let job = config::parse(&welcome.job, "the coordinator's job", Path::new("/"), &[])
        .map_err(|error| error.to_string())?;
    Ok(Enrolment {
        job_id: welcome.job_id.clone(),
        job: Arc::new(job),
        run_dir: PathBuf::from(&welcome.run_dir),
    })
}
