//! The built-in extractor: a small convolutional classifier in the manner of LeNet (LeCun et al.
//! 1998), trained on the data's own labels. Its last hidden layer is the features.
//!
//! Everything about it is keyed, and it computes with one intra-op thread: so its weights are a
//! function of the data, of these settings, of libtorch and of the kind of device.

use super::crew::Crew;
use super::reals::Reals;
use super::{EvaluateError, draws};
use crate::random::{Domain, Key};
use crate::torch::{self, FusedAdam, Generator, TorchError};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Reduction, Tensor};

/// Feature maps of the first convolution; each further one has twice as many, up to [`WIDEST`].
const NARROWEST: i64 = 16;
const WIDEST: i64 = 64;

/// Convolutions go on while images are larger than this.
const SMALLEST: i64 = 4;

/// Length of a feature vector.
pub(super) const FEATURES: i64 = 128;

/// Images a training step.
const BATCH: usize = 64;

/// Images that it is trained on in all, each pass counted: about this many…
const PRESENTED: usize = 300_000;
/// …in no more passes than this.
const PASSES: usize = 20;

/// Of the first step; it falls to 0 in a straight line.
const LEARNING_RATE: f64 = 2e-3;

/// Pixels by which a batch is shifted at most, either way.
const SHIFT: i64 = 2;

/// One sample in this many is kept from training, to tell the accuracy, up to [`MOST_TESTED`].
const TESTED: usize = 10;
const MOST_TESTED: usize = 10_000;

/// Images that are classified at a time.
const CHUNK: usize = 250;

/// What it takes in and tells apart. With what is constant here, it decides the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    /// Channels of an image.
    pub(super) channels: i64,
    /// Side of an image, pixels.
    pub(super) side: i64,
    /// Classes, each channel's own if they are stacked.
    pub(super) classes: i64,
    /// Whether each channel is an image of its own, with one decimal digit of the label: stacked
    /// MNIST. The classifier then sees channels one by one.
    pub(super) stacked: bool,
}

/// How it was trained, as part of the cache's key.
pub(super) const RECIPE: &str = "lenet 1: 3x3 convolutions 16 32 64…, 128 features, Adam 2e-3 to 0, \
     batch 64, 300000 images or 20 passes, shifts of 2, a tenth tested";

/// A tensor in the flat vector.
#[derive(Clone, Debug)]
struct Part {
    offset: i64,
    shape: Vec<i64>,
    /// Of the normal distribution that it starts from.
    deviation: f64,
}

/// The classifier.
#[derive(Debug)]
pub(super) struct Classifier {
    shape: Shape,
    parts: Vec<Part>,
    /// All weights.
    flat: Tensor,
}

/// What it says of images.
pub(super) struct Opinion {
    /// `[n, features]`
    pub(super) features: Tensor,
    /// One class an image.
    pub(super) classes: Vec<u32>,
}

fn layout(shape: &Shape) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut offset = 0;
    let mut push = |shape: Vec<i64>, deviation: f64| {
        let len: i64 = shape.iter().product();
        parts.push(Part {
            offset,
            shape,
            deviation,
        });
        offset += len;
    };
    // He et al. 2015, for layers that a ReLU follows.
    let he = |inputs: i64| (2.0 / inputs as f64).sqrt();
    let (mut inputs, mut outputs, mut side) = (shape.seen_channels(), NARROWEST, shape.side);
    while side > SMALLEST {
        push(vec![outputs, inputs, 3, 3], he(9 * inputs));
        push(vec![outputs], 0.0);
        (inputs, outputs, side) = (outputs, (2 * outputs).min(WIDEST), side / 2);
    }
    let flat = inputs * side * side;
    push(vec![FEATURES, flat], he(flat));
    push(vec![FEATURES], 0.0);
    push(vec![shape.classes, FEATURES], he(2 * FEATURES));
    push(vec![shape.classes], 0.0);
    parts
}

impl Shape {
    /// Channels that the classifier sees at a time.
    fn seen_channels(&self) -> i64 {
        if self.stacked { 1 } else { self.channels }
    }

    /// Numbers in the features of an image.
    pub(super) fn features(&self) -> i64 {
        FEATURES * self.channels / self.seen_channels()
    }

    fn bytes(&self) -> usize {
        (self.channels * self.side * self.side) as usize
    }

    /// Images as the classifier sees them, `[n · views, c, s, s]` in -1 … 1.
    fn images(&self, pixels: &[u8], device: Device) -> Result<Tensor, TorchError> {
        let sides = [-1, self.seen_channels(), self.side, self.side];
        Ok(Tensor::f_from_slice(pixels)?
            .f_view(sides)?
            .f_to_device(device)?
            .f_to_kind(Kind::Float)?
            .f_div_scalar(127.5)?
            .f_sub_scalar(1.0)?)
    }

    /// Classes of the views of images with these labels.
    fn targets(&self, labels: &[u32]) -> Vec<i64> {
        if !self.stacked {
            return labels.iter().map(|&label| i64::from(label)).collect();
        }
        let digits = |&label: &u32| {
            let places = (0..self.channels as u32).rev();
            places.map(move |place| i64::from(label / 10u32.pow(place) % 10))
        };
        labels.iter().flat_map(digits).collect()
    }

