//! What section 3.4 and equation 9 claim, against closed forms.

use super::*;
use crate::config;
use crate::objective;
use std::f64::consts::LN_2;
use tch::{Kind, Tensor};

const BINS: Bins = Bins {
    from: -6.0,
    to: 6.0,
    count: 240,
};

fn component(weight: f64, mean: f64, deviation: f64) -> Component {
    Component {
        weight,
        mean,
        deviation,
    }
}

/// Two bumps that overlap a little.
fn data() -> Mixture {
    Mixture::new(vec![component(0.6, -1.5, 0.5), component(0.4, 1.5, 0.8)]).unwrap()
}

fn densities(of: &Mixture) -> Vec<f64> {
    BINS.middles().iter().map(|&x| of.density(x)).collect()
}

/// Leaves in double precision: the bumps of a mixture, and c.
fn leaves(means: &[f64], deviations: &[f64], logits: &[f64], constant: f64) -> Vec<Tensor> {
    let logs: Vec<f64> = deviations.iter().map(|d| d.ln()).collect();
    [means, &logs, logits, &[constant]]
        .iter()
        .map(|values| Tensor::from_slice(values).set_requires_grad(true))
        .collect()
}

fn gradient(of: &Tensor, leaves: &[Tensor]) -> Vec<f64> {
    let gradients = Tensor::run_backward(&[of], leaves, false, false);
    let flat: Vec<Tensor> = gradients.iter().map(|g| g.reshape([-1])).collect();
    Vec::<f64>::try_from(Tensor::cat(&flat, 0).to_kind(Kind::Double)).unwrap()
}

#[track_caller]
fn near(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= tolerance, "{found:?} for {expected:?}");
    }
}

fn train(criterion: &mut dyn Criterion, data: &Mixture, updates: u64) {
    for update in 0..updates {
        let drawn = data.draw(key(1, Use::Data, update), 512);
        let drawn = Tensor::from_slice(&drawn).to_kind(Kind::Float);
        criterion.update(&drawn).unwrap();
    }
}

/// The components of a mixture by their means.
fn sorted(of: &Mixture) -> Vec<f64> {
    let mut components = of.components().to_vec();
    components.sort_by(|a, b| a.mean.total_cmp(&b.mean));
    let numbers = components.iter().map(|c| [c.weight, c.mean, c.deviation]);
    numbers.flatten().collect()
}

#[test]
fn a_mixture_has_its_moments_and_its_mass() {
    let data = data();
    let p = densities(&data);
    let mass = p.iter().sum::<f64>() * BINS.width();
    assert!((mass - 1.0).abs() < 1e-6, "{mass}");
    assert!(divergence(&p, &p, &BINS).abs() < 1e-5);
    let drawn = data.draw(key(0, Use::Data, 0), 100_000);
    let mean = drawn.iter().sum::<f64>() / 1e5;
    let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5;
    near(&[mean, variance], &[data.mean(), data.variance()], 0.02);
    let strata = data.strata(10_000).unwrap();
    near(
        &[
            strata.mean(Kind::Double).double_value(&[]),
            strata.var(false).double_value(&[]),
        ],
        &[data.mean(), data.variance()],
        1e-3,
    );
    let x = Tensor::from_slice(&[-30.0, 0.1, 2.0]);
    near(
        &Vec::<f64>::try_from(data.log_densities(&x).unwrap()).unwrap(),
        &[-30.0, 0.1, 2.0].map(|x| data.log_density(x)),
        1e-9,
    );
}

#[test]
fn what_is_no_mixture_is_refused() {
    let refused = |components: Vec<Component>| Mixture::new(components).unwrap_err().to_string();
    assert!(refused(vec![]).contains("at least one"));
    assert!(refused(vec![component(0.5, 0.0, 1.0)]).contains("0.5"));
    assert!(refused(vec![component(1.0, 0.0, 0.0)]).contains("component 0"));
    assert!(refused(vec![component(1.0, f64::NAN, 1.0)]).contains("component 0"));
}

