//! Figure 20: noise-contrastive estimation, maximum likelihood and the GAN, all of them strategies in
//! one game, on data whose density is known.

use super::chart::{
    Axis, BLUE, Colour, Form, GREEN, GREY, INK, ORANGE, PURPLE, Page, Panel, Series, VERMILION,
};
use super::{Drawing, FigureError, Picture, Study};
use crate::density::{
    Adversarial, Bins, Component, Criterion, MaximumLikelihood, Mixture, MixtureError,
    NoiseContrastive, divergence,
};
use crate::random::{Domain, Key};
use std::f64::consts::LN_2;
use tch::{Kind, Tensor};

const BINS: Bins = Bins {
    from: -5.0,
    to: 5.0,
    count: 200,
};
const UPDATES: u32 = 3000;
const BATCH: usize = 512;
/// Updates between two points of a curve.
const EVERY: u32 = 50;

fn data() -> Result<Mixture, MixtureError> {
    let component = |weight, mean, deviation| Component {
        weight,
        mean,
        deviation,
    };
    Mixture::new(vec![component(0.6, -1.5, 0.5), component(0.4, 1.5, 0.8)])
}

/// What a strategy's run has come to.
struct Run {
    /// KL(p_data ‖ p_model) in nats, by updates.
    divergence: Vec<(f64, f64)>,
    /// V, the mean since the point before, by updates.
    value: Vec<(f64, f64)>,
    model: Vec<f64>,
    generator: Vec<f64>,
    discriminator: Vec<f64>,
}

impl Run {
    fn left(&self) -> f64 {
        self.divergence.last().map_or(f64::NAN, |last| last.1)
    }
}

/// Runs a strategy; `watch` sees it before each point.
fn run<C: Criterion>(
    criterion: &mut C,
    study: &Study,
    mut watch: impl FnMut(&mut C, u32) -> Result<(), FigureError>,
) -> Result<Run, FigureError> {
    let data = data()?;
    let truth: Vec<f64> = BINS.middles().iter().map(|&x| data.density(x)).collect();
    let updates = study.updates(UPDATES);
    let (mut left, mut value, mut sum) = (Vec::new(), Vec::new(), 0.0);
    for update in 0..=updates {
        let every = EVERY.min(updates);
        if update % every == 0 {
            watch(criterion, update)?;
            left.push((
                f64::from(update),
                divergence(&truth, &criterion.model(&BINS)?, &BINS),
            ));
            if update > 0 {
                value.push((
                    f64::from(update) - f64::from(every) / 2.0,
                    sum / f64::from(every),
                ));
            }
            sum = 0.0;
        }
        // The same draws for each strategy.
        let key = Key::new(Domain::Density, &[study.seed, u64::MAX, update.into()]);
        let drawn = Tensor::f_from_slice(&data.draw(key, BATCH))?.f_to_kind(Kind::Float)?;
        sum += criterion.update(&drawn)?;
    }
    Ok(Run {
        divergence: left,
        value,
        model: criterion.model(&BINS)?,
        generator: criterion.generator(&BINS)?,
        discriminator: criterion.discriminator(&BINS)?,
    })
}

fn curve(of: &[f64]) -> Vec<(f64, f64)> {
    BINS.middles().into_iter().zip(of.iter().copied()).collect()
}

/// A strategy's densities when its run is over.
fn densities(title: &str, note: &str, run: &Run, truth: &[f64]) -> Panel {
    let mut series = vec![
        Series::new(Form::Area, GREY, curve(truth)),
        Series::new(Form::Line, GREEN, curve(&run.discriminator)),
        Series::new(Form::Line, BLUE, curve(&run.model)),
    ];
    if run.generator != run.model {
        series.push(Series::new(Form::Dashed, VERMILION, curve(&run.generator)));
    }
    Panel {
        title: title.to_owned(),
        notes: vec![
            note.to_owned(),
            format!("KL(p_data ‖ p_model) = {:.4} nats", run.left()),
        ],
        x: Axis::new("x", BINS.from, BINS.to),
        y: Axis::new("density, and D(x)", 0.0, 1.0),
        series,
    }
}

