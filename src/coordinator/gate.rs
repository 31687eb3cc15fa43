//! Who may ask the coordinator for what, and how often.

use super::wire;
use crate::locks::{Caller, Identities, Identity, Locks, Part, Rates};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tonic::{Request, Status};

/// Workers beyond those that can have a seat, whose joining is no flood.
const SPARES: u32 = 256;
/// Time in which an address gets back what it has used up of its joins.
const REFILL: Duration = Duration::from_secs(30);

/// Looks at every request before it is heard.
pub(super) struct Gate {
    locks: Locks,
    job: String,
    joins: Mutex<Rates>,
    /// Refusals that are logged; more of them are only given.
    refusals: Mutex<Rates>,
    /// The same of joins: an address that is refused for something else may flood besides.
    floods: Mutex<Rates>,
    origin: Instant,
}

impl Gate {
    /// For a job that so many workers can take part in.
    #[expect(
        clippy::disallowed_methods,
        reason = "rates are those of the real world"
    )]
    pub(super) fn new(locks: Locks, job: &str, workers: u32) -> Self {
        let joins = workers.saturating_add(SPARES).saturating_mul(2);
        Self {
            locks,
            job: job.to_owned(),
            joins: Mutex::new(Rates::new(joins, REFILL)),
            refusals: Mutex::new(Rates::new(8, REFILL)),
            floods: Mutex::new(Rates::new(1, REFILL)),
            origin: Instant::now(),
        }
    }

    /// Connections that such a job can need: a session a worker, two while it comes back, and people.
    pub(super) fn connections(workers: u32) -> usize {
        2 * workers.saturating_add(SPARES) as usize
    }

    /// Lets a worker in.
    pub(super) fn join<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.admit(request, &[Part::Worker])?;
        let address = address(request);
        if take(&self.joins, address, self.origin.elapsed()) {
            return Ok(());
        }
        let why = "it joins too often; workers wait longer and longer between attempts";
        Err(self.refuse(&self.floods, address, Status::resource_exhausted(why)))
    }

    /// Lets somebody in who has one of these parts, and the token.
    pub(super) fn admit<T>(&self, request: &Request<T>, parts: &[Part]) -> Result<(), Status> {
        let address = address(request);
        if let Some(token) = &self.locks.token {
            token.check(request.metadata()).map_err(|why| {
                self.refuse(&self.refusals, address, Status::unauthenticated(why))
            })?;
        }
        if self.locks.keys.is_some() {
            let caller = request.extensions().get::<Caller>();
            let found = caller.and_then(|caller| caller.identities.clone());
            self.is_for(&found.unwrap_or_default(), parts)
                .map_err(|why| {
                    self.refuse(&self.refusals, address, Status::permission_denied(why))
                })?;
        }
        Ok(())
    }

    fn is_for(&self, found: &Arc<Identities>, parts: &[Part]) -> Result<(), String> {
        let identity = |part: &Part| Identity::new(&self.job, *part);
        if parts.iter().any(|part| found.has(&identity(part))) {
            return Ok(());
        }
        let expected: Vec<_> = parts
            .iter()
            .map(|part| identity(part).to_string())
            .collect();
        Err(found.other_than(&expected.join(" or ")).to_string())
    }

    /// One that asks again and again shall not fill the log.
    fn refuse(&self, logged: &Mutex<Rates>, address: IpAddr, status: Status) -> Status {
        if take(logged, address, self.origin.elapsed()) {
            tracing::warn!(%address, "refused a request: {}", status.message());
        }
        status
    }
}

fn take(rates: &Mutex<Rates>, address: IpAddr, now: Duration) -> bool {
    let mut rates = rates.lock().unwrap_or_else(PoisonError::into_inner);
    rates.take(address, now)
}

fn address<T>(request: &Request<T>) -> IpAddr {
    let caller = request.extensions().get::<Caller>();
    caller.map_or(Ipv4Addr::UNSPECIFIED.into(), |caller| caller.address.ip())
}

/// The longest message that is taken, bytes.
pub(super) const LONGEST: usize = wire::RECORDS * 256 + (64 << 10);
/// Requests of one connection at once.
pub(super) const STREAMS: u32 = 64;
/// The longest list of headers, bytes.
pub(super) const HEADERS: u32 = 16 << 10;
/// The longest HTTP/2 frame, bytes: the least that the protocol allows.
pub(super) const FRAME: u32 = 16 << 10;
/// Streams that one connection may have reset before the server has seen them.
pub(super) const RESETS: usize = 32;
/// For a connection to show what it is.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::{Token, certs};

    fn request(part: Option<Part>) -> Request<()> {
        let mut request = Request::new(());
        let identities = part.map(|part| Identities::from_iter([Identity::new("mnist", part)]));
        request.extensions_mut().insert(Caller {
            address: "10.0.0.1:7".parse().unwrap(),
            identities: identities.map(Arc::new),
        });
        request
    }

    #[test]
    fn a_worker_can_join_and_not_stop_the_job_and_a_person_the_other_way_round() {
        let locks = Locks {
            keys: Some(certs::for_tests("mnist").keys(Part::Coordinator)),
            ..Locks::default()
        };
        let gate = Gate::new(locks, "mnist", 4);
        assert!(gate.join(&request(Some(Part::Worker))).is_ok());
        let stops = [Part::Operator, Part::Coordinator];
        assert!(gate.admit(&request(Some(Part::Operator)), &stops).is_ok());
        let refused = gate
            .admit(&request(Some(Part::Worker)), &stops)
            .unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        for needle in ["job/mnist/worker", "job/mnist/operator or ", "expected"] {
            assert!(refused.message().contains(needle), "{refused}");
        }
        assert!(gate.join(&request(Some(Part::Operator))).is_err());
        assert!(gate.join(&request(None)).is_err(), "no certificate");
        let elsewhere = Gate::new(gate.locks.clone(), "other", 4);
        assert!(elsewhere.join(&request(Some(Part::Worker))).is_err());
    }

    #[test]
    fn without_the_token_nobody_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "0123456789abcdef0123456789abcdef").unwrap();
        let locks = Locks {
            token: Some(Arc::new(Token::open(&path).unwrap())),
            ..Locks::default()
        };
        let gate = Gate::new(locks.clone(), "mnist", 4);
        let refused = gate.join(&request(None)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        assert!(refused.message().contains("--token-file"), "{refused}");
        assert!(gate.join(&locks.sign(()).unwrap()).is_ok());
    }

    #[test]
    fn a_flood_of_joins_is_refused_and_other_addresses_still_get_in() {
        let gate = Gate::new(Locks::default(), "mnist", 1);
        let joined = (0..10_000).filter(|_| gate.join(&request(None)).is_ok());
        assert!((500..700).contains(&joined.count()));
        let mut other = request(None);
        other.extensions_mut().insert(Caller {
            address: "10.0.0.2:7".parse().unwrap(),
            identities: None,
        });
        assert!(gate.join(&other).is_ok());
    }
}
