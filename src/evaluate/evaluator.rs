//! Prepares for a data set, and scores.

use super::cache::{self, Origin, Trained};
use super::classifier::{Classifier, Shape};
use super::crew::Crew;
use super::frechet::Gaussian;
use super::modes::Census;
use super::reals::Reals;
use super::script::Script;
use super::{EvaluateError, draws, kernel, manifold, mixture};
use crate::checkpoint::TensorData;
use crate::config::{Job, Model, Score};
use crate::data::{self, Dataset, Element, Mixture};
use crate::ids::Step;
use crate::model::Latents;
use crate::random::{Domain, Key};
use crate::telemetry::evaluations::{Evaluation, Extractor, Protocol, SamplesOf, Scores};
use crate::torch::TorchError;
use crate::train::{self, Pyramid, Sampler};
use std::path::PathBuf;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Samples that are drawn and looked at together: few, so that an evaluation that is called off ends
/// soon even with a large extractor. The borders between chunks are part of the protocol: the same
/// for any crew.
const CHUNK: usize = 64;

/// What a generator that isn't told of labels is told.
const UNLABELLED: &[u32] = &[0];

/// The fewest samples: each half of the floor has neighbourhoods.
const FEWEST: u64 = 2 * manifold::FEWEST;

/// How generators are scored.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Samples of each generator; fewer if the data has fewer.
    pub samples: u64,
    /// Seed of latents and subsets.
    pub seed: u64,
    /// A TorchScript file, instead of the built-in extractor.
    pub extractor: Option<PathBuf>,
    /// Where samples are drawn and features computed; the scores are computed on the CPU. Bits hold
    /// for the kind of device.
    pub device: Device,
    /// The threads.
    pub crew: Crew,
}

/// A generator: its `[model]`, and the tensors of a checkpoint's file.
#[derive(Clone, Copy, Debug)]
pub struct Level<'a> {
    /// Its `[model]`.
    pub model: &'a Model,
    /// Its state dict.
    pub tensors: &'a [TensorData],
}

/// Ready to score what was trained on one data set.
#[derive(Debug)]
pub struct Evaluator {
    crew: Crew,
    device: Device,
    judge: Judge,
    protocol: Protocol,
    /// The data, of which a level of a pyramid gets coarser images.
    data: Reals,
    reals: Seen,
    /// Labels of the real samples, for a generator that is told of labels.
    labels: Option<Vec<u32>>,
    modes: Modes,
    floor: Scores,
}

/// By what modes are counted.
#[derive(Debug, Default)]
struct Modes {
    /// Labels of all of the data, and how many there can be.
    census: Option<(Census, usize)>,
    /// Where samples are points.
    mixture: Option<Mixture>,
}

/// What makes features and tells classes.
#[derive(Debug)]
struct Judge {
    classifier: Option<Classifier>,
    script: Option<Script>,
    /// `[channels, side, side]`
    shape: [i64; 3],
    /// What samples consist of. Points are their own features.
    element: Element,
}

/// Samples as the scores see them.
#[derive(Debug)]
struct Seen {
    /// `[n, d]`, f64.
    features: Tensor,
    /// One a sample, if there is a classifier.
    classes: Option<Vec<u32>>,
}

