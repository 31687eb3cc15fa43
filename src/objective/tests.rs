//! Every game against its definition, written here in `f64` and in other words than in the code.

use super::{Divergence, Objective, of};
use crate::config::Objective as Game;
use tch::{Kind, Tensor};

fn logistic(s: f64) -> f64 {
    1.0 / (1.0 + (-s).exp())
}

/// Nowozin et al., table 6: g_f.
fn activation(game: Game, v: f64) -> f64 {
    match game {
        Game::FKl | Game::FPearson => v,
        Game::FReverseKl => -(-v).exp(),
        Game::FHellinger => 1.0 - (-v).exp(),
        Game::FJs => 2f64.ln() - (1.0 + (-v).exp()).ln(),
        Game::FGan => -(1.0 + (-v).exp()).ln(),
        _ => panic!("{game} has no divergence"),
    }
}

/// The same table: f*.
fn conjugate(game: Game, t: f64) -> f64 {
    match game {
        Game::FKl => (t - 1.0).exp(),
        Game::FReverseKl => -1.0 - (-t).ln(),
        Game::FPearson => t * t / 4.0 + t,
        Game::FHellinger => t / (1.0 - t),
        Game::FJs => -(2.0 - t.exp()).ln(),
        Game::FGan => -(1.0 - t.exp()).ln(),
        _ => panic!("{game} has no divergence"),
    }
}

/// f, of the ratio u of the densities.
fn generator_function(game: Game, u: f64) -> f64 {
    match game {
        Game::FKl => u * u.ln(),
        Game::FReverseKl => -u.ln(),
        Game::FPearson => (u - 1.0).powi(2),
        Game::FHellinger => (u.sqrt() - 1.0).powi(2),
        Game::FJs => u * u.ln() - (u + 1.0) * ((u + 1.0) / 2.0).ln(),
        Game::FGan => u * u.ln() - (u + 1.0) * (u + 1.0).ln(),
        _ => panic!("{game} has no divergence"),
    }
}

const DIVERGENCES: [Game; 6] = [
    Game::FKl,
    Game::FReverseKl,
    Game::FPearson,
    Game::FHellinger,
    Game::FJs,
    Game::FGan,
];

/// What D pays for a real image, what it pays for a fake, and what G pays for it, by D's output on
/// it. On real images the relativistic game has a fake of output 0 beside each, and the other way
/// round.
fn costs(game: Game, s: f64) -> [f64; 3] {
    let d = logistic(s);
    match game {
        Game::Minimax => [-d.ln(), -(1.0 - d).ln(), (1.0 - d).ln()],
        Game::NonSaturating => [-d.ln(), -(1.0 - d).ln(), -d.ln()],
        Game::MaximumLikelihood => [-d.ln(), -(1.0 - d).ln(), -d / (1.0 - d)],
        Game::LeastSquares => [
            (s - 1.0).powi(2) / 2.0,
            s * s / 2.0,
            (s - 1.0).powi(2) / 2.0,
        ],
        Game::Hinge => [(1.0 - s).max(0.0), (1.0 + s).max(0.0), -s],
        Game::Wasserstein => [-s, s, -s],
        Game::Relativistic => [-d.ln(), -(1.0 - d).ln(), -d.ln()],
        divergence => {
            let t = activation(divergence, s);
            let of_fake = conjugate(divergence, t);
            [-t, of_fake, -of_fake]
        }
    }
}

/// Their derivatives, by differences.
fn slopes(game: Game, s: f64) -> [f64; 3] {
    let h = 1e-5;
    let (above, below) = (costs(game, s + h), costs(game, s - h));
    [0, 1, 2].map(|i| (above[i] - below[i]) / (2.0 * h))
}

fn close(what: &str, found: f64, expected: f64) {
    let scale = expected.abs().max(1e-2);
    assert!(
        (found - expected).abs() <= 2e-5 * scale,
        "{what}: {found} for {expected}"
    );
}