/// Draws it.
pub(super) fn draw(study: &Study) -> Result<Drawing, FigureError> {
    let noise = Mixture::normal(0.0, 2.0)?;
    let mut masses = Vec::new();
    (study.say)(&format!(
        "{} updates by each strategy",
        study.updates(UPDATES)
    ));
    let mut contrast = NoiseContrastive::new(noise.clone(), 2, study.seed)?;
    let contrast = run(&mut contrast, study, |criterion, update| {
        masses.push((f64::from(update), criterion.mass()?));
        Ok(())
    })?;
    let mut likelihood = MaximumLikelihood::new(&noise, 2, study.seed)?;
    let likelihood = run(&mut likelihood, study, |_, _| Ok(()))?;
    let mut gan = Adversarial::new(2.0, 32, study.seed)?;
    let all = f64::from(study.updates(UPDATES));
    let gan = run(&mut gan, study, |criterion, update| {
        let gone = f64::from(update) / all;
        criterion.set_pace(0.5 * (1.0 + (std::f64::consts::PI * gone).cos()));
        Ok(())
    })?;

    let data = data()?;
    let truth: Vec<f64> = BINS.middles().iter().map(|&x| data.density(x)).collect();
    let runs: [(&str, Colour, &Run); 3] = [
        ("noise-contrastive estimation", PURPLE, &contrast),
        ("maximum likelihood", ORANGE, &likelihood),
        ("GAN", INK, &gan),
    ];
    let mass = masses.last().map_or(f64::NAN, |last| last.1);
    let mut findings: Vec<String> = runs
        .iter()
        .map(|(name, _, run)| format!("{name}: KL(data ‖ model) = {:.4} nats", run.left()))
        .collect();
    findings.push(format!(
        "noise-contrastive estimation: p_model's integral is {mass:.3}, with a constant that it has learnt"
    ));
    let updates = || Axis::new("updates", 0.0, all);
    let lines = |of: fn(&Run) -> Vec<(f64, f64)>| {
        runs.iter()
            .map(move |(_, colour, run)| Series::new(Form::Line, *colour, of(run)))
    };
    let level = |y: f64| Series::new(Form::Dashed, GREY, vec![(0.0, y), (all, y)]);
    let mut values = vec![level(-2.0 * LN_2)];
    values.extend(lines(|run| run.value.clone()));
    let left = lines(|run| {
        let log = |&(x, y): &(f64, f64)| (x, y.max(1e-12).log10());
        run.divergence.iter().map(log).collect()
    });
    let panels = vec![
        densities(
            "Noise-contrastive estimation",
            "D = p_model / (p_model + p_noise), the noise stays",
            &contrast,
            &truth,
        ),
        densities(
            "Maximum likelihood",
            "D as before, the generator is a copy of p_model",
            &likelihood,
            &truth,
        ),
        densities(
            "GAN",
            "D is a network, the generator descends V",
            &gan,
            &truth,
        ),
        Panel {
            title: "How far p_model is from the data".to_owned(),
            notes: Vec::new(),
            x: updates(),
            y: Axis::powers("KL(p_data ‖ p_model), nats", -4.0, 1.0),
            series: left.collect(),
        },
        Panel {
            title: "The game's value".to_owned(),
            notes: Vec::new(),
            x: updates(),
            y: Axis::new("V, nats (dashed: -ln 4)", -1.6, -1.0),
            series: values,
        },
        Panel {
            title: "The constant that only the first learns".to_owned(),
            notes: Vec::new(),
            x: updates(),
            y: Axis::new("integral of p_model (dashed: 1)", 0.0, 4.0),
            series: vec![level(1.0), Series::new(Form::Line, PURPLE, masses)],
        },
    ];
    let line = |colour, label: &str| (Form::Line, colour, label.to_owned());
    let page = Page {
        title: "Three strategies in one game, V = E_data log D(x) + E_generator log(1 - D(x))"
            .to_owned(),
        legend: vec![
            vec![
                (Form::Area, GREY, "p_data".to_owned()),
                line(BLUE, "p_model"),
                (
                    Form::Dashed,
                    VERMILION,
                    "p_generator, where it is another".to_owned(),
                ),
                line(GREEN, "D(x)"),
            ],
            vec![
                line(PURPLE, "noise-contrastive estimation"),
                line(ORANGE, "maximum likelihood"),
                line(INK, "GAN"),
            ],
        ],
        columns: 3,
        panels,
    };
    Ok(Drawing {
        picture: Picture::Svg(page.svg()?),
        findings,
    })
}