impl Evaluator {
    /// Gets ready: trains the extractor if nobody has yet, and computes the floor. `told` hears what
    /// takes long.
    ///
    /// # Errors
    /// [`EvaluateError`].
    pub fn prepare(
        job: &Job,
        dataset: Arc<Dataset>,
        settings: &Settings,
        told: &mut dyn FnMut(&str),
    ) -> Result<Self, EvaluateError> {
        crate::torch::set_threads(1);
        let Settings {
            samples,
            seed,
            device,
            ref crew,
            ..
        } = *settings;
        let reals = Reals::new(dataset, job.data.reduce);
        let samples = samples.min(reals.count());
        check_count(&job.data.uri, samples)?;
        let all: Vec<u64> = (0..reals.count()).collect();
        let labels = reals.labels(&all)?;
        let (judge, extractor) = Judge::new(job, &reals, labels.as_deref(), settings, told)?;
        let order = reals.shuffled(seed, draws::COMPARED);
        let half = (samples as usize).min(order.len() / 2);
        // The halves have no sample in common; the second one's may be compared with generators'.
        let wanted = (samples as usize).max(2 * half);
        told(&format!("looking at {wanted} real samples"));
        let seen = judge.look(crew, device, &reals, &order[..wanted])?;
        seen.check(&job.data.uri)?;
        let compared = &order[..samples as usize];
        let of_compared = |labels: &Vec<u32>| -> Vec<u32> {
            let label = |&number: &u64| labels[number as usize];
            compared.iter().map(label).collect()
        };
        let of_compared = labels.as_ref().map(of_compared);
        let mixture = Mixture::of(&job.data);
        let census = labels.filter(|_| mixture.is_none()).map(|labels| {
            let classes = match job.data.is_stacked() {
                true => STACKED,
                false => labels.iter().max().map_or(0, |&last| last as usize + 1),
            };
            (Census::of(labels), classes)
        });
        let modes = Modes { census, mixture };
        let halves = (seen.part(0, half)?, seen.part(half, half)?);
        let floor = scores(crew, &halves.0, &halves.1, &modes, seed)?;
        let reals_seen = seen.part(0, samples as usize)?;
        let data = reals.dataset().digest().to_owned();
        let features = seen.features.size()[1] as u64;
        Ok(Self {
            crew: crew.clone(),
            device,
            judge,
            protocol: Protocol {
                samples_of: SamplesOf::Newest,
                refines_data: false,
                samples,
                seed,
                data,
                reals: samples,
                floor_samples: half as u64,
                extractor: Extractor {
                    features,
                    ..extractor
                },
            },
            data: reals,
            reals: reals_seen,
            labels: of_compared,
            modes,
            floor,
        })
    }