    /// Labels of images whose views are of these classes.
    fn labels(&self, classes: &[i64]) -> Vec<u32> {
        let views = if self.stacked { self.channels } else { 1 } as usize;
        let label = |digits: &[i64]| {
            digits
                .iter()
                .fold(0, |label, &digit| 10 * label + digit as u32)
        };
        classes.chunks(views).map(label).collect()
    }
}

impl Classifier {
    /// One over weights that are there already; `None` if they are no such classifier's.
    pub(super) fn over(shape: Shape, flat: Tensor) -> Option<Self> {
        let parts = layout(&shape);
        let fits = flat.kind() == Kind::Float && flat.size() == [len(&parts)];
        fits.then_some(Self { shape, parts, flat })
    }

    /// Trains one, and says how accurate it is on samples that it was not trained on.
    pub(super) fn train(
        crew: &Crew,
        reals: &Reals,
        shape: Shape,
        told: &mut dyn FnMut(&str),
    ) -> Result<(Self, f64), EvaluateError> {
        torch::set_threads(1);
        let order = reals.shuffled(0, draws::SPLIT);
        let tested = (order.len() / TESTED).clamp(1, MOST_TESTED);
        let (learned, held) = order.split_at(order.len() - tested);
        let mut classifier = Self::initial(shape)?;
        let batch = BATCH.min(learned.len());
        let passes = (PRESENTED / learned.len().max(1)).clamp(1, PASSES);
        let steps = passes * (learned.len() / batch);
        told(&format!(
            "training the feature extractor on {} labelled samples, {passes} passes; once, it is kept",
            learned.len()
        ));
        let mut adam = Moments::new(&classifier.flat)?;
        let mut step = 0;
        for pass in 0..passes {
            let mut order = learned.to_vec();
            Key::new(
                Domain::Evaluation,
                &[0, draws::ORDER, draws::PASSES, pass as u64],
            )
            .stream()
            .shuffle(&mut order);
            for numbers in order.chunks_exact(batch) {
                crew.check()?;
                let rate = LEARNING_RATE * (1.0 - step as f64 / steps as f64);
                step += 1;
                classifier.learn(reals, numbers, step as u64, rate, &mut adam)?;
            }
        }
        let accuracy = classifier.accuracy(crew, reals, held)?;
        Ok((classifier, accuracy))
    }

    fn initial(shape: Shape) -> Result<Self, TorchError> {
        let parts = layout(&shape);
        let flat = Tensor::f_zeros([len(&parts)], (Kind::Float, Device::Cpu))?;
        for (number, part) in parts.iter().enumerate() {
            if part.deviation > 0.0 {
                let key = Key::new(Domain::Evaluation, &[0, draws::WEIGHTS, number as u64]);
                let mut view = part.view(&flat)?;
                Generator::new(Device::Cpu, key)?.normal_(&mut view, 0.0, part.deviation)?;
            }
        }
        Ok(Self { shape, parts, flat })
    }

    fn learn(
        &mut self,
        reals: &Reals,
        numbers: &[u64],
        step: u64,
        rate: f64,
        adam: &mut Moments,
    ) -> Result<(), EvaluateError> {
        let labels = reals.labels(numbers)?.unwrap_or_default();
        let images = self.shape.images(&reals.pixels(numbers)?, Device::Cpu)?;
        let images = shifted(&images, step)?;
        let targets = Tensor::f_from_slice(&self.shape.targets(&labels))?;
        let leaves = self
            .parts
            .iter()
            .map(|part| {
                Ok(part
                    .view(&self.flat)?
                    .f_detach()?
                    .f_set_requires_grad(true)?)
            })
            .collect::<Result<Vec<Tensor>, TorchError>>()?;
        let gradient = torch::catch("train a classifier", || {
            let (_, logits) = forward(&leaves, &images)?;
            let loss = logits.f_cross_entropy_loss(
                &targets,
                None::<&Tensor>,
                Reduction::Mean,
                -100,
                0.0,
            )?;
            let gradients = Tensor::f_run_backward(&[&loss], &leaves, false, false)?;
            let flat = gradients
                .iter()
                .map(|gradient| gradient.f_reshape([-1]))
                .collect::<Result<Vec<_>, _>>()?;
            Ok::<_, TorchError>(Tensor::f_cat(&flat, 0)?)
        })?;
        drop(leaves);
        let count = Tensor::f_from_slice(&[step as f32])?;
        FusedAdam {
            parameters: &mut self.flat,
            gradients: &gradient,
            exp_avg: &mut adam.first,
            exp_avg_sq: &mut adam.second,
            count: &count,
            learning_rate: &torch::learning_rate(rate, Device::Cpu)?,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        }
        .apply()?;
        Ok(())
    }

