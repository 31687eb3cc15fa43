//! Adam on vectors in host memory, in one pass over it.
//!
//! libtorch's fused kernel changes vectors in place. Where the old ones must stay, because a step may
//! still fail, they are copied first, and that is half of the memory's traffic. This pass reads the
//! one and writes the other; the gradient's norm is taken on the way. Every number has the bits that
//! the copies and libtorch's kernel give on this processor.

use super::TorchError;
use std::slice;
use tch::{Device, Kind, Tensor};

/// One step of Adam from vectors in host memory to others: flat, contiguous, `f32`, all as long.
#[derive(Debug)]
pub struct AdamPass<'a> {
    /// Parameters, first moment, second moment.
    pub from: [&'a Tensor; 3],
    /// Where the next ones go, in other memory.
    pub to: [&'a mut Tensor; 3],
    /// The mean gradient.
    pub gradients: &'a Tensor,
    /// Steps, from 1.
    pub count: f64,
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
}

/// What was seen of a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measure {
    /// Its L2 norm.
    pub norm: f64,
    /// How many of its elements are not finite.
    pub nonfinite: u64,
}

impl AdamPass<'_> {
    /// Does it, on the calling thread.
    ///
    /// # Errors
    /// [`TorchError::Shim`], for vectors that are not as they must be, or share memory.
    pub fn apply(self) -> Result<Measure, TorchError> {
        let terms = Terms::new(&self);
        let [p, m, v] = self.from;
        let [p_next, m_next, v_next] = self.to;
        let length = self.gradients.numel();
        let read = [p, m, v, self.gradients];
        let written = [&*p_next, &*m_next, &*v_next];
        let fits = |tensor: &Tensor| {
            tensor.device() == Device::Cpu
                && tensor.kind() == Kind::Float
                && tensor.is_contiguous()
                && tensor.numel() == length
        };
        let all = || read.into_iter().chain(written);
        // Whole vectors, which may overlap in part.
        let apart = |one: &Tensor, other: &Tensor| {
            let (one, other) = (one.data_ptr() as usize, other.data_ptr() as usize);
            one.abs_diff(other) >= size_of::<f32>() * length
        };
        let alone = |index: usize, to: &Tensor| {
            let mut others = all().enumerate();
            others.all(|(other, tensor)| other == index || apart(to, tensor))
        };
        let places = (read.len()..).zip(written);
        if !all().all(fits) || (length > 0 && !places.into_iter().all(|(i, to)| alone(i, to))) {
            return Err(TorchError::Shim {
                doing: "apply Adam",
                message: "parameters, gradients and moments must be contiguous f32 vectors of one \
                          length in host memory, and the next ones must lie elsewhere"
                    .to_owned(),
            });
        }
        if length == 0 {
            return Ok(Lanes::default().measure());
        }
        // SAFETY: seven live tensors of `length` floats in a row in host memory, as checked above.
        // Nobody writes to those that are read, and nobody else reaches those that are written, for
        // as long as the slices live: the pass runs no other code, `to` is borrowed for writing, and
        // a `HostVector` gives no slice of memory that a tensor reaches.
        let (from, to) = unsafe {
            let source = |tensor: &Tensor| {
                slice::from_raw_parts(tensor.data_ptr().cast::<f32>().cast_const(), length)
            };
            let target = |tensor: &Tensor| {
                slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), length)
            };
            (
                [source(p), source(m), source(v), source(self.gradients)],
                [target(p_next), target(m_next), target(v_next)],
            )
        };
        Ok(pass(&terms, from, to).measure())
    }
}

/// What libtorch makes of the settings before it turns to the elements.
struct Terms {
    /// The first moment goes from `base` by this share of the way to the gradient: it is the moment
    /// itself, or beyond half of the way the gradient, and then the share is negative.
    from_gradient: bool,
    share: f32,
    beta2: f32,
    square_share: f32,
    rate: f32,
    square_correction: f32,
    epsilon: f32,
}