fn leaf(values: &[f32]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

/// Off the hinges' corners.
const GRID: [f32; 11] = [
    -8.0, -4.5, -2.0, -1.25, -0.5, 0.0, 0.375, 1.125, 2.5, 4.0, 7.5,
];

#[test]
fn costs_and_gradients_are_the_definitions() {
    for game in Game::ALL {
        let objective = of(game, 0.0);
        for s in GRID {
            let what = format!("{game} at {s}");
            let (real, fake, still) = (leaf(&[s]), leaf(&[s]), Tensor::from_slice(&[0f32]));
            let [on_real, on_fake, of_g] = costs(game, s.into());
            let slopes = slopes(game, s.into());
            // What the other image, of output 0, costs.
            let [real_still, fake_still, _] = costs(game, 0.0);
            let beside = |cost: f64| match objective.pairs() {
                true => 0.0,
                false => cost,
            };

            let cost = objective.discriminator(&real, &still).unwrap();
            close(&what, cost.double_value(&[]), on_real + beside(fake_still));
            cost.backward();
            close(&what, real.grad().double_value(&[0]), slopes[0]);

            let cost = objective.discriminator(&still, &fake).unwrap();
            close(&what, cost.double_value(&[]), on_fake + beside(real_still));
            cost.backward();
            close(&what, fake.grad().double_value(&[0]), slopes[1]);

            let fake = leaf(&[s]);
            let cost = objective.generator(&fake, Some(&still)).unwrap();
            close(&what, cost.double_value(&[]), of_g);
            cost.backward();
            close(&what, fake.grad().double_value(&[0]), slopes[2]);
        }
    }
}

#[test]
fn costs_are_means_over_each_minibatch() {
    for game in Game::ALL {
        let objective = of(game, 0.0);
        let (real, fake) = ([-2.0f32, 3.0, 0.25], [0.5f32, -4.0, 1.5]);
        let (reals, fakes) = (leaf(&real), leaf(&fake));
        let found = objective.discriminator(&reals, &fakes).unwrap();
        let mean = |f: &dyn Fn(usize) -> f64| (0..3).map(f).sum::<f64>() / 3.0;
        let expected = if objective.pairs() {
            mean(&|i| costs(game, f64::from(real[i] - fake[i]))[0])
        } else {
            mean(&|i| costs(game, real[i].into())[0]) + mean(&|i| costs(game, fake[i].into())[1])
        };
        close(&format!("{game}"), found.double_value(&[]), expected);
        found.backward();
        // Each image has a third of the say.
        let slope = if objective.pairs() {
            slopes(game, f64::from(real[1] - fake[1]))[0]
        } else {
            slopes(game, real[1].into())[0]
        };
        close(
            &format!("{game}"),
            reals.grad().double_value(&[1]),
            slope / 3.0,
        );
        if !objective.pairs() {
            // Minibatches of other sizes are means of their own.
            let more = leaf(&[0.5, -4.0, 1.5, 0.5, -4.0, 1.5]);
            let same = objective.discriminator(&reals, &more).unwrap();
            close(&format!("{game}"), same.double_value(&[]), expected);
        }
    }
}

/// In `f32`, and from outputs in `bf16`.
#[test]
fn costs_and_gradients_are_finite_for_outputs_from_minus_80_to_80() {
    let outputs: Vec<f32> = (-80..=80).map(|s| s as f32).collect();
    let backwards: Vec<f32> = outputs.iter().rev().copied().collect();
    for game in Game::ALL {
        for kind in [Kind::Float, Kind::BFloat16] {
            for smoothing in [0.0, 0.1] {
                let leaf = |values: &[f32]| {
                    let values = Tensor::from_slice(values).to_kind(kind);
                    values.set_requires_grad(true)
                };
                let (real, fake) = (leaf(&outputs), leaf(&backwards));
                let objective = of(game, smoothing);
                let d = objective.discriminator(&real, &fake).unwrap();
                let g = objective.generator(&fake, Some(&real.detach())).unwrap();
                (&d + &g).backward();
                let [on_real, on_fake] = objective.beliefs(&real, &fake).unwrap();
                assert_eq!((d.kind(), g.kind()), (Kind::Float, Kind::Float));
                for tensor in [&d, &g, &real.grad(), &fake.grad(), &on_real, &on_fake] {
                    let finite = bool::try_from(tensor.isfinite().all()).unwrap();
                    assert!(finite, "{game} {kind:?} {tensor:?}");
                }
                for belief in [on_real, on_fake] {
                    let within = belief.ge(0.0).logical_and(&belief.le(1.0)).all();
                    assert!(bool::try_from(within).unwrap(), "{game}");
                }
            }
        }
    }
}

/// Figure 16: J_G by D(G(z)), with the ½ that the code leaves out, and what the figure is there to
/// show.
#[test]
fn figure_16() {
    let curve = |game: Game, d: f64| -> (f64, f64) {
        let s = leaf(&[(d / (1.0 - d)).ln() as f32]);
        let cost = of(game, 0.0).generator(&s, None).unwrap();
        cost.backward();
        // By D(G(z)), of which the slope by s is d·(1 - d).
        let slope = s.grad().double_value(&[0]) / (d * (1.0 - d));
        (0.5 * cost.double_value(&[]), 0.5 * slope)
    };
    for index in 1..100 {
        let d = f64::from(index) / 100.0;
        for (game, cost, slope) in [
            (Game::Minimax, 0.5 * (1.0 - d).ln(), -0.5 / (1.0 - d)),
            (Game::NonSaturating, -0.5 * d.ln(), -0.5 / d),
            (
                Game::MaximumLikelihood,
                -0.5 * d / (1.0 - d),
                -0.5 / (1.0 - d).powi(2),
            ),
        ] {
            let found = curve(game, d);
            close(&format!("{game} at {d}"), found.0, cost);
            close(&format!("{game}'s slope at {d}"), found.1, slope);
        }
    }
    // Left: where D is sure of fakes, only the non-saturating game is steep.
    let left = |game| curve(game, 0.01).1;
    assert!(left(Game::Minimax) > -0.51 && left(Game::MaximumLikelihood) > -0.52);
    assert!(left(Game::NonSaturating) < -49.0);
    // Right: with maximum likelihood the few best of many samples carry nearly all of the gradient.
    let outputs: Vec<f32> = (0..100).map(|i| -10.0 + 0.15 * i as f32).collect();
    let share = |game: Game| {
        let s = leaf(&outputs);
        of(game, 0.0).generator(&s, None).unwrap().backward();
        let gradient = s.grad().abs();
        let best = gradient.narrow(0, 90, 10).sum(Kind::Double);
        best.double_value(&[]) / gradient.sum(Kind::Double).double_value(&[])
    };
    assert!(share(Game::MaximumLikelihood) > 0.75);
    assert!(share(Game::NonSaturating) < 0.02);
}

/// The bound is the divergence where D is best, and its D/(1 - D) the ratio of the densities.
#[test]
fn the_best_d_of_an_f_gan_measures_its_divergence() {
    // Three kinds of image, ten samples of each distribution.
    let (p, q) = ([5usize, 3, 2], [2usize, 3, 5]);
    for game in DIVERGENCES {
        let ratio = |i: usize| p[i] as f64 / q[i] as f64;
        let f = |u: f64| generator_function(game, u);
        // g_f(v) = f'(ratio), by bisection: g_f grows.
        let best = |i: usize| -> f64 {
            let target = (f(ratio(i) + 1e-6) - f(ratio(i) - 1e-6)) / 2e-6;
            let (mut low, mut high) = (-20.0, 20.0);
            for _ in 0..80 {
                let middle = (low + high) / 2.0;
                match activation(game, middle) < target {
                    true => low = middle,
                    false => high = middle,
                }
            }
            low
        };
        let outputs = |counts: [usize; 3]| -> Vec<f32> {
            (0..3)
                .flat_map(|i| std::iter::repeat_n(best(i) as f32, counts[i]))
                .collect()
        };
        let (real, fake) = (leaf(&outputs(p)), leaf(&outputs(q)));
        let objective = of(game, 0.0);
        let cost = objective.discriminator(&real, &fake).unwrap();
        let divergence: f64 = (0..3).map(|i| q[i] as f64 / 10.0 * f(ratio(i))).sum();
        close(&format!("{game}"), -cost.double_value(&[]), divergence);
        // Nothing is to be gained for D.
        cost.backward();
        let per_kind = |i: usize| {
            let sum = |grad: Tensor, counts: [usize; 3]| {
                let from = counts[..i].iter().sum::<usize>() as i64;
                let part = grad.narrow(0, from, counts[i] as i64);
                part.sum(Kind::Double).double_value(&[])
            };
            sum(real.grad(), p) + sum(fake.grad(), q)
        };
        assert!((0..3).all(|i| per_kind(i).abs() < 1e-5), "{game}");
        let [on_real, _] = objective.beliefs(&real, &fake).unwrap();
        for (i, from) in [(0, 0), (1, 5), (2, 8)] {
            let expected = ratio(i) / (1.0 + ratio(i));
            close(&format!("{game}"), on_real.double_value(&[from]), expected);
        }
    }
}

#[test]
fn f_gan_is_minimax_in_other_words() {
    let (real, fake) = (leaf(&[-3.0, 0.5, 2.0]), leaf(&[4.0, -1.0, 0.0]));
    let games = [of(Game::FGan, 0.0), of(Game::Minimax, 0.0)];
    let costs = games.each_ref().map(|game| {
        [
            game.discriminator(&real, &fake).unwrap(),
            game.generator(&fake, None).unwrap(),
        ]
        .map(|cost| cost.double_value(&[]))
    });
    for (found, expected) in costs[0].iter().zip(costs[1]) {
        close("f-gan", *found, expected);
    }
}

#[test]
fn smoothing_moves_the_real_label_and_no_other() {
    let smoothing = 0.1;
    for game in [
        Game::Minimax,
        Game::NonSaturating,
        Game::MaximumLikelihood,
        Game::LeastSquares,
    ] {
        let (plain, smooth) = (of(game, 0.0), of(game, smoothing));
        for s in GRID {
            let still = Tensor::from_slice(&[0f32]);
            let of_fake = |game: &dyn Objective| {
                let cost = game.discriminator(&still, &leaf(&[s])).unwrap();
                let other = game.discriminator(&still, &still).unwrap();
                (cost - other).double_value(&[])
            };
            close("a fake", of_fake(&*smooth), of_fake(&*plain));
            let real = leaf(&[s]);
            let cost = smooth.discriminator(&real, &still).unwrap();
            cost.backward();
            let slope = real.grad().double_value(&[0]);
            let d = if game == Game::LeastSquares {
                f64::from(s)
            } else {
                logistic(s.into())
            };
            // Of cross-entropy with a sigmoid, and of ½ squares, output less label.
            close(&format!("{game} at {s}"), slope, d - (1.0 - smoothing));
            let g =
                |game: &dyn Objective| game.generator(&leaf(&[s]), None).unwrap().double_value(&[]);
            assert_eq!(g(&*smooth), g(&*plain));
        }
    }
}

#[test]
fn beliefs_are_even_where_d_cant_tell() {
    for game in Game::ALL {
        let objective = of(game, 0.0);
        // Where the ratio is 1.
        let even = match game {
            Game::LeastSquares => 0.5f32,
            Game::FKl => 1.0,
            _ => 0.0,
        };
        let outputs = Tensor::from_slice(&[even; 4]);
        let [real, fake] = objective.beliefs(&outputs, &outputs).unwrap();
        for belief in [&real, &fake] {
            close(&format!("{game}"), belief.double_value(&[2]), 0.5);
            assert_eq!(belief.size(), [4]);
        }
        let (sure, doubtful) = (Tensor::from_slice(&[2f32; 4]), &outputs);
        let [real, fake] = objective.beliefs(&sure, doubtful).unwrap();
        assert!(
            real.double_value(&[0]) > fake.double_value(&[0]),
            "{game}: what is more real looks so"
        );
    }
}

#[test]
fn pairs_are_pairs() {
    let relativistic = of(Game::Relativistic, 0.0);
    let (two, one) = (leaf(&[1.0, 2.0]), leaf(&[0.0]));
    for (real, fake) in [(&two, &one), (&one, &two)] {
        let error = relativistic.discriminator(real, fake).unwrap_err();
        assert!(error.to_string().contains("partner"), "{error}");
        let error = relativistic.generator(fake, Some(real)).unwrap_err();
        assert!(error.to_string().contains("partner"), "{error}");
    }
    assert!(relativistic.generator(&two, None).is_err());
    for game in Game::ALL {
        assert_eq!(of(game, 0.0).pairs(), game == Game::Relativistic);
    }
    assert_eq!(
        format!("{:?}", of(Game::FJs, 0.0)),
        format!("{:?}", Divergence::JensenShannon)
    );
}