    fn accuracy(&self, crew: &Crew, reals: &Reals, numbers: &[u64]) -> Result<f64, EvaluateError> {
        let right = crew.run(
            numbers.len().div_ceil(CHUNK),
            || Ok(self.share(Device::Cpu)?),
            |classifier, chunk| {
                let numbers = &numbers[chunk * CHUNK..numbers.len().min((chunk + 1) * CHUNK)];
                let labels = reals.labels(numbers)?.unwrap_or_default();
                let told = classifier.opinion(&reals.pixels(numbers)?)?.classes;
                Ok(told.iter().zip(&labels).filter(|(a, b)| a == b).count())
            },
        )?;
        Ok(right.iter().sum::<usize>() as f64 / numbers.len() as f64)
    }

    /// All weights, `[n]`, f32.
    pub(super) fn weights(&self) -> &Tensor {
        &self.flat
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Another handle, for another thread or device.
    pub(super) fn share(&self, device: Device) -> Result<Self, TorchError> {
        Ok(Self {
            shape: self.shape,
            parts: self.parts.clone(),
            flat: self.flat.f_to_device(device)?.shallow_clone(),
        })
    }

    /// Features and classes of images, `[n, c, s, s]`.
    pub(super) fn opinion(&self, pixels: &[u8]) -> Result<Opinion, EvaluateError> {
        let n = (pixels.len() / self.shape.bytes()) as i64;
        let leaves = self
            .parts
            .iter()
            .map(|part| part.view(&self.flat))
            .collect::<Result<Vec<_>, _>>()?;
        let images = self.shape.images(pixels, self.flat.device())?;
        torch::catch("classify images", || {
            let (features, logits) = forward(&leaves, &images)?;
            let classes = logits.f_argmax(1, false)?.f_to_device(Device::Cpu)?;
            let classes = Vec::<i64>::try_from(classes)?;
            Ok(Opinion {
                features: features
                    .f_reshape([n, self.shape.features()])?
                    .f_to_device(Device::Cpu)?,
                classes: self.shape.labels(&classes),
            })
        })
    }
}

/// Features and logits.
fn forward(leaves: &[Tensor], images: &Tensor) -> Result<(Tensor, Tensor), TorchError> {
    let mut x = images.shallow_clone();
    let (convolutions, dense) = leaves.split_at(leaves.len() - 4);
    for layer in convolutions.chunks_exact(2) {
        x = x
            .f_conv2d(&layer[0], Some(&layer[1]), 1, 1, 1, 1)?
            .f_relu()?
            .f_max_pool2d(2, 2, 0, 1, false)?;
    }
    let features = x
        .f_flatten(1, -1)?
        .f_linear(&dense[0], Some(&dense[1]))?
        .f_relu()?;
    let logits = features.f_linear(&dense[2], Some(&dense[3]))?;
    Ok((features, logits))
}

/// Images moved by some pixels, all alike; what comes in is black.
fn shifted(images: &Tensor, step: u64) -> Result<Tensor, TorchError> {
    let mut stream = Key::new(Domain::Evaluation, &[0, draws::SHIFTS, step]).stream();
    let mut place = || stream.below(2 * SHIFT as u64 + 1) as i64;
    let side = images.size()[2];
    // `constant_pad_nd` pads with 0: black is -1.
    Ok(images
        .f_add_scalar(1.0)?
        .f_constant_pad_nd([SHIFT; 4])?
        .f_narrow(2, place(), side)?
        .f_narrow(3, place(), side)?
        .f_sub_scalar(1.0)?
        .f_contiguous()?)
}

/// Adam's.
struct Moments {
    first: Tensor,
    second: Tensor,
}

impl Moments {
    fn new(like: &Tensor) -> Result<Self, TorchError> {
        Ok(Self {
            first: like.f_zeros_like()?,
            second: like.f_zeros_like()?,
        })
    }
}

impl Part {
    fn len(&self) -> i64 {
        self.shape.iter().product()
    }

    fn view(&self, flat: &Tensor) -> Result<Tensor, TorchError> {
        Ok(flat
            .f_narrow(0, self.offset, self.len())?
            .f_view(&self.shape[..])?)
    }
}

fn len(parts: &[Part]) -> i64 {
    parts.last().map_or(0, |last| last.offset + last.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacked_labels_are_their_digits_and_back() {
        let shape = Shape {
            channels: 3,
            side: 32,
            classes: 10,
            stacked: true,
        };
        assert_eq!(shape.targets(&[407, 12]), [4, 0, 7, 0, 1, 2]);
        assert_eq!(shape.labels(&[4, 0, 7, 0, 1, 2]), [407, 12]);
        assert_eq!((shape.features(), shape.seen_channels()), (384, 1));
        let plain = Shape {
            stacked: false,
            ..shape
        };
        assert_eq!(plain.labels(&plain.targets(&[407, 12])), [407, 12]);
    }

    #[test]
    fn images_of_any_size_have_features() {
        for side in [28, 32, 64, 128] {
            let shape = Shape {
                channels: 3,
                side,
                classes: 7,
                stacked: false,
            };
            let classifier = Classifier::initial(shape).unwrap();
            let pixels = vec![100; 2 * shape.bytes()];
            let opinion = classifier.opinion(&pixels).unwrap();
            assert_eq!(opinion.features.size(), [2, FEATURES]);
            assert!(opinion.classes.iter().all(|&class| class < 7));
        }
    }
}