/// KL between two normal distributions, by its closed form.
#[test]
fn a_divergence_is_the_closed_form() {
    let (p, q) = (
        Mixture::normal(0.5, 0.6).unwrap(),
        Mixture::normal(-0.2, 0.9).unwrap(),
    );
    let expected = (0.9f64 / 0.6).ln() + (0.36 + 0.49) / (2.0 * 0.81) - 0.5;
    let found = divergence(&densities(&p), &densities(&q), &BINS);
    assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
}

/// Equation 9's optimum: V's gradient by D's logits vanishes at ln p_data - ln p_model, everywhere,
/// and V is 2·JS - ln 4 there.
#[test]
fn the_optimal_discriminator_is_equation_9() {
    let (p, q) = (data(), Mixture::normal(0.3, 1.4).unwrap());
    let x = Tensor::from_slice(&BINS.middles());
    let (log_p, log_q) = (p.log_densities(&x).unwrap(), q.log_densities(&x).unwrap());
    // An expectation over bins, and not over points: the objective takes a mean, so each logit is
    // weighed by differentiating by it alone.
    let logits = (&log_p - &log_q).set_requires_grad(true);
    let per_point = |p: &Tensor, q: &Tensor| {
        (p.exp() * logits.log_sigmoid() + q.exp() * (-&logits).log_sigmoid()) * BINS.width()
    };
    let worth = per_point(&log_p, &log_q).sum(Kind::Double);
    let found = worth.double_value(&[]);
    for slope in gradient(&worth, std::slice::from_ref(&logits)) {
        assert!(slope.abs() < 1e-12, "{slope}");
    }
    let (p, q) = (densities(&p), densities(&q));
    let middle: Vec<f64> = p.iter().zip(&q).map(|(p, q)| 0.5 * (p + q)).collect();
    let js = 0.5 * (divergence(&p, &middle, &BINS) + divergence(&q, &middle, &BINS));
    assert!((found - (2.0 * js - 2.0 * LN_2)).abs() < 1e-4, "{found}");
    // The games of src/objective say the same of the logits' points.
    let s = Tensor::from_slice(&[0.3f32, -2.0]);
    let of_game = value(&s, &s).unwrap().double_value(&[]);
    let by_hand = (s.log_sigmoid().mean(Kind::Float) + (-&s).log_sigmoid().mean(Kind::Float))
        .double_value(&[]);
    assert!((of_game - by_hand).abs() < 1e-6);
}

/// A trained D's odds are the ratio of the densities, to a few percent, where there is mass.
#[test]
fn the_odds_of_a_trained_discriminator_are_the_density_ratio() {
    let (p, q) = (data(), Mixture::normal(0.0, 1.8).unwrap());
    let estimate = DensityRatio::estimate(&p, &q, &Estimation::default()).unwrap();
    let x = BINS.middles();
    let found = estimate.log_ratio(&x).unwrap();
    let (mut error, mut mass) = (0.0, 0.0);
    for (&x, found) in x.iter().zip(found) {
        let weight = 0.5 * (p.density(x) + q.density(x));
        let truth = p.log_density(x) - q.log_density(x);
        // Less than one draw in a thousand falls into such a bin.
        if weight * BINS.width() > 1e-3 {
            error += weight * (found - truth).abs();
            mass += weight;
        }
    }
    let error = error / mass;
    assert!(mass * BINS.width() > 0.9, "{mass}");
    assert!(error < 0.08, "mean error of the log ratio: {error}");
    let again = DensityRatio::estimate(&p, &q, &Estimation::default()).unwrap();
    assert_eq!(
        again.log_ratio(&x).unwrap(),
        estimate.log_ratio(&x).unwrap()
    );
}

