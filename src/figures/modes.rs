//! Figure 15: what divergence a GAN minimises does not make its samples sharp, nor does it say how many
//! modes they have. GANs that minimise KL(data ‖ model), maximum likelihood's divergence, and others
//! ([`crate::objective`]'s f-GANs) learn a ring of eight modes; beside them is a normal distribution,
//! which minimises the first of these divergences too, and blurs.

use super::chart::{Axis, BLUE, Form, GREY, Page, Panel, Series, VERMILION};
use super::{Drawing, FigureError, Picture, Study};
use crate::config::{Adam, Objective};
use crate::data::Mixture;
use crate::density::{Between, Perceptron};
use crate::objective;
use crate::random::{Domain, Key};
use crate::torch::{Generator, TorchError};
use std::f64::consts::PI;
use tch::{Device, Kind, Tensor};

const GAMES: [(Objective, &str); 4] = [
    (Objective::FKl, "GAN, KL(data ‖ model)"),
    (Objective::FReverseKl, "GAN, KL(model ‖ data)"),
    (Objective::FJs, "GAN, Jensen-Shannon"),
    (Objective::FHellinger, "GAN, squared Hellinger"),
];

const UPDATES: u32 = 5000;
/// Step sizes of D and of G at the start; they fall to 0 along half a cosine.
const RATES: [f64; 2] = [2e-3, 5e-4];
const BATCH: usize = 256;
const LATENT: usize = 4;
const WIDTH: usize = 64;
/// Samples that are judged, and how many of them are drawn.
const JUDGED: usize = 2500;
const DRAWN: usize = 400;

fn normal(key: Key, shape: [usize; 2]) -> Result<Tensor, TorchError> {
    let shape = shape.map(|side| side as i64);
    let mut drawn = Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?;
    Generator::new(Device::Cpu, key)?.normal_(&mut drawn, 0.0, 1.0)?;
    Ok(drawn)
}

/// PacGAN's ring, eight modes on the unit circle, with wider ones: in minutes, small networks don't
/// come as close as its 0.01.
fn ring() -> Mixture {
    let angle = |mode: u32| f64::from(mode) * std::f64::consts::TAU / 8.0;
    Mixture {
        centres: (0..8)
            .map(|mode| [angle(mode).cos(), angle(mode).sin()])
            .collect(),
        deviation: 0.05,
    }
}

/// Draws from it: `[count, 2]`.
fn draws(key: Key, count: usize) -> Result<Tensor, TorchError> {
    let Mixture { centres, deviation } = ring();
    let mut stream = key.stream();
    let modes = (0..count).map(|_| centres[stream.below(centres.len() as u64) as usize]);
    let modes: Vec<f32> = modes.flatten().map(|x| x as f32).collect();
    let modes = Tensor::f_from_slice(&modes)?.f_view([count as i64, 2])?;
    let spread = normal(key, [count, 2])?.f_mul_scalar(deviation)?;
    Ok(modes.f_add(&spread)?)
}

fn points(samples: &Tensor) -> Result<Vec<[f64; 2]>, TorchError> {
    let flat = samples
        .f_detach()?
        .f_to_kind(Kind::Double)?
        .f_reshape([-1])?;
    let flat = Vec::<f64>::try_from(flat)?;
    Ok(flat.chunks_exact(2).map(|at| [at[0], at[1]]).collect())
}

/// The share of the samples at each mode: within three standard deviations.
fn shares(samples: &[[f64; 2]]) -> Vec<f64> {
    let Mixture { centres, deviation } = ring();
    let share = |[x, y]: [f64; 2]| {
        let near = |at: &&[f64; 2]| (at[0] - x).hypot(at[1] - y) <= 3.0 * deviation;
        samples.iter().filter(near).count() as f64 / samples.len().max(1) as f64
    };
    centres.into_iter().map(share).collect()
}

/// How many modes there are, and how many samples between them. A mode counts with a fifth of the
/// share that it has of the data: a few samples on the way from one mode to another make none.
fn told(shares: &[f64]) -> String {
    let least = 0.2 / shares.len() as f64;
    let modes = shares.iter().filter(|&&share| share >= least).count();
    let sharp = 100.0 * shares.iter().sum::<f64>();
    format!(
        "{modes} of {} modes, {sharp:.1} % of samples at a mode",
        shares.len()
    )
}

/// The draws of a run.
#[derive(Clone, Copy)]
enum Use {
    Data,
    Latents,
    Discriminator,
    Generator,
    Shown,
}

fn key(study: &Study, purpose: Use, update: u32) -> Key {
    let purpose = 100 + purpose as u64;
    Key::new(Domain::Density, &[study.seed, purpose, update.into()])
}

