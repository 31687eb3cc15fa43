//! PURE. Whom a certificate is for.

use rustls::pki_types::CertificateDer;
use std::fmt;
use webpki::EndEntityCert;

/// A part in a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Serves the job.
    Coordinator,
    /// Trains.
    Worker,
    /// Looks at the job, and may stop it.
    Operator,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Coordinator, Self::Worker, Self::Operator];

    /// As it stands in a certificate.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Worker => "worker",
            Self::Operator => "operator",
        }
    }
}

/// A part in one job; as text, the URI among a certificate's names that stands for it:
/// `spiffe://ganglion/job/<job name>/<part>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The job's name, which a job file keeps to characters that need no escape in a URI.
    pub job: String,
    /// The part.
    pub part: Part,
}

impl Identity {
    /// Of this part in this job.
    pub fn new(job: &str, part: Part) -> Self {
        Self {
            job: job.to_owned(),
            part,
        }
    }

    /// What a URI stands for, if it is one of these.
    pub fn parse(uri: &str) -> Option<Self> {
        let (job, part) = uri.strip_prefix(PREFIX)?.split_once('/')?;
        let part = Part::ALL.into_iter().find(|known| known.as_str() == part)?;
        (!job.is_empty()).then(|| Self::new(job, part))
    }
}

const PREFIX: &str = "spiffe://ganglion/job/";

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}/{}", self.job, self.part.as_str())
    }
}

/// The URIs that a certificate is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities(Vec<String>);

/// The certificate is for somebody else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate is for {found}, expected {expected}")]
pub struct WrongIdentity {
    found: String,
    expected: String,
}

impl Identities {
    /// Of a certificate; none if it has no names, or can't be read at all.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let names = EndEntityCert::try_from(certificate).map(|certificate| {
            let names = certificate.valid_uri_names();
            names.map(str::to_owned).collect()
        });
        Self(names.unwrap_or_default())
    }

    /// Whether it is for this part.
    pub fn has(&self, identity: &Identity) -> bool {
        let uri = identity.to_string();
        self.0.contains(&uri)
    }

    /// The one job in which it is for this part, if it is one.
    pub fn job_as(&self, part: Part) -> Option<String> {
        self.job_among(|of| of == part)
    }

    /// The one job that it is for, whichever part.
    pub fn job(&self) -> Option<String> {
        self.job_among(|_| true)
    }

    fn job_among(&self, counts: impl Fn(Part) -> bool) -> Option<String> {
        let jobs = self.0.iter().filter_map(|uri| Identity::parse(uri));
        let mut jobs = jobs.filter(|identity| counts(identity.part));
        let first = jobs.next()?.job;
        jobs.all(|other| other.job == first).then_some(first)
    }

    /// Refuses a certificate that is not for this part.
    ///
    /// # Errors
    /// [`WrongIdentity`], which names both.
    pub fn demand(&self, expected: &Identity) -> Result<(), WrongIdentity> {
        match self.has(expected) {
            true => Ok(()),
            false => Err(self.other_than(expected)),
        }
    }

    /// Refuses a certificate that is for no part in this job.
    ///
    /// # Errors
    /// [`WrongIdentity`]
    pub fn demand_job(&self, job: &str) -> Result<(), WrongIdentity> {
        let is_for = |part| self.has(&Identity::new(job, part));
        match Part::ALL.into_iter().any(is_for) {
            true => Ok(()),
            false => Err(self.other_than(&format!("{PREFIX}{job}/…"))),
        }
    }

    /// Says what it is for, and what it should be for.
    pub fn other_than(&self, expected: &impl fmt::Display) -> WrongIdentity {
        WrongIdentity {
            found: self.to_string(),
            expected: expected.to_string(),
        }
    }
}

impl fmt::Display for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_empty() {
            true => f.write_str("nobody (it has no URI among its names)"),
            false => f.write_str(&self.0.join(", ")),
        }
    }
}

impl FromIterator<Identity> for Identities {
    fn from_iter<I: IntoIterator<Item = Identity>>(identities: I) -> Self {
        let uris = identities.into_iter();
        Self(uris.map(|identity| identity.to_string()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_one_part_in_one_job_and_says_so() {
        let worker = Identity::new("mnist", Part::Worker);
        assert_eq!(worker.to_string(), "spiffe://ganglion/job/mnist/worker");
        assert_eq!(Identity::parse(&worker.to_string()), Some(worker.clone()));
        let own = Identities::from_iter([worker.clone()]);
        assert_eq!(own.demand(&worker), Ok(()));
        assert_eq!(own.demand_job("mnist"), Ok(()));
        assert_eq!(own.job_as(Part::Worker).as_deref(), Some("mnist"));
        assert_eq!(own.job_as(Part::Coordinator), None);
        for (expected, shown) in [
            (Identity::new("mnis", Part::Worker), "job/mnis/worker"),
            (Identity::new("mnist", Part::Operator), "job/mnist/operator"),
        ] {
            let error = own.demand(&expected).unwrap_err().to_string();
            assert!(error.contains("for spiffe://ganglion/job/mnist/worker, expected"));
            assert!(error.ends_with(shown), "{error}");
        }
        assert!(own.demand_job("other").is_err());
    }

    #[test]
    fn what_is_nobody_is_let_in_nowhere() {
        for uri in [
            "",
            "spiffe://ganglion/job//worker",
            "spiffe://ganglion/job/a/b/worker",
            "spiffe://ganglion/job/a/Worker",
            "spiffe://ganglion.example/job/a/worker",
            "https://ganglion/job/a/worker",
        ] {
            assert_eq!(Identity::parse(uri), None, "{uri}");
            let own = Identities(vec![uri.to_owned()]);
            assert!(own.demand_job("a").is_err(), "{uri}");
        }
        let none = Identities::of(&CertificateDer::from(vec![1, 2, 3]));
        let error = none.demand_job("a").unwrap_err().to_string();
        assert!(error.contains("for nobody"), "{error}");
    }

    #[test]
    fn one_for_two_jobs_is_for_neither_alone() {
        let both = ["a", "b"].map(|job| Identity::new(job, Part::Worker));
        let both = Identities::from_iter(both);
        assert!(both.demand_job("a").is_ok() && both.demand_job("b").is_ok());
        assert_eq!((both.job_as(Part::Worker), both.job()), (None, None));
    }
}