impl Terms {
    fn new(pass: &AdamPass<'_>) -> Self {
        let weight = (1.0 - pass.beta1) as f32;
        let from_gradient = weight.abs() >= 0.5;
        let correction = |beta: f64| 1.0 - beta.powf(pass.count);
        Self {
            from_gradient,
            share: if from_gradient { weight - 1.0 } else { weight },
            beta2: pass.beta2 as f32,
            square_share: (1.0 - pass.beta2) as f32,
            rate: -(pass.learning_rate / correction(pass.beta1)) as f32,
            square_correction: correction(pass.beta2).sqrt() as f32,
            epsilon: pass.epsilon as f32,
        }
    }
}

/// Sums over the gradient, in one order whatever adds them up: element i is in lane i mod 16.
#[derive(Default)]
struct Lanes {
    squares: [f64; LANES],
    nonfinite: u64,
}

const LANES: usize = 16;

impl Lanes {
    #[inline(always)]
    fn add(&mut self, gradient: &[f32]) {
        let mut bad = [0u32; LANES];
        for lane in gradient.chunks(LANES) {
            for ((square, bad), value) in self.squares.iter_mut().zip(&mut bad).zip(lane) {
                *square += f64::from(*value) * f64::from(*value);
                *bad += u32::from(!value.is_finite());
            }
        }
        self.nonfinite += bad.iter().map(|&bad| u64::from(bad)).sum::<u64>();
    }

    fn measure(&self) -> Measure {
        Measure {
            norm: self.squares.iter().sum::<f64>().sqrt(),
            nonfinite: self.nonfinite,
        }
    }
}

/// The norm of a gradient and how many of its elements are not finite: the figures do not depend on
/// threads or workers.
pub fn measure(gradient: &[f32]) -> Measure {
    let mut lanes = Lanes::default();
    for block in gradient.chunks(BLOCK) {
        lanes.add(block);
    }
    lanes.measure()
}

/// Elements that are measured and used while they are in the L1 cache: whole lanes.
const BLOCK: usize = 1024;

fn pass(terms: &Terms, from: [&[f32]; 4], to: [&mut [f32]; 3]) -> Lanes {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has the instructions that it is compiled for.
        return unsafe { pass_with_fma(terms, from, to) };
    }
    blocks::<{ cfg!(target_arch = "aarch64") }>(terms, from, to)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn pass_with_fma(terms: &Terms, from: [&[f32]; 4], to: [&mut [f32]; 3]) -> Lanes {
    blocks::<true>(terms, from, to)
}

#[inline(always)]
fn blocks<const FUSED: bool>(terms: &Terms, from: [&[f32]; 4], to: [&mut [f32]; 3]) -> Lanes {
    let mut lanes = Lanes::default();
    let [p, m, v, g] = from;
    let [p_next, m_next, v_next] = to;
    for start in (0..g.len()).step_by(BLOCK) {
        let block = start..g.len().min(start + BLOCK);
        lanes.add(&g[block.clone()]);
        let from = [p, m, v, g].map(|all| &all[block.clone()]);
        let to = [&mut *p_next, &mut *m_next, &mut *v_next].map(|all| &mut all[block.clone()]);
        elements::<FUSED>(terms, from, to);
    }
    lanes
}

/// As ATen/native/cpu/FusedAdamKernel.cpp has it, `FUSED` where its compiler fuses a product and a
/// sum: everywhere but on processors that can't.
#[inline(always)]
fn elements<const FUSED: bool>(terms: &Terms, from: [&[f32]; 4], to: [&mut [f32]; 3]) {
    let add = |a: f32, b: f32, c: f32| if FUSED { a.mul_add(b, c) } else { a * b + c };
    let [p, m, v, g] = from;
    let [p_next, m_next, v_next] = to;
    let n = g.len();
    let (p, m, v) = (&p[..n], &m[..n], &v[..n]);
    let (p_next, m_next, v_next) = (&mut p_next[..n], &mut m_next[..n], &mut v_next[..n]);
    for i in 0..n {
        let base = if terms.from_gradient { g[i] } else { m[i] };
        let mean = add(terms.share, g[i] - m[i], base);
        let square = add(terms.square_share * g[i], g[i], v[i] * terms.beta2);
        let denominator = square.sqrt() / terms.square_correction + terms.epsilon;
        p_next[i] = p[i] + terms.rate * mean / denominator;
        m_next[i] = mean;
        v_next[i] = square;
    }
}

