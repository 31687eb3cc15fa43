//! `result.json`: written when a job is complete, and computed again by `gan-coord verify`.

use super::cli::{on_runtime, told_to_stop, told_twice};
use super::ledger::LedgerReader;
use super::local::Local;
use super::{Coordinator, CoordinatorError, Ending, Foundations, Options, recording};
use crate::certificate::{self, Certificate, CertificateError, Device, Kept, Software};
use crate::checkpoint::{CheckpointError, Store, read_manifest};
use crate::command::{Failure, print};
use crate::config::{self, Job, Override};
use crate::ids::Step;
use crate::locks::{Locks, cli::LockArgs};
use crate::membership::{DeviceKind, Outcome};
use crate::signals;
use crate::telemetry::logging::{self, LogFormat, LogTarget};
use clap::Args;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a checkpoint that has come is looked for.
const LOOK: Duration = Duration::from_millis(200);

/// Writes the certificate of a job that is complete at `step`.
pub(super) fn certify(
    options: &Options,
    ledger: &LedgerReader,
    step: Step,
) -> Result<(), CoordinatorError> {
    let run_dir = &options.run_dir;
    let damaged = |what: &str| CoordinatorError::Ledger(ledger.damaged(what));
    let record = ledger.job()?.ok_or_else(|| damaged("it has no job"))?;
    let device = ledger.device()?;
    let device = device.ok_or_else(|| damaged("it doesn't say what the job ran on"))?;
    let mut checkpoints = Vec::new();
    for found in ledger.checkpoints()? {
        if found.step > step {
            continue;
        }
        let path = run_dir.join(&found.path);
        match read_manifest(&path) {
            Ok(manifest) if manifest.step == found.step && manifest.digest == found.digest => {}
            Ok(manifest) => {
                return Err(ledger
                    .damaged(format!(
                        "it gives {} as {} of step {}, but that is {} of step {}",
                        path.display(),
                        found.digest,
                        found.step,
                        manifest.digest,
                        manifest.step
                    ))
                    .into());
            }
            // Retention has removed it.
            Err(CheckpointError::NoCheckpoint { .. }) if found.step < step => continue,
            // Nobody can use it, but the result is there.
            Err(error @ CheckpointError::Damaged { .. }) if found.step < step => {
                tracing::warn!("left out of the job's certificate: {error}");
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        checkpoints.push(Kept {
            step: found.step,
            path: found.path,
            digest: found.digest,
        });
    }
    let ended = ledger.events(1)?.pop().filter(|last| last.kind == "ended");
    let job = &options.job;
    let certificate = Certificate {
        format: certificate::FORMAT,
        name: job.job.name.clone(),
        job_id: record.job_id,
        job: toml::to_string(job)?,
        job_sha256: certificate::job_sha256(&job.state_keys()),
        data_sha256: record.data_digest,
        software: Software {
            ganglion: env!("CARGO_PKG_VERSION").to_owned(),
            libtorch: device.libtorch,
        },
        device: Device {
            kind: device.kind,
            model: device.model,
        },
        precision: job.train.precision,
        reduction: job.train.reduction,
        deterministic: job.train.deterministic,
        steps: step,
        checkpoints,
        finished_unix_seconds: ended.map_or_else(recording::unix_seconds, |last| last.unix_seconds),
    };
    let path = certificate.write(run_dir)?;
    tracing::info!("the job's certificate is {}", path.display());
    Ok(())
}

/// Whether the run directory holds the certificate of this very job at this step.
pub(super) fn is_certified(run_dir: &Path, job_id: &str, step: Step) -> bool {
    Certificate::read(&run_dir.join(certificate::FILE))
        .is_ok_and(|there| there.job_id == job_id && there.steps == step)
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The certificate of a job that is complete: result.json in its run directory.
    certificate: PathBuf,
    /// Worker processes to start. Any number gives the same bits.
    #[arg(long, default_value_t = 1)]
    workers: u32,
    /// Go no further than this step: to the newest checkpoint of the certificate up to there.
    #[arg(long, value_name = "STEP")]
    until: Option<u64>,
    /// Override a key that the state doesn't depend on, as in `--set data.uri=/data/mnist`. May be
    /// repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// What the workers compute on [default: what the job was computed on].
    #[arg(long, value_parser = ["cpu", "cuda"])]
    device: Option<String>,
    /// Keep what is computed in this folder, which must not hold a job [default: a temporary folder
    /// that is removed].
    #[arg(long)]
    run_dir: Option<PathBuf>,
}

impl From<CertificateError> for Failure {
    fn from(error: CertificateError) -> Self {
        if error.is_users() {
            Self::wrong(error)
        } else {
            Self::failed(error)
        }
    }
}

impl Verify {
    pub(super) fn run(self, format: LogFormat) -> Result<ExitCode, Failure> {
        let certificate = Certificate::read(&self.certificate)?;
        let job = self.job(&certificate)?;
        if let Some(reason) = certificate.irreproducible() {
            return Err(Failure::wrong(format!(
                "{}: this result can't be verified: {reason}",
                self.certificate.display()
            )));
        }
        let until = Step(self.until.unwrap_or(certificate.steps.0));
        let mut expected = certificate.checkpoints.clone();
        expected.retain(|kept| kept.step <= until);
        let Some(last) = expected.last() else {
            return Err(Failure::wrong(format!(
                "--until {until}: the certificate's first checkpoint is of step {}; \
                 expected that or a later one",
                certificate.checkpoints[0].step
            )));
        };
        if self.workers == 0 || self.workers > job.max_workers() {
            return Err(Failure::wrong(format!(
                "--workers {}: expected 1 to {}, train.replicas",
                self.workers,
                job.max_workers()
            )));
        }
        let digest = Foundations::lay(&job)?.dataset.digest().to_owned();
        if digest != certificate.data_sha256 {
            return Err(Failure::wrong(format!(
                "data.uri = {}: its digest is {digest}, but the certificate's data has {}; \
                 expected the same samples (--set data.uri=… names another place)",
                job.data.uri, certificate.data_sha256
            )));
        }
        let device = self
            .device
            .clone()
            .unwrap_or(certificate.device.kind.clone());
        let place = Place::make(self.run_dir.as_deref())?;
        let log = LogTarget::File(place.path.join("coordinator.log"));
        logging::init(format, &log).map_err(Failure::failed)?;
        eprintln!(
            "computing {} again, to step {} with {} worker{}",
            certificate.name,
            last.step,
            self.workers,
            if self.workers == 1 { "" } else { "s" }
        );
        let here = env!("CARGO_PKG_VERSION");
        if certificate.software.ganglion != here {
            warn(&format!(
                "this is ganglion {here}, the job ran on {}",
                certificate.software.ganglion
            ));
        }
        let devices = Devices {
            run_dir: place.path.clone(),
            then: DeviceKind {
                kind: certificate.device.kind,
                model: certificate.device.model,
                libtorch: certificate.software.libtorch,
            },
            are_compared: AtomicBool::new(false),
        };
        let again = Again {
            job,
            run_dir: place.path.clone(),
            workers: self.workers,
            device,
            devices: Arc::new(devices),
        };
        on_runtime(again.compare(&expected))
    }

    /// The job, which may differ from the certificate's in nothing that its state depends on.
    fn job(&self, certificate: &Certificate) -> Result<Job, Failure> {
        let overrides: Result<Vec<Override>, _> =
            self.overrides.iter().map(|text| text.parse()).collect();
        let then = certificate.job(&self.certificate, &[])?;
        let mut job = certificate.job(&self.certificate, &overrides?)?;
        let differences = config::differences(&then.state_keys(), &job.state_keys());
        if let Some(difference) = differences.first() {
            return Err(Failure::wrong(format!(
                "--set: {difference}; the state depends on it, so this would be another job"
            )));
        }
        // What the state doesn't depend on, and verifying has no use for.
        (job.workers.min, job.workers.max) = (1, 0);
        (job.sample.every_steps, job.sample.grid) = (0, 1);
        (job.checkpoint.keep_last, job.checkpoint.keep_every) = (u32::MAX, 0);
        (job.evaluate.every_steps, job.checkpoint.keep_best) = (0, None);
        job.telemetry.tensorboard = false;
        job.train.epochs = None;
        Ok(job)
    }
}

fn warn(difference: &str) {
    eprintln!("warning: {difference}: the bits may differ");
}

/// Where the job is computed again.
struct Place {
    path: PathBuf,
    is_temporary: bool,
}

impl Place {
    fn make(asked: Option<&Path>) -> Result<Self, Failure> {
        let place = match asked {
            Some(path) => Self {
                path: path.to_owned(),
                is_temporary: false,
            },
            None => Self {
                path: std::env::temp_dir().join(format!(
                    "ganglion-verify-{}",
                    super::random_id().map_err(Failure::failed)?
                )),
                is_temporary: true,
            },
        };
        let failed = |error| {
            let path = place.path.display();
            Failure::wrong(format!("--run-dir {path}: can't make it: {error}"))
        };
        if place.path.join("ledger.sqlite").exists() {
            return Err(Failure::wrong(format!(
                "--run-dir {}: it holds a job already; expected a new folder",
                place.path.display()
            )));
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(if place.is_temporary { 0o700 } else { 0o777 })
            .create(&place.path)
            .map_err(failed)?;
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_temporary
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("can't remove {}: {error}", self.path.display());
        }
    }
}

/// A stretch of the job that is computed in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leg {
    /// Checkpoints on the way, by `checkpoint.every_steps`.
    every: u64,
    /// Its last step, which has a checkpoint too.
    until: Step,
}

/// As few legs as will write a checkpoint at each of `steps`, which ascend, and at no others.
fn legs(steps: &[Step]) -> Vec<Leg> {
    let mut legs = Vec::new();
    let mut start = 0;
    let mut rest = steps;
    while let [first, after @ ..] = rest {
        // At equal distances, on the multiples of the distance, and none of those before.
        let every = after.first().map_or(0, |second| second.0 - first.0);
        let fits = every > 0 && first.0 % every == 0 && first.0 - start <= every;
        let (mut until, mut taken) = (*first, 1);
        while fits
            && rest
                .get(taken)
                .is_some_and(|next| next.0 == until.0 + every)
        {
            until = rest[taken];
            taken += 1;
        }
        legs.push(Leg {
            every: if fits { every } else { 0 },
            until,
        });
        start = until.0;
        rest = &rest[taken..];
    }
    legs
}

/// The job, computed again.
struct Again {
    job: Job,
    run_dir: PathBuf,
    workers: u32,
    device: String,
    devices: Arc<Devices>,
}

impl Again {
    /// Computes and compares, until all is done or something differs.
    async fn compare(&self, expected: &[Kept]) -> Result<ExitCode, Failure> {
        let store = Store::new(self.run_dir.join("checkpoints"));
        let steps: Vec<Step> = expected.iter().map(|kept| kept.step).collect();
        let mut compared = 0;
        for leg in legs(&steps) {
            let upcoming = &expected[compared..];
            let ahead = upcoming.partition_point(|kept| kept.step <= leg.until);
            let upcoming = &upcoming[..ahead];
            let outcome = self.compute(leg, compared > 0, upcoming, &store).await?;
            self.devices.compare();
            for kept in upcoming {
                let path = store.path(kept.step);
                let found = match read_manifest(&path) {
                    Ok(manifest) => manifest.digest,
                    Err(error) => {
                        let why = format!("step {} can't be compared: {error}", kept.step);
                        return Err(unfinished(&outcome).unwrap_or(Failure::failed(why)));
                    }
                };
                let Kept { step, digest, .. } = kept;
                if found != *digest {
                    print(&format!(
                        "step {step}  DIFFERENT\n  certificate  {digest}\n  here         {found}\n"
                    ))?;
                    let before = match compared {
                        0 => "its first checkpoint".to_owned(),
                        count => format!("equal up to step {}", expected[count - 1].step),
                    };
                    print(&format!("differs first at step {step} ({before})\n"))?;
                    return Ok(ExitCode::FAILURE);
                }
                print(&format!("step {step}  equal  {digest}\n"))?;
                compared += 1;
            }
            if let Some(failure) = unfinished(&outcome) {
                return Err(failure);
            }
        }
        let last = steps.last().copied().unwrap_or_default();
        print(&format!(
            "equal: {compared} checkpoint{} to step {last}\n",
            if compared == 1 { "" } else { "s" }
        ))
    }

    /// Computes one leg; a checkpoint that differs ends it.
    async fn compute(
        &self,
        leg: Leg,
        resume: bool,
        upcoming: &[Kept],
        store: &Store,
    ) -> Result<Outcome, Failure> {
        let mut job = self.job.clone();
        job.train.steps = Some(leg.until.0);
        job.checkpoint.every_steps = leg.every;
        let coordinator = Coordinator::open(Options {
            job,
            run_dir: self.run_dir.clone(),
            resume,
            expected: self.workers,
            locks: Locks::default(),
        })?;
        let local = Local {
            workers: self.workers,
            device: self.device.clone(),
            program: Local::worker_program()?,
            locks: LockArgs::default(),
        };
        let watch = Watch {
            store: store.clone(),
            upcoming: upcoming.to_vec(),
            devices: Arc::clone(&self.devices),
        };
        let ending = async {
            tokio::select! {
                ending = told_to_stop() => ending,
                ending = watch.run() => ending,
            }
        };
        Ok(tokio::select! {
            outcome = coordinator.run_local(local, ending) => outcome?,
            // The workers are killed when they are dropped.
            signal = signals::termination(2) => told_twice(signal),
        })
    }
}

/// Why not all could be compared, if the job has not come to its end.
fn unfinished(outcome: &Outcome) -> Option<Failure> {
    let why = match outcome {
        Outcome::Complete(_) => return None,
        Outcome::Failed(reason) => format!(
            "the job failed: {}\n  --run-dir keeps the logs",
            reason.trim_end()
        ),
        outcome => format!("{outcome}, before all was compared"),
    };
    Some(Failure::failed(why))
}

/// Looks at what is being computed.
struct Watch {
    store: Store,
    /// What is to come.
    upcoming: Vec<Kept>,
    devices: Arc<Devices>,
}

impl Watch {
    /// Resolves when a checkpoint has come that differs.
    async fn run(self) -> Ending {
        let mut upcoming = self.upcoming.iter().peekable();
        loop {
            self.devices.compare();
            while let Some(kept) = upcoming.peek()
                && let Ok(manifest) = read_manifest(&self.store.path(kept.step))
            {
                if manifest.digest != kept.digest {
                    return Ending::Stop(format!("step {} differs", kept.step));
                }
                upcoming.next();
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What the job ran on, to be compared with what it runs on now.
struct Devices {
    run_dir: PathBuf,
    then: DeviceKind,
    are_compared: AtomicBool,
}

impl Devices {
    /// Warns, as soon as it is known on what the job runs.
    fn compare(&self) {
        if self.are_compared.load(Ordering::Relaxed) {
            return;
        }
        let now = LedgerReader::open(&self.run_dir).and_then(|ledger| ledger.device());
        // If the ledger can't be read just now, it can be next time.
        let Ok(Some(now)) = now else {
            return;
        };
        if !self.are_compared.swap(true, Ordering::Relaxed) && now != self.then {
            warn(&format!("this runs on {now}, the job ran on {}", self.then));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(steps: &[u64]) -> Vec<(u64, u64)> {
        let steps: Vec<Step> = steps.iter().copied().map(Step).collect();
        let legs = legs(&steps);
        // What the legs write is what was asked for.
        let mut written = Vec::new();
        let mut start = 0;
        for leg in &legs {
            let due = |step: &u64| leg.every > 0 && step.is_multiple_of(leg.every);
            let on_the_way = (start + 1..leg.until.0).filter(due);
            written.extend(on_the_way.chain([leg.until.0]).map(Step));
            start = leg.until.0;
        }
        assert_eq!(written, steps);
        legs.iter().map(|leg| (leg.every, leg.until.0)).collect()
    }

    #[test]
    fn exactly_the_checkpoints_of_the_certificate_are_written() {
        assert_eq!(planned(&[]), []);
        assert_eq!(planned(&[7]), [(0, 7)]);
        assert_eq!(planned(&[4, 8]), [(4, 8)]);
        assert_eq!(planned(&[5, 10, 15, 17]), [(5, 15), (0, 17)]);
        // The newest three of many.
        assert_eq!(planned(&[990, 995, 1000]), [(0, 990), (5, 1000)]);
        // Somebody stopped it at 13 and went on.
        assert_eq!(planned(&[10, 13, 20, 30]), [(0, 10), (0, 13), (10, 30)]);
        assert_eq!(planned(&[3, 5, 7]), [(0, 3), (0, 5), (0, 7)]);
    }

    #[test]
    fn a_temporary_place_is_removed_and_one_that_was_asked_for_stays() {
        let place = Place::make(None).unwrap();
        let path = place.path.clone();
        assert!(path.is_dir());
        drop(place);
        assert!(!path.exists());
        let folder = tempfile::tempdir().unwrap();
        let asked = folder.path().join("a/b");
        drop(Place::make(Some(&asked)).unwrap());
        assert!(asked.is_dir());
        std::fs::write(asked.join("ledger.sqlite"), "").unwrap();
        assert!(Place::make(Some(&asked)).is_err());
        assert!(asked.is_dir());
    }
}