/// Trains a GAN in this game and gives samples of it, `[JUDGED, 2]`.
fn train(game: Objective, study: &Study) -> Result<Tensor, TorchError> {
    let adam = |learning_rate| Adam {
        learning_rate,
        beta1: 0.5,
        beta2: 0.999,
        epsilon: 1e-8,
    };
    let game = objective::of(game, 0.0);
    let network = |purpose, from, to, rate| {
        let widths = [from, WIDTH, WIDTH, to];
        Perceptron::new(&widths, Between::Relu, key(study, purpose, 0), adam(rate))
    };
    let mut discriminator = network(Use::Discriminator, 2, 1, RATES[0])?;
    let mut generator = network(Use::Generator, LATENT, 2, RATES[1])?;
    let updates = study.updates(UPDATES);
    for update in 0..updates {
        let gone = f64::from(update) / f64::from(updates);
        let pace = 0.5 * (1.0 + (PI * gone).cos());
        discriminator.learner().set_rate(RATES[0] * pace);
        generator.learner().set_rate(RATES[1] * pace);
        let real = draws(key(study, Use::Data, update), BATCH)?;
        let z = normal(key(study, Use::Latents, update), [BATCH, LATENT])?;
        let (d, g) = (discriminator.leaves()?, generator.leaves()?);
        let fake = generator.forward(&g, &z)?;
        let judged = |x: &Tensor| -> Result<Tensor, TorchError> {
            Ok(discriminator.forward(&d, x)?.f_squeeze_dim(-1)?)
        };
        let cost = game.discriminator(&judged(&real)?, &judged(&fake.f_detach()?)?)?;
        discriminator.learner().descend(&cost, &d)?;
        let frozen: Vec<Tensor> = d.iter().map(Tensor::f_detach).collect::<Result<_, _>>()?;
        let judged = discriminator.forward(&frozen, &fake)?.f_squeeze_dim(-1)?;
        let cost = game.generator(&judged, None)?;
        generator.learner().descend(&cost, &g)?;
    }
    let z = normal(key(study, Use::Shown, 0), [JUDGED, LATENT])?;
    generator.forward(&generator.leaves()?, &z)
}

/// Draws it.
pub(super) fn draw(study: &Study) -> Result<Drawing, FigureError> {
    let data = points(&draws(key(study, Use::Shown, 1), JUDGED)?)?;
    // Maximum likelihood's normal distribution has the data's moments: those of a circle of radius 1.
    let spread = (0.5 + ring().deviation.powi(2)).sqrt();
    let blurred = normal(key(study, Use::Shown, 2), [JUDGED, 2])?.f_mul_scalar(spread)?;
    let mut shown = vec![
        ("data", GREY, data),
        (
            "normal distribution, KL(data ‖ model)",
            VERMILION,
            points(&blurred)?,
        ),
    ];
    for (game, name) in GAMES {
        (study.say)(&format!("{name}, {} updates", study.updates(UPDATES)));
        shown.push((name, BLUE, points(&train(game, study)?)?));
    }
    let mut findings = Vec::new();
    let mut panels = Vec::new();
    for (name, colour, samples) in shown {
        let told = told(&shares(&samples));
        findings.push(format!("{name}: {told}"));
        let drawn = samples.iter().take(DRAWN).map(|&[x, y]| (x, y));
        panels.push(Panel {
            title: name.to_owned(),
            notes: vec![told],
            x: Axis::new("x₁", -2.0, 2.0),
            y: Axis::new("x₂", -1.5, 1.5),
            series: vec![Series::new(Form::Dots, colour, drawn.collect())],
        });
    }
    let dots = |colour, label: &str| (Form::Dots, colour, label.to_owned());
    let page = Page {
        title: "GANs are sharp, whatever divergence they minimise".to_owned(),
        legend: vec![vec![
            dots(
                GREY,
                "data (a mode counts with a fifth of its share of them)",
            ),
            dots(VERMILION, "maximum likelihood's normal distribution"),
            dots(BLUE, "GANs"),
        ]],
        columns: 3,
        panels,
    };
    Ok(Drawing {
        picture: Picture::Svg(page.svg()?),
        findings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_counts_with_a_fifth_of_its_share() {
        let study = Study {
            seed: 0,
            brief: true,
            trained: None,
            say: |_| {},
        };
        let data = points(&draws(key(&study, Use::Data, 0), 4000).unwrap()).unwrap();
        assert!(told(&shares(&data)).starts_with("8 of 8 modes, "));
        // Of a normal distribution in the plane, 1 - exp(-9/2) lies within three deviations.
        let near: f64 = shares(&data).iter().sum();
        assert!((near - 0.9889).abs() < 0.006, "{near}");
        let [right, up] = [ring().centres[0], ring().centres[2]];
        let mut samples = vec![right; 97];
        samples.extend([up, up, [0.0, 0.0]]);
        assert_eq!(
            told(&shares(&samples)),
            "1 of 8 modes, 99.0 % of samples at a mode"
        );
    }
}