/// Goodfellow 2014, section 4: with a generator that is a copy of the model, V's gradient is half
/// that of the log-likelihood, for a normalised model and for one that learns its constant.
#[test]
fn against_a_copy_of_itself_a_model_follows_the_likelihood() {
    let leaves = leaves(&[-1.0, 0.8], &[0.9, 1.2], &[0.2, -0.3], 0.0);
    let model = Bumps::of(&leaves);
    let copy = model.mixture().unwrap();
    let (real, generated) = (data().strata(4000).unwrap(), copy.strata(40_000).unwrap());
    let density = &leaves[..3];
    let likelihood = model.log_density(&real).unwrap().mean(Kind::Double);
    let expected: Vec<f64> = gradient(&likelihood, density)
        .iter()
        .map(|g| g / 2.0)
        .collect();
    assert!(expected.iter().any(|g| g.abs() > 0.1), "{expected:?}");

    let against = |x: &Tensor| model.log_density(x).unwrap() - copy.log_densities(x).unwrap();
    let worth = value(&against(&real), &against(&generated)).unwrap();
    assert!((worth.double_value(&[]) + 2.0 * LN_2).abs() < 1e-6);
    near(&gradient(&worth, density), &expected, 2e-4);

    // With c at -ln Z the unnormalised model is the same function; c's own gradient is 0.
    let constant = -model.log_mass().unwrap().detach();
    let against = |x: &Tensor| {
        model.log_heights(x).unwrap() + &constant + &leaves[3] - copy.log_densities(x).unwrap()
    };
    let worth = value(&against(&real), &against(&generated)).unwrap();
    let found = gradient(&worth, &leaves);
    near(&found[..6], &expected, 2e-4);
    near(&found[6..], &[0.0], 1e-4);
}

/// Noise-contrastive estimation is consistent against any noise: at the truth nothing pulls. Away from it,
/// its gradient is not the likelihood's: the two tasks' gradients differ.
#[test]
fn against_noise_only_the_truth_is_at_rest() {
    let noise = Mixture::normal(0.4, 2.5).unwrap();
    let (real, fake) = (
        data().strata(40_000).unwrap(),
        noise.strata(40_000).unwrap(),
    );
    let worth_at = |leaves: &[Tensor]| {
        let model = Bumps::of(leaves);
        let logits = |x: &Tensor| {
            model.log_heights(x).unwrap() + &leaves[3] - noise.log_densities(x).unwrap()
        };
        value(&logits(&real), &logits(&fake)).unwrap()
    };
    // A bump's weight in f is by its height: w/σ.
    let heights = [(0.6f64 / 0.5).ln(), (0.4f64 / 0.8).ln()];
    let truth = leaves(&[-1.5, 1.5], &[0.5, 0.8], &heights, 0.0);
    let constant = -Bumps::of(&truth).log_mass().unwrap().double_value(&[]);
    let truth = leaves(&[-1.5, 1.5], &[0.5, 0.8], &heights, constant);
    near(&gradient(&worth_at(&truth), &truth), &[0.0; 7], 1e-3);

    let too_much = leaves(&[-1.5, 1.5], &[0.5, 0.8], &heights, constant + 0.5);
    let pulled = gradient(&worth_at(&too_much), &too_much);
    assert!(pulled[6] < -0.02, "its mass is to fall: {pulled:?}");

    let off = leaves(&[-1.0, 0.8], &[0.9, 1.2], &[0.2, -0.3], 0.0);
    let likelihood = Bumps::of(&off)
        .log_density(&real)
        .unwrap()
        .mean(Kind::Double);
    let likelihood = gradient(&likelihood, &off[..3]);
    let contrast = gradient(&worth_at(&off), &off);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (a, b) = (&likelihood[..], &contrast[..6]);
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    assert!(cosine < 0.99, "{cosine}");
}

