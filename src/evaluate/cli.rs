//! `gan-worker evaluate`.

use super::origin::absolute;
use super::{Crew, EvaluateError, Evaluator, Level, Settings, job_of};
use crate::checkpoint;
use crate::command::{Failure, print};
use crate::config::{Job, Score};
use crate::data::Dataset;
use crate::telemetry::evaluations::{Evaluation, SamplesOf, figure};
use crate::torch::{Adopted, Rules};
use clap::Args;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Scores a checkpoint's generator against the data that it was trained on.
#[derive(Debug, Args)]
pub struct Evaluate {
    /// The checkpoint's folder, as in runs/mnist/checkpoints/step-00000500 or …/checkpoints/best.
    checkpoint: PathBuf,
    /// The data to compare with: as data.uri in a job file [default: what it was trained on].
    #[arg(long, value_name = "URI")]
    data: Option<String>,
    /// Samples to draw, and real ones to compare them with; fewer if the data has fewer.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(12..=1 << 20))]
    samples: u64,
    /// Seed of the latents.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where samples are drawn: `cpu`, or `cuda:<index>`.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// A TorchScript file that makes features of images, [n, c, s, s] in -1 … 1 to [n, d] [default: a
    /// small classifier, trained once on the data's labels].
    #[arg(long, value_name = "FILE.pt")]
    extractor: Option<PathBuf>,
    /// Score these images instead, as if the checkpoint's generator had drawn them: a folder of
    /// images, or IDX.
    #[arg(long, value_name = "URI")]
    images: Option<String>,
    /// The checkpoint of a coarser level, whose images this one refines; the coarsest first [default:
    /// a level of a pyramid refines the data's own images].
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "images")]
    coarser: Vec<PathBuf>,
    /// Use the generator's newest weights even if the checkpoint has averaged ones (EMA).
    #[arg(long, alias = "no-ema")]
    raw: bool,
    /// Threads that share the work [default: all cores]. No bit depends on it.
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl From<EvaluateError> for Failure {
    fn from(error: EvaluateError) -> Self {
        if error.is_users() {
            Failure::wrong(error)
        } else {
            Failure::failed(error)
        }
    }
}

impl Evaluate {
    /// Runs the command on `device`, with as many threads as there are `cores` unless it was told
    /// otherwise.
    ///
    /// # Errors
    /// [`Failure`], with what is wrong.
    pub fn run(self, device: tch::Device, cores: u32) -> Result<ExitCode, Failure> {
        let (evaluation, data_digest, modes) = self.evaluate(device, cores)?;
        if evaluation.protocol.data != data_digest {
            say("note: this is not the data that the generator was trained on");
        }
        if self.json {
            let text = serde_json::to_string_pretty(&evaluation).map_err(Failure::failed)?;
            return print(&format!("{text}\n"));
        }
        print(&table(&evaluation, modes))
    }