#[cfg(test)]
mod tests {
    use super::super::FusedAdam;
    use super::*;

    fn vector(length: usize, scale: f32) -> Tensor {
        let value = |i: usize| ((i * 7919 % 10_007) as f32 * 0.37).sin() * scale;
        Tensor::from_slice(&(0..length).map(value).collect::<Vec<_>>())
    }

    #[test]
    fn it_has_the_bits_of_copies_and_libtorchs_kernel() {
        let length = 3 * BLOCK + 37;
        for (beta1, count) in [(0.5, 1.0), (0.9, 7.0), (0.0, 1000.0)] {
            let from = [
                vector(length, 1.0),
                vector(length, 0.1),
                vector(length, 0.01).abs(),
            ];
            let gradients = vector(length, 0.3).flip([0]);
            let mut expected = from.each_ref().map(Tensor::copy);
            let [parameters, exp_avg, exp_avg_sq] = &mut expected;
            FusedAdam {
                parameters,
                gradients: &gradients,
                exp_avg,
                exp_avg_sq,
                count: &Tensor::from(count as f32),
                learning_rate: 2e-4,
                beta1,
                beta2: 0.999,
                epsilon: 1e-8,
            }
            .apply()
            .unwrap();
            let before = from.each_ref().map(Tensor::copy);
            let mut to = from.each_ref().map(Tensor::zeros_like);
            let measured = AdamPass {
                from: from.each_ref(),
                to: to.each_mut(),
                gradients: &gradients,
                count,
                learning_rate: 2e-4,
                beta1,
                beta2: 0.999,
                epsilon: 1e-8,
            }
            .apply()
            .unwrap();
            for (index, (found, expected)) in to.iter().zip(&expected).enumerate() {
                assert!(found.equal(expected), "vector {index}, beta1 {beta1}");
                assert!(
                    from[index].equal(&before[index]),
                    "what is read is left alone"
                );
            }
            let values: Vec<f32> = (&gradients).try_into().unwrap();
            assert_eq!(measured, measure(&values));
        }
    }

    #[test]
    fn the_norm_is_exact_and_counts_what_is_not_finite() {
        let of = |values: &[f32]| (measure(values).norm, measure(values).nonfinite);
        assert_eq!(of(&[3.0, 4.0]), (5.0, 0));
        let mut values = vec![1.0f32; 5000];
        assert!((of(&values).0 - 5000f64.sqrt()).abs() < 1e-12);
        values[3] = f32::NAN;
        values[4999] = f32::INFINITY;
        assert_eq!(of(&values).1, 2);
        assert_eq!(of(&[]), (0.0, 0));
    }

    #[test]
    fn vectors_that_overlap_or_differ_are_refused() {
        let whole = vector(30, 1.0);
        let (a, g) = (vector(10, 1.0), vector(10, 0.1));
        let refused = |from: &Tensor, mut to: Tensor| {
            let (mut m, mut v) = (a.zeros_like(), a.zeros_like());
            let pass = AdamPass {
                from: [from, &a, &a],
                to: [&mut to, &mut m, &mut v],
                gradients: &g,
                count: 1.0,
                learning_rate: 1e-3,
                beta1: 0.5,
                beta2: 0.999,
                epsilon: 1e-8,
            };
            pass.apply().is_err()
        };
        assert!(!refused(&whole.narrow(0, 0, 10), whole.narrow(0, 10, 10)));
        assert!(refused(&whole.narrow(0, 0, 10), whole.narrow(0, 9, 10)));
        assert!(refused(&a, a.shallow_clone()));
        assert!(refused(&whole, a.zeros_like()));
        assert!(refused(
            &a,
            Tensor::zeros([10], (Kind::Double, Device::Cpu))
        ));
    }
}