/// Equations 10 and 14: with an optimal D, G's expected gradient is that of the Jensen-Shannon
/// divergence in the minimax game, and that of KL(data ‖ model) in the maximum likelihood game.
#[test]
fn against_an_optimal_discriminator_games_descend_their_divergences() {
    let p = Mixture::normal(0.5, 0.7).unwrap();
    let at = [0.1, 0.9]; // G(z) = μ + σ·z
    let gradient_of = |game: config::Objective| {
        let [mean, deviation] = at.map(|x| Tensor::from_slice(&[x]).set_requires_grad(true));
        let q = Mixture::normal(at[0], at[1]).unwrap();
        let fake = &mean + &deviation * normal_strata(200_000).unwrap();
        // D is what it is: no gradient by q's parameters but through the samples.
        let logits = p.log_densities(&fake).unwrap() - q.log_densities(&fake).unwrap();
        let cost = objective::of(game, 0.0).generator(&logits, None).unwrap();
        gradient(&cost, &[mean, deviation])
    };
    let numeric = |divergence_at: &dyn Fn([f64; 2]) -> f64| {
        let slope = |axis: usize| {
            let (mut up, mut down) = (at, at);
            up[axis] += 1e-4;
            down[axis] -= 1e-4;
            (divergence_at(up) - divergence_at(down)) / 2e-4
        };
        [slope(0), slope(1)]
    };
    let real = densities(&p);
    let model = |[mean, deviation]: [f64; 2]| densities(&Mixture::normal(mean, deviation).unwrap());
    let kl = numeric(&|at| divergence(&real, &model(at), &BINS));
    near(
        &gradient_of(config::Objective::MaximumLikelihood),
        &kl,
        5e-3,
    );
    let twice_js = numeric(&|at| {
        let q = model(at);
        let middle: Vec<f64> = real.iter().zip(&q).map(|(p, q)| 0.5 * (p + q)).collect();
        divergence(&real, &middle, &BINS) + divergence(&q, &middle, &BINS)
    });
    near(&gradient_of(config::Objective::Minimax), &twice_js, 5e-3);
    assert!(kl.iter().zip(twice_js).all(|(a, b)| (a - b).abs() > 0.05));
}

#[test]
fn maximum_likelihood_recovers_the_parameters() {
    let around = Mixture::normal(0.0, 2.0).unwrap();
    let mut criterion = MaximumLikelihood::new(&around, 2, 0).unwrap();
    train(&mut criterion, &data(), 1200);
    let found = criterion.mixture().unwrap();
    near(&sorted(&found), &sorted(&data()), 0.08);
    let left = divergence(&densities(&data()), &criterion.model(&BINS).unwrap(), &BINS);
    assert!(left < 0.005, "{left}");
}

#[test]
fn noise_contrast_finds_the_density_and_its_constant() {
    let noise = Mixture::normal(0.0, 2.0).unwrap();
    let mut criterion = NoiseContrastive::new(noise, 2, 0).unwrap();
    let before = criterion.mass().unwrap();
    assert!(
        (before - 1.0).abs() > 0.5,
        "{before} is no start for a test"
    );
    train(&mut criterion, &data(), 1500);
    let mass = criterion.mass().unwrap();
    assert!((mass - 1.0).abs() < 0.03, "p_model's integral is {mass}");
    near(
        &sorted(&criterion.mixture().unwrap()),
        &sorted(&data()),
        0.1,
    );
    let left = divergence(&densities(&data()), &criterion.model(&BINS).unwrap(), &BINS);
    assert!(left < 0.01, "{left}");
}

#[test]
fn the_gan_learns_a_sampler() {
    const UPDATES: u64 = 1000;
    let mut criterion = Adversarial::new(2.0, 32, 0).unwrap();
    let p = densities(&data());
    let before = divergence(&p, &criterion.model(&BINS).unwrap(), &BINS);
    for update in 0..UPDATES {
        let gone = update as f64 / UPDATES as f64;
        criterion.set_pace(0.5 * (1.0 + (std::f64::consts::PI * gone).cos()));
        let drawn = data().draw(key(1, Use::Data, update), 512);
        let drawn = Tensor::from_slice(&drawn).to_kind(Kind::Float);
        criterion.update(&drawn).unwrap();
    }
    let left = divergence(&p, &criterion.model(&BINS).unwrap(), &BINS);
    assert!(left < 0.2 && left < before / 2.0, "{before} to {left}");
    // Nothing tells the two apart any more, nearly: V is close to -ln 4.
    let drawn = Tensor::from_slice(&data().draw(key(2, Use::Data, 0), 4096)).to_kind(Kind::Float);
    let worth = criterion.update(&drawn).unwrap();
    assert!((worth + 2.0 * LN_2).abs() < 0.15, "{worth}");
}
