//! Figure 16: G's cost as a function of what D says of a sample, in the three games of section 3.2,
//! and which samples carry the gradient. All of it comes from [`crate::objective`]'s costs and
//! autograd.

use super::chart::{Axis, BLUE, Colour, Form, GREEN, GREY, Page, Panel, Series, VERMILION};
use super::{Drawing, FigureError, Picture, Study};
use crate::config;
use crate::density::{Component, DensityRatio, Estimation, Mixture, MixtureError};
use crate::objective;
use crate::random::{Domain, Key};
use tch::Tensor;

const GAMES: [(config::Objective, &str, Colour); 3] = [
    (config::Objective::Minimax, "minimax (10)", BLUE),
    (
        config::Objective::NonSaturating,
        "non-saturating heuristic (13)",
        GREEN,
    ),
    (
        config::Objective::MaximumLikelihood,
        "maximum likelihood (14)",
        VERMILION,
    ),
];

/// G's cost on samples of these logits, and its gradient by each.
fn cost(game: config::Objective, logits: &[f64]) -> Result<(f64, Vec<f64>), FigureError> {
    let logits: Vec<f32> = logits.iter().map(|&s| s as f32).collect();
    let logits = Tensor::f_from_slice(&logits)?.f_set_requires_grad(true)?;
    // The objectives leave the tutorial's ½ out.
    let cost = objective::of(game, 0.0)
        .generator(&logits, None)?
        .f_mul_scalar(0.5)?;
    let gradient = Tensor::f_run_backward(&[&cost], &[&logits], false, false)?;
    let gradient = gradient[0].f_to_kind(tch::Kind::Double)?;
    Ok((cost.f_double_value(&[])?, Vec::<f64>::try_from(gradient)?))
}

/// The share of the gradient, by magnitude, that the samples carry which carry most: points
/// (share of the samples, share of the gradient), from (0, 0) to (1, 1).
fn shares(gradient: &[f64]) -> Vec<(f64, f64)> {
    let mut sizes: Vec<f64> = gradient.iter().map(|slope| slope.abs()).collect();
    sizes.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = sizes.iter().sum();
    let mut carried = 0.0;
    let mut points = vec![(0.0, 0.0)];
    for (index, size) in sizes.iter().enumerate() {
        carried += size;
        points.push(((index + 1) as f64 / sizes.len() as f64, carried / total));
    }
    points
}

/// The share of the samples that carry half of it.
fn half(points: &[(f64, f64)]) -> f64 {
    points.iter().find(|at| at.1 >= 0.5).map_or(1.0, |at| at.0)
}

fn distributions() -> Result<(Mixture, Mixture), MixtureError> {
    let component = |weight, mean, deviation| Component {
        weight,
        mean,
        deviation,
    };
    let data = Mixture::new(vec![component(0.6, -1.5, 0.5), component(0.4, 1.5, 0.8)])?;
    // As early in training: most samples are no data, and D can tell.
    Ok((data, Mixture::normal(4.0, 1.5)?))
}

/// Draws it.
pub(super) fn draw(study: &Study) -> Result<Drawing, FigureError> {
    const SAMPLES: usize = 4096;
    let (data, model) = distributions()?;
    let how = Estimation {
        seed: study.seed,
        updates: study.updates(1500),
        ..Estimation::default()
    };
    let discriminator = DensityRatio::estimate(&data, &model, &how)?;
    // A use that no draw of the estimate has.
    let key = Key::new(Domain::Density, &[study.seed, u64::MAX, 0]);
    let logits = discriminator.log_ratio(&model.draw(key, SAMPLES))?;

    let beliefs: Vec<f64> = (1..400).map(|i| f64::from(i) / 400.0).collect();
    let (mut costs, mut slopes, mut carried) = (Vec::new(), Vec::new(), Vec::new());
    let mut findings = Vec::new();
    for (game, name, colour) in GAMES {
        let (mut of_cost, mut of_slope) = (Vec::new(), Vec::new());
        for &belief in &beliefs {
            let (cost, gradient) = cost(game, &[(belief / (1.0 - belief)).ln()])?;
            of_cost.push((belief, cost));
            of_slope.push((belief, gradient[0].abs().log10()));
        }
        let shares = shares(&cost(game, &logits)?.1);
        findings.push(format!(
            "{name}: {:.1} % of {SAMPLES} samples carry half of G's gradient",
            100.0 * half(&shares)
        ));
        costs.push(Series::new(Form::Line, colour, of_cost));
        slopes.push(Series::new(Form::Line, colour, of_slope));
        // One point in sixteen draws the same curve.
        let few = shares
            .iter()
            .enumerate()
            .filter(|(index, _)| index % 16 == 0);
        let few = few.map(|(_, &(x, y))| (100.0 * x, 100.0 * y));
        carried.push(Series::new(Form::Line, colour, few.collect()));
    }
    carried.insert(
        0,
        Series::new(Form::Dashed, GREY, vec![(0.0, 0.0), (100.0, 100.0)]),
    );
    let panel = |title: &str, note: &str, x, y, series| Panel {
        title: title.to_owned(),
        notes: vec![note.to_owned()],
        x,
        y,
        series,
    };
    let belief = || Axis::new("D(G(z))", 0.0, 1.0);
    let panels = vec![
        panel(
            "G's cost on one sample",
            "by what D says of it",
            belief(),
            Axis::new("J_G", -20.0, 5.0),
            costs,
        ),
        panel(
            "G's gradient on one sample",
            "with respect to D's logit",
            belief(),
            Axis::powers("|dJ_G / d logit|", -3.0, 2.0),
            slopes,
        ),
        panel(
            "Who carries the gradient",
            "samples of N(4, 1.5²), D trained on them and on data",
            Axis::new("samples, those first that carry most, %", 0.0, 100.0),
            Axis::new("share of the gradient, %", 0.0, 100.0),
            carried,
        ),
    ];
    let mut legend: Vec<_> = GAMES
        .iter()
        .map(|(_, name, colour)| (Form::Line, *colour, (*name).to_owned()))
        .collect();
    legend.push((Form::Dashed, GREY, "all samples alike".to_owned()));
    let page = Page {
        title: "What G is told of a sample, in three games".to_owned(),
        legend: vec![legend],
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

    /// Equations 10, 13 and 14, with their ½.
    #[test]
    fn costs_are_the_tutorials() {
        let logit = (0.2f64 / 0.8).ln();
        for (game, expected) in [
            (config::Objective::Minimax, 0.5 * 0.8f64.ln()),
            (config::Objective::NonSaturating, -0.5 * 0.2f64.ln()),
            (config::Objective::MaximumLikelihood, -0.5 * 0.25),
        ] {
            let (found, gradient) = cost(game, &[logit]).unwrap();
            assert!((found - expected).abs() < 1e-6, "{game:?}: {found}");
            assert!(gradient[0] < 0.0, "G always gains from a D that believes");
        }
    }

    #[test]
    fn shares_say_who_carries_most() {
        let points = shares(&[0.0, -3.0, 1.0, 0.0]);
        assert_eq!(points[1], (0.25, 0.75));
        assert_eq!(points[4], (1.0, 1.0));
        assert_eq!(half(&points), 0.25);
        assert_eq!(half(&shares(&[1.0; 10])), 0.5);
    }
}