    /// Scores a generator, the last of `levels`; `digest` and `step` are its checkpoint's. Those
    /// before it are a pyramid's coarser levels, the coarsest first. Where the first refines images,
    /// it gets those of the data at half the side: in an order of their own, so that few go on from an
    /// image that they are compared with.
    ///
    /// # Errors
    /// [`EvaluateError`].
    pub fn generator(
        &self,
        levels: &[Level<'_>],
        samples_of: SamplesOf,
        step: Step,
        digest: &str,
    ) -> Result<Evaluation, EvaluateError> {
        let count = self.protocol.samples as usize;
        let seed = self.protocol.seed;
        // What threads may look at; the features of real samples are a tensor, and none of that.
        let (judge, device, labels) = (&self.judge, self.device, self.labels.as_deref());
        let data = &self.data;
        let upon_images = levels.first().is_some_and(|level| level.model.pyramid);
        let order = upon_images.then(|| data.shuffled(seed, draws::REFINED));
        let parts = self.crew.run(
            count.div_ceil(CHUNK),
            || {
                let level = |level: &Level<'_>| Sampler::new(level.model, level.tensors, device);
                let samplers = levels.iter().map(level).collect::<Result<_, _>>()?;
                Ok((Pyramid::of(samplers)?, judge.share(device)?))
            },
            |(generator, judge), chunk| {
                // All of a chunk is drawn even if fewer are needed: the first of them are the same
                // whatever the count.
                let latents = |level: u64, model: &Model| {
                    let chunk = chunk as u64;
                    let key = match level {
                        0 => Key::new(Domain::Evaluation, &[seed, draws::LATENTS, chunk]),
                        _ => Key::new(Domain::Evaluation, &[seed, draws::LATENTS, chunk, level]),
                    };
                    Latents::of(model, key, CHUNK)
                };
                let wanted = CHUNK.min(count - chunk * CHUNK);
                let refined: Option<Vec<u64>> = order.as_ref().map(|order| {
                    let numbers = order.iter().cycle().skip(chunk * CHUNK % order.len());
                    numbers.take(CHUNK).copied().collect()
                });
                // Labels are those of the images that it goes on from.
                let refined = refined.map(|numbers| -> Result<_, EvaluateError> {
                    Ok((data.coarse(&numbers)?, data.labels(&numbers)?))
                });
                let (coarse, given) = refined.transpose()?.unzip();
                // A generator that is told of labels makes as many of each as the data has.
                let compared = labels.map(|labels| &labels[chunk * CHUNK..][..wanted]);
                let given: Option<Vec<u32>> = given.flatten();
                let labels = given.as_deref().or(compared).unwrap_or(UNLABELLED);
                let labels: Vec<u32> = labels.iter().copied().cycle().take(CHUNK).collect();
                let values = generator.values(coarse, latents, &labels)?;
                let mut samples = match judge.element {
                    Element::Byte => train::bytes(values),
                    Element::Float => values.into_iter().flat_map(f32::to_le_bytes).collect(),
                };
                samples.truncate(samples.len() / CHUNK * wanted);
                judge.see(&samples)
            },
        )?;
        let seen = Seen::joined(parts)?;
        let mut evaluation = self.evaluation(seen, samples_of, step, digest)?;
        evaluation.protocol.refines_data = upon_images;
        Ok(evaluation)
    }

    /// Scores images that somebody else has made: as many as the evaluator compares, or all if there
    /// are fewer.
    ///
    /// # Errors
    /// [`EvaluateError`].
    pub fn images(
        &self,
        images: Arc<Dataset>,
        step: Step,
        digest: &str,
    ) -> Result<Evaluation, EvaluateError> {
        let images = Reals::new(images, self.data.reduce());
        let mut order = images.shuffled(self.protocol.seed, draws::GIVEN);
        order.truncate(self.protocol.samples as usize);
        check_count("the images", order.len() as u64)?;
        let seen = self.judge.look(&self.crew, self.device, &images, &order)?;
        self.evaluation(seen, SamplesOf::Given, step, digest)
    }

    fn evaluation(
        &self,
        seen: Seen,
        samples_of: SamplesOf,
        step: Step,
        digest: &str,
    ) -> Result<Evaluation, EvaluateError> {
        seen.check("the samples")?;
        let scores = scores(
            &self.crew,
            &seen,
            &self.reals,
            &self.modes,
            self.protocol.seed,
        )?;
        Ok(Evaluation {
            step,
            digest: digest.to_owned(),
            protocol: Protocol {
                samples_of,
                samples: seen.count()? as u64,
                ..self.protocol.clone()
            },
            scores,
            floor: self.floor.clone(),
        })
    }

    /// Modes that the data has, if they can be counted.
    pub fn modes(&self) -> Option<u64> {
        if let Some(mixture) = &self.modes.mixture {
            return Some(mixture.centres.len() as u64);
        }
        let (census, _) = self.modes.census.as_ref()?;
        Some(census.modes(census))
    }
}

fn check_count(of: &str, found: u64) -> Result<(), EvaluateError> {
    if found >= FEWEST {
        return Ok(());
    }
    Err(EvaluateError::TooFew {
        of: of.to_owned(),
        found,
        fewest: FEWEST,
    })
}

impl Judge {
    fn new(
        job: &Job,
        reals: &Reals,
        labels: Option<&[u32]>,
        settings: &Settings,
        told: &mut dyn FnMut(&str),
    ) -> Result<(Self, Extractor), EvaluateError> {
        let script = settings
            .extractor
            .as_ref()
            .map(|path| Script::load(path, settings.device))
            .transpose()?;
        let shape = reals.shape().map(i64::from);
        let element = reals.dataset().element();
        if element == Element::Float {
            let judge = Self {
                classifier: None,
                script: None,
                shape,
                element,
            };
            let extractor = Extractor {
                kind: "none".to_owned(),
                hash: String::new(),
                features: 0,
                accuracy: None,
            };
            return Ok((judge, extractor));
        }
        let uri = || job.data.uri.clone();
        let trained = match labels {
            None if script.is_none() => return Err(EvaluateError::NoLabels { data: uri() }),
            None => None,
            Some(labels) => {
                let classes = labels.iter().max().map_or(0, |&last| last as usize + 1);
                match (classes, &script) {
                    (2.., _) => {
                        let shape = classifier_shape(job, shape, classes);
                        Some(trained(job, reals, shape, settings, told)?)
                    }
                    (_, Some(_)) => None,
                    (_, None) => {
                        let data = uri();
                        return Err(EvaluateError::TooFewClasses { data, classes });
                    }
                }
            }
        };
        let extractor = match (&script, &trained) {
            (Some(script), _) => Extractor {
                kind: "torchscript".to_owned(),
                hash: script.hash().to_owned(),
                features: 0,
                accuracy: None,
            },
            (None, Some(trained)) => Extractor {
                kind: "classifier".to_owned(),
                hash: trained.hash.clone(),
                features: trained.classifier.shape().features() as u64,
                accuracy: Some(trained.accuracy),
            },
            (None, None) => return Err(EvaluateError::NoLabels { data: uri() }),
        };
        let judge = Self {
            classifier: trained.map(|trained| trained.classifier),
            script,
            shape,
            element,
        };
        Ok((judge, extractor))
    }

