//! Figure 14: KL(p ‖ q) against KL(q ‖ p). A normal distribution q is fitted to a mixture p of two,
//! which it can't be. Maximum likelihood's order, KL(p ‖ q), has it cover both; the other has it take
//! one of them and leave no mass where the data have none.

use super::chart::{Axis, BLUE, Form, GREY, Page, Panel, Series};
use super::{Drawing, FigureError, Picture, Study};
use crate::config::Adam;
use crate::density::{Bins, Bumps, Component, Learner, Mixture, MixtureError};
use crate::torch::TorchError;
use std::f64::consts::PI;
use tch::{Kind, Tensor};

/// The integrals' range and grain.
const BINS: Bins = Bins {
    from: -9.0,
    to: 9.0,
    count: 1800,
};

/// The order of KL's arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    /// KL(p ‖ q): maximum likelihood.
    DataFirst,
    /// KL(q ‖ p)
    ModelFirst,
}

/// A normal distribution that was found, and its divergence in nats.
#[derive(Clone, Copy, Debug)]
struct Fit {
    mean: f64,
    deviation: f64,
    divergence: f64,
}

fn data() -> Result<Mixture, MixtureError> {
    let component = |weight, mean| Component {
        weight,
        mean,
        deviation: 0.7,
    };
    Mixture::new(vec![component(0.55, -2.0), component(0.45, 2.0)])
}

/// The divergence by its integral, and q: what autograd differentiates.
fn divergence(leaves: &[Tensor], data: &Mixture, order: Order) -> Result<Tensor, TorchError> {
    let x = Tensor::f_from_slice(&BINS.middles())?;
    let log_p = data.log_densities(&x)?;
    let one = Tensor::f_zeros_like(&leaves[0])?;
    let q = Bumps {
        means: &leaves[0],
        log_deviations: &leaves[1],
        logits: &one,
    };
    let log_q = q.log_density(&x)?;
    let (first, second) = match order {
        Order::DataFirst => (log_p, log_q),
        Order::ModelFirst => (log_q, log_p),
    };
    let integrand = first.f_exp()?.f_mul(&first.f_sub(&second)?)?;
    Ok(integrand.f_sum(Kind::Double)?.f_mul_scalar(BINS.width())?)
}

/// Descends from each of several starts, and keeps the lowest end: KL(q ‖ p) has a minimum at each
/// mode.
fn fit(data: &Mixture, order: Order, updates: u32) -> Result<Fit, FigureError> {
    const RATE: f64 = 0.1;
    let adam = Adam {
        learning_rate: RATE,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
    };
    let mut best: Option<Fit> = None;
    for start in [-3.0, -1.0, 0.0, 1.0, 3.0] {
        let parts = [
            Tensor::f_from_slice(&[start])?,
            Tensor::f_from_slice(&[0.0])?,
        ];
        let mut learner = Learner::new(&parts, adam)?;
        for update in 0..updates {
            let leaves = learner.leaves()?;
            let cost = divergence(&leaves, data, order)?;
            let gone = f64::from(update) / f64::from(updates);
            learner.set_rate(RATE * 0.5 * (1.0 + (PI * gone).cos()));
            learner.descend(&cost, &leaves)?;
        }
        let leaves = learner.leaves()?;
        let end = Fit {
            mean: leaves[0].f_double_value(&[0])?,
            deviation: leaves[1].f_double_value(&[0])?.exp(),
            divergence: divergence(&leaves, data, order)?.f_double_value(&[])?,
        };
        if best.is_none_or(|best| end.divergence < best.divergence) {
            best = Some(end);
        }
    }
    best.ok_or_else(|| FigureError::Plot("there was no start to descend from".to_owned()))
}

/// Draws it.
pub(super) fn draw(study: &Study) -> Result<Drawing, FigureError> {
    let data = data()?;
    let updates = study.updates(300);
    let x: Vec<f64> = (0..=400)
        .map(|i| -5.5 + 11.0 * f64::from(i) / 400.0)
        .collect();
    let curve = |of: &Mixture| x.iter().map(|&x| (x, of.density(x))).collect::<Vec<_>>();
    let mut panels = Vec::new();
    let mut findings = Vec::new();
    for (order, name) in [
        (Order::DataFirst, "KL(p ‖ q)"),
        (Order::ModelFirst, "KL(q ‖ p)"),
    ] {
        let found = fit(&data, order, updates)?;
        let model = Mixture::normal(found.mean, found.deviation)?;
        let told = format!(
            "μ = {:.2}, σ = {:.2}, {name} = {:.3} nats",
            found.mean, found.deviation, found.divergence
        );
        findings.push(format!("q that minimises {name}: {told}"));
        panels.push(Panel {
            title: format!("q* = argmin {name}"),
            notes: vec![told],
            x: Axis::new("x", -5.5, 5.5),
            y: Axis::new("probability density", 0.0, 0.6),
            series: vec![
                Series::new(Form::Area, GREY, curve(&data)),
                Series::new(Form::Line, BLUE, curve(&model)),
            ],
        });
    }
    let page = Page {
        title: "The order of KL's arguments decides what a model gives up".to_owned(),
        legend: vec![vec![
            (Form::Area, GREY, "p: the data, a mixture".to_owned()),
            (
                Form::Line,
                BLUE,
                "q*: a normal distribution, fitted".to_owned(),
            ),
        ]],
        columns: 2,
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

    /// Maximum likelihood of a normal distribution is its moments, in closed form. The other order
    /// is at rest at a mode: its gradient, by differences, is 0.
    #[test]
    fn each_order_ends_where_it_must() {
        let data = data().unwrap();
        let covering = fit(&data, Order::DataFirst, 300).unwrap();
        assert!((covering.mean - data.mean()).abs() < 2e-3, "{covering:?}");
        let deviation = data.variance().sqrt();
        assert!(
            (covering.deviation - deviation).abs() < 2e-3,
            "{covering:?}"
        );

        let choosing = fit(&data, Order::ModelFirst, 300).unwrap();
        assert!(
            (choosing.mean + 2.0).abs() < 0.05,
            "the heavier mode: {choosing:?}"
        );
        assert!((choosing.deviation - 0.7).abs() < 0.05, "{choosing:?}");
        let at = |mean: f64, deviation: f64| {
            let leaves = [
                Tensor::from_slice(&[mean]),
                Tensor::from_slice(&[deviation.ln()]),
            ];
            divergence(&leaves, &data, Order::ModelFirst)
                .unwrap()
                .double_value(&[])
        };
        let (mean, deviation) = (choosing.mean, choosing.deviation);
        for off in [0.03, -0.03] {
            assert!(at(mean + off, deviation) > choosing.divergence);
            assert!(at(mean, deviation + off) > choosing.divergence);
        }
        // All of q lies in one mode: about -ln of the mode's weight.
        assert!(
            (choosing.divergence + 0.55f64.ln()).abs() < 0.02,
            "{choosing:?}"
        );
    }
}