    /// The evaluation, the digest of the data that the checkpoint was trained on, and the modes of
    /// the data.
    fn evaluate(
        &self,
        device: tch::Device,
        cores: u32,
    ) -> Result<(Evaluation, String, Option<u64>), Failure> {
        let rules = Rules {
            deterministic: true,
            tf32: false,
        };
        // What trains on a CPU computes by the same.
        let _rules = Adopted::new(rules, device).map_err(EvaluateError::from)?;
        let checkpoint = &self.checkpoint;
        let read = |checkpoint: &PathBuf| -> Result<_, Failure> {
            let manifest = checkpoint::read_manifest(checkpoint).map_err(Failure::failed)?;
            let (file, samples_of) = match manifest.ema && !self.raw {
                true => ("generator_ema", SamplesOf::Average),
                false => ("generator", SamplesOf::Newest),
            };
            let (manifest, tensors) =
                checkpoint::read_file(checkpoint, file).map_err(Failure::failed)?;
            Ok((manifest, tensors, samples_of))
        };
        let coarser = self
            .coarser
            .iter()
            .map(read)
            .collect::<Result<Vec<_>, _>>()?;
        let (manifest, tensors, samples_of) = read(checkpoint)?;
        let job = job_of(checkpoint, &manifest, self.data.as_deref())?;
        let dataset = open(&job)?;
        let given = match &self.images {
            None => None,
            Some(uri) => Some(open(&given(&job, uri))?),
        };
        let fewer = given.as_ref().map(|given| given.samples());
        let settings = Settings {
            samples: self.samples.min(fewer.unwrap_or(u64::MAX)),
            seed: self.seed,
            extractor: self.extractor.clone(),
            device,
            crew: Crew::new(self.workers.unwrap_or(cores) as usize),
        };
        let evaluator = Evaluator::prepare(&job, dataset, &settings, &mut say)?;
        let evaluation = match given {
            Some(images) => evaluator.images(images, manifest.step, &manifest.digest)?,
            None => {
                let coarser = coarser
                    .iter()
                    .map(|(manifest, tensors, _)| (manifest, tensors));
                let levels = coarser.chain([(&manifest, &tensors)]);
                let levels: Vec<Level<'_>> = levels
                    .map(|(manifest, tensors)| Level {
                        model: &manifest.model,
                        tensors,
                    })
                    .collect();
                evaluator.generator(&levels, samples_of, manifest.step, &manifest.digest)?
            }
        };
        Ok((evaluation, manifest.data_digest, evaluator.modes()))
    }
}

/// The job with other images in the place of its data.
fn given(job: &Job, uri: &str) -> Job {
    let mut job = job.clone();
    job.data.uri = absolute(uri);
    job
}

fn open(job: &Job) -> Result<Arc<Dataset>, Failure> {
    let mut packing = false;
    let mut progress = |_, total: u64| {
        if !std::mem::replace(&mut packing, true) {
            say(&format!("packing {total} images, once"));
        }
    };
    let dataset = Dataset::open(job, &mut progress).map_err(Failure::wrong)?;
    Ok(Arc::new(dataset))
}

/// For people who watch, and nobody else.
fn say(what: &str) {
    if io::stderr().is_terminal() {
        let _ = writeln!(io::stderr(), "{what}");
    }
}

/// For people.
fn table(evaluation: &Evaluation, modes: Option<u64>) -> String {
    let Evaluation {
        step,
        protocol,
        scores,
        floor,
        ..
    } = evaluation;
    let mut out = String::new();
    // Writing to a String can't fail.
    let _ = writeln!(
        out,
        "step {step}, {}: {} samples, seed {}, against {} real ones",
        protocol.samples_of, protocol.samples, protocol.seed, protocol.reals
    );
    if protocol.refines_data {
        let _ = writeln!(
            out,
            "a level alone, upon the data's own images at half the side (--coarser names the levels below)"
        );
    }
    let extractor = &protocol.extractor;
    if extractor.kind == "none" {
        let _ = writeln!(
            out,
            "points of {} dimensions, as they are",
            extractor.features
        );
    }
    let accuracy = match extractor.accuracy {
        Some(accuracy) => format!(", right on {:.2} % of test samples", 100.0 * accuracy),
        None => String::new(),
    };
    if extractor.kind != "none" {
        let _ = writeln!(
            out,
            "{} features of {} {}{accuracy}",
            extractor.features, extractor.kind, extractor.hash
        );
    }
    let halves = format!("data against data ({0} : {0})", protocol.floor_samples);
    let _ = writeln!(out, "\n{:<16}{:>12}   {halves}", "score", "");
    for score in Score::ALL {
        let of = |scores: &std::collections::BTreeMap<Score, f64>| match scores.get(&score) {
            Some(value) if score == Score::Modes => {
                let of = modes.map_or(String::new(), |modes| format!(" of {modes}"));
                format!("{value}{of}")
            }
            Some(value) => figure(*value),
            None => "-".to_owned(),
        };
        if scores.contains_key(&score) || floor.contains_key(&score) {
            let _ = writeln!(
                out,
                "{:<16}{:>12}   {}",
                score.as_str(),
                of(scores),
                of(floor)
            );
        }
    }
    out
}