    /// For another thread.
    fn share(&self, device: Device) -> Result<Self, TorchError> {
        let classifier = self.classifier.as_ref();
        Ok(Self {
            classifier: classifier.map(|c| c.share(device)).transpose()?,
            script: self.script.clone(),
            shape: self.shape,
            element: self.element,
        })
    }

    /// Looks at images, `[n, c, s, s]`, or at points, `[n, 2]` as little-endian f32.
    fn see(&self, pixels: &[u8]) -> Result<Seen, EvaluateError> {
        if self.element == Element::Float {
            let (numbers, _) = pixels.as_chunks();
            let numbers: Vec<f64> = numbers
                .iter()
                .map(|&number| f64::from(f32::from_le_bytes(number)))
                .collect();
            let width = self.shape.iter().product::<i64>();
            return Ok(Seen {
                features: Tensor::f_from_slice(&numbers)?.f_view([-1, width])?,
                classes: None,
            });
        }
        let opinion = self.classifier.as_ref().map(|c| c.opinion(pixels));
        let opinion = opinion.transpose()?;
        let features = match (&self.script, &opinion) {
            (Some(script), _) => {
                let [c, h, w] = self.shape;
                let images = Tensor::f_from_slice(pixels)?.f_view([-1, c, h, w])?;
                script.features(&images)?
            }
            (None, Some(opinion)) => opinion.features.f_to_kind(Kind::Double)?,
            (None, None) => Tensor::f_zeros([0, 0], (Kind::Double, Device::Cpu))?,
        };
        Ok(Seen {
            features,
            classes: opinion.map(|opinion| opinion.classes),
        })
    }

    /// Looks at these samples of a data set.
    fn look(
        &self,
        crew: &Crew,
        device: Device,
        reals: &Reals,
        numbers: &[u64],
    ) -> Result<Seen, EvaluateError> {
        let parts = crew.run(
            numbers.len().div_ceil(CHUNK),
            || Ok(self.share(device)?),
            |judge, chunk| {
                let end = numbers.len().min((chunk + 1) * CHUNK);
                judge.see(&reals.pixels(&numbers[chunk * CHUNK..end])?)
            },
        )?;
        Seen::joined(parts)
    }
}

/// Labels of stacked images: three digits.
const STACKED: usize = 1000;

/// The classifier for such data.
fn classifier_shape(job: &Job, [channels, side, _]: [i64; 3], classes: usize) -> Shape {
    let stacked = job.data.is_stacked();
    Shape {
        channels,
        side,
        classes: if stacked { 10 } else { classes as i64 },
        stacked,
    }
}

fn trained(
    job: &Job,
    reals: &Reals,
    shape: Shape,
    settings: &Settings,
    told: &mut dyn FnMut(&str),
) -> Result<Trained, EvaluateError> {
    let cache = data::cache(job)?;
    let origin = Origin::of(reals.dataset().digest(), shape)?;
    if let Some(found) = cache::find(&cache, &origin) {
        return Ok(found);
    }
    let (classifier, accuracy) = Classifier::train(&settings.crew, reals, shape, told)?;
    let trained = Trained::new(classifier, accuracy)?;
    if let Err(error) = cache::keep(&cache, origin, &trained) {
        tracing::warn!("{error}; it will be trained again next time");
    }
    Ok(trained)
}

impl Seen {
    fn joined(parts: Vec<Seen>) -> Result<Self, EvaluateError> {
        let (features, classes): (Vec<_>, Vec<_>) = parts
            .into_iter()
            .map(|part| (part.features, part.classes))
            .unzip();
        let classes: Option<Vec<Vec<u32>>> = classes.into_iter().collect();
        Ok(Self {
            features: Tensor::f_cat(&features, 0)?,
            classes: classes.map(|classes| classes.concat()),
        })
    }

    fn count(&self) -> Result<usize, EvaluateError> {
        Ok(self.features.size()[0] as usize)
    }

    fn part(&self, first: usize, len: usize) -> Result<Self, EvaluateError> {
        let classes = self.classes.as_ref();
        Ok(Self {
            features: self.features.f_narrow(0, first as i64, len as i64)?,
            classes: classes.map(|classes| classes[first..first + len].to_vec()),
        })
    }

    fn check(&self, of: &str) -> Result<(), EvaluateError> {
        let finite = self.features.f_isfinite()?.f_all()?;
        if finite.f_int64_value(&[])? == 1 {
            return Ok(());
        }
        let of = of.to_owned();
        Err(EvaluateError::NotFinite { of })
    }
}

/// All scores of `samples` against `reals`.
fn scores(
    crew: &Crew,
    samples: &Seen,
    reals: &Seen,
    modes: &Modes,
    seed: u64,
) -> Result<Scores, EvaluateError> {
    let mut scores = Scores::new();
    // Decompositions are computed here, and their bits depend on the thread's number of threads.
    crate::torch::set_threads(1);
    crew.check()?;
    let fid = Gaussian::of(&samples.features)?.distance(&Gaussian::of(&reals.features)?)?;
    scores.insert(Score::Fid, fid);
    let kid = kernel::distance(crew, &samples.features, &reals.features, seed)?;
    scores.insert(Score::Kid, kid.mean);
    if let Some(deviation) = kid.deviation {
        scores.insert(Score::KidDeviation, deviation);
    }
    let overlap = manifold::overlap(crew, &samples.features, &reals.features)?;
    scores.extend([
        (Score::Precision, overlap.precision),
        (Score::Recall, overlap.recall),
        (Score::Density, overlap.density),
        (Score::Coverage, overlap.coverage),
    ]);
    if let Some(mixture) = &modes.mixture {
        let points = Vec::<f64>::try_from(samples.features.f_reshape([-1])?)?;
        let (points, _) = points.as_chunks::<2>();
        let spread = mixture::spread(mixture, points);
        scores.insert(Score::Modes, spread.modes as f64);
        scores.insert(Score::HighQuality, spread.high_quality);
    }
    if let (Some((data, classes)), Some(told)) = (&modes.census, &samples.classes) {
        let found = Census::of(told.iter().copied());
        scores.insert(Score::Modes, found.modes(data) as f64);
        scores.insert(Score::KlUniform, found.kl_uniform(*classes));
        if let Some(kl) = found.kl_data(data) {
            scores.insert(Score::KlData, kl);
        }
    }
    // A record has finite numbers alone.
    scores.retain(|_, value| value.is_finite());
    Ok(scores)
}
